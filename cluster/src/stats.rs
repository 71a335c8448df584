//! What the links count, and the picture of the cluster a person asks for.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use outpost_membership::Lane;
use serde::Serialize;

/// Bytes and frames through one lane in one direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    bytes: AtomicU64,
    frames: AtomicU64,
}

impl Flow {
    pub(crate) fn count(&self, bytes: usize, frames: u64) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.frames.fetch_add(frames, Ordering::Relaxed);
    }
}

/// What one peer's links carried since the start.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    sent: [Flow; 3],
    received: [Flow; 3],
    pub(crate) refused_full: AtomicU64,
}

impl PeerCounters {
    pub(crate) fn sent(&self, lane: Lane) -> &Flow {
        &self.sent[lane_index(lane)]
    }

    pub(crate) fn received(&self, lane: Lane) -> &Flow {
        &self.received[lane_index(lane)]
    }

    pub(crate) fn lanes(&self) -> [LaneStatus; 3] {
        LANES.map(|lane| {
            let (sent, received) = (self.sent(lane), self.received(lane));
            LaneStatus {
                lane: lane_name(lane),
                bytes_out: sent.bytes.load(Ordering::Relaxed),
                frames_out: sent.frames.load(Ordering::Relaxed),
                bytes_in: received.bytes.load(Ordering::Relaxed),
                frames_in: received.frames.load(Ordering::Relaxed),
                queued_bytes: 0,
            }
        })
    }
}

/// The three lanes, in the order of their priority.
pub(crate) const LANES: [Lane; 3] = [Lane::Control, Lane::Events, Lane::Sync];

pub(crate) fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Control => 0,
        Lane::Events => 1,
        Lane::Sync => 2,
    }
}

pub(crate) fn lane_name(lane: Lane) -> &'static str {
    match lane {
        Lane::Control => "control",
        Lane::Events => "events",
        Lane::Sync => "sync",
    }
}

/// What the node counts about its peers as a whole.
#[derive(Debug, Default)]
pub(crate) struct ClusterCounters {
    pub(crate) refused_handshakes: AtomicU64,
    pub(crate) links_opened: AtomicU64,
    pub(crate) links_lost: AtomicU64,
    pub(crate) link_panics: AtomicU64,
    pub(crate) bad_frames: AtomicU64,
    pub(crate) bad_gossip: AtomicU64,
    pub(crate) joins_granted: AtomicU64,
    pub(crate) joins_refused: AtomicU64,
}

/// The cluster as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterStatus {
    /// Name of the cluster.
    pub cluster: String,
    /// Name of this node.
    pub name: String,
    /// Its id, in hex.
    pub id: String,
    /// The address the others are told.
    pub address: SocketAddr,
    /// Its incarnation now.
    pub incarnation: u64,
    /// Last second its certificate is valid, since 1970.
    pub certificate_expires_s: i64,
    /// SHA-256 of the CA's certificate.
    pub ca_fingerprint: String,
    /// Every other node ever heard of since the start, by name.
    pub members: Vec<MemberStatus>,
    /// Counters since the start.
    pub counters: CounterStatus,
}

/// One other node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemberStatus {
    /// Its name.
    pub name: String,
    /// Its id, in hex.
    pub id: String,
    /// Where it is dialled, when that is known.
    pub address: Option<SocketAddr>,
    /// `alive`, `suspect` or `down`.
    pub state: &'static str,
    /// Its incarnation.
    pub incarnation: u64,
    /// Whether there is a link now.
    pub linked: bool,
    /// Round trip time of the link.
    pub rtt_ms: Option<f64>,
    /// Milliseconds since 1970 of the last change of `state` or `linked`.
    pub since_wall_ms: u64,
    /// What went over its links since the start.
    pub lanes: [LaneStatus; 3],
    /// Frames refused because a queue was full.
    pub refused_full: u64,
}

/// One lane of one peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LaneStatus {
    /// `control`, `events` or `sync`.
    pub lane: &'static str,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Frames received.
    pub frames_in: u64,
    /// Bytes waiting to be sent now.
    pub queued_bytes: usize,
}

/// Counters of the whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CounterStatus {
    /// Connections refused because one side's certificate was not of this cluster, or said something else.
    pub refused_handshakes: u64,
    /// Links that came up.
    pub links_opened: u64,
    /// Links that went down.
    pub links_lost: u64,
    /// Links whose task panicked; each was restarted.
    pub link_panics: u64,
    /// Frames that broke the format; each cost its peer the link.
    pub bad_frames: u64,
    /// Gossip packets dropped.
    pub bad_gossip: u64,
    /// Newcomers that got a certificate from this node.
    pub joins_granted: u64,
    /// Requests to join that were refused.
    pub joins_refused: u64,
}

impl ClusterCounters {
    pub(crate) fn status(&self) -> CounterStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterStatus {
            refused_handshakes: read(&self.refused_handshakes),
            links_opened: read(&self.links_opened),
            links_lost: read(&self.links_lost),
            link_panics: read(&self.link_panics),
            bad_frames: read(&self.bad_frames),
            bad_gossip: read(&self.bad_gossip),
            joins_granted: read(&self.joins_granted),
            joins_refused: read(&self.joins_refused),
        }
    }
}

/// Adds one; counters are never read to decide anything.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
