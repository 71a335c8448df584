//! The bytes of a [`PeerFrame`]: an envelope, and a body in bincode 2's standard format as wincode writes it.
//!
//! ```text
//!   major u8 | type u8 | version u16 LE | length u32 LE | body (length bytes)
//! ```
//! A new field means a new version of its type, and both are read for one release. A new major number means that the
//! two sides cannot talk. A type or version nobody here knows is skipped and counted, so that a newer peer may say more.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use outpost_membership::{
    EVENT_SHARES_MAX, Hello, Interest, PeerFrame, RetainedEntry, Shares, StateEntry,
};
use outpost_model::{Hlc, Message, MessageId, MessageProperties, NodeId, QoS, TopicFilter, topic};
use wincode::config::Configuration;
use wincode::{SchemaRead, SchemaWrite};

/// First byte of each frame.
pub const MAJOR: u8 = 1;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 8;
/// A body is at most this long. Lower: large messages and shadows do not reach the other nodes. Higher: a peer can make
/// this node hold that much per lane.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// More user properties than this are refused, as MQTT clients hardly ever send ten.
pub const USER_PROPERTIES_MAX: usize = 1024;

const VERSION: u16 = 1;
/// Of interest and events that name share groups; nodes that do not know of it skip them.
const VERSION_SHARED: u16 = 2;
/// Of events that carry a part of a session. Only nodes that tell of sessions are sent any.
const VERSION_SESSION: u16 = 3;
const CONFIG: WireConfig = Configuration::default().with_varint_encoding();
type WireConfig = Configuration<
    true,
    { 4 << 20 },
    wincode::len::BincodeLen,
    wincode::int_encoding::LittleEndian,
    wincode::int_encoding::VarInt,
>;

/// Why bytes are no frame, or a frame no bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another protocol.
    #[error("the frame has major version {0}, this node speaks {MAJOR}")]
    Major(u8),
    /// Longer than [`BODY_BYTES_MAX`].
    #[error("the frame has {0} bytes, more than {BODY_BYTES_MAX}")]
    TooLarge(usize),
    /// The body does not follow the format.
    #[error("the body of a frame of type {kind} cannot be read: {why}")]
    Body {
        /// Its type.
        kind: u8,
        /// What the decoder says.
        why: String,
    },
    /// The body is well formed and says something that cannot be.
    #[error("a frame of type {kind} has an invalid {field}")]
    Invalid {
        /// Its type.
        kind: u8,
        /// Which field.
        field: &'static str,
    },
}

/// The envelope of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Which frame.
    pub kind: u8,
    /// Which form of its body.
    pub version: u16,
    /// Length of the body.
    pub length: usize,
}

const HELLO: u8 = 1;
const INTEREST_ALL: u8 = 2;
const INTEREST_ADD: u8 = 3;
const INTEREST_REMOVE: u8 = 4;
const EVENT: u8 = 5;
const EVENT_ACK: u8 = 6;
const RETAINED: u8 = 7;
const SHADOW: u8 = 8;
/// Nodes that do not know of it skip it, and say how far they are with the next hello.
const RETAINED_SEEN: u8 = 9;
/// These five: nodes that do not know of them have no part in the small state, and are told none.
const STATE_GREET: u8 = 10;
const STATE: u8 = 11;
const STATE_SEEN: u8 = 12;
const BARRIER: u8 = 13;
const BARRIER_PASSED: u8 = 14;

#[derive(SchemaWrite, SchemaRead)]
struct HelloBody {
    store_id: u64,
    your_store_id: u64,
    events_seen: u64,
    retained_seen: u64,
}

#[derive(SchemaWrite, SchemaRead)]
struct InterestBody<'a> {
    pattern: &'a str,
    durable: bool,
}

#[derive(SchemaWrite, SchemaRead)]
struct SharedInterestBody<'a> {
    pattern: &'a str,
    durable: bool,
    live: bool,
}

#[derive(SchemaWrite, SchemaRead)]
struct EventBody<'a> {
    seq: u64,
    message: MessageBody<'a>,
}

#[derive(SchemaWrite, SchemaRead)]
struct SharedEventBody<'a> {
    event: EventBody<'a>,
    groups: Vec<&'a str>,
    hops: u8,
}

#[derive(SchemaWrite, SchemaRead)]
struct SessionEventBody<'a> {
    event: EventBody<'a>,
    session: &'a [u8],
}

#[derive(SchemaWrite, SchemaRead)]
struct StateBody<'a> {
    feed_seq: u64,
    key: &'a str,
    stamp: u64,
    node: u64,
    value: Option<&'a [u8]>,
}

#[derive(SchemaWrite, SchemaRead)]
struct RetainedBody<'a> {
    feed_seq: u64,
    topic: &'a str,
    stamp: u64,
    node: u64,
    message: Option<MessageBody<'a>>,
}

#[derive(SchemaWrite, SchemaRead)]
struct MessageBody<'a> {
    node: u64,
    seq: u64,
    topic: &'a str,
    payload: &'a [u8],
    qos: u8,
    retain: bool,
    accepted_wall_ms: u64,
    expiry_s: Option<u32>,
    properties: Option<PropertiesBody<'a>>,
}

#[derive(SchemaWrite, SchemaRead)]
struct PropertiesBody<'a> {
    payload_is_utf8: Option<bool>,
    content_type: Option<&'a str>,
    response_topic: Option<&'a str>,
    correlation_data: Option<&'a [u8]>,
    user: Vec<(&'a str, &'a str)>,
}

/// Writes a frame with its envelope.
///
/// # Errors
/// [`FrameError::TooLarge`] when the body exceeds [`BODY_BYTES_MAX`].
pub fn encode(frame: &PeerFrame) -> Result<Bytes, FrameError> {
    match frame {
        PeerFrame::Hello(hello) => {
            let &Hello { store_id, your_store_id, events_seen, retained_seen } = hello;
            written(HELLO, &HelloBody { store_id, your_store_id, events_seen, retained_seen })
        }
        PeerFrame::InterestAll(all) => written_interest(INTEREST_ALL, all),
        PeerFrame::InterestAdd(more) => written_interest(INTEREST_ADD, more),
        PeerFrame::InterestRemove(gone) => {
            written(INTEREST_REMOVE, &gone.iter().map(String::as_str).collect::<Vec<&str>>())
        }
        PeerFrame::Event { seq, message, shares } => {
            let event = EventBody { seq: *seq, message: message_body(message) };
            let Some(shares) = shares else { return written(EVENT, &event) };
            if let Some(session) = &shares.session {
                return written_as(EVENT, VERSION_SESSION, &SessionEventBody { event, session });
            }
            let groups = shares.groups.iter().map(String::as_str).collect();
            let body = SharedEventBody { event, groups, hops: shares.hops };
            written_as(EVENT, VERSION_SHARED, &body)
        }
        PeerFrame::EventAck { seq } => written(EVENT_ACK, seq),
        PeerFrame::Retained { feed_seq, entry } => {
            let message = entry.message.as_deref().map(message_body);
            let (stamp, node) = (entry.stamp.0, entry.node.0);
            written(
                RETAINED,
                &RetainedBody { feed_seq: *feed_seq, topic: &entry.topic, stamp, node, message },
            )
        }
        PeerFrame::RetainedSeen { feed_seq } => written(RETAINED_SEEN, feed_seq),
        PeerFrame::StateGreet { feed_seq } => written(STATE_GREET, feed_seq),
        PeerFrame::State { feed_seq, entry } => {
            let StateEntry { key, stamp, node, value } = entry;
            let (feed_seq, stamp, node) = (*feed_seq, stamp.0, node.0);
            written(STATE, &StateBody { feed_seq, key, stamp, node, value: value.as_deref() })
        }
        PeerFrame::StateSeen { feed_seq } => written(STATE_SEEN, feed_seq),
        PeerFrame::Barrier { number } => written(BARRIER, number),
        PeerFrame::BarrierPassed { number } => written(BARRIER_PASSED, number),
        PeerFrame::Shadow(bytes) => raw(SHADOW, bytes),
    }
}

/// Reads an envelope.
///
/// # Errors
/// Another major version, or a body longer than the limit: nothing after it can be read.
pub fn decode_header(bytes: [u8; HEADER_BYTES]) -> Result<Header, FrameError> {
    let [major, kind, v0, v1, length @ ..] = bytes;
    let length = u32::from_le_bytes(length) as usize;
    if major != MAJOR {
        return Err(FrameError::Major(major));
    }
    if length > BODY_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    Ok(Header { kind, version: u16::from_le_bytes([v0, v1]), length })
}

/// Reads a body. `None` when type or version are newer than this node. The payload shares the body's bytes.
///
/// # Errors
/// [`FrameError`] when the body is not what the envelope says, or holds a topic, filter or value that cannot be.
pub fn decode_body(header: Header, body: &Bytes) -> Result<Option<PeerFrame>, FrameError> {
    let kind = header.kind;
    match (header.version, kind) {
        (VERSION_SHARED, _) => return shared_body(kind, body),
        (VERSION_SESSION, EVENT) => return session_event(kind, body).map(Some),
        _ => {}
    }
    if header.version != VERSION {
        return Ok(None);
    }
    Ok(Some(match kind {
        HELLO => {
            let HelloBody { store_id, your_store_id, events_seen, retained_seen } =
                read(kind, body)?;
            PeerFrame::Hello(Hello { store_id, your_store_id, events_seen, retained_seen })
        }
        INTEREST_ALL => PeerFrame::InterestAll(interests(kind, read(kind, body)?)?),
        INTEREST_ADD => PeerFrame::InterestAdd(interests(kind, read(kind, body)?)?),
        INTEREST_REMOVE => {
            let gone: Vec<&str> = read(kind, body)?;
            PeerFrame::InterestRemove(gone.into_iter().map(str::to_owned).collect())
        }
        EVENT => {
            let EventBody { seq, message: written } = read(kind, body)?;
            let message = Arc::new(message(kind, body, written)?);
            PeerFrame::Event { seq, message, shares: None }
        }
        EVENT_ACK => PeerFrame::EventAck { seq: read(kind, body)? },
        RETAINED => retained(kind, body)?,
        RETAINED_SEEN => PeerFrame::RetainedSeen { feed_seq: read(kind, body)? },
        STATE_GREET => PeerFrame::StateGreet { feed_seq: read(kind, body)? },
        STATE => state(kind, body)?,
        STATE_SEEN => PeerFrame::StateSeen { feed_seq: read(kind, body)? },
        BARRIER => PeerFrame::Barrier { number: read(kind, body)? },
        BARRIER_PASSED => PeerFrame::BarrierPassed { number: read(kind, body)? },
        SHADOW => PeerFrame::Shadow(body.clone()),
        _ => return Ok(None),
    }))
}

/// Writes a value without envelope, for exchanges that have their own.
pub(crate) fn write_plain<T: SchemaWrite<WireConfig, Src = T>>(
    value: &T,
) -> Result<Vec<u8>, FrameError> {
    wincode::config::serialize(value, CONFIG)
        .map_err(|error| FrameError::Body { kind: 0, why: error.to_string() })
}

/// Reads what [`write_plain`] wrote, and nothing may follow it.
pub(crate) fn read_plain<'a, T: SchemaRead<'a, WireConfig, Dst = T>>(
    bytes: &'a [u8],
) -> Result<T, FrameError> {
    read(0, bytes)
}

fn written<T: SchemaWrite<WireConfig, Src = T>>(kind: u8, body: &T) -> Result<Bytes, FrameError> {
    written_as(kind, VERSION, body)
}

fn written_as<T: SchemaWrite<WireConfig, Src = T>>(
    kind: u8,
    version: u16,
    body: &T,
) -> Result<Bytes, FrameError> {
    let failed = |error: wincode::WriteError| FrameError::Body { kind, why: error.to_string() };
    let size = wincode::config::serialized_size(body, CONFIG).map_err(failed)? as usize;
    let mut bytes = header_bytes(kind, version, size)?;
    wincode::config::serialize_into(&mut bytes, body, CONFIG).map_err(failed)?;
    Ok(bytes.into())
}

fn raw(kind: u8, body: &[u8]) -> Result<Bytes, FrameError> {
    let mut bytes = header_bytes(kind, VERSION, body.len())?;
    bytes.extend_from_slice(body);
    Ok(bytes.into())
}

fn header_bytes(kind: u8, version: u16, length: usize) -> Result<Vec<u8>, FrameError> {
    if length > BODY_BYTES_MAX {
        return Err(FrameError::TooLarge(length));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + length);
    bytes.extend_from_slice(&[MAJOR, kind]);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(length as u32).to_le_bytes());
    Ok(bytes)
}

fn written_interest(kind: u8, all: &[Interest]) -> Result<Bytes, FrameError> {
    if all.iter().any(|interest| is_shared(&interest.pattern)) {
        let mut bodies = Vec::with_capacity(all.len());
        for &Interest { ref pattern, durable, live } in all {
            bodies.push(SharedInterestBody { pattern, durable, live });
        }
        return written_as(kind, VERSION_SHARED, &bodies);
    }
    let bodies: Vec<_> =
        all.iter().map(|i| InterestBody { pattern: &i.pattern, durable: i.durable }).collect();
    written(kind, &bodies)
}

fn is_shared(pattern: &str) -> bool {
    pattern.starts_with("$share/")
}

fn message_body(message: &Message) -> MessageBody<'_> {
    let properties = message.properties.as_deref().map(|p| PropertiesBody {
        payload_is_utf8: p.payload_is_utf8,
        content_type: p.content_type.as_deref(),
        response_topic: p.response_topic.as_deref(),
        correlation_data: p.correlation_data.as_deref(),
        user: p.user.iter().map(|(key, value)| (&**key, &**value)).collect(),
    });
    MessageBody {
        node: message.id.node.0,
        seq: message.id.seq,
        topic: &message.topic,
        payload: &message.payload,
        qos: message.qos as u8,
        retain: message.retain,
        accepted_wall_ms: message.accepted_wall_ms,
        expiry_s: message.expiry_s,
        properties,
    }
}

fn read<'a, T: SchemaRead<'a, WireConfig, Dst = T>>(
    kind: u8,
    body: &'a [u8],
) -> Result<T, FrameError> {
    wincode::config::deserialize_exact(body, CONFIG)
        .map_err(|error| FrameError::Body { kind, why: error.to_string() })
}

fn interests(kind: u8, bodies: Vec<InterestBody<'_>>) -> Result<Vec<Interest>, FrameError> {
    let one = |InterestBody { pattern, durable }| match TopicFilter::new(pattern) {
        Ok(filter) if filter.share_group().is_none() => {
            Ok(Interest { pattern: pattern.to_owned(), durable, live: false })
        }
        _ => Err(FrameError::Invalid { kind, field: "filter" }),
    };
    bodies.into_iter().map(one).collect()
}

/// A body of the version that names share groups.
fn shared_body(kind: u8, body: &Bytes) -> Result<Option<PeerFrame>, FrameError> {
    let invalid = |field| FrameError::Invalid { kind, field };
    let interest = |body: SharedInterestBody<'_>| match TopicFilter::new(body.pattern) {
        Ok(filter) if filter.share_group().is_some() || !body.live => Ok(Interest {
            pattern: body.pattern.to_owned(),
            durable: body.durable,
            live: body.live,
        }),
        _ => Err(invalid("filter")),
    };
    let interests = || -> Result<Vec<Interest>, FrameError> {
        read::<Vec<SharedInterestBody<'_>>>(kind, body)?.into_iter().map(interest).collect()
    };
    Ok(Some(match kind {
        INTEREST_ALL => PeerFrame::InterestAll(interests()?),
        INTEREST_ADD => PeerFrame::InterestAdd(interests()?),
        EVENT => {
            let SharedEventBody { event, groups, hops } = read(kind, body)?;
            let is_group = |name: &&str| {
                TopicFilter::new(*name).is_ok_and(|filter| filter.share_group().is_some())
            };
            if groups.len() > EVENT_SHARES_MAX || !groups.iter().all(is_group) {
                return Err(invalid("share group"));
            }
            let groups = groups.into_iter().map(str::to_owned).collect();
            PeerFrame::Event {
                seq: event.seq,
                message: Arc::new(message(kind, body, event.message)?),
                shares: Some(Arc::new(Shares { groups, hops, session: None })),
            }
        }
        _ => return Ok(None),
    }))
}

fn session_event(kind: u8, body: &Bytes) -> Result<PeerFrame, FrameError> {
    let SessionEventBody { event, session } = read(kind, body)?;
    let session = Some(body.slice_ref(session));
    let message = Arc::new(message(kind, body, event.message)?);
    let shares = Some(Arc::new(Shares { session, ..Shares::default() }));
    Ok(PeerFrame::Event { seq: event.seq, message, shares })
}

fn state(kind: u8, body: &Bytes) -> Result<PeerFrame, FrameError> {
    let StateBody { feed_seq, key, stamp, node, value } = read(kind, body)?;
    let value = value.map(Bytes::copy_from_slice);
    let (key, stamp, node) = (key.to_owned(), Hlc(stamp), NodeId(node));
    Ok(PeerFrame::State { feed_seq, entry: StateEntry { key, stamp, node, value } })
}

fn retained(kind: u8, body: &Bytes) -> Result<PeerFrame, FrameError> {
    let RetainedBody { feed_seq, topic: name, stamp, node, message: written } = read(kind, body)?;
    topic::check_name(name).map_err(|_| FrameError::Invalid { kind, field: "topic" })?;
    let message = written.map(|written| message(kind, body, written)).transpose()?;
    if message.as_ref().is_some_and(|message| message.topic != name) {
        return Err(FrameError::Invalid { kind, field: "topic of the message" });
    }
    let (stamp, node) = (Hlc(stamp), NodeId(node));
    Ok(PeerFrame::Retained {
        feed_seq,
        entry: RetainedEntry {
            topic: name.to_owned(),
            stamp,
            node,
            message: message.map(Arc::new),
        },
    })
}

fn message(kind: u8, body: &Bytes, written: MessageBody<'_>) -> Result<Message, FrameError> {
    let invalid = |field| FrameError::Invalid { kind, field };
    topic::check_name(written.topic).map_err(|_| invalid("topic"))?;
    if written.topic.len() > usize::from(u16::MAX) {
        return Err(invalid("topic"));
    }
    let properties = written.properties.map(|p| properties(kind, body, &p)).transpose()?;
    Ok(Message {
        id: MessageId { node: NodeId(written.node), seq: written.seq },
        topic: shared(body, written.topic),
        payload: body.slice_ref(written.payload),
        qos: QoS::from_bits(written.qos).ok_or_else(|| invalid("quality of service"))?,
        retain: written.retain,
        properties: properties.map(Box::new),
        accepted_wall_ms: written.accepted_wall_ms,
        expiry_s: written.expiry_s,
    })
}

fn properties(
    kind: u8,
    body: &Bytes,
    written: &PropertiesBody<'_>,
) -> Result<MessageProperties, FrameError> {
    let invalid = |field| FrameError::Invalid { kind, field };
    if written.user.len() > USER_PROPERTIES_MAX {
        return Err(invalid("number of user properties"));
    }
    if written.response_topic.is_some_and(|topic| topic::check_name(topic).is_err()) {
        return Err(invalid("response topic"));
    }
    let mqtt_string = |text: &str| u16::try_from(text.len()).is_ok();
    let strings_fit = written.content_type.is_none_or(mqtt_string)
        && written.response_topic.is_none_or(mqtt_string)
        && written.user.iter().all(|(key, value)| mqtt_string(key) && mqtt_string(value))
        && written.correlation_data.is_none_or(|data| u16::try_from(data.len()).is_ok());
    if !strings_fit {
        return Err(invalid("length of a property"));
    }
    Ok(MessageProperties {
        payload_is_utf8: written.payload_is_utf8,
        content_type: written.content_type.map(|text| shared(body, text)),
        response_topic: written.response_topic.map(|text| shared(body, text)),
        correlation_data: written.correlation_data.map(|data| body.slice_ref(data)),
        user: written
            .user
            .iter()
            .map(|(key, value)| (shared(body, key), shared(body, value)))
            .collect(),
    })
}

/// A text that shares the bytes of the body it stands in.
fn shared(body: &Bytes, text: &str) -> ByteString {
    ByteString::try_from(body.slice_ref(text.as_bytes())).expect("it was a str")
}

#[cfg(test)]
mod tests;
