//! One memory budget: who is charged for what, how full it is, and what is given up in which order.
//!
//! ```text
//!  used    0 %            70 %           80 %            90 %             95 %
//!  level   Calm ────────▶ Slow ────────▶ Refuse ───────▶ Shed ──────────▶ Closed
//!  what    nothing        publishers     QoS 1 and 2 to  QoS 0 to slow    new sessions
//!                         are paced      those behind    clients goes     are refused
//! ```
//! A level is left only when use has fallen [`HYSTERESIS_PERCENT`] below where it begins, so that a node at the edge
//! does not change its mind with every message. Each level keeps the measures of those before it.

/// Below its beginning by this much a level ends. Smaller: it flutters; greater: publishers are held back for longer than
/// need be.
pub const HYSTERESIS_PERCENT: u64 = 10;

/// What is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Class {
    /// Connections, sessions and their subscriptions.
    Sessions,
    /// Deliveries of QoS 1 and 2 that wait in memory.
    Queues,
    /// Bytes on their way to and from clients, and publishes that are held back.
    Buffers,
    /// Retained messages.
    Retained,
    /// What is accepted and not yet on disk.
    Store,
    /// Device shadows.
    Shadows,
    /// Messages for other nodes, kept in memory.
    Peers,
}

impl Class {
    /// All classes, in the order of the counters.
    pub const ALL: [Self; 7] = [
        Self::Sessions,
        Self::Queues,
        Self::Buffers,
        Self::Retained,
        Self::Store,
        Self::Shadows,
        Self::Peers,
    ];

    /// The value of the metric's `class` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sessions => "sessions",
            Self::Queues => "queues",
            Self::Buffers => "buffers",
            Self::Retained => "retained",
            Self::Store => "store",
            Self::Shadows => "shadows",
            Self::Peers => "peers",
        }
    }
}

/// What is given up. Each level includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pressure {
    /// Nothing.
    #[default]
    Calm,
    /// Every publisher is read more slowly, the more the fuller it gets.
    Slow,
    /// What would wait in memory behind other messages is refused (0x97), or its 3.1.1 publisher waits.
    Refuse,
    /// QoS 0 to a client that is behind is dropped at once, counted.
    Shed,
    /// New sessions are refused. Clients whose session is here may return: they take messages away.
    Closed,
}

impl Pressure {
    /// All levels, from the least.
    pub const ALL: [Self; 5] = [Self::Calm, Self::Slow, Self::Refuse, Self::Shed, Self::Closed];

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Slow => "slow",
            Self::Refuse => "refuse",
            Self::Shed => "shed",
            Self::Closed => "closed",
        }
    }

    /// Percent of the budget in use from which on it applies.
    pub fn begins_percent(self) -> u64 {
        match self {
            Self::Calm => 0,
            Self::Slow => 70,
            Self::Refuse => 80,
            Self::Shed => 90,
            Self::Closed => 95,
        }
    }
}

/// The account: a limit, what each class uses of it, and the level that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    limit_bytes: u64,
    used: [u64; Class::ALL.len()],
    /// All of them together; it saturates only when it is read.
    total: u128,
    /// Below this nothing is given up: what is asked with each packet is asked without a division.
    slow_from: u64,
    pressure: Pressure,
}

impl Budget {
    /// An empty account. A limit of 0 is none: it never comes under pressure.
    pub fn new(limit_bytes: u64) -> Self {
        let slow_from = limit_bytes / 100 * Pressure::Slow.begins_percent();
        let used = [0; Class::ALL.len()];
        Self { limit_bytes, used, total: 0, slow_from, pressure: Pressure::Calm }
    }

    /// Replaces what a thing of this class was charged with by what it costs now.
    pub fn recharge(&mut self, class: Class, before: u64, now: u64) {
        let used = self.used(class);
        debug_assert!(used >= before, "{class:?}: more is given back than was charged");
        self.set(class, used.saturating_sub(before).saturating_add(now));
    }

    /// Sets what a class uses in all.
    pub fn set(&mut self, class: Class, bytes: u64) {
        let before = std::mem::replace(&mut self.used[class as usize], bytes);
        self.total = self.total - u128::from(before) + u128::from(bytes);
    }

    /// Looks at the account again. `Some` when the level has changed.
    pub fn poll(&mut self) -> Option<Pressure> {
        let is_low = self.total < u128::from(self.slow_from);
        if self.pressure == Pressure::Calm && (is_low || self.limit_bytes == 0) {
            return None;
        }
        let percent = self.used_percent();
        let entered = |level: &Pressure| percent >= level.begins_percent();
        let kept = |level: &Pressure| {
            *level <= self.pressure
                && percent > level.begins_percent().saturating_sub(HYSTERESIS_PERCENT)
        };
        let level = Pressure::ALL.into_iter().rev().find(|level| entered(level) || kept(level));
        let level = level.unwrap_or_default();
        (std::mem::replace(&mut self.pressure, level) != level).then_some(level)
    }

    /// The level in force since the last [`Budget::poll`].
    pub fn pressure(&self) -> Pressure {
        self.pressure
    }

    /// The limit; 0 is none.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// What one class uses.
    pub fn used(&self, class: Class) -> u64 {
        self.used[class as usize]
    }

    /// What all use together.
    pub fn used_bytes(&self) -> u64 {
        u64::try_from(self.total).unwrap_or(u64::MAX)
    }

    /// The same in percent of the limit; more than 100 is possible.
    pub fn used_percent(&self) -> u64 {
        if self.limit_bytes == 0 {
            return 0;
        }
        let percent = u128::from(self.used_bytes()) * 100 / u128::from(self.limit_bytes);
        u64::try_from(percent).unwrap_or(u64::MAX)
    }

    /// How much of the way from [`Pressure::Slow`] to the full budget is used up, in thousandths: what publishers are
    /// slowed down by.
    pub fn backlog_permille(&self) -> u64 {
        if self.limit_bytes == 0 || self.pressure < Pressure::Slow {
            return 0;
        }
        let (used, limit) = (u128::from(self.used_bytes()), u128::from(self.limit_bytes));
        let begin = limit * u128::from(Pressure::Slow.begins_percent()) / 100;
        let way = used.saturating_sub(begin) * 1_000 / (limit - begin).max(1);
        way.min(1_000) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sets the use in percent of a budget of 1,000 bytes and tells the level.
    fn at(budget: &mut Budget, percent: u64) -> Pressure {
        budget.set(Class::Queues, percent * 10);
        budget.poll();
        budget.pressure()
    }

    #[test]
    fn what_is_given_up_comes_in_the_order_of_the_picture() {
        let mut budget = Budget::new(1_000);
        let seen: Vec<Pressure> = (0..=100).map(|percent| at(&mut budget, percent)).collect();
        let first = |level| seen.iter().position(|seen| *seen == level);
        assert_eq!(
            Pressure::ALL.map(first),
            [Some(0), Some(70), Some(80), Some(90), Some(95)],
            "{seen:?}"
        );
        assert!(seen.is_sorted());
        assert_eq!(at(&mut budget, 250), Pressure::Closed);
    }

    #[test]
    fn a_level_ends_ten_percent_below_where_it_begins() {
        let mut budget = Budget::new(1_000);
        at(&mut budget, 97);
        let seen: Vec<Pressure> = (0..=97).rev().map(|percent| at(&mut budget, percent)).collect();
        let last = |level| seen.iter().rposition(|seen| *seen == level).map(|place| 97 - place);
        assert_eq!(Pressure::ALL.map(last)[1..], [Some(61), Some(71), Some(81), Some(86)]);
    }

    #[test]
    fn at_the_edge_it_does_not_flutter() {
        let mut budget = Budget::new(1_000);
        let mut changes = 0;
        for round in 0..1_000 {
            budget.set(Class::Buffers, if round % 2 == 0 { 705 } else { 615 });
            changes += usize::from(budget.poll().is_some());
        }
        assert_eq!(changes, 1);
    }

    #[test]
    fn it_jumps_over_levels_both_ways() {
        let mut budget = Budget::new(1_000);
        assert_eq!(at(&mut budget, 99), Pressure::Closed);
        assert_eq!(at(&mut budget, 5), Pressure::Calm);
        assert_eq!(at(&mut budget, 85), Pressure::Refuse);
        assert_eq!(at(&mut budget, 65), Pressure::Slow);
    }

    #[test]
    fn classes_add_up_and_charges_are_replaced() {
        let mut budget = Budget::new(1_000);
        budget.recharge(Class::Queues, 0, 300);
        budget.recharge(Class::Queues, 0, 300);
        budget.recharge(Class::Queues, 300, 100);
        budget.set(Class::Store, 50);
        assert_eq!((budget.used(Class::Queues), budget.used_bytes()), (400, 450));
        assert_eq!(budget.used_percent(), 45);
    }

    #[test]
    fn the_backlog_grows_from_slow_to_full() {
        let mut budget = Budget::new(1_000);
        let mut permille = |percent| {
            at(&mut budget, percent);
            budget.backlog_permille()
        };
        assert_eq!([60, 70, 85, 100, 300].map(&mut permille), [0, 0, 500, 1_000, 1_000]);
    }

    #[test]
    fn no_limit_is_no_pressure() {
        let mut budget = Budget::new(0);
        budget.set(Class::Queues, u64::MAX);
        budget.set(Class::Store, u64::MAX);
        assert_eq!((budget.poll(), budget.used_percent()), (None, 0));
        let mut small = Budget::new(1);
        small.set(Class::Queues, u64::MAX);
        assert_eq!(small.poll(), Some(Pressure::Closed));
    }
}
