//! Frames no honest peer sends: valid ones with bytes flipped, cut, repeated and spliced. A hub takes such a frame or
//! refuses it; it never panics, and after a refusal it is as it was.

mod support;

use outpost_model::Hlc;
use outpost_shadow::{Hub, Limits, PeerError, ShadowKey, Verb};
use serde_json::json;
use support::hostile::{damaged, honest_frames, victim};
use support::{Dice, Net};

/// How many damaged frames are tried.
const FRAMES: u64 = 100_000;

#[test]
fn a_hundred_thousand_damaged_frames_change_nothing_when_they_are_refused() {
    quiet_panics();
    let frames = honest_frames();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    let (mut net, mut refused, mut taken) = (victim(), 0u64, 0u64);
    for round in 0..FRAMES {
        let frame = damaged(&frames, &mut dice);
        let (now, peer) = (net.now(0), net.nodes[1].id);
        let before = net.nodes[0].hub.fingerprint();
        let hub = &mut net.nodes[0].hub;
        if hub.handle_peer_frame(peer, &frame, now).is_ok() {
            taken += 1;
        } else {
            refused += 1;
            assert_eq!(
                hub.fingerprint(),
                before,
                "frame {round} was refused and changed something"
            );
        }
        while hub.poll_effect().is_some() {}
        if round % 1_000 == 999 {
            still_works(&mut net);
            net = victim();
        }
    }
    println!("{refused} refused, {taken} taken");
    assert!(refused > FRAMES / 4 && taken > FRAMES / 100, "{refused} refused, {taken} taken");
}

#[test]
fn a_stamp_from_the_far_future_is_refused_and_the_clock_stays() {
    let mut net = Net::new(2, &Limits::default());
    net.nodes[1].skew_ms = 10 * 60_000; // wrong from its first start on, so nothing tells it otherwise
    net.update(1, &ShadowKey::classic("lamp"), &json!({"state": {"desired": {"a": 1}}}));
    net.connect(0, 1);
    let mut refusal = None;
    for _ in 0..50 {
        for node in 0..2 {
            net.sync_one(node);
        }
        net.deliver_one(0, 1);
        let Some(frame) = net.wire.get_mut(&(1, 0)).and_then(std::collections::VecDeque::pop_front)
        else {
            continue;
        };
        let (now, peer) = (net.now(0), net.nodes[1].id);
        let floor = net.nodes[0].hub.hlc_floor();
        if let Err(error) = net.nodes[0].hub.handle_peer_frame(peer, &frame, now) {
            assert_eq!(net.nodes[0].hub.hlc_floor(), floor);
            refusal = Some(error);
        }
        net.drain(0);
    }
    assert!(matches!(refusal, Some(PeerError::Clock { .. })), "{refusal:?}");
    assert!(net.document(0, &ShadowKey::classic("lamp")).is_none());
}

#[test]
fn a_peer_that_goes_on_sending_while_nobody_listens_is_not_shut_out_for_longer() {
    let mut net = Net::meshed(2, &Limits::default());
    let peer = net.nodes[1].id;
    let left_ms = |net: &Net| {
        let now = net.now(0);
        let left = net.nodes[0].hub.quarantined(now).next();
        left.map_or(0, |(_, quarantine)| quarantine.until_ms - now.mono_ms)
    };
    let rubbish = |net: &mut Net| {
        let now = net.now(0);
        let hub = &mut net.nodes[0].hub;
        if let Err(error) = hub.handle_peer_frame(peer, b"rubbish", now) {
            hub.quarantine(peer, &error, now);
        }
        net.drain(0);
    };
    let link_anew = |net: &mut Net| {
        net.cut(0, 1);
        net.connect(0, 1);
    };
    rubbish(&mut net);
    assert_eq!(left_ms(&net), 60_000);
    // With this link, and with the next one.
    for _ in 0..50 {
        rubbish(&mut net);
        link_anew(&mut net);
        rubbish(&mut net);
    }
    assert_eq!(left_ms(&net), 60_000);
    let due = net.nodes[0].hub.next_tick_ms(net.now(0));
    assert_eq!(due, Some(net.now_ms + 60_000), "nothing is due before");
    net.now_ms += 60_000;
    net.tick(0);
    assert_eq!(left_ms(&net), 0);
    link_anew(&mut net);
    rubbish(&mut net);
    assert_eq!(left_ms(&net), 120_000, "a new offence: twice as long");
}

#[test]
fn damaged_rows_are_left_out_and_do_not_panic() {
    quiet_panics();
    let mut net = victim();
    net.settle();
    let rows: Vec<(Vec<u8>, Vec<u8>)> = net.nodes[0].disk.rows().clone().into_iter().collect();
    for seed in 0..20_000usize {
        let mut hub = Hub::new(support::config(0, &Limits::default()), 9, Hlc::default());
        let (key, mut value) = rows[seed % rows.len()].clone();
        let at = (seed * 7919) % value.len().max(1);
        value[at] ^= 1 << (seed % 8);
        if hub.load_row(&key, &value).is_ok() {
            // Whatever it says now, it can be written to.
            hub.handle_request(
                ShadowKey::classic("lamp"),
                Verb::Update,
                br#"{"state":{"desired":{"a":9}}}"#,
                net.now(0),
            );
        }
    }
}

/// A number as frames have it.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[test]
fn a_sketch_of_more_shadows_than_can_be_counted_is_no_sketch() {
    let mut net = victim();
    net.settle();
    let mut frame = vec![2, 3, 1, 1];
    frame.extend([0; 8]); // the feed
    frame.push(0);
    frame.extend([0; 16]); // the salt
    varint(u64::MAX, &mut frame);
    frame.extend([0, 32]);
    for symbol in 0..32u64 {
        frame.extend((symbol + 1).to_be_bytes());
        frame.extend([9, 9, 9, 9, 6]); // a hash of nothing, and three more than before
    }
    let (now, peer) = (net.now(0), net.nodes[1].id);
    let taken = net.nodes[0].hub.handle_peer_frame(peer, &frame, now);
    assert_eq!(taken, Ok(()), "it can only make this node ask");
    still_works(&mut net);
}

#[test]
fn who_asks_for_ever_more_shadows_and_takes_none_is_refused() {
    const KEYS: u64 = 10_000;
    let mut net = victim();
    net.settle();
    let (now, peer) = (net.now(0), net.nodes[1].id);
    let refused = (0..100u64).find_map(|round| {
        let mut frame = vec![2, 4];
        varint(KEYS, &mut frame);
        for key in 0..KEYS {
            let thing = format!("{:07}", round * KEYS + key);
            frame.push(thing.len() as u8);
            frame.extend(thing.as_bytes());
            frame.push(0);
        }
        let result = net.nodes[0].hub.handle_peer_frame(peer, &frame, now);
        while net.nodes[0].hub.poll_effect().is_some() {} // it acknowledges nothing
        result.err()
    });
    assert!(matches!(refused, Some(PeerError::Unsound { .. })), "{refused:?}");
    still_works(&mut net);
}

/// Damaged changes may make automerge panic; that is caught, but would fill the test's output.
fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        if info.location().is_none_or(|at| {
            !at.file().contains("automerge")
                && !at.file().contains("hexane")
                && !at.file().contains("/rustc/")
        }) {
            eprintln!("{info}");
        }
    }));
}

fn still_works(net: &mut Net) {
    net.drain(0);
    net.ask(0, &ShadowKey::classic("other"), Verb::Get, b"", Some(1));
    while net.sync_one(0) {}
    assert_eq!(net.nodes[0].replies.pop().map(|reply| reply.1), Some(404));
    let now = net.now(0);
    let peer = net.nodes[1].id;
    net.nodes[0].hub.peer_down(peer, now);
    net.ask(
        0,
        &ShadowKey::classic("lamp"),
        Verb::Update,
        br#"{"state":{"desired":{"z":1}}}"#,
        Some(2),
    );
    while net.sync_one(0) {}
    assert_eq!(net.nodes[0].replies.pop().map(|reply| reply.1), Some(200));
}
