//! The disk store under `kill -9` and on a full disk, with real processes.
//!
//! The test runs its own binary again as the process that dies. The child submits numbered batches and prints a
//! number once the store says it is durable; the parent kills it after so many lines, opens the store itself and
//! looks whether all that was printed is there, every batch whole.

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use outpost_store::{Batch, DiskStore, Lsn, Op, Options, Space, Store, StoreEvent};
use tempfile::TempDir;

/// What the child needs to know: directory, size of values.
const FOLDER: &str = "CRASH_FOLDER";
const VALUE_BYTES: &str = "CRASH_VALUE_BYTES";
/// Batches below the newest that are kept; older ones are deleted by newer ones.
const WINDOW: u64 = 40;
const IN_FLIGHT: u64 = 16;

#[test]
fn what_was_acknowledged_outlives_kill_9() {
    let folder = TempDir::new().expect("a temporary directory");
    let mut last = 0;
    for kill in 0..24 {
        // From the first acknowledgement on to deep in flushes and compactions of the tiny memtables.
        let acks = 1 + kill * kill / 3;
        last = run_and_kill(folder.path(), 3000, acks, last);
    }
    assert!(last >= 1500, "the kills were spread over {last} batches");
}

#[test]
fn what_was_acknowledged_outlives_kill_9_around_a_new_journal() {
    // The engine begins a new journal after 64 MB: kill before, around and after that.
    let folder = TempDir::new().expect("a temporary directory");
    let mut last = 0;
    for megabytes in [62, 1, 2, 70] {
        last = run_and_kill(folder.path(), 200_000, megabytes * 10, last);
    }
}

#[test]
fn a_file_that_may_not_grow_stalls_the_store_without_a_false_acknowledgement() {
    let folder = TempDir::new().expect("a temporary directory");
    drop(open(folder.path())); // the engine reserves its first journal, which the limit below would forbid
    // No file may grow beyond 300 KiB: writes fail as on a full disk. The signal for it is ignored, as a daemon does.
    let script = "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\"";
    let mut shell = Command::new("bash");
    shell.arg("-c").arg(script).arg(this_binary());
    let lines = spawn(shell, folder.path(), 3000);
    let (acked, rest) = read_acks(lines, u64::MAX);
    assert!(
        rest.iter().any(|line| line.starts_with("stalled ")),
        "the child says that the store stalls: {rest:?}"
    );
    assert!(rest.iter().any(|line| line == "closed"), "it can be closed all the same: {rest:?}");
    assert!(acked >= 10, "some fitted: {acked}");
    check(folder.path(), 3000, acked);
}

#[test]
#[ignore = "this is the process that dies; the tests here start it"]
fn child() {
    let folder = std::env::var_os(FOLDER).expect("the parent says where");
    let size = std::env::var(VALUE_BYTES)
        .ok()
        .and_then(|size| size.parse().ok())
        .expect("the parent says how large");
    let store = open(Path::new(&folder));
    let start = newest(&store);
    let (told, news) = mpsc::sync_channel(IN_FLIGHT as usize + 1);
    store.listen(Arc::new(move |event| {
        match &event {
            StoreEvent::Synced(lsn) => say(&format!("acked {}", start + lsn.0)),
            StoreEvent::Stalled(stall) => say(&format!("stalled {}", stall.cause)),
            StoreEvent::Resumed => say("resumed"),
            StoreEvent::Failed(why) => say(&format!("failed {why}")),
        }
        let _ = told.try_send(event); // the main thread may have heard enough
    }));
    let mut synced = 0;
    for n in 1.. {
        match store.submit(batch(start + n, size)) {
            Ok(lsn) => assert_eq!(lsn, Lsn(n)),
            Err(other) => panic!("not expected here: {other}"),
        }
        while n - synced >= IN_FLIGHT {
            match news.recv().expect("the store lives") {
                StoreEvent::Synced(lsn) => synced = lsn.0,
                StoreEvent::Resumed => {}
                StoreEvent::Stalled(_) | StoreEvent::Failed(_) => {
                    drop(store);
                    return say("closed");
                }
            }
        }
    }
}

/// Starts the child, kills it after `acks` lines, checks the store. Returns the newest batch in it.
fn run_and_kill(folder: &Path, size: usize, acks: u64, before: u64) -> u64 {
    let child = spawn(Command::new(this_binary()), folder, size);
    let (acked, rest) = read_acks(child, acks);
    assert!(!rest.iter().any(|line| line.starts_with("failed")), "{rest:?}");
    assert!(acked > before, "the child went on where the last one died");
    let last = check(folder, size, acked);
    assert!(
        last <= acked + 2 * IN_FLIGHT,
        "{last} batches cannot be there when {acked} are acknowledged"
    );
    last
}

/// Opens the store and checks that all up to `acked` is there and every batch is whole. Returns the newest.
fn check(folder: &Path, size: usize, acked: u64) -> u64 {
    let store = open(folder);
    assert!(store.report().quarantined.is_none(), "{:?}", store.report());
    let last = newest(&store);
    assert!(last >= acked, "acknowledged up to {acked}, there up to {last}: {:?}", store.report());
    let first = (last + 1).saturating_sub(WINDOW).max(1);
    for space in [Space::Queues, Space::Messages] {
        let rows = store.scan(space, b"", b"", usize::MAX).expect("readable");
        let keys: Vec<u64> = rows.iter().map(|(key, _)| number(key)).collect();
        assert_eq!(
            keys,
            (first..=last).collect::<Vec<_>>(),
            "{} holds the window and nothing else",
            space.name()
        );
        for (key, found) in rows {
            assert_eq!(found, value(number(&key), size), "batch {}", number(&key));
        }
    }
    last
}

/// Batch `n`: two rows of the same content in two spaces, its number, and the end of batch `n - WINDOW`.
fn batch(n: u64, size: usize) -> Batch {
    let key = |n: u64| Bytes::copy_from_slice(&n.to_be_bytes());
    let mut batch = vec![
        Op::Put(Space::Queues, key(n), value(n, size)),
        Op::Put(Space::Meta, Bytes::from_static(b"newest"), key(n)),
        Op::Put(Space::Messages, key(n), value(n, size)),
    ];
    if n > WINDOW {
        batch.push(Op::Delete(Space::Queues, key(n - WINDOW)));
        batch.push(Op::Delete(Space::Messages, key(n - WINDOW)));
    }
    batch
}

/// Of half to full `size`, different for each `n`, not compressible.
fn value(n: u64, size: usize) -> Bytes {
    let mut state = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let length = size / 2 + (state >> 33) as usize % (size / 2 + 1);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_be_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

fn newest(store: &DiskStore) -> u64 {
    store.get(Space::Meta, b"newest").expect("readable").map_or(0, |value| number(&value))
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("tests write 8 bytes"))
}

fn open(folder: &Path) -> DiskStore {
    let options = Options { memtable_bytes: 64 * 1024, ..Options::default() };
    DiskStore::open(folder, options).expect("a store never refuses to open after a crash")
}

fn this_binary() -> std::path::PathBuf {
    std::env::current_exe().expect("a test knows its binary")
}

fn spawn(mut command: Command, folder: &Path, size: usize) -> Child {
    command
        .args(["--ignored", "--exact", "child", "--nocapture"])
        .env(FOLDER, folder)
        .env(VALUE_BYTES, size.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this binary runs")
}

/// Reads `acks` lines, kills the child, reads what it still said. Returns the highest number acknowledged, and the
/// other lines.
fn read_acks(mut child: Child, acks: u64) -> (u64, Vec<String>) {
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut highest = 0;
    let mut count = 0;
    let mut rest = Vec::new();
    while let Some(Ok(line)) = lines.next() {
        // The test harness of the child begins the first line with its own words.
        match line.rsplit_once("acked ").and_then(|(_, number)| number.parse::<u64>().ok()) {
            Some(number) => {
                assert!(number > highest, "numbers rise");
                highest = number;
                count += 1;
            }
            None => rest.push(line),
        }
        if count == acks {
            child.kill().expect("it runs");
        }
    }
    child.wait().expect("it was started here");
    (highest, rest)
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the parent reads");
}
