//! Sessions that go to the node their client has connected to. See [`super::moving`].

use std::collections::BTreeSet;
use std::sync::Arc;

use outpost_membership::Arrival;
use outpost_model::NodeId;
use outpost_mqtt::session::Session;
use outpost_store::Space;

use super::channel::Recipient;
use super::moving::{Arrived, Asked, Given, Leaving, MOVED_AT_ONCE, Move};
use super::sessions::{Unread, place_of};
use super::slot::Moment;
use super::stall::REREAD_MS;
use super::{Cell, Hold, LogLevel, Shard};
use crate::ledger::Drop;
use crate::record::{self, DeliveryRecord, PartKind, SubscriptionRecord};

/// Places left free for what a session got at another node meanwhile, when it comes back: as many as there are packet ids.
const PLACES_ELSEWHERE: u64 = 65_535;

impl Shard {
    pub(super) fn is_leaving(&self, session: u32) -> bool {
        matches!(self.moves.all.get(&session), Some(Move::Leaving(_)))
    }

    /// Whether what comes for a session that has left finds no room in the outbox it goes on by.
    pub(super) fn is_way_full(&self, session: u32) -> bool {
        match self.moves.all.get(&session) {
            Some(Move::Leaving(Leaving { to, told: true, .. })) => self.is_peer_full(*to, true),
            _ => false,
        }
    }

    /// The same for what a peer sends for one of these: it goes on as [`Shard::is_passing_full`] tells.
    pub(super) fn may_pass_on(&self, recipient: &Recipient) -> bool {
        let Recipient::Session { session, .. } = recipient else { return false };
        match self.moves.all.get(session) {
            Some(Move::Leaving(Leaving { to, told: true, .. })) => self.has_passing_room(*to),
            _ => false,
        }
    }

    /// A session's client is at another node: it is passed on.
    pub(super) fn leave(&mut self, session: u32, to: NodeId) {
        if !self.peers.contains_key(&to) {
            return; // not met yet: with its first link all sessions are looked at
        }
        let client_id = self.sessions[session as usize].client_id();
        let claimed_at = self.claimed_at(&client_id);
        if self.moves.leaving(session).is_some_and(|l| (l.to, l.claimed_at) == (to, claimed_at)) {
            return self.moves.stir();
        }
        self.log(
            LogLevel::Info,
            format!("client {client_id:?} is at node {to} now: its session follows"),
        );
        self.close_session(session, "the client has connected to another node");
        let Some(session) = self.session_of(&client_id) else {
            return self.send_part(to, &client_id, None, PartKind::Absent, None); // it ended with the connection
        };
        self.remove_arrival(&client_id);
        self.forget_will(session);
        self.session_wheel.cancel(session);
        self.retained_due.forget_all(session);
        self.sessions[session as usize].expires_ms = Moment::NEVER;
        self.begin_leaving(session, to, false);
    }

    fn begin_leaving(&mut self, session: u32, to: NodeId, told: bool) {
        let left = self.peers.keys().map(|node| (*node, None)).collect();
        let claimed_at = self.claimed_at(&self.sessions[session as usize].client_id);
        let (step, given) = (self.moves.next_step(), self.moves.given(session));
        let leaving = Leaving { to, claimed_at, step, begun: false, told, left, given };
        self.moves.all.insert(session, Move::Leaving(leaving));
        self.write_session(session, None);
        self.journal.hold_for_reading(Hold::Leave { session, step });
    }

    /// At start: it was on its way.
    pub(super) fn recover_leaving(&mut self, session: u32, to: NodeId, is_told: bool) {
        self.sessions[session as usize].expires_ms = Moment::NEVER;
        self.session_wheel.cancel(session);
        self.begin_leaving(session, to, is_told);
    }

    /// What its row says of that.
    pub(super) fn leaving_record(&self, session: u32) -> (Option<u64>, Option<bool>) {
        match self.moves.all.get(&session) {
            Some(Move::Leaving(leaving)) => (Some(leaving.to.0), Some(leaving.told)),
            _ => (None, None),
        }
    }

    /// What a leaving session is owed can be read: passes some of it on, and when nothing is left, what it wants.
    pub(super) fn pass_on_session(&mut self, session: u32, step: u64) {
        let Some(leaving) = self.moves.leaving(session).filter(|leaving| leaving.step == step)
        else {
            return; // it stays, or goes elsewhere
        };
        if leaving.told {
            return self.moves.stir();
        }
        let (to, begun) = (leaving.to, std::mem::replace(&mut leaving.begun, true));
        let slot = &self.sessions[session as usize];
        let (client_id, user, number) = (slot.client_id(), slot.user.clone(), slot.number);
        let prefix = number.to_be_bytes();
        let rows = self.read_received(number).and_then(|received| {
            let rows = self.journal.store().scan(Space::Queues, &prefix, &[], MOVED_AT_ONCE)?;
            Ok((received, rows))
        });
        let (received, rows) = match rows {
            Ok(found) => found,
            Err(error) => {
                self.leave_later(session);
                return self.log(
                    LogLevel::Warn,
                    format!(
                        "the session of client {client_id:?} stays until the disk answers: {error}"
                    ),
                );
            }
        };
        if !begun {
            let begin = PartKind::Begin {
                expiry_s: slot.expiry_s,
                next_place: slot.next_place,
                received: received.iter().map(|id| id.get()).collect(),
            };
            self.send_part(to, &client_id, user.as_deref(), begin, None);
        }
        if rows.is_empty() {
            if self.journal.is_synced(self.sessions[session as usize].rows_mark) {
                return self.tell_subscriptions(session, to);
            }
            // Some came while it waited, and cannot be read yet.
            return self.journal.hold_for_reading(Hold::Leave { session, step });
        }
        for (key, row) in rows {
            if key.get(8) != Some(&0) {
                self.journal.delete(Space::Queues, key); // a received id: the first part has it
            } else if !self.pass_on_row(session, to, &key, &row) {
                return self.leave_later(session); // the disk does not answer
            }
        }
        self.journal.hold_for_reading(Hold::Leave { session, step });
    }

    fn leave_later(&mut self, session: u32) {
        self.session_wheel.set(session, self.now.mono_ms + REREAD_MS);
    }

    /// It could not be read; now, perhaps.
    pub(super) fn leave_again(&mut self, session: u32) {
        if let Some(leaving) = self.moves.leaving(session) {
            let step = leaving.step;
            self.journal.hold_for_reading(Hold::Leave { session, step });
        }
    }

    /// False when the message could not be read now.
    fn pass_on_row(&mut self, session: u32, to: NodeId, key: &[u8], row: &[u8]) -> bool {
        let Some(place) = place_of(key) else {
            self.journal.delete(Space::Queues, key.to_vec()); // no delivery has such a key
            return true;
        };
        let (delivery, _) = match self.read_delivery(place, row) {
            Ok(found) => found,
            Err(Unread::Later) => return false,
            Err(Unread::Damaged(message, cost_bytes)) => {
                self.ledger.drop(Drop::Damaged, 1);
                self.forget_delivery(session, place, message, cost_bytes);
                return true;
            }
        };
        let record = record::decode::<DeliveryRecord>("delivery", row).expect("just read");
        let slot = &self.sessions[session as usize];
        let (client_id, user) = (slot.client_id(), slot.user.clone());
        let message = &delivery.message;
        let kind = PartKind::Delivery { place, record };
        self.ledger.owed -= 1; // to the peer from now on
        self.send_part(to, &client_id, user.as_deref(), kind, Some(message));
        self.forget_delivery(session, place, message.id, message.cost_bytes() as u64);
        true
    }

    /// Everything was passed on: what it wants comes last, so that nothing newer comes before it there.
    fn tell_subscriptions(&mut self, session: u32, to: NodeId) {
        let slot = &self.sessions[session as usize];
        let (client_id, user, cell) = (slot.client_id(), slot.user.clone(), slot.cell);
        let given = Some(self.given_to_tell(session));
        let end = PartKind::End { subscriptions: self.subscriptions_to_tell(session), given };
        self.send_part(to, &client_id, user.as_deref(), end, None);
        if let Some(leaving) = self.moves.leaving(session) {
            leaving.told = true;
        }
        if let Some(Cell::Session(body)) = self.cells.body_mut(cell) {
            **body = Session::default(); // what it held was passed on
            self.sessions[session as usize].set_loading(None);
        }
        self.write_session(session, None);
    }

    fn subscriptions_to_tell(&self, session: u32) -> Vec<(String, SubscriptionRecord)> {
        let all = self.sessions[session as usize].subscriptions.iter();
        let one = |(filter, cell): &(Arc<str>, crate::cell::CellId)| {
            let (options, id) = self.subscription_of(*cell)?;
            let options = super::subscribe::options_byte(options);
            Some((filter.to_string(), SubscriptionRecord { options, id }))
        };
        all.filter_map(one).collect()
    }

    /// All that the others have sent here until now it has been given, or has to be passed on to it by somebody else.
    fn given_to_tell(&self, session: u32) -> Vec<(u64, u64, u64)> {
        let before = self.moves.given(session);
        let peers = self.peers.iter().map(|(node, peer)| {
            let (store_id, seen) = (peer.record.store_id, peer.record.events_seen);
            let earlier = before.get(node).filter(|(theirs, _)| *theirs == store_id);
            (node.0, store_id, earlier.map_or(seen, |(_, upto)| seen.max(*upto)))
        });
        peers.collect()
    }

    pub(super) fn go_on_leaving(&mut self, session: u32, barriers: &mut Asked) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let client_id = slot.client_id();
        let Some(leaving) = self.moves.leaving(session).filter(|leaving| leaving.told) else {
            return;
        };
        let to = leaving.to;
        let me = self.config.node;
        let has_all = |arrival: &Arrival| arrival.came_from.contains(&me);
        let Some(arrival) = self.arrival(to, &client_id).filter(has_all) else { return };
        let Some(leaving) = self.moves.leaving(session) else { return };
        let mut left = std::mem::take(&mut leaving.left);
        for (node, asked) in &mut left {
            if asked.is_none() && arrival.known_by.contains(node) {
                *asked = Some(self.ask_once(*node, barriers));
            }
        }
        left.retain(|node, asked| match (self.peers.get(node), asked) {
            (None, _) => false,
            (Some(peer), Some(number)) => !peer.barriers.has_passed(*number),
            (Some(_), None) => true,
        });
        let is_over = left.is_empty();
        if let Some(leaving) = self.moves.leaving(session) {
            leaving.left = left;
        }
        if is_over {
            let user = self.sessions[session as usize].user.clone();
            self.send_part(to, &client_id, user.as_deref(), PartKind::Gone, None);
            self.moves.left += 1;
            self.end_session(session);
        }
    }

    /// A node that is new here may send what only this node's interest asks for.
    pub(super) fn wait_for_peer(&mut self, id: NodeId) {
        for moving in self.moves.all.values_mut() {
            if let Move::Leaving(leaving) = moving {
                leaving.left.entry(id).or_insert(None);
            }
        }
    }

    /// The node that sessions were to go to is gone for good.
    pub(super) fn stay_after_all(&mut self, node: NodeId) {
        let all = self.moves.all.iter();
        let theirs = all.filter(|(_, m)| matches!(m, Move::Leaving(leaving) if leaving.to == node));
        let theirs: Vec<u32> = theirs.map(|(session, _)| *session).collect();
        for session in theirs {
            self.stay(session, false);
        }
    }

    /// A session that was to leave, or is not all here yet, stays as it is: its deliveries are read from the disk.
    /// `comes_back`: so does what it has been sent elsewhere.
    pub(super) fn stay(&mut self, session: u32, comes_back: bool) {
        let has_gone = self.moves.leaving(session).is_some_and(|leaving| leaving.told);
        let slot = &mut self.sessions[session as usize];
        let is_empty = comes_back && has_gone && slot.queued == 0;
        if is_empty {
            slot.next_place += PLACES_ELSEWHERE;
        }
        let back = is_empty.then(|| (slot.next_place, BTreeSet::new()));
        slot.expires_ms = Moment::at(self.now.mono_ms + u64::from(slot.expiry_s) * 1000);
        let step = self.moves.next_step();
        let given = if has_gone { Given::new() } else { self.moves.given(session) };
        let arrived = Arrived { stay: step, step: Some(step), back, asked: Asked::new(), given };
        self.moves.all.insert(session, Move::Arrived(arrived));
        self.write_session(session, Some(self.now.wall_ms));
        self.arm_session(session);
        self.journal.hold_for_reading(Hold::Arrive { session, step });
    }
}
