//! Opening: the lock, the engine, the format, and what happens to damage.
//!
//! A node must serve, so damage never keeps it from starting: what cannot be read is set aside and the store begins
//! anew. A full disk or a wrong permission is no damage; setting data aside for it would lose them for nothing.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    hash::BuildHasher,
    io::{self, Read, Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use fjall::{Database, Keyspace, KeyspaceCreateOptions, LsmError, PersistMode};

use super::{Engine, Options, Spaces, journal, manifest};
use crate::{FORMAT, FORMAT_KEY, STORE_ID_KEY, Space};

/// Why a store was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another part of this one) has it.
    #[error("the store {path} is in use by {}; two writers would destroy it, so stop the other one first", holder(*.pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who holds it, if it says so.
        pid: Option<u32>,
    },
    /// A newer version of this program wrote it.
    #[error(
        "the store {path} has format {found}, this program knows up to {FORMAT}; nothing was changed: start the newer program"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// What was found.
        found: String,
    },
    /// The operating system refused. This is no damage; the rows are as they were.
    #[error("cannot {what} {path}: {source}; the rows are as they were: {}", advice(.source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The engine fails on an empty directory as well, after the damaged one was set aside.
    #[error(
        "the store {path} cannot be made: {cause}; earlier rows, if any, are in {path}/data.damaged-*"
    )]
    Engine {
        /// The directory.
        path: PathBuf,
        /// What the engine said.
        cause: String,
    },
    /// No thread could be had for the writer.
    #[error("cannot start the writer of the store {path}")]
    Thread {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What opening found. All empty after a clean stop, or a crash on a disk that keeps its word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenReport {
    /// The store was made by this call.
    pub created: bool,
    /// The engine could not read it: the whole store was set aside and begins empty.
    pub quarantined: Option<Quarantine>,
    /// The end of a journal was no sound batch and was cut off.
    pub cuts: Vec<Cut>,
    /// These spaces should have been there and begin empty.
    pub spaces_lost: Vec<Space>,
    /// Quarantined directories that went because there were too many.
    pub quarantines_removed: Vec<PathBuf>,
}

impl OpenReport {
    /// Whether rows that were acknowledged may be missing. A cut may as well be of a batch that was never synced.
    pub fn may_have_lost(&self) -> bool {
        self.quarantined.is_some() || !self.cuts.is_empty() || !self.spaces_lost.is_empty()
    }
}

/// A store that was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantine {
    /// Where it is now.
    pub to: PathBuf,
    /// What was wrong with it.
    pub why: String,
}

/// The end of a journal that was cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// The journal's file name.
    pub journal: String,
    /// How much it was.
    pub bytes: u64,
    /// Where it is kept; nowhere when it cannot hold a whole batch.
    pub kept: Option<PathBuf>,
}

/// Holds the directory for as long as it lives.
pub(super) struct Lock {
    _file: File,
}

pub(super) struct Opened {
    pub(super) engine: Engine,
    pub(super) store_id: u64,
    pub(super) report: OpenReport,
    pub(super) lock: Lock,
}

const LOCK: &str = "LOCK";
const DATA: &str = "data";
const DAMAGED: &str = "data.damaged-";
/// The engine's own version marker: `FJL` and its version.
const ENGINE_MARKER: &str = "version";
const ENGINE_VERSION: u8 = 3;
/// The engine's least.
const JOURNAL_BYTES: u64 = 64 * 1024 * 1024;

pub(super) enum Problem {
    Damage(String),
    Stop(OpenError),
}

/// Opens the data again, in a process that has it in its hands: every batch from number `end` on is cut off, for it was
/// not synced and will be written again. Damage is not set aside here: what is served would no longer be what is stored.
pub(super) fn reopen(path: &Path, options: &Options, end: u64) -> Result<Engine, Problem> {
    let mut report = OpenReport::default();
    cut_unsynced(&path.join(DATA), end)?;
    open_data(path, options, &mut report).map(|(engine, _)| engine)
}

/// Cuts off what a failed write or sync has left in the journals.
fn cut_unsynced(data: &Path, end: u64) -> Result<(), Problem> {
    let fail = |what, at: &Path, source| Problem::Stop(io_error(what, at, source));
    for journal in journals(data)? {
        let extent = journal::examine_below(&journal, end)
            .map_err(|error| fail("read the journal", &journal, error))?;
        if extent.sound < extent.written {
            cut(&journal, extent.sound)
                .map_err(|error| fail("cut the unsynced end off the journal", &journal, error))?;
        }
    }
    Ok(())
}

fn cut(journal: &Path, sound: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(journal)?;
    file.set_len(sound).and_then(|()| file.sync_all())
}

fn journals(data: &Path) -> Result<Vec<PathBuf>, Problem> {
    let fail = |source| Problem::Stop(io_error("read the directory", data, source));
    let entries = match fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let journal = entry.map_err(fail)?.path();
        if journal.extension().is_some_and(|extension| extension == "jnl") && journal.is_file() {
            found.push(journal);
        }
    }
    Ok(found)
}

pub(super) fn open(path: &Path, options: &Options) -> Result<Opened, OpenError> {
    fs::create_dir_all(path).map_err(|source| io_error("make the directory", path, source))?;
    let lock = Lock::acquire(path)?;
    let mut report = OpenReport::default();
    let first = open_data(path, options, &mut report);
    let (engine, store_id) = match first {
        Ok(opened) => opened,
        Err(Problem::Stop(error)) => return Err(error),
        Err(Problem::Damage(why)) => {
            report = OpenReport::default(); // what was cut is in the quarantine as well
            let to = set_aside(path, options, &mut report)?;
            tracing::error!(path = %path.display(), to = %to.display(), why, "damaged store set aside, starting empty");
            report.quarantined = Some(Quarantine { to, why });
            open_data(path, options, &mut report).map_err(|problem| match problem {
                Problem::Stop(error) => error,
                Problem::Damage(cause) => OpenError::Engine { path: path.to_owned(), cause },
            })?
        }
    };
    for cut in &report.cuts {
        tracing::warn!(path = %path.display(), ?cut, "the end of a journal was no sound batch and was cut off");
    }
    if !report.spaces_lost.is_empty() {
        tracing::error!(path = %path.display(), spaces = ?report.spaces_lost, "key spaces were missing, begin empty");
    }
    Ok(Opened { engine, store_id, report, lock })
}

impl Lock {
    fn acquire(path: &Path) -> Result<Self, OpenError> {
        let name = path.join(LOCK);
        let fail = |source| io_error("lock", &name, source);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&name)
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid = file
                    .take(16)
                    .read_to_string(&mut text)
                    .ok()
                    .and_then(|_| text.trim().parse().ok());
                return Err(OpenError::Locked { path: path.to_owned(), pid });
            }
            Err(fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        // For people only: on a full disk there is no room for it, and no need.
        let pid = format!("{}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all(pid.as_bytes()));
        Ok(Self { _file: file })
    }
}

fn open_data(
    path: &Path,
    options: &Options,
    report: &mut OpenReport,
) -> Result<(Engine, u64), Problem> {
    let data = path.join(DATA);
    check_marker(path, &data)?;
    match manifest::examine(&data) {
        Ok(None) => {}
        Ok(Some(why)) => return Err(Problem::Damage(why)),
        Err(error) => return Err(classify(path, error.into())),
    }
    cut_journals(path, &data, options, report)?;
    let opened = catch_unwind(AssertUnwindSafe(|| open_engine(&data, options, report)));
    let (engine, was_there) = match opened {
        Ok(opened) => opened.map_err(|error| classify(path, error))?,
        Err(_) => return Err(Problem::Damage("the engine panicked on it".into())),
    };
    let store_id = check_rows(path, options, &engine, &was_there, report)?;
    Ok((engine, store_id))
}

fn check_marker(path: &Path, data: &Path) -> Result<(), Problem> {
    match fs::read(data.join(ENGINE_MARKER)) {
        Ok(marker)
            if marker.len() == 4 && marker.starts_with(b"FJL") && marker[3] > ENGINE_VERSION =>
        {
            let found = format!("engine {}", marker[3]);
            Err(Problem::Stop(OpenError::Newer { path: path.to_owned(), found }))
        }
        Ok(_) => Ok(()), // anything else the engine judges
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(classify(path, error.into())),
    }
}

/// Cuts every journal back to its sound batches, and keeps a copy of what may have been one.
fn cut_journals(
    path: &Path,
    data: &Path,
    options: &Options,
    report: &mut OpenReport,
) -> Result<(), Problem> {
    let fail = |what, at: &Path, source| Problem::Stop(io_error(what, at, source));
    for journal in journals(data)? {
        let extent = journal::examine(&journal)
            .map_err(|error| fail("read the journal", &journal, error))?;
        if extent.sound == extent.written {
            continue;
        }
        let tail = read_range(&journal, extent)
            .map_err(|error| fail("read the journal", &journal, error))?;
        let name = journal.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let kept = if tail.windows(journal::TRAILER.len()).any(|window| window == journal::TRAILER)
        {
            let folder = next_quarantine(path, options, report).map_err(Problem::Stop)?;
            let kept = folder.join(format!("{name}.tail"));
            let written = fs::create_dir(&folder).and_then(|()| fs::write(&kept, &tail));
            written.map_err(|error| fail("keep the damaged end of a journal in", &kept, error))?;
            Some(kept)
        } else {
            None
        };
        cut(&journal, extent.sound)
            .map_err(|error| fail("cut the damaged end off the journal", &journal, error))?;
        report.cuts.push(Cut { journal: name, bytes: extent.written - extent.sound, kept });
    }
    Ok(())
}

fn read_range(journal: &Path, extent: journal::Extent) -> io::Result<Vec<u8>> {
    let mut file = File::open(journal)?;
    file.seek(SeekFrom::Start(extent.sound))?;
    let mut tail = Vec::new();
    file.take(extent.written - extent.sound).read_to_end(&mut tail)?;
    Ok(tail)
}

/// Opens the database and all spaces. Says which of them were there before.
fn open_engine(
    data: &Path,
    options: &Options,
    report: &mut OpenReport,
) -> fjall::Result<(Engine, Vec<Space>)> {
    report.created = !data.join(ENGINE_MARKER).try_exists()?;
    let database = Database::builder(data)
        .cache_size(options.cache_bytes)
        .max_cached_files(Some(options.files_max.max(10))) // below 10 the engine panics
        .max_journaling_size(JOURNAL_BYTES)
        .worker_threads(options.workers.max(1))
        .open()?;
    let was_there: Vec<Space> =
        Space::ALL.into_iter().filter(|space| database.keyspace_exists(space.name())).collect();
    let make = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
    let spaces = Space::ALL.into_iter().map(|space| database.keyspace(space.name(), make));
    let spaces = spaces.collect::<fjall::Result<Vec<Keyspace>>>()?;
    Ok((Engine { database, spaces: Spaces(spaces) }, was_there))
}

/// Checks the format and gives the store's id; writes both when the store is new, the id when history may be lost.
fn check_rows(
    path: &Path,
    options: &Options,
    engine: &Engine,
    was_there: &[Space],
    report: &mut OpenReport,
) -> Result<u64, Problem> {
    let read = |key: &[u8]| {
        let value = engine.space(Space::Meta).get(key).map_err(|error| classify(path, error))?;
        let number = |value: &[u8]| value.try_into().map(u64::from_be_bytes);
        let damage =
            |_| Problem::Damage(format!("the row {} is no number", String::from_utf8_lossy(key)));
        value.map(|value| number(&value).map_err(damage)).transpose()
    };
    let id = match (read(FORMAT_KEY)?, read(STORE_ID_KEY)?) {
        (Some(format), _) if format > FORMAT => {
            let found = format.to_string();
            return Err(Problem::Stop(OpenError::Newer { path: path.to_owned(), found }));
        }
        (Some(FORMAT), Some(id)) => {
            // All spaces are made before the format is written, so one that is missing now was lost.
            report.spaces_lost =
                Space::ALL.into_iter().filter(|space| !was_there.contains(space)).collect();
            Some(id)
        }
        (None, None) => {
            for space in Space::ALL {
                if engine.space(space).first_key_value().is_some() {
                    return Err(Problem::Damage(format!(
                        "it has rows in {} but no format",
                        space.name()
                    )));
                }
            }
            report.created = true;
            None
        }
        (format, id) => {
            return Err(Problem::Damage(format!("its format is {format:?}, its id {id:?}")));
        }
    };
    if let Some(id) = id.filter(|_| !report.may_have_lost()) {
        return Ok(id);
    }
    let id = options.store_id_seed.filter(|_| id.is_none()).unwrap_or_else(draw_id);
    let mut batch = engine.database.batch().durability(Some(PersistMode::SyncAll));
    batch.insert(engine.space(Space::Meta), FORMAT_KEY, FORMAT.to_be_bytes());
    batch.insert(engine.space(Space::Meta), STORE_ID_KEY, id.to_be_bytes());
    batch.commit().map_err(|error| classify(path, error))?;
    Ok(id)
}

/// The keys of a `RandomState` come from the operating system; time and process keep two forks apart.
fn draw_id() -> u64 {
    std::hash::RandomState::new().hash_one((std::time::SystemTime::now(), std::process::id()))
}

/// Moves the data out of the way.
fn set_aside(
    path: &Path,
    options: &Options,
    report: &mut OpenReport,
) -> Result<PathBuf, OpenError> {
    let data = path.join(DATA);
    let to = next_quarantine(path, options, report)?;
    let moved = fs::rename(&data, &to).and_then(|()| File::open(path)?.sync_all());
    moved.map_err(|source| io_error("set aside the damaged data in", &data, source))?;
    Ok(to)
}

/// The next free name; the oldest quarantines go when there are too many.
fn next_quarantine(
    path: &Path,
    options: &Options,
    report: &mut OpenReport,
) -> Result<PathBuf, OpenError> {
    let fail = |source| io_error("read the directory", path, source);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(DAMAGED))
            .and_then(|n| n.parse::<u32>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    let next = numbers.last().map_or(1, |last| last.saturating_add(1));
    let keep = options.quarantines_max.saturating_sub(1);
    for number in &numbers[..numbers.len().saturating_sub(keep)] {
        let old = path.join(format!("{DAMAGED}{number}"));
        if fs::remove_dir_all(&old).is_ok() {
            report.quarantines_removed.push(old);
        }
    }
    Ok(path.join(format!("{DAMAGED}{next}")))
}

/// Is it damage, or something that an operator must put right?
fn classify(path: &Path, error: fjall::Error) -> Problem {
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => {
            if tells_of_damage(&source) {
                Problem::Damage(source.to_string())
            } else {
                Problem::Stop(io_error("open", &path.join(DATA), source))
            }
        }
        fjall::Error::Locked => {
            Problem::Stop(OpenError::Locked { path: path.to_owned(), pid: None })
        }
        // A worker failed while it was being opened; its cause is lost, so rather keep what there is.
        fjall::Error::Poisoned => {
            let source = io::Error::other("the engine failed in the background, see its log");
            Problem::Stop(io_error("open", &path.join(DATA), source))
        }
        other => Problem::Damage(other.to_string()),
    }
}

/// Files that are too short, missing, or hold what cannot be. An I/O error of the medium is not among them: the rows
/// may be there again when the cable is.
fn tells_of_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AlreadyExists, InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound, Other,
        UnexpectedEof,
    };
    let kind = error.kind();
    matches!(
        kind,
        AlreadyExists
            | InvalidData
            | InvalidInput
            | IsADirectory
            | NotADirectory
            | NotFound
            | UnexpectedEof
    ) || (kind == Other && error.raw_os_error().is_none())
}

pub(super) fn io_error(what: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { what, path: path.to_owned(), source }
}

fn holder(pid: Option<u32>) -> String {
    let mut text = String::from("another process");
    if let Some(pid) = pid {
        let _ = write!(text, " (pid {pid})"); // writing to a String does not fail
    }
    text
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "let the user this runs as read and write there",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free space on that file system"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "mount it writable; the kernel may have found errors on it, see dmesg"
        }
        _ => "check the disk (dmesg) and the limits of this process, then start again",
    }
}
