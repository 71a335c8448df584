//! `outpost cluster`: who is in the cluster, as one node sees it, and who is no more.

use std::fmt::Write;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::{Api, Method, accepted, encoded};
use super::failure::Failure;
use super::output::{self, Paint};

/// Look at the cluster
#[derive(Debug, Args)]
pub struct Cluster {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Status(Status),
    Forget(Forget),
}

/// Forget a node that is gone for good: what it is owed is dropped, and nothing waits for it any more
///
/// Say it at each node that is left. Messages for its persistent sessions are dropped and counted as drained; shadows and
/// removed retained messages wait for it no longer. Should it come back after all, what it retained since is taken, and retained
/// messages that were removed while it was away are removed there. Shadows and keys that were deleted meanwhile come back with
/// it: to prevent that, empty its disk first.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost cluster forget edge-7")]
struct Forget {
    /// Its name
    node: String,
    #[command(flatten)]
    api: Api,
}

/// Show the other nodes: alive or not, linked or not, and what went over the links
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost cluster status\n  outpost cluster status --json | jq '.members[].state'"
)]
struct Status {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl Cluster {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        let status = match self.verb {
            Verb::Status(status) => status,
            Verb::Forget(forget) => return forget.run(),
        };
        let body = status.api.get("/api/v1/cluster")?;
        let text =
            if status.json { format!("{body:#}\n") } else { table(&body, Paint::for_stdout()) };
        output::print(&text)
    }
}

impl Forget {
    fn run(self) -> Result<(), Failure> {
        let path = format!("/api/v1/cluster/member?node={}", encoded(&self.node));
        let body = accepted(self.api.ask(Method::Delete, &path)?)?;
        let dropped = &body["dropped"];
        output::print(&format!("{} is forgotten; messages dropped: {dropped}\n", self.node))
    }
}

fn table(status: &Value, paint: Paint) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("–").to_owned();
    let mut out = format!(
        "cluster {}, this node {} at {} (incarnation {})\nCA {}\n",
        text(&status["cluster"]),
        text(&status["name"]),
        text(&status["address"]),
        status["incarnation"],
        text(&status["ca_fingerprint"]),
    );
    let empty = Vec::new();
    let members = status["members"].as_array().unwrap_or(&empty);
    if members.is_empty() {
        out += "no other node was heard of yet\n";
        return out;
    }
    let _ = writeln!(
        out,
        "{:<20} {:<22} {:<8} {:<9} {:>8} {:>14} {:>14}",
        "NODE", "ADDRESS", "STATE", "LINK", "RTT ms", "BYTES OUT", "BYTES IN"
    );
    for member in members {
        let state = format!("{:<8}", text(&member["state"]));
        let state = match member["state"].as_str() {
            Some("alive") => paint.good(&state),
            Some("suspect") => paint.fair(&state),
            _ => paint.bad(&state),
        };
        let link =
            if member["linked"] == true { paint.good("linked   ") } else { paint.bad("no link  ") };
        let rtt = member["rtt_ms"].as_f64().map_or("–".into(), |rtt| format!("{rtt:.1}"));
        let sum = |key: &str| {
            member["lanes"]
                .as_array()
                .map_or(0, |lanes| lanes.iter().filter_map(|lane| lane[key].as_u64()).sum::<u64>())
        };
        let (name, address) = (text(&member["name"]), text(&member["address"]));
        let _ = writeln!(
            out,
            "{name:<20} {address:<22} {state} {link} {rtt:>8} {:>14} {:>14}",
            sum("bytes_out"),
            sum("bytes_in")
        );
        if member["same_rules"] == false {
            let _ =
                writeln!(out, "  {}", paint.fair("its access rules are others than this node's"));
        }
        if let Some(reason) = member["shadows_quarantined"]["reason"].as_str() {
            let left_s = &member["shadows_quarantined"]["left_s"];
            let said = format!("its shadows are not listened to for {left_s} s: {reason}");
            let _ = writeln!(out, "  {}", paint.bad(&said));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn members_stand_in_a_table() {
        let status = json!({
            "cluster": "plant", "name": "edge-1", "address": "127.0.0.1:17447", "incarnation": 4, "ca_fingerprint": "SHA256:AA",
            "members": [
                { "name": "edge-2", "address": "127.0.0.1:17448", "state": "alive", "linked": true, "rtt_ms": 0.62,
                  "lanes": [{ "bytes_out": 10, "bytes_in": 1 }, { "bytes_out": 20, "bytes_in": 2 }] },
                { "name": "edge-3", "address": null, "state": "down", "linked": false, "rtt_ms": null, "lanes": [],
                  "same_rules": false,
                  "shadows_quarantined": { "reason": "a frame that is none", "left_s": 59 } },
            ],
        });
        let expected = "\
cluster plant, this node edge-1 at 127.0.0.1:17447 (incarnation 4)
CA SHA256:AA
NODE                 ADDRESS                STATE    LINK        RTT ms      BYTES OUT       BYTES IN
edge-2               127.0.0.1:17448        alive    linked         0.6             30              3
edge-3               –                      down     no link          –              0              0
  its access rules are others than this node's
  its shadows are not listened to for 59 s: a frame that is none
";
        assert_eq!(table(&status, Paint::off()), expected);
    }
}
