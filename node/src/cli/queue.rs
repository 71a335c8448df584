//! `outpost client queue`: what a client is owed; shown, written out, or given up.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::{Api, Method, accepted, encoded};
use super::failure::Failure;
use super::output;

/// Rounds of draining in a row that take nothing away. After these the rest is left to whoever holds it.
const IDLE_ROUNDS_MAX: usize = 100;

/// What a client is owed
#[derive(Debug, Args)]
pub struct Queue {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Show(Show),
    Dump(Dump),
    Drain(Drain),
}

/// Show how long a queue is, and how long it may be
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost client queue show sensor-7")]
struct Show {
    /// The client id
    id: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Print what is queued, one JSON object a line, payloads included; nothing is taken away
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost client queue dump sensor-7 > sensor-7.jsonl\n  outpost client queue dump sensor-7 --limit 1"
)]
struct Dump {
    /// The client id
    id: String,
    /// Messages printed at most
    #[arg(long, value_name = "COUNT")]
    limit: Option<usize>,
    /// Begin after this place
    #[arg(long, value_name = "PLACE", default_value_t = 0)]
    after: u64,
    #[command(flatten)]
    api: Api,
}

/// Give up what is queued for a client now: it will never get it; counted as dropped with the reason `drained`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost client queue drain sensor-7 --yes")]
struct Drain {
    /// The client id
    id: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl Queue {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Show(verb) => verb.run(),
            Verb::Dump(verb) => verb.run(),
            Verb::Drain(verb) => verb.run(),
        }
    }
}

fn figures(api: &Api, id: &str) -> Result<Value, Failure> {
    api.get(&format!("/api/v1/client/queue?id={}", encoded(id)))
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let queue = figures(&self.api, &self.id)?;
        if self.json {
            return output::print(&format!("{queue:#}\n"));
        }
        output::print(&format!(
            "{}: {} of {} messages, {} of {} B, {} in flight, {} in memory{}\n",
            self.id,
            queue["queued"],
            queue["messages_limit"],
            queue["queued_bytes"],
            queue["bytes_limit"],
            queue["in_flight"],
            queue["in_memory"],
            if queue["full"] == true { "; FULL, its publishers are held back" } else { "" }
        ))
    }
}

impl Dump {
    fn run(self) -> Result<(), Failure> {
        let (mut after, mut left) = (self.after, self.limit.unwrap_or(usize::MAX));
        while left > 0 {
            let path =
                format!("/api/v1/client/queue/messages?id={}&after={after}", encoded(&self.id));
            let page = self.api.get(&path)?;
            let messages = page["messages"].as_array().cloned().unwrap_or_default();
            for message in messages.iter().take(left) {
                output::print(&format!("{message}\n"))?;
            }
            left = left.saturating_sub(messages.len());
            match page["next"].as_u64() {
                Some(next) if next > after => after = next,
                _ => break,
            }
        }
        Ok(())
    }
}

impl Drain {
    fn run(self) -> Result<(), Failure> {
        let queued = figures(&self.api, &self.id)?["queued"].clone();
        if !self.yes {
            let question = format!("Give up {queued} messages queued for {:?}?", self.id);
            if !output::confirmed(&question, "--yes")? {
                return Err(Failure::new("nothing was given up"));
            }
        }
        let (mut upto, mut drained, mut idle) = (0, 0, 0);
        while idle < IDLE_ROUNDS_MAX {
            let path = format!("/api/v1/client/queue/drain?id={}&upto={upto}", encoded(&self.id));
            let done = accepted(self.api.ask(Method::Post(b""), &path)?)?;
            let count = done["drained"].as_u64().unwrap_or(0);
            drained += count;
            idle = if count == 0 { idle + 1 } else { 0 };
            let Some(again) = done["again_upto"].as_u64() else { break };
            upto = again;
        }
        let left = figures(&self.api, &self.id)?["queued"].clone();
        if self.json {
            let body = serde_json::json!({ "drained": drained, "queued": left });
            return output::print(&format!("{body:#}\n"));
        }
        output::print(&format!("{}: {drained} given up, {left} queued\n", self.id))
    }
}
