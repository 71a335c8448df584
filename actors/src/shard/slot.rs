//! What a shard keeps of each session. A million of them may wait for their clients: what few need stands in a box.

use std::sync::Arc;

use bytestring::ByteString;
use outpost_mqtt::packet::Will;

use super::ConnId;
use super::bridges::Kind;
use super::decisions::SessionDrops;
use super::overflow::Ring;
use super::subscriptions::Subscriptions;
use crate::cell::CellId;
use crate::ports::Identity;

/// A moment of the monotonic clock in milliseconds, or never, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) const NEVER: Self = Self(u64::MAX);

    pub(super) fn at(ms: u64) -> Self {
        Self(ms)
    }

    pub(super) fn get(self) -> Option<u64> {
        (self != Self::NEVER).then_some(self.0)
    }
}

/// A will, and when it is said.
#[derive(Debug)]
pub(super) struct Testament {
    pub(super) will: Will,
    pub(super) due_ms: Moment,
}

/// What few sessions have anything of.
#[derive(Debug, Default)]
struct Rare {
    /// A load from disk is under way, from this place on.
    loading: Option<u64>,
    /// Places below this were there when the node started and may have been sent before.
    recovered_below: u64,
    /// What was dropped for it.
    drops: Option<Box<SessionDrops>>,
}

/// What the shard knows of a session.
#[derive(Debug)]
pub(super) struct SessionSlot {
    pub(super) client_id: Box<str>,
    pub(super) user: Option<Arc<str>>,
    /// Names it on disk; never reused.
    pub(super) number: u64,
    pub(super) cell: CellId,
    pub(super) conn: Option<ConnId>,
    pub(super) kind: Kind,
    /// It outlives its connection, and a crash.
    pub(super) durable: bool,
    /// Its row has been synced.
    pub(super) on_disk: bool,
    /// And says how long it outlives its connection.
    pub(super) expiry_kept: bool,
    pub(super) expiry_s: u32,
    /// Place of the next QoS 1 or 2 delivery.
    pub(super) next_place: u64,
    pub(super) queued: u32,
    pub(super) queued_bytes: u64,
    pub(super) full: bool,
    /// The water mark its queue has reached: 0, 1 or 2.
    pub(super) mark: u8,
    /// What its queue is charged with in the memory budget.
    pub(super) charged: u64,
    pub(super) ring: Ring,
    /// Packets to its client that wait for the disk; later ones must not overtake them.
    pub(super) held: u32,
    pub(super) subscriptions: Subscriptions,
    pub(super) will: Option<Box<Testament>>,
    /// The will is on disk.
    pub(super) will_kept: bool,
    pub(super) expires_ms: Moment,
    /// When its deliveries' rows were last written or taken away; see [`super::journal::Journal::mark`].
    pub(super) rows_mark: u32,
    /// And when QoS 2 ids last changed hands.
    pub(super) ids_mark: u32,
    rare: Option<Box<Rare>>,
}

impl SessionSlot {
    /// A session that nobody has connected to yet.
    pub(super) fn new(who: &Identity, number: u64, cell: CellId) -> Self {
        Self {
            client_id: (&*who.client_id).into(),
            user: who.user.clone(),
            number,
            cell,
            conn: None,
            kind: Kind::Client,
            durable: false,
            on_disk: false,
            expiry_kept: false,
            expiry_s: 0,
            next_place: 1,
            queued: 0,
            queued_bytes: 0,
            full: false,
            mark: 0,
            charged: 0,
            ring: None,
            held: 0,
            subscriptions: Subscriptions::default(),
            will: None,
            will_kept: false,
            expires_ms: Moment::NEVER,
            rows_mark: 0,
            ids_mark: 0,
            rare: None,
        }
    }

    /// When its will is said; [`Moment::NEVER`] as long as its client is here, or when there is none.
    pub(super) fn will_due_ms(&self) -> Moment {
        self.will.as_ref().map_or(Moment::NEVER, |will| will.due_ms)
    }

    /// Deliveries that wait for its client.
    pub(super) fn waiting(&self) -> u64 {
        u64::from(self.queued) + self.ring.as_ref().map_or(0, |ring| ring.len() as u64)
    }

    /// Whether what stands on disk promises a client that comes back as much as its CONNACK will: it needs no sync then.
    /// What is written of it now says that it is here; a crash that loses this takes half of its time at most.
    pub(super) fn is_kept(&self, expiry_s: u32, now_ms: u64) -> bool {
        let left_ms =
            self.expires_ms.get().map_or(u64::MAX, |end_ms| end_ms.saturating_sub(now_ms));
        self.on_disk
            && self.expiry_kept
            && !self.will_kept
            && self.expiry_s == expiry_s
            && left_ms >= u64::from(expiry_s) * 1000 / 2
    }

    pub(super) fn identity(&self) -> Identity {
        Identity { client_id: self.client_id(), user: self.user.clone() }
    }

    pub(super) fn client_id(&self) -> ByteString {
        ByteString::from(&*self.client_id)
    }

    /// A load from disk is under way, from this place on.
    pub(super) fn loading(&self) -> Option<u64> {
        self.rare.as_ref()?.loading
    }

    pub(super) fn set_loading(&mut self, from: Option<u64>) {
        if from.is_some() || self.rare.is_some() {
            self.rare.get_or_insert_default().loading = from;
        }
    }

    /// Places below this were there when the node started and may have been sent before.
    pub(super) fn recovered_below(&self) -> u64 {
        self.rare.as_ref().map_or(0, |rare| rare.recovered_below)
    }

    pub(super) fn set_recovered_below(&mut self, place: u64) {
        if place > 0 || self.rare.is_some() {
            self.rare.get_or_insert_default().recovered_below = place;
        }
    }

    /// What was dropped for it.
    pub(super) fn drops(&self) -> Option<&SessionDrops> {
        self.rare.as_ref()?.drops.as_deref()
    }

    pub(super) fn drops_mut(&mut self) -> &mut SessionDrops {
        self.rare.get_or_insert_default().drops.get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_owed_nothing_keeps_little() {
        assert!(size_of::<SessionSlot>() <= 168, "{}", size_of::<SessionSlot>());
    }
}
