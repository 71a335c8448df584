//! One link of a bridge at work: packets of both sides in, packets for both sides out.
//!
//! ```text
//!        this node                                   foreign broker
//!  PUBLISH 7 (QoS 2) ──▶ topic, path, window ──▶ PUBLISH 7
//!  PUBREC 7          ◀──────────────────────── PUBREC 7
//!  PUBREL 7          ────────────────────────▶ PUBREL 7
//!  PUBCOMP 7         ◀──────────────────────── PUBCOMP 7
//! ```
//! The packet id stays what it is, so neither a lost link nor a killed process leaves anything to be remembered here:
//! both sides repeat what was not answered, under the same ids, and both sessions know a repetition when they see one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outpost_model::QoS;
use outpost_mqtt::packet::{Ack, Packet, PacketId, Publish, ReasonCode, Version};

use crate::echo::Echo;
use crate::pace::Pace;
use crate::topics::Rules;

/// Messages that may wait for the window or the rate before no more are taken from this node. They stay in its queue.
pub const WAITING_MAX: usize = 256;

/// Messages of a broker that sends more at once than this node takes from one client. More: the link is given up, and
/// the broker sends them again.
pub const PARKED_MAX: usize = 4_096;

/// What the foreign broker said when the link came up, and how it is to be treated.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The protocol spoken with it.
    pub version: Version,
    /// The highest QoS it takes.
    pub qos_max: QoS,
    /// It takes retained messages, and is to get them.
    pub retain: bool,
    /// It never sends us what we sent it: no-local (5), or it knows that we are a bridge (3.1.1).
    pub no_local: bool,
    /// It has kept our session.
    pub session_present: bool,
}

/// What has to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send to this node.
    ToLocal(Packet),
    /// Send to the foreign broker.
    ToRemote(Packet),
    /// End the link; what is not acknowledged is sent again on the next.
    Broken(String),
}

/// What has crossed, since the counts were made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages sent to the foreign broker, repetitions included.
    pub sent: u64,
    /// QoS 1 and 2 messages it has acknowledged.
    pub acked: u64,
    /// Messages it refused for good: not authorized, a topic it does not want.
    pub refused: u64,
    /// Messages larger than it takes.
    pub too_large: u64,
    /// Messages it sent.
    pub received: u64,
    /// QoS 1 and 2 messages of it that are on disk here, and acknowledged.
    pub taken: u64,
    /// Echoes of our own messages, dropped.
    pub echoes: u64,
    /// Messages, of either side, that fit no rule.
    pub unmatched: u64,
}

/// One link. Made anew each time the link comes up.
#[derive(Debug)]
pub struct Relay {
    rules: Arc<Rules>,
    remote: Remote,
    pace: Pace,
    /// Sent and not acknowledged, since when.
    in_flight: BTreeMap<PacketId, u64>,
    /// Wait for the window or the rate.
    waiting: VecDeque<Box<Publish>>,
    wait_until_ms: Option<u64>,
    /// QoS 2 here, QoS 1 there.
    lowered: BTreeSet<PacketId>,
    /// Messages of the broker that this node has not settled.
    open: BTreeSet<PacketId>,
    open_max: usize,
    parked: VecDeque<Box<Publish>>,
    /// Ids this node still knew from a session the broker has forgotten; their PUBCOMPs are ours.
    swept: BTreeSet<PacketId>,
    echo: Echo,
    counts: Counts,
    steps: VecDeque<Step>,
}

impl Relay {
    /// A link that came up. This node takes `local_receive_max` unacknowledged messages of one client, and still knows
    /// `received`, the ids of half-settled QoS 2 messages of the broker.
    pub fn new(
        rules: Arc<Rules>,
        remote: Remote,
        pace: Pace,
        local_receive_max: u16,
        received: impl IntoIterator<Item = PacketId>,
    ) -> Self {
        let mut relay = Self {
            rules,
            remote,
            pace,
            in_flight: BTreeMap::new(),
            waiting: VecDeque::new(),
            wait_until_ms: None,
            lowered: BTreeSet::new(),
            open: BTreeSet::new(),
            open_max: usize::from(local_receive_max),
            parked: VecDeque::new(),
            swept: BTreeSet::new(),
            echo: Echo::default(),
            counts: Counts::default(),
            steps: VecDeque::new(),
        };
        for id in received {
            if relay.remote.session_present {
                relay.open.insert(id); // it will release it
            } else {
                // It begins to count anew: an id it uses again is another message.
                relay.swept.insert(id);
                relay.steps.push_back(Step::ToLocal(pubrel(id)));
            }
        }
        relay
    }

    /// A packet of this node's side.
    pub fn handle_local(&mut self, packet: Packet, now_ms: u64) {
        match packet {
            Packet::Publish(publish) => {
                self.waiting.push_back(publish);
                self.send_waiting(now_ms);
            }
            Packet::Puback(ack) | Packet::Pubrec(ack) if ack.reason.is_error() => {
                let why = format!("this node did not take a message: {:?}", ack.reason);
                self.steps.push_back(Step::Broken(why));
            }
            Packet::Puback(ack) => {
                self.settled(ack.packet_id);
                self.counts.taken += 1;
                self.steps.push_back(Step::ToRemote(Packet::Puback(plain(&ack))));
            }
            Packet::Pubrec(ack) => {
                self.steps.push_back(Step::ToRemote(Packet::Pubrec(plain(&ack))))
            }
            Packet::Pubcomp(ack) if self.swept.remove(&ack.packet_id) => {}
            Packet::Pubcomp(ack) => {
                self.settled(ack.packet_id);
                self.counts.taken += 1;
                self.steps.push_back(Step::ToRemote(Packet::Pubcomp(plain(&ack))));
            }
            Packet::Pubrel(ack)
                if self.lowered.remove(&ack.packet_id)
                    || self.remote.qos_max < QoS::ExactlyOnce =>
            {
                let done = Packet::Pubcomp(Ack::new(ack.packet_id, ReasonCode::Success));
                self.steps.push_back(Step::ToLocal(done));
            }
            Packet::Pubrel(ack) => self.steps.push_back(Step::ToRemote(pubrel(ack.packet_id))),
            Packet::Suback(suback) => self.subscribed("this node", &suback.reasons),
            Packet::Disconnect(disconnect) => {
                let why = format!("this node closed the bridge's session: {:?}", disconnect.reason);
                self.steps.push_back(Step::Broken(why));
            }
            _ => {}
        }
    }

    /// A packet of the foreign broker.
    pub fn handle_remote(&mut self, packet: Packet, now_ms: u64) {
        match packet {
            Packet::Publish(publish) => self.incoming(publish, now_ms),
            Packet::Puback(ack) => self.answered(&ack, false, now_ms),
            Packet::Pubrec(ack) => self.answered(&ack, true, now_ms),
            Packet::Pubcomp(ack) => {
                self.finished(ack.packet_id, now_ms);
                let done = Ack::new(ack.packet_id, ReasonCode::Success);
                self.steps.push_back(Step::ToLocal(Packet::Pubcomp(done)));
                self.send_waiting(now_ms);
            }
            Packet::Pubrel(ack) => self.steps.push_back(Step::ToLocal(pubrel(ack.packet_id))),
            Packet::Suback(suback) => self.subscribed("the broker", &suback.reasons),
            Packet::Disconnect(disconnect) => {
                let text = disconnect.reason_string.as_deref().unwrap_or_default();
                let why = format!("the broker closed the link: {:?} {text}", disconnect.reason);
                self.steps.push_back(Step::Broken(why.trim_end().to_owned()));
            }
            _ => {}
        }
    }

    /// The broker answered a ping after so long.
    pub fn handle_pong(&mut self, took_ms: u64, now_ms: u64) {
        self.pace.handle_answer(took_ms, now_ms);
        self.send_waiting(now_ms);
    }

    /// A message that [`Step::ToRemote`] named is larger than the broker takes.
    pub fn handle_too_large(&mut self, publish: &Publish) {
        self.counts.sent = self.counts.sent.saturating_sub(1);
        self.counts.too_large += 1;
        if let Some(id) = publish.packet_id {
            self.in_flight.remove(&id);
            let qos = if self.lowered.remove(&id) { QoS::ExactlyOnce } else { publish.qos };
            self.let_go(id, qos, ReasonCode::PacketTooLarge);
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.send_waiting(now_ms);
    }

    /// When [`Relay::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<u64> {
        self.wait_until_ms
    }

    /// What has to be done next.
    pub fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Whether more of this node's packets should be read.
    pub fn wants_local(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// What has crossed since this was last asked.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Messages sent and not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How fast it goes.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// A subscription that is refused would be missed in silence.
    fn subscribed(&mut self, who: &str, reasons: &[ReasonCode]) {
        if let Some((index, reason)) = reasons.iter().enumerate().find(|(_, r)| r.is_error()) {
            let why = format!("{who} refused topic filter number {}: {reason:?}", index + 1);
            self.steps.push_back(Step::Broken(why));
        }
    }

    fn send_waiting(&mut self, now_ms: u64) {
        self.wait_until_ms = None;
        while let Some(publish) = self.waiting.front() {
            let counts = publish.qos > QoS::AtMostOnce;
            if counts && self.in_flight.len() >= self.pace.window() {
                return; // an answer makes room
            }
            if let Err(wait_ms) = self.pace.take(publish.payload.len(), now_ms) {
                self.wait_until_ms = Some(now_ms + wait_ms.max(1));
                return;
            }
            if let Some(publish) = self.waiting.pop_front() {
                self.outgoing(publish, now_ms);
            }
        }
    }

    fn outgoing(&mut self, mut publish: Box<Publish>, now_ms: u64) {
        let Some((topic, qos)) = self.rules.outgoing(&publish.topic) else {
            self.counts.unmatched += 1;
            if let Some(id) = publish.packet_id {
                self.let_go(id, publish.qos, ReasonCode::TopicNameInvalid);
            }
            return;
        };
        if !self.remote.no_local && self.rules.incoming(&topic).is_some() {
            self.echo.sent(&topic, &publish.payload, now_ms);
        }
        publish.topic = topic;
        publish.retain &= self.remote.retain;
        publish.subscription_ids.clear();
        let here = publish.qos;
        publish.qos = here.min(qos).min(self.remote.qos_max);
        self.counts.sent += 1;
        match (publish.packet_id, publish.qos) {
            (Some(id), QoS::AtMostOnce) => {
                publish.packet_id = None;
                publish.dup = false;
                self.steps.push_back(Step::ToRemote(Packet::Publish(publish)));
                self.lowered.insert(id);
                return self.acknowledge(id, here);
            }
            (Some(id), _) => {
                if publish.qos < here {
                    self.lowered.insert(id);
                }
                self.in_flight.insert(id, now_ms);
            }
            (None, _) => {}
        }
        self.steps.push_back(Step::ToRemote(Packet::Publish(publish)));
    }

    /// Tells this node that a message has arrived, in the words of the QoS it sent it with.
    fn acknowledge(&mut self, id: PacketId, qos: QoS) {
        let ack = Ack::new(id, ReasonCode::Success);
        self.steps.push_back(Step::ToLocal(if qos == QoS::ExactlyOnce {
            Packet::Pubrec(ack)
        } else {
            self.lowered.remove(&id);
            Packet::Puback(ack)
        }));
    }

    /// Tells this node that a message will not be delivered, and why: it is done with it.
    fn let_go(&mut self, id: PacketId, qos: QoS, reason: ReasonCode) {
        let ack = Ack::new(id, reason);
        self.steps.push_back(Step::ToLocal(match qos {
            QoS::ExactlyOnce => Packet::Pubrec(ack),
            _ => Packet::Puback(ack),
        }));
    }

    /// The broker's PUBACK or, with `received`, PUBREC.
    fn answered(&mut self, ack: &Ack, received: bool, now_ms: u64) {
        let id = ack.packet_id;
        if ack.reason.is_error() && !is_final(ack.reason) {
            let why = format!("the broker did not take a message: {:?}", ack.reason);
            return self.steps.push_back(Step::Broken(why));
        }
        if ack.reason.is_error() {
            self.in_flight.remove(&id);
            self.counts.refused += 1;
            let qos = if received || self.lowered.remove(&id) {
                QoS::ExactlyOnce
            } else {
                QoS::AtLeastOnce
            };
            self.let_go(id, qos, ack.reason);
        } else if received {
            self.sample(id, now_ms);
            self.steps.push_back(Step::ToLocal(Packet::Pubrec(Ack::new(id, ReasonCode::Success))));
        } else {
            self.sample(id, now_ms);
            self.finished(id, now_ms);
            let qos = if self.lowered.contains(&id) { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
            self.acknowledge(id, qos);
        }
        self.send_waiting(now_ms);
    }

    fn sample(&mut self, id: PacketId, now_ms: u64) {
        if let Some(sent_ms) = self.in_flight.get(&id) {
            self.pace.handle_answer(now_ms.saturating_sub(*sent_ms), now_ms);
        }
    }

    fn finished(&mut self, id: PacketId, _now_ms: u64) {
        self.counts.acked += u64::from(self.in_flight.remove(&id).is_some());
    }

    fn incoming(&mut self, mut publish: Box<Publish>, now_ms: u64) {
        self.counts.received += 1;
        if !self.remote.no_local && self.echo.take(&publish.topic, &publish.payload, now_ms) {
            self.counts.echoes += 1;
            return self.decline(&publish);
        }
        let Some((topic, qos)) = self.rules.incoming(&publish.topic) else {
            self.counts.unmatched += 1;
            return self.decline(&publish);
        };
        publish.topic = topic;
        publish.topic_alias = None;
        publish.subscription_ids.clear();
        if qos == QoS::AtMostOnce && publish.qos > qos {
            // Subscribed by another rule with more; this one asks for less.
            self.decline(&publish);
            (publish.qos, publish.packet_id, publish.dup) = (qos, None, false);
        }
        if !self.parked.is_empty() || !self.has_place(&publish) {
            if self.parked.len() >= PARKED_MAX {
                let why = format!("the broker sends more than {PARKED_MAX} messages at once");
                return self.steps.push_back(Step::Broken(why));
            }
            return self.parked.push_back(publish);
        }
        self.take_in(publish);
    }

    fn has_place(&self, publish: &Publish) -> bool {
        let Some(id) = publish.packet_id else { return true };
        self.open.len() < self.open_max || self.open.contains(&id)
    }

    fn take_in(&mut self, publish: Box<Publish>) {
        self.open.extend(publish.packet_id);
        self.steps.push_back(Step::ToLocal(Packet::Publish(publish)));
    }

    /// This node has settled a message of the broker: there is room for one that is parked.
    fn settled(&mut self, id: PacketId) {
        self.open.remove(&id);
        while let Some(publish) = self.parked.pop_front() {
            if !self.has_place(&publish) {
                return self.parked.push_front(publish);
            }
            self.take_in(publish);
        }
    }

    /// Acknowledges a message that is not wanted here.
    fn decline(&mut self, publish: &Publish) {
        let Some(id) = publish.packet_id else { return };
        let ack = Ack::new(id, ReasonCode::Success);
        self.steps.push_back(Step::ToRemote(match publish.qos {
            QoS::ExactlyOnce => Packet::Pubrec(ack),
            _ => Packet::Puback(ack),
        }));
    }
}

/// Whether a refusal will be the same next time.
fn is_final(reason: ReasonCode) -> bool {
    matches!(
        reason,
        ReasonCode::NotAuthorized
            | ReasonCode::TopicNameInvalid
            | ReasonCode::PayloadFormatInvalid
            | ReasonCode::PacketTooLarge
            | ReasonCode::RetainNotSupported
            | ReasonCode::QoSNotSupported
    )
}

fn pubrel(id: PacketId) -> Packet {
    Packet::Pubrel(Ack::new(id, ReasonCode::Success))
}

/// An acknowledgement without what only our side understands.
fn plain(ack: &Ack) -> Ack {
    Ack::new(ack.packet_id, ReasonCode::Success)
}

#[cfg(test)]
mod tests;
