//! Time as an argument: the pair of clocks a decision sees, and the hybrid logical clock that orders writes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::reckoning::Reckoning;

/// What the clocks say at one moment. Whoever drives a core reads them once and hands them in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// Milliseconds since some fixed moment of this process; never goes back. For timeouts and expiry.
    pub mono_ms: u64,
    /// Milliseconds since 1970 as the operating system believes; may jump. For people and for [`HlcClock`].
    pub wall_ms: u64,
}

impl Now {
    /// The same wall clock in whole seconds, as AWS shadow documents write it.
    pub fn wall_s(self) -> u64 {
        self.wall_ms / 1000
    }
}

/// A hybrid logical timestamp: 48 bits of milliseconds since 1970, 16 bits of a counter.
///
/// (Kulkarni et al., "Logical Physical Clocks", 2014.) Ordered as written; ties between nodes are broken by node id.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Hlc(pub u64);

impl Hlc {
    /// A stamp of the given millisecond with counter zero.
    pub fn from_ms(wall_ms: u64) -> Self {
        Self(wall_ms.min((1 << 48) - 1) << 16)
    }

    /// The millisecond part.
    pub fn ms(self) -> u64 {
        self.0 >> 16
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.ms(), self.0 & 0xffff)
    }
}

/// A stamp from a peer lies further in the future than the limit allows. The local clock is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "stamp is {ahead_ms} ms ahead of this node's clock, the limit is {limit_ms} ms; it was refused"
)]
pub struct TooFarAhead {
    /// How far ahead the stamp is.
    pub ahead_ms: u64,
    /// The limit it broke.
    pub limit_ms: u64,
}

/// Gives out [`Hlc`] stamps, each greater than every stamp given out or observed before.
///
/// Keep [`HlcClock::floor`] on disk and start from it, so that a boot in 1970 does not reuse old stamps. A wall clock that
/// lies is not followed, see [`crate::reckoning`].
#[derive(Debug, Clone, Default)]
pub struct HlcClock {
    last: Hlc,
    reckoning: Option<Reckoning>,
}

impl HlcClock {
    /// A clock that will only give stamps above `floor`.
    pub fn new(floor: Hlc) -> Self {
        Self { last: floor, reckoning: None }
    }

    /// A fresh stamp.
    pub fn tick(&mut self, now: Now) -> Hlc {
        let stamp = Hlc::from_ms(self.look(now).stamp_ms(now));
        self.last = stamp.max(Hlc(self.last.0.saturating_add(1)));
        self.last
    }

    /// Takes a peer's stamp into account: later ticks will be greater. How far a peer can push this clock does not depend on
    /// how often it tries.
    ///
    /// # Errors
    /// [`TooFarAhead`] when the stamp is more than `limit_ms` ahead of what this node takes for the time. One whose own
    /// clock is evidently wrong lets itself be told.
    pub fn observe(&mut self, remote: Hlc, now: Now, limit_ms: u64) -> Result<(), TooFarAhead> {
        let ahead_ms = self.look(now).ahead_ms(remote.ms(), now, limit_ms);
        if ahead_ms > limit_ms {
            return Err(TooFarAhead { ahead_ms, limit_ms });
        }
        self.last = self.last.max(remote);
        if let Some(reckoning) = &mut self.reckoning {
            reckoning.hear(remote.ms(), now);
        }
        Ok(())
    }

    /// What time it is, as far as this clock believes: for how old something is.
    pub fn reckoned_ms(&self, now: Now) -> u64 {
        let begun = || Reckoning::begin(self.last.ms(), now);
        self.reckoning.unwrap_or_else(begun).ms(now)
    }

    /// The highest stamp given or seen; persist it and hand it to [`HlcClock::new`] at the next start.
    pub fn floor(&self) -> Hlc {
        self.last
    }

    /// Raises the floor to what a stamp made now would be: a start without a clock begins there.
    pub fn raise_floor(&mut self, now: Now) {
        self.last = self.last.max(Hlc::from_ms(self.look(now).stamp_ms(now)));
    }

    /// Looks at the wall clock. One that lies is found out sooner when it is looked at now and then.
    pub fn look_at(&mut self, now: Now) {
        self.look(now);
    }

    fn look(&mut self, now: Now) -> Reckoning {
        let last_ms = self.last.ms();
        let reckoning = self.reckoning.get_or_insert_with(|| Reckoning::begin(last_ms, now));
        reckoning.look(last_ms, now);
        *reckoning
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall_ms: u64) -> Now {
        Now { mono_ms: 0, wall_ms }
    }

    #[test]
    fn stamps_grow_while_the_wall_clock_stands_or_goes_back() {
        let mut clock = HlcClock::default();
        let first = clock.tick(at(1_000));
        let second = clock.tick(at(1_000));
        let third = clock.tick(at(10));
        assert!(first < second && second < third);
    }

    #[test]
    fn a_stamp_after_an_observed_one_is_greater() {
        let mut clock = HlcClock::default();
        clock.observe(Hlc::from_ms(5_000), at(4_000), 60_000).expect("within the limit");
        assert!(clock.tick(at(4_001)) > Hlc::from_ms(5_000));
    }

    #[test]
    fn a_stamp_from_the_far_future_is_refused_and_changes_nothing() {
        let mut clock = HlcClock::default();
        let then_ms = 1_790_000_000_000;
        let refused = clock.observe(Hlc::from_ms(then_ms + 99_000), at(then_ms), 60_000);
        assert_eq!(refused, Err(TooFarAhead { ahead_ms: 99_000, limit_ms: 60_000 }));
        assert_eq!(clock.floor(), Hlc::default());
    }
}
