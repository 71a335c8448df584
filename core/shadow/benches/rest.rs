//! What does a shadow cost that nobody uses, and what does a write cost? Expected: at most 1 KB of resident memory for each
//! of 100,000 shadows at rest, a start with 100,000 rows in at most 2 s, a desired write in at most 0.5 ms, a reported one
//! in a small part of that. `bench/shadows` asks the same of a whole node.
//!
//! `cargo bench -p outpost-shadow --bench rest` writes 100,000 rows (4 leaves in `desired`, 6 in `reported`) into a file,
//! starts a hub from them and reads its own resident memory before and after. The times are this thread's CPU, request,
//! answer and messages included.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use outpost_model::{Hlc, NodeId, Now};
use outpost_shadow::{Effect, Hub, HubConfig, Limits, Rows, Rules, ShadowKey, Verb};

const SHADOWS: usize = 100_000;
const WRITES: usize = 20_000;
/// Where the rows are to be written, in the environment of the process that writes them.
const FILE: &str = "OUTPOST_REST_FILE";

/// Rows one behind the other, and where each ends.
struct Filed {
    file: File,
    ends: Vec<u64>,
}

struct Shared(Arc<Filed>);

impl Filed {
    fn row(&self, n: usize) -> Vec<u8> {
        let from = 4 + n.checked_sub(1).map_or(0, |before| self.ends[before]);
        let mut row = vec![0; (self.ends[n] - from) as usize];
        self.file.read_exact_at(&mut row, from).expect("the file has all rows");
        row
    }
}

impl Rows for Shared {
    fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        let name = std::str::from_utf8(key).ok()?.strip_prefix("sdev-")?.trim_end_matches('\0');
        Some(self.0.row(name.parse().ok()?))
    }
}

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    if let Some(path) = std::env::var_os(FILE) {
        return write_rows(&path);
    }
    let filed = Arc::new(filed());
    let bytes = *filed.ends.last().expect("there are rows");
    println!("{SHADOWS} shadows, {} B of rows each", bytes / SHADOWS as u64);
    let before = resident();
    let start = cpu_ms();
    let mut hub = Hub::new(config(), 2, Hlc::default());
    hub.read_rows_from(Box::new(Shared(Arc::clone(&filed))));
    for n in 0..SHADOWS {
        hub.load_row(&row_key(n), &filed.row(n)).expect("own rows");
    }
    let start_ms = cpu_ms() - start;
    let at_rest = (resident() - before) as f64 / SHADOWS as f64;
    println!("start                 {start_ms:>9.0} ms CPU, reading the file included");
    println!("resident, at rest     {at_rest:>9.0} B a shadow");
    // One shadow in use, and shadows that were not used for long, each once.
    for (what, section, first) in [
        ("reported, in use", "reported", None),
        ("desired, in use", "desired", None),
        ("reported, from the disk", "reported", Some(1)),
        ("desired, from the disk", "desired", Some(1 + WRITES)),
    ] {
        let start = cpu_ms();
        for n in 0..WRITES {
            let shadow = first.map_or(0, |first| (first + n) * 7_919 % SHADOWS);
            write(&mut hub, shadow, section, n);
        }
        let us = (cpu_ms() - start) * 1e3 / WRITES as f64;
        println!("{what:<24} {us:>6.1} µs CPU a write, answer and messages included");
    }
    let after = (resident() - before) as f64 / SHADOWS as f64;
    let stats = hub.stats();
    println!(
        "resident, after that  {after:>9.0} B a shadow, {} counted by the hub, {} in memory",
        stats.bytes / SHADOWS,
        stats.hot
    );
}

/// The rows the writes before would have made, written by a process of its own: this one's memory is what is measured.
fn filed() -> Filed {
    let path = std::env::temp_dir().join(format!("outpost-rest-{}", std::process::id()));
    let program = std::env::current_exe().expect("this program has a path");
    let ended = std::process::Command::new(program).env(FILE, &path).status();
    assert!(ended.is_ok_and(|status| status.success()), "the rows could not be written");
    let file = File::open(&path).expect("it was written");
    std::fs::remove_file(&path).expect("it is open already");
    let mut ends = Vec::with_capacity(SHADOWS);
    let mut at = 0;
    for _ in 0..SHADOWS {
        let mut length = [0; 4];
        file.read_exact_at(&mut length, at).expect("the file has all rows");
        at += 4 + u64::from(u32::from_le_bytes(length));
        ends.push(at);
    }
    Filed { file, ends }
}

fn write_rows(path: &std::ffi::OsStr) {
    let file = File::create(path).expect("a file");
    let mut file = std::io::BufWriter::new(file);
    let mut hub = Hub::new(config(), 1, Hlc::default());
    for n in 0..SHADOWS {
        let value = n * 7_919 % 100_000;
        let request = format!(
            "{{\"state\":{{\"desired\":{{\"temperature\":{value},\"humidity\":{n},\"battery\":3,\"mode\":4}},\
             \"reported\":{{\"temperature\":{value},\"humidity\":{n},\"battery\":5,\"mode\":6,\"firmware\":7,\"uptime\":8}}}}}}"
        );
        let key = ShadowKey::classic(&format!("dev-{n:08}"));
        hub.handle_request(key, Verb::Update, request.as_bytes(), now(n));
        while let Some(effect) = hub.poll_effect() {
            let Effect::Commit { rows, .. } = effect else { continue };
            for (_, row) in rows.into_iter().filter(|(key, _)| key.starts_with(b"s")) {
                let row = row.expect("nothing is deleted");
                let length = (row.len() as u32).to_le_bytes();
                file.write_all(&[&length[..], &row].concat()).expect("there is room");
            }
        }
    }
    file.flush().expect("there is room");
}

fn write(hub: &mut Hub, n: usize, section: &str, value: usize) {
    let request = format!("{{\"state\":{{\"{section}\":{{\"temperature\":{value}}}}}}}");
    let key = ShadowKey::classic(&format!("dev-{n:08}"));
    hub.handle_request(key, Verb::Update, request.as_bytes(), now(SHADOWS + value));
    while let Some(effect) = hub.poll_effect() {
        // The file does not have it; but a shadow that leaves memory is not used again here.
        if let Effect::Commit { number, .. } = effect {
            hub.synced(number);
        }
    }
}

fn row_key(n: usize) -> Vec<u8> {
    format!("sdev-{n:08}\0").into_bytes()
}

fn config() -> HubConfig {
    let limits = Limits::default();
    let (node_name, rules) = ("bench".into(), Rules::default());
    HubConfig { node: NodeId(1), node_name, limits, hlc_ahead_ms_max: 60_000, rules }
}

fn now(n: usize) -> Now {
    Now { mono_ms: n as u64, wall_ms: 1_700_000_000_000 + n as u64 }
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// What this thread has used so far.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns: f64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
    ns / 1e6
}
