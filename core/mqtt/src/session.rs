//! The protocol of one client, MQTT 3.1.1 and 5 alike: packets and deliveries in, effects out.
//!
//! ```text
//!   connection ──Packet──▶ Session ──Effect::Publish──▶ shard routes, stores
//!                             ▲                             │ handle_accepted (durable)
//!   connection ◀──Send/Deliver┘ ◀── Outbound ◀── push ◀─────┘
//! ```
//! It never waits and never acknowledges by itself: `Effect::SendDurable` leaves only after everything the session
//! asked to have written before is on disk; the shard sees to that.

use std::collections::BTreeMap;

use bytestring::ByteString;
use outpost_model::{Now, QoS};

use crate::packet::{
    Ack, Connack, Connect, Disconnect, Packet, PacketId, Publish, ReasonCode, Suback, Subscribe,
    Unsubscribe, Version,
};
use crate::window::{Delivery, Outbound, Transmit};
use crate::wire::VARINT_MAX;

/// What was sent with one QoS is acknowledged with the packets of the other, or out of their order (§4.3).
const WRONG_ANSWER: Effect =
    Effect::Fail(ReasonCode::ProtocolError, "an acknowledgement that does not fit what was sent");

/// What a node allows each client. See `docs/reference/limits.md`.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// QoS 1 and 2 publishes a client may have unacknowledged. Low throttles publishers, high costs memory a client.
    pub receive_max: u16,
    /// Deliveries in flight to a client, whatever it allows itself.
    pub in_flight_max: u16,
    /// Largest packet taken, bytes. Told to the client, so that it does not send a larger one again and again: that ends
    /// the connection with 0x95. 268,435,455 is no limit, and nothing is told then.
    pub packet_bytes_max: u32,
    /// Topic aliases a client may use. Each costs its topic's length in memory.
    pub topic_alias_max: u16,
    /// Topic aliases used towards a client, at most as many as it keeps. Low sends names in full, high costs a name each.
    pub topic_alias_out_max: u16,
    /// Longest keep alive, seconds; a client that asks for more (or for none) is told this instead. 0 = no limit.
    pub keep_alive_s_max: u16,
    /// Longest session expiry, seconds. A session forgotten by its owner costs memory until then.
    pub session_expiry_s_max: u32,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            receive_max: 256,
            in_flight_max: 256,
            packet_bytes_max: 1024 * 1024,
            topic_alias_max: 32,
            topic_alias_out_max: 16,
            keep_alive_s_max: 0,
            session_expiry_s_max: 7 * 24 * 3600,
        }
    }
}

/// What the session wants done. Order matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send at once.
    Send(Packet),
    /// Send once everything this session had written so far is durable.
    SendDurable(Packet),
    /// Send a message to the client.
    Deliver {
        /// What.
        delivery: Delivery,
        /// Present for QoS 1 and 2.
        id: Option<PacketId>,
        /// Sent before, perhaps.
        dup: bool,
    },
    /// Route a message the client published; answer with [`Session::handle_accepted`] when it has a packet id. A QoS 2
    /// packet id is to be written down as taken in the same batch as the message.
    Publish(Box<Publish>),
    /// Subscribe; answer with [`Session::handle_subscribed`].
    Subscribe(Subscribe),
    /// Unsubscribe; answer with [`Session::handle_unsubscribed`].
    Unsubscribe(Unsubscribe),
    /// Write down that the client owns this QoS 2 delivery.
    Released(Delivery),
    /// The delivery of this place is done; it can be taken from disk.
    Done {
        /// What was owed.
        delivery: Delivery,
        /// How it ended.
        end: End,
    },
    /// Write down that this QoS 2 packet id of the client is free again.
    Forgotten(PacketId),
    /// More deliveries can be loaded from disk: from this place, at most so many.
    Load(u64, usize),
    /// The client says good-bye; with `will` its will is to be published.
    Goodbye {
        /// Publish the will.
        will: bool,
        /// The session expiry it now wants.
        session_expiry_s: Option<u32>,
    },
    /// The client broke the protocol or a limit: tell it (5 only) and close.
    Fail(ReasonCode, &'static str),
}

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client acknowledged it.
    Delivered,
    /// Its message expiry came first.
    Expired,
    /// The client refused it with a reason code.
    Refused,
    /// It is larger than the client takes (MQTT-3.1.2-25).
    TooLarge,
}

/// State that lives only as long as the connection.
#[derive(Debug, Clone)]
struct Link {
    version: Version,
    receive_max: u16,
    /// Boxed: most clients use none.
    #[allow(clippy::box_collection, reason = "one word instead of three in every session")]
    aliases: Option<Box<Vec<ByteString>>>,
    /// Publishes of this connection that are not settled: an earlier one's do not count (MQTT 5, §4.9).
    unacked: u16,
}

impl Link {
    fn settle_one(&mut self) {
        self.unacked = self.unacked.saturating_sub(1);
    }
}

/// QoS 2 ids the client uses; `true` once PUBREC is due or sent. One word while there are none.
#[derive(Debug, Clone, Default)]
#[allow(
    clippy::box_collection,
    reason = "8 bytes in place of 24 in each session, and most have none"
)]
struct Received(Option<Box<BTreeMap<PacketId, bool>>>);

impl Received {
    fn ids(&self) -> impl Iterator<Item = PacketId> + '_ {
        self.0.iter().flat_map(|ids| ids.keys().copied())
    }

    fn get(&self, id: PacketId) -> Option<bool> {
        self.0.as_ref()?.get(&id).copied()
    }

    fn insert(&mut self, id: PacketId, answered: bool) {
        self.0.get_or_insert_default().insert(id, answered);
    }

    fn remove(&mut self, id: PacketId) -> bool {
        self.0.as_mut().is_some_and(|ids| ids.remove(&id).is_some())
    }

    /// Keeps nothing for the next id.
    fn give_back(&mut self) {
        self.0.take_if(|ids| ids.is_empty());
    }
}

/// One client's protocol state. Lives as long as its MQTT session.
#[derive(Debug, Clone, Default)]
pub struct Session {
    link: Option<Link>,
    received: Received,
    /// What is owed to the client.
    pub outbound: Outbound,
}

impl Session {
    /// A session as the disk has it: QoS 2 ids in use, and deliveries still to be loaded.
    pub fn from_disk(received: impl IntoIterator<Item = PacketId>, outbound: Outbound) -> Self {
        let mut ids = Received::default();
        received.into_iter().for_each(|id| ids.insert(id, true));
        Self { link: None, received: ids, outbound }
    }

    /// The QoS 2 ids of its client that are half settled.
    pub fn received(&self) -> impl Iterator<Item = PacketId> + '_ {
        self.received.ids()
    }

    /// Whether a client is connected.
    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Whether its client may publish one more message with an acknowledgement.
    pub fn takes_publish(&self, limits: &SessionLimits) -> bool {
        self.link
            .as_ref()
            .is_some_and(|link| link.unacked < limits.receive_max || link.version != Version::V5)
    }

    /// Whether a QoS 1 delivery of this place would go to its client at once.
    pub fn takes_at_once(&self, place: u64) -> bool {
        let takes = |link: &Link| self.outbound.takes_at_once(place, link.receive_max);
        self.link.as_ref().is_some_and(takes)
    }

    /// A client connected, and what CONNACK says is durable. `connack` carries what only the node knows: session
    /// present, assigned client id, expiry. Nothing may be sent before it (MQTT-3.2.0-1).
    pub fn handle_connect(
        &mut self,
        connect: &Connect,
        mut connack: Connack,
        limits: &SessionLimits,
        fx: &mut Vec<Effect>,
    ) {
        let five = connect.version == Version::V5;
        self.link = Some(Link {
            version: connect.version,
            receive_max: connect.receive_max.unwrap_or(u16::MAX).min(limits.in_flight_max),
            aliases: None,
            unacked: 0,
        });
        if five {
            connack.receive_max = Some(limits.receive_max);
            connack.packet_max =
                (limits.packet_bytes_max < VARINT_MAX).then_some(limits.packet_bytes_max);
            connack.topic_alias_max =
                (limits.topic_alias_max > 0).then_some(limits.topic_alias_max);
            connack.server_keep_alive_s = keep_alive_override(connect.keep_alive_s, limits);
        }
        // MQTT 3.1 has no session present flag: the byte is reserved.
        connack.session_present &= connect.version != Version::V3;
        fx.push(Effect::Send(Packet::Connack(Box::new(connack))));
        self.outbound.restart();
    }

    /// The connection is gone; the session stays.
    pub fn handle_connection_lost(&mut self) {
        self.link = None;
        self.outbound.give_back();
        self.received.give_back();
    }

    /// A packet from the client, after CONNECT.
    pub fn handle_packet(
        &mut self,
        packet: Packet,
        limits: &SessionLimits,
        now: Now,
        fx: &mut Vec<Effect>,
    ) {
        match packet {
            Packet::Publish(publish) => self.handle_publish(publish, limits, fx),
            Packet::Puback(ack) => self.handle_puback(&ack, fx),
            Packet::Pubrec(ack) => self.handle_pubrec(&ack, fx),
            Packet::Pubrel(ack) => self.handle_pubrel(&ack, fx),
            Packet::Pubcomp(ack) => self.handle_pubcomp(&ack, fx),
            Packet::Subscribe(subscribe) => fx.push(Effect::Subscribe(subscribe)),
            Packet::Unsubscribe(unsubscribe) => fx.push(Effect::Unsubscribe(unsubscribe)),
            Packet::Pingreq => {
                // A client that pings has been idle: what is kept for the next message goes.
                self.outbound.give_back();
                self.received.give_back();
                fx.push(Effect::Send(Packet::Pingresp));
            }
            Packet::Disconnect(disconnect) => fx.push(Effect::Goodbye {
                will: disconnect.reason != ReasonCode::Success,
                session_expiry_s: disconnect.session_expiry_s,
            }),
            Packet::Connect(_) => {
                fx.push(Effect::Fail(ReasonCode::ProtocolError, "a second CONNECT (MQTT-3.1.0-2)"))
            }
            Packet::Auth(_) => {
                fx.push(Effect::Fail(
                    ReasonCode::ProtocolError,
                    "AUTH without an authentication method (MQTT-4.12.0-1)",
                ));
            }
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                fx.push(Effect::Fail(ReasonCode::ProtocolError, "a packet only a server may send"));
            }
        }
        self.transmit(now, fx);
    }

    /// A delivery for this client; `durable` when its row is written and it may be left to the disk, `waits` when it is
    /// not to be sent before [`Session::handle_rows_synced`].
    pub fn handle_delivery(
        &mut self,
        delivery: Delivery,
        durable: bool,
        waits: bool,
        now: Now,
        fx: &mut Vec<Effect>,
    ) {
        if delivery.qos == QoS::AtMostOnce {
            if self.link.is_some() {
                fx.push(Effect::Deliver { delivery, id: None, dup: false });
            }
            return;
        }
        self.outbound.push(delivery, durable, waits);
        self.transmit(now, fx);
    }

    /// A message this client published with QoS 1 or 2 has been accepted and is durable, or was refused.
    /// `same_link` says that the connection it came in on is still the present one.
    pub fn handle_accepted(
        &mut self,
        id: PacketId,
        qos: QoS,
        reason: ReasonCode,
        same_link: bool,
        fx: &mut Vec<Effect>,
    ) {
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => {
                if let (Some(link), true) = (self.link.as_mut(), same_link) {
                    link.settle_one();
                    fx.push(Effect::Send(Packet::Puback(Ack::new(id, reason))));
                }
            }
            QoS::ExactlyOnce => {
                // On a later connection too: the client has sent the id again by then and waits.
                if reason.is_error() {
                    self.received.remove(id);
                    self.link.iter_mut().for_each(Link::settle_one);
                    fx.push(Effect::Forgotten(id));
                } else {
                    self.received.insert(id, true);
                }
                // 3.1.1 has no word for a refusal: a PUBREC would say yes.
                let says = |link: &Link| link.version == Version::V5 || !reason.is_error();
                if self.link.as_ref().is_some_and(says) {
                    fx.push(Effect::Send(Packet::Pubrec(Ack::new(id, reason))));
                }
            }
        }
    }

    /// What all deliveries with places below `upto` waited for is durable.
    pub fn handle_rows_synced(&mut self, upto: u64, now: Now, fx: &mut Vec<Effect>) {
        self.outbound.handle_synced(upto);
        self.transmit(now, fx);
    }

    /// The answer to SUBSCRIBE.
    pub fn handle_subscribed(
        &mut self,
        packet_id: PacketId,
        reasons: Vec<ReasonCode>,
        fx: &mut Vec<Effect>,
    ) {
        let suback = Suback { packet_id, reasons, reason_string: None, user: Vec::new() };
        fx.push(Effect::SendDurable(Packet::Suback(suback)));
    }

    /// The answer to UNSUBSCRIBE.
    pub fn handle_unsubscribed(
        &mut self,
        packet_id: PacketId,
        reasons: Vec<ReasonCode>,
        fx: &mut Vec<Effect>,
    ) {
        let unsuback = Suback { packet_id, reasons, reason_string: None, user: Vec::new() };
        fx.push(Effect::SendDurable(Packet::Unsuback(unsuback)));
    }

    /// Sends what the client has room for, and asks for more from disk when memory has room.
    pub fn transmit(&mut self, now: Now, fx: &mut Vec<Effect>) {
        let Some(link) = self.link.as_ref() else { return };
        while let Some(next) = self.outbound.poll_transmit(link.receive_max, now.wall_ms) {
            fx.push(match next {
                Transmit::Publish { delivery, id, dup } => {
                    Effect::Deliver { delivery, id: Some(id), dup }
                }
                Transmit::Pubrel(id) => {
                    Effect::Send(Packet::Pubrel(Ack::new(id, ReasonCode::Success)))
                }
                Transmit::Expired(delivery) => Effect::Done { delivery, end: End::Expired },
            });
        }
        if let Some((from, count)) = self.outbound.wants_load() {
            fx.push(Effect::Load(from, count));
        }
    }

    /// A delivery could not be written to the client: it is done.
    pub fn skip(&mut self, id: PacketId, qos: QoS, end: End, fx: &mut Vec<Effect>) {
        if let Some(delivery) = self.outbound.handle_done(id, qos) {
            fx.push(Effect::Done { delivery, end });
        }
    }

    fn handle_publish(
        &mut self,
        mut publish: Box<Publish>,
        limits: &SessionLimits,
        fx: &mut Vec<Effect>,
    ) {
        let Some(link) = self.link.as_mut() else { return };
        if let Err((reason, text)) = resolve_alias(link, &mut publish, limits) {
            fx.push(Effect::Fail(reason, text));
            return;
        }
        if publish.qos == QoS::ExactlyOnce
            && let Some(id) = publish.packet_id
            && let Some(answered) = self.received.get(id)
        {
            if answered {
                fx.push(Effect::SendDurable(Packet::Pubrec(Ack::new(id, ReasonCode::Success))));
            } // else its PUBREC is on its way
            return;
        }
        if publish.qos > QoS::AtMostOnce && !self.takes_publish(limits) {
            fx.push(Effect::Fail(
                ReasonCode::ReceiveMaximumExceeded,
                "more publishes unacknowledged than the CONNACK allowed",
            ));
            return;
        }
        if publish.qos > QoS::AtMostOnce
            && let Some(link) = &mut self.link
        {
            link.unacked = link.unacked.saturating_add(1);
        }
        if publish.qos == QoS::ExactlyOnce
            && let Some(id) = publish.packet_id
        {
            self.received.insert(id, false);
        }
        fx.push(Effect::Publish(publish));
    }

    fn handle_puback(&mut self, ack: &Ack, fx: &mut Vec<Effect>) {
        if self.outbound.contradicts(ack.packet_id, QoS::AtLeastOnce) {
            return fx.push(WRONG_ANSWER);
        }
        if let Some(delivery) = self.outbound.handle_done(ack.packet_id, QoS::AtLeastOnce) {
            let end = if ack.reason.is_error() { End::Refused } else { End::Delivered };
            fx.push(Effect::Done { delivery, end });
        }
    }

    fn handle_pubrec(&mut self, ack: &Ack, fx: &mut Vec<Effect>) {
        if self.outbound.contradicts(ack.packet_id, QoS::ExactlyOnce) {
            return fx.push(WRONG_ANSWER);
        }
        if ack.reason.is_error() {
            if let Some(delivery) = self.outbound.handle_done(ack.packet_id, QoS::ExactlyOnce) {
                fx.push(Effect::Done { delivery, end: End::Refused });
            }
            return;
        }
        let pubrel = Packet::Pubrel(Ack::new(ack.packet_id, ReasonCode::Success));
        if let Some(delivery) = self.outbound.handle_pubrec(ack.packet_id) {
            fx.push(Effect::Released(delivery));
            fx.push(Effect::SendDurable(pubrel));
        } else {
            fx.push(Effect::Send(pubrel));
        }
    }

    fn handle_pubrel(&mut self, ack: &Ack, fx: &mut Vec<Effect>) {
        let id = ack.packet_id;
        if self.received.get(id) == Some(false) {
            fx.push(Effect::Fail(
                ReasonCode::ProtocolError,
                "PUBREL before PUBREC was sent (MQTT-4.3.3-4)",
            ));
            return;
        }
        if self.received.remove(id) {
            self.link.iter_mut().for_each(Link::settle_one);
            fx.push(Effect::Forgotten(id));
        }
        fx.push(Effect::SendDurable(Packet::Pubcomp(Ack::new(id, ReasonCode::Success))));
    }

    fn handle_pubcomp(&mut self, ack: &Ack, fx: &mut Vec<Effect>) {
        let id = ack.packet_id;
        if self.outbound.contradicts(id, QoS::ExactlyOnce) || self.outbound.awaits_pubrec(id) {
            return fx.push(WRONG_ANSWER);
        }
        if let Some(delivery) = self.outbound.handle_pubcomp(ack.packet_id) {
            fx.push(Effect::Done { delivery, end: End::Delivered });
        }
    }
}

/// What the server tells a client whose keep alive is over the limit (MQTT 5, §3.2.2.3.14).
pub fn keep_alive_override(asked_s: u16, limits: &SessionLimits) -> Option<u16> {
    let max = limits.keep_alive_s_max;
    (max > 0 && (asked_s == 0 || asked_s > max)).then_some(max)
}

/// The DISCONNECT that tells a client of version 5 why it is cut off. A text for people goes along only where the code
/// says nothing by itself: others are in the log, and clients compare these few bytes with what they expect.
pub fn disconnect(reason: ReasonCode, text: &'static str) -> Packet {
    let vague = matches!(
        reason,
        ReasonCode::UnspecifiedError
            | ReasonCode::ImplementationSpecificError
            | ReasonCode::AdministrativeAction
    );
    Packet::Disconnect(Box::new(Disconnect {
        reason,
        reason_string: (vague && !text.is_empty()).then(|| ByteString::from_static(text)),
        ..Disconnect::default()
    }))
}

fn resolve_alias(
    link: &mut Link,
    publish: &mut Publish,
    limits: &SessionLimits,
) -> Result<(), (ReasonCode, &'static str)> {
    let Some(alias) = publish.topic_alias.take() else {
        return Ok(());
    };
    if alias == 0 || alias > limits.topic_alias_max {
        return Err((
            ReasonCode::TopicAliasInvalid, // says it all: above the maximum of the CONNACK (MQTT-3.3.2-9)
            "",
        ));
    }
    let index = usize::from(alias) - 1;
    if publish.topic.is_empty() {
        match link.aliases.as_deref().and_then(|aliases| aliases.get(index)) {
            Some(topic) if !topic.is_empty() => publish.topic = topic.clone(),
            _ => {
                return Err((
                    ReasonCode::ProtocolError,
                    "a topic alias that was never set (MQTT-3.3.4)",
                ));
            }
        }
    } else {
        let aliases = link.aliases.get_or_insert_default();
        if aliases.len() <= index {
            aliases.resize(index + 1, ByteString::new());
        }
        // Copied: the topic must not keep the packet it came in alive.
        aliases[index] = ByteString::from(publish.topic.to_string());
    }
    Ok(())
}
