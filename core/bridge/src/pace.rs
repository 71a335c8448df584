//! How fast a bridge sends: a window of unacknowledged messages that grows while answers come quickly, and a rate.
//!
//! After an outage the window begins small, so that a broker that has just come back is not flooded with a backlog.

use outpost_flow::{Bucket, Rate, bytes_a_second};

/// Where the window begins, and what it never falls below. Lower: a backlog starts slowly; higher: a broker that has
/// just come back gets that many at once.
pub const WINDOW_MIN: usize = 8;

/// Answers this many times slower than the fastest one say that messages queue up on the way: the window is halved.
const SLOWDOWN: u64 = 4;
/// Answers faster than this never say so: a disk that syncs takes as long.
const PROMPT_MS: u64 = 50;
/// Bytes that may go at once after a pause, as a share of a second's.
const BURST_MS: u64 = 250;

/// Says when the next message may go.
#[derive(Debug, Clone)]
pub struct Pace {
    window: usize,
    window_max: usize,
    top_bytes_s: u64,
    bucket: Bucket,
    fastest_ms: u64,
    smooth_ms: u64,
    cut_ms: u64,
}

impl Pace {
    /// At most `window_max` messages unacknowledged, and `top_bytes_s` bytes a second; 0 is no rate.
    pub fn new(window_max: usize, top_bytes_s: u64) -> Self {
        let window_max = window_max.max(1);
        Self {
            window: WINDOW_MIN.min(window_max),
            window_max,
            top_bytes_s,
            bucket: Bucket::default(),
            fastest_ms: u64::MAX,
            smooth_ms: 0,
            cut_ms: 0,
        }
    }

    /// How many may be unacknowledged now.
    pub fn window(&self) -> usize {
        self.window
    }

    /// How long answers take lately; 0 before the first.
    pub fn rtt_ms(&self) -> u64 {
        self.smooth_ms
    }

    /// An answer came after so long: to a message, or to a ping.
    pub fn handle_answer(&mut self, took_ms: u64, now_ms: u64) {
        self.smooth_ms =
            if self.fastest_ms == u64::MAX { took_ms } else { (self.smooth_ms * 7 + took_ms) / 8 };
        self.fastest_ms = self.fastest_ms.min(took_ms);
        let queueing_ms = self.fastest_ms.max(PROMPT_MS) * SLOWDOWN;
        if self.smooth_ms <= queueing_ms {
            self.window = (self.window + 1).min(self.window_max);
        } else if now_ms >= self.cut_ms + self.smooth_ms {
            // Once a round trip: the answers of one window tell the same thing.
            self.window = (self.window / 2).max(WINDOW_MIN.min(self.window_max));
            self.cut_ms = now_ms;
        }
    }

    /// Takes the bytes of a message.
    ///
    /// # Errors
    /// The milliseconds to wait first.
    pub fn take(&mut self, bytes: usize, now_ms: u64) -> Result<(), u64> {
        if self.top_bytes_s == 0 {
            return Ok(());
        }
        let per_second = bytes_a_second(self.top_bytes_s, self.smooth_ms, 0.0).max(1);
        let rate = Rate { per_second, burst: (per_second * BURST_MS / 1000).max(1) };
        // What is larger than a burst passes with a full bucket.
        self.bucket.take(rate, (bytes as u64).min(rate.burst), now_ms).map_err(|fast| fast.wait_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_while_answers_are_quick_and_halves_when_they_queue() {
        let mut pace = Pace::new(100, 0);
        assert_eq!(pace.window(), WINDOW_MIN);
        (0..200).for_each(|n| pace.handle_answer(10, n));
        assert_eq!(pace.window(), 100);
        (0..40).for_each(|_| pace.handle_answer(3_000, 1_000));
        assert_eq!(pace.window(), 50, "once a round trip");
        (0..40).for_each(|n| pace.handle_answer(3_000, 5_000 + n * 3_000));
        assert_eq!(pace.window(), WINDOW_MIN);
        assert_eq!(Pace::new(3, 0).window(), 3, "a broker that takes less gets less");
    }

    #[test]
    fn the_rate_holds_back_and_lets_large_messages_pass() {
        let mut pace = Pace::new(10, 1_000);
        assert_eq!(pace.take(250, 0), Ok(()));
        let wait_ms = pace.take(250, 0).expect_err("the burst is used up");
        assert_eq!(wait_ms, 250);
        assert_eq!(pace.take(1_000_000, wait_ms), Ok(()), "larger than any burst");
        assert_eq!(Pace::new(10, 0).take(usize::MAX, 0), Ok(()));
    }
}
