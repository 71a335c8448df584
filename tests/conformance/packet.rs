//! MQTT packets as bytes, written and read without the node's own codec.

/// Packet types as the first byte carries them, flags zero.
pub const CONNACK: u8 = 0x20;
pub const PUBLISH: u8 = 0x30;
pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x60;
pub const PUBCOMP: u8 = 0x70;
pub const SUBACK: u8 = 0x90;
pub const UNSUBACK: u8 = 0xb0;
pub const PINGRESP: u8 = 0xd0;
pub const DISCONNECT: u8 = 0xe0;
pub const AUTH: u8 = 0xf0;

pub const PINGREQ: [u8; 2] = [0xc0, 0];

/// Properties by the identifiers of 2.2.2.2.
pub mod prop {
    pub const PAYLOAD_FORMAT: u8 = 0x01;
    pub const MESSAGE_EXPIRY: u8 = 0x02;
    pub const CONTENT_TYPE: u8 = 0x03;
    pub const RESPONSE_TOPIC: u8 = 0x08;
    pub const CORRELATION_DATA: u8 = 0x09;
    pub const SUBSCRIPTION_ID: u8 = 0x0b;
    pub const SESSION_EXPIRY: u8 = 0x11;
    pub const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub const AUTH_METHOD: u8 = 0x15;
    pub const REQUEST_PROBLEM: u8 = 0x17;
    pub const WILL_DELAY: u8 = 0x18;
    pub const REQUEST_RESPONSE: u8 = 0x19;
    pub const RESPONSE_INFORMATION: u8 = 0x1a;
    pub const REASON_STRING: u8 = 0x1f;
    pub const RECEIVE_MAX: u8 = 0x21;
    pub const TOPIC_ALIAS_MAX: u8 = 0x22;
    pub const TOPIC_ALIAS: u8 = 0x23;
    pub const USER: u8 = 0x26;
    pub const PACKET_MAX: u8 = 0x27;
}

/// Properties to send, in the order they are added.
#[derive(Debug, Clone, Default)]
pub struct Properties(Vec<u8>);

impl Properties {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn byte(mut self, id: u8, value: u8) -> Self {
        self.0.extend([id, value]);
        self
    }

    pub fn two(mut self, id: u8, value: u16) -> Self {
        self.0.push(id);
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn four(mut self, id: u8, value: u32) -> Self {
        self.0.push(id);
        self.0.extend(value.to_be_bytes());
        self
    }

    /// A variable byte integer; only the subscription identifier is one.
    pub fn varint(mut self, id: u8, value: usize) -> Self {
        self.0.push(id);
        self.0.extend(varint(value));
        self
    }

    /// A text or binary data: both are two bytes of length and the bytes.
    pub fn bytes(mut self, id: u8, value: impl AsRef<[u8]>) -> Self {
        self.0.push(id);
        self.0.extend(string(value));
        self
    }

    pub fn user(self, key: &str, value: &str) -> Self {
        let mut this = self.bytes(prop::USER, key);
        this.0.extend(string(value));
        this
    }

    /// Their length and they themselves.
    fn encoded(&self) -> Vec<u8> {
        [varint(self.0.len()), self.0.clone()].concat()
    }
}

/// A CONNECT to send; each part can be left out or be wrong.
#[derive(Debug, Clone)]
pub struct Connect {
    pub version: u8,
    pub protocol: &'static str,
    pub client_id: Vec<u8>,
    pub clean: bool,
    pub keep_alive_s: u16,
    pub properties: Properties,
    pub will: Option<Will>,
    pub user: Option<Vec<u8>>,
    pub password: Option<Vec<u8>>,
    /// Flips bits of the connect flags.
    pub flip_flags: u8,
}

#[derive(Debug, Clone, Default)]
pub struct Will {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub properties: Properties,
}

impl Connect {
    pub fn new(version: u8, client_id: &str) -> Self {
        Self {
            version,
            protocol: "MQTT",
            client_id: client_id.into(),
            clean: true,
            keep_alive_s: 60,
            properties: Properties::new(),
            will: None,
            user: None,
            password: None,
            flip_flags: 0,
        }
    }

    /// Goes on with its session and leaves one behind for an hour.
    pub fn kept(version: u8, client_id: &str) -> Self {
        let mut this = Self::new(version, client_id);
        this.clean = false;
        this.properties = this.properties.four(prop::SESSION_EXPIRY, 3_600);
        this
    }

    pub fn with(mut self, change: impl FnOnce(Properties) -> Properties) -> Self {
        self.properties = change(self.properties);
        self
    }

    pub fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.user.is_some()) << 7;
        let mut body = string(self.protocol);
        body.extend([self.version, flags ^ self.flip_flags]);
        body.extend(self.keep_alive_s.to_be_bytes());
        if self.version == 5 {
            body.extend(self.properties.encoded());
        }
        body.extend(string(&self.client_id));
        if let Some(will) = &self.will {
            if self.version == 5 {
                body.extend(will.properties.encoded());
            }
            body.extend(string(&will.topic));
            body.extend(string(&will.payload));
        }
        for part in [&self.user, &self.password].into_iter().flatten() {
            body.extend(string(part));
        }
        framed(0x10, &body)
    }
}

/// A PUBLISH to send.
#[derive(Debug, Clone, Default)]
pub struct Publish {
    pub topic: Vec<u8>,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    pub id: u16,
    pub properties: Properties,
}

impl Publish {
    pub fn new(topic: &str, payload: &str) -> Self {
        Self { topic: topic.into(), payload: payload.into(), ..Self::default() }
    }

    pub fn qos(mut self, qos: u8, id: u16) -> Self {
        (self.qos, self.id) = (qos, id);
        self
    }

    pub fn retain(mut self) -> Self {
        self.retain = true;
        self
    }

    pub fn dup(mut self) -> Self {
        self.dup = true;
        self
    }

    pub fn with(mut self, change: impl FnOnce(Properties) -> Properties) -> Self {
        self.properties = change(self.properties);
        self
    }

    pub fn encode(&self, version: u8) -> Vec<u8> {
        let first = PUBLISH | u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        let mut body = string(&self.topic);
        if self.qos > 0 {
            body.extend(self.id.to_be_bytes());
        }
        if version == 5 {
            body.extend(self.properties.encoded());
        }
        body.extend(&self.payload);
        framed(first, &body)
    }
}

/// SUBSCRIBE: filters with their options byte.
pub fn subscribe(version: u8, id: u16, properties: &Properties, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.extend(properties.encoded());
    }
    for (filter, options) in filters {
        body.extend(string(filter));
        body.push(*options);
    }
    framed(0x82, &body)
}

pub fn unsubscribe(version: u8, id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    for filter in filters {
        body.extend(string(filter));
    }
    framed(0xa2, &body)
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP in the short form both versions have.
pub fn ack(kind: u8, id: u16) -> Vec<u8> {
    let first = if kind == PUBREL { PUBREL | 2 } else { kind };
    framed(first, &id.to_be_bytes())
}

/// The same with a reason code, as MQTT 5 has it.
pub fn ack_with(kind: u8, id: u16, reason: u8) -> Vec<u8> {
    let first = if kind == PUBREL { PUBREL | 2 } else { kind };
    framed(first, &[&id.to_be_bytes()[..], &[reason, 0]].concat())
}

/// DISCONNECT of MQTT 5.
pub fn disconnect(reason: u8, properties: &Properties) -> Vec<u8> {
    framed(DISCONNECT, &[vec![reason], properties.encoded()].concat())
}

/// AUTH.
pub fn auth(reason: u8, properties: &Properties) -> Vec<u8> {
    framed(AUTH, &[vec![reason], properties.encoded()].concat())
}

/// A packet of this first byte and this body.
pub fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    [vec![first], varint(body.len()), body.to_vec()].concat()
}

/// Two bytes of length and the bytes (1.5.4, 1.5.6).
pub fn string(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    let length = u16::try_from(bytes.len()).expect("a length of two bytes");
    [&length.to_be_bytes()[..], bytes].concat()
}

/// A variable byte integer (1.5.5).
pub fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (value % 128) as u8;
        value /= 128;
        bytes.push(if value > 0 { low | 0x80 } else { low });
        if value == 0 {
            return bytes;
        }
    }
}
