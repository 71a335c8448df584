//! The properties of MQTT 5 (§2.2.2): one table of identifiers, one way through a block of them.

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::MessageProperties;

use crate::error::{DecodeError, PacketKind};
use crate::packet::UserProperties;
use crate::wire::{Reader, put_binary, put_string, put_varint, put_with_length};

/// More user properties in one block are refused. Lower turns away honest senders; each costs up to a hundred bytes of
/// memory for five on the wire, and a pass over all of them for every receiver.
pub const USER_PROPERTIES_MAX: usize = 128;

/// The identifiers of Table 2-4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Property {
    PayloadFormat = 1,
    MessageExpiry = 2,
    ContentType = 3,
    ResponseTopic = 8,
    CorrelationData = 9,
    SubscriptionId = 11,
    SessionExpiry = 17,
    AssignedClientId = 18,
    ServerKeepAlive = 19,
    AuthMethod = 21,
    AuthData = 22,
    RequestProblemInfo = 23,
    WillDelay = 24,
    RequestResponseInfo = 25,
    ResponseInfo = 26,
    ServerReference = 28,
    ReasonString = 31,
    ReceiveMax = 33,
    TopicAliasMax = 34,
    TopicAlias = 35,
    QosMax = 36,
    RetainAvailable = 37,
    User = 38,
    PacketMax = 39,
    WildcardAvailable = 40,
    SubscriptionIdsAvailable = 41,
    SharedAvailable = 42,
}

use Property as P;

impl Property {
    const ALL: [Self; 27] = [
        P::PayloadFormat,
        P::MessageExpiry,
        P::ContentType,
        P::ResponseTopic,
        P::CorrelationData,
        P::SubscriptionId,
        P::SessionExpiry,
        P::AssignedClientId,
        P::ServerKeepAlive,
        P::AuthMethod,
        P::AuthData,
        P::RequestProblemInfo,
        P::WillDelay,
        P::RequestResponseInfo,
        P::ResponseInfo,
        P::ServerReference,
        P::ReasonString,
        P::ReceiveMax,
        P::TopicAliasMax,
        P::TopicAlias,
        P::QosMax,
        P::RetainAvailable,
        P::User,
        P::PacketMax,
        P::WildcardAvailable,
        P::SubscriptionIdsAvailable,
        P::SharedAvailable,
    ];

    fn from_id(id: u32) -> Option<Self> {
        Self::ALL
            .binary_search_by_key(&id, |p| u32::from(*p as u8))
            .ok()
            .map(|place| Self::ALL[place])
    }

    /// The name of Table 2-4, for error messages.
    pub fn name(self) -> &'static str {
        match self {
            P::PayloadFormat => "payload format indicator",
            P::MessageExpiry => "message expiry interval",
            P::ContentType => "content type",
            P::ResponseTopic => "response topic",
            P::CorrelationData => "correlation data",
            P::SubscriptionId => "subscription identifier",
            P::SessionExpiry => "session expiry interval",
            P::AssignedClientId => "assigned client identifier",
            P::ServerKeepAlive => "server keep alive",
            P::AuthMethod => "authentication method",
            P::AuthData => "authentication data",
            P::RequestProblemInfo => "request problem information",
            P::WillDelay => "will delay interval",
            P::RequestResponseInfo => "request response information",
            P::ResponseInfo => "response information",
            P::ServerReference => "server reference",
            P::ReasonString => "reason string",
            P::ReceiveMax => "receive maximum",
            P::TopicAliasMax => "topic alias maximum",
            P::TopicAlias => "topic alias",
            P::QosMax => "maximum QoS",
            P::RetainAvailable => "retain available",
            P::User => "user property",
            P::PacketMax => "maximum packet size",
            P::WildcardAvailable => "wildcard subscription available",
            P::SubscriptionIdsAvailable => "subscription identifiers available",
            P::SharedAvailable => "shared subscription available",
        }
    }
}

/// A set of properties, one bit for each identifier.
#[derive(Debug, Clone, Copy)]
pub struct PropertySet(u64);

impl PropertySet {
    /// The set of these.
    pub const fn of(properties: &[Property]) -> Self {
        let mut bits = 0;
        let mut place = 0;
        while place < properties.len() {
            bits |= 1 << properties[place] as u8;
            place += 1;
        }
        Self(bits)
    }

    fn has(self, property: Property) -> bool {
        self.0 & (1 << property as u8) != 0
    }

    /// Adds one; `false` when it was there already.
    fn add(&mut self, property: Property) -> bool {
        let new = !self.has(property);
        self.0 |= 1 << property as u8;
        new
    }
}

/// Goes through one block of properties: length, then identifier and value in turn.
#[derive(Debug)]
pub struct PropertyReader<'a> {
    values: Reader<'a>,
    allowed: PropertySet,
    seen: PropertySet,
    users: usize,
}

impl<'a> PropertyReader<'a> {
    /// Takes the block at the front of `packet` off.
    pub fn new(packet: &mut Reader<'a>, allowed: PropertySet) -> Result<Self, DecodeError> {
        let length = packet.varint("property length")?;
        let values = packet.part(length as usize, "property length")?;
        Ok(Self { values, allowed, seen: PropertySet(0), users: 0 })
    }

    /// The next identifier; its value has to be read before the next call.
    ///
    /// An identifier that is unknown is a Malformed Packet (§2.2.2.2), one that comes twice a Protocol Error (each
    /// property's own section), save user properties, and subscription identifiers of a PUBLISH, which the caller reads
    /// with [`Self::next_repeating`].
    pub fn next(&mut self) -> Result<Option<Property>, DecodeError> {
        self.next_repeating(PropertySet::of(&[]))
    }

    /// Like [`Self::next`], `repeating` being allowed to come more than once.
    pub fn next_repeating(
        &mut self,
        repeating: PropertySet,
    ) -> Result<Option<Property>, DecodeError> {
        if self.values.is_empty() {
            return Ok(None);
        }
        let property = self.identifier()?;
        if !self.allowed.has(property) {
            return Err(self.foreign(property));
        }
        if property != Property::User && !self.seen.add(property) && !repeating.has(property) {
            return Err(self.values.protocol(property.name(), "comes more than once"));
        }
        Ok(Some(property))
    }

    fn identifier(&mut self) -> Result<Property, DecodeError> {
        const FIELD: &str = "property identifier";
        let id = self.values.varint(FIELD)?;
        Property::from_id(id)
            .ok_or_else(|| self.values.malformed(FIELD, "is none of the standard's (§2.2.2.2)"))
    }

    /// A property of some other packet. §2.2.2.2 calls the packet malformed. In a CONNECT, SUBSCRIBE or UNSUBSCRIBE it is
    /// refused as that; elsewhere, when the whole block can be read, as what it is by §1.2, "data that is not allowed by the
    /// protocol", a Protocol Error: so do the brokers that clients know.
    fn foreign(&mut self, p: Property) -> DecodeError {
        const PROBLEM: &str = "is not valid for this packet (§2.2.2.2)";
        if let Err(error) = self.skip(p).and_then(|()| self.skip_rest()) {
            return error;
        }
        match self.values.packet() {
            PacketKind::Connect | PacketKind::Subscribe | PacketKind::Unsubscribe => {
                self.values.malformed(p.name(), PROBLEM)
            }
            _ => self.values.protocol(p.name(), PROBLEM),
        }
    }

    fn skip_rest(&mut self) -> Result<(), DecodeError> {
        while !self.values.is_empty() {
            let p = self.identifier()?;
            self.skip(p)?;
        }
        Ok(())
    }

    /// Reads over a value; the types are those of Table 2-4.
    fn skip(&mut self, p: Property) -> Result<(), DecodeError> {
        let field = p.name();
        match p {
            P::PayloadFormat
            | P::RequestProblemInfo
            | P::RequestResponseInfo
            | P::QosMax
            | P::RetainAvailable
            | P::WildcardAvailable
            | P::SubscriptionIdsAvailable
            | P::SharedAvailable => self.values.u8(field).map(drop),
            P::ServerKeepAlive | P::ReceiveMax | P::TopicAliasMax | P::TopicAlias => {
                self.values.u16(field).map(drop)
            }
            P::MessageExpiry | P::SessionExpiry | P::WillDelay | P::PacketMax => {
                self.values.u32(field).map(drop)
            }
            P::SubscriptionId => self.values.varint(field).map(drop),
            P::CorrelationData | P::AuthData => self.values.skip(field),
            P::User => self.values.skip(field).and_then(|()| self.values.skip(field)),
            P::ContentType
            | P::ResponseTopic
            | P::AssignedClientId
            | P::AuthMethod
            | P::ResponseInfo
            | P::ServerReference
            | P::ReasonString => self.values.skip(field),
        }
    }

    /// A byte that is 0 or 1. "It is a Protocol Error to have a value other than 0 or 1."
    pub fn bool(&mut self, p: Property) -> Result<Option<bool>, DecodeError> {
        match self.values.u8(p.name())? {
            0 => Ok(Some(false)),
            1 => Ok(Some(true)),
            _ => Err(self.values.protocol(p.name(), "is neither 0 nor 1")),
        }
    }

    /// Two bytes.
    pub fn u16(&mut self, p: Property) -> Result<Option<u16>, DecodeError> {
        self.values.u16(p.name()).map(Some)
    }

    /// Two bytes, not 0. "It is a Protocol Error … to have the value 0."
    pub fn u16_not_0(&mut self, p: Property) -> Result<Option<u16>, DecodeError> {
        let value = self.values.u16(p.name())?;
        if value == 0 { Err(self.zero(p)) } else { Ok(Some(value)) }
    }

    /// Four bytes.
    pub fn u32(&mut self, p: Property) -> Result<Option<u32>, DecodeError> {
        self.values.u32(p.name()).map(Some)
    }

    /// Four bytes, not 0.
    pub fn u32_not_0(&mut self, p: Property) -> Result<Option<u32>, DecodeError> {
        let value = self.values.u32(p.name())?;
        if value == 0 { Err(self.zero(p)) } else { Ok(Some(value)) }
    }

    /// A variable byte integer, not 0.
    pub fn varint_not_0(&mut self, p: Property) -> Result<u32, DecodeError> {
        let value = self.values.varint(p.name())?;
        if value == 0 { Err(self.zero(p)) } else { Ok(value) }
    }

    /// In a SUBSCRIBE as malformed as other options without a meaning.
    fn zero(&self, p: Property) -> DecodeError {
        const PROBLEM: &str = "is 0";
        match self.values.packet() {
            PacketKind::Subscribe => self.values.malformed(p.name(), PROBLEM),
            _ => self.values.protocol(p.name(), PROBLEM),
        }
    }

    /// Free text.
    pub fn string(&mut self, p: Property) -> Result<Option<ByteString>, DecodeError> {
        self.values.string(p.name()).map(Some)
    }

    /// A name, without control characters.
    pub fn name(&mut self, p: Property) -> Result<Option<ByteString>, DecodeError> {
        self.values.name(p.name()).map(Some)
    }

    /// Binary data.
    pub fn binary(&mut self, p: Property) -> Result<Option<Bytes>, DecodeError> {
        self.values.binary(p.name()).map(Some)
    }

    /// A user property, onto the end of `user`.
    pub fn user(&mut self, user: &mut UserProperties) -> Result<(), DecodeError> {
        self.users += 1;
        if self.users > USER_PROPERTIES_MAX {
            let packet = self.values.packet();
            return Err(DecodeError::TooMany {
                packet,
                what: "user properties",
                limit: USER_PROPERTIES_MAX,
            });
        }
        let key = self.values.string("key of a user property")?;
        user.push((key, self.values.string("value of a user property")?));
        Ok(())
    }

    /// One of the properties that travel with a message (§3.3.2.3), into `message`.
    pub fn message(
        &mut self,
        p: Property,
        message: &mut MessageProperties,
    ) -> Result<(), DecodeError> {
        match p {
            P::PayloadFormat => message.payload_is_utf8 = self.bool(p)?,
            P::ContentType => message.content_type = self.string(p)?,
            P::ResponseTopic => {
                message.response_topic = Some(self.values.response_topic(p.name())?)
            }
            P::CorrelationData => message.correlation_data = self.binary(p)?,
            P::User => self.user(&mut message.user)?,
            _ => {
                return Err(self
                    .values
                    .malformed(p.name(), "is not valid for this packet (§2.2.2.2)"));
            }
        }
        Ok(())
    }
}

/// Writes a block of properties, length first.
pub fn put_properties(out: &mut Vec<u8>, body: impl FnOnce(&mut PropertyWriter<'_>)) {
    put_with_length(out, 0, |out| body(&mut PropertyWriter { out }));
}

/// Writes one property after the other; what is `None` is not written.
#[derive(Debug)]
pub struct PropertyWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl PropertyWriter<'_> {
    fn id(&mut self, p: Property) {
        self.out.push(p as u8);
    }

    /// One byte.
    pub fn u8(&mut self, p: Property, value: Option<u8>) {
        if let Some(value) = value {
            self.id(p);
            self.out.push(value);
        }
    }

    /// 0 or 1.
    pub fn bool(&mut self, p: Property, value: Option<bool>) {
        self.u8(p, value.map(u8::from));
    }

    /// Two bytes.
    pub fn u16(&mut self, p: Property, value: Option<u16>) {
        if let Some(value) = value {
            self.id(p);
            self.out.extend_from_slice(&value.to_be_bytes());
        }
    }

    /// Four bytes.
    pub fn u32(&mut self, p: Property, value: Option<u32>) {
        if let Some(value) = value {
            self.id(p);
            self.out.extend_from_slice(&value.to_be_bytes());
        }
    }

    /// A variable byte integer.
    pub fn varint(&mut self, p: Property, value: Option<u32>) {
        if let Some(value) = value {
            self.id(p);
            put_varint(self.out, value);
        }
    }

    /// Text.
    pub fn string(&mut self, p: Property, value: Option<&ByteString>) {
        if let Some(value) = value {
            self.id(p);
            put_string(self.out, value);
        }
    }

    /// Binary data.
    pub fn binary(&mut self, p: Property, value: Option<&Bytes>) {
        if let Some(value) = value {
            self.id(p);
            put_binary(self.out, value);
        }
    }

    /// User properties, in their order.
    pub fn user(&mut self, user: &[(ByteString, ByteString)]) {
        for (key, value) in user {
            self.id(P::User);
            put_string(self.out, key);
            put_string(self.out, value);
        }
    }

    /// The properties that travel with a message (§3.3.2.3).
    pub fn message(&mut self, message: &MessageProperties) {
        self.bool(P::PayloadFormat, message.payload_is_utf8);
        self.string(P::ContentType, message.content_type.as_ref());
        self.string(P::ResponseTopic, message.response_topic.as_ref());
        self.binary(P::CorrelationData, message.correlation_data.as_ref());
        self.user(&message.user);
    }
}
