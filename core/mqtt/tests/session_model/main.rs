//! A session against a model: random sequences of packets, deliveries and broken connections, valid and slightly invalid, in
//! all versions. The model knows nothing of the session's insides: it sees what went in and what came out, and says what the
//! standard allows. Planted faults, wrapped around the session's outputs, show that it would see them.

mod dice;
mod model;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use dice::Dice;
use model::{Model, Owed, Stage, Taken};
use outpost_model::{Message, MessageId, NodeId, Now, QoS};
use outpost_mqtt::Decoder;
use outpost_mqtt::packet::{
    Ack, Connack, Connect, Packet, PacketId, Publish, ReasonCode, Subscribe, SubscribeOptions,
    Unsubscribe, Version,
};
use outpost_mqtt::session::{Effect, Session, SessionLimits};
use outpost_mqtt::window::Delivery;
use support::hex;

/// Sequences without a fault, in which nothing may be found.
const SEQUENCES: u64 = 20_000;
/// Sequences within which each planted fault has to be found.
const SEQUENCES_WITH_FAULT: u64 = 400;
const STEPS_MAX: u64 = 60;
const RECEIVE_MAX: u16 = 4;

/// A fault planted between the session and the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A resend does not say so [MQTT-3.3.1-1].
    ForgetsDup,
    /// A first send says it was sent before.
    AlwaysDup,
    /// An answer with the id of the next message [MQTT-2.2.1-5].
    WrongId,
    /// A PUBREL nobody answers [MQTT-4.3.3-11].
    SwallowsPubcomp,
    /// A copy of a QoS 2 message is passed on again [MQTT-4.3.3-10].
    PassesCopiesOn,
    /// PUBACK before the message is safe.
    AcknowledgesEarly,
    /// Two deliveries in the wrong order [MQTT-4.6.0-6].
    SwapsDeliveries,
    /// One delivery more than the client takes at once [MQTT-3.3.4-9].
    ExceedsReceiveMax,
    /// A PUBREC is answered with PUBCOMP.
    PubcompForPubrec,
    /// An acknowledgement of the other QoS is put up with.
    ForgivesWrongAcks,
    /// More publishes in flight than the CONNACK allowed are put up with [MQTT-3.3.4-7].
    ForgivesFloods,
    /// What was acknowledged is sent again on the next connection.
    ForgetsAcks,
    /// A ping is not answered [MQTT-3.12.4-1].
    IgnoresPings,
}

const FAULTS: [Fault; 13] = [
    Fault::ForgetsDup,
    Fault::AlwaysDup,
    Fault::WrongId,
    Fault::SwallowsPubcomp,
    Fault::PassesCopiesOn,
    Fault::AcknowledgesEarly,
    Fault::SwapsDeliveries,
    Fault::ExceedsReceiveMax,
    Fault::PubcompForPubrec,
    Fault::ForgivesWrongAcks,
    Fault::ForgivesFloods,
    Fault::ForgetsAcks,
    Fault::IgnoresPings,
];

#[test]
fn the_session_does_what_the_model_allows() {
    for seed in 0..SEQUENCES {
        if let Err(why) = run(seed, Fault::None) {
            panic!("seed {seed}: {why}");
        }
    }
}

#[test]
fn every_planted_fault_is_found() {
    for fault in FAULTS {
        let found = (0..SEQUENCES_WITH_FAULT).find(|seed| run(*seed, fault).is_err());
        assert!(found.is_some(), "{fault:?} was not found in {SEQUENCES_WITH_FAULT} sequences");
    }
}

/// One sequence: what is wrong, if anything.
fn run(seed: u64, fault: Fault) -> Result<(), String> {
    let mut world = World::new(seed, fault);
    for _ in 0..world.dice.below(STEPS_MAX) {
        world.step()?;
    }
    world.end()
}

struct World {
    dice: Dice,
    fault: Fault,
    session: Session,
    limits: SessionLimits,
    model: Model,
    place: u64,
    held: Option<Effect>,
    over: bool,
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let limits = SessionLimits { receive_max: RECEIVE_MAX, ..SessionLimits::default() };
        Self {
            dice: Dice(seed),
            fault,
            session: Session::default(),
            limits,
            model: Model::default(),
            place: 0,
            held: None,
            over: false,
        }
    }

    fn step(&mut self) -> Result<(), String> {
        if self.model.version.is_none() {
            return match self.dice.below(3) {
                0 => self.deliver(),
                _ => self.connect(),
            };
        }
        match self.dice.below(20) {
            0 => {
                self.lose_connection();
                Ok(())
            }
            1..=5 => self.deliver(),
            6..=9 => self.client_publishes(),
            10 | 11 => self.accepted(),
            12 => self.pubrel(),
            13..=16 => self.acknowledge(),
            17 => self.wrong_acknowledgement(),
            18 => self.ping(),
            _ => self.subscribe(),
        }
    }

    /// A well-behaved client finishes: in the end nothing is owed and nothing was lost.
    fn end(&mut self) -> Result<(), String> {
        self.lose_connection();
        self.connect()?;
        for _ in 0..1_000 {
            if self.model.owed.values().all(|owed| owed.stage == Stage::Done) {
                return Ok(());
            }
            let before: Vec<_> = self.model.owed.values().map(|owed| owed.stage).collect();
            self.acknowledge()?;
            let after: Vec<_> = self.model.owed.values().map(|owed| owed.stage).collect();
            if before == after {
                return Err(format!("it stands still, and owes {:?}", self.model.owed));
            }
        }
        Err("there is no end".to_owned())
    }

    fn connect(&mut self) -> Result<(), String> {
        let version = self.dice.pick(&[Version::V3, Version::V4, Version::V5]).expect("three");
        let mut connect = connect_of(version);
        if version == Version::V5 {
            connect.receive_max = Some(1 + self.dice.below(5) as u16);
        }
        self.model.client_max = usize::from(connect.receive_max.unwrap_or(u16::MAX));
        self.model.version = Some(version);
        self.model.unsettled = 0;
        let mut fx = Vec::new();
        let connack = Connack::default();
        self.session.handle_connect(&connect, connack, &self.limits.clone(), &mut fx);
        match fx.first() {
            Some(Effect::Send(Packet::Connack(_))) => drop(fx.remove(0)),
            other => return Err(format!("CONNACK comes first [MQTT-3.2.0-1], not {other:?}")),
        }
        self.session.transmit(now(), &mut fx);
        self.see(fx)
    }

    fn lose_connection(&mut self) {
        self.session.handle_connection_lost();
        let model = &mut self.model;
        model.version = None;
        model.qos_1.clear();
        model.due.clear();
        self.held = None;
        for owed in model.owed.values_mut() {
            owed.stage = match owed.stage {
                Stage::Sent => Stage::SentBefore,
                Stage::Received => Stage::ReceivedBefore,
                other => other,
            };
        }
    }

    fn deliver(&mut self) -> Result<(), String> {
        let qos = QoS::from_bits(self.dice.below(3) as u8).expect("0 to 2");
        let mut place = 0;
        if qos > QoS::AtMostOnce {
            self.place += 1;
            place = self.place;
            self.model.owed.insert(place, Owed { qos, stage: Stage::Waits, id: None });
        }
        let mut fx = Vec::new();
        self.session.handle_delivery(delivery(place, qos), false, false, now(), &mut fx);
        if qos == QoS::AtMostOnce {
            let sent = fx.iter().filter(|e| matches!(e, Effect::Deliver { id: None, .. })).count();
            if sent != usize::from(self.model.version.is_some()) {
                return Err(format!("QoS 0 was sent {sent} times"));
            }
            fx.retain(|e| !matches!(e, Effect::Deliver { id: None, .. }));
        }
        self.see(fx)
    }

    fn client_publishes(&mut self) -> Result<(), String> {
        let qos = QoS::from_bits(self.dice.below(3) as u8).expect("0 to 2");
        let id = PacketId::new(1 + self.dice.below(6) as u16).expect("not 0");
        if self.model.qos_1.contains(&id) {
            return Ok(()); // a client never does that (MQTT-2.2.1-3)
        }
        if qos == QoS::AtLeastOnce && self.model.qos_2.contains_key(&id) {
            return Ok(());
        }
        let model = &mut self.model;
        let five = model.version == Some(Version::V5);
        match (qos, model.qos_2.get(&id)) {
            (QoS::AtMostOnce, _) => model.passed_on = 1,
            (QoS::ExactlyOnce, Some(Taken::Answered)) => {
                model.due.push_back(Packet::Pubrec(ack(id)));
            }
            (QoS::ExactlyOnce, Some(Taken::Passed)) => {}
            _ if five && model.unsettled >= usize::from(RECEIVE_MAX) => {
                model.fails = Some(ReasonCode::ReceiveMaximumExceeded);
            }
            (QoS::AtLeastOnce, _) => {
                model.qos_1.push(id);
                model.unsettled += 1;
                model.passed_on = 1;
            }
            (QoS::ExactlyOnce, None) => {
                model.qos_2.insert(id, Taken::Passed);
                model.unsettled += 1;
                model.passed_on = 1;
            }
        }
        let publish = publish(qos, (qos > QoS::AtMostOnce).then_some(id));
        self.packet(Packet::Publish(Box::new(publish)))
    }

    /// One of the messages passed on became safe, or was refused.
    fn accepted(&mut self) -> Result<(), String> {
        let passed: Vec<PacketId> = self
            .model
            .qos_2
            .iter()
            .filter(|(_, taken)| **taken == Taken::Passed)
            .map(|(id, _)| *id)
            .collect();
        let (id, qos) = match (self.model.qos_1.first().copied(), self.dice.pick(&passed)) {
            (Some(id), _) => (id, QoS::AtLeastOnce),
            (None, Some(id)) => (id, QoS::ExactlyOnce),
            (None, None) => return Ok(()),
        };
        let refused = self.dice.below(8) == 0;
        let five = self.model.version == Some(Version::V5);
        let reason = if refused && five { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
        let answer = Ack::new(id, reason);
        if qos == QoS::AtLeastOnce {
            self.model.qos_1.retain(|other| *other != id);
            self.model.settle_one();
            self.model.due.push_back(Packet::Puback(answer));
        } else {
            if reason.is_error() {
                self.model.qos_2.remove(&id);
                self.model.settle_one();
            } else {
                self.model.qos_2.insert(id, Taken::Answered);
            }
            self.model.due.push_back(Packet::Pubrec(answer));
        }
        let mut fx = Vec::new();
        self.session.handle_accepted(id, qos, reason, true, &mut fx);
        self.see(fx)
    }

    fn pubrel(&mut self) -> Result<(), String> {
        let id = PacketId::new(1 + self.dice.below(6) as u16).expect("not 0");
        if self.model.qos_1.contains(&id) {
            return Ok(());
        }
        if let Some(Taken::Passed) = self.model.qos_2.get(&id) {
            self.model.fails = Some(ReasonCode::ProtocolError)
        } else {
            if self.model.qos_2.remove(&id).is_some() {
                self.model.settle_one();
            }
            self.model.due.push_back(Packet::Pubcomp(ack(id)));
        }
        self.packet(Packet::Pubrel(ack(id)))
    }

    /// What a client answers to one of the deliveries it has, sometimes a second time.
    fn acknowledge(&mut self) -> Result<(), String> {
        let open: Vec<u64> = self
            .model
            .owed
            .iter()
            .filter(|(_, owed)| matches!(owed.stage, Stage::Sent | Stage::Received))
            .map(|(place, _)| *place)
            .collect();
        let Some(place) = self.dice.pick(&open) else { return Ok(()) };
        let refuses = self.model.version == Some(Version::V5) && self.dice.below(8) == 0;
        let owed = self.model.owed.get_mut(&place).expect("picked from it");
        let id = owed.id.expect("it was sent");
        let code = if refuses { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
        let packet = match (owed.qos, owed.stage) {
            (QoS::AtLeastOnce, _) => {
                owed.stage = Stage::Done;
                Packet::Puback(Ack::new(id, code))
            }
            (_, Stage::Sent) => {
                owed.stage = if refuses { Stage::Done } else { Stage::Received };
                if !refuses {
                    self.model.due.push_back(Packet::Pubrel(ack(id)));
                }
                Packet::Pubrec(Ack::new(id, code))
            }
            _ => {
                owed.stage = Stage::Done;
                Packet::Pubcomp(ack(id))
            }
        };
        let again = self.dice.below(10) == 0;
        self.packet(packet.clone())?;
        if again && matches!(packet, Packet::Pubrec(ref a) if a.reason == ReasonCode::Success) {
            // §4.3.3: a copy of PUBREC is answered as the first.
            self.model.due.push_back(Packet::Pubrel(ack(id)));
            self.packet(packet)?;
        }
        Ok(())
    }

    /// An acknowledgement of the other QoS, or out of its order (§4.3): a Protocol Error.
    fn wrong_acknowledgement(&mut self) -> Result<(), String> {
        let open: Vec<(PacketId, QoS, Stage)> = self
            .model
            .owed
            .values()
            .filter(|owed| matches!(owed.stage, Stage::Sent | Stage::Received))
            .filter_map(|owed| Some((owed.id?, owed.qos, owed.stage)))
            .collect();
        let Some((id, qos, stage)) = self.dice.pick(&open) else { return Ok(()) };
        let packet = match (qos, stage) {
            (QoS::AtLeastOnce, _) if self.dice.below(2) == 0 => Packet::Pubrec(ack(id)),
            (QoS::AtLeastOnce, _) => Packet::Pubcomp(ack(id)),
            (_, Stage::Sent) if self.dice.below(2) == 0 => Packet::Pubcomp(ack(id)),
            _ => Packet::Puback(ack(id)),
        };
        self.model.fails = Some(ReasonCode::ProtocolError);
        self.packet(packet)
    }

    fn ping(&mut self) -> Result<(), String> {
        self.model.due.push_back(Packet::Pingresp);
        self.packet(Packet::Pingreq)
    }

    fn subscribe(&mut self) -> Result<(), String> {
        let packet_id = PacketId::new(60_000).expect("not 0");
        let mut fx = Vec::new();
        let filters = vec![("t".into(), SubscribeOptions::default())];
        let (asked, is_answer): (Packet, fn(&Effect) -> bool) = if self.dice.below(2) == 0 {
            let request = Subscribe { packet_id, subscription_id: None, filters, user: Vec::new() };
            (Packet::Subscribe(request), |e| matches!(e, Effect::SendDurable(Packet::Suback(_))))
        } else {
            let request = Unsubscribe { packet_id, filters: vec!["t".into()], user: Vec::new() };
            (Packet::Unsubscribe(request), |e| {
                matches!(e, Effect::SendDurable(Packet::Unsuback(_)))
            })
        };
        let is_subscribe = matches!(asked, Packet::Subscribe(_));
        self.session.handle_packet(asked, &self.limits, now(), &mut fx);
        if !matches!(fx[..], [Effect::Subscribe(_) | Effect::Unsubscribe(_)]) {
            return Err(format!("a request came to {fx:?}"));
        }
        fx.clear();
        if is_subscribe {
            self.session.handle_subscribed(packet_id, vec![ReasonCode::Success], &mut fx);
        } else {
            self.session.handle_unsubscribed(packet_id, vec![ReasonCode::Success], &mut fx);
        }
        if fx.len() == 1 && is_answer(&fx[0]) { Ok(()) } else { Err(format!("answered {fx:?}")) }
    }

    fn packet(&mut self, packet: Packet) -> Result<(), String> {
        let mut fx = Vec::new();
        self.session.handle_packet(packet, &self.limits, now(), &mut fx);
        self.see(fx)
    }

    /// Everything that came out of one input, with the planted fault, before the model.
    fn see(&mut self, fx: Vec<Effect>) -> Result<(), String> {
        let fx = self.with_fault(fx);
        for effect in fx {
            self.model.see(effect)?;
        }
        let model = &mut self.model;
        if let Some(reason) = model.fails.take() {
            return Err(format!("{reason:?} was not noticed"));
        }
        if !model.due.is_empty() {
            return Err(format!("not answered: {:?}", model.due));
        }
        if std::mem::take(&mut model.passed_on) != 0 {
            return Err("a publish was not passed on".to_owned());
        }
        if model.version.is_some() && model.in_flight() < model.client_max {
            let waits = model
                .owed
                .values()
                .any(|owed| matches!(owed.stage, Stage::Waits | Stage::SentBefore));
            if waits && !self.over && self.held.is_none() {
                return Err(format!("there is room, and it waits: {:?}", model.owed));
            }
        }
        if self.over {
            // The node closes the connection after a failure.
            self.over = false;
            self.lose_connection();
        }
        Ok(())
    }

    fn with_fault(&mut self, mut fx: Vec<Effect>) -> Vec<Effect> {
        self.over = fx.iter().any(|e| matches!(e, Effect::Fail(..)));
        let due_now = self.model.passed_on;
        match self.fault {
            Fault::None => {}
            Fault::ForgetsDup => fx.iter_mut().for_each(|e| set_dup(e, false)),
            Fault::AlwaysDup => fx.iter_mut().for_each(|e| set_dup(e, true)),
            Fault::WrongId => fx.iter_mut().for_each(|e| {
                if let Effect::Send(Packet::Puback(a)) = e {
                    a.packet_id = a.packet_id.checked_add(1).unwrap_or(a.packet_id);
                }
            }),
            Fault::SwallowsPubcomp => {
                fx.retain(|e| !matches!(e, Effect::SendDurable(Packet::Pubcomp(_))));
            }
            Fault::PassesCopiesOn => {
                if fx.is_empty() && due_now == 0 && self.dice.below(2) == 0 {
                    let id = PacketId::new(1);
                    fx.push(Effect::Publish(Box::new(publish(QoS::ExactlyOnce, id))));
                }
            }
            Fault::AcknowledgesEarly => {
                let early = fx.iter().find_map(|e| match e {
                    Effect::Publish(p) if p.qos == QoS::AtLeastOnce => p.packet_id,
                    _ => None,
                });
                fx.extend(early.map(|id| Effect::Send(Packet::Puback(ack(id)))));
            }
            Fault::SwapsDeliveries => {
                let sends = |e: &Effect| matches!(e, Effect::Deliver { .. });
                let places: Vec<_> = (0..fx.len()).filter(|i| sends(&fx[*i])).collect();
                if let [first, second, ..] = places[..] {
                    fx.swap(first, second);
                }
            }
            Fault::ExceedsReceiveMax => {
                let next = self.model.owed.iter().find(|(_, o)| o.stage == Stage::Waits);
                if self.model.in_flight() == self.model.client_max
                    && let Some((place, owed)) = next
                {
                    let (delivery, id) = (delivery(*place, owed.qos), PacketId::new(*place as u16));
                    fx.push(Effect::Deliver { delivery, id, dup: false });
                }
            }
            Fault::PubcompForPubrec => fx.iter_mut().for_each(|e| {
                if let Effect::SendDurable(Packet::Pubrel(a)) = e {
                    *e = Effect::SendDurable(Packet::Pubcomp(a.clone()));
                }
            }),
            Fault::ForgivesWrongAcks => {
                fx.retain(|e| !matches!(e, Effect::Fail(ReasonCode::ProtocolError, _)));
            }
            Fault::ForgivesFloods => {
                fx.retain(|e| !matches!(e, Effect::Fail(ReasonCode::ReceiveMaximumExceeded, _)));
            }
            Fault::ForgetsAcks => {
                let done = self.model.owed.iter().find(|(_, o)| o.stage == Stage::Done);
                if let Some((place, owed)) = done
                    && self.dice.below(4) == 0
                {
                    let (delivery, id) = (delivery(*place, owed.qos), owed.id);
                    fx.push(Effect::Deliver { delivery, id, dup: true });
                }
            }
            Fault::IgnoresPings => fx.retain(|e| !matches!(e, Effect::Send(Packet::Pingresp))),
        }
        fx
    }
}

fn set_dup(effect: &mut Effect, value: bool) {
    if let Effect::Deliver { id: Some(_), dup, .. } = effect {
        *dup = value;
    }
}

fn now() -> Now {
    Now { mono_ms: 0, wall_ms: 0 }
}

fn ack(id: PacketId) -> Ack {
    Ack::new(id, ReasonCode::Success)
}

fn connect_of(version: Version) -> Connect {
    let bytes = match version {
        Version::V3 => hex("10 0F 0006 4D5149736470 03 00 000A 0001 70"),
        Version::V4 => hex("10 0D 0004 4D515454 04 00 000A 0001 70"),
        Version::V5 => hex("10 0E 0004 4D515454 05 00 000A 00 0001 70"),
    };
    match Decoder::new(1_024).decode(&mut &bytes[..]) {
        Ok(Some(Packet::Connect(connect))) => *connect,
        other => panic!("a CONNECT, not {other:?}"),
    }
}

fn publish(qos: QoS, packet_id: Option<PacketId>) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: "t".into(),
        packet_id,
        payload: Bytes::new(),
        topic_alias: None,
        expiry_s: None,
        subscription_ids: Vec::new(),
        properties: None,
    }
}

fn delivery(place: u64, qos: QoS) -> Delivery {
    let message = Message {
        id: MessageId { node: NodeId(1), seq: place },
        topic: "t".into(),
        payload: Bytes::new(),
        qos,
        retain: false,
        properties: None,
        accepted_wall_ms: 0,
        expiry_s: None,
    };
    Delivery {
        place,
        message: Arc::new(message),
        qos,
        retain: false,
        subscription_ids: Vec::new(),
        share: None,
    }
}

/// Each place has an id of its own as long as fewer than 65,535 are open: the model relies on it.
#[test]
fn ids_of_the_model_are_those_of_the_places() {
    let ids: BTreeSet<_> = (1..1_000).map(outpost_mqtt::window::packet_id_of).collect();
    assert_eq!(ids.len(), 999);
}
