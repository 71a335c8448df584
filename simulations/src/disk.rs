//! A node's disk: the memory store, and a simulator that decides when it syncs and what a crash leaves of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use outpost_store::memory::Rows;
use outpost_store::{
    Batch, FaultPlan, Listener, Lsn, MemoryStore, Op, ReadError, Row, Space, Store, SubmitError,
};

use crate::Mutant;

/// The backlog of a healthy disk, bytes.
const BACKLOG_HEALTHY: usize = 1 << 20;
/// The backlog of a disk that is often busy.
const BACKLOG_TIGHT: usize = 600;

/// A store as the cores see it; remembers the last number it gave out.
pub struct Disk {
    store: MemoryStore,
    last: AtomicU64,
}

impl Disk {
    /// An empty disk.
    pub fn new(store_id: u64) -> Arc<Self> {
        Self::of(MemoryStore::new(store_id))
    }

    fn of(store: MemoryStore) -> Arc<Self> {
        let disk = Self { store, last: AtomicU64::new(0) };
        disk.be_tight(false);
        Arc::new(disk)
    }

    /// Names the store; peers keep their cursors by it.
    pub fn store_id(&self) -> u64 {
        self.store.store_id()
    }

    /// The number of the last batch taken.
    pub fn last(&self) -> Lsn {
        Lsn(self.last.load(Ordering::Relaxed))
    }

    /// Batches that wait for a sync.
    pub fn waiting(&self) -> usize {
        self.store.waiting()
    }

    /// Makes batches up to `lsn` durable. What is durable now.
    pub fn sync_to(&self, lsn: Lsn) -> Lsn {
        self.store.sync_to(lsn)
    }

    /// A tight disk refuses as busy what a healthy one takes.
    pub fn be_tight(&self, tight: bool) {
        let backlog_bytes_max = if tight { BACKLOG_TIGHT } else { BACKLOG_HEALTHY };
        self.store.set_faults(FaultPlan { backlog_bytes_max, ..FaultPlan::default() });
    }

    /// The durable rows.
    pub fn rows(&self) -> Rows {
        self.store.snapshot()
    }

    /// What the next process finds after a power cut. With a seed some of what was not synced is there, too.
    pub fn crash(&self, torn: Option<u64>, mutant: Option<Mutant>) -> Arc<Self> {
        let next = match torn {
            Some(seed) => self.store.crash_torn(seed),
            None => self.store.crash(),
        };
        let lost: Vec<Op> = next
            .snapshot()
            .into_keys()
            .filter(|(space, key)| mutant.is_some_and(|mutant| forgets(mutant, *space, key)))
            .map(|(space, key)| Op::Delete(space, key))
            .collect();
        let next = Self::of(next);
        if !lost.is_empty() && next.submit(lost).is_ok() {
            next.sync_to(next.last());
        }
        next
    }
}

/// What the disk of a planted bug does not keep.
fn forgets(mutant: Mutant, space: Space, key: &Bytes) -> bool {
    match mutant {
        Mutant::DiskKeepsNothing => space != Space::Meta,
        Mutant::CursorsLost => space == Space::Peers && key.get(8) == Some(&0),
        Mutant::OutboxLost => space == Space::Outbox,
        Mutant::SubscriptionsLost => space == Space::Subscriptions,
        Mutant::ReceivedIdsLost => space == Space::Queues && key.get(8) == Some(&1),
        _ => false,
    }
}

impl Store for Disk {
    fn submit(&self, batch: Batch) -> Result<Lsn, SubmitError> {
        let lsn = self.store.submit(batch)?;
        self.last.store(lsn.0, Ordering::Relaxed);
        Ok(lsn)
    }

    fn synced(&self) -> Lsn {
        self.store.synced()
    }

    fn listen(&self, listener: Listener) {
        self.store.listen(listener);
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.store.get(space, key)
    }

    fn scan(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        self.store.scan(space, prefix, from, limit)
    }

    fn scan_keys(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        self.store.scan_keys(space, prefix, from, limit)
    }
}
