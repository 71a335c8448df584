//! When a place in a feed is void: the two nodes find out which shadows differ, and only those travel.
//!
//! ```text
//!  writer of the feed                                   its reader
//!  Sketch: begins with a salt and its head  ──────▶     compares with its own shadows
//!                                           ◀──────     More: so many symbols           (until nothing is left over)
//!                                           ◀──────     WantMembers: what only you have
//!  Items, out of turn; the last one settles ──────▶     the place is good again: the head the sketch began with
//! ```
//! A member of the set is a keyed hash of a shadow's name and its print. When the places of both in each other's feed
//! are void, one sketch tells both: the node with the greater id reads it, and afterwards sends from its own feed what
//! only it has. One sketch is made at a time, and one is read; others wait.
//!
//! Nothing of this needs to be remembered: after a crash in the middle it begins anew, with a smaller difference.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound::{Excluded, Unbounded};

use outpost_model::{NodeId, Now};
use sha2::{Digest, Sha256};

use crate::hub::{Hub, Output};
use crate::key::ShadowKey;
use crate::peer::{Only, Peer, Reading, SketchIn, SketchOut};
use crate::sketch::{SYMBOLS_MAX, Symbol};
use crate::sync::{FRAME_BYTES_AIM, Frame, SketchBegin};

/// Symbols of the first run. Fewer and what differs little takes a round trip more; more and equal nodes say more than
/// they must.
const FIRST_SYMBOLS: usize = 32;
/// Bytes of a symbol on the wire, at most.
const SYMBOL_BYTES: usize = 17;
/// Hashes in one frame that asks for shadows.
const WANT_MEMBERS_MAX: usize = 4096;
/// A sketch that another peer waits for has this long; then its reader is sent the whole feed. Shorter and a slow link
/// costs a whole feed; longer and one that stands still keeps the others waiting.
pub const SKETCH_MS_MAX: u64 = 60_000;
/// So long the node with the greater id waits for the other's sketch.
const DEFER_MS: u64 = 10_000;

impl Peer {
    /// Until when the peer's sketch, which tells both, is awaited.
    fn sketch_awaited_until_ms(&self) -> Option<u64> {
        let awaits = self.up && self.greeted && self.sketch.is_none();
        self.sending.deferred_ms.filter(|_| awaits).map(|since| since + DEFER_MS)
    }

    /// When the sketch that is made for it has taken too long.
    fn sketch_late_ms(&self) -> Option<u64> {
        let out = self.sending.sketch.as_ref().filter(|out| self.up && out.sketcher.is_some());
        out.map(|out| out.since_ms + SKETCH_MS_MAX)
    }
}

impl Hub {
    /// The greetings are exchanged: what the peer is sent first.
    pub(crate) fn begin_reading(&mut self, peer: NodeId, now: Now) {
        let head = self.feed.head;
        let own_id_is_greater = self.config.node > peer;
        let known = self.peer_mut(peer);
        let Some(greeting) = known.heard else { return };
        let theirs = Reading::of(&known.said, &greeting);
        let mine = Reading::of(&greeting, &known.said);
        let sending = &mut known.sending;
        (sending.sent, sending.sketch, sending.deferred_ms) = match theirs {
            Reading::From(place) => (place.min(head), None, None),
            Reading::Whole => (0, None, None),
            Reading::Sketch if mine == Reading::Sketch && own_id_is_greater => {
                (head, None, Some(now.mono_ms))
            }
            Reading::Sketch => (head, Some(SketchOut::default()), None),
        };
        sending.told = sending.sent;
        sending.floor = match theirs {
            Reading::From(place) if place < head => greeting.floor.min(place),
            _ => sending.sent,
        };
        known.seen = if let Reading::From(_) = theirs { sending.floor } else { 0 };
    }

    // ---- the writer's side --------------------------------------------------------------------------------------

    /// The next symbols that were asked for, when it is this peer's turn.
    pub(crate) fn next_symbols(&mut self, peer: NodeId) -> Option<Output> {
        let asked = self.peers.get(&peer)?.sending.sketch.as_ref()?;
        let begin = if asked.sketcher.is_none() { Some(self.begin_sketch(peer)?) } else { None };
        let sending = &mut self.peer_mut(peer).sending;
        let out = sending.sketch.as_mut()?;
        let upto = out.asked.min(out.sent + FRAME_BYTES_AIM / SYMBOL_BYTES).min(SYMBOLS_MAX);
        if upto <= out.sent {
            return None;
        }
        let first = out.sent;
        let symbols = out.sketcher.as_mut()?.symbols(upto)[first..].to_vec();
        out.sent = upto;
        let number = sending.next_number();
        Some(self.windowed(peer, number, &Frame::Sketch { number, begin, first, symbols }))
    }

    /// `None` while another one is made.
    fn begin_sketch(&mut self, peer: NodeId) -> Option<SketchBegin> {
        let making =
            |known: &Peer| known.sending.sketch.as_ref().is_some_and(|out| out.sketcher.is_some());
        if self.peers.values().any(making) {
            return None;
        }
        let (feed, read) = (self.feed.id, self.feed.head);
        let salt = self.salt(peer);
        let members = self.members(&salt).map(|(member, _)| member).collect::<Vec<_>>();
        let since_ms = self.mono_ms;
        let sending = &mut self.peer_mut(peer).sending;
        (sending.sent, sending.told, sending.floor) = (read, read, read);
        let begin = SketchBegin { feed, read, salt, members: members.len() as u64 };
        sending.sketch = Some(SketchOut::new(salt, read, members, FIRST_SYMBOLS, since_ms));
        Some(begin)
    }

    /// The reader needs more symbols, or (none at all) the whole feed.
    pub(crate) fn handle_more(&mut self, peer: NodeId, upto: u64) {
        let sending = &mut self.peer_mut(peer).sending;
        match (&mut sending.sketch, upto) {
            (None, _) => {}
            (Some(_), 0) => sending.start_over(),
            (Some(out), upto) => out.asked = usize::try_from(upto).unwrap_or(SYMBOLS_MAX),
        }
    }

    /// The reader knows what only this node has.
    pub(crate) fn handle_want_members(&mut self, peer: NodeId, members: &[u64], last: bool) {
        let Some(out) = &mut self.peer_mut(peer).sending.sketch else { return };
        if out.wanted.len() + members.len() <= SYMBOLS_MAX {
            out.wanted.extend(members);
        }
        if !last {
            return;
        }
        let wanted: HashSet<u64> = std::mem::take(&mut out.wanted).into_iter().collect();
        let salt = out.salt;
        let read = out.read;
        let mut keys = self.keys_of(&salt, &wanted);
        // Those that changed since are no longer found by their hash.
        keys.extend(self.keys_behind(read));
        let sending = &mut self.peer_mut(peer).sending;
        sending.sketch = None;
        sending.wanted.extend(keys);
        sending.settles = true;
    }

    // ---- the reader's side --------------------------------------------------------------------------------------

    /// Symbols came. Whatever they say, it can only make this node ask for shadows.
    pub(crate) fn handle_sketch(
        &mut self,
        peer: NodeId,
        number: u64,
        begin: Option<SketchBegin>,
        first: usize,
        symbols: &[Symbol],
    ) {
        let known = self.peer_mut(peer);
        if let Some(begin) = begin.filter(|_| known.begun) {
            known.know_feed(begin.feed);
            known.has_all();
            (known.read_then, known.floor_then) = (Some(begin.read), Some(begin.read));
            known.settling = true;
            known.sketch = Some(SketchIn::new(begin.salt, begin.members, FIRST_SYMBOLS));
        }
        if let Some(sketch) = &mut known.sketch
            && sketch.came == first
            && sketch.asked.saturating_sub(first) >= symbols.len()
        {
            sketch.came += symbols.len();
            sketch.waiting.extend_from_slice(symbols);
        }
        self.acknowledge(peer, number, begin.is_some()); // comparing comes at the end of the call
    }

    /// Goes on with the sketch that is being read, or begins with one that waits.
    pub(crate) fn compare(&mut self) {
        let reading =
            |known: &Peer| known.sketch.as_ref().is_some_and(|sketch| sketch.difference.is_some());
        let waits = |known: &Peer| known.sketch.is_some();
        while let Some(peer) = (self.peers.iter().find(|(_, known)| reading(known)))
            .or_else(|| self.peers.iter().find(|(_, known)| waits(known)))
            .map(|(node, _)| *node)
        {
            if !self.compare_with(peer) {
                return;
            }
        }
    }

    /// True when the sketch is done with, in one way or the other.
    fn compare_with(&mut self, peer: NodeId) -> bool {
        let known = self.peers.get(&peer).and_then(|known| known.sketch.as_ref());
        let Some(sketch) = known else { return true };
        if sketch.difference.is_none() {
            let members: Vec<u64> = self.members(&sketch.salt).map(|(member, _)| member).collect();
            let head = self.feed.head;
            if let Some(sketch) = &mut self.peer_mut(peer).sketch {
                sketch.begin(members, head);
            }
        }
        let Some(sketch) = &mut self.peer_mut(peer).sketch else { return true };
        let waiting = std::mem::take(&mut sketch.waiting);
        let Some(difference) = &mut sketch.difference else { return true };
        let added = difference.add(&waiting);
        let (wanted, all) = (difference.wanted(), sketch.asked == sketch.came);
        match added {
            Ok(true) => self.settle_difference(peer),
            Ok(false) if !all => return false,
            Ok(false)
                if wanted <= SYMBOLS_MAX
                    && (wanted as u64) / 2 < sketch.members_there.saturating_add(32) =>
            {
                sketch.asked = wanted;
                let frame = self.frame_to(peer, &Frame::More(wanted as u64));
                self.then.push(frame);
                return false;
            }
            _ => self.ask_for_whole(peer),
        }
        true
    }

    /// It is known what differs.
    fn settle_difference(&mut self, peer: NodeId) {
        let known = self.peer_mut(peer);
        let Some(sketch) = known.sketch.take() else { return };
        let Some(difference) = sketch.difference else { return };
        let mutual = known.sending.deferred_ms.take().is_some();
        let wanted: Vec<u64> = difference.theirs().collect();
        let mut chunks = wanted.chunks(WANT_MEMBERS_MAX).peekable();
        if chunks.peek().is_none() {
            let frame =
                self.frame_to(peer, &Frame::WantMembers { members: Vec::new(), last: true });
            self.then.push(frame);
        }
        while let Some(chunk) = chunks.next() {
            let last = chunks.peek().is_none();
            let frame = self.frame_to(peer, &Frame::WantMembers { members: chunk.to_vec(), last });
            self.then.push(frame);
        }
        if mutual {
            let ours: HashSet<u64> = difference.ours().collect();
            let mut keys = self.keys_of(&sketch.salt, &ours);
            keys.extend(self.keys_behind(sketch.head));
            let upto = self.feed.head;
            let sending = &mut self.peer_mut(peer).sending;
            sending.start_over();
            sending.only = Some(Only { keys, upto });
        }
    }

    fn ask_for_whole(&mut self, peer: NodeId) {
        let known = self.peer_mut(peer);
        (known.sketch, known.settling) = (None, false);
        (known.read_then, known.floor_then) = (None, None);
        if known.sending.deferred_ms.take().is_some() {
            known.sending.start_over();
        }
        let frame = self.frame_to(peer, &Frame::More(0));
        self.then.push(frame);
    }

    /// Nobody waits for ever for a sketch that stands still.
    pub(crate) fn hurry_sketches(&mut self, now: Now) {
        for known in self.peers.values_mut() {
            if known.sketch_awaited_until_ms().is_some_and(|until| now.mono_ms >= until) {
                let sending = &mut known.sending;
                (sending.deferred_ms, sending.sketch) = (None, Some(SketchOut::default()));
            }
        }
        let late = |known: &Peer| known.sketch_late_ms().is_some_and(|late| now.mono_ms >= late);
        let stuck: Vec<NodeId> = if self.sketches_queue() {
            self.peers.iter().filter(|(_, known)| late(known)).map(|(node, _)| *node).collect()
        } else {
            Vec::new()
        };
        for peer in stuck {
            // The reader still waits for symbols, and for what it will have asked for: that is over.
            let feed = self.feed.id;
            let known = self.peer_mut(peer);
            known.sending.start_over();
            let link = known.heard.map_or(0, |heard| heard.link);
            let begin = self.frame_to(peer, &Frame::Begin { link, feed });
            self.then.push(begin);
        }
    }

    /// When [`Hub::hurry_sketches`] has something to do.
    pub(crate) fn sketches_due_ms(&self) -> Option<u64> {
        let queue = self.sketches_queue();
        let late = |known: &Peer| known.sketch_late_ms().filter(|_| queue);
        self.peers
            .values()
            .flat_map(|known| [known.sketch_awaited_until_ms(), late(known)])
            .flatten()
            .min()
    }

    /// More than one peer is to have a sketch, and one is made at a time.
    fn sketches_queue(&self) -> bool {
        let has_one = |known: &&Peer| known.up && known.greeted && known.sending.sketch.is_some();
        self.peers.values().filter(has_one).count() > 1
    }

    // ---- both ---------------------------------------------------------------------------------------------------

    /// Every shadow as a member of the set, and its key.
    fn members(&self, salt: &[u8; 16]) -> impl Iterator<Item = (u64, &ShadowKey)> {
        self.shadows.iter().map(move |(key, facts)| (member(salt, key, &facts.print), key))
    }

    fn keys_of(&self, salt: &[u8; 16], wanted: &HashSet<u64>) -> BTreeSet<ShadowKey> {
        let found = self.members(salt).filter(|(member, _)| wanted.contains(member));
        found.map(|(_, key)| key.clone()).collect()
    }

    fn keys_behind(&self, place: u64) -> impl Iterator<Item = ShadowKey> {
        self.feed.places.range((Excluded(place), Unbounded)).map(|(_, key)| key.clone())
    }

    /// Nobody else knows it beforehand: the incarnation is random.
    fn salt(&self, peer: NodeId) -> [u8; 16] {
        let parts = [self.incarnation, self.feed.head, peer.0, self.stats.frames_sent];
        let digest = Sha256::digest(parts.map(u64::to_be_bytes).concat());
        digest[..16].try_into().expect("a digest has 32 bytes")
    }
}

fn member(salt: &[u8; 16], key: &ShadowKey, print: &[u8; 16]) -> u64 {
    let mut hash = Sha256::new();
    hash.update(salt);
    hash.update(print);
    hash.update(key.thing.as_bytes());
    hash.update([0]);
    hash.update(key.name.as_deref().unwrap_or("").as_bytes());
    u64::from_be_bytes(hash.finalize()[..8].try_into().expect("a digest has 32 bytes"))
}
