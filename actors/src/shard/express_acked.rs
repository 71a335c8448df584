//! The express way of plain messages of QoS 1 between clients that are all here, and of the acknowledgements of those who
//! receive them.
//!
//! ```text
//!  PUBLISH ─PlainAcked─▶ channel ─▶ window of each receiver (a turn of its session) ─the same bytes, its packet id─▶ out
//!                           └─ when all have it ─▶ PUBACK
//! ```
//! Only where nothing is to be written down and nobody has to wait: no receiver is durable, each has room in its window, and
//! the answer overtakes no other. One receiver for whom that is not so, and the message goes the ordinary way to all.

use std::sync::Arc;

use bytestring::ByteString;
use outpost_flow::Pressure;
use outpost_model::{Message, QoS};
use outpost_mqtt::packet::{PacketId, Version};
use outpost_mqtt::plain::{PLAIN_ACK_BYTES, PlainAcked, plain_ack, plain_ack_of};
use outpost_mqtt::session::{End, Session};
use outpost_mqtt::window::{Delivery, packet_id_of};

use super::channel::{Owner, Recipient};
use super::connection::{Connection, Phase};
use super::express::RUN_BYTES_MOST;
use super::memory::SHED_DIVISOR;
use super::pass::written;
use super::{Cell, ConnId, Shard};
use crate::cell::{CellId, Turn};

/// One message on its way.
#[derive(Clone, Copy)]
struct Acked<'a> {
    from: u32,
    version: Version,
    plain: PlainAcked<'a>,
}

impl Shard {
    /// Passes the message at the front of `input` on and acknowledges it. How many bytes it has; `None`: it is not plain, or
    /// somebody has to wait, and nothing was done.
    pub(super) fn express_acked(&mut self, conn: ConnId, input: &[u8]) -> Option<usize> {
        let connection = self.connection(conn)?;
        let Phase::Open(from) = connection.phase else { return None };
        let version = connection.version;
        let plain = PlainAcked::read(version, input)?;
        let bytes_max = RUN_BYTES_MOST.min(self.config.session.packet_bytes_max as usize);
        let is_ordinary = plain.frame.len() > bytes_max || plain.topic.first() == Some(&b'$');
        let takes_answer = connection.packet_max as usize >= PLAIN_ACK_BYTES;
        if is_ordinary || !takes_answer || connection.rare.blocked_len() > 0 {
            return None;
        }
        if !self.is_nobody_short() || !self.may_answer_at_once(from) {
            return None;
        }
        let (channel, recipients) = self.express_channel(plain.topic)?;
        if !self.is_granted(conn, channel) {
            return None;
        }
        let acked = Acked { from, version, plain };
        if !recipients.iter().all(|to| self.takes_acked(to, &acked)) {
            return None;
        }
        let message = self.acked_message(channel, plain.payload)?;
        if let Some(Cell::Channel(channel)) = self.cells.body_mut(channel) {
            channel.published += 1;
        }
        self.count_publish(conn, QoS::AtLeastOnce, 1, plain.payload.len());
        self.ledger.accept_wanted(1);
        self.pass_acked(&recipients, &message, acked);
        self.send_plain_ack(conn, plain.id);
        self.settle_failed();
        Some(plain.frame.len())
    }

    /// Takes in the acknowledgement at the front of `input`. How many bytes it has; `None`: it says more than yes, or there
    /// is more to do than to forget the delivery, and nothing was done.
    pub(super) fn express_ack(&mut self, conn: ConnId, input: &[u8]) -> Option<usize> {
        let id = plain_ack(input)?;
        let Phase::Open(session) = self.connection(conn)?.phase else { return None };
        if !self.retained_due.is_empty() || !self.is_express_open(session) {
            return None;
        }
        let cell = self.sessions.get(session as usize)?.cell;
        let Some(Cell::Session(body)) = self.cells.body(cell) else { return None };
        if !body.outbound.has_sent_all() {
            return None;
        }
        let mut done = None;
        let turn = self.cells.turn(cell, self.now.mono_ms, |cell| {
            done = session_of(cell).outbound.handle_done(id, QoS::AtLeastOnce);
        });
        if let Turn::Panicked(verdict) = turn {
            self.lost(cell, true);
            self.cell_failed(cell, &verdict);
            self.settle();
        } else {
            self.delivery_done(session, &done?, End::Delivered);
        }
        self.totals.packets_received += 1;
        self.count_heard(conn);
        Some(PLAIN_ACK_BYTES)
    }

    /// Nothing is full, stalled or short, and nobody waits for any of that to change.
    fn is_nobody_short(&self) -> bool {
        let is_writing = self.journal.failed().is_none() && self.journal.stalled().is_none();
        let has_room = self.budget.pressure() < Pressure::Refuse && !self.is_anyone_full();
        is_writing && has_room && self.retained_due.is_empty()
    }

    /// Whether a session's client may publish now, and its answer has none before it.
    fn may_answer_at_once(&self, session: u32) -> bool {
        let slot = self.sessions.get(session as usize);
        let Some(slot) = slot.filter(|slot| slot.held == 0) else { return false };
        let Some(Cell::Session(body)) = self.cells.body(slot.cell) else { return false };
        self.is_express_open(session) && body.takes_publish(&self.config.session)
    }

    /// Whether a receiver gets the message at once, and need not have it written down.
    fn takes_acked(&self, recipient: &Recipient, acked: &Acked<'_>) -> bool {
        let Recipient::Session { subscriber, session, qos, no_local, ids, .. } = recipient else {
            return false;
        };
        if *no_local && *session == acked.from {
            return true; // it gets none
        }
        if *qos == QoS::AtMostOnce || !ids.is_empty() || !self.is_subscriber(*subscriber) {
            return false;
        }
        let Some(slot) = self.sessions.get(*session as usize) else { return false };
        let most_bytes = (size_of::<Message>() + acked.plain.frame.len()) as u64;
        let has_room = slot.queued + 1 < self.config.queue_messages_max
            && slot.queued_bytes + most_bytes < self.config.queue_bytes_max;
        let Some(Cell::Session(body)) = self.cells.body(slot.cell) else { return false };
        if slot.durable || slot.full || !has_room || !body.takes_at_once(slot.next_place) {
            return false;
        }
        let conn = self.plain_connection(*session).and_then(|conn| self.connection(conn));
        conn.is_some_and(|connection| {
            let is_same = (connection.version == Version::V5) == (acked.version == Version::V5);
            let fits = acked.plain.frame.len() <= connection.packet_max as usize;
            is_same && fits && connection.takes_plain(self.config.out_bytes_max / SHED_DIVISOR)
        })
    }

    /// The message, numbered, with the name of its channel. `None`: the channel's cell is gone.
    fn acked_message(&mut self, channel: CellId, payload: &[u8]) -> Option<Arc<Message>> {
        let (Cell::Channel(_), Owner::Channel(topic)) =
            (self.cells.body(channel)?, self.cells.owner(channel)?)
        else {
            return None;
        };
        let topic = ByteString::clone(topic);
        Some(Arc::new(Message {
            id: self.next_message_id(),
            topic,
            payload: payload.to_vec().into(),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: None,
            accepted_wall_ms: self.now.wall_ms,
            expiry_s: None,
        }))
    }

    fn pass_acked(&mut self, recipients: &[Recipient], message: &Arc<Message>, acked: Acked<'_>) {
        for recipient in recipients {
            let Recipient::Session { subscriber, session, no_local, .. } = recipient else {
                continue; // a channel that has others is none for this
            };
            if *no_local && *session == acked.from {
                continue;
            }
            if let Some(Cell::Subscriber(subscriber)) = self.cells.body_mut(*subscriber) {
                subscriber.forwarded += 1;
            }
            if self.owe_acked(*session, message) {
                self.write_acked(*session, acked.plain);
            }
        }
    }

    /// A receiver, who was asked, is owed the message. `false`: its session failed over it, and is told of as on the ordinary
    /// way.
    fn owe_acked(&mut self, session: u32, message: &Arc<Message>) -> bool {
        self.ledger.owed += 1;
        let cost_bytes = message.cost_bytes() as u64;
        let slot = &mut self.sessions[session as usize];
        let (cell, place) = (slot.cell, slot.next_place);
        slot.next_place += 1;
        slot.queued += 1;
        slot.queued_bytes += cost_bytes;
        self.add_to_node_queue(cost_bytes);
        self.charge_queue(session);
        self.mark_queue(session);
        let delivery = Delivery {
            place,
            message: Arc::clone(message),
            qos: QoS::AtLeastOnce,
            retain: false,
            subscription_ids: Vec::new(),
            share: None,
        };
        let push = |cell: &mut Cell| session_of(cell).outbound.push_sent(delivery);
        match self.cells.turn(cell, self.now.mono_ms, push) {
            Turn::Panicked(verdict) => {
                self.cell_failed(cell, &verdict);
                false
            }
            turn => turn == Turn::Done,
        }
    }

    /// Writes the message that was owed last.
    fn write_acked(&mut self, session: u32, plain: PlainAcked<'_>) {
        let slot = &self.sessions[session as usize];
        let (Some(conn), id) = (slot.conn, packet_id_of(slot.next_place - 1)) else { return };
        let connection = self.connections.get_mut(conn.index as usize);
        let connection = connection.filter(|c| c.generation() == conn.generation);
        let Some(connection) = connection else { return };
        connection.out.put_with(|out| plain.write(id, out));
        let (totals, qos, bytes) = (&mut self.totals, QoS::AtLeastOnce, plain.payload.len());
        if written(connection, totals, qos, 1, bytes) {
            self.flushes.push_back(conn);
        }
    }

    fn send_plain_ack(&mut self, conn: ConnId, id: PacketId) {
        let connection = self.connection_mut(conn);
        let is_open = |c: &&mut Connection| matches!(c.phase, Phase::Open(_));
        let Some(connection) = connection.filter(is_open) else { return };
        connection.out.put(&plain_ack_of(id));
        self.totals.packets_sent += 1;
        self.flush(conn);
    }

    /// A session's cell that has failed may have left something to do.
    fn settle_failed(&mut self) {
        if !self.cells.is_idle() {
            self.settle();
        }
    }

    fn is_subscriber(&self, cell: CellId) -> bool {
        matches!(self.cells.body(cell), Some(Cell::Subscriber(_)))
    }
}

fn session_of(cell: &mut Cell) -> &mut Session {
    match cell {
        Cell::Session(session) => session,
        Cell::Channel(_) | Cell::Subscriber(_) => unreachable!("the shard keeps sessions apart"),
    }
}
