//! The shadows of the story: what is written where, what must come out, and whether both nodes say so.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use super::site::Site;
use crate::cli::api::accepted;
use crate::cli::failure::Failure;

/// Who wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Edge,
    Cloud,
}

/// One leaf of one accepted write.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Edit {
    /// Where.
    pub side: Side,
    /// Which shadow.
    pub thing: String,
    /// Which leaf, for example `desired.mode`.
    pub path: String,
    /// What it became; `null` takes the key away.
    pub value: Value,
    /// The version under which the node accepted it.
    pub version: u64,
}

/// The shadow of a thing as a node shows it: without the moment of asking.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Document {
    pub version: u64,
    pub state: Value,
    /// When each leaf was written; it must be equal as well.
    #[serde(skip)]
    pub metadata: Value,
}

impl Document {
    /// Asks a node for it.
    ///
    /// # Errors
    /// When the node has none.
    pub async fn of(thing: &str, site: &Site) -> Result<Self, Failure> {
        let mut body = site.get(&format!("/things/{thing}/shadow")).await?;
        let mut part = |name| body.get_mut(name).map(Value::take).unwrap_or_default();
        let (version, mut state, metadata) = (part("version"), part("state"), part("metadata"));
        if let Some(state) = state.as_object_mut() {
            // Computed from the two others.
            state.remove("delta");
        }
        Ok(Self { version: version.as_u64().unwrap_or_default(), state, metadata })
    }

    /// The value at `desired.mode`, `null` when there is none.
    pub fn leaf(&self, path: &str) -> Value {
        path.split('.').fold(&self.state, |at, key| &at[key]).clone()
    }

    /// Bytes of its state as compact JSON.
    pub fn bytes(&self) -> usize {
        self.state.to_string().len()
    }
}

/// Shadows by thing.
pub type Documents = BTreeMap<String, Document>;

/// The name of a thing; they sort as they count.
pub fn thing(number: usize) -> String {
    format!("pump-{number:03}")
}

/// What a thing's shadow says before the cut.
pub fn first_state(number: usize) -> Value {
    json!({
        "desired": { "mode": "auto", "speed": 900, "night_mode": true, "site": "north" },
        "reported": { "mode": "auto", "speed": 900, "temp": 20.5, "firmware": "1.4.2", "hours": 100 + number },
    })
}

/// Writes over HTTP, as an operator does.
///
/// # Errors
/// When the node refuses.
pub async fn write(site: &Site, thing: &str, state: &Value) -> Result<Value, Failure> {
    let body = json!({ "state": state }).to_string();
    accepted(site.ask(&format!("/things/{thing}/shadow"), Some(body)).await?)
}

/// The leaves of an accepted write. An update's answer carries only what was written.
pub fn edits(side: Side, thing: &str, state: &Value, answer: &Value) -> Vec<Edit> {
    let mut leaves = Vec::new();
    collect(String::new(), state, &mut leaves);
    let version = answer["version"].as_u64().unwrap_or_default();
    let edit = |(path, value)| Edit { side, thing: thing.to_owned(), path, value, version };
    leaves.into_iter().map(edit).collect()
}

fn collect(path: String, value: &Value, leaves: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(path, value, leaves);
            }
        }
        leaf => leaves.push((path, leaf.clone())),
    }
}

/// What became of a leaf.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Merged {
    pub thing: String,
    pub path: String,
    pub before: Value,
    /// What each side made of it while apart; absent when it did not touch it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cloud: Option<Value>,
    /// What both show now.
    pub after: Value,
    /// Whose write that is.
    pub winner: Side,
    /// Both sides wrote it.
    pub conflict: bool,
    /// It is not what the later write said.
    pub lost: bool,
}

/// Puts the edits of both sides beside what came out. `edits` are in the order in which they were accepted.
pub fn merged(edits: &[Edit], before: &Documents, after: &Documents) -> Vec<Merged> {
    let mut by_leaf: BTreeMap<(&str, &str), Vec<&Edit>> = BTreeMap::new();
    for edit in edits {
        by_leaf.entry((&edit.thing, &edit.path)).or_default().push(edit);
    }
    let leaf = |documents: &Documents, (thing, path): (&str, &str)| {
        documents.get(thing).map_or(Value::Null, |document| document.leaf(path))
    };
    let row = |(place, edits): ((&str, &str), Vec<&Edit>)| {
        let by = |side| edits.iter().rfind(|e| e.side == side).map(|e| e.value.clone());
        let last = edits.last().expect("a leaf is listed because it was written");
        let (edge, cloud, found) = (by(Side::Edge), by(Side::Cloud), leaf(after, place));
        Merged {
            thing: place.0.to_owned(),
            path: place.1.to_owned(),
            before: leaf(before, place),
            conflict: edge.is_some() && cloud.is_some(),
            edge,
            cloud,
            lost: found != last.value,
            after: found,
            winner: last.side,
        }
    };
    by_leaf.into_iter().map(row).collect()
}

/// What the states must be after writes were accepted, in their order.
pub fn expected(before: &Documents, edits: &[Edit]) -> BTreeMap<String, Value> {
    let mut states: BTreeMap<String, Value> =
        before.iter().map(|(thing, document)| (thing.clone(), document.state.clone())).collect();
    for edit in edits {
        let mut at = states.entry(edit.thing.clone()).or_insert_with(|| json!({}));
        let (sections, key) = edit.path.rsplit_once('.').unwrap_or(("", &edit.path));
        for section in sections.split('.') {
            at = at
                .as_object_mut()
                .expect("the story writes only below objects")
                .entry(section)
                .or_insert_with(|| json!({}));
        }
        let fields = at.as_object_mut().expect("the story writes only below objects");
        if edit.value.is_null() {
            fields.remove(key);
        } else {
            fields.insert(key.to_owned(), edit.value.clone());
        }
    }
    states
}

/// The things whose documents differ, in words; none when both nodes agree.
pub fn differences(edge: &Documents, cloud: &Documents) -> Vec<String> {
    let all: BTreeSet<&String> = edge.keys().chain(cloud.keys()).collect();
    all.into_iter()
        .filter_map(|thing| match (edge.get(thing), cloud.get(thing)) {
            (a, b) if a == b => None,
            (Some(a), Some(b)) => Some(format!(
                "{thing}: the edge has version {} {}, the cloud version {} {}",
                a.version, a.state, b.version, b.state
            )),
            (None, _) => Some(format!("{thing}: the edge has none")),
            (_, None) => Some(format!("{thing}: the cloud has none")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(version: u64, state: Value) -> Documents {
        BTreeMap::from([("t".to_owned(), Document { version, state, metadata: Value::Null })])
    }

    #[test]
    fn the_later_write_wins_and_a_lost_one_is_seen() {
        let before = document(1, json!({ "desired": { "mode": "auto", "night": true } }));
        let mut all = edits(
            Side::Edge,
            "t",
            &json!({ "desired": { "mode": "manual" }, "reported": { "temp": 71 } }),
            &json!({ "version": 2 }),
        );
        let operator = json!({ "desired": { "mode": "eco", "night": null } });
        all.extend(edits(Side::Cloud, "t", &operator, &json!({ "version": 963 })));

        let after =
            document(964, json!({ "desired": { "mode": "eco" }, "reported": { "temp": 20 } }));
        let rows = merged(&all, &before, &after);
        let row = |path: &str| rows.iter().find(|row| row.path == path).expect("it was written");
        let mode = row("desired.mode");
        assert!(mode.conflict && !mode.lost && mode.winner == Side::Cloud);
        assert_eq!(
            (mode.edge.clone(), mode.cloud.clone()),
            (Some(json!("manual")), Some(json!("eco")))
        );
        assert!(!row("desired.night").lost, "a key that was taken away is gone");
        assert!(row("reported.temp").lost, "71 was accepted and is not there");
    }

    #[test]
    fn documents_differ_by_state_version_or_metadata() {
        let one = document(1, json!({ "desired": { "a": 1 } }));
        assert!(differences(&one, &one).is_empty());
        assert_eq!(differences(&one, &document(2, json!({ "desired": { "a": 1 } }))).len(), 1);
        assert_eq!(differences(&one, &BTreeMap::new()), ["t: the cloud has none"]);
    }
}
