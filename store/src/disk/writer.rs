//! The one thread that writes: a bounded backlog, group commit, and the stall when the disk does not take it.

use std::{
    collections::{HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use fjall::{AbstractTree, PersistMode};
use parking_lot::{Condvar, Mutex};

use super::repair::{Repair, SPACE_POLL};
use super::{CLOSE_PATIENCE, Engine, Options, Slot};
use crate::{Batch, Listener, Lsn, Op, Stall, StoreEvent, SubmitError, batch_bytes, check_keys};

/// Memtables of one space that wait for their flush, above which the next commit waits too. The engine itself waits at
/// four, blind to its own poison; a commit adds at most two.
const SEALED_MEMTABLES_MAX: usize = 1;

/// Runs of the first level above which the next commit waits; the engine waits at thirty.
const FIRST_LEVEL_RUNS_MAX: usize = 19;

/// Between two looks at lagging flushes.
const FLUSH_POLL: Duration = Duration::from_millis(2);

/// What submitters and the writer thread share.
pub(super) struct Writer {
    backlog: Mutex<Backlog>,
    /// Something waits, or the store is closing.
    wake: Condvar,
    /// A group was published, or the thread has left.
    progress: Condvar,
    synced: AtomicU64,
    listeners: Mutex<Vec<Listener>>,
    pub(super) options: Options,
    pub(super) path: PathBuf,
    /// The engine's number of the next batch: all below are synced.
    pub(super) next_number: AtomicU64,
    stalls: AtomicU64,
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
    stalled: Option<Stall>,
    failed: Option<String>,
}

/// What the thread does next.
enum Next {
    Group(Group),
    Look,
    Closed,
}

/// Batches that share a sync.
struct Group {
    batches: Vec<Batch>,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(path: PathBuf, options: Options, engine: &Engine) -> Self {
        Self {
            path,
            next_number: AtomicU64::new(engine.database.seqno()),
            stalls: AtomicU64::new(0),
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

    pub(super) fn stalled(&self) -> Option<Stall> {
        self.backlog.lock().stalled.clone()
    }

    pub(super) fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    pub(super) fn wait_until_told(&self, through_stalls: bool) -> Result<Lsn, SubmitError> {
        let mut backlog = self.backlog.lock();
        let last = backlog.last;
        while backlog.told < last {
            if let Some(why) = backlog.failed.as_ref().filter(|_| backlog.done) {
                return Err(SubmitError::Failed(why.clone()));
            }
            if let Some(stall) = backlog.stalled.as_ref().filter(|_| !through_stalls) {
                return Err(SubmitError::Failed(stall.cause.clone()));
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
    pub(super) fn wait_until_done(&self, slot: &Slot) -> bool {
        let mut backlog = self.backlog.lock();
        while !backlog.done {
            let timeout = self.progress.wait_for(&mut backlog, CLOSE_PATIENCE).timed_out();
            if timeout && !backlog.done && has_failed(slot) {
                return false;
            }
        }
        true
    }

    /// The thread: until closed and drained, or failed.
    pub(super) fn run(&self, slot: &Slot) {
        let mut repair = Repair::new(self, slot);
        repair.look_at_space();
        loop {
            let group = match self.next_group() {
                Next::Group(group) => group,
                Next::Look => {
                    if !has_failed(slot) {
                        repair.look_at_space();
                    } else if let Err(why) = repair.after(&fjall::Error::Poisoned) {
                        return self.fail(&why);
                    } else {
                        repair.written();
                    }
                    continue;
                }
                Next::Closed => break,
            };
            while let Err(cause) = self.commit(slot, &group.batches) {
                if let Err(why) = repair.after(&cause) {
                    return self.fail(&why);
                }
            }
            self.publish(&group);
            repair.written();
        }
        self.leave(None);
    }

    /// Waits for `time`, or until the store closes; true when it does.
    pub(super) fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        let mut backlog = self.backlog.lock();
        while !backlog.closing && !self.wake.wait_until(&mut backlog, until).timed_out() {}
        backlog.closing
    }

    /// Says that nothing is written, or should be.
    pub(super) fn stall(&self, stall: Stall) {
        tracing::error!(full = stall.full, cause = stall.cause, "the store stalls");
        let is_new = {
            let mut backlog = self.backlog.lock();
            let is_new = backlog.stalled.is_none();
            backlog.stalled = Some(stall.clone());
            is_new
        };
        self.stalls.fetch_add(u64::from(is_new), Ordering::Relaxed);
        self.progress.notify_all();
        self.tell(&StoreEvent::Stalled(stall));
    }

    /// Says that all is well again.
    pub(super) fn resume(&self) {
        tracing::warn!("the store writes again; nothing that was acknowledged is missing");
        self.backlog.lock().stalled = None;
        self.tell(&StoreEvent::Resumed);
    }

    fn commit(&self, slot: &Slot, batches: &[Batch]) -> Result<(), fjall::Error> {
        let engine = slot.read();
        let Some(engine) = engine.as_ref() else { return Err(fjall::Error::Poisoned) };
        // The engine asserts on its own locks; a panic in here must not look like a slow disk.
        catch_unwind(AssertUnwindSafe(|| commit(engine, batches)))
            .unwrap_or(Err(fjall::Error::Poisoned))?;
        self.next_number.store(engine.database.seqno(), Ordering::Release);
        Ok(())
    }

    fn next_group(&self) -> Next {
        let mut backlog = self.backlog.lock();
        while backlog.waiting.is_empty() {
            if backlog.closing {
                return Next::Closed;
            }
            if self.options.reserve_bytes == 0 {
                self.wake.wait(&mut backlog);
            } else if self.wake.wait_for(&mut backlog, SPACE_POLL).timed_out() {
                return Next::Look;
            }
        }
        if !self.options.gather.is_zero() && !backlog.closing {
            let until = Instant::now() + self.options.gather;
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
        Next::Group(group)
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

/// Whether a thread of the engine failed. A reader or the repair that holds the engine is no failure.
fn has_failed(slot: &Slot) -> bool {
    let engine = slot.try_read();
    let engine = engine.as_ref().and_then(|engine| engine.as_ref());
    engine.is_some_and(|engine| engine.database.persist(PersistMode::Buffer).is_err())
}

/// Writes a group as one engine batch and syncs it. On an error nothing of it is readable.
fn commit(engine: &Engine, batches: &[Batch]) -> fjall::Result<()> {
    wait_for_flushes(engine)?;
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

/// Waits while the engine's flushes or compactions lag, as long as it is sound.
#[expect(clippy::disallowed_methods, reason = "the engine tells nobody when a flush is done")]
fn wait_for_flushes(engine: &Engine) -> fjall::Result<()> {
    let lags = |space: &fjall::Keyspace| {
        space.tree.sealed_memtable_count() > SEALED_MEMTABLES_MAX
            || space.tree.l0_run_count() > FIRST_LEVEL_RUNS_MAX
    };
    while engine.spaces.0.iter().any(lags) {
        engine.database.persist(PersistMode::Buffer)?;
        std::thread::sleep(FLUSH_POLL);
    }
    Ok(())
}
