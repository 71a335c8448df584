//! From a PUBLISH to everybody who wants it, and back to its publisher once it is safe.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use outpost_flow::Pressure;
use outpost_model::{Message, MessageId, MessageProperties, QoS};
use outpost_mqtt::packet::{Publish, ReasonCode, Version};

use super::bridges::{Kind, Taken};
use super::channel::Recipient;
use super::slot::SessionSlot;
use super::sys::is_sys;
use super::{CellMsg, ConnId, Event, Hold, Shard, Ticket};
use crate::ledger::Drop;
use crate::ports::{Action, Identity};

/// Message numbers are reserved on disk in blocks of this size.
const MESSAGE_BLOCK: u64 = 1 << 20;

/// Whom a message is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// All that subscribe, and the shadow service when it is a request.
    Everyone,
    /// Receivers of this node.
    Here,
    /// All that subscribe, not the shadow service.
    Subscribers,
}

/// Shadow requests under way at once; more are refused with 0x97.
const SHADOW_JOBS_MAX: usize = 10_000;

/// A message the node itself publishes.
#[derive(Debug, Clone)]
pub struct LocalPublish {
    /// Topic name; must be valid.
    pub topic: ByteString,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: QoS,
    /// Retain it.
    pub retain: bool,
    /// For subscribers of this node only: every other node publishes the same to its own.
    pub here_only: bool,
    /// Seconds it is worth delivering; `None`: for ever.
    pub expiry_s: Option<u32>,
    /// Properties.
    pub properties: Option<Box<MessageProperties>>,
}

impl Shard {
    /// A client published; `again` when it had to wait with this.
    pub(super) fn route_from_client(&mut self, session: u32, mut publish: Publish, again: bool) {
        let Some(conn) = self.sessions.get(session as usize).and_then(|s| s.conn) else { return };
        let Some(connection) = self.connection_mut(conn) else { return };
        let version = connection.version;
        if !again && publish.qos > QoS::AtMostOnce && connection.rare.blocked_len() > 0 {
            return connection.rare.blocked_mut().push_back(Box::new(publish)); // behind the one that waits
        }
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let own_bridge = slot.kind == Kind::Own;
        let ticket = match publish.packet_id {
            Some(id) => Ticket::Client { session, number: slot.number, conn, id, qos: publish.qos },
            None => Ticket::None,
        };
        if is_sys(&publish.topic) && self.take_notice(session, &publish, ticket) {
            return;
        }
        if self.sessions.get(session as usize).is_none() {
            return;
        }
        if !self.may_publish_now(session, conn, &publish.topic) {
            self.ledger.drop_unqueued(Drop::Denied, 1);
            self.note_publish_refused(session, &publish.topic, ReasonCode::NotAuthorized);
            return self.answer(ticket, ReasonCode::NotAuthorized);
        }
        if !self.fits_format(publish.properties.as_deref(), &publish.payload) {
            return self.refuse_format(session, conn, &publish, ticket);
        }
        let taken = self.judge_path(session, &mut publish, again);
        if matches!(taken, Taken::Not) {
            return self.drop_copy(ticket);
        }
        match self.route(publish, Some(session), ticket) {
            Ok(()) => {
                match taken {
                    Taken::Event(event) => self.remember_event(&event),
                    Taken::Noted(note) => self.note_came(session, &note),
                    Taken::Plain | Taken::Not => {}
                }
                if let Ticket::Client { id, qos: QoS::ExactlyOnce, .. } = ticket {
                    self.write_received(session, id, true);
                }
            }
            Err((publish, ReasonCode::QuotaExceeded)) if version != Version::V5 || own_bridge => {
                // No way to say no: the client waits, its next publishes behind this one, until there is room.
                if let Some(connection) = self.connection_mut(conn) {
                    connection.rare.blocked_mut().push_front(publish);
                    self.blocked.push(conn);
                }
            }
            Err((publish, reason)) => {
                self.ledger.refused += 1;
                self.note_publish_refused(session, &publish.topic, reason);
                self.answer(ticket, reason);
            }
        }
    }

    /// Whether a client may publish on a topic: what the node says of itself it says itself.
    pub(super) fn may_publish(&self, who: &Identity, topic: &str) -> bool {
        !is_sys(topic) && self.gate.allows(who, Action::Publish, topic)
    }

    /// Whether a payload is what its payload format indicator says (MQTT 5, §3.3.2.3.2); asked only when it is to be.
    pub(super) fn fits_format(
        &self,
        properties: Option<&MessageProperties>,
        payload: &[u8],
    ) -> bool {
        let says_text = || properties.is_some_and(|p| p.payload_is_utf8 == Some(true));
        !self.config.payload_format_check || !says_text() || std::str::from_utf8(payload).is_ok()
    }

    /// QoS 0 has no answer: DISCONNECT says it.
    fn refuse_format(&mut self, session: u32, conn: ConnId, publish: &Publish, ticket: Ticket) {
        let reason = ReasonCode::PayloadFormatInvalid;
        self.ledger.refused += 1;
        self.note_publish_refused(session, &publish.topic, reason);
        match ticket {
            Ticket::None => {
                let text = "a payload that is said to be UTF-8 and is not";
                self.log_closing(conn, session, format_args!("{text}"));
                self.close(conn, reason, text);
            }
            _ => self.answer(ticket, reason),
        }
    }

    /// Answers a refused publish, behind the answers that wait for the disk already (MQTT-4.6.0-2).
    pub(super) fn answer(&mut self, ticket: Ticket, reason: ReasonCode) {
        if self.has_held(ticket) && self.journal.failed().is_none() {
            self.hold_ticket(ticket, reason);
        } else {
            self.settle_ticket(ticket, reason);
        }
    }

    /// Accepts a message and sends it on its way.
    ///
    /// # Errors
    /// The message and why it was not accepted; nothing happened then.
    pub(super) fn route(
        &mut self,
        publish: Publish,
        from: Option<u32>,
        ticket: Ticket,
    ) -> Result<(), (Box<Publish>, ReasonCode)> {
        self.route_within(publish, from, ticket, Reach::Everyone)
    }

    /// The same, for those it is meant for.
    pub(super) fn route_within(
        &mut self,
        publish: Publish,
        from: Option<u32>,
        ticket: Ticket,
        reach: Reach,
    ) -> Result<(), (Box<Publish>, ReasonCode)> {
        let (cell, all) = self.channel(&publish.topic);
        let recipients = if reach == Reach::Here { Self::here(&all) } else { all };
        if let Some(reason) = self.cannot_take(&publish, ticket, &recipients) {
            return Err((Box::new(publish), reason));
        }
        let shadow = reach != Reach::Subscribers && is_shadow_request(&publish.topic);
        if shadow && self.shadow_jobs.len() >= SHADOW_JOBS_MAX {
            return Err((Box::new(publish), ReasonCode::QuotaExceeded));
        }
        let message = Arc::new(Message {
            id: self.next_message_id(),
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos,
            retain: publish.retain,
            properties: publish.properties,
            accepted_wall_ms: self.now.wall_ms,
            expiry_s: publish.expiry_s,
        });
        self.ledger.accept(!recipients.is_empty(), message.retain, shadow);
        if self.traces.is_on() {
            self.trace_accepted(from, &message);
        }
        if message.retain {
            self.retain(&message);
        }
        if shadow {
            self.shadow_request(&message, from, ticket);
        } else {
            let is_unheard = recipients.is_empty() && self.may_say_unheard(ticket);
            let reason =
                if is_unheard { ReasonCode::NoMatchingSubscribers } else { ReasonCode::Success };
            if ticket != Ticket::None {
                self.tickets.push((ticket, message.id, reason));
            }
        }
        if !recipients.is_empty() {
            let recipients = self.choose_shares(recipients, &message);
            let waits = message.qos == QoS::ExactlyOnce && from.is_some_and(|s| self.is_noted(s));
            self.publish_on(cell, &message, from, waits, &recipients);
        }
        Ok(())
    }

    /// Whether a row says which QoS 2 messages of a client were taken: packet ids where its session is kept, or the will
    /// that goes when it is said.
    fn is_noted(&self, session: u32) -> bool {
        let slot = self.sessions.get(session as usize);
        slot.is_none_or(|slot| slot.durable || slot.will_kept)
    }

    /// Whether a PUBACK may tell that nobody subscribes: "If the Server knows" it (MQTT 5, §3.4.2.1), so not while a peer
    /// may have subscribers unheard of. Not in a PUBREC, which may be said again after the reason is forgotten.
    fn may_say_unheard(&self, ticket: Ticket) -> bool {
        matches!(ticket, Ticket::Client { qos: QoS::AtLeastOnce, .. }) && self.knows_all_interest()
    }

    fn shadow_request(&mut self, message: &Arc<Message>, from: Option<u32>, ticket: Ticket) {
        let mut job = 0;
        if ticket != Ticket::None {
            self.shadow_job += 1;
            job = self.shadow_job;
            self.shadow_jobs.insert(job, ticket);
        }
        let (topic, payload) = (message.topic.clone(), message.payload.clone());
        let from = from.and_then(|session| self.sessions.get(session as usize));
        let client = from.map(SessionSlot::client_id).unwrap_or_default();
        self.events.push_back(Event::Shadow { topic, payload, client, job });
    }

    /// Why a message cannot be accepted now. QoS 0 always can: what is slow then drops it, counted.
    fn cannot_take(
        &self,
        publish: &Publish,
        ticket: Ticket,
        recipients: &[Recipient],
    ) -> Option<ReasonCode> {
        if publish.retain
            && !publish.payload.is_empty()
            && !self.has_retained_room(&publish.topic, publish.payload.len())
        {
            // Not a quota that frees itself: a 3.1.1 client must not be made to wait for it.
            return Some(ReasonCode::ImplementationSpecificError);
        }
        if publish.qos == QoS::AtMostOnce {
            return None;
        }
        if self.config.durable && self.journal.failed().is_some() {
            return Some(ReasonCode::ImplementationSpecificError);
        }
        let short = self.budget.pressure() >= Pressure::Refuse;
        if short && recipients.iter().any(|r| self.would_pile_up(r)) {
            return Some(ReasonCode::QuotaExceeded);
        }
        if self.journal.stalled().is_some()
            && (is_shadow_request(&publish.topic) || self.needs_disk(publish, ticket, recipients))
        {
            return Some(ReasonCode::QuotaExceeded);
        }
        (self.is_anyone_full() && recipients.iter().any(|r| self.is_full(r)))
            .then_some(ReasonCode::QuotaExceeded)
    }

    /// What need not be kept waits there too while there is a link, behind what is; without one it does not wait at all.
    pub(super) fn is_peer_full(&self, peer: outpost_model::NodeId, durable: bool) -> bool {
        self.peers.get(&peer).is_some_and(|p| p.quota.is_full() && (durable || p.up))
    }

    pub(super) fn is_full(&self, recipient: &Recipient) -> bool {
        match recipient {
            Recipient::Session { session, qos, .. } => {
                *qos > QoS::AtMostOnce
                    && (self.sessions.get(*session as usize).is_some_and(|s| self.lacks_room(s))
                        || self.is_way_full(*session))
            }
            Recipient::Peer { peer, durable, .. } => self.is_peer_full(*peer, *durable),
            Recipient::Group(group) => self.is_group_full(*group),
            Recipient::Shared(shared) => self.is_shared_full(shared),
            Recipient::Local(_) => false,
        }
    }

    /// Tries again what 3.1.1 clients had to wait with.
    pub(super) fn retry_blocked_publishers(&mut self) {
        for conn in std::mem::take(&mut self.blocked) {
            let Some(connection) = self.connection(conn) else { continue };
            let super::connection::Phase::Open(session) = connection.phase else { continue };
            while let Some(connection) = self.connection_mut(conn)
                && let Some(publish) = connection.rare.blocked_mut().pop_front()
            {
                self.route_from_client(session, *publish, true);
                let waits_again = self.blocked.last() == Some(&conn);
                self.settle();
                self.charge_buffers(conn);
                if waits_again {
                    break;
                }
            }
            self.resume(conn);
        }
    }

    /// Whether the answer to a message must wait for the disk.
    pub(super) fn must_wait(&self, ticket: Ticket, id: MessageId, reason: ReasonCode) -> bool {
        if self.has_held(ticket) {
            return true; // answers keep their order
        }
        if reason.is_error() {
            return false;
        }
        // A QoS 2 id of a durable session is written down.
        let is_written = match ticket {
            Ticket::Client { session, qos: QoS::ExactlyOnce, .. } => {
                self.sessions.get(session as usize).is_some_and(|s| s.durable)
            }
            _ => false,
        };
        is_written
            || self.journal.is_needed(id)
            || self.retained.was_written(id)
            || self.moves.copied.contains(&id)
    }

    fn has_held(&self, ticket: Ticket) -> bool {
        let Ticket::Client { session, number, .. } = ticket else { return false };
        let slot = self.sessions.get(session as usize);
        slot.is_some_and(|s| s.number == number && s.held > 0)
    }

    pub(super) fn hold_ticket(&mut self, ticket: Ticket, reason: ReasonCode) {
        if let Ticket::Client { session, number, .. } = ticket
            && let Some(slot) = self.sessions.get_mut(session as usize)
            && slot.number == number
        {
            slot.held += 1;
        }
        self.journal.hold(Hold::Settle(ticket, reason));
    }

    /// A message was not taken after all: its QoS 2 id goes in the batch it would have come with, whatever becomes of the
    /// session's cell, or a copy sent later would be answered as if the message were safe.
    pub(super) fn forget_received(&mut self, ticket: Ticket) {
        if let Ticket::Client { session, number, id, qos: QoS::ExactlyOnce, .. } = ticket
            && self.slot_of(session, number).is_some()
        {
            self.write_received(session, id, false);
        }
    }

    /// Tells whoever waits that a message is safe, or refused.
    pub(super) fn settle_ticket(&mut self, ticket: Ticket, reason: ReasonCode) {
        match ticket {
            Ticket::None => {}
            Ticket::Node(job) => self.events.push_back(Event::Published(job, reason)),
            Ticket::Client { session, number, conn, id, qos } => {
                let Some(slot) = self.sessions.get(session as usize).filter(|s| s.number == number)
                else {
                    return;
                };
                let (cell, same_link) = (slot.cell, slot.conn == Some(conn));
                let speaks_5 = self.connection(conn).is_some_and(|c| c.version == Version::V5);
                if reason.is_error() {
                    self.forget_received(ticket);
                }
                let close = reason.is_error() && same_link && !speaks_5;
                // The session hears of it in any case: a QoS 2 id that was refused is free again.
                let same_link = same_link && !close;
                self.send_now(cell, CellMsg::Accepted { id, qos, reason, same_link });
                if close {
                    self.close(conn, reason, "");
                }
            }
        }
    }

    /// What the disk has set free.
    pub(super) fn release(&mut self, free: Vec<Hold>) {
        for hold in free {
            self.release_one(hold);
            self.run_cells(); // a mailbox is not made for a thousand acknowledgements at once
        }
    }

    fn release_one(&mut self, hold: Hold) {
        match hold {
            Hold::Welcome { session, number, conn, connect, connack } => {
                if self.unhold(session, number) {
                    let slot = &mut self.sessions[session as usize];
                    slot.expiry_kept |= slot.conn == Some(conn);
                    self.welcome_now(session, conn, connect, connack);
                    self.resume(conn);
                }
            }
            Hold::Rows { session, number, upto } => {
                if let Some(slot) = self.slot_of(session, number) {
                    let cell = slot.cell;
                    self.send(cell, CellMsg::RowsSynced(upto));
                }
            }
            Hold::Revive { session, number } => {
                if self.slot_of(session, number).is_some() {
                    self.revive_session(session);
                }
            }
            Hold::Hello { peer, link, hello, state_seen } => {
                self.say_hello(peer, link, hello, state_seen);
            }
            Hold::Packet { session, number, conn, packet } => {
                if self.unhold(session, number) {
                    self.send_answer(session, conn, &packet);
                } else {
                    self.send_packet(conn, &packet);
                }
            }
            Hold::Settle(ticket, reason) => {
                if let Ticket::Client { session, number, .. } = ticket {
                    self.unhold(session, number);
                }
                self.settle_ticket(ticket, reason);
            }
            Hold::Peer(peer, frame) => self.tell_peer(peer, frame),
            Hold::Outbox { peer, seq } => self.outbox_durable(peer, seq),
            Hold::Fleeting { peer, message } => self.send_unkept(peer, message, None),
            Hold::Retained { peer, feed_seq } => self.retained_durable(peer, feed_seq),
            Hold::State { peer, feed_seq } => self.state_durable(peer, feed_seq),
            Hold::Leave { session, step } => self.pass_on_session(session, step),
            Hold::Arrive { session, step } => self.settle_in(session, step),
            Hold::Load { session, number, from, count, upto } => {
                self.load(session, number, from, count, upto)
            }
            Hold::Sweep(remains) => self.sweep(remains),
            Hold::Expire { session, number, from } => self.expire_rows(session, number, from),
        }
    }

    /// The session of this number, if it still is the one at that place.
    pub(super) fn slot_of(&mut self, session: u32, number: u64) -> Option<&mut SessionSlot> {
        self.sessions.get_mut(session as usize).filter(|slot| slot.number == number)
    }

    fn unhold(&mut self, session: u32, number: u64) -> bool {
        let slot = self.slot_of(session, number);
        slot.map(|slot| slot.held = slot.held.saturating_sub(1)).is_some()
    }

    /// A number no message of this node has had or will have. Blocks are reserved in the same order as everything else
    /// is written, so whatever is durable has a number below a durable reservation.
    pub(super) fn next_message_id(&mut self) -> MessageId {
        self.message_seq += 1;
        if self.message_seq >= self.message_seq_reserved {
            self.message_seq_reserved = self.message_seq + MESSAGE_BLOCK;
            let reserved = self.message_seq_reserved.to_be_bytes().to_vec();
            self.journal.put(
                outpost_store::Space::Meta,
                super::recover::MESSAGE_BLOCK_KEY,
                reserved.into(),
            );
        }
        MessageId { node: self.config.node, seq: self.message_seq }
    }
}

/// A request to the shadow service: `$aws/things/<thing>/shadow[/name/<name>]/{get,update,delete}`. The hub parses it.
fn is_shadow_request(topic: &str) -> bool {
    topic.starts_with("$aws/things/")
        && ["/get", "/update", "/delete"].iter().any(|verb| topic.ends_with(verb))
}
