//! What a client is owed, as people see it: shown, written out without taking anything away, or given up on purpose.

use bytes::Bytes;
use outpost_model::Now;
use outpost_mqtt::packet::ReasonCode;
use outpost_mqtt::window::{Delivery, HOT_MAX, Outbound};
use outpost_store::Space;
use serde::Serialize;

use super::sessions::{Unread, place_of, queue_key};
use super::{Cell, Event, Hold, LogLevel, Shard, Ticket};
use crate::ledger::Drop;

/// Messages in one page of a queue.
pub const QUEUE_PAGE_MAX: usize = 256;

/// Bytes of their payloads, and one message more. Higher: an answer of that size is made on the data thread.
pub const QUEUE_PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Deliveries given up by one request. More: one turn of the shard takes longer; fewer: more requests for a long queue.
pub const DRAIN_AT_ONCE_MAX: usize = 512;

/// A queue in figures.
#[derive(Debug, Clone, Serialize)]
pub struct QueueInfo {
    /// QoS 1 and 2 deliveries owed.
    pub queued: u32,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// Room for messages.
    pub messages_limit: u32,
    /// Room for bytes.
    pub bytes_limit: u64,
    /// No room: publishers are refused or held back.
    pub full: bool,
    /// Sent and not acknowledged.
    pub in_flight: usize,
    /// Held in memory, those in flight among them; the others are on disk only.
    pub in_memory: usize,
    /// The place the next delivery gets; places count up for the life of the session.
    pub next_place: u64,
}

/// One delivery.
#[derive(Debug, Clone, Serialize)]
pub struct QueuedMessage {
    /// Its place in the session's order.
    pub place: u64,
    /// `waiting`, `in_flight` or `on_disk`.
    pub state: &'static str,
    /// Topic.
    pub topic: String,
    /// Quality of service it is delivered with.
    pub qos: u8,
    /// Retain flag it is delivered with.
    pub retain: bool,
    /// When this node accepted it, milliseconds since 1970.
    pub accepted_wall_ms: u64,
    /// Seconds of life left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_s: Option<u32>,
    /// The payload when it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The payload in hexadecimal when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_hex: Option<String>,
}

/// Some of a queue, in order.
#[derive(Debug, Clone, Serialize)]
pub struct QueuePage {
    /// The deliveries.
    pub messages: Vec<QueuedMessage>,
    /// The place to go on after.
    pub next: Option<u64>,
}

/// What a request to give up deliveries did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Drained {
    /// Given up by this request.
    pub drained: usize,
    /// Ask again with this as `upto`; absent when all below it are gone or belong to the client already.
    pub again_upto: Option<u64>,
}

impl Shard {
    /// A client's queue in figures; nothing when it has no session.
    pub fn queue(&self, client_id: &str) -> Option<QueueInfo> {
        let slot = self.sessions.get(self.session_of(client_id)? as usize)?;
        let outbound = match self.cells.body(slot.cell) {
            Some(Cell::Session(session)) => Some(&session.outbound),
            _ => None,
        };
        Some(QueueInfo {
            queued: slot.queued,
            queued_bytes: slot.queued_bytes,
            messages_limit: self.config.queue_messages_max,
            bytes_limit: self.config.queue_bytes_max,
            full: slot.full,
            in_flight: outbound.map_or(0, Outbound::in_flight),
            in_memory: outbound.map_or(0, Outbound::len_hot),
            next_place: slot.next_place,
        })
    }

    /// Deliveries behind a place, in order; nothing is taken away. `None` when the client has no session.
    pub fn queue_page(&mut self, client_id: &str, after: u64, now: Now) -> Option<QueuePage> {
        self.now = now;
        let session = self.session_of(client_id)?;
        let slot = self.sessions.get(session as usize)?;
        let (number, mut page) = (slot.number, Page::default());
        let Some(Cell::Session(body)) = self.cells.body(slot.cell) else {
            return Some(page.finish());
        };
        let cold = body.outbound.cold();
        for (delivery, sent) in body.outbound.iter().filter(|(d, _)| d.place > after) {
            if page.is_full() {
                return Some(page.finish());
            }
            page.push(delivery, if sent { "in_flight" } else { "waiting" }, now.wall_ms);
        }
        let from = cold.start.max(after + 1);
        // Where the disk does not answer the page ends.
        let rows = self.cold_rows(number, from, cold.end, QUEUE_PAGE_MAX + 1).unwrap_or_default();
        for (place, row) in rows {
            if page.is_full() {
                return Some(page.finish());
            }
            if let Ok((delivery, _)) = self.read_delivery(place, &row) {
                page.push(&delivery, "on_disk", now.wall_ms);
            }
        }
        page.full = false;
        Some(page.finish())
    }

    /// Gives up deliveries with places below `upto` (all there are now, when it is 0), some at a time. What its client may
    /// have begun to receive with QoS 2 stays: the two would no longer agree on its packet id. Off the
    /// disk they are once what follows [`Shard::when_durable`] says so. `None` when the client has no session or its cell is down.
    pub fn queue_drain(&mut self, client_id: &str, upto: u64, now: Now) -> Option<Drained> {
        self.now = now;
        let session = self.session_of(client_id)?;
        let slot = self.sessions.get(session as usize)?;
        let (cell, number) = (slot.cell, slot.number);
        let upto = if upto == 0 { slot.next_place } else { upto.min(slot.next_place) };
        if !self.knows_what_was_sent(session) {
            return Some(Drained { drained: 0, again_upto: Some(upto) });
        }
        let Some(Cell::Session(body)) = self.cells.body_mut(cell) else { return None };
        let mut gone = body.outbound.give_up(upto, DRAIN_AT_ONCE_MAX);
        let more_in_memory = gone.len() == DRAIN_AT_ONCE_MAX;
        let cold = body.outbound.cold();
        let mut again = more_in_memory;
        if !more_in_memory && cold.start < upto.min(cold.end) {
            let end = upto.min(cold.end);
            let found = self.cold_rows(number, cold.start, end, DRAIN_AT_ONCE_MAX);
            let readable = self.journal.is_readable() && found.is_some();
            let rows = found.unwrap_or_default();
            let all = readable && rows.len() < DRAIN_AT_ONCE_MAX;
            let next = rows.last().map_or(cold.start, |(place, _)| place + 1);
            let mut next = if all { end } else { next };
            for (place, row) in rows {
                match self.read_delivery(place, &row) {
                    Ok((delivery, _)) => gone.push(delivery),
                    Err(Unread::Damaged(message, cost_bytes)) => {
                        self.ledger.drop(Drop::Damaged, 1);
                        self.forget_delivery(session, place, message, cost_bytes);
                    }
                    Err(Unread::Later) => {
                        next = place; // the disk did not answer: it stays, and what is behind it
                        break;
                    }
                }
            }
            again = next < end;
            if let Some(Cell::Session(body)) = self.cells.body_mut(cell) {
                body.outbound.skip_cold(next);
            }
        }
        let drained = gone.len();
        for delivery in gone {
            self.drop_for(session, Drop::Drained, 1, &delivery.message.topic);
            let cost_bytes = delivery.message.cost_bytes() as u64;
            self.forget_delivery(session, delivery.place, delivery.message.id, cost_bytes);
        }
        self.settle();
        Some(Drained { drained, again_upto: again.then_some(upto) })
    }

    /// Loads what a process that is no more may have sent: only in memory it is told from what was not. False when it
    /// cannot be read now.
    fn knows_what_was_sent(&mut self, session: u32) -> bool {
        let slot = &self.sessions[session as usize];
        let (number, upto) = (slot.number, slot.next_place);
        let Some(Cell::Session(body)) = self.cells.body(slot.cell) else { return true };
        let from = body.outbound.cold().start;
        if slot.recovered_below() <= from {
            return true;
        }
        if !self.journal.is_readable() {
            return false;
        }
        self.sessions[session as usize].set_loading(Some(from));
        self.load(session, number, from, HOT_MAX, upto);
        self.run_cells();
        self.sessions.get(session as usize).is_none_or(|slot| slot.recovered_below() <= from)
    }

    /// An [`Event::Published`] with this job number tells when everything done so far is durable.
    pub fn when_durable(&mut self, job: u64) {
        if self.journal.failed().is_some() {
            self.events.push_back(Event::Published(job, ReasonCode::ServerUnavailable));
        } else {
            self.journal.hold(Hold::Settle(Ticket::Node(job), ReasonCode::Success));
        }
    }

    /// Rows of deliveries on disk with places from `from` to `end`, in order. What is not synced is not among them. `None`: the
    /// disk does not answer.
    fn cold_rows(
        &mut self,
        number: u64,
        from: u64,
        end: u64,
        limit: usize,
    ) -> Option<Vec<(u64, Bytes)>> {
        if from >= end {
            return Some(Vec::new());
        }
        let prefix = queue_key(number, 0)[..9].to_vec();
        let start = queue_key(number, from);
        match self.journal.store().scan(Space::Queues, &prefix, &start, limit) {
            Ok(rows) => {
                let rows = rows.into_iter().filter_map(|(key, row)| Some((place_of(&key)?, row)));
                Some(rows.filter(|(place, _)| *place < end).collect())
            }
            Err(error) => {
                self.log(LogLevel::Warn, format!("a queue cannot be looked at: {error}"));
                None
            }
        }
    }
}

#[derive(Default)]
struct Page {
    messages: Vec<QueuedMessage>,
    bytes: usize,
    full: bool,
}

impl Page {
    fn is_full(&mut self) -> bool {
        self.full = self.messages.len() >= QUEUE_PAGE_MAX || self.bytes >= QUEUE_PAGE_BYTES_MAX;
        self.full
    }

    fn push(&mut self, delivery: &Delivery, state: &'static str, wall_ms: u64) {
        let message = &delivery.message;
        self.bytes += message.payload.len();
        let payload = std::str::from_utf8(&message.payload).map(ToOwned::to_owned);
        self.messages.push(QueuedMessage {
            place: delivery.place,
            state,
            topic: message.topic.to_string(),
            qos: delivery.qos as u8,
            retain: delivery.retain,
            accepted_wall_ms: message.accepted_wall_ms,
            expires_in_s: message.expiry_left_s(wall_ms),
            payload_hex: payload.is_err().then(|| hex(&message.payload)),
            payload: payload.ok(),
        });
    }

    fn finish(self) -> QueuePage {
        let next = self.messages.last().map(|m| m.place).filter(|_| self.full);
        QueuePage { messages: self.messages, next }
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}
