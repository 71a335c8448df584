//! What the shard writes down: records in CBOR with numbered fields, so that old and new releases read each other.

use bytes::Bytes;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use outpost_membership::RetainedEntry;
use outpost_model::{Hlc, Message, MessageId, MessageProperties, NodeId, QoS};

/// A row cannot be read: another program wrote it, or the disk lies.
#[derive(Debug, thiserror::Error)]
#[error("a {what} record cannot be read: {cause}; it is left out")]
pub struct RecordError {
    /// Which kind of record.
    pub what: &'static str,
    /// What the decoder said.
    pub cause: String,
}

/// A persistent session (`Space::Sessions`, key: client id).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SessionRecord {
    /// Its number: the first eight bytes of the keys of its rows.
    #[n(0)]
    pub number: u64,
    /// Session expiry interval, seconds.
    #[n(1)]
    pub expiry_s: u32,
    /// When its client went, milliseconds since 1970; absent while connected.
    #[n(2)]
    pub left_wall_ms: Option<u64>,
    /// Whose session it is, when the client had a user name.
    #[n(3)]
    pub username: Option<String>,
    /// The node it is passed on to.
    #[n(4)]
    pub leaves_to: Option<u64>,
    /// That node was told all there was.
    #[n(5)]
    pub is_told: Option<bool>,
}

/// What the directory says of a client id; see [`outpost_membership::Residence`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct ResidenceRecord {
    /// Whose session it is.
    #[n(0)]
    pub user: Option<String>,
    /// Its client wants nothing of what it had elsewhere.
    #[n(1)]
    pub discards: bool,
    /// It was another node's.
    #[n(2)]
    pub moved: bool,
    /// Nodes that may have something of it.
    #[n(3)]
    pub from: Option<Vec<u64>>,
}

/// How far a session has come; see [`outpost_membership::Arrival`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct ArrivalRecord {
    /// Nodes that have told all they had of it.
    #[n(0)]
    pub came_from: Vec<u64>,
    /// Nodes that know what it wants.
    #[n(1)]
    pub known_by: Vec<u64>,
    /// Nodes that have nothing of it.
    #[n(2)]
    pub gone: Option<Vec<u64>>,
}

/// A piece of small state (`Space::Meta`, key: `state/` and its own key).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct StateRecord {
    /// When it was written.
    #[n(0)]
    pub stamp: u64,
    /// Where.
    #[n(1)]
    pub node: u64,
    /// Its place in this node's feed.
    #[n(2)]
    pub feed_seq: u64,
    /// What it says; absent: it was removed.
    #[n(3)]
    pub value: Option<ByteVec>,
}

/// A part of a session that moves from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SessionPart {
    /// Its client id.
    #[n(0)]
    pub client_id: String,
    /// Whose session it is.
    #[n(1)]
    pub user: Option<String>,
    /// The node that had it; others may pass it on.
    #[n(2)]
    pub node: u64,
    /// Which part.
    #[n(3)]
    pub kind: PartKind,
}

/// See [`SessionPart`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum PartKind {
    /// What follows is the session, from its first delivery on.
    #[n(0)]
    Begin {
        /// Session expiry interval, seconds.
        #[n(0)]
        expiry_s: u32,
        /// Place of its next delivery: packet ids follow from places.
        #[n(1)]
        next_place: u64,
        /// QoS 2 packet ids of its client that are half settled.
        #[n(2)]
        received: Vec<u16>,
    },
    /// A delivery it is owed; its message is the event's.
    #[n(1)]
    Delivery {
        /// As it was; `place` is 0 for one that came after [`PartKind::End`].
        #[n(0)]
        place: u64,
        /// Of the delivery; `node`, `seq`: the message's id where it was accepted.
        #[n(1)]
        record: DeliveryRecord,
    },
    /// That is all there was, and this is what it subscribes to: filters with their options. Deliveries may follow, of
    /// nodes that do not know yet where it is now.
    #[n(2)]
    End {
        /// Filters.
        #[n(0)]
        subscriptions: Vec<(String, SubscriptionRecord)>,
        /// Nodes, the numbers of their stores, and the last of their messages that it was given there.
        #[n(1)]
        given: Option<Vec<(u64, u64, u64)>>,
    },
    /// There is no such session.
    #[n(3)]
    Absent,
    /// Nothing more will come.
    #[n(4)]
    Gone,
    /// Back to where it was: its client does not want this any more.
    #[n(5)]
    Unsubscribed {
        /// Filter.
        #[n(0)]
        filter: String,
    },
}

/// A subscription (`Space::Subscriptions`, key: session number, filter).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct SubscriptionRecord {
    /// The options byte of MQTT 5, §3.8.3.1.
    #[n(0)]
    pub options: u8,
    /// Subscription identifier.
    #[n(1)]
    pub id: Option<u32>,
}

/// A delivery owed (`Space::Queues`, key: session number, 0, place).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeliveryRecord {
    /// Node of the message id.
    #[n(0)]
    pub node: u64,
    /// Number of the message id.
    #[n(1)]
    pub seq: u64,
    /// QoS to deliver with.
    #[n(2)]
    pub qos: u8,
    /// Retain flag to show.
    #[n(3)]
    pub retain: bool,
    /// PUBREC came.
    #[n(4)]
    pub released: bool,
    /// Subscription identifiers.
    #[n(5)]
    pub subscription_ids: Vec<u32>,
    /// The shared subscription it came through.
    #[n(6)]
    pub share: Option<String>,
    /// What its message counts in the session's quota of bytes.
    #[n(7)]
    pub bytes: Option<u32>,
    /// When its message expires, milliseconds since 1970.
    #[n(8)]
    pub expires_wall_ms: Option<u64>,
}

#[derive(Debug, Encode, Decode)]
struct MessageRecord {
    #[n(0)]
    node: u64,
    #[n(1)]
    seq: u64,
    #[n(2)]
    topic: String,
    #[n(3)]
    payload: ByteVec,
    #[n(4)]
    qos: u8,
    #[n(5)]
    retain: bool,
    #[n(6)]
    accepted_wall_ms: u64,
    #[n(7)]
    expiry_s: Option<u32>,
    #[n(8)]
    payload_is_utf8: Option<bool>,
    #[n(9)]
    content_type: Option<String>,
    #[n(10)]
    response_topic: Option<String>,
    #[n(11)]
    correlation_data: Option<ByteVec>,
    #[n(12)]
    user: Vec<(String, String)>,
}

#[derive(Debug, Encode, Decode)]
struct RetainedRecord {
    #[n(0)]
    stamp: u64,
    #[n(1)]
    node: u64,
    #[n(2)]
    feed_seq: u64,
    #[n(3)]
    message: Option<ByteVec>,
}

/// What is known of a peer (`Space::Peers`, key: peer id, 0).
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct PeerRecord {
    /// The peer's store the cursors belong to.
    #[n(0)]
    pub store_id: u64,
    /// Its events up to this number are durable here.
    #[n(1)]
    pub events_seen: u64,
    /// Its retained changes up to this number are durable here.
    #[n(2)]
    pub retained_seen: u64,
    /// What it retained itself up to this stamp is durable here; earlier releases did not write it.
    #[n(3)]
    pub retained_own: Option<u64>,
    /// The same two of small state.
    #[n(4)]
    pub state_seen: Option<u64>,
    /// See above.
    #[n(5)]
    pub state_own: Option<u64>,
}

/// What retained messages that are gone leave behind (`Space::Meta`): numbers that are never given again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct RetainedFloor {
    /// The last place in the feed of retained changes.
    #[n(0)]
    pub feed_seq: u64,
    /// The last stamp.
    #[n(1)]
    pub stamp: u64,
    /// The stamps of the first and the last that this store wrote; earlier releases did not say.
    #[n(2)]
    pub own: Option<(u64, u64)>,
}

/// A message owed to a peer (`Space::Outbox`, key: peer id, number of the message). Earlier releases wrote the bare message
/// id where there are no share groups.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OutboxRecord {
    /// The share groups it is for, by their filters, `$share/<group>/<filter>`; none: for everybody who wants it.
    #[n(0)]
    pub groups: Vec<String>,
    /// How many nodes have passed it on.
    #[n(1)]
    pub hops: u8,
    /// What it counts in the outbox's quota of bytes.
    #[n(2)]
    pub bytes: Option<u32>,
    /// It is a part of a session: a [`SessionPart`].
    #[n(3)]
    pub session: Option<ByteVec>,
}

/// Encodes any record.
pub fn encode<T: Encode<()>>(record: &T) -> Bytes {
    minicbor::to_vec(record).expect("writing to memory cannot fail").into()
}

/// Decodes any record.
///
/// # Errors
/// [`RecordError`] when the bytes are not such a record.
pub fn decode<'b, T: Decode<'b, ()>>(
    what: &'static str,
    bytes: &'b [u8],
) -> Result<T, RecordError> {
    minicbor::decode(bytes).map_err(|cause| RecordError { what, cause: cause.to_string() })
}

/// Encodes a message body (`Space::Messages`, key: message id).
pub fn encode_message(message: &Message) -> Bytes {
    let properties = message.properties.as_deref();
    encode(&MessageRecord {
        node: message.id.node.0,
        seq: message.id.seq,
        topic: message.topic.to_string(),
        payload: message.payload.to_vec().into(),
        qos: message.qos as u8,
        retain: message.retain,
        accepted_wall_ms: message.accepted_wall_ms,
        expiry_s: message.expiry_s,
        payload_is_utf8: properties.and_then(|p| p.payload_is_utf8),
        content_type: properties.and_then(|p| p.content_type.as_ref()).map(ToString::to_string),
        response_topic: properties.and_then(|p| p.response_topic.as_ref()).map(ToString::to_string),
        correlation_data: properties
            .and_then(|p| p.correlation_data.as_ref())
            .map(|b| b.to_vec().into()),
        user: properties.map_or_else(Vec::new, |p| {
            p.user.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
        }),
    })
}

/// Decodes a message body.
///
/// # Errors
/// [`RecordError`] when the bytes are not a message.
pub fn decode_message(bytes: &[u8]) -> Result<Message, RecordError> {
    let record: MessageRecord = decode("message", bytes)?;
    let properties = MessageProperties {
        payload_is_utf8: record.payload_is_utf8,
        content_type: record.content_type.map(Into::into),
        response_topic: record.response_topic.map(Into::into),
        correlation_data: record.correlation_data.map(|b| Vec::from(b).into()),
        user: record.user.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
    };
    Ok(Message {
        id: MessageId { node: NodeId(record.node), seq: record.seq },
        topic: record.topic.into(),
        payload: Vec::from(record.payload).into(),
        qos: QoS::from_bits(record.qos).unwrap_or(QoS::AtLeastOnce),
        retain: record.retain,
        properties: (properties != MessageProperties::default()).then(|| Box::new(properties)),
        accepted_wall_ms: record.accepted_wall_ms,
        expiry_s: record.expiry_s,
    })
}

/// Encodes a retained slot (`Space::Retained`, key: topic) with its place in this node's feed.
pub fn encode_retained(entry: &RetainedEntry, feed_seq: u64) -> Bytes {
    let message = entry.message.as_ref().map(|m| encode_message(m).to_vec().into());
    encode(&RetainedRecord { stamp: entry.stamp.0, node: entry.node.0, feed_seq, message })
}

/// Decodes a retained slot and its place in the feed.
///
/// # Errors
/// [`RecordError`] when the bytes are not a retained slot.
pub fn decode_retained(topic: &[u8], bytes: &[u8]) -> Result<(RetainedEntry, u64), RecordError> {
    let record: RetainedRecord = decode("retained", bytes)?;
    let topic = String::from_utf8(topic.to_vec())
        .map_err(|_| RecordError { what: "retained", cause: "its topic is not UTF-8".into() })?;
    let message = record.message.map(|body| decode_message(&body)).transpose()?.map(Into::into);
    Ok((
        RetainedEntry { topic, stamp: Hlc(record.stamp), node: NodeId(record.node), message },
        record.feed_seq,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            id: MessageId { node: NodeId(3), seq: 4 },
            topic: "plant/7".into(),
            payload: Bytes::from_static(b"\0\xff"),
            qos: QoS::ExactlyOnce,
            retain: true,
            properties: Some(Box::new(MessageProperties {
                content_type: Some("text/plain".into()),
                correlation_data: Some(Bytes::from_static(b"c")),
                user: vec![("a".into(), "b".into()), ("a".into(), "c".into())],
                ..MessageProperties::default()
            })),
            accepted_wall_ms: 1_700_000_000_000,
            expiry_s: Some(60),
        }
    }

    #[test]
    fn a_message_reads_back_as_it_was_written() {
        assert_eq!(decode_message(&encode_message(&message())).expect("own record"), message());
    }

    #[test]
    fn a_retained_slot_and_its_tombstone_read_back() {
        for message in [Some(message().into()), None] {
            let entry =
                RetainedEntry { topic: "plant/7".into(), stamp: Hlc(9), node: NodeId(3), message };
            let row = encode_retained(&entry, 12);
            assert_eq!(decode_retained(b"plant/7", &row).expect("own record"), (entry, 12));
        }
    }

    #[test]
    fn what_an_earlier_release_wrote_of_a_peer_reads_without_what_it_did_not_know() {
        let row = [0x83, 7, 0x18, 99, 4]; // [store_id, events_seen, retained_seen]
        let record: PeerRecord = decode("peer", &row).expect("a row of an earlier release");
        let expected =
            PeerRecord { store_id: 7, events_seen: 99, retained_seen: 4, ..PeerRecord::default() };
        assert_eq!(record, expected);
    }

    #[test]
    fn damaged_rows_are_errors_not_panics() {
        let good = encode_message(&message());
        for cut in 0..good.len() {
            assert!(decode_message(&good[..cut]).is_err());
        }
    }
}
