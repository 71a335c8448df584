//! An automerge change in our own words, so that no automerge bytes from outside are ever parsed.
//!
//! automerge's own encoding can claim a gigabyte in a few kilobytes. The changes a shadow consists of are simple (some
//! bytes put at some keys of the root), so they travel field by field and are put together again by the receiver; the
//! bytes, and with them the hash, come out the same.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use automerge::legacy::{Key, ObjectId, Op, OpId, OpType};
use automerge::{ActorId, ChangeHash, ExpandedChange, ScalarValue};
use outpost_model::Hlc;

use crate::leaves::{VALUE_BYTES_MAX, check_value};
use crate::pack::{Packer, Unpacker};
use crate::planted::{Bug, is};
use crate::stamp::Stamp;
use crate::wire::{Reader, WireError};

/// Bytes of an actor id: node and incarnation, or part of a hash.
pub const ACTOR_BYTES: usize = 16;
/// Writes in one change; a request of 30 KB cannot hold more.
const PUTS_MAX: usize = 16 << 10;
/// Changes a change may depend on, or writes it may replace: the most nodes that write at once, and room.
const FAN_MAX: usize = 1 << 12;
/// Operation counters in one epoch. An epoch ends after far fewer.
const COUNTER_MAX: u64 = 1 << 24;
/// A stamp in front of the value.
const STAMP_BYTES: usize = 16;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireChange {
    actor: [u8; ACTOR_BYTES],
    seq: u64,
    start: u64,
    time: i64,
    /// What it comes after.
    deps: Vec<Dep>,
    puts: Vec<Put>,
    /// First bytes of the hash it must come out with.
    check: [u8; 8],
}

/// A change that another one comes after: what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dep {
    /// First bytes of its hash.
    check: Option<[u8; 8]>,
    /// Who made it, and as which of all he made: in one document that names it as well, and is shorter.
    made: Option<([u8; ACTOR_BYTES], u64)>,
}

/// The changes a document has, by all that names them.
#[derive(Debug, Default)]
pub struct Known {
    checks: BTreeMap<[u8; 8], ChangeHash>,
    made: BTreeMap<([u8; ACTOR_BYTES], u64), ChangeHash>,
}

impl Known {
    /// One more.
    pub fn add(&mut self, change: &automerge::Change) {
        let hash = change.hash();
        self.checks.insert(check_of(&hash), hash);
        if let Some(actor) = actor_bytes(change.actor_id()) {
            self.made.insert((actor, change.seq()), hash);
        }
    }

    fn find(&self, dep: &Dep) -> Option<ChangeHash> {
        let by_check = dep.check.and_then(|check| self.checks.get(&check));
        by_check.or_else(|| self.made.get(&dep.made?)).copied()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Put {
    path: String,
    bytes: Vec<u8>,
    replaces: Vec<(u64, [u8; ACTOR_BYTES])>,
    /// The sender knows a later write that wiped this out, and may have forgotten that one's tombstone since.
    dead: bool,
}

/// The value of a register: 8 bytes time, 8 bytes node, JSON text (none for a tombstone).
pub fn register(stamp: &Stamp, value: Option<&str>) -> Vec<u8> {
    let mut out = Vec::with_capacity(STAMP_BYTES + value.map_or(0, str::len));
    out.extend_from_slice(&stamp.hlc.0.to_be_bytes());
    out.extend_from_slice(&stamp.node.to_be_bytes());
    out.extend_from_slice(value.unwrap_or("").as_bytes());
    out
}

/// Reads what [`register`] wrote.
pub fn read_register(bytes: &[u8]) -> Result<(Stamp, Option<&str>), WireError> {
    let mut from = Reader::new(bytes);
    let stamp = Stamp { term: 0, hlc: Hlc(from.u64()?), node: from.u64()? };
    let text = &bytes[STAMP_BYTES..];
    Ok((stamp, if text.is_empty() { None } else { Some(check_value(text)?) }))
}

impl WireChange {
    /// Takes one of our own changes apart; `None` if it holds anything that our changes never hold. `shown` says whether
    /// the leaf with this path and stamp is still in force here; `others` are those it may come after, as far as they are not the base.
    pub fn from_change(
        change: &automerge::Change,
        shown: impl Fn(&str, Stamp) -> bool,
        others: &[automerge::Change],
    ) -> Option<Self> {
        let made = |hash: &ChangeHash| {
            let dep = others.iter().find(|other| other.hash() == *hash)?;
            Some((actor_bytes(dep.actor_id())?, dep.seq()))
        };
        let plain = change.decode();
        let mut puts = Vec::with_capacity(plain.operations.len());
        for op in &plain.operations {
            let (OpType::Put(ScalarValue::Bytes(bytes)), Key::Map(path)) = (&op.action, &op.key)
            else {
                return None;
            };
            let replaces = op.pred.iter().map(|id| Some((id.counter(), actor_bytes(id.actor())?)));
            let replaces = replaces.collect::<Option<_>>()?;
            let dead = !shown(path, read_register(bytes).ok()?.0);
            puts.push(Put { path: path.to_string(), bytes: bytes.clone(), replaces, dead });
        }
        Some(Self {
            actor: actor_bytes(&plain.actor_id)?,
            seq: plain.seq,
            start: plain.start_op.get(),
            time: plain.time,
            deps: plain
                .deps
                .iter()
                .map(|hash| Dep { check: Some(check_of(hash)), made: made(hash) })
                .collect(),
            puts,
            check: check_of(&change.hash()),
        })
    }

    /// Puts it together again, to come after what is known. May panic inside automerge when a hostile peer made it up:
    /// call under `catch_unwind`.
    ///
    /// # Errors
    /// [`NotBuilt`]: it comes after a change that is not here, or is not what it says it is.
    pub fn to_change(&self, known: &Known) -> Result<automerge::Change, NotBuilt> {
        let deps = self.deps.iter().map(|dep| known.find(dep)).collect::<Option<_>>();
        let deps = deps.ok_or(NotBuilt::Early)?;
        let operations = self.puts.iter().map(|put| Op {
            action: OpType::Put(ScalarValue::Bytes(put.bytes.clone())),
            obj: ObjectId::Root,
            key: Key::Map(put.path.as_str().into()),
            pred: put
                .replaces
                .iter()
                .map(|(counter, actor)| OpId::new(*counter, &ActorId::from(&actor[..])))
                .collect(),
            insert: false,
        });
        let change = automerge::Change::from(ExpandedChange {
            operations: operations.collect(),
            actor_id: ActorId::from(&self.actor[..]),
            hash: None,
            seq: self.seq,
            start_op: NonZeroU64::new(self.start).ok_or(NotBuilt::Unsound)?,
            time: self.time,
            message: None,
            deps,
            extra_bytes: Vec::new(),
            author: None,
        });
        let is_it = check_of(&change.hash()) == self.check || is(Bug::ChecksumsIgnored);
        if is_it { Ok(change) } else { Err(NotBuilt::Unsound) }
    }

    /// The first bytes of its hash.
    pub fn check(&self) -> [u8; 8] {
        self.check
    }

    /// What it writes; what was wiped out since counts as deleted.
    pub fn writes(&self) -> impl Iterator<Item = (&str, Stamp, Option<&str>)> {
        self.puts.iter().map(|put| {
            let (stamp, value) =
                read_register(&put.bytes).expect("checked when it was read, or our own");
            (put.path.as_str(), stamp, value.filter(|_| !put.dead))
        })
    }

    /// Roughly its bytes in a frame.
    pub fn weight(&self) -> usize {
        let put = |put: &Put| 16 + put.path.len() + put.bytes.len() + 24 * put.replaces.len();
        48 + 9 * self.deps.len() + self.puts.iter().map(put).sum::<usize>()
    }

    /// Writes it for a peer. `base` is that of its epoch.
    pub fn pack(&self, to: &mut Packer, base: &[u8; 32]) {
        let first = self.writes().next().map(|(_, stamp, _)| stamp);
        let first = first.unwrap_or_default();
        to.actor(&self.actor);
        to.out.varint(self.seq);
        to.out.varint(self.start);
        let usual = self.time == first.seconds() as i64;
        to.out.varint(if usual { 0 } else { self.time.unsigned_abs() + 1 });
        to.out.varint(self.deps.len() as u64);
        for dep in &self.deps {
            dep.pack(to, base);
        }
        to.hash(&self.check);
        to.out.varint(self.puts.len() as u64);
        if !self.puts.is_empty() {
            to.stamp(&first, 0);
        }
        for put in &self.puts {
            put.pack(to, &first, &self.actor);
        }
    }

    /// Reads what [`WireChange::pack`] wrote.
    pub fn unpack(from: &mut Unpacker<'_>, base: &[u8; 32]) -> Result<Self, WireError> {
        let actor = from.actor()?;
        let seq = from.from.number(COUNTER_MAX, "change number")?;
        let start = from.from.number(COUNTER_MAX, "operation counter")?;
        let time = from.from.number(i64::MAX as u64, "time")?;
        if seq == 0 || start == 0 {
            return Err(WireError::Range("counter"));
        }
        let count = from.from.count(FAN_MAX, size_of::<Dep>() + 32)?;
        let mut deps = Vec::with_capacity(count);
        for _ in 0..count {
            deps.push(Dep::unpack(from, base)?);
        }
        let check = from.hash()?;
        let count = from.from.count(PUTS_MAX, size_of::<Put>())?;
        let first = if count > 0 { from.stamp(0)? } else { Stamp::default() };
        let time = if time == 0 { first.seconds() as i64 } else { (time - 1) as i64 };
        let mut puts = Vec::with_capacity(count);
        for _ in 0..count {
            puts.push(Put::unpack(from, &first, &actor)?);
        }
        Ok(Self { actor, seq, start, time, deps, puts, check })
    }
}

impl Dep {
    fn pack(&self, to: &mut Packer, base: &[u8; 32]) {
        let check = self.check.expect("of a change that is here the hash is known");
        match self.made.filter(|_| to.names_what_was_made()) {
            _ if check[..] == base[..8] => to.out.byte(1),
            Some((actor, seq)) => {
                to.out.byte(2);
                to.actor(&actor);
                to.out.varint(seq);
            }
            None => {
                to.out.byte(0);
                to.hash(&check);
            }
        }
    }

    fn unpack(from: &mut Unpacker<'_>, base: &[u8; 32]) -> Result<Self, WireError> {
        Ok(match from.from.byte()? {
            0 => Self { check: Some(from.hash()?), made: None },
            1 => Self { check: Some(first_bytes(base)), made: None },
            2 => {
                let made = (from.actor()?, from.from.number(COUNTER_MAX, "change number")?);
                Self { check: None, made: Some(made) }
            }
            _ => return Err(WireError::Range("dependency")),
        })
    }
}

/// Wiped out since, see [`Put::dead`].
const DEAD: u8 = 1;
/// With a stamp other than the first one of its change.
const OWN_STAMP: u8 = 1 << 1;
/// It replaces one write, by the same actor.
const REPLACES_OWN: u8 = 1 << 2;
/// It replaces nothing.
const REPLACES_NONE: u8 = 1 << 3;

impl Put {
    fn pack(&self, to: &mut Packer, first: &Stamp, own: &[u8; ACTOR_BYTES]) {
        let (stamp, value) =
            read_register(&self.bytes).expect("checked when it was read, or our own");
        let replaces_own = self.replaces.len() == 1 && self.replaces[0].1 == *own;
        let flags = [
            (DEAD, self.dead),
            (OWN_STAMP, stamp != *first),
            (REPLACES_OWN, replaces_own),
            (REPLACES_NONE, self.replaces.is_empty()),
        ];
        to.out.byte(flags.into_iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum());
        to.path(&self.path);
        if stamp != *first {
            to.stamp(&stamp, 0);
        }
        to.out.optional(value.map(str::as_bytes));
        if !replaces_own && !self.replaces.is_empty() {
            to.out.varint(self.replaces.len() as u64);
        }
        for (counter, actor) in &self.replaces {
            to.out.varint(*counter);
            if !replaces_own {
                to.actor(actor);
            }
        }
    }

    fn unpack(
        from: &mut Unpacker<'_>,
        first: &Stamp,
        own: &[u8; ACTOR_BYTES],
    ) -> Result<Self, WireError> {
        let flags = from.from.byte()?;
        let has = |bit: u8| flags & bit != 0;
        let path = from.path('d')?;
        let stamp = if has(OWN_STAMP) { from.stamp(0)? } else { *first };
        let value = from.from.optional(VALUE_BYTES_MAX)?.map(check_value).transpose()?;
        // Text is kept about three times over: here, in the change that is built from this, and in the leaf.
        let text = path.len() + STAMP_BYTES + value.map_or(0, str::len);
        from.from.charge(3 * text + 96)?;
        let count = match (has(REPLACES_OWN), has(REPLACES_NONE)) {
            (false, false) => from.from.count(FAN_MAX, 96)?,
            (own, _) => usize::from(own),
        };
        let mut replaces = Vec::with_capacity(count);
        for _ in 0..count {
            let counter = from.from.number(COUNTER_MAX, "operation counter")?;
            replaces.push((counter, if has(REPLACES_OWN) { *own } else { from.actor()? }));
        }
        let bytes = register(&stamp, value);
        Ok(Self { path: path.to_owned(), bytes, replaces, dead: has(DEAD) })
    }
}

/// Why a change could not be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotBuilt {
    /// What it comes after is not here.
    Early,
    /// It has another hash than it says.
    Unsound,
}

/// The first bytes of a change's hash.
pub fn check_of(hash: &ChangeHash) -> [u8; 8] {
    first_bytes(&hash.0)
}

fn first_bytes(hash: &[u8; 32]) -> [u8; 8] {
    hash[..8].try_into().expect("a hash has 32 bytes")
}

fn actor_bytes(actor: &ActorId) -> Option<[u8; ACTOR_BYTES]> {
    actor.to_bytes().try_into().ok()
}
