//! Peers: greeting them and taking in what they know.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use outpost_model::{Hlc, NodeId, Now};
use sha2::{Digest, Sha256};

use crate::desired::Merged;
use crate::document::{Item, Shadow};
use crate::event::Event;
use crate::hub::{Hub, Output, PeerError};
use crate::key::ShadowKey;
use crate::peer::{Greeting, Stretch};
use crate::planted::{Bug, is};
use crate::shelf::Shelf;
use crate::sync::{Frame, Hello, PEERS_MAX};
use crate::version::SLOTS;

/// Names in one frame that asks for shadows.
const WANT_KEYS_MAX: usize = 4096;

/// Shadows a peer may ask for, and take nothing, beside as many as there are here: what it was told of may be gone. Fewer and
/// a peer on a slow link is shut out after many deletes; more and one that only asks occupies more memory here.
pub const WANTED_GONE_MAX: usize = 1 << 16;

/// A shadow after a merge, what the merge did, and whether the sender, when it sent all it has, has exactly this.
type Scratch = (Shadow, Merged, bool);

impl Hub {
    /// A link to a peer is up. Frames of it may come from now on.
    pub fn peer_up(&mut self, peer: NodeId, now: Now) {
        self.mono_ms = now.mono_ms;
        self.keep_time(now);
        if peer == self.config.node
            || (!self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX - 1)
        {
            return;
        }
        if self.is_quarantined(peer, now) {
            self.shut_out.insert(peer);
            return;
        }
        self.links += 1;
        let (feed, head, records) = (self.feed.id, self.feed.head, self.shadows.len() as u64);
        let known = self.peers.entry(peer).or_default();
        known.reset(true);
        let (your_feed, read, floor) = (known.feed, known.read, known.floor);
        known.said = Greeting { link: self.links, feed, head, records, your_feed, read, floor };
        self.save_peer(peer);
        self.say_hello(peer);
        self.finish();
    }

    /// The link broke; what was on its way may be lost. Requests that waited for this peer are accepted here.
    pub fn peer_down(&mut self, peer: NodeId, now: Now) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.reset(false);
        }
        self.shut_out.remove(&peer);
        self.save_peer(peer);
        self.settle_pending(Some(peer), now);
        self.finish();
    }

    /// A node left for good: nothing waits for it any more. One that has a link did not.
    pub fn forget_peer(&mut self, peer: NodeId, now: Now) {
        if self.peers.get(&peer).is_some_and(|known| known.up) {
            return;
        }
        self.peer_down(peer, now);
        if self.peers.remove(&peer).is_some() {
            self.erase_peer(peer);
        }
        self.finish();
    }

    /// A frame of a peer.
    ///
    /// # Errors
    /// [`PeerError`]: the frame is not what an honest peer sends. Nothing of it was used; quarantine the peer.
    pub fn handle_peer_frame(
        &mut self,
        peer: NodeId,
        frame: &[u8],
        now: Now,
    ) -> Result<(), PeerError> {
        self.mono_ms = now.mono_ms;
        if self.is_quarantined(peer, now) {
            return Ok(()); // not even read: it has been told
        }
        let result = self.try_frame(peer, frame, now);
        match result {
            Ok(()) => self.stats.frames_received += 1,
            Err(_) => self.stats.frames_refused += 1,
        }
        self.finish();
        result
    }

    fn try_frame(&mut self, peer: NodeId, frame: &[u8], now: Now) -> Result<(), PeerError> {
        match self.peers.get(&peer) {
            None => return Err(PeerError::TooMany { peer }),
            Some(known) if !known.up => return Ok(()),
            Some(_) => {}
        }
        let frame = Frame::decode(frame).map_err(|cause| PeerError::Wire { peer, cause })?;
        self.note_heard(peer, now);
        match frame {
            Frame::Hello(hello) => self.handle_hello(peer, &hello, now),
            Frame::Items { number, stretch, settles, items } => {
                self.handle_items(peer, number, stretch, settles, &items, now)?
            }
            Frame::Ack { number, floor, stretch } => self.handle_ack(peer, number, floor, stretch),
            Frame::Sketch { number, begin, first, symbols } => {
                self.handle_sketch(peer, number, begin, first, &symbols)
            }
            Frame::Begin { link, feed } => {
                let known = self.peer_mut(peer);
                known.begin_reading(known.said.link == link);
                if known.begun {
                    known.know_feed(feed);
                }
            }
            // What an earlier link still brings is about a sketch that is no more.
            Frame::More(_) | Frame::WantMembers { .. } if !self.peer_mut(peer).begun => {}
            Frame::More(upto) => self.handle_more(peer, upto),
            Frame::WantMembers { members, last } => self.handle_want_members(peer, &members, last),
            Frame::Want(keys) => self.handle_want(peer, keys)?,
            Frame::Forward { id, key, ask, payload } => {
                self.handle_forward(peer, id, &key, ask, &payload, now)
            }
            Frame::Answer { id, status, body } => self.handle_answer(peer, id, status, body, now),
        }
        Ok(())
    }

    // ---- greeting ---------------------------------------------------------------------------------------------

    fn say_hello(&mut self, peer: NodeId) {
        let greeting = self.peer_mut(peer).said;
        let slots =
            self.slots.iter().map(|(node, slot)| (*node, *slot)).take(PEERS_MAX + 1).collect();
        let hello = Hello { greeting, slots }.reading_apart(self.config.node);
        let hello = self.frame_to(peer, &Frame::Hello(hello));
        self.then.push(hello);
    }

    fn handle_hello(&mut self, peer: NodeId, hello: &Hello, now: Now) {
        self.take_slots(peer, hello);
        let greeting = hello.greeting;
        if self.peer_mut(peer).heard.is_some_and(|heard| heard.link == greeting.link) {
            return; // said again because its slot changed
        }
        // Once a link: whoever says it again and again would have all shadows written again and again.
        let is_first = self.peer_mut(peer).heard.is_none();
        if is_first && greeting.your_feed == self.feed.id && greeting.read > self.feed.head {
            self.restart_feed();
            self.give_up_numbers(now);
        }
        let known = self.peer_mut(peer);
        known.know_feed(greeting.feed);
        (known.greeted, known.heard) = (true, Some(greeting));
        known.reads_apart = hello.reads_apart(peer);
        known.restart_sending();
        self.begin_reading(peer, now);
        self.save_peer(peer);
        let begin = Frame::Begin { link: greeting.link, feed: self.feed.id };
        let begin = self.frame_to(peer, &begin);
        self.then.push(begin);
    }

    /// Two nodes never keep one slot: of two that meet, the one with the greater id takes a free one.
    fn take_slots(&mut self, peer: NodeId, hello: &Hello) {
        for (node, slot) in &hello.slots {
            let is_news = *node == peer || !self.slots.contains_key(node);
            if *node != self.config.node
                && is_news
                && (self.slots.len() <= PEERS_MAX || self.slots.contains_key(node))
            {
                self.slots.insert(*node, slot % SLOTS);
            }
        }
        let mine = self.slot();
        let taken = self.slots.iter().any(|(node, slot)| *node < self.config.node && *slot == mine);
        let free = (0..SLOTS).find(|free| !self.slots.values().any(|slot| slot == free));
        let Some(slot) = free.filter(|_| taken) else { return };
        self.slots.insert(self.config.node, slot);
        self.save_own();
        self.then.push(Output::Event(Event::SlotChanged { slot }));
        let up: Vec<NodeId> =
            self.peers.iter().filter(|(_, p)| p.up).map(|(node, _)| *node).collect();
        up.into_iter().for_each(|node| self.say_hello(node));
    }

    /// The disk is an older copy of what it was: places beyond its head were used before, so the feed gets a new name.
    fn restart_feed(&mut self) {
        let digest =
            Sha256::digest([self.feed.id.to_be_bytes(), self.incarnation.to_be_bytes()].concat());
        self.feed.id =
            u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes")).max(1);
        self.save_own();
        self.then.push(Output::Event(Event::FeedRestarted));
    }

    // ---- taking in --------------------------------------------------------------------------------------------

    fn handle_items(
        &mut self,
        peer: NodeId,
        number: u64,
        stretch: Option<Stretch>,
        settles: bool,
        items: &[(ShadowKey, Item)],
        now: Now,
    ) -> Result<(), PeerError> {
        let latest = Hlc(items.iter().map(|(_, item)| item.latest()).max().unwrap_or(0));
        let mut clock = self.clock.clone();
        clock
            .observe(latest, now, self.config.hlc_ahead_ms_max)
            .map_err(|cause| PeerError::Clock { peer, cause })?;

        items.iter().for_each(|(key, _)| self.renounce(key, now));
        let (mut merged, mut missing) = (BTreeMap::new(), Vec::new());
        for (key, item) in items {
            match self.merge_item(peer, key, item, &mut merged)? {
                Merged::Incomplete if stretch.is_none() => {
                    return Err(PeerError::Unsound {
                        peer,
                        key: key.clone(),
                        what: "asked for whole, it came in part",
                    });
                }
                Merged::Incomplete => missing.push(key.clone()),
                _ => {}
            }
        }
        // From here on nothing fails.
        self.clock = clock;
        if stretch.is_some() {
            items.iter().for_each(|(key, item)| self.remember_kept(key, item, peer, now));
        }
        let full = self.install_merged(peer, merged, now);
        self.ask_for(peer, &missing);
        let known = self.peer_mut(peer);
        if stretch.is_none() {
            known.got(items.iter().map(|(key, _)| key));
        }
        if known.begun {
            known.lacks(missing.into_iter().chain(full));
        }
        known.settling &= !settles;
        let moved = match stretch {
            Some(stretch) => known.read_stretch(stretch),
            None => known.settle_read(),
        };
        self.acknowledge(peer, number, moved);
        Ok(())
    }

    /// Merges into a scratch copy, under `catch_unwind`: automerge may panic on changes no honest node makes.
    fn merge_item(
        &mut self,
        peer: NodeId,
        key: &ShadowKey,
        item: &Item,
        merged: &mut BTreeMap<ShadowKey, Scratch>,
    ) -> Result<Merged, PeerError> {
        let (me, seq) = (self.place(), self.feed.head + 1 + merged.len() as u64);
        let twice = merged.get(key).map(|(shadow, _, _)| shadow.clone());
        let seq = twice.as_ref().map_or(seq, |shadow| shadow.seq);
        let have = |shelf: &mut Shelf| shelf.fetch(key).map(|shadow| Shadow::clone(&shadow));
        let is_twice = twice.is_some();
        let scratch = twice.or_else(|| have(&mut self.shadows)).unwrap_or_default();
        let work = AssertUnwindSafe(|| {
            let mut scratch = scratch;
            scratch.merge(item, me, seq).map(|outcome| (scratch, outcome))
        });
        let unsound = |what| PeerError::Unsound { peer, key: key.clone(), what };
        let (shadow, outcome) = catch_unwind(work)
            .map_err(|_| unsound("automerge cannot take it"))?
            .map_err(|e| unsound(e.0))?;
        if matches!(outcome, Merged::Taken | Merged::Extended) {
            let is_all = shadow.desired.is_all_of(&item.desired);
            let outcome = if is_twice { Merged::Extended } else { outcome };
            merged.insert(key.clone(), (shadow, outcome, is_all));
        }
        Ok(outcome)
    }

    /// Gives back the keys there was no room for.
    fn install_merged(
        &mut self,
        peer: NodeId,
        merged: BTreeMap<ShadowKey, Scratch>,
        now: Now,
    ) -> Vec<ShadowKey> {
        let mut full = Vec::new();
        for (key, (mut shadow, outcome, is_all)) in merged {
            let is_changed =
                self.renounce_in(&mut shadow, now) | self.judge(&key, &mut shadow, now);
            let outcome = if is_changed { Merged::Extended } else { outcome };
            let previous = self.shadows.get(&key);
            if previous.is_none() && self.shadows.len() >= self.config.limits.shadows_max {
                self.then.push(Output::Event(Event::Full { key: key.clone() }));
                full.push(key);
                continue;
            }
            let seq_before = previous.as_ref().map_or(0, |p| p.seq);
            let sending = &mut self.peer_mut(peer).sending;
            let is_theirs = outcome == Merged::Taken
                && (seq_before <= sending.sent
                    || is_all && sending.only.as_mut().is_some_and(|o| o.keys.remove(&key)));
            if is_theirs {
                sending.known_there.insert(shadow.seq);
            }
            self.announce_merged(peer, &key, &shadow, previous.as_deref(), outcome, now);
            self.install(key, shadow);
        }
        full
    }

    fn announce_merged(
        &mut self,
        from: NodeId,
        key: &ShadowKey,
        shadow: &Shadow,
        previous: Option<&Shadow>,
        outcome: Merged,
        now: Now,
    ) {
        let nothing = Shadow::default();
        if previous.unwrap_or(&nothing).known().print == shadow.known().print {
            return;
        }
        let conflict = outcome == Merged::Extended;
        self.remember_merge(key, shadow, from, now);
        self.stats.merged += 1;
        self.stats.conflicts += u64::from(conflict);
        if !is(Bug::MergeIsSilent) {
            self.publish_state(key, shadow, previous, now.wall_s(), None);
        }
        if is(Bug::AcceptedTwice) {
            self.publish(key, "update/accepted", b"{}".to_vec());
        }
        let version = shadow.version;
        self.then.push(Output::Event(Event::Merged { key: key.clone(), version, from, conflict }));
        let bytes = shadow.state_bytes();
        if bytes > self.config.limits.state_bytes_max {
            self.then.push(Output::Event(Event::Oversize { key: key.clone(), bytes }));
        }
    }

    fn ask_for(&mut self, peer: NodeId, keys: &[ShadowKey]) {
        for keys in keys.chunks(WANT_KEYS_MAX) {
            let frame = self.frame_to(peer, &Frame::Want(keys.to_vec()));
            self.then.push(frame);
        }
    }

    /// The acknowledgement leaves at the end of the call, when it is known how far the own feed was sent.
    pub(crate) fn acknowledge(&mut self, peer: NodeId, number: u64, moved: bool) {
        if self.moved_peers.remove(&peer) || moved {
            self.save_peer(peer);
        }
        self.acks.insert(peer, number);
    }

    pub(crate) fn send_acks(&mut self) {
        for (peer, number) in std::mem::take(&mut self.acks) {
            let known = self.peer_mut(peer);
            let (floor, sending) = (known.floor, &mut known.sending);
            let is_untold = sending.sketch.is_none() && sending.told < sending.sent;
            let stretch = is_untold.then(|| sending.tell());
            let frame = self.frame_to(peer, &Frame::Ack { number, floor, stretch });
            self.then.push(frame);
        }
    }

    fn handle_ack(&mut self, peer: NodeId, number: u64, floor: u64, stretch: Option<Stretch>) {
        let head = self.feed.head;
        let known = self.peer_mut(peer);
        known.sending.acknowledge(number);
        known.seen = known.seen.max(floor.min(head));
        let moved = stretch.is_some_and(|stretch| known.read_stretch(stretch));
        if moved {
            self.moved_peers.insert(peer); // no acknowledgement depends on it: written with whatever comes next
        }
    }

    fn handle_want(&mut self, peer: NodeId, keys: Vec<ShadowKey>) -> Result<(), PeerError> {
        let most = self.shadows.len() + WANTED_GONE_MAX;
        let wanted = &mut self.peer_mut(peer).sending.wanted;
        if let Some(key) = keys.first().filter(|_| wanted.len() + keys.len() > most) {
            let (key, what) = (key.clone(), "it asks for more of them than there are");
            return Err(PeerError::Unsound { peer, key, what });
        }
        wanted.extend(keys);
        Ok(())
    }
}
