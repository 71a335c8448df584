//! Wills: kept on disk from CONNECT on, so that they are said even when the node dies with the connection (MQTT 5,
//! §3.1.2.5, §3.1.3.2.2).

use bytestring::ByteString;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};
use outpost_model::{Message, MessageId, MessageProperties};
use outpost_mqtt::packet::{Publish, Will};
use outpost_store::{ReadError, Space};

use super::route::Reach;
use super::slot::{Moment, Testament};
use super::{LogLevel, Shard, Ticket};
use crate::ledger::Drop;
use crate::ports::Identity;
use crate::record;

/// Before the client id in the key of a will in `Space::Meta`. Not among the sessions: a client without one has a will.
const PREFIX: &[u8] = b"will/";

/// Wills read at once.
const PAGE: usize = 256;

/// A will that nobody had room for is said again so much later, while its session lasts. Shorter asks full queues more
/// often; longer says it later.
const RETRY_MS: u64 = 1_000;

#[derive(Debug, Encode, Decode)]
struct WillRecord {
    /// Its message, in the form of a message body.
    #[n(0)]
    message: ByteVec,
    #[n(1)]
    delay_s: Option<u32>,
    /// When it is due, milliseconds since 1970; absent while its client is connected.
    #[n(2)]
    due_wall_ms: Option<u64>,
    #[n(3)]
    user: Option<String>,
}

impl Shard {
    /// A client connected with this will, or with none: what was there before goes. True when it is written down.
    pub(super) fn set_will(&mut self, session: u32, will: Option<&Will>) -> bool {
        let slot = &mut self.sessions[session as usize];
        let testament = |will| Box::new(Testament { will, due_ms: Moment::NEVER });
        slot.will = will.cloned().map(testament);
        if will.is_some() {
            self.write_will(session, None);
        } else {
            self.unwrite_will(session);
        }
        will.is_some()
    }

    /// Its client is gone: the will's time runs, on disk too.
    pub(super) fn start_will(&mut self, session: u32, delay_ms: u64) {
        let due_ms = self.now.mono_ms + delay_ms;
        if let Some(will) = &mut self.sessions[session as usize].will {
            will.due_ms = Moment::at(due_ms);
        }
        if delay_ms > 0 {
            self.write_will(session, Some(self.now.wall_ms + delay_ms));
        }
    }

    /// It will not be said.
    pub(super) fn forget_will(&mut self, session: u32) {
        if let Some(slot) = self.sessions.get_mut(session as usize) {
            slot.will = None;
            self.unwrite_will(session);
        }
    }

    /// Says it, in the batch in which its row goes: once, whatever happens.
    pub(super) fn publish_will(&mut self, session: u32) {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return };
        let Some(testament) = slot.will.take() else { return };
        let will = &testament.will;
        let who = slot.identity();
        if !self.may_publish(&who, &will.topic) {
            self.unwrite_will(session);
            return self.ledger.drop_unqueued(Drop::Denied, 1);
        }
        // The shadow service takes no wills, as in AWS IoT; whoever subscribes hears it.
        let to = Reach::Subscribers;
        if self.route_within(publish_of(will), Some(session), Ticket::None, to).is_ok() {
            return self.unwrite_will(session);
        }
        let slot = &mut self.sessions[session as usize];
        let lasts = slot.expires_ms.get().is_some_and(|due_ms| due_ms > self.now.mono_ms);
        if lasts && slot.conn.is_none() {
            let due_ms = Moment::at(self.now.mono_ms + RETRY_MS);
            slot.will = Some(Box::new(Testament { due_ms, ..*testament }));
            return;
        }
        self.unwrite_will(session);
        self.ledger.refused += 1;
        self.ledger.drop_unqueued(Drop::WillRefused, 1);
        let text = format!(
            "the will of client {:?} was not taken: a receiver's queue is full",
            who.client_id
        );
        self.log(LogLevel::Warn, text);
    }

    fn write_will(&mut self, session: u32, due_wall_ms: Option<u64>) {
        let slot = &mut self.sessions[session as usize];
        let Some(Testament { will, .. }) = slot.will.as_deref() else { return };
        slot.will_kept = true;
        let message = Message {
            id: MessageId { node: self.config.node, seq: 0 },
            topic: will.topic.clone(),
            payload: will.payload.clone(),
            qos: will.qos,
            retain: will.retain,
            properties: Some(Box::new(will.properties.clone())),
            accepted_wall_ms: self.now.wall_ms,
            expiry_s: will.expiry_s,
        };
        let record = WillRecord {
            message: record::encode_message(&message).to_vec().into(),
            delay_s: will.delay_s,
            due_wall_ms,
            user: slot.user.as_deref().map(ToOwned::to_owned),
        };
        let key = key_of(&slot.client_id);
        self.journal.put(Space::Meta, key, record::encode(&record));
    }

    fn unwrite_will(&mut self, session: u32) {
        let slot = &mut self.sessions[session as usize];
        if std::mem::take(&mut slot.will_kept) {
            let key = key_of(&slot.client_id);
            self.journal.delete(Space::Meta, key);
        }
    }

    /// At start, after the sessions: the wills of those who were connected when the node died, and of those who were
    /// away for less than their delay. What is due is said at once.
    pub(super) fn recover_wills(&mut self) -> Result<(), ReadError> {
        let mut from = PREFIX.to_vec();
        loop {
            let rows = self.journal.store().scan(Space::Meta, PREFIX, &from, PAGE)?;
            let Some((last, _)) = rows.last() else { break };
            from = [last, &[0][..]].concat();
            for (key, value) in rows {
                if self.recover_will(&key, &value).is_none() {
                    self.log(LogLevel::Warn, "a will cannot be read; it is left out".to_owned());
                    self.journal.delete(Space::Meta, key);
                }
                self.run_cells();
            }
        }
        Ok(())
    }

    fn recover_will(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let client_id = String::from_utf8(key.get(PREFIX.len()..)?.to_vec()).ok()?;
        let record: WillRecord = record::decode("will", value).ok()?;
        let will = will_of(&record)?;
        // Between its batch and the end of its session nothing may change owner: the client id is the session's name.
        let session = self.session_of(&client_id).unwrap_or_else(|| {
            let user = record.user.as_deref().map(Into::into);
            self.new_session(&Identity { client_id: ByteString::from(client_id), user })
        });
        let delay_ms = u64::from(record.delay_s.unwrap_or(0)) * 1000;
        let slot = &mut self.sessions[session as usize];
        // Without a session it ended with the connection; else no later than that.
        let expires_ms = slot.expires_ms.get().unwrap_or(self.now.mono_ms);
        slot.expires_ms = Moment::at(expires_ms);
        // A wall clock that was set meanwhile moves it within its delay, not beyond.
        let left_ms = record
            .due_wall_ms
            .map_or(delay_ms, |due_ms| due_ms.saturating_sub(self.now.wall_ms).min(delay_ms));
        let due_ms = (self.now.mono_ms + left_ms).min(expires_ms);
        slot.will = Some(Box::new(Testament { will, due_ms: Moment::at(due_ms) }));
        slot.will_kept = true;
        if record.due_wall_ms.is_none() && due_ms > self.now.mono_ms {
            self.write_will(session, Some(self.now.wall_ms + left_ms));
        }
        self.session_timeout(session);
        Some(())
    }
}

fn key_of(client_id: &str) -> Vec<u8> {
    [PREFIX, client_id.as_bytes()].concat()
}

fn will_of(record: &WillRecord) -> Option<Will> {
    let message = record::decode_message(&record.message).ok()?;
    Some(Will {
        topic: message.topic,
        payload: message.payload,
        qos: message.qos,
        retain: message.retain,
        delay_s: record.delay_s,
        expiry_s: message.expiry_s,
        properties: message.properties.map(|properties| *properties).unwrap_or_default(),
    })
}

fn publish_of(will: &Will) -> Publish {
    Publish {
        dup: false,
        qos: will.qos,
        retain: will.retain,
        topic: will.topic.clone(),
        packet_id: None,
        payload: will.payload.clone(),
        topic_alias: None,
        expiry_s: will.expiry_s,
        subscription_ids: Vec::new(),
        properties: (will.properties != MessageProperties::default())
            .then(|| Box::new(will.properties.clone())),
    }
}
