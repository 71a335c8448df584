//! The time as the hub takes it: stamps, ages, and what is kept of it on disk.
//!
//! How old something is decides whether a deleted key is forgotten, so it is asked of the reckoned time and not of a wall
//! clock that may lie. Rows carry the stamps they were written with; of the time between writes a row of the hub's own says
//! how late it was, so that a start without a clock does not begin before it.

use outpost_model::{Hlc, HlcClock, Now};

use crate::hub::Hub;
use crate::planted::{Bug, is};

/// So often the time is written down while nothing else is. Rarer and a node that starts without a clock takes the time for
/// that much earlier, until a peer tells it; more often and flash is worn for nothing.
const KEEP_TIME_MS: u64 = 600_000;

impl Hub {
    /// Milliseconds since 1970, as far as the wall clock is believed.
    pub(crate) fn time_ms(&self, now: Now) -> u64 {
        if is(Bug::AgesFollowWallClock) { now.wall_ms } else { self.clock.reckoned_ms(now) }
    }

    /// The same, with the monotonic clock.
    pub(crate) fn reckoned(&self, now: Now) -> Now {
        Now { wall_ms: self.time_ms(now), ..now }
    }

    /// The stamp of something that happens here and now.
    pub(crate) fn stamp(&mut self, now: Now) -> Hlc {
        if is(Bug::StampsFollowWallClock) {
            self.clock =
                HlcClock::new(Hlc::from_ms(now.wall_ms).max(Hlc(self.clock.floor().0 + 1)));
            return self.clock.floor();
        }
        self.clock.tick(now)
    }

    /// Looks at the clock, and from time to time writes down how late it is.
    pub(crate) fn keep_time(&mut self, now: Now) {
        self.clock.look_at(now);
        if self.time_ms(now) >= self.time_kept_ms.saturating_add(KEEP_TIME_MS) {
            self.clock.raise_floor(now);
            self.save_own();
        }
    }

    /// A row with stamps up to this one was loaded.
    pub(crate) fn know_time(&mut self, latest: Hlc) {
        if !is(Bug::FloorLost) {
            self.clock = HlcClock::new(self.clock.floor().max(latest));
        }
    }
}
