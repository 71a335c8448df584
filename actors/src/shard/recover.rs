//! What the store remembers, put back at start. Nothing is loaded that can wait: messages stay on disk.

use outpost_model::{Hlc, HlcClock, MessageId, NodeId, TopicFilter};
use outpost_mqtt::session::Session;
use outpost_mqtt::window::{HOT_MAX, Outbound};
use outpost_store::{ReadError, Row, Space};

use super::sessions::{place_of, queue_key};
use super::subscribe::options_of;
use super::{Cell, Hold, LogLevel, Remains, Shard};
use crate::ports::Identity;
use crate::record::{self, DeliveryRecord, SessionRecord, SubscriptionRecord};

/// Key of the reservation of message numbers in `Space::Meta`.
pub(super) const MESSAGE_BLOCK_KEY: &[u8] = b"message_seq_reserved";

/// Rows read at once.
const PAGE: usize = 1_024;

impl Shard {
    pub(super) fn recover(&mut self) -> Result<(), ReadError> {
        if let Some(value) = self.journal.store().get(Space::Meta, MESSAGE_BLOCK_KEY)? {
            self.message_seq =
                value.get(..8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes);
            self.message_seq_reserved = self.message_seq;
        }
        self.recover_retained()?;
        self.each_row(Space::Peers, |shard, (key, value)| {
            if shard.recover_peer_row(&key, &value).is_none() {
                shard.log(
                    LogLevel::Warn,
                    "a record of a peer cannot be read; it is left out".to_owned(),
                );
            }
        })?;
        self.each_row(Space::Outbox, |shard, (key, _)| {
            if shard.recover_outbox_row(&key).is_none() {
                shard.log(
                    LogLevel::Warn,
                    "a record of the outbox cannot be read; it is left out".to_owned(),
                );
            }
        })?;
        self.each_row(Space::Sessions, |shard, (key, value)| shard.recover_session(&key, &value))?;
        self.recover_queues()?;
        self.recover_bodies()?;
        self.recover_wills()
    }

    fn each_row(
        &mut self,
        space: Space,
        mut take: impl FnMut(&mut Self, Row),
    ) -> Result<(), ReadError> {
        let mut from = Vec::new();
        loop {
            let rows = self.journal.store().scan(space, &[], &from, PAGE)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = [last, &[0][..]].concat();
            rows.into_iter().for_each(|row| take(self, row));
        }
    }

    fn recover_retained(&mut self) -> Result<(), ReadError> {
        let mut newest = Hlc::default();
        self.each_row(Space::Retained, |shard, (key, value)| {
            match record::decode_retained(&key, &value) {
                Ok((entry, feed_seq)) => {
                    newest = newest.max(entry.stamp);
                    shard.retained.insert(entry, feed_seq);
                }
                Err(error) => shard.log(LogLevel::Warn, error.to_string()),
            }
        })?;
        self.clock = HlcClock::new(newest);
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
        slot.on_disk = true;
        slot.expires_ms = Some(self.now.mono_ms + left_s * 1000);
        self.session_wheel.set(session, self.now.mono_ms + left_s * 1000);
        self.recover_subscriptions(session, record.number);
    }

    fn recover_subscriptions(&mut self, session: u32, number: u64) {
        let most = self.config.subscriptions_max;
        let rows = self
            .journal
            .store()
            .scan(Space::Subscriptions, &number.to_be_bytes(), &[], most)
            .unwrap_or_default();
        for (key, value) in rows {
            let filter = String::from_utf8(key[8..].to_vec())
                .ok()
                .and_then(|text| TopicFilter::new(text).ok());
            match (filter, record::decode::<SubscriptionRecord>("subscription", &value)) {
                (Some(filter), Ok(record)) => {
                    self.insert_subscription(
                        session,
                        &filter,
                        options_of(record.options),
                        record.id,
                    );
                }
                _ => self.log(
                    LogLevel::Warn,
                    "a subscription record cannot be read; it is left out".to_owned(),
                ),
            }
        }
    }

    /// Counts what is owed to each session; rows of sessions that are no more are cleared away.
    fn recover_queues(&mut self) -> Result<(), ReadError> {
        let numbers: hashbrown::HashMap<u64, u32> =
            self.sessions.iter().map(|(i, s)| (s.number, i as u32)).collect();
        let mut orphans = std::collections::BTreeSet::new();
        self.each_row(Space::Queues, |shard, (key, value)| {
            let Some(number) = key.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes)
            else {
                return;
            };
            let place = place_of(&key);
            let record = record::decode::<DeliveryRecord>("delivery", &value);
            if let (Some(0), Ok(record)) = (key.get(8), &record) {
                shard.journal.count_body(MessageId { node: NodeId(record.node), seq: record.seq });
            }
            match (numbers.get(&number), place) {
                (None, _) => {
                    // Their numbers are taken until they are gone.
                    shard.session_number = shard.session_number.max(number);
                    orphans.insert(number);
                }
                (Some(session), Some(place)) if key[8] == 0 => {
                    let bytes = record.as_ref().ok().and_then(|record| record.bytes).unwrap_or(0);
                    shard.count_owed(*session, place, bytes.into());
                }
                _ => {}
            }
        })?;
        for session in numbers.into_values() {
            let slot = &mut self.sessions[session as usize];
            (slot.recovered_below, slot.full) = (
                slot.next_place,
                slot.queued >= self.config.queue_messages_max
                    || slot.queued_bytes >= self.config.queue_bytes_max,
            );
            self.full_sessions += u32::from(slot.full);
            let (cell, number, upto) = (slot.cell, slot.number, slot.next_place);
            let first = self.first_place(number).unwrap_or(upto);
            let body =
                Session::from_disk(self.read_received(number), Outbound::from_disk(first..upto));
            self.cells.revive(cell, Cell::Session(Box::new(body)));
        }
        for number in orphans {
            let (sent, unsure, counted) = (std::collections::BTreeSet::new(), HOT_MAX, false);
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
    }

    fn first_place(&self, number: u64) -> Option<u64> {
        let prefix = queue_key(number, 0)[..9].to_vec();
        let rows = self.journal.store().scan(Space::Queues, &prefix, &[], 1).ok()?;
        rows.first()?.0.get(9..17)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// Bodies nobody needs any more are cleared away.
    fn recover_bodies(&mut self) -> Result<(), ReadError> {
        self.each_row(Space::Messages, |shard, (key, _)| {
            if MessageId::from_bytes(&key).is_none_or(|id| !shard.journal.is_needed(id)) {
                shard.journal.delete(Space::Messages, key);
            }
        })
    }
}
