//! `outpost config check FILE`, `config show` and `config reload`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::api::{Api, Method, accepted};
use super::failure::Failure;
use super::output;
use crate::config::{Config, Sources};

/// Check a configuration, or show what is in force
#[derive(Debug, Args)]
pub struct ConfigVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(Check),
    Show(Show),
    Reload(Reload),
}

/// Name every mistake in a file with line and column; exit code 3 when there is one
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost config check /etc/outpost/outpost.toml")]
struct Check {
    /// The file; conf.d/*.toml beside it and OUTPOST_… variables count as well
    file: PathBuf,
    /// Set a key, after everything else
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Print every key with the value in force, as TOML
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost config show                          the defaults\n  outpost config show -c outpost.toml"
)]
struct Show {
    /// The file; left out: the defaults
    #[arg(short = 'c', long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set a key, after everything else
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Have a running node take up the certificates that are in the files of its listeners now
///
/// Connections that are up stay up. Other keys are taken up by a restart. SIGHUP does the same.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost config reload")]
struct Reload {
    #[command(flatten)]
    api: Api,
}

impl Reload {
    fn run(&self) -> Result<(), Failure> {
        let answer = accepted(self.api.ask(Method::Post(b""), "/api/v1/reload")?)?;
        let listeners = answer["listeners"].as_array().map(Vec::as_slice).unwrap_or_default();
        if listeners.is_empty() {
            return output::print("no listener has certificates\n");
        }
        let mut kept = String::new();
        for listener in listeners {
            let name = listener["name"].as_str().unwrap_or_default();
            match listener["why"].as_str() {
                None => output::print(&format!("listener {name}: new certificates are in use\n"))?,
                Some(why) => kept = format!("{kept}\n  listener {name}: {why}"),
            }
        }
        if kept.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!("the old certificates are still in use:{kept}")))
    }
}

impl ConfigVerb {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with exit code 3 and every issue.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Check(check) => {
                let config = load(Some(check.file.clone()), check.set)?;
                output::print(&format!(
                    "configuration {} is valid\nsha256 {}\n",
                    check.file.display(),
                    config.sha256()
                ))
            }
            Verb::Reload(reload) => reload.run(),
            Verb::Show(show) => output::print(&load(show.config, show.set)?.to_toml()),
        }
    }
}

/// Reads a configuration as `node` and `dev` do.
///
/// # Errors
/// [`Failure`] with exit code 3 and every issue.
pub(super) fn load(file: Option<PathBuf>, set: Vec<String>) -> Result<Config, Failure> {
    let sources = Sources { file, ..Sources::default() }.with_env().with_set(set);
    Config::load(&sources).map_err(|error| {
        let issues = &error.0;
        let lines: String =
            issues.iter().map(|issue| format!("{issue}\n")).collect::<Vec<_>>().concat();
        let count = if issues.len() == 1 {
            "1 mistake".to_owned()
        } else {
            format!("{} mistakes", issues.len())
        };
        Failure::config(format!("the configuration is not valid, {count}:\n{}", lines.trim_end()))
    })
}
