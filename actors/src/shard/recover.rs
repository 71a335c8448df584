//! What the store remembers, put back at start. Nothing is loaded that can wait: messages stay on disk.

use std::collections::{BTreeMap, BTreeSet};

use outpost_model::{Hlc, HlcClock, MessageId, NodeId, TopicFilter};
use outpost_mqtt::packet::PacketId;
use outpost_mqtt::session::Session;
use outpost_mqtt::window::{HOT_MAX, Outbound};
use outpost_store::{ReadError, Space};

use super::sessions::{place_of, received_id};
use super::slot::Moment;
use super::subscribe::options_of;
use super::{Cell, Hold, LogLevel, Remains, Shard};
use crate::ports::Identity;
use crate::record::{self, DeliveryRecord, RetainedFloor, SessionRecord, SubscriptionRecord};

/// Key of the reservation of message numbers in `Space::Meta`.
pub(super) const MESSAGE_BLOCK_KEY: &[u8] = b"message_seq_reserved";

/// Sessions by their numbers.
type Numbers = hashbrown::HashMap<u64, u32>;

/// What the rows of one session's queue say.
#[derive(Default)]
struct Owing {
    /// The first place.
    first: Option<u64>,
    received: Vec<PacketId>,
}

impl Shard {
    pub(super) fn recover(&mut self) -> Result<(), ReadError> {
        if let Some(value) = self.journal.store().get(Space::Meta, MESSAGE_BLOCK_KEY)? {
            self.message_seq =
                value.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
            self.message_seq_reserved = self.message_seq;
        }
        let newest = self.recover_state()?;
        self.recover_retained(newest)?;
        self.each_row(Space::Peers, |shard, key, value| {
            if shard.recover_peer_row(key, value).is_none() {
                shard.log(
                    LogLevel::Warn,
                    "a record of a peer cannot be read; it is left out".to_owned(),
                );
            }
        })?;
        self.each_row(Space::Outbox, |shard, key, row| {
            if shard.recover_outbox_row(key, row).is_none() {
                shard.log(
                    LogLevel::Warn,
                    "a record of the outbox cannot be read; it is left out".to_owned(),
                );
            }
        })?;
        self.each_row(Space::Sessions, Self::recover_session)?;
        let numbers = self.sessions.iter().map(|(i, s)| (s.number, i as u32)).collect();
        self.recover_subscriptions(&numbers)?;
        self.recover_queues(&numbers)?;
        self.begin_body_sweep()?;
        self.review_all();
        // Before any will finds a receiver that may not have it.
        self.check_rights()?;
        self.recover_wills()?;
        self.answer_owners();
        Ok(())
    }

    fn each_row(
        &mut self,
        space: Space,
        mut take: impl FnMut(&mut Self, &[u8], &[u8]),
    ) -> Result<(), ReadError> {
        let store = self.journal.shared_store();
        store.visit(space, &[], &mut |key, value| take(self, key, value))
    }

    fn recover_retained(&mut self, mut newest: Hlc) -> Result<(), ReadError> {
        let mut own = Hlc::default();
        self.each_row(Space::Retained, |shard, key, value| {
            match record::decode_retained(key, value) {
                Ok((entry, feed_seq)) => {
                    newest = newest.max(entry.stamp);
                    if entry.node == shard.config.node {
                        own = own.max(entry.stamp);
                    }
                    shard.retained.restore(shard.config.node, entry, feed_seq);
                }
                Err(error) => {
                    shard.retained.lacks_rows = true;
                    shard.log(LogLevel::Warn, format!("{error}; peers are asked for it"));
                }
            }
        })?;
        let floor = self.journal.store().get(Space::Meta, super::retained_feed::FLOOR_KEY)?;
        let floor: RetainedFloor = match floor.map(|row| record::decode("retained floor", &row)) {
            Some(Ok(floor)) => floor,
            Some(Err(error)) => {
                self.log(LogLevel::Warn, error.to_string());
                RetainedFloor::default()
            }
            None => RetainedFloor::default(),
        };
        self.retained.map.raise_place(floor.feed_seq);
        let known = floor.own.filter(|_| !self.retained.lacks_rows);
        self.retained.own.span = known.map(|(first, last)| (Hlc(first), Hlc(last).max(own)));
        self.clock = HlcClock::new(newest.max(Hlc(floor.stamp)));
        Ok(())
    }

    fn recover_session(&mut self, key: &[u8], value: &[u8]) {
        let record: Result<SessionRecord, _> = record::decode("session", value);
        let (Ok(record), Ok(client_id)) = (record, String::from_utf8(key.to_vec())) else {
            return self.log(
                LogLevel::Warn,
                "a session record cannot be read; the session is left out".to_owned(),
            );
        };
        let who = Identity {
            client_id: client_id.into(),
            user: record.username.as_deref().map(Into::into),
        };
        let newest = self.session_number.max(record.number);
        let session = self.new_session(&who);
        self.session_number = newest;
        // Where it was connected until now, its time begins with this start.
        let away_s =
            record.left_wall_ms.map_or(0, |left| self.now.wall_ms.saturating_sub(left) / 1000);
        let left_s = u64::from(record.expiry_s).saturating_sub(away_s);
        let slot = &mut self.sessions[session as usize];
        (slot.number, slot.durable, slot.expiry_s) = (record.number, true, record.expiry_s);
        (slot.on_disk, slot.expiry_kept) = (true, true);
        slot.expires_ms = Moment::at(self.now.mono_ms + left_s * 1000);
        self.session_wheel.set(session, self.now.mono_ms + left_s * 1000);
        if let Some(to) = record.leaves_to {
            self.recover_leaving(session, NodeId(to), record.is_told == Some(true));
        }
    }

    /// One walk over all of them: a look for each session would take a million sessions half a minute.
    fn recover_subscriptions(&mut self, numbers: &Numbers) -> Result<(), ReadError> {
        self.each_row(Space::Subscriptions, |shard, key, value| {
            let Some(session) = number_of(key).and_then(|number| numbers.get(&number)) else {
                return; // of a session that could not be read
            };
            if shard.recover_subscription(*session, &key[8..], value).is_none() {
                shard.log(
                    LogLevel::Warn,
                    "a subscription record cannot be read; it is left out".to_owned(),
                );
            }
        })
    }

    fn recover_subscription(&mut self, session: u32, filter: &[u8], value: &[u8]) -> Option<()> {
        let filter = TopicFilter::new(std::str::from_utf8(filter).ok()?).ok()?;
        let record: SubscriptionRecord = record::decode("subscription", value).ok()?;
        if self.sessions[session as usize].subscriptions.len() < self.config.subscriptions_max {
            self.insert_subscription(session, &filter, options_of(record.options), record.id);
        }
        Some(())
    }

    /// Counts what is owed to each session; rows of sessions that are no more are cleared away.
    fn recover_queues(&mut self, numbers: &Numbers) -> Result<(), ReadError> {
        let mut orphans = BTreeSet::new();
        let mut owing: BTreeMap<u32, Owing> = BTreeMap::new();
        self.each_row(Space::Queues, |shard, key, value| {
            let Some(number) = number_of(key) else { return };
            let record = record::decode::<DeliveryRecord>("delivery", value);
            if let (Some(0), Ok(record)) = (key.get(8), &record) {
                shard.journal.count_body(MessageId { node: NodeId(record.node), seq: record.seq });
            }
            let Some(session) = numbers.get(&number) else {
                // Their numbers are taken until they are gone.
                shard.session_number = shard.session_number.max(number);
                orphans.insert(number);
                return;
            };
            let owing = owing.entry(*session).or_default();
            match (key.get(8), place_of(key)) {
                (Some(0), Some(place)) => {
                    owing.first.get_or_insert(place);
                    let bytes = record.as_ref().ok().and_then(|record| record.bytes).unwrap_or(0);
                    shard.count_owed(*session, place, bytes.into());
                }
                _ => owing.received.extend(received_id(key)),
            }
        })?;
        for (_, slot) in &mut self.sessions {
            if slot.next_place > 1 {
                slot.set_recovered_below(slot.next_place);
            }
        }
        // The others owe nothing and are as they were made.
        for (session, Owing { first, received }) in owing {
            let slot = &mut self.sessions[session as usize];
            slot.full = slot.queued >= self.config.queue_messages_max
                || slot.queued_bytes >= self.config.queue_bytes_max;
            self.full_sessions += u32::from(slot.full);
            let (cell, upto) = (slot.cell, slot.next_place);
            let outbound = Outbound::from_disk(first.unwrap_or(upto)..upto);
            let body = Session::from_disk(received, outbound);
            self.cells.revive(cell, Cell::Session(Box::new(body)));
        }
        for number in orphans {
            let (sent, unsure, counted) = (BTreeSet::new(), HOT_MAX, false);
            self.journal.hold_for_reading(Hold::Sweep(Remains { number, sent, unsure, counted }));
        }
        Ok(())
    }

    fn count_owed(&mut self, session: u32, place: u64, bytes: u64) {
        let slot = &mut self.sessions[session as usize];
        slot.next_place = slot.next_place.max(place + 1);
        slot.queued += 1;
        slot.queued_bytes += bytes;
        self.ledger.owed += 1;
        self.add_to_node_queue(bytes);
    }
}

/// The number of the session a row belongs to.
fn number_of(key: &[u8]) -> Option<u64> {
    key.get(..8)?.try_into().ok().map(u64::from_be_bytes)
}
