//! What must outlive a crash: one trait, one suite every store passes, and the two stores.
//!
//! ```text
//!  shard, shadow hub, link ──submit(batch)──▶ Store ──(group commit, fdatasync)──▶ disk
//!            ▲                                  │
//!            └────── listener(Synced(lsn)) ◀────┘   acks leave only now
//! ```
//! Submitting never waits for the disk. Whoever owes an acknowledgement keeps it until [`Store::synced`] has reached
//! the number its batch was given. When the disk fails or is full the store *stalls*: it acknowledges nothing, keeps what
//! it has taken in memory, puts its engine in order, writes all of it again, and goes on. See [`disk`].

pub mod disk;
pub mod memory;
#[cfg(any(test, feature = "suite"))]
pub mod suite;

use std::sync::Arc;

use bytes::Bytes;

pub use disk::{DiskStore, OpenError, OpenReport, Options, RESERVE_BYTES_DEFAULT};
pub use memory::{FaultPlan, MemoryStore};

/// The version of what a store writes. It goes up when an older node could not read it any more.
pub const FORMAT: u64 = 1;

/// In [`Space::Meta`]: [`FORMAT`] of the store, 8 bytes big endian. Keys that begin with `store/` belong to the store.
pub const FORMAT_KEY: &[u8] = b"store/format";

/// In [`Space::Meta`]: the store's id, 8 bytes big endian, drawn when it was made. A peer's cursor is only worth
/// something for the store it was made with: a node whose disk was lost has another one.
pub const STORE_ID_KEY: &[u8] = b"store/id";

/// Bytes accepted and not yet synced, above which a batch is refused as busy. Less and a burst is refused that the
/// disk would have swallowed in one sync; more and the batches that wait may eat an edge node's memory.
pub const BACKLOG_BYTES_DEFAULT: usize = 16 * 1024 * 1024;

/// The longest key, the engine's limit (16 bits of length). Owners of a space shorten (hash) what may be longer.
pub const KEY_BYTES_MAX: usize = 65_535;

/// What one change costs beside its key and value, in backlog bytes: a batch of empty deletes is not free.
const OP_BYTES: usize = 64;

/// Rows a visit asks for at once where there is no better way. Fewer: more looks; more: memory for all of them.
const VISIT_ROWS: usize = 1_024;

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
    /// The disk does not take what is written, or is nearly full. What has been submitted is kept and written when it
    /// does again; what can be refused should be. May come again with another cause.
    Stalled(Stall),
    /// The stall is over: all that had been submitted before it is durable.
    Resumed,
    /// The store stopped for good; nothing submitted after the last `Synced` may be acknowledged.
    Failed(String),
}

/// Why a store writes nothing, or should not be given more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// For want of room, not for a fault of the disk.
    pub full: bool,
    /// In words: what was tried, and what happens now.
    pub cause: String,
}

/// Receives [`StoreEvent`]s.
pub type Listener = Arc<dyn Fn(StoreEvent) + Send + Sync>;

/// Why a batch was not taken. Nothing of it was or will be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The backlog is full: the disk is slower than the writers. Try again after the next `Synced`.
    #[error(
        "the store's backlog is full ({waiting_bytes} bytes wait for the disk); nothing was written"
    )]
    Busy {
        /// Bytes accepted and not yet synced.
        waiting_bytes: usize,
    },
    /// A key is empty or longer than [`KEY_BYTES_MAX`].
    #[error("a key of {bytes} bytes cannot be stored (1 to {KEY_BYTES_MAX}); nothing was written")]
    Key {
        /// Its length.
        bytes: usize,
    },
    /// The store has fail-stopped.
    #[error(
        "the store stopped after an error: {0}; nothing is written any more until it is reopened"
    )]
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
    fn scan(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError>;

    /// Shows `each` every row whose key begins with `prefix`, in key order, and none twice: all as they were at one moment
    /// if the store can. `each` must not ask the store for anything. One walk costs a fraction of as many pages.
    ///
    /// # Errors
    /// [`ReadError`] when the engine cannot read; some rows may have been shown by then.
    fn visit(
        &self,
        space: Space,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), ReadError> {
        let mut from = Vec::new();
        loop {
            let rows = self.scan(space, prefix, &from, VISIT_ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last, &[0][..]].concat();
            rows.iter().for_each(|(key, value)| each(key, value));
        }
    }

    /// The keys of such rows, without their values: what is only counted or cleared away need not be copied.
    ///
    /// # Errors
    /// [`ReadError`] when the engine cannot read.
    fn scan_keys(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Bytes>, ReadError>;
}

/// What a batch counts in the backlog.
fn batch_bytes(batch: &Batch) -> usize {
    let op = |op: &Op| match op {
        Op::Put(_, key, value) => OP_BYTES + key.len() + value.len(),
        Op::Delete(_, key) => OP_BYTES + key.len(),
    };
    batch.iter().map(op).sum()
}

/// Refuses what the engine would panic on.
fn check_keys(batch: &Batch) -> Result<(), SubmitError> {
    for op in batch {
        let (Op::Put(_, key, _) | Op::Delete(_, key)) = op;
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(SubmitError::Key { bytes: key.len() });
        }
    }
    Ok(())
}
