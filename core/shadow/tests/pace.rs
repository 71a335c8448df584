//! A backlog over a link that is known goes at the pace of that link, and what is written meanwhile goes before it.

mod support;

use std::collections::VecDeque;

use outpost_shadow::{Limits, PACE_BYTES_S_MAX, Path, ShadowKey};
use serde_json::json;
use support::{Dice, Net};

fn key(n: usize) -> ShadowKey {
    ShadowKey::classic(&format!("dev-{n:08}"))
}

fn write(net: &mut Net, n: usize, value: usize) {
    net.update(0, &key(n), &json!({"state": {"reported": {"level": value}}}));
}

/// Two hubs; the second one has missed `count` shadows that cannot be made much shorter.
fn behind(count: usize) -> Net {
    let mut net = Net::meshed(2, &Limits::default());
    net.cut(0, 1);
    let mut dice = Dice(7);
    for n in 0..count {
        let note: String = (0..300).map(|_| char::from(b'#' + dice.below(57) as u8)).collect();
        net.update(0, &key(n), &json!({"state": {"reported": {"level": n, "note": note}}}));
    }
    net.tick(0);
    net.settle();
    net.frames.clear();
    net
}

fn connect(net: &mut Net, path: Path) {
    net.connect(0, 1);
    let (peer, now) = (net.nodes[1].id, net.now(0));
    net.nodes[0].hub.handle_path(peer, path, now);
}

fn due_ms(net: &Net) -> Option<u64> {
    net.nodes[0].hub.next_tick_ms(net.now(0))
}

fn bytes(net: &Net) -> usize {
    net.frames.iter().map(Vec::len).sum()
}

/// 300 ms and 3 % of loss.
const FAR: Path = Path { rtt_ms: 300, sent: 1_000, lost: 30, window_bytes: 1 << 20 };

#[test]
fn a_backlog_over_a_far_link_is_spread_over_time() {
    let mut net = behind(6_000);
    connect(&mut net, FAR);
    net.settle();
    let at_once = bytes(&net);
    assert!(at_once < 400_000, "{at_once} bytes at once");
    assert_eq!(net.nodes[0].hub.stats().pace_bytes_s, 2_800_000);
    let begun_ms = net.now_ms;
    while net.nodes[1].hub.stats().records < 6_000 {
        let due = due_ms(&net).expect("a backlog waits");
        assert!(due > net.now_ms, "something is due, and time stands still");
        net.now_ms = due;
        net.tick(0);
        net.settle();
    }
    net.assert_equal("all of it");
    let (all, took_ms) = (bytes(&net) - at_once, net.now_ms - begun_ms);
    let per_s = all as u64 * 1_000 / took_ms;
    assert!((2_400_000..2_900_000).contains(&per_s), "{per_s} bytes a second for {all} bytes");
    assert!(net.nodes[0].hub.stats().paced > 10);
}

#[test]
fn what_is_written_now_waits_for_no_pace() {
    let mut net = behind(3_000);
    connect(&mut net, FAR);
    net.settle();
    let waits = net.nodes[1].hub.stats().records;
    assert!(waits < 3_000, "the backlog waits");
    for n in 0..200 {
        write(&mut net, 10_000 + n, n);
        net.settle();
        let seen = net.state(1, &key(10_000 + n)).0;
        assert_eq!(seen["reported"]["level"], n, "no time has passed");
    }
    assert_eq!(net.nodes[1].hub.stats().records, waits + 200, "and none of the backlog came");
    assert_eq!(net.nodes[0].hub.behind().count(), 1);
    net.now_ms += 60_000;
    for _ in 0..100 {
        net.now_ms += 100;
        net.tick(0);
        net.settle();
    }
    net.assert_equal("all of it");
    assert_eq!(net.nodes[0].hub.behind().count(), 0);
}

#[test]
fn shadows_that_were_asked_for_are_paced_and_what_is_written_goes_first() {
    let mut net = behind(2_000);
    net.connect(0, 1);
    net.settle();
    // Their places are void, and of 2,000 half differ.
    net.cut(0, 1);
    for (node, other) in [(0, 1), (1, 0)] {
        let (peer, now) = (net.nodes[other].id, net.now(node));
        net.nodes[node].hub.forget_peer(peer, now);
        net.drain(node);
    }
    (0..1_000).for_each(|n| write(&mut net, 2 * n, 9_000 + n));
    net.settle();
    let narrow = Path { rtt_ms: 5_000, sent: 1_000, lost: 900, window_bytes: 1 << 20 };
    connect(&mut net, narrow);
    net.settle();
    assert_eq!(net.nodes[0].hub.behind().count(), 1, "the backlog waits");
    write(&mut net, 1, 77);
    write(&mut net, 50_000, 78);
    net.settle();
    assert_eq!(net.state(1, &key(1)).0["reported"]["level"], 77);
    assert_eq!(net.state(1, &key(50_000)).0["reported"]["level"], 78);
    assert_eq!(net.nodes[0].hub.behind().count(), 1, "it still waits");
    for _ in 0..200 {
        net.now_ms += 100;
        net.tick(0);
        net.tick(1);
        net.settle();
    }
    net.assert_equal("all of it");
}

/// The longest frame when four short shadows stand before a long one, again and again.
fn longest_frame(lost: u64) -> usize {
    let mut dice = Dice(3);
    let limits = Limits { state_bytes_max: 30 << 10, ..Limits::default() };
    let mut net = Net::meshed(2, &limits);
    net.cut(0, 1);
    for n in 0..60 {
        let length = if n % 5 == 4 { 29_000 } else { 10_000 };
        let note: String = (0..length).map(|_| char::from(b'#' + dice.below(57) as u8)).collect();
        net.update(0, &key(n), &json!({"state": {"reported": {"note": note}}}));
    }
    net.settle();
    net.frames.clear();
    connect(&mut net, Path { lost, ..FAR });
    net.settle();
    net.frames.iter().map(Vec::len).max().expect("frames")
}

#[test]
fn frames_on_a_link_that_loses_much_are_shorter() {
    // A character of these notes takes three quarters of a byte.
    let (good, lossy) = (longest_frame(30), longest_frame(31));
    assert!(good > 50_000, "{good} bytes");
    assert!(lossy <= (64 << 10) * 3 / 4, "{lossy} bytes");
}

#[test]
fn a_link_of_which_nothing_is_known_is_not_held_back_and_a_good_one_hardly() {
    let mut net = behind(1_000);
    net.connect(0, 1);
    net.settle();
    net.assert_equal("at once");
    assert_eq!(net.nodes[0].hub.stats().paced, 0);
    assert_eq!(net.nodes[0].hub.stats().pace_bytes_s, PACE_BYTES_S_MAX);
    let mut net = behind(2_500);
    connect(&mut net, Path { rtt_ms: 1, sent: 10_000, lost: 0, window_bytes: 1 << 20 });
    net.settle();
    net.assert_equal("a second's burst of a good link takes them all");
}

/// A link from the first hub to the second in virtual time: a rate, and half a round trip each way. What QUIC would let be under
/// way is what the link holds.
struct Road {
    bytes_s: u64,
    path: Path,
    /// The last byte of what was put on it has left.
    free_us: u64,
    forth: VecDeque<(u64, Vec<u8>)>,
    back: VecDeque<(u64, Vec<u8>)>,
}

impl Road {
    fn new(bytes_s: u64, rtt_ms: u64, lost_permille: u64) -> Self {
        let window_bytes = (bytes_s * rtt_ms / 1_000).max(15_000) as usize;
        let path = Path { rtt_ms, sent: 1_000, lost: lost_permille, window_bytes };
        Self { bytes_s, path, free_us: 0, forth: VecDeque::new(), back: VecDeque::new() }
    }

    /// One millisecond passes. Bytes that arrived at the second hub.
    fn pass(&mut self, net: &mut Net) -> usize {
        net.now_ms += 1;
        let now_us = net.now_ms * 1_000;
        let (peer, now) = (net.nodes[1].id, net.now(0));
        if net.now_ms.is_multiple_of(250) {
            net.nodes[0].hub.handle_path(peer, self.path, now);
            net.drain(0);
        }
        if due_ms(net).is_some_and(|due| due <= net.now_ms) {
            net.tick(0);
        }
        (0..2).for_each(|node| while net.sync_one(node) {});
        let half_us = self.path.rtt_ms * 500;
        for frame in net.wire.get_mut(&(0, 1)).into_iter().flat_map(|wire| wire.drain(..)) {
            self.free_us = self.free_us.max(now_us) + frame.len() as u64 * 1_000_000 / self.bytes_s;
            self.forth.push_back((self.free_us + half_us, frame));
        }
        for frame in net.wire.get_mut(&(1, 0)).into_iter().flat_map(|wire| wire.drain(..)) {
            self.back.push_back((now_us + half_us, frame));
        }
        let mut arrived = 0;
        while let Some((_, frame)) = self.forth.pop_front_if(|(at_us, _)| *at_us <= now_us) {
            arrived += frame.len();
            net.wire.entry((0, 1)).or_default().push_back(frame);
            net.deliver_one(0, 1);
        }
        while let Some((_, frame)) = self.back.pop_front_if(|(at_us, _)| *at_us <= now_us) {
            net.wire.entry((1, 0)).or_default().push_back(frame);
            net.deliver_one(1, 0);
        }
        arrived
    }
}

#[test]
fn a_backlog_uses_four_fifths_of_a_link_at_least_and_keeps_nothing_waiting_for_long() {
    for (bytes_s, rtt_ms, lost_permille) in
        [(125_000, 20, 0), (1_250_000, 100, 10), (1_250_000, 300, 30), (1_250_000, 400, 30)]
    {
        let mut net = behind(6_000);
        let mut road = Road::new(bytes_s, rtt_ms, lost_permille);
        connect(&mut net, road.path);
        let (mut bytes, mut begun_ms, mut wrote_ms, mut seen_ms) = (0, 0, 0, 0);
        let last = key(90_000);
        while net.nodes[1].hub.stats().records < 6_001 {
            let arrived = road.pass(&mut net);
            let records = net.nodes[1].hub.stats().records;
            if records > 0 && begun_ms == 0 {
                begun_ms = net.now_ms; // not counted: how long the first one takes
            } else if begun_ms > 0 {
                bytes += arrived as u64;
            }
            if records > 1_500 && wrote_ms == 0 {
                wrote_ms = net.now_ms;
                write(&mut net, 90_000, 7);
            }
            if seen_ms == 0 && wrote_ms > 0 && net.document(1, &last).is_some() {
                seen_ms = net.now_ms;
            }
        }
        let (used, waited_ms) = (bytes * 1_000 / (net.now_ms - begun_ms), seen_ms - wrote_ms);
        let link = format!("{bytes_s} bytes a second, {rtt_ms} ms");
        println!("{link}: {used} bytes a second used, a write waited {waited_ms} ms");
        assert!(used * 5 >= bytes_s * 4, "{used} of {link}");
        assert!(waited_ms <= (5 * rtt_ms).max(1_000), "{waited_ms} ms at {link}");
    }
}
