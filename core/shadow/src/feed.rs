//! What a peer is sent, in which order, and when: what is written now first, then what it lacks, at the pace of its link.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound::{Excluded, Unbounded};

use outpost_model::{NodeId, Now};

use crate::document::Item;
use crate::hub::{Hub, Output};
use crate::key::ShadowKey;
use crate::pace::{PACE_BYTES_S_MAX, Path};
use crate::peer::{Peer, Stretch};
use crate::sync::{FRAME_BYTES_AIM, Frame};

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
    /// The link to a peer is like this now: what it lacks is sent at that pace.
    pub fn handle_path(&mut self, peer: NodeId, path: Path, now: Now) {
        self.mono_ms = now.mono_ms;
        if let Some(known) = self.peers.get_mut(&peer).filter(|known| known.up) {
            known.pace.handle_path(path);
        }
        self.finish();
    }

    /// Peers that lack more than what was written just now: how the links to them are matters.
    pub fn behind(&self) -> impl Iterator<Item = NodeId> {
        let behind = |known: &Peer| {
            known.up && known.greeted && !(known.sending.at_head && known.sending.wanted.is_empty())
        };
        self.peers.iter().filter(move |(_, known)| behind(known)).map(|(node, _)| *node)
    }

    /// Bytes a second of a backlog towards the peer with the slowest link.
    pub(crate) fn slowest_pace(&self) -> u64 {
        let up = self.peers.values().filter(|known| known.up);
        up.filter_map(|known| known.pace.bytes_s()).min().unwrap_or(PACE_BYTES_S_MAX)
    }

    /// When a backlog that waits for its pace goes on.
    pub(crate) fn held_until_ms(&self) -> Option<u64> {
        let held = self.peers.values().filter(|known| known.up && known.sending.held);
        held.map(|known| known.pace.due_ms()).min()
    }

    /// Sends each peer what it lacks, as far as there is room on the way and its pace allows.
    pub(crate) fn pump(&mut self) {
        self.compare();
        let mut made = Made::new();
        let ready: Vec<NodeId> =
            self.peers.iter().filter(|(_, p)| p.up && p.greeted).map(|(node, _)| *node).collect();
        for peer in ready {
            while let Some(frame) = self.next_frame(peer, &mut made) {
                self.then.push(frame);
            }
        }
        self.send_acks();
    }

    fn next_frame(&mut self, peer: NodeId, made: &mut Made) -> Option<Output> {
        let known = self.peer_mut(peer);
        if known.sending.sketch.is_some() {
            known.sending.held = false;
            return if known.has_room() { self.next_symbols(peer) } else { None };
        }
        self.next_live(peer, made).or_else(|| self.next_of_backlog(peer, made))
    }

    /// What the peer lacks, when it is time.
    fn next_of_backlog(&mut self, peer: NodeId, made: &mut Made) -> Option<Output> {
        let (head, now_ms) = (self.feed.head, self.mono_ms);
        let known = self.peer_mut(peer);
        let is_wanted = !known.sending.wanted.is_empty() || known.sending.settles;
        let was_held = std::mem::take(&mut known.sending.held);
        if !is_wanted {
            // What only this node has is known when the peer's have come.
            let waits = known.sending.only.is_some() && (known.settling || known.lacks_any());
            known.sending.at_head = known.sending.sent >= head;
            if waits || known.sending.at_head {
                return None;
            }
        }
        if !known.has_room() {
            return None;
        }
        if known.pace.due_ms() > now_ms {
            known.sending.held = true;
            self.stats.paced += u64::from(!was_held);
            return None;
        }
        let frame = if is_wanted { self.next_wanted(peer) } else { self.next_stretch(peer, made)? };
        if let Output::ToPeer { frame, .. } = &frame {
            self.peer_mut(peer).pace.note_sent(frame.len(), now_ms);
        }
        Some(frame)
    }

    fn next_wanted(&mut self, peer: NodeId) -> Output {
        let (mut items, mut bytes) = (Vec::new(), 0);
        let bytes_max = self.peer_mut(peer).pace.frame_bytes_max();
        while bytes < FRAME_BYTES_AIM {
            let Some(key) = self.peer_mut(peer).sending.wanted.pop_first() else { break };
            // One that is gone meanwhile is answered with nothing, so that the peer stops waiting for it.
            let item = self.shadows.get(&key).unwrap_or_default().item_since(0);
            bytes += item.weight() + key.thing.len();
            if bytes > bytes_max && !items.is_empty() {
                self.peer_mut(peer).sending.wanted.insert(key);
                break;
            }
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
        let known = self.peer_mut(peer);
        if !known.has_room_for_live() {
            return None;
        }
        let sending = &mut known.sending;
        if sending.at_head && sending.wanted.is_empty() {
            return self.next_stretch(peer, made); // there is no backlog
        }
        if sending.wanted.is_empty() && sending.sent >= sending.backlog {
            (sending.backlog, sending.live, sending.live_last) = (head, head, false);
        }
        sending.live = sending.live.max(sending.sent);
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
        sending.at_head = upto == head;
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
        let Some(known) = self.peers.get(&peer) else { return gathered };
        let (sending, bytes_max) = (&known.sending, known.pace.frame_bytes_max());
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
            let is_whole = differs || sending.wanted.contains(key);
            let above = if is_whole { 0 } else { only.map_or(sending.floor, |only| only.upto) };
            let item = match made.entry((above, key.clone())) {
                Entry::Occupied(made) => made.get().clone(),
                Entry::Vacant(empty) => {
                    let Some(shadow) = self.shadows.get(key) else { continue };
                    empty.insert(shadow.item_since(above)).clone()
                }
            };
            bytes += item.weight() + key.thing.len();
            if bytes > bytes_max && !gathered.items.is_empty() {
                gathered.upto = place - 1;
                break;
            }
            gathered.places.push(*place);
            gathered.items.push((key.clone(), item));
        }
        gathered
    }

    /// Peers are asked from time to time to confirm how far they are, also when they know all that is new in the feed.
    pub(crate) fn tell_places(&mut self) {
        let behind =
            |p: &Peer| p.up && p.greeted && p.sending.sketch.is_none() && p.seen < p.sending.sent;
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
        let apart = self.peers.get(&peer).is_some_and(|known| known.reads_apart);
        let frame = frame.encode(apart);
        self.stats.frames_sent += 1;
        self.stats.bytes_sent += frame.len() as u64;
        Output::ToPeer { peer, frame }
    }

    pub(crate) fn peer_mut(&mut self, peer: NodeId) -> &mut crate::peer::Peer {
        self.peers.get_mut(&peer).expect("callers looked it up or put it there")
    }
}
