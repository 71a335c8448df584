//! Turns of the data thread: who is read from in the next one, and how long they take. Whoever has a packet ready waits for
//! one of them.

use std::sync::atomic::{AtomicU64, Ordering};

use outpost_actors::shard::ConnId;

use super::Plane;
use crate::listen::connection::Connection;

/// Upper ends of the classes turns are counted in, microseconds; the last class has none.
const CLASSES_US: [u64; 9] = [250, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

/// Their names: the metric's label, milliseconds.
const NAMES: [&str; CLASSES_US.len() + 1] =
    ["0.25", "0.5", "1", "2", "5", "10", "20", "50", "100", "inf"];

/// Turns by their length, from the first byte that was read in one to the last that was written.
#[derive(Debug, Default)]
pub struct Turns {
    counts: [AtomicU64; CLASSES_US.len() + 1],
    longest_us: AtomicU64,
    waited: AtomicU64,
    sends_together: AtomicU64,
}

impl Turns {
    /// One is over. Only the data thread says so: nothing is lost between a look and a write.
    pub(super) fn count(&self, took_us: u64) {
        let count = &self.counts[CLASSES_US.partition_point(|end_us| *end_us <= took_us)];
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if took_us > self.longest_us.load(Ordering::Relaxed) {
            self.longest_us.store(took_us, Ordering::Relaxed);
        }
    }

    /// The longest since the node started, microseconds.
    pub fn longest_us(&self) -> u64 {
        self.longest_us.load(Ordering::Relaxed)
    }

    /// How often a client had its share of a turn and waited for the next.
    pub fn waited(&self) -> u64 {
        self.waited.load(Ordering::Relaxed)
    }

    /// So many connections are written to with one system call.
    pub(super) fn count_sends(&self, count: usize) {
        self.sends_together.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How often a connection was written to with others in one system call.
    pub fn sends_together(&self) -> u64 {
        self.sends_together.load(Ordering::Relaxed)
    }

    /// So many turns took less than so many milliseconds, and not less than those named before.
    pub fn by_length(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES
            .into_iter()
            .zip(&self.counts)
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

impl Plane {
    /// A connection has had its share of this turn; it goes on in a later one.
    pub fn wait_for_turn(&self, id: ConnId) {
        self.waiting.borrow_mut().push_back(id);
        self.handle.turns().waited.fetch_add(1, Ordering::Relaxed);
        self.schedule_turn();
    }

    /// Reads from those who wait for their turn: from one at least, and from as many as there is room for in this turn.
    pub(super) fn serve_waiting(&self) {
        let waiting = self.waiting.borrow().len();
        for served in 0..waiting {
            if served > 0 && self.is_turn_used_up() {
                return;
            }
            let Some(next) = self.waiting.borrow_mut().pop_front() else { return };
            self.with_connection(next, |connection: &Connection| connection.take_turn(self));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_turn_is_counted_once_where_it_belongs() {
        let turns = Turns::default();
        for took_us in [0, 249, 250, 1_999, 2_000, 99_999, 100_000, 7_000_000] {
            turns.count(took_us);
        }
        let counted: Vec<_> = turns.by_length().filter(|(_, count)| *count > 0).collect();
        let expected = [("0.25", 2), ("0.5", 1), ("2", 1), ("5", 1), ("100", 1), ("inf", 2)];
        assert_eq!((counted.as_slice(), turns.longest_us()), (&expected[..], 7_000_000));
    }
}
