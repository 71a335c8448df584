//! The packets of MQTT 3.1.1 and 5 in one set of types; what 3.1.1 does not have is simply absent there.

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::{MessageProperties, QoS};

pub(crate) mod ack;
pub(crate) mod auth;
pub(crate) mod connack;
pub(crate) mod connect;
pub(crate) mod disconnect;
pub(crate) mod publish;
mod reason;
pub(crate) mod suback;
pub(crate) mod subscribe;

pub use publish::{PublishHead, SUBSCRIPTION_IDS_MAX};
pub use reason::ReasonCode;
pub use subscribe::FILTERS_MAX;

use crate::error::PacketKind;

/// Which protocol a connection speaks (MQTT 5, §3.1.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Version {
    /// MQTT 3.1 ("MQIsdp"), treated as 3.1.1 with its own name.
    V3 = 3,
    /// MQTT 3.1.1.
    V4 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

/// User properties, in the order sent.
pub type UserProperties = Vec<(ByteString, ByteString)>;

/// A packet number between 1 and 65,535 (MQTT 5, §2.2.1).
pub type PacketId = std::num::NonZeroU16;

/// Any packet, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// Client requests a connection.
    Connect(Box<Connect>),
    /// Server answers it.
    Connack(Box<Connack>),
    /// A message.
    Publish(Box<Publish>),
    /// QoS 1 is acknowledged.
    Puback(Ack),
    /// QoS 2, first answer.
    Pubrec(Ack),
    /// QoS 2, release.
    Pubrel(Ack),
    /// QoS 2, done.
    Pubcomp(Ack),
    /// Client asks for topics.
    Subscribe(Subscribe),
    /// Server answers it.
    Suback(Suback),
    /// Client no longer wants topics.
    Unsubscribe(Unsubscribe),
    /// Server answers it. In 3.1.1 it carries no codes.
    Unsuback(Suback),
    /// Client is alive.
    Pingreq,
    /// So is the server.
    Pingresp,
    /// Either side ends the connection (3.1.1: client only).
    Disconnect(Box<Disconnect>),
    /// Extended authentication (5 only).
    Auth(Box<Auth>),
}

impl Packet {
    /// Which of the fifteen it is.
    pub fn kind(&self) -> PacketKind {
        match self {
            Self::Connect(_) => PacketKind::Connect,
            Self::Connack(_) => PacketKind::Connack,
            Self::Publish(_) => PacketKind::Publish,
            Self::Puback(_) => PacketKind::Puback,
            Self::Pubrec(_) => PacketKind::Pubrec,
            Self::Pubrel(_) => PacketKind::Pubrel,
            Self::Pubcomp(_) => PacketKind::Pubcomp,
            Self::Subscribe(_) => PacketKind::Subscribe,
            Self::Suback(_) => PacketKind::Suback,
            Self::Unsubscribe(_) => PacketKind::Unsubscribe,
            Self::Unsuback(_) => PacketKind::Unsuback,
            Self::Pingreq => PacketKind::Pingreq,
            Self::Pingresp => PacketKind::Pingresp,
            Self::Disconnect(_) => PacketKind::Disconnect,
            Self::Auth(_) => PacketKind::Auth,
        }
    }
}

/// CONNECT (MQTT 5, §3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Protocol version.
    pub version: Version,
    /// The client is a bridge of another broker and says so as mosquitto does: the highest bit of the protocol level is
    /// set (3.1 and 3.1.1). It does not want back what it sent, and keeps the retain flag as published.
    pub bridge: bool,
    /// Client id; empty asks the server to choose one.
    pub client_id: ByteString,
    /// Clean start (5), clean session (3.1.1).
    pub clean_start: bool,
    /// Keep alive in seconds; 0 = never times out.
    pub keep_alive_s: u16,
    /// What to publish when the connection is lost.
    pub will: Option<Box<Will>>,
    /// User name.
    pub username: Option<ByteString>,
    /// Password.
    pub password: Option<Bytes>,
    /// Session expiry interval in seconds; `None` = absent (0). `u32::MAX` = never expires.
    pub session_expiry_s: Option<u32>,
    /// Receive maximum of the client; absent = 65,535. Never 0.
    pub receive_max: Option<u16>,
    /// Largest packet the client takes. Never 0.
    pub packet_max: Option<u32>,
    /// Highest topic alias the client takes.
    pub topic_alias_max: Option<u16>,
    /// Client wants response information.
    pub request_response_info: Option<bool>,
    /// Client wants reason strings and user properties on failures; absent = true.
    pub request_problem_info: Option<bool>,
    /// Name of the extended authentication method.
    pub auth_method: Option<ByteString>,
    /// Its first data.
    pub auth_data: Option<Bytes>,
    /// User properties.
    pub user: UserProperties,
}

impl Connect {
    /// A CONNECT that asks for nothing special.
    pub fn new(version: Version, client_id: &str) -> Self {
        Self { client_id: client_id.to_owned().into(), ..connect::empty(version) }
    }
}

/// The will of a CONNECT (MQTT 5, §3.1.3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic name, checked.
    pub topic: ByteString,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: QoS,
    /// Whether it is to be retained.
    pub retain: bool,
    /// Seconds between the loss of the connection and the will; absent = 0.
    pub delay_s: Option<u32>,
    /// Message expiry interval in seconds.
    pub expiry_s: Option<u32>,
    /// The properties that travel with the message.
    pub properties: MessageProperties,
}

/// CONNACK (MQTT 5, §3.2). All options absent for 3.1.1.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Connack {
    /// The server has state of an earlier session.
    pub session_present: bool,
    /// 0 = accepted; for 3.1.1 the codec translates to its six return codes.
    pub reason: ReasonCode,
    /// Session expiry the server uses, when it differs.
    pub session_expiry_s: Option<u32>,
    /// How many QoS > 0 publishes the server takes at once; absent = 65,535.
    pub receive_max: Option<u16>,
    /// Highest QoS the server takes; absent = 2.
    pub qos_max: Option<QoS>,
    /// Whether retained messages are supported; absent = true.
    pub retain_available: Option<bool>,
    /// Largest packet the server takes.
    pub packet_max: Option<u32>,
    /// The client id the server chose.
    pub assigned_client_id: Option<ByteString>,
    /// Highest topic alias the server takes; absent = 0.
    pub topic_alias_max: Option<u16>,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// Whether wildcards are supported; absent = true.
    pub wildcard_available: Option<bool>,
    /// Whether subscription identifiers are supported; absent = true.
    pub subscription_ids_available: Option<bool>,
    /// Whether shared subscriptions are supported; absent = true.
    pub shared_available: Option<bool>,
    /// Keep alive the server wants instead.
    pub server_keep_alive_s: Option<u16>,
    /// Response information.
    pub response_info: Option<ByteString>,
    /// Another server to use.
    pub server_reference: Option<ByteString>,
    /// Extended authentication method.
    pub auth_method: Option<ByteString>,
    /// Extended authentication data.
    pub auth_data: Option<Bytes>,
    /// User properties.
    pub user: UserProperties,
}

/// PUBLISH (MQTT 5, §3.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Sent before, perhaps.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Topic name; empty only together with `topic_alias` (5).
    pub topic: ByteString,
    /// Present exactly when QoS > 0.
    pub packet_id: Option<PacketId>,
    /// Payload.
    pub payload: Bytes,
    /// Stands for the topic (5). Never 0.
    pub topic_alias: Option<u16>,
    /// Message expiry interval in seconds.
    pub expiry_s: Option<u32>,
    /// Numbers of the subscriptions that matched; only from server to client. Never 0.
    pub subscription_ids: Vec<u32>,
    /// Present when any of these properties was set.
    pub properties: Option<Box<MessageProperties>>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP (MQTT 5, §3.4–3.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Which publish.
    pub packet_id: PacketId,
    /// How it went; 3.1.1 knows only success.
    pub reason: ReasonCode,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user: UserProperties,
}

impl Ack {
    /// A plain acknowledgement with a reason.
    pub fn new(packet_id: PacketId, reason: ReasonCode) -> Self {
        Self { packet_id, reason, reason_string: None, user: Vec::new() }
    }
}

/// SUBSCRIBE (MQTT 5, §3.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// Ties the answer to it.
    pub packet_id: PacketId,
    /// Number to send along with matching messages, 1 to 268,435,455 (5).
    pub subscription_id: Option<u32>,
    /// At least one.
    pub filters: Vec<(ByteString, SubscribeOptions)>,
    /// User properties.
    pub user: UserProperties,
}

/// What a client asks for with a filter (MQTT 5, §3.8.3.1). 3.1.1 has only `qos`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct SubscribeOptions {
    /// Highest QoS to deliver with.
    pub qos: QoS,
    /// Not the messages this client publishes itself.
    pub no_local: bool,
    /// Keep the retain flag as it was published.
    pub retain_as_published: bool,
    /// When to send retained messages.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent (MQTT 5, §3.8.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[repr(u8)]
pub enum RetainHandling {
    /// At each SUBSCRIBE.
    #[default]
    Send = 0,
    /// Only when the subscription is new.
    SendIfNew = 1,
    /// Never.
    Never = 2,
}

/// SUBACK and UNSUBACK (MQTT 5, §3.9, §3.11): one code for each filter, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suback {
    /// Which request.
    pub packet_id: PacketId,
    /// Granted QoS 0–2 or a failure, each for one filter. For 3.1.1 the codec writes every failure as 0x80.
    pub reasons: Vec<ReasonCode>,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user: UserProperties,
}

/// UNSUBSCRIBE (MQTT 5, §3.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// Ties the answer to it.
    pub packet_id: PacketId,
    /// At least one.
    pub filters: Vec<ByteString>,
    /// User properties.
    pub user: UserProperties,
}

/// DISCONNECT (MQTT 5, §3.14).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disconnect {
    /// 0 = normal.
    pub reason: ReasonCode,
    /// New session expiry, from the client only.
    pub session_expiry_s: Option<u32>,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// Another server to use.
    pub server_reference: Option<ByteString>,
    /// User properties.
    pub user: UserProperties,
}

/// AUTH (MQTT 5, §3.15).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Auth {
    /// 0x00, 0x18 or 0x19.
    pub reason: ReasonCode,
    /// Method.
    pub method: Option<ByteString>,
    /// Data.
    pub data: Option<Bytes>,
    /// For people.
    pub reason_string: Option<ByteString>,
    /// User properties.
    pub user: UserProperties,
}
