//! The only place where the node looks at a clock.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outpost_model::Now;

static START: OnceLock<Instant> = OnceLock::new();

/// What both clocks say now.
pub fn now() -> Now {
    let start = *START.get_or_init(Instant::now);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono_ms: start.elapsed().as_millis() as u64, wall_ms: wall.as_millis() as u64 }
}

/// The monotonic clock in microseconds, for what is too quick for [`now`].
pub fn now_us() -> u64 {
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}
