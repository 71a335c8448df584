//! The only place where the node looks at a clock.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outpost_model::Now;

static START: OnceLock<Instant> = OnceLock::new();

/// How long a thread reckons on from its last look at the wall clock. Shorter: a look for each message of a quiet node;
/// longer: a clock that was set is noticed later.
const WALL_LOOK_EVERY_MS: u64 = 20;

thread_local! {
    /// The monotonic millisecond in which this thread looked at the wall clock last, and what that said.
    static WALL: Cell<(u64, u64)> = const { Cell::new((u64::MAX, 0)) };
}

/// What both clocks say now.
pub fn now() -> Now {
    now_and_us().0
}

/// The same, and the monotonic clock in microseconds, looked at once.
pub fn now_and_us() -> (Now, u64) {
    let mono_us = now_us();
    let mono_ms = mono_us / 1_000;
    (Now { mono_ms, wall_ms: wall_ms(mono_ms) }, mono_us)
}

/// The wall clock, looked at now and then: each look costs a data thread that is asked for one for every message.
fn wall_ms(mono_ms: u64) -> u64 {
    let (looked_ms, wall_ms) = WALL.get();
    let since_ms = mono_ms.checked_sub(looked_ms);
    if let Some(since_ms) = since_ms.filter(|since_ms| *since_ms < WALL_LOOK_EVERY_MS) {
        return wall_ms + since_ms;
    }
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall_ms = wall.as_millis() as u64;
    WALL.set((mono_ms, wall_ms));
    wall_ms
}

/// The monotonic clock in microseconds, for what is too quick for [`now`].
pub fn now_us() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}
