//! `outpost why`: which rule, quota, filter or drop decided.

use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use super::api::{Api, encoded};
use super::client::{recent, shown};
use super::failure::Failure;
use super::output::{self, Paint};

/// Say why a client is not here or a message does not arrive: which rule, quota, filter or drop decided
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost why sensor-7                       a client: is it here, what is full, what was refused\n  outpost why sensor-7 --topic plant/7/temp  may it publish and subscribe there, by which rule\n  outpost why plant/7/temp                   a topic: who gets it, what was refused or dropped there"
)]
pub struct Why {
    /// A client id or a topic name
    name: String,
    /// For a client: a topic or filter
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl Why {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        let mut path = format!("/api/v1/why?name={}", encoded(&self.name));
        if let Some(topic) = &self.topic {
            path.extend(["&topic=", &encoded(topic)]);
        }
        let body = self.api.get(&path)?;
        if self.json {
            return output::print(&format!("{body:#}\n"));
        }
        output::print(&explained(&body, Paint::for_stdout()))
    }
}

fn has(list: &Value) -> bool {
    list.as_array().is_some_and(|list| !list.is_empty())
}

/// The answer in words: what is known of the name as a client and as a topic.
fn explained(body: &Value, paint: Paint) -> String {
    let name = body["name"].as_str().unwrap_or_default();
    let (client, topic) = (&body["client"], &body["topic"]);
    let is_client = client["session"].is_object() || has(&client["recent"]);
    let topic_name = topic["name"].as_str().unwrap_or_default();
    let is_topic = has(&topic["receivers"])
        || topic["retained"].is_object()
        || has(&topic["recent"])
        || topic_name != name;
    let mut out = String::new();
    if is_client || !is_topic {
        let _ = writeln!(out, "{}", paint.strong(&format!("client {name}: {}", verdict(client))));
        if client["session"].is_object() {
            out.push_str(&shown(&client["session"], paint));
        } else {
            out.push_str(&recent(&client["recent"], paint));
        }
        for rule in client["rules"].as_array().into_iter().flatten() {
            let _ = writeln!(out, "{}", rule.as_str().unwrap_or_default());
        }
        for way in ["publish", "subscribe"] {
            if let Some(text) = client[way].as_str() {
                let _ = writeln!(out, "{way} {topic_name}: {text}");
            }
        }
    }
    if topic.is_object() && (is_topic || !is_client) {
        let count = topic["receivers_count"].as_u64().unwrap_or_default();
        let what = match count {
            0 => "nobody would get it".to_owned(),
            count => format!("{count} would get it"),
        };
        let _ = writeln!(out, "{}", paint.strong(&format!("topic {topic_name}: {what}")));
        out.push_str(&receivers(topic));
        out.push_str(&recent(&topic["recent"], paint));
    }
    out
}

/// Whether a client is here, and if not, what was decided last.
fn verdict(client: &Value) -> String {
    let session = &client["session"];
    if session["connection"].is_object() {
        let full = session["full"] == true;
        return if full { "connected, its queue is FULL" } else { "connected" }.to_owned();
    }
    let last = client["recent"].as_array().into_iter().flatten().find(|decision| {
        matches!(decision["kind"].as_str(), Some("connect_refused" | "disconnected"))
    });
    let state = if session.is_object() { "away" } else { "no session here" };
    match last {
        Some(last) => format!(
            "{state}; last {}: {} at {}",
            last["kind"].as_str().unwrap_or_default().replace('_', " "),
            last["reason"].as_str().unwrap_or_default(),
            output::utc(last["wall_ms"].as_u64().unwrap_or_default())
        ),
        None => format!("{state}; nothing was refused, dropped or cut off lately"),
    }
}

fn receivers(topic: &Value) -> String {
    let mut out = String::new();
    for receiver in topic["receivers"].as_array().into_iter().flatten() {
        let text = |key: &str| receiver[key].as_str().unwrap_or_default();
        let qos = receiver["qos"].as_u64().map(|qos| format!(" QoS {qos}")).unwrap_or_default();
        let _ = writeln!(out, "  {} {}{qos}: {}", text("kind"), text("name"), text("fate"));
    }
    if topic["retained"].is_object() {
        let retained = &topic["retained"];
        let since = output::utc(retained["accepted_wall_ms"].as_u64().unwrap_or_default());
        let _ = writeln!(out, "  retained: {} B since {since}", retained["payload_bytes"]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn who_was_refused_is_told_so_first() {
        let body = json!({
            "name": "dev",
            "client": { "session": null, "recent": [{
                "wall_ms": 0, "kind": "connect_refused", "client_id": "dev", "topic": "",
                "reason": "NotAuthorized", "detail": "from 10.0.0.7:4", "count": 2,
            }] },
            "topic": { "name": "dev", "receivers": [], "receivers_count": 0, "retained": null, "recent": [] },
        });
        let expected = "\
client dev: no session here; last connect refused: NotAuthorized at 1970-01-01 00:00:00.000Z
1970-01-01 00:00:00.000Z connect refused: NotAuthorized client dev, from 10.0.0.7:4 (2 times)
";
        assert_eq!(explained(&body, Paint::off()), expected);
    }

    #[test]
    fn a_topic_says_what_becomes_of_a_message() {
        let body = json!({
            "name": "plant/1",
            "client": { "session": null, "recent": [] },
            "topic": { "name": "plant/1", "receivers_count": 1, "retained": null, "recent": [],
                "receivers": [{ "kind": "client", "name": "a", "qos": 1, "fate": "delivered" }] },
        });
        let expected = "topic plant/1: 1 would get it\n  client a QoS 1: delivered\n";
        assert_eq!(explained(&body, Paint::off()), expected);
    }
}
