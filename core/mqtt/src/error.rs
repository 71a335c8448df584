//! Why bytes were refused, and what to answer (MQTT 5, §4.13).

use std::fmt;

use crate::packet::ReasonCode;

/// The fifteen kinds of packet, by the number in the fixed header (MQTT 5, §2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the standard's own")]
pub enum PacketKind {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
    Auth = 15,
}

impl PacketKind {
    const ALL: [Self; 15] = [
        Self::Connect,
        Self::Connack,
        Self::Publish,
        Self::Puback,
        Self::Pubrec,
        Self::Pubrel,
        Self::Pubcomp,
        Self::Subscribe,
        Self::Suback,
        Self::Unsubscribe,
        Self::Unsuback,
        Self::Pingreq,
        Self::Pingresp,
        Self::Disconnect,
        Self::Auth,
    ];

    /// The kind a fixed header's first byte names; `None` for the forbidden 0.
    pub fn from_first_byte(first: u8) -> Option<Self> {
        Self::ALL.get(usize::from(first >> 4).checked_sub(1)?).copied()
    }
}

impl fmt::Display for PacketKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "CONNECT",
            Self::Connack => "CONNACK",
            Self::Publish => "PUBLISH",
            Self::Puback => "PUBACK",
            Self::Pubrec => "PUBREC",
            Self::Pubrel => "PUBREL",
            Self::Pubcomp => "PUBCOMP",
            Self::Subscribe => "SUBSCRIBE",
            Self::Suback => "SUBACK",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::Unsuback => "UNSUBACK",
            Self::Pingreq => "PINGREQ",
            Self::Pingresp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
            Self::Auth => "AUTH",
        })
    }
}

/// Why bytes were not a packet that may be sent here. The input is left as it was, and the connection has to end:
/// where the next packet begins is no longer known, or the other side breaks the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Cannot be parsed according to the standard (MQTT 5, §1.2 "Malformed Packet").
    #[error("malformed {packet}: {field} {problem}")]
    Malformed {
        /// Which packet.
        packet: PacketKind,
        /// Which part of it.
        field: &'static str,
        /// What is wrong with that part.
        problem: &'static str,
    },
    /// Can be parsed and says what the protocol does not allow (MQTT 5, §1.2 "Protocol Error").
    #[error("protocol error in {packet}: {field} {problem}")]
    Protocol {
        /// Which packet.
        packet: PacketKind,
        /// Which part of it.
        field: &'static str,
        /// What is wrong with that part.
        problem: &'static str,
    },
    /// Wrong where no answer is of use: in a DISCONNECT, whose sender leaves, or a PINGREQ or PINGRESP that has a body,
    /// which no MQTT client writes. The connection is closed without a word.
    #[error("refused {packet}: {field} {problem}")]
    Unanswered {
        /// Which packet.
        packet: PacketKind,
        /// Which part of it.
        field: &'static str,
        /// What is wrong with that part.
        problem: &'static str,
    },
    /// This kind of packet cannot come now, or from this side, or at all (MQTT 5, §2.1.2, §3.1).
    #[error("a packet of type {kind} {problem}")]
    Unexpected {
        /// The upper four bits of the first byte, 0 to 15.
        kind: u8,
        /// Why it cannot come.
        problem: &'static str,
    },
    /// Longer than this side takes (MQTT 5, §3.1.2.11.4).
    #[error("the packet has {size} bytes and at most {limit} are accepted")]
    TooLarge {
        /// The whole packet, fixed header included.
        size: u32,
        /// The most that is accepted.
        limit: u32,
    },
    /// A list in the packet is longer than a limit of ours.
    #[error("{packet} holds more than {limit} {what}")]
    TooMany {
        /// Which packet.
        packet: PacketKind,
        /// Of what.
        what: &'static str,
        /// The most that is accepted.
        limit: usize,
    },
    /// A topic name that is well formed, but not accepted (MQTT 5, §3.14.2.1, code 0x90).
    #[error("{packet}: {field} {problem}")]
    TopicName {
        /// Which packet.
        packet: PacketKind,
        /// Which part of it.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A topic alias that cannot be used (MQTT 5, §3.3.2.3.4).
    #[error("PUBLISH: topic alias 0 is not permitted (MQTT-3.3.2-8)")]
    TopicAliasZero,
    /// CONNECT of a protocol level this codec does not speak (MQTT 5, §3.1.2.2). It may be answered with a CONNACK in
    /// the form of 3.1.1, return code 1, which clients of every version understand.
    #[error("CONNECT: protocol level {level} is not supported")]
    UnsupportedVersion {
        /// The level asked for.
        level: u8,
    },
}

impl DecodeError {
    /// What to put in a DISCONNECT or CONNACK before closing. After a CONNECT that is refused for anything but its
    /// version, closing without a word is what clients expect, and in 3.1.1 the only possibility. `None`: nothing, ever.
    pub fn reason(&self) -> Option<ReasonCode> {
        Some(match self {
            Self::Malformed { .. } => ReasonCode::MalformedPacket,
            Self::Unanswered { .. } => return None,
            Self::Protocol { .. } | Self::Unexpected { .. } => ReasonCode::ProtocolError,
            Self::TooLarge { .. } => ReasonCode::PacketTooLarge,
            Self::TooMany { .. } => ReasonCode::QuotaExceeded,
            Self::TopicName { .. } => ReasonCode::TopicNameInvalid,
            Self::TopicAliasZero => ReasonCode::TopicAliasInvalid,
            Self::UnsupportedVersion { .. } => ReasonCode::UnsupportedProtocolVersion,
        })
    }
}

/// A packet that was not written: it has more bytes than its receiver takes. `out` is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet has {size} bytes and its receiver takes {limit}; nothing was written")]
pub struct TooLarge {
    /// The whole packet, fixed header included, without what may be left out.
    pub size: usize,
    /// The most the receiver takes.
    pub limit: u32,
}
