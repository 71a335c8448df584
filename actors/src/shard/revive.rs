//! Sessions whose cell has failed: their client is cut off, and they come back from disk as far as they are there.

use outpost_mqtt::packet::{PacketId, ReasonCode};
use outpost_mqtt::session::Session;
use outpost_mqtt::window::Outbound;
use outpost_store::{ReadError, Space};

use super::sessions::received_id;
use super::stall::REREAD_MS;
use super::{Cell, Hold, LogLevel, Shard};

impl Shard {
    /// Whether a session's cell is being restarted or in quarantine.
    pub(super) fn is_session_down(&self, session: u32) -> bool {
        self.sessions.get(session as usize).is_some_and(|slot| self.cells.body(slot.cell).is_none())
    }

    /// A session's cell panicked. Its client is cut off; a durable session comes back from disk, another ends.
    pub(super) fn session_crashed(&mut self, session: u32) {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let conn = slot.conn;
        slot.set_loading(None);
        if let Some(conn) = conn {
            self.close(
                conn,
                ReasonCode::UnspecifiedError,
                "the session's actor failed; it is being restarted",
            );
        }
    }

    /// Gives a session's cell a new body as soon as all it had written can be read: a QoS 2 id it took or gave back
    /// a moment ago must not be forgotten.
    pub(super) fn revive_when_readable(&mut self, session: u32) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let number = slot.number;
        self.journal.hold_for_reading(Hold::Revive { session, number });
    }

    /// Gives a session's cell a new body: from disk, as far as it is there.
    pub(super) fn revive_session(&mut self, session: u32) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let (cell, number) = (slot.cell, slot.number);
        if !self.is_session_down(session) {
            return;
        }
        let mut body = Session::default();
        if slot.durable {
            let upto = slot.next_place;
            let received = match self.read_received(number) {
                Ok(received) => received,
                Err(error) => {
                    self.log(LogLevel::Warn, format!("a session stays down: {error}"));
                    return self.cell_wheel.set(cell.index(), self.now.mono_ms + REREAD_MS);
                }
            };
            body = Session::from_disk(received, Outbound::from_disk(1..upto));
            self.sessions[session as usize].set_recovered_below(upto);
        }
        self.cells.revive(cell, Cell::Session(Box::new(body)));
    }

    pub(super) fn read_received(&self, number: u64) -> Result<Vec<PacketId>, ReadError> {
        let prefix = [&number.to_be_bytes()[..], &[1]].concat();
        let rows = self.journal.store().scan(Space::Queues, &prefix, &[], usize::from(u16::MAX))?;
        Ok(rows.iter().filter_map(|(key, _)| received_id(key)).collect())
    }
}
