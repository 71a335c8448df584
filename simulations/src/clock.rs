//! Virtual time: what happens next, and when. Nothing waits; the clock jumps to the next thing due.

use std::collections::BTreeMap;

use outpost_model::Now;

/// Microseconds since the beginning of the simulated world.
pub type Micros = u64;

/// One millisecond.
pub const MS: Micros = 1_000;
/// One second.
pub const SECOND: Micros = 1_000_000;
/// What the wall clocks show when the world begins, milliseconds since 1970.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// Everything that is going to happen, in order. Things due at the same moment happen in the order they were planned.
#[derive(Debug)]
pub struct Clock<T> {
    now: Micros,
    planned: BTreeMap<(Micros, u64), T>,
    count: u64,
}

impl<T> Default for Clock<T> {
    fn default() -> Self {
        Self { now: 0, planned: BTreeMap::new(), count: 0 }
    }
}

impl<T> Clock<T> {
    /// The present moment.
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Plans something for a moment that is not past.
    pub fn at(&mut self, due: Micros, what: T) {
        self.count += 1;
        self.planned.insert((due.max(self.now), self.count), what);
    }

    /// Plans something for later.
    pub fn after(&mut self, delay: Micros, what: T) {
        self.at(self.now + delay, what);
    }

    /// Jumps to what is due next, unless it is due later than `until`; then the clock stands there.
    pub fn next(&mut self, until: Micros) -> Option<T> {
        let Some(entry) = self.planned.first_entry().filter(|entry| entry.key().0 <= until) else {
            self.now = self.now.max(until);
            return None;
        };
        self.now = entry.key().0;
        Some(entry.remove())
    }

    /// The present as a node sees it whose wall clock is off by so much.
    pub fn seen_with(&self, wall_offset_ms: i64) -> Now {
        let mono_ms = self.now / MS;
        Now { mono_ms, wall_ms: (EPOCH_MS + mono_ms).saturating_add_signed(wall_offset_ms) }
    }
}
