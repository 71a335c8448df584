//! Who stands before a listener: how many, since when, and why some were turned away.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::now;

/// What a connection may cost before its CONNECT is here.
#[derive(Debug, Clone, Copy)]
pub struct StrangerLimits {
    /// Most strangers at a time.
    pub pending_max: usize,
    /// Bytes taken from one.
    pub bytes_max: usize,
    /// From accepting to CONNECT.
    pub time_max: Duration,
}

/// Why a connection was turned away before it was one of the shard's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `limits.pending_connect_max`.
    Pending,
    /// `connections_max` of the listener or of the node.
    Connections,
    /// `limits.connect_rate_per_address_max`.
    Address,
    /// The process has no file descriptors to give away.
    Descriptors,
    /// No CONNECT in `limits.connect_timeout_s`, or not even a handshake.
    Timeout,
    /// More than `limits.connect_bytes_max` before CONNECT was complete.
    Bytes,
    /// No PROXY header, or one that breaks its rules.
    Proxy,
    /// The TLS or QUIC handshake failed.
    Tls,
    /// The client certificate does not have the name that is the user name.
    Certificate,
    /// The request was no WebSocket for MQTT.
    WebSocket,
}

impl Refusal {
    /// All, in the order of their counters.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Connections,
        Self::Address,
        Self::Descriptors,
        Self::Timeout,
        Self::Bytes,
        Self::Proxy,
        Self::Tls,
        Self::Certificate,
        Self::WebSocket,
    ];

    /// The label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending_connect_max",
            Self::Connections => "connections_max",
            Self::Address => "connect_rate_per_address_max",
            Self::Descriptors => "file_descriptors",
            Self::Timeout => "connect_timeout",
            Self::Bytes => "connect_bytes_max",
            Self::Proxy => "proxy_header",
            Self::Tls => "tls",
            Self::Certificate => "certificate_name",
            Self::WebSocket => "websocket",
        }
    }
}

/// Sockets of clients on all listeners of the node, and how many there may be so that the store keeps its files.
#[derive(Debug)]
pub struct Sockets {
    open: AtomicUsize,
    max: usize,
}

impl Sockets {
    /// At most so many.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), max })
    }
}

/// One listener's door.
#[derive(Debug)]
pub struct Door {
    /// Name of the listener.
    pub name: Arc<str>,
    /// What strangers may cost.
    pub limits: StrangerLimits,
    connections_max: usize,
    sockets: Option<Arc<Sockets>>,
    open: AtomicUsize,
    pending: AtomicUsize,
    accepted: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    /// Refused since the log was told, and when that was (milliseconds of the monotonic clock, or never).
    silent: AtomicU64,
    told_ms: AtomicI64,
}

/// Refused connections are told of in the log at most this often for a listener. Shorter: strangers fill the log;
/// longer: a limit that is too low is noticed late.
const REFUSAL_SILENCE_MS: i64 = 10_000;
const NEVER: i64 = i64::MIN;

impl Door {
    /// A door; `sockets` counts what takes a file descriptor for each connection.
    pub fn new(
        name: &str,
        limits: StrangerLimits,
        connections_max: usize,
        sockets: Option<Arc<Sockets>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            name: Arc::from(name),
            limits,
            connections_max,
            sockets,
            open: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: Default::default(),
            silent: AtomicU64::new(0),
            told_ms: AtomicI64::new(NEVER),
        })
    }

    /// Somebody came.
    ///
    /// # Errors
    /// Why there is no place.
    pub fn arrive(self: &Arc<Self>) -> Result<Ticket, Refusal> {
        if self.pending.load(Ordering::Relaxed) >= self.limits.pending_max {
            return Err(Refusal::Pending);
        }
        if self.open.load(Ordering::Relaxed) >= self.connections_max {
            return Err(Refusal::Connections);
        }
        if let Some(sockets) = &self.sockets {
            if sockets.open.load(Ordering::Relaxed) >= sockets.max {
                return Err(Refusal::Descriptors);
            }
            sockets.open.fetch_add(1, Ordering::Relaxed);
        }
        self.pending.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Ticket {
            door: Arc::clone(self),
            stranger: Some(Box::new(Stranger {
                arrived_ms: now().mono_ms,
                deadline: Instant::now() + self.limits.time_max,
            })),
        })
    }

    /// Counts a refusal. `Some`: say so in the log, for itself and for so many others that were not told of.
    pub fn refused(&self, why: Refusal) -> Option<u64> {
        self.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        let now_ms = now().mono_ms as i64;
        let told_ms = self.told_ms.load(Ordering::Relaxed);
        if told_ms != NEVER && now_ms < told_ms + REFUSAL_SILENCE_MS {
            self.silent.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.told_ms.store(now_ms, Ordering::Relaxed);
        Some(self.silent.swap(0, Ordering::Relaxed))
    }

    /// Connections that are here now, strangers included.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Strangers that are here now.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Connections whose CONNECT came, since the node started.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Refused connections since the node started.
    pub fn refusals(&self, why: Refusal) -> u64 {
        self.refused[why as usize].load(Ordering::Relaxed)
    }
}

/// A connection's place at its door; dropping it gives the place back.
#[derive(Debug)]
pub struct Ticket {
    door: Arc<Door>,
    /// Until its first packet is here. Boxed: a client has no use for it.
    stranger: Option<Box<Stranger>>,
}

#[derive(Debug)]
struct Stranger {
    arrived_ms: u64,
    deadline: Instant,
}

impl Ticket {
    /// Where it stands.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// When it came; a client that was a stranger once: now.
    pub fn arrived_ms(&self) -> u64 {
        self.stranger.as_ref().map_or_else(|| now().mono_ms, |stranger| stranger.arrived_ms)
    }

    /// CONNECT must be here by then.
    pub fn deadline(&self) -> Instant {
        self.stranger.as_ref().map_or_else(Instant::now, |stranger| stranger.deadline)
    }

    /// Its first packet is here. `true` the first time.
    pub fn opened(&mut self) -> bool {
        let was_stranger = self.stranger.take().is_some();
        if was_stranger {
            self.door.pending.fetch_sub(1, Ordering::Relaxed);
            self.door.accepted.fetch_add(1, Ordering::Relaxed);
        }
        was_stranger
    }

    /// It is turned away before its first packet was here.
    pub fn refused(&mut self, why: Refusal) {
        if self.stranger.take().is_some() {
            self.door.pending.fetch_sub(1, Ordering::Relaxed);
            self.door.refused(why);
        }
    }

    /// It is gone, perhaps because its time was over.
    pub fn left(&mut self) {
        if self.stranger.as_ref().is_some_and(|s| Instant::now() >= s.deadline) {
            self.refused(Refusal::Timeout);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.stranger.is_some() {
            self.door.pending.fetch_sub(1, Ordering::Relaxed);
        }
        self.door.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(sockets) = &self.door.sockets {
            sockets.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(pending_max: usize, connections_max: usize, sockets: usize) -> Arc<Door> {
        let limits =
            StrangerLimits { pending_max, bytes_max: 1_024, time_max: Duration::from_secs(5) };
        Door::new("mqtt", limits, connections_max, Some(Sockets::new(sockets)))
    }

    #[test]
    fn each_limit_turns_away_with_its_own_reason_and_places_come_back() {
        let full = door(1, 9, 9);
        let mut first = full.arrive().expect("a place");
        assert_eq!(full.arrive().err(), Some(Refusal::Pending));
        first.opened();
        let second = full.arrive().expect("the first is no stranger any more");
        assert_eq!((full.open(), full.pending(), full.accepted()), (2, 1, 1));
        drop((first, second));
        assert_eq!((full.open(), full.pending(), full.accepted()), (0, 0, 1));
        let (small, poor) = (door(9, 1, 9), door(9, 9, 1));
        let held = (small.arrive(), poor.arrive());
        assert!(held.0.is_ok() && held.1.is_ok());
        assert_eq!(small.arrive().err(), Some(Refusal::Connections));
        assert_eq!(poor.arrive().err(), Some(Refusal::Descriptors));
    }

    #[test]
    fn the_log_hears_of_the_first_refusal_and_the_counters_of_all() {
        let door = door(1, 1, 1);
        assert_eq!(door.refused(Refusal::Tls), Some(0));
        assert_eq!(door.refused(Refusal::Tls), None);
        assert_eq!(door.refusals(Refusal::Tls), 2);
        assert_eq!(door.refusals(Refusal::Timeout), 0);
    }
}
