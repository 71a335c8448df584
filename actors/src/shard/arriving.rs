//! Sessions that come from other nodes, or come back. See [`super::moving`].

use std::collections::BTreeSet;
use std::sync::Arc;

use outpost_model::{Message, MessageId, NodeId, QoS, TopicFilter};
use outpost_mqtt::packet::PacketId;
use outpost_mqtt::session::Session;
use outpost_mqtt::window::{Delivery, Outbound};

use super::moving::{Arrived, Arriving, Asked, Given, Leaving, Move};
use super::pass::Parcel;
use super::slot::Moment;
use super::subscribe::options_of;
use super::{Cell, Hold, LogLevel, NAME_BYTES_MAX, Shard};
use crate::ledger::Drop;
use crate::ports::{Action, BRIDGE_CLIENTS, Identity};
use crate::record::{self, DeliveryRecord, PartKind, SessionPart, SubscriptionRecord};

/// No session has had so many deliveries, whatever a peer says. Fewer than can be counted: its own come behind them.
const PLACES_MAX: u64 = 1 << 62;

impl Shard {
    /// A part of a session, from where it was.
    pub(super) fn take_part(&mut self, from: NodeId, bytes: &[u8], message: &Arc<Message>) {
        let part: SessionPart = match record::decode("session part", bytes) {
            Ok(part) => part,
            Err(error) => return self.log(LogLevel::Warn, format!("from peer {from}: {error}")),
        };
        let is_delivery = matches!(part.kind, PartKind::Delivery { .. });
        if is_delivery {
            self.ledger.accept(true, false, false);
        }
        if part.client_id.len() > NAME_BYTES_MAX || part.client_id.starts_with(BRIDGE_CLIENTS) {
            if is_delivery {
                self.ledger.drop_unqueued(Drop::Refused, 1);
            }
            let text =
                format!("peer {from} passes on a session no client can have; it is left out");
            return self.log(LogLevel::Warn, text);
        }
        match (self.session_of(&part.client_id), part.kind) {
            (_, PartKind::Absent) => self.nothing_comes(&part.client_id, from),
            (_, PartKind::Gone) if from != NodeId(part.node) => {} // its owner asks the node itself
            (_, PartKind::Gone) => self.nothing_comes(&part.client_id, from),
            (None, kind) => self.take_for_nobody(from, SessionPart { kind, ..part }, message),
            (Some(session), kind) => {
                let client_id = &part.client_id;
                if self.sessions[session as usize].user.as_deref() != part.user.as_deref() {
                    self.leave_out(&kind, message);
                    return self.log(LogLevel::Warn, format!("peer {from} passes on a session of client {client_id:?}, which is another user's here; it is left out"));
                }
                if self.is_discarded(session) {
                    return self.leave_out(&kind, message);
                }
                self.take_for(session, (from, NodeId(part.node)), kind, message);
            }
        }
    }

    /// Whether a session has begun anew here, so that nothing is taken of what its client had elsewhere.
    fn is_discarded(&self, session: u32) -> bool {
        match self.residence(&self.sessions[session as usize].client_id) {
            Some((owner, residence)) => owner == self.config.node && residence.discards,
            None => !self.sessions[session as usize].durable,
        }
    }

    /// There is no such session here: it begins, or it has gone on, or it has ended.
    fn take_for_nobody(&mut self, via: NodeId, part: SessionPart, message: &Arc<Message>) {
        let owner = self.residence(&part.client_id).map(|(owner, _)| owner);
        match (owner, &part.kind) {
            (_, PartKind::Unsubscribed { .. }) => {}
            (Some(owner), kind) if owner != self.config.node => {
                let of = matches!(kind, PartKind::Delivery { .. }).then_some(&**message);
                self.send_whole_part(owner, &part, of);
            }
            (Some(_), PartKind::Begin { .. }) => self.begin_arrival(part),
            (_, PartKind::Delivery { .. }) => self.leave_out(&part.kind, message),
            (_, PartKind::End { .. }) => {
                self.stop_waiting_for_nodes(&part.client_id, [via, NodeId(part.node)]);
                self.let_in(&part.client_id);
            }
            _ => {}
        }
    }

    /// A delivery that no session takes any more goes to another member of its share group, when it came through one.
    fn leave_out(&mut self, kind: &PartKind, message: &Arc<Message>) {
        let PartKind::Delivery { place, record } = kind else { return };
        self.ledger.drop_unqueued(Drop::SessionEnded, 1);
        // With a place it may have been sent: one of QoS 2 must not come to somebody else as well.
        if (*place == 0 || record.qos < QoS::ExactlyOnce as u8)
            && let Some(delivery) = delivery_of(0, record, message)
        {
            self.reroute(&delivery, true);
            self.run_cells();
        }
    }

    fn begin_arrival(&mut self, part: SessionPart) {
        let SessionPart { client_id, user, kind, node } = part;
        let PartKind::Begin { expiry_s, next_place, received } = kind else { return };
        let who = Identity { client_id: client_id.into(), user: user.as_deref().map(Into::into) };
        let session = self.new_session(&who);
        let stay = self.moves.next_step();
        let arriving = Arriving { from: NodeId(node), taken: BTreeSet::new(), stay };
        self.moves.all.insert(session, Move::Arriving(arriving));
        self.set_expiry(session, expiry_s.max(1));
        let expires_ms = self.now.mono_ms + u64::from(expiry_s) * 1000;
        let slot = &mut self.sessions[session as usize];
        slot.next_place = next_place.clamp(1, PLACES_MAX);
        slot.expires_ms = Moment::at(expires_ms);
        self.write_session(session, Some(self.now.wall_ms));
        self.arm_session(session);
        self.write_all_received(session, &received);
    }

    fn take_for(
        &mut self,
        session: u32,
        (via, from): (NodeId, NodeId),
        kind: PartKind,
        message: &Arc<Message>,
    ) {
        match kind {
            PartKind::Begin { received, .. } => self.take_back_received(session, &received),
            PartKind::Absent | PartKind::Gone => {}
            PartKind::Delivery { place, record } => {
                if self.keeps_place(session, place) {
                    self.take_in_place(session, place, &record, message);
                } else {
                    self.take_behind(session, &record, message);
                }
            }
            PartKind::End { subscriptions, given } => {
                let given = given.unwrap_or_default().into_iter();
                let given = given.map(|(node, store_id, upto)| (NodeId(node), (store_id, upto)));
                self.arrive(session, (via, from), subscriptions, given.collect());
            }
            PartKind::Unsubscribed { filter } => {
                if self.is_leaving(session) {
                    self.remove_subscription(session, &filter);
                }
            }
        }
    }

    /// It comes back: what its client has half settled meanwhile is known here too, before the client may come in.
    fn take_back_received(&mut self, session: u32, received: &[u16]) {
        let is_here = self.sessions[session as usize].conn.is_some();
        let step = self.moves.next_step();
        let Some(arrived) = self.moves.arrived_mut(session) else { return };
        if is_here || arrived.back.is_none() {
            return; // its client has begun anew since
        }
        arrived.step = Some(step);
        self.write_all_received(session, received);
        self.journal.hold_for_reading(Hold::Arrive { session, step });
    }

    fn write_all_received(&mut self, session: u32, received: &[u16]) {
        for id in received.iter().filter_map(|id| PacketId::new(*id)) {
            self.write_received(session, id, true);
        }
    }

    /// Whether a delivery gets the place it had where it comes from: nothing stands there, and it was not looked at.
    fn keeps_place(&mut self, session: u32, place: u64) -> bool {
        let slot = &self.sessions[session as usize];
        if place == 0 || place > PLACES_MAX || slot.conn.is_some() {
            return false;
        }
        match self.moves.all.get_mut(&session) {
            Some(Move::Arriving(arriving)) => arriving.taken.insert(place),
            Some(Move::Arrived(Arrived { step, back: Some((below, taken)), .. })) => {
                let is_cold = match self.cells.body(slot.cell) {
                    Some(Cell::Session(body)) => body.outbound.cold().start <= place,
                    _ => false,
                };
                place < *below && (step.is_some() || is_cold) && taken.insert(place)
            }
            _ => false,
        }
    }

    /// It keeps its place, and so its packet id.
    fn take_in_place(
        &mut self,
        session: u32,
        place: u64,
        record: &DeliveryRecord,
        message: &Arc<Message>,
    ) {
        let Some(delivery) = delivery_of(place, record, message) else {
            return self.ledger.drop_unqueued(Drop::Damaged, 1);
        };
        if self.was_seen(session, record) {
            return self.ledger.drop_unqueued(Drop::Looped, 1);
        }
        self.ledger.owed += 1;
        let cost_bytes = message.cost_bytes() as u64;
        let slot = &mut self.sessions[session as usize];
        slot.next_place = slot.next_place.max(place + 1);
        slot.queued += 1;
        slot.queued_bytes += cost_bytes;
        self.add_to_node_queue(cost_bytes);
        self.charge_queue(session);
        self.mark_queue(session);
        self.write_delivery(session, &delivery, record.released);
        self.journal.need_body(message);
        // Rows behind it may be on disk before it is: its client may come in when all can be read.
        let step = self.moves.next_step();
        if let Some(arrived) = self.moves.arrived_mut(session) {
            arrived.step = Some(step);
            self.journal.hold_for_reading(Hold::Arrive { session, step });
        }
    }

    /// Whether a delivery has come before, by another way. It is known from now on.
    fn was_seen(&mut self, session: u32, record: &DeliveryRecord) -> bool {
        let source = MessageId { node: NodeId(record.node), seq: record.seq };
        match self.moves.all.get(&session) {
            Some(Move::Arriving(Arriving { stay, .. }) | Move::Arrived(Arrived { stay, .. })) => {
                record.share.is_none() && !self.moves.seen.insert(*stay, source)
            }
            _ => false,
        }
    }

    /// A delivery for a session that has some of its own, or that came after the session.
    fn take_behind(&mut self, session: u32, record: &DeliveryRecord, message: &Arc<Message>) {
        if self.was_seen(session, record) {
            return self.ledger.drop_unqueued(Drop::Looped, 1);
        }
        let Some(delivery) = delivery_of(0, record, message).filter(|_| !record.released) else {
            // Its client has it; the connection on which it would be told so is over.
            self.ledger.owed += 1;
            self.ledger.delivered += 1;
            return;
        };
        if let Some(Move::Leaving(Leaving { to, told: true, .. })) = self.moves.all.get(&session) {
            let (to, slot) = (*to, &self.sessions[session as usize]);
            let (client_id, user) = (slot.client_id(), slot.user.clone());
            let kind = PartKind::Delivery { place: 0, record: record.clone() };
            return self.send_part(to, &client_id, user.as_deref(), kind, Some(message));
        }
        let who = self.sessions[session as usize].identity();
        if !self.gate.allows(&who, Action::Subscribe, &message.topic) {
            self.ledger.owed += 1; // the rules of this node are others
            return self.drop_for(session, Drop::Revoked, 1, &message.topic);
        }
        self.take_next_place(session);
        let parcel = Parcel { waits: true, ..Parcel::of(&delivery) };
        self.enqueue_here(session, parcel, delivery.share.clone());
        self.run_cells();
    }

    /// All that a node had is here: it subscribes, and when that was the node it was at last, its client may come in.
    fn arrive(
        &mut self,
        session: u32,
        (via, from): (NodeId, NodeId),
        subscriptions: Vec<(String, SubscriptionRecord)>,
        given: Given,
    ) {
        let before = self.sessions[session as usize].subscriptions.len();
        for (filter, record) in subscriptions {
            self.subscribe_again(session, &filter, record);
        }
        let is_more = self.sessions[session as usize].subscriptions.len() > before;
        let (is_last, was_arriving) = match self.moves.all.get(&session) {
            Some(Move::Arriving(arriving)) => (arriving.from == from, Some(arriving.stay)),
            Some(Move::Arrived(_)) => (false, None),
            _ => (true, None),
        };
        let client_id = self.sessions[session as usize].client_id();
        let me = self.config.node;
        let mut arrival = self.arrival(me, &client_id).unwrap_or_default();
        let step = was_arriving.filter(|_| is_last).map(|_| self.moves.next_step());
        if is_last {
            let stay = was_arriving.unwrap_or_else(|| self.moves.next_step());
            // Another part of it was given other messages.
            let is_alone =
                was_arriving.is_some() && arrival.came_from.is_empty() && arrival.gone.is_empty();
            let given = if is_alone { given } else { Given::new() };
            let arrived = Arrived { stay, step, given, ..Arrived::default() };
            self.moves.all.insert(session, Move::Arrived(arrived));
        } else if let Some(arrived) = self.moves.arrived_mut(session) {
            arrived.given.clear();
        }
        if from != me {
            arrival.came_from.insert(from);
        }
        if is_more {
            arrival.known_by.clear();
        }
        arrival.known_by.insert(me);
        self.write_arrival(&client_id, &arrival);
        if let Some(arrived) = self.moves.arrived_mut(session).filter(|_| is_more) {
            arrived.asked.clear();
        }
        self.moves.stir();
        self.stop_waiting_for_nodes(&client_id, [via, from]);
        if let Some(step) = step {
            self.journal.hold_for_reading(Hold::Arrive { session, step });
        }
        self.let_in(&client_id);
        self.review(&client_id);
    }

    fn subscribe_again(&mut self, session: u32, filter: &str, record: SubscriptionRecord) {
        let slot = &self.sessions[session as usize];
        let Ok(parsed) = TopicFilter::new(filter.to_owned()) else { return };
        if filter.len() > NAME_BYTES_MAX || slot.subscriptions.get(filter).is_some() {
            return; // no client can; or what was said here is newer
        }
        let allowed = self.gate.allows(&slot.identity(), Action::Subscribe, parsed.pattern());
        if !allowed || slot.subscriptions.len() >= self.config.subscriptions_max {
            return self.note_revoked(session, filter);
        }
        let options = options_of(record.options);
        self.insert_subscription(session, &parsed, options, record.id);
        self.write_subscription(session, filter, options, record.id);
    }

    /// The deliveries of a session that has come, or stays, can be read: its client may have them.
    pub(super) fn settle_in(&mut self, session: u32, step: u64) {
        if self.moves.arrived_mut(session).is_none_or(|arrived| arrived.step != Some(step)) {
            return;
        }
        let slot = &self.sessions[session as usize];
        let (client_id, cell, number, upto) =
            (slot.client_id(), slot.cell, slot.number, slot.next_place);
        match self.read_received(number) {
            Ok(received) => {
                let outbound = Outbound::from_disk(1..upto);
                let body = Session::from_disk(received, outbound);
                self.cells.revive(cell, Cell::Session(Box::new(body)));
                let slot = &mut self.sessions[session as usize];
                slot.set_loading(None);
                slot.set_recovered_below(upto);
                if let Some(arrived) = self.moves.arrived_mut(session) {
                    arrived.step = None;
                }
                self.moves.stir(); // perhaps nothing more will come
            }
            Err(error) => {
                // Its client is let try again when it has waited long enough.
                let text = format!("client {client_id:?} has to wait: {error}");
                return self.log(LogLevel::Warn, text);
            }
        }
        self.let_in(&client_id);
    }

    /// A client is here whose session was another node's: it may pass something on.
    pub(super) fn expect_after_connect(&mut self, session: u32) {
        if self.peers.is_empty() {
            return;
        }
        if self.expects_more(&self.sessions[session as usize].client_id) {
            self.expect_more(session);
        }
    }

    /// More may come for a session that is here.
    pub(super) fn expect_more(&mut self, session: u32) {
        let stay = self.moves.next_step();
        let arrived = Arrived { stay, ..Arrived::default() };
        self.moves.all.entry(session).or_insert(Move::Arrived(arrived));
        self.moves.stir();
    }

    /// Asks who does not know yet what a session wants that came from elsewhere, and tells the directory who does.
    pub(super) fn tell_arrival(&mut self, session: u32, barriers: &mut Asked) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let client_id = slot.client_id();
        if !self.expects_more(&client_id) {
            return self.end_arrival(session, barriers);
        }
        let arrival = self.arrival(self.config.node, &client_id);
        let Some(mut arrival) = arrival.filter(|arrival| !arrival.came_from.is_empty()) else {
            return;
        };
        let Some(arrived) = self.moves.arrived_mut(session) else { return };
        let mut asked = std::mem::take(&mut arrived.asked);
        let nodes = self.peers.keys().copied().filter(|node| !arrival.known_by.contains(node));
        let mut news = false;
        for node in nodes.collect::<Vec<NodeId>>() {
            let number = *asked.entry(node).or_insert_with(|| self.ask_once(node, barriers));
            if self.peers.get(&node).is_some_and(|peer| peer.barriers.has_passed(number)) {
                arrival.known_by.insert(node);
                news = true;
            }
        }
        if let Some(arrived) = self.moves.arrived_mut(session) {
            arrived.asked = asked;
        }
        if news {
            self.write_arrival(&client_id, &arrival);
        }
    }

    /// Nobody passes on anything for it any more. What was passed on may still come once more from where it was published,
    /// and is known again until each node's outbox has emptied.
    fn end_arrival(&mut self, session: u32, barriers: &mut Asked) {
        let Some(arrived) = self.moves.arrived_mut(session) else { return };
        if arrived.step.is_some() {
            return; // it is not settled in
        }
        let mut asked = std::mem::take(&mut arrived.asked);
        let mut is_over = true;
        for node in self.peers.keys().copied().collect::<Vec<NodeId>>() {
            let number = *asked.entry(node).or_insert_with(|| self.ask_once(node, barriers));
            is_over &= self.peers.get(&node).is_none_or(|peer| peer.barriers.has_passed(number));
        }
        if is_over {
            self.moves.remove(session);
        } else if let Some(arrived) = self.moves.arrived_mut(session) {
            arrived.asked = asked;
        }
    }

    /// A node has nothing of a session, or nothing any more.
    fn nothing_comes(&mut self, client_id: &str, node: NodeId) {
        let Some((owner, residence)) = self.residence(client_id) else { return };
        if owner != self.config.node {
            return; // its new owner asks by itself
        }
        let mut arrival = self.arrival(owner, client_id).unwrap_or_default();
        let had_some = arrival.came_from.remove(&node);
        if (arrival.gone.insert(node) && residence.from.contains(&node)) || had_some {
            if arrival.came_from.is_empty() {
                arrival.known_by.clear();
            }
            self.write_arrival(client_id, &arrival);
        }
        if !self.expects_more(client_id) {
            match self.session_of(client_id) {
                Some(session) => {
                    if let Some(arrived) = self.moves.arrived_mut(session) {
                        arrived.asked.clear();
                        self.moves.stir();
                    }
                }
                None if !self.is_waiting(client_id) => return self.leave_directory(client_id),
                None => {}
            }
        }
        self.stop_waiting_for_nodes(client_id, [node; 2]);
        self.let_in(client_id);
    }

    /// A node is gone for good, and with it what it had.
    pub(super) fn expect_nothing_of(&mut self, node: NodeId) {
        let arriving = self.moves.all.keys().filter(|session| !self.is_leaving(**session));
        let sessions = arriving.filter_map(|session| self.sessions.get(*session as usize));
        let client_ids: Vec<_> = sessions.map(super::slot::SessionSlot::client_id).collect();
        for client_id in client_ids {
            self.nothing_comes(&client_id, node);
        }
    }

    /// Its client does not want this any more: whoever still collects for it should not either.
    pub(super) fn tell_unsubscribed(&mut self, session: u32, filter: &str) {
        if self.moves.arrived_mut(session).is_none() {
            return;
        }
        let slot = &self.sessions[session as usize];
        let (client_id, user) = (slot.client_id(), slot.user.clone());
        let arrival = self.arrival(self.config.node, &client_id);
        for node in arrival.into_iter().flat_map(|arrival| arrival.came_from) {
            let kind = PartKind::Unsubscribed { filter: filter.to_owned() };
            self.send_part(node, &client_id, user.as_deref(), kind, None);
        }
    }
}

fn delivery_of(place: u64, record: &DeliveryRecord, message: &Arc<Message>) -> Option<Delivery> {
    Some(Delivery {
        place,
        message: Arc::clone(message),
        qos: QoS::from_bits(record.qos).filter(|qos| *qos > QoS::AtMostOnce)?,
        retain: record.retain,
        subscription_ids: record.subscription_ids.clone(),
        share: record.share.as_deref().map(Into::into),
    })
}
