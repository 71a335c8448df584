//! What a hub tells the log and the metrics.

use outpost_model::NodeId;

use crate::key::ShadowKey;
use crate::stamp::Stamp;

/// Something worth telling an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A write was accepted here.
    Written {
        /// The shadow.
        key: ShadowKey,
        /// Its new version.
        version: u64,
        /// The write's stamp, with the term its `reported` leaves carry.
        stamp: Stamp,
        /// It was accepted apart from its home node.
        apart: bool,
    },
    /// A merge changed what clients see.
    Merged {
        /// The shadow.
        key: ShadowKey,
        /// Its new version.
        version: u64,
        /// Who sent it.
        from: NodeId,
        /// Both sides had something the other lacked.
        conflict: bool,
    },
    /// After a merge the state is larger than the limit; updates must shrink it.
    Oversize {
        /// The shadow.
        key: ShadowKey,
        /// Bytes of its state.
        bytes: usize,
    },
    /// A peer's shadow was not taken in, as there are too many.
    Full {
        /// The shadow.
        key: ShadowKey,
    },
    /// A shadow's row cannot be read. It counts as lost: the next write begins it anew, and what peers have is merged then.
    Damaged {
        /// The shadow.
        key: ShadowKey,
    },
    /// Another node used the same slot of version numbers; this one took another.
    SlotChanged {
        /// The new slot.
        slot: u8,
    },
    /// This node made itself the home of a shadow, as the old home cannot be reached.
    TakenOver {
        /// The shadow.
        key: ShadowKey,
        /// Its new version.
        version: u64,
        /// The old home is gone for good. Else it is to give its version numbers away when it is back.
        sure: bool,
    },
    /// A home could not be moved, as the node that would have to agree cannot be reached.
    HomeNotMoved {
        /// The shadow.
        key: ShadowKey,
    },
    /// A peer sent what no honest node sends, and is not listened to for a while.
    Quarantined {
        /// The peer.
        peer: NodeId,
        /// What it sent.
        reason: String,
        /// For how long.
        ms: u64,
    },
    /// A peer is to be listened to again: its link must be closed, so that both begin anew.
    QuarantineOver {
        /// The peer.
        peer: NodeId,
    },
    /// A peer knows more of this node's feed than the disk does: the disk is an old copy. A new feed was begun.
    FeedRestarted,
}
