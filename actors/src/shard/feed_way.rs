//! Changes of a feed on their way to a peer, of retained messages or of small state: told, and not confirmed. All that a new
//! peer lacks at once would be more than a link takes, and then it breaks.

use std::collections::VecDeque;

use outpost_model::NodeId;

use super::Shard;

/// Changes of one feed told to a peer and not confirmed. Fewer: a long round trip leaves the link idle while a new peer is told
/// everything; more: what is written now waits behind more, and the memory of a link holds more.
pub const FEED_WAY_MAX: usize = 1_024;

/// Bytes of them, and one change more. Together with the shadows on their way they fit the queue of the link.
pub const FEED_WAY_BYTES_MAX: usize = 1024 * 1024;

/// A peer that confirms nothing for so long is told as much again: it had no room for one of them and takes what it has room
/// for, or is of an earlier release. Shorter: more is told to who cannot keep up; longer: such a peer hears later.
const PATIENCE_MS: u64 = 1_000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct FeedWay {
    /// Places and bytes, in order.
    told: VecDeque<(u64, usize)>,
    bytes: usize,
    /// When it last moved.
    since_ms: u64,
}

impl FeedWay {
    pub(super) fn has_room(&self) -> bool {
        self.told.len() < FEED_WAY_MAX && self.bytes < FEED_WAY_BYTES_MAX
    }

    pub(super) fn tell(&mut self, place: u64, bytes: usize, now_ms: u64) {
        self.told.push_back((place, bytes));
        self.bytes += bytes;
        self.since_ms = now_ms;
    }

    pub(super) fn confirm(&mut self, upto: u64, now_ms: u64) {
        while let Some((_, bytes)) = self.told.pop_front_if(|(place, _)| *place <= upto) {
            self.bytes -= bytes;
            self.since_ms = now_ms;
        }
    }

    /// Until when the peer is waited for.
    pub(super) fn due_ms(&self) -> Option<u64> {
        (!self.has_room()).then_some(self.since_ms + PATIENCE_MS)
    }

    /// Nothing is waited for.
    pub(super) fn clear(&mut self) {
        (self.told, self.bytes) = (VecDeque::new(), 0);
    }
}

impl Shard {
    /// A way may be full: when to go on if nothing is confirmed.
    pub(super) fn note_feed_due(&mut self, due_ms: Option<u64>) {
        self.feed_due_ms = self.feed_due_ms.into_iter().chain(due_ms).min();
    }

    /// Goes on with peers that confirm nothing.
    pub(super) fn feed_timeout(&mut self) {
        let now_ms = self.now.mono_ms;
        if self.feed_due_ms.is_none_or(|due_ms| due_ms > now_ms) {
            return;
        }
        self.feed_due_ms = None;
        for id in self.peers.keys().copied().collect::<Vec<NodeId>>() {
            if let Some(peer) = self.peers.get_mut(&id) {
                for way in [&mut peer.retained_way, &mut peer.state_way] {
                    if way.due_ms().is_some_and(|due_ms| due_ms <= now_ms) {
                        way.clear();
                    }
                }
            }
            self.pump_retained(id);
            self.pump_state(id);
        }
    }
}
