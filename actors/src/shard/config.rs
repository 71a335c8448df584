//! How a shard behaves.

use outpost_flow::{AdmissionLimits, Overload, PaceLimits, RestartPolicy};
use outpost_model::{NodeId, TopicFilter};
use outpost_mqtt::session::SessionLimits;

use super::Redirect;

/// How a shard behaves. Each limit has a line in `docs/reference/limits.md`.
#[derive(Debug, Clone)]
pub struct ShardConfig {
    /// This node.
    pub node: NodeId,
    /// Names this node's store; peers keep their cursors by it.
    pub store_id: u64,
    /// Acknowledge only what is on disk. `false` trades that for latency, for all clients of the shard.
    pub durable: bool,
    /// What each client may do.
    pub session: SessionLimits,
    /// Connections at once; more are refused politely.
    pub connections_max: usize,
    /// Sessions, connected or not; more are refused with 0x97.
    pub sessions_max: usize,
    /// Subscriptions of one session.
    pub subscriptions_max: usize,
    /// QoS 1 and 2 deliveries one session may be owed. Full: publishers are refused (5) or held back (3.1.1).
    pub queue_messages_max: u32,
    /// Bytes of them.
    pub queue_bytes_max: u64,
    /// The same of all sessions together. Full: what is for a client that is away or behind is refused or held back.
    pub node_queue_messages_max: u64,
    /// Bytes of them.
    pub node_queue_bytes_max: u64,
    /// Bytes waiting to be written to one client before its packets are no longer read, and, after two seconds of lag,
    /// QoS 0 to it is dropped; for a client that has kept up it is a third of it, see [`outpost_flow::overload`].
    pub out_bytes_max: usize,
    /// Milliseconds from accepting a connection to its CONNECT.
    pub connect_timeout_ms: u64,
    /// Retained messages.
    pub retained_max: usize,
    /// Client ids of all nodes whose session is known to be at one of them.
    pub directory_max: usize,
    /// Topics with a channel at once; the longest unused goes first.
    pub channels_max: usize,
    /// Messages one peer may be owed while its link is down.
    pub outbox_messages_max: u64,
    /// Bytes of them.
    pub outbox_bytes_max: u64,
    /// Milliseconds between two updates of the `$SYS` tree; 0: there is none.
    pub sys_interval_ms: u64,
    /// Bytes of memory everything together may take; 0 is no limit. See [`outpost_flow::budget`].
    pub memory_bytes_max: u64,
    /// How fast each listener takes new connections; the driver keeps to it.
    pub admission: AdmissionLimits,
    /// What is done with QoS 0 for slow clients, by topic; the first filter that matches decides.
    pub overload: Vec<(TopicFilter, Overload)>,
    /// A payload that is said to be UTF-8 (MQTT 5, §3.3.2.3.2) is looked at, and refused with 0x99 when it is not.
    pub payload_format_check: bool,
    /// What a client that asks for it is told to begin its response topics with (MQTT 5, §3.2.2.3.15), when its rules let
    /// it read there; `%c` stands for its client id, `%u` for its user name.
    pub response_information: Option<String>,
    /// Clients are sent there from the start.
    pub redirect: Option<Redirect>,
    /// How fast each client may publish.
    pub pace: PaceLimits,
    /// Restart policy of cells.
    pub restart: RestartPolicy,
}

impl ShardConfig {
    /// Defaults for a node.
    pub fn new(node: NodeId, store_id: u64) -> Self {
        Self {
            node,
            store_id,
            durable: true,
            session: SessionLimits::default(),
            connections_max: 16_000,
            sessions_max: 100_000,
            subscriptions_max: 1_000,
            queue_messages_max: 100_000,
            queue_bytes_max: 64 * 1024 * 1024,
            node_queue_messages_max: 10_000_000,
            node_queue_bytes_max: 1 << 30,
            out_bytes_max: 4 * 1024 * 1024,
            connect_timeout_ms: 5_000,
            retained_max: 100_000,
            directory_max: 100_000,
            channels_max: 65_536,
            outbox_messages_max: 1_000_000,
            outbox_bytes_max: 256 << 20,
            sys_interval_ms: 0,
            memory_bytes_max: 0,
            admission: AdmissionLimits::default(),
            overload: Vec::new(),
            payload_format_check: false,
            response_information: None,
            redirect: None,
            pace: PaceLimits::default(),
            restart: RestartPolicy::default(),
        }
    }
}
