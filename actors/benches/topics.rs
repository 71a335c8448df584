//! What do a million filters cost, one in ten with wildcards: memory, and time to find who wants a topic?
//!
//! Expected: a few hundred bytes a filter with its text, a match within 2 µs, at a million filters within three times of
//! what it is at ten thousand, and all memory back when they are gone.
//!
//! `cargo bench -p outpost-actors --bench topics`

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outpost_actors::ports::OpenGate;
use outpost_actors::shard::{LocalPublish, Shard, ShardConfig};
use outpost_model::{NodeId, Now, QoS, TopicTable};
use outpost_store::MemoryStore;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Matches in one measurement: enough that reading the clock does not count.
const BATCH: usize = 100;
const BATCHES: usize = 2_000;
const MILLION: usize = 1_000_000;
const NOW: Now = Now { mono_ms: 1_000, wall_ms: 1_000 };

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    println!("filters, 10 % with + or #; a match finds all who want one topic");
    let mut medians = Vec::new();
    for count in [10_000, 100_000, MILLION] {
        let before = resident_bytes();
        let table = table(count);
        let bytes = resident_bytes().saturating_sub(before) / count as u64;
        let (median, p99, found) = matches(&table, count);
        println!(
            "{count:>9} {bytes:>5} B a filter, match: median {median:>5.0} ns, p99 {p99:>5.0} ns ({found:.2} found)"
        );
        medians.push(median);
        let table = black_box(table);
        let (freed, grown) = come_and_go(table, count);
        println!("{:>9} {freed} of {grown} KB given back when all are gone", "");
    }
    println!("a million / ten thousand: {:.1} x", medians[2] / medians[0]);
    channels();
}

fn pattern(n: usize) -> String {
    match n % 20 {
        7 => format!("plant/{}/+/{n}/state", n % 97),
        13 => format!("plant/{}/line/{n}/#", n % 97),
        _ => format!("plant/{}/line/{n}/state", n % 97),
    }
}

fn table(count: usize) -> TopicTable<u64> {
    let mut table = TopicTable::default();
    for n in 0..count {
        let pattern: Arc<str> = pattern(n).into();
        assert!(table.insert(&pattern, n as u64), "each is new");
    }
    table
}

/// Median and 99th percentile of the time of a match, and how many it finds.
fn matches(table: &TopicTable<u64>, count: usize) -> (f64, f64, f64) {
    let topics: Vec<String> = (0..BATCH * BATCHES)
        .map(|i| i.wrapping_mul(7_919) % count)
        .map(|n| format!("plant/{}/line/{n}/state", n % 97))
        .collect();
    let mut found = 0;
    let mut times: Vec<Duration> = Vec::with_capacity(BATCHES);
    for batch in topics.chunks(BATCH) {
        let begun = Instant::now();
        for topic in batch {
            table.matches(black_box(topic), |_| found += 1);
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| times[BATCHES * share / 100].as_nanos() as f64 / BATCH as f64;
    assert_eq!(found, topics.len(), "each topic has one filter");
    (at(50), at(99), found as f64 / topics.len() as f64)
}

/// KB given back when all filters go, and KB they took.
fn come_and_go(mut table: TopicTable<u64>, count: usize) -> (i64, i64) {
    let full = resident_kb();
    for n in 0..count {
        assert!(table.remove(&pattern(n), &(n as u64)));
    }
    give_back();
    let empty = resident_kb();
    let again = self::table(count);
    let grown = resident_kb() - empty;
    drop(again);
    (full - empty, grown)
}

/// A million channels come, and go because others do.
#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn channels() {
    let mut config = ShardConfig::new(NodeId(1), 7);
    (config.channels_max, config.durable) = (MILLION, false);
    let store = Arc::new(MemoryStore::new(7));
    let mut shard = Shard::open(config, Arc::new(OpenGate), store, NOW).expect("an empty store");
    give_back();
    let before = resident_kb();
    publish(&mut shard, 0..MILLION);
    let full = resident_kb();
    // An hour later.
    shard.tick(Now { mono_ms: 3_600_000, ..NOW });
    shard.shrink();
    give_back();
    let after = resident_kb();
    println!(
        "{MILLION} channels: {} B each; resident before {before} KB, with them {full} KB, after {after} KB ({:+.1} % of what they took)",
        (full - before) * 1024 / MILLION as i64,
        (after - before) as f64 / (full - before) as f64 * 100.0
    );
}

fn publish(shard: &mut Shard, numbers: std::ops::Range<usize>) {
    for n in numbers {
        let topic = format!("plant/{}/line/{n}/state", n % 97).into();
        let (payload, qos) = (bytes::Bytes::from_static(b"1"), QoS::AtMostOnce);
        let publish = LocalPublish {
            topic,
            payload,
            qos,
            retain: false,
            here_only: false,
            expiry_s: None,
            properties: None,
        };
        shard.publish(publish, 0, NOW);
        while shard.poll_event().is_some() {}
    }
}

#[allow(unsafe_code, reason = "the allocator's C interface has no safe form")]
fn give_back() {
    // SAFETY: it takes no pointers and may be called at any time on any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

fn resident_kb() -> i64 {
    (resident_bytes() / 1024) as i64
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("resident pages");
    pages * 4096
}
