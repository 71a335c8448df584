//! One shadow: both sections, the version, who is at home, and when it was last deleted.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::change::WireChange;
use crate::desired::{Desired, Merged, Part, Pen, Unsound};
use crate::home::{Home, Place};
use crate::leaves::{Leaf, Leaves, timestamps};
use crate::overrides::Marks;
use crate::planted::{Bug, is};
use crate::request::Update;
use crate::stamp::Stamp;
use crate::version::{self, Class, Known, Print, VERSION_MAX};
use crate::wire::{Reader, WireError, Writer};

/// A path and what is written there; none deletes.
type Write = (String, Option<String>);

/// The first byte of a row: raise it when the format changes.
const ROW_FORMAT: u8 = 2;

/// Rows of earlier builds: without [`Home::sure`], when each home had the owner's numbers, and without marks.
const ROW_FORMAT_FIRST: u8 = 1;

/// A shadow as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// Intent: written by anybody.
    pub desired: Desired,
    /// The device's word: last-writer-wins registers.
    pub reported: Leaves,
    /// Grows with every accepted update, see [`version`].
    pub version: u64,
    /// The last accepted update.
    pub touched: Stamp,
    /// The last accepted delete. The shadow exists when it was touched later.
    pub deleted: Stamp,
    /// `None` when it was created apart from the node that may appoint one.
    pub home: Option<Home>,
    /// Its place in this node's feed.
    pub seq: u64,
    /// Writes of `desired` that were satisfied.
    pub marks: Marks,
    /// Print of the visible state; kept, as every merge asks for it.
    print: Print,
}

/// What one node tells another about a shadow: everything above a place in its feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The version at the sender.
    pub version: u64,
    /// Print of everything that is visible there.
    pub print: Print,
    /// See [`Shadow::touched`].
    pub touched: Stamp,
    /// See [`Shadow::deleted`].
    pub deleted: Stamp,
    /// See [`Shadow::home`].
    pub home: Option<Home>,
    /// Leaves of `reported`.
    pub reported: Vec<Leaf>,
    /// Changes of `desired`.
    pub desired: Part,
    /// See [`Shadow::marks`].
    pub marks: Marks,
}

impl Default for Shadow {
    fn default() -> Self {
        let mut shadow = Self {
            desired: Desired::default(),
            reported: Leaves::default(),
            version: 0,
            touched: Stamp::default(),
            deleted: Stamp::default(),
            home: None,
            seq: 0,
            marks: Marks::default(),
            print: Print::default(),
        };
        shadow.renew_print();
        shadow
    }
}

impl Shadow {
    /// It was created and not deleted since.
    pub fn exists(&self) -> bool {
        self.touched > self.deleted
    }

    /// The visible state and its number.
    pub fn known(&self) -> Known {
        Known { print: self.print, version: self.version }
    }

    /// Applies an update. The caller checked it and gives the class of numbers it may use.
    pub fn update(&mut self, update: &Update, pen: &Pen, class: Class) {
        let desired = with_emptied(&update.desired, &update.emptied, self.desired.leaves());
        if !desired.is_empty() {
            self.desired.write(&desired, pen);
        }
        let reported = with_emptied(&update.reported, &update.emptied, &self.reported);
        self.report(&reported, pen);
        self.touched = self.touched.max(pen.stamp);
        self.finish_write(pen, class);
    }

    /// Deletes: both sections, and a mark that lets only later writes bring it back.
    pub fn delete(&mut self, pen: &Pen, class: Class) {
        self.desired.write(&[("d".to_owned(), None)], pen);
        self.report(&[("r".to_owned(), None)], pen);
        self.deleted = self.deleted.max(pen.stamp);
        self.reported.bury_until(self.deleted, pen.seq);
        self.finish_write(pen, class);
    }

    /// The term under which the device speaks now.
    pub fn term(&self) -> u64 {
        self.home.map_or(0, |home| home.term)
    }

    fn report(&mut self, writes: &[(String, Option<String>)], pen: &Pen) {
        let term = if is(Bug::TermLeftOut) { 0 } else { self.term() };
        let stamp = pen.stamp.with_term(term);
        for (path, value) in writes {
            self.reported.join(path, stamp, value.as_deref(), pen.seq);
        }
    }

    fn finish_write(&mut self, pen: &Pen, class: Class) {
        self.version = version::next(self.version, class);
        self.seq = pen.seq;
        self.renew_print();
    }

    /// Takes in what a peer knows. The merge may change who is at home, and with it whose numbers this node takes. Only
    /// to be called on a scratch copy.
    pub fn merge(&mut self, item: &Item, me: Place, seq: u64) -> Result<Merged, Unsound> {
        let before = self.known();
        let (touched, deleted, home) = (self.touched, self.deleted, self.home);
        let part = self.desired.merge(&item.desired, seq)?;
        if part == Merged::Incomplete {
            return Ok(part);
        }
        let mut changed = part != Merged::Unchanged;
        for leaf in &item.reported {
            changed |= self.reported.join(&leaf.path, leaf.stamp, leaf.value.as_deref(), seq);
        }
        self.touched = touched.max(item.touched);
        if !is(Bug::DeleteMarkLost) {
            self.deleted = deleted.max(item.deleted);
        }
        changed |= self.reported.bury_until(self.deleted, seq);
        self.home = me.join(home, item.home);
        changed |= self.join_marks(&item.marks);
        self.renew_print();
        let theirs = Known { print: item.print, version: item.version };
        self.version = version::merged(before, self.print, theirs, me.class(self.home));
        changed |= (touched, deleted, home, before)
            != (self.touched, self.deleted, self.home, self.known());
        if changed {
            self.seq = seq;
        }
        let as_theirs = (self.known(), self.touched, self.deleted, self.home)
            == (theirs, item.touched, item.deleted, item.home);
        let as_theirs = as_theirs && self.marks.satisfied().eq(item.marks.satisfied());
        Ok(match (changed, as_theirs && part != Merged::Extended) {
            (false, _) => Merged::Unchanged,
            (true, true) => Merged::Taken,
            (true, false) => Merged::Extended,
        })
    }

    /// What changed here under feed numbers above `since`.
    pub fn item_since(&self, since: u64) -> Item {
        Item {
            version: self.version,
            print: self.print,
            touched: self.touched,
            deleted: self.deleted,
            home: self.home,
            reported: self.reported.iter().filter(|leaf| leaf.seq > since).cloned().collect(),
            desired: self.desired.part_since(since),
            marks: self.marks.clone(),
        }
    }

    /// Equal on two nodes exactly when visible state, version, marks, home, epoch and automerge heads are equal.
    pub fn whole_print(&self) -> [u8; 16] {
        let mut out = Writer::default();
        out.fixed(&self.print);
        out.varint(self.version);
        out.stamp(&self.touched);
        out.stamp(&self.deleted);
        encode_home(&mut out, self.home);
        out.varint(self.desired.epoch().number);
        self.desired.heads().iter().for_each(|head| out.fixed(head));
        for (path, stamp) in self.marks.satisfied() {
            out.bytes(path.as_bytes());
            out.stamp(&stamp);
        }
        print_of(&out.0)
    }

    fn renew_print(&mut self) {
        let mut hash = Sha256::new();
        hash.update([u8::from(self.exists())]);
        for leaf in self.desired.leaves().live().chain(self.reported.live()) {
            let value = leaf.value.as_deref().unwrap_or("");
            hash.update((leaf.path.len() as u64).to_be_bytes());
            hash.update((value.len() as u64).to_be_bytes());
            hash.update(leaf.stamp.hlc.0.to_be_bytes());
            hash.update(leaf.stamp.node.to_be_bytes());
            hash.update(leaf.path.as_bytes());
            hash.update(value.as_bytes());
        }
        self.print.copy_from_slice(&hash.finalize()[..8]);
    }

    /// Bytes of the state as compact JSON, which is what the size limit is about.
    pub fn state_bytes(&self) -> usize {
        [self.desired.leaves().state(), self.reported.state()]
            .into_iter()
            .flatten()
            .map(|v| v.to_string().len())
            .sum()
    }

    /// The state has at most so many bytes; told without making JSON of it.
    pub fn fits_in(&self, bytes_max: usize) -> bool {
        // A separator becomes `"":{},`, and no character and no digit becomes more than six.
        let most =
            |leaf: &Leaf| 32 + 6 * (leaf.path.len() + leaf.value.as_deref().map_or(0, str::len));
        let live = self.desired.leaves().live().chain(self.reported.live());
        64 + live.map(most).sum::<usize>() <= bytes_max || self.state_bytes() <= bytes_max
    }

    /// Roughly what it occupies.
    pub fn memory_bytes(&self) -> usize {
        let leaves = self.desired.leaves().iter().chain(self.reported.iter());
        let text: usize = leaves
            .map(|l| size_of::<Leaf>() + l.path.len() + l.value.as_deref().map_or(0, str::len))
            .sum();
        size_of::<Self>() + self.desired.document_bytes() + text
    }

    /// `{desired?, reported?}`.
    pub fn state(&self) -> Value {
        sections(self.desired.leaves().state(), self.reported.state())
    }

    /// The same with timestamps.
    pub fn metadata(&self) -> Value {
        sections(self.desired.leaves().metadata(), self.reported.metadata())
    }

    /// What `desired` wants and `reported` does not show, and when each of it was wanted.
    pub fn delta(&self) -> Option<(Value, Value)> {
        let desired = self.desired.leaves().state_without(|path| self.marks.mutes(path))?;
        let delta = difference(&desired, self.reported.state().as_ref())?;
        let metadata = masked(&self.desired.leaves().metadata()?, &delta);
        Some((delta, metadata))
    }

    /// `{state, metadata, version}`, as the documents message shows it twice.
    pub fn summary(&self) -> Value {
        json!({ "state": self.state(), "metadata": self.metadata(), "version": self.version })
    }

    /// The answer to a get: the state with its delta.
    pub fn get_accepted(&self, timestamp_s: u64, token: Option<&str>) -> Value {
        let mut state = self.state();
        if let (Value::Object(fields), Some((delta, _))) = (&mut state, self.delta()) {
            fields.insert("delta".to_owned(), delta);
        }
        let body = json!({ "state": state, "metadata": self.metadata(), "version": self.version, "timestamp": timestamp_s });
        with_token(body, token)
    }

    /// The answer to an update: what was asked for, with metadata for it.
    pub fn update_accepted(&self, update: &Update, stamp: &Stamp, timestamp_s: u64) -> Value {
        let metadata = match &update.state {
            Value::Object(_) => timestamps(&update.state, stamp.seconds()),
            _ => Value::Object(Map::new()),
        };
        let body = json!({ "state": update.state, "metadata": metadata, "version": self.version, "timestamp": timestamp_s });
        with_token(body, update.token.as_deref())
    }

    /// The delta message, when there is a difference.
    pub fn delta_message(&self, timestamp_s: u64, token: Option<&str>) -> Option<Value> {
        let (delta, metadata) = self.delta()?;
        let body = json!({ "state": delta, "metadata": metadata, "version": self.version, "timestamp": timestamp_s });
        Some(with_token(body, token))
    }

    /// The documents message; `previous` is absent when there was none.
    pub fn documents_message(
        &self,
        previous: Option<&Self>,
        timestamp_s: u64,
        token: Option<&str>,
    ) -> Value {
        let mut body = json!({ "current": self.summary(), "timestamp": timestamp_s });
        if let (Value::Object(fields), Some(previous)) =
            (&mut body, previous.filter(|p| p.exists()))
        {
            fields.insert("previous".to_owned(), previous.summary());
        }
        with_token(body, token)
    }

    /// A row of the store.
    pub fn to_row(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.byte(ROW_FORMAT);
        out.varint(self.seq);
        encode_facts(&mut out, self.version, &self.touched, &self.deleted, self.home);
        Leaves::encode(&mut out, self.reported.iter(), true);
        self.desired.encode(&mut out);
        self.marks.encode(&mut out);
        out.0
    }

    /// Reads place, version and home from the beginning of a row.
    pub fn read_facts(from: &mut Reader<'_>) -> Result<(u64, u64, Option<Home>), WireError> {
        if from.byte()? != ROW_FORMAT {
            return Err(WireError::Range("row format"));
        }
        let seq = from.varint()?;
        let (version, _, _, home) = decode_facts(from, false)?;
        Ok((seq, version, home))
    }

    /// Reads what [`Shadow::to_row`] wrote.
    pub fn from_row(row: &[u8]) -> Result<Self, WireError> {
        let mut from = Reader::new(row);
        let is_first = match from.byte()? {
            ROW_FORMAT => false,
            ROW_FORMAT_FIRST => true,
            _ => return Err(WireError::Range("row format")),
        };
        let seq = from.varint()?;
        let (version, touched, deleted, home) = decode_facts(&mut from, is_first)?;
        let reported = Leaves::from_sorted(Leaves::decode(&mut from, 'r', true)?)?;
        let desired = Desired::decode(&mut from)?;
        let marks = if is_first { Marks::default() } else { Marks::decode(&mut from)? };
        from.end()?;
        let mut shadow = Self {
            desired,
            reported,
            version,
            touched,
            deleted,
            home,
            seq,
            marks,
            print: Print::default(),
        };
        shadow.renew_print();
        Ok(shadow)
    }

    /// Every stamp in it.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        let leaves = self.desired.leaves().iter().chain(self.reported.iter());
        leaves.map(|leaf| leaf.stamp).chain([self.touched, self.deleted])
    }
}

impl Item {
    /// Roughly its bytes in a frame, before they are packed.
    pub fn weight(&self) -> usize {
        let leaves = self.reported.iter().chain(self.desired.base.iter().flatten());
        let text = |leaf: &Leaf| 24 + leaf.path.len() + leaf.value.as_deref().map_or(0, str::len);
        let changes = self.desired.changes.iter().map(WireChange::weight);
        96 + leaves.map(text).sum::<usize>() + changes.sum::<usize>()
    }

    /// The latest moment that is mentioned in it.
    pub fn latest(&self) -> u64 {
        let stamps = self.reported.iter().map(|leaf| leaf.stamp).chain(self.desired.stamps());
        let stamps = stamps.chain([self.touched, self.deleted]).map(|s| s.hlc.0.max(s.term));
        stamps.chain(self.home.map(|home| home.term)).max().unwrap_or(0)
    }
}

/// The writes, and a deletion of each leaf whose place an empty object takes.
fn with_emptied<'a>(writes: &'a [Write], emptied: &[String], leaves: &Leaves) -> Cow<'a, [Write]> {
    let gone: Vec<Write> = emptied
        .iter()
        .filter(|path| leaves.is_live(path))
        .map(|path| (path.clone(), None))
        .collect();
    if gone.is_empty() { Cow::Borrowed(writes) } else { Cow::Owned([writes, &gone].concat()) }
}

fn encode_facts(
    out: &mut Writer,
    version: u64,
    touched: &Stamp,
    deleted: &Stamp,
    home: Option<Home>,
) {
    out.varint(version);
    out.stamp(touched);
    out.stamp(deleted);
    encode_home(out, home);
}

fn encode_home(out: &mut Writer, home: Option<Home>) {
    out.varint(home.map_or(0, |home| home.term));
    out.u64(home.map_or(0, |home| home.node.0));
    out.byte(u8::from(home.is_some_and(|home| home.sure)));
}

fn decode_facts(
    from: &mut Reader<'_>,
    is_first: bool,
) -> Result<(u64, Stamp, Stamp, Option<Home>), WireError> {
    let version = from.number(VERSION_MAX, "version")?;
    let (touched, deleted) = (from.stamp()?, from.stamp()?);
    let (term, node) = (from.varint()?, from.node()?);
    let home = Home { term, node, sure: is_first || from.flag()? };
    Ok((version, touched, deleted, (home.term > 0).then_some(home)))
}

/// Fields of `desired` that `reported` lacks or shows otherwise; arrays and scalars as a whole.
fn difference(desired: &Value, reported: Option<&Value>) -> Option<Value> {
    match (desired, reported) {
        (Value::Object(wanted), Some(Value::Object(shown))) => {
            let fields =
                wanted.iter().filter_map(|(k, v)| Some((k.clone(), difference(v, shown.get(k))?)));
            let fields: Map<String, Value> = fields.collect();
            (!fields.is_empty()).then_some(Value::Object(fields))
        }
        (wanted, Some(shown)) if same(wanted, shown) => None,
        (wanted, _) => Some(wanted.clone()),
    }
}

/// 1 and 1.0 are the same number.
pub fn same(a: &Value, b: &Value) -> bool {
    let as_floats =
        || (a.is_f64() || b.is_f64()).then(|| Some((a.as_f64()?, b.as_f64()?))).flatten();
    a == b || as_floats().is_some_and(|(x, y)| x.partial_cmp(&y) == Some(std::cmp::Ordering::Equal))
}

/// The part of `metadata` that belongs to the fields of `delta`.
fn masked(metadata: &Value, delta: &Value) -> Value {
    match (metadata, delta) {
        (Value::Object(all), Value::Object(wanted)) => {
            all.iter().filter_map(|(k, v)| Some((k.clone(), masked(v, wanted.get(k)?)))).collect()
        }
        _ => metadata.clone(),
    }
}

fn sections(desired: Option<Value>, reported: Option<Value>) -> Value {
    let named = [("desired", desired), ("reported", reported)];
    Value::Object(
        named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect(),
    )
}

/// Echoes the client token.
pub fn with_token(mut body: Value, token: Option<&str>) -> Value {
    if let (Value::Object(fields), Some(token)) = (&mut body, token) {
        fields.insert("clientToken".to_owned(), token.into());
    }
    body
}

fn print_of(bytes: &[u8]) -> [u8; 16] {
    let mut print = [0; 16];
    print.copy_from_slice(&Sha256::digest(bytes)[..16]);
    print
}
