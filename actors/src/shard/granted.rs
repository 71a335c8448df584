//! Who may publish where, remembered: the gate gives the same answer for as long as its rules are the same, and a client is
//! the same one for as long as its connection lives.
//!
//! A table with one place for each pair of connection and channel, found by their numbers; whoever comes later takes the place.
//! Neither number is ever used again, so nothing has to be taken out when a client leaves or a channel is retired.

use super::sys::is_sys;
use super::{ConnId, Shard};
use crate::cell::CellId;

/// Pairs of client and topic remembered at once. Fewer: with many publishers the access rules are asked for messages they
/// have allowed before; more: memory, 20 bytes each, on a node that has rules.
pub const GRANTED_MAX: usize = 1 << 14;

/// What was allowed. Owns no memory until there is something.
#[derive(Debug, Default)]
pub(super) struct Granted {
    /// Of the rules that allowed it; see [`crate::ports::Gate::epoch`].
    epoch: u64,
    table: Vec<Option<Grant>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Grant {
    conn: ConnId,
    channel: CellId,
}

impl Granted {
    fn has(&self, grant: Grant, epoch: u64) -> bool {
        let known = self.table.get(grant.place());
        self.epoch == epoch && known.is_some_and(|known| *known == Some(grant))
    }

    fn remember(&mut self, grant: Grant, epoch: u64) {
        if self.table.is_empty() || self.epoch != epoch {
            (self.table, self.epoch) = (vec![None; GRANTED_MAX], epoch);
        }
        self.table[grant.place()] = Some(grant);
    }
}

impl Grant {
    fn place(self) -> usize {
        // Neighbours lie apart, also where the numbers of clients and of their topics run side by side.
        let mixed = u64::from(self.conn.index) << 32 | u64::from(self.channel.index());
        (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % GRANTED_MAX
    }
}

impl Shard {
    /// Whether a client may publish on the topic of this channel as far as is known; `false`: the gate has to be asked.
    pub(super) fn is_granted(&self, conn: ConnId, channel: CellId) -> bool {
        let known = || self.granted.has(Grant { conn, channel }, self.gate.epoch());
        self.gate.allows_all() || known()
    }

    /// Whether the connected client of a session may publish on a topic. Where that has a channel, a yes is remembered.
    pub(super) fn may_publish_now(&mut self, session: u32, conn: ConnId, topic: &str) -> bool {
        if is_sys(topic) {
            return false; // what the node says of itself it says itself
        }
        if self.gate.allows_all() {
            return true;
        }
        let channel = self.channels.get(topic).map(|entry| entry.cell);
        if channel.is_some_and(|channel| self.is_granted(conn, channel)) {
            return true;
        }
        let slot = self.sessions.get(session as usize);
        let is_allowed = slot.is_some_and(|slot| self.may_publish(&slot.identity(), topic));
        if let Some(channel) = channel.filter(|_| is_allowed) {
            self.granted.remember(Grant { conn, channel }, self.gate.epoch());
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Cells;
    use outpost_flow::RestartPolicy;

    #[test]
    fn a_grant_is_for_one_connection_and_one_channel() {
        let mut cells: Cells<(), (), ()> = Cells::new(RestartPolicy::default());
        let (first, second) = (cells.spawn((), ()), cells.spawn((), ()));
        let conn = |index, generation| ConnId { index, generation };
        let mut granted = Granted::default();
        let grant = Grant { conn: conn(0, 1), channel: first };
        assert!(!granted.has(grant, 5));
        granted.remember(grant, 5);
        assert!(granted.has(grant, 5));
        for (conn, channel) in [(conn(0, 1), second), (conn(1, 1), first), (conn(0, 2), first)] {
            let other = Grant { conn, channel };
            assert!(!granted.has(other, 5), "{other:?}");
        }
        cells.stop(first);
        let again = cells.spawn((), ());
        assert_eq!(again.index(), first.index());
        assert!(!granted.has(Grant { conn: conn(0, 1), channel: again }, 5), "another channel");
    }

    #[test]
    fn other_rules_grant_anew() {
        let mut cells: Cells<(), (), ()> = Cells::new(RestartPolicy::default());
        let mut grant =
            || Grant { conn: ConnId { index: 0, generation: 1 }, channel: cells.spawn((), ()) };
        let (old, new) = (grant(), grant());
        let mut granted = Granted::default();
        granted.remember(old, 5);
        assert!(!granted.has(old, 6));
        granted.remember(new, 6);
        assert!(granted.has(new, 6) && !granted.has(old, 6));
    }

    #[test]
    fn pairs_side_by_side_find_places_of_their_own() {
        let mut cells: Cells<(), (), ()> = Cells::new(RestartPolicy::default());
        let mut places: Vec<usize> = (0..1_000)
            .map(|index| Grant {
                conn: ConnId { index, generation: 1 },
                channel: cells.spawn((), ()),
            })
            .map(Grant::place)
            .collect();
        places.sort_unstable();
        places.dedup();
        assert!(places.len() > 950, "{} places", places.len());
    }
}
