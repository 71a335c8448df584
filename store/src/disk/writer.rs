//! The one thread that writes: a bounded backlog, group commit, and the fail-stop.

use std::{
    collections::{HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
};

use fjall::PersistMode;
use parking_lot::{Condvar, Mutex};

use super::{CLOSE_PATIENCE, Engine, Options};
use crate::{Batch, Listener, Lsn, Op, StoreEvent, SubmitError, batch_bytes, check_keys};

/// What submitters and the writer thread share.
pub(super) struct Writer {
    backlog: Mutex<Backlog>,
    /// Something waits, or the store is closing.
    wake: Condvar,
    /// A group was published, or the thread has left.
    progress: Condvar,
    synced: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
    options: Options,
}

#[derive(Default)]
struct Backlog {
    waiting: VecDeque<(Batch, usize)>,
    /// Of `waiting` and of the group that is being synced.
    bytes: usize,
    /// The last number given out.
    last: u64,
    /// The last number the listeners have heard of.
    told: u64,
    closing: bool,
    done: bool,
    failed: Option<String>,
}

/// Batches that share a sync.
struct Group {
    batches: Vec<Batch>,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(options: Options) -> Self {
        Self {
            backlog: Mutex::default(),
            wake: Condvar::new(),
            progress: Condvar::new(),
            synced: AtomicU64::new(0),
            listeners: Mutex::default(),
            options,
        }
    }

    pub(super) fn submit(&self, batch: Batch) -> Result<Lsn, SubmitError> {
        check_keys(&batch)?;
        let bytes = batch_bytes(&batch);
        let mut backlog = self.backlog.lock();
        if let Some(why) = &backlog.failed {
            return Err(SubmitError::Failed(why.clone()));
        }
        if backlog.bytes > 0 && backlog.bytes + bytes > self.options.backlog_bytes_max {
            return Err(SubmitError::Busy { waiting_bytes: backlog.bytes });
        }
        backlog.bytes += bytes;
        backlog.last += 1;
        backlog.waiting.push_back((batch, bytes));
        let lsn = Lsn(backlog.last);
        drop(backlog);
        self.wake.notify_one();
        Ok(lsn)
    }

    pub(super) fn synced(&self) -> Lsn {
        Lsn(self.synced.load(Ordering::Acquire))
    }

    pub(super) fn listen(&self, listener: Listener) {
        self.listeners.lock().push(listener);
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.backlog.lock().bytes
    }

    pub(super) fn wait_until_told(&self) -> Result<Lsn, SubmitError> {
        let mut backlog = self.backlog.lock();
        let last = backlog.last;
        while backlog.told < last {
            if let Some(why) = backlog.failed.as_ref().filter(|_| backlog.done) {
                return Err(SubmitError::Failed(why.clone()));
            }
            self.progress.wait(&mut backlog);
        }
        Ok(Lsn(last))
    }

    pub(super) fn close(&self) {
        self.backlog.lock().closing = true;
        self.wake.notify_one();
    }

    /// Waits for the thread to leave; false when the engine is poisoned and holds it for longer than it may.
    pub(super) fn wait_until_done(&self, engine: &Engine) -> bool {
        let mut backlog = self.backlog.lock();
        while !backlog.done {
            let timeout = self.progress.wait_for(&mut backlog, CLOSE_PATIENCE).timed_out();
            if timeout && !backlog.done && engine.database.persist(PersistMode::Buffer).is_err() {
                return false;
            }
        }
        true
    }

    /// The thread: until closed and drained, or failed.
    pub(super) fn run(&self, engine: &Engine) {
        while let Some(group) = self.next_group() {
            // The engine asserts on its own locks; a panic in here must not look like a slow disk.
            let outcome = catch_unwind(AssertUnwindSafe(|| commit(engine, &group.batches)));
            match outcome {
                Ok(Ok(())) => self.publish(&group),
                Ok(Err(cause)) => {
                    return self.fail(&format!("cannot write a batch and sync it: {cause}"));
                }
                Err(_) => {
                    return self.fail("cannot write a batch and sync it: the engine panicked");
                }
            }
        }
        self.leave(None);
    }

    fn next_group(&self) -> Option<Group> {
        let mut backlog = self.backlog.lock();
        while backlog.waiting.is_empty() {
            if backlog.closing {
                return None;
            }
            self.wake.wait(&mut backlog);
        }
        if !self.options.gather.is_zero() && !backlog.closing {
            let until = std::time::Instant::now() + self.options.gather;
            while !backlog.closing && !self.wake.wait_until(&mut backlog, until).timed_out() {}
        }
        let mut group = Group { batches: Vec::new(), bytes: 0 };
        while let Some((_, bytes)) = backlog.waiting.front() {
            if !group.batches.is_empty() && group.bytes + bytes > self.options.group_bytes_max {
                break;
            }
            let (batch, bytes) = backlog.waiting.pop_front().expect("there is a front");
            group.bytes += bytes;
            group.batches.push(batch);
        }
        Some(group)
    }

    fn publish(&self, group: &Group) {
        self.backlog.lock().bytes -= group.bytes;
        let synced = self.synced.fetch_add(group.batches.len() as u64, Ordering::AcqRel)
            + group.batches.len() as u64;
        self.tell(&StoreEvent::Synced(Lsn(synced)));
        self.backlog.lock().told = synced;
        self.progress.notify_all();
    }

    fn fail(&self, why: &str) {
        tracing::error!(
            why,
            "the store stopped; nothing is acknowledged from it until it is reopened"
        );
        self.backlog.lock().failed = Some(why.into());
        self.tell(&StoreEvent::Failed(why.into()));
        self.leave(Some(why));
    }

    fn leave(&self, failed: Option<&str>) {
        let mut backlog = self.backlog.lock();
        backlog.done = true;
        backlog.failed.get_or_insert_with(|| failed.unwrap_or("the store was closed").into());
        backlog.waiting.clear();
        self.progress.notify_all();
    }

    fn tell(&self, event: &StoreEvent) {
        let listeners = self.listeners.lock().clone(); // a listener may add another
        for listener in listeners {
            if catch_unwind(AssertUnwindSafe(|| listener(event.clone()))).is_err() {
                tracing::error!(?event, "a listener of the store panicked");
            }
        }
    }
}

/// Writes a group as one engine batch and syncs it. On an error nothing of it is readable.
fn commit(engine: &Engine, batches: &[Batch]) -> fjall::Result<()> {
    let mut batch = engine.database.batch().durability(Some(PersistMode::SyncData));
    // All rows of an engine batch carry one sequence number, so a key may occur only once in it: the last change wins.
    let mut seen = HashSet::new();
    for op in batches.iter().rev().flat_map(|batch| batch.iter().rev()) {
        let (Op::Put(space, key, _) | Op::Delete(space, key)) = op;
        if !seen.insert((*space, key.as_ref())) {
            continue;
        }
        match op {
            Op::Put(_, _, value) => {
                batch.insert(engine.space(*space), key.as_ref(), value.as_ref());
            }
            Op::Delete(..) => batch.remove(engine.space(*space), key.as_ref()),
        }
    }
    batch.commit()
}
