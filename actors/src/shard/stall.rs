//! While the disk is full or fails: what needs it is refused with a reason, the rest goes on, and all is taken up again
//! by itself. Nothing is acknowledged that is not durable; what was accepted before waits for the disk in the store.

use bytestring::ByteString;
use outpost_model::{Now, QoS};
use outpost_mqtt::packet::{Packet, Publish, ReasonCode};

use super::channel::Recipient;
use super::slot::SessionSlot;
use super::{CellMsg, LogLevel, Shard, Ticket};

/// After a row could not be read it is tried again so much later. Shorter asks a failing disk more often; longer keeps
/// a client waiting for what is there.
pub(super) const REREAD_MS: u64 = 1_000;

const DISK: &str = "this node's disk takes no writes now (full or failing); try again later";
const QUEUE: &str =
    "no room: a receiver's queue or the memory of this node is full; try again later";

impl Shard {
    /// The store stopped for good.
    pub fn store_failed(&mut self, cause: String, now: Now) {
        self.now = now;
        self.log(
            LogLevel::Warn,
            format!("the store failed: {cause}; nothing is acknowledged any more, QoS 0 goes on"),
        );
        self.journal.fail(cause);
        self.resume_all(); // nobody waits for a disk that is gone
    }

    /// The store writes nothing, or is nearly full: what can be refused is.
    pub fn store_stalled(&mut self, cause: &str, now: Now) {
        self.now = now;
        if self.journal.stall(cause) {
            self.log(LogLevel::Warn, format!("store.stalled: {cause}; QoS 1 and 2 that need the disk are refused (0x97) or wait (3.1.1), QoS 0 and deliveries go on"));
        }
    }

    /// The store writes again.
    pub fn store_resumed(&mut self, now: Now) {
        self.now = now;
        if !self.journal.resume() {
            return;
        }
        self.log(LogLevel::Warn, "store.resumed: everything is accepted again".to_owned());
        self.retry_blocked = true;
        self.resume_all();
        self.read_again();
        self.settle();
    }

    /// What could not be read while the engine was away.
    fn read_again(&mut self) {
        let waiting: Vec<u32> = self.sessions.iter().map(|(index, _)| index as u32).collect();
        for session in waiting {
            self.transmit_again(session);
        }
        self.pump_all();
    }

    /// A session's rows could not be read: another attempt follows.
    pub(super) fn reread_later(&mut self, session: u32) {
        if self.sessions.get(session as usize).is_some_and(|slot| slot.conn.is_some()) {
            self.session_wheel.set(session, self.now.mono_ms + REREAD_MS);
        }
    }

    /// Has a connected session look for what it may send.
    pub(super) fn transmit_again(&mut self, session: u32) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        if slot.conn.is_some() && slot.next_place > 1 {
            let cell = slot.cell;
            self.send(cell, CellMsg::RowsSynced(0));
            self.run_cells();
        }
    }

    /// Whether a message cannot be accepted without writing something down.
    pub(super) fn needs_disk(
        &self,
        publish: &Publish,
        ticket: Ticket,
        recipients: &[Recipient],
    ) -> bool {
        let keeps = |session: u32| self.sessions.get(session as usize).is_some_and(|s| s.durable);
        let is_written = match ticket {
            Ticket::Client { session, qos: QoS::ExactlyOnce, .. } => keeps(session),
            _ => false,
        };
        let recipient = |recipient: &Recipient| match recipient {
            Recipient::Session { session, qos, .. } => *qos > QoS::AtMostOnce && keeps(*session),
            Recipient::Group(_)
            | Recipient::Shared(_)
            | Recipient::Peer { durable: true, .. }
            | Recipient::Peer { shares: Some(_), .. } => true,
            Recipient::Peer { .. } | Recipient::Local(_) => false,
        };
        is_written || publish.retain || recipients.iter().any(recipient)
    }

    /// Whether a CONNECT must be turned away because the disk takes nothing: a session that is to be kept would have to
    /// be written, or taken away. One that is on disk as it is may come back.
    pub(super) fn cannot_keep(existing: Option<&SessionSlot>, clean: bool, asks_s: u32) -> bool {
        let Some(slot) = existing.filter(|slot| slot.durable) else { return asks_s > 0 };
        clean || !slot.on_disk
    }

    /// Gives a refusal for want of room the words a person needs.
    pub(super) fn explain(&self, session: u32, packet: &mut Packet) {
        if let Packet::Puback(ack) | Packet::Pubrec(ack) = packet
            && ack.reason == ReasonCode::QuotaExceeded
            && ack.reason_string.is_none()
            && let Some(conn) = self.sessions.get(session as usize).and_then(|slot| slot.conn)
            && self.connection(conn).is_some_and(|connection| connection.wants_reasons)
        {
            let text = if self.journal.stalled().is_some() { DISK } else { QUEUE };
            ack.reason_string = Some(ByteString::from_static(text));
        }
    }
}
