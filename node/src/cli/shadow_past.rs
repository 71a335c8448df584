//! `outpost shadow history|why`: what happened to a shadow on a node, and where each of its values comes from.

use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use super::api::{Api, encoded};
use super::failure::Failure;
use super::output::{self, Paint, utc};
use super::shadow::Which;

/// Print what happened to a shadow on this node, the newest first
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow history lamp
  outpost shadow history lamp --name config --json | head -1")]
pub struct History {
    #[command(flatten)]
    which: Which,
    /// So many entries at most
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    limit: u64,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Say where values of a shadow come from: who wrote them, when, where, what they replaced, was there a conflict
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow why lamp desired.level      one value
  outpost shadow why lamp desired            all below
  outpost shadow why lamp                    all")]
pub struct Why {
    #[command(flatten)]
    which: Which,
    /// desired or reported and the keys below it, with dots between them; left out: all
    #[arg(default_value = "")]
    path: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl History {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        let path = format!("/api/v1/shadow/history?{}&limit={}", self.which.query(), self.limit);
        let body = self.api.get(&path)?;
        let entries = body["history"].as_array().cloned().unwrap_or_default();
        if self.json {
            let lines = entries.iter().map(|entry| format!("{entry}\n"));
            return output::print(&lines.collect::<String>());
        }
        if entries.is_empty() {
            return output::print("nothing is remembered of this shadow here\n");
        }
        let paint = Paint::for_stdout();
        output::print(&entries.iter().map(|entry| told(entry, paint)).collect::<String>())
    }
}

impl Why {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words, or when there is no such value.
    pub fn run(self) -> Result<(), Failure> {
        let query = self.which.query();
        let body =
            self.api.get(&format!("/api/v1/shadow/why?{query}&path={}", encoded(&self.path)))?;
        if self.json {
            return output::print(&format!("{body:#}\n"));
        }
        let reasons = body["why"].as_array().cloned().unwrap_or_default();
        if reasons.is_empty() {
            return Err(Failure::new(format!(
                "the shadow has no value at {:?}, and none was deleted there lately",
                self.path
            )));
        }
        let paint = Paint::for_stdout();
        output::print(&reasons.iter().map(|reason| explained(reason, paint)).collect::<String>())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

/// A value in words; none is one that is not there.
fn shown(value: &Value) -> &str {
    value.as_str().unwrap_or("nothing")
}

fn moment(value: &Value) -> String {
    utc(value.as_u64().unwrap_or_default())
}

fn dotted(path: &Value) -> String {
    let keys = path.as_array().into_iter().flatten().map(text);
    keys.collect::<Vec<_>>().join(".")
}

/// Who did it and where, as far as it is known here.
fn who(entry: &Value) -> String {
    match (entry["client"].as_str(), entry["from"].as_str()) {
        (Some(client), Some(node)) => format!("by client {client:?}, decided at {node}"),
        (Some(client), None) => format!("by client {client:?}"),
        (None, Some(node)) => match entry["what"].as_str() {
            Some("merged" | "kept") => format!("from {node}"),
            _ => format!("by a client of {node}"),
        },
        (None, None) => "by the node itself".to_owned(),
    }
}

fn what(entry: &Value) -> &'static str {
    match entry["what"].as_str() {
        Some("written") => "written",
        Some("written_apart") => "written, its home was out of reach",
        Some("deleted") => "deleted",
        Some("merged") => "merged",
        Some("kept") => "kept against older values",
        _ => "changed",
    }
}

/// One entry: a line, and one for each value.
fn told(entry: &Value, paint: Paint) -> String {
    let mut out = format!(
        "{}  {}  {} {}\n",
        moment(&entry["at_ms"]),
        paint.strong(&format!("v{}", entry["version"])),
        what(entry),
        who(entry)
    );
    for change in entry["changes"].as_array().into_iter().flatten() {
        let (value, replaced) = (shown(&change["value"]), shown(&change["replaced"]));
        let conflict =
            if change["conflict"] == true { paint.fair("  conflict") } else { String::new() };
        let _ = if entry["what"] == "kept" {
            writeln!(out, "    {}: {value}, not {replaced}{conflict}", dotted(&change["path"]))
        } else {
            writeln!(out, "    {}: {replaced} -> {value}{conflict}", dotted(&change["path"]))
        };
    }
    if let Some(more @ 1..) = entry["left_out"].as_u64() {
        let _ = writeln!(out, "    and {more} more");
    }
    out
}

/// One value, where it comes from, and what is remembered of it.
fn explained(reason: &Value, paint: Paint) -> String {
    let value = reason["value"].as_str().unwrap_or("deleted");
    let head = format!("{} = {value}", dotted(&reason["path"]));
    let mut out = format!("{}\n", paint.strong(&head));
    let _ = writeln!(
        out,
        "  written {}, accepted at {}",
        moment(&reason["written_ms"]),
        text(&reason["node"])
    );
    let entries = reason["history"].as_array().cloned().unwrap_or_default();
    for entry in &entries {
        for change in entry["changes"].as_array().into_iter().flatten() {
            if change["path"] != reason["path"] {
                continue;
            }
            let (now, before) = (shown(&change["value"]), shown(&change["replaced"]));
            let words = if entry["what"] == "kept" {
                format!("{now} stayed, {before} came too late")
            } else {
                format!("{before} -> {now}")
            };
            let _ = writeln!(
                out,
                "  {}  v{}  {words}; {} {}; {}",
                moment(&entry["at_ms"]),
                entry["version"],
                what(entry),
                who(entry),
                if change["conflict"] == true {
                    paint.fair("a conflict: neither side knew of the other's")
                } else {
                    "no conflict".to_owned()
                },
            );
        }
    }
    if entries.is_empty() {
        out.push_str("  no more is remembered of it here; ask the node that accepted it\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_says_who_when_and_what_it_replaced() {
        let entry = json!({
            "at_ms": 1_700_000_000_000u64, "version": 7, "what": "written", "client": "app", "from": null, "left_out": 1,
            "changes": [{ "path": ["desired", "level"], "value": "9", "replaced": "1", "conflict": false }]
        });
        assert_eq!(
            told(&entry, Paint::off()),
            "2023-11-14 22:13:20.000Z  v7  written by client \"app\"\n    desired.level: 1 -> 9\n    and 1 more\n"
        );
    }

    #[test]
    fn a_reason_says_whether_there_was_a_conflict() {
        let reason = json!({
            "path": ["desired", "level"], "value": "9", "written_ms": 1_700_000_000_000u64, "node": "a",
            "history": [{
                "at_ms": 1_700_000_000_000u64, "version": 7, "what": "merged", "client": null, "from": "a",
                "changes": [
                    { "path": ["desired", "level"], "value": "9", "replaced": "5", "conflict": true },
                    { "path": ["desired", "on"], "value": "true", "replaced": null, "conflict": false }
                ]
            }]
        });
        let words = explained(&reason, Paint::off());
        assert_eq!(words.lines().count(), 3, "{words}");
        assert!(words.contains("accepted at a") && words.contains("5 -> 9"), "{words}");
        assert!(words.contains("a conflict"), "{words}");
    }
}
