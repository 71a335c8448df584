//! `outpost client`: who is connected or away, what each costs, and what can be done about one.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::{Api, Method, accepted, encoded};
use super::failure::Failure;
use super::output::{self, Paint};
use super::queue::Queue;

/// Entries asked for at once.
pub(super) const PAGE: usize = 1_000;

/// See and manage the clients of a node
#[derive(Debug, Args)]
pub struct Client {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(Ls),
    Show(Show),
    Kick(Kick),
    Queue(Queue),
}

/// List clients: sessions with a connection, and those whose client is away
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost client ls\n  outpost client ls --away --queued\n  outpost client ls --prefix plant- --json | jq '.clients[].client_id'"
)]
struct Ls {
    /// Only client ids that begin so
    #[arg(long, value_name = "TEXT", default_value = "")]
    prefix: String,
    /// Only clients with a connection
    #[arg(long, conflicts_with = "away")]
    connected: bool,
    /// Only clients without
    #[arg(long)]
    away: bool,
    /// Only clients of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only clients that came by this listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Only clients with something queued
    #[arg(long)]
    queued: bool,
    /// Clients shown at most
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Show everything about one client: connection, figures, subscriptions, what was refused or dropped lately
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost client show sensor-7")]
struct Show {
    /// The client id
    id: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Cut clients off (version 5 hears 0x98, Administrative action); their wills go out
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost client kick sensor-7\n  outpost client kick --end-session old-phone"
)]
struct Kick {
    /// The client ids
    #[arg(required = true)]
    ids: Vec<String>,
    /// End the session too: subscriptions and queue go
    #[arg(long)]
    end_session: bool,
    #[command(flatten)]
    api: Api,
}

impl Client {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Ls(verb) => verb.run(),
            Verb::Show(verb) => verb.run(),
            Verb::Kick(verb) => verb.run(),
            Verb::Queue(verb) => verb.run(),
        }
    }
}

impl Ls {
    fn run(self) -> Result<(), Failure> {
        let (mut clients, mut next) = (Vec::new(), Some(0));
        while let Some(after) = next.filter(|_| clients.len() < self.limit) {
            let limit = (self.limit - clients.len()).min(PAGE);
            let page = self.api.get(&self.path(after, limit))?;
            clients.extend(page["clients"].as_array().cloned().unwrap_or_default());
            // A node that answers in circles is not followed.
            next = page["next"].as_u64().filter(|next| *next > after);
        }
        clients.sort_by(|a, b| a["client_id"].as_str().cmp(&b["client_id"].as_str()));
        if self.json {
            let more = next.is_some();
            let body = serde_json::json!({ "clients": clients, "more": more });
            return output::print(&format!("{body:#}\n"));
        }
        let mut text = table(&clients, Paint::for_stdout());
        if next.is_some() {
            text.push_str("there may be more (--limit)\n");
        }
        output::print(&text)
    }

    fn path(&self, after: u64, limit: usize) -> String {
        let mut path = format!("/api/v1/clients?after={after}&limit={limit}");
        let connected = if self.connected { Some("true") } else { None };
        let connected = if self.away { Some("false") } else { connected };
        let options = [
            ("connected", connected),
            ("user", self.user.as_deref()),
            ("listener", self.listener.as_deref()),
            ("queued", self.queued.then_some("true")),
            ("prefix", Some(self.prefix.as_str()).filter(|prefix| !prefix.is_empty())),
        ];
        for (key, value) in options.iter().filter_map(|(key, value)| Some((key, (*value)?))) {
            path.extend(["&", key, "=", &encoded(value)]);
        }
        path
    }
}

/// One line a client.
fn table(clients: &[Value], paint: Paint) -> String {
    let mut rows = vec![
        ["CLIENT", "STATE", "MQTT", "ADDRESS", "SUBS", "QUEUED", "IN", "OUT", "DROPPED", "IDLE"]
            .map(str::to_owned),
    ];
    for client in clients {
        let link = &client["connection"];
        let here = link.is_object();
        let sum = |value: &Value| -> u64 {
            value.as_array().into_iter().flatten().filter_map(Value::as_u64).sum()
        };
        let dropped: u64 = client["dropped"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, n)| n.as_u64())
            .sum();
        let or_dash = |text: String| if here { text } else { "-".to_owned() };
        rows.push([
            client["client_id"].as_str().unwrap_or_default().to_owned(),
            if here { "connected" } else { "away" }.to_owned(),
            or_dash(link["version"].as_str().unwrap_or_default().to_owned()),
            or_dash(link["address"].as_str().unwrap_or_default().to_owned()),
            client["subscriptions"].to_string(),
            format!("{}{}", client["queued"], if client["full"] == true { " full" } else { "" }),
            or_dash(sum(&link["publishes_received"]).to_string()),
            or_dash(sum(&link["publishes_sent"]).to_string()),
            dropped.to_string(),
            or_dash(format!("{}s", link["idle_s"])),
        ]);
    }
    output::columns(&rows, paint)
}

impl Show {
    fn run(self) -> Result<(), Failure> {
        let body = self.api.get(&format!("/api/v1/client?id={}", encoded(&self.id)))?;
        if self.json {
            return output::print(&format!("{body:#}\n"));
        }
        output::print(&shown(&body, Paint::for_stdout()))
    }
}

/// One client in words.
pub(super) fn shown(client: &Value, paint: Paint) -> String {
    use std::fmt::Write;
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let link = &client["connection"];
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        let _ = writeln!(out, "{:<14} {value}", paint.faint(key));
    };
    line("client", text(&client["client_id"]));
    line("user", text(&client["user"]));
    if link.is_object() {
        line(
            "connected",
            format!(
                "for {} s from {} by listener {}, MQTT {}, keep alive {} s, last heard {} s ago",
                link["connected_s"],
                text(&link["address"]),
                text(&link["listener"]),
                text(&link["version"]),
                link["keep_alive_s"],
                link["idle_s"]
            ),
        );
        let by = |way: &str| {
            let counts = &link[format!("publishes_{way}")];
            format!(
                "{} B, PUBLISH QoS 0/1/2: {}/{}/{}",
                link[format!("bytes_{way}")],
                counts[0],
                counts[1],
                counts[2]
            )
        };
        line("received", by("received"));
        line("sent", format!("{}, {} B unwritten", by("sent"), link["unwritten_bytes"]));
        if link["held_back"] != 0 {
            line("held back", format!("{} publishes: a receiver is full", link["held_back"]));
        }
    } else {
        line("away", format!("its session ends in {} s", client["session_ends_in_s"]));
    }
    line("session", format!("expires {} s after the connection", client["session_expiry_s"]));
    line(
        "queue",
        format!(
            "{} of {} messages, {} of {} B, {} in flight{}",
            client["queued"],
            client["queue_messages_limit"],
            client["queued_bytes"],
            client["queue_bytes_limit"],
            client["in_flight"],
            if client["full"] == true { ", FULL" } else { "" }
        ),
    );
    line("will", client["will_topic"].as_str().unwrap_or("none").to_owned());
    for (reason, count) in client["dropped"].as_object().into_iter().flatten() {
        line("dropped", format!("{count} {reason}"));
    }
    let filters = client["filters"].as_array().cloned().unwrap_or_default();
    line(
        "subscriptions",
        format!("{} of {}", client["subscriptions"], client["subscriptions_limit"]),
    );
    for filter in &filters {
        line("", format!("QoS {} {}", filter["qos"], text(&filter["filter"])));
    }
    out.push_str(&recent(&client["recent"], paint));
    out
}

/// Decisions, the newest first.
pub(super) fn recent(decisions: &Value, paint: Paint) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    for decision in decisions.as_array().into_iter().flatten() {
        let text = |key: &str| decision[key].as_str().unwrap_or_default();
        let when = output::utc(decision["wall_ms"].as_u64().unwrap_or_default());
        let kind = text("kind").replace('_', " ");
        let _ = write!(out, "{} {kind}: {}", paint.faint(&when), paint.fair(text("reason")));
        for (before, key) in [(" client ", "client_id"), (" topic ", "topic"), (", ", "detail")] {
            if !text(key).is_empty() {
                let _ = write!(out, "{before}{}", text(key));
            }
        }
        if decision["count"].as_u64() > Some(1) {
            let _ = write!(out, " ({} times)", decision["count"]);
        }
        out.push('\n');
    }
    out
}

impl Kick {
    fn run(self) -> Result<(), Failure> {
        for id in &self.ids {
            let path =
                format!("/api/v1/client/kick?id={}&end_session={}", encoded(id), self.end_session);
            let body = accepted(self.api.ask(Method::Post(b""), &path)?)?;
            let was = if body["disconnected"] == true { "cut off" } else { "was away" };
            let session = if body["session_ended"] == true {
                "its session has ended"
            } else {
                "its session is kept"
            };
            output::print(&format!("{id}: {was}; {session}\n"))?;
        }
        Ok(())
    }
}
