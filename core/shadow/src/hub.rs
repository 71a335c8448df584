//! All shadows of one node, and what it and its peers know of each other's.
//!
//! ```text
//!  requests ──▶ serve ──┐                          ┌─▶ Commit: rows, then answers, messages, frames
//!  frames ────▶ exchange ┼─▶ shadows, feed, rows ──┤
//!  ticks ─────▶ sweep ──┘                          └─▶ Now: what reveals no state
//! ```
//! Nothing that shows a state leaves before that state is on disk: answers, messages and frames ride behind the rows
//! they depend on. So a crash loses only what nobody has seen, and a node may go on with its own numbers after one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outpost_model::{Hlc, HlcClock, NodeId, Now};
use sha2::{Digest, Sha256};

use crate::document::Shadow;
use crate::event::Event;
use crate::history::History;
use crate::home::Home;
use crate::key::ShadowKey;
use crate::peer::Peer;
use crate::planted::{Bug, is};
use crate::policy::Policies;
use crate::quarantine::Quarantine;
use crate::renounce::Renounced;
use crate::serve::Pending;
use crate::shelf::{Rows, Shelf, read_row, read_row_key, row_key};
use crate::sync::PEERS_MAX;
use crate::version::SLOTS;
use crate::wire::{Reader, WireError, Writer};

/// What a hub may use.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of `desired` and `reported` together, as compact JSON. AWS IoT: 8 KB; more lets one shadow occupy more
    /// memory and disk on every node, at most 30 KB.
    pub state_bytes_max: usize,
    /// Levels of nesting in a section. AWS IoT documents 5, 6 and 8 in different places, and refuses with "6".
    pub depth_max: usize,
    /// Requests of one connection under way, for [`crate::InFlight`]. AWS IoT: 10; further ones are refused with 429.
    pub in_flight_max: usize,
    /// Shadows on this node. Further ones are refused with 429; lower refuses devices, higher occupies about a
    /// kilobyte each.
    pub shadows_max: usize,
    /// Shadows in memory besides the index of all: those used lately, and those whose rows are not durable yet, whatever
    /// their number. Only with [`Hub::read_rows_from`]. Fewer and busy ones are read from disk again and again; more and
    /// each costs some two kilobytes, a large one 40.
    pub hot_shadows_max: usize,
    /// Requests that wait for their home node. Further ones are refused with 429.
    pub forwards_max: usize,
    /// How long a request waits for its home node before it is accepted here. Short and a slow link costs version
    /// jumps; long and clients wait when the home node hangs.
    pub forward_timeout_ms: u64,
    /// A write that finds this many changes in a desired document starts a new epoch. Fewer costs a rebase (0.2 ms)
    /// and a new base on the wire more often; more makes documents larger and slower to load.
    pub rebase_changes: usize,
    /// Tombstones of one section; the oldest go first. Fewer and a node that was away long may bring deleted keys
    /// back; more and shadows with changing keys grow.
    pub tombstones_max: usize,
    /// Entries of the history of all shadows; 0 keeps none. More occupies some 300 bytes each, in memory and on disk.
    pub history_max: usize,
    /// Entries of one shadow; its oldest go first. Fewer forgets sooner; more lets one busy shadow crowd the others out.
    pub history_each_max: usize,
    /// A deleted shadow's version is remembered this long at least (AWS: 48 h), so that a new one continues it.
    pub deleted_keep_ms: u64,
    /// Tombstones and deleted shadows go after this time, though a known peer may not have seen them. Short and a node
    /// that was away longer brings deleted keys back; long and a lost node costs memory.
    pub tombstone_grace_ms: u64,
    /// How often tombstones are looked for.
    pub sweep_every_ms: u64,
    /// Shadows looked at in one sweep; the next one goes on behind them.
    pub sweep_shadows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            state_bytes_max: 8 << 10,
            depth_max: 6,
            in_flight_max: 10,
            shadows_max: 200_000,
            hot_shadows_max: 2_048,
            forwards_max: 1024,
            forward_timeout_ms: 2_000,
            rebase_changes: 64,
            tombstones_max: 512,
            history_max: 0,
            history_each_max: 32,
            deleted_keep_ms: 48 * 3_600_000,
            tombstone_grace_ms: 30 * 24 * 3_600_000,
            sweep_every_ms: 60_000,
            sweep_shadows: 2_000,
        }
    }
}

/// Where the operator chose.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Apart from a shadow's home, writes of `desired` and deletes are answered 500 instead of being accepted and merged
    /// later. On: what was accepted was decided by one node, and a cut stops people from steering; off: both sides of a
    /// cut can be written.
    pub strict: bool,
    /// Whose word counts, by thing and path.
    pub policies: Policies,
}

/// Who this hub is and what it may use.
#[derive(Debug, Clone)]
pub struct HubConfig {
    /// This node.
    pub node: NodeId,
    /// Its name, for people.
    pub node_name: String,
    /// Limits.
    pub limits: Limits,
    /// A peer whose stamps are further ahead of this node's clock is refused.
    pub hlc_ahead_ms_max: u64,
    /// What is decided otherwise than AWS does.
    pub rules: Rules,
}

/// What the driver has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Write the rows in one batch (a `None` deletes), and release `then` when that batch and all before it are
    /// durable. There may be no rows: then only what came before must be durable.
    Commit {
        /// Counts commits. To be handed to [`Hub::synced`] when this one is durable.
        number: u64,
        /// Rows of the shadow space.
        rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        /// What depends on them.
        then: Vec<Output>,
    },
    /// At once: shows no state.
    Now(Output),
}

/// What leaves the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// A message for this node's subscribers. Peers publish `delta` and `documents` to theirs themselves, when they
    /// have merged; `accepted` and `rejected` are published only here, where the request came in.
    Publish {
        /// An AWS shadow topic.
        topic: String,
        /// A JSON document.
        payload: Vec<u8>,
    },
    /// A frame for a peer. Dropped when there is no link.
    ToPeer {
        /// The peer.
        peer: NodeId,
        /// Opaque.
        frame: Vec<u8>,
    },
    /// The outcome of [`Hub::request`].
    Reply {
        /// As given.
        id: u64,
        /// HTTP status.
        status: u16,
        /// The accepted or rejected document.
        body: Vec<u8>,
    },
    /// For the log and the metrics.
    Event(Event),
}

/// Why a row was not taken. The hub is as before.
#[derive(Debug, thiserror::Error)]
#[error("row {key:?} of the shadow space cannot be read: {cause}; it was left out")]
pub struct LoadError {
    /// The row's key, as far as it is text.
    pub key: String,
    /// What is wrong with it.
    #[source]
    pub cause: WireError,
}

/// Why a peer's frame was refused. The hub is as before; the peer should be quarantined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The bytes are no frame.
    #[error("a frame of peer {peer} cannot be read: {cause}; nothing of it was used")]
    Wire {
        /// The peer.
        peer: NodeId,
        /// What is wrong.
        #[source]
        cause: WireError,
    },
    /// Its clock runs too far ahead.
    #[error("peer {peer} sends stamps from the future: {cause}; nothing of the frame was used")]
    Clock {
        /// The peer.
        peer: NodeId,
        /// How far.
        #[source]
        cause: outpost_model::time::TooFarAhead,
    },
    /// A document in it cannot come from an honest node.
    #[error("peer {peer} sent an unsound shadow {key:?}: {what}; nothing of the frame was used")]
    Unsound {
        /// The peer.
        peer: NodeId,
        /// The shadow.
        key: ShadowKey,
        /// What is wrong.
        what: &'static str,
    },
    /// There are more nodes than slots of version numbers.
    #[error("peer {peer} is one too many, there can be {PEERS_MAX}; it was not greeted")]
    TooMany {
        /// The peer.
        peer: NodeId,
    },
}

/// Counts since the start, and sizes now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HubStats {
    /// Shadows that exist.
    pub shadows: usize,
    /// Records kept, deleted ones included.
    pub records: usize,
    /// Records in memory; of the others only what the index says.
    pub hot: usize,
    /// Records read from disk, as they were not in memory.
    pub reads: u64,
    /// Roughly what the index and the records in memory occupy.
    pub bytes: usize,
    /// Writes accepted.
    pub accepted: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Writes accepted apart from their home node.
    pub apart: u64,
    /// Merges that changed what clients see.
    pub merged: u64,
    /// Merges where both sides had something the other lacked.
    pub conflicts: u64,
    /// Requests sent on to a home node.
    pub forwarded: u64,
    /// Of those, how many were not answered in time.
    pub forwards_timed_out: u64,
    /// Times a local write began a new epoch of a desired document.
    pub epochs: u64,
    /// Tombstones taken away.
    pub tombstones_collected: u64,
    /// Frames made for peers.
    pub frames_sent: u64,
    /// Bytes in them.
    pub bytes_sent: u64,
    /// Frames taken from peers.
    pub frames_received: u64,
    /// Frames refused.
    pub frames_refused: u64,
    /// Times a backlog waited for its pace.
    pub paced: u64,
    /// Bytes a second of a backlog towards the peer with the slowest link.
    pub pace_bytes_s: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Hub {
    pub(crate) config: HubConfig,
    pub(crate) clock: HlcClock,
    /// Writes desired documents: node and incarnation.
    pub(crate) actor: [u8; 16],
    pub(crate) incarnation: u64,
    pub(crate) feed: Feed,
    pub(crate) shadows: Shelf,
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    pub(crate) slots: BTreeMap<NodeId, u8>,
    pub(crate) pending: BTreeMap<u64, Pending>,
    pub(crate) pending_last: u64,
    /// Links that came up.
    pub(crate) links: u64,
    /// Monotonic time of the last call that had one.
    pub(crate) mono_ms: u64,
    /// How late it was at least, as this node's own row says.
    pub(crate) time_kept_ms: u64,
    /// Shadows with a change at the device that stops to stand, and when.
    pub(crate) overrides: BTreeMap<ShadowKey, u64>,
    /// Not before this time of the wall clock is one of them over.
    pub(crate) overrides_due_ms: u64,
    /// Peers that were not listened to, or are not.
    pub(crate) quarantines: BTreeMap<NodeId, Quarantine>,
    /// Those among them that have a link.
    pub(crate) shut_out: BTreeSet<NodeId>,
    pub(crate) renounced: Renounced,
    pub(crate) sweep_after: Option<ShadowKey>,
    pub(crate) sweep_at_ms: Option<u64>,
    pub(crate) stats: HubStats,
    pub(crate) history: History,
    dirty: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    pub(crate) then: Vec<Output>,
    /// Frames to acknowledge at the end of this call.
    pub(crate) acks: BTreeMap<NodeId, u64>,
    /// Peers whose rows are behind, but need not be written for their own sake.
    pub(crate) moved_peers: BTreeSet<NodeId>,
    /// Behind what is sent to peers: answers to forwarded requests.
    pub(crate) last: Vec<Output>,
    effects: VecDeque<Effect>,
    /// Of the last commit.
    commits: u64,
}

/// This node's numbering of its own changes: each shadow once, at the place of its last change.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    /// Names it; a peer's place in a feed of another name is void.
    pub id: u64,
    pub head: u64,
    pub places: BTreeMap<u64, ShadowKey>,
}

const ROW_PEER: u8 = b'p';
pub(crate) const ROW_HISTORY: u8 = b'h';
const ROW_OWN: &[u8] = b"own";

impl Hub {
    /// A hub that knows nothing yet. `incarnation` is random and new at each start; `hlc_floor` is the highest stamp
    /// ever given out or seen, as far as it was kept (rows that are loaded raise it).
    pub fn new(config: HubConfig, incarnation: u64, hlc_floor: Hlc) -> Self {
        let mut actor = [0; 16];
        actor[..8].copy_from_slice(&config.node.0.to_be_bytes());
        actor[8..].copy_from_slice(&incarnation.to_be_bytes());
        let slots = BTreeMap::from([(config.node, (config.node.0 % u64::from(SLOTS)) as u8)]);
        let mut hub = Self {
            clock: HlcClock::new(hlc_floor),
            actor,
            incarnation,
            feed: Feed { id: incarnation.max(1), ..Feed::default() },
            shadows: Shelf::default(),
            peers: BTreeMap::new(),
            slots,
            pending: BTreeMap::new(),
            pending_last: incarnation >> 8,
            links: 0,
            mono_ms: 0,
            time_kept_ms: 0,
            overrides: BTreeMap::new(),
            overrides_due_ms: 0,
            quarantines: BTreeMap::new(),
            shut_out: BTreeSet::new(),
            renounced: Renounced::default(),
            sweep_after: None,
            sweep_at_ms: None,
            stats: HubStats::default(),
            history: History::default(),
            dirty: BTreeMap::new(),
            then: Vec::new(),
            acks: BTreeMap::new(),
            moved_peers: BTreeSet::new(),
            last: Vec::new(),
            effects: VecDeque::new(),
            commits: 0,
            config,
        };
        hub.save_own();
        hub
    }

    /// From now on only an index of the shadows is kept, and those used lately; the others are read when they are used.
    /// To be called before rows are loaded. The driver says with [`Hub::synced`] what is durable.
    pub fn read_rows_from(&mut self, rows: Box<dyn Rows>) {
        self.shadows.read_from(rows, self.config.limits.hot_shadows_max);
    }

    /// Commits up to this number are durable: their shadows may leave memory.
    pub fn synced(&mut self, commit: u64) {
        self.shadows.synced(commit);
    }

    /// Lets go of every shadow in memory that is durable.
    pub fn rest(&mut self) {
        self.shadows.rest();
    }

    /// Takes a row of the store in, before anything else is asked of the hub.
    ///
    /// # Errors
    /// [`LoadError`]: the row is damaged and was left out.
    pub fn load_row(&mut self, key: &[u8], value: &[u8]) -> Result<(), LoadError> {
        self.try_load(key, value)
            .map_err(|cause| LoadError { key: String::from_utf8_lossy(key).into_owned(), cause })
    }

    fn try_load(&mut self, key: &[u8], value: &[u8]) -> Result<(), WireError> {
        if let Some(key) = read_row_key(key)? {
            return self.load_shadow(key, value);
        }
        let mut from = Reader::new(value);
        match key.split_first() {
            _ if key == ROW_OWN => {
                let (id, head, slot) = (from.u64()?, from.varint()?, from.byte()?);
                self.feed.id = id;
                self.feed.head = self.feed.head.max(head);
                self.slots.insert(self.config.node, slot % SLOTS);
                if from.end().is_err() {
                    let floor = Hlc(from.u64()?);
                    self.know_time(floor);
                    self.time_kept_ms = floor.ms();
                    let below = if from.end().is_err() { from.u64()? } else { 0 };
                    self.renounced = Renounced::from_disk(below);
                }
                self.dirty.clear(); // there is a name already
            }
            Some((&ROW_PEER, node)) => {
                let node = NodeId(u64::from_be_bytes(
                    node.try_into().map_err(|_| WireError::Range("peer"))?,
                ));
                let (feed, read) = (from.u64()?, from.varint()?);
                // Earlier builds kept one place, which may have passed over changes: what lies before it comes again.
                let is_first = from.left() == 1;
                let floor = if is_first { 0 } else { from.number(read, "floor")? };
                self.slots.insert(node, from.byte()? % SLOTS);
                let heard_ms = if is_first { 0 } else { from.varint()? };
                self.peers.insert(node, Peer::kept(feed, read, floor, heard_ms));
            }
            Some((&ROW_HISTORY, place)) => self.history.load(place, value)?,
            _ => return Err(WireError::Range("row key")),
        }
        Ok(())
    }

    fn load_shadow(&mut self, key: ShadowKey, row: &[u8]) -> Result<(), WireError> {
        let loaded = self.shadows.load(key.clone(), row)?;
        let policies = &self.config.rules.policies;
        let may_end = loaded.marks && !policies.is_empty();
        if may_end && read_row(row)?.override_ends_ms(&key.thing, policies).is_some() {
            self.overrides.insert(key.clone(), 0); // looked at when there is a clock
        }
        self.know_time(loaded.latest);
        self.feed.head = self.feed.head.max(loaded.facts.seq);
        self.feed.places.insert(loaded.facts.seq, key);
        Ok(())
    }

    /// The keys of shadows that exist whose thing begins with `prefix`, in order, behind `after`.
    pub fn list(&self, prefix: &str, after: Option<&ShadowKey>, limit: usize) -> Vec<ShadowKey> {
        let first = ShadowKey { thing: prefix.to_owned(), name: None };
        let from = after
            .filter(|a| **a >= first)
            .map_or(std::ops::Bound::Included(&first), std::ops::Bound::Excluded);
        let range = self.shadows.range((from, std::ops::Bound::Unbounded));
        let range = range.take_while(|(key, _)| key.thing.starts_with(prefix));
        range.filter(|(_, facts)| facts.exists).take(limit).map(|(key, _)| key.clone()).collect()
    }

    /// What a get would show at this moment, also what is not durable yet.
    pub fn document(&self, key: &ShadowKey, now: Now) -> Option<Vec<u8>> {
        let shadow = self.shadows.get(key).filter(|shadow| shadow.exists())?;
        Some(shadow.get_accepted(now.wall_s(), None).to_string().into_bytes())
    }

    /// The version and home node of a shadow, deleted ones included.
    pub fn version_and_home(&self, key: &ShadowKey) -> Option<(u64, Option<NodeId>)> {
        self.shadows.facts(key).map(|facts| (facts.version, facts.home.map(|home| home.node)))
    }

    /// Whose a shadow is; nothing when nobody is at home, or there is no such shadow.
    pub fn home(&self, key: &ShadowKey) -> Option<Home> {
        self.shadows.facts(key)?.home
    }

    /// The next thing to do; ask until there is nothing.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// The highest stamp given out or seen; keep it and hand it to [`Hub::new`] at the next start.
    pub fn hlc_floor(&self) -> Hlc {
        self.clock.floor()
    }

    /// Equal on two hubs exactly when all visible states, versions and automerge heads are.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (key, facts) in self.shadows.iter() {
            hash.update(row_key(key));
            hash.update(facts.print);
        }
        hash.finalize().into()
    }

    /// Counts and sizes. Walks over the shadows in memory.
    pub fn stats(&self) -> HubStats {
        HubStats {
            shadows: self.shadows.existing(),
            records: self.shadows.len(),
            hot: self.shadows.hot(),
            reads: self.shadows.reads(),
            bytes: self.shadows.memory_bytes(),
            pace_bytes_s: self.slowest_pace(),
            ..self.stats
        }
    }

    pub(crate) fn slot(&self) -> u8 {
        self.slots.get(&self.config.node).copied().unwrap_or(0)
    }

    /// Puts a changed shadow in its new place, in memory and in the rows to be written.
    pub(crate) fn install(&mut self, key: ShadowKey, shadow: Shadow) {
        self.feed.head = self.feed.head.max(shadow.seq);
        if let Some(old) = self.shadows.facts(&key) {
            self.feed.places.remove(&old.seq);
        }
        self.feed.places.insert(shadow.seq, key.clone());
        self.install_in_place(key, shadow);
    }

    /// Takes a record away for good. The feed's head is kept in a row of its own, so no place is used twice.
    pub(crate) fn forget(&mut self, key: &ShadowKey) {
        if let Some(facts) = self.shadows.remove(key) {
            self.feed.places.remove(&facts.seq);
            self.dirty.insert(row_key(key), None);
            self.save_own();
        }
    }

    /// The same for one that changed in nothing a peer should hear of.
    pub(crate) fn install_in_place(&mut self, key: ShadowKey, shadow: Shadow) {
        let at = row_key(&key);
        let row = self.shadows.insert(key, shadow, self.commits + 1);
        self.dirty.insert(at, Some(row));
    }

    pub(crate) fn save_row(&mut self, key: Vec<u8>, row: Option<Vec<u8>>) {
        self.dirty.insert(key, row);
    }

    pub(crate) fn save_own(&mut self) {
        let mut out = Writer::default();
        out.u64(self.feed.id);
        out.varint(self.feed.head);
        out.byte(self.slot());
        out.u64(self.clock.floor().0);
        self.time_kept_ms = self.clock.floor().ms();
        if self.renounced.below > 0 {
            out.u64(self.renounced.below);
        }
        self.dirty.insert(ROW_OWN.to_vec(), Some(out.0));
    }

    pub(crate) fn save_peer(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else { return };
        let mut out = Writer::default();
        out.u64(peer.feed);
        out.varint(peer.read);
        out.varint(peer.floor);
        out.byte(self.slots.get(&node).copied().unwrap_or(0));
        out.varint(peer.heard_ms);
        self.dirty.insert(peer_row_key(node), Some(out.0));
    }

    pub(crate) fn erase_peer(&mut self, node: NodeId) {
        self.dirty.insert(peer_row_key(node), None);
    }

    /// For what shows no state.
    pub(crate) fn now(&mut self, output: Output) {
        self.effects.push_back(Effect::Now(output));
    }

    /// Ends every call: sends peers what they lack, and puts rows and what depends on them into one commit.
    pub(crate) fn finish(&mut self) {
        self.pump();
        for key in self.shadows.take_damaged() {
            self.then.push(Output::Event(Event::Damaged { key }));
        }
        let last = std::mem::take(&mut self.last);
        self.then.extend(last);
        if self.dirty.is_empty() && self.then.is_empty() {
            return;
        }
        if !self.dirty.is_empty() {
            std::mem::take(&mut self.moved_peers).into_iter().for_each(|peer| self.save_peer(peer));
        }
        if is(Bug::SaysBeforeSync) {
            self.effects.extend(std::mem::take(&mut self.then).into_iter().map(Effect::Now));
        }
        let rows = std::mem::take(&mut self.dirty).into_iter().collect();
        self.commits += 1;
        let (number, then) = (self.commits, std::mem::take(&mut self.then));
        self.effects.push_back(Effect::Commit { number, rows, then });
    }
}

fn peer_row_key(node: NodeId) -> Vec<u8> {
    [&[ROW_PEER], &node.0.to_be_bytes()[..]].concat()
}
