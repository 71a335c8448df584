//! Retained messages: one slot a topic, last writer wins by (stamp, node), replicated to every node by a feed.

use std::collections::BTreeMap;
use std::sync::Arc;

use outpost_membership::RetainedEntry;
use outpost_model::{Message, MessageId, TopicFilter};
use outpost_store::Space;

use super::{Hold, Shard};
use crate::record;

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
    /// Written in this turn; whoever published them waits for the disk.
    written: Vec<MessageId>,
}

impl Retained {
    /// Messages whose topic matches, in order of topics.
    pub(super) fn matching(&self, filter: &TopicFilter) -> Vec<Arc<Message>> {
        let message = |slot: &RetainedSlot| slot.entry.message.clone();
        if filter.is_exact() {
            return self.slots.get(filter.pattern()).and_then(message).into_iter().collect();
        }
        // Everything before the first wildcard is a prefix of what can match.
        let pattern = filter.pattern();
        let fixed = &pattern[..pattern.find(['+', '#']).unwrap_or(pattern.len())];
        let start = fixed.strip_suffix('/').filter(|_| pattern.ends_with('#')).unwrap_or(fixed);
        self.slots
            .range(start.to_owned()..)
            .take_while(|(topic, _)| topic.starts_with(start))
            .filter(|(topic, _)| filter.matches(topic))
            .filter_map(|(_, slot)| message(slot))
            .collect()
    }

    /// How many topics have a retained message.
    pub(super) fn len(&self) -> usize {
        self.live
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
        self.live += usize::from(entry.message.is_some());
        self.feed.insert(feed_seq, entry.topic.clone());
        if let Some(old) = self.slots.insert(entry.topic.clone(), RetainedSlot { entry, feed_seq })
        {
            self.feed.remove(&old.feed_seq);
            self.live -= usize::from(old.entry.message.is_some());
        }
    }
}

impl Shard {
    /// A message with the retain flag was accepted here.
    pub(super) fn retain(&mut self, message: &Arc<Message>) {
        let kept = (!message.payload.is_empty()).then(|| Arc::clone(message));
        if kept.is_none() && !self.retained.slots.contains_key(&*message.topic) {
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
        let topic = self.retained.feed[&feed_seq].clone();
        let row = record::encode_retained(&self.retained.slots[&topic].entry, feed_seq);
        self.journal.put(Space::Retained, topic.into_bytes(), row);
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.journal.hold(Hold::Retained { peer, feed_seq });
        }
    }

    /// Whether another topic may have a retained message.
    pub(super) fn has_retained_room(&self, topic: &str) -> bool {
        let fits =
            topic.len() <= super::NAME_BYTES_MAX && self.retained.live < self.config.retained_max;
        fits || self.retained.slots.contains_key(topic)
    }
}
