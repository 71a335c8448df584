//! What a hub knows about one other node: how far each has read the other's feed, and what is on its way.

use std::collections::{BTreeSet, VecDeque};

use crate::key::ShadowKey;

/// Bytes of shadows on their way to one peer and not acknowledged. Less and a long link stands idle; more and a slow
/// peer occupies more memory here. While it is full, further changes of one shadow are sent as one.
pub const WINDOW_BYTES: usize = 256 << 10;

/// One other node.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// A link to it is up.
    pub up: bool,
    /// It said hello on this link.
    pub greeted: bool,
    /// Its feed, as this node last knew it; 0 when it never did.
    pub feed: u64,
    /// How far this node has read that feed.
    pub read: u64,
    /// It has this node's feed on disk up to here, as far as is known.
    pub seen: u64,
    /// The other direction: what this node sends.
    pub sending: Sending,
    /// What this node asked for, and until it comes [`Peer::read`] stands still.
    pub missing: BTreeSet<ShadowKey>,
    /// Where [`Peer::read`] moves when nothing is missing any more.
    pub read_then: Option<u64>,
    /// The next part of a list of prints that would follow on what came so far.
    pub part_next: u64,
}

/// What is being sent to a peer.
#[derive(Debug, Clone, Default)]
pub struct Sending {
    /// Everything up to this place in the feed was sent on this link.
    pub sent: u64,
    /// The peer was told up to here; behind [`Sending::sent`] when what is between it told us itself.
    pub told: u64,
    /// Places whose shadows the peer knows exactly so, as it sent them.
    pub known_there: BTreeSet<u64>,
    /// The list of prints still to be sent.
    pub prints: Option<PrintsTodo>,
    /// Shadows it asked for.
    pub wanted: BTreeSet<ShadowKey>,
    /// The last frame's number; never starts again, so that an old acknowledgement frees nothing new.
    pub number: u64,
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
}

/// Where the list of prints stands.
#[derive(Debug, Clone)]
pub struct PrintsTodo {
    /// Everything up to this key was sent.
    pub after: Option<ShadowKey>,
    /// The next part.
    pub part: u64,
    /// The feed's head when the list was begun.
    pub read: u64,
}

impl Peer {
    /// A link came up or broke: whatever was on its way is lost.
    pub fn reset(&mut self, up: bool) {
        self.up = up;
        self.greeted = false;
        self.missing.clear();
        self.read_then = None;
        self.part_next = 0;
        self.sending = Sending { number: self.sending.number, ..Sending::default() };
    }

    /// A stretch of its feed came. True when [`Peer::read`] moved.
    pub fn read_stretch(&mut self, after: u64, upto: u64) -> bool {
        if after > self.read_then.unwrap_or(self.read) {
            return false;
        }
        self.read_then = Some(upto.max(self.read_then.unwrap_or(self.read)));
        self.settle_read()
    }

    /// Moves [`Peer::read`] when nothing is missing. True when it moved.
    pub fn settle_read(&mut self) -> bool {
        if !self.missing.is_empty() {
            return false;
        }
        let before = self.read;
        self.read = self.read_then.take().unwrap_or(before).max(before);
        self.read != before
    }
}

impl Sending {
    /// There is room on the way.
    pub fn has_room(&self) -> bool {
        self.in_flight_bytes < WINDOW_BYTES
    }

    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes the number of a frame that is about to be built.
    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// A frame with this number leaves.
    pub fn note_sent(&mut self, number: u64, bytes: usize) {
        self.in_flight.push_back((number, bytes));
        self.in_flight_bytes += bytes;
    }

    /// Everything up to this number arrived.
    pub fn acknowledge(&mut self, number: u64) {
        while let Some((_, bytes)) =
            self.in_flight.front().copied().filter(|(first, _)| *first <= number)
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_that_does_not_follow_on_what_was_read_is_not_counted() {
        let mut peer = Peer::default();
        assert!(peer.read_stretch(0, 5));
        assert!(!peer.read_stretch(7, 9), "6 and 7 were lost with a link");
        assert_eq!(peer.read, 5);
        assert!(peer.read_stretch(3, 9));
        assert_eq!(peer.read, 9);
    }

    #[test]
    fn nothing_counts_as_read_while_something_is_missing() {
        let mut peer = Peer::default();
        peer.missing.insert(ShadowKey::classic("lamp"));
        assert!(!peer.read_stretch(0, 5));
        peer.missing.clear();
        assert!(peer.settle_read());
        assert_eq!(peer.read, 5);
    }

    #[test]
    fn an_acknowledgement_frees_the_frames_up_to_it() {
        let mut sending = Sending::default();
        for bytes in [WINDOW_BYTES, 10] {
            let number = sending.next_number();
            sending.note_sent(number, bytes);
        }
        assert!(!sending.has_room());
        sending.acknowledge(1);
        assert!(sending.has_room() && !sending.is_idle());
        sending.acknowledge(2);
        assert!(sending.is_idle());
    }
}
