//! `desired`: an automerge document in epochs, kept as bytes and loaded only to be written.
//!
//! - A leaf is one register at the root under its flat path, so two nodes that both create `color` apart cannot end up
//!   with two rival objects. Its bytes carry the write's stamp, and reading takes the highest stamp: after a rebase
//!   automerge's own counters no longer tell which write is newer.
//! - An epoch is a number and the hash of its base. The base is built from the leaves alone (fixed actor, time 0, paths
//!   in order), so nodes with equal leaves build equal bytes. Epochs are ordered; the lower joins the higher.
//! - Crossing epochs joins leaves: each leaf that beats what the higher epoch shows becomes one change whose actor is
//!   the hash of (epoch, path, stamp, value). Whoever replays it makes the same change, and automerge drops the copies.
//!
//! The joined leaves are kept next to the document. They are what is read; the document is how they travel and merge.

use std::sync::LazyLock;

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, Change, ChangeHash, ROOT, ReadDoc, ScalarValue};
use sha2::{Digest, Sha256};

use crate::change::{ACTOR_BYTES, Known, NotBuilt, WireChange, check_of, register};
use crate::leaves::{Leaf, Leaves};
use crate::planted::{Bug, is};
use crate::stamp::Stamp;
use crate::wire::{Reader, WireError, Writer};

/// Changes that arrive from peers start a new epoch only here, so that nodes which merge the same changes do not all
/// make rival epochs. Also the most changes in one part.
pub const MERGED_CHANGES_MAX: usize = 1024;
/// A document of more bytes than this is rebased whatever its number of changes.
pub const DOCUMENT_BYTES_MAX: usize = 128 << 10;

static GENESIS: LazyLock<Epoch> = LazyLock::new(|| build_base(0, &Leaves::default()).0);

/// What a local write needs besides its content.
#[derive(Debug, Clone, Copy)]
pub struct Pen {
    /// The write's stamp.
    pub stamp: Stamp,
    /// Who writes, as automerge knows it: node and incarnation.
    pub actor: [u8; ACTOR_BYTES],
    /// Its number in this node's feed.
    pub seq: u64,
    /// Begin a new epoch when this many changes are there already.
    pub rebase_at: usize,
}

/// Which document the changes belong to. Greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch {
    /// Grows with each rebase.
    pub number: u64,
    /// Hash of the change that is its base.
    pub base: [u8; 32],
}

/// One shadow's `desired`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    epoch: Epoch,
    /// Saved automerge document; empty while there is nothing but the base of epoch 0.
    document: Box<[u8]>,
    heads: Vec<[u8; 32]>,
    /// Feed number under which the base was installed here.
    base_seq: u64,
    log: Vec<Logged>,
    leaves: Leaves,
}

/// A change in the document, besides the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Logged {
    check: [u8; 8],
    seq: u64,
}

/// What one node tells another about a `desired`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The epoch of the changes.
    pub epoch: Epoch,
    /// What its base is built from, when the receiver may not have it. A leaf with a `seq` other than 0 was wiped out
    /// since.
    pub base: Option<Vec<Leaf>>,
    /// In an order in which each comes after those it depends on.
    pub changes: Vec<WireChange>,
}

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// Everything was here already.
    Unchanged,
    /// What the peer has and this node lacked was added.
    Taken,
    /// The same, and the result holds something the peer lacks.
    Extended,
    /// The part depends on something that is not here: ask for the whole. Nothing was merged.
    Incomplete,
}

/// A part that cannot be what an honest node sent. Whoever holds the scratch copy throws it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the desired document of a peer is not sound: {0}")]
pub struct Unsound(pub &'static str);

impl Default for Desired {
    fn default() -> Self {
        let epoch = *GENESIS;
        let (heads, leaves) = (vec![epoch.base], Leaves::default());
        Self { epoch, document: Box::default(), heads, base_seq: 0, log: Vec::new(), leaves }
    }
}

impl Desired {
    /// What is visible, and its tombstones.
    pub fn leaves(&self) -> &Leaves {
        &self.leaves
    }

    /// Tombstones may be taken away; the document keeps its copies till the next rebase.
    pub fn leaves_mut(&mut self) -> &mut Leaves {
        &mut self.leaves
    }

    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// automerge's heads.
    pub fn heads(&self) -> &[[u8; 32]] {
        &self.heads
    }

    /// After a merge: the peer that sent this whole part has every change that is here.
    pub fn is_all_of(&self, part: &Part) -> bool {
        self.epoch.number == part.epoch.number && self.log.len() == part.changes.len()
    }

    /// This change is in the document.
    pub fn knows(&self, change: &WireChange) -> bool {
        self.log.iter().any(|logged| logged.check == change.check())
    }

    /// Bytes kept for the document.
    pub fn document_bytes(&self) -> usize {
        self.document.len()
    }

    /// Records the writes of one request. True when a new epoch was begun, as there were enough changes.
    ///
    /// A document that cannot be loaded (a damaged disk) is rebuilt from the leaves, in a new epoch.
    pub fn write(&mut self, writes: &[(String, Option<String>)], pen: &Pen) -> bool {
        let Pen { stamp, actor, seq, rebase_at } = *pen;
        for (path, value) in writes {
            self.leaves.join(path, stamp, value.as_deref(), seq);
        }
        let full = self.log.len() >= rebase_at || self.document.len() > DOCUMENT_BYTES_MAX;
        let puts = || {
            writes.iter().map(|(path, value)| (path.as_str(), register(&stamp, value.as_deref())))
        };
        let written = guarded(|| {
            let mut document = self.load().filter(|_| !full)?;
            document.set_actor(ActorId::from(&actor[..]));
            let change = commit(&mut document, puts(), stamp.seconds() as i64)?;
            Some((check_of(&change.hash()), document.save(), heads_of(&document)))
        });
        let Some((check, document, heads)) = written else {
            self.rebase(seq);
            return true;
        };
        self.log.push(Logged { check, seq });
        (self.document, self.heads) = (document.into(), heads);
        false
    }

    /// Begins a new epoch from the leaves. Right at any moment; cheap for the others when they have the same leaves.
    pub fn rebase(&mut self, seq: u64) {
        let (epoch, document) = build_base(self.epoch.number + 1, &self.leaves);
        (self.epoch, self.base_seq) = (epoch, seq);
        self.log.clear();
        self.keep(&document);
    }

    /// What changed here under feed numbers above `since`.
    pub fn part_since(&self, since: u64) -> Part {
        let lost = Part {
            epoch: Epoch { number: 0, base: [0; 32] },
            base: Some(self.leaves.iter().map(|l| Leaf { seq: 0, ..l.clone() }).collect()),
            changes: Vec::new(),
        };
        let with_base = self.base_seq > since && self.epoch.number > 0;
        if !with_base && !self.log.iter().any(|l| l.seq > since) {
            return Part { epoch: self.epoch, base: None, changes: Vec::new() };
        }
        guarded(|| self.stored_part(since, with_base)).unwrap_or(lost)
    }

    fn stored_part(&self, since: u64, with_base: bool) -> Option<Part> {
        let document = self.load()?;
        let base = if with_base { Some(self.base_leaves(&document)?) } else { None };
        let wanted = |check: [u8; 8]| {
            self.log.iter().any(|l| l.check == check && (with_base || l.seq > since))
        };
        let changes = document.get_changes(&[ChangeHash(self.epoch.base)]);
        let shown = |path: &str, stamp| self.leaves.shows(path, stamp);
        let sent = changes.iter().filter(|c| wanted(check_of(&c.hash())));
        let sent = sent.map(|c| WireChange::from_change(c, shown, &changes));
        let changes = sent.collect::<Option<_>>()?;
        Some(Part { epoch: self.epoch, base, changes })
    }

    /// Takes in what a peer knows. Only to be called on a scratch copy: after an error, or a panic in automerge, the
    /// copy is worth nothing.
    pub fn merge(&mut self, part: &Part, seq: u64) -> Result<Merged, Unsound> {
        let writes = part.changes.iter().flat_map(WireChange::writes);
        let mut theirs = Leaves::default();
        for leaf in part.base.iter().flatten() {
            theirs.join(&leaf.path, leaf.stamp, leaf.value.as_deref().filter(|_| leaf.seq == 0), 0);
        }
        for (path, stamp, value) in writes {
            theirs.join(path, stamp, value, 0);
        }
        match part.epoch.cmp(&self.epoch) {
            std::cmp::Ordering::Equal => self.merge_same(part, &theirs, seq),
            std::cmp::Ordering::Less => self.merge_lower(&theirs, seq),
            std::cmp::Ordering::Greater => self.merge_higher(part, &theirs, seq),
        }
    }

    fn merge_same(&mut self, part: &Part, theirs: &Leaves, seq: u64) -> Result<Merged, Unsound> {
        let new: Vec<&WireChange> = part.changes.iter().filter(|c| !self.has(c.check())).collect();
        if new.is_empty() {
            return Ok(Merged::Unchanged);
        }
        let mut document = self.load_or_rebuild(seq);
        if self.epoch != part.epoch {
            return self.merge_lower(theirs, seq);
        }
        if !apply(&mut document, &new)? {
            return Ok(Merged::Incomplete);
        }
        self.log.extend(new.iter().map(|c| Logged { check: c.check(), seq }));
        self.join_all(theirs, seq);
        self.keep(&document);
        Ok(if self.rebase_when_huge(seq) { Merged::Extended } else { Merged::Taken })
    }

    /// Their epoch is over: what beats ours is replayed here.
    fn merge_lower(&mut self, theirs: &Leaves, seq: u64) -> Result<Merged, Unsound> {
        let beating: Vec<Leaf> =
            theirs.iter().filter(|leaf| self.beaten_by(leaf)).cloned().collect();
        if beating.is_empty() {
            return Ok(Merged::Unchanged);
        }
        let mut document = self.load_or_rebuild(seq);
        let base = base_document(&document, self.epoch).ok_or(Unsound("own base is missing"))?;
        self.replay(&mut document, &base, &beating, seq)?;
        self.join_all(theirs, seq);
        self.keep(&document);
        self.rebase_when_huge(seq);
        Ok(Merged::Extended)
    }

    /// Our epoch is over: theirs is taken over, and what beats it is replayed there.
    fn merge_higher(&mut self, part: &Part, theirs: &Leaves, seq: u64) -> Result<Merged, Unsound> {
        let Some(base_leaves) = &part.base else { return Ok(Merged::Incomplete) };
        let base_leaves = Leaves::from_sorted(base_leaves.clone())
            .map_err(|_| Unsound("base is not in order"))?;
        let (epoch, base) = build_base(part.epoch.number, &base_leaves);
        if epoch != part.epoch && !is(Bug::ChecksumsIgnored) {
            return Err(Unsound("base has another hash than its epoch"));
        }
        let mut document = base.fork();
        let changes: Vec<&WireChange> = part.changes.iter().collect();
        if !apply(&mut document, &changes)? {
            return Ok(Merged::Incomplete);
        }
        (self.epoch, self.base_seq) = (epoch, seq);
        self.log = changes.iter().map(|c| Logged { check: c.check(), seq }).collect();
        let beating: Vec<Leaf> = self
            .leaves
            .iter()
            .filter(|l| theirs.would_change(&l.path, l.stamp, l.value.as_deref()))
            .cloned()
            .collect();
        self.replay(&mut document, &base, &beating, seq)?;
        self.join_all(theirs, seq);
        self.keep(&document);
        let extended = self.rebase_when_huge(seq) || !beating.is_empty();
        Ok(if extended { Merged::Extended } else { Merged::Taken })
    }

    fn replay(
        &mut self,
        document: &mut Automerge,
        base: &Automerge,
        leaves: &[Leaf],
        seq: u64,
    ) -> Result<(), Unsound> {
        if is(Bug::LateWritesLost) {
            return Ok(());
        }
        let mut changes = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            let Some(change) = replayed(self.epoch, base, leaf) else { continue };
            if !self.has(check_of(&change.hash())) {
                self.log.push(Logged { check: check_of(&change.hash()), seq });
                changes.push(change);
            }
        }
        document.apply_changes(changes).map_err(|_| Unsound("a late write could not be replayed"))
    }

    fn beaten_by(&self, leaf: &Leaf) -> bool {
        self.leaves.would_change(&leaf.path, leaf.stamp, leaf.value.as_deref())
    }

    fn join_all(&mut self, theirs: &Leaves, seq: u64) {
        for leaf in theirs.iter() {
            self.leaves.join(&leaf.path, leaf.stamp, leaf.value.as_deref(), seq);
        }
    }

    fn has(&self, check: [u8; 8]) -> bool {
        self.log.iter().any(|logged| logged.check == check)
    }

    fn rebase_when_huge(&mut self, seq: u64) -> bool {
        let huge =
            self.log.len() > MERGED_CHANGES_MAX || self.document.len() > 2 * DOCUMENT_BYTES_MAX;
        if huge {
            self.rebase(seq);
        }
        huge
    }

    /// `None` when the bytes kept are damaged.
    fn load(&self) -> Option<Automerge> {
        if self.document.is_empty() {
            return Some(build_base(0, &Leaves::default()).1);
        }
        let document = guarded(|| Automerge::load(&self.document).ok())?;
        document.get_change_by_hash(&ChangeHash(self.epoch.base)).is_some().then_some(document)
    }

    fn load_or_rebuild(&mut self, seq: u64) -> Automerge {
        if let Some(document) = self.load() {
            return document;
        }
        self.rebase(seq);
        build_base(self.epoch.number, &self.leaves).1
    }

    fn base_leaves(&self, document: &Automerge) -> Option<Vec<Leaf>> {
        let base = WireChange::from_change(
            &document.get_change_by_hash(&ChangeHash(self.epoch.base))?,
            |_, _| true,
            &[],
        )?;
        let leaf = |(path, stamp, value): (&str, Stamp, Option<&str>)| {
            let dead = !self.leaves.shows(path, stamp);
            Leaf { path: path.into(), stamp, value: value.map(Into::into), seq: u64::from(dead) }
        };
        Some(base.writes().map(leaf).collect())
    }

    fn keep(&mut self, document: &Automerge) {
        self.document = document.save().into();
        self.heads = heads_of(document);
    }

    /// Everything, for a row.
    pub fn encode(&self, out: &mut Writer) {
        out.varint(self.epoch.number);
        out.fixed(&self.epoch.base);
        out.bytes(&self.document);
        out.varint(self.heads.len() as u64);
        self.heads.iter().for_each(|head| out.fixed(head));
        out.varint(self.base_seq);
        out.varint(self.log.len() as u64);
        for logged in &self.log {
            out.fixed(&logged.check);
            out.varint(logged.seq);
        }
        Leaves::encode(out, self.leaves.iter(), true);
    }

    /// Reads what [`Desired::encode`] wrote.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let epoch = Epoch { number: from.varint()?, base: from.array()? };
        let document: Box<[u8]> = from.bytes(usize::MAX >> 8)?.into();
        let heads = from.count(2 * MERGED_CHANGES_MAX, 32)?;
        let heads = (0..heads).map(|_| from.array()).collect::<Result<_, _>>()?;
        let base_seq = from.varint()?;
        let log = from.count(1 << 16, size_of::<Logged>())?;
        let log = (0..log)
            .map(|_| Ok(Logged { check: from.array()?, seq: from.varint()? }))
            .collect::<Result<_, WireError>>()?;
        let leaves = Leaves::from_sorted(Leaves::decode(from, 'd', true)?)?;
        Ok(Self { epoch, document, heads, base_seq, log, leaves })
    }
}

impl Part {
    /// What is said when nothing changed.
    pub fn nothing() -> Self {
        let epoch = Epoch { number: 0, base: [0; 32] };
        Self { epoch, base: None, changes: Vec::new() }
    }

    /// Every stamp in it.
    pub fn stamps(&self) -> impl Iterator<Item = Stamp> {
        let base = self.base.iter().flatten().map(|leaf| leaf.stamp);
        base.chain(self.changes.iter().flat_map(|c| c.writes().map(|(_, stamp, _)| stamp)))
    }
}

/// The first document of an epoch: one change that depends on nothing but the leaves.
fn build_base(number: u64, leaves: &Leaves) -> (Epoch, Automerge) {
    let mut document = Automerge::new();
    document.set_actor(derived_actor(&[b"base", &number.to_be_bytes()]));
    let puts =
        leaves.iter().map(|leaf| (&*leaf.path, register(&leaf.stamp, leaf.value.as_deref())));
    let change = commit(&mut document, puts, 0).expect("an empty document has no register yet");
    (Epoch { number, base: change.hash().0 }, document)
}

/// A document with nothing but the base of `epoch`.
fn base_document(document: &Automerge, epoch: Epoch) -> Option<Automerge> {
    let base = document.get_change_by_hash(&ChangeHash(epoch.base))?;
    let mut alone = Automerge::new();
    alone.apply_changes([base]).ok()?;
    Some(alone)
}

/// A late write as a change on top of a base: the same whoever makes it. `None` when the base holds just this write (a
/// tombstone that was collected here, for example).
fn replayed(epoch: Epoch, base: &Automerge, leaf: &Leaf) -> Option<Change> {
    let register = register(&leaf.stamp, leaf.value.as_deref());
    let mut document = base.fork();
    document.set_actor(derived_actor(&[
        b"late",
        &epoch.number.to_be_bytes(),
        &epoch.base,
        leaf.path.as_bytes(),
        &register,
    ]));
    commit(&mut document, [(&*leaf.path, register)].into_iter(), 0)
}

/// One change with these puts; an empty one when there are none. `None` when every register has its bytes already,
/// as automerge then makes no change.
fn commit<'a>(
    document: &mut Automerge,
    puts: impl Iterator<Item = (&'a str, Vec<u8>)>,
    time: i64,
) -> Option<Change> {
    let options = CommitOptions::default().with_time(time);
    let mut transaction = document.transaction();
    let mut any = false;
    for (path, bytes) in puts {
        any = true;
        transaction
            .put(ROOT, path, ScalarValue::Bytes(bytes))
            .expect("the root takes any key that is not empty");
    }
    let hash = if any {
        transaction.commit_with(options).0?
    } else {
        drop(transaction);
        document.empty_commit(options)
    };
    document.get_change_by_hash(&hash)
}

/// Applies changes; false when they depend on something that is not in the document.
fn apply(document: &mut Automerge, changes: &[&WireChange]) -> Result<bool, Unsound> {
    let mut known = Known::default();
    document.get_changes(&[]).iter().for_each(|change| known.add(change));
    let mut built = Vec::with_capacity(changes.len());
    for change in changes {
        let change = match change.to_change(&known) {
            Ok(change) => change,
            Err(NotBuilt::Early) => return Ok(false),
            Err(NotBuilt::Unsound) => {
                return Err(Unsound("a change has another hash than it says"));
            }
        };
        known.add(&change);
        built.push(change);
    }
    let hashes: Vec<ChangeHash> = built.iter().map(Change::hash).collect();
    document.apply_changes(built).map_err(|_| Unsound("automerge refused a change"))?;
    Ok(hashes.iter().all(|hash| document.get_change_by_hash(hash).is_some()))
}

fn heads_of(document: &Automerge) -> Vec<[u8; 32]> {
    let mut heads: Vec<[u8; 32]> = document.get_heads().iter().map(|hash| hash.0).collect();
    heads.sort_unstable();
    heads
}

/// Work on stored bytes. automerge may panic on bytes it did not write; that counts as "cannot".
fn guarded<T>(work: impl FnOnce() -> Option<T>) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok().flatten()
}

fn derived_actor(parts: &[&[u8]]) -> ActorId {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u32).to_be_bytes());
        hash.update(part);
    }
    ActorId::from(&hash.finalize()[..ACTOR_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use outpost_model::{Hlc, NodeId};

    fn write(desired: &mut Desired, node: u8, moment: u64, path: &str, value: Option<&str>) {
        let stamp = Stamp::new(Hlc(moment), NodeId(u64::from(node)));
        let pen = Pen { stamp, actor: [node; ACTOR_BYTES], seq: moment, rebase_at: 3 };
        let path = path.replace('.', "\u{1f}");
        desired.write(&[(path, value.map(str::to_owned))], &pen);
    }

    /// Each takes in what the other has, until nothing is new.
    fn exchange(a: &mut Desired, b: &mut Desired) {
        for _ in 0..3 {
            b.merge(&a.part_since(0), 100).expect("sound");
            a.merge(&b.part_since(0), 100).expect("sound");
        }
    }

    #[test]
    fn two_nodes_that_wrote_apart_end_with_equal_heads() {
        let (mut a, mut b) = (Desired::default(), Desired::default());
        write(&mut a, 1, 1, "d.color.r", Some("1"));
        write(&mut b, 2, 2, "d.color.g", Some("2"));
        exchange(&mut a, &mut b);
        assert_eq!((a.heads(), a.epoch()), (b.heads(), b.epoch()));
        assert_eq!(a.leaves().state(), Some(serde_json::json!({"color": {"r": 1, "g": 2}})));
    }

    #[test]
    fn late_writes_survive_an_epoch_they_did_not_see() {
        let (mut a, mut b) = (Desired::default(), Desired::default());
        (1..9).for_each(|n| write(&mut a, 1, n, "d.n", Some(&n.to_string())));
        assert!(a.epoch().number > 0);
        write(&mut b, 2, 3, "d.late", Some("true"));
        write(&mut b, 2, 4, "d.n", Some("100"));
        exchange(&mut a, &mut b);
        assert_eq!((a.heads(), a.epoch()), (b.heads(), b.epoch()));
        assert_eq!(b.leaves().state(), Some(serde_json::json!({"n": 8, "late": true})));
    }

    #[test]
    fn equal_leaves_make_equal_epochs() {
        let (mut a, mut b) = (Desired::default(), Desired::default());
        write(&mut a, 1, 1, "d.x", Some("1"));
        exchange(&mut a, &mut b);
        a.rebase(5);
        b.rebase(9);
        assert_eq!((a.epoch(), a.heads()), (b.epoch(), b.heads()));
    }

    #[test]
    fn a_damaged_document_is_rebuilt_from_its_leaves() {
        let mut a = Desired::default();
        write(&mut a, 1, 1, "d.x", Some("1"));
        a.document = b"damaged".as_slice().into();
        let mut b = Desired::default();
        b.merge(&a.part_since(0), 1).expect("sound");
        assert_eq!(b.leaves().state(), a.leaves().state(), "the leaves still travel");
        write(&mut a, 1, 2, "d.y", Some("2"));
        assert!(a.load().is_some());
        assert_eq!(a.leaves().state(), Some(serde_json::json!({"x": 1, "y": 2})));
    }

    #[test]
    fn a_change_that_depends_on_an_unknown_one_asks_for_the_whole() {
        let (mut a, mut b) = (Desired::default(), Desired::default());
        write(&mut a, 1, 1, "d.x", Some("1"));
        write(&mut a, 1, 2, "d.x", Some("2"));
        assert_eq!(b.merge(&a.part_since(1), 1), Ok(Merged::Incomplete));
    }

    #[test]
    fn what_was_wiped_out_is_not_brought_back_by_who_forgot_the_tombstone() {
        let (mut a, mut b, mut c): (Desired, Desired, Desired) = Default::default();
        write(&mut a, 1, 5, "d.x", None);
        write(&mut b, 2, 1, "d.x", Some("1"));
        a.merge(&b.part_since(0), 100).expect("sound");
        a.leaves_mut().forget_tombstones(|_| true);
        c.merge(&a.part_since(50), 1).expect("sound");
        assert_eq!(c.leaves().state(), None);
    }
}
