//! What time it is, as far as a wall clock may be believed.
//!
//! Wall clocks are set by hand, by firmware and by servers, start in 1970 when a battery is empty, and leap by decades when
//! a receiver miscounts weeks. The monotonic clock does none of this, but does not know the date. So the time is reckoned: from
//! what was known last, on with the monotonic clock, and the wall clock is believed where it says something believable for a
//! while.

use crate::time::Now;

/// A wall clock that leaps further than this into the future is not believed, nor is one that is this far ahead of what was
/// known before the start. Shorter and a machine that lay in a drawer for long has to learn the date from its peers; longer
/// and a node with a wrong clock is refused by its peers for longer.
pub const LEAP_MS_MAX: u64 = 5 * 365 * 24 * 3_600_000;
/// Stamps lie this far from the reckoned time at most, whatever the wall clock says. Less and a clock that was set right by a
/// little is followed only after [`STEADY_MS`]; more and peers, which refuse what is a minute ahead, refuse this node.
const ASTRAY_MS: u64 = 20_000;
/// A wall clock that is further behind is evidently wrong, and stamps go on with the reckoned time. One that is not is taken for
/// a clock that was wrong and is set right: stamps wait until it has caught up with the last one.
const BEHIND_MS: u64 = 30 * 24 * 3_600_000;
/// A wall clock is believed once it went as fast as the monotonic clock for so long.
const STEADY_MS: u64 = 60_000;
/// As fast: its distance to the monotonic clock changed by no more than this …
const JITTER_MS: u64 = 250;
/// … and one part in so many. Crystals are ten times as good.
const DRIFT_PARTS: u64 = 2_000;
/// 2020-01-01. A clock before this knows nothing of the date.
const PLAUSIBLE_MS: u64 = 1_577_836_800_000;
/// 2100-01-01. Who knows nothing of the date believes no other after this.
const FAR_MS: u64 = 4_102_444_800_000;

/// The time as far as it is known.
#[derive(Debug, Clone, Copy)]
#[allow(
    clippy::struct_field_names,
    reason = "the unit belongs to the name, and all are milliseconds"
)]
pub(crate) struct Reckoning {
    /// Milliseconds since 1970 when the monotonic clock stood at `at_ms`.
    known_ms: u64,
    at_ms: u64,
    /// The wall clock's distance to the monotonic one, and since when it is this.
    distance_ms: i64,
    steady_from_ms: u64,
    /// The wall clock was evidently wrong at the start and was not believed since: peers are believed up to here.
    told_upto_ms: Option<u64>,
}

impl Reckoning {
    /// Begins with the wall clock if that is believable, else with what was known before the start.
    pub fn begin(floor_ms: u64, now: Now) -> Self {
        let knows = floor_ms >= PLAUSIBLE_MS;
        let believed = is_believable(floor_ms, floor_ms, now.wall_ms);
        let last_ms = if knows { floor_ms } else { now.wall_ms.clamp(floor_ms, FAR_MS) };
        let told_upto_ms = if knows { floor_ms + LEAP_MS_MAX } else { FAR_MS };
        Self {
            known_ms: if believed { now.wall_ms } else { last_ms },
            at_ms: now.mono_ms,
            distance_ms: distance_ms(now),
            steady_from_ms: now.mono_ms,
            told_upto_ms: (!believed).then_some(told_upto_ms),
        }
    }

    /// Milliseconds since 1970 now.
    pub fn ms(&self, now: Now) -> u64 {
        self.known_ms.saturating_add(now.mono_ms.saturating_sub(self.at_ms))
    }

    /// What a stamp made now says before it is made greater than the one before.
    pub fn stamp_ms(&self, now: Now) -> u64 {
        let ms = self.ms(now);
        let is_wrong = now.wall_ms.saturating_add(BEHIND_MS) < ms;
        if is_wrong { ms } else { now.wall_ms.min(ms.saturating_add(ASTRAY_MS)) }
    }

    /// Looks at the wall clock. `last_ms` is the latest stamp given or seen.
    pub fn look(&mut self, last_ms: u64, now: Now) {
        let steady_ms = now.mono_ms.saturating_sub(self.steady_from_ms);
        let moved_ms = distance_ms(now).abs_diff(self.distance_ms);
        if moved_ms > JITTER_MS + steady_ms / DRIFT_PARTS {
            (self.distance_ms, self.steady_from_ms) = (distance_ms(now), now.mono_ms);
        } else if steady_ms >= STEADY_MS && is_believable(last_ms, self.ms(now), now.wall_ms) {
            (self.known_ms, self.at_ms, self.told_upto_ms) = (now.wall_ms, now.mono_ms, None);
        }
    }

    /// How far a peer's stamp lies ahead of what this node can know. The wall clock counts here before it is believed, as a
    /// peer that agrees with it is not the one that is wrong.
    pub fn ahead_ms(&self, remote_ms: u64, now: Now, limit_ms: u64) -> u64 {
        let ms = self.ms(now);
        let wall_ms = if now.wall_ms <= ms + LEAP_MS_MAX { now.wall_ms } else { 0 };
        let told_ms = self.told_upto_ms.map_or(0, |upto_ms| upto_ms.saturating_sub(limit_ms));
        remote_ms.saturating_sub(ms.max(wall_ms).max(told_ms))
    }

    /// A peer's stamp was taken. Who has no clock is told the time by it.
    pub fn hear(&mut self, remote_ms: u64, now: Now) {
        if self.told_upto_ms.is_some() && remote_ms > self.ms(now) {
            (self.known_ms, self.at_ms) = (remote_ms, now.mono_ms);
        }
    }
}

/// Time does not go back behind the latest stamp, and does not leap too far.
fn is_believable(last_ms: u64, known_ms: u64, wall_ms: u64) -> bool {
    let upto_ms = if known_ms < PLAUSIBLE_MS { FAR_MS } else { known_ms + LEAP_MS_MAX };
    wall_ms >= PLAUSIBLE_MS && wall_ms.saturating_add(ASTRAY_MS) >= last_ms && wall_ms <= upto_ms
}

fn distance_ms(now: Now) -> i64 {
    i64::try_from(now.wall_ms).unwrap_or(i64::MAX).saturating_sub_unsigned(now.mono_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Hlc, HlcClock, TooFarAhead};

    const SECOND_MS: u64 = 1_000;
    const DAY_MS: u64 = 24 * 3_600 * SECOND_MS;
    const YEAR_MS: u64 = 365 * DAY_MS;
    /// In 2026.
    const START_MS: u64 = 1_790_000_000_000;
    const LIMIT_MS: u64 = 60 * SECOND_MS;

    fn at(mono_ms: u64, wall_ms: u64) -> Now {
        Now { mono_ms, wall_ms }
    }

    /// Looks every second for so long, with a wall clock that starts there and goes so many times as fast.
    fn run(clock: &mut HlcClock, from: Now, for_ms: u64, speed: u64) -> (Hlc, Now) {
        let mut stamp = Hlc::default();
        let mut now = from;
        for passed_ms in (0..=for_ms).step_by(1_000) {
            now = at(from.mono_ms + passed_ms, from.wall_ms + passed_ms * speed);
            let next = clock.tick(now);
            assert!(next > stamp, "{next} after {stamp}");
            stamp = next;
        }
        (stamp, now)
    }

    #[test]
    fn ten_years_ahead_while_running_are_not_followed_and_the_way_back_costs_nothing() {
        let mut clock = HlcClock::default();
        clock.tick(at(0, START_MS));
        let (stamp, _) = run(&mut clock, at(0, START_MS + 10 * YEAR_MS), DAY_MS, 1);
        assert!(stamp.ms() <= START_MS + DAY_MS + ASTRAY_MS, "{stamp}");
        let (stamp, now) = run(&mut clock, at(DAY_MS, START_MS + DAY_MS), DAY_MS, 1);
        assert_eq!(stamp.ms(), START_MS + 2 * DAY_MS, "right again");
        assert_eq!(clock.reckoned_ms(now), START_MS + 2 * DAY_MS);
    }

    #[test]
    fn ten_years_back_while_running_stop_neither_stamps_nor_peers() {
        let mut clock = HlcClock::default();
        clock.tick(at(0, START_MS));
        let (stamp, now) = run(&mut clock, at(0, START_MS - 10 * YEAR_MS), DAY_MS, 1);
        assert_eq!(stamp.ms(), START_MS + DAY_MS);
        assert_eq!(clock.observe(Hlc::from_ms(START_MS + DAY_MS), now, LIMIT_MS), Ok(()));
    }

    #[test]
    fn a_wrong_clock_at_the_start_is_not_followed_where_something_is_known() {
        for wall_ms in [0, START_MS - 10 * YEAR_MS, START_MS + 10 * YEAR_MS] {
            let mut clock = HlcClock::new(Hlc::from_ms(START_MS));
            let (stamp, now) = run(&mut clock, at(7, wall_ms), 600 * SECOND_MS, 1);
            assert!(stamp > Hlc::from_ms(START_MS), "never back: {stamp}");
            assert!(stamp.ms() <= START_MS + 600 * SECOND_MS + ASTRAY_MS, "{stamp}");
            // It was off for a day: peers tell it.
            let theirs = Hlc::from_ms(START_MS + DAY_MS);
            assert_eq!(clock.observe(theirs, now, LIMIT_MS), Ok(()));
            assert_eq!(clock.reckoned_ms(now), START_MS + DAY_MS);
            let later = Hlc::from_ms(START_MS + 6 * YEAR_MS);
            assert!(
                clock.observe(later, now, LIMIT_MS).is_err(),
                "but they do not tell it anything"
            );
        }
    }

    #[test]
    fn a_clock_that_goes_ten_times_too_fast_is_not_followed() {
        let mut clock = HlcClock::new(Hlc::from_ms(START_MS));
        let (stamp, now) = run(&mut clock, at(0, START_MS), DAY_MS, 10);
        assert_eq!(stamp.ms(), START_MS + DAY_MS + ASTRAY_MS);
        assert_eq!(clock.reckoned_ms(now), START_MS + DAY_MS);
    }

    #[test]
    fn a_machine_without_a_battery_learns_the_time_a_minute_late() {
        for (floor_ms, off_ms) in [(0, 0), (START_MS, 3 * DAY_MS), (START_MS, 3 * YEAR_MS)] {
            let mut clock = HlcClock::new(Hlc::from_ms(floor_ms));
            run(&mut clock, at(0, 0), 30 * SECOND_MS, 1);
            let there = at(31 * SECOND_MS, START_MS + off_ms);
            let (stamp, now) = run(&mut clock, there, 2 * STEADY_MS, 1);
            assert_eq!((stamp.ms(), clock.reckoned_ms(now)), (now.wall_ms, now.wall_ms));
        }
    }

    #[test]
    fn a_clock_set_back_by_an_hour_is_followed_when_the_hour_is_over() {
        let mut clock = HlcClock::default();
        let (before, _) = run(&mut clock, at(0, START_MS), DAY_MS, 1);
        let set_back = START_MS + DAY_MS - 3_600 * SECOND_MS;
        let (stamp, now) = run(&mut clock, at(DAY_MS + 1, set_back), 2 * 3_600 * SECOND_MS, 1);
        assert!(stamp > before);
        assert_eq!(clock.reckoned_ms(now), now.wall_ms);
    }

    #[test]
    fn a_peer_pushes_by_one_limit_however_often_it_tries() {
        let mut clock = HlcClock::default();
        let now = at(0, START_MS);
        clock.tick(now);
        let taken = |step: &u64| {
            let stamp = Hlc::from_ms(START_MS + step * LIMIT_MS / 2);
            clock.observe(stamp, now, LIMIT_MS).is_ok()
        };
        assert_eq!((1..100).filter(taken).count(), 2);
        assert_eq!(clock.floor(), Hlc::from_ms(START_MS + LIMIT_MS));
    }

    #[test]
    fn who_knows_nothing_is_told_by_peers_but_not_the_end_of_time() {
        let mut clock = HlcClock::default();
        let now = at(3, 5_000);
        clock.tick(now);
        let refused = clock.observe(Hlc(u64::MAX), now, LIMIT_MS);
        assert!(matches!(refused, Err(TooFarAhead { .. })));
        assert_eq!(clock.observe(Hlc::from_ms(START_MS), now, LIMIT_MS), Ok(()));
        assert_eq!(clock.tick(at(4, 5_001)).ms(), START_MS + 1);
    }
}
