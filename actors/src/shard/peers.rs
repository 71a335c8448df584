//! Peers: subscribers on other nodes. What they want durably waits for them on disk while they are away.

use std::collections::VecDeque;
use std::sync::Arc;

use outpost_flow::Class;
use outpost_membership::interest::{LocalInterest, PeerInterest};
use outpost_membership::{Hello, Interest, PeerFrame, RetainedEntry};
use outpost_model::{Message, NodeId, Now, QoS, TopicFilter, topic};
use outpost_store::Space;

use super::{Event, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, PeerRecord};

/// Events sent to a peer and not yet acknowledged. Lower: a long round trip starves the link; higher: more is sent
/// twice after a cut, and the peer must be ready to hold as many.
const PEER_WINDOW: usize = 1_024;

/// Bytes of them.
const PEER_WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// Messages of an outbox kept in memory; the others are read from disk when their turn comes.
const OUTBOX_HOT_MAX: usize = 4_096;

/// A retained slot from the future of more than this is refused.
const CLOCK_AHEAD_MS_MAX: u64 = 60_000;

/// A message owed to a peer.
#[derive(Debug)]
struct Owed {
    seq: u64,
    /// Absent: on disk only.
    message: Option<Arc<Message>>,
    /// Its row is synced; it may travel.
    durable: bool,
}

/// One peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    /// The link is up.
    up: bool,
    /// Its hello came on this link.
    greeted: bool,
    /// Which link this is; frames held for an earlier one are not for this one.
    link: u64,
    /// Our hello was said on this link.
    said_hello: bool,
    /// A retained slot of this peer was not taken on this link: what it sends later is not noted as seen either.
    retained_gap: bool,
    pub(super) interest: PeerInterest,
    /// What is durable here of what it sent.
    record: PeerRecord,
    outbox: VecDeque<Owed>,
    /// How many of `outbox` are sent on this link.
    sent: usize,
    sent_bytes: usize,
    pub(super) full: bool,
    retained_sent: u64,
    retained_durable: u64,
    /// Events that wait for room in a local queue; at most [`PEER_WINDOW`], the peer sends no more unacknowledged.
    stalled: VecDeque<(u64, Arc<Message>)>,
    pub(super) events_in: u64,
    pub(super) events_out: u64,
    pub(super) duplicates_in: u64,
}

impl Shard {
    /// Whether every peer has told what it is interested in, and can tell what changes.
    pub(super) fn knows_all_interest(&self) -> bool {
        self.peers.values().all(|peer| peer.up && peer.greeted)
    }
}

impl Peer {
    pub(super) fn owed(&self) -> usize {
        self.outbox.len()
    }
}

/// One hop only: a peer speaks for itself, and of topics a client could have named.
fn check_event(from: NodeId, message: &Message) -> Result<(), String> {
    if message.id.node != from {
        return Err(format!("an event of node {} that came from {from}", message.id.node));
    }
    topic::check_name(&message.topic).map_err(|error| format!("an event whose topic {error}"))
}

fn outbox_key(peer: NodeId, seq: u64) -> Vec<u8> {
    [peer.0.to_be_bytes(), seq.to_be_bytes()].concat()
}

fn record_key(peer: NodeId) -> Vec<u8> {
    [&peer.0.to_be_bytes()[..], &[0]].concat()
}

fn interest_key(peer: NodeId, pattern: &str) -> Vec<u8> {
    [&peer.0.to_be_bytes()[..], &[1], pattern.as_bytes()].concat()
}

impl Shard {
    /// The link to a peer is up.
    pub fn peer_up(&mut self, id: NodeId, now: Now) {
        self.now = now;
        self.link_count += 1;
        let link = self.link_count;
        let peer = self.peers.entry(id).or_default();
        (peer.up, peer.greeted, peer.said_hello) = (true, false, false);
        (peer.link, peer.retained_gap) = (link, false);
        (peer.sent, peer.sent_bytes) = (0, 0);
        peer.stalled.clear();
        let hello = Hello {
            store_id: self.config.store_id,
            your_store_id: peer.record.store_id,
            events_seen: peer.record.events_seen,
            retained_seen: peer.record.retained_seen,
        };
        self.table_epoch += 1;
        self.journal.hold(Hold::Retained { peer: id, feed_seq: self.retained.feed_last() });
        // The peer forgets what the hello says is durable here.
        self.journal.hold(Hold::Hello { peer: id, link, hello });
    }

    pub(super) fn say_hello(&mut self, id: NodeId, link: u64, hello: Hello) {
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up && p.link == link) else { return };
        peer.said_hello = true;
        self.tell_peer(id, PeerFrame::Hello(hello));
        self.count_interest();
        for frame in self.interest.iter().flat_map(LocalInterest::all_frames).collect::<Vec<_>>() {
            self.tell_peer(id, frame);
        }
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
                interest.add(TopicFilter::pattern_of(filter), durable);
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
        if let Some(peer) = self.peers.get_mut(&id) {
            (peer.up, peer.greeted) = (false, false);
            peer.stalled.clear();
            self.table_epoch += 1;
        }
    }

    /// A peer said something.
    ///
    /// # Errors
    /// What it did wrong; close its link.
    pub fn peer_frame(&mut self, id: NodeId, frame: PeerFrame, now: Now) -> Result<(), String> {
        self.now = now;
        let Some(peer) = self.peers.get_mut(&id).filter(|p| p.up) else { return Ok(()) };
        if !peer.greeted
            && !matches!(frame, PeerFrame::Hello(_))
            && frame.lane() == outpost_membership::Lane::Control
        {
            return Err("a control frame before its hello".to_owned());
        }
        match frame {
            PeerFrame::Hello(hello) => self.peer_hello(id, &hello),
            frame @ (PeerFrame::InterestAll(_)
            | PeerFrame::InterestAdd(_)
            | PeerFrame::InterestRemove(_)) => {
                self.peer_interest(id, &frame)?;
            }
            PeerFrame::Event { seq, message } => {
                check_event(id, &message)?;
                self.peer_event(id, seq, message);
            }
            PeerFrame::EventAck { seq } => self.event_acked(id, seq),
            PeerFrame::Retained { feed_seq, entry } => self.peer_retained(id, feed_seq, entry)?,
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
            // Another store: its numbers start anew.
            peer.record = PeerRecord { store_id: hello.store_id, ..PeerRecord::default() };
            self.write_peer(id);
        }
        let knows_us = hello.your_store_id == own_store;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.retained_sent = if knows_us { hello.retained_seen } else { 0 };
        if knows_us {
            self.event_acked(id, hello.events_seen);
        }
        self.pump(id);
        self.pump_retained(id);
        self.retry_blocked = true; // events that came before the hello
    }

    fn peer_interest(&mut self, id: NodeId, frame: &PeerFrame) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(&id) else { return Ok(()) };
        let named: Vec<&str> = match frame {
            PeerFrame::InterestAll(all) | PeerFrame::InterestAdd(all) => {
                all.iter().map(|i| &*i.pattern).collect()
            }
            _ => Vec::new(),
        };
        if named.iter().any(|pattern| pattern.len() > super::NAME_BYTES_MAX) {
            return Err("interest in a filter too long to be kept".to_owned());
        }
        let before = peer.interest.all();
        peer.interest.apply(frame).map_err(|error| error.to_string())?;
        let after = peer.interest.all();
        self.table_epoch += 1;
        self.retry_blocked |= self.full_peers > 0;
        // Durable interest outlives a restart of this node while the peer is away.
        let durable = |all: Vec<Interest>| {
            all.into_iter().filter(|i| i.durable).map(|i| i.pattern).collect::<Vec<_>>()
        };
        let (before, after) = (durable(before), durable(after));
        for gone in before.iter().filter(|p| after.binary_search(p).is_err()) {
            self.journal.delete(Space::Peers, interest_key(id, gone));
        }
        for new in after.iter().filter(|p| before.binary_search(p).is_err()) {
            self.journal.put(Space::Peers, interest_key(id, new), bytes::Bytes::new());
        }
        Ok(())
    }

    /// A message for a peer.
    pub(super) fn enqueue_peer(&mut self, id: NodeId, durable: bool, message: Arc<Message>) {
        let limit = self.config.outbox_messages_max;
        let Some(peer) = self.peers.get_mut(&id) else { return };
        // What need not be kept still may not overtake what is.
        let behind_kept = peer.up && !peer.outbox.is_empty();
        if message.qos == QoS::AtMostOnce || !(durable || behind_kept) {
            if peer.up {
                peer.events_out += 1;
                (self.ledger.owed, self.ledger.delivered) =
                    (self.ledger.owed + 1, self.ledger.delivered + 1);
                self.events.push_back(Event::Peer(id, PeerFrame::Event { seq: 0, message }));
            } else {
                // Only subscribers that are connected there wanted it, and they cannot be reached.
                self.ledger.drop_unqueued(Drop::Offline, 1);
            }
            return;
        }
        self.ledger.owed += 1;
        let seq = message.id.seq;
        let hot = peer.outbox.len() < OUTBOX_HOT_MAX;
        if hot {
            self.budget.recharge(Class::Peers, 0, message.cost_bytes() as u64);
        }
        peer.outbox.push_back(Owed {
            seq,
            message: hot.then(|| Arc::clone(&message)),
            durable: false,
        });
        if !peer.full && peer.outbox.len() >= limit {
            peer.full = true;
            self.full_peers += 1;
            self.log(
                LogLevel::Warn,
                format!(
                    "the outbox for peer {id} is full ({limit} messages); publishers are held back"
                ),
            );
        }
        self.journal.put(Space::Outbox, outbox_key(id, seq), message.id.to_bytes().to_vec().into());
        self.journal.need_body(&message);
        self.journal.hold(Hold::Outbox { peer: id, seq });
    }

    pub(super) fn outbox_durable(&mut self, id: NodeId, seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            if let Ok(index) = peer.outbox.binary_search_by_key(&seq, |owed| owed.seq) {
                peer.outbox[index].durable = true;
            }
            self.pump(id);
        }
    }

    /// Sends what the windows of all peers allow.
    pub(super) fn pump_all(&mut self) {
        let all: Vec<NodeId> = self.peers.keys().copied().collect();
        all.into_iter().for_each(|id| self.pump(id));
    }

    /// Sends what the window allows.
    fn pump(&mut self, id: NodeId) {
        while let Some(peer) = self.peers.get_mut(&id) {
            let ready = peer.up
                && peer.greeted
                && peer.sent < PEER_WINDOW
                && peer.sent_bytes < PEER_WINDOW_BYTES;
            let Some(owed) = peer.outbox.get(peer.sent).filter(|owed| ready && owed.durable) else {
                return;
            };
            let (seq, message) = (owed.seq, owed.message.clone());
            let message = match message {
                Some(message) => message,
                None => match self.read_owed(id, seq) {
                    Ok(Some(message)) => message,
                    Ok(None) => {
                        self.lose_owed(id, seq);
                        continue;
                    }
                    // The disk did not answer: it is still owed, and tried again with the next event or link.
                    Err(error) => {
                        return self.log(
                            LogLevel::Warn,
                            format!("events for peer {id} stay on disk: {error}"),
                        );
                    }
                },
            };
            let Some(peer) = self.peers.get_mut(&id) else { return };
            peer.sent += 1;
            peer.sent_bytes += message.cost_bytes();
            peer.events_out += 1;
            self.events.push_back(Event::Peer(id, PeerFrame::Event { seq, message }));
        }
    }

    /// What cannot be read will never be: it is not owed any more.
    fn lose_owed(&mut self, id: NodeId, seq: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Ok(index) = peer.outbox.binary_search_by_key(&seq, |owed| owed.seq) {
            let owed = peer.outbox.remove(index);
            let cost = owed.and_then(|owed| owed.message).map_or(0, |m| m.cost_bytes());
            self.budget.recharge(Class::Peers, cost as u64, 0);
        }
        self.ledger.drop(Drop::Damaged, 1);
        self.journal.delete(Space::Outbox, outbox_key(id, seq));
        self.journal.release_body(outpost_model::MessageId { node: self.config.node, seq });
    }

    fn read_owed(
        &mut self,
        id: NodeId,
        seq: u64,
    ) -> Result<Option<Arc<Message>>, outpost_store::ReadError> {
        let key = outpost_model::MessageId { node: self.config.node, seq }.to_bytes();
        let body = self.journal.store().get(Space::Messages, &key)?;
        let message = body.ok_or_else(|| "it is not there".to_owned());
        Ok(
            match message.and_then(|body| record::decode_message(&body).map_err(|e| e.to_string()))
            {
                Ok(message) => Some(Arc::new(message)),
                Err(error) => {
                    self.log(
                        LogLevel::Warn,
                        format!("message {seq} for peer {id} cannot be read: {error}"),
                    );
                    None
                }
            },
        )
    }

    fn event_acked(&mut self, id: NodeId, seq: u64) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let mut done = Vec::new();
        // Never what is not yet durable here: the peer cannot have seen it.
        while let Some(owed) = peer.outbox.pop_front_if(|owed| owed.seq <= seq && owed.durable) {
            let cost = owed.message.as_ref().map_or(0, |m| m.cost_bytes());
            self.budget.recharge(Class::Peers, cost as u64, 0);
            if peer.sent > 0 {
                peer.sent -= 1;
                peer.sent_bytes = peer.sent_bytes.saturating_sub(cost);
            }
            done.push(owed.seq);
        }
        if peer.sent == 0 {
            peer.sent_bytes = 0;
        }
        if peer.full && peer.outbox.len() <= self.config.outbox_messages_max / 8 * 7 {
            peer.full = false;
            self.full_peers -= 1;
            self.retry_blocked = true;
        }
        for seq in done {
            self.ledger.delivered += 1;
            self.journal.delete(Space::Outbox, outbox_key(id, seq));
            self.journal.release_body(outpost_model::MessageId { node: self.config.node, seq });
        }
        self.pump(id);
    }

    fn peer_event(&mut self, id: NodeId, seq: u64, message: Arc<Message>) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if seq == 0 {
            peer.events_in += 1;
            return self.route_from_peer(&message);
        }
        let newest = peer.stalled.back().map_or(peer.record.events_seen, |(seq, _)| *seq);
        if peer.greeted && seq <= newest {
            peer.duplicates_in += 1;
            let seen = peer.record.events_seen;
            return self.journal.hold(Hold::Peer(id, PeerFrame::EventAck { seq: seen }));
        }
        peer.events_in += 1;
        // Before its hello it is not known which store its numbers belong to.
        if !peer.greeted || !peer.stalled.is_empty() || !self.has_room_for(&message) {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            if peer.stalled.len() < PEER_WINDOW {
                peer.stalled.push_back((seq, message));
            }
            return;
        }
        self.take_event(id, seq, &message);
    }

    fn take_event(&mut self, id: NodeId, seq: u64, message: &Arc<Message>) {
        self.route_from_peer(message);
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
            while let Some((seq, message)) =
                self.peers.get(&id).and_then(|p| p.stalled.front().cloned())
            {
                let Some(peer) = self.peers.get_mut(&id).filter(|p| p.greeted) else { break };
                if seq <= peer.record.events_seen {
                    peer.stalled.pop_front();
                    peer.duplicates_in += 1;
                    continue;
                }
                if !self.has_room_for(&message) {
                    break;
                }
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.stalled.pop_front();
                }
                self.take_event(id, seq, &message);
                self.settle();
            }
        }
    }

    fn has_room_for(&mut self, message: &Message) -> bool {
        if message.qos > QoS::AtMostOnce && self.journal.stalled().is_some() {
            return false; // the peer keeps it: it is not acknowledged
        }
        if self.full_sessions == 0 || message.qos == QoS::AtMostOnce {
            return true;
        }
        let (_, recipients) = self.channel(&message.topic, true);
        !recipients.iter().any(|r| self.is_full(r))
    }

    /// One hop only: local receivers, never another peer.
    fn route_from_peer(&mut self, message: &Arc<Message>) {
        if self.traces.is_on() {
            self.trace_accepted(None, message);
        }
        let (cell, recipients) = self.channel(&message.topic, true);
        self.ledger.accept(!recipients.is_empty(), false, false);
        if recipients.is_empty() {
            return;
        }
        self.publish_on(cell, message, None, &recipients);
    }

    fn peer_retained(
        &mut self,
        id: NodeId,
        feed_seq: u64,
        entry: RetainedEntry,
    ) -> Result<(), String> {
        // It becomes a key of the store.
        if topic::check_name(&entry.topic).is_err() || entry.topic.len() > super::NAME_BYTES_MAX {
            return Err("a retained slot whose topic is no topic name".to_owned());
        }
        self.clock
            .observe(entry.stamp, self.now, CLOCK_AHEAD_MS_MAX)
            .map_err(|error| error.to_string())?;
        if let Some(message) = &entry.message
            && !self.has_retained_room(&entry.topic, message.payload.len())
        {
            // Not noted as seen: it comes again with the next link, when there may be room.
            if let Some(peer) = self.peers.get_mut(&id)
                && !std::mem::replace(&mut peer.retained_gap, true)
            {
                let text = format!("no room for retained messages of peer {id}; they are left out");
                self.log(LogLevel::Warn, text);
            }
            return Ok(());
        }
        self.merge_retained(entry);
        match self.peers.get_mut(&id) {
            Some(peer) if !peer.retained_gap => peer.record.retained_seen = feed_seq,
            _ => return Ok(()),
        }
        self.write_peer(id);
        Ok(())
    }

    pub(super) fn retained_durable(&mut self, id: NodeId, feed_seq: u64) {
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.retained_durable = peer.retained_durable.max(feed_seq);
            self.pump_retained(id);
        }
    }

    /// Sends retained changes the peer has not seen, as far as they are durable. What the link cannot take breaks it,
    /// and the next link begins where the peer says.
    fn pump_retained(&mut self, id: NodeId) {
        while let Some(peer) = self.peers.get(&id).filter(|p| p.up && p.greeted) {
            let Some((feed_seq, entry)) = self.retained.next_change(peer.retained_sent) else {
                return;
            };
            if feed_seq > peer.retained_durable {
                return;
            }
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.retained_sent = feed_seq;
            }
            // What was written there needs not go back there.
            if entry.node != id {
                self.events.push_back(Event::Peer(id, PeerFrame::Retained { feed_seq, entry }));
            }
        }
    }

    fn write_peer(&mut self, id: NodeId) {
        if let Some(peer) = self.peers.get(&id) {
            self.journal.put(Space::Peers, record_key(id), record::encode(&peer.record));
        }
    }

    /// At start: a row of `Space::Peers`.
    pub(super) fn recover_peer_row(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let id = NodeId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?));
        let peer = self.peers.entry(id).or_default();
        match key.get(8)? {
            0 => peer.record = record::decode("peer", value).ok()?,
            1 => {
                let pattern = String::from_utf8(key.get(9..)?.to_vec()).ok()?;
                let interest = Interest { pattern, durable: true };
                peer.interest.apply(&PeerFrame::InterestAdd(vec![interest])).ok()?;
            }
            _ => return None,
        }
        Some(())
    }

    /// At start: a row of `Space::Outbox`.
    pub(super) fn recover_outbox_row(&mut self, key: &[u8]) -> Option<()> {
        let id = NodeId(u64::from_be_bytes(key.get(..8)?.try_into().ok()?));
        let seq = u64::from_be_bytes(key.get(8..16)?.try_into().ok()?);
        let peer = self.peers.entry(id).or_default();
        peer.outbox.push_back(Owed { seq, message: None, durable: true });
        self.ledger.owed += 1;
        self.journal.count_body(outpost_model::MessageId { node: self.config.node, seq });
        Some(())
    }
}
