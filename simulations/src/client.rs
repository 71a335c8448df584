//! A device: an MQTT client that speaks real bytes, keeps its session as the standard demands, and forgets nothing.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::QoS;
use outpost_mqtt::codec::{Decoder, encode};
use outpost_mqtt::packet::{
    Ack, Connack, Connect, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe,
    SubscribeOptions, Unsubscribe, Version, Will,
};

use crate::clock::Micros;
use crate::history::{Delivered, History, Sending};
use crate::roaming::Roaming;

/// Largest packet a simulated client takes.
const PACKET_BYTES_MAX: u32 = 1 << 20;
/// Publishes a 3.1.1 client has under way.
const WINDOW_311: usize = 100;

/// Who a client is.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Index and MQTT client id.
    pub index: usize,
    /// The node it connects to, or is connected to.
    pub node: usize,
    /// 3.1.1 or 5.
    pub version: Version,
    /// Its session outlives its connections.
    pub durable: bool,
    /// Seconds; 0 for none.
    pub keep_alive_s: u16,
    /// It leaves a will.
    pub has_will: bool,
    /// It subscribes as a member of this share group only.
    pub group: Option<&'static str>,
}

/// What a client wants to do next.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Publish this number of the history; empty payload clears a retained message.
    Publish {
        /// Its number.
        number: usize,
        /// What to send.
        payload: Bytes,
    },
    /// Subscribe; the index in the history.
    Subscribe(usize),
    /// Unsubscribe; the index in the history.
    Unsubscribe(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Sent or to be sent.
    Publish,
    /// PUBREC came.
    Release,
}

#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    id: PacketId,
    pub(crate) wish: Wish,
    stage: Stage,
    sent: bool,
}

#[derive(Debug)]
struct Link {
    decoder: Decoder,
    input: Vec<u8>,
    welcomed: bool,
    window: usize,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Who it is.
    pub profile: Profile,
    /// Names its connections; a byte of an older one is nobody's.
    pub link_number: u64,
    /// Counts its sessions.
    pub session: u32,
    /// The next CONNECT asks for a new session.
    pub start_clean: bool,
    /// The server said it has a session.
    confirmed: bool,
    link: Option<Link>,
    wishes: VecDeque<Wish>,
    pub(crate) outgoing: VecDeque<Outgoing>,
    /// Packet ids with QoS 2 that are half over, and the messages' numbers.
    pub(crate) received: BTreeMap<PacketId, Option<usize>>,
    /// What it has lived through at several nodes.
    pub roaming: Roaming,
    next_id: u16,
    will: Option<usize>,
    /// Pings sent and answered on this link.
    pings: (u64, u64),
}

impl Client {
    /// A client that is not connected yet.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            link_number: 0,
            session: 0,
            start_clean: false,
            confirmed: false,
            link: None,
            wishes: VecDeque::new(),
            outgoing: VecDeque::new(),
            received: BTreeMap::new(),
            roaming: Roaming::default(),
            next_id: 0,
            will: None,
            pings: (0, 0),
        }
    }

    /// Whether it has a connection, as far as it knows.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Whether it may publish now.
    pub fn is_welcomed(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.welcomed)
    }

    /// Whether its last CONNECT was answered.
    pub fn has_answer(&self) -> bool {
        self.roaming.has_answer()
    }

    /// Whether it has nothing under way.
    pub fn is_idle(&self) -> bool {
        let is_half_over = !self.received.is_empty() && self.roaming.blurs.is_empty();
        self.wishes.is_empty() && self.outgoing.is_empty() && !is_half_over
    }

    /// What it waits for, for people.
    pub fn waits_for(&self) -> String {
        format!(
            "connected {}, welcomed {}, wishes {:?}, outgoing {:?}, received {:?}",
            self.is_connected(),
            self.is_welcomed(),
            self.wishes.front(),
            self.outgoing.front(),
            self.received
        )
    }

    /// Opens a connection: the bytes of CONNECT.
    pub fn connect(&mut self, will: Option<usize>, at: Micros, history: &mut History) -> Vec<u8> {
        self.link_number += 1;
        let clean = self.start_clean || !self.profile.durable;
        self.roaming.connecting(self.profile.node, at);
        if clean {
            self.forget_session(at, history);
        }
        self.pings = (0, 0);
        self.will = will;
        self.link = Some(Link {
            decoder: Decoder::for_client(self.profile.version, PACKET_BYTES_MAX),
            input: Vec::new(),
            welcomed: false,
            window: WINDOW_311,
        });
        let five = self.profile.version == Version::V5;
        let will = will.map(|number| {
            let publish = &history.publishes[number];
            Box::new(Will {
                topic: publish.topic.clone().into(),
                payload: payload_of(number),
                qos: publish.qos,
                retain: false,
                delay_s: None,
                expiry_s: None,
                properties: outpost_model::MessageProperties::default(),
            })
        });
        let connect = Connect {
            clean_start: clean,
            keep_alive_s: self.profile.keep_alive_s,
            will,
            session_expiry_s: (five && self.profile.durable).then_some(86_400),
            receive_max: five.then_some(20),
            ..Connect::new(self.profile.version, &self.name())
        };
        self.encode(&Packet::Connect(Box::new(connect)))
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.link = None;
        self.outgoing.iter_mut().for_each(|out| out.sent = false);
    }

    /// Says good-bye: the bytes of DISCONNECT.
    pub fn goodbye(&mut self) -> Vec<u8> {
        let bytes = self.encode(&Packet::Disconnect(Box::default()));
        self.will = None;
        self.disconnected();
        bytes
    }

    /// The will it left on this connection, if it is still to be published when it breaks.
    pub fn will(&self) -> Option<usize> {
        self.will
    }

    /// A ping.
    pub fn ping(&mut self) -> Vec<u8> {
        self.pings.0 += 1;
        self.encode(&Packet::Pingreq)
    }

    /// Wants something.
    pub fn wish(&mut self, wish: Wish) {
        self.wishes.push_back(wish);
    }

    /// Wants something before all else.
    pub(crate) fn wish_first(&mut self, wish: Wish) {
        self.wishes.push_front(wish);
    }

    /// Bytes from the server. What the client answers.
    pub fn receive(&mut self, bytes: &[u8], at: Micros, history: &mut History) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(link) = self.link.as_mut() else { return out };
        link.input.extend_from_slice(bytes);
        let input = std::mem::take(&mut link.input);
        let mut rest = &input[..];
        loop {
            let Some(link) = self.link.as_mut() else { return out };
            match link.decoder.decode(&mut rest) {
                Ok(Some(packet)) => self.packet(packet, at, history, &mut out),
                Ok(None) => {
                    link.input = rest.to_vec();
                    return out;
                }
                Err(error) => {
                    let name = self.name();
                    history.violation(at, format!("{name} was sent bytes it cannot read: {error}"));
                    return out;
                }
            }
        }
    }

    /// Sends what it may: first what was under way, then new wishes as far as its window allows.
    pub fn send(&mut self, at: Micros, history: &mut History) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(window) = self.link.as_ref().filter(|link| link.welcomed).map(|link| link.window)
        else {
            return out;
        };
        for index in 0..self.outgoing.len() {
            if !self.outgoing[index].sent {
                self.outgoing[index].sent = true;
                let outgoing = self.outgoing[index].clone();
                out.extend(self.encode_outgoing(&outgoing, true, at, history));
            }
        }
        while self.outgoing.len() < window {
            let Some(wish) = self.wishes.pop_front() else { break };
            if let Wish::Publish { number, payload } = &wish
                && history.publishes[*number].qos == QoS::AtMostOnce
            {
                out.extend(self.encode_publish(*number, payload, None, false, at, history));
                continue;
            }
            let id = self.free_id();
            let outgoing = Outgoing { id, wish, stage: Stage::Publish, sent: true };
            out.extend(self.encode_outgoing(&outgoing, false, at, history));
            self.outgoing.push_back(outgoing);
        }
        out
    }

    fn name(&self) -> ByteString {
        format!("client-{}", self.profile.index).into()
    }

    fn encode(&self, packet: &Packet) -> Vec<u8> {
        let mut out = Vec::new();
        encode(packet, self.profile.version, &mut out);
        out
    }

    fn free_id(&mut self) -> PacketId {
        loop {
            self.next_id = self.next_id % u16::MAX + 1;
            let id = PacketId::new(self.next_id).expect("one is added");
            if self.outgoing.iter().all(|out| out.id != id) {
                return id;
            }
        }
    }

    fn encode_outgoing(
        &self,
        out: &Outgoing,
        again: bool,
        at: Micros,
        history: &mut History,
    ) -> Vec<u8> {
        match (&out.wish, out.stage) {
            (_, Stage::Release) => {
                self.encode(&Packet::Pubrel(Ack::new(out.id, ReasonCode::Success)))
            }
            (Wish::Publish { number, payload }, Stage::Publish) => {
                self.encode_publish(*number, payload, Some(out.id), again, at, history)
            }
            (Wish::Subscribe(index), Stage::Publish) => {
                let subscription = &mut history.subscriptions[*index];
                subscription.asked = subscription.asked.min(at);
                let options =
                    SubscribeOptions { qos: subscription.qos, ..SubscribeOptions::default() };
                self.encode(&Packet::Subscribe(Subscribe {
                    packet_id: out.id,
                    subscription_id: None,
                    filters: vec![(subscription.filter.clone().into(), options)],
                    user: Vec::new(),
                }))
            }
            (Wish::Unsubscribe(index), Stage::Publish) => {
                history.subscriptions[*index].ended.get_or_insert(at);
                self.encode(&Packet::Unsubscribe(Unsubscribe {
                    packet_id: out.id,
                    filters: vec![history.subscriptions[*index].filter.clone().into()],
                    user: Vec::new(),
                }))
            }
        }
    }

    fn encode_publish(
        &self,
        number: usize,
        payload: &Bytes,
        id: Option<PacketId>,
        dup: bool,
        at: Micros,
        history: &mut History,
    ) -> Vec<u8> {
        let publish = &mut history.publishes[number];
        publish.sent.get_or_insert(at);
        history.sendings += 1;
        let sending = Sending { place: history.sendings, at, node: self.profile.node };
        publish.sendings.push(sending);
        let is_twice = dup && publish.qos == QoS::ExactlyOnce;
        publish.is_doubled |= is_twice && self.roaming.is_blurred();
        self.encode(&Packet::Publish(Box::new(Publish {
            dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic.clone().into(),
            packet_id: id,
            payload: payload.clone(),
            topic_alias: None,
            expiry_s: None,
            subscription_ids: Vec::new(),
            properties: None,
        })))
    }

    fn packet(&mut self, packet: Packet, at: Micros, history: &mut History, out: &mut Vec<u8>) {
        let welcomed = self.link.as_ref().is_some_and(|link| link.welcomed);
        match packet {
            Packet::Connack(connack) if !welcomed => self.connack(&connack, at, history),
            other if !welcomed => {
                let text = format!("{} got {:?} before CONNACK", self.name(), other.kind());
                history.violation(at, text);
            }
            Packet::Publish(publish) => self.delivery(&publish, at, history, out),
            Packet::Puback(ack) => self.settled(&ack, at, history),
            Packet::Pubrec(ack) => self.pubrec(&ack, at, history, out),
            Packet::Pubcomp(ack) => self.forget_outgoing(ack.packet_id),
            Packet::Pubrel(ack) => {
                self.received.remove(&ack.packet_id);
                out.extend(
                    self.encode(&Packet::Pubcomp(Ack::new(ack.packet_id, ReasonCode::Success))),
                );
            }
            Packet::Suback(suback) | Packet::Unsuback(suback) => self.suback(&suback, at, history),
            Packet::Pingresp => self.pings.1 += 1,
            Packet::Disconnect(disconnect) => self.told_to_go(&disconnect, at, history),
            other => {
                history.violation(at, format!("{} got {:?}", self.name(), other.kind()));
            }
        }
    }

    fn connack(&mut self, connack: &Connack, at: Micros, history: &mut History) {
        if connack.reason != ReasonCode::Success {
            history.step(at, &[1], || format!("{} refused: {:?}", self.name(), connack.reason));
            return;
        }
        self.welcomed((connack.session_present, self.confirmed), at, history);
        if (self.start_clean || !self.profile.durable) && connack.session_present {
            let text = format!("{}: an old session where a new one was asked for", self.name());
            history.violation(at, text);
        }
        let is_new = self.start_clean || !self.profile.durable;
        self.start_clean = false;
        self.confirmed = self.profile.durable;
        let window = connack.receive_max.map_or(WINDOW_311, usize::from);
        if let Some(link) = self.link.as_mut() {
            (link.welcomed, link.window) = (true, window);
        }
        let (index, name) = (self.profile.index, self.name());
        history.step(at, &[2], || format!("{name} welcomed"));
        for subscription in history.subscriptions.iter_mut().filter(|s| s.client == index) {
            if is_new && subscription.ended.is_some() {
                subscription.end_confirmed.get_or_insert(at);
            }
        }
    }

    /// A clean start: what was under way is in doubt, what was subscribed is no more.
    fn forget_session(&mut self, at: Micros, history: &mut History) {
        self.session += 1;
        self.confirmed = false;
        self.received.clear();
        for outgoing in std::mem::take(&mut self.outgoing) {
            match outgoing.wish {
                Wish::Publish { number, .. } => {
                    if history.publishes[number].acked.is_none() {
                        history.publishes[number].uncertain = true;
                    }
                }
                Wish::Unsubscribe(index) => {
                    history.subscriptions[index].ended.get_or_insert(at);
                }
                Wish::Subscribe(_) => {} // asked for again below
            }
        }
        let mut again = Vec::new();
        for (index, subscription) in history.subscriptions.iter_mut().enumerate() {
            let is_old = subscription.client == self.profile.index && subscription.ended.is_none();
            if is_old && subscription.asked <= at {
                subscription.ended = Some(at);
                again.push(index);
            }
        }
        for index in again.into_iter().rev() {
            let mut next = history.subscriptions[index].clone();
            (next.asked, next.granted, next.ended, next.end_confirmed) =
                (Micros::MAX, None, None, None);
            (next.homes, next.heard) = Default::default();
            history.subscriptions.push(next);
            self.wishes.push_front(Wish::Subscribe(history.subscriptions.len() - 1));
        }
    }

    fn delivery(
        &mut self,
        publish: &Publish,
        at: Micros,
        history: &mut History,
        out: &mut Vec<u8>,
    ) {
        let number = number_in(&publish.payload).filter(|n| *n < history.publishes.len());
        let is_copy = match (publish.qos, publish.packet_id) {
            (QoS::ExactlyOnce, Some(id)) => {
                out.extend(self.encode(&Packet::Pubrec(Ack::new(id, ReasonCode::Success))));
                let is_copy = self.received.contains_key(&id);
                self.received.entry(id).or_insert(number);
                is_copy
            }
            (QoS::AtLeastOnce, Some(id)) => {
                out.extend(self.encode(&Packet::Puback(Ack::new(id, ReasonCode::Success))));
                false
            }
            _ => false,
        };
        if publish.topic.ends_with("/update/accepted") {
            history.shadow_accepted(&publish.payload);
        }
        let Some(number) = number else {
            return; // made by the shadow service, or clears a retained message
        };
        if is_copy {
            let is_another = publish
                .packet_id
                .and_then(|id| self.received.get(&id))
                .is_some_and(|before| *before != Some(number));
            if !self.roaming.blurs.is_empty() {
                // To and fro between two sides, a packet id may mean two messages to it, and stay half over.
                history.mistaken.extend(is_another.then_some((self.profile.index, number)));
            } else if !publish.dup || is_another {
                let text =
                    format!("{}: id {:?} reused before PUBREL", self.name(), publish.packet_id);
                history.violation(at, text);
            }
            return;
        }
        history.deliveries.push(Delivered {
            client: self.profile.index,
            session: self.session,
            number,
            qos: publish.qos,
            topic: publish.topic.to_string(),
            retain: publish.retain,
            dup: publish.dup,
            at,
        });
    }

    fn settled(&mut self, ack: &Ack, at: Micros, history: &mut History) {
        if let Some(number) = self.number_of(ack.packet_id) {
            if ack.reason.is_error() {
                history.publishes[number].uncertain = true;
            } else {
                history.publishes[number].acked.get_or_insert(at);
                if let Some(write) = history.shadow_writes.get_mut(&number) {
                    write.accepted = true;
                }
            }
        }
        self.forget_outgoing(ack.packet_id);
    }

    fn pubrec(&mut self, ack: &Ack, at: Micros, history: &mut History, out: &mut Vec<u8>) {
        if ack.reason.is_error() {
            return self.settled(ack, at, history);
        }
        if let Some(number) = self.number_of(ack.packet_id) {
            history.publishes[number].acked.get_or_insert(at);
        }
        if let Some(outgoing) = self.outgoing.iter_mut().find(|out| out.id == ack.packet_id) {
            outgoing.stage = Stage::Release;
        }
        out.extend(self.encode(&Packet::Pubrel(Ack::new(ack.packet_id, ReasonCode::Success))));
    }

    fn suback(&mut self, suback: &Suback, at: Micros, history: &mut History) {
        let wish =
            self.outgoing.iter().find(|out| out.id == suback.packet_id).map(|out| out.wish.clone());
        match wish {
            Some(Wish::Subscribe(index)) => {
                history.subscriptions[index].granted.get_or_insert(at);
                history.subscriptions[index].homes.entry(self.profile.node).or_insert(at);
                history.note_heard();
            }
            Some(Wish::Unsubscribe(index)) => {
                history.subscriptions[index].end_confirmed.get_or_insert(at);
            }
            _ => {}
        }
        self.forget_outgoing(suback.packet_id);
    }

    fn told_to_go(&mut self, disconnect: &Disconnect, at: Micros, history: &mut History) {
        let expected = [ReasonCode::SessionTakenOver, ReasonCode::KeepAliveTimeout];
        if !expected.contains(&disconnect.reason) {
            let text = format!(
                "{} was sent away: {:?} {:?}",
                self.name(),
                disconnect.reason,
                disconnect.reason_string
            );
            history.violation(at, text);
        }
    }

    /// The number of the message it has under way with this packet id.
    pub(crate) fn number_of(&self, id: PacketId) -> Option<usize> {
        self.outgoing.iter().find(|out| out.id == id).and_then(|out| match out.wish {
            Wish::Publish { number, .. } => Some(number),
            _ => None,
        })
    }

    fn forget_outgoing(&mut self, id: PacketId) {
        self.outgoing.retain(|out| out.id != id);
    }
}

/// The payload that carries a message's number.
pub fn payload_of(number: usize) -> Bytes {
    format!("m{number}").into_bytes().into()
}

/// The number in a payload.
pub fn number_in(payload: &[u8]) -> Option<usize> {
    std::str::from_utf8(payload.strip_prefix(b"m")?).ok()?.parse().ok()
}
