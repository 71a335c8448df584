//! Retained messages between nodes: each tells the changes of its own copy, confirms what it has kept of the others', and
//! forgets a removal when all the peers it knows have confirmed that.

use std::sync::Arc;

use outpost_membership::{PeerFrame, RetainedEntry};
use outpost_model::lww::is_gone;
use outpost_model::{LwwLink, NodeId, topic};
use outpost_store::Space;

use super::retained::{from_wire, to_wire};
use super::{Event, Hold, LogLevel, Shard};
use crate::record::{self, RetainedFloor};

/// A retained slot from the future of more than this is refused.
const CLOCK_AHEAD_MS_MAX: u64 = 60_000;

/// Removals forgotten in one turn. More: the turn after a peer has come back takes longer; fewer: they stay for longer.
const COLLECTED_AT_ONCE: usize = 1_024;

/// Key of [`RetainedFloor`] in `Space::Meta`.
pub(super) const FLOOR_KEY: &[u8] = b"retained_floor";

impl Shard {
    /// A peer tells of a change.
    pub(super) fn peer_retained(
        &mut self,
        id: NodeId,
        feed_seq: u64,
        entry: RetainedEntry,
    ) -> Result<(), String> {
        // It becomes a key of the store.
        if topic::check_name(&entry.topic).is_err() || entry.topic.len() > super::NAME_BYTES_MAX {
            return Err("a retained slot whose topic is no topic name".to_owned());
        }
        self.clock
            .observe(entry.stamp, self.now, CLOCK_AHEAD_MS_MAX)
            .map_err(|error| error.to_string())?;
        let (topic, entry) = from_wire(entry);
        let writer = self.peers.get(&entry.stamp.node).filter(|_| entry.stamp.node != id);
        let is_late = writer.is_some_and(|writer| {
            is_gone(&self.retained.map, &topic, &entry, writer.retained.seen_own)
        });
        if !is_late {
            if let Some(kept) = &entry.value
                && !self.has_retained_room(&topic, kept.0.payload.len())
            {
                self.miss_retained(id);
                return Ok(());
            }
            self.merge_retained(&topic, entry.clone());
        }
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        if peer.retained.see(id, feed_seq, &entry) {
            self.retained.heard.insert(id);
            self.write_peer(id);
        }
        Ok(())
    }

    /// Not noted as seen: it comes again with the next link, when there may be room.
    fn miss_retained(&mut self, id: NodeId) {
        if self.peers.get_mut(&id).is_some_and(|peer| peer.retained.miss()) {
            let text = format!("no room for retained messages of peer {id}; they are left out");
            self.log(LogLevel::Warn, text);
        }
    }

    /// Tells the peers that were heard in this turn what is kept of their changes, once it is; and forgets what all have
    /// confirmed.
    pub(super) fn end_retained_turn(&mut self) {
        for id in std::mem::take(&mut self.retained.heard) {
            let Some(peer) = self.peers.get(&id) else { continue };
            let frame = PeerFrame::RetainedSeen { feed_seq: peer.retained.seen };
            // Behind the changes that this turn tells on: those were held first.
            self.journal.hold(Hold::Peer(id, frame));
        }
        if self.retained.map.tombstones() > 0 {
            self.collect_retained();
        }
    }

    fn collect_retained(&mut self) {
        let peers = self.peers.values().map(|peer| &peer.retained);
        let confirmed = peers.map(LwwLink::confirmed).min().unwrap_or(u64::MAX);
        let mut gone: Vec<Arc<str>> = Vec::new();
        while gone.len() < COLLECTED_AT_ONCE
            && let Some(topic) = self.retained.map.collect(confirmed)
        {
            gone.push(topic);
        }
        while self.retained.map.tombstones() > self.config.retained_max
            && let Some((_, topic)) = self.retained.map.forget_tombstone()
        {
            self.retained.forgotten += 1;
            gone.push(topic);
        }
        if gone.is_empty() {
            return;
        }
        for topic in gone {
            self.journal.delete(Space::Retained, topic.as_bytes().to_vec());
        }
        // Places and stamps of what is gone are not given again.
        let (feed_seq, stamp) = (self.retained.map.last_place(), self.clock.floor().0);
        let floor = record::encode(&RetainedFloor { feed_seq, stamp });
        self.journal.put(Space::Meta, FLOOR_KEY.to_vec(), floor);
    }

    /// A peer has kept everything of this node's up to there.
    pub(super) fn retained_confirmed(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.retained.confirm(feed_seq);
        }
    }

    pub(super) fn retained_durable(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.retained_durable = peer.retained_durable.max(feed_seq);
            self.pump_retained(id);
        }
    }

    /// Sends retained changes the peer has not seen, as far as they are durable. What the link cannot take breaks it,
    /// and the next link begins where the peer says.
    pub(super) fn pump_retained(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up && p.greeted) else { return };
        let upto = peer.retained_durable;
        while let Some((feed_seq, topic, entry)) = peer.retained.next(id, &self.retained.map, upto)
        {
            let entry = to_wire(topic, entry);
            self.events.push_back(Event::Peer(id, PeerFrame::Retained { feed_seq, entry }));
        }
    }
}
