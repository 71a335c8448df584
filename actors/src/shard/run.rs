//! Turns of cells: run until nobody has anything to do, carry out what they ask for, pick up those that panicked.

use std::sync::Arc;

use outpost_flow::Verdict;
use outpost_mqtt::packet::{Packet, ReasonCode};
use outpost_mqtt::session::{Effect, End};
use outpost_mqtt::window::Delivery;

use super::channel::{Channel, Owner, Subscriber};
use super::{Cell, CellMsg, LogLevel, Probe, Shard};
use crate::cell::{CellId, Turn};
use crate::ledger::Drop;

impl CellMsg {
    /// Whether a client waits for what comes of it.
    fn is_from_client(&self) -> bool {
        matches!(self, Self::Packet(_) | Self::Connect(..))
    }
}

impl Shard {
    /// Runs cells until all mailboxes are empty, every publish of the turn is settled or held, and retained messages
    /// are sent as far as there is room.
    pub(super) fn settle(&mut self) {
        loop {
            self.run_cells();
            if self.cut_off_next() {
                continue;
            }
            if !self.tickets.is_empty() {
                self.settle_tickets();
            } else if !self.send_retained_due() {
                self.crashed_messages.clear();
                self.moves.copied.clear();
                self.retained.end_turn();
                return;
            }
        }
    }

    /// Whether [`Shard::settle`] has nothing to do.
    pub(super) fn is_settled(&self) -> bool {
        let is_idle = self.cells.is_idle() && self.cut_off.is_empty() && self.tickets.is_empty();
        is_idle && !self.retained_due.is_anyone_ready()
    }

    /// Runs cells until all mailboxes are empty; who waits for an answer waits on.
    pub(super) fn run_cells(&mut self) {
        while let Some((to, message)) = self.cells.next_message() {
            self.run_turn(to, message);
        }
    }

    pub(super) fn send(&mut self, to: CellId, message: CellMsg) {
        let is_from_client = message.is_from_client();
        if self.cells.send(to, message).is_err() {
            self.lost(to, is_from_client);
        }
    }

    /// The same, but the turn is run at once when nobody is before it.
    pub(super) fn send_now(&mut self, to: CellId, message: CellMsg) {
        if self.in_turn || !self.cells.is_idle() {
            self.send(to, message);
        } else {
            self.run_turn(to, message);
        }
    }

    /// The probe and what it is to be shown.
    pub(super) fn probe_of(&self, id: CellId) -> Option<(Probe, (&'static str, String))> {
        self.probe.as_ref().map(|probe| (Arc::clone(probe), self.name_of(id)))
    }

    /// A turn of a session.
    fn run_turn(&mut self, id: CellId, message: CellMsg) {
        self.in_turn = true;
        let is_from_client = message.is_from_client();
        let probe = self.probe_of(id);
        let mut fx = std::mem::take(&mut self.fx);
        let (now, limits) = (self.now, &self.config.session);
        let mut message = Some(message);
        let turn = self.cells.turn(id, now.mono_ms, |cell| {
            if let Some((probe, (role, name))) = &probe {
                probe(role, name);
            }
            match (cell, message.take()) {
                (Cell::Session(session), Some(message)) => {
                    session_turn(session, message, limits, now, &mut fx);
                }
                _ => unreachable!("only sessions are sent messages"),
            }
        });
        match turn {
            Turn::Done => {
                if let Some(Owner::Session(session)) = self.cells.owner(id) {
                    let session = *session;
                    fx.drain(..).for_each(|effect| self.apply_session(session, effect));
                }
            }
            Turn::Panicked(verdict) => {
                fx.clear();
                self.lost(id, is_from_client);
                self.cell_failed(id, &verdict);
            }
            Turn::Unavailable => self.lost(id, is_from_client),
            Turn::Gone => match message {
                Some(CellMsg::Deliver { delivery, durable: false, .. })
                    if delivery.share.is_some() =>
                {
                    self.reroute(&delivery, true);
                }
                _ => self.lost(id, is_from_client),
            },
        }
        self.fx = fx;
        self.in_turn = false;
    }

    /// A message did not get through a session's cell. Its client is cut off and asks again; QoS 1 and 2 deliveries are
    /// accounted for by the session's slot.
    pub(super) fn lost(&mut self, id: CellId, is_from_client: bool) {
        let Some(Owner::Session(session)) = self.cells.owner(id) else { return };
        let conn = self.sessions.get(*session as usize).and_then(|s| s.conn);
        if let Some(conn) = conn.filter(|_| is_from_client) {
            let why = "the session's actor failed; it is being restarted";
            self.close(conn, ReasonCode::UnspecifiedError, why);
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
        let mut tickets = std::mem::take(&mut self.tickets);
        for (ticket, id, mut reason) in tickets.drain(..) {
            if self.crashed_messages.contains(&id) {
                reason = ReasonCode::UnspecifiedError;
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
        if self.tickets.is_empty() {
            self.tickets = tickets; // its memory is used again
        }
    }

    /// A cell panicked: it starts again at once, later, or after quarantine, as its policy says.
    pub(super) fn cell_failed(&mut self, id: CellId, verdict: &Verdict) {
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
        } else if self.cells.body(id).is_none() {
            self.revive(id); // what is left of it could not be read
        }
    }

    fn revive(&mut self, id: CellId) {
        match self.cells.owner(id).cloned() {
            Some(Owner::Session(session)) => self.revive_when_readable(session),
            Some(Owner::Channel(_)) => self.cells.revive(id, Cell::Channel(Channel::default())),
            Some(Owner::Subscriber { .. }) => {
                self.cells.revive(id, Cell::Subscriber(Subscriber::default()))
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
        CellMsg::Deliver { delivery, durable, waits } => {
            session.handle_delivery(delivery, durable, waits, now, fx)
        }
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
    }
}
