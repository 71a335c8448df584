//! Turns of cells: run until nobody has anything to do, carry out what they ask for, pick up those that panicked.

use std::sync::Arc;

use outpost_flow::Verdict;
use outpost_model::{MessageId, NodeId, QoS};
use outpost_mqtt::packet::{Packet, ReasonCode};
use outpost_mqtt::session::{Effect, End};
use outpost_mqtt::window::Delivery;

use super::channel::{Channel, Owner, Subscriber};
use super::{Cell, CellMsg, Event, Fx, LogLevel, Shard, Ticket};
use crate::cell::{CellId, Turn};
use crate::ledger::Drop;

/// What is at stake in a turn, should it fail.
#[derive(Clone, Copy)]
enum Stake {
    Nothing,
    /// A message on its way to so many.
    Message(MessageId, u64),
    /// A QoS 0 delivery nobody else holds.
    Delivery,
    /// A client waits for this.
    Client,
}

impl CellMsg {
    fn stake(&self) -> Stake {
        match self {
            Self::Publish { message, recipients, .. } => {
                Stake::Message(message.id, recipients.len() as u64)
            }
            Self::Forward { message, .. } => Stake::Message(message.id, 1),
            Self::Deliver(delivery, _) if delivery.qos == QoS::AtMostOnce => Stake::Delivery,
            Self::Packet(_) | Self::Connect(..) => Stake::Client,
            // QoS 1 and 2 deliveries are accounted for by their session's slot.
            Self::Deliver(..)
            | Self::Loaded { .. }
            | Self::RowsSynced(_)
            | Self::Accepted { .. }
            | Self::Subscribed(..)
            | Self::LinkLost
            | Self::Skip(..) => Stake::Nothing,
        }
    }

    /// What the shard can do itself when the cell cannot: a subscriber, and a channel for a message from a peer, only
    /// count and pass on, and the peer has nobody left to ask.
    fn fallback(&self, node: NodeId) -> Option<Self> {
        match self {
            Self::Forward { message, qos, retain, ids } => Some(Self::Forward {
                message: Arc::clone(message),
                qos: *qos,
                retain: *retain,
                ids: ids.clone(),
            }),
            Self::Publish { message, recipients, .. } if message.id.node != node => {
                Some(Self::Publish {
                    message: Arc::clone(message),
                    from: None,
                    recipients: Arc::clone(recipients),
                })
            }
            _ => None,
        }
    }
}

impl Shard {
    /// Runs cells until all mailboxes are empty, every publish of the turn is settled or held, and retained messages
    /// are sent as far as there is room.
    pub(super) fn settle(&mut self) {
        loop {
            self.run_cells();
            if !self.tickets.is_empty() {
                self.settle_tickets();
            } else if !self.send_retained_due() {
                self.crashed_messages.clear();
                self.retained.end_turn();
                return;
            }
        }
    }

    /// Runs cells until all mailboxes are empty; who waits for an answer waits on.
    pub(super) fn run_cells(&mut self) {
        while let Some((to, message)) = self.cells.next_message() {
            self.run_turn(to, message);
        }
    }

    pub(super) fn send(&mut self, to: CellId, message: CellMsg) {
        let stake = message.stake();
        if self.cells.send(to, message).is_err() {
            self.lost(to, stake, Drop::Crashed);
        }
    }

    fn run_turn(&mut self, id: CellId, message: CellMsg) {
        let stake = message.stake();
        let probe = self.probe.clone().map(|probe| (probe, self.name_of(id)));
        // Only a probe can make these fail; without one nothing is copied.
        let fallback = match &probe {
            Some(_) => message.fallback(self.config.node),
            None => None,
        };
        let (mut fx, mut session_fx) =
            (std::mem::take(&mut self.fx), std::mem::take(&mut self.session_fx));
        let (now, limits) = (self.now, &self.config.session);
        let mut message = Some(message);
        let turn = self.cells.turn(id, now.mono_ms, |cell| {
            let Some(message) = message.take() else { return };
            if let Some((probe, (role, name))) = &probe {
                probe(role, name);
            }
            match (cell, message) {
                (Cell::Session(session), message) => {
                    session_turn(session, message, limits, now, &mut session_fx);
                    fx.extend(session_fx.drain(..).map(Fx::Session));
                }
                (Cell::Channel(channel), CellMsg::Publish { message, from, recipients }) => {
                    channel.handle_publish(&message, from, &recipients, &mut fx);
                }
                (Cell::Subscriber(subscriber), CellMsg::Forward { message, qos, retain, ids }) => {
                    subscriber.handle_forward(message, qos, retain, ids, &mut fx);
                }
                _ => unreachable!("every message is sent to a cell of its kind"),
            }
        });
        match turn {
            Turn::Done => fx.drain(..).for_each(|effect| self.apply(id, effect)),
            Turn::Panicked(verdict) => {
                fx.clear();
                session_fx.clear();
                self.pass_on_or_lose(id, fallback, stake, Drop::Crashed);
                self.cell_failed(id, &verdict);
            }
            Turn::Unavailable => {
                let fallback = message.as_ref().and_then(|m| m.fallback(self.config.node));
                self.pass_on_or_lose(id, fallback, stake, Drop::Quarantined);
            }
            Turn::Gone => self.cell_gone(id, message, stake),
        }
        (self.fx, self.session_fx) = (fx, session_fx);
    }

    fn pass_on_or_lose(&mut self, id: CellId, fallback: Option<CellMsg>, stake: Stake, why: Drop) {
        match (fallback, self.cells.owner(id)) {
            (
                Some(CellMsg::Forward { message, qos, retain, ids }),
                Some(Owner::Subscriber { session, .. }),
            ) => {
                let session = *session;
                self.enqueue(session, message, qos, retain, ids, None);
            }
            (Some(CellMsg::Publish { message, recipients, .. }), _) => {
                let mut fx = Vec::new();
                Channel::default().handle_publish(&message, None, &recipients, &mut fx);
                fx.into_iter().for_each(|effect| self.apply(id, effect));
            }
            _ => self.lost(id, stake, why),
        }
    }

    /// A cell stopped with messages in its mailbox.
    fn cell_gone(&mut self, id: CellId, message: Option<CellMsg>, stake: Stake) {
        match message {
            // The channel was retired, not its receivers.
            Some(CellMsg::Publish { message, from, recipients }) => {
                let mut fx = Vec::new();
                Channel::default().handle_publish(&message, from, &recipients, &mut fx);
                fx.into_iter().for_each(|effect| self.apply(id, effect));
            }
            // Unsubscribed meanwhile: it is owed nothing.
            Some(CellMsg::Forward { .. }) => {}
            Some(CellMsg::Deliver(delivery, false)) if delivery.share.is_some() => {
                self.reroute(delivery, true);
            }
            _ => self.lost(id, stake, Drop::SessionEnded),
        }
    }

    /// A message did not get through a cell. Its publisher hears that it is not safe; nothing is lost in silence.
    fn lost(&mut self, id: CellId, stake: Stake, why: Drop) {
        match stake {
            Stake::Nothing => {}
            Stake::Message(message, receivers) => {
                self.ledger.drop_unqueued(why, receivers);
                self.crashed_messages.push(message);
            }
            Stake::Delivery => self.ledger.drop(why, 1),
            Stake::Client => {
                let conn = match self.cells.owner(id) {
                    Some(Owner::Session(session)) => {
                        self.sessions.get(*session as usize).and_then(|s| s.conn)
                    }
                    _ => None,
                };
                if let Some(conn) = conn {
                    self.close(
                        conn,
                        ReasonCode::UnspecifiedError,
                        "the session's actor failed; it is being restarted",
                    );
                }
            }
        }
    }

    fn apply(&mut self, from: CellId, effect: Fx) {
        match effect {
            Fx::Session(effect) => {
                if let Some(Owner::Session(session)) = self.cells.owner(from) {
                    let session = *session;
                    self.apply_session(session, effect);
                }
            }
            Fx::Forward { to, message, qos, retain, ids } => {
                self.send(to, CellMsg::Forward { message, qos, retain, ids })
            }
            Fx::Enqueue { session, message, qos, retain, ids } => {
                self.enqueue(session, message, qos, retain, ids, None)
            }
            Fx::Group { group, message } => self.enqueue_group(group, message, false),
            Fx::Peer { peer, durable, message } => self.enqueue_peer(peer, durable, message),
            Fx::Local { subscription, message } => {
                self.ledger.owed += 1;
                self.ledger.delivered += 1;
                self.events.push_back(Event::Local(subscription, message));
            }
        }
    }

    fn apply_session(&mut self, session: u32, effect: Effect) {
        match effect {
            Effect::Send(mut packet) => {
                self.explain(session, &mut packet);
                self.send_to_client(session, &packet);
            }
            Effect::SendDurable(packet) => self.send_when_durable(session, packet),
            Effect::Deliver { delivery, id, dup } => self.deliver(session, &delivery, id, dup),
            Effect::Publish(publish) => self.route_from_client(session, *publish, false),
            Effect::Subscribe(subscribe) => self.subscribe(session, subscribe),
            Effect::Unsubscribe(unsubscribe) => self.unsubscribe(session, unsubscribe),
            Effect::Released(delivery) => self.write_released(session, &delivery),
            Effect::Done { delivery, end } => self.delivery_done(session, &delivery, end),
            Effect::Forgotten(id) => self.write_received(session, id, false),
            Effect::Load(from, count) => self.want_load(session, from, count),
            Effect::Goodbye { will, session_expiry_s } => {
                self.goodbye(session, will, session_expiry_s)
            }
            Effect::Fail(reason, text) => {
                self.ledger.protocol_errors += 1;
                if let Some(conn) = self.sessions.get(session as usize).and_then(|s| s.conn) {
                    let why = if text.is_empty() { "" } else { ": " };
                    self.log_closing(conn, session, format_args!("{reason:?}{why}{text}"));
                    self.close(conn, reason, text);
                }
            }
        }
    }

    fn settle_tickets(&mut self) {
        for (ticket, id, mut reason) in std::mem::take(&mut self.tickets) {
            if self.crashed_messages.contains(&id) {
                reason = ReasonCode::UnspecifiedError;
            }
            if matches!(ticket, Ticket::None) {
                continue;
            }
            if reason.is_error() {
                self.forget_received(ticket);
            }
            if self.must_wait(ticket, id, reason) {
                self.hold_ticket(ticket, reason);
            } else {
                self.settle_ticket(ticket, reason);
            }
        }
    }

    /// A cell panicked: it starts again at once, later, or after quarantine, as its policy says.
    fn cell_failed(&mut self, id: CellId, verdict: &Verdict) {
        self.ledger.panics += 1;
        let (role, name) = self.name_of(id);
        let cause = self.cells.last_cause(id).unwrap_or_default().to_owned();
        let next = match verdict {
            Verdict::RestartNow => "it starts again at once".to_owned(),
            Verdict::RestartAfter(ms) => format!("it starts again in {ms} ms"),
            Verdict::Quarantine { until_ms, .. } => {
                format!(
                    "it failed too often and is in quarantine for {} ms",
                    until_ms.saturating_sub(self.now.mono_ms)
                )
            }
        };
        self.log(LogLevel::Warn, format!("{role} {name:?} panicked: {cause}; {next}"));
        if let Some(Owner::Session(session)) = self.cells.owner(id) {
            let session = *session;
            self.session_crashed(session);
        }
        match verdict {
            Verdict::RestartNow => self.revive(id),
            Verdict::RestartAfter(ms) => self.cell_wheel.set(id.index(), self.now.mono_ms + ms),
            Verdict::Quarantine { until_ms, .. } => self.cell_wheel.set(id.index(), *until_ms),
        }
    }

    pub(super) fn cell_timeout(&mut self, index: u32) {
        let Some(id) = self.cells.at(index) else { return };
        if self.cells.handle_timeout(id, self.now.mono_ms) {
            self.revive(id);
        } else if let Some(due_ms) = self.cells.due_ms(id) {
            self.cell_wheel.set(index, due_ms);
        }
    }

    fn revive(&mut self, id: CellId) {
        match self.cells.owner(id).cloned() {
            Some(Owner::Session(session)) => self.revive_when_readable(session),
            Some(Owner::Channel(_)) => self.cells.revive(id, Cell::Channel(Channel::default())),
            Some(Owner::Subscriber { session, .. }) => {
                self.cells.revive(id, Cell::Subscriber(Subscriber::new(session)))
            }
            None => {}
        }
    }

    /// Role and name of a cell, for people.
    pub(super) fn name_of(&self, id: CellId) -> (&'static str, String) {
        let client =
            |session: u32| self.sessions.get(session as usize).map_or("?", |s| &*s.client_id);
        match self.cells.owner(id) {
            Some(Owner::Session(session)) => ("session", client(*session).to_owned()),
            Some(Owner::Channel(topic)) => ("channel", topic.to_string()),
            Some(Owner::Subscriber { session, .. }) => {
                let slot = self.sessions.get(*session as usize);
                let filter = slot.and_then(|s| s.subscriptions.filter_of(id));
                ("subscriber", format!("{} {}", client(*session), filter.map_or("?", |f| &**f)))
            }
            None => ("cell", "gone".to_owned()),
        }
    }

    pub(super) fn delivery_ended(&mut self, session: u32, delivery: &Delivery, end: End) {
        let topic = &delivery.message.topic;
        match end {
            End::Delivered => self.ledger.delivered += 1,
            End::Expired => self.drop_for(session, Drop::Expired, 1, topic),
            End::Refused => self.drop_for(session, Drop::Refused, 1, topic),
            End::TooLarge => self.drop_for(session, Drop::TooLarge, 1, topic),
        }
    }

    /// A packet for a session's client.
    pub(super) fn send_to_client(&mut self, session: u32, packet: &Packet) {
        if let Some(conn) = self.sessions.get(session as usize).and_then(|s| s.conn) {
            self.send_packet(conn, packet);
        }
    }
}

fn session_turn(
    session: &mut outpost_mqtt::session::Session,
    message: CellMsg,
    limits: &outpost_mqtt::session::SessionLimits,
    now: outpost_model::Now,
    fx: &mut Vec<Effect>,
) {
    match message {
        CellMsg::Connect(connect, connack) => {
            session.handle_connect(&connect, *connack, limits, fx);
            session.transmit(now, fx);
        }
        CellMsg::Packet(packet) => session.handle_packet(packet, limits, now, fx),
        CellMsg::Deliver(delivery, durable) => session.handle_delivery(delivery, durable, now, fx),
        CellMsg::Accepted { id, qos, reason, same_link } => {
            session.handle_accepted(id, qos, reason, same_link, fx)
        }
        CellMsg::Subscribed(id, reasons, false) => session.handle_subscribed(id, reasons, fx),
        CellMsg::Subscribed(id, reasons, true) => session.handle_unsubscribed(id, reasons, fx),
        CellMsg::RowsSynced(upto) => session.handle_rows_synced(upto, now, fx),
        CellMsg::Loaded { from, rows, next, dup } => {
            session.outbound.load(from, rows, next, dup);
            session.transmit(now, fx);
        }
        CellMsg::Skip(id, qos, end) => session.skip(id, qos, end, fx),
        CellMsg::LinkLost => session.handle_connection_lost(),
        CellMsg::Publish { .. } | CellMsg::Forward { .. } => unreachable!("not for a session"),
    }
}
