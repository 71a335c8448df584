//! A hashed timer wheel with lazy re-arm, for the keep-alives and expiries of very many cells.
//!
//! Pushing a deadline back, what every packet of a session does, writes one number: the entry stays filed where it
//! was and is filed anew only when the wheel comes by (Varghese & Lauck, 1987, scheme 6; the laziness is ours).
//! An entry never expires early, and at most one tick late.

/// Entries looked at in one [`Wheel::poll_expired`]. Smaller: a storm of expiries takes more turns; greater: a turn
/// with a hundred thousand expiries stalls the shard (an entry costs some 25 ns).
pub const WORK_PER_POLL_MAX: usize = 4_096;

/// A power of two, so that the slot is the low bits of the tick.
const SLOTS: u64 = 512;
const NONE: u32 = u32::MAX;

/// Deadlines by key. The key is an index, like a slab's: memory grows with the greatest key used (24 bytes each).
#[derive(Debug, Clone)]
pub struct Wheel {
    tick_ms: u64,
    /// The last tick whose slot was looked through to its end.
    done_tick: u64,
    /// Where to go on in the slot of `done_tick + 1`, when the last poll ran out of budget there.
    resume: Option<u32>,
    /// No entry is filed under an earlier tick; `u64::MAX`: none at all.
    soonest_tick: u64,
    /// First entry of each slot.
    heads: Vec<u32>,
    entries: Vec<Entry>,
    len: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    deadline_ms: u64,
    /// The tick it is filed under, in milliseconds; `u64::MAX` when it is not in the wheel.
    filed_ms: u64,
    next: u32,
    prev: u32,
}

const ABSENT: Entry = Entry { deadline_ms: 0, filed_ms: u64::MAX, next: NONE, prev: NONE };

impl Wheel {
    /// An empty wheel whose deadlines are kept to `tick_ms`. One turn is 512 ticks: deadlines further out than that
    /// are looked at once a turn, so a tick of 1/500 of the usual deadline is about right.
    pub fn new(tick_ms: u64, now_ms: u64) -> Self {
        let tick_ms = tick_ms.max(1);
        Self {
            tick_ms,
            done_tick: now_ms / tick_ms,
            resume: None,
            soonest_tick: u64::MAX,
            heads: vec![NONE; SLOTS as usize],
            entries: Vec::new(),
            len: 0,
        }
    }

    /// Makes places for keys below `keys`.
    pub fn reserve(&mut self, keys: usize) {
        self.entries.reserve_exact(keys.saturating_sub(self.entries.len()));
    }

    /// How many deadlines are set.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the deadline of `key`, or moves it. A deadline in the past expires at the next tick.
    pub fn set(&mut self, key: u32, deadline_ms: u64) {
        let deadline_ms = deadline_ms.min(u64::MAX - 1); // the greatest number marks absence
        if let Some(entry) = self.entries.get_mut(key as usize)
            && entry.filed_ms <= deadline_ms
        {
            entry.deadline_ms = deadline_ms; // a touch: the wheel moves it when it comes by
            return;
        }
        self.set_filed(key, deadline_ms);
    }

    /// Takes the deadline of `key` back. `false` when none was set.
    pub fn cancel(&mut self, key: u32) -> bool {
        if self.deadline_ms(key).is_none() {
            return false;
        }
        self.unlink(key);
        self.len -= 1;
        true
    }

    /// The deadline of `key`, when one is set.
    pub fn deadline_ms(&self, key: u32) -> Option<u64> {
        self.entries.get(key as usize).filter(|e| e.filed_ms != u64::MAX).map(|e| e.deadline_ms)
    }

    /// Appends the keys whose deadlines have passed to `expired` and forgets them.
    ///
    /// Looks at [`WORK_PER_POLL_MAX`] entries at most. `true`: there is more to look at, call again soon.
    pub fn poll_expired(&mut self, now_ms: u64, expired: &mut Vec<u32>) -> bool {
        let now_tick = now_ms / self.tick_ms;
        let mut budget = WORK_PER_POLL_MAX;
        while self.done_tick < now_tick {
            if self.resume.is_none() {
                // After a long sleep one turn of the wheel sees everything.
                self.done_tick = self.done_tick.max(now_tick.saturating_sub(SLOTS));
                if self.is_empty() {
                    (self.done_tick, self.soonest_tick) = (now_tick, u64::MAX);
                    return false;
                }
            }
            if !self.look_through_slot(now_ms, &mut budget, expired) {
                return true;
            }
            self.done_tick += 1;
        }
        if self.soonest_tick <= self.done_tick {
            let first = self.done_tick + 1;
            let filed = |tick: &u64| self.heads[slot_of(*tick)] != NONE;
            self.soonest_tick = (first..first + SLOTS).find(filed).unwrap_or(u64::MAX);
        }
        false
    }

    /// A moment at or before the earliest deadline, when the wheel wants to be polled.
    pub fn poll_timeout(&self) -> Option<u64> {
        let tick = self.soonest_tick.max(self.done_tick + 1);
        (!self.is_empty()).then(|| tick.saturating_mul(self.tick_ms))
    }

    /// `false` when the budget ended before the slot did.
    fn look_through_slot(
        &mut self,
        now_ms: u64,
        budget: &mut usize,
        expired: &mut Vec<u32>,
    ) -> bool {
        let mut key = self.resume.take().unwrap_or(self.heads[slot_of(self.done_tick + 1)]);
        // From here on `resume` is set, so that what is filed anew goes to a later slot than this one.
        while key != NONE {
            let entry = self.entries[key as usize];
            self.resume = Some(entry.next);
            if *budget == 0 {
                self.resume = Some(key);
                return false;
            }
            *budget -= 1;
            if entry.deadline_ms <= now_ms {
                self.cancel(key);
                expired.push(key);
            } else if entry.deadline_ms > entry.filed_ms {
                self.unlink(key);
                self.link(key, entry.deadline_ms);
            }
            key = entry.next;
        }
        self.resume = None;
        true
    }

    fn set_filed(&mut self, key: u32, deadline_ms: u64) {
        assert!(key != NONE, "the greatest u32 is no key");
        let needed = key as usize + 1;
        if self.entries.len() < needed {
            self.entries.resize(needed, ABSENT);
        }
        self.cancel(key);
        self.len += 1;
        self.link(key, deadline_ms);
    }

    /// Files an entry that is in no slot under its deadline's tick, or the next one to be looked at.
    fn link(&mut self, key: u32, deadline_ms: u64) {
        let earliest = self.done_tick + 1 + u64::from(self.resume.is_some());
        let tick =
            deadline_ms.div_ceil(self.tick_ms).max(earliest).min((u64::MAX - 1) / self.tick_ms);
        self.soonest_tick = self.soonest_tick.min(tick);
        let slot = slot_of(tick);
        let next = self.heads[slot];
        self.entries[key as usize] =
            Entry { deadline_ms, filed_ms: tick * self.tick_ms, next, prev: NONE };
        if next != NONE {
            self.entries[next as usize].prev = key;
        }
        self.heads[slot] = key;
    }

    /// Takes an entry out of its slot.
    fn unlink(&mut self, key: u32) {
        let entry = std::mem::replace(&mut self.entries[key as usize], ABSENT);
        if self.resume == Some(key) {
            self.resume = Some(entry.next);
        }
        if entry.next != NONE {
            self.entries[entry.next as usize].prev = entry.prev;
        }
        if entry.prev == NONE {
            self.heads[slot_of(entry.filed_ms / self.tick_ms)] = entry.next;
        } else {
            self.entries[entry.prev as usize].next = entry.next;
        }
    }
}

fn slot_of(tick: u64) -> usize {
    (tick & (SLOTS - 1)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_deadline_expires_once_never_early_and_at_most_a_tick_late() {
        let mut wheel = Wheel::new(100, 0);
        wheel.set(7, 1_050);
        assert_eq!(poll(&mut wheel, 1_049), []);
        assert_eq!(wheel.poll_timeout(), Some(1_100));
        assert_eq!(poll(&mut wheel, 1_099), []);
        assert_eq!(poll(&mut wheel, 1_100), [7]);
        assert_eq!(poll(&mut wheel, 99_999), []);
        assert_eq!(wheel.poll_timeout(), None);
    }

    #[test]
    fn a_touched_session_lives_on_and_dies_when_it_falls_silent() {
        let mut wheel = Wheel::new(100, 0);
        wheel.set(0, 90_000);
        for ms in (0..600_000).step_by(1_000) {
            wheel.set(0, ms + 90_000);
            assert_eq!(poll(&mut wheel, ms), []);
        }
        assert_eq!(poll(&mut wheel, 688_999), []);
        assert_eq!(poll(&mut wheel, 689_000), [0]);
    }

    #[test]
    fn a_deadline_may_come_nearer_be_cancelled_or_lie_in_the_past() {
        let mut wheel = Wheel::new(10, 5_000);
        wheel.set(1, 60_000);
        wheel.set(1, 6_000);
        wheel.set(2, 6_000);
        wheel.set(3, 17);
        assert_eq!(wheel.len(), 3);
        assert!(wheel.cancel(2));
        assert!(!wheel.cancel(2));
        assert!(!wheel.cancel(99));
        assert_eq!(poll(&mut wheel, 5_010), [3]);
        assert_eq!(poll(&mut wheel, 6_000), [1]);
        assert!(wheel.is_empty());
    }

    #[test]
    fn after_a_long_sleep_everything_due_comes_at_once() {
        let mut wheel = Wheel::new(10, 0);
        (0..1_000).for_each(|key| wheel.set(key, u64::from(key) * 50));
        wheel.set(1_000, u64::MAX);
        let mut expired = poll(&mut wheel, 1_000_000_000);
        expired.sort_unstable();
        assert_eq!(expired, (0..1_000).collect::<Vec<_>>());
        assert_eq!(wheel.deadline_ms(1_000), Some(u64::MAX - 1));
    }

    #[test]
    fn one_poll_does_a_bounded_amount_of_work() {
        let mut wheel = Wheel::new(10, 0);
        (0..10_000).for_each(|key| wheel.set(key, 100));
        let mut expired = Vec::new();
        assert!(wheel.poll_expired(100, &mut expired));
        assert_eq!(expired.len(), WORK_PER_POLL_MAX);
        // Between two polls the very entry the wheel stopped at may go, and others may come to the same slot.
        (0..10_000)
            .filter(|key| !expired.contains(key))
            .for_each(|key| assert!(wheel.cancel(key) || key > 10_000));
        wheel.set(20_000, 90);
        assert!(!wheel.poll_expired(100, &mut expired));
        assert_eq!(expired.len(), WORK_PER_POLL_MAX);
        assert!(!wheel.poll_expired(110, &mut expired));
        assert_eq!(expired.last(), Some(&20_000));
    }

    #[test]
    fn an_entry_costs_twenty_four_bytes() {
        assert_eq!(size_of::<Entry>(), 24);
    }

    /// A thousand seeds of random use against a map that is looked through whole.
    #[test]
    fn the_wheel_agrees_with_a_plain_map() {
        for seed in 1..=1_000 {
            let mut dice = Dice(seed);
            let tick_ms = 1 + dice.below(40);
            let mut now_ms = dice.below(100_000);
            let mut wheel = Wheel::new(tick_ms, now_ms);
            let mut plain = BTreeMap::new();
            for _ in 0..200 {
                let key = dice.below(20) as u32;
                match dice.below(4) {
                    0 | 1 => {
                        let deadline_ms = (now_ms + dice.below(60_000)).saturating_sub(1_000);
                        wheel.set(key, deadline_ms);
                        plain.insert(key, deadline_ms.max(now_ms)); // one in the past is due at once
                    }
                    2 => assert_eq!(wheel.cancel(key), plain.remove(&key).is_some(), "seed {seed}"),
                    _ => {
                        let step_max = if dice.below(10) == 0 { 100_000 } else { 500 };
                        now_ms += dice.below(step_max);
                        check_poll(&mut wheel, &mut plain, now_ms, tick_ms, seed);
                    }
                }
                assert_eq!(wheel.len(), plain.len(), "seed {seed}");
            }
        }
    }

    fn check_poll(
        wheel: &mut Wheel,
        plain: &mut BTreeMap<u32, u64>,
        now_ms: u64,
        tick_ms: u64,
        seed: u64,
    ) {
        let wanted_ms = wheel.poll_timeout();
        let expired = poll(wheel, now_ms);
        for key in expired {
            let deadline_ms =
                plain.remove(&key).unwrap_or_else(|| panic!("seed {seed}: {key} was not set"));
            assert!(deadline_ms <= now_ms, "seed {seed}: {key} expired early");
            assert!(
                wanted_ms.is_some_and(|ms| ms <= now_ms),
                "seed {seed}: expired before it asked to be polled"
            );
        }
        for (key, deadline_ms) in plain {
            assert!(*deadline_ms + 2 * tick_ms > now_ms, "seed {seed}: {key} is late");
        }
    }

    fn poll(wheel: &mut Wheel, now_ms: u64) -> Vec<u32> {
        let mut expired = Vec::new();
        while wheel.poll_expired(now_ms, &mut expired) {}
        expired
    }

    /// Xorshift: enough chance for a test.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }
}
