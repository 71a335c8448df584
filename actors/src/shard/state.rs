//! Small state that every node has of all: whose session a client id is, which rules and settings each node goes by. One
//! [`LwwMap`] from keys to bytes, told, confirmed and collected like retained messages.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use outpost_membership::{PeerFrame, StateEntry};
use outpost_model::lww::is_gone;
use outpost_model::{Hlc, LwwEntry, LwwLink, LwwMap, LwwStamp, NodeId};
use outpost_store::{ReadError, Space};

use super::retained_feed::{CLOCK_AHEAD_MS_MAX, COLLECTED_AT_ONCE};
use super::{Event, Hold, LogLevel, Shard};
use crate::record::{self, RetainedFloor, StateRecord};

/// Longest key and longest value, bytes. Shorter: client ids and user names beyond have no place in the directory; longer:
/// a peer can make every node keep that much for each entry.
pub const STATE_BYTES_MAX: usize = 4_096;

/// Before the key of a row in `Space::Meta`.
const PREFIX: &[u8] = b"state/";

/// Key of the last place and stamp in `Space::Meta`.
const FLOOR_KEY: &[u8] = b"state_floor";

/// Before a node's number in the key of what it goes by.
const CONFIG: &str = "config/";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) map: LwwMap<Arc<str>, Bytes>,
    /// Peers whose changes came in this turn.
    heard: BTreeSet<NodeId>,
    /// The epoch of the rules that was told last.
    told_epoch: Option<u64>,
    /// Entries there was no room for.
    pub(super) refused: u64,
}

fn row_key(key: &str) -> Vec<u8> {
    [PREFIX, key.as_bytes()].concat()
}

impl Shard {
    /// At start, before anything is written. The newest stamp in it.
    pub(super) fn recover_state(&mut self) -> Result<Hlc, ReadError> {
        let store = self.journal.shared_store();
        let mut newest = Hlc::default();
        store.visit(Space::Meta, PREFIX, &mut |key, row| {
            let key = key.strip_prefix(PREFIX).and_then(|key| std::str::from_utf8(key).ok());
            let record = record::decode::<StateRecord>("state", row);
            let (Some(key), Ok(record)) = (key, record) else {
                let text = "a record of small state cannot be read; it is left out".to_owned();
                return self.log(LogLevel::Warn, text);
            };
            let stamp = LwwStamp { hlc: Hlc(record.stamp), node: NodeId(record.node) };
            let value = record.value.map(|value| Vec::from(value).into());
            newest = newest.max(stamp.hlc);
            self.state.map.restore(key.into(), LwwEntry { stamp, value }, record.feed_seq);
        })?;
        if let Some(row) = store.get(Space::Meta, FLOOR_KEY)? {
            match record::decode::<RetainedFloor>("state floor", &row) {
                Ok(floor) => {
                    self.state.map.raise_place(floor.feed_seq);
                    newest = newest.max(Hlc(floor.stamp));
                }
                Err(error) => self.log(LogLevel::Warn, error.to_string()),
            }
        }
        Ok(newest)
    }

    /// Writes an entry of this node's own. False: there is no room for it.
    pub(super) fn write_state(&mut self, key: &str, value: Option<Bytes>) -> bool {
        let hlc = self.clock.tick(self.now);
        self.write_state_at(hlc, key, value)
    }

    /// The same with a stamp of the caller's.
    pub(super) fn write_state_at(&mut self, hlc: Hlc, key: &str, value: Option<Bytes>) -> bool {
        if value.is_some() && !self.has_state_room(key, value.as_ref()) {
            self.state.refused += 1;
            return false;
        }
        let stamp = LwwStamp { hlc, node: self.config.node };
        self.merge_state(&key.into(), LwwEntry { stamp, value })
    }

    fn has_state_room(&self, key: &str, value: Option<&Bytes>) -> bool {
        let fits = key.len() <= STATE_BYTES_MAX && value.is_none_or(|v| v.len() <= STATE_BYTES_MAX);
        let is_there = self.state.map.get(key).is_some();
        fits && (is_there || self.state.map.len() < self.config.directory_max)
    }

    /// Takes an entry in when it is newer: written down, and told to the peers once durable.
    fn merge_state(&mut self, key: &Arc<str>, entry: LwwEntry<Bytes>) -> bool {
        let (stamp, value) = (entry.stamp, entry.value.clone());
        let Some(joined) = self.state.map.join(Arc::clone(key), entry) else { return false };
        let record = StateRecord {
            stamp: stamp.hlc.0,
            node: stamp.node.0,
            feed_seq: joined.place,
            value: value.map(|value| value.to_vec().into()),
        };
        self.journal.put(Space::Meta, row_key(key), record::encode(&record));
        for peer in self.peers.keys() {
            self.journal.hold(Hold::State { peer: *peer, feed_seq: joined.place });
        }
        true
    }

    /// A peer tells of a change.
    pub(super) fn peer_state(
        &mut self,
        id: NodeId,
        feed_seq: u64,
        entry: StateEntry,
    ) -> Result<(), String> {
        let StateEntry { key, stamp, node, value } = entry;
        if key.len() > STATE_BYTES_MAX
            || value.as_ref().is_some_and(|value| value.len() > STATE_BYTES_MAX)
        {
            return Err(format!("small state of more than {STATE_BYTES_MAX} bytes"));
        }
        self.clock
            .observe(stamp, self.now, CLOCK_AHEAD_MS_MAX)
            .map_err(|error| error.to_string())?;
        let entry = LwwEntry { stamp: LwwStamp { hlc: stamp, node }, value };
        let key: Arc<str> = key.into();
        let writer = self.peers.get(&node).filter(|_| node != id);
        let is_late = writer
            .is_some_and(|writer| is_gone(&self.state.map, &key, &entry, writer.state.seen_own));
        let before = self.state.map.entry(&*key).map(|entry| entry.stamp.node);
        let mut is_new = false;
        if !is_late {
            if entry.value.is_some() && !self.has_state_room(&key, entry.value.as_ref()) {
                self.state.refused += 1;
                if self.peers.get_mut(&id).is_some_and(|peer| peer.state.miss()) {
                    let text = format!(
                        "no room for what peer {id} tells of sessions; it is left out (limits.directory_max)"
                    );
                    self.log(LogLevel::Warn, text);
                }
                return Ok(());
            }
            is_new = self.merge_state(&key, entry.clone());
        }
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        if peer.state.see(id, feed_seq, &entry) {
            self.state.heard.insert(id);
            self.write_peer(id);
        }
        if is_new {
            self.state_changed(&key, before);
        }
        Ok(())
    }

    /// A peer takes part in the small state, and has it up to there.
    pub(super) fn greeted_state(&mut self, id: NodeId, feed_seq: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.knows_state = true;
        peer.state.greet(peer.knows_us.then_some(feed_seq));
        self.pump_state(id);
        self.review_all();
        self.moves.stir();
    }

    /// Ends a turn: says what this node goes by, confirms what came, forgets what all have confirmed.
    pub(super) fn end_state_turn(&mut self) {
        self.go_on_with_moves();
        if !self.peers.is_empty() && self.state.told_epoch != Some(self.gate.epoch()) {
            self.tell_epoch();
        }
        while let Some(id) = self.state.heard.pop_first() {
            let Some(peer) = self.peers.get(&id) else { continue };
            let frame = PeerFrame::StateSeen { feed_seq: peer.state.seen };
            // Behind the changes that this turn tells on: those were held first.
            self.journal.hold(Hold::Peer(id, frame));
        }
        if self.state.map.tombstones() > 0 {
            self.collect_state();
        }
    }

    fn collect_state(&mut self) {
        let peers = self.peers.values().map(|peer| &peer.state);
        let confirmed = peers.map(LwwLink::confirmed).min().unwrap_or(u64::MAX);
        let max = self.config.directory_max;
        let gone = self.state.map.collect_some(confirmed, COLLECTED_AT_ONCE, max);
        if gone.keys.is_empty() {
            return;
        }
        if gone.too_early > 0 {
            self.note_forgotten(gone.last_place, |peer| &mut peer.state);
        }
        for key in gone.keys {
            self.journal.delete(Space::Meta, row_key(&key));
        }
        // Places and stamps of what is gone are not given again.
        let (feed_seq, stamp) = (self.state.map.last_place(), self.clock.floor().0);
        let floor = record::encode(&RetainedFloor { feed_seq, stamp, own: None });
        self.journal.put(Space::Meta, FLOOR_KEY.to_vec(), floor);
    }

    /// A peer has kept everything of this node's up to there.
    pub(super) fn state_confirmed(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.state.confirm(feed_seq);
            peer.state_way.confirm(feed_seq, self.now.mono_ms);
            self.pump_state(id);
        }
    }

    pub(super) fn state_durable(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.state_durable = peer.state_durable.max(feed_seq);
            self.pump_state(id);
        }
    }

    /// Sends changes the peer has not seen, as far as they are durable and there is room on the way.
    pub(super) fn pump_state(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id).filter(|peer| peer.up && peer.knows_state) else {
            return;
        };
        let upto = peer.state_durable;
        while peer.state_way.has_room()
            && let Some((feed_seq, key, entry)) = peer.state.next(id, &self.state.map, upto)
        {
            let (stamp, node, value) = (entry.stamp.hlc, entry.stamp.node, entry.value.clone());
            let entry = StateEntry { key: key.to_string(), stamp, node, value };
            let frame = PeerFrame::State { feed_seq, entry };
            peer.state_way.tell(feed_seq, frame.cost_bytes(), self.now.mono_ms);
            self.events.push_back(Event::Peer(id, frame));
        }
        let due_ms = peer.state_way.due_ms();
        self.note_feed_due(due_ms);
    }

    /// Says which rules this node goes by.
    fn tell_epoch(&mut self) {
        let epoch = self.gate.epoch();
        self.state.told_epoch = Some(epoch);
        let (key, value) = (format!("{CONFIG}{}", self.config.node.0), epoch.to_be_bytes());
        if self.state.map.get(&*key).is_none_or(|told| told[..] != value) {
            self.write_state(&key, Some(Bytes::copy_from_slice(&value)));
        }
    }

    /// The rules that each node goes by, as far as it is known here: two with one number go by the same.
    pub(super) fn rules_epochs(&self) -> Vec<(NodeId, u64)> {
        let keys = self.state.map.range::<str, _>((Bound::Included(CONFIG), Bound::Unbounded));
        keys.take_while(|(key, _)| key.starts_with(CONFIG))
            .filter_map(|(key, entry)| {
                let node = NodeId(key.strip_prefix(CONFIG)?.parse().ok()?);
                let epoch = entry.value.as_ref()?.as_ref().try_into().ok()?;
                Some((node, u64::from_be_bytes(epoch)))
            })
            .collect()
    }
}
