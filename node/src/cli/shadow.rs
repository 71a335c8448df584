//! `outpost shadow get|set|rm|ls|watch` and what stands beside it: device shadows, by HTTP; `watch` by MQTT, as a device would.

use std::io::Read;

use clap::{ArgAction, Args, Subcommand};
use serde_json::{Map, Value, json};

use super::api::{Api, Method, accepted, encoded};
use super::failure::Failure;
use super::mqtt::{Broken, Connection, Event, Link, Subscription};
use super::output::{self, Say, runtime};
use super::publish::no_connection;
use super::shadow_diff::Diff;
use super::shadow_past::{History, Why};

/// Shadows asked for in one request of `ls`.
const PAGE: usize = 1_000;

/// Read, write and watch device shadows
#[derive(Debug, Args)]
pub struct Shadow {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Get(Get),
    Set(Set),
    #[command(alias = "delete")]
    Rm(Rm),
    Ls(Ls),
    Watch(Box<Watch>),
    History(History),
    Diff(Diff),
    Why(Why),
    Move(Move),
}

/// Which shadow
#[derive(Debug, Args)]
pub(super) struct Which {
    /// The thing, for example a device's client id
    thing: String,
    /// A named shadow; left out: the classic one
    #[arg(short = 'n', long, value_name = "NAME")]
    name: Option<String>,
}

/// Print a shadow as JSON
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow get lamp
  outpost shadow get lamp --name config")]
struct Get {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    api: Api,
}

/// Take a shadow away
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow rm lamp --name config")]
struct Rm {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    api: Api,
}

/// Make the node that is asked the home of a shadow
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow move lamp
  outpost shadow move lamp --gone      its home never comes back")]
struct Move {
    #[command(flatten)]
    which: Which,
    /// Do not ask the old home: it is gone for good
    #[arg(long)]
    gone: bool,
    #[command(flatten)]
    api: Api,
}

/// Merge values into a shadow
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow set lamp desired.on=true desired.colour=red
  outpost shadow set lamp '{\"desired\": {\"on\": null}}'     null takes a key away
  echo '{\"state\": {\"reported\": {\"on\": true}}}' | outpost shadow set lamp -")]
struct Set {
    #[command(flatten)]
    which: Which,
    /// path=value pairs, or one JSON document, or - for standard input
    #[arg(required = true, value_name = "VALUES")]
    values: Vec<String>,
    /// Only when the shadow still has this version
    #[arg(long, value_name = "NUMBER")]
    version: Option<u64>,
    #[command(flatten)]
    api: Api,
}

/// List shadows
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost shadow ls plant-\n  outpost shadow ls --json")]
struct Ls {
    /// Only things that begin like this
    #[arg(default_value = "")]
    prefix: String,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// Print each change of a shadow as it happens
#[derive(Debug, Args)]
#[command(disable_help_flag = true, after_help = "Example:\n  outpost shadow watch lamp")]
struct Watch {
    #[command(flatten)]
    which: Which,
    /// The documents as they come, one JSON object a line
    #[arg(long)]
    json: bool,
    /// End after this many changes
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    connection: Connection,
    /// Print this help
    #[arg(long, action = ArgAction::Help, help_heading = "Help")]
    help: Option<bool>,
}

impl Shadow {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Get(get) => show(&get.api.get(&get.which.path())?),
            Verb::Rm(rm) => show(&accepted(rm.api.ask(Method::Delete, &rm.which.path())?)?),
            Verb::Set(set) => set.run(),
            Verb::Ls(ls) => ls.run(),
            Verb::Watch(watch) => watch.run(),
            Verb::History(history) => history.run(),
            Verb::Diff(diff) => diff.run(),
            Verb::Why(why) => why.run(),
            Verb::Move(it) => it.run(),
        }
    }
}

fn show(document: &Value) -> Result<(), Failure> {
    output::print(&format!("{document:#}\n"))
}

impl Which {
    fn path(&self) -> String {
        let name =
            self.name.as_ref().map(|name| format!("?name={}", encoded(name))).unwrap_or_default();
        format!("/things/{}/shadow{name}", encoded(&self.thing))
    }

    pub(super) fn query(&self) -> String {
        let name = self.name.as_ref().map(|name| format!("&name={}", encoded(name)));
        format!("thing={}{}", encoded(&self.thing), name.unwrap_or_default())
    }

    fn topic(&self) -> String {
        let name = self.name.as_ref().map(|name| format!("/name/{name}")).unwrap_or_default();
        format!("$aws/things/{}/shadow{name}/update", self.thing)
    }
}

impl Move {
    fn run(self) -> Result<(), Failure> {
        let name = self.which.name.as_ref().map(|name| format!("&name={}", encoded(name)));
        let thing = encoded(&self.which.thing);
        let (name, gone) = (name.unwrap_or_default(), self.gone);
        let path = format!("/api/v1/shadows/home?thing={thing}{name}&gone={gone}");
        show(&accepted(self.api.ask(Method::Post(b""), &path)?)?)
    }
}

impl Set {
    fn run(self) -> Result<(), Failure> {
        let mut document = match self.values.as_slice() {
            [dash] if dash == "-" => {
                let mut text = String::new();
                std::io::stdin().lock().take(1 << 20).read_to_string(&mut text)?;
                whole(&text)?
            }
            [text] if text.trim_start().starts_with('{') => whole(text)?,
            pairs => json!({ "state": from_pairs(pairs)? }),
        };
        if let Some(version) = self.version {
            document["version"] = json!(version);
        }
        let body = document.to_string();
        show(&accepted(self.api.ask(Method::Post(body.as_bytes()), &self.which.path())?)?)
    }
}

/// A document; `{"desired": …}` is short for `{"state": {"desired": …}}`.
fn whole(text: &str) -> Result<Value, Failure> {
    let value: Value = serde_json::from_str(text)
        .map_err(|why| Failure::usage(format!("this is no JSON: {why}")))?;
    if !value.is_object() {
        return Err(Failure::usage("a shadow document is a JSON object"));
    }
    Ok(if value.get("state").is_some() { value } else { json!({ "state": value }) })
}

/// `desired.a.b=1` becomes `{"desired": {"a": {"b": 1}}}`; what is no JSON is a text.
fn from_pairs(pairs: &[String]) -> Result<Value, Failure> {
    let mut state = Value::Object(Map::new());
    for pair in pairs {
        let (path, text) = pair
            .split_once('=')
            .ok_or_else(|| Failure::usage(format!("{pair:?} is no path=value")))?;
        if !(path.starts_with("desired.") || path.starts_with("reported."))
            || path.split('.').any(str::is_empty)
        {
            return Err(Failure::usage(format!(
                "{path:?}: a path begins with desired. or reported. and has no empty part"
            )));
        }
        let mut place = &mut state;
        for key in path.split('.') {
            if !place.is_object() {
                return Err(Failure::usage(format!("{path:?} goes through a value given before")));
            }
            place = &mut place[key];
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
        }
        *place = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    }
    Ok(state)
}

impl Ls {
    fn run(self) -> Result<(), Failure> {
        pages(&self.api, &self.prefix, |shadow| {
            let (thing, name) = (shadow["thing"].as_str().unwrap_or("?"), shadow["name"].as_str());
            output::print(&match name {
                _ if self.json => format!("{shadow}\n"),
                None => format!("{thing}\n"),
                Some(name) => format!("{thing}\t{name}\n"),
            })
        })
    }
}

/// Shows every shadow of a node whose thing begins with `prefix`.
pub(super) fn pages(
    api: &Api,
    prefix: &str,
    mut each: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let first = format!("/api/v1/shadows?limit={PAGE}&prefix={}", encoded(prefix));
    let mut path = first.clone();
    loop {
        let page = api.get(&path)?;
        page["shadows"].as_array().into_iter().flatten().try_for_each(&mut each)?;
        let next = &page["next"];
        let Some(thing) = next["thing"].as_str() else { return Ok(()) };
        path = format!("{first}&after_thing={}", encoded(thing));
        if let Some(name) = next["name"].as_str() {
            path = path + "&after_name=" + &encoded(name);
        }
    }
}

impl Watch {
    fn run(self) -> Result<(), Failure> {
        let target = self.connection.target("watch")?;
        let say = Say::new(self.connection.debug, self.connection.quiet);
        let prefix = self.which.topic();
        let subscriptions = ["documents", "delta"].map(|kind| Subscription {
            filter: format!("{prefix}/{kind}"),
            qos: 1,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        });
        let mut left = self.count;
        runtime()?.block_on(async move {
            let mut link = Link::open(&target);
            let mut was_connected = false;
            loop {
                match link.next().await {
                    Some(Event::Connected { .. }) => {
                        was_connected = true;
                        link.subscribe(&subscriptions).await.map_err(Failure::new)?;
                    }
                    Some(Event::Subscribed(granted)) => {
                        if let Some(Err(why)) = granted.iter().find(|answer| answer.is_err()) {
                            return Err(Failure::new(format!(
                                "the node refused to tell of {}: {why}",
                                self.which.thing
                            )));
                        }
                        say.warn(&format!(
                            "watching the shadow of {:?}; Ctrl-C ends",
                            self.which.thing
                        ));
                    }
                    Some(Event::Message(message)) => {
                        let kind = message.topic.rsplit('/').next().unwrap_or_default();
                        output::print(&line(kind, &message.payload, self.json))?;
                        if let Some(left) = &mut left {
                            *left -= 1;
                            if *left == 0 {
                                link.close().await;
                                return Ok(());
                            }
                        }
                    }
                    Some(Event::Lost(broken))
                        if !was_connected || matches!(broken, Broken::Refused(..)) =>
                    {
                        return Err(no_connection(&broken));
                    }
                    Some(Event::Lost(broken)) => say.warn(&format!("{broken}; connecting again")),
                    Some(event) => say.event(&event),
                    None => return Err(Failure::new("the connection ended")),
                }
            }
        })
    }
}

/// One change: `documents` shows the new state, `delta` what the device has still to do.
fn line(kind: &str, payload: &[u8], as_json: bool) -> String {
    let document: Value = serde_json::from_slice(payload)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(payload)));
    if as_json {
        return format!("{}\n", json!({ "kind": kind, "document": document }));
    }
    let (version, state) = if kind == "documents" {
        (&document["current"]["version"], &document["current"]["state"])
    } else {
        (&document["version"], &document["state"])
    };
    format!("{kind:<9} v{version}  {state}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(texts: &[&str]) -> Result<Value, Failure> {
        from_pairs(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn pairs_become_a_document() {
        let found = pairs(&[
            "desired.on=true",
            "desired.colour.name=red",
            "desired.colour.level=7",
            "reported.x=null",
        ]);
        let expected = json!({ "desired": { "on": true, "colour": { "name": "red", "level": 7 } }, "reported": { "x": null } });
        assert_eq!(found, Ok(expected));
        for bad in [
            &["on=true"][..],
            &["desired.on"],
            &["desired..on=1"],
            &["desired.a=1", "desired.a.b=2"],
        ] {
            assert_eq!(pairs(bad).expect_err("no document").code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn a_document_may_leave_out_state() {
        assert_eq!(whole("{\"desired\":{}}"), Ok(json!({ "state": { "desired": {} } })));
        assert_eq!(
            whole("{\"state\":{},\"clientToken\":\"t\"}"),
            Ok(json!({ "state": {}, "clientToken": "t" }))
        );
        assert!(whole("[]").is_err());
    }

    #[test]
    fn a_change_is_one_line() {
        let documents = br#"{"previous":{},"current":{"state":{"desired":{"on":true}},"version":3},"timestamp":1}"#;
        assert_eq!(
            line("documents", documents, false),
            "documents v3  {\"desired\":{\"on\":true}}\n"
        );
        assert_eq!(
            line("delta", br#"{"version":3,"state":{"on":true}}"#, false),
            "delta     v3  {\"on\":true}\n"
        );
    }
}
