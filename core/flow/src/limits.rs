//! Rate limits: a token bucket in one word per limited thing (GCRA, ITU-T I.371 annex A).
//!
//! The bucket keeps only the moment at which it will be full again. The [`Rate`] is shared by all that obey it.

use std::fmt;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// How much per second, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units (messages, bytes, …) per second. Zero lets nothing through after the first burst.
    pub per_second: u64,
    /// Units that may come at once after a pause. Too small: ordinary clumps are punished; too great: a flood passes.
    pub burst: u64,
}

impl Rate {
    /// The time `units` take at this rate.
    fn cost_ns(self, units: u64) -> u64 {
        if self.per_second == 0 {
            return if units == 0 { 0 } else { u64::MAX };
        }
        u64::try_from(u128::from(units) * u128::from(NS_PER_S) / u128::from(self.per_second))
            .unwrap_or(u64::MAX)
    }
}

/// The bucket has too few tokens. Nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooFast {
    /// After this long the same request would pass; `u64::MAX` when it never will.
    pub wait_ms: u64,
}

impl fmt::Display for TooFast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "over the rate limit, try again in {} ms; nothing was taken", self.wait_ms)
    }
}

impl std::error::Error for TooFast {}

/// One limited thing: eight bytes. Starts full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// When the bucket is full again, nanoseconds on the caller's clock.
    full_ns: u64,
}

impl Bucket {
    /// Takes `units` out.
    ///
    /// # Errors
    /// [`TooFast`] when fewer are in it; then none is taken. More than `rate.burst` at once never passes.
    pub fn take(&mut self, rate: Rate, units: u64, now_ms: u64) -> Result<(), TooFast> {
        let now_ns = now_ms.saturating_mul(NS_PER_MS);
        if units > rate.burst {
            return Err(TooFast { wait_ms: u64::MAX });
        }
        if rate.per_second == 0 {
            return self.take_once(units);
        }
        let full_ns = self.full_ns.max(now_ns).saturating_add(rate.cost_ns(units));
        let late_ns = full_ns.saturating_sub(now_ns.saturating_add(rate.cost_ns(rate.burst)));
        if late_ns > 0 {
            return Err(TooFast { wait_ms: late_ns.div_ceil(NS_PER_MS) });
        }
        self.full_ns = full_ns;
        Ok(())
    }

    /// Whether nothing is missing in it.
    pub fn is_full(&self, now_ms: u64) -> bool {
        self.full_ns <= now_ms.saturating_mul(NS_PER_MS)
    }

    /// A rate of zero: the first burst passes, whatever part of it is used, and then nothing ever.
    fn take_once(&mut self, units: u64) -> Result<(), TooFast> {
        if units > 0 && self.full_ns == u64::MAX {
            return Err(TooFast { wait_ms: u64::MAX });
        }
        if units > 0 {
            self.full_ns = u64::MAX;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_A_SECOND: Rate = Rate { per_second: 10, burst: 3 };

    #[test]
    fn a_burst_passes_and_then_one_each_hundred_milliseconds() {
        let mut bucket = Bucket::default();
        for _ in 0..3 {
            assert_eq!(bucket.take(TEN_A_SECOND, 1, 5_000), Ok(()));
        }
        assert_eq!(bucket.take(TEN_A_SECOND, 1, 5_000), Err(TooFast { wait_ms: 100 }));
        assert_eq!(bucket.take(TEN_A_SECOND, 1, 5_099), Err(TooFast { wait_ms: 1 }));
        assert_eq!(bucket.take(TEN_A_SECOND, 1, 5_100), Ok(()));
        assert_eq!(bucket.take(TEN_A_SECOND, 1, 5_100), Err(TooFast { wait_ms: 100 }));
    }

    #[test]
    fn a_pause_never_saves_more_than_the_burst() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(TEN_A_SECOND, 1, 0), Ok(()));
        assert_eq!(bucket.take(TEN_A_SECOND, 3, 1_000_000), Ok(()));
        assert_eq!(bucket.take(TEN_A_SECOND, 1, 1_000_000), Err(TooFast { wait_ms: 100 }));
    }

    #[test]
    fn more_than_the_burst_is_refused_for_ever_and_takes_nothing() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(TEN_A_SECOND, 4, 1_000), Err(TooFast { wait_ms: u64::MAX }));
        assert_eq!(bucket.take(TEN_A_SECOND, 3, 1_000), Ok(()));
    }

    #[test]
    fn a_thousand_seconds_of_greed_get_what_the_rate_promises() {
        let rate = Rate { per_second: 333, burst: 50 };
        let mut bucket = Bucket::default();
        let passed = (0..1_000_000).filter(|ms| bucket.take(rate, 1, *ms).is_ok()).count();
        assert!((333_000..=333_050).contains(&passed), "{passed} passed");
    }

    #[test]
    fn a_rate_of_zero_lets_one_burst_through_and_extremes_do_not_overflow() {
        let mut bucket = Bucket::default();
        let never_again = Rate { per_second: 0, burst: 1 };
        assert_eq!(bucket.take(never_again, 1, 7), Ok(()));
        assert_eq!(bucket.take(never_again, 1, u64::MAX / 2), Err(TooFast { wait_ms: u64::MAX }));
        let huge = Rate { per_second: u64::MAX, burst: u64::MAX };
        assert_eq!(Bucket::default().take(huge, u64::MAX, 0), Ok(()));
        assert_eq!(size_of::<Bucket>(), 8);
    }
}
