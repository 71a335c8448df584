//! What this shard charges to the memory budget, and how publishers are paced.
//!
//! Charges are rough on purpose: what a thing owns, not what the allocator keeps. A message that waits for several clients
//! counts for each of them.

use outpost_flow::pace::WAIT_MS_MAX;
use outpost_flow::{Class, Pressure};
use outpost_mqtt::window::HOT_MAX;

use super::channel::Recipient;
use super::connection::Phase;
use super::slot::SessionSlot;
use super::{ConnId, LogLevel, Shard};
use crate::ledger::Drop;

/// What an idle connection costs, its part in the driver included.
const CONNECTION_BYTES: u64 = 2_048;

/// What a cell costs, with what the shard keeps of its session, channel or subscription.
const CELL_BYTES: u64 = 512;

/// What a retained message costs beyond itself.
const RETAINED_BYTES: u64 = 256;

/// What the count of who needs a message body costs, for each body on disk.
const BODY_BYTES: u64 = 48;

/// A client that is owed more deliveries than this is behind: what comes for it waits in memory.
pub(super) const BEHIND_MESSAGES: u32 = 16;

/// Most places made at once for connections that may come, and their sessions. Fewer: a greater fleet has the tables copied
/// as it comes, and they then keep what their copies had, up to as much again; more: addresses that nobody uses.
const PLACES_AT_ONCE: usize = 1 << 16;

/// From [`Pressure::Shed`] on QoS 0 to a client is dropped when this part of its write buffer is full.
pub(super) const SHED_DIVISOR: usize = 16;

/// What the ledger said before a message was handled.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    owed: u64,
    slow: u64,
    refused: u64,
    blocked: u64,
}

impl SessionSlot {
    /// What its deliveries occupy in memory: of a durable session the first ones only.
    fn queue_bytes(&self) -> u64 {
        if !self.durable || self.queued <= HOT_MAX as u32 {
            return self.queued_bytes;
        }
        self.queued_bytes / u64::from(self.queued) * HOT_MAX as u64
    }
}

impl Shard {
    /// Gives back memory that sessions and connections needed which are gone.
    pub fn shrink(&mut self) {
        self.retire_unused_channels();
        self.connections.shrink_to_fit();
        self.sessions.shrink_to_fit();
        self.cells.shrink();
        self.shrink_names();
        self.channels.shrink_to_fit();
        self.events.shrink_to_fit();
        self.flushes.shrink_to_fit();
    }

    /// Makes places for as many connections as may come, with a session and a subscription each, when there are none left:
    /// none of them is memory before it is used.
    pub(super) fn make_places(&mut self) {
        let connections = self.connections.len();
        if connections < self.connections.capacity() {
            return;
        }
        let places = self.config.connections_max.min(PLACES_AT_ONCE);
        self.connections.reserve_exact(places.saturating_sub(connections));
        self.connection_wheel.reserve(places);
        self.sessions.reserve_exact(places.saturating_sub(self.sessions.len()));
        self.cells.reserve((2 * places).saturating_sub(self.cells.len()));
    }

    /// What is given up to keep the memory budget.
    pub fn pressure(&self) -> Pressure {
        self.budget.pressure()
    }

    /// What only the driver knows: the store's backlog, the shadows.
    pub fn charge_outside(&mut self, class: Class, bytes: u64) {
        self.budget.set(class, bytes);
    }

    /// Looks at the account; a new level is told, and who waited for room tries again.
    pub(super) fn weigh(&mut self) {
        let sessions = self.connections.len() as u64 * CONNECTION_BYTES
            + self.cells.len() as u64 * CELL_BYTES
            + self.journal.bodies() as u64 * BODY_BYTES;
        self.budget.set(Class::Sessions, sessions);
        let retained = self.retained.bytes() + self.retained.len() as u64 * RETAINED_BYTES;
        self.budget.set(Class::Retained, retained);
        let Some(level) = self.budget.poll() else { return };
        self.ledger.pressure_changes += 1;
        if level < Pressure::Refuse {
            self.retry_blocked = true;
        }
        let text = format!(
            "memory: {} of {} bytes of limits.memory_bytes_max are in use, level {:?} from now on",
            self.budget.used_bytes(),
            self.budget.limit_bytes(),
            level.name()
        );
        let loud = if level > Pressure::Slow { LogLevel::Warn } else { LogLevel::Info };
        self.log(loud, text);
    }

    /// The queue of a session has changed.
    pub(super) fn charge_queue(&mut self, session: u32) {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let now = slot.queue_bytes();
        if now != slot.charged {
            self.budget.recharge(Class::Queues, slot.charged, now);
            slot.charged = now;
        }
    }

    /// A session goes, and its queue with it.
    pub(super) fn discharge_queue(&mut self, slot: &SessionSlot) {
        self.budget.recharge(Class::Queues, slot.charged, 0);
    }

    /// The buffers of a connection have changed.
    pub(super) fn charge_buffers(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        let (open, waiting) = (connection.phase, connection.buffered_bytes());
        let ring = match open {
            Phase::Open(session) => self.sessions.get(session as usize),
            _ => None,
        };
        let ring = ring.and_then(|slot| slot.ring.as_ref());
        let rung: usize = ring.map_or(0, |ring| ring.iter().map(|d| d.message.cost_bytes()).sum());
        let now = u32::try_from(waiting + rung).unwrap_or(u32::MAX);
        let Some(connection) = self.connection_mut(conn) else { return };
        let before = std::mem::replace(&mut connection.charged, now);
        if now != before {
            self.budget.recharge(Class::Buffers, before.into(), now.into());
        }
    }

    /// Whether a QoS 1 or 2 message for this receiver would wait in memory behind others, when there is little left.
    pub(super) fn would_pile_up(&self, recipient: &Recipient) -> bool {
        match recipient {
            Recipient::Session { session, qos, .. } => {
                *qos > outpost_model::QoS::AtMostOnce && self.is_behind(*session)
            }
            Recipient::Group(group) => self.is_group_behind(*group),
            Recipient::Shared(_) | Recipient::Peer { .. } | Recipient::Local(_) => false,
        }
    }

    /// Of a durable session's queue only the beginning is in memory, whatever comes; the rest costs next to nothing.
    pub(super) fn is_behind(&self, session: u32) -> bool {
        let spared = |slot: &SessionSlot| slot.durable && self.budget.pressure() < Pressure::Closed;
        let slot = self.sessions.get(session as usize);
        slot.is_some_and(|slot| slot.queued > BEHIND_MESSAGES && !spared(slot))
    }

    pub(super) fn mark(&self) -> Mark {
        let dropped = &self.ledger.dropped;
        Mark {
            owed: self.ledger.owed,
            slow: dropped[Drop::SlowClient as usize] + dropped[Drop::Memory as usize],
            refused: self.ledger.refused,
            blocked: self.ledger.blocked,
        }
    }

    /// A publish was handled: what it costs its publisher. `before` it the ledger stood so.
    pub(super) fn pace(&mut self, conn: ConnId, bytes: u64, before: Mark) {
        let after = self.mark();
        let slow = after.slow - before.slow;
        let in_vain =
            after.refused > before.refused || (slow > 0 && after.owed - before.owed == slow);
        let backlog_permille = self.budget.backlog_permille();
        let blocked = after.blocked > before.blocked;
        if !in_vain && !blocked && backlog_permille == 0 && self.config.pace.is_none() {
            return;
        }
        let (limits, now_ms) = (self.config.pace, self.now.mono_ms);
        let Some(connection) = self.connection_mut(conn) else { return };
        let pace = connection.rare.pace_mut();
        let was_low = pace.is_low();
        pace.charge(&limits, bytes, backlog_permille, now_ms);
        if in_vain {
            pace.charge_in_vain(now_ms);
        }
        if blocked {
            pace.hold(now_ms);
        }
        let is_low = pace.is_low();
        self.ledger.in_vain += u64::from(in_vain);
        self.ledger.demoted += u64::from(is_low && !was_low);
    }

    /// How long this connection's next publish has to wait; its timer is set.
    pub(super) fn paced_ms(&mut self, conn: ConnId) -> u64 {
        let now_ms = self.now.mono_ms;
        let pace = self.connection(conn).and_then(|connection| connection.rare.pace());
        let wait_ms = pace.map_or(0, |pace| pace.wait_ms(now_ms)).min(WAIT_MS_MAX);
        if wait_ms > 0 {
            self.pace_wheel.set(conn.index, now_ms + wait_ms);
            self.ledger.paced += 1;
        }
        wait_ms
    }

    /// A publisher that was paced may go on.
    pub(super) fn pace_timeout(&mut self, index: u32) {
        if let Some(connection) = self.connections.get(index as usize) {
            let generation = connection.generation();
            self.resume(ConnId { index, generation });
        }
    }
}
