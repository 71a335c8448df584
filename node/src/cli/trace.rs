//! `outpost trace`: watch what goes on with one client or topic, for a while.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::api::{Api, Method, accepted, encoded};
use super::failure::Failure;
use super::output::{self, Paint};

/// How long to wait before a trace that runs is asked for more.
const FOLLOW_PAUSE: Duration = Duration::from_millis(300);

/// Write down what goes on with one client or topic, for a while
#[derive(Debug, Args)]
pub struct Trace {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(subcommand)]
    Start(Start),
    Ls(Ls),
    Stop(Stop),
    Show(Show),
}

/// Start a trace
#[derive(Debug, Subcommand)]
enum Start {
    /// Every packet of a client, and what is refused, dropped or cut off
    #[command(
        after_help = "Example:\n  outpost trace start client sensor-7 --for 10m\n  outpost trace start client sensor-7 -f"
    )]
    Client(StartArgs),
    /// Messages on the topics of a filter, their deliveries, refusals and drops
    #[command(after_help = "Example:\n  outpost trace start topic 'plant/7/#' --for 1h --payload")]
    Topic(StartArgs),
}

#[derive(Debug, Args)]
struct StartArgs {
    /// The client id, or the topic filter
    of: String,
    /// How long: seconds, or with s, m, h; a day at most
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = seconds)]
    for_s: u64,
    /// Write down payloads too, their first 1,024 bytes
    #[arg(long)]
    payload: bool,
    /// Print what comes until it ends
    #[arg(short = 'f', long)]
    follow: bool,
    #[command(flatten)]
    api: Api,
}

/// List traces, those that run and those that are kept
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost trace ls")]
struct Ls {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// End a trace before its time; what it has written is kept
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost trace stop 1790000000000")]
struct Stop {
    /// Its number
    id: u64,
    #[command(flatten)]
    api: Api,
}

/// Print a trace, one JSON object a line
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost trace show 1790000000000 | jq -c 'select(.packet)'")]
struct Show {
    /// Its number
    id: u64,
    /// Go on until it ends
    #[arg(short = 'f', long)]
    follow: bool,
    #[command(flatten)]
    api: Api,
}

/// `90`, `90s`, `10m`, `2h`.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, "s"),
    };
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("a number with s, m or h behind it".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "it begins with a number".to_owned())?;
    number.checked_mul(factor).filter(|s| *s > 0).ok_or_else(|| "out of range".to_owned())
}

impl Trace {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Start(Start::Client(args)) => args.run("client"),
            Verb::Start(Start::Topic(args)) => args.run("topic"),
            Verb::Ls(verb) => verb.run(),
            Verb::Stop(verb) => verb.run(),
            Verb::Show(verb) => print(&verb.api, verb.id, verb.follow),
        }
    }
}

impl StartArgs {
    fn run(self, what: &str) -> Result<(), Failure> {
        let path = format!(
            "/api/v1/traces?{what}={}&for_s={}&payload={}",
            encoded(&self.of),
            self.for_s,
            self.payload
        );
        let started = accepted(self.api.ask(Method::Post(b""), &path)?)?;
        let id = started["id"].as_u64().unwrap_or_default();
        let file = started["file"].as_str().unwrap_or_default();
        if !self.follow {
            return output::print(&format!("{id}\n")).map(|()| {
                eprintln!("tracing {what} {} for {} s into {file}", self.of, self.for_s);
            });
        }
        eprintln!(
            "tracing {what} {} for {} s; `outpost trace stop {id}` ends it",
            self.of, self.for_s
        );
        print(&self.api, id, true)
    }
}

/// Prints a trace from its beginning; with `follow` until it has ended.
fn print(api: &Api, id: u64, follow: bool) -> Result<(), Failure> {
    let (mut offset, mut over) = (0, false);
    loop {
        let page = api.get(&format!("/api/v1/trace?id={id}&offset={offset}"))?;
        let lines = page["lines"].as_str().unwrap_or_default();
        output::print(lines)?;
        offset = page["next"].as_u64().unwrap_or(offset);
        if lines.is_empty() {
            // The last lines may still be on their way to the file when it ends.
            if !follow || over {
                return Ok(());
            }
            over = page["running"] != true;
            #[allow(
                clippy::disallowed_methods,
                reason = "a command of one thread, which has nothing else to do"
            )]
            std::thread::sleep(FOLLOW_PAUSE);
        }
    }
}

impl Ls {
    fn run(self) -> Result<(), Failure> {
        let body = self.api.get("/api/v1/traces")?;
        if self.json {
            return output::print(&format!("{body:#}\n"));
        }
        let mut rows = vec![["TRACE", "BEGAN", "BYTES", "STATE"].map(str::to_owned)];
        for trace in body["traces"].as_array().into_iter().flatten() {
            let running = &trace["running"];
            let state = match running {
                Value::Null => "ended".to_owned(),
                running => format!(
                    "{}, {} records, {} s left",
                    running["target"].as_str().unwrap_or_default(),
                    running["records"],
                    running["left_s"]
                ),
            };
            let began = output::utc(trace["id"].as_u64().unwrap_or_default());
            rows.push([trace["id"].to_string(), began, trace["bytes"].to_string(), state]);
        }
        output::print(&output::columns(&rows, Paint::for_stdout()))
    }
}

impl Stop {
    fn run(self) -> Result<(), Failure> {
        accepted(self.api.ask(Method::Delete, &format!("/api/v1/trace?id={}", self.id))?)?;
        output::print(&format!("{}: ended\n", self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_people_write() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("10m"), Ok(600));
        assert_eq!(seconds("2h"), Ok(7_200));
        for wrong in ["", "m", "10d", "0", "-1", "99999999999999999999s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
