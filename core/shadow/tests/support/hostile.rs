//! Frames as honest peers send them, and what a hostile one makes of them.

use outpost_shadow::{Limits, ShadowKey, Verb};
use serde_json::json;

use super::{Dice, Net};

/// Two hubs that have met, partitioned and merged, so that all kinds of frames and several epochs occur.
pub fn victim() -> Net {
    let limits = Limits { rebase_changes: 3, ..Limits::default() };
    let (lamp, other) = (ShadowKey::classic("lamp"), ShadowKey::named("lamp", "cfg"));
    let mut net = Net::meshed(2, &limits);
    for round in 0..4 {
        net.update(round % 2, &lamp, &json!({"state": {"desired": {"a": {"x": round}, "b": [1, 2]}, "reported": {"c": round}}}));
        net.settle();
    }
    net.cut(0, 1);
    for round in 0..5 {
        net.update(0, &lamp, &json!({"state": {"desired": {"left": round}}}));
        net.update(1, &lamp, &json!({"state": {"desired": {"right": round, "a": null}}}));
        net.update(1, &other, &json!({"state": {"desired": {"n": round}}}));
    }
    net.connect(0, 1);
    net.settle();
    net
}

/// All frames that two such hubs send each other, through a delete and a lost disk.
pub fn honest_frames() -> Vec<Vec<u8>> {
    let mut net = victim();
    net.ask(0, &ShadowKey::named("lamp", "cfg"), Verb::Delete, b"", None);
    net.settle();
    net.nodes[1].disk.rows().clear();
    net.crash(1);
    net.connect(0, 1);
    net.settle();
    net.frames
}

/// One of them with one to three kinds of harm done to it.
pub fn damaged(frames: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    let mut frame = frames[dice.below(frames.len())].clone();
    for _ in 0..=dice.below(3) {
        damage(&mut frame, frames, dice);
    }
    frame
}

fn damage(frame: &mut Vec<u8>, frames: &[Vec<u8>], dice: &mut Dice) {
    if frame.is_empty() {
        return;
    }
    let at = dice.below(frame.len());
    match dice.below(8) {
        0 | 1 => frame[at] ^= 1 << dice.below(8),
        2 => frame[at] = [0, 1, 0x7f, 0x80, 0xff][dice.below(5)],
        3 => frame.truncate(at),
        4 => {
            let length = dice.below(16).min(frame.len() - at);
            let piece = frame[at..at + length].to_vec();
            frame.splice(at..at, piece);
        }
        5 => {
            let end = (at + dice.below(8)).min(frame.len());
            frame.drain(at..end);
        }
        6 => {
            let other = &frames[dice.below(frames.len())];
            let from = dice.below(other.len());
            frame.truncate(at);
            frame.extend_from_slice(&other[from..]);
        }
        _ => frame[at] = frame[at].wrapping_add(1),
    }
}
