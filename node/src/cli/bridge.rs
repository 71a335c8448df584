//! `outpost bridge ls|show`: the bridges to other brokers, as the node sees them.

use std::fmt::Write;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::Api;
use super::failure::Failure;
use super::output::{self, Paint};

/// Look at the bridges to other brokers
#[derive(Debug, Args)]
pub struct Bridge {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(Ls),
    Show(Show),
}

/// List the bridges: up or not, what waits, what has crossed
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost bridge ls\n  outpost bridge ls --json | jq '.bridges[].state'"
)]
struct Ls {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Show everything about one bridge
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost bridge show cloud")]
struct Show {
    /// Its name
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl Bridge {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        let text = match self.verb {
            Verb::Ls(ls) => {
                let body = ls.api.get("/api/v1/bridges")?;
                if ls.json { format!("{body:#}\n") } else { table(&body, Paint::for_stdout()) }
            }
            Verb::Show(show) => {
                let body = show.api.get("/api/v1/bridges")?;
                let one = bridges(&body).iter().find(|one| one["name"] == show.name.as_str());
                let one = one.ok_or_else(|| {
                    Failure::new(format!(
                        "there is no bridge {:?}; `outpost bridge ls` lists them",
                        show.name
                    ))
                })?;
                if show.json { format!("{one:#}\n") } else { page(one) }
            }
        };
        output::print(&text)
    }
}

fn bridges(body: &Value) -> &[Value] {
    body["bridges"].as_array().map_or(&[], Vec::as_slice)
}

fn table(body: &Value, paint: Paint) -> String {
    let bridges = bridges(body);
    if bridges.is_empty() {
        return "no bridge is configured; [[bridge]] in the configuration makes one\n".to_owned();
    }
    let mut out = format!(
        "{:<16} {:<28} {:<10} {:>9} {:>9} {:>10} {:>10} {:>10}  {}\n",
        "BRIDGE", "ADDRESS", "STATE", "QUEUED", "OLDEST s", "SENT", "ACKED", "TAKEN", "LAST ERROR"
    );
    for one in bridges {
        let text = |key: &str| one[key].as_str().unwrap_or("–").to_owned();
        let state = format!("{:<10}", text("state"));
        let state =
            if one["state"] == "connected" { paint.good(&state) } else { paint.bad(&state) };
        let oldest = one["oldest_ms"].as_u64().map_or("–".into(), |ms| (ms / 1000).to_string());
        let mut error = text("last_error");
        if let Some(ms) = one["next_attempt_ms"].as_u64() {
            let _ = write!(error, " (again in {ms} ms)");
        }
        let _ = writeln!(
            out,
            "{:<16} {:<28} {state} {:>9} {oldest:>9} {:>10} {:>10} {:>10}  {error}",
            text("name"),
            text("address"),
            one["queued"].to_string(),
            one["sent"].to_string(),
            one["acked"].to_string(),
            one["taken"].to_string(),
        );
    }
    out
}

fn page(one: &Value) -> String {
    let mut out = String::new();
    for (key, value) in one.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null => "–".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let _ = writeln!(out, "{key:<16} {value}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn bridges_stand_in_a_table() {
        let body = json!({ "bridges": [
            { "name": "cloud", "address": "broker:8883", "state": "connected", "queued": 0, "oldest_ms": null,
              "sent": 7, "acked": 7, "taken": 2, "last_error": null, "next_attempt_ms": null },
            { "name": "site", "address": "10.0.0.9:1883", "state": "waiting", "queued": 12, "oldest_ms": 65_000,
              "sent": 0, "acked": 0, "taken": 0, "last_error": "no answer", "next_attempt_ms": 900 },
        ]});
        let expected = "\
BRIDGE           ADDRESS                      STATE         QUEUED  OLDEST s       SENT      ACKED      TAKEN  LAST ERROR
cloud            broker:8883                  connected          0         –          7          7          2  –
site             10.0.0.9:1883                waiting           12        65          0          0          0  no answer (again in 900 ms)
";
        assert_eq!(table(&body, Paint::off()), expected);
    }
}
