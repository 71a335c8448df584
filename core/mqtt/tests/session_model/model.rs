//! What a session may answer: the model, which knows what went in and sees what comes out.

use std::collections::{BTreeMap, VecDeque};

use outpost_model::QoS;
use outpost_mqtt::packet::{Packet, PacketId, ReasonCode, Version};
use outpost_mqtt::session::{Effect, End};
use outpost_mqtt::window::Delivery;

/// How far a delivery is, as its client sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Waits,
    /// Sent on this connection.
    Sent,
    /// Sent on an earlier one.
    SentBefore,
    /// PUBREC was given.
    Received,
    /// The same, on an earlier connection: PUBREL is due again.
    ReceivedBefore,
    Done,
}

#[derive(Debug)]
pub struct Owed {
    pub qos: QoS,
    pub stage: Stage,
    pub id: Option<PacketId>,
}

/// How far a publish of the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// Passed on, not yet safe.
    Passed,
    /// PUBREC was due.
    Answered,
}

/// What has to come back, and what may.
#[derive(Debug, Default)]
pub struct Model {
    pub version: Option<Version>,
    pub client_max: usize,
    pub owed: BTreeMap<u64, Owed>,
    pub qos_1: Vec<PacketId>,
    pub qos_2: BTreeMap<PacketId, Taken>,
    /// Publishes of this connection that are not settled.
    pub unsettled: usize,
    /// Answers that are due, in order for each kind.
    pub due: VecDeque<Packet>,
    pub passed_on: usize,
    pub fails: Option<ReasonCode>,
}

impl Model {
    pub fn settle_one(&mut self) {
        self.unsettled = self.unsettled.saturating_sub(1);
    }

    pub fn in_flight(&self) -> usize {
        let open =
            |o: &&Owed| matches!(o.stage, Stage::Sent | Stage::Received | Stage::ReceivedBefore);
        self.owed.values().filter(open).count()
    }

    pub fn see(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Deliver { delivery, id, dup } => self.see_delivery(&delivery, id, dup),
            Effect::Send(Packet::Pubrel(a)) if self.released_again(a.packet_id) => Ok(()),
            Effect::Send(packet) | Effect::SendDurable(packet) => self.see_answer(&packet),
            Effect::Publish(publish) => {
                if self.passed_on == 0 {
                    return Err(format!("passed on twice: {publish:?}"));
                }
                self.passed_on -= 1;
                Ok(())
            }
            Effect::Fail(reason, text) => match self.fails.take() {
                Some(expected) if expected == reason => Ok(()),
                expected => Err(format!("failed with {reason:?} ({text}), expected {expected:?}")),
            },
            Effect::Done { delivery, end } => {
                let owed = self.owed.get(&delivery.place);
                let fits = owed.is_some_and(|o| o.stage == Stage::Done)
                    && matches!(end, End::Delivered | End::Refused);
                if fits { Ok(()) } else { Err(format!("done too early: {delivery:?}")) }
            }
            Effect::Released(delivery) => {
                let stage = self.owed.get(&delivery.place).map(|o| o.stage);
                let fits = matches!(stage, Some(Stage::Received | Stage::ReceivedBefore));
                if fits { Ok(()) } else { Err(format!("released too early: {delivery:?}")) }
            }
            Effect::Forgotten(id) => {
                let known = self.qos_2.contains_key(&id);
                if known { Err(format!("{id} is forgotten and in use")) } else { Ok(()) }
            }
            Effect::Load(..) => Ok(()),
            other => Err(format!("nobody expects {other:?}")),
        }
    }

    pub fn see_delivery(
        &mut self,
        delivery: &Delivery,
        id: Option<PacketId>,
        dup: bool,
    ) -> Result<(), String> {
        let place = delivery.place;
        let Some(version) = self.version else { return Err("nobody is connected".to_owned()) };
        let id = id.ok_or("QoS 1 and 2 have an id [MQTT-2.2.1-2]")?;
        let in_use = self.owed.iter().any(|(other, owed)| {
            *other != place
                && owed.id == Some(id)
                && !matches!(owed.stage, Stage::Waits | Stage::Done)
        });
        if in_use {
            return Err(format!("{id} is in use [MQTT-2.2.1-4]"));
        }
        let earlier_waits = self
            .owed
            .range(..place)
            .any(|(_, owed)| matches!(owed.stage, Stage::Waits | Stage::SentBefore));
        if earlier_waits {
            return Err(format!("place {place} overtakes [MQTT-4.6.0-6]"));
        }
        if self.in_flight() >= self.client_max {
            return Err(format!("{version:?}: more than {} in flight", self.client_max));
        }
        let owed = self.owed.get_mut(&place).ok_or("nobody owes that")?;
        let was_sent = match owed.stage {
            Stage::Waits => false,
            Stage::SentBefore => true,
            other => {
                return Err(format!("place {place} is sent in stage {other:?} [MQTT-4.4.0-1]"));
            }
        };
        if dup != was_sent {
            return Err(format!("DUP is {dup} and was sent is {was_sent} [MQTT-3.3.1-1]"));
        }
        if was_sent && owed.id != Some(id) {
            return Err(format!("sent again as {id} [MQTT-4.4.0-1], was {:?}", owed.id));
        }
        (owed.stage, owed.id) = (Stage::Sent, Some(id));
        Ok(())
    }

    /// PUBREL of an earlier connection, said again (§4.4).
    pub fn released_again(&mut self, id: PacketId) -> bool {
        let earlier = |o: &&mut Owed| o.id == Some(id) && o.stage == Stage::ReceivedBefore;
        let Some(owed) = self.owed.values_mut().find(earlier) else { return false };
        owed.stage = Stage::Received;
        true
    }

    /// Answers to one input come in its order; deliveries may stand between them.
    pub fn see_answer(&mut self, packet: &Packet) -> Result<(), String> {
        if self.due.front() == Some(packet) {
            self.due.pop_front();
            return Ok(());
        }
        Err(format!("answered {packet:?}, due was {:?}", self.due))
    }
}
