//! Two links to one broker: a bridge of this node to it, and a bridge of its own to this node. Whatever goes out over one
//! comes back over the other, and no-local does not see it. Messages that carry their way ([`outpost_bridge::path`]) are
//! known by that; the others (3.1.1 has no place for it) by topic and payload, for a while.
//!
//! That both lead to one broker is told by the address of the other end: two brokers behind one address, one of which
//! bridges to here and the other from here, are taken for one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;
use bytestring::ByteString;
use outpost_bridge::echo::Echo;
use outpost_mqtt::packet::Publish;

use super::bridges::Kind;
use super::{LogLevel, Shard};

/// Links of bridges, ours and those of others, that are watched so. Fewer: a loop over another is not seen; more: each
/// link may take a megabyte of notes while it has a twin.
pub const TWIN_LINKS_MAX: usize = 64;

/// The links that are up.
#[derive(Debug, Default)]
pub(super) struct Twins(BTreeMap<u32, Link>);

#[derive(Debug)]
struct Link {
    ip: IpAddr,
    is_own: bool,
    /// What has left over it.
    sent: Echo,
    /// What has come over it.
    came: Echo,
}

impl Twins {
    /// Whether the broker of this link has another one to here, the other way about.
    fn has_twin(&self, session: u32) -> bool {
        self.0.get(&session).is_some_and(|link| self.0.values().any(|other| link.is_twin(other)))
    }
}

impl Link {
    fn is_twin(&self, other: &Self) -> bool {
        self.ip == other.ip && self.is_own != other.is_own
    }
}

impl Shard {
    /// The link of a bridge is up.
    pub(super) fn twin_up(&mut self, session: u32) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let Some(connection) = slot.conn.and_then(|conn| self.connection(conn)) else { return };
        let ip = connection.remote().ip().to_canonical();
        let is_own = slot.kind == Kind::Own;
        if slot.kind == Kind::Client || ip.is_unspecified() || self.twins.0.len() >= TWIN_LINKS_MAX
        {
            return;
        }
        let link = Link { ip, is_own, sent: Echo::default(), came: Echo::default() };
        self.twins.0.insert(session, link);
        if self.twins.has_twin(session) {
            let client_id = &self.sessions[session as usize].client_id;
            let text = format!(
                "bridge {client_id:?}: the broker at {ip} has two links to this node, one that it made and one that this \
                 node made; what comes over both is taken once, and told by topic and payload for 10 s where it does not \
                 say where it has been (MQTT 3.1.1); let only one side bridge"
            );
            self.log(LogLevel::Warn, text);
        }
    }

    /// It is gone.
    pub(super) fn twin_down(&mut self, session: u32) {
        self.twins.0.remove(&session);
    }

    /// A message is written to a bridge for the first time.
    pub(super) fn note_sent(&mut self, session: u32, topic: &str, payload: &[u8]) {
        if self.twins.0.is_empty() || !self.twins.has_twin(session) {
            return;
        }
        if let Some(link) = self.twins.0.get_mut(&session) {
            link.sent.sent(topic, payload, self.now.mono_ms);
        }
    }

    /// Whether a message that a bridge brings was here before, by the other link of the same broker.
    pub(super) fn was_here(&mut self, session: u32, publish: &Publish) -> bool {
        let Some(link) = self.twins.0.get(&session) else { return false };
        let (ip, is_own, now_ms) = (link.ip, link.is_own, self.now.mono_ms);
        let others = self.twins.0.values_mut();
        others.filter(|other| other.ip == ip && other.is_own != is_own).any(|other| {
            other.sent.take(&publish.topic, &publish.payload, now_ms)
                || other.came.take(&publish.topic, &publish.payload, now_ms)
        })
    }

    /// What there is to note of a message that a bridge brings, once it is taken.
    pub(super) fn to_note(&self, session: u32, publish: &Publish) -> Option<(ByteString, Bytes)> {
        let has_twin = !self.twins.0.is_empty() && self.twins.has_twin(session);
        has_twin.then(|| (publish.topic.clone(), publish.payload.clone()))
    }

    /// It is taken.
    pub(super) fn note_came(&mut self, session: u32, (topic, payload): &(ByteString, Bytes)) {
        if let Some(link) = self.twins.0.get_mut(&session) {
            link.came.sent(topic, payload, self.now.mono_ms);
        }
    }
}
