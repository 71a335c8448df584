//! When a loop that serves many clients lets a little more work gather before it looks again: interrupt moderation.
//!
//! A turn costs system calls and a wake-up whether it serves one client or ten. When they come fast enough, turns are kept
//! apart by a short rest, in which what comes is collected:
//!
//! ```text
//!  Free ── a rest promises PACKETS_WORTH ──▶ Resting ── every LOOK_EVERY ──▶ Free (one measurement)
//!   ▲                                           │
//!   └── AFTER_HARM_MS ◀── fewer come than did ──┘  (they wait for our answers: a rest holds them up)
//! ```
//! How fast they come is measured, and again while resting: clients that send on whatever we do lose nothing by a rest,
//! and clients that wait for their answers are soon left alone. A quiet system never rests.

/// A rest that promises fewer clients is not taken: it would be one more sleep and one more wake-up for little.
const CLIENTS_WORTH: u64 = 4;

/// A rest is no longer than it takes so many to come. More: longer waits for little; fewer: more wake-ups.
const CLIENTS_ENOUGH: u64 = 8;

/// A turn that served so many is not followed by a rest: they gather by themselves.
const CLIENTS_MANY: usize = 16;

/// Shorter rests are not worth their sleep.
const REST_US_MIN: u64 = 50;

/// How long is measured. Shorter: chance is taken for a change; longer: a change is seen later.
const MEASURE_MS: u64 = 50;

/// Measurements with rests before one without, to compare with. Fewer: more time without rests; more: clients that have
/// begun to wait for their answers are held up for longer.
const LOOK_EVERY: u32 = 40;

/// When fewer come than this part of those that came without rests, it is the rests that hold them back.
const HARM_PERCENT: u64 = 75;

/// How long there are no rests after that.
const AFTER_HARM_MS: u64 = 2_000;

/// Decides after each turn.
#[derive(Debug, Clone)]
pub struct Gather {
    rest_us_max: u64,
    /// When the measurement under way began.
    since_ms: Option<u64>,
    /// Clients served since.
    clients: u64,
    resting: Option<Resting>,
    /// No rests before this.
    free_until_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Resting {
    rest_us: u64,
    /// Clients a second when there were no rests.
    free_rate: u64,
    measurements: u32,
}

impl Gather {
    /// With rests of at most `rest_us_max`; 0 turns it off.
    pub fn new(rest_us_max: u64) -> Self {
        Self { rest_us_max, since_ms: None, clients: 0, resting: None, free_until_ms: 0 }
    }

    /// A turn that served so many clients is over. How long to rest before the next, microseconds; 0 = not at all.
    pub fn handle_turn(&mut self, now_ms: u64, clients: usize) -> u64 {
        if self.rest_us_max == 0 {
            return 0;
        }
        self.clients += clients as u64;
        let since_ms = *self.since_ms.get_or_insert(now_ms);
        let measured_ms = now_ms.saturating_sub(since_ms);
        if measured_ms >= MEASURE_MS {
            let rate = self.clients.saturating_mul(1_000) / measured_ms;
            (self.since_ms, self.clients) = (Some(now_ms), 0);
            self.handle_rate(rate, now_ms);
        }
        match self.resting {
            Some(resting) if clients < CLIENTS_MANY => resting.rest_us,
            _ => 0,
        }
    }

    /// So many clients a second were served since the last measurement.
    fn handle_rate(&mut self, rate: u64, now_ms: u64) {
        let before = self.resting.take();
        let is_harm = |before: Resting| rate * 100 < before.free_rate * HARM_PERCENT;
        if before.is_some_and(is_harm) {
            self.free_until_ms = now_ms + AFTER_HARM_MS;
        }
        let is_worth = rate * self.rest_us_max >= CLIENTS_WORTH * 1_000_000;
        let is_time_to_look = before.is_some_and(|before| before.measurements == LOOK_EVERY);
        if now_ms < self.free_until_ms || !is_worth || is_time_to_look {
            return;
        }
        let rest_us = self.rest_us_max.min(CLIENTS_ENOUGH * 1_000_000 / rate);
        if rest_us >= REST_US_MIN.min(self.rest_us_max) {
            let (free_rate, measurements) =
                before.map_or((rate, 0), |before| (before.free_rate, before.measurements + 1));
            self.resting = Some(Resting { rest_us, free_rate, measurements });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a turn takes here.
    const TURN_US: u64 = 20;

    /// Clients that send on whatever we do, one each `every_us`: rests taken, and turns.
    fn open_loop(gather: &mut Gather, start_us: u64, seconds: u64, every_us: u64) -> (u64, u64) {
        let (mut now_us, mut served, mut rests, mut turns) = (start_us, 0, 0, 0);
        while now_us < start_us + seconds * 1_000_000 {
            let come = (now_us - start_us) / every_us;
            if come == served {
                now_us = start_us + (served + 1) * every_us;
                continue;
            }
            now_us += TURN_US;
            let rest_us = gather.handle_turn(now_us / 1_000, (come - served) as usize);
            served = come;
            now_us += rest_us;
            rests += u64::from(rest_us > 0);
            turns += 1;
        }
        (rests, turns)
    }

    /// So many clients, each of which sends again when it has its answer: clients served.
    fn closed_loop(gather: &mut Gather, clients: usize, seconds: u64) -> u64 {
        let (mut now_us, mut served) = (0, 0);
        while now_us < seconds * 1_000_000 {
            now_us += TURN_US;
            now_us += gather.handle_turn(now_us / 1_000, clients);
            served += clients as u64;
        }
        served
    }

    #[test]
    fn a_quiet_system_never_rests() {
        assert_eq!(open_loop(&mut Gather::new(500), 0, 10, 200).0, 0, "5,000 a second");
    }

    #[test]
    fn a_busy_one_makes_an_eighth_of_the_turns() {
        let (rests, turns) = open_loop(&mut Gather::new(500), 0, 10, 40);
        assert!(rests > turns / 2 && turns < 250_000 / 7, "{rests} rests, {turns} turns");
    }

    #[test]
    fn a_rest_is_as_long_as_it_takes_for_enough_to_come_and_no_longer_than_allowed() {
        for (every_us, rest_us) in [(25, 200), (40, 320), (100, 500)] {
            let mut gather = Gather::new(500);
            open_loop(&mut gather, 0, 1, every_us);
            let resting = gather.resting.map(|resting| resting.rest_us.next_multiple_of(5));
            assert_eq!(resting, Some(rest_us), "one each {every_us} µs");
        }
    }

    #[test]
    fn clients_that_wait_for_their_answers_are_left_alone() {
        for clients in [1, 2, 5, 10, 15] {
            let (with, without) = (&mut Gather::new(500), &mut Gather::new(0));
            let (with, without) =
                (closed_loop(with, clients, 20), closed_loop(without, clients, 20));
            assert!(with > without / 100 * 94, "{clients} clients: {with} of {without}");
        }
    }

    #[test]
    fn many_that_come_at_once_gather_by_themselves() {
        assert_eq!(open_loop(&mut Gather::new(500), 0, 5, 2).0, 0, "500,000 a second");
    }

    #[test]
    fn it_ends_with_the_load() {
        let mut gather = Gather::new(500);
        assert!(open_loop(&mut gather, 0, 2, 40).0 > 0);
        let (rests, _) = open_loop(&mut gather, 3_000_000, 5, 1_000);
        assert_eq!(rests, 0);
        assert!(open_loop(&mut gather, 20_000_000, 2, 40).0 > 0, "and begins with the next");
    }

    #[test]
    fn off_is_off() {
        assert_eq!(open_loop(&mut Gather::new(0), 0, 5, 40).0, 0);
    }
}
