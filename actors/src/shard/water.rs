//! Queues that fill: their water marks, and messages whose time is over.

use outpost_model::{MessageId, NodeId};
use outpost_store::Space;

use super::sessions::{place_of, queue_key};
use super::{Cell, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, DeliveryRecord};

/// Percent of a session's quota, in messages or bytes, at which people are told; and where that is over.
const MARKS: [u64; 2] = [70, 90];
const LOW_MARK: u64 = 60;

/// Between two searches of full queues for messages that have expired. Shorter reads the disk more often; longer holds
/// publishers back for messages nobody wants any more.
const EXPIRE_EVERY_MS: u64 = 5_000;

/// Rows looked at in one go. Fewer: more turns until a long queue is through; more: a turn takes longer.
const EXPIRE_ROWS: usize = 512;

impl Shard {
    /// A session's queue has changed: says so when it crosses a mark.
    pub(super) fn mark_queue(&mut self, session: u32) {
        let (messages_max, bytes_max) =
            (u64::from(self.config.queue_messages_max), self.config.queue_bytes_max);
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let percent = (u64::from(slot.queued) * 100 / messages_max.max(1))
            .max(slot.queued_bytes.saturating_mul(100) / bytes_max.max(1));
        let reached = MARKS.iter().filter(|mark| percent >= **mark).count() as u8;
        let level = if percent < LOW_MARK { 0 } else { slot.mark.max(reached) };
        let before = std::mem::replace(&mut slot.mark, level);
        if before == level {
            return;
        }
        let text = format!(
            "client {:?}: {} messages, {} bytes queued, {percent} % of its quota",
            slot.client_id, slot.queued, slot.queued_bytes
        );
        if level == 0 {
            self.queues_high -= 1;
            return self.log(LogLevel::Info, format!("queue.low: {text}"));
        }
        self.queues_high += u32::from(before == 0);
        self.queue_marks += 1;
        let mark = MARKS[usize::from(level) - 1];
        self.log(LogLevel::Warn, format!("queue.high: {mark} % reached by {text}"));
    }

    /// When full queues are to be searched for what has expired.
    pub(super) fn expire_due_ms(&self) -> Option<u64> {
        (self.full_sessions > 0).then_some(self.expire_at_ms)
    }

    /// Searches the queues of full sessions that are away, now and then.
    pub(super) fn expire_full(&mut self) {
        if self.expire_due_ms().is_none_or(|due_ms| self.now.mono_ms < due_ms) {
            return;
        }
        self.expire_at_ms = self.now.mono_ms + EXPIRE_EVERY_MS;
        let full = self.sessions.iter().filter(|(_, s)| s.full && s.conn.is_none() && s.durable);
        let full: Vec<(u32, u64)> = full.map(|(index, s)| (index as u32, s.number)).collect();
        for (session, number) in full {
            self.journal.hold_for_reading(Hold::Expire { session, number, from: 0 });
        }
    }

    /// Takes expired deliveries off the disk. Those in memory end when their turn comes to be sent.
    pub(super) fn expire_rows(&mut self, session: u32, number: u64, from: u64) {
        let Some(slot) = self.slot_of(session, number) else { return };
        if slot.conn.is_some() || slot.loading.is_some() {
            return; // its client comes for them, and they expire on the way
        }
        let cell = slot.cell;
        let Some(Cell::Session(body)) = self.cells.body_mut(cell) else { return };
        let cold = body.outbound.cold();
        let (prefix, start) =
            (queue_key(number, 0)[..9].to_vec(), queue_key(number, from.max(cold.start)));
        let rows = self.journal.store().scan(Space::Queues, &prefix, &start, EXPIRE_ROWS);
        let Ok(rows) = rows else { return }; // the next search may read it
        let last =
            rows.last().filter(|_| rows.len() == EXPIRE_ROWS).and_then(|(key, _)| place_of(key));
        for (key, value) in rows {
            let Some(place) = place_of(&key).filter(|place| cold.contains(place)) else { continue };
            let Ok(record) = record::decode::<DeliveryRecord>("delivery", &value) else { continue };
            if record.expires_wall_ms.is_some_and(|due_ms| due_ms <= self.now.wall_ms)
                && !record.released
            {
                let id = MessageId { node: NodeId(record.node), seq: record.seq };
                self.ledger.drop(Drop::Expired, 1);
                self.forget_delivery(session, place, id, record.bytes.unwrap_or(0).into());
            }
        }
        if let Some(last) = last {
            self.journal.hold_for_reading(Hold::Expire { session, number, from: last + 1 });
        }
    }
}
