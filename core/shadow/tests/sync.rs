//! How two hubs find out what the other lacks, and at what cost.

mod support;

use outpost_shadow::{Limits, ShadowKey};
use serde_json::json;
use support::{Dice, Net};

fn key(n: usize) -> ShadowKey {
    ShadowKey::classic(&format!("dev-{n:08}"))
}

fn write(net: &mut Net, node: usize, n: usize, section: &str, value: u64) {
    net.update(node, &key(n), &json!({"state": {section: {"level": value}}}));
}

/// Two hubs that know `count` shadows, and whose places in each other's feed are void.
fn strangers(count: usize) -> Net {
    let mut net = Net::meshed(2, &Limits::default());
    for n in 0..count {
        write(&mut net, n % 2, n, if n % 3 == 0 { "desired" } else { "reported" }, n as u64);
    }
    net.settle();
    strange(&mut net, 0, 1);
    net.settle();
    net.frames.clear();
    net.forget_published();
    net
}

/// Their places in each other's feed become void.
fn strange(net: &mut Net, a: usize, b: usize) {
    net.cut(a, b);
    for (node, other) in [(a, b), (b, a)] {
        let (peer, now) = (net.nodes[other].id, net.now(node));
        net.nodes[node].hub.forget_peer(peer, now);
        net.drain(node);
    }
}

fn bytes(net: &Net) -> usize {
    net.frames.iter().map(Vec::len).sum()
}

#[test]
fn hubs_that_have_forgotten_each_other_and_are_equal_say_next_to_nothing() {
    let mut net = strangers(400);
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the sketch");
    assert!(bytes(&net) < 1_200, "{} bytes for 400 equal shadows", bytes(&net));
}

#[test]
fn a_void_place_costs_what_differs_and_both_sides_get_it() {
    let mut net = strangers(400);
    for n in (0..400).step_by(40) {
        write(&mut net, n / 40 % 2, n, "reported", 7_000);
    }
    write(&mut net, 0, 1, "reported", 8_000);
    write(&mut net, 1, 1, "desired", 9_000);
    write(&mut net, 1, 900, "reported", 1);
    net.settle();
    net.forget_published();
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the sketch");
    assert!(bytes(&net) < 6_000, "{} bytes for 12 shadows of 401", bytes(&net));
    assert_eq!(net.state(0, &key(1)).0["reported"]["level"], 8_000);
    assert_eq!(net.state(0, &key(900)).0["reported"]["level"], 1);

    // The places are good again: what comes next costs what it says.
    net.cut(0, 1);
    write(&mut net, 0, 5, "reported", 55);
    net.frames.clear();
    net.connect(0, 1);
    net.settle();
    net.assert_equal("from the cursor");
    assert!(bytes(&net) < 300, "{} bytes for one leaf", bytes(&net));
}

#[test]
fn a_sketch_that_is_cut_off_anywhere_goes_on_with_less_and_shows_nothing_twice() {
    for cut_after in [1, 2, 3, 5, 8, 12] {
        let mut net = strangers(300);
        for n in 0..60 {
            write(&mut net, n % 2, 3 * n, "reported", 1_000 + n as u64);
        }
        net.settle();
        net.forget_published();
        net.connect(0, 1);
        let mut frames = 0;
        'cut: for _ in 0..1_000 {
            for (from, to) in [(0, 1), (1, 0)] {
                net.sync_one(from);
                frames += usize::from(net.deliver_one(from, to));
                if frames == cut_after {
                    break 'cut;
                }
            }
        }
        net.crash(cut_after % 2);
        net.connect(0, 1);
        net.settle();
        net.assert_equal("after the crash");
        for node in 0..2 {
            let shown = net.take_published(node, "update/documents").len();
            assert!(shown <= 30, "{shown} documents shown for 30 that were news");
        }
    }
}

#[test]
fn writes_that_come_while_the_difference_is_looked_for_are_not_lost() {
    for seed in 0..40usize {
        let mut net = strangers(200);
        for n in 0..40 {
            write(&mut net, n % 2, 5 * n, "reported", 1_000 + n as u64);
        }
        net.connect(0, 1);
        for step in 0..60 {
            let (from, to) = if (seed + step) % 3 == 0 { (0, 1) } else { (1, 0) };
            net.sync_one(from);
            net.deliver_one(from, to);
            if (seed + step) % 4 == 0 {
                let section = if step % 2 == 0 { "reported" } else { "desired" };
                write(
                    &mut net,
                    step % 2,
                    (seed * 31 + step * 5) % 200,
                    section,
                    5_000 + step as u64,
                );
            }
        }
        net.settle();
        net.assert_equal(&format!("seed {seed}"));
        net.cut(0, 1);
        net.connect(0, 1);
        net.frames.clear();
        net.settle();
        assert!(bytes(&net) < 400, "seed {seed}: places are good, and {} bytes came", bytes(&net));
    }
}

#[test]
fn three_hubs_that_meet_as_strangers_take_turns() {
    let mut net = Net::meshed(3, &Limits::default());
    for n in 0..150 {
        write(&mut net, n % 3, n, "reported", n as u64);
    }
    net.settle();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        strange(&mut net, a, b);
    }
    for n in 0..30 {
        write(&mut net, n % 3, n * 2, "reported", 500 + n as u64);
    }
    net.connect_all();
    net.settle();
    net.assert_equal("all three");
}

#[test]
fn a_new_hub_is_sent_the_feed_and_goes_on_where_it_was_cut_off() {
    let mut net = Net::new(2, &Limits::default());
    for n in 0..3_000 {
        write(&mut net, 0, n, "reported", n as u64);
    }
    // These move to later places, and take with them what was written first.
    for n in (0..3_000).step_by(7) {
        net.update(0, &key(n), &json!({"state": {"reported": {"other": n}}}));
    }
    net.settle();
    net.connect(0, 1);
    for _ in 0..6 {
        for (from, to) in [(0, 1), (1, 0)] {
            while net.sync_one(from) {}
            net.deliver_one(from, to);
        }
    }
    let before = net.nodes[1].hub.stats().records;
    assert!(before > 100 && before < 3_000, "{before} in the middle");
    net.crash(1);
    net.frames.clear();
    net.connect(0, 1);
    net.settle();
    net.assert_equal("all of it");
    let again: usize = net.nodes[1].hub.stats().records;
    assert_eq!(again, 3_000);
    net.take_published(1, "update/documents");
}

#[test]
fn a_shadow_that_changes_while_it_waits_to_be_sent_arrives_whole() {
    let mut net = Net::meshed(2, &Limits::default());
    for n in 0..4_000 {
        write(&mut net, 0, n, "reported", n as u64);
        if n % 50 == 0 {
            for (from, to) in [(0, 1), (1, 0)] {
                while net.sync_one(from) {}
                net.deliver_one(from, to);
            }
        }
        // The link is slow: most of this still waits, and changes again.
        let again = (n * 7_919) % (n + 1);
        net.update(0, &key(again), &json!({"state": {"reported": {"other": n}}}));
    }
    net.settle();
    net.assert_equal("after the rush");
}

#[test]
fn what_differs_may_take_many_frames_and_arrives_whole() {
    let mut net = strangers(900);
    let long = "x".repeat(300);
    for n in 0..600 {
        net.update(n % 2, &key(n), &json!({"state": {"reported": {"note": long, "n": n}}}));
        net.update(1 - n % 2, &key(n), &json!({"state": {"reported": {"also": n}}}));
    }
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after many frames");
    assert_eq!(net.state(1, &key(0)).0["reported"]["n"], 0);
}

/// A write of one of five fields of one of 150 shadows; it does not deflate well.
fn write_something(dice: &mut Dice, net: &mut Net, nodes: usize) {
    let note: String = (0..900).map(|_| char::from(b'#' + dice.below(57) as u8)).collect();
    let section = if dice.below(4) == 0 { "desired" } else { "reported" };
    let body = json!({"state": {section: {format!("of-{}", dice.below(5)): note}}});
    net.update(dice.below(nodes), &key(dice.below(150)), &body);
}

#[test]
fn a_backlog_of_many_frames_that_is_cut_off_and_changes_again_and_again_arrives_whole() {
    for seed in 0..20u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let nodes = 2 + (seed % 2) as usize;
        let mut net = Net::meshed(nodes, &Limits::default());
        net.cut(0, 1);
        (0..240).for_each(|_| write_something(&mut dice, &mut net, nodes));
        for _ in 0..400 {
            let from = dice.below(nodes);
            let to = (from + 1) % nodes;
            match dice.below(80) {
                0 => net.crash(from),
                1 => net.cut(from, to),
                2 if seed % 4 > 1 => strange(&mut net, from, to),
                3..=12 => net.connect(from, to),
                13..=34 => write_something(&mut dice, &mut net, nodes),
                _ => {
                    net.sync_one(from);
                    net.deliver_one(from, to);
                    net.deliver_one(to, from);
                }
            }
        }
        net.connect_all();
        net.settle();
        net.assert_equal(&format!("seed {seed}"));
    }
}

/// Everything synced, and one frame each way.
fn step(net: &mut Net) {
    for (from, to) in [(0, 1), (1, 0)] {
        while net.sync_one(from) {}
        net.deliver_one(from, to);
    }
}

#[test]
fn what_is_written_now_comes_before_the_backlog() {
    let mut net = Net::meshed(2, &Limits::default());
    net.cut(0, 1);
    let mut dice = Dice(7);
    for n in 0..3_000 {
        let note: String = (0..300).map(|_| char::from(b'#' + dice.below(57) as u8)).collect();
        net.update(0, &key(n), &json!({"state": {"reported": {"level": n, "note": note}}}));
    }
    net.settle();
    net.connect(0, 1);
    for _ in 0..1_000 {
        if net.nodes[1].hub.stats().records > 0 {
            break;
        }
        step(&mut net);
    }
    write(&mut net, 0, 2_990, "reported", 77);
    write(&mut net, 0, 5_000, "desired", 78);
    for _ in 0..1_000 {
        if net.state(1, &key(5_000)).0["desired"]["level"] == 78 {
            break;
        }
        step(&mut net);
    }
    assert_eq!(net.state(1, &key(2_990)).0["reported"]["level"], 77);
    let records = net.nodes[1].hub.stats().records;
    assert!(records < 2_400, "{records} of 3,001 came before what was written now");
    // Again while the backlog still goes: it moves once more.
    write(&mut net, 0, 2_990, "reported", 79);
    step(&mut net);
    net.settle();
    net.assert_equal("all of it");
    assert_eq!(net.state(1, &key(2_990)).0["reported"]["level"], 79);
    net.cut(0, 1);
    net.frames.clear();
    net.connect(0, 1);
    net.settle();
    assert!(bytes(&net) < 400, "the place is good, and {} bytes came", bytes(&net));
}

#[test]
fn a_reader_whose_sketch_took_too_long_is_sent_the_feed_and_its_place_is_good() {
    let mut net = Net::meshed(3, &Limits::default());
    for n in 0..300 {
        write(&mut net, n % 3, n, "reported", n as u64);
    }
    net.settle();
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        strange(&mut net, a, b);
    }
    for n in 0..90 {
        write(&mut net, n % 3, n * 3, "reported", 500 + n as u64);
    }
    net.settle();
    // The least id writes the sketch; the first reader's words do not come through, the other waits for its turn.
    let mut order = [0, 1, 2];
    order.sort_unstable_by_key(|node| net.nodes[*node].id);
    let [writer, slow, waits] = order;
    net.connect(writer, slow);
    let deliver = |net: &mut Net, links: &[(usize, usize)]| {
        for _ in 0..200 {
            (0..3).for_each(|node| while net.sync_one(node) {});
            links.iter().for_each(|(from, to)| _ = net.deliver_one(*from, *to));
        }
    };
    let hello = |net: &mut Net| {
        (0..3).for_each(|node| while net.sync_one(node) {});
        net.deliver_one(slow, writer);
    };
    hello(&mut net);
    deliver(&mut net, &[(writer, slow)]);
    net.connect(writer, waits);
    deliver(&mut net, &[(writer, slow), (writer, waits), (waits, writer)]);
    assert_ne!(net.nodes[writer].hub.fingerprint(), net.nodes[waits].hub.fingerprint());
    net.now_ms += 61_000;
    net.tick(writer);
    net.settle();
    // The slow one was to be told by the same sketch what it has alone; it makes one of its own now.
    net.tick(slow);
    net.settle();
    net.connect_all();
    net.settle();
    net.assert_equal("nobody waits any more");
    for reader in [slow, waits] {
        net.cut(writer, reader);
        net.frames.clear();
        net.connect(writer, reader);
        net.settle();
        assert!(bytes(&net) < 400, "the place is good, and {} bytes came", bytes(&net));
    }
}

/// The frames with shadows from one hub to another that knows nothing yet, which says in its hello, or not, that it reads
/// hashes apart.
fn frames_to(reads_apart: bool) -> Vec<Vec<u8>> {
    let mut net = Net::new(2, &Limits::default());
    for n in 0..40 {
        write(&mut net, 0, n, "desired", n as u64);
        write(&mut net, 0, n, "desired", 70 + n as u64);
        write(&mut net, 0, n, "reported", n as u64);
    }
    net.connect(0, 1);
    (0..2).for_each(|node| while net.sync_one(node) {});
    let hello = net.wire.get_mut(&(1, 0)).and_then(|wire| wire.front_mut()).expect("a hello");
    let slot = hello.last_mut().expect("its own slot comes last");
    assert_eq!(*slot & 0b1100_0000, 0b0100_0000, "it reads them apart");
    if !reads_apart {
        *slot &= 0b0011_1111;
    }
    net.settle();
    net.assert_equal("in either form");
    net.frames.into_iter().filter(|frame| frame[1] == 1).collect()
}

#[test]
fn a_peer_of_an_earlier_build_is_sent_what_it_reads() {
    let (before, now) = (frames_to(false), frames_to(true));
    assert!(before.iter().all(|frame| frame[0] == 2), "nothing it would refuse");
    assert!(now.iter().any(|frame| frame[0] == 3));
    let bytes = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).sum::<usize>();
    assert!(bytes(&now) < bytes(&before), "{} and {} bytes", bytes(&now), bytes(&before));
}

#[test]
fn a_node_that_is_back_is_not_forgotten() {
    let mut net = Net::meshed(2, &Limits::default());
    let (peer, now) = (net.nodes[1].id, net.now(0));
    net.nodes[0].hub.forget_peer(peer, now);
    net.update(1, &ShadowKey::classic("lamp"), &json!({"state": {"reported": {"on": true}}}));
    net.settle();
    net.assert_equal("its frames are taken");
}
