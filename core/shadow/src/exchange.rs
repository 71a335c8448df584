//! Peers: greeting them, taking in what they know, and sending them what they lack.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound::{Excluded, Unbounded};
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
use crate::sync::{FRAME_BYTES_AIM, Frame, Hello, PEERS_MAX};
use crate::version::SLOTS;

/// Names in one frame that asks for shadows.
const WANT_KEYS_MAX: usize = 4096;

/// Shadows a peer may ask for, and take nothing, beside as many as there are here: what it was told of may be gone. Fewer and
/// a peer on a slow link is shut out after many deletes; more and one that only asks occupies more memory here.
pub const WANTED_GONE_MAX: usize = 1 << 16;

/// A shadow after a merge, what the merge did, and whether the sender, when it sent all it has, has exactly this.
type Scratch = (Shadow, Merged, bool);

/// Items made during one round of sending, so that two peers at the same place do not cost two documents loaded.
type Made = BTreeMap<(u64, ShadowKey), Item>;

/// What one frame of the feed holds.
#[derive(Default)]
struct Gathered {
    items: Vec<(ShadowKey, Item)>,
    /// Of each item.
    places: Vec<u64>,
    /// There is nothing else up to here.
    upto: u64,
}

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

    /// A node left for good: nothing waits for it any more.
    pub fn forget_peer(&mut self, peer: NodeId, now: Now) {
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
        let result = self.try_frame(peer, frame, now);
        match result {
            Ok(()) => self.stats.frames_received += 1,
            Err(_) => self.stats.frames_refused += 1,
        }
        self.finish();
        result
    }

    fn try_frame(&mut self, peer: NodeId, frame: &[u8], now: Now) -> Result<(), PeerError> {
        let frame = Frame::decode(frame).map_err(|cause| PeerError::Wire { peer, cause })?;
        if !self.peers.get(&peer).is_some_and(|known| known.up) {
            return if self.peers.contains_key(&peer) {
                Ok(())
            } else {
                Err(PeerError::TooMany { peer })
            };
        }
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
        let hello = self.frame_to(peer, &Frame::Hello(Hello { greeting, slots }));
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
            let outcome =
                if self.judge(&key, &mut shadow, now) { Merged::Extended } else { outcome };
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

    fn send_acks(&mut self) {
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

    // ---- sending ----------------------------------------------------------------------------------------------

    /// Sends each peer what it lacks, as far as there is room on the way.
    pub(crate) fn pump(&mut self) {
        self.compare();
        let mut made = Made::new();
        let ready: Vec<NodeId> =
            self.peers.iter().filter(|(_, p)| p.up && p.greeted).map(|(node, _)| *node).collect();
        for peer in ready {
            while self.peer_mut(peer).sending.has_room() {
                let Some(frame) = self.next_frame(peer, &mut made) else { break };
                self.then.push(frame);
            }
        }
        self.send_acks();
    }

    fn next_frame(&mut self, peer: NodeId, made: &mut Made) -> Option<Output> {
        let known = self.peer_mut(peer);
        if known.sending.sketch.is_some() {
            return self.next_symbols(peer);
        }
        if !known.sending.wanted.is_empty() || known.sending.settles {
            return Some(self.next_wanted(peer));
        }
        // What only this node has is known when the peer's have come.
        let waits = known.sending.only.is_some() && (known.settling || known.lacks_any());
        if waits {
            return None;
        }
        self.next_live(peer, made).or_else(|| self.next_stretch(peer, made))
    }

    fn next_wanted(&mut self, peer: NodeId) -> Output {
        let mut items = Vec::new();
        let mut bytes = 0;
        while bytes < FRAME_BYTES_AIM {
            let Some(key) = self.peer_mut(peer).sending.wanted.pop_first() else { break };
            // One that is gone meanwhile is answered with nothing, so that the peer stops waiting for it.
            let item = self.shadows.get(&key).unwrap_or_default().item_since(0);
            bytes += item.weight() + key.thing.len();
            items.push((key, item));
        }
        let sending = &mut self.peer_mut(peer).sending;
        let number = sending.next_number();
        let settles = sending.wanted.is_empty() && std::mem::take(&mut sending.settles);
        self.windowed(peer, number, &Frame::Items { number, stretch: None, settles, items })
    }

    /// What was written since there is a backlog, before the backlog. It moves no place of the peer's: the feed comes to it
    /// when the backlog is sent, and leaves out what the peer has by then.
    fn next_live(&mut self, peer: NodeId, made: &mut Made) -> Option<Output> {
        let head = self.feed.head;
        let sending = &mut self.peer_mut(peer).sending;
        if sending.sent >= sending.backlog {
            (sending.backlog, sending.live, sending.live_last) = (head, head, false);
        }
        if std::mem::take(&mut sending.live_last) || sending.live >= head {
            return None;
        }
        let since = sending.live;
        let gathered = self.gather(peer, since, made);
        let records = self.shadows.len();
        let sending = &mut self.peer_mut(peer).sending;
        sending.live = gathered.upto;
        if gathered.items.is_empty() {
            return None;
        }
        sending.live_last = true;
        sending.known_there.extend(gathered.places);
        sending.told_differences(&gathered.items);
        let (number, told) = (sending.next_number(), sending.told);
        let stretch = Some(Stretch { after: told, upto: told, to_head: false });
        if sending.known_there.len() > 2 * records {
            self.forget_places(peer);
        }
        let items = gathered.items;
        Some(self.windowed(peer, number, &Frame::Items { number, stretch, settles: false, items }))
    }

    /// What changes again and again while a backlog is sent leaves places behind where no shadow is any more.
    fn forget_places(&mut self, peer: NodeId) {
        let mut known_there = std::mem::take(&mut self.peer_mut(peer).sending.known_there);
        known_there.retain(|place| self.feed.places.contains_key(place));
        self.peer_mut(peer).sending.known_there = known_there;
    }

    fn next_stretch(&mut self, peer: NodeId, made: &mut Made) -> Option<Output> {
        let head = self.feed.head;
        let since = self.peers.get(&peer)?.sending.sent;
        if since >= head {
            return None;
        }
        let Gathered { mut items, upto, .. } = self.gather(peer, since, made);
        items.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let sending = &mut self.peer_mut(peer).sending;
        sending.sent = upto;
        if upto == head {
            sending.floor = head;
        }
        sending.known_there = sending.known_there.split_off(&(upto + 1));
        sending.told_differences(&items);
        if upto == head {
            sending.only = None; // those that moved behind its end have been sent too
        }
        if items.is_empty() {
            return None;
        }
        let (stretch, number) = (Some(sending.tell()), sending.next_number());
        Some(self.windowed(peer, number, &Frame::Items { number, stretch, settles: false, items }))
    }

    /// A frame full of what stands in the feed behind a place, and which the peer lacks.
    fn gather(&self, peer: NodeId, since: u64, made: &mut Made) -> Gathered {
        let mut gathered = Gathered { upto: self.feed.head, ..Gathered::default() };
        let Some(sending) = self.peers.get(&peer).map(|known| &known.sending) else {
            return gathered;
        };
        let (mut bytes, only) = (0, sending.only.as_ref());
        for (place, key) in self.feed.places.range((Excluded(since), Unbounded)) {
            if bytes >= FRAME_BYTES_AIM {
                gathered.upto = place - 1;
                break;
            }
            let differs = only.is_some_and(|only| only.keys.contains(key));
            let settled = only.is_some_and(|only| *place <= only.upto) && !differs;
            if settled || sending.known_there.contains(place) {
                continue;
            }
            // What differs is sent whole; the peer has the others as they were when that was found out.
            let above = if differs { 0 } else { only.map_or(sending.floor, |only| only.upto) };
            let item = match made.entry((above, key.clone())) {
                Entry::Occupied(made) => made.get().clone(),
                Entry::Vacant(empty) => {
                    let Some(shadow) = self.shadows.get(key) else { continue };
                    empty.insert(shadow.item_since(above)).clone()
                }
            };
            bytes += item.weight() + key.thing.len();
            gathered.places.push(*place);
            gathered.items.push((key.clone(), item));
        }
        gathered
    }

    /// Peers are asked from time to time to confirm how far they are, also when they know all that is new in the feed.
    pub(crate) fn tell_places(&mut self) {
        let behind = |p: &crate::peer::Peer| {
            p.up && p.greeted && p.sending.sketch.is_none() && p.seen < p.sending.sent
        };
        let behind: Vec<NodeId> =
            self.peers.iter().filter(|(_, p)| behind(p)).map(|(node, _)| *node).collect();
        for peer in behind {
            let sending = &mut self.peer_mut(peer).sending;
            if !sending.is_idle() {
                continue; // what is on its way will be acknowledged
            }
            let (stretch, number) = (Some(sending.tell()), sending.next_number());
            let nothing = Frame::Items { number, stretch, settles: false, items: Vec::new() };
            let frame = self.windowed(peer, number, &nothing);
            self.then.push(frame);
        }
    }

    pub(crate) fn windowed(&mut self, peer: NodeId, number: u64, frame: &Frame) -> Output {
        let output = self.frame_to(peer, frame);
        if let Output::ToPeer { frame, .. } = &output {
            self.peer_mut(peer).sending.note_sent(number, frame.len());
        }
        output
    }

    pub(crate) fn frame_to(&mut self, peer: NodeId, frame: &Frame) -> Output {
        let frame = frame.encode();
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += frame.len() as u64;
        Output::ToPeer { peer, frame }
    }

    pub(crate) fn peer_mut(&mut self, peer: NodeId) -> &mut crate::peer::Peer {
        self.peers.get_mut(&peer).expect("callers looked it up or put it there")
    }
}
