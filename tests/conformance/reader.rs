//! Packets of the server, taken apart by the standard's tables and nothing else.

use super::packet::{
    AUTH, CONNACK, DISCONNECT, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, SUBACK, UNSUBACK,
};

/// A property's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Number(u32),
    Bytes(Vec<u8>),
    Pair(String, String),
}

/// A packet the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Its type, flags zero.
    pub kind: u8,
    pub flags: u8,
    /// Packet identifier, 0 where there is none.
    pub id: u16,
    /// The reason code; 0 where it is left out.
    pub reason: u8,
    /// All reason codes of SUBACK and UNSUBACK.
    pub reasons: Vec<u8>,
    pub session_present: u8,
    pub topic: String,
    pub payload: Vec<u8>,
    pub properties: Vec<(u8, Value)>,
    /// How long it was, header and all.
    pub length: usize,
}

impl Packet {
    pub fn qos(&self) -> u8 {
        self.flags >> 1 & 3
    }

    pub fn dup(&self) -> bool {
        self.flags & 8 != 0
    }

    pub fn retain(&self) -> bool {
        self.flags & 1 != 0
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).expect("a text")
    }

    pub fn has(&self, property: u8) -> bool {
        self.properties.iter().any(|(id, _)| *id == property)
    }

    pub fn number(&self, property: u8) -> Option<u32> {
        self.properties.iter().find_map(|(id, value)| match value {
            Value::Number(number) if *id == property => Some(*number),
            _ => None,
        })
    }

    pub fn bytes(&self, property: u8) -> Option<&[u8]> {
        self.properties.iter().find_map(|(id, value)| match value {
            Value::Bytes(bytes) if *id == property => Some(&bytes[..]),
            _ => None,
        })
    }

    /// All values of a property that may come more than once.
    pub fn all(&self, property: u8) -> Vec<&Value> {
        self.properties.iter().filter(|(id, _)| *id == property).map(|(_, value)| value).collect()
    }

    /// Takes a packet apart; panics where the server sent what the standard does not have.
    pub fn read(first: u8, body: &[u8], length: usize, version: u8) -> Self {
        let mut rest = Rest(body);
        let mut packet = Self {
            kind: first & 0xf0,
            flags: first & 0x0f,
            id: 0,
            reason: 0,
            reasons: Vec::new(),
            session_present: 0,
            topic: String::new(),
            payload: Vec::new(),
            properties: Vec::new(),
            length,
        };
        let v5 = version == 5;
        match packet.kind {
            CONNACK => {
                packet.session_present = rest.byte();
                packet.reason = rest.byte();
                // A server that does not know the version answers in one of its own (3.1.2.2).
                if version >= 5 && !rest.0.is_empty() {
                    packet.properties = rest.properties();
                }
            }
            PUBLISH => {
                packet.topic = rest.string();
                if packet.qos() > 0 {
                    packet.id = rest.two();
                }
                if v5 {
                    packet.properties = rest.properties();
                }
                packet.payload = std::mem::take(&mut rest.0).to_vec();
            }
            PUBACK | PUBREC | PUBREL | PUBCOMP => {
                packet.id = rest.two();
                rest.reason_and_properties(&mut packet, v5);
            }
            SUBACK => {
                packet.id = rest.two();
                if v5 {
                    packet.properties = rest.properties();
                }
                packet.reasons = std::mem::take(&mut rest.0).to_vec();
            }
            UNSUBACK => {
                packet.id = rest.two();
                if v5 {
                    packet.properties = rest.properties();
                    packet.reasons = std::mem::take(&mut rest.0).to_vec();
                }
            }
            DISCONNECT | AUTH => rest.reason_and_properties(&mut packet, v5),
            0xd0 => {}
            other => panic!("a server never sends a packet of type {other:#x}"),
        }
        assert!(rest.0.is_empty(), "bytes too many in {packet:?}: {:x?}", rest.0);
        packet
    }
}

/// What is left of a body.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().expect("a byte");
        self.0 = rest;
        *first
    }

    fn two(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn four(&mut self) -> u32 {
        u32::from(self.two()) << 16 | u32::from(self.two())
    }

    fn varint(&mut self) -> usize {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.byte();
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                assert!(shift == 7 || byte > 0, "[MQTT-1.5.5-1] the shortest form");
                return value;
            }
        }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.two());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }

    fn string(&mut self) -> String {
        String::from_utf8(self.bytes()).expect("[MQTT-1.5.4-1] UTF-8")
    }

    fn reason_and_properties(&mut self, packet: &mut Packet, v5: bool) {
        if !v5 || self.0.is_empty() {
            return;
        }
        packet.reason = self.byte();
        if !self.0.is_empty() {
            packet.properties = self.properties();
        }
    }

    fn properties(&mut self) -> Vec<(u8, Value)> {
        let length = self.varint();
        let (mut inside, rest) = (Rest(&self.0[..length]), &self.0[length..]);
        self.0 = rest;
        let mut properties = Vec::new();
        while !inside.0.is_empty() {
            let id = inside.byte();
            properties.push((id, inside.value(id)));
        }
        properties
    }

    /// Table 2-4.
    fn value(&mut self, id: u8) -> Value {
        match id {
            0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => {
                Value::Number(self.byte().into())
            }
            0x13 | 0x21 | 0x22 | 0x23 => Value::Number(self.two().into()),
            0x02 | 0x11 | 0x18 | 0x27 => Value::Number(self.four()),
            0x0b => Value::Number(self.varint() as u32),
            0x09 | 0x16 => Value::Bytes(self.bytes()),
            0x03 | 0x08 | 0x12 | 0x15 | 0x1a | 0x1c | 0x1f => {
                Value::Bytes(self.string().into_bytes())
            }
            0x26 => Value::Pair(self.string(), self.string()),
            other => panic!("there is no property {other:#x}"),
        }
    }
}
