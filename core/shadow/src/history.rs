//! What happened to shadows on this node, for people who ask why: a bounded list of writes and merges.
//!
//! Nothing is decided by it. Its rows go into the commit of the write they tell of, so it knows what clients were told.

use std::collections::{BTreeMap, VecDeque};

use outpost_model::{Hlc, NodeId, Now};
use serde::{Deserialize, Serialize};

use crate::change::WireChange;
use crate::document::{Item, Shadow};
use crate::hub::Hub;
use crate::key::ShadowKey;
use crate::leaves::{Leaf, Leaves, SEPARATOR};
use crate::stamp::Stamp;
use crate::wire::WireError;

/// Longest text of a value in the history. Longer ones are cut; more makes each entry of large arrays as large.
pub const VALUE_SHOWN_BYTES_MAX: usize = 256;
/// Changes told of in one entry; more are counted. More makes one entry of a large update as large.
pub const CHANGES_SHOWN_MAX: usize = 32;

/// Entries that go at once when there are more than the configuration allows. More: one commit is larger; fewer: they stay for
/// longer.
const TRIMMED_AT_ONCE: usize = 1_024;

/// Something that happened to a shadow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    thing: String,
    name: Option<String>,
    /// Milliseconds since 1970, by this node.
    pub at_ms: u64,
    /// The shadow's version after it.
    pub version: u64,
    /// What it was.
    pub what: What,
    /// The client that asked, where it is known.
    pub client: Option<String>,
    /// The peer it came from: who forwarded a write, or whose news was merged.
    pub from: Option<String>,
    /// Values that changed, or for [`What::Kept`] those that did not.
    pub changes: Vec<Change>,
    /// Changes not told of.
    pub left_out: usize,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// An update was accepted.
    Written,
    /// An update was accepted although the shadow's home could not be reached.
    WrittenApart,
    /// The shadow was deleted.
    Deleted,
    /// A peer's news changed it.
    Merged,
    /// A peer's news was older than what this node had, and neither side knew of the other's.
    Kept,
}

/// A value that changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// `desired` or `reported` and the keys below it.
    pub path: Vec<String>,
    /// JSON text of the value that is shown from now on; none: it is gone.
    pub value: Option<String>,
    /// When it was written, milliseconds since 1970.
    pub written_ms: u64,
    /// The node that accepted it.
    pub node: String,
    /// JSON text of the value it replaced (for [`What::Kept`]: beat), if any.
    pub replaced: Option<String>,
    /// Both were written without knowledge of each other.
    pub conflict: bool,
}

/// A value, and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// `desired` or `reported` and the keys below it.
    pub path: Vec<String>,
    /// JSON text; none: it was deleted.
    pub value: Option<String>,
    /// When it was written, milliseconds since 1970.
    pub written_ms: u64,
    /// The node that accepted it.
    pub node: String,
    /// What is remembered of that here, the newest first.
    pub history: Vec<Entry>,
}

/// The entries of all shadows.
#[derive(Debug, Default)]
pub(crate) struct History {
    entries: BTreeMap<u64, Entry>,
    of: BTreeMap<ShadowKey, VecDeque<u64>>,
    next: u64,
    /// The client whose request is being decided.
    pub asking: Option<String>,
}

/// A place and its row; `None` when it goes.
type Row = (u64, Option<Vec<u8>>);

impl History {
    pub fn load(&mut self, place: &[u8], row: &[u8]) -> Result<(), WireError> {
        let place = place.try_into().map_err(|_| WireError::Range("place in the history"))?;
        let place = u64::from_be_bytes(place);
        let entry: Entry =
            serde_json::from_slice(row).map_err(|_| WireError::Range("entry of the history"))?;
        self.next = self.next.max(place + 1);
        self.of.entry(entry.key()).or_default().push_back(place);
        self.entries.insert(place, entry);
        Ok(())
    }

    /// Adds an entry; the oldest of its shadow, or of all, go. What is to be written.
    fn add(&mut self, entry: Entry, each_max: usize, all_max: usize) -> Vec<Row> {
        let (place, key) = (self.next, entry.key());
        self.next += 1;
        let mut rows = vec![(place, Some(to_row(&entry)))];
        self.entries.insert(place, entry);
        let places = self.of.entry(key).or_default();
        places.push_back(place);
        let too_many = places.len().saturating_sub(each_max);
        let mut gone: Vec<u64> = places.iter().take(too_many).copied().collect();
        let too_many = self.entries.len().saturating_sub(gone.len() + all_max);
        gone.extend(
            self.entries
                .keys()
                .filter(|p| !gone.contains(p))
                .take(too_many)
                .copied()
                .collect::<Vec<_>>(),
        );
        for place in gone {
            self.remove(place);
            rows.push((place, None));
        }
        rows
    }

    fn remove(&mut self, place: u64) {
        let Some(entry) = self.entries.remove(&place) else { return };
        let key = entry.key();
        if let Some(places) = self.of.get_mut(&key) {
            places.retain(|other| *other != place);
            if places.is_empty() {
                self.of.remove(&key);
            }
        }
    }

    /// The newest first.
    fn entries_of<'a>(&'a self, key: &ShadowKey) -> impl Iterator<Item = &'a Entry> {
        let places = self.of.get(key).into_iter().flat_map(|places| places.iter().rev());
        places.filter_map(|place| self.entries.get(place))
    }

    /// Learns late which client it was: the answer of the home came after the news.
    fn name_client(&mut self, key: &ShadowKey, version: u64, client: &str) -> Option<Row> {
        let places = self.of.get(key)?;
        let fits = |entry: &Entry| entry.version == version && entry.client.is_none();
        let place = places.iter().rev().find(|place| self.entries.get(place).is_some_and(fits))?;
        let entry = self.entries.get_mut(place)?;
        entry.client = Some(client.to_owned());
        Some((*place, Some(to_row(entry))))
    }
}

impl Hub {
    /// What happened to a shadow here, the newest first.
    pub fn history(&self, key: &ShadowKey, limit: usize) -> Vec<Entry> {
        self.history.entries_of(key).take(limit).cloned().collect()
    }

    /// The values at and below a path (all for an empty one), and where each comes from.
    pub fn why(&self, key: &ShadowKey, path: &[String], limit: usize) -> Vec<Reason> {
        let Some(shadow) = self.shadows.get(key) else { return Vec::new() };
        let leaves = shadow.desired.leaves().iter().chain(shadow.reported.iter());
        let reasons = leaves.map(|leaf| (spoken(&leaf.path), leaf));
        reasons
            .filter(|(at, _)| at.starts_with(path))
            .take(limit)
            .map(|(at, leaf)| Reason {
                history: self
                    .history
                    .entries_of(key)
                    .filter(|entry| entry.changes.iter().any(|change| change.path == at))
                    .cloned()
                    .collect(),
                value: leaf.value.as_deref().map(cut),
                written_ms: leaf.stamp.hlc.ms(),
                node: node_of(leaf.stamp),
                path: at,
            })
            .collect()
    }

    /// A write of a client of this node, or of the node `from`.
    pub(crate) fn remember_write(
        &mut self,
        key: &ShadowKey,
        shadow: &Shadow,
        from: Option<NodeId>,
        apart: bool,
    ) {
        if self.config.limits.history_max == 0 {
            return;
        }
        let what = match (shadow.exists(), apart) {
            (false, _) => What::Deleted,
            (true, true) => What::WrittenApart,
            (true, false) => What::Written,
        };
        let at = shadow.touched.max(shadow.deleted).hlc;
        let changes = changes(self.shadows.get(key).as_deref(), shadow, |_| false);
        let from = from.filter(|node| *node != self.config.node);
        let client = self.history.asking.clone().filter(|_| from.is_none());
        self.remember(key, shadow.version, what, at, client, from, changes);
    }

    /// News of a peer changed what is visible. Called before the shadow is put in its place.
    pub(crate) fn remember_merge(
        &mut self,
        key: &ShadowKey,
        shadow: &Shadow,
        from: NodeId,
        now: Now,
    ) {
        if self.config.limits.history_max == 0 {
            return;
        }
        let seen = self.peers.get(&from).map_or(0, |peer| peer.seen);
        let changes = changes(self.shadows.get(key).as_deref(), shadow, |old| old.seq > seen);
        let at = Hlc::from_ms(self.time_ms(now));
        self.remember(key, shadow.version, What::Merged, at, None, Some(from), changes);
    }

    /// Values of a peer that were written apart and lose to ones it had not heard of. Called before the merge.
    pub(crate) fn remember_kept(&mut self, key: &ShadowKey, item: &Item, from: NodeId, now: Now) {
        if self.config.limits.history_max == 0 {
            return;
        }
        let seen = self.peers.get(&from).map_or(0, |peer| peer.seen);
        let Some(shadow) = self.shadows.get(key) else { return };
        let beaten = |leaves: &Leaves, path: &str, stamp: Stamp, value: Option<&str>| {
            let mine = leaves.get(path)?;
            let is_news = mine.seq > seen
                && mine.stamp > stamp
                && stamp.node != self.config.node.0
                && mine.value.as_deref() != value;
            is_news.then(|| Change { replaced: value.map(cut), ..change(mine, true) })
        };
        let reported = item.reported.iter().filter_map(|leaf| {
            beaten(&shadow.reported, &leaf.path, leaf.stamp, leaf.value.as_deref())
        });
        let changes = item.desired.changes.iter().filter(|change| !shadow.desired.knows(change));
        let writes = changes.flat_map(WireChange::writes);
        let desired = writes
            .filter_map(|(path, stamp, value)| beaten(shadow.desired.leaves(), path, stamp, value));
        let (version, changes): (_, Vec<Change>) =
            (shadow.version, desired.chain(reported).collect());
        let at = Hlc::from_ms(self.time_ms(now));
        self.remember(key, version, What::Kept, at, None, Some(from), changes);
    }

    /// A home has accepted what a client of this node asked; its news came before its answer.
    pub(crate) fn remember_client(&mut self, key: &ShadowKey, answer: &[u8], client: &str) {
        /// All else is in the news.
        #[derive(Deserialize)]
        struct Answer {
            version: u64,
        }
        let Ok(Answer { version }) = serde_json::from_slice(answer) else { return };
        if let Some(row) = self.history.name_client(key, version, client) {
            self.save_history(vec![row]);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of an entry")]
    fn remember(
        &mut self,
        key: &ShadowKey,
        version: u64,
        what: What,
        at: Hlc,
        client: Option<String>,
        from: Option<NodeId>,
        mut changes: Vec<Change>,
    ) {
        let limits = &self.config.limits;
        let (each_max, all_max) = (limits.history_each_max.max(1), limits.history_max);
        if all_max == 0 || (changes.is_empty() && what != What::Deleted) {
            return;
        }
        let left_out = changes.len().saturating_sub(CHANGES_SHOWN_MAX);
        changes.truncate(CHANGES_SHOWN_MAX);
        let entry = Entry {
            thing: key.thing.clone(),
            name: key.name.clone(),
            at_ms: at.ms(),
            version,
            what,
            client,
            from: from.map(|node| node.to_string()),
            changes,
            left_out,
        };
        let rows = self.history.add(entry, each_max, all_max);
        self.save_history(rows);
    }

    /// A limit that was lowered holds for what is there already, a part at a time.
    pub(crate) fn trim_history(&mut self) {
        let too_many = self.too_much_history().min(TRIMMED_AT_ONCE);
        let gone: Vec<u64> = self.history.entries.keys().take(too_many).copied().collect();
        gone.iter().for_each(|place| self.history.remove(*place));
        self.save_history(gone.into_iter().map(|place| (place, None)).collect());
    }

    /// Entries beyond the limit.
    pub(crate) fn too_much_history(&self) -> usize {
        self.history.entries.len().saturating_sub(self.config.limits.history_max)
    }

    fn save_history(&mut self, rows: Vec<Row>) {
        for (place, row) in rows {
            self.save_row([&[crate::hub::ROW_HISTORY], &place.to_be_bytes()[..]].concat(), row);
        }
    }
}

impl Entry {
    fn key(&self) -> ShadowKey {
        ShadowKey { thing: self.thing.clone(), name: self.name.clone() }
    }
}

/// The values that differ between two states of a shadow.
fn changes(
    before: Option<&Shadow>,
    after: &Shadow,
    is_news: impl Fn(&Leaf) -> bool,
) -> Vec<Change> {
    let nothing = Leaves::default();
    let mut all = Vec::new();
    for (before, after) in [
        (before.map_or(&nothing, |s| s.desired.leaves()), after.desired.leaves()),
        (before.map_or(&nothing, |s| &s.reported), &after.reported),
    ] {
        for leaf in after.iter() {
            let old = before.get(&leaf.path);
            if old.and_then(|old| old.value.as_deref()) != leaf.value.as_deref() {
                let conflict = old.is_some_and(|old| old.stamp != leaf.stamp && is_news(old));
                let replaced = old.and_then(|old| old.value.as_deref()).map(cut);
                all.push(Change { replaced, ..change(leaf, conflict) });
            }
        }
        // What a write above has wiped out has no leaf of its own any more.
        let wiped = before.live().filter(|old| after.get(&old.path).is_none());
        all.extend(wiped.filter_map(|old| {
            let by = after.above(&old.path)?;
            let replaced = old.value.as_deref().map(cut);
            let path = spoken(&old.path);
            Some(Change { path, value: None, replaced, ..change(by, is_news(old)) })
        }));
    }
    all
}

fn change(leaf: &Leaf, conflict: bool) -> Change {
    Change {
        path: spoken(&leaf.path),
        value: leaf.value.as_deref().map(cut),
        written_ms: leaf.stamp.hlc.ms(),
        node: node_of(leaf.stamp),
        replaced: None,
        conflict,
    }
}

fn spoken(path: &str) -> Vec<String> {
    let mut keys: Vec<String> = path.split(SEPARATOR).map(str::to_owned).collect();
    let section = if path.starts_with('d') { "desired" } else { "reported" };
    section.clone_into(&mut keys[0]);
    keys
}

fn node_of(stamp: Stamp) -> String {
    NodeId(stamp.node).to_string()
}

fn cut(text: &str) -> String {
    if text.len() <= VALUE_SHOWN_BYTES_MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(VALUE_SHOWN_BYTES_MAX)])
}

fn to_row(entry: &Entry) -> Vec<u8> {
    serde_json::to_vec(entry).expect("texts and numbers are JSON")
}
