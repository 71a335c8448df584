//! A published message as every floor sees it.

use bytes::Bytes;
use bytestring::ByteString;

use crate::ids::MessageId;

/// Quality of service (MQTT 5, §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum QoS {
    /// Sent once, never acknowledged.
    #[default]
    AtMostOnce = 0,
    /// Acknowledged; may arrive twice.
    AtLeastOnce = 1,
    /// Acknowledged twice; arrives exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// From the two bits on the wire; `None` for the forbidden value 3.
    pub fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// The MQTT 5 properties of a message that travel with it to its receivers (MQTT 5, §3.3.2.3).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MessageProperties {
    /// Payload format indicator: `Some(true)` says the payload is UTF-8 text.
    pub payload_is_utf8: Option<bool>,
    /// What the payload is, for example a MIME type.
    pub content_type: Option<ByteString>,
    /// Where an answer should go.
    pub response_topic: Option<ByteString>,
    /// Ties an answer to its request.
    pub correlation_data: Option<Bytes>,
    /// User properties, in the order sent.
    pub user: Vec<(ByteString, ByteString)>,
}

/// A message a node has accepted. Shared by reference between all its receivers, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who accepted it, and its number there.
    pub id: MessageId,
    /// A valid topic name, see [`crate::topic::check_name`].
    pub topic: ByteString,
    /// The bytes the publisher sent.
    pub payload: Bytes,
    /// As published; a receiver gets the lesser of this and what it subscribed with.
    pub qos: QoS,
    /// The publisher asked for it to be retained.
    pub retain: bool,
    /// Only present when the publisher set any (most do not).
    pub properties: Option<Box<MessageProperties>>,
    /// When the node accepted it, milliseconds since 1970 on that node's clock.
    pub accepted_wall_ms: u64,
    /// Message expiry interval in seconds, counted from `accepted_wall_ms`.
    pub expiry_s: Option<u32>,
}

impl Message {
    /// Seconds of life left, `Some(0)` when expired, `None` when it never expires (MQTT 5, §3.3.2.3.3).
    pub fn expiry_left_s(&self, wall_ms: u64) -> Option<u32> {
        let all_s = self.expiry_s?;
        let waited_s = wall_ms.saturating_sub(self.accepted_wall_ms) / 1000;
        Some(u64::from(all_s).saturating_sub(waited_s) as u32)
    }

    /// Roughly what it occupies in memory, for budgets.
    pub fn cost_bytes(&self) -> usize {
        let properties = self.properties.as_ref().map_or(0, |p| {
            64 + p.content_type.as_ref().map_or(0, |s| s.len())
                + p.response_topic.as_ref().map_or(0, |s| s.len())
                + p.correlation_data.as_ref().map_or(0, Bytes::len)
                + p.user.iter().map(|(k, v)| 64 + k.len() + v.len()).sum::<usize>()
        });
        size_of::<Self>() + self.topic.len() + self.payload.len() + properties
    }
}
