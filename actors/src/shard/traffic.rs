//! What went over connections: plain adds while it goes, summed up by listener when somebody asks.

use std::sync::Arc;

use outpost_model::QoS;

use super::Shard;
use super::connection::Connection;

/// PUBLISH packets and the bytes of their payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// From clients, by QoS.
    pub received: [u64; 3],
    /// To clients, by QoS; what was sent again counts again.
    pub sent: [u64; 3],
    /// Bytes of the payloads from clients.
    pub payload_bytes_received: u64,
    /// Bytes of the payloads to clients.
    pub payload_bytes_sent: u64,
}

impl Messages {
    pub(super) fn count_received(&mut self, qos: QoS, count: u64, payload_bytes: usize) {
        self.received[qos as usize] += count;
        self.payload_bytes_received += payload_bytes as u64;
    }

    pub(super) fn count_sent(&mut self, qos: QoS, count: u64, payload_bytes: usize) {
        self.sent[qos as usize] += count;
        self.payload_bytes_sent += payload_bytes as u64;
    }

    fn add(&mut self, other: &Self) {
        for qos in 0..3 {
            self.received[qos] += other.received[qos];
            self.sent[qos] += other.sent[qos];
        }
        self.payload_bytes_received += other.payload_bytes_received;
        self.payload_bytes_sent += other.payload_bytes_sent;
    }
}

/// How finely the moments of a connection are kept: in 32 bits they last for 13 years.
const TICK_MS: u64 = 100;

fn tick_of(now_ms: u64) -> u32 {
    u32::try_from(now_ms / TICK_MS).unwrap_or(u32::MAX)
}

/// What went over one connection. Small: an idle client pays for it too.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    /// When it came, in ticks of the monotonic clock.
    opened: u32,
    /// When its last packet came.
    heard: u32,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    /// There once a message has gone over it.
    messages: Option<Box<Messages>>,
}

impl Traffic {
    pub(super) fn new(now_ms: u64) -> Self {
        let now = tick_of(now_ms);
        Self { opened: now, heard: now, ..Self::default() }
    }

    /// A packet came.
    pub(super) fn heard(&mut self, now_ms: u64) {
        self.heard = tick_of(now_ms);
    }

    /// When it came, and when its last packet came, monotonic.
    pub(super) fn moments_ms(&self) -> (u64, u64) {
        (u64::from(self.opened) * TICK_MS, u64::from(self.heard) * TICK_MS)
    }

    pub(super) fn messages_mut(&mut self) -> &mut Messages {
        self.messages.get_or_insert_default()
    }

    pub(super) fn messages(&self) -> Messages {
        self.messages.as_deref().copied().unwrap_or_default()
    }
}

/// Sums over all connections since the shard started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets of all types from clients.
    pub packets_received: u64,
    /// Packets of all types to clients.
    pub packets_sent: u64,
    /// Bytes from clients.
    pub bytes_received: u64,
    /// Bytes to clients.
    pub bytes_sent: u64,
    /// PUBLISH packets.
    pub messages: Messages,
    /// CONNECT packets.
    pub connects: u64,
    /// Sessions that have a client now.
    pub connected: usize,
    /// The most there were at once.
    pub connected_peak: usize,
    /// Sessions whose expiry interval passed without their client.
    pub sessions_expired: u64,
}

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerStats {
    /// Its name.
    pub name: Arc<str>,
    /// Connections open.
    pub connections: usize,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// Bytes from its clients.
    pub bytes_received: u64,
    /// Bytes to its clients.
    pub bytes_sent: u64,
    /// PUBLISH packets over it.
    pub messages: Messages,
}

impl ListenerStats {
    fn add(&mut self, traffic: &Traffic) {
        self.bytes_received += traffic.bytes_received;
        self.bytes_sent += traffic.bytes_sent;
        self.messages.add(&traffic.messages());
    }
}

impl Shard {
    /// The place of a listener among those that had connections; there are a handful, and they are configured.
    pub(super) fn count_accepted(&mut self, name: &Arc<str>) -> u16 {
        let known = self.listeners.iter().position(|listener| listener.name == *name);
        let place = known.unwrap_or_else(|| {
            self.listeners.push(ListenerStats {
                name: Arc::clone(name),
                connections: 0,
                accepted: 0,
                bytes_received: 0,
                bytes_sent: 0,
                messages: Messages::default(),
            });
            self.listeners.len() - 1
        });
        self.listeners[place].accepted += 1;
        place as u16
    }

    /// A connection is over: its listener keeps the sums.
    pub(super) fn count_closed(&mut self, connection: &mut Connection) {
        let written = connection.take_written();
        self.totals.bytes_sent += written;
        if let Some(listener) = self.listeners.get_mut(usize::from(connection.listener)) {
            listener.add(&connection.traffic);
        }
    }

    /// Where a connection came in.
    pub(super) fn listener_of(&self, connection: &Connection) -> Option<&ListenerStats> {
        self.listeners.get(usize::from(connection.listener))
    }

    /// Listeners with what went over them, connections that are open included.
    pub fn listener_stats(&self) -> Vec<ListenerStats> {
        let mut all = self.listeners.clone();
        for (_, connection) in &self.connections {
            if let Some(listener) = all.get_mut(usize::from(connection.listener)) {
                listener.connections += 1;
                listener.add(&connection.traffic);
            }
        }
        all
    }

    pub(super) fn count_connected(&mut self) {
        self.totals.connected += 1;
        self.totals.connected_peak = self.totals.connected_peak.max(self.totals.connected);
    }
}
