//! The express way of plain messages: QoS 0, from one client to others of this node, with nothing in them but a topic and a
//! payload.
//!
//! ```text
//!  bytes ─PlainPublish─▶ channel (known, all its receivers are sessions) ─the same bytes─▶ out buffers
//!                                                └─ a receiver that is not ready for them ─▶ the ordinary way
//! ```
//! No packet, no message and no turn of a cell is made for them. Whatever is not plain, and whoever wants to look at
//! messages (access rules, traces, probes), has them go the ordinary way; what is counted there is counted here.

use std::sync::Arc;

use outpost_flow::Pressure;
use outpost_model::{Message, QoS};
use outpost_mqtt::packet::Version;
use outpost_mqtt::plain::PlainPublish;

use super::bridges::Kind;
use super::channel::Recipient;
use super::connection::Phase;
use super::memory::SHED_DIVISOR;
use super::pass::{Parcel, written};
use super::{Cell, ConnId, Shard};
use crate::cell::CellId;

/// Packets of more bytes are not copied for each receiver: they go the ordinary way, by reference.
const FRAME_BYTES_MOST: usize = 2 * 1024;

impl Shard {
    /// Passes the message at the front of `input` on as it came. How many bytes it has; `None`: it is not plain, and nothing
    /// was done.
    pub(super) fn express(&mut self, conn: ConnId, input: &[u8]) -> Option<usize> {
        let connection = self.connection(conn)?;
        let Phase::Open(session) = connection.phase else { return None };
        let version = connection.version;
        let publish = PlainPublish::read(version, input)?;
        let bytes = publish.frame.len();
        let bytes_max = FRAME_BYTES_MOST.min(self.config.session.packet_bytes_max as usize);
        if bytes > bytes_max || publish.topic.starts_with('$') || !self.is_express_open(session) {
            return None;
        }
        let recipients = self.express_channel(publish.topic)?;
        self.count_publish(conn, QoS::AtMostOnce, publish.payload.len());
        self.ledger.accept(true, false, false);
        let mut message = None;
        for recipient in &*recipients {
            let Recipient::Session { subscriber, session: to, no_local, ids, .. } = recipient
            else {
                continue; // a channel that has others is none for this
            };
            let is_own = *no_local && *to == session;
            if is_own || (ids.is_empty() && self.pass_frame(*subscriber, *to, version, &publish)) {
                continue;
            }
            let message = message.get_or_insert_with(|| self.message_of(&publish));
            let parcel = Parcel { message, qos: QoS::AtMostOnce, retain: false, ids };
            self.forward(*subscriber, *to, parcel);
        }
        if message.is_some() {
            self.settle();
        }
        Some(bytes)
    }

    /// Nobody wants to look at messages, nothing comes before them, and the client's session would let them pass.
    fn is_express_open(&self, session: u32) -> bool {
        let is_watched = self.probe.is_some() || self.traces.is_on() || !self.gate.allows_all();
        if is_watched || !self.cells.is_idle() || self.budget.pressure() >= Pressure::Shed {
            return false;
        }
        let slot = self.sessions.get(session as usize).filter(|slot| slot.kind == Kind::Client);
        let cell = slot.and_then(|slot| self.cells.body(slot.cell));
        matches!(cell, Some(Cell::Session(session)) if session.is_connected())
    }

    /// Who receives on a topic, when all of them are sessions and the channel is ready: it counts the message then.
    fn express_channel(&mut self, topic: &str) -> Option<Arc<[Recipient]>> {
        let entry = self.channels.get_mut(topic)?;
        if !entry.is_current(self.table_epoch) || !entry.only_sessions {
            return None;
        }
        let Some(Cell::Channel(channel)) = self.cells.body_mut(entry.cell) else { return None };
        channel.published += 1;
        entry.used_ms = self.now.mono_ms;
        Some(Arc::clone(&entry.recipients))
    }

    /// Writes a message for a receiver of the same version for whom nothing waits. `false`: it is not so, and nothing was
    /// done.
    fn pass_frame(
        &mut self,
        subscriber: CellId,
        session: u32,
        version: Version,
        publish: &PlainPublish<'_>,
    ) -> bool {
        let Some(conn) = self.plain_connection(session) else { return false };
        let out_max = self.config.out_bytes_max / SHED_DIVISOR;
        let connection = self.connections.get_mut(conn.index as usize);
        let Some(connection) = connection.filter(|c| c.generation() == conn.generation) else {
            return false;
        };
        let is_same = (connection.version == Version::V5) == (version == Version::V5);
        let fits = publish.frame.len() <= connection.packet_max as usize;
        if !is_same || !fits || !connection.takes_plain(out_max) {
            return false;
        }
        let Some(Cell::Subscriber(subscriber)) = self.cells.body_mut(subscriber) else {
            return false;
        };
        subscriber.forwarded += 1;
        self.ledger.owed += 1;
        self.ledger.delivered += 1;
        connection.out.put(publish.frame);
        let bytes = publish.payload.len();
        if let Some(event) = written(connection, conn, &mut self.totals, QoS::AtMostOnce, bytes) {
            self.events.push_back(event);
        }
        true
    }

    /// The message for receivers that do not take it as it came.
    fn message_of(&mut self, publish: &PlainPublish<'_>) -> Arc<Message> {
        Arc::new(Message {
            id: self.next_message_id(),
            topic: publish.topic.into(),
            payload: publish.payload.to_vec().into(),
            qos: QoS::AtMostOnce,
            retain: false,
            properties: None,
            accepted_wall_ms: self.now.wall_ms,
            expiry_s: None,
        })
    }
}
