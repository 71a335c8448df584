//! Traces: what goes on with one client or topic, written down while somebody wants to see it, within limits.
//!
//! While there is none, a packet costs the look at one flag.

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::{Message, Now, QoS, TopicFilter};
use outpost_mqtt::packet::{Ack, Packet, PacketId, Publish};
use serde::Serialize;

use super::connection::Phase;
use super::decisions::{Decision, name};
use super::pass::Parcel;
use super::queue::hex;
use super::{ConnId, Event, Shard};

/// Traces at once. More: each packet is compared with each of them.
pub const TRACES_MAX: usize = 8;

/// Records of one trace; it ends there. More: a busy topic fills the disk; fewer: a trace of one ends in seconds.
pub const TRACE_RECORDS_MAX: u64 = 100_000;

/// Bytes of one trace, roughly; it ends there.
pub const TRACE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The longest a trace runs, milliseconds: a day. Longer: one that is forgotten goes on writing.
pub const TRACE_MS_MAX: u64 = 24 * 3600 * 1000;

/// Bytes of a payload that are written down, where payloads are wanted.
pub const TRACE_PAYLOAD_BYTES_MAX: usize = 1024;

/// What a record occupies beside its texts, roughly.
const RECORD_BYTES: u64 = 200;

/// What to trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceTarget {
    /// All packets of a client id, and what is decided about it.
    Client(String),
    /// Messages on topics that match, their deliveries, and what is decided about them.
    Topic(TopicFilter),
}

/// A trace that runs.
#[derive(Debug, Clone, Serialize)]
pub struct TraceInfo {
    /// Its number.
    pub id: u64,
    /// The client id or topic filter, with `client` or `topic` before it.
    pub target: String,
    /// Seconds left.
    pub left_s: u64,
    /// Records so far.
    pub records: u64,
    /// Payloads are written down too.
    pub payload: bool,
}

/// One thing that happened.
#[derive(Debug, Clone, Serialize)]
pub struct TraceRecord {
    /// When, milliseconds since 1970.
    pub wall_ms: u64,
    /// `received` from or `sent` to a client, `accepted` by the node, or what was decided.
    pub what: &'static str,
    /// The client; for `accepted` the publisher, absent when it was no client.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_id: String,
    /// The packet's type.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub packet: &'static str,
    /// Topic, or filters.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub topic: String,
    /// Quality of service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Retain flag.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retain: bool,
    /// It may have been sent before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dup: bool,
    /// Packet id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet_id: Option<u16>,
    /// Reason code's name, or the ledger's reason.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Length of the payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_bytes: Option<usize>,
    /// Its beginning, when payloads are wanted and it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The same in hexadecimal when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_hex: Option<String>,
}

#[derive(Debug)]
struct Trace {
    id: u64,
    target: TraceTarget,
    payload: bool,
    until_ms: u64,
    records: u64,
    bytes: u64,
}

/// The traces that run.
#[derive(Debug, Default)]
pub(super) struct Traces {
    all: Vec<Trace>,
}

impl Traces {
    /// Whether there is any.
    pub(super) fn is_on(&self) -> bool {
        !self.all.is_empty()
    }

    pub(super) fn due_ms(&self) -> Option<u64> {
        self.all.iter().map(|trace| trace.until_ms).min()
    }
}

/// A fact about a packet or a message, borrowed until a trace wants it.
#[derive(Default)]
struct Fact<'a> {
    what: &'static str,
    client_id: &'a str,
    packet: &'static str,
    topic: &'a str,
    qos: Option<QoS>,
    retain: bool,
    dup: bool,
    packet_id: Option<PacketId>,
    reason: String,
    payload: Option<&'a Bytes>,
}

impl Shard {
    /// Starts a trace of this number for at most so long. `false` when there are [`TRACES_MAX`].
    pub fn trace_start(
        &mut self,
        id: u64,
        target: TraceTarget,
        for_ms: u64,
        payload: bool,
        now: Now,
    ) -> bool {
        if self.traces.all.len() >= TRACES_MAX {
            return false;
        }
        let until_ms = now.mono_ms + for_ms.min(TRACE_MS_MAX);
        self.traces.all.push(Trace { id, target, payload, until_ms, records: 0, bytes: 0 });
        true
    }

    /// Ends a trace. `false` when it does not run.
    pub fn trace_stop(&mut self, id: u64) -> bool {
        self.end_traces(|trace| trace.id == id)
    }

    /// The traces that run.
    pub fn trace_list(&self, now: Now) -> Vec<TraceInfo> {
        let info = |trace: &Trace| TraceInfo {
            id: trace.id,
            target: match &trace.target {
                TraceTarget::Client(id) => format!("client {id}"),
                TraceTarget::Topic(filter) => format!("topic {filter}"),
            },
            left_s: trace.until_ms.saturating_sub(now.mono_ms) / 1000,
            records: trace.records,
            payload: trace.payload,
        };
        self.traces.all.iter().map(info).collect()
    }

    pub(super) fn trace_timeout(&mut self) {
        let now_ms = self.now.mono_ms;
        self.end_traces(|trace| trace.until_ms <= now_ms);
    }

    fn end_traces(&mut self, ends: impl Fn(&Trace) -> bool) -> bool {
        let before = self.traces.all.len();
        for trace in self.traces.all.extract_if(.., |trace| ends(trace)) {
            self.events.push_back(Event::TraceEnded(trace.id));
        }
        self.traces.all.len() < before
    }

    /// A packet came from a client (`received`) or goes to one (`sent`).
    #[cold]
    pub(super) fn trace_packet(&mut self, conn: ConnId, what: &'static str, packet: &Packet) {
        let Some(connection) = self.connection(conn) else { return };
        let of_session = match connection.phase {
            Phase::Open(session) => {
                self.sessions.get(session as usize).map(super::slot::SessionSlot::client_id)
            }
            _ => None,
        };
        let waiting = connection.rare.connect().map(|connect| connect.client_id.clone());
        let client_id = of_session.or(waiting).unwrap_or_else(|| match packet {
            Packet::Connect(connect) => connect.client_id.clone(),
            _ => ByteString::new(),
        });
        let mut topics = String::new();
        let mut fact = Fact { what, client_id: &client_id, ..Fact::default() };
        describe(packet, &mut fact, &mut topics);
        if fact.topic.is_empty() {
            fact.topic = &topics;
        }
        self.trace(&fact);
    }

    /// A message goes to a client.
    #[cold]
    pub(super) fn trace_delivery(
        &mut self,
        session: u32,
        parcel: Parcel<'_>,
        packet_id: Option<PacketId>,
        dup: bool,
    ) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let client_id = slot.client_id.clone();
        self.trace(&Fact {
            what: "sent",
            client_id: &client_id,
            packet: "PUBLISH",
            topic: &parcel.message.topic,
            qos: Some(parcel.qos),
            retain: parcel.retain,
            dup,
            packet_id,
            payload: Some(&parcel.message.payload),
            ..Fact::default()
        });
    }

    /// A message was accepted, from a client, a peer or the node itself.
    #[cold]
    pub(super) fn trace_accepted(&mut self, from: Option<u32>, message: &Message) {
        let client_id = from.and_then(|session| self.sessions.get(session as usize));
        let client_id = client_id.map(|slot| slot.client_id.clone()).unwrap_or_default();
        self.trace(&Fact {
            what: "accepted",
            client_id: &client_id,
            topic: &message.topic,
            qos: Some(message.qos),
            retain: message.retain,
            payload: Some(&message.payload),
            ..Fact::default()
        });
    }

    /// Something was refused, dropped or cut off.
    #[cold]
    pub(super) fn trace_decision(&mut self, decision: &Decision) {
        self.trace(&Fact {
            what: decision.kind.name(),
            client_id: &decision.client_id,
            topic: &decision.topic,
            reason: match &*decision.detail {
                "" => decision.reason.to_string(),
                detail => format!("{}: {detail}", decision.reason),
            },
            ..Fact::default()
        });
    }

    fn trace(&mut self, fact: &Fact<'_>) {
        let wall_ms = self.now.wall_ms;
        for trace in &mut self.traces.all {
            let wanted = match &trace.target {
                TraceTarget::Client(id) => id == fact.client_id,
                TraceTarget::Topic(filter) => !fact.topic.is_empty() && filter.matches(fact.topic),
            };
            if !wanted {
                continue;
            }
            let record = fact.record(wall_ms, trace.payload);
            trace.records += 1;
            trace.bytes += record.cost_bytes();
            self.events.push_back(Event::Traced(trace.id, Box::new(record)));
        }
        self.end_traces(|t| t.records >= TRACE_RECORDS_MAX || t.bytes >= TRACE_BYTES_MAX);
    }
}

impl Fact<'_> {
    fn record(&self, wall_ms: u64, with_payload: bool) -> TraceRecord {
        let payload = self.payload.filter(|_| with_payload);
        let payload = payload.map(|bytes| &bytes[..bytes.len().min(TRACE_PAYLOAD_BYTES_MAX)]);
        let text = payload.and_then(|bytes| std::str::from_utf8(bytes).ok());
        TraceRecord {
            wall_ms,
            what: self.what,
            client_id: self.client_id.to_owned(),
            packet: self.packet,
            topic: self.topic.to_owned(),
            qos: self.qos.map(|qos| qos as u8),
            retain: self.retain,
            dup: self.dup,
            packet_id: self.packet_id.map(PacketId::get),
            reason: self.reason.clone(),
            payload_bytes: self.payload.map(Bytes::len),
            payload: text.map(ToOwned::to_owned),
            payload_hex: payload.filter(|_| text.is_none()).map(hex),
        }
    }
}

impl TraceRecord {
    fn cost_bytes(&self) -> u64 {
        let payload = self.payload.as_ref().or(self.payload_hex.as_ref()).map_or(0, String::len);
        RECORD_BYTES + (self.client_id.len() + self.topic.len() + payload) as u64
    }
}

/// Fills in what a packet says. Passwords and the payload of a will are not among it.
fn describe<'a>(packet: &'a Packet, fact: &mut Fact<'a>, topics: &mut String) {
    fact.packet = match packet {
        Packet::Connect(_) => "CONNECT",
        Packet::Connack(connack) => {
            fact.reason = name(connack.reason).into_owned();
            "CONNACK"
        }
        Packet::Publish(publish) => {
            describe_publish(publish, fact);
            "PUBLISH"
        }
        Packet::Puback(ack) => describe_ack(ack, fact, "PUBACK"),
        Packet::Pubrec(ack) => describe_ack(ack, fact, "PUBREC"),
        Packet::Pubrel(ack) => describe_ack(ack, fact, "PUBREL"),
        Packet::Pubcomp(ack) => describe_ack(ack, fact, "PUBCOMP"),
        Packet::Subscribe(subscribe) => {
            fact.packet_id = Some(subscribe.packet_id);
            let filters: Vec<&str> = subscribe.filters.iter().map(|(f, _)| &**f).collect();
            *topics = filters.join(" ");
            "SUBSCRIBE"
        }
        Packet::Suback(suback) | Packet::Unsuback(suback) => {
            fact.packet_id = Some(suback.packet_id);
            let reasons: Vec<_> = suback.reasons.iter().map(|reason| name(*reason)).collect();
            fact.reason = reasons.join(" ");
            if matches!(packet, Packet::Suback(_)) { "SUBACK" } else { "UNSUBACK" }
        }
        Packet::Unsubscribe(unsubscribe) => {
            fact.packet_id = Some(unsubscribe.packet_id);
            let filters: Vec<&str> = unsubscribe.filters.iter().map(|f| &**f).collect();
            *topics = filters.join(" ");
            "UNSUBSCRIBE"
        }
        Packet::Pingreq => "PINGREQ",
        Packet::Pingresp => "PINGRESP",
        Packet::Disconnect(disconnect) => {
            fact.reason = name(disconnect.reason).into_owned();
            "DISCONNECT"
        }
        Packet::Auth(_) => "AUTH",
    };
}

fn describe_publish<'a>(publish: &'a Publish, fact: &mut Fact<'a>) {
    fact.topic = &publish.topic;
    fact.qos = Some(publish.qos);
    (fact.retain, fact.dup) = (publish.retain, publish.dup);
    fact.packet_id = publish.packet_id;
    fact.payload = Some(&publish.payload);
}

fn describe_ack(ack: &Ack, fact: &mut Fact<'_>, packet: &'static str) -> &'static str {
    fact.packet_id = Some(ack.packet_id);
    fact.reason = name(ack.reason).into_owned();
    packet
}
