//! What waits for the disk, and who waits with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use outpost_membership::{Hello, PeerFrame};
use outpost_model::{Message, NodeId, QoS};
use outpost_mqtt::packet::{Connack, Connect, Packet, PacketId, ReasonCode};

use super::ConnId;

/// What waits for the disk.
#[derive(Debug)]
pub(super) enum Hold {
    /// CONNACK, and with it everything else for this connection.
    Welcome {
        session: u32,
        number: u64,
        conn: ConnId,
        connect: Box<Connect>,
        connack: Box<Connack>,
    },
    /// What QoS 2 deliveries stand on: their rows, so that their packet ids are safe to use, and that they were taken.
    Rows {
        session: u32,
        number: u64,
        upto: u64,
    },
    /// What is left of a failed session can be read.
    Revive {
        session: u32,
        number: u64,
    },
    /// What the hello claims to be durable is.
    Hello {
        peer: NodeId,
        link: u64,
        hello: Hello,
        /// The same of small state.
        state_seen: u64,
    },
    Packet {
        session: u32,
        number: u64,
        conn: ConnId,
        packet: Packet,
    },
    Settle(Ticket, ReasonCode),
    Peer(NodeId, PeerFrame),
    /// A QoS 2 message that a peer's clients get only while they are there.
    Fleeting {
        peer: NodeId,
        message: Arc<Message>,
    },
    Outbox {
        peer: NodeId,
        seq: u64,
    },
    Retained {
        peer: NodeId,
        feed_seq: u64,
    },
    /// Changes of small state up to this place may travel.
    State {
        peer: NodeId,
        feed_seq: u64,
    },
    /// What a session that leaves is owed can be read.
    Leave {
        session: u32,
        step: u64,
    },
    /// What a session that came, or stays after all, is owed can be read.
    Arrive {
        session: u32,
        step: u64,
    },
    /// Rows of this session's queue below `upto` are visible to reads now.
    Load {
        session: u32,
        number: u64,
        from: u64,
        count: usize,
        upto: u64,
    },
    /// The rows of an ended session can be cleared away.
    Sweep(Remains),
    /// Rows of a full queue can be searched for what has expired.
    Expire {
        session: u32,
        number: u64,
        from: u64,
    },
}

/// What an ended session leaves on disk.
#[derive(Debug)]
pub(super) struct Remains {
    pub(super) number: u64,
    /// Places of QoS 2 deliveries its client may have: nobody else may get them (MQTT-4.8.2-5).
    pub(super) sent: BTreeSet<u64>,
    /// So many rows from the front count as sent too: a process that is no more may have sent them.
    pub(super) unsure: usize,
    /// Its deliveries were counted as dropped when it ended.
    pub(super) counted: bool,
}

/// Who waits to hear that a message is safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ticket {
    None,
    Client { session: u32, number: u64, conn: ConnId, id: PacketId, qos: QoS },
    Node(u64),
}
