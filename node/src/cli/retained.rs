//! `outpost retained`: the messages kept for new subscribers.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::{Api, Method, accepted, encoded};
use super::client::PAGE;
use super::failure::Failure;
use super::output::{self, Paint};

/// See and clear retained messages
#[derive(Debug, Args)]
pub struct Retained {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(Ls),
    Rm(Rm),
}

/// List topics with a retained message
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost retained ls 'plant/#'\n  outpost retained ls --json | jq -r '.retained[].topic'"
)]
struct Ls {
    /// Topic filter
    #[arg(default_value = "#")]
    filter: String,
    /// Topics shown at most
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    limit: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Clear retained messages, on every node; subscribers get an empty message, as when a client does it
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost retained rm plant/7/state\n  outpost retained rm 'plant/#' --yes"
)]
struct Rm {
    /// Topic, or a filter: each topic that matches
    filter: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    api: Api,
}

impl Retained {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Ls(verb) => verb.run(),
            Verb::Rm(verb) => verb.run(),
        }
    }
}

/// At most `limit` entries, and whether there may be more.
fn list(api: &Api, filter: &str, limit: usize) -> Result<(Vec<Value>, bool), Failure> {
    let (mut found, mut after) = (Vec::new(), String::new());
    while found.len() < limit {
        let page = api.get(&format!(
            "/api/v1/retained?filter={}&after={}&limit={}",
            encoded(filter),
            encoded(&after),
            (limit - found.len()).min(PAGE)
        ))?;
        found.extend(page["retained"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) if next > after.as_str() => next.clone_into(&mut after),
            _ => return Ok((found, false)),
        }
    }
    Ok((found, true))
}

impl Ls {
    fn run(self) -> Result<(), Failure> {
        let (retained, more) = list(&self.api, &self.filter, self.limit)?;
        if self.json {
            let body = serde_json::json!({ "retained": retained, "more": more });
            return output::print(&format!("{body:#}\n"));
        }
        let mut rows = vec![["TOPIC", "QOS", "BYTES", "SINCE"].map(str::to_owned)];
        rows.extend(retained.iter().map(|entry| {
            [
                entry["topic"].as_str().unwrap_or_default().to_owned(),
                entry["qos"].to_string(),
                entry["payload_bytes"].to_string(),
                output::utc(entry["accepted_wall_ms"].as_u64().unwrap_or_default()),
            ]
        }));
        let mut text = output::columns(&rows, Paint::for_stdout());
        if more {
            text.push_str("there may be more (--limit)\n");
        }
        output::print(&text)
    }
}

impl Rm {
    fn run(self) -> Result<(), Failure> {
        let mut topics = vec![self.filter.clone()];
        if self.filter.contains(['+', '#']) {
            let (found, _) = list(&self.api, &self.filter, usize::MAX)?;
            topics = found
                .iter()
                .filter_map(|entry| entry["topic"].as_str().map(ToOwned::to_owned))
                .collect();
            let question = format!("Clear {} retained messages?", topics.len());
            if !self.yes && !output::confirmed(&question, "--yes")? {
                return Err(Failure::new("nothing was cleared"));
            }
        }
        for topic in &topics {
            let path = format!("/api/v1/retained?topic={}", encoded(topic));
            accepted(self.api.ask(Method::Delete, &path)?)?;
            output::print(&format!("{topic}: cleared\n"))?;
        }
        Ok(())
    }
}
