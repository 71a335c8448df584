//! PUBLISH on the wire (MQTT 5 and 3.1.1, §3.3): the packet that has to be quick in both directions.

use bytes::{Buf, Bytes};
use bytestring::ByteString;
use outpost_model::{MessageProperties, QoS};

use super::{PacketId, Publish, Version};
use crate::error::{DecodeError, PacketKind, TooLarge};
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::{Reader, VARINT_MAX, put_string, put_with_length};

const ALLOWED: PropertySet = PropertySet::of(&[
    P::PayloadFormat,
    P::MessageExpiry,
    P::ContentType,
    P::ResponseTopic,
    P::CorrelationData,
    P::SubscriptionId,
    P::TopicAlias,
    P::User,
]);

/// "Multiple Subscription Identifiers will be included if the publication is the result of a match to more than one
/// subscription" (§3.3.2.3.8).
const REPEATING: PropertySet = PropertySet::of(&[P::SubscriptionId]);

/// More subscription identifiers in one PUBLISH are refused. Only a server sends them, one for each subscription of
/// ours that matched, so a server that sends more is not one we subscribed with.
pub const SUBSCRIPTION_IDS_MAX: usize = 1024;

const RETAIN: u8 = 0x01;
const DUP: u8 = 0x08;

/// Reads a PUBLISH. `from_client` tells who sent it. The body is copied once, and topic, payload and properties share
/// that copy: a small message never keeps a big read buffer alive.
pub(crate) fn decode(
    flags: u8,
    version: Version,
    from_client: bool,
    body: &[u8],
) -> Result<Publish, DecodeError> {
    let mut body = Bytes::copy_from_slice(body);
    let mut r = Reader::sharing(PacketKind::Publish, &body);
    let qos = QoS::from_bits(flags >> 1 & 3)
        .ok_or_else(|| r.malformed("fixed header", "has both QoS bits set (MQTT-3.3.1-4)"))?;
    let dup = flags & DUP != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(r.malformed("fixed header", "has DUP set with QoS 0 (MQTT-3.3.1-2)"));
    }
    let mut publish = Publish {
        dup,
        qos,
        retain: flags & RETAIN != 0,
        topic: decode_topic(version, &mut r)?,
        packet_id: if qos == QoS::AtMostOnce { None } else { Some(r.packet_id()?) },
        payload: Bytes::new(),
        topic_alias: None,
        expiry_s: None,
        subscription_ids: Vec::new(),
        properties: None,
    };
    if version == Version::V5 {
        decode_properties(&mut publish, from_client, &mut r)?;
    }
    let read = body.len() - r.left();
    body.advance(read);
    publish.payload = body;
    Ok(publish)
}

/// Only MQTT 5 knows an empty topic: a topic alias stands for it.
fn decode_topic(version: Version, r: &mut Reader<'_>) -> Result<ByteString, DecodeError> {
    if version == Version::V5 && r.starts_with(&[0, 0]) {
        return r.name("topic name");
    }
    r.topic_name("topic name")
}

fn decode_properties(
    publish: &mut Publish,
    from_client: bool,
    r: &mut Reader<'_>,
) -> Result<(), DecodeError> {
    let mut properties = PropertyReader::new(r, ALLOWED)?;
    let repeating = if from_client { PropertySet::of(&[]) } else { REPEATING };
    while let Some(p) = properties.next_repeating(repeating)? {
        match p {
            P::MessageExpiry => publish.expiry_s = properties.u32(p)?,
            P::TopicAlias => {
                let alias = properties.u16(p)?;
                if alias == Some(0) {
                    return Err(DecodeError::TopicAliasZero);
                }
                publish.topic_alias = alias;
            }
            P::SubscriptionId => {
                let id = properties.varint_not_0(p)?;
                if from_client {
                    continue; // MQTT-3.3.4-6: must not be there, and means nothing; clients that echo send it back
                }
                if publish.subscription_ids.len() == SUBSCRIPTION_IDS_MAX {
                    let (packet, limit) = (PacketKind::Publish, SUBSCRIPTION_IDS_MAX);
                    return Err(DecodeError::TooMany {
                        packet,
                        what: "subscription identifiers",
                        limit,
                    });
                }
                publish.subscription_ids.push(id);
            }
            _ => properties.message(p, publish.properties.get_or_insert_default())?,
        }
    }
    // §3.3.2.1 calls it a Protocol Error; it is also a topic name without a character ([MQTT-4.7.3-1]), which is malformed
    // in 3.1.1 and everywhere else in 5.
    if publish.topic.is_empty() && publish.topic_alias.is_none() {
        return Err(r.malformed("topic name", "is empty without a topic alias (§3.3.2.1)"));
    }
    Ok(())
}

impl Publish {
    /// All of it but the payload, to be written.
    pub fn head(&self) -> PublishHead<'_> {
        PublishHead {
            dup: self.dup,
            qos: self.qos,
            retain: self.retain,
            topic: &self.topic,
            packet_id: self.packet_id,
            topic_alias: self.topic_alias,
            expiry_s: self.expiry_s,
            subscription_ids: &self.subscription_ids,
            properties: self.properties.as_deref(),
            payload_len: self.payload.len(),
        }
    }
}

/// A PUBLISH without its payload: what differs between the receivers of one message. [`PublishHead::encode`] writes
/// everything that stands before the payload, so that the payload, shared by all receivers, is never copied.
#[derive(Debug, Clone, Copy)]
pub struct PublishHead<'a> {
    /// Sent before, perhaps.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// Topic name; empty when the receiver knows `topic_alias` already (5).
    pub topic: &'a str,
    /// Present exactly when QoS > 0.
    pub packet_id: Option<PacketId>,
    /// Stands for the topic (5).
    pub topic_alias: Option<u16>,
    /// Seconds of life left (5).
    pub expiry_s: Option<u32>,
    /// Numbers of the subscriptions that matched (5).
    pub subscription_ids: &'a [u32],
    /// What travels with the message (5).
    pub properties: Option<&'a MessageProperties>,
    /// How many bytes of payload will follow.
    pub payload_len: usize,
}

impl PublishHead<'_> {
    /// Writes fixed header, topic, packet identifier and properties; `payload_len` bytes of payload have to follow.
    ///
    /// # Errors
    /// `TooLarge` when the receiver takes no packet of that size; it is then to be treated as if it had been delivered
    /// (MQTT-3.1.2-25).
    pub fn encode(
        &self,
        version: Version,
        packet_max: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), TooLarge> {
        let start = out.len();
        let dup = if self.dup { DUP } else { 0 };
        out.push(
            (PacketKind::Publish as u8) << 4 | dup | (self.qos as u8) << 1 | u8::from(self.retain),
        );
        let length = put_with_length(out, self.payload_len, |out| self.encode_fields(version, out));
        let size = out.len() - start + self.payload_len;
        if size > packet_max as usize || length > VARINT_MAX as usize {
            out.truncate(start);
            return Err(TooLarge { size, limit: packet_max });
        }
        Ok(())
    }

    fn encode_fields(&self, version: Version, out: &mut Vec<u8>) {
        put_string(out, self.topic);
        if let Some(id) = self.packet_id {
            out.extend_from_slice(&id.get().to_be_bytes());
        }
        if version == Version::V5 {
            put_properties(out, |w| {
                w.u16(P::TopicAlias, self.topic_alias);
                w.u32(P::MessageExpiry, self.expiry_s);
                for id in self.subscription_ids {
                    w.varint(P::SubscriptionId, Some(*id));
                }
                if let Some(properties) = self.properties {
                    w.message(properties);
                }
            });
        }
    }
}
