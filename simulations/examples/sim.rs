//! Runs seeds: `cargo sim --seeds 0..1000`, and one again with `cargo sim --replay 7 --trace`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use outpost_simulations::{Mutant, Options, run};

/// Runs three nodes under one virtual clock, with faults drawn from a seed, and checks what they promise.
#[derive(Debug, Parser)]
#[command(name = "cargo sim", version)]
struct Arguments {
    /// Which seeds to run, for example 0..1000.
    #[arg(long, default_value = "0..1000", value_parser = parse_range)]
    seeds: (u64, u64),
    /// Run this one only.
    #[arg(long, value_name = "SEED")]
    replay: Option<u64>,
    /// Let clients come back at other nodes.
    #[arg(long)]
    roam: bool,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
    /// Plant a bug, to see the checkers find it; `list` shows which there are.
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,
    /// Also print one hash of all runs: equal wherever and however it was compiled.
    #[arg(long)]
    hash: bool,
    /// Threads; each runs whole worlds.
    #[arg(long, default_value_t = 0)]
    jobs: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Ok(mutant) = mutant_of(arguments.mutant.as_deref()) else {
        for (name, _) in Mutant::ALL {
            println!("{name}");
        }
        return ExitCode::from(2);
    };
    let options = Options { trace: arguments.trace, roam: arguments.roam, mutant };
    let (from, to) = match arguments.replay {
        Some(seed) => (seed, seed + 1),
        None => arguments.seeds,
    };
    let (failed, hash) = run_all(from, to, options, &arguments);
    if arguments.hash {
        println!("hash {hash:016x}");
    }
    println!("{} passed, {failed} failed", to - from - failed);
    ExitCode::from(u8::from(failed > 0))
}

fn run_all(from: u64, to: u64, options: Options, arguments: &Arguments) -> (u64, u64) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if options.trace {
        1
    } else if arguments.jobs == 0 {
        cores
    } else {
        arguments.jobs
    };
    let next = std::sync::atomic::AtomicU64::new(from);
    let failed = std::sync::atomic::AtomicU64::new(0);
    let hash = std::sync::atomic::AtomicU64::new(0);
    let show_progress = std::io::stderr().is_terminal() && !options.trace;
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= to {
                        return;
                    }
                    match run_one(seed, options, arguments) {
                        // Added up, as the threads finish in any order.
                        Ok(its) => drop(hash.fetch_add(its, std::sync::atomic::Ordering::Relaxed)),
                        Err(()) => drop(failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                    }
                    if show_progress && (seed - from).is_multiple_of(10) {
                        eprint!("\r{} of {}", seed - from, to - from);
                        // Only decoration.
                        let _ = std::io::stderr().flush();
                    }
                }
            });
        }
    });
    if show_progress {
        eprint!("\r                \r");
    }
    (failed.into_inner(), hash.into_inner())
}

fn run_one(seed: u64, options: Options, arguments: &Arguments) -> Result<u64, ()> {
    let Ok(outcome) = std::panic::catch_unwind(|| run(seed, options)) else {
        println!("seed {seed} PANICKED; again: {}", command(seed, arguments));
        return Err(());
    };
    if arguments.replay.is_some() {
        println!(
            "seed {seed}: hash {:016x}, {} steps, {} published, {} delivered, faults {:?}",
            outcome.hash, outcome.steps, outcome.messages.0, outcome.messages.1, outcome.faults
        );
        outcome.violations.iter().for_each(|text| println!("  {text}"));
    } else if let Some(first) = outcome.violations.first() {
        let more = outcome.violations.len() - 1;
        println!(
            "seed {seed} failed: {first} (and {more} more); again: {}",
            command(seed, arguments)
        );
    }
    if outcome.violations.is_empty() { Ok(outcome.hash) } else { Err(()) }
}

fn command(seed: u64, arguments: &Arguments) -> String {
    let mutant =
        arguments.mutant.as_ref().map_or_else(String::new, |name| format!(" --mutant {name}"));
    let roam = if arguments.roam { " --roam" } else { "" };
    format!("cargo sim --replay {seed} --trace{roam}{mutant}")
}

fn mutant_of(name: Option<&str>) -> Result<Option<Mutant>, ()> {
    let Some(name) = name else { return Ok(None) };
    let found = Mutant::ALL.into_iter().find(|(its, _)| *its == name);
    found.map(|(_, mutant)| Some(mutant)).ok_or(())
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("a range looks like 0..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    Ok((number(from)?, number(to)?))
}
