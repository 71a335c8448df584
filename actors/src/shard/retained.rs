//! Retained messages: an [`LwwMap`] from topics to messages. What peers are told of it: [`super::retained_feed`].

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use outpost_flow::Pressure;
use outpost_membership::RetainedEntry;
use outpost_model::lww::OwnWrites;
use outpost_model::{LwwEntry, LwwMap, LwwStamp, Message, MessageId, NodeId, TopicFilter};
use outpost_store::Space;

use super::retained_expiry::own_due_ms;
use super::{Hold, Shard};
use crate::record;

/// A retained message may grow to this while memory is short. Less: a value with one more digit is refused; more: many
/// small ones that grow at once are felt.
const GROWTH_BYTES: usize = 256;

/// A retained message. Of two under one stamp, which only a node that breaks the rules writes, the one with the greater
/// bytes counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Kept(pub(super) Arc<Message>);

/// All retained messages of a node, and those that are gone.
#[derive(Debug, Default)]
pub(super) struct Retained {
    pub(super) map: LwwMap<Arc<str>, Kept>,
    /// Which of them this node wrote.
    pub(super) own: OwnWrites,
    /// What the messages occupy.
    bytes: u64,
    /// Written in this turn; whoever published them waits for the disk.
    written: Vec<MessageId>,
    /// Peers whose changes came in this turn.
    pub(super) heard: BTreeSet<NodeId>,
    /// Removals that were forgotten although a peer had not confirmed them.
    pub(super) forgotten: u64,
    /// Topics of those this node retained for a time, by its end.
    pub(super) expiring: BTreeSet<(u64, Arc<str>)>,
    /// A row could not be read at the start: peers tell everything anew.
    pub(super) lacks_rows: bool,
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        if self == other {
            return Ordering::Equal;
        }
        record::encode_message(&self.0).cmp(&record::encode_message(&other.0))
    }
}

impl Retained {
    /// At most `limit` messages whose topic matches and comes after `after`, in order of topics; and where to go on.
    pub(super) fn matching(
        &self,
        filter: &TopicFilter,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<Message>>, Option<String>) {
        if filter.is_exact() {
            let found = self.map.get(filter.pattern()).map(|kept| Arc::clone(&kept.0));
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
        let entries = self.map.range::<str, _>((from, Bound::Unbounded));
        for (topic, entry) in entries.take_while(|(topic, _)| topic.starts_with(start)) {
            if filter.matches(topic) {
                found.extend(entry.value.as_ref().map(|kept| Arc::clone(&kept.0)));
            }
            if found.len() == limit {
                return (found, Some(topic.to_string()));
            }
        }
        (found, None)
    }

    /// The messages on topics after this one, in order; nothing for those that were removed.
    pub(super) fn after<'a>(
        &'a self,
        topic: &'a str,
    ) -> impl Iterator<Item = (&'a Arc<str>, Option<&'a Message>)> {
        let topics = (Bound::Excluded(topic), Bound::Unbounded);
        let message = |entry: &'a LwwEntry<Kept>| entry.value.as_ref().map(|kept| &*kept.0);
        self.map.range::<str, _>(topics).map(move |(topic, entry)| (topic, message(entry)))
    }

    /// The message on a topic.
    pub(super) fn get(&self, topic: &str) -> Option<&Message> {
        self.map.get(topic).map(|kept| &*kept.0)
    }

    /// How many topics have a retained message.
    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// What their messages occupy, bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn was_written(&self, id: MessageId) -> bool {
        self.written.contains(&id)
    }

    pub(super) fn end_turn(&mut self) {
        self.written.clear();
    }

    /// At start: an entry from the disk.
    pub(super) fn restore(&mut self, own: NodeId, entry: RetainedEntry, feed_seq: u64) {
        let (topic, entry) = from_wire(entry);
        self.bytes += cost(entry.value.as_ref());
        self.note_expiry(&topic, None, own_due_ms(own, &entry));
        let replaced = self.map.restore(topic, entry, feed_seq);
        self.bytes -= cost(replaced.as_ref());
    }

    /// Takes an entry in when it is newer than what stands there. Its place in the feed, or nothing.
    fn merge(&mut self, own: NodeId, topic: &Arc<str>, entry: LwwEntry<Kept>) -> Option<u64> {
        let more = cost(entry.value.as_ref());
        let due_ms = own_due_ms(own, &entry);
        let joined = self.map.join(Arc::clone(topic), entry)?;
        self.note_expiry(topic, joined.replaced.as_ref(), due_ms);
        self.bytes = self.bytes + more - cost(joined.replaced.as_ref());
        Some(joined.place)
    }
}

fn cost(kept: Option<&Kept>) -> u64 {
    kept.map_or(0, |kept| kept.0.cost_bytes() as u64)
}

/// An entry as the map holds it.
pub(super) fn from_wire(entry: RetainedEntry) -> (Arc<str>, LwwEntry<Kept>) {
    let stamp = LwwStamp { hlc: entry.stamp, node: entry.node };
    (entry.topic.into(), LwwEntry { stamp, value: entry.message.map(Kept) })
}

/// An entry as peers and the disk get it.
pub(super) fn to_wire(topic: &str, entry: &LwwEntry<Kept>) -> RetainedEntry {
    RetainedEntry {
        topic: topic.to_owned(),
        stamp: entry.stamp.hlc,
        node: entry.stamp.node,
        message: entry.value.as_ref().map(|kept| Arc::clone(&kept.0)),
    }
}

impl Shard {
    /// A message with the retain flag was accepted here.
    pub(super) fn retain(&mut self, message: &Arc<Message>) {
        let kept = (!message.payload.is_empty()).then(|| Kept(Arc::clone(message)));
        // A peer may know more than this node does: what is cleared here is cleared there.
        let alone = self.peers.is_empty();
        if kept.is_none() && alone && self.retained.map.entry(&*message.topic).is_none() {
            return; // clearing what was never set needs no tombstone
        }
        let stamp = LwwStamp { hlc: self.clock.tick(self.now), node: self.config.node };
        if self.retained.own.note(stamp.hlc) {
            self.write_retained_floor();
        }
        self.retained.written.push(message.id);
        self.merge_retained(&(*message.topic).into(), LwwEntry { stamp, value: kept });
    }

    /// An entry from here or from a peer: written down if newer, and told to the peers once durable.
    pub(super) fn merge_retained(&mut self, topic: &Arc<str>, entry: LwwEntry<Kept>) {
        let wire = to_wire(topic, &entry);
        let own = self.config.node;
        let Some(feed_seq) = self.retained.merge(own, topic, entry) else { return };
        let row = record::encode_retained(&wire, feed_seq);
        self.journal.put(Space::Retained, topic.as_bytes().to_vec(), row);
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.journal.hold(Hold::Retained { peer, feed_seq });
        }
    }

    /// Whether a topic may have a retained message of so many bytes: another topic while there is room, one that has one
    /// always, but while memory is short it does not grow.
    pub(super) fn has_retained_room(&self, topic: &str, payload_bytes: usize) -> bool {
        let short = self.budget.pressure() >= Pressure::Refuse;
        match self.retained.get(topic) {
            Some(old) => !short || payload_bytes <= old.payload.len().max(GROWTH_BYTES),
            None => {
                topic.len() <= super::NAME_BYTES_MAX
                    && self.retained.len() < self.config.retained_max
                    && !short
            }
        }
    }
}
