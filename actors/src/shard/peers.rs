//! Peers: subscribers on other nodes. What they want durably waits for them on disk while they are away.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use outpost_flow::Quota;
use outpost_membership::interest::{LocalInterest, PeerInterest};
use outpost_membership::{Hello, Interest, Lane, PeerFrame, Shares};
use outpost_model::{Hlc, LwwLink, Message, NodeId, Now, QoS, TopicFilter, topic};
use outpost_store::Space;

use super::barriers::Barriers;
use super::feed_way::{FEED_WAY_MAX, FeedWay};
use super::outbox::Owed;
use super::{Event, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, PeerRecord};

/// Events sent to a peer and not yet acknowledged. Lower: a long round trip starves the link; higher: more is sent
/// twice after a cut, and the peer must be ready to hold as many.
pub(super) const PEER_WINDOW: usize = 1_024;

/// Bytes of them.
pub(super) const PEER_WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// Nodes that were forgotten and are known by what they had retained. Fewer: one that comes back after all may show again what
/// was removed while it was away; more: rows on disk that nobody needs.
pub const GONE_PEERS_MAX: usize = 1_024;

/// Bytes of events of a peer that wait for room in a local queue, and one event more. An honest peer sends half of it before
/// it is acknowledged; more: one that is not may make this node hold so much.
pub const STALLED_BYTES_MAX: usize = 2 * PEER_WINDOW_BYTES;

/// Frames of a peer's small state and retained messages that wait for its hello, which takes another lane. Fewer: a link whose
/// hello is slow breaks; more: a peer that never says it takes more memory. Of their bytes [`STALLED_BYTES_MAX`] wait.
pub const PEER_EARLY_MAX: usize = 4 * FEED_WAY_MAX;

/// What became of [`Shard::forget_peer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgotten {
    /// It is not: its link is up.
    Linked,
    /// Nothing is known of it.
    Unknown,
    /// It is.
    Gone {
        /// Messages that it was owed.
        dropped: usize,
    },
}

/// An event of a peer.
#[derive(Debug, Clone)]
struct Arrived {
    seq: u64,
    message: Arc<Message>,
    shares: Option<Arc<Shares>>,
}

/// One peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The link is up.
    pub(super) up: bool,
    /// Its hello came on this link.
    pub(super) greeted: bool,
    /// Which link this is; frames held for an earlier one are not for this one.
    link: u64,
    /// Our hello was said on this link.
    said_hello: bool,
    pub(super) interest: PeerInterest,
    /// All of it was told on this link.
    told_interest: bool,
    /// What is durable here of what it sent; the cursors of retained messages are in `retained`.
    pub(super) record: PeerRecord,
    /// How far it and this node know each other's retained messages.
    pub(super) retained: LwwLink,
    /// They may travel up to this place.
    pub(super) retained_durable: u64,
    /// Those that do.
    pub(super) retained_way: FeedWay,
    /// The same of small state, once it has greeted: peers of earlier releases never do.
    pub(super) state: LwwLink,
    pub(super) state_durable: u64,
    pub(super) state_way: FeedWay,
    pub(super) knows_state: bool,
    /// The hello of this link knew this node's store.
    pub(super) knows_us: bool,
    pub(super) barriers: Barriers,
    pub(super) outbox: VecDeque<Owed>,
    /// How many of `outbox` are sent on this link.
    pub(super) sent: usize,
    pub(super) sent_bytes: usize,
    /// What the outbox has used of its quota.
    pub(super) quota: Quota,
    /// What came before its hello, on another lane: whose it is only that says.
    early: Vec<PeerFrame>,
    /// Events that wait for room in a local queue; at most [`PEER_WINDOW`], the peer sends no more unacknowledged.
    stalled: VecDeque<Arrived>,
    pub(super) events_in: u64,
    pub(super) events_out: u64,
    pub(super) duplicates_in: u64,
}

impl Shard {
    /// Whether every peer has told what it is interested in, and can tell what changes.
    pub(super) fn knows_all_interest(&self) -> bool {
        self.peers.values().all(|peer| peer.up && peer.greeted && peer.told_interest)
    }
}

impl Peer {
    /// What is kept of it on disk.
    fn full_record(&self) -> PeerRecord {
        let (retained, state) = (&self.retained, &self.state);
        PeerRecord {
            retained_seen: retained.seen_safely(),
            retained_own: Some(retained.seen_own.0),
            state_seen: Some(state.seen_safely()),
            state_own: Some(state.seen_own.0),
            ..self.record
        }
    }

    pub(super) fn owed(&self) -> usize {
        self.outbox.len()
    }
}

/// One hop only: a peer speaks for itself, and of topics a client could have named.
fn check_event(from: NodeId, message: &Message, shares: Option<&Shares>) -> Result<(), String> {
    if message.id.node != from {
        return Err(format!("an event of node {} that came from {from}", message.id.node));
    }
    topic::check_name(&message.topic).map_err(|error| format!("an event whose topic {error}"))?;
    let wants = |group: &String| {
        TopicFilter::new(group.as_str())
            .is_ok_and(|f| f.share_group().is_some() && f.matches(&message.topic))
    };
    match shares {
        Some(shares) if !shares.groups.iter().all(wants) => {
            Err("an event for a share group that does not want its topic".to_owned())
        }
        _ => Ok(()),
    }
}

fn record_key(peer: NodeId) -> Vec<u8> {
    [&peer.0.to_be_bytes()[..], &[0]].concat()
}

fn gone_key(peer: NodeId) -> Vec<u8> {
    [&peer.0.to_be_bytes()[..], &[2]].concat()
}

fn interest_key(peer: NodeId, pattern: &str) -> Vec<u8> {
    [&peer.0.to_be_bytes()[..], &[1], pattern.as_bytes()].concat()
}

impl Shard {
    /// The link to a peer is up.
    pub fn peer_up(&mut self, id: NodeId, now: Now) {
        self.now = now;
        self.unsay(id);
        self.link_count += 1;
        let link = self.link_count;
        let peer = self.peers.entry(id).or_default();
        (peer.up, peer.greeted, peer.said_hello) = (true, false, false);
        peer.told_interest = false;
        peer.link = link;
        peer.retained.begin();
        peer.retained_way.clear();
        peer.state_way.clear();
        peer.state.begin();
        peer.knows_state = false;
        peer.barriers.begin();
        (peer.sent, peer.sent_bytes) = (0, 0);
        peer.early.clear();
        peer.stalled.clear();
        let hello = Hello {
            store_id: self.config.store_id,
            your_store_id: peer.record.store_id,
            events_seen: peer.record.events_seen,
            retained_seen: peer.retained.seen,
        };
        let state_seen = peer.state.seen;
        self.table_epoch += 1;
        self.journal.hold(Hold::Retained { peer: id, feed_seq: self.retained.map.last_place() });
        self.journal.hold(Hold::State { peer: id, feed_seq: self.state.map.last_place() });
        // The peer forgets what the hello says is durable here.
        self.journal.hold(Hold::Hello { peer: id, link, hello, state_seen });
        self.wait_for_peer(id);
    }

    pub(super) fn say_hello(&mut self, id: NodeId, link: u64, hello: Hello, state_seen: u64) {
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up && p.link == link) else { return };
        peer.said_hello = true;
        self.tell_peer(id, PeerFrame::Hello(hello));
        self.tell_peer(id, PeerFrame::StateGreet { feed_seq: state_seen });
        self.count_interest();
        for frame in self.interest.iter().flat_map(LocalInterest::all_frames).collect::<Vec<_>>() {
            self.tell_peer(id, frame);
        }
        self.ask_again(id);
    }

    /// Begins to count what peers are told: a node that is alone has no use for it.
    fn count_interest(&mut self) {
        if self.interest.is_some() {
            return;
        }
        let mut interest = LocalInterest::default();
        for filter in &self.local_filters {
            interest.add(filter, false);
        }
        for (_, slot) in &self.sessions {
            for (filter, cell) in slot.subscriptions.iter() {
                let Some((options, _)) = self.subscription_of(*cell) else { continue };
                let durable = slot.durable && options.qos > QoS::AtMostOnce;
                interest.add(filter, durable);
                if slot.conn.is_some() && filter.starts_with("$share/") {
                    interest.set_live(filter, true);
                }
            }
        }
        self.interest = Some(interest);
    }

    /// Says something to a peer, unless the hello of this link is still to come: it says all that is said here.
    pub(super) fn tell_peer(&mut self, id: NodeId, frame: PeerFrame) {
        if self.peers.get(&id).is_some_and(|p| p.up && p.said_hello) {
            self.events.push_back(Event::Peer(id, frame));
        }
    }

    /// The link to a peer is down.
    pub fn peer_down(&mut self, id: NodeId, now: Now) {
        self.now = now;
        self.unsay(id);
        if let Some(peer) = self.peers.get_mut(&id) {
            (peer.up, peer.greeted) = (false, false);
            peer.stalled.clear();
            self.table_epoch += 1;
        }
        self.stop_waiting_for(id);
        self.settle();
    }

    /// What was said on a link that is gone and nobody has fetched. On the next link it would come before the hello, and in front
    /// of what got lost on this one: the peer would take that for seen.
    fn unsay(&mut self, id: NodeId) {
        let mut fleeting = 0;
        self.events.retain(|event| {
            let Event::Peer(peer, frame) = event else { return true };
            let is_unsaid = *peer == id;
            fleeting += u32::from(is_unsaid && matches!(frame, PeerFrame::Event { seq: 0, .. }));
            !is_unsaid
        });
        (0..fleeting).for_each(|_| self.ledger.not_taken(Drop::Offline));
    }

    /// A node that is gone for good: what it is owed is dropped, and nothing waits for it any more. Should it come back,
    /// both tell everything; by what is kept of it here what was removed meanwhile is told from what it wrote since.
    pub fn forget_peer(&mut self, id: NodeId, now: Now) -> Forgotten {
        self.now = now;
        let Some(peer) = self.peers.get(&id) else { return Forgotten::Unknown };
        if peer.up {
            return Forgotten::Linked;
        }
        let wanted = peer.interest.all().into_iter().filter(|interest| interest.durable);
        let rows: Vec<Vec<u8>> = wanted.map(|i| interest_key(id, &i.pattern)).collect();
        let dropped = self.drop_outbox(id);
        for row in rows.into_iter().chain([record_key(id)]) {
            self.journal.delete(Space::Peers, row);
        }
        if let Some(peer) = self.peers.remove(&id) {
            self.keep_gone(id, peer.full_record());
        }
        self.table_epoch += 1;
        self.forget_residences(id);
        self.log(
            LogLevel::Warn,
            format!("peer {id} is forgotten; {dropped} messages that it was owed are dropped"),
        );
        self.settle();
        Forgotten::Gone { dropped }
    }

    fn keep_gone(&mut self, id: NodeId, record: PeerRecord) {
        let written = |record: &PeerRecord| record.retained_own;
        if self.gone.len() >= GONE_PEERS_MAX
            && let Some(oldest) =
                self.gone.iter().min_by_key(|(_, r)| written(r)).map(|(id, _)| *id)
        {
            self.gone.remove(&oldest);
            self.journal.delete(Space::Peers, gone_key(oldest));
        }
        self.journal.put(Space::Peers, gone_key(id), record::encode(&record));
        self.gone.insert(id, record);
    }

    /// A peer said something.
    ///
    /// # Errors
    /// What it did wrong; close its link.
    pub fn peer_frame(&mut self, id: NodeId, frame: PeerFrame, now: Now) -> Result<(), String> {
        self.now = now;
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up) else { return Ok(()) };
        if !peer.greeted && !matches!(frame, PeerFrame::Hello(_)) && frame.lane() == Lane::Control {
            return Err("a control frame before its hello".to_owned());
        }
        if !peer.greeted && frame.lane() == Lane::Sync {
            let waiting: usize = peer.early.iter().map(PeerFrame::cost_bytes).sum();
            if peer.early.len() >= PEER_EARLY_MAX || waiting >= STALLED_BYTES_MAX {
                let frames = peer.early.len();
                return Err(format!("{frames} frames, {waiting} bytes, before its hello"));
            }
            peer.early.push(frame);
            return Ok(());
        }
        match frame {
            // It would be told everything again.
            PeerFrame::Hello(_) if peer.greeted => return Err("a second hello".to_owned()),
            PeerFrame::Hello(hello) => {
                self.peer_hello(id, &hello);
                let early = self.peers.get_mut(&id).map(|peer| std::mem::take(&mut peer.early));
                for frame in early.into_iter().flatten() {
                    self.peer_frame(id, frame, now)?;
                }
            }
            frame @ (PeerFrame::InterestAll(_)
            | PeerFrame::InterestAdd(_)
            | PeerFrame::InterestRemove(_)) => {
                self.peer_interest(id, &frame)?;
            }
            PeerFrame::Event { seq, message, shares } => {
                check_event(id, &message, shares.as_deref())?;
                self.peer_event(id, Arrived { seq, message, shares })?;
            }
            PeerFrame::EventAck { seq } => self.event_acked(id, seq),
            PeerFrame::Retained { feed_seq, entry } => self.peer_retained(id, feed_seq, entry)?,
            PeerFrame::RetainedSeen { feed_seq } => self.retained_confirmed(id, feed_seq),
            PeerFrame::StateGreet { feed_seq } => self.greeted_state(id, feed_seq),
            PeerFrame::State { feed_seq, entry } => self.peer_state(id, feed_seq, entry)?,
            PeerFrame::StateSeen { feed_seq } => self.state_confirmed(id, feed_seq),
            PeerFrame::Barrier { number } => self.peer_barrier(id, number),
            PeerFrame::BarrierPassed { number } => self.barrier_passed(id, number),
            PeerFrame::Shadow(_) => {
                return Err("a shadow frame is the hub's, not the shard's".to_owned());
            }
        }
        self.settle();
        Ok(())
    }

    fn peer_hello(&mut self, id: NodeId, hello: &Hello) {
        let own_store = self.config.store_id;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.greeted = true;
        if peer.record.store_id != hello.store_id {
            // Another store: its numbers start anew, unless it is one that was forgotten.
            let gone = self.gone.remove(&id);
            if gone.is_some() {
                self.journal.delete(Space::Peers, gone_key(id));
            }
            let nothing = || PeerRecord { store_id: hello.store_id, ..PeerRecord::default() };
            peer.record =
                gone.filter(|gone| gone.store_id == hello.store_id).unwrap_or_else(nothing);
            peer.retained = LwwLink::from_disk(0, Hlc(peer.record.retained_own.unwrap_or(0)));
            peer.state = LwwLink::from_disk(0, Hlc(peer.record.state_own.unwrap_or(0)));
            self.write_peer(id);
        }
        let knows_us = hello.your_store_id == own_store;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.knows_us = knows_us;
        peer.retained.greet(knows_us.then_some(hello.retained_seen));
        if knows_us {
            self.event_acked(id, hello.events_seen);
        }
        self.pump(id);
        self.pump_retained(id);
        self.retry_blocked = true; // events that came before the hello
    }

    fn peer_interest(&mut self, id: NodeId, frame: &PeerFrame) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        let mut named: BTreeSet<String> = match frame {
            PeerFrame::InterestAll(all) | PeerFrame::InterestAdd(all) => {
                all.iter().map(|i| i.pattern.clone()).collect()
            }
            PeerFrame::InterestRemove(gone) => gone.iter().cloned().collect(),
            _ => BTreeSet::new(),
        };
        if named.iter().any(|pattern| pattern.len() > super::NAME_BYTES_MAX) {
            return Err("interest in a filter too long to be kept".to_owned());
        }
        let is_begin = matches!(frame, PeerFrame::InterestAll(_));
        let is_end = matches!(frame, PeerFrame::InterestAdd(more) if more.is_empty());
        if is_begin || is_end {
            named.extend(peer.interest.all().into_iter().map(|interest| interest.pattern));
        }
        let before: Vec<bool> = named.iter().map(|name| peer.interest.is_durable(name)).collect();
        peer.interest.apply(frame).map_err(|error| error.to_string())?;
        peer.told_interest = (peer.told_interest || is_end) && !is_begin;
        self.table_epoch += 1;
        self.retry_blocked |= self.full_peers > 0;
        // Durable interest outlives a restart of this node while the peer is away.
        for (name, before) in named.iter().zip(before) {
            match (before, peer.interest.is_durable(name)) {
                (true, false) => self.journal.delete(Space::Peers, interest_key(id, name)),
                (false, true) => {
                    self.journal.put(Space::Peers, interest_key(id, name), bytes::Bytes::new());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn peer_event(&mut self, id: NodeId, event: Arrived) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        if event.seq == 0 {
            peer.events_in += 1;
            self.route_from_peer(id, &event.message, event.shares.as_deref(), false);
            return Ok(());
        }
        let newest = peer.stalled.back().map_or(peer.record.events_seen, |event| event.seq);
        if peer.greeted && event.seq <= newest {
            peer.duplicates_in += 1;
            let seen = peer.record.events_seen;
            self.journal.hold(Hold::Peer(id, PeerFrame::EventAck { seq: seen }));
            return Ok(());
        }
        peer.events_in += 1;
        // Before its hello it is not known which store its numbers belong to.
        if !peer.greeted || !peer.stalled.is_empty() || !self.has_room_for(&event) {
            let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
            if peer.stalled.len() >= PEER_WINDOW {
                // One left out here would be acknowledged with those behind it.
                return Err(format!("more than {PEER_WINDOW} events that are not acknowledged"));
            }
            let waiting: usize = peer.stalled.iter().map(|event| event.message.cost_bytes()).sum();
            if waiting >= STALLED_BYTES_MAX {
                return Err(format!("{waiting} bytes of events that are not acknowledged"));
            }
            peer.stalled.push_back(event);
            return Ok(());
        }
        self.take_event(id, &event);
        Ok(())
    }

    fn take_event(&mut self, id: NodeId, event: &Arrived) {
        let seq = event.seq;
        match event.shares.as_deref().and_then(|shares| shares.session.as_deref()) {
            Some(part) => self.take_part(id, part, &event.message),
            None => self.route_from_peer(id, &event.message, event.shares.as_deref(), true),
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.record.events_seen = seq;
        }
        // In the batch of the message's own rows: seen and kept are one.
        self.write_peer(id);
        self.journal.hold(Hold::Peer(id, PeerFrame::EventAck { seq }));
    }

    /// Local queues have room again.
    pub(super) fn retry_stalled_events(&mut self) {
        let ids: Vec<NodeId> =
            self.peers.iter().filter(|(_, p)| !p.stalled.is_empty()).map(|(id, _)| *id).collect();
        for id in ids {
            while let Some(event) = self.peers.get(&id).and_then(|p| p.stalled.front().cloned()) {
                let Some(peer) = self.peers.get_mut(&id).filter(|p| p.greeted) else { break };
                if event.seq <= peer.record.events_seen {
                    peer.stalled.pop_front();
                    peer.duplicates_in += 1;
                    continue;
                }
                if !self.has_room_for(&event) {
                    break;
                }
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.stalled.pop_front();
                }
                self.take_event(id, &event);
                self.settle();
            }
        }
    }

    fn has_room_for(&mut self, event: &Arrived) -> bool {
        let message = &event.message;
        if message.qos > QoS::AtMostOnce && self.journal.stalled().is_some() {
            return false; // the peer keeps it: it is not acknowledged
        }
        if !self.is_anyone_full() || message.qos == QoS::AtMostOnce {
            return true;
        }
        if event.shares.as_ref().is_some_and(|shares| shares.session.is_some()) {
            return !self.water.all.is_full(); // two full queues become one that is longer
        }
        let (_, recipients, away) = self.receivers_of_event(message, event.shares.as_deref());
        !recipients.iter().any(|r| self.is_full(r) && !self.may_pass_on(r))
            && !away.iter().any(|share| self.is_passing_full(share, message))
    }

    pub(super) fn write_peer(&mut self, id: NodeId) {
        if let Some(peer) = self.peers.get(&id) {
            let row = record::encode(&peer.full_record());
            self.journal.put(Space::Peers, record_key(id), row);
        }
    }

    /// At start: a row of `Space::Peers`.
    pub(super) fn recover_peer_row(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let id = NodeId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?));
        match key.get(8)? {
            0 => {
                let lacks_rows = self.retained.lacks_rows;
                let peer = self.peers.entry(id).or_default();
                peer.record = record::decode("peer", value).ok()?;
                let own = |own: Option<u64>| Hlc(own.unwrap_or(0));
                let PeerRecord { retained_seen, retained_own, state_seen, state_own, .. } =
                    peer.record;
                if !lacks_rows {
                    peer.retained = LwwLink::from_disk(retained_seen, own(retained_own));
                }
                peer.state = LwwLink::from_disk(state_seen.unwrap_or(0), own(state_own));
            }
            2 => {
                let record: PeerRecord = record::decode("peer", value).ok()?;
                let own = record.retained_own.filter(|_| !self.retained.lacks_rows);
                self.gone.insert(id, PeerRecord { retained_own: own, ..record });
            }
            1 => {
                let peer = self.peers.entry(id).or_default();
                let pattern = String::from_utf8(key.get(9..)?.to_vec()).ok()?;
                let interest = Interest { pattern, durable: true, live: false };
                peer.interest.apply(&PeerFrame::InterestAdd(vec![interest])).ok()?;
            }
            _ => return None,
        }
        Some(())
    }
}
