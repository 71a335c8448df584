//! Shadows on the wire, without repeating themselves: what several items of a frame share is written once.
//!
//! Nodes, actors and paths are numbered where they first occur; moments are differences from the latest one in the frame;
//! a thing's name leaves out what it shares with the one before. What remains is deflated when that makes it shorter;
//! hashes stand before it, as they cannot be made shorter and what is around them then can. Peers of earlier builds are
//! sent them where they occur.
//! The bytes a frame may become are bounded before it is inflated, and the [`Reader`] charges what it makes of them.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use outpost_model::{Hlc, NodeId};

use crate::change::{ACTOR_BYTES, WireChange};
use crate::desired::{Epoch, MERGED_CHANGES_MAX, Part};
use crate::document::Item;
use crate::home::Home;
use crate::key::ShadowKey;
use crate::leaves::{LEAVES_MAX, Leaf, PATH_BYTES_MAX, VALUE_BYTES_MAX, check_path, check_value};
use crate::overrides::{MARK_MEMORY, Marks};
use crate::planted::{Bug, is};
use crate::stamp::Stamp;
use crate::sync::FRAME_BYTES_MAX;
use crate::version::VERSION_MAX;
use crate::wire::{Reader, WireError, Writer};

/// Shorter than this and deflating is not tried.
const DEFLATE_FROM: usize = 200;
/// Milliseconds are 48 bits of a hybrid time.
const MS_END: u64 = 1 << 48;

const NAMED: u8 = 1;
const DELETED: u8 = 1 << 1;
const HOME: u8 = 1 << 2;
const DESIRED: u8 = 1 << 3;
const TOUCHED: u8 = 1 << 4;
const REPORTED: u8 = 1 << 5;
const SURE: u8 = 1 << 6;
const MARKS: u8 = 1 << 7;

/// Writes what refers to what was written before.
#[derive(Debug, Default)]
pub struct Packer {
    /// Where it is written.
    pub out: Writer,
    /// Where hashes are written; none for a peer that reads them where they occur.
    hashes: Option<Writer>,
    latest_ms: u64,
    /// Of the home before.
    home_ms: u64,
    nodes: BTreeMap<u64, u64>,
    actors: BTreeMap<[u8; ACTOR_BYTES], u64>,
    paths: BTreeMap<Box<str>, u64>,
    bases: BTreeMap<[u8; 32], u64>,
    thing: String,
}

/// Reads what a [`Packer`] wrote.
#[derive(Debug)]
pub struct Unpacker<'a> {
    /// Where it is read.
    pub from: Reader<'a>,
    /// Where hashes are read, see [`Packer`].
    hashes: Option<Reader<'a>>,
    latest_ms: u64,
    /// Of the home before.
    home_ms: u64,
    nodes: Vec<u64>,
    actors: Vec<[u8; ACTOR_BYTES]>,
    paths: Vec<&'a str>,
    bases: Vec<[u8; 32]>,
    thing: String,
}

/// Items as bytes; with the hashes apart, for a peer that reads them so.
pub fn pack_items(out: &mut Writer, items: &[(ShadowKey, Item)], apart: bool) {
    let latest_ms = items.iter().map(|(_, item)| Hlc(item.latest()).ms()).max().unwrap_or(0);
    let hashes = apart.then(Writer::default);
    let mut packer = Packer { latest_ms, hashes, home_ms: latest_ms, ..Packer::default() };
    packer.out.varint(latest_ms);
    packer.out.varint(items.len() as u64);
    for (key, item) in items {
        packer.item(key, item);
    }
    if let Some(hashes) = packer.hashes {
        out.bytes(&hashes.0);
    }
    let plain = packer.out.0;
    if let Some(short) = deflated(&plain).filter(|short| short.len() < plain.len()) {
        out.varint(plain.len() as u64 + 1);
        out.fixed(&short);
    } else {
        out.varint(0);
        out.fixed(&plain);
    }
}

/// Reads what [`pack_items`] wrote, to the end of the frame.
pub fn unpack_items(
    from: &mut Reader<'_>,
    apart: bool,
) -> Result<Vec<(ShadowKey, Item)>, WireError> {
    let hashes = if apart { Some(from.bytes(FRAME_BYTES_MAX)?) } else { None };
    let length = from.number(FRAME_BYTES_MAX as u64 + 1, "inflated length")? as usize;
    let rest = from.rest();
    let Some(length) = length.checked_sub(1) else {
        return items_of(Reader::with_memory(rest, from.memory()), hashes);
    };
    from.charge(length)?;
    let mut plain = Vec::with_capacity(length);
    // One byte more than was said: then it was a lie.
    let bounded = DeflateDecoder::new(rest).take(length as u64 + 1).read_to_end(&mut plain);
    if bounded.is_err() || plain.len() != length {
        return Err(WireError::Range("inflated length"));
    }
    items_of(Reader::with_memory(&plain, from.memory()), hashes)
}

fn items_of(from: Reader<'_>, hashes: Option<&[u8]>) -> Result<Vec<(ShadowKey, Item)>, WireError> {
    let mut from = Unpacker {
        from,
        hashes: hashes.map(Reader::new),
        latest_ms: 0,
        home_ms: 0,
        nodes: Vec::new(),
        actors: Vec::new(),
        paths: Vec::new(),
        bases: Vec::new(),
        thing: String::new(),
    };
    from.latest_ms = from.from.number(MS_END - 1, "moment")?;
    from.home_ms = from.latest_ms;
    let count = from.from.count(FRAME_BYTES_MAX, size_of::<(ShadowKey, Item)>())?;
    let items = (0..count).map(|_| from.item()).collect::<Result<_, _>>()?;
    from.from.end()?;
    from.hashes.map_or(Ok(()), |hashes| hashes.end())?;
    Ok(items)
}

fn deflated(plain: &[u8]) -> Option<Vec<u8>> {
    if plain.len() < DEFLATE_FROM || is(Bug::ChecksumsIgnored) {
        return None;
    }
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(plain.len()), Compression::new(5));
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

impl Packer {
    /// Bytes that look like dice.
    pub fn hash(&mut self, bytes: &[u8]) {
        self.hashes.as_mut().unwrap_or(&mut self.out).fixed(bytes);
    }

    /// The peer knows a change by who made it.
    pub fn names_what_was_made(&self) -> bool {
        self.hashes.is_some()
    }

    /// The base of an epoch: most shadows have had no other than the first.
    fn base(&mut self, base: &[u8; 32]) {
        if self.hashes.is_some() {
            let next = self.bases.len() as u64;
            let number = *self.bases.entry(*base).or_insert(next);
            self.out.varint(number);
            if number != next {
                return;
            }
        }
        self.hash(base);
    }

    fn item(&mut self, key: &ShadowKey, item: &Item) {
        let with_desired = item.desired.base.is_some() || !item.desired.changes.is_empty();
        let flags = [
            (NAMED, key.name.is_some()),
            (DELETED, item.deleted != Stamp::default()),
            (HOME, item.home.is_some()),
            (DESIRED, with_desired),
            (TOUCHED, item.touched != last_write(item)),
            (REPORTED, !item.reported.is_empty()),
            (SURE, item.home.is_some_and(|home| home.sure)),
            (MARKS, item.marks.satisfied().next().is_some()),
        ];
        self.out.byte(flags.into_iter().filter(|(_, on)| *on).map(|(bit, _)| bit).sum());
        self.key(key);
        self.hash(&item.print);
        self.out.varint(item.version);
        if let Some(home) = item.home {
            let term = Hlc(home.term);
            if self.hashes.is_some() {
                // Things whose names follow each other were often set up after each other.
                self.moment_behind(term, self.home_ms);
                self.home_ms = term.ms();
            } else {
                self.moment(term);
            }
            self.node(home.node.0);
        }
        let term = item.home.map_or(0, |home| home.term);
        if item.deleted != Stamp::default() {
            self.stamp(&item.deleted, term);
        }
        if !item.reported.is_empty() {
            self.leaves(&item.reported, term);
        }
        if with_desired {
            self.part(&item.desired);
        }
        if item.touched != last_write(item) {
            self.stamp(&item.touched, term);
        }
        if item.marks.satisfied().next().is_some() {
            self.marks(&item.marks);
        }
    }

    fn key(&mut self, key: &ShadowKey) {
        let shared = self.thing.bytes().zip(key.thing.bytes()).take_while(|(a, b)| a == b).count();
        self.out.varint(shared as u64);
        self.out.bytes(&key.thing.as_bytes()[shared..]);
        if let Some(name) = &key.name {
            self.out.bytes(name.as_bytes());
        }
        self.thing.clone_from(&key.thing);
    }

    /// A hybrid time, as how far it lies behind the latest.
    pub fn moment(&mut self, hlc: Hlc) {
        self.moment_behind(hlc, self.latest_ms);
    }

    fn moment_behind(&mut self, hlc: Hlc, latest_ms: u64) {
        let behind = latest_ms as i64 - hlc.ms() as i64;
        let folded = ((behind << 1) ^ (behind >> 63)) as u64;
        let counter = hlc.0 & 0xffff;
        self.out.varint(folded << 1 | u64::from(counter != 0));
        if counter != 0 {
            self.out.varint(counter);
        }
    }

    /// A stamp; `term` is the one it most likely has, if any.
    pub fn stamp(&mut self, stamp: &Stamp, term: u64) {
        let kind = match stamp.term {
            0 => 0,
            same if same == term => 1,
            _ => 2,
        };
        self.out.byte(kind);
        self.node(stamp.node);
        self.moment(stamp.hlc);
        if kind == 2 {
            self.moment(Hlc(stamp.term));
        }
    }

    fn node(&mut self, node: u64) {
        let next = self.nodes.len() as u64;
        let number = *self.nodes.entry(node).or_insert(next);
        self.out.varint(number);
        if number == next {
            self.hash(&node.to_be_bytes());
        }
    }

    /// One that writes desired documents.
    pub fn actor(&mut self, actor: &[u8; ACTOR_BYTES]) {
        let next = self.actors.len() as u64;
        let number = *self.actors.entry(*actor).or_insert(next);
        self.out.varint(number);
        if number == next {
            self.hash(actor);
        }
    }

    /// Where a leaf is.
    pub fn path(&mut self, path: &str) {
        if let Some(number) = self.paths.get(path) {
            return self.out.varint(*number);
        }
        let next = self.paths.len() as u64;
        self.paths.insert(path.into(), next);
        self.out.varint(next);
        self.out.bytes(path.as_bytes());
    }

    /// Leaves, in the order they are in. Those of one request share their stamp.
    fn leaves(&mut self, leaves: &[Leaf], term: u64) {
        let mut stamps: Vec<Stamp> = leaves.iter().map(|leaf| leaf.stamp).collect();
        stamps.sort_unstable();
        stamps.dedup();
        self.out.varint(stamps.len() as u64);
        stamps.iter().for_each(|stamp| self.stamp(stamp, term));
        self.out.varint(leaves.len() as u64);
        for leaf in leaves {
            if stamps.len() > 1 {
                let index = stamps.binary_search(&leaf.stamp).expect("every stamp was collected");
                self.out.varint(index as u64);
            }
            self.path(&leaf.path);
            self.out.optional(leaf.value.as_deref().map(str::as_bytes));
        }
    }

    fn marks(&mut self, marks: &Marks) {
        self.out.varint(marks.satisfied().count() as u64);
        for (path, stamp) in marks.satisfied() {
            self.path(path);
            self.stamp(&stamp, 0);
        }
    }

    fn part(&mut self, part: &Part) {
        self.out.varint(part.epoch.number);
        self.base(&part.epoch.base);
        self.out.byte(u8::from(part.base.is_some()));
        if let Some(base) = &part.base {
            self.leaves(base, 0);
            // Which of them were wiped out since.
            base.iter().for_each(|leaf| self.out.byte(u8::from(leaf.seq != 0)));
        }
        self.out.varint(part.changes.len() as u64);
        part.changes.iter().for_each(|change| change.pack(self, &part.epoch.base));
    }
}

impl<'a> Unpacker<'a> {
    /// See [`Packer::hash`].
    pub fn hash<const BYTES: usize>(&mut self) -> Result<[u8; BYTES], WireError> {
        self.hashes.as_mut().unwrap_or(&mut self.from).array()
    }

    /// See [`Packer::base`].
    fn base(&mut self) -> Result<[u8; 32], WireError> {
        if self.hashes.is_some() {
            let number = self.from.number(self.bases.len() as u64, "base")? as usize;
            if let Some(base) = self.bases.get(number) {
                return Ok(*base);
            }
            self.from.charge(64)?;
        }
        let base = self.hash()?;
        if self.hashes.is_some() {
            self.bases.push(base);
        }
        Ok(base)
    }

    fn item(&mut self) -> Result<(ShadowKey, Item), WireError> {
        let flags = self.from.byte()?;
        let has = |bit: u8| flags & bit != 0;
        let key = self.key(has(NAMED))?;
        let print = self.hash()?;
        let version = self.from.number(VERSION_MAX, "version")?;
        let home = if has(HOME) {
            let term = if self.hashes.is_some() {
                let term = self.moment_behind(self.home_ms)?;
                self.home_ms = term.ms();
                term
            } else {
                self.moment()?
            };
            Some(Home { term: term.0, node: NodeId(self.node()?), sure: has(SURE) })
        } else {
            None
        };
        let term = home.map_or(0, |home| home.term);
        let deleted = if has(DELETED) { self.stamp(term)? } else { Stamp::default() };
        let reported = if has(REPORTED) { self.leaves('r', term)? } else { Vec::new() };
        let desired = if has(DESIRED) { self.part()? } else { Part::nothing() };
        let touched = Stamp::default();
        let marks = Marks::default();
        let mut item = Item { version, print, touched, deleted, home, reported, desired, marks };
        item.touched = if has(TOUCHED) { self.stamp(term)? } else { last_write(&item) };
        if has(MARKS) {
            item.marks = self.marks()?;
        }
        Ok((key, item))
    }

    fn key(&mut self, named: bool) -> Result<ShadowKey, WireError> {
        self.from.charge(256)?;
        let shared = self.from.number(self.thing.len() as u64, "shared name")? as usize;
        let rest = self.from.text(128)?;
        let kept = self.thing.get(..shared).ok_or(WireError::Range("shared name"))?;
        let thing = format!("{kept}{rest}");
        let name = if named { Some(self.from.text(64)?.to_owned()) } else { None };
        self.thing.clone_from(&thing);
        let key = ShadowKey { thing, name };
        if key.is_valid() { Ok(key) } else { Err(WireError::Range("shadow name")) }
    }

    /// See [`Packer::moment`].
    pub fn moment(&mut self) -> Result<Hlc, WireError> {
        self.moment_behind(self.latest_ms)
    }

    fn moment_behind(&mut self, latest_ms: u64) -> Result<Hlc, WireError> {
        let number = self.from.varint()?;
        let folded = number >> 1;
        let behind = (folded >> 1) as i64 ^ -((folded & 1) as i64);
        let ms = (latest_ms as i64).checked_sub(behind).and_then(|ms| u64::try_from(ms).ok());
        let ms = ms.filter(|ms| *ms < MS_END).ok_or(WireError::Range("moment"))?;
        let counter = if number & 1 == 1 { self.from.number(0xffff, "moment")? } else { 0 };
        Ok(Hlc(ms << 16 | counter))
    }

    /// See [`Packer::stamp`].
    pub fn stamp(&mut self, term: u64) -> Result<Stamp, WireError> {
        let kind = self.from.byte()?;
        let (node, hlc) = (self.node()?, self.moment()?);
        let term = match kind {
            0 => 0,
            1 => term,
            2 => self.moment()?.0,
            _ => return Err(WireError::Range("stamp")),
        };
        Ok(Stamp { term, hlc, node })
    }

    fn node(&mut self) -> Result<u64, WireError> {
        let number = self.from.number(self.nodes.len() as u64, "node")? as usize;
        if number == self.nodes.len() {
            self.from.charge(16)?;
            let node = u64::from_be_bytes(self.hash()?);
            self.nodes.push(node);
        }
        Ok(self.nodes[number])
    }

    /// See [`Packer::actor`].
    pub fn actor(&mut self) -> Result<[u8; ACTOR_BYTES], WireError> {
        let number = self.from.number(self.actors.len() as u64, "actor")? as usize;
        if number == self.actors.len() {
            self.from.charge(2 * ACTOR_BYTES)?;
            let actor = self.hash()?;
            self.actors.push(actor);
        }
        Ok(self.actors[number])
    }

    /// See [`Packer::path`].
    pub fn path(&mut self, root: char) -> Result<&'a str, WireError> {
        let number = self.from.number(self.paths.len() as u64, "path")? as usize;
        if number == self.paths.len() {
            self.from.charge(32)?;
            let path = std::str::from_utf8(self.from.bytes(PATH_BYTES_MAX)?);
            self.paths.push(path.map_err(|_| WireError::Range("path"))?);
        }
        check_path(self.paths[number].as_bytes(), root)
    }

    fn leaves(&mut self, root: char, term: u64) -> Result<Vec<Leaf>, WireError> {
        let count = self.from.count(LEAVES_MAX, size_of::<Stamp>())?;
        let stamps: Vec<Stamp> = (0..count).map(|_| self.stamp(term)).collect::<Result<_, _>>()?;
        let count = self.from.count(LEAVES_MAX, size_of::<Leaf>() + 32)?;
        let mut leaves = Vec::with_capacity(count);
        for _ in 0..count {
            let index = if stamps.len() > 1 { self.from.varint()? as usize } else { 0 };
            let stamp = *stamps.get(index).ok_or(WireError::Range("stamp"))?;
            let path = self.path(root)?;
            let value = self.from.optional(VALUE_BYTES_MAX)?.map(check_value).transpose()?;
            self.from.charge(path.len() + value.map_or(0, str::len))?;
            leaves.push(Leaf { path: path.into(), stamp, value: value.map(Into::into), seq: 0 });
        }
        Ok(leaves)
    }

    fn marks(&mut self) -> Result<Marks, WireError> {
        let count = self.from.count(LEAVES_MAX, MARK_MEMORY)?;
        let mut marks = Marks::default();
        for _ in 0..count {
            let path = self.path('d')?;
            self.from.charge(path.len())?;
            let stamp = self.stamp(0)?;
            marks.satisfy(path, stamp);
        }
        Ok(marks)
    }

    fn part(&mut self) -> Result<Part, WireError> {
        let number = self.from.number(1 << 48, "epoch")?;
        let epoch = Epoch { number, base: self.base()? };
        let base = if self.from.flag()? {
            let mut leaves = self.leaves('d', 0)?;
            for leaf in &mut leaves {
                leaf.seq = u64::from(self.from.flag()?);
            }
            Some(leaves)
        } else {
            None
        };
        let count = self.from.count(2 * MERGED_CHANGES_MAX, size_of::<WireChange>())?;
        let mut changes = Vec::with_capacity(count);
        for _ in 0..count {
            changes.push(WireChange::unpack(self, &epoch.base)?);
        }
        Ok(Part { epoch, base, changes })
    }
}

/// The latest write in an item, which is most often what it was last touched by.
fn last_write(item: &Item) -> Stamp {
    let stamps = item.reported.iter().map(|leaf| leaf.stamp).chain(item.desired.stamps());
    stamps.map(|stamp| stamp.with_term(0)).max().unwrap_or_default()
}
