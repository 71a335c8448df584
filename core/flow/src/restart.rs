//! The one restart policy of the node: ractor actors and cells are restarted by the same code.
//!
//! ```text
//!  Running ──failure──► RestartNow (first) or RestartAfter(back-off) ──► Running
//!     │                                                                    ▲
//!     └─ more than `intensity` failures in `window_ms` ─► Quarantined ─────┘ released by itself, on probation:
//!                                                         a failure within `window_ms` sends it back for twice as long
//! ```
//! Quarantine is never for ever: its length doubles from `quarantine_ms_min` to `backoff_ms_max`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::backoff::exponential_ms;

/// The longest cause that is kept; more is cut off. Greater: a panic message of megabytes stays in memory.
pub const CAUSE_BYTES_MAX: usize = 256;

/// The greatest `intensity` that has an effect: each failure in the window costs eight bytes in a failing actor.
pub const INTENSITY_MAX: u32 = 256;

/// How often something may fail, and how long it then waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPolicy {
    /// Failures tolerated within `window_ms`; one more is quarantine. 0: the first failure is. Greater than
    /// [`INTENSITY_MAX`] counts as that. Too small: a hiccup takes a device out; too great: it burns CPU in a loop.
    pub intensity: u32,
    /// The window for `intensity`, and the probation after a quarantine.
    pub window_ms: u64,
    /// The wait before the second restart in a window (the first is at once). Too small: a tight loop.
    pub backoff_ms_min: u64,
    /// The longest wait, in back-off and in quarantine. Too great: what healed stays away for long.
    pub backoff_ms_max: u64,
    /// The first quarantine; each that follows soon is twice as long.
    pub quarantine_ms_min: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            intensity: 5,
            window_ms: 10_000,
            backoff_ms_min: 100,
            backoff_ms_max: 60_000,
            quarantine_ms_min: 1_000,
        }
    }
}

/// What to do with the one that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Restart it at once.
    RestartNow,
    /// Restart it after so many milliseconds, when [`RestartState::handle_timeout`] says so.
    RestartAfter(u64),
    /// Leave it stopped until `until_ms`, then [`RestartState::handle_timeout`] releases it.
    Quarantine {
        /// The moment of release on the caller's clock.
        until_ms: u64,
        /// The failure that was one too many.
        cause: Arc<str>,
    },
}

/// How it is, for people and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It runs.
    Running,
    /// It failed and waits for its restart.
    Restarting {
        /// When it will be restarted.
        at_ms: u64,
        /// Why it failed last.
        cause: Arc<str>,
        /// Failures in the present window.
        failures: u32,
    },
    /// It failed too often and is kept stopped.
    Quarantined {
        /// When it will be released.
        until_ms: u64,
        /// Why it failed last.
        cause: Arc<str>,
        /// Failures since it was last well.
        failures: u32,
    },
}

/// What one supervised thing has been through. Two words while it never failed.
#[derive(Debug, Clone)]
pub struct RestartState {
    policy: Arc<RestartPolicy>,
    trouble: Option<Box<Trouble>>,
}

#[derive(Debug, Clone)]
struct Trouble {
    phase: Phase,
    cause: Arc<str>,
    /// When it failed, oldest first: only the present window, at most `intensity + 1`.
    recent_ms: VecDeque<u64>,
    /// Failures since it was last well for `backoff_ms_max`.
    failures: u32,
    /// Quarantines in a row, for the length of the next.
    quarantines: u32,
    /// A failure before this moment goes back to quarantine at once.
    probation_until_ms: u64,
    last_ms: u64,
    restarts: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Restarting { at_ms: u64 },
    Quarantined { until_ms: u64 },
}

impl RestartState {
    /// For something that starts now and has never failed.
    pub fn new(policy: Arc<RestartPolicy>) -> Self {
        Self { policy, trouble: None }
    }

    /// It failed (returned an error or panicked) at `now_ms`.
    ///
    /// A failure that comes in while it waits already (a late report) changes nothing but the count.
    pub fn handle_failure(&mut self, cause: &str, now_ms: u64) -> Verdict {
        let policy = &*self.policy;
        let trouble = self.trouble.get_or_insert_with(|| Box::new(Trouble::new()));
        trouble.note(policy, cause, now_ms);
        match trouble.phase {
            Phase::Restarting { at_ms } => {
                return Verdict::RestartAfter(at_ms.saturating_sub(now_ms));
            }
            Phase::Quarantined { until_ms } => {
                return Verdict::Quarantine { until_ms, cause: Arc::clone(&trouble.cause) };
            }
            Phase::Running => {}
        }
        let in_window = trouble.recent_ms.len() as u32;
        if in_window > policy.intensity.min(INTENSITY_MAX) || now_ms < trouble.probation_until_ms {
            return trouble.quarantine(policy, now_ms);
        }
        if in_window == 1 {
            trouble.restarts += 1;
            return Verdict::RestartNow;
        }
        let delay_ms = exponential_ms(policy.backoff_ms_min, policy.backoff_ms_max, in_window - 2);
        trouble.phase = Phase::Restarting { at_ms: now_ms.saturating_add(delay_ms) };
        Verdict::RestartAfter(delay_ms)
    }

    /// When to call [`RestartState::handle_timeout`]: the end of the back-off or the quarantine.
    pub fn poll_timeout(&self) -> Option<u64> {
        match self.trouble.as_ref()?.phase {
            Phase::Running => None,
            Phase::Restarting { at_ms: due_ms } | Phase::Quarantined { until_ms: due_ms } => {
                Some(due_ms)
            }
        }
    }

    /// Time has passed. `true`: the wait is over, start it now (it counts as running from here on).
    pub fn handle_timeout(&mut self, now_ms: u64) -> bool {
        match self.poll_timeout() {
            Some(due_ms) if due_ms <= now_ms => self.release(now_ms),
            _ => false,
        }
    }

    /// An operator wants it back now. `true` when it was waiting: start it (it counts as running from here on).
    pub fn release(&mut self, now_ms: u64) -> bool {
        let Some(trouble) = self.trouble.as_mut() else { return false };
        match trouble.phase {
            Phase::Running => return false,
            Phase::Restarting { .. } => {}
            Phase::Quarantined { .. } => {
                trouble.recent_ms.clear();
                trouble.probation_until_ms = now_ms.saturating_add(self.policy.window_ms);
            }
        }
        trouble.phase = Phase::Running;
        trouble.restarts += 1;
        true
    }

    /// How it is.
    pub fn health(&self) -> Health {
        let Some(trouble) = &self.trouble else { return Health::Running };
        let cause = || Arc::clone(&trouble.cause);
        match trouble.phase {
            Phase::Running => Health::Running,
            Phase::Restarting { at_ms } => Health::Restarting {
                at_ms,
                cause: cause(),
                failures: trouble.recent_ms.len() as u32,
            },
            Phase::Quarantined { until_ms } => {
                Health::Quarantined { until_ms, cause: cause(), failures: trouble.failures }
            }
        }
    }

    /// How often it was restarted in all.
    pub fn restarts(&self) -> u64 {
        self.trouble.as_ref().map_or(0, |t| t.restarts)
    }

    /// Why it failed last, when it ever did.
    pub fn last_cause(&self) -> Option<&str> {
        self.trouble.as_ref().map(|t| &*t.cause)
    }
}

impl Trouble {
    fn new() -> Self {
        Self {
            phase: Phase::Running,
            cause: Arc::from(""),
            recent_ms: VecDeque::new(),
            failures: 0,
            quarantines: 0,
            probation_until_ms: 0,
            last_ms: 0,
            restarts: 0,
        }
    }

    /// Writes the failure down and forgets what is too old to matter.
    fn note(&mut self, policy: &RestartPolicy, cause: &str, now_ms: u64) {
        let was_running = self.phase == Phase::Running;
        if was_running
            && now_ms.saturating_sub(self.last_ms) > policy.backoff_ms_max.max(policy.window_ms)
        {
            self.failures = 0;
            self.quarantines = 0;
        }
        self.last_ms = now_ms;
        self.failures = self.failures.saturating_add(1);
        self.cause = Arc::from(cut(cause));
        if !was_running {
            return;
        }
        while self
            .recent_ms
            .front()
            .is_some_and(|ms| now_ms.saturating_sub(*ms) >= policy.window_ms)
        {
            self.recent_ms.pop_front();
        }
        if self.recent_ms.len() > INTENSITY_MAX as usize {
            self.recent_ms.pop_front();
        }
        self.recent_ms.push_back(now_ms);
    }

    fn quarantine(&mut self, policy: &RestartPolicy, now_ms: u64) -> Verdict {
        let length_ms =
            exponential_ms(policy.quarantine_ms_min, policy.backoff_ms_max, self.quarantines);
        self.quarantines = self.quarantines.saturating_add(1);
        let until_ms = now_ms.saturating_add(length_ms);
        self.phase = Phase::Quarantined { until_ms };
        // A wait is no sign of health: what counts as "well for long" begins at the release.
        self.last_ms = until_ms;
        Verdict::Quarantine { until_ms, cause: Arc::clone(&self.cause) }
    }
}

fn cut(cause: &str) -> &str {
    &cause[..cause.floor_char_boundary(CAUSE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_restarts_at_once_and_the_next_wait_longer() {
        let mut state = fresh();
        assert_eq!(state.health(), Health::Running);
        assert_eq!(state.handle_failure("boom", 0), Verdict::RestartNow);
        assert_eq!(state.health(), Health::Running);
        assert_eq!(state.handle_failure("boom", 10), Verdict::RestartAfter(100));
        assert_eq!(state.poll_timeout(), Some(110));
        assert_eq!(
            state.health(),
            Health::Restarting { at_ms: 110, cause: "boom".into(), failures: 2 }
        );
        assert!(!state.handle_timeout(109));
        assert!(state.handle_timeout(110));
        assert!(!state.handle_timeout(110), "only once");
        assert_eq!(state.handle_failure("boom", 120), Verdict::RestartAfter(200));
        assert_eq!(state.restarts(), 2);
    }

    #[test]
    fn the_sixth_failure_in_ten_seconds_is_quarantine_with_its_cause() {
        let mut state = fresh();
        let until_ms = fail_until_quarantined(&mut state, 0);
        assert_eq!(
            state.health(),
            Health::Quarantined { until_ms, cause: "I2C bus stuck".into(), failures: 6 }
        );
        assert_eq!(state.restarts(), 5);
        assert!(!state.handle_timeout(until_ms - 1));
        assert!(state.handle_timeout(until_ms));
        assert_eq!(state.health(), Health::Running);
    }

    #[test]
    fn quarantine_doubles_from_one_second_to_sixty_while_probation_fails() {
        let mut state = fresh();
        let mut now_ms = fail_until_quarantined(&mut state, 0);
        let mut lengths = Vec::new();
        for _ in 0..8 {
            assert!(state.handle_timeout(now_ms));
            let Verdict::Quarantine { until_ms, .. } =
                state.handle_failure("still stuck", now_ms + 50)
            else {
                panic!("a failure on probation goes straight back")
            };
            lengths.push(until_ms - now_ms - 50);
            now_ms = until_ms;
        }
        assert_eq!(lengths, [2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000, 60_000]);
    }

    #[test]
    fn one_that_was_well_for_long_starts_with_a_clean_slate() {
        let mut state = fresh();
        let released_ms = fail_until_quarantined(&mut state, 0);
        assert!(state.handle_timeout(released_ms));
        let later_ms = released_ms + 60_001;
        assert_eq!(state.handle_failure("again", later_ms), Verdict::RestartNow);
        let until_ms = fail_until_quarantined(&mut state, later_ms + 1);
        assert_eq!(until_ms, later_ms + 1 + 4 * 1_500 + 1_000, "the first length again");
    }

    #[test]
    fn probation_ends_and_ordinary_counting_returns() {
        let mut state = fresh();
        let released_ms = fail_until_quarantined(&mut state, 0);
        assert!(state.handle_timeout(released_ms));
        assert_eq!(state.handle_failure("again", released_ms + 10_000), Verdict::RestartNow);
        let until_ms = fail_until_quarantined(&mut state, released_ms + 10_001);
        assert_eq!(until_ms, released_ms + 10_001 + 4 * 1_500 + 2_000, "but the length remembers");
    }

    #[test]
    fn a_rare_failure_is_restarted_for_ever() {
        let mut state = fresh();
        for n in 0..10_000 {
            assert_eq!(state.handle_failure("hiccup", n * 10_001), Verdict::RestartNow);
        }
        assert_eq!(state.restarts(), 10_000);
    }

    #[test]
    fn a_late_report_does_not_lengthen_the_wait() {
        let mut state = fresh();
        let until_ms = fail_until_quarantined(&mut state, 0);
        let late = state.handle_failure("late", until_ms - 10);
        assert_eq!(late, Verdict::Quarantine { until_ms, cause: "late".into() });
        assert!(state.handle_timeout(until_ms));

        let mut state = fresh();
        state.handle_failure("a", 0);
        assert_eq!(state.handle_failure("b", 0), Verdict::RestartAfter(100));
        assert_eq!(state.handle_failure("c", 60), Verdict::RestartAfter(40));
    }

    #[test]
    fn an_operator_may_release_before_the_time() {
        let mut state = fresh();
        assert!(!state.release(0), "nothing to release");
        fail_until_quarantined(&mut state, 0);
        assert!(state.release(9_000));
        assert_eq!(state.health(), Health::Running);
    }

    #[test]
    fn intensity_zero_never_restarts_at_once_and_a_huge_one_stays_small() {
        let mut strict = with(RestartPolicy { intensity: 0, ..RestartPolicy::default() });
        assert!(matches!(
            strict.handle_failure("x", 0),
            Verdict::Quarantine { until_ms: 1_000, .. }
        ));

        let mut loose = with(RestartPolicy {
            intensity: u32::MAX,
            backoff_ms_max: 0,
            ..RestartPolicy::default()
        });
        let quarantined = (0..2_000).position(|_| {
            let verdict = loose.handle_failure("x", 5);
            loose.handle_timeout(5);
            matches!(verdict, Verdict::Quarantine { .. })
        });
        assert_eq!(quarantined, Some(INTENSITY_MAX as usize));
        assert!(
            loose.trouble.as_ref().is_some_and(|t| t.recent_ms.len() <= INTENSITY_MAX as usize + 1)
        );
    }

    #[test]
    fn one_that_never_failed_is_two_words_and_a_long_cause_is_cut_between_characters() {
        assert_eq!(size_of::<RestartState>(), 16);
        let mut state = fresh();
        state.handle_failure(&"ü".repeat(1_000), 0);
        assert_eq!(state.last_cause().map(str::len), Some(CAUSE_BYTES_MAX));
        state.handle_failure(&format!("x{}", "ü".repeat(1_000)), 0);
        assert_eq!(state.last_cause().map(str::len), Some(CAUSE_BYTES_MAX - 1));
    }

    fn fresh() -> RestartState {
        with(RestartPolicy::default())
    }

    fn with(policy: RestartPolicy) -> RestartState {
        RestartState::new(Arc::new(policy))
    }

    /// Fails every 1.5 s from `from_ms` on, being released each time, and gives the end of the quarantine.
    fn fail_until_quarantined(state: &mut RestartState, from_ms: u64) -> u64 {
        for n in 0..20 {
            let now_ms = from_ms + n * 1_500;
            state.handle_timeout(now_ms);
            if let Verdict::Quarantine { until_ms, .. } =
                state.handle_failure("I2C bus stuck", now_ms)
            {
                return until_ms;
            }
        }
        panic!("never quarantined");
    }
}
