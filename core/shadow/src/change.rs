//! An automerge change in our own words, so that no automerge bytes from outside are ever parsed.
//!
//! automerge's own encoding can claim a gigabyte in a few kilobytes. The changes a shadow consists of are simple (some
//! bytes put at some keys of the root), so they travel field by field and are put together again by the receiver; the
//! bytes, and with them the hash, come out the same.

use std::num::NonZeroU64;

use automerge::legacy::{Key, ObjectId, Op, OpId, OpType};
use automerge::{ActorId, ChangeHash, ExpandedChange, ScalarValue};
use outpost_model::Hlc;

use crate::leaves::{PATH_BYTES_MAX, VALUE_BYTES_MAX, check_path, check_value};
use crate::stamp::Stamp;
use crate::wire::{Reader, WireError, Writer};

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
    deps: Vec<[u8; 32]>,
    puts: Vec<Put>,
    /// First bytes of the hash it must come out with.
    check: [u8; 8],
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
    /// the leaf with this path and stamp is still in force here.
    pub fn from_change(
        change: &automerge::Change,
        shown: impl Fn(&str, Stamp) -> bool,
    ) -> Option<Self> {
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
        let mut check = [0; 8];
        check.copy_from_slice(&change.hash().0[..8]);
        Some(Self {
            actor: actor_bytes(&plain.actor_id)?,
            seq: plain.seq,
            start: plain.start_op.get(),
            time: plain.time,
            deps: plain.deps.iter().map(|hash| hash.0).collect(),
            puts,
            check,
        })
    }

    /// Puts it together again. May panic inside automerge when a hostile peer made it up: call under `catch_unwind`.
    pub fn to_change(&self) -> Option<automerge::Change> {
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
            start_op: NonZeroU64::new(self.start)?,
            time: self.time,
            message: None,
            deps: self.deps.iter().map(|hash| ChangeHash(*hash)).collect(),
            extra_bytes: Vec::new(),
            author: None,
        });
        (change.hash().0[..8] == self.check).then_some(change)
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

    pub fn encode(&self, out: &mut Writer, base: &[u8; 32]) {
        out.fixed(&self.actor);
        out.varint(self.seq);
        out.varint(self.start);
        out.varint(self.time.unsigned_abs());
        out.varint(self.deps.len() as u64);
        for dep in &self.deps {
            out.byte(u8::from(dep == base));
            if dep != base {
                out.fixed(dep);
            }
        }
        out.fixed(&self.check);
        out.varint(self.puts.len() as u64);
        for put in &self.puts {
            out.bytes(put.path.as_bytes());
            out.bytes(&put.bytes);
            out.byte(u8::from(put.dead));
            out.varint(put.replaces.len() as u64);
            for (counter, actor) in &put.replaces {
                out.varint(*counter);
                out.byte(u8::from(*actor == self.actor));
                if *actor != self.actor {
                    out.fixed(actor);
                }
            }
        }
    }

    pub fn decode(from: &mut Reader<'_>, base: &[u8; 32]) -> Result<Self, WireError> {
        let actor = from.array()?;
        let seq = from.number(COUNTER_MAX, "change number")?;
        let start = from.number(COUNTER_MAX, "operation counter")?;
        let time = from.number(i64::MAX as u64, "time")? as i64;
        if seq == 0 || start == 0 {
            return Err(WireError::Range("counter"));
        }
        let count = from.count(FAN_MAX, 32)?;
        let mut deps = Vec::with_capacity(count);
        for _ in 0..count {
            deps.push(if from.flag()? { *base } else { from.array()? });
        }
        let check = from.array()?;
        let count = from.count(PUTS_MAX, size_of::<Put>())?;
        let mut puts = Vec::with_capacity(count);
        for _ in 0..count {
            puts.push(Put::decode(from, &actor)?);
        }
        Ok(Self { actor, seq, start, time, deps, puts, check })
    }
}

impl Put {
    fn decode(from: &mut Reader<'_>, own: &[u8; ACTOR_BYTES]) -> Result<Self, WireError> {
        let path = check_path(from.bytes(PATH_BYTES_MAX)?, 'd')?;
        let bytes = from.bytes(STAMP_BYTES + VALUE_BYTES_MAX)?;
        // Text is kept about three times over: here, in the change that is built from this, and in the leaf.
        from.charge(3 * (path.len() + bytes.len()) + 96)?;
        read_register(bytes)?;
        let dead = from.flag()?;
        let count = from.count(FAN_MAX, 96)?;
        let mut replaces = Vec::with_capacity(count);
        for _ in 0..count {
            let counter = from.number(COUNTER_MAX, "operation counter")?;
            replaces.push((counter, if from.flag()? { *own } else { from.array()? }));
        }
        Ok(Self { path: path.to_owned(), bytes: bytes.to_vec(), replaces, dead })
    }
}

fn actor_bytes(actor: &ActorId) -> Option<[u8; ACTOR_BYTES]> {
    actor.to_bytes().try_into().ok()
}
