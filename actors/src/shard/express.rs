//! The express way of plain messages: QoS 0, from one client to others of this node, with nothing in them but a topic and a
//! payload.
//!
//! ```text
//!  bytes ─PlainRun─▶ channel (known, all its receivers are sessions) ─the same bytes─▶ out buffers
//!                                                └─ a receiver that is not ready for them ─▶ the ordinary way
//! ```
//! No packet, no message and no turn of a cell is made for them. Whatever is not plain, or not yet allowed to its client by
//! the access rules, and whoever wants to look at messages (traces, probes), has them go the ordinary way; what is counted
//! there is counted here.

use std::sync::Arc;

use outpost_flow::Pressure;
use outpost_model::{Message, QoS};
use outpost_mqtt::packet::Version;
use outpost_mqtt::plain::{FIRST_BYTE, FIRST_BYTE_ACKED, FIRST_BYTE_OF_ACK, PlainRun};

use super::bridges::Kind;
use super::channel::{NameBytes, Recipient};
use super::connection::{Connection, Phase};
use super::memory::SHED_DIVISOR;
use super::pass::{Parcel, written};
use super::{Cell, ConnId, Shard};
use crate::cell::CellId;

/// A run of more bytes is not copied for each receiver in one go. Larger packets go the ordinary way, by reference.
pub(super) const RUN_BYTES_MOST: usize = 2 * 1024;

/// Messages of one client on their way.
#[derive(Clone, Copy)]
struct Express<'a> {
    from: u32,
    version: Version,
    run: PlainRun<'a>,
}

impl Shard {
    /// What stands at the front of `input` goes a shorter way than packets do, when there is one: how many bytes and packets
    /// are done with. `None`: let the decoder look.
    pub(super) fn shortcut(
        &mut self,
        conn: ConnId,
        input: &[u8],
        count_max: usize,
    ) -> Option<(usize, usize)> {
        let mark = self.mark();
        let (bytes, count) = match *input.first()? {
            FIRST_BYTE => self.express(conn, input, count_max)?,
            FIRST_BYTE_ACKED => (self.express_acked(conn, input)?, 1),
            FIRST_BYTE_OF_ACK => return Some((self.express_ack(conn, input)?, 1)),
            _ => return None,
        };
        self.pace(conn, bytes as u64, mark);
        Some((bytes, count))
    }

    /// Passes messages at the front of `input` on as they came, at most so many. How many bytes they have and how many they
    /// are; `None`: what stands there is not plain, and nothing was done.
    fn express(&mut self, conn: ConnId, input: &[u8], count_max: usize) -> Option<(usize, usize)> {
        let connection = self.connection(conn)?;
        let Phase::Open(from) = connection.phase else { return None };
        let version = connection.version;
        // Whoever is paced is, message by message.
        let is_paced = !self.config.pace.is_none() || connection.rare.pace().is_some();
        let is_paced = is_paced || self.budget.backlog_permille() > 0;
        let count_max = if is_paced { 1 } else { count_max };
        let bytes_max = RUN_BYTES_MOST.min(self.config.session.packet_bytes_max as usize);
        let run = PlainRun::read(version, input, bytes_max)?;
        if run.topic.first() == Some(&b'$') || !self.is_express_open(from) {
            return None;
        }
        let (channel, recipients) = self.express_channel(run.topic)?;
        if !self.is_granted(conn, channel) {
            return None;
        }
        let mut express = Express { from, version, run };
        if run.frames.len() < input.len() {
            express.run = run.with_followers(version, input, count_max, bytes_max);
        }
        if express.run.count > 1 && !recipients.iter().all(|to| self.takes_run(to, &express)) {
            express.run = run;
        }
        let Some(Cell::Channel(channel)) = self.cells.body_mut(channel) else { return None };
        let PlainRun { frames, count, payload_bytes, .. } = express.run;
        channel.published += count as u64;
        self.count_publish(conn, QoS::AtMostOnce, count as u64, payload_bytes);
        self.ledger.accept_wanted(count as u64);
        self.pass_run(&recipients, express);
        Some((frames.len(), count))
    }

    fn pass_run(&mut self, recipients: &[Recipient], express: Express<'_>) {
        let mut message = None;
        for recipient in recipients {
            let Recipient::Session { subscriber, session, no_local, ids, .. } = recipient else {
                continue; // a channel that has others is none for this
            };
            let is_own = *no_local && *session == express.from;
            if is_own || (ids.is_empty() && self.pass_frames(*subscriber, *session, express)) {
                continue;
            }
            debug_assert_eq!(express.run.count, 1, "all were asked");
            let message = message.get_or_insert_with(|| self.message_of(express));
            let parcel = Parcel { message, qos: QoS::AtMostOnce, retain: false, ids, waits: false };
            self.forward(*subscriber, *session, parcel);
        }
        if message.is_some() {
            self.settle();
        }
    }

    /// Nobody wants to look at messages, nothing comes before them, and the client's session would let them pass.
    pub(super) fn is_express_open(&self, session: u32) -> bool {
        let is_watched = self.probe.is_some() || self.traces.is_on();
        if is_watched || !self.cells.is_idle() || self.budget.pressure() >= Pressure::Shed {
            return false;
        }
        let slot = self.sessions.get(session as usize).filter(|slot| slot.kind == Kind::Client);
        let cell = slot.and_then(|slot| self.cells.body(slot.cell));
        matches!(cell, Some(Cell::Session(session)) if session.is_connected())
    }

    /// The channel of a topic and who receives there, when it is ready and all of them are sessions.
    pub(super) fn express_channel(&mut self, topic: &[u8]) -> Option<(CellId, Arc<[Recipient]>)> {
        let entry = self.channels.get_mut(&NameBytes(topic))?;
        if !entry.is_current(self.table_epoch) || !entry.only_sessions {
            return None;
        }
        entry.used_ms = self.now.mono_ms;
        Some((entry.cell, Arc::clone(&entry.recipients)))
    }

    /// Whether a receiver takes all messages of a run.
    fn takes_run(&self, recipient: &Recipient, express: &Express<'_>) -> bool {
        let Recipient::Session { subscriber, session, no_local, ids, .. } = recipient else {
            return false;
        };
        if *no_local && *session == express.from {
            return true; // it gets none
        }
        let has_cell = || matches!(self.cells.body(*subscriber), Some(Cell::Subscriber(_)));
        let conn = self.plain_connection(*session).filter(|_| ids.is_empty() && has_cell());
        let connection = conn.and_then(|conn| self.connection(conn));
        connection.is_some_and(|connection| self.takes_frames(connection, express))
    }

    /// Whether a connection takes these frames: all but the last must find room, as they would one by one.
    fn takes_frames(&self, connection: &Connection, express: &Express<'_>) -> bool {
        let Express { version, run, .. } = express;
        let is_same = (connection.version == Version::V5) == (*version == Version::V5);
        // All bytes of a run are more than those of its largest packet.
        let fits = run.frames.len() <= connection.packet_max as usize;
        let before = if run.count > 1 { run.frames.len() } else { 0 };
        let out_max = (self.config.out_bytes_max / SHED_DIVISOR).checked_sub(before);
        is_same && fits && out_max.is_some_and(|out_max| connection.takes_plain(out_max))
    }

    /// Writes messages for a receiver of the same version for whom nothing waits. `false`: it is not so, and nothing was
    /// done.
    fn pass_frames(&mut self, subscriber: CellId, session: u32, express: Express<'_>) -> bool {
        let Some(conn) = self.plain_connection(session) else { return false };
        let takes = |connection| self.takes_frames(connection, &express);
        if !self.connection(conn).is_some_and(takes) {
            return false;
        }
        let Some(Cell::Subscriber(subscriber)) = self.cells.body_mut(subscriber) else {
            return false;
        };
        let Some(connection) = self.connections.get_mut(conn.index as usize) else { return false };
        let PlainRun { frames, count, payload_bytes, .. } = express.run;
        let count = count as u64;
        subscriber.forwarded += count;
        self.ledger.owed += count;
        self.ledger.delivered += count;
        connection.out.put(frames);
        let (totals, qos) = (&mut self.totals, QoS::AtMostOnce);
        if written(connection, totals, qos, count, payload_bytes) {
            self.flushes.push_back(conn);
        }
        true
    }

    /// The message for receivers that do not take it as it came.
    fn message_of(&mut self, express: Express<'_>) -> Arc<Message> {
        let payload = express.run.first(express.version).map_or(&[][..], |(_, payload)| payload);
        // It has a channel: it is a name.
        let topic = String::from_utf8_lossy(express.run.topic).into_owned();
        Arc::new(Message {
            id: self.next_message_id(),
            topic: topic.into(),
            payload: payload.to_vec().into(),
            qos: QoS::AtMostOnce,
            retain: false,
            properties: None,
            accepted_wall_ms: self.now.wall_ms,
            expiry_s: None,
        })
    }
}
