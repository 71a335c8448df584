//! Queues that fill: their water marks, and messages whose time is over.

use outpost_flow::quota::MARKS;
use outpost_flow::{Level, Quota, QuotaLimits};
use outpost_model::{MessageId, NodeId};
use outpost_mqtt::window::HOT_MAX;
use outpost_store::{ReadError, Space};

use super::memory::BEHIND_MESSAGES;
use super::sessions::{place_of, queue_key};
use super::slot::SessionSlot;
use super::{Cell, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, DeliveryRecord};

/// Percent of a session's quota where it is over that a mark was reached.
const LOW_MARK: u64 = 60;

/// Between two searches of full queues for messages that have expired. Shorter reads the disk more often; longer holds
/// publishers back for messages nobody wants any more.
const EXPIRE_EVERY_MS: u64 = 5_000;

/// Rows looked at in one go. Fewer: more turns until a long queue is through; more: a turn takes longer.
const EXPIRE_ROWS: usize = 512;

/// Between two goes of one search. Shorter: more of the thread's time; longer: a long queue has room later.
const EXPIRE_STEP_MS: u64 = 20;

/// Between two portions of message bodies looked through after a start. Shorter takes from clients that come back; longer
/// leaves what a crash has left for longer.
const SWEEP_EVERY_MS: u64 = 50;

/// Keys in a portion. Fewer: it takes longer until all are looked through; more: a turn takes longer.
const SWEEP_KEYS: usize = 1_024;

/// How queues stand, and what a crash may have left of them.
#[derive(Debug, Default)]
pub(super) struct Water {
    /// Sessions above a mark.
    pub(super) high: u32,
    /// How often one was crossed upwards.
    pub(super) marks: u64,
    /// The queues of all sessions together.
    pub(super) all: Quota,
    /// How often one of its marks was crossed upwards, or it was full.
    pub(super) all_marks: u64,
    /// The same of all outboxes.
    pub(super) outbox_marks: u64,
    /// Message bodies that were there at start are looked through: from this key on, at this time.
    sweep: Option<(Vec<u8>, u64)>,
}

impl Water {
    pub(super) fn sweep_due_ms(&self) -> Option<u64> {
        self.sweep.as_ref().map(|(_, due_ms)| *due_ms)
    }
}

/// The search for what has expired: one at a time, or rows that one has taken away and the disk still has would be taken
/// away again by the other.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    due_ms: u64,
    /// A go waits until the rows can be read.
    reading: bool,
    /// When rows behind the beginning of a queue were last taken away; see [`super::journal::Journal::mark`].
    pub(super) gone: u32,
    /// Where it goes on: at this place in the table of sessions, at this place in its queue.
    session: usize,
    from: u64,
}

impl Shard {
    /// A delivery more waits for some client.
    pub(super) fn add_to_node_queue(&mut self, bytes: u64) {
        let changed = self.water.all.add(&self.node_queue_limits(), bytes);
        self.tell_node_queue(changed);
    }

    /// So many wait no more.
    pub(super) fn take_from_node_queue(&mut self, messages: u64, bytes: u64) {
        let was_full = self.water.all.is_full();
        let changed = self.water.all.take(&self.node_queue_limits(), messages, bytes);
        self.retry_blocked |= was_full && !self.water.all.is_full();
        self.tell_node_queue(changed);
    }

    fn node_queue_limits(&self) -> QuotaLimits {
        QuotaLimits {
            messages: self.config.node_queue_messages_max,
            bytes: self.config.node_queue_bytes_max,
        }
    }

    fn tell_node_queue(&mut self, changed: Option<Level>) {
        let Some(level) = changed else { return };
        let all = &self.water.all;
        let text = format!(
            "{} messages, {} bytes wait in the queues of this node (limits.node_queue_messages_max, node_queue_bytes_max)",
            all.messages(),
            all.bytes()
        );
        self.water.all_marks +=
            tell(level, "node_queue", &text, |level, text| self.log(level, text));
    }

    /// Whether there may be a receiver without room.
    pub(super) fn is_anyone_full(&self) -> bool {
        self.full_sessions > 0 || self.full_peers > 0 || self.water.all.is_full()
    }

    /// Whether QoS 1 and 2 for this session has to wait elsewhere: its queue is full, or those of all together are and its
    /// client does not take what comes.
    pub(super) fn lacks_room(&self, slot: &SessionSlot) -> bool {
        let waits = || slot.conn.is_none() || slot.queued > BEHIND_MESSAGES;
        slot.full || (self.water.all.is_full() && waits())
    }

    /// A session's queue has changed: says so when it crosses a mark.
    pub(super) fn mark_queue(&mut self, session: u32) {
        let (messages_max, bytes_max) =
            (u64::from(self.config.queue_messages_max), self.config.queue_bytes_max);
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let (messages_low, bytes_low) = (messages_max / 100 * MARKS[0], bytes_max / 100 * MARKS[0]);
        if slot.mark == 0 && u64::from(slot.queued) < messages_low && slot.queued_bytes < bytes_low
        {
            return; // nearly always
        }
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
            self.water.high -= 1;
            return self.log(LogLevel::Info, format!("queue.low: {text}"));
        }
        self.water.high += u32::from(before == 0);
        self.water.marks += 1;
        let mark = MARKS[usize::from(level) - 1];
        self.log(LogLevel::Warn, format!("queue.high: {mark} % reached by {text}"));
    }

    /// When full queues are to be searched for what has expired.
    pub(super) fn expire_due_ms(&self) -> Option<u64> {
        let full = self.full_sessions > 0 || self.water.all.is_full();
        (full && !self.expiry.reading).then_some(self.expiry.due_ms)
    }

    /// Searches the queues of full sessions that are away, some rows of one at a time.
    pub(super) fn expire_full(&mut self) {
        if self.expire_due_ms().is_none_or(|due_ms| self.now.mono_ms < due_ms) {
            return;
        }
        let Some((session, number)) = self.next_full() else {
            let due_ms = self.now.mono_ms + EXPIRE_EVERY_MS;
            self.expiry = Expiry { due_ms, gone: self.expiry.gone, ..Expiry::default() };
            return;
        };
        self.expiry.reading = true;
        let from = self.expiry.from;
        self.journal.hold_for_reading(Hold::Expire { session, number, from });
    }

    fn next_full(&mut self) -> Option<(u32, u64)> {
        while self.expiry.session < self.sessions.capacity() {
            let slot = self.sessions.get(self.expiry.session);
            let all = self.water.all.is_full();
            let is_full = |s: &&SessionSlot| s.full || (all && s.queued > 0);
            if let Some(slot) = slot.filter(|s| is_full(s) && s.conn.is_none() && s.durable) {
                return Some((self.expiry.session as u32, slot.number));
            }
            (self.expiry.session, self.expiry.from) = (self.expiry.session + 1, 0);
        }
        None
    }

    /// What was taken away before can not be read any more: the next rows.
    pub(super) fn expire_rows(&mut self, session: u32, number: u64, from: u64) {
        self.expiry.reading = false;
        self.expiry.due_ms = self.now.mono_ms + EXPIRE_STEP_MS;
        (self.expiry.session, self.expiry.from) = match self.expire_some(session, number, from) {
            Some(next) => (session as usize, next),
            None => (session as usize + 1, 0),
        };
    }

    /// Takes expired deliveries off the disk, and tells where to go on. Those in memory end when their turn comes to be sent.
    fn expire_some(&mut self, session: u32, number: u64, from: u64) -> Option<u64> {
        let slot = self.slot_of(session, number)?;
        if slot.conn.is_some() || slot.loading().is_some() {
            return None; // its client comes for them, and they expire on the way
        }
        let (cell, recovered_below) = (slot.cell, slot.recovered_below());
        let Some(Cell::Session(body)) = self.cells.body_mut(cell) else { return None };
        let cold = body.outbound.cold();
        let (prefix, start) =
            (queue_key(number, 0)[..9].to_vec(), queue_key(number, from.max(cold.start)));
        // What cannot be read now the next search may read.
        let rows = self.journal.store().scan(Space::Queues, &prefix, &start, EXPIRE_ROWS).ok()?;
        let last =
            rows.last().filter(|_| rows.len() == EXPIRE_ROWS).and_then(|(key, _)| place_of(key));
        // The first ones may have been sent by a process that is no more: their packet ids belong to the client too.
        let unsure = if from <= cold.start { HOT_MAX } else { 0 };
        for (index, (key, value)) in rows.into_iter().enumerate() {
            let Some(place) = place_of(&key).filter(|place| cold.contains(place)) else { continue };
            let Ok(record) = record::decode::<DeliveryRecord>("delivery", &value) else { continue };
            let may_be_sent = record.released || (index < unsure && place < recovered_below);
            if record.expires_wall_ms.is_some_and(|due_ms| due_ms <= self.now.wall_ms)
                && !may_be_sent
            {
                let id = MessageId { node: NodeId(record.node), seq: record.seq };
                self.ledger.drop(Drop::Expired, 1);
                self.expiry.gone = self.journal.mark();
                self.forget_delivery(session, place, id, record.bytes.unwrap_or(0).into());
            }
        }
        last.map(|last| last + 1)
    }

    /// After a start: message bodies nobody needs are cleared away, a portion at a time. Clients do not wait for it.
    pub(super) fn begin_body_sweep(&mut self) -> Result<(), ReadError> {
        let first = self.journal.store().scan_keys(Space::Messages, &[], &[], 1)?.pop();
        self.water.sweep = first.map(|key| (key.to_vec(), self.now.mono_ms + SWEEP_EVERY_MS));
        Ok(())
    }

    pub(super) fn sweep_bodies(&mut self) {
        if self.water.sweep_due_ms().is_none_or(|due_ms| self.now.mono_ms < due_ms) {
            return;
        }
        let Some((from, _)) = self.water.sweep.take() else { return };
        let keys = self.journal.store().scan_keys(Space::Messages, &[], &from, SWEEP_KEYS);
        let Ok(keys) = keys else {
            self.water.sweep = Some((from, self.now.mono_ms + EXPIRE_EVERY_MS)); // the disk does not answer
            return;
        };
        let Some(last) = keys.last() else { return };
        let next = [last, &[0][..]].concat();
        self.water.sweep = Some((next, self.now.mono_ms + SWEEP_EVERY_MS));
        for key in keys {
            if MessageId::from_bytes(&key).is_none_or(|id| !self.journal.is_needed(id)) {
                self.journal.delete(Space::Messages, key);
            }
        }
    }
}

/// Says in the log how full a quota is now. 1 when it is fuller than before, else 0: what the counter of marks gets.
pub(super) fn tell(
    level: Level,
    subject: &str,
    text: &str,
    log: impl FnOnce(LogLevel, String),
) -> u64 {
    match level {
        Level::Low => log(LogLevel::Info, format!("{subject}.low: {text}")),
        Level::High(mark) => log(LogLevel::Warn, format!("{subject}.high: {mark} %: {text}")),
        Level::Full => {
            log(LogLevel::Warn, format!("{subject}.full: publishers are held back: {text}"))
        }
    }
    u64::from(level != Level::Low)
}
