//! What was refused, dropped or cut off lately, for people who ask why. Only such moments are written down, so the way of
//! a message that arrives does not come past here.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytestring::ByteString;
use outpost_mqtt::packet::ReasonCode;
use serde::Serialize;

use super::slot::SessionSlot;
use super::{ConnId, Shard};
use crate::ledger::Drop;

/// Decisions of one sort that are remembered; the oldest goes. Fewer: a storm hides what came before it; more: memory
/// and longer answers.
pub const DECISIONS_MAX: usize = 1_024;

/// A client id or topic is remembered up to this many bytes: strangers choose them.
const TEXT_BYTES_MAX: usize = 256;

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// A CONNECT was refused.
    ConnectRefused,
    /// A connection ended.
    Disconnected,
    /// A client's PUBLISH was not accepted.
    PublishRefused,
    /// A subscription was not granted.
    SubscribeRefused,
    /// A subscription was taken away: the access rules have changed.
    SubscriptionRevoked,
    /// A delivery was given up.
    Dropped,
}

impl DecisionKind {
    /// As it stands in answers and traces.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect_refused",
            Self::Disconnected => "disconnected",
            Self::PublishRefused => "publish_refused",
            Self::SubscribeRefused => "subscribe_refused",
            Self::SubscriptionRevoked => "subscription_revoked",
            Self::Dropped => "dropped",
        }
    }
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// When, milliseconds since 1970.
    pub wall_ms: u64,
    /// What.
    pub kind: DecisionKind,
    /// About which client; empty when it had not said.
    #[serde(serialize_with = "as_text")]
    pub client_id: ByteString,
    /// On which topic or filter; empty when it was about none.
    #[serde(serialize_with = "as_text")]
    pub topic: ByteString,
    /// Why, in one word: the name of a reason code, or of a reason in the ledger.
    pub reason: Cow<'static, str>,
    /// More, in words.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: Cow<'static, str>,
    /// How often, when the same happened again within the second.
    pub count: u64,
}

fn as_text<S: serde::Serializer>(text: &ByteString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

/// The latest decisions.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    /// Connects refused; connections ended; the rest: one sort must not push out the others.
    rings: [VecDeque<Decision>; 3],
}

impl Decisions {
    fn note(&mut self, decision: Decision) {
        let ring = &mut self.rings[match decision.kind {
            DecisionKind::ConnectRefused => 0,
            DecisionKind::Disconnected => 1,
            _ => 2,
        }];
        if let Some(last) = ring.back_mut().filter(|last| is_same(last, &decision)) {
            last.count += decision.count;
            return;
        }
        if ring.len() == DECISIONS_MAX {
            ring.pop_front();
        }
        ring.push_back(decision);
    }

    /// The newest first, at most `limit` that `fit`.
    pub(super) fn find(&self, limit: usize, fit: impl Fn(&Decision) -> bool) -> Vec<Decision> {
        let fitting = |ring: &VecDeque<Decision>| {
            ring.iter().rev().filter(|d| fit(d)).take(limit).cloned().collect::<Vec<_>>()
        };
        let mut found: Vec<Decision> = self.rings.iter().flat_map(fitting).collect();
        found.sort_by_key(|decision| std::cmp::Reverse(decision.wall_ms));
        found.truncate(limit);
        found
    }
}

fn is_same(last: &Decision, new: &Decision) -> bool {
    last.kind == new.kind
        && last.wall_ms / 1000 == new.wall_ms / 1000
        && last.reason == new.reason
        && last.client_id == new.client_id
        && last.topic == new.topic
}

/// What was dropped for one session, by reason. There once something was.
#[derive(Debug, Default)]
pub(super) struct SessionDrops {
    pub(super) counts: [u64; Drop::ALL.len()],
    /// The reason and the second that were written down last, and how many have come since.
    noted: Option<(Drop, u64)>,
    since: u64,
}

impl SessionDrops {
    /// Counts; how many to write down now. A flood is written down once a second.
    fn count(&mut self, why: Drop, count: u64, wall_ms: u64) -> Option<u64> {
        self.counts[why as usize] += count;
        self.since += count;
        let noted = Some((why, wall_ms / 1000));
        if std::mem::replace(&mut self.noted, noted) == noted {
            return None;
        }
        Some(std::mem::take(&mut self.since))
    }
}

impl Shard {
    fn note(
        &mut self,
        kind: DecisionKind,
        (client_id, topic): (ByteString, &str),
        reason: Cow<'static, str>,
        detail: Cow<'static, str>,
        count: u64,
    ) {
        let wall_ms = self.now.wall_ms;
        let client_id = if client_id.len() > TEXT_BYTES_MAX { cut(&client_id) } else { client_id };
        // Copied: a topic must not keep the packet it came in alive.
        let topic = cut(topic);
        let decision = Decision { wall_ms, kind, client_id, topic, reason, detail, count };
        if self.traces.is_on() {
            self.trace_decision(&decision);
        }
        self.decisions.note(decision);
    }

    fn client_id_of(&self, session: u32) -> ByteString {
        self.sessions.get(session as usize).map(SessionSlot::client_id).unwrap_or_default()
    }

    /// Deliveries to a session were given up; they are counted as owed already.
    pub(super) fn drop_for(&mut self, session: u32, why: Drop, count: u64, topic: &str) {
        self.ledger.drop(why, count);
        self.note_drop(session, why, count, topic);
    }

    /// The same, when somebody else has counted them in the ledger.
    pub(super) fn note_drop(&mut self, session: u32, why: Drop, count: u64, topic: &str) {
        let wall_ms = self.now.wall_ms;
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let drops = slot.drops_mut();
        if let Some(count) = drops.count(why, count, wall_ms) {
            let who = (slot.client_id(), topic);
            self.note(DecisionKind::Dropped, who, why.name().into(), "".into(), count);
        }
    }

    /// A session ended and took its queue with it.
    pub(super) fn note_session_ended(&mut self, slot: &SessionSlot) {
        let (why, count) = (Drop::SessionEnded.name().into(), u64::from(slot.queued));
        let who = (slot.client_id(), "");
        self.note(DecisionKind::Dropped, who, why, "what was queued for it".into(), count);
    }

    pub(super) fn note_connect_refused(
        &mut self,
        conn: ConnId,
        client_id: ByteString,
        reason: ReasonCode,
    ) {
        let detail = self.connection(conn).map(|c| format!("from {}", c.remote()));
        let detail = detail.unwrap_or_default().into();
        self.note(DecisionKind::ConnectRefused, (client_id, ""), name(reason), detail, 1);
    }

    pub(super) fn note_disconnected(
        &mut self,
        session: u32,
        reason: Cow<'static, str>,
        detail: &'static str,
    ) {
        let who = (self.client_id_of(session), "");
        self.note(DecisionKind::Disconnected, who, reason, detail.into(), 1);
    }

    pub(super) fn note_publish_refused(&mut self, session: u32, topic: &str, reason: ReasonCode) {
        let who = (self.client_id_of(session), topic);
        let detail = match reason {
            ReasonCode::QuotaExceeded => "the queue of a receiver, or a table, is full",
            ReasonCode::NotAuthorized => "no access rule allows it",
            _ => "",
        };
        self.note(DecisionKind::PublishRefused, who, name(reason), detail.into(), 1);
    }

    pub(super) fn note_subscribe_refused(
        &mut self,
        session: u32,
        filter: &str,
        reason: ReasonCode,
    ) {
        self.ledger.refused_subscriptions += 1;
        let who = (self.client_id_of(session), filter);
        self.note(DecisionKind::SubscribeRefused, who, name(reason), "".into(), 1);
    }

    pub(super) fn note_revoked(&mut self, session: u32, filter: &str) {
        let who = (self.client_id_of(session), filter);
        let (why, detail) = (name(ReasonCode::NotAuthorized), "the access rules have changed");
        self.note(DecisionKind::SubscriptionRevoked, who, why, detail.into(), 1);
    }
}

/// The name of a reason code, as the standard has it.
pub(super) fn name(reason: ReasonCode) -> Cow<'static, str> {
    format!("{reason:?}").into()
}

fn cut(text: &str) -> ByteString {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(kind: DecisionKind, topic: &str, wall_ms: u64) -> Decision {
        Decision {
            wall_ms,
            kind,
            client_id: "c".into(),
            topic: topic.to_owned().into(),
            reason: "offline".into(),
            detail: "".into(),
            count: 1,
        }
    }

    #[test]
    fn a_storm_of_one_sort_leaves_the_others_and_never_more_than_the_limit() {
        let mut all = Decisions::default();
        all.note(decision(DecisionKind::Dropped, "t", 0));
        let ends = 0..2 * DECISIONS_MAX as u64;
        ends.for_each(|n| all.note(decision(DecisionKind::Disconnected, "", n * 1_000)));
        assert_eq!(all.find(usize::MAX, |_| true).len(), DECISIONS_MAX + 1);
        assert_eq!(all.find(5, |d| d.kind == DecisionKind::Dropped).len(), 1);
        assert_eq!(all.find(2, |_| true)[0].wall_ms, (2 * DECISIONS_MAX as u64 - 1) * 1_000);
    }

    #[test]
    fn a_flood_is_written_down_once_a_second_and_counted_whole() {
        let mut drops = SessionDrops::default();
        let noted: Vec<_> =
            (0..3_000).filter_map(|ms| drops.count(Drop::SlowClient, 1, ms)).collect();
        assert_eq!(noted, [1, 1_000, 1_000]);
        assert_eq!(drops.counts[Drop::SlowClient as usize], 3_000);
    }
}
