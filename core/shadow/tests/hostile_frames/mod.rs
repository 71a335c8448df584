//! Frames of a peer that knows the format and all checksums: honest ones with bytes flipped, cut, repeated and spliced
//! before they were packed, and whose changes count as having the hash they say.
//!
//! A hub takes such a frame or refuses it. It never panics, makes no allocation over 4 MB and four times the frame, and
//! after a refusal it is as it was.
//!
//! `SHADOW_FRAMES=1000000 cargo test -p outpost-shadow --lib hostile -- --nocapture` tries a million.

#[path = "../support/mod.rs"]
#[allow(clippy::duplicate_mod, reason = "tests in the crate itself share it with the schedules")]
mod support;

use outpost_shadow::{Limits, ShadowKey, Verb};
use serde_json::json;
use support::Net;

use crate::meter;
use crate::planted::{self, Bug};
use crate::wire::{MEMORY_BASE, MEMORY_PER_BYTE};

/// How many frames are tried by default.
const FRAMES: usize = 40_000;
const WORKERS: usize = 2;

#[derive(Debug, Default)]
struct Seen {
    refused: u64,
    taken: u64,
    caught: u64,
    largest: usize,
    most: usize,
}

#[test]
fn frames_of_a_hostile_peer_change_nothing_when_they_are_refused() {
    let frames = std::env::var("SHADOW_FRAMES").ok().and_then(|text| text.parse().ok());
    let each = frames.unwrap_or(FRAMES) / WORKERS;
    crate::schedules::quiet_panics();
    let seen: Vec<Seen> = std::thread::scope(|scope| {
        let work = |worker: usize| move || attack(worker as u64 + 1, each);
        let all: Vec<_> = (0..WORKERS).map(|worker| scope.spawn(work(worker))).collect();
        all.into_iter().map(|one| one.join().expect("a frame did harm, see above")).collect()
    });
    println!("{each} frames each: {seen:?}");
    for one in seen {
        let each = each as u64;
        assert!(one.refused > each / 8 && one.taken > each / 50, "{one:?}");
    }
}

fn attack(seed: u64, count: usize) -> Seen {
    planted::plant(Some(Bug::ChecksumsIgnored));
    let frames = honest_frames();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % limit.max(1) as u64) as usize
    };
    let (mut net, mut seen) = (victim(), Seen::default());
    for round in 0..count {
        let mut frame = frames[below(frames.len())].clone();
        for _ in 0..=below(3) {
            damage(&mut frame, &frames, &mut below);
        }
        let (now, peer) = (net.now(0), net.nodes[1].id);
        let hub = &mut net.nodes[0].hub;
        let before = hub.fingerprint();
        crate::schedules::QUIET.set(true);
        meter::reset();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            hub.handle_peer_frame(peer, &frame, now)
        }));
        let (largest, most) = meter::read();
        crate::schedules::QUIET.set(false);
        let result =
            result.unwrap_or_else(|_| panic!("frame {round} of {seed} panicked: {frame:?}"));
        let limit = MEMORY_BASE + MEMORY_PER_BYTE * frame.len();
        assert!(largest <= limit, "frame {round} of {seed}: {largest} bytes for {}", frame.len());
        (seen.largest, seen.most) = (seen.largest.max(largest), seen.most.max(most));
        match result {
            Ok(()) => seen.taken += 1,
            Err(error) => {
                seen.refused += 1;
                seen.caught += u64::from(error.to_string().contains("automerge"));
                assert_eq!(hub.fingerprint(), before, "frame {round} of {seed}: {error}");
            }
        }
        while hub.poll_effect().is_some() {}
        if round % 500 == 499 {
            net = victim();
        }
    }
    planted::plant(None);
    seen
}

/// Two hubs that have met, parted and merged, so that all kinds of frames and several epochs occur.
fn victim() -> Net {
    let limits = Limits { rebase_changes: 3, ..Limits::default() };
    let lamp = ShadowKey::classic("lamp");
    let mut net = Net::meshed(2, &limits);
    for round in 0..3 {
        net.update(round % 2, &lamp, &json!({"state": {"desired": {"a": {"x": round}, "b": [1, 2]}, "reported": {"c": round}}}));
        net.settle();
    }
    net.cut(0, 1);
    for round in 0..4 {
        net.update(0, &lamp, &json!({"state": {"desired": {"left": round}}}));
        net.update(1, &lamp, &json!({"state": {"desired": {"right": round, "a": null}}}));
        net.update(
            1,
            &ShadowKey::named("lamp", "cfg"),
            &json!({"state": {"desired": {"n": round}}}),
        );
    }
    net.connect(0, 1);
    net.settle();
    net
}

fn honest_frames() -> Vec<Vec<u8>> {
    let mut net = victim();
    net.ask(0, &ShadowKey::named("lamp", "cfg"), Verb::Delete, b"", None);
    net.settle();
    net.nodes[1].disk.clear();
    net.crash(1);
    net.connect(0, 1);
    net.settle();
    // Those with shadows in them are where harm is done.
    let items: Vec<Vec<u8>> = net.frames.iter().filter(|frame| frame[1] == 1).cloned().collect();
    net.frames.into_iter().chain(items.iter().cloned()).chain(items.iter().cloned()).collect()
}

fn damage(frame: &mut Vec<u8>, frames: &[Vec<u8>], below: &mut impl FnMut(usize) -> usize) {
    if frame.is_empty() {
        return;
    }
    let at = below(frame.len());
    match below(8) {
        0 | 1 => frame[at] ^= 1 << below(8),
        2 => frame[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)],
        3 => frame.truncate(at),
        4 => {
            let length = below(16).min(frame.len() - at);
            let piece = frame[at..at + length].to_vec();
            frame.splice(at..at, piece);
        }
        5 => {
            let end = (at + below(8)).min(frame.len());
            frame.drain(at..end);
        }
        6 => {
            let other = &frames[below(frames.len())];
            let from = below(other.len());
            frame.truncate(at);
            frame.extend_from_slice(&other[from..]);
        }
        _ => frame[at] = frame[at].wrapping_add(1),
    }
}
