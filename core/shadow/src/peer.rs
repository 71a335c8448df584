//! What a hub knows about one other node: how far each has read the other's feed, and what is on its way.

use std::collections::{BTreeSet, VecDeque};

use crate::key::ShadowKey;
use crate::pace::Pace;
use crate::sketch::{Difference, Sketcher, Symbol};

/// What was written now may be under way to a peer besides a window full of a backlog. Less and it waits for
/// acknowledgements of the backlog; more and a slow peer occupies more memory here.
const LIVE_BYTES: usize = 64 << 10;
/// Shadows that are remembered as asked for and not come, of one peer. Fewer and a peer that sends many at once has
/// to begin again with the next link; more and one that sends only parts occupies more memory here.
pub const MISSING_MAX: usize = 1 << 16;

/// One other node.
#[derive(Debug, Clone, Default)]
pub struct Peer {
    /// A link to it is up.
    pub up: bool,
    /// It said hello on this link.
    pub greeted: bool,
    /// It said that it reads items whose hashes stand apart.
    pub reads_apart: bool,
    /// Its feed, as this node last knew it; 0 when it never did.
    pub feed: u64,
    /// How far this node has read that feed: of shadows whose last place is up to here it has everything.
    pub read: u64,
    /// And all changes up to here, of every shadow. Behind [`Peer::read`] in the middle of a backlog: a shadow that moved
    /// to a place not read yet took its older changes with it.
    pub floor: u64,
    /// It has all changes of this node's feed on disk up to here, as far as is known.
    pub seen: u64,
    /// When it was last heard, in milliseconds since 1970; kept with the rest of its row.
    pub heard_ms: u64,
    /// The other direction: what this node sends.
    pub sending: Sending,
    /// How fast.
    pub pace: Pace,
    /// What this node asked for, and until it comes [`Peer::read`] stands still.
    missing: BTreeSet<ShadowKey>,
    /// More was missing than is remembered: [`Peer::read`] stands still until the next greeting.
    missing_more: bool,
    /// Where [`Peer::read`] moves when nothing is missing any more.
    pub read_then: Option<u64>,
    /// The same for [`Peer::floor`].
    pub floor_then: Option<u64>,
    /// What this node said of itself in the greeting on this link.
    pub said: Greeting,
    /// What the peer said.
    pub heard: Option<Greeting>,
    /// It has begun to send what follows from this node's latest greeting. What came before, from an earlier link, is taken
    /// in but moves no place.
    pub begun: bool,
    /// The sketch of its feed that is being read, or waits for that.
    pub sketch: Option<SketchIn>,
    /// What a sketch showed to be only there has not all come.
    pub settling: bool,
}

/// What is being sent to a peer.
#[derive(Debug, Clone, Default)]
pub struct Sending {
    /// Everything up to this place in the feed was sent on this link.
    pub sent: u64,
    /// All changes up to this place were sent, whatever moved since: what is sent begins here. A shadow that changes while
    /// it waits moves to a later place, and [`Sending::sent`] passes the earlier one. Only at the head of the feed is
    /// nothing left that moved, so while a peer is behind for long, what it is sent grows, at most to whole shadows.
    pub floor: u64,
    /// Up to this place the feed is a backlog: what is written meanwhile is sent before it, in turns.
    pub backlog: u64,
    /// What is behind the backlog was sent up to here.
    pub live: u64,
    /// The last frame of the feed was such; now the backlog is due.
    pub live_last: bool,
    /// All was sent: what comes next in the feed was written now.
    pub at_head: bool,
    /// The backlog waits for its pace.
    pub held: bool,
    /// The peer was told up to here; behind [`Sending::sent`] when what is between it told us itself.
    pub told: u64,
    /// Places whose shadows the peer knows exactly so, as it sent them.
    pub known_there: BTreeSet<u64>,
    /// The sketch it is sent, as its place in this node's feed is void.
    pub sketch: Option<SketchOut>,
    /// It sends a sketch that tells both, since when that is awaited.
    pub deferred_ms: Option<u64>,
    /// Up to a place only these shadows are sent: a sketch showed that it has the others. Until the head of the feed is
    /// reached, as they may move.
    pub only: Option<Only>,
    /// With the last of [`Sending::wanted`] it has all a sketch showed it to lack.
    pub settles: bool,
    /// Shadows it asked for.
    pub wanted: BTreeSet<ShadowKey>,
    /// The last frame's number; never starts again, so that an old acknowledgement frees nothing new.
    pub number: u64,
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
}

/// What a node says of itself and the other's feed when a link comes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Greeting {
    /// Grows with every link of the sender.
    pub link: u64,
    /// Names the sender's feed.
    pub feed: u64,
    /// Its last place.
    pub head: u64,
    /// How many shadows the sender knows.
    pub records: u64,
    /// The receiver's feed as the sender last knew it; 0 when it never did.
    pub your_feed: u64,
    /// How far the sender has read it, see [`Peer::read`].
    pub read: u64,
    /// And all changes up to here, see [`Peer::floor`].
    pub floor: u64,
}

/// A part of a feed: what was sent up to `upto`, by one who had been sent what goes up to `after`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Behind this place.
    pub after: u64,
    /// Up to this one.
    pub upto: u64,
    /// `upto` was the head of the feed: nothing moved away that was not sent.
    pub to_head: bool,
}

/// How one node goes on reading the other's feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// From the place it was at.
    From(u64),
    /// From the beginning: it knows so much less (or more) that it needs all of it.
    Whole,
    /// What differs has to be found out.
    Sketch,
}

/// A sketch for a peer. Without a sketcher it waits for its turn.
#[derive(Debug, Clone, Default)]
pub struct SketchOut {
    pub salt: [u8; 16],
    /// The feed's head when it was begun.
    pub read: u64,
    pub sketcher: Option<Sketcher>,
    /// Symbols that were asked for.
    pub asked: usize,
    /// Symbols that were sent.
    pub sent: usize,
    /// Members the peer asked for, as far as the list has come.
    pub wanted: Vec<u64>,
    pub since_ms: u64,
}

/// A sketch of a peer. Without a difference it waits for its turn.
#[derive(Debug, Clone)]
pub struct SketchIn {
    pub salt: [u8; 16],
    /// How many members the other set has.
    pub members_there: u64,
    pub difference: Option<Difference>,
    /// Symbols that came and were not compared yet.
    pub waiting: Vec<Symbol>,
    pub came: usize,
    pub asked: usize,
    /// Head of the own feed when comparing began.
    pub head: u64,
}

/// See [`Sending::only`].
#[derive(Debug, Clone)]
pub struct Only {
    /// These, and each of them whole.
    pub keys: BTreeSet<ShadowKey>,
    /// Behind this place it is sent everything.
    pub upto: u64,
}

impl Reading {
    /// How `reader` reads the feed of `writer`; both sides come to the same answer.
    pub fn of(writer: &Greeting, reader: &Greeting) -> Self {
        let (few, many) = (reader.records.min(writer.records), reader.records.max(writer.records));
        let is_known = reader.your_feed == writer.feed && reader.read <= writer.head;
        if is_known && (reader.read > 0 || reader.records == 0) {
            Self::From(reader.read)
        } else if few * 2 <= many {
            Self::Whole
        } else {
            Self::Sketch
        }
    }
}

impl SketchOut {
    /// One that is begun now.
    pub fn new(salt: [u8; 16], read: u64, members: Vec<u64>, asked: usize, since_ms: u64) -> Self {
        let sketcher = Some(Sketcher::new(members.into_iter()));
        Self { salt, read, sketcher, asked, since_ms, ..Self::default() }
    }
}

impl SketchIn {
    /// One of which `asked` symbols will come unasked.
    pub fn new(salt: [u8; 16], members_there: u64, asked: usize) -> Self {
        let (difference, waiting) = (None, Vec::new());
        Self { salt, members_there, difference, waiting, came: 0, asked, head: 0 }
    }

    /// Comparing begins, with what this node knows now.
    pub fn begin(&mut self, members: Vec<u64>, head: u64) {
        self.difference = Some(Difference::new(members.into_iter()));
        self.head = head;
    }
}

impl Peer {
    /// What is kept of it on disk.
    pub fn kept(feed: u64, read: u64, floor: u64, heard_ms: u64) -> Self {
        Self { feed, read, floor, heard_ms, ..Self::default() }
    }

    /// A link came up or broke: whatever was on its way is lost.
    pub fn reset(&mut self, up: bool) {
        self.up = up;
        self.greeted = false;
        self.heard = None;
        self.pace = Pace::default();
        self.begin_reading(false);
        self.restart_sending();
    }

    /// What follows belongs to this node's latest greeting, or (false) to an earlier one.
    pub fn begin_reading(&mut self, begun: bool) {
        (self.begun, self.settling) = (begun, false);
        self.sketch = None;
        (self.read_then, self.floor_then) = (None, None);
        self.has_all();
    }

    /// These were asked for.
    pub fn lacks(&mut self, keys: impl IntoIterator<Item = ShadowKey>) {
        for key in keys {
            if self.missing.len() < MISSING_MAX || self.missing.contains(&key) {
                self.missing.insert(key);
            } else {
                self.missing_more = true;
            }
        }
    }

    /// These came.
    pub fn got<'a>(&mut self, keys: impl IntoIterator<Item = &'a ShadowKey>) {
        keys.into_iter().for_each(|key| _ = self.missing.remove(key));
    }

    /// What was asked for before does not matter any more.
    pub fn has_all(&mut self) {
        self.missing.clear();
        self.missing_more = false;
    }

    /// Something that was asked for has not come.
    pub fn lacks_any(&self) -> bool {
        !self.missing.is_empty() || self.missing_more
    }

    /// The feed has this name; of one with another name nothing was read.
    pub fn know_feed(&mut self, feed: u64) {
        if self.feed != feed {
            (self.feed, self.read, self.floor) = (feed, 0, 0);
        }
    }

    /// There is room on the way for a backlog.
    pub fn has_room(&self) -> bool {
        self.sending.in_flight_bytes < self.pace.window_bytes()
    }

    /// There is room on the way for what is written now.
    pub fn has_room_for_live(&self) -> bool {
        self.sending.in_flight_bytes < self.pace.window_bytes() + LIVE_BYTES
    }

    /// Nothing is on its way, and what is sent next depends on the peer's greeting.
    pub fn restart_sending(&mut self) {
        self.sending = Sending { number: self.sending.number, ..Sending::default() };
    }

    /// A stretch of its feed came. True when [`Peer::read`] or [`Peer::floor`] moved.
    pub fn read_stretch(&mut self, stretch: Stretch) -> bool {
        let read = self.read_then.unwrap_or(self.read);
        if !self.begun || stretch.after > read {
            return false;
        }
        self.read_then = Some(stretch.upto.max(read));
        if stretch.to_head {
            self.floor_then = self.floor_then.max(Some(stretch.upto));
        }
        self.settle_read()
    }

    /// Moves [`Peer::read`] and [`Peer::floor`] when nothing is missing. True when one moved.
    pub fn settle_read(&mut self) -> bool {
        if self.lacks_any() || self.settling {
            return false;
        }
        let before = (self.read, self.floor);
        self.read = self.read.max(self.read_then.take().unwrap_or(0));
        self.floor = self.floor.max(self.floor_then.take().unwrap_or(0));
        (self.read, self.floor) != before
    }
}

impl Sending {
    /// Nothing is on its way.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// The feed is sent from its beginning.
    pub fn start_over(&mut self) {
        (self.sent, self.told, self.floor, self.settles) = (0, 0, 0, false);
        (self.backlog, self.live, self.live_last, self.at_head) = (0, 0, false, false);
        (self.sketch, self.deferred_ms, self.only) = (None, None, None);
    }

    /// The stretch the peer is told of now: up to where all was sent.
    pub fn tell(&mut self) -> Stretch {
        let (after, upto) = (self.told, self.sent);
        self.told = upto;
        Stretch { after, upto, to_head: self.floor == upto }
    }

    /// These leave whole, so they no longer differ.
    pub fn told_differences<T>(&mut self, items: &[(ShadowKey, T)]) {
        if let Some(only) = &mut self.only {
            items.iter().for_each(|(key, _)| _ = only.keys.remove(key));
        }
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

    fn stretch(after: u64, upto: u64) -> Stretch {
        Stretch { after, upto, to_head: false }
    }

    #[test]
    fn a_stretch_that_does_not_follow_on_what_was_read_is_not_counted() {
        let mut peer = Peer { begun: true, ..Peer::default() };
        assert!(peer.read_stretch(stretch(0, 5)));
        assert!(!peer.read_stretch(stretch(7, 9)), "6 and 7 were lost with a link");
        assert_eq!(peer.read, 5);
        assert!(peer.read_stretch(stretch(3, 9)));
        assert_eq!(peer.read, 9);
    }

    #[test]
    fn all_changes_are_known_only_where_the_head_of_the_feed_was_reached() {
        let mut peer = Peer { begun: true, ..Peer::default() };
        peer.read_stretch(stretch(0, 5));
        assert_eq!((peer.read, peer.floor), (5, 0), "what moved behind 5 may lack older changes");
        peer.lacks([ShadowKey::classic("lamp")]);
        peer.read_stretch(Stretch { after: 5, upto: 9, to_head: true });
        assert_eq!((peer.read, peer.floor), (5, 0), "a lamp is missing");
        peer.got([&ShadowKey::classic("lamp")]);
        assert!(peer.settle_read());
        assert_eq!((peer.read, peer.floor), (9, 9));
        peer.read_stretch(stretch(9, 12));
        assert_eq!((peer.read, peer.floor), (12, 9));
        assert!(peer.read_stretch(Stretch { after: 12, upto: 12, to_head: true }));
        assert_eq!(peer.floor, 12);
        peer.know_feed(7);
        assert_eq!((peer.read, peer.floor), (0, 0), "another feed");
    }

    #[test]
    fn nothing_counts_as_read_while_something_is_missing() {
        let mut peer = Peer { begun: true, ..Peer::default() };
        peer.lacks([ShadowKey::classic("lamp")]);
        assert!(!peer.read_stretch(stretch(0, 5)));
        peer.got([&ShadowKey::classic("lamp")]);
        assert!(peer.settle_read());
        assert_eq!(peer.read, 5);
    }

    #[test]
    fn an_acknowledgement_frees_the_frames_up_to_it() {
        let mut peer = Peer::default();
        let send = |peer: &mut Peer, bytes| {
            let number = peer.sending.next_number();
            peer.sending.note_sent(number, bytes);
        };
        let window = peer.pace.window_bytes();
        send(&mut peer, window);
        assert!(!peer.has_room() && peer.has_room_for_live());
        send(&mut peer, LIVE_BYTES);
        assert!(!peer.has_room_for_live());
        peer.sending.acknowledge(1);
        assert!(peer.has_room() && !peer.sending.is_idle());
        peer.sending.acknowledge(2);
        assert!(peer.sending.is_idle());
    }

    #[test]
    fn more_may_be_missing_than_is_remembered() {
        let mut peer = Peer { begun: true, read_then: Some(9), ..Peer::default() };
        let key = |n: usize| ShadowKey::classic(&format!("lamp-{n}"));
        peer.lacks((0..=MISSING_MAX).map(key));
        assert_eq!(peer.missing.len(), MISSING_MAX);
        (0..=MISSING_MAX).for_each(|n| peer.got([&key(n)]));
        peer.settle_read();
        assert_eq!(peer.read, 0, "the one that is not remembered may not have come");
        peer.begin_reading(true);
        peer.read_then = Some(9);
        peer.settle_read();
        assert_eq!(peer.read, 9);
    }
}
