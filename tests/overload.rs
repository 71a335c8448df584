//! Overload: the node sheds what it must in the documented order, and those who do no harm notice little.
//!
//! The stories run small here. With `OUTPOST_LONG=1` the flood is the one of the guide: 5,000 idle clients, 100 publishers,
//! 5 minutes (`OUTPOST_FLOOD_S` for another time), 128 MiB; `OUTPOST_BIN` names another binary than the debug build's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outpost_node::http::LedgerPage;

use crate::support::client::{Client, Options};
use crate::support::flood::{Seen, flooder, idle, silent};
use crate::support::group::MemoryGroup;
use crate::support::http;
use crate::support::outpost::Dev;
use crate::support::wire::{Wire, connect, framed};

/// How large a story is.
struct Size {
    idle: usize,
    flooders: usize,
    lasts: Duration,
    limit_bytes: u64,
}

/// Run by hand, where nothing else does: then times are looked at too.
fn is_long() -> bool {
    std::env::var_os("OUTPOST_LONG").is_some()
}

fn size() -> Size {
    if is_long() {
        let seconds = std::env::var("OUTPOST_FLOOD_S").ok().and_then(|n| n.parse().ok());
        let lasts = Duration::from_secs(seconds.unwrap_or(300));
        Size { idle: 5_000, flooders: 100, lasts, limit_bytes: 128 << 20 }
    } else {
        Size { idle: 200, flooders: 20, lasts: Duration::from_secs(10), limit_bytes: 128 << 20 }
    }
}

/// Round trips of one message at a time, 50 a second, for so long. Sorted.
async fn latencies(publisher: &Client, receiver: &mut Client, lasts: Duration) -> Vec<Duration> {
    let (began, mut all) = (Instant::now(), Vec::new());
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while began.elapsed() < lasts {
        pace.tick().await;
        let sent = Instant::now();
        publisher.publish("probe", "x", 1).await;
        receiver.next().await;
        all.push(sent.elapsed());
    }
    all.sort_unstable();
    all
}

fn quantile(sorted: &[Duration], permille: usize) -> Duration {
    sorted[(sorted.len() - 1) * permille / 1_000]
}

async fn ledger(server: SocketAddr) -> LedgerPage {
    let (_, body) = http::get(server, "/api/v1/ledger").await;
    serde_json::from_value(body).expect("a ledger")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_to_one_that_reads_nothing_harms_nobody_else() {
    let size = size();
    let data = tempfile::tempdir().expect("a folder");
    let group = MemoryGroup::new("outpost-flood", size.limit_bytes);
    let dev = Dev::start_in(group.as_ref(), data.path(), &["--set", "log.level=warn"]).await;
    let idle = idle(dev.mqtt, size.idle).await;
    let mut stopped = silent(dev.mqtt, "stopped").await;
    assert_eq!(stopped.packet().await.expect("CONNACK")[0], 0x20);
    stopped.send(&framed(0x82, b"\0\x01\0\0\x07flood/#\x01")).await;
    assert_eq!(stopped.packet().await.expect("SUBACK")[0], 0x90);
    let publisher = Client::connect(dev.mqtt, Options::v5("probe-publisher")).await;
    let mut receiver = Client::connect(dev.mqtt, Options::v5("probe-receiver")).await;
    receiver.subscribe("probe", 1).await;

    let calm = latencies(&publisher, &mut receiver, size.lasts / 5).await;
    let seen = Arc::new(Seen::default());
    let flooders: Vec<_> = (0..size.flooders)
        .map(|n| tokio::spawn(flooder(dev.mqtt, n, format!("flood/{n}"), Arc::clone(&seen))))
        .collect();
    let flooded = latencies(&publisher, &mut receiver, size.lasts).await;
    let (_, stats) = http::get(dev.http, "/api/v1/stats").await;
    seen.stop.store(true, Ordering::Relaxed);
    for flooder in flooders {
        flooder.await.expect("it does not panic");
    }
    let page = ledger(dev.http).await;
    let read = |what: &std::sync::atomic::AtomicU64| what.load(Ordering::Relaxed);
    let at = |all: &[Duration]| [500, 990, 999].map(|permille| quantile(all, permille));
    println!(
        "FLOOD: calm p50/p99/p999 {:?}, flooded {:?}; taken {} MiB, PUBACK success {} 0x97 {}, writes held back {}, \
         flooders cut off {}; peak {} MiB, OOM kills {}; memory {}; pacing {}; turns by ms {}, longest {} s, waited {}; dropped {:?}",
        at(&calm),
        at(&flooded),
        read(&seen.bytes) >> 20,
        read(&seen.taken),
        read(&seen.refused),
        read(&seen.held_back),
        read(&seen.ended),
        group.as_ref().map_or(0, MemoryGroup::peak_bytes) >> 20,
        group.as_ref().map_or(0, MemoryGroup::kills),
        stats["memory"],
        stats["pacing"],
        stats["turns_total"]["by_below_ms"],
        stats["turn_longest_seconds"],
        stats["turns_waited_total"],
        page.deliveries.dropped,
    );
    assert_eq!(group.as_ref().map_or(0, MemoryGroup::kills), 0);
    every_publish_is_accounted_for(dev.http).await;
    assert!(page.adds_up, "{page:#?}");
    assert!(read(&seen.refused) > 0, "publishers of QoS 1 see 0x97: {seen:?}");
    let waits = stats["pacing"]["waits_total"].as_u64();
    assert!(waits > Some(0), "publishers of QoS 0 are read more slowly: {seen:?}");
    assert_eq!(read(&seen.ended), 0, "nobody is cut off");
    // Twice as slow at most, where nothing else runs.
    let (before, during) = (quantile(&calm, 990), quantile(&flooded, 990));
    let most = before * 2 + Duration::from_millis(50);
    assert!(!is_long() || during <= most, "p99 {before:?} became {during:?}");
    // Everybody is still there.
    let (_, stats) = http::get(dev.http, "/api/v1/stats").await;
    assert!(stats["mqtt"]["connections"].as_u64() >= Some(size.idle as u64 + 3), "{stats}");
    drop((idle, stopped));
    assert!(dev.process.terminate().await.success());
}

/// To the message: what was read is accepted, refused or held back. One page, so it is one moment.
async fn every_publish_is_accounted_for(server: SocketAddr) {
    let (_, stats) = http::get(server, "/api/v1/stats").await;
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    let read = &stats["traffic"]["publishes_received_total"]["by_qos"];
    let read: u64 = ["0", "1", "2"].iter().map(|qos| number(&read[*qos])).sum();
    let messages = &stats["messages"];
    let parts =
        ["accepted_total", "refused_total", "held_back"].map(|part| number(&messages[part]));
    assert_eq!(read, parts.iter().sum::<u64>(), "{messages}");
    assert_eq!(messages["missing"], 0, "{messages}");
}

/// Connects and waits for CONNACK.
async fn come_back(server: SocketAddr, number: usize) -> Wire {
    let mut wire = Wire::open(server).await;
    wire.send(&connect(4, &format!("fleet-{number}"))).await;
    assert_eq!(wire.packet().await.as_deref(), Some(&[0x20, 2, 0, 0][..]), "client {number}");
    wire
}

/// All of them at once; how long it took until the last was in.
async fn storm(server: SocketAddr, fleet: usize) -> (Vec<Wire>, Duration) {
    let began = Instant::now();
    let clients: Vec<_> =
        (0..fleet).map(|number| tokio::spawn(come_back(server, number))).collect();
    let mut back = Vec::with_capacity(fleet);
    for client in clients {
        back.push(client.await.expect("nobody fails"));
    }
    (back, began.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_that_comes_back_at_once_is_taken_in_turn_and_nobody_fails() {
    let fleet = if is_long() { 10_000 } else { 500 };
    let data = tempfile::tempdir().expect("a folder");
    // The small fleet meets the same limit.
    let rate = format!("limits.connect_rate_max={}", fleet / 5);
    let more = ["--set", "log.level=warn", "--set", &rate];
    let dev = Dev::start_with(data.path(), &more).await;
    let publisher = Client::connect(dev.mqtt, Options::v5("probe-publisher")).await;
    let mut receiver = Client::connect(dev.mqtt, Options::v5("probe-receiver")).await;
    receiver.subscribe("probe", 1).await;
    let calm = latencies(&publisher, &mut receiver, Duration::from_secs(2)).await;
    let mut first = Vec::new();
    for number in 0..fleet {
        first.push(come_back(dev.mqtt, number).await);
    }
    drop(first);
    let server = dev.mqtt;
    // Threads of its own: the other flow is to wait for the node, not for ten thousand clients in one queue with it.
    let all = tokio::task::spawn_blocking(move || {
        tokio::runtime::Runtime::new().expect("threads").block_on(storm(server, fleet))
    });
    let mut during = latencies(&publisher, &mut receiver, Duration::from_secs(3)).await;
    let (back, took) = all.await.expect("it does not panic");
    during.sort_unstable();
    println!(
        "{} of {fleet} are back after {took:?}; p99 of another flow {:?}, before {:?}",
        back.len(),
        quantile(&during, 990),
        quantile(&calm, 990)
    );
    assert_eq!(back.len(), fleet);
    assert!(!is_long() || took < Duration::from_mins(1), "the last came after {took:?}");
    assert!(!is_long() || quantile(&during, 990) < Duration::from_secs(1), "{during:?}");
    let (_, stats) = http::get(dev.http, "/api/v1/stats").await;
    assert_eq!(stats["mqtt"]["connections_refused_total"], 0, "{stats}");
    drop(back);
    assert!(dev.process.terminate().await.success());
}
