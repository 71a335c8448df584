//! `outpost node -c FILE` runs a node; `outpost node join HOST:PORT` makes this machine one of a cluster.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use outpost_cluster::join::{JoinRequest, join};

use super::ca::cluster_section;
use super::failure::Failure;
use super::{config, output, run};

/// Run a node from a configuration, or join a cluster
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Example:\n  outpost node -c /etc/outpost/outpost.toml\n  outpost node -c outpost.toml --set log.level=debug"
)]
pub struct Node {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The configuration; left out: the defaults
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a key of the configuration, after everything else
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Join(Join),
}

/// Get a certificate from a node of the cluster, with a token made there by `outpost ca token`
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost node join gateway:17447 --name edge-2 --token opj-… --dir /etc/outpost/certs"
)]
struct Join {
    /// host:port of the node that holds the CA
    at: String,
    /// Name of this node: a-z, 0-9 and -
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The token
    #[arg(long, value_name = "TOKEN", env = "OUTPOST_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// Folder for ca.pem, node.pem and node.key
    #[arg(long, value_name = "DIR", default_value = "certs")]
    dir: PathBuf,
    /// The CA's fingerprint, as `outpost ca init` printed it; left out: it is shown and you are asked
    #[arg(long, value_name = "SHA256:…")]
    fingerprint: Option<String>,
}

impl Node {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// [`Failure`] when the node does not start, or joining fails.
    pub fn run(self) -> Result<(), Failure> {
        if let Some(Verb::Join(join)) = self.verb {
            return join.run();
        }
        let config = config::load(self.config, self.set)?;
        run::run(config, run::PortHelp::Config, |mqtt, http| {
            tracing::info!(%mqtt, %http, "the node is up");
        })
    }
}

impl Join {
    fn run(self) -> Result<(), Failure> {
        let request = JoinRequest {
            at: self.at.clone(),
            token: self.token,
            name: self.name,
            folder: self.dir.clone(),
        };
        let confirm = |found: &str| match &self.fingerprint {
            Some(expected) => same_fingerprint(expected, found),
            None => asked(&self.at, found),
        };
        std::fs::create_dir_all(&self.dir)
            .map_err(|why| Failure::new(format!("cannot create {}: {why}", self.dir.display())))?;
        let joined = output::runtime()?
            .block_on(join(request, confirm))
            .map_err(|why| Failure::new(why.to_string()))?;
        // Only the configuration goes to standard output, so that `> outpost.toml` makes a valid file.
        eprintln!(
            "joined cluster {} as {}; CA {}\n",
            joined.cluster, joined.name, joined.ca_fingerprint
        );
        let section = cluster_section(&joined.cluster, &joined.name, &self.dir);
        output::print(&section.replace("seeds = []  ", &format!("seeds = [{:?}]", self.at)))
    }
}

/// Colons and case do not matter; everything else does.
fn same_fingerprint(expected: &str, found: &str) -> bool {
    let plain =
        |text: &str| text.to_ascii_uppercase().trim_start_matches("SHA256:").replace(':', "");
    !plain(expected).is_empty() && plain(expected) == plain(found)
}

fn asked(at: &str, found: &str) -> bool {
    eprintln!(
        "The CA at {at} has the fingerprint\n  {found}\nCompare it with what `outpost ca init` printed there."
    );
    if !std::io::stdin().is_terminal() {
        eprintln!("Nobody can be asked here; give it as --fingerprint.");
        return false;
    }
    eprint!("Is it the same? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    matches!(answer.trim(), "y" | "Y" | "yes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_compared_without_their_punctuation() {
        assert!(same_fingerprint("sha256:aa:bb", "SHA256:AA:BB"));
        assert!(same_fingerprint("AABB", "SHA256:AA:BB"));
        assert!(!same_fingerprint("AA", "SHA256:AA:BB"));
        assert!(!same_fingerprint("", "SHA256:AA:BB"));
        assert!(!same_fingerprint("SHA256:", "SHA256:"));
    }
}
