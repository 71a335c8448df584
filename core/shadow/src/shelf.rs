//! Where the hub keeps its shadows: an index of all in memory, and the shadows that were used lately.
//!
//! ```text
//!  get, fetch ─▶ index ─▶ in memory? ─▶ that one
//!                            └─ no ───▶ Rows: its row from the store ─▶ taken apart; fetch keeps it for a while
//! ```
//! The index knows what is asked of many at once: which exist, their prints, versions, homes and places in the feed, which
//! have tombstones. All of that stands in front of each row, so that a start takes no shadow apart.
//!
//! A shadow leaves memory only when the commit with its row is durable ([`Shelf::synced`]): what is read again is never
//! older than what was forgotten. Without [`Rows`] all shadows stay.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use outpost_model::Hlc;

use crate::document::Shadow;
use crate::home::Home;
use crate::key::ShadowKey;
use crate::planted::{Bug, is};
use crate::wire::{Reader, WireError, Writer};

/// The first byte of a row with facts in front. Rows of older nodes begin with the shadow's own format.
const ROW_WITH_FACTS: u8 = 0xf1;
/// What an index entry and its place in the feed roughly occupy, names not counted.
const ENTRY_BYTES: usize = 300;
/// A part of the shadows in memory, one in so many, is let go of at once.
const LET_GO: usize = 8;

const EXISTS: u8 = 1;
const TOMBSTONES: u8 = 1 << 1;
const MARKS: u8 = 1 << 2;

/// Reads rows that the hub has written. Whoever drives a hub provides it.
pub trait Rows: Send {
    /// The row under this key of the shadow space: as the last durable commit left it, or a later one.
    ///
    /// # Panics
    /// When the store cannot be read: whoever goes on without the row would write over it.
    fn read(&self, key: &[u8]) -> Option<Vec<u8>>;
}

/// What is known of a shadow without its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// See [`Shadow::seq`].
    pub seq: u64,
    /// See [`Shadow::version`].
    pub version: u64,
    /// See [`Shadow::home`].
    pub home: Option<Home>,
    /// See [`Shadow::whole_print`].
    pub print: [u8; 16],
    /// See [`Shadow::exists`].
    pub exists: bool,
    /// Some leaf is a tombstone.
    pub tombstones: bool,
}

/// What a row says at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub facts: Facts,
    /// The latest moment in it.
    pub latest: Hlc,
    /// It has marks, see [`Shadow::marks`].
    pub marks: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Shelf {
    index: BTreeMap<ShadowKey, Facts>,
    hot: BTreeMap<ShadowKey, Hot>,
    rows: Option<Box<dyn Rows>>,
    hot_max: usize,
    /// With more than so many in memory it is looked whether some can go.
    trim_at: usize,
    /// Counts uses.
    turn: u64,
    /// Commits up to this one are durable.
    synced: u64,
    existing: usize,
    name_bytes: usize,
    reads: Cell<u64>,
    damaged: RefCell<BTreeSet<ShadowKey>>,
}

/// A shadow in memory.
struct Hot {
    shadow: Arc<Shadow>,
    /// When it was used last.
    turn: u64,
    /// The commit its row is in; 0 when it was read.
    commit: u64,
}

impl fmt::Debug for Shelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.index).finish()
    }
}

impl Loaded {
    fn of(shadow: &Shadow) -> Self {
        let latest = shadow.stamps().map(|stamp| stamp.hlc).max().unwrap_or_default();
        let facts = Facts {
            seq: shadow.seq,
            version: shadow.version,
            home: shadow.home,
            print: shadow.whole_print(),
            exists: shadow.exists(),
            tombstones: shadow.desired.leaves().tombstones() + shadow.reported.tombstones() > 0,
        };
        let latest = latest.max(Hlc(shadow.home.map_or(0, |home| home.term)));
        Self { facts, latest, marks: !shadow.marks.is_empty() }
    }

    /// What is not at the beginning of the shadow's own row.
    fn encode(&self, out: &mut Writer) {
        let flags =
            [(EXISTS, self.facts.exists), (TOMBSTONES, self.facts.tombstones), (MARKS, self.marks)];
        out.byte(ROW_WITH_FACTS);
        out.byte(flags.into_iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum());
        out.fixed(&self.facts.print);
        out.u64(self.latest.0);
    }

    /// Reads the beginning of a row. `None`: it has no facts in front.
    fn decode(row: &[u8]) -> Result<Option<Self>, WireError> {
        let Some((flags, mut from)) = split(row)? else { return Ok(None) };
        let (print, latest) = (from.array()?, Hlc(from.u64()?));
        let (seq, version, home) = Shadow::read_facts(&mut from)?;
        let (exists, tombstones) = (flags & EXISTS != 0, flags & TOMBSTONES != 0);
        let facts = Facts { seq, version, home, print, exists, tombstones };
        Ok(Some(Self { facts, latest, marks: flags & MARKS != 0 }))
    }
}

impl Shelf {
    /// From now on shadows are read again when they are used, and only so many of those used lately are kept.
    pub fn read_from(&mut self, rows: Box<dyn Rows>, hot_max: usize) {
        (self.rows, self.hot_max, self.trim_at) = (Some(rows), hot_max, hot_max);
    }

    /// How many shadows there are, deleted ones included.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// How many exist.
    pub fn existing(&self) -> usize {
        self.existing
    }

    /// How many are in memory.
    pub fn hot(&self) -> usize {
        self.hot.len()
    }

    /// Rows read since the start.
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    /// What is known of one without reading it.
    pub fn facts(&self, key: &ShadowKey) -> Option<&Facts> {
        self.index.get(key)
    }

    /// All of them, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&ShadowKey, &Facts)> {
        self.index.iter()
    }

    /// Those between two keys.
    pub fn range(
        &self,
        bounds: (Bound<&ShadowKey>, Bound<&ShadowKey>),
    ) -> impl Iterator<Item = (&ShadowKey, &Facts)> {
        self.index.range::<ShadowKey, _>(bounds)
    }

    /// One of them. Reading it does not count as use: what looks at many does not push out those in use.
    pub fn get(&self, key: &ShadowKey) -> Option<Arc<Shadow>> {
        if let Some(hot) = self.hot.get(key) {
            return Some(Arc::clone(&hot.shadow));
        }
        self.index.get(key)?;
        self.reads.set(self.reads.get() + 1);
        let row = self.rows.as_ref()?.read(&row_key(key));
        let shadow = row.and_then(|row| read_row(&row).ok());
        if shadow.is_none() {
            self.damaged.borrow_mut().insert(key.clone());
        }
        shadow.map(Arc::new)
    }

    /// Those whose rows turned out to be damaged, since the last call. They are as good as lost: the next write begins anew.
    pub fn take_damaged(&mut self) -> BTreeSet<ShadowKey> {
        self.damaged.take()
    }

    /// A copy to write to.
    pub fn copy(&self, key: &ShadowKey) -> Option<Shadow> {
        self.get(key).map(|shadow| Shadow::clone(&shadow))
    }

    /// One that is being used: it stays in memory for a while.
    pub fn fetch(&mut self, key: &ShadowKey) -> Option<Arc<Shadow>> {
        self.turn += 1;
        if let Some(hot) = self.hot.get_mut(key) {
            hot.turn = self.turn;
            return Some(Arc::clone(&hot.shadow));
        }
        let shadow = self.get(key)?;
        self.trim();
        let hot = Hot { shadow: Arc::clone(&shadow), turn: self.turn, commit: 0 };
        self.hot.insert(key.clone(), hot);
        Some(shadow)
    }

    /// Puts one in, whose row will be in this commit. Its row.
    pub fn insert(&mut self, key: ShadowKey, shadow: Shadow, commit: u64) -> Vec<u8> {
        let loaded = Loaded::of(&shadow);
        let mut row = Writer::default();
        loaded.encode(&mut row);
        row.fixed(&shadow.to_row());
        self.note(key.clone(), loaded.facts);
        self.turn += 1;
        self.hot.insert(key, Hot { shadow: Arc::new(shadow), turn: self.turn, commit });
        row.0
    }

    /// Takes one away.
    pub fn remove(&mut self, key: &ShadowKey) -> Option<Facts> {
        self.hot.remove(key);
        let facts = self.index.remove(key)?;
        self.existing -= usize::from(facts.exists);
        self.name_bytes -= bytes_of(key);
        Some(facts)
    }

    /// Takes a row in at the start.
    pub fn load(&mut self, key: ShadowKey, row: &[u8]) -> Result<Loaded, WireError> {
        let known = Loaded::decode(row)?.filter(|_| self.rows.is_some());
        let loaded = if let Some(loaded) = known {
            loaded
        } else {
            let shadow = read_row(row)?;
            let loaded = Loaded::of(&shadow);
            if self.rows.is_none() {
                let hot = Hot { shadow: Arc::new(shadow), turn: 0, commit: 0 };
                self.hot.insert(key.clone(), hot);
            }
            loaded
        };
        self.note(key, loaded.facts);
        Ok(loaded)
    }

    /// Commits up to this one are durable: their shadows need not stay in memory.
    pub fn synced(&mut self, commit: u64) {
        self.synced = self.synced.max(commit);
        self.trim_at = self.hot_max;
        self.trim();
    }

    /// Lets go of all that is durable.
    pub fn rest(&mut self) {
        let hot_max = std::mem::take(&mut self.hot_max);
        self.trim_at = 0;
        self.trim();
        (self.hot_max, self.trim_at) = (hot_max, hot_max);
    }

    /// Lets go of durable shadows that were not used for the longest time, when there are too many.
    fn trim(&mut self) {
        if self.rows.is_none() || self.hot.len() <= self.trim_at {
            return;
        }
        let is_durable = |hot: &Hot| hot.commit <= self.synced || is(Bug::ForgetsUnsynced);
        let idle = self.hot.iter().filter(|(_, hot)| is_durable(hot));
        let mut idle: Vec<(u64, &ShadowKey)> = idle.map(|(key, hot)| (hot.turn, key)).collect();
        idle.sort_unstable();
        let too_many = self.hot.len() - (self.hot_max - self.hot_max / LET_GO);
        let gone: Vec<ShadowKey> =
            idle.into_iter().take(too_many).map(|(_, key)| key.clone()).collect();
        gone.iter().for_each(|key| _ = self.hot.remove(key));
        // When most of them wait for the disk, it is not looked again at each use.
        self.trim_at = self.hot_max.max(self.hot.len() + self.hot_max / LET_GO);
    }

    /// Roughly what all of it occupies.
    pub fn memory_bytes(&self) -> usize {
        let hot: usize = self.hot.values().map(|hot| hot.shadow.memory_bytes()).sum();
        self.index.len() * ENTRY_BYTES + 2 * self.name_bytes + hot
    }

    fn note(&mut self, key: ShadowKey, facts: Facts) {
        let name_bytes = bytes_of(&key);
        let old = self.index.insert(key, facts);
        self.name_bytes += if old.is_none() { name_bytes } else { 0 };
        self.existing += usize::from(facts.exists);
        self.existing -= usize::from(old.is_some_and(|old| old.exists));
    }
}

/// Takes a row apart.
pub(crate) fn read_row(row: &[u8]) -> Result<Shadow, WireError> {
    match split(row)? {
        Some((_, mut from)) => {
            let _: [u8; 16] = from.array()?;
            from.u64()?;
            Shadow::from_row(from.rest())
        }
        None => Shadow::from_row(row),
    }
}

/// The flags, and what follows them; `None`: there are no facts in front.
fn split(row: &[u8]) -> Result<Option<(u8, Reader<'_>)>, WireError> {
    let mut from = Reader::new(row);
    if from.byte()? != ROW_WITH_FACTS {
        return Ok(None);
    }
    let flags = from.byte()?;
    let is_known = flags & !(EXISTS | TOMBSTONES | MARKS) == 0;
    if is_known { Ok(Some((flags, from))) } else { Err(WireError::Range("row flags")) }
}

const ROW_SHADOW: u8 = b's';

/// Thing, 0, name: neither contains a 0.
pub(crate) fn row_key(key: &ShadowKey) -> Vec<u8> {
    let name = key.name.as_deref().unwrap_or("");
    [&[ROW_SHADOW], key.thing.as_bytes(), b"\0", name.as_bytes()].concat()
}

/// The shadow a row is of; `None`: it is a row of something else.
pub(crate) fn read_row_key(key: &[u8]) -> Result<Option<ShadowKey>, WireError> {
    let Some(rest) = key.strip_prefix(&[ROW_SHADOW]) else { return Ok(None) };
    let text = std::str::from_utf8(rest).map_err(|_| WireError::Range("row key"))?;
    let (thing, name) = text.split_once('\0').ok_or(WireError::Range("row key"))?;
    let key =
        ShadowKey { thing: thing.to_owned(), name: (!name.is_empty()).then(|| name.to_owned()) };
    if key.is_valid() { Ok(Some(key)) } else { Err(WireError::Range("row key")) }
}

fn bytes_of(key: &ShadowKey) -> usize {
    key.thing.len() + key.name.as_ref().map_or(0, String::len)
}
