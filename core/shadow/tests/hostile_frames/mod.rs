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

use support::Dice;
use support::hostile::{damaged, honest_frames, victim};

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
    let frames = frames_to_damage();
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut net, mut seen) = (victim(), Seen::default());
    for round in 0..count {
        let frame = damaged(&frames, &mut dice);
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

/// Those with shadows in them are where harm is done, so they come three times as often.
fn frames_to_damage() -> Vec<Vec<u8>> {
    let frames = honest_frames();
    let items: Vec<Vec<u8>> = frames.iter().filter(|frame| frame[1] == 1).cloned().collect();
    frames.into_iter().chain(items.iter().cloned()).chain(items.iter().cloned()).collect()
}
