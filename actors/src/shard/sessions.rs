//! Sessions from the outside: what their shard keeps of them, so that it outlives the cell, the connection or the process.

use std::sync::Arc;

use bytes::Bytes;
use outpost_model::{MessageId, NodeId, QoS};
use outpost_mqtt::packet::{Packet, PacketId};
use outpost_mqtt::session::End;
use outpost_mqtt::window::Delivery;
use outpost_store::Space;

use super::channel::Owner;
use super::memory::BEHIND_MESSAGES;
use super::pass::Parcel;
use super::slot::{Moment, SessionSlot};
use super::{Cell, CellMsg, ConnId, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::ports::Identity;
use crate::record::{self, DeliveryRecord, SessionRecord};

/// Why a delivery could not be read.
pub(super) enum Unread {
    /// The disk did not answer; the row may be there.
    Later,
    /// It is there and no delivery, or its message is not there: this message, and what it counts in the queue.
    Damaged(MessageId, u64),
}

/// Key of a delivery's row.
pub(super) fn queue_key(number: u64, place: u64) -> Vec<u8> {
    [&number.to_be_bytes()[..], &[0], &place.to_be_bytes()].concat()
}

/// The place in a delivery's key.
pub(super) fn place_of(key: &[u8]) -> Option<u64> {
    key.get(9..17)?.try_into().ok().map(u64::from_be_bytes)
}

/// The packet id in the key of a received QoS 2 id's row.
pub(super) fn received_id(key: &[u8]) -> Option<PacketId> {
    let bytes = key.get(9..11).filter(|_| key[8] == 1)?;
    PacketId::new(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Key of a received QoS 2 id's row.
fn received_key(number: u64, id: PacketId) -> Vec<u8> {
    [&number.to_be_bytes()[..], &[1], &id.get().to_be_bytes()].concat()
}

impl Shard {
    pub(super) fn new_session(&mut self, who: &Identity) -> u32 {
        self.session_number += 1;
        let number = self.session_number;
        let entry = self.sessions.vacant_entry();
        let session = entry.key() as u32;
        let cell = self.cells.spawn(Owner::Session(session), Cell::Session(Box::default()));
        entry.insert(SessionSlot::new(who, number, cell));
        self.name_session(session);
        session
    }

    /// Sets how long the session outlives its connection. What once was on disk stays there until the session ends.
    pub(super) fn set_expiry(&mut self, session: u32, expiry_s: u32) {
        let slot = &mut self.sessions[session as usize];
        slot.expiry_s = expiry_s;
        if expiry_s > 0 && !slot.durable {
            slot.durable = true;
            self.rewrite_session(session);
        }
    }

    /// Writes the session's own row.
    pub(super) fn write_session(&mut self, session: u32, left_wall_ms: Option<u64>) {
        let slot = &self.sessions[session as usize];
        if !slot.durable {
            return;
        }
        let (leaves_to, is_told) = self.leaving_record(session);
        let record = SessionRecord {
            number: slot.number,
            expiry_s: slot.expiry_s,
            left_wall_ms,
            username: slot.user.as_ref().map(ToString::to_string),
            leaves_to,
            is_told,
        };
        let key = Bytes::copy_from_slice(slot.client_id.as_bytes());
        self.journal.put(Space::Sessions, key, record::encode(&record));
    }

    /// A session that was in memory only becomes durable.
    fn rewrite_session(&mut self, session: u32) {
        let subscriptions: Vec<_> =
            self.sessions[session as usize].subscriptions.iter().cloned().collect();
        for (filter, cell) in subscriptions {
            let Some((options, id)) = self.subscription_of(cell) else { continue };
            self.tell_interest(&filter, options.qos, false, false);
            self.tell_interest(&filter, options.qos, true, true);
            self.write_subscription(session, &filter, options, id);
        }
    }

    /// A message for a session, from one of its subscribers.
    pub(super) fn enqueue(&mut self, session: u32, parcel: Parcel<'_>, share: Option<Arc<str>>) {
        if !self.moves.is_empty() && self.settles_moving(session, &parcel, share.as_ref()) {
            return;
        }
        self.enqueue_here(session, parcel, share);
    }

    /// The same when its session does not go anywhere.
    pub(super) fn enqueue_here(
        &mut self,
        session: u32,
        parcel: Parcel<'_>,
        share: Option<Arc<str>>,
    ) {
        self.ledger.owed += 1;
        let Some(slot) = self.sessions.get(session as usize) else {
            return self.ledger.drop(Drop::SessionEnded, 1);
        };
        if parcel.qos == QoS::AtMostOnce {
            return self.deliver_at_once(session, parcel);
        }
        let cell = slot.cell;
        if !self.cells.has_room(cell) {
            // Before it has a place: its publisher hears that it is not safe.
            self.crashed_messages.push(parcel.message.id);
            return self.drop_for(session, Drop::Crashed, 1, &parcel.message.topic);
        }
        let (messages_max, bytes_max) =
            (self.config.queue_messages_max, self.config.queue_bytes_max);
        let slot = &mut self.sessions[session as usize];
        let delivery = parcel.to_delivery(slot.next_place, share);
        slot.next_place += 1;
        slot.queued += 1;
        let added = delivery.message.cost_bytes() as u64;
        slot.queued_bytes += added;
        if !slot.full && (slot.queued >= messages_max || slot.queued_bytes >= bytes_max) {
            slot.full = true;
            self.full_sessions += 1;
            let text = format!(
                "queue.full: the queue of client {:?} is full ({} messages); its publishers are held back",
                slot.client_id, slot.queued
            );
            self.log(LogLevel::Warn, text);
        }
        self.add_to_node_queue(added);
        self.charge_queue(session);
        self.mark_queue(session);
        let durable = self.sessions[session as usize].durable;
        if durable {
            self.write_delivery(session, &delivery, false);
            self.journal.need_body(&delivery.message);
        }
        let waits = delivery.qos == QoS::ExactlyOnce && (durable || parcel.waits);
        if waits {
            let (number, upto) = (self.sessions[session as usize].number, delivery.place + 1);
            self.journal.hold(Hold::Rows { session, number, upto });
        }
        self.send(cell, CellMsg::Deliver { delivery, durable, waits });
    }

    pub(super) fn write_delivery(&mut self, session: u32, delivery: &Delivery, released: bool) {
        let record = DeliveryRecord {
            node: delivery.message.id.node.0,
            seq: delivery.message.id.seq,
            qos: delivery.qos as u8,
            retain: delivery.retain,
            released,
            subscription_ids: delivery.subscription_ids.clone(),
            share: delivery.share.as_deref().map(ToOwned::to_owned),
            bytes: Some(delivery.message.cost_bytes() as u32),
            expires_wall_ms: delivery.message.expiry_s.map(|expiry_s| {
                delivery.message.accepted_wall_ms.saturating_add(u64::from(expiry_s) * 1000)
            }),
        };
        let slot = &mut self.sessions[session as usize];
        slot.rows_mark = self.journal.mark();
        let key = queue_key(slot.number, delivery.place);
        self.journal.put(Space::Queues, key, record::encode(&record));
    }

    pub(super) fn write_released(&mut self, session: u32, delivery: &Delivery) {
        if self.sessions.get(session as usize).is_some_and(|s| s.durable) {
            self.sessions[session as usize].ids_mark = self.journal.mark();
            self.write_delivery(session, delivery, true);
        }
    }

    pub(super) fn write_received(&mut self, session: u32, id: PacketId, taken: bool) {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        if !slot.durable {
            return;
        }
        slot.ids_mark = self.journal.mark();
        let key = received_key(slot.number, id);
        if taken {
            self.journal.put(Space::Queues, key, bytes::Bytes::new());
        } else {
            self.journal.delete(Space::Queues, key);
        }
    }

    /// A delivery is done: its row and, after the last receiver, its body go. Lazily: a crash before means a duplicate.
    pub(super) fn delivery_done(&mut self, session: u32, delivery: &Delivery, end: End) {
        self.delivery_ended(session, delivery, end);
        let cost_bytes = delivery.message.cost_bytes() as u64;
        self.forget_delivery(session, delivery.place, delivery.message.id, cost_bytes);
    }

    pub(super) fn forget_delivery(
        &mut self,
        session: u32,
        place: u64,
        message: MessageId,
        cost_bytes: u64,
    ) {
        let (messages_max, bytes_max) =
            (self.config.queue_messages_max, self.config.queue_bytes_max);
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        slot.queued = slot.queued.saturating_sub(1);
        slot.queued_bytes = slot.queued_bytes.saturating_sub(cost_bytes);
        // Some room first, so that publishers are not woken for each single place.
        if slot.full
            && slot.queued <= messages_max.saturating_sub((messages_max / 8).max(1))
            && slot.queued_bytes <= bytes_max - bytes_max / 8
        {
            slot.full = false;
            self.full_sessions -= 1;
            self.retry_blocked = true;
            self.retained_due.wake(session);
        }
        // Whoever waits because it was behind, memory being short, may not hear of it in any other way.
        if slot.queued == BEHIND_MESSAGES && !self.blocked.is_empty() {
            self.retry_blocked = true;
        }
        self.take_from_node_queue(1, cost_bytes);
        self.charge_queue(session);
        self.mark_queue(session);
        let slot = &mut self.sessions[session as usize];
        if slot.durable {
            slot.rows_mark = self.journal.mark();
            let key = queue_key(slot.number, place);
            self.journal.delete(Space::Queues, key);
            self.journal.release_body(message);
        }
    }

    /// The session has room in memory for deliveries that are on disk.
    pub(super) fn want_load(&mut self, session: u32, from: u64, count: usize) {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        if slot.loading() == Some(from) {
            return;
        }
        slot.set_loading(Some(from));
        let (number, upto) = (slot.number, slot.next_place);
        if self.journal.is_synced(slot.rows_mark) {
            // What others have written meanwhile is none of its business.
            return self.load(session, number, from, count, upto);
        }
        // What is on disk already needs not wait for what is written now: of a queue, rows become readable in order.
        if self.journal.is_synced(self.expiry.gone)
            && self.load_from(session, number, from, count, None)
        {
            return;
        }
        // Rows of this very turn are not readable before they are synced.
        self.journal.hold_for_reading(Hold::Load { session, number, from, count, upto });
    }

    pub(super) fn load(&mut self, session: u32, number: u64, from: u64, count: usize, upto: u64) {
        self.load_from(session, number, from, count, Some(upto));
    }

    /// Reads deliveries from a place on: all there are below `upto`, or, without that, those that can be read now. False:
    /// there are none of these, and nothing has changed.
    fn load_from(
        &mut self,
        session: u32,
        number: u64,
        from: u64,
        count: usize,
        upto: Option<u64>,
    ) -> bool {
        let Some(slot) = self.slot_of(session, number).filter(|s| s.loading() == Some(from)) else {
            return true; // ended, or its cell failed since
        };
        slot.set_loading(None);
        let (cell, dup) = (slot.cell, from < slot.recovered_below());
        let prefix = queue_key(number, 0)[..9].to_vec();
        let start = queue_key(number, from);
        let rows = match self.journal.store().scan(Space::Queues, &prefix, &start, count) {
            Ok(rows) => rows,
            Err(error) => {
                self.reread_later(session);
                self.log(LogLevel::Warn, format!("deliveries stay on disk: {error}"));
                return true;
            }
        };
        if rows.is_empty() && upto.is_none() {
            if let Some(slot) = self.slot_of(session, number) {
                slot.set_loading(Some(from));
            }
            return false;
        }
        let mut complete = upto.is_some() && rows.len() < count;
        let end = upto.unwrap_or(u64::MAX);
        let (mut loaded, mut next) = (Vec::with_capacity(rows.len()), from);
        for (key, value) in rows {
            // What was written since is not yet durable.
            let Some(place) = place_of(&key).filter(|place| *place < end) else { continue };
            match self.read_delivery(place, &value) {
                Ok(row) => loaded.extend(self.still_allowed(session, row, dup)),
                Err(Unread::Damaged(message, cost_bytes)) => {
                    self.ledger.drop(Drop::Damaged, 1);
                    self.forget_delivery(session, place, message, cost_bytes);
                }
                Err(Unread::Later) => {
                    self.reread_later(session);
                    if next == from {
                        return true; // the cell would ask again at once, and again
                    }
                    complete = false;
                    break;
                }
            }
            next = place + 1;
        }
        if let Some(slot) = self.slot_of(session, number).filter(|_| next > from || complete) {
            slot.set_recovered_below(0); // only the first window can have been sent
        }
        let next = if complete { end } else { next };
        self.send(cell, CellMsg::Loaded { from, rows: loaded, next, dup });
        true
    }

    /// A delivery and whether it is released, or the message that cannot be delivered.
    pub(super) fn read_delivery(
        &mut self,
        place: u64,
        row: &[u8],
    ) -> Result<(Delivery, bool), Unread> {
        let record: DeliveryRecord = record::decode("delivery", row).map_err(|error| {
            self.log(LogLevel::Warn, error.to_string());
            Unread::Damaged(MessageId { node: NodeId(0), seq: 0 }, 0)
        })?;
        let id = MessageId { node: NodeId(record.node), seq: record.seq };
        let body = match self.journal.store().get(Space::Messages, &id.to_bytes()) {
            Ok(body) => body,
            Err(error) => {
                self.log(LogLevel::Warn, format!("deliveries stay on disk: {error}"));
                return Err(Unread::Later);
            }
        };
        let Some(message) = body.and_then(|body| record::decode_message(&body).ok()) else {
            let text = format!("the body of message {id:?} cannot be read; one delivery is lost");
            self.log(LogLevel::Warn, text);
            return Err(Unread::Damaged(id, record.bytes.unwrap_or(0).into()));
        };
        let delivery = Delivery {
            place,
            message: Arc::new(message),
            qos: QoS::from_bits(record.qos).unwrap_or(QoS::AtLeastOnce),
            retain: record.retain,
            subscription_ids: record.subscription_ids,
            share: record.share.map(Into::into),
        };
        Ok((delivery, record.released))
    }

    /// A packet that may only leave once all this session had written is durable.
    pub(super) fn send_when_durable(&mut self, session: u32, packet: Packet) {
        // What was held when the store failed is never set free: nothing is waited for behind it.
        let has_failed = self.journal.failed().is_some();
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let Some(conn) = slot.conn else { return };
        if (slot.held == 0 || has_failed) && !slot.durable {
            return self.send_answer(session, conn, &packet);
        }
        slot.held += 1;
        let number = slot.number;
        self.journal.hold(Hold::Packet { session, number, conn, packet });
    }

    /// A packet that waited for the disk, or did not have to. What a SUBACK announces may follow it.
    pub(super) fn send_answer(&mut self, session: u32, conn: ConnId, packet: &Packet) {
        self.send_packet(conn, packet);
        if let Packet::Suback(suback) = packet {
            self.retained_due.answered(session, Some(suback.packet_id));
        }
    }

    /// The client said good-bye.
    pub(super) fn goodbye(&mut self, session: u32, will: bool, session_expiry_s: Option<u32>) {
        let expiry_max = self.config.session.session_expiry_s_max;
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let Some(conn) = slot.conn else { return };
        if let Some(expiry_s) = session_expiry_s {
            if slot.expiry_s == 0 && expiry_s > 0 {
                // MQTT-3.14.2.2.2: it cannot come back to life by DISCONNECT.
                self.ledger.protocol_errors += 1;
                let text = "a session expiry in DISCONNECT where CONNECT had none";
                return self.close(conn, outpost_mqtt::packet::ReasonCode::ProtocolError, text);
            }
            self.set_expiry(session, expiry_s.min(expiry_max));
            self.sessions[session as usize].expiry_kept = false;
        }
        if !will {
            self.forget_will(session);
        }
        self.note_disconnected(session, "Success".into(), "the client said DISCONNECT");
        self.end(conn);
    }

    /// The connection of a session is gone, for whatever reason.
    pub(super) fn session_left(&mut self, session: u32, conn: ConnId) {
        let (now_ms, wall_ms) = (self.now.mono_ms, self.now.wall_ms);
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        if slot.conn != Some(conn) {
            return;
        }
        slot.conn = None;
        self.tell_live(session, false);
        self.totals.connected -= 1;
        self.bridge_left(session);
        let slot = &mut self.sessions[session as usize];
        let cell = slot.cell;
        let expiry_ms = u64::from(slot.expiry_s) * 1000;
        let delay_ms = slot.will.as_ref().map(|t| u64::from(t.will.delay_s.unwrap_or(0)) * 1000);
        slot.expires_ms = Moment::at(now_ms + expiry_ms);
        self.send(cell, CellMsg::LinkLost);
        self.drop_ring(session);
        self.retained_due.answered(session, None);
        if expiry_ms == 0 {
            return self.end_session(session);
        }
        match delay_ms {
            Some(0) => self.publish_will(session),
            Some(delay_ms) => self.start_will(session, delay_ms.min(expiry_ms)),
            None => {}
        }
        self.write_session(session, Some(wall_ms));
        self.arm_session(session);
    }

    pub(super) fn arm_session(&mut self, session: u32) {
        let slot = &self.sessions[session as usize];
        if let Some(due_ms) =
            slot.will_due_ms().get().into_iter().chain(slot.expires_ms.get()).min()
        {
            self.session_wheel.set(session, due_ms);
        }
    }

    pub(super) fn session_timeout(&mut self, session: u32) {
        let now_ms = self.now.mono_ms;
        let Some(slot) = self.sessions.get(session as usize) else { return };
        if slot.conn.is_some() {
            return self.transmit_again(session); // see `reread_later`
        }
        if !self.moves.is_empty() && self.is_leaving(session) {
            return self.leave_again(session);
        }
        if slot.expires_ms.get().is_some_and(|due_ms| due_ms <= now_ms) {
            self.totals.sessions_expired += 1;
            return self.end_session(session);
        }
        if slot.will_due_ms().get().is_some_and(|due_ms| due_ms <= now_ms) {
            self.publish_will(session);
        }
        self.arm_session(session);
    }
}
