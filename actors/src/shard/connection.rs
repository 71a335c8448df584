//! Connections as the shard sees them: bytes in, packets to sessions, packets out. The socket is the driver's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use outpost_flow::{Class, Pressure};
use outpost_model::QoS;
use outpost_mqtt::codec::{Decoder, encode_within};
use outpost_mqtt::error::DecodeError;
use outpost_mqtt::packet::{Packet, ReasonCode, Version};
use outpost_mqtt::session::disconnect;

use super::blocked::Blocked;
use super::connect::looks_like;
use super::memory::SHED_DIVISOR;
use super::rare::{Rare, Remote};
use super::traffic::Traffic;
use super::{CellMsg, ConnId, Event, Shard, decisions};
use crate::out_buffer::OutBuffer;
use crate::ports::{BRIDGE_LISTENER, Origin};

/// The packet type of PUBLISH in the first four bits of a packet (MQTT 5, §2.1.2).
const PUBLISH_BITS: u8 = 3;
/// Where its QoS stands (MQTT 5, §3.3.1.2).
const QOS_BITS: u8 = 0b110;

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waiting for CONNECT.
    Opening,
    /// CONNECT is here, its credentials are being checked.
    Authenticating,
    /// The client was asked something by an authentication method.
    Challenged,
    /// It is admitted; its session comes from another node.
    Fetching,
    /// Belongs to this session.
    Open(u32),
    /// Writing its last bytes.
    Closing,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    generation: u32,
    remote: Remote,
    pub(super) decoder: Decoder,
    pub(super) phase: Phase,
    pub(super) version: Version,
    pub(super) packet_max: u32,
    /// It wants reason strings (MQTT 5, §3.1.2.11.7).
    pub(super) wants_reasons: bool,
    /// Its CONNACK is written: other packets may follow.
    pub(super) welcomed: bool,
    /// 0 = never times out.
    pub(super) keep_alive_s: u16,
    /// The client id is the server's choice.
    pub(super) assigned: bool,
    pub(super) rare: Rare,
    /// Bytes the driver keeps for it, because a packet is half here or it is not read.
    unread: u32,
    /// What it is charged with in the memory budget; more than fits is not charged.
    pub(super) charged: u32,
    /// The client has not taken all that is for it.
    behind: bool,
    /// Since when that is so, or not so: the low half of the clock. After 50 days it counts from nought again.
    turned_ms: u32,
    pub(super) traffic: Traffic,
    /// Its place among the shard's listeners.
    pub(super) listener: u16,
    pub(super) out: OutBuffer,
    pub(super) flush_asked: bool,
    /// The driver was told not to read.
    paused: bool,
}

impl Connection {
    /// Bytes written since this was asked last; they are counted for the connection.
    pub(super) fn take_written(&mut self) -> u64 {
        let written = self.out.take_count();
        self.traffic.bytes_sent += written;
        written
    }

    /// Nothing waits for it, in either direction, and nothing is charged to it.
    fn is_all_written(&self) -> bool {
        let is_quiet = self.unread == 0 && self.rare.blocked_len() == 0 && !self.paused;
        is_quiet && self.charged == 0 && self.out.is_empty()
    }

    /// Something was written, or could not be.
    fn note_lag(&mut self, now_ms: u64) {
        if self.behind == self.out.is_empty() {
            (self.behind, self.turned_ms) = (!self.behind, now_ms as u32);
        }
    }

    /// When it counts as gone if nothing comes from it any more: after one and a half times the keep alive
    /// (MQTT-3.1.2-22).
    fn deadline_ms(&self, now_ms: u64) -> Option<u64> {
        let is_kept = self.keep_alive_s > 0 && matches!(self.phase, Phase::Open(_));
        is_kept.then(|| now_ms + u64::from(self.keep_alive_s) * 1_500)
    }

    /// For how long it has been behind, or, negative, for how long it has kept up.
    pub(super) fn lag_ms(&self, now_ms: u64) -> i64 {
        let since = i64::from((now_ms as u32).wrapping_sub(self.turned_ms));
        if self.behind { since } else { -since }
    }

    /// The other end.
    pub(super) fn remote(&self) -> SocketAddr {
        self.remote.get()
    }

    /// What the driver and this shard keep for it.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.out.len() + self.unread as usize + self.rare.blocked_bytes()
    }

    /// A message can be written for it as for anybody else, as long as no more than `out_max` bytes wait.
    pub(super) fn takes_plain(&self, out_max: usize) -> bool {
        self.welcomed && !self.rare.has_aliases() && self.out.len() <= out_max
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }
}

/// What became of the bytes handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// So many are used up; keep the others and hand them in again with what follows them.
    pub used: usize,
    /// Packets among them.
    pub packets: usize,
    /// Do not read from the connection until [`Event::Resume`].
    pub paused: bool,
}

impl Shard {
    /// A connection came. `None` when there are too many; close it then.
    pub fn accept(&mut self, origin: Origin, now: outpost_model::Now) -> Option<ConnId> {
        self.accept_since(origin, now.mono_ms, now)
    }

    /// The same for one that came at `arrived_ms` of the monotonic clock: what its handshake took is part of its time to
    /// connect.
    pub fn accept_since(
        &mut self,
        origin: Origin,
        arrived_ms: u64,
        now: outpost_model::Now,
    ) -> Option<ConnId> {
        self.now = now;
        if self.connections.len() >= self.config.connections_max {
            return None;
        }
        self.ledger.connections += 1;
        self.connection_generation = self.connection_generation.wrapping_add(1);
        let generation = self.connection_generation;
        let listener = self.count_accepted(&origin.listener);
        self.make_places();
        let index = self.connections.insert(Connection {
            generation,
            remote: origin.remote.into(),
            decoder: Decoder::new(self.config.session.packet_bytes_max),
            phase: Phase::Opening,
            version: Version::V4,
            packet_max: u32::MAX,
            wants_reasons: true,
            welcomed: false,
            keep_alive_s: 0,
            assigned: false,
            rare: Rare::new(origin.certificate),
            unread: 0,
            charged: 0,
            behind: false,
            turned_ms: now.mono_ms as u32,
            traffic: Traffic::new(now.mono_ms),
            listener,
            out: OutBuffer::default(),
            flush_asked: false,
            paused: false,
        }) as u32;
        self.connection_wheel.set(index, arrived_ms + self.config.connect_timeout_ms);
        Some(ConnId { index, generation })
    }

    /// Bytes from a connection.
    pub fn receive(&mut self, conn: ConnId, input: &[u8], now: outpost_model::Now) -> Received {
        self.receive_some(conn, input, usize::MAX, now)
    }

    /// The same, at most so many packets of them: when that many were there, hand in the others again at another time.
    pub fn receive_some(
        &mut self,
        conn: ConnId,
        input: &[u8],
        packets_max: usize,
        now: outpost_model::Now,
    ) -> Received {
        self.now = now;
        self.weigh();
        let received = self.receive_packets(conn, input, packets_max);
        self.totals.bytes_received += received.used as u64;
        let Some(connection) = self.connection_mut(conn) else { return received };
        connection.unread = u32::try_from(input.len() - received.used).unwrap_or(u32::MAX);
        connection.traffic.bytes_received += received.used as u64;
        if !connection.is_all_written() {
            self.charge_buffers(conn);
        }
        received
    }

    fn receive_packets(&mut self, conn: ConnId, input: &[u8], packets_max: usize) -> Received {
        let (mut rest, mut packets) = (input, 0);
        while packets < packets_max {
            if self.must_pause(conn, rest) {
                return Received { used: input.len() - rest.len(), packets, paused: true };
            }
            if rest.is_empty() {
                break;
            }
            if let Some((bytes, count)) = self.shortcut(conn, rest, packets_max - packets) {
                rest = &rest[bytes..];
                packets += count;
                continue;
            }
            let mark = self.mark();
            let Some(connection) = self.connection_mut(conn) else {
                return Received { used: input.len(), packets, paused: false };
            };
            let before = rest.len();
            match connection.decoder.decode(&mut rest) {
                Ok(Some(packet)) => {
                    packets += 1;
                    let bytes = before - rest.len();
                    let is_publish = matches!(packet, Packet::Publish(_));
                    self.count_received(conn, &packet);
                    if self.traces.is_on() {
                        self.trace_packet(conn, "received", &packet);
                    }
                    self.packet(conn, packet);
                    self.settle();
                    if is_publish {
                        self.pace(conn, bytes as u64, mark);
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    self.ledger.protocol_errors += 1;
                    self.refuse_bytes(conn, &error, looks_like(rest));
                    return Received { used: input.len(), packets, paused: false };
                }
            }
        }
        Received { used: input.len() - rest.len(), packets, paused: false }
    }

    /// Counts a packet, and pushes its client's deadline back.
    fn count_received(&mut self, conn: ConnId, packet: &Packet) {
        if let Packet::Publish(publish) = packet {
            self.count_publish(conn, publish.qos, 1, publish.payload.len());
        } else {
            self.totals.packets_received += 1;
            self.count_heard(conn);
        }
    }

    /// The same for so many PUBLISH packets, with so many bytes of payload together.
    pub(super) fn count_publish(&mut self, conn: ConnId, qos: QoS, count: u64, bytes: usize) {
        self.totals.packets_received += count;
        self.totals.messages.count_received(qos, count, bytes);
        if let Some(connection) = self.count_heard(conn) {
            connection.traffic.messages_mut().count_received(qos, count, bytes);
        }
    }

    /// Something came from a client: its deadline is pushed back.
    pub(super) fn count_heard(&mut self, conn: ConnId) -> Option<&mut Connection> {
        let now_ms = self.now.mono_ms;
        let connection = self.connections.get_mut(conn.index as usize);
        let connection = connection.filter(|c| c.generation == conn.generation)?;
        connection.traffic.heard(now_ms);
        if let Some(deadline_ms) = connection.deadline_ms(now_ms) {
            self.connection_wheel.set(conn.index, deadline_ms);
        }
        Some(connection)
    }

    /// The bytes waiting for a connection; the driver writes them and calls [`OutBuffer::advance`].
    pub fn out_buffer(&mut self, conn: ConnId) -> Option<&mut OutBuffer> {
        let connection = self.connection_mut(conn)?;
        connection.flush_asked = false;
        Some(&mut connection.out)
    }

    /// What waits for a connection, when it is in one piece.
    pub fn out_bytes(&self, conn: ConnId) -> Option<&[u8]> {
        self.connection(conn)?.out.as_one()
    }

    /// The driver has written to a connection: it may be read from again.
    pub fn written(&mut self, conn: ConnId) {
        let now_ms = self.now.mono_ms;
        if let Some(connection) = self.connection_mut(conn)
            && connection.is_all_written()
        {
            connection.note_lag(now_ms);
            let written = connection.take_written();
            self.totals.bytes_sent += written;
            if self.retained_due.is_empty() {
                return;
            }
        }
        self.written_in_part(conn);
    }

    fn written_in_part(&mut self, conn: ConnId) {
        if let Some(Phase::Open(session)) = self.connection(conn).map(|c| c.phase)
            && self.retained_due.wake(session)
        {
            self.settle();
        }
        self.drain_ring(conn);
        self.charge_buffers(conn);
        let now_ms = self.now.mono_ms;
        if let Some(connection) = self.connection_mut(conn) {
            connection.note_lag(now_ms);
        }
        let limit = self.config.out_bytes_max / 2;
        let Some(connection) = self.connection_mut(conn) else { return };
        let written = connection.take_written();
        self.totals.bytes_sent += written;
        let Some(connection) = self.connection(conn) else { return };
        if connection.paused && connection.out.len() <= limit && !self.journal.is_busy() {
            self.resume(conn);
        }
    }

    /// The connection broke or was closed.
    pub fn connection_lost(&mut self, conn: ConnId, now: outpost_model::Now) {
        self.now = now;
        self.forget_connection(conn);
        self.settle();
    }

    pub(super) fn connection(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(conn.index as usize).filter(|c| c.generation == conn.generation)
    }

    pub(super) fn connection_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index as usize).filter(|c| c.generation == conn.generation)
    }

    /// Where a connection came from.
    pub(super) fn origin(&self, conn: ConnId) -> Option<Origin> {
        let connection = self.connection(conn)?;
        Some(Origin {
            listener: Arc::clone(&self.listener_of(connection)?.name),
            remote: connection.remote(),
            certificate: connection.rare.certificate().cloned(),
        })
    }

    /// Whether it is a bridge of this node.
    pub(super) fn is_own(&self, conn: ConnId) -> bool {
        let listener = self.connection(conn).and_then(|c| self.listener_of(c));
        listener.is_some_and(|listener| *listener.name == *BRIDGE_LISTENER)
    }

    fn packet(&mut self, conn: ConnId, packet: Packet) {
        let Some(connection) = self.connection(conn) else { return };
        match (connection.phase, packet) {
            (Phase::Opening, Packet::Connect(connect)) => self.connect(conn, connect),
            (Phase::Open(_) | Phase::Challenged, Packet::Auth(auth)) => {
                self.handle_auth(conn, *auth);
            }
            (Phase::Challenged, packet) => self.unasked(conn, &packet),
            (Phase::Open(session), packet) => {
                if let Some(slot) = self.sessions.get(session as usize) {
                    self.send_now(slot.cell, CellMsg::Packet(packet));
                }
            }
            (Phase::Opening | Phase::Authenticating | Phase::Fetching, _) => {
                self.close(conn, ReasonCode::ProtocolError, "a packet before CONNACK");
            }
            (Phase::Closing, _) => {}
        }
    }

    /// Whether nothing more should be read from a connection for now.
    fn must_pause(&mut self, conn: ConnId, next: &[u8]) -> bool {
        let (busy, limit) = (self.journal.is_busy(), self.config.out_bytes_max);
        let is_publish = next.first().is_some_and(|b| b >> 4 == PUBLISH_BITS);
        let paced = is_publish && self.paced_ms(conn) > 0;
        let part = if self.budget.pressure() >= Pressure::Slow { SHED_DIVISOR } else { 1 };
        let Some(connection) = self.connection_mut(conn) else { return false };
        let waits = match connection.phase {
            Phase::Authenticating | Phase::Fetching => true,
            Phase::Open(_) => !connection.welcomed,
            Phase::Opening | Phase::Challenged | Phase::Closing => false,
        };
        // While a publish waits, what is no publish is taken: acknowledgements may be what makes room.
        let waits = waits
            || paced
            || (connection.rare.blocked().is_some_and(|all| all.is_full(part))
                && is_publish
                && next.first().is_some_and(|b| b & QOS_BITS != 0));
        connection.paused = busy || waits || connection.out.len() > limit;
        connection.paused
    }

    pub(super) fn resume(&mut self, conn: ConnId) {
        if let Some(connection) = self.connection_mut(conn)
            && connection.paused
        {
            connection.paused = false;
            self.events.push_back(Event::Resume(conn));
        }
    }

    pub(super) fn resume_all(&mut self) {
        let all: Vec<ConnId> = self
            .connections
            .iter()
            .filter(|(_, c)| c.paused)
            .map(|(index, c)| ConnId { index: index as u32, generation: c.generation })
            .collect();
        all.into_iter().for_each(|conn| self.resume(conn));
    }

    pub(super) fn touch(&mut self, conn: ConnId) {
        let now_ms = self.now.mono_ms;
        if let Some(deadline_ms) = self.connection(conn).and_then(|c| c.deadline_ms(now_ms)) {
            self.connection_wheel.set(conn.index, deadline_ms);
        }
    }

    pub(super) fn connection_timeout(&mut self, index: u32) {
        let Some(connection) = self.connections.get(index as usize) else { return };
        let conn = ConnId { index, generation: connection.generation };
        match connection.phase {
            // Its packets are not read on our account: its silence is ours.
            Phase::Open(_) if self.journal.is_busy() => self.touch(conn),
            // Neither while its publishes wait for a receiver: it is read again when they are taken.
            Phase::Open(_) if connection.rare.blocked_len() > 0 => self.touch(conn),
            Phase::Open(_) if !connection.welcomed => self.close(conn, ReasonCode::Success, ""),
            Phase::Open(_) => {
                let text = "nothing heard for 1.5 times the keep alive";
                self.close(conn, ReasonCode::KeepAliveTimeout, text);
            }
            Phase::Fetching => self.fetching_timeout(conn),
            Phase::Opening | Phase::Authenticating | Phase::Challenged => {
                self.close(conn, ReasonCode::Success, "")
            }
            Phase::Closing => {
                self.events.push_back(Event::Close(conn));
                self.forget_connection(conn);
            }
        }
    }

    fn refuse_bytes(&mut self, conn: ConnId, error: &DecodeError, hint: &str) {
        let Some(connection) = self.connection(conn) else { return };
        match connection.phase {
            Phase::Open(session) => {
                self.log_closing(conn, session, format_args!("{error}"));
                self.close(conn, error.reason().unwrap_or_default(), "");
            }
            _ => self.refuse_connect_bytes(conn, error, hint),
        }
    }

    /// A client broke the protocol: in 3.1.1 the log is the only place that says why its connection ends.
    pub(super) fn log_closing(&mut self, conn: ConnId, session: u32, why: fmt::Arguments<'_>) {
        let Some(connection) = self.connection(conn) else { return };
        let remote = connection.remote();
        let client_id =
            self.sessions.get(session as usize).map(super::slot::SessionSlot::client_id);
        let client_id = client_id.unwrap_or_default();
        let text = format!("closing the connection of client {client_id:?} from {remote}: {why}");
        self.log(super::LogLevel::Info, text);
    }

    /// Encodes a packet for a client.
    pub(super) fn send_packet(&mut self, conn: ConnId, packet: &Packet) {
        let Some(connection) = self.connection_mut(conn) else { return };
        if connection.phase == Phase::Closing {
            return;
        }
        connection.welcomed |= matches!(packet, Packet::Connack(_));
        let (version, packet_max) = (connection.version, connection.packet_max);
        let written =
            connection.out.put_with(|out| encode_within(packet, version, packet_max, out));
        self.totals.packets_sent += 1;
        if self.traces.is_on() {
            self.trace_packet(conn, "sent", packet);
        }
        self.flush(conn);
        if written.is_err() && !matches!(packet, Packet::Disconnect(_)) {
            self.close(conn, ReasonCode::Success, "");
        }
    }

    pub(super) fn flush(&mut self, conn: ConnId) {
        if let Some(connection) = self.connection_mut(conn)
            && !connection.flush_asked
        {
            connection.flush_asked = true;
            self.flushes.push_back(conn);
        }
    }

    /// Bytes waiting for a client.
    pub(super) fn out_len(&self, conn: ConnId) -> usize {
        self.connection(conn).map_or(0, |c| c.out.len())
    }

    /// Ends a connection from this side; a client of version 5 is told why.
    pub(super) fn close(&mut self, conn: ConnId, reason: ReasonCode, text: &'static str) {
        let Some(connection) = self.connection(conn) else { return };
        if connection.phase == Phase::Closing {
            return;
        }
        let is_open = matches!(connection.phase, Phase::Open(_)) && connection.welcomed;
        let phase = connection.phase;
        if is_open && connection.version == Version::V5 && reason != ReasonCode::Success {
            self.send_packet(conn, &disconnect(reason, text));
        }
        if let Phase::Open(session) = phase {
            self.note_disconnected(session, decisions::name(reason), text);
        }
        self.end(conn);
    }

    /// Lets go of a connection: its session hears of it, its last bytes are written, then the driver closes it.
    pub(super) fn end(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Closing);
        let blocked = connection.rare.take_blocked();
        if phase == Phase::Closing {
            return;
        }
        self.forget_blocked(phase, blocked);
        let linger_ms = self.now.mono_ms + self.config.connect_timeout_ms;
        self.connection_wheel.set(conn.index, linger_ms);
        self.events.push_back(Event::Close(conn));
        match phase {
            Phase::Open(session) => self.session_left(session, conn),
            Phase::Fetching => self.forget_waiting(conn),
            _ => {}
        }
    }

    fn forget_connection(&mut self, conn: ConnId) {
        let Some(connection) = self.connection(conn) else { return };
        let phase = connection.phase;
        let mut connection = self.connections.remove(conn.index as usize);
        self.count_closed(&mut connection);
        self.budget.recharge(Class::Buffers, connection.charged.into(), 0);
        self.pace_wheel.cancel(conn.index);
        self.forget_blocked(phase, connection.rare.take_blocked());
        self.connection_wheel.cancel(conn.index);
        self.blocked.retain(|blocked| *blocked != conn);
        if let Phase::Open(session) = phase {
            self.note_disconnected(session, "ConnectionLost".into(), "without a DISCONNECT");
            self.session_left(session, conn);
        }
    }

    /// The publishes a connection had to wait with were never accepted: their ids are free again.
    fn forget_blocked(&mut self, phase: Phase, blocked: Blocked) {
        let Phase::Open(session) = phase else { return };
        for publish in blocked.into_all() {
            self.ledger.refused += 1;
            if let (Some(id), Some(slot)) = (publish.packet_id, self.sessions.get(session as usize))
            {
                let (cell, qos, reason) = (slot.cell, publish.qos, ReasonCode::QuotaExceeded);
                self.send(cell, CellMsg::Accepted { id, qos, reason, same_link: false });
            }
        }
    }
}

#[cfg(test)]
mod size {
    #[test]
    fn an_idle_connection_keeps_little() {
        assert!(size_of::<super::Connection>() <= 152, "{}", size_of::<super::Connection>());
    }
}
