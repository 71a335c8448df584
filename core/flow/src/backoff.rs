//! Exponential back-off with a cap; the jitter is an argument.

/// The delay before try number `attempt` (the first is 0): `ms_min`, doubled each time, never above `ms_max`.
pub fn exponential_ms(ms_min: u64, ms_max: u64, attempt: u32) -> u64 {
    let factor = 1_u64.checked_shl(attempt).unwrap_or(u64::MAX);
    ms_min.saturating_mul(factor).min(ms_max)
}

/// Spreads `delay_ms` over its upper half, so that many that failed together do not return together.
///
/// `dice` is 32 random bits: 0 gives half the delay, `u32::MAX` all of it.
pub fn jittered_ms(delay_ms: u64, dice: u32) -> u64 {
    let half = delay_ms / 2;
    let spread = delay_ms - half;
    half + ((u128::from(spread) * (u128::from(dice) + 1)) >> 32) as u64
}

/// Counts the tries of one thing and says how long to wait before the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backoff {
    ms_min: u64,
    ms_max: u64,
    attempt: u32,
}

impl Backoff {
    /// Delays from `ms_min` (too small: a tight loop of tries) to `ms_max` (too great: what healed is noticed late).
    pub fn new(ms_min: u64, ms_max: u64) -> Self {
        Self { ms_min: ms_min.min(ms_max), ms_max, attempt: 0 }
    }

    /// A try failed: how long to wait before the next one, spread by `dice` (32 random bits).
    pub fn handle_failure(&mut self, dice: u32) -> u64 {
        let delay_ms = exponential_ms(self.ms_min, self.ms_max, self.attempt);
        self.attempt = self.attempt.saturating_add(1);
        jittered_ms(delay_ms, dice)
    }

    /// A try succeeded: the next failure starts again from `ms_min`.
    pub fn handle_success(&mut self) {
        self.attempt = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_never_overflow() {
        let delays: Vec<u64> = (0..8).map(|n| exponential_ms(100, 3_000, n)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_600, 3_000, 3_000, 3_000]);
        assert_eq!(exponential_ms(100, 3_000, 63), 3_000);
        assert_eq!(exponential_ms(100, 3_000, u32::MAX), 3_000);
        assert_eq!(exponential_ms(0, 3_000, 5), 0);
    }

    #[test]
    fn jitter_stays_in_the_upper_half() {
        assert_eq!(jittered_ms(1_000, 0), 500);
        assert_eq!(jittered_ms(1_000, u32::MAX / 2), 750);
        assert_eq!(jittered_ms(1_000, u32::MAX), 1_000);
        assert_eq!(jittered_ms(0, u32::MAX), 0);
        assert_eq!(jittered_ms(u64::MAX, u32::MAX), u64::MAX);
    }

    #[test]
    fn a_success_starts_the_delays_again() {
        let mut backoff = Backoff::new(100, 1_000);
        assert_eq!(backoff.handle_failure(u32::MAX), 100);
        assert_eq!(backoff.handle_failure(u32::MAX), 200);
        assert_eq!(backoff.failures(), 2);
        backoff.handle_success();
        assert_eq!(backoff.handle_failure(u32::MAX), 100);
    }
}
