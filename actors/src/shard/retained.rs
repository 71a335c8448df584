//! Retained messages: one slot a topic, last writer wins by (stamp, node), replicated to every node by a feed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use outpost_flow::Pressure;
use outpost_membership::RetainedEntry;
use outpost_model::{Hlc, Message, MessageId, TopicFilter};
use outpost_store::Space;

use super::{Hold, Shard};
use crate::record;

/// A retained message may grow to this while memory is short. Less: a value with one more digit is refused; more: many
/// small ones that grow at once are felt.
const GROWTH_BYTES: usize = 256;

/// A slot and its place in this node's feed of changes.
#[derive(Debug)]
struct RetainedSlot {
    entry: RetainedEntry,
    feed_seq: u64,
}

/// All retained slots of a node, tombstones included.
#[derive(Debug, Default)]
pub(super) struct Retained {
    slots: BTreeMap<String, RetainedSlot>,
    /// Topics by the time of their last change here; what a peer has not seen is a suffix.
    feed: BTreeMap<u64, String>,
    feed_next: u64,
    live: usize,
    /// What the messages occupy.
    bytes: u64,
    /// Slots without a message, oldest first.
    tombstones: BTreeSet<(Hlc, String)>,
    /// Written in this turn; whoever published them waits for the disk.
    written: Vec<MessageId>,
}

impl Retained {
    /// At most `limit` messages whose topic matches and comes after `after`, in order of topics; and where to go on.
    pub(super) fn matching(
        &self,
        filter: &TopicFilter,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<Message>>, Option<String>) {
        let message = |slot: &RetainedSlot| slot.entry.message.clone();
        if filter.is_exact() {
            let found = self.slots.get(filter.pattern()).and_then(message);
            return (found.into_iter().collect(), None);
        }
        // Everything before the first wildcard is a prefix of what can match.
        let pattern = filter.pattern();
        let fixed = &pattern[..pattern.find(['+', '#']).unwrap_or(pattern.len())];
        let start = fixed.strip_suffix('/').filter(|_| pattern.ends_with('#')).unwrap_or(fixed);
        let from = match after {
            "" => Bound::Included(start),
            after => Bound::Excluded(after),
        };
        let mut found = Vec::new();
        let slots = self.slots.range::<str, _>((from, Bound::Unbounded));
        for (topic, slot) in slots.take_while(|(topic, _)| topic.starts_with(start)) {
            if filter.matches(topic) {
                found.extend(message(slot));
            }
            if found.len() == limit {
                return (found, Some(topic.clone()));
            }
        }
        (found, None)
    }

    /// Everything that is known of topics in a range, tombstones included.
    pub(super) fn entries<'a>(
        &'a self,
        topics: (Bound<&str>, Bound<&str>),
    ) -> impl Iterator<Item = &'a RetainedEntry> + use<'a> {
        self.slots.range::<str, _>(topics).map(|(_, slot)| &slot.entry)
    }

    /// How many topics have a retained message.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// What their messages occupy, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The number of the last change.
    pub(super) fn feed_last(&self) -> u64 {
        self.feed_next
    }

    pub(super) fn was_written(&self, id: MessageId) -> bool {
        self.written.contains(&id)
    }

    pub(super) fn end_turn(&mut self) {
        self.written.clear();
    }

    /// The change with the lowest feed number above `after`.
    pub(super) fn next_change(&self, after: u64) -> Option<(u64, RetainedEntry)> {
        let (feed_seq, topic) = self.feed.range(after + 1..).next()?;
        Some((*feed_seq, self.slots.get(topic)?.entry.clone()))
    }

    /// Takes an entry in when it is newer than what stands there. Its feed number, or nothing.
    fn merge(&mut self, entry: RetainedEntry) -> Option<u64> {
        let old = self.slots.get(&entry.topic);
        if old.is_some_and(|old| (old.entry.stamp, old.entry.node) >= (entry.stamp, entry.node)) {
            return None;
        }
        self.feed_next += 1;
        self.insert(entry, self.feed_next);
        Some(self.feed_next)
    }

    pub(super) fn insert(&mut self, entry: RetainedEntry, feed_seq: u64) {
        self.feed_next = self.feed_next.max(feed_seq);
        if let Some(old) = self.slots.get(&entry.topic) {
            self.feed.remove(&old.feed_seq);
            match old.entry.message {
                Some(ref message) => {
                    self.live -= 1;
                    self.bytes -= message.cost_bytes() as u64;
                }
                None => drop(self.tombstones.remove(&(old.entry.stamp, entry.topic.clone()))),
            }
        }
        match entry.message {
            Some(ref message) => {
                self.live += 1;
                self.bytes += message.cost_bytes() as u64;
            }
            None => drop(self.tombstones.insert((entry.stamp, entry.topic.clone()))),
        }
        self.feed.insert(feed_seq, entry.topic.clone());
        self.slots.insert(entry.topic.clone(), RetainedSlot { entry, feed_seq });
    }

    /// Forgets the oldest tombstone when there are more than `limit`. Its topic.
    fn forget_tombstone(&mut self, limit: usize) -> Option<String> {
        if self.tombstones.len() <= limit {
            return None;
        }
        let (_, topic) = self.tombstones.pop_first()?;
        if let Some(slot) = self.slots.remove(&topic) {
            self.feed.remove(&slot.feed_seq);
        }
        Some(topic)
    }
}

impl Shard {
    /// A message with the retain flag was accepted here.
    pub(super) fn retain(&mut self, message: &Arc<Message>) {
        let kept = (!message.payload.is_empty()).then(|| Arc::clone(message));
        // A peer may know more than this node does: what is cleared here is cleared there.
        let alone = self.peers.is_empty();
        if kept.is_none() && alone && !self.retained.slots.contains_key(&*message.topic) {
            return; // clearing what was never set needs no tombstone
        }
        let entry = RetainedEntry {
            topic: message.topic.to_string(),
            stamp: self.clock.tick(self.now),
            node: self.config.node,
            message: kept,
        };
        self.retained.written.push(message.id);
        self.merge_retained(entry);
    }

    /// An entry from here or from a peer: written down if newer, and told to the peers once durable.
    pub(super) fn merge_retained(&mut self, entry: RetainedEntry) {
        let Some(feed_seq) = self.retained.merge(entry) else { return };
        let Some(topic) = self.retained.feed.get(&feed_seq).cloned() else { return };
        let row = record::encode_retained(&self.retained.slots[&topic].entry, feed_seq);
        self.journal.put(Space::Retained, topic.into_bytes(), row);
        while let Some(topic) = self.retained.forget_tombstone(self.config.retained_max) {
            self.journal.delete(Space::Retained, topic.into_bytes());
        }
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.journal.hold(Hold::Retained { peer, feed_seq });
        }
    }

    /// Whether a topic may have a retained message of so many bytes: another topic while there is room, one that has one
    /// always, but while memory is short it does not grow.
    pub(super) fn has_retained_room(&self, topic: &str, payload_bytes: usize) -> bool {
        let short = self.budget.pressure() >= Pressure::Refuse;
        let old = self.retained.slots.get(topic).and_then(|slot| slot.entry.message.as_ref());
        match old {
            Some(old) => !short || payload_bytes <= old.payload.len().max(GROWTH_BYTES),
            None => {
                topic.len() <= super::NAME_BYTES_MAX
                    && self.retained.live < self.config.retained_max
                    && !short
            }
        }
    }
}
