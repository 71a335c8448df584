//! Retained messages between nodes: each tells the changes of its own copy, confirms what it has kept of the others', and
//! forgets a removal when all the peers it knows have confirmed that.

use std::sync::Arc;

use outpost_membership::{PeerFrame, RetainedEntry};
use outpost_model::lww::is_gone;
use outpost_model::{Hlc, LwwEntry, LwwLink, LwwStamp, NodeId, topic};
use outpost_store::Space;

use super::peers::Peer;
use super::retained::{Kept, from_wire, to_wire};
use super::{Event, Hold, LogLevel, Shard};
use crate::record::{self, RetainedFloor};

/// What was written in the future by more than this is refused.
pub(super) const CLOCK_AHEAD_MS_MAX: u64 = 60_000;

/// Removals forgotten in one turn. More: the turn after a peer has come back takes longer; fewer: they stay for longer.
pub(super) const COLLECTED_AT_ONCE: usize = 1_024;

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
        if self.is_late(&topic, &entry) {
            if entry.value.is_some() {
                // Whoever tells it shows it, and there may be nobody else who remembers that it was removed.
                self.merge_retained(&topic, LwwEntry { value: None, stamp: entry.stamp });
            }
        } else {
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

    /// Whether it was here before and was removed.
    fn is_late(&mut self, topic: &Arc<str>, entry: &LwwEntry<Kept>) -> bool {
        let LwwStamp { hlc, node } = entry.stamp;
        if node != self.config.node {
            let seen_own = match (self.peers.get(&node), self.gone.get(&node)) {
                (Some(peer), _) => peer.retained.seen_own,
                (None, Some(gone)) => Hlc(gone.retained_own.unwrap_or(0)),
                (None, None) => return false,
            };
            return is_gone(&self.retained.map, topic, entry, seen_own);
        }
        let before = self.retained.own;
        let is_own = self.retained.own.handle_told(hlc);
        if self.retained.own != before {
            self.write_retained_floor();
        }
        is_own && self.retained.map.entry(topic).is_none()
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
        while let Some(id) = self.retained.heard.pop_first() {
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
        let gone =
            self.retained.map.collect_some(confirmed, COLLECTED_AT_ONCE, self.config.retained_max);
        if gone.keys.is_empty() {
            return;
        }
        if gone.too_early > 0 {
            self.retained.forgotten += gone.too_early as u64;
            self.note_forgotten(gone.last_place, |peer| &mut peer.retained);
        }
        for topic in gone.keys {
            self.journal.delete(Space::Retained, topic.as_bytes().to_vec());
        }
        self.write_retained_floor();
    }

    /// Removals up to this place are forgotten: peers that have not confirmed them are to tell everything with their next link,
    /// also when this node starts again before that.
    pub(super) fn note_forgotten(&mut self, place: u64, link: fn(&mut Peer) -> &mut LwwLink) {
        let news = |peer: &mut Peer| link(peer).forget(place);
        let peers = self.peers.iter_mut().filter_map(|(id, peer)| news(peer).then_some(*id));
        for id in peers.collect::<Vec<_>>() {
            self.write_peer(id);
        }
    }

    /// Places and stamps of what is gone are not given again.
    pub(super) fn write_retained_floor(&mut self) {
        let (feed_seq, stamp) = (self.retained.map.last_place(), self.clock.floor().0);
        let own = self.retained.own.span.map(|(first, last)| (first.0, last.0));
        let floor = record::encode(&RetainedFloor { feed_seq, stamp, own });
        self.journal.put(Space::Meta, FLOOR_KEY.to_vec(), floor);
    }

    /// A peer has kept everything of this node's up to there.
    pub(super) fn retained_confirmed(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.retained.confirm(feed_seq);
            peer.retained_way.confirm(feed_seq, self.now.mono_ms);
            self.pump_retained(id);
        }
    }

    pub(super) fn retained_durable(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.retained_durable = peer.retained_durable.max(feed_seq);
            self.pump_retained(id);
        }
    }

    /// Sends retained changes the peer has not seen, as far as they are durable and there is room on the way.
    pub(super) fn pump_retained(&mut self, id: NodeId) {
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up && p.greeted) else { return };
        let upto = peer.retained_durable;
        while peer.retained_way.has_room()
            && let Some((feed_seq, topic, entry)) = peer.retained.next(id, &self.retained.map, upto)
        {
            let bytes = entry.value.as_ref().map_or(topic.len(), |kept| kept.0.cost_bytes());
            peer.retained_way.tell(feed_seq, bytes, self.now.mono_ms);
            let entry = to_wire(topic, entry);
            self.events.push_back(Event::Peer(id, PeerFrame::Retained { feed_seq, entry }));
        }
        let due_ms = peer.retained_way.due_ms();
        self.note_feed_due(due_ms);
    }
}
