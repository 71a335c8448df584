//! Seeds: old failures, a stretch of fresh ones, equal runs for equal seeds, and planted bugs that must be found.

use std::fmt::Write;

use outpost_simulations::{Mutant, Options, Outcome, run};

/// Seeds run in each test; `cargo sim` runs as many as one likes.
const FRESH: u64 = 250;
/// Of runs in which clients roam.
const ROAMING: u64 = 100;
/// Such runs that failed once.
const ROAMING_MENDED: [u64; 10] = [162, 289, 732, 773, 916, 939, 1209, 1220, 1896, 3296];
/// Seeds run twice.
const TWICE: u64 = 50;
/// A planted bug must show within so many seeds.
const MUTANT_SEEDS: u64 = 1_000;

fn failures(seeds: impl IntoIterator<Item = u64>, options: Options) -> String {
    let mut text = String::new();
    let roam = if options.roam { " --roam" } else { "" };
    for seed in seeds {
        let Outcome { violations, .. } = run(seed, options);
        if let Some(first) = violations.first() {
            let _ = writeln!(text, "cargo sim --replay {seed} --trace{roam}   # {first}");
        }
    }
    text
}

#[test]
fn regressions_stay_mended() {
    let seeds = include_str!("../seeds.txt").lines().filter(|line| !line.starts_with('#'));
    let seeds = seeds
        .filter_map(|line| line.split_whitespace().next())
        .map(|seed| seed.parse().expect("a number"));
    assert_eq!(failures(seeds, Options::default()), "");
}

#[test]
fn nothing_acknowledged_is_lost_whatever_breaks() {
    assert_eq!(failures(0..FRESH, Options::default()), "");
}

#[test]
fn clients_find_what_they_had_wherever_they_come_back() {
    let options = Options { roam: true, ..Options::default() };
    assert_eq!(failures((0..ROAMING).chain(ROAMING_MENDED), options), "");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let mut hashes = std::collections::BTreeSet::new();
    for seed in 0..TWICE {
        let (first, second) = (run(seed, Options::default()), run(seed, Options::default()));
        assert_eq!(first.hash, second.hash, "seed {seed}");
        assert_eq!(first.violations, second.violations, "seed {seed}");
        hashes.insert(first.hash);
    }
    assert_eq!(hashes.len() as u64, TWICE, "and other seeds give other runs");
}

fn find(mutant: Mutant) -> Option<(u64, String)> {
    let options = Options { mutant: Some(mutant), ..Options::default() };
    (0..MUTANT_SEEDS).find_map(|seed| {
        let first = run(seed, options).violations.into_iter().next()?;
        // What fails without the bug proves nothing.
        run(seed, Options::default()).violations.is_empty().then_some((seed, first))
    })
}

#[test]
fn every_planted_bug_is_found() {
    for (name, mutant) in Mutant::ALL {
        let Some((seed, what)) = find(mutant) else {
            panic!("{name} was not found in {MUTANT_SEEDS} seeds")
        };
        println!("{name}: seed {seed}: {what}");
    }
}
