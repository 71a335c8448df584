//! The command `outpost`: one file a verb.
//!
//! Exit codes: 0 done, 1 it did not work, 2 asked in a way that cannot work, 3 the configuration is wrong, 27 time was
//! up (`sub -W`, as mosquitto_sub). What scripts read goes to standard output, what people are told to standard error.

mod actors;
mod api;
mod bridge;
mod ca;
mod cert;
mod client;
mod cluster;
mod config;
mod dev;
mod drain;
mod failure;
mod lab;
mod ledger;
mod mqtt;
mod node;
mod output;
mod passwd;
mod publish;
mod queue;
mod retained;
mod run;
mod shadow;
mod shadow_diff;
mod shadow_past;
mod subscribe;
mod trace;
mod why;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::Failure;

/// Device messages and device shadows on a cluster of edge nodes
///
/// Without a verb: `outpost dev`.
#[derive(Debug, Parser)]
#[command(
    name = "outpost",
    version,
    disable_help_subcommand = true,
    after_help = "Example:
  outpost dev                                  a node on this machine, with lines to paste
  outpost sub -t 'plant/#' -v                  print messages as they come
  outpost pub -t plant/7/temp -m 21.5 -q 1     publish one
  outpost node -c /etc/outpost/outpost.toml    run a node
  outpost lab cut                              watch a cluster survive a cut link

Exit codes: 0 done, 1 it did not work, 2 wrong usage, 3 wrong configuration, 27 time was up (sub -W).
Colour only on a terminal, never with NO_COLOR."
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Dev(dev::Dev),
    Node(node::Node),
    #[command(name = "config")]
    Config(config::ConfigVerb),
    Ca(ca::Ca),
    Cert(cert::Cert),
    Passwd(passwd::Passwd),
    #[command(name = "pub")]
    Publish(Box<publish::Publish>),
    #[command(name = "sub")]
    Subscribe(Box<subscribe::Subscribe>),
    Shadow(Box<shadow::Shadow>),
    Client(client::Client),
    Drain(drain::Drain),
    Retained(retained::Retained),
    Trace(trace::Trace),
    Why(why::Why),
    Actors(actors::Actors),
    Ledger(ledger::Ledger),
    Cluster(cluster::Cluster),
    Bridge(bridge::Bridge),
    Lab(lab::Lab),
}

/// Reads the command line, runs the verb, and says what went wrong.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = matches!(&cli.verb, Some(Verb::Publish(verb)) if verb.is_quiet())
        || matches!(&cli.verb, Some(Verb::Subscribe(verb)) if verb.is_quiet());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !quiet && !text.is_empty() {
                eprintln!("outpost: {text}");
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    match cli.verb {
        None => dev::Dev::default().run(),
        Some(Verb::Dev(verb)) => verb.run(),
        Some(Verb::Node(verb)) => verb.run(),
        Some(Verb::Config(verb)) => verb.run(),
        Some(Verb::Ca(verb)) => verb.run(),
        Some(Verb::Cert(verb)) => verb.run(),
        Some(Verb::Passwd(verb)) => verb.run(),
        Some(Verb::Publish(verb)) => verb.run(),
        Some(Verb::Subscribe(verb)) => verb.run(),
        Some(Verb::Shadow(verb)) => verb.run(),
        Some(Verb::Client(verb)) => verb.run(),
        Some(Verb::Drain(verb)) => verb.run(),
        Some(Verb::Retained(verb)) => verb.run(),
        Some(Verb::Trace(verb)) => verb.run(),
        Some(Verb::Why(verb)) => verb.run(),
        Some(Verb::Actors(verb)) => verb.run(),
        Some(Verb::Ledger(verb)) => verb.run(),
        Some(Verb::Cluster(verb)) => verb.run(),
        Some(Verb::Bridge(verb)) => verb.run(),
        Some(Verb::Lab(verb)) => verb.run(),
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use golden::golden;
