//! Every system call the store makes on its files fails once: EIO, ENOSPC, EINTR, or comes back short; and a disk is filled
//! to its last byte. Nothing acknowledged may be missing afterwards, and no store may refuse to start.
//!
//! The test runs its own binary as the process whose calls fail, under `strace -e inject` or with `short_calls.c` preloaded.
//! The child does a scripted run (open, batches over flushes, close) and prints what the store says is durable; then the
//! parent opens the store itself. `OUTPOST_FAULTS=500` goes through so many places of each call and error; without it,
//! through one.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use bytes::Bytes;
use outpost_store::{Batch, DiskStore, Op, Options, Space, Store, StoreEvent};
use tempfile::TempDir;

const FOLDER: &str = "FAULTS_FOLDER";

/// Batches that are there before the run with a fault, so that opening has something to lose.
const BEFORE: u64 = 30;
/// Batches of a run: enough for flushes, and for a compaction, of the tiny memtables.
const BATCHES: u64 = 60;
/// Rows of each space that stay; older ones are deleted by newer batches.
const WINDOW: u64 = 20;
const VALUE_BYTES: usize = 2_000;

/// What is made to fail. The first ones may be the loader's: then there is no run, and the store must open all the same.
const CALLS: [&str; 10] = [
    "write",
    "fsync",
    "fdatasync",
    "ftruncate",
    "renameat",
    "unlink",
    "mkdir",
    "openat",
    "pread64",
    "read",
];
const ERRORS: [&str; 3] = ["EIO", "ENOSPC", "EINTR"];

/// How long the child waits for the disk to come back before it closes the store as it is. On a machine with ten builds
/// beside it, six failed syncs took longer than five seconds.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn any_one_call_may_fail() {
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI has strace");
        eprintln!("skipped: there is no strace");
        return;
    }
    let places = places();
    let errors = if places > 1 { &ERRORS[..] } else { &ERRORS[..2] };
    let (mut runs, mut stalls, mut failed_opens) = (0, 0, 0);
    let before = before();
    for (call, count) in count_calls(before.path()) {
        // One alone is in the middle of the run: the first ones are the loader's, or of opening.
        let step = count.div_ceil(places).max(1);
        for error in errors {
            for place in (step.div_ceil(2)..=count).step_by(step) {
                let fault = format!("error={error}");
                let outcome = run(before.path(), call, &fault, &place.to_string());
                runs += 1;
                stalls += u64::from(outcome.stalled);
                failed_opens += u64::from(outcome.acked.is_none());
            }
        }
        eprintln!(
            "{call}: {count} calls, {runs} runs so far, {stalls} stalls, {failed_opens} failed to open"
        );
    }
    assert!(stalls > 0, "some faults hit the engine");
}

#[test]
fn a_disk_that_fails_for_a_while_is_waited_for() {
    if !Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI has strace");
        return;
    }
    let before = before();
    // Every sync from the tenth to the fifteenth: opening the engine again fails too.
    for error in ["EIO", "ENOSPC"] {
        let outcome = run(before.path(), "fdatasync", &format!("error={error}"), "10..15");
        assert!(outcome.stalled && outcome.resumed, "{outcome:?}");
        assert_eq!(outcome.acked, Some(BEFORE + BATCHES), "all of it in the end");
    }
}

#[derive(Debug)]
struct Outcome {
    /// The highest batch the child was told is durable; none when its store did not open.
    acked: Option<u64>,
    stalled: bool,
    resumed: bool,
}

/// One child with one fault, then the store is opened and compared with what the child was told.
fn run(before: &Path, call: &str, fault: &str, when: &str) -> Outcome {
    let folder = copy(before);
    let inject = format!("inject={call}:{fault}:when={when}");
    let text = trace(folder.path(), &["-o", "/dev/null", "-e", &inject]);
    judge(folder.path(), &text, &format!("{call} {fault} {when}"))
}

/// What the child said, compared with what is there.
fn judge(folder: &Path, text: &str, what: &str) -> Outcome {
    let acked = |line: &str| line.split_once("acked ")?.1.trim().parse::<u64>().ok();
    let outcome = Outcome {
        acked: text.lines().filter_map(acked).max().or(text.contains("opened").then_some(BEFORE)),
        stalled: text.contains("stalled"),
        resumed: text.contains("resumed"),
    };
    check(folder, outcome.acked.unwrap_or(BEFORE), &format!("{what}: {text}"));
    outcome
}

/// How many places of each call are tried.
fn places() -> usize {
    std::env::var("OUTPOST_FAULTS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// The library that lets calls come back short.
fn short_calls(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("short_calls.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/short_calls.c");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl");
    let built = cc.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    assert!(built || std::env::var_os("CI").is_none(), "CI has a C compiler");
    built.then_some(library)
}

/// One child, one call of which comes back short, after which so many fail: the disk is full. How many there were.
fn run_short(
    before: &Path,
    library: &Path,
    family: &str,
    at: usize,
    fail: usize,
) -> (Outcome, usize) {
    let folder = copy(before);
    let mut child = Command::new(std::env::current_exe().expect("this binary"));
    child.args(["--ignored", "--exact", "child", "--nocapture"]);
    child.env(FOLDER, folder.path()).env("LD_PRELOAD", library).env("SHORT_FAMILY", family);
    child.env("SHORT_FOLDER", folder.path());
    child.env("SHORT_AT", at.to_string()).env("SHORT_FAIL", fail.to_string());
    let output = child.stderr(Stdio::null()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let calls = text.lines().find_map(|line| line.strip_prefix("calls ")?.parse().ok());
    let what = format!("{family} {at} comes back short, {fail} after it fail");
    let outcome = judge(folder.path(), &text, &what);
    (outcome, calls.unwrap_or_else(|| panic!("the library was loaded: {text}")))
}

#[test]
fn any_one_call_may_come_back_short_and_what_is_not_written_is_not_acknowledged() {
    let tools = TempDir::new().expect("a temporary directory");
    let Some(library) = short_calls(tools.path()) else {
        return eprintln!("skipped: there is no C compiler");
    };
    let before = before();
    for (family, fail) in [("write", 0), ("write", 1), ("write", 12), ("read", 0)] {
        let (whole, calls) = run_short(before.path(), &library, family, 0, 0);
        assert_eq!(whole.acked, Some(BEFORE + BATCHES), "nothing was made to fail");
        assert!(calls > 20, "{family}: {calls} calls");
        let step = calls.div_ceil(places()).max(1);
        let (mut runs, mut stalls) = (0, 0);
        for at in (step.div_ceil(2)..=calls).step_by(step) {
            let (outcome, _) = run_short(before.path(), &library, family, at, fail);
            (runs, stalls) = (runs + 1, stalls + u64::from(outcome.stalled));
            if fail == 0 {
                // One of the engine's own threads takes a block that came short for a fault; then it is opened anew.
                let gone_on = !outcome.stalled || (family == "read" && outcome.resumed);
                let all = outcome.acked == Some(BEFORE + BATCHES) && gone_on;
                assert!(all, "{family} {at}: what is short is gone on with: {outcome:?}");
            }
        }
        eprintln!(
            "{family}: {calls} calls, {runs} came back short, {fail} failed after each, {stalls} stalls"
        );
    }
}

#[test]
fn a_disk_filled_to_the_last_byte_keeps_what_was_acknowledged_and_goes_on_when_there_is_room() {
    let may = Command::new("unshare").args(["-rm", "true"]).output();
    if !may.is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: this system permits no mount namespaces (unshare -rm)");
    }
    let folder = TempDir::new().expect("a temporary directory");
    let (disk, copies) = (folder.path().join("disk"), folder.path().join("copies"));
    std::fs::create_dir(&disk).expect("a free name");
    std::fs::create_dir(&copies).expect("a free name");
    let this = std::env::current_exe().expect("this binary");
    let script = format!(
        "mount -t tmpfs -o size=12m tmpfs {} && exec {} --ignored --exact child_on_a_full_disk --nocapture",
        disk.display(),
        this.display()
    );
    let mut child = Command::new("unshare");
    child.args(["-rm", "sh", "-c", &script]).env(FOLDER, &disk).env("COPIES", &copies);
    let output = child.stderr(Stdio::inherit()).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (full, end) = text.split_once("full, 0 bytes free").expect(&text);
    assert!(full.contains("stalled") && end.contains("resumed"), "{text}");
    let full = judge(&copies.join("full"), full, "killed on a full disk");
    assert!(full.acked < Some(BATCHES), "it was full before all was written: {text}");
    let end = judge(&copies.join("end"), end, "there was room again");
    assert_eq!(end.acked, Some(BATCHES), "all that was submitted, in the end: {text}");
}

#[test]
#[ignore = "this is the process whose disk is full; the tests here start it"]
fn child_on_a_full_disk() {
    let disk = PathBuf::from(std::env::var_os(FOLDER).expect("the parent says where"));
    let copies = PathBuf::from(std::env::var_os("COPIES").expect("the parent says where"));
    std::fs::write(disk.join("ballast"), vec![1; 4 << 20]).expect("there is room");
    let options = Options { reserve_bytes: 0, ..options() };
    let store = DiskStore::open(disk.join("store"), options).expect("there is room");
    say("opened");
    let (told, news) = mpsc::sync_channel(2 * BATCHES as usize);
    store.listen(Arc::new(move |event| {
        let _ = told.try_send(event); // the main thread may have had enough
    }));
    let hear = |wanted: &dyn Fn(&StoreEvent) -> bool| {
        loop {
            let event = news.recv_timeout(10 * PATIENCE).expect("it goes on");
            match &event {
                StoreEvent::Synced(lsn) => say(&format!("acked {}", lsn.0)),
                StoreEvent::Stalled(stall) => say(&format!("stalled {}", stall.cause)),
                StoreEvent::Resumed => say("resumed"),
                StoreEvent::Failed(why) => return say(&format!("failed {why}")),
            }
            if wanted(&event) {
                return;
            }
        }
    };
    for n in 1..=BATCHES / 3 {
        store.submit(batch(n)).expect("the backlog is far from full");
        hear(&|event| *event == StoreEvent::Synced(outpost_store::Lsn(n)));
    }
    let mut filler = std::fs::File::create(disk.join("filler")).expect("a name takes no room");
    for size in [64 * 1024, 4_096, 1] {
        while filler.write_all(&vec![1; size]).is_ok() {}
    }
    for n in BATCHES / 3 + 1..=BATCHES {
        store.submit(batch(n)).expect("the backlog is far from full");
    }
    hear(&|event| matches!(event, StoreEvent::Stalled(stall) if stall.full));
    say(&format!("full, {} bytes free", store.free_bytes().expect("it says")));
    keep(&disk, &copies.join("full"));
    std::fs::remove_file(disk.join("filler")).expect("it is there");
    std::fs::remove_file(disk.join("ballast")).expect("it is there");
    hear(&|event| *event == StoreEvent::Resumed);
    store.sync_all().expect("it writes again");
    say(&format!("acked {}", store.synced().0));
    drop(store);
    keep(&disk, &copies.join("end"));
}

/// A copy of the store as it stands on disk.
fn keep(disk: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a free name");
    let copied =
        Command::new("cp").args(["-r", "--sparse=always"]).arg(disk.join("store")).arg(to).status();
    assert!(copied.expect("cp is there").success());
}

/// The most calls of each kind one thread makes in a run without faults: strace counts by thread.
fn count_calls(before: &Path) -> BTreeMap<&'static str, usize> {
    let folder = copy(before);
    let log = folder.path().join("log");
    let log = log.to_str().expect("temporary names are text");
    trace(folder.path(), &["-o", log, "-e", &format!("trace={}", CALLS.join(","))]);
    let mut by_thread = BTreeMap::<(&str, String), usize>::new();
    for line in std::fs::read_to_string(log).expect("strace writes it").lines() {
        let (thread, what) = line.split_once(' ').unwrap_or_default();
        let name = what.trim_start().split('(').next().unwrap_or_default();
        if let Some(call) = CALLS.iter().find(|call| **call == name) {
            *by_thread.entry((call, thread.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((call, _), count) in by_thread {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    most
}

/// A folder with a store of [`BEFORE`] batches.
fn before() -> TempDir {
    let folder = TempDir::new().expect("a temporary directory");
    let store = DiskStore::open(folder.path().join("store"), options()).expect("a fresh directory");
    for n in 1..=BEFORE {
        store.submit(batch(n)).expect("taken");
    }
    store.sync_all().expect("the disk takes it");
    folder
}

fn copy(from: &Path) -> TempDir {
    let folder = TempDir::new().expect("a temporary directory");
    let copied = Command::new("cp")
        .args(["-r", "--sparse=always"])
        .arg(from.join("store"))
        .arg(folder.path())
        .status();
    assert!(copied.expect("cp is there").success());
    folder
}

/// Runs the child under strace to its end; what it said.
fn trace(folder: &Path, options: &[&str]) -> String {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq"]).args(options).arg(std::env::current_exe().expect("this binary"));
    strace.args(["--ignored", "--exact", "child", "--nocapture"]).env(FOLDER, folder);
    let output = strace.stderr(Stdio::null()).output().expect("strace runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Opens the store and checks that all up to `acked` is there and every batch is whole.
fn check(folder: &Path, acked: u64, what: &str) {
    let store = DiskStore::open(folder.join("store"), options());
    let store = store.unwrap_or_else(|why| panic!("no start after {what}: {why}"));
    assert!(store.report().quarantined.is_none(), "{:?} after {what}", store.report());
    let last = store.get(Space::Meta, b"newest").expect("readable").map_or(0, |v| number(&v));
    assert!(last >= acked, "acknowledged up to {acked}, there up to {last}, after {what}");
    for space in [Space::Queues, Space::Messages] {
        let rows = store.scan(space, b"", b"", usize::MAX).expect("readable");
        let keys: Vec<u64> = rows.iter().map(|(key, _)| number(key)).collect();
        let first = (last + 1).saturating_sub(WINDOW).max(1);
        assert_eq!(keys, (first..=last).collect::<Vec<_>>(), "{} after {what}", space.name());
        assert!(rows.iter().all(|(key, found)| *found == value(number(key))), "after {what}");
    }
}

#[test]
#[ignore = "this is the process whose calls fail; the tests here start it"]
fn child() {
    let folder = std::env::var_os(FOLDER).expect("the parent says where");
    let store = match DiskStore::open(Path::new(&folder).join("store"), options()) {
        Ok(store) => store,
        Err(why) => return say(&format!("not open: {why}")),
    };
    say("opened");
    let (told, news) = mpsc::sync_channel(2 * BATCHES as usize);
    store.listen(Arc::new(move |event| {
        let _ = told.try_send(event); // the main thread may have had enough
    }));
    let mut synced = 0;
    for n in 1..=BATCHES {
        store.submit(batch(BEFORE + n)).expect("the backlog is far from full");
        while synced < n.saturating_sub(2) || (n == BATCHES && synced < n) {
            match news.recv_timeout(PATIENCE) {
                Ok(StoreEvent::Synced(lsn)) => {
                    synced = lsn.0;
                    say(&format!("acked {}", BEFORE + synced));
                }
                Ok(StoreEvent::Stalled(stall)) => say(&format!("stalled {}", stall.cause)),
                Ok(StoreEvent::Resumed) => say("resumed"),
                Ok(StoreEvent::Failed(why)) => return say(&format!("failed {why}")),
                Err(_) => return say("gave up"),
            }
        }
    }
    for event in news.try_iter() {
        say(if event == StoreEvent::Resumed { "resumed" } else { "more" });
    }
    drop(store);
    say("closed");
}

fn options() -> Options {
    Options { memtable_bytes: 16 * 1024, store_id_seed: Some(7), ..Options::default() }
}

/// Batch `n`: two rows of the same content in two spaces, its number, and the end of batch `n - WINDOW`.
fn batch(n: u64) -> Batch {
    let key = |n: u64| Bytes::copy_from_slice(&n.to_be_bytes());
    let mut batch = vec![
        Op::Put(Space::Queues, key(n), value(n)),
        Op::Put(Space::Meta, Bytes::from_static(b"newest"), key(n)),
        Op::Put(Space::Messages, key(n), value(n)),
    ];
    if n > WINDOW {
        batch.push(Op::Delete(Space::Queues, key(n - WINDOW)));
        batch.push(Op::Delete(Space::Messages, key(n - WINDOW)));
    }
    batch
}

fn value(n: u64) -> Bytes {
    (0..VALUE_BYTES).map(|i| (n as usize * 31 + i * 7) as u8).collect::<Vec<_>>().into()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("tests write 8 bytes"))
}

/// A line on standard output; a write that is made to fail is one the parent does not hear of.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
