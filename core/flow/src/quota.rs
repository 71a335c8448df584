//! A quota in messages and bytes: what is in use, when people are told, and when there is room again.
//!
//! ```text
//!  used    0 %      60 %     70 %       87 %      90 %        100 %
//!  up               ·        High(70)   ·         High(90)    Full
//!  down    Low ◀────┘        ·          High ◀────·───────────┘
//! ```
//! What is full stays so until an eighth is free, so that those who wait are not woken for each single place.

/// Percent at which people are told.
pub const MARKS: [u64; 2] = [70, 90];

/// Percent below which that is over.
const LOW_MARK: u64 = 60;

/// What may be in use. Of the two the one that is reached first counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    /// Messages.
    pub messages: u64,
    /// Bytes.
    pub bytes: u64,
}

impl QuotaLimits {
    fn is_reached(&self, percent: u64, messages: u64, bytes: u64) -> bool {
        let reached = |used: u64, limit: u64| {
            u128::from(used) * 100 >= u128::from(limit.max(1)) * u128::from(percent)
        };
        reached(messages, self.messages) || reached(bytes, self.bytes)
    }
}

/// How full it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Nobody needs to know.
    #[default]
    Low,
    /// This mark was reached, and use has not fallen far enough since.
    High(u64),
    /// Nothing more goes in.
    Full,
}

/// What is in use of a quota.
#[derive(Debug, Clone, Default)]
pub struct Quota {
    messages: u64,
    bytes: u64,
    level: Level,
}

impl Quota {
    /// Messages in use.
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How full it is.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether nothing more should go in.
    pub fn is_full(&self) -> bool {
        self.level == Level::Full
    }

    /// One message more, of so many bytes. The level when it is another now.
    pub fn add(&mut self, limits: &QuotaLimits, bytes: u64) -> Option<Level> {
        self.messages += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        let reached = |percent| limits.is_reached(percent, self.messages, self.bytes);
        let level = match self.level {
            Level::Full => return None,
            _ if !reached(MARKS[0]) => return None,
            _ if reached(100) => Level::Full,
            _ if reached(MARKS[1]) => Level::High(MARKS[1]),
            _ => Level::High(MARKS[0]),
        };
        (level > self.level).then(|| {
            self.level = level;
            level
        })
    }

    /// So many messages of so many bytes in all are gone. The level when it is another now.
    pub fn take(&mut self, limits: &QuotaLimits, messages: u64, bytes: u64) -> Option<Level> {
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        if self.level == Level::Low {
            return None;
        }
        let (messages, bytes) = (self.messages, self.bytes);
        let room = QuotaLimits {
            messages: limits.messages - (limits.messages / 8).clamp(1, limits.messages.max(1)),
            bytes: limits.bytes - limits.bytes / 8,
        };
        let level = match self.level {
            _ if !limits.is_reached(LOW_MARK, messages, bytes) => Level::Low,
            Level::Full if messages <= room.messages && bytes <= room.bytes => {
                Level::High(MARKS[0])
            }
            level => level,
        };
        (level != self.level).then(|| {
            self.level = level;
            level
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QuotaLimits = QuotaLimits { messages: 100, bytes: 10_000 };

    fn fill(quota: &mut Quota, count: u64, bytes: u64) -> Vec<(u64, Level)> {
        let told = (0..count).map(|_| (quota.add(&LIMITS, bytes), quota.messages()));
        told.filter_map(|(level, at)| Some((at, level?))).collect()
    }

    fn drain(quota: &mut Quota, bytes: u64) -> Vec<(u64, Level)> {
        let all = 0..quota.messages();
        let told = all.map(|_| (quota.take(&LIMITS, 1, bytes), quota.messages()));
        told.filter_map(|(level, at)| Some((at, level?))).collect()
    }

    #[test]
    fn marks_are_told_once_on_the_way_up_and_once_on_the_way_down() {
        let mut quota = Quota::default();
        let up = fill(&mut quota, 120, 1);
        assert_eq!(up, [(70, Level::High(70)), (90, Level::High(90)), (100, Level::Full)]);
        assert!(quota.is_full());
        let down = drain(&mut quota, 1);
        assert_eq!(down, [(88, Level::High(70)), (59, Level::Low)]);
        assert_eq!((quota.messages(), quota.bytes()), (0, 0));
    }

    #[test]
    fn bytes_fill_it_as_well() {
        let mut quota = Quota::default();
        assert_eq!(fill(&mut quota, 10, 1_000).last(), Some(&(10, Level::Full)));
        assert_eq!(drain(&mut quota, 1_000).first(), Some(&(8, Level::High(70))));
    }

    #[test]
    fn a_mark_does_not_flutter() {
        let mut quota = Quota::default();
        fill(&mut quota, 70, 1);
        for _ in 0..5 {
            assert_eq!(quota.take(&LIMITS, 5, 5), None);
            assert_eq!(fill(&mut quota, 5, 1), []);
        }
    }

    #[test]
    fn a_quota_of_one_message_has_room_when_that_is_gone() {
        let one = QuotaLimits { messages: 1, bytes: 1 << 40 };
        let mut quota = Quota::default();
        assert_eq!(quota.add(&one, 1), Some(Level::Full));
        assert_eq!(quota.take(&one, 1, 1), Some(Level::Low));
    }
}
