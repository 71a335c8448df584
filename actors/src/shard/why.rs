//! Why a message arrives, or does not: who would get what is published on a topic, and what was decided there lately.

use outpost_model::Now;
use outpost_model::topic::pattern_matches;
use serde::Serialize;

use super::channel::Recipient;
use super::decisions::{Decision, DecisionKind};
use super::{DECISIONS_SHOWN_MAX, RetainedInfo, Shard};

/// Receivers of a topic shown; how many there are is said in any case.
pub const RECEIVERS_SHOWN_MAX: usize = 200;

/// Somebody who would get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Receiver {
    /// `client`, `group`, `peer` or `node` (hardware, a program in the node).
    pub kind: &'static str,
    /// The client id; the shared filter; the peer's number.
    pub name: String,
    /// Quality of service it would be delivered with at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// What would become of it now.
    pub fate: &'static str,
}

/// What there is to say about a topic.
#[derive(Debug, Clone, Serialize)]
pub struct TopicWhy {
    /// Who would get it, the first `RECEIVERS_SHOWN_MAX`.
    pub receivers: Vec<Receiver>,
    /// How many there are.
    pub receivers_count: usize,
    /// The message retained there.
    pub retained: Option<RetainedInfo>,
    /// What was refused or dropped there lately, the newest first.
    pub recent: Vec<Decision>,
}

impl Shard {
    /// What there is to say about a topic name.
    pub fn why_topic(&self, topic: &str, now: Now) -> TopicWhy {
        let found = self.find_recipients(topic);
        let shown = found.iter().take(RECEIVERS_SHOWN_MAX);
        TopicWhy {
            receivers: shown.map(|recipient| self.receiver(recipient)).collect(),
            receivers_count: found.len(),
            retained: self.retained_info(topic, now),
            recent: self.decisions.find(DECISIONS_SHOWN_MAX, |decision| {
                let filter = matches!(
                    decision.kind,
                    DecisionKind::SubscribeRefused | DecisionKind::SubscriptionRevoked
                );
                decision.topic == topic || (filter && pattern_matches(&decision.topic, topic))
            }),
        }
    }

    fn receiver(&self, recipient: &Recipient) -> Receiver {
        match recipient {
            Recipient::Session { session, qos, .. } => {
                let slot = self.sessions.get(*session as usize);
                let fate = match slot {
                    Some(slot) if slot.full && *qos as u8 > 0 => {
                        "its queue is full: QoS 1 and 2 are refused or held back, QoS 0 is tried"
                    }
                    Some(slot) if self.lacks_room(slot) && *qos as u8 > 0 => {
                        "the queues of this node are full (limits.node_queue_…): QoS 1 and 2 are refused or held back"
                    }
                    Some(slot) if slot.conn.is_some() => "delivered",
                    Some(_) if *qos as u8 > 0 => "away: QoS 1 and 2 are queued, QoS 0 is dropped",
                    _ => "away: dropped",
                };
                Receiver {
                    kind: "client",
                    name: slot.map(|slot| slot.client_id.to_string()).unwrap_or_default(),
                    qos: Some(*qos as u8),
                    fate,
                }
            }
            Recipient::Group(group) => Receiver {
                kind: "group",
                name: self.group_name(*group),
                qos: None,
                fate: if self.is_group_full(*group) {
                    "no member has room"
                } else {
                    "one member gets it"
                },
            },
            Recipient::Shared(shared) => Receiver {
                kind: "group",
                name: shared.name.to_string(),
                qos: None,
                fate: if self.is_full(recipient) {
                    "no member has room, here or on another node"
                } else {
                    "one member gets it, here or on another node"
                },
            },
            Recipient::Peer { peer, durable, .. } => Receiver {
                kind: "peer",
                name: peer.to_string(),
                qos: None,
                fate: match self.is_full(recipient) {
                    true => "its outbox is full: QoS 1 and 2 are refused or held back",
                    false if *durable => "sent, or kept until its link is up",
                    false => "sent if its link is up",
                },
            },
            Recipient::Local(number) => {
                Receiver { kind: "node", name: number.to_string(), qos: Some(0), fate: "delivered" }
            }
        }
    }
}
