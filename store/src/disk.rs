//! The disk store: fjall behind [`Store`], one writer thread, group commit.
//!
//! ```text
//!  submit ─▶ backlog ─▶ writer thread: all that waits, as one fjall batch ─▶ journal + fdatasync ─▶ memtables
//!  (any thread, never waits)                  synced = lsn, listeners ◀──────────┘
//!  get, scan ─▶ fjall, on the reader's own thread
//! ```
//! An idle store syncs a batch at once; while a sync runs, what arrives gathers and shares the next one.
//!
//! # In the directory
//! `LOCK` (who has it open), `data/` (the engine's files), `data.damaged-<n>` (what was set aside, see [`OpenReport`]).
//!
//! # When the disk fails
//! What fjall 3.1 does, read from its source, and what this store makes of it:
//! - A write to its journal that fails (disk full, I/O error) poisons the engine and the batch fails; so does a failed
//!   fdatasync. Rows reach the memtables only after the fdatasync, so nothing unsynced is ever read. A poisoned engine
//!   still reads.
//! - A background flush or compaction that fails poisons the engine as well; this shows at the next batch, as
//!   `Poisoned`. The cause is in the log (target `fjall`).
//! - In each case this store *stalls*: one [`StoreEvent::Stalled`](crate::StoreEvent), nothing is acknowledged, what was
//!   submitted is kept. On a full disk it waits for room ([`SPACE_POLL`]). Then it closes the engine, cuts the journal
//!   back to the last batch that is known to be synced (the kernel may show pages it could not write, and the engine
//!   writes what was left in its buffer when it closes), opens it anew and writes the batch again, with growing pauses up to
//!   [`RETRY_PAUSE_MAX`]. What had been synced is never touched; only what was not is written twice.
//! - Below [`Options::reserve_bytes`] of free space the store stalls before anything has failed. It still writes: what
//!   is left is for the rows that make room (deletes, cursors) and for the engine's own tables.
//! - What cannot be put right (a format from the future, damage met while opening again) ends in
//!   [`StoreEvent::Failed`](crate::StoreEvent): the next start of the process sets damage aside.
//! - After a commit the engine holds its caller while flushes are far behind, in a loop that does not look for the
//!   poison. So this store looks first, and waits itself where it can see it: the engine's loop is never entered.
//! - Tables are checked block by block when they are read, not at the start. A damaged block fails the read of its
//!   rows; a compaction that meets one poisons the engine, and will again after each start, until the block is
//!   rewritten or someone moves `data/` away. This store does not do that by itself yet.

pub mod journal;
mod manifest;
mod open;
mod repair;
mod writer;

use std::{
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use fjall::{Database, Guard, Keyspace, Readable};
use parking_lot::RwLock;

pub use self::open::{Cut, OpenError, OpenReport, Quarantine};
pub use self::repair::{RETRY_PAUSE_MAX, SPACE_POLL};
use self::{manifest::Lists, writer::Writer};
use crate::{
    BACKLOG_BYTES_DEFAULT, Batch, Listener, Lsn, ReadError, Row, Space, Stall, Store, SubmitError,
};

/// Free bytes below which a store stalls before the disk is full: see [`Options::reserve_bytes`].
pub const RESERVE_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// How long closing waits for a writer whose engine is poisoned. A healthy one is waited for without limit, for its
/// backlog is bounded.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How a [`DiskStore`] is set up. The default suits a small edge node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes accepted and not yet synced, above which a submit is refused as busy: see [`BACKLOG_BYTES_DEFAULT`].
    /// One batch is always taken when nothing waits, whatever its size.
    pub backlog_bytes_max: usize,
    /// Bytes that share one sync at most (one batch may be larger). Less and a burst needs more syncs; more and its
    /// first batch waits longer for its acknowledgement, and memtables overshoot by as much.
    pub group_bytes_max: usize,
    /// Wait this long before each sync for company. Zero, the default, already gathers while a sync runs; more
    /// trades latency for fewer writes to a flash card.
    pub gather: Duration,
    /// Blocks of tables kept in memory. Less and reads of old rows go to the disk; more is resident memory.
    pub cache_bytes: u64,
    /// Rows of one space kept in memory until they go to a table; the engine may hold up to five times that for each
    /// space when its flushes lag. Less means many small tables to compact; more is resident memory. Fixed when the
    /// store is made.
    pub memtable_bytes: u64,
    /// Open table files kept. Less and reads open files again and again; more may exhaust the process's limit.
    pub files_max: usize,
    /// Threads that flush and compact. With one, a flush waits for a running compaction and writers may stall.
    pub workers: usize,
    /// Quarantined directories kept; the oldest goes when one more is set aside. Zero forgets the evidence at once;
    /// many fill the disk with what nobody reads.
    pub quarantines_max: usize,
    /// Free bytes of the file system below which new rows should be refused ([`StoreEvent::Stalled`](crate::StoreEvent)).
    /// Less and deliveries, whose ends are rows too, may stop with the disk full; more is room nobody uses. Zero looks at
    /// nothing until a write fails.
    pub reserve_bytes: u64,
    /// Where the store's id comes from when the store is made; `None` draws one. For tests.
    pub store_id_seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backlog_bytes_max: BACKLOG_BYTES_DEFAULT,
            group_bytes_max: 1024 * 1024,
            gather: Duration::ZERO,
            cache_bytes: 1024 * 1024,
            memtable_bytes: 1024 * 1024,
            files_max: 64,
            workers: 2,
            quarantines_max: 4,
            reserve_bytes: RESERVE_BYTES_DEFAULT,
            store_id_seed: None,
        }
    }
}

/// A [`Store`] on disk. Dropping it syncs what was submitted and lets go of the directory.
pub struct DiskStore {
    engine: Arc<Slot>,
    writer: Arc<Writer>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
    store_id: u64,
    report: OpenReport,
    /// The last to go: whoever opens the directory next must find it quiet.
    _lock: open::Lock,
}

/// Where the engine is: readers share it, the writer takes it out to open it anew. Empty while that does not succeed.
type Slot = RwLock<Option<Engine>>;

/// The open database and its key spaces, in the order of [`Space::ALL`].
struct Engine {
    // Goes first: its threads end with it.
    database: Database,
    spaces: Spaces,
}

/// The key spaces. When they go, each folder names the list of tables that was the engine's last.
struct Spaces(Vec<Keyspace>);

impl DiskStore {
    /// Opens the store in a directory, makes it if there is none, sets it aside if it is damaged. Blocks.
    ///
    /// # Errors
    /// [`OpenError`]; the directory's rows are as they were.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let opened = open::open(&path, &options)?;
        let writer = Arc::new(Writer::new(path.clone(), options, &opened.engine));
        let engine = Arc::new(Slot::new(Some(opened.engine)));
        let thread = {
            let (writer, engine) = (writer.clone(), Arc::clone(&engine));
            let builder = std::thread::Builder::new().name("store".into());
            let spawned = builder.spawn(move || writer.run(&engine));
            spawned.map_err(|source| OpenError::Thread { path: path.clone(), source })?
        };
        let (store_id, report) = (opened.store_id, opened.report);
        Ok(Self {
            engine,
            writer,
            thread: Some(thread),
            path,
            store_id,
            report,
            _lock: opened.lock,
        })
    }

    /// Drawn when the store was made, and anew whenever acknowledged rows may have been lost: what a peer remembers
    /// of another id says nothing about this store.
    pub fn store_id(&self) -> u64 {
        self.store_id
    }

    /// Waits until everything submitted so far is durable and the listeners have heard of it, through stalls too. For
    /// tools and tests; must not be called by a listener.
    ///
    /// # Errors
    /// [`SubmitError::Failed`] when the store fail-stops before that.
    pub fn sync_all(&self) -> Result<Lsn, SubmitError> {
        self.writer.wait_until_told(true)
    }

    /// The same, but does not wait for a disk that is full or fails.
    ///
    /// # Errors
    /// [`SubmitError::Failed`] when the store stalls or fail-stops before that.
    pub fn sync_unless_stalled(&self) -> Result<Lsn, SubmitError> {
        self.writer.wait_until_told(false)
    }

    /// Why the store should be given nothing new, when that is so. Who listens hears of later changes.
    pub fn stall(&self) -> Option<Stall> {
        self.writer.stalled()
    }

    /// Stalls since the store was opened.
    pub fn stalls(&self) -> u64 {
        self.writer.stalls()
    }

    /// Free bytes of its file system, for users without privileges; `None` when the system does not say.
    pub fn free_bytes(&self) -> Option<u64> {
        repair::free_bytes(&self.path)
    }

    /// What opening found.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes accepted and not yet synced.
    pub fn backlog_bytes(&self) -> usize {
        self.writer.waiting_bytes()
    }

    /// Bytes on disk, without what is quarantined. The journal counts with the 64 MiB that are reserved for it, most
    /// of them a hole in the file.
    ///
    /// # Errors
    /// [`ReadError`] when the engine cannot say.
    pub fn disk_bytes(&self) -> Result<u64, ReadError> {
        let fail = |cause: String| ReadError { space: "all", cause };
        let engine = self.engine.read();
        let engine = engine.as_ref().ok_or_else(|| fail(CLOSED.to_owned()))?;
        engine.database.disk_space().map_err(|cause| fail(cause.to_string()))
    }
}

impl DiskStore {
    /// Shows `take` up to `limit` rows that begin with `prefix`, from `from` on.
    fn walk(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
        mut take: impl FnMut(Guard) -> fjall::Result<()>,
    ) -> Result<(), ReadError> {
        let end = after_prefix(prefix);
        let start = prefix.max(from).to_vec();
        if end.as_ref().is_some_and(|end| start >= *end) {
            return Ok(());
        }
        let engine = self.engine.read();
        let engine = engine.as_ref().ok_or_else(|| closed(space))?;
        // A snapshot, because a bare range can meet a batch that is half applied.
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let bounds = (Bound::Included(start), end);
        let mut range = engine.database.snapshot().range(engine.space(space), bounds).take(limit);
        range.try_for_each(&mut take).map_err(|cause| read_error(space, &cause))
    }
}

impl Store for DiskStore {
    fn submit(&self, batch: Batch) -> Result<Lsn, SubmitError> {
        self.writer.submit(batch)
    }

    fn synced(&self) -> Lsn {
        self.writer.synced()
    }

    fn listen(&self, listener: Listener) {
        self.writer.listen(listener);
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        if key.is_empty() {
            return Ok(None); // the engine has no empty keys, and would panic on one
        }
        let engine = self.engine.read();
        let engine = engine.as_ref().ok_or_else(|| closed(space))?;
        let value = engine.space(space).get(key).map_err(|cause| read_error(space, &cause))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        let mut rows = Vec::new();
        self.walk(space, prefix, from, limit, |row| {
            let (key, value) = row.into_inner()?;
            rows.push((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)));
            Ok(())
        })?;
        Ok(rows)
    }

    fn visit(
        &self,
        space: Space,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), ReadError> {
        self.walk(space, prefix, &[], usize::MAX, |row| {
            let (key, value) = row.into_inner()?;
            each(&key, &value);
            Ok(())
        })
    }

    fn scan_keys(
        &self,
        space: Space,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<Bytes>, ReadError> {
        let mut keys = Vec::new();
        self.walk(space, prefix, from, limit, |row| {
            keys.push(Bytes::copy_from_slice(&row.key()?));
            Ok(())
        })?;
        Ok(keys)
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.writer.close();
        let Some(thread) = self.thread.take() else { return };
        if self.writer.wait_until_done(&self.engine) {
            if thread.join().is_err() {
                tracing::error!(path = %self.path.display(), "the store's writer thread panicked while closing");
            }
        } else {
            tracing::error!(path = %self.path.display(), "the store's engine failed and does not let go of its writer");
        }
    }
}

impl Engine {
    fn space(&self, space: Space) -> &Keyspace {
        &self.spaces.0[space as usize]
    }

    /// Ends its threads and lets go of its files. What it had is to be put back before it is opened again.
    fn close(self) -> Lists {
        let Self { database, spaces } = self;
        drop(database);
        Lists::of(&spaces.0)
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        if let Err(error) = Lists::of(&self.0).put_back() {
            tracing::error!(%error, "cannot name the engine's last lists of tables in its key spaces");
        }
    }
}

/// The first key after every key that begins with `prefix`; none after a prefix of only 0xFF.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// What a reader hears while the engine is being opened anew.
const CLOSED: &str = "it is being reopened after a fault of the disk; try again later";

fn closed(space: Space) -> ReadError {
    ReadError { space: space.name(), cause: CLOSED.to_owned() }
}

fn read_error(space: Space, cause: &fjall::Error) -> ReadError {
    ReadError { space: space.name(), cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use parking_lot::{Condvar, Mutex};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        Op, StoreEvent,
        suite::{self, Bed},
    };

    #[test]
    fn passes_the_suite() {
        suite::run(DiskBed::new);
    }

    #[test]
    fn the_directory_belongs_to_one() {
        let folder = TempDir::new().expect("a temporary directory");
        let store = DiskStore::open(folder.path(), Options::default()).expect("a fresh directory");
        let second = DiskStore::open(folder.path(), Options::default());
        let Err(OpenError::Locked { pid, .. }) = second else {
            panic!("two stores in one directory")
        };
        assert_eq!(pid, Some(std::process::id()));
        drop(store);
        DiskStore::open(folder.path(), Options::default()).expect("free again");
    }

    #[test]
    fn a_list_of_tables_the_engine_did_not_take_is_forgotten() {
        let folder = TempDir::new().expect("a temporary directory");
        let store = DiskStore::open(folder.path(), Options::default()).expect("a fresh directory");
        store.submit(vec![Op::Put(Space::Queues, "key".into(), "value".into())]).expect("taken");
        store.sync_all().expect("synced");
        // As left by a switch to a new list whose last sync failed, and a second try that got no further than the file.
        let space = {
            let engine = store.engine.read();
            engine.as_ref().expect("open").space(Space::Queues).path().to_owned()
        };
        let current = std::fs::read(space.join("current")).expect("it is there");
        let version = u64::from_le_bytes(current[..8].try_into().expect("eight")) + 1;
        let next = [&version.to_le_bytes()[..], &current[8..]].concat();
        std::fs::write(space.join("current"), next).expect("written");
        std::fs::write(space.join(format!("v{version}")), b"half a list").expect("written");
        drop(store);
        let again = DiskStore::open(folder.path(), Options::default()).expect("its own directory");
        assert!(!again.report().may_have_lost(), "{:?}", again.report());
        let found = again.get(Space::Queues, b"key").expect("readable");
        assert_eq!(found.as_deref(), Some(&b"value"[..]));
    }

    #[test]
    fn the_id_stays_and_is_told() {
        let folder = TempDir::new().expect("a temporary directory");
        let first = DiskStore::open(folder.path(), Options::default()).expect("a fresh directory");
        assert!(first.report().created && !first.report().may_have_lost());
        let id = first.store_id();
        drop(first);
        let again = DiskStore::open(folder.path(), Options::default()).expect("its own directory");
        assert_eq!(again.store_id(), id);
        assert_eq!(again.report(), &OpenReport::default());
        let row = again.get(Space::Meta, crate::STORE_ID_KEY).expect("readable");
        assert_eq!(row.as_deref(), Some(&id.to_be_bytes()[..]));
        let elsewhere = TempDir::new().expect("a temporary directory");
        let other =
            DiskStore::open(elsewhere.path(), Options::default()).expect("a fresh directory");
        assert_ne!(other.store_id(), id);
    }

    #[test]
    fn a_newer_format_is_refused_and_left_alone() {
        let folder = TempDir::new().expect("a temporary directory");
        let store = DiskStore::open(folder.path(), Options::default()).expect("a fresh directory");
        let newer = (crate::FORMAT + 1).to_be_bytes();
        let row = Op::Put(
            Space::Meta,
            Bytes::from_static(crate::FORMAT_KEY),
            Bytes::copy_from_slice(&newer),
        );
        store.submit(vec![row]).expect("taken");
        drop(store);
        for _ in 0..2 {
            let error = DiskStore::open(folder.path(), Options::default()).err().expect("refused");
            assert!(matches!(error, OpenError::Newer { .. }), "{error}");
            assert!(!folder.path().join("data.damaged-1").exists());
        }
    }

    #[test]
    fn a_wrong_permission_is_no_damage() {
        let folder = TempDir::new().expect("a temporary directory");
        drop(DiskStore::open(folder.path(), Options::default()).expect("a fresh directory"));
        // A directory where a file must be opened for writing: refused even to root.
        let lock = folder.path().join("LOCK");
        std::fs::remove_file(&lock).expect("the lock file is there");
        std::fs::create_dir(&lock).expect("a free name");
        let error = DiskStore::open(folder.path(), Options::default()).err().expect("refused");
        assert!(matches!(error, OpenError::Io { what: "lock", .. }), "{error}");
        assert!(
            folder.path().join("data").exists() && !folder.path().join("data.damaged-1").exists()
        );
    }

    #[test]
    fn what_a_failed_flush_held_up_is_written_by_a_new_engine() {
        let folder = TempDir::new().expect("a temporary directory");
        let store = DiskStore::open(folder.path(), Options::default()).expect("a fresh directory");
        let heard = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let ear = heard.clone();
        store.listen(Arc::new(move |event| {
            ear.0.lock().push(event);
            ear.1.notify_all();
        }));
        let wait_for = |wanted: &dyn Fn(&StoreEvent) -> bool| {
            let mut events = heard.0.lock();
            while !events.iter().any(wanted) {
                heard.1.wait(&mut events);
            }
        };
        store.submit(vec![put("before")]).expect("taken");
        wait_for(&|event| *event == StoreEvent::Synced(Lsn(1)));
        // A flush that cannot write its table: the engine refuses every write from here on.
        let (tables, away) = {
            let engine = store.engine.read();
            let engine = engine.as_ref().expect("open");
            let space = engine.space(Space::Retained);
            let (tables, away) = (space.path().join("tables"), space.path().join("away"));
            std::fs::rename(&tables, &away).expect("the engine keeps its tables there");
            std::fs::write(&tables, "in the way").expect("a free name");
            assert!(
                space.rotate_memtable().expect("the journal can be written"),
                "there is a row to flush"
            );
            while engine.database.persist(fjall::PersistMode::Buffer).is_ok() {
                std::thread::yield_now();
            }
            (tables, away)
        };
        assert_eq!(store.submit(vec![put("after")]), Ok(Lsn(2)), "the failure is not known yet");
        wait_for(&|event| matches!(event, StoreEvent::Stalled(stall) if !stall.full));
        assert_eq!(store.submit(vec![put("later")]), Ok(Lsn(3)), "it is kept");
        assert_eq!(store.synced(), Lsn(1), "nothing is acknowledged");
        assert!(store.stall().is_some());
        std::fs::remove_file(&tables).expect("written above");
        std::fs::rename(&away, &tables).expect("back again");
        wait_for(&|event| *event == StoreEvent::Resumed);
        store.sync_all().expect("it writes again");
        assert_eq!(store.synced(), Lsn(3));
        for key in [&b"before"[..], b"after", b"later"] {
            assert!(store.get(Space::Retained, key).expect("readable").is_some());
        }
        drop(store);
        let store = DiskStore::open(folder.path(), Options::default()).expect("reopened");
        assert_eq!(store.report(), &OpenReport::default());
        for key in [&b"before"[..], b"after", b"later"] {
            assert!(store.get(Space::Retained, key).expect("readable").is_some());
        }
    }

    fn put(key: &'static str) -> Op {
        Op::Put(Space::Retained, Bytes::from_static(key.as_bytes()), Bytes::from_static(b"v"))
    }

    struct DiskBed {
        store: Option<Arc<DiskStore>>,
        folder: TempDir,
    }

    impl DiskBed {
        fn new() -> Self {
            let folder = TempDir::new().expect("a temporary directory");
            let mut bed = Self { store: None, folder };
            bed.reopen();
            bed
        }
    }

    impl Bed for DiskBed {
        fn store(&self) -> Arc<dyn Store> {
            self.store.clone().expect("open")
        }

        fn sync(&mut self) {
            self.store.as_ref().expect("open").sync_all().expect("the disk takes it");
        }

        fn while_held(&mut self, body: &mut dyn FnMut(&dyn Store)) {
            // A listener runs on the writer's thread, so one that does not return holds it.
            let store = self.store.as_ref().expect("open");
            let (arrived, arrival) = std::sync::mpsc::sync_channel(1);
            let gate = Arc::new(Mutex::new(()));
            let held = gate.lock();
            let inner = gate.clone();
            store.listen(Arc::new(move |_| {
                let _ = arrived.try_send(()); // only the first is waited for
                drop(inner.lock());
            }));
            store.submit(Batch::new()).expect("an idle store takes a batch");
            arrival.recv().expect("the writer arrives");
            body(&**store);
            drop(held);
        }

        fn reopen(&mut self) {
            if let Some(store) = self.store.take() {
                assert!(Arc::into_inner(store).is_some(), "the last handle closes the store");
            }
            let options = Options { backlog_bytes_max: suite::BACKLOG, ..Options::default() };
            self.store = Some(Arc::new(
                DiskStore::open(self.folder.path(), options).expect("its own directory"),
            ));
        }
    }
}
