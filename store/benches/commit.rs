//! What does an acknowledged batch cost, next to the least a disk allows?
//!
//! The floor is one file that is appended to and synced (fdatasync), batch by batch. Expected before the first run:
//! with one submitter near the floor; with 64 in flight twenty times the batches of one, since they share syncs.
//!
//! Found, at 7b5b2ee on a virtual machine (2 cores of an AMD EPYC, virtio disk, ext4) that was busy building:
//! ```text
//!                   batches/s    syncs/s  written/batch µs CPU/batch
//! append + sync           335        335           4291           89
//! 1 in flight             348        348           4366          172
//! 16 in flight           4973        388            730           23
//! 64 in flight          14951        316            551           13
//! ```
//! One submitter pays what the disk asks for and nothing more; 64 get 43 times as much, at an eighth of the bytes.
//! The process was 7.5 MB resident after it.
//!
//! `cargo bench -p outpost-store --bench commit [-- <folder>]`; the folder decides which disk is measured.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use outpost_store::{DiskStore, Op, Options, Space, Store, StoreEvent};

const VALUE_BYTES: usize = 200;
const KEY_BYTES: usize = 24;
const RUN: Duration = Duration::from_secs(2);

fn main() {
    let folder = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    let folder =
        folder.map_or_else(tempfile::tempdir, tempfile::tempdir_in).expect("a folder to write in");
    println!(
        "{KEY_BYTES}-byte keys, {VALUE_BYTES}-byte values, one put a batch, {} s each",
        RUN.as_secs()
    );
    println!(
        "{:<16} {:>10} {:>10} {:>14} {:>12}",
        "", "batches/s", "syncs/s", "written/batch", "µs CPU/batch"
    );
    floor(folder.path());
    for in_flight in [1, 16, 64] {
        store(&folder.path().join(in_flight.to_string()), in_flight);
    }
}

fn floor(folder: &Path) {
    let mut file = File::create(folder.join("floor")).expect("writable");
    let record = [7; KEY_BYTES + VALUE_BYTES];
    let measure = Measure::begin();
    let mut batches = 0;
    while measure.goes_on() {
        file.write_all(&record).and_then(|()| file.sync_data()).expect("the disk takes it");
        batches += 1;
    }
    measure.end("append + sync", batches, batches);
}

fn store(folder: &Path, in_flight: u64) {
    let store = DiskStore::open(folder, Options::default()).expect("a fresh directory");
    let (told, news) = mpsc::sync_channel(in_flight as usize + 1);
    store.listen(std::sync::Arc::new(move |event| {
        let _ = told.send(event); // nobody listens when the run is over
    }));
    let measure = Measure::begin();
    let (mut submitted, mut synced, mut syncs) = (0, 0, 0);
    while measure.goes_on() {
        while submitted - synced < in_flight {
            let key = format!("{submitted:0KEY_BYTES$}");
            let row =
                Op::Put(Space::Queues, Bytes::from(key), Bytes::from_static(&[7; VALUE_BYTES]));
            submitted = store.submit(vec![row]).expect("far below the backlog").0;
        }
        let Ok(StoreEvent::Synced(lsn)) = news.recv() else { panic!("the store failed or stalls") };
        synced = lsn.0;
        syncs += 1;
    }
    measure.end(&format!("{in_flight} in flight"), synced, syncs);
    if in_flight == 64 {
        println!("resident after it: {} kB", resident_kb());
    }
}

struct Measure {
    began: Instant,
    written: u64,
    cpu: u64,
}

impl Measure {
    fn begin() -> Self {
        Self { began: Instant::now(), written: written_bytes(), cpu: cpu_ticks() }
    }

    fn goes_on(&self) -> bool {
        self.began.elapsed() < RUN
    }

    fn end(&self, name: &str, batches: u64, syncs: u64) {
        let seconds = self.began.elapsed().as_secs_f64();
        let written = (written_bytes() - self.written) / batches.max(1);
        let cpu = (cpu_ticks() - self.cpu) * 10_000 / batches.max(1); // a tick of /proc is 10 ms
        let rate = |count: u64| (count as f64 / seconds).round();
        println!("{name:<16} {:>10} {:>10} {written:>14} {cpu:>12}", rate(batches), rate(syncs));
    }
}

/// What this process sent to disks, as the kernel counts it (whole pages).
fn written_bytes() -> u64 {
    field("/proc/self/io", "write_bytes:")
}

fn resident_kb() -> u64 {
    field("/proc/self/status", "VmRSS:")
}

fn field(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).expect("Linux has it");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel names it");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number follows")
}

/// User and system time, fields 14 and 15 of `/proc/self/stat`.
fn cpu_ticks() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let (_, fields) = text.rsplit_once(')').expect("the name ends there");
    let ticks = |index| {
        fields.split_whitespace().nth(index).and_then(|n| n.parse::<u64>().ok()).expect("a number")
    };
    ticks(11) + ticks(12)
}
