//! QoS 0 for clients that read too slowly: elastic buffers, and what each topic's policy does when they are full.

use std::collections::VecDeque;

use outpost_flow::overload::{RING_MAX, buffer_bytes, share_permille};
use outpost_flow::{Class, Overload, Pressure};
use outpost_mqtt::packet::ReasonCode;
use outpost_mqtt::window::Delivery;

use super::connection::Phase;
use super::memory::SHED_DIVISOR;
use super::pass::Parcel;
use super::{ConnId, Shard};
use crate::ledger::Drop;

/// QoS 0 messages that wait behind a full write buffer. Made when the first does, gone with the last.
pub(super) type Ring = Option<Box<VecDeque<Delivery>>>;

impl Shard {
    /// A QoS 0 message for a connected client.
    pub(super) fn enqueue_fleeting(&mut self, session: u32, conn: ConnId, parcel: Parcel<'_>) {
        let (out, limit) = (self.out_len(conn), self.out_limit(conn));
        let short = self.budget.pressure() >= Pressure::Shed;
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let waiting = slot.ring.as_ref().map_or(0, |ring| ring.len());
        if short && (out > limit / SHED_DIVISOR || waiting > 0) {
            return self.drop_for(session, Drop::Memory, 1, &parcel.message.topic);
        }
        if out <= limit && waiting == 0 {
            return self.write_fleeting(session, conn, parcel);
        }
        let topic = &parcel.message.topic;
        let rule = self.config.overload.iter().find(|(filter, _)| filter.matches(topic));
        match rule.map(|(_, policy)| *policy).unwrap_or_default() {
            Overload::DropNew if out <= limit => {
                self.write_fleeting(session, conn, parcel);
            }
            Overload::DropNew => {
                self.drop_for(session, Drop::SlowClient, 1, &parcel.message.topic);
            }
            Overload::Disconnect => {
                self.drop_for(session, Drop::SlowClient, 1, &parcel.message.topic);
                self.cut_off.insert(conn);
            }
            policy => self.wait_in_ring(session, conn, parcel, policy),
        }
    }

    /// Cuts off one client whose topics' policy is to do so. Not on the spot: what is said of it then, its will, may be for
    /// others that are to be cut off, and so on. False: there is none.
    pub(super) fn cut_off_next(&mut self) -> bool {
        let Some(conn) = self.cut_off.pop_first() else { return false };
        self.close(conn, ReasonCode::QuotaExceeded, "it does not read what it asked for");
        true
    }

    fn wait_in_ring(&mut self, session: u32, conn: ConnId, parcel: Parcel<'_>, policy: Overload) {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let ring = slot.ring.get_or_insert_default();
        if policy == Overload::Block {
            self.ledger.blocked += 1;
        }
        if ring.len() < RING_MAX {
            ring.push_back(parcel.to_delivery(0, None));
        } else {
            if policy == Overload::DropOld {
                ring.pop_front();
                ring.push_back(parcel.to_delivery(0, None));
            }
            self.drop_for(session, Drop::SlowClient, 1, &parcel.message.topic);
        }
        self.charge_buffers(conn);
    }

    /// The client has taken something: what waits in its ring follows.
    pub(super) fn drain_ring(&mut self, conn: ConnId) {
        let Some(Phase::Open(session)) = self.connection(conn).map(|c| c.phase) else { return };
        let limit = self.out_limit(conn) / 2;
        while self.out_len(conn) <= limit
            && let Some(slot) = self.sessions.get_mut(session as usize)
            && let Some(ring) = &mut slot.ring
        {
            let delivery = ring.pop_front();
            if ring.is_empty() {
                slot.ring = None;
            }
            if let Some(delivery) = delivery {
                self.write_fleeting(session, conn, Parcel::of(&delivery));
            }
        }
    }

    /// What waited for a client that is gone.
    pub(super) fn drop_ring(&mut self, session: u32) {
        let ring = self.sessions.get_mut(session as usize).and_then(|slot| slot.ring.take());
        self.ledger.drop(Drop::Offline, ring.map_or(0, |ring| ring.len() as u64));
    }

    /// How much may wait to be written to a client before QoS 0 to it is dropped: more the longer it is behind, less the
    /// longer it has kept up, and little for each when all together take their share of the memory budget.
    fn out_limit(&self, conn: ConnId) -> usize {
        let most = self.config.out_bytes_max;
        let lag_ms = self.connection(conn).map_or(0, |c| c.lag_ms(self.now.mono_ms));
        let (all, budget) = (self.budget.used(Class::Buffers), self.budget.limit_bytes());
        if budget > 0 && all > budget / 1_000 * share_permille(lag_ms) {
            return most / SHED_DIVISOR;
        }
        buffer_bytes(most, lag_ms)
    }
}
