//! `outpost lab cut`: two nodes, a cable between them, scissors. What was acknowledged must be there afterwards.

mod cable;
mod cast;
mod device;
mod progress;
mod report;
mod shadow;
mod site;
mod story;
mod verdict;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::output::{self, Paint};
use progress::Progress;
use story::Story;

/// Try the cluster on this machine: real nodes, simulated devices, a cable that can be cut
#[derive(Debug, Args)]
pub struct Lab {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Cut(Cut),
}

/// Start an edge and a cloud node, cut the link between them, use both sides, heal it, and check that nothing
/// acknowledged is missing (exit code 1 when something is)
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost lab cut
  outpost lab cut --kill                      and kill -9 the edge while it is cut off
  outpost lab cut --messages 2000 --json | jq .wire

Both nodes are processes of this program with certificates and ports of their own, on loopback only; afterwards
they and their folder are gone.")]
struct Cut {
    /// Messages that devices publish on each side while the link is cut
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    messages: u64,
    /// Shadows; the first three are written while the link is cut
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    things: u16,
    /// The link stays cut at least this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    seconds: u64,
    /// Kill the edge node with SIGKILL while the link is cut, and start it again
    #[arg(long)]
    kill: bool,
    /// The result as JSON; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Keep the folder with both nodes' configuration, data and logs
    #[arg(long)]
    keep: bool,
}

impl Lab {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] when a node does not do its part, or something acknowledged is missing.
    pub fn run(self) -> Result<(), Failure> {
        let Verb::Cut(cut) = self.verb;
        cut.run()
    }
}

impl Cut {
    fn run(self) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|why| Failure::new(format!("cannot start the runtime: {why}")))?;
        let ended = self.with_folder(&runtime);
        // A question to a node that no longer answers must not keep people waiting.
        runtime.shutdown_background();
        ended
    }

    fn with_folder(&self, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
        let mut folder = tempfile::Builder::new()
            .prefix("outpost-lab-")
            .tempdir()
            .map_err(|why| Failure::new(format!("cannot make a temporary folder: {why}")))?;
        folder.disable_cleanup(self.keep);
        let story = Story {
            folder: folder.path().to_owned(),
            messages: self.messages,
            things: usize::from(self.things),
            cut_at_least: Duration::from_secs(self.seconds),
            kill: self.kill,
        };
        let progress = Progress::new(self.json);
        let ended = runtime.block_on(async {
            tokio::select! {
                report = story.tell(&progress) => report,
                why = told_to_stop() => Err(why),
            }
        });
        let report = ended.map_err(|why| self.kept(&why, folder.path()))?;
        if self.json {
            let text = serde_json::to_string_pretty(&report)
                .map_err(|why| Failure::new(format!("cannot write the result: {why}")))?;
            output::print(&format!("{text}\n"))?;
        } else {
            output::print(&report.text(Paint::for_stdout()))?;
        }
        if self.keep {
            eprintln!("kept {}", folder.path().display());
        }
        report.verdict()
    }

    fn kept(&self, why: &Failure, folder: &Path) -> Failure {
        if !self.keep {
            return why.clone();
        }
        Failure::new(format!("{why}\nkept {}", folder.display()))
    }
}

/// Ctrl-C, SIGTERM, or the terminal being closed: the story ends, and what it started with it.
async fn told_to_stop() -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [interrupt, terminate, hangup] = kinds.map(signal);
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) = (interrupt, terminate, hangup)
    else {
        return Failure::new("cannot listen for Ctrl-C");
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Failure::new("stopped before the end; both nodes were stopped too")
}
