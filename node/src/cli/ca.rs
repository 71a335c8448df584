//! `outpost ca init|issue|token`: the cluster's certificate authority, in a folder of files.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use outpost_cluster::ca::{CA_FILE, CA_KEY_FILE, Ca as Authority, NODE_FILE, NODE_KEY_FILE};
use outpost_cluster::tokens::{TOKEN_VALID_MAX, Tokens};

use super::failure::Failure;
use super::output;

/// Make the cluster's CA, certificates for nodes, and tokens to join with
#[derive(Debug, Args)]
pub struct Ca {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(Init),
    Issue(Issue),
    Token(Token),
}

/// Make a CA: ca.pem and ca.key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost ca init --cluster plant --dir ca")]
struct Init {
    /// Name of the cluster: a-z, 0-9, - and .
    #[arg(long, value_name = "NAME", default_value = "outpost")]
    cluster: String,
    /// Folder to write to; files that are there are left as they are
    #[arg(long, value_name = "DIR", default_value = "ca")]
    dir: PathBuf,
}

/// Make a node's certificate and key: node.pem and node.key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost ca issue edge-1 --dir ca --out edge-1")]
struct Issue {
    /// Name of the node: a-z, 0-9 and -
    name: String,
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "ca")]
    dir: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
}

/// Make a token with which one node may join
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost ca token --dir ca --name edge-2\n  outpost node join gateway:17447 --name edge-2 --token opj-…"
)]
struct Token {
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "ca")]
    dir: PathBuf,
    /// Only for a node of this name; left out: any name not given out yet
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Hours it is valid, at most 168
    #[arg(long, value_name = "HOURS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=168))]
    valid: u64,
}

impl Ca {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] says what was not made.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Init(init) => init.run(),
            Verb::Issue(issue) => issue.run(),
            Verb::Token(token) => token.run(),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(error.to_string())
}

impl Init {
    fn run(self) -> Result<(), Failure> {
        let ca = Authority::create(&self.dir, &self.cluster).map_err(failed)?;
        let dir = self.dir.display();
        output::print(&format!(
            "CA of cluster {} in {dir}: {CA_FILE}, {CA_KEY_FILE} (whoever reads the key can make nodes)\nfingerprint {}\n\n\
             Next: outpost ca issue NODE --dir {dir} --out DIR\n",
            ca.cluster(),
            ca.fingerprint(),
        ))
    }
}

impl Issue {
    fn run(self) -> Result<(), Failure> {
        let ca_file = self.dir.join(CA_FILE);
        let ca = Authority::load(&ca_file, &self.dir.join(CA_KEY_FILE)).map_err(failed)?;
        let issued = ca.issue_node(&self.name).map_err(failed)?;
        let to = |name: &str| self.out.join(name);
        std::fs::create_dir_all(&self.out)
            .map_err(|why| Failure::new(format!("cannot create {}: {why}", self.out.display())))?;
        issued.write_as_node(&self.out).map_err(failed)?;
        std::fs::write(to(CA_FILE), ca.pem()).map_err(|why| {
            Failure::new(format!("cannot write {}: {why}", to(CA_FILE).display()))
        })?;
        output::print(&cluster_section(ca.cluster(), &self.name, &self.out))
    }
}

/// The lines of a configuration that use a folder of certificates.
pub(super) fn cluster_section(cluster: &str, name: &str, folder: &std::path::Path) -> String {
    let path = |file: &str| format!("{:?}", folder.join(file).display().to_string());
    format!(
        "# for the configuration of {name}:\n[node]\nname = {name:?}\n\n[cluster]\nname = {cluster:?}\nbind = \"0.0.0.0:17447\"\n\
         # advertise = \"ADDRESS:17447\"  # where the others reach this node\nseeds = []             # host:port of nodes to ask first\n\
         ca = {}\ncert = {}\nkey = {}\n",
        path(CA_FILE),
        path(NODE_FILE),
        path(NODE_KEY_FILE),
    )
}

impl Token {
    fn run(self) -> Result<(), Failure> {
        let ca = Authority::load(&self.dir.join(CA_FILE), &self.dir.join(CA_KEY_FILE))
            .map_err(failed)?;
        let valid = Duration::from_secs(self.valid * 3_600).min(TOKEN_VALID_MAX);
        let token =
            Tokens::in_folder(&self.dir).create(self.name.as_deref(), valid).map_err(failed)?;
        let name = self.name.as_deref().unwrap_or("NAME");
        output::print(&format!(
            "{token}\n\nvalid for {} h and one node; on the new node:\n  outpost node join HOST:17447 --name {name} --token {token} \
             --fingerprint {}\n",
            self.valid,
            ca.fingerprint(),
        ))
    }
}
