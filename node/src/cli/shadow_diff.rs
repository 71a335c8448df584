//! `outpost shadow diff NODE NODE`: which shadows differ between two nodes, and in what.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use serde_json::Value;

use super::api::{Api, Method, encoded};
use super::failure::Failure;
use super::output::{self, Paint};
use super::shadow::pages;

/// Print the shadows that differ between two nodes; exit code 1 when there are any
#[derive(Debug, Args)]
#[command(after_help = "Example:
  outpost shadow diff http://127.0.0.1:18080 http://127.0.0.1:18081
  outpost shadow diff edge:18080 cloud:18080 --prefix plant- --token-file token")]
pub struct Diff {
    /// HTTP address of one node
    #[arg(value_name = "NODE")]
    one: String,
    /// HTTP address of the other
    #[arg(value_name = "NODE")]
    other: String,
    /// Only things that begin like this
    #[arg(long, default_value = "")]
    prefix: String,
    /// File with the token of both, when they want one
    #[arg(long, value_name = "FILE", env = "OUTPOST_TOKEN_FILE", hide_env_values = true)]
    token_file: Option<std::path::PathBuf>,
}

/// Thing and name of a shadow.
type Key = (String, Option<String>);

impl Diff {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] when a node does not answer, or shadows differ.
    pub fn run(self) -> Result<(), Failure> {
        let (one, other) = (self.api(&self.one), self.api(&self.other));
        let (here, there) = (versions(&one, &self.prefix)?, versions(&other, &self.prefix)?);
        let mut keys: Vec<&Key> = here.keys().chain(there.keys()).collect();
        keys.sort();
        keys.dedup();
        let paint = Paint::for_stdout();
        let mut different = 0;
        // A version never stands for two different states, so equal versions need no look.
        for key in keys.iter().filter(|key| here.get(**key) != there.get(**key)) {
            let (a, b) = (document(&one, key)?, document(&other, key)?);
            if a != b {
                different += 1;
                output::print(&compared(key, [(&self.one, &a), (&self.other, &b)], paint))?;
            }
        }
        match different {
            0 => output::print(&format!("{} shadows, all equal\n", keys.len())),
            1 => Err(Failure::new(format!("1 of {} shadows differs", keys.len()))),
            _ => Err(Failure::new(format!("{different} of {} shadows differ", keys.len()))),
        }
    }

    fn api(&self, address: &str) -> Api {
        let url =
            if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        Api { url, token_file: self.token_file.clone() }
    }
}

fn versions(api: &Api, prefix: &str) -> Result<BTreeMap<Key, u64>, Failure> {
    let mut all = BTreeMap::new();
    pages(api, prefix, |shadow| {
        let key = (
            shadow["thing"].as_str().unwrap_or_default().to_owned(),
            shadow["name"].as_str().map(str::to_owned),
        );
        all.insert(key, shadow["version"].as_u64().unwrap_or_default());
        Ok(())
    })?;
    Ok(all)
}

/// State and version; null when there is none.
fn document(api: &Api, (thing, name): &Key) -> Result<Value, Failure> {
    let name = name.as_ref().map(|name| format!("?name={}", encoded(name))).unwrap_or_default();
    let path = format!("/things/{}/shadow{name}", encoded(thing));
    match api.ask(Method::Get, &path)? {
        (404, _) => Ok(Value::Null),
        answer => {
            let mut document = super::api::accepted(answer)?;
            if let Some(state) = document["state"].as_object_mut() {
                state.remove("delta");
            }
            Ok(serde_json::json!({ "state": document["state"], "version": document["version"] }))
        }
    }
}

fn compared((thing, name): &Key, sides: [(&str, &Value); 2], paint: Paint) -> String {
    let name = name.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    let mut out = format!("{}\n", paint.strong(&format!("{thing}{name}")));
    let leaves = sides.map(|(_, document)| {
        let mut leaves = BTreeMap::new();
        collect("", &document["state"], &mut leaves);
        leaves
    });
    for ((node, document), side) in sides.iter().zip(0..) {
        if document.is_null() {
            let _ = writeln!(out, "  {node}: there is none");
            continue;
        }
        let _ = writeln!(out, "  {node}: version {}", document["version"]);
        for (path, value) in &leaves[side] {
            if leaves[1 - side].get(path) != Some(value) {
                let _ = writeln!(out, "    {path} = {value}");
            }
        }
    }
    out
}

/// Every scalar and array with its path.
fn collect(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    let Value::Object(fields) = value else {
        if !value.is_null() {
            into.insert(path.to_owned(), value.to_string());
        }
        return;
    };
    for (key, value) in fields {
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        collect(&below, value, into);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_shown_for_each_side() {
        let key = ("lamp".to_owned(), None);
        let a = json!({ "state": { "desired": { "on": true, "level": 1 } }, "version": 2 });
        let b =
            json!({ "state": { "desired": { "on": true, "level": 9, "new": [1] } }, "version": 3 });
        assert_eq!(
            compared(&key, [("a", &a), ("b", &b)], Paint::off()),
            "lamp\n  a: version 2\n    desired.level = 1\n  b: version 3\n    desired.level = 9\n    desired.new = [1]\n"
        );
        let words = compared(&key, [("a", &Value::Null), ("b", &b)], Paint::off());
        assert!(words.contains("a: there is none"), "{words}");
    }
}
