//! `kill -9` of the node at any moment: nothing acknowledged is lost, QoS 2 arrives exactly once, and the node is back soon.

#![expect(
    clippy::disallowed_methods,
    reason = "threads that wait for a process to die, and at chosen moments"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::steady::{
    AtEnd, Mortal, Plan, Process, Step, Taken, publisher, subscribe, subscriber,
};

/// Messages of one publisher that may be under way.
const WINDOW: usize = 8;

fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

fn sum(taken: &Taken) -> (usize, usize) {
    let taken = taken.lock().expect("nobody panics with it");
    (taken.len(), taken.values().map(|count| count - 1).sum())
}

/// Waits until all of these are taken in.
fn wait_for(taken: &Taken, wanted: &BTreeSet<String>) -> Vec<String> {
    // A long queue takes its time; lost is what is missing when nothing comes any more.
    let (mut heard, mut before) = (Instant::now(), 0);
    loop {
        let (missing, now): (Vec<String>, usize) = {
            let taken = taken.lock().expect("nobody panics with it");
            let missing = wanted.iter().filter(|payload| !taken.contains_key(*payload));
            (missing.cloned().collect(), taken.len())
        };
        if now != before {
            (heard, before) = (Instant::now(), now);
        }
        if missing.is_empty() || heard.elapsed() > Duration::from_secs(30) {
            return missing;
        }
        std::thread::sleep(Duration::from_millis(if missing.len() > 1_000 { 500 } else { 20 }));
    }
}

/// Twenty publishers, subscribers that are there and subscribers that are away. `OUTPOST_KILLS` for more kills.
#[test]
fn random_kills_under_twenty_publishers_lose_nothing_and_double_no_qos_2() {
    let kills = number("OUTPOST_KILLS", 4);
    let data = tempfile::tempdir().expect("a folder");
    let node = Arc::new(Mortal::default());
    let limits = [
        "--set",
        "limits.queue_messages_max=1000000",
        "--set",
        "limits.queue_bytes_max=1000000000",
        "--set",
        "limits.node_queue_bytes_max=4000000000",
    ];
    let mut child = node.start(data.path(), &limits);
    for qos in [1, 2] {
        for id in ["here", "away"] {
            subscribe(&node, &format!("{id}-{qos}"), &format!("job/{qos}"), qos);
        }
    }
    let done = Arc::new(AtomicBool::new(false));
    let (ones, twos) = (Taken::default(), Taken::default());
    let acknowledged = Mutex::new([BTreeSet::new(), BTreeSet::new()]);
    let (began, copies_of_all) = (Instant::now(), Mutex::new([0, 0]));
    std::thread::scope(|scope| {
        let (node, acknowledged) = (&node, &acknowledged);
        let _ends = (AtEnd(&node.enough), AtEnd(&done));
        for (qos, taken) in [(1, &ones), (2, &twos)] {
            let done = Arc::clone(&done);
            scope.spawn(move || subscriber(node, &format!("here-{qos}"), taken, &done, None));
        }
        let publishers: Vec<_> = (0..20)
            .map(|n| {
                let qos = 1 + n as u8 % 2;
                scope.spawn(move || {
                    let (id, topic) = (format!("p{n}"), format!("job/{qos}"));
                    let mine = publisher(node, &id, &topic, qos, usize::MAX, WINDOW, None);
                    acknowledged.lock().expect("nobody panics")[usize::from(qos) - 1].extend(mine);
                })
            })
            .collect();
        let mut dice = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..kills {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_millis(50 + (dice >> 33) % 400));
            node.kill_9();
            child.wait();
            child = node.start(data.path(), &limits);
        }
        node.enough.store(true, Ordering::SeqCst);
        publishers.into_iter().for_each(|publisher| publisher.join().expect("no panic"));
        let acknowledged = acknowledged.lock().expect("nobody panics");
        let (away_1, away_2) = (Taken::default(), Taken::default());
        for (qos, taken) in [(1, away_1.clone()), (2, away_2.clone())] {
            let done = Arc::clone(&done);
            scope.spawn(move || subscriber(node, &format!("away-{qos}"), &taken, &done, None));
        }
        let cases =
            [("here", 1, &ones), ("here", 2, &twos), ("away", 1, &away_1), ("away", 2, &away_2)];
        for (who, qos, taken) in cases {
            let wanted = &acknowledged[qos - 1];
            let lost = wait_for(taken, wanted);
            let (different, copies) = sum(taken);
            eprintln!(
                "{who} QoS {qos}: {} acknowledged, {different} taken, {} lost, {copies} copies",
                wanted.len(),
                lost.len()
            );
            assert!(lost.is_empty(), "{who} QoS {qos} lost {lost:?}");
            copies_of_all.lock().expect("nobody panics")[qos - 1] += copies;
            // What was under way at a kill may come twice with QoS 1, from each publisher and to each subscriber.
            let most = if qos == 1 { kills * (10 * WINDOW + 64) } else { 0 };
            assert!(copies <= most, "{who} QoS {qos}: {copies} copies after {kills} kills");
        }
    });
    let slowest = *node.slowest_start.lock().expect("nobody panics");
    let [ones, twos] = acknowledged.lock().expect("nobody panics").each_ref().map(BTreeSet::len);
    eprintln!(
        "KILLS: {kills} in {:?}; acknowledged QoS 1 {ones}, QoS 2 {twos}, each to two subscribers; 0 lost; copies {:?}; \
         slowest start to first CONNACK {slowest:?}",
        began.elapsed(),
        copies_of_all.lock().expect("nobody panics")
    );
    end(&node, child);
}

/// At each step of the handshake, from either side, at once and while the node writes. `OUTPOST_QOS2_MESSAGES` for more.
#[test]
fn qos_2_is_exactly_once_through_a_kill_at_each_step() {
    let messages = number("OUTPOST_QOS2_MESSAGES", 30);
    let every = (messages / 10).max(10);
    for from_publisher in [true, false] {
        for step in [Step::Sent, Step::Answered, Step::ReleaseSent, Step::Completed] {
            for delay_ms in [0, 2] {
                let delay = Duration::from_millis(delay_ms);
                let plan = Plan { step, every, delay };
                let kills = one_case(messages, plan, from_publisher);
                let who = if from_publisher { "publisher" } else { "subscriber" };
                eprintln!(
                    "{who} {step:?} +{delay_ms} ms: {messages} messages, {kills} kills, each once"
                );
                assert!(kills > 0, "{who} {step:?}: the node was killed");
            }
        }
    }
}

/// Before a packet is read from a client; written to the journal but not synced; synced, and the answer not yet on its way:
/// the node is killed at the entry of that call, one call later each time, so that it comes to each step of either side.
#[test]
fn qos_2_is_exactly_once_through_a_kill_at_each_call_to_disk_and_socket() {
    let messages = number("OUTPOST_QOS2_MESSAGES", 125);
    for call in ["recvfrom", "fdatasync", "sendto"] {
        let kills = one_call(call, messages);
        eprintln!("at {call}: {messages} messages, {kills} kills, each once");
        assert!(kills > 1, "{call}: the node was killed");
    }
}

fn one_call(call: &'static str, messages: usize) -> usize {
    /// Earlier ones are those of clients that connect.
    const FIRST: usize = 6;
    let data = tempfile::tempdir().expect("a folder");
    let node = Arc::new(Mortal::default());
    let mut child = node.start(data.path(), &[]);
    subscribe(&node, "receiver", "job", 2);
    end(&node, child);
    let (taken, done) = (Taken::default(), AtomicBool::new(false));
    let ended = AtomicBool::new(false);
    let mut kills = 0;
    let dies_at = |kills| (kills < messages / 25).then_some((call, FIRST + kills));
    *node.dies_at.lock().expect("nobody panics with it") = dies_at(0);
    child = node.start(data.path(), &[]);
    std::thread::scope(|scope| {
        let (node, taken, done, ended) = (&node, &taken, &done, &ended);
        scope.spawn(move || subscriber(node, "receiver", taken, done, None));
        let _done = AtEnd(done);
        scope.spawn(move || {
            let _ended = AtEnd(ended);
            let acknowledged = publisher(node, "sender", "job", 2, messages, 4, None);
            assert_eq!(acknowledged.len(), messages);
            let lost = wait_for(taken, &acknowledged);
            assert!(lost.is_empty(), "lost {lost:?}");
        });
        while !ended.load(Ordering::SeqCst) {
            if child.has_ended() {
                kills += 1;
                *node.dies_at.lock().expect("nobody panics with it") = dies_at(kills);
                child = node.start(data.path(), &[]);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    assert_eq!(sum(&taken), (messages, 0), "each of them once");
    kills
}

fn one_case(messages: usize, plan: Plan, from_publisher: bool) -> usize {
    let data = tempfile::tempdir().expect("a folder");
    let node = Arc::new(Mortal::default());
    let mut child = node.start(data.path(), &[]);
    subscribe(&node, "receiver", "job", 2);
    let (taken, done) = (Taken::default(), AtomicBool::new(false));
    let ended = AtomicBool::new(false);
    let mut kills = 0;
    std::thread::scope(|scope| {
        let (node, taken, done, ended) = (&node, &taken, &done, &ended);
        let (first, second) = if from_publisher { (Some(plan), None) } else { (None, Some(plan)) };
        scope.spawn(move || subscriber(node, "receiver", taken, done, second));
        let _done = AtEnd(done);
        scope.spawn(move || {
            let _ended = AtEnd(ended);
            let acknowledged = publisher(node, "sender", "job", 2, messages, 4, first);
            assert_eq!(acknowledged.len(), messages);
            let lost = wait_for(taken, &acknowledged);
            assert!(lost.is_empty(), "lost {lost:?}");
        });
        kills = keep_alive(node, data.path(), &mut child, ended);
    });
    assert_eq!(sum(&taken), (messages, 0), "each of them once");
    kills
}

/// Starts it again whenever it dies, until all is over.
fn keep_alive(node: &Mortal, data: &Path, child: &mut Process, ended: &AtomicBool) -> usize {
    let mut kills = 0;
    while !ended.load(Ordering::SeqCst) {
        if child.has_ended() {
            kills += 1;
            *child = node.start(data, &[]);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    kills
}

/// A hundred thousand queued deliveries do not keep clients waiting. `OUTPOST_QUEUED` for as many; fewer otherwise.
#[test]
fn a_node_with_long_queues_is_back_soon() {
    let queued = number("OUTPOST_QUEUED", 10_000);
    let data = tempfile::tempdir().expect("a folder");
    let node = Arc::new(Mortal::default());
    let child = node.start(data.path(), &[]);
    (0..10).for_each(|n| subscribe(&node, &format!("away-{n}"), "job", 1));
    let acknowledged = publisher(&node, "sender", "job", 1, queued / 10, 64, None);
    assert_eq!(acknowledged.len(), queued / 10);
    end(&node, child);
    *node.slowest_start.lock().expect("nobody panics") = Duration::ZERO;
    let child = node.start(data.path(), &[]);
    let start = *node.slowest_start.lock().expect("nobody panics");
    eprintln!("{queued} queued: {start:?} from the start of the process to the first CONNACK");
    assert!(start < Duration::from_secs(30), "{start:?}");
    end(&node, child);
}

fn end(node: &Mortal, mut child: Process) {
    node.kill_9();
    child.wait();
}
