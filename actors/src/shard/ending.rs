//! The end of a session: what goes out, what goes away, and what others get instead.

use outpost_model::{MessageId, NodeId, QoS};
use outpost_mqtt::window::{Delivery, HOT_MAX};
use outpost_store::Space;

use super::sessions::{Unread, place_of};
use super::shares::Place;
use super::{Cell, Hold, LogLevel, Remains, Shard};
use crate::ledger::Drop;
use crate::record::{self, DeliveryRecord};

/// Rows of an ended session cleared away at once. Lower: more batches until it is gone; higher: a turn takes longer.
const SWEEP_ROWS: usize = 512;

impl Shard {
    /// Ends a session: its will goes out, its subscriptions and deliveries go away. What it was to get through a shared
    /// subscription goes to other members.
    pub(super) fn end_session(&mut self, session: u32) {
        self.publish_will(session);
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let filters: Vec<_> = slot.subscriptions.iter().cloned().collect();
        for (filter, _) in filters {
            self.remove_subscription(session, &filter);
        }
        self.session_wheel.cancel(session);
        self.retained_due.forget_all(session);
        let slot = self.sessions.remove(session as usize);
        self.moves.remove(session);
        self.leave_directory(&slot.client_id);
        self.ledger.drop(Drop::SessionEnded, u64::from(slot.queued));
        self.discharge_queue(&slot);
        self.take_from_node_queue(slot.queued.into(), slot.queued_bytes);
        if slot.queued > 0 {
            self.note_session_ended(&slot);
        }
        let body = self.cells.stop(slot.cell);
        self.unname_session(&slot.client_id, session);
        self.water.high -= u32::from(slot.mark > 0);
        if slot.full {
            self.full_sessions -= 1;
            self.retry_blocked = true;
        }
        let left = match body {
            Some(Cell::Session(mut body)) => body.outbound.drain(),
            _ => Vec::new(),
        };
        if slot.durable {
            self.journal.delete(Space::Sessions, slot.client_id().into_bytes());
            let qos_2 = |d: &Delivery, sent: bool| sent && d.qos == QoS::ExactlyOnce;
            let sent = left.iter().filter(|(d, sent)| qos_2(d, *sent)).map(|(d, _)| d.place);
            self.journal.hold_for_reading(Hold::Sweep(Remains {
                number: slot.number,
                sent: sent.collect(),
                unsure: if slot.recovered_below() > 0 { HOT_MAX } else { 0 },
                counted: true,
            }));
            return;
        }
        for (delivery, sent) in left {
            if !(sent && delivery.qos == QoS::ExactlyOnce) {
                self.reroute(&delivery, true);
            }
        }
    }

    /// A delivery whose session ended goes to another member of its share group, when it came through one (MQTT-4.8.2-6),
    /// here or on another node.
    /// `counted`: it stands in the ledger as dropped with its session.
    pub(super) fn reroute(&mut self, delivery: &Delivery, counted: bool) {
        let Some(share) = delivery.share.clone() else { return };
        let shared = self.shared(share);
        let place = self.choose(&shared, delivery.message.qos, delivery.message.id.seq);
        let Some(place) = place.or(shared.here.map(Place::Here)) else { return };
        if counted {
            self.ledger.take_back(Drop::SessionEnded);
        }
        match place {
            // It waits: the row that goes says that nobody else got it.
            Place::Here(group) => self.enqueue_group(group, &delivery.message, true, true),
            Place::Peer(peer) => {
                let groups = vec![shared.name.to_string()];
                self.pass_on(peer, groups, 1, &delivery.message);
            }
        }
    }

    /// Takes the deliveries of an ended session from disk, some at a time, and gives away what others can have. The row
    /// that goes and the row that comes are in one batch: exactly one of them is there after a crash.
    pub(super) fn sweep(&mut self, mut remains: Remains) {
        let prefix = remains.number.to_be_bytes();
        let rows = self.journal.store().scan(Space::Queues, &prefix, &[], SWEEP_ROWS);
        let rows = match rows {
            Ok(rows) if rows.is_empty() => return,
            Ok(rows) => rows,
            Err(error) => {
                return self.log(LogLevel::Warn, format!("an ended session's rows stay: {error}"));
            }
        };
        for (key, value) in rows {
            if key.get(8) == Some(&0) && !self.sweep_delivery(&mut remains, &key, &value) {
                return; // the disk does not answer; the next start clears the rest away
            }
            self.journal.delete(Space::Queues, key);
            self.run_cells();
        }
        self.journal.hold_for_reading(Hold::Sweep(remains));
    }

    /// False when the message could not be read now: its row must stay.
    fn sweep_delivery(&mut self, remains: &mut Remains, key: &[u8], row: &[u8]) -> bool {
        let Ok(record) = record::decode::<DeliveryRecord>("delivery", row) else { return true };
        let id = MessageId { node: NodeId(record.node), seq: record.seq };
        let place = place_of(key).unwrap_or(0);
        let unsure = remains.unsure > 0;
        remains.unsure = remains.unsure.saturating_sub(1);
        let sent = record.released || unsure || remains.sent.contains(&place);
        let may_move = !(sent && record.qos == QoS::ExactlyOnce as u8);
        if record.share.is_some() && may_move {
            match self.read_delivery(place, row) {
                // Before the body's count goes down: it must not reach zero in between.
                Ok((delivery, _)) => self.reroute(&delivery, remains.counted),
                Err(Unread::Later) => return false,
                Err(Unread::Damaged(..)) => {}
            }
        }
        self.journal.release_body(id);
        true
    }
}
