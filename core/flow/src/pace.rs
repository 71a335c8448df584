//! Pacing of publishers: how long to wait before the next message of one is read.
//!
//! Three rules, for each publisher by itself:
//!
//! * its messages and bytes a second have a limit, multiplied by (1 − backlog) when memory gets short, with a floor;
//! * who sends more than [`AGREED_PERCENT`] percent of the agreed rate for [`DEMOTE_MS`] is read with low priority: one
//!   read in [`LOW_TURN_MS`], until it keeps to the agreed rate for as long;
//! * messages nobody could take cost what [`permits`] leaves at a backlog of one.
//!
//! Waiting is all that ever happens: nothing is refused here, and TCP tells the publisher.

/// A publisher waits at most this long before it is looked at again. Longer: it is still slow when there is room again;
/// shorter: more wake-ups for each publisher that waits.
pub const WAIT_MS_MAX: u64 = 100;

/// What is left of a rate at a backlog of one, in thousandths. Zero would stop publishers for ever whose acknowledgements
/// are what makes room; greater: a flood costs more.
pub const FLOOR_PERMILLE: u64 = 50;

/// Messages a second of one publisher when memory gets short, unless it has a limit of its own.
pub const PRESSED_RATE: u64 = 1_000;

/// Above so much of the agreed rate a publisher is too fast.
pub const AGREED_PERCENT: u64 = 120;

/// Too fast for this long: low priority. And for this long within the agreed rate: not any more.
pub const DEMOTE_MS: u64 = 3_000;

/// A publisher of low priority is read once in this time.
pub const LOW_TURN_MS: u64 = 10;

/// What may come at once after a pause, as time at the full rate. Shorter: late timers cost throughput; longer: a flood
/// begins with more.
const BURST_MS: u64 = 100;

/// The agreed rate is measured over this long.
const WINDOW_MS: u64 = 200;

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_S: u64 = 1_000_000_000;

/// Units a second that are left of a rate at a backlog of so many thousandths: `rate × (1 − backlog)`, never less than the
/// floor, never 0.
pub fn permits(rate: u64, backlog_permille: u64) -> u64 {
    let left = 1_000_u64.saturating_sub(backlog_permille).max(FLOOR_PERMILLE);
    (u128::from(rate) * u128::from(left) / 1_000).clamp(1, u128::from(u64::MAX)) as u64
}

/// Limits of one publisher. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PaceLimits {
    /// Messages a second that are agreed. More is taken, but with low priority.
    pub agreed: u64,
    /// Messages a second that are read.
    pub messages: u64,
    /// Bytes a second that are read.
    pub bytes: u64,
}

impl PaceLimits {
    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The pace of one publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pace {
    /// Until when what was read is paid for, nanoseconds.
    paid_ns: u64,
    /// Until when it is not its turn, milliseconds.
    turn_ms: u64,
    window: u64,
    in_window: u64,
    /// Since when it has been too fast, or (of low priority) slow enough.
    since_ms: Option<u64>,
    low: bool,
}

impl Pace {
    /// A message of so many bytes was read. The limits are multiplied by (1 − backlog).
    pub fn charge(&mut self, limits: &PaceLimits, bytes: u64, backlog_permille: u64, now_ms: u64) {
        let messages = match (limits.messages, backlog_permille) {
            (0, 0) => 0,
            (0, _) => PRESSED_RATE,
            (rate, _) => rate,
        };
        let cost = |rate: u64, units: u64| match rate {
            0 => 0,
            rate => cost_ns(permits(rate, backlog_permille), units),
        };
        self.owe(cost(messages, 1).max(cost(limits.bytes, bytes)), now_ms);
        if limits.agreed > 0 {
            self.measure(limits.agreed, now_ms);
        }
    }

    /// A message was read that nobody could take.
    pub fn charge_in_vain(&mut self, now_ms: u64) {
        self.owe(cost_ns(permits(PRESSED_RATE, 1_000), 1), now_ms);
    }

    /// A message was read whose receiver has to catch up first: the publisher waits as long as one can.
    pub fn hold(&mut self, now_ms: u64) {
        self.turn_ms = now_ms + WAIT_MS_MAX;
    }

    /// How long to wait before its next message is read, at most [`WAIT_MS_MAX`]; 0: not at all.
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        let ahead_ms = (self.paid_ns / NS_PER_MS).saturating_sub(now_ms + BURST_MS);
        ahead_ms.max(self.turn_ms.saturating_sub(now_ms)).min(WAIT_MS_MAX)
    }

    /// Whether it is read with low priority.
    pub fn is_low(&self) -> bool {
        self.low
    }

    fn owe(&mut self, cost_ns: u64, now_ms: u64) {
        let now_ns = now_ms.saturating_mul(NS_PER_MS);
        self.paid_ns = self.paid_ns.max(now_ns).saturating_add(cost_ns);
    }

    fn measure(&mut self, agreed: u64, now_ms: u64) {
        let window = now_ms / WINDOW_MS;
        if window != self.window {
            // Windows without a message in between were slow ones.
            let rate =
                if window == self.window + 1 { self.in_window * 1_000 / WINDOW_MS } else { 0 };
            self.judge(rate, agreed, now_ms);
            (self.window, self.in_window) = (window, 0);
        }
        self.in_window += 1;
        if self.low {
            self.turn_ms = now_ms + LOW_TURN_MS;
        }
    }

    /// A window ended with this rate.
    fn judge(&mut self, rate: u64, agreed: u64, now_ms: u64) {
        let counts = if self.low { rate <= agreed } else { rate * 100 > agreed * AGREED_PERCENT };
        if !counts {
            return self.since_ms = None;
        }
        let since_ms = *self.since_ms.get_or_insert(now_ms.saturating_sub(WINDOW_MS));
        if now_ms - since_ms >= DEMOTE_MS {
            self.low = !self.low;
            self.since_ms = None;
        }
    }
}

fn cost_ns(rate: u64, units: u64) -> u64 {
    let cost = u128::from(units) * u128::from(NS_PER_S) / u128::from(rate.max(1));
    u64::try_from(cost).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: PaceLimits = PaceLimits { agreed: 0, messages: 0, bytes: 0 };
    const THOUSAND: PaceLimits = PaceLimits { messages: 1_000, ..NONE };

    /// A greedy publisher of messages of so many bytes; how many are read in ten seconds by a driver whose timer has ticks
    /// of ten milliseconds.
    fn read_in_10_s(limits: PaceLimits, bytes: u64, backlog_permille: u64) -> u64 {
        let (mut pace, mut read) = (Pace::default(), 0);
        for now_ms in (10_000..20_000).step_by(10) {
            while pace.wait_ms(now_ms) == 0 && read < 10_000_000 {
                pace.charge(&limits, bytes, backlog_permille, now_ms);
                read += 1;
            }
        }
        read
    }

    fn check(found: u64, expected: u64) {
        let off = found.abs_diff(expected) * 1_000 / expected;
        assert!(off <= 50, "{found} instead of {expected}");
    }

    #[test]
    fn a_thousand_a_second_times_one_minus_the_backlog() {
        check(read_in_10_s(THOUSAND, 64, 0), 10_000);
        check(read_in_10_s(THOUSAND, 64, 500), 5_000);
        check(read_in_10_s(THOUSAND, 64, 900), 1_000);
    }

    #[test]
    fn at_a_backlog_of_one_the_floor_is_left() {
        check(read_in_10_s(THOUSAND, 64, 1_000), 500);
        check(read_in_10_s(THOUSAND, 64, 5_000), 500);
        assert_eq!(permits(3, 1_000), 1);
        assert_eq!(permits(u64::MAX, 0), u64::MAX);
    }

    #[test]
    fn who_has_no_limit_has_one_when_memory_gets_short() {
        assert_eq!(read_in_10_s(NONE, 64, 0), 10_000_000);
        check(read_in_10_s(NONE, 64, 500), 5_000);
    }

    #[test]
    fn bytes_are_counted_too_and_the_slower_of_the_two_decides() {
        let limits = PaceLimits { messages: 1_000, bytes: 100_000, ..NONE };
        check(read_in_10_s(limits, 10, 0), 10_000);
        check(read_in_10_s(limits, 1_000, 0), 1_000);
        check(read_in_10_s(limits, 1_000, 500), 500);
    }

    #[test]
    fn nobody_waits_for_more_than_a_hundred_milliseconds_at_a_time() {
        let mut pace = Pace::default();
        pace.charge(&PaceLimits { bytes: 1, ..NONE }, u64::MAX, 0, 5_000);
        assert_eq!(pace.wait_ms(5_000), WAIT_MS_MAX);
        assert_eq!(pace.wait_ms(3_600_000), WAIT_MS_MAX, "it is looked at again, and waits again");
    }

    #[test]
    fn a_slow_publisher_never_waits_even_in_vain() {
        let mut pace = Pace::default();
        for now_ms in (0..100_000).step_by(21) {
            assert_eq!(pace.wait_ms(now_ms), 0);
            pace.charge_in_vain(now_ms);
        }
    }

    #[test]
    fn a_flood_in_vain_is_read_at_the_floor() {
        let (mut pace, mut read) = (Pace::default(), 0);
        for now_ms in (0..10_000).step_by(10) {
            while pace.wait_ms(now_ms) == 0 {
                pace.charge_in_vain(now_ms);
                read += 1;
            }
        }
        check(read, 500);
    }

    /// When a publisher of this rate, agreed is 100, becomes one of low priority.
    fn demoted_ms(rate: u64) -> Option<u64> {
        let limits = PaceLimits { agreed: 100, ..NONE };
        let mut pace = Pace::default();
        let mut owed = 0;
        (0..20_000).find(|ms| {
            owed += rate;
            while owed >= 1_000 {
                pace.charge(&limits, 1, 0, 60_000 + ms);
                owed -= 1_000;
            }
            pace.is_low()
        })
    }

    #[test]
    fn three_seconds_above_1_2_times_the_agreed_rate_is_low_priority() {
        for rate in [150, 1_000, 10_000] {
            let ms = demoted_ms(rate).expect("it is too fast");
            assert!((2_800..=3_200).contains(&ms), "{rate}: {ms}");
        }
        assert_eq!(demoted_ms(100), None);
        assert_eq!(demoted_ms(115), None);
    }

    #[test]
    fn low_priority_is_one_read_in_ten_milliseconds_until_it_keeps_to_what_was_agreed() {
        let limits = PaceLimits { agreed: 100, ..NONE };
        let mut pace = Pace::default();
        for ms in 0..4_000 {
            pace.charge(&limits, 1, 0, ms);
        }
        assert!(pace.is_low());
        assert_eq!(pace.wait_ms(3_999), LOW_TURN_MS);
        let restored = (400..1_000).find(|n| {
            pace.charge(&limits, 1, 0, n * 10);
            !pace.is_low()
        });
        let ms = restored.expect("a hundred a second is what was agreed") * 10 - 4_000;
        assert!((2_800..=3_400).contains(&ms), "{ms}");
        assert_eq!(pace.wait_ms(20_000), 0);
    }
}
