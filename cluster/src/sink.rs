//! The seam to the node: what the links call, and what the node holds of each link.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use outpost_membership::{Lane, PeerFrame};
use outpost_model::NodeId;

use crate::config::LinkLimits;
use crate::frame;
use crate::queue::{LaneQueue, Refused};
use crate::stats::{LANES, PeerCounters, lane_index, lane_name};

/// A future in a box, as [`PeerSink::frame`] returns it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the node does with its peers. Called from the links' tasks; nothing here may block.
///
/// For one peer the calls come in this order: `peer_up`, then frames, then `peer_down`, then perhaps `peer_up` again.
pub trait PeerSink: Send + Sync + 'static {
    /// Both sides have proved who they are. The first frame to send through `link` is [`PeerFrame::Hello`].
    fn peer_up(&self, peer: PeerInfo, link: LinkHandle);
    /// The link is gone; what was not acknowledged may be lost.
    fn peer_down(&self, peer: NodeId);
    /// A frame came. Until the future is done, no further frame of this lane of this peer is read.
    fn frame(&self, peer: NodeId, frame: PeerFrame) -> BoxFuture<'_, ()>;
    /// A lane that had refused a frame has room again.
    fn writable(&self, peer: NodeId, lane: Lane) {
        let _ = (peer, lane);
    }
}

/// The node at the other end of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Its id.
    pub id: NodeId,
    /// Its name, as its certificate says.
    pub name: String,
    /// Where its packets come from now. Not where to dial it: that is what it advertises.
    pub addr: SocketAddr,
    /// Last second its certificate is valid, since 1970.
    pub certificate_expires_s: i64,
    /// Whether this node opened the connection.
    pub dialled: bool,
}

/// Why a frame was not taken by a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkFull {
    /// The queue of the lane is full. [`PeerSink::writable`] says when to try again.
    #[error("the {} queue towards the peer is full", lane_name(*.0))]
    Full(Lane),
    /// The link is down.
    #[error("the link is down")]
    Closed,
    /// The frame can never be sent.
    #[error("the frame is larger than {} bytes", frame::BODY_BYTES_MAX)]
    TooLarge,
}

/// What a link is like. Packets are counted since it came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkPath {
    /// Round trip, as the connection estimates it.
    pub rtt: Duration,
    /// Packets sent.
    pub sent: u64,
    /// Packets that count as lost.
    pub lost: u64,
    /// Bytes that congestion control lets be under way.
    pub window_bytes: u64,
}

/// The sending side of a link. Clones are the same link.
#[derive(Clone)]
pub struct LinkHandle(Arc<LinkShared>);

pub(crate) struct LinkShared {
    pub(crate) peer: PeerInfo,
    pub(crate) connection: quinn::Connection,
    pub(crate) counters: Arc<PeerCounters>,
    queues: [LaneQueue; 3],
}

impl LinkHandle {
    pub(crate) fn new(
        peer: PeerInfo,
        connection: quinn::Connection,
        counters: Arc<PeerCounters>,
        limits: &LinkLimits,
    ) -> Self {
        let queues = LANES.map(|lane| {
            LaneQueue::new(match lane {
                Lane::Control => limits.control_queue_bytes_max,
                Lane::Events => limits.events_queue_bytes_max,
                Lane::Sync => limits.sync_queue_bytes_max,
            })
        });
        Self(Arc::new(LinkShared { peer, connection, counters, queues }))
    }

    /// Puts a frame in the queue of its lane, or refuses it at once.
    ///
    /// # Errors
    /// [`LinkFull`]; the frame was not sent then, in no part.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a queue of values may stand here one day; clones are cheap"
    )]
    pub fn try_send(&self, frame: PeerFrame) -> Result<(), LinkFull> {
        let bytes = frame::encode(&frame).map_err(|_| LinkFull::TooLarge)?;
        let lane = frame.lane();
        self.queue(lane).push(bytes).map_err(|refused| match refused {
            Refused::Closed => LinkFull::Closed,
            Refused::Full => {
                self.0.counters.refused_full.fetch_add(1, Ordering::Relaxed);
                LinkFull::Full(lane)
            }
        })
    }

    /// Bytes of a lane that are not written yet.
    pub fn queued_bytes(&self, lane: Lane) -> usize {
        self.queue(lane).bytes()
    }

    /// What the link is like now.
    pub fn path(&self) -> LinkPath {
        let path = self.0.connection.stats().path;
        LinkPath {
            rtt: path.rtt,
            sent: path.sent_packets,
            lost: path.lost_packets,
            window_bytes: path.cwnd,
        }
    }

    /// Ends the link; it is opened again after the pause that follows every loss.
    pub fn close(&self, why: &str) {
        let why = why.as_bytes();
        self.0.connection.close(CLOSED_BY_NODE, &why[..why.len().min(200)]);
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.0.peer
    }

    pub(crate) fn queue(&self, lane: Lane) -> &LaneQueue {
        &self.0.queues[lane_index(lane)]
    }

    pub(crate) fn shared(&self) -> &LinkShared {
        &self.0
    }

    pub(crate) fn close_queues(&self) {
        self.0.queues.iter().for_each(LaneQueue::close);
    }
}

impl fmt::Debug for LinkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LinkHandle").field(&self.0.peer).finish()
    }
}

/// Application error codes of a connection.
pub(crate) const CLOSED_SHUTDOWN: quinn::VarInt = quinn::VarInt::from_u32(0);
pub(crate) const CLOSED_BY_NODE: quinn::VarInt = quinn::VarInt::from_u32(1);
pub(crate) const CLOSED_DUPLICATE: quinn::VarInt = quinn::VarInt::from_u32(2);
pub(crate) const CLOSED_SELF: quinn::VarInt = quinn::VarInt::from_u32(3);
pub(crate) const CLOSED_BAD_FRAME: quinn::VarInt = quinn::VarInt::from_u32(4);
pub(crate) const CLOSED_NOT_A_NODE: quinn::VarInt = quinn::VarInt::from_u32(5);
