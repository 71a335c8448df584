//! A store in memory, for tests and the simulator: nothing is durable until the test says so.
//!
//! ```text
//!  submit ──▶ waiting batches ──sync_to(lsn)──▶ rows          listeners are called inside sync_to
//!                    │                            │
//!             crash: forgotten (or torn)    crash: kept ──▶ a new MemoryStore, as if reopened
//! ```
//! It has no threads and no clock, and does the same for the same calls. Reads see synced rows only, the strictest
//! of what [`Store`] allows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    BACKLOG_BYTES_DEFAULT, Batch, FORMAT, FORMAT_KEY, Listener, Lsn, Op, ReadError, Row,
    STORE_ID_KEY, Space, Store, StoreEvent, SubmitError, batch_bytes, check_keys,
};

/// What goes wrong in a [`MemoryStore`], and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlan {
    /// Bytes accepted and not yet synced, above which a submit is refused as busy. Too small and every second batch
    /// is refused; too large and a test never meets [`SubmitError::Busy`].
    pub backlog_bytes_max: usize,
    /// These submits (the first is 1) are refused as busy, whatever the backlog.
    pub busy_submits: BTreeSet<u64>,
    /// This sync (the first that has something to do is 1) fails, and the store fail-stops.
    pub fail_at_sync: Option<u64>,
    /// Rows of these spaces cannot be read.
    pub unreadable: BTreeSet<Space>,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self {
            backlog_bytes_max: BACKLOG_BYTES_DEFAULT,
            busy_submits: BTreeSet::new(),
            fail_at_sync: None,
            unreadable: BTreeSet::new(),
        }
    }
}

/// Every row of a store, by space and key.
pub type Rows = BTreeMap<(Space, Bytes), Bytes>;

/// A [`Store`] whose syncs and crashes are called by hand.
pub struct MemoryStore {
    state: Mutex<State>,
    store_id: u64,
}

struct State {
    rows: Rows,
    waiting: VecDeque<(Lsn, Batch)>,
    waiting_bytes: usize,
    last: Lsn,
    synced: Lsn,
    submits: u64,
    syncs: u64,
    failed: Option<String>,
    faults: FaultPlan,
    listeners: Vec<Listener>,
}

impl MemoryStore {
    /// An empty store. Two stores that follow each other on one node (a lost disk) need different ids.
    pub fn new(store_id: u64) -> Self {
        Self::with_faults(store_id, FaultPlan::default())
    }

    /// An empty store with bad luck planned.
    pub fn with_faults(store_id: u64, faults: FaultPlan) -> Self {
        let first = |key: &'static [u8], value: u64| {
            ((Space::Meta, Bytes::from_static(key)), Bytes::copy_from_slice(&value.to_be_bytes()))
        };
        let rows = Rows::from([first(FORMAT_KEY, FORMAT), first(STORE_ID_KEY, store_id)]);
        Self::open(rows, store_id, faults)
    }

    /// Drawn when the store was made; it stays the same through crashes.
    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    /// Replaces the faults that are still to come. Counts of submits and syncs go on.
    pub fn set_faults(&self, faults: FaultPlan) {
        self.state.lock().faults = faults;
    }

    /// Makes every batch taken so far durable and tells the listeners. Returns what [`Store::synced`] now says.
    pub fn sync_all(&self) -> Lsn {
        let last = self.state.lock().last;
        self.sync_to(last)
    }

    /// Makes batches up to `lsn` durable and tells the listeners. Returns what [`Store::synced`] now says.
    ///
    /// Listeners run on the caller's thread, one event at a time; they may submit to the store.
    pub fn sync_to(&self, lsn: Lsn) -> Lsn {
        let (event, listeners, synced) = {
            let mut state = self.state.lock();
            let event = state.sync_to(lsn);
            (event, state.listeners.clone(), state.synced)
        };
        if let Some(event) = event {
            for listener in &listeners {
                listener(event.clone());
            }
        }
        synced
    }

    /// Batches accepted and not yet synced.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }

    /// The power is cut: what was not synced is gone. Returns the store as the next process opens it, numbers
    /// beginning at 1 again, no faults planned. Whoever still holds this one is told that it failed.
    pub fn crash(&self) -> Self {
        self.crash_keeping(0)
    }

    /// As [`Self::crash`], but the log was written further than it was synced: a prefix of the waiting batches,
    /// each whole, its length drawn from `seed`, is there afterwards.
    pub fn crash_torn(&self, seed: u64) -> Self {
        let choices = self.waiting() as u64 + 1;
        self.crash_keeping((split_mix(seed) % choices) as usize)
    }

    /// The durable rows.
    pub fn snapshot(&self) -> Rows {
        self.state.lock().rows.clone()
    }

    fn crash_keeping(&self, batches: usize) -> Self {
        let mut state = self.state.lock();
        let mut rows = std::mem::take(&mut state.rows);
        for (_, batch) in std::mem::take(&mut state.waiting).into_iter().take(batches) {
            apply(&mut rows, batch);
        }
        state.failed = Some("the process that held it crashed".into());
        Self::open(rows, self.store_id, FaultPlan::default())
    }

    fn open(rows: Rows, store_id: u64, faults: FaultPlan) -> Self {
        let state = State {
            rows,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            last: Lsn(0),
            synced: Lsn(0),
            submits: 0,
            syncs: 0,
            failed: None,
            faults,
            listeners: Vec::new(),
        };
        Self { state: Mutex::new(state), store_id }
    }
}

impl Store for MemoryStore {
    fn submit(&self, batch: Batch) -> Result<Lsn, SubmitError> {
        self.state.lock().submit(batch)
    }

    fn synced(&self) -> Lsn {
        self.state.lock().synced
    }

    fn listen(&self, listener: Listener) {
        self.state.lock().listeners.push(listener);
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let state = self.state.lock();
        state.check_readable(space)?;
        Ok(state.rows.get(&(space, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        let start = Bytes::copy_from_slice(prefix.max(from));
        let state = self.state.lock();
        state.check_readable(space)?;
        let rows = state.rows.range((space, start)..);
        let rows = rows.take_while(|((its, key), _)| *its == space && key.starts_with(prefix));
        Ok(rows.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn scan_keys(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        let rows = self.scan(space, prefix, from, limit)?; // its values are references
        Ok(rows.into_iter().map(|(key, _)| key).collect())
    }
}

impl State {
    fn check_readable(&self, space: Space) -> Result<(), ReadError> {
        if self.faults.unreadable.contains(&space) {
            return Err(ReadError { space: space.name(), cause: "as planned".into() });
        }
        Ok(())
    }

    fn submit(&mut self, batch: Batch) -> Result<Lsn, SubmitError> {
        if let Some(why) = &self.failed {
            return Err(SubmitError::Failed(why.clone()));
        }
        check_keys(&batch)?;
        self.submits += 1;
        let bytes = batch_bytes(&batch);
        let full =
            self.waiting_bytes > 0 && self.waiting_bytes + bytes > self.faults.backlog_bytes_max;
        if full || self.faults.busy_submits.contains(&self.submits) {
            return Err(SubmitError::Busy { waiting_bytes: self.waiting_bytes });
        }
        self.waiting_bytes += bytes;
        self.last = Lsn(self.last.0 + 1);
        self.waiting.push_back((self.last, batch));
        Ok(self.last)
    }

    fn sync_to(&mut self, lsn: Lsn) -> Option<StoreEvent> {
        let due = self.waiting.partition_point(|(number, _)| *number <= lsn);
        if due == 0 || self.failed.is_some() {
            return None;
        }
        self.syncs += 1;
        if self.faults.fail_at_sync == Some(self.syncs) {
            // The batches stay: a disk that reports an error may have written them all the same (see `crash_torn`).
            let why = format!("sync {} failed, as planned", self.syncs);
            self.failed = Some(why.clone());
            return Some(StoreEvent::Failed(why));
        }
        for (number, batch) in self.waiting.drain(..due) {
            self.synced = number;
            self.waiting_bytes -= batch_bytes(&batch);
            apply(&mut self.rows, batch);
        }
        Some(StoreEvent::Synced(self.synced))
    }
}

fn apply(rows: &mut Rows, batch: Batch) {
    for op in batch {
        match op {
            Op::Put(space, key, value) => rows.insert((space, key), value),
            Op::Delete(space, key) => rows.remove(&(space, key)),
        };
    }
}

/// One step of SplitMix64: spreads a seed over all 64 bits, so that neighbouring seeds draw unlike numbers.
fn split_mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::suite::{self, Bed};

    #[test]
    fn passes_the_suite() {
        suite::run(|| {
            let faults = FaultPlan { backlog_bytes_max: suite::BACKLOG, ..FaultPlan::default() };
            MemoryBed(Arc::new(MemoryStore::with_faults(1, faults)))
        });
    }

    struct MemoryBed(Arc<MemoryStore>);

    impl Bed for MemoryBed {
        fn store(&self) -> Arc<dyn Store> {
            self.0.clone()
        }

        fn sync(&mut self) {
            self.0.sync_all();
        }

        fn while_held(&mut self, body: &mut dyn FnMut(&dyn Store)) {
            body(&*self.0);
        }

        fn reopen(&mut self) {
            self.0.sync_all();
            let next = self.0.crash();
            next.set_faults(FaultPlan {
                backlog_bytes_max: suite::BACKLOG,
                ..FaultPlan::default()
            });
            self.0 = Arc::new(next);
        }
    }

    #[test]
    fn nothing_is_there_before_its_sync() {
        let store = MemoryStore::new(1);
        let one = store.submit(put("a", "1")).expect("taken");
        let two = store.submit(put("b", "2")).expect("taken");
        assert_eq!((one, two), (Lsn(1), Lsn(2)));
        assert_eq!(value(&store, "a"), None);
        assert_eq!(store.sync_to(one), one);
        assert_eq!((value(&store, "a"), value(&store, "b")), (Some("1".into()), None));
        assert_eq!(store.sync_all(), two);
        assert_eq!(value(&store, "b"), Some("2".into()));
    }

    #[test]
    fn a_crash_forgets_what_was_not_synced() {
        let store = MemoryStore::new(7);
        store.submit(put("a", "1")).expect("taken");
        store.sync_all();
        store.submit(put("a", "2")).expect("taken");
        let reopened = store.crash();
        assert_eq!(value(&reopened, "a"), Some("1".into()));
        assert_eq!(reopened.store_id(), 7);
        assert_eq!(reopened.submit(put("a", "3")), Ok(Lsn(1)), "numbers are per open");
        assert!(
            matches!(store.submit(put("a", "4")), Err(SubmitError::Failed(_))),
            "the dead process writes nothing"
        );
    }

    #[test]
    fn a_torn_log_keeps_a_prefix_of_whole_batches() {
        let mut lengths = BTreeSet::new();
        for seed in 0..64 {
            let store = MemoryStore::new(1);
            for n in 0..4 {
                let mut batch = put(&format!("left {n}"), "x");
                batch.extend(put(&format!("right {n}"), "x"));
                store.submit(batch).expect("taken");
            }
            let reopened = store.crash_torn(seed);
            let kept: Vec<_> =
                (0..4).map(|n| value(&reopened, &format!("left {n}")).is_some()).collect();
            let also: Vec<_> =
                (0..4).map(|n| value(&reopened, &format!("right {n}")).is_some()).collect();
            assert_eq!(kept, also, "seed {seed}: a batch is there whole or not at all");
            assert!(
                kept.is_sorted_by(|a, b| a >= b),
                "seed {seed}: no batch without the one before it"
            );
            lengths.insert(kept.iter().filter(|there| **there).count());
        }
        assert_eq!(lengths, BTreeSet::from([0, 1, 2, 3, 4]), "every length is drawn");
    }

    #[test]
    fn faults_come_as_planned() {
        let faults = FaultPlan {
            busy_submits: BTreeSet::from([2]),
            fail_at_sync: Some(2),
            ..FaultPlan::default()
        };
        let store = MemoryStore::with_faults(1, faults);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = heard.clone();
        store.listen(Arc::new(move |event| ear.lock().push(event)));
        assert_eq!(store.submit(put("a", "1")), Ok(Lsn(1)));
        assert!(matches!(store.submit(put("b", "2")), Err(SubmitError::Busy { .. })));
        store.sync_all();
        assert_eq!(store.submit(put("c", "3")), Ok(Lsn(2)));
        assert_eq!(store.sync_all(), Lsn(1));
        assert!(matches!(heard.lock()[..], [StoreEvent::Synced(Lsn(1)), StoreEvent::Failed(_)]));
        assert!(matches!(store.submit(put("d", "4")), Err(SubmitError::Failed(_))));
        assert_eq!(value(&store.crash(), "c"), None);
    }

    fn put(key: &str, value: &str) -> Batch {
        vec![Op::Put(
            Space::Retained,
            Bytes::copy_from_slice(key.as_bytes()),
            Bytes::copy_from_slice(value.as_bytes()),
        )]
    }

    fn value(store: &MemoryStore, key: &str) -> Option<String> {
        let value =
            store.get(Space::Retained, key.as_bytes()).expect("memory reads do not fail")?;
        Some(String::from_utf8(value.to_vec()).expect("tests write text"))
    }
}
