//! When a loop that serves many clients lets a little more work gather before it looks again: interrupt moderation.
//!
//! A turn costs system calls and a wake-up whether it serves one client or thirty. Turns that follow each other closely
//! are therefore kept apart by a short rest, in which what comes is collected; a turn that comes after a quiet while is
//! not, so the first message of a burst, and each message of an idle system, is served at once.

/// A turn later than so many intervals after the one before does not rest. Smaller: bursts are not recognised; greater:
/// clients that wait for each other's answers are slowed down for nothing.
const QUIET_INTERVALS: u64 = 4;

/// A turn that served this many clients is worth its system calls already.
const CLIENTS_ENOUGH: usize = 64;

/// Rests after which only one client or none had something: then it is one client that waits for its answers.
const FRUITLESS_MAX: u32 = 8;

/// Turns without a rest after that. Fewer: such a client waits more often for nothing; more: what others begin to send
/// meanwhile is not gathered for longer.
const TURNS_WITHOUT: u32 = 256;

/// Decides after each turn.
#[derive(Debug, Clone)]
pub struct Gather {
    interval_us: u64,
    last_us: Option<u64>,
    rested: bool,
    fruitless: u32,
    without: u32,
}

impl Gather {
    /// With rests of `interval_us`; 0 turns it off.
    pub fn new(interval_us: u64) -> Self {
        Self { interval_us, last_us: None, rested: false, fruitless: 0, without: 0 }
    }

    /// A turn that served so many clients is over. How long to rest before the next, microseconds; 0 = not at all.
    pub fn handle_turn(&mut self, now_us: u64, clients: usize) -> u64 {
        let gap_us = self.last_us.replace(now_us).map_or(u64::MAX, |last| now_us - last);
        let rested = std::mem::take(&mut self.rested);
        if gap_us >= QUIET_INTERVALS * self.interval_us || clients >= CLIENTS_ENOUGH {
            return 0;
        }
        if clients > 1 {
            self.fruitless = 0;
        } else if rested {
            self.fruitless += 1;
            if self.fruitless == FRUITLESS_MAX {
                (self.fruitless, self.without) = (0, TURNS_WITHOUT);
            }
        }
        if self.without > 0 {
            self.without -= 1;
            return 0;
        }
        self.rested = true;
        self.interval_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_system_never_rests() {
        let mut gather = Gather::new(50);
        for turn in 0..1_000 {
            assert_eq!(gather.handle_turn(turn * 200, 1), 0);
        }
    }

    #[test]
    fn a_burst_rests_from_its_second_turn_on() {
        let mut gather = Gather::new(50);
        assert_eq!(gather.handle_turn(10_000, 1), 0);
        assert_eq!(gather.handle_turn(10_020, 2), 50);
        assert_eq!(gather.handle_turn(10_100, 12), 50);
        assert_eq!(gather.handle_turn(11_000, 1), 0, "the next one");
    }

    #[test]
    fn one_client_that_waits_for_its_answers_is_soon_left_alone() {
        let mut gather = Gather::new(50);
        let mut now_us = 0;
        let mut rests = 0;
        for _ in 0..10_000 {
            now_us += 60;
            let rest_us = gather.handle_turn(now_us, 1);
            now_us += rest_us;
            rests += u64::from(rest_us > 0);
        }
        assert!((1..500).contains(&rests), "{rests} rests");
        // Another one comes.
        let rests = (0..1_000).filter(|turn| gather.handle_turn(now_us + turn * 60, 2) > 0).count();
        assert!(rests > 700, "{rests} rests");
    }

    #[test]
    fn a_turn_that_served_many_is_followed_at_once() {
        let mut gather = Gather::new(50);
        gather.handle_turn(0, 1);
        assert_eq!(gather.handle_turn(10, 64), 0);
    }

    #[test]
    fn off_is_off() {
        let mut gather = Gather::new(0);
        assert_eq!((0..9).map(|turn| gather.handle_turn(turn, 2)).sum::<u64>(), 0);
    }
}
