//! What must outlive a crash: one trait, one suite every store passes, and the two stores.
//!
//! ```text
//!  shard, shadow hub, link ──submit(batch)──▶ Store ──(group commit, fdatasync)──▶ disk
//!            ▲                                  │
//!            └────── listener(Synced(lsn)) ◀────┘   acks leave only now
//! ```
//! Submitting never waits for the disk. Whoever owes an acknowledgement keeps it until [`Store::synced`] has reached
//! the number its batch was given. After a failed sync nothing more is acknowledged from that store: it fail-stops.

use std::sync::Arc;

use bytes::Bytes;

/// The key spaces. Each has an owner, the only one who writes there; keys sort as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Space {
    /// Node-wide facts: format version, incarnation, clock floor, message number blocks.
    Meta = 0,
    /// Persistent MQTT sessions: client id → session record.
    Sessions = 1,
    /// Their subscriptions: client id, filter → options.
    Subscriptions = 2,
    /// Message bodies, stored once: message id → message record.
    Messages = 3,
    /// Queued deliveries: session number, place → message id and options.
    Queues = 4,
    /// Retained messages: topic → message record and stamp.
    Retained = 5,
    /// Shadows: thing, name → shadow record.
    Shadows = 6,
    /// What is on its way to a peer: peer, place → message id.
    Outbox = 7,
    /// What is known of peers: their interest, their cursors.
    Peers = 8,
}

impl Space {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Meta,
        Self::Sessions,
        Self::Subscriptions,
        Self::Messages,
        Self::Queues,
        Self::Retained,
        Self::Shadows,
        Self::Outbox,
        Self::Peers,
    ];

    /// Its name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Sessions => "sessions",
            Self::Subscriptions => "subscriptions",
            Self::Messages => "messages",
            Self::Queues => "queues",
            Self::Retained => "retained",
            Self::Shadows => "shadows",
            Self::Outbox => "outbox",
            Self::Peers => "peers",
        }
    }
}

/// One change to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the value of a key.
    Put(Space, Bytes, Bytes),
    /// Takes a key away, if it is there.
    Delete(Space, Bytes),
}

/// Changes that become durable together or not at all.
pub type Batch = Vec<Op>;

/// The number of a batch. Batches become durable in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

/// What a store tells its listener. Called on the store's own thread: hand it on, do not work there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreEvent {
    /// Every batch up to this number is durable.
    Synced(Lsn),
    /// The store stopped for good; nothing submitted after the last `Synced` may be acknowledged.
    Failed(String),
}

/// Receives [`StoreEvent`]s.
pub type Listener = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// Why a batch was not taken. Nothing of it was or will be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The backlog is full: the disk is slower than the writers. Try again after the next `Synced`.
    #[error("the store's backlog is full ({waiting_bytes} bytes wait for the disk); nothing was written")]
    Busy {
        /// Bytes accepted and not yet synced.
        waiting_bytes: usize,
    },
    /// The store has fail-stopped.
    #[error("the store stopped after an error: {0}; nothing is written any more until it is reopened")]
    Failed(String),
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {space} from the store: {cause}")]
pub struct ReadError {
    /// The key space that was read.
    pub space: &'static str,
    /// What the engine said.
    pub cause: String,
}

/// A key and its value.
pub type Row = (Bytes, Bytes);

/// Keyed, ordered, durable storage with group commit.
pub trait Store: Send + Sync + 'static {
    /// Takes a batch in and returns at once; it is durable when [`Store::synced`] reaches the number returned.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing of the batch is written then.
    fn submit(&self, batch: Batch) -> Result<Lsn, SubmitError>;

    /// Every batch up to this number is durable.
    fn synced(&self) -> Lsn;

    /// Adds a listener. It hears of every `Synced` from now on (numbers may be skipped, never repeated).
    fn listen(&self, listener: Listener);

    /// The durable value of a key. Batches above [`Store::synced`] may or may not be visible.
    ///
    /// # Errors
    /// [`ReadError`] when the engine cannot read.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// Up to `limit` rows whose key begins with `prefix` and is not below `from`, in key order.
    ///
    /// # Errors
    /// [`ReadError`] when the engine cannot read.
    fn scan(&self, space: Space, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Row>, ReadError>;
}
