//! A store whose files were damaged: opening never panics, and serves what is sound or says what it set aside.
//!
//! Every file is flipped, cut and emptied in many places. What may be missing afterwards depends on the file, and the
//! report has to say so: without a report every row must be there, or its read must fail; a wrong row is never served.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use outpost_store::{DiskStore, Op, OpenError, OpenReport, Options, Space, Store};
use tempfile::TempDir;

/// A file's path below the store, and its bytes.
type Files = BTreeMap<PathBuf, Vec<u8>>;

const ROWS: u32 = 120;
/// More in the files that hold rows than in the nine times same lists of the key spaces.
const FLIPS_PER_FILE: usize = 4;
const FLIPS_PER_ROW_FILE: usize = 24;

#[test]
fn a_file_that_is_cut_or_missing() {
    let files = sound_files();
    let mut tally = Tally::default();
    for (name, content) in &files {
        for length in places(content.len() + 1, 3) {
            let mut damaged = files.clone();
            damaged.get_mut(name).expect("it is one of them").truncate(length);
            tally.add(
                open_damaged(&damaged, &format!("{} cut to {length}", name.display())).as_ref(),
            );
        }
        let mut damaged = files.clone();
        damaged.remove(name);
        tally.add(open_damaged(&damaged, &format!("{} missing", name.display())).as_ref());
    }
    assert!(tally.opened >= 100 && tally.refused == 0, "{tally:?}");
    assert!(tally.quarantined > 0 && tally.cut > 0, "both kinds of damage occur: {tally:?}");
}

#[test]
fn a_torn_tail_costs_only_the_batch_that_was_torn() {
    let files = sound_files();
    let (name, journal) =
        files.iter().find(|(name, _)| name.ends_with("0.jnl")).expect("there is a journal");
    for cut in [1, 2, 100, 1000] {
        let mut damaged = files.clone();
        damaged.insert(name.clone(), journal[..journal.len() - cut].to_vec());
        let report = open_damaged(&damaged, "torn").expect("opened");
        assert!(report.quarantined.is_none() && report.cuts.len() == 1, "{report:?}");
        assert_eq!(report.cuts[0].kept, None, "half a batch is nothing to keep");
    }
    // A page of the last batch that did not reach the disk, with its end behind it.
    let mut damaged = files.clone();
    let at = journal.len() - 1000;
    damaged.get_mut(name).expect("it is one of them")[at..at + 200].fill(0);
    let report = open_damaged(&damaged, "torn in the middle").expect("opened");
    assert!(report.quarantined.is_none(), "{report:?}");
    let kept = report.cuts[0].kept.as_ref().expect("it may have been a whole batch");
    assert!(kept.ends_with("data.damaged-1/0.jnl.tail"), "{}", kept.display());
}

#[test]
fn a_flipped_bit_anywhere() {
    let files = sound_files();
    let mut tally = Tally::default();
    for (name, content) in &files {
        let rows = name.extension().is_some()
            || name.parent().is_some_and(|folder| folder.ends_with("tables"));
        for place in places(content.len(), if rows { FLIPS_PER_ROW_FILE } else { FLIPS_PER_FILE }) {
            let mut damaged = files.clone();
            damaged.get_mut(name).expect("it is one of them")[place] ^= 1 << (place % 8);
            tally.add(
                open_damaged(&damaged, &format!("{} flipped at {place}", name.display())).as_ref(),
            );
        }
    }
    assert!(tally.opened >= 200, "{tally:?}");
    assert!(tally.quarantined > 0 && tally.cut > 0, "both kinds of damage occur: {tally:?}");
}

fn sound_files() -> Files {
    let folder = TempDir::new().expect("a temporary directory");
    // Half of the rows go to tables, the rest stays in the journal. Opened once more, the engine gives back the part
    // of the journal that it reserved.
    for half in 0..2 {
        let store = open(folder.path()).expect("undamaged");
        for n in (0..ROWS).filter(|n| n / (ROWS / 2) == half) {
            store.submit(vec![row(Space::Retained, n), row(Space::Queues, n)]).expect("taken");
            store.sync_all().expect("synced");
        }
    }
    drop(open(folder.path()).expect("undamaged"));
    let mut files = Files::new();
    collect(folder.path(), folder.path(), &mut files);
    files
}

fn collect(root: &Path, folder: &Path, files: &mut Files) {
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("below the root").to_owned();
            files.insert(name, fs::read(&path).expect("readable"));
        }
    }
}

/// Opens a copy with these files, and checks what it serves.
fn open_damaged(files: &Files, what: &str) -> Option<OpenReport> {
    let folder = TempDir::new_in(scratch()).expect("a temporary directory");
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("writable");
        fs::write(&path, content).expect("writable");
    }
    eprintln!("{what}");
    let store = match open(folder.path()) {
        Ok(store) => store,
        Err(OpenError::Newer { .. }) if what.contains("version") => return None,
        Err(error) => panic!("{what}: {error}"),
    };
    let report = store.report().clone();
    for space in [Space::Retained, Space::Queues] {
        for n in 0..ROWS {
            let Op::Put(_, key, value) = row(space, n) else { unreachable!("rows are put") };
            match store.get(space, &key) {
                Ok(Some(found)) => assert_eq!(found, value, "{what}: a wrong row"),
                Ok(None) => assert!(
                    report.may_have_lost(),
                    "{what}: row {n} of {space:?} is missing, unreported"
                ),
                Err(_) => {} // said at the read
            }
        }
    }
    Some(report)
}

#[derive(Debug, Default)]
struct Tally {
    opened: usize,
    refused: usize,
    quarantined: usize,
    cut: usize,
}

impl Tally {
    fn add(&mut self, report: Option<&OpenReport>) {
        let Some(report) = report else {
            self.refused += 1;
            return;
        };
        self.opened += 1;
        self.quarantined += usize::from(report.quarantined.is_some());
        self.cut += usize::from(!report.cuts.is_empty());
    }
}

/// Up to `count` places, from the first byte to the last.
fn places(length: usize, count: usize) -> Vec<usize> {
    let mut places: Vec<usize> =
        (0..count.min(length)).map(|n| n * (length - 1) / (count - 1).max(1)).collect();
    places.dedup();
    places
}

fn row(space: Space, n: u32) -> Op {
    Op::Put(space, Bytes::from(format!("key {n}")), Bytes::from(format!("value {n} ").repeat(100)))
}

fn open(folder: &Path) -> Result<DiskStore, OpenError> {
    DiskStore::open(folder, Options { memtable_bytes: 32 * 1024, ..Options::default() })
}

fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() }
}
