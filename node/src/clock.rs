//! The only place where the node looks at a clock.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outpost_model::Now;

static START: OnceLock<Instant> = OnceLock::new();

/// What both clocks say now.
pub fn now() -> Now {
    now_and_us().0
}

/// The same, and the monotonic clock in microseconds, looked at once.
pub fn now_and_us() -> (Now, u64) {
    let mono_us = now_us();
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Now { mono_ms: mono_us / 1_000, wall_ms: wall.as_millis() as u64 }, mono_us)
}

/// The monotonic clock in microseconds, for what is too quick for [`now`].
pub fn now_us() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}
