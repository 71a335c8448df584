//! What two nodes say to each other. Plain values: the link encodes them, the simulator passes them as they are.

use std::sync::Arc;

use bytes::Bytes;
use outpost_model::{Hlc, Message, NodeId};

/// One statement from a node to a peer. The link keeps the order of the frames of one [`Lane`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerFrame {
    /// First frame in each direction: who speaks, and how far its durable knowledge of the other reaches.
    Hello(Hello),
    /// Everything the sender wants, replacing what it said before.
    InterestAll(Vec<Interest>),
    /// What the sender now wants, in addition or with another flag.
    InterestAdd(Vec<Interest>),
    /// What it no longer wants.
    InterestRemove(Vec<String>),
    /// A message the receiver has interest in. `seq` is 0 when the sender does not wait for an acknowledgement; else
    /// it grows strictly, with gaps, and the sender keeps the message until [`PeerFrame::EventAck`].
    Event {
        /// Place in the sender's outbox, or 0.
        seq: u64,
        /// The message as accepted.
        message: Arc<Message>,
        /// The share groups the receiver is to serve with it; no other group there gets it.
        shares: Option<Arc<Shares>>,
    },
    /// Every event up to this number is durable at the sender of this frame, or was not wanted there.
    EventAck {
        /// Highest such number.
        seq: u64,
    },
    /// A retained slot as the sender knows it.
    Retained {
        /// Place in the sender's feed of retained changes.
        feed_seq: u64,
        /// What stands there.
        entry: RetainedEntry,
    },
    /// Every retained change of the receiver up to this place in its feed is durable at the sender of this frame.
    RetainedSeen {
        /// Place in the receiver's feed of retained changes.
        feed_seq: u64,
    },
    /// Every change of the receiver's small state up to this place is durable at the sender of this frame; the first of
    /// each link, right behind the hello, lets the receiver begin.
    StateGreet {
        /// Place in the receiver's feed of its small state.
        feed_seq: u64,
    },
    /// A piece of the small state that all nodes have, as the sender knows it.
    State {
        /// Place in the sender's feed.
        feed_seq: u64,
        /// What stands there.
        entry: StateEntry,
    },
    /// The same as [`PeerFrame::StateGreet`], behind the changes it speaks of.
    StateSeen {
        /// Place in the receiver's feed of its small state.
        feed_seq: u64,
    },
    /// Answer with this number when all interest told before it is kept, and everything that waits for the sender now is
    /// with it. It stands for all lower numbers.
    Barrier {
        /// Grows with each.
        number: u64,
    },
    /// The answer.
    BarrierPassed {
        /// Its number.
        number: u64,
    },
    /// A frame of the shadow hub; its format is the hub's own.
    Shadow(Bytes),
}

/// Which stream of the link a frame takes. Lanes do not wait for one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Hello, interest, acknowledgements: small and first.
    Control,
    /// Messages.
    Events,
    /// Shadow sync and retained slots.
    Sync,
}

impl PeerFrame {
    /// What it holds of small state or of a retained message, about; 0 for others.
    pub fn cost_bytes(&self) -> usize {
        match self {
            Self::Retained { entry, .. } => {
                entry.topic.len() + entry.message.as_ref().map_or(0, |message| message.cost_bytes())
            }
            Self::State { entry, .. } => {
                entry.key.len() + entry.value.as_ref().map_or(0, Bytes::len)
            }
            _ => 0,
        }
    }

    /// The stream this frame belongs on.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Hello(_)
            | Self::InterestAll(_)
            | Self::InterestAdd(_)
            | Self::InterestRemove(_)
            | Self::StateGreet { .. }
            | Self::Barrier { .. }
            | Self::BarrierPassed { .. }
            | Self::EventAck { .. } => Lane::Control,
            Self::Event { .. } => Lane::Events,
            // A confirmation stays behind the changes that were told before it (`outpost_model::lww`).
            Self::Retained { .. }
            | Self::RetainedSeen { .. }
            | Self::State { .. }
            | Self::StateSeen { .. }
            | Self::Shadow(_) => Lane::Sync,
        }
    }
}

/// The first frame of each side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Names the sender's store: chosen at random when it was created, so a wiped node is a new sender of events.
    pub store_id: u64,
    /// The receiver's store as the sender knew it when it wrote down the two cursors; 0 when it never did.
    pub your_store_id: u64,
    /// Events of the receiver up to this number are durable at the sender.
    pub events_seen: u64,
    /// Retained changes of the receiver up to this number are durable at the sender.
    pub retained_seen: u64,
}

/// Groups named in one event. Lower: a topic with many groups costs more events; higher: the names may not fit a frame.
pub const EVENT_SHARES_MAX: usize = 256;

/// Whom a message is for, when that is not just everybody at the receiver who wants its topic: the share groups it serves
/// with it, because the node that sent it chose it among all that have members; or one session, which moves there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shares {
    /// Their filters, `$share/<group>/<filter>`; at most [`EVENT_SHARES_MAX`].
    pub groups: Vec<String>,
    /// How many nodes have passed it on because their members were gone. Not 0: the message is for the groups only,
    /// ordinary subscribers got theirs from where it was published.
    pub hops: u8,
    /// A part of a session that moves to the receiver; the message is for nobody else. Its form is the shard's own.
    pub session: Option<Bytes>,
}

/// A topic filter a node wants messages for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interest {
    /// The filter. With its `$share/<group>/` it names a group that has members there: one of the nodes that told of it
    /// gets each message.
    pub pattern: String,
    /// A persistent session wants it with QoS 1 or 2: the message must reach it even if the link is down now.
    pub durable: bool,
    /// A member of the group is connected; never set for a filter that is not shared.
    pub live: bool,
}

/// A piece of small state: last writer wins by (stamp, node).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// Which one.
    pub key: String,
    /// When it was written.
    pub stamp: Hlc,
    /// Where it was written.
    pub node: NodeId,
    /// What it says, or nothing when it was removed. Its form is the shard's own.
    pub value: Option<Bytes>,
}

/// A retained slot: last writer wins by (stamp, node). A slot without a message is a tombstone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetainedEntry {
    /// The topic.
    pub topic: String,
    /// When it was written.
    pub stamp: Hlc,
    /// Where it was written; decides between equal stamps.
    pub node: NodeId,
    /// The message, or nothing when it was cleared.
    pub message: Option<Arc<Message>>,
}
