//! Bridges at both of their ends: sessions of other brokers' bridges, and of this node's own, which come through memory.
//!
//! What leaves over a bridge is marked with the way it has come ([`outpost_bridge::path`]); what comes in and was here
//! before, or came by another way already, is dropped, counted, and acknowledged once its first copy is safe.

use std::collections::BTreeMap;

use bytes::Bytes;
use bytestring::ByteString;
use outpost_bridge::path::{self, BRIDGE_PROPERTY, Seen, Verdict};
use outpost_model::{Message, MessageProperties, Now, QoS};
use outpost_mqtt::packet::{Connect, PacketId, Publish, ReasonCode, SubscribeOptions, Version};

use super::{Cell, ConnId, Shard, Ticket};
use crate::ledger::Drop;

/// Bridges whose state is kept for the `$SYS` tree. Lower: some are missing there; higher: strangers can fill it with
/// client ids.
pub const BRIDGE_STATES_MAX: usize = 256;

/// What kind of client a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Kind {
    /// A device, a program.
    #[default]
    Client,
    /// The bridge of another broker.
    Foreign,
    /// A bridge of this node.
    Own,
}

/// What the shard knows of bridges.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    seen: Seen,
    /// Links of bridges, ours and those of others: whether they are up.
    states: BTreeMap<String, bool>,
}

/// Where the states of bridges stand, before and after their names.
const STATES: &str = "$SYS/broker/connection/";
const STATE: &str = "/state";

/// The bridge that a topic is the state of.
fn bridge_of(topic: &str) -> Option<&str> {
    let name = topic.strip_prefix(STATES)?.strip_suffix(STATE)?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// What a message's path says about taking it.
pub(super) enum Taken {
    /// It came over no bridge.
    Plain,
    /// It came over one, as this event.
    Event(ByteString),
    /// It came over one of two links to the same broker, and does not say where it has been: its topic and payload.
    Noted((ByteString, Bytes)),
    /// It was here before.
    Not,
}

/// A session as people and this node's bridges see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionView {
    /// Its client id.
    pub client_id: ByteString,
    /// A client is connected.
    pub connected: bool,
    /// What it subscribes to.
    pub filters: Vec<ByteString>,
    /// QoS 1 and 2 deliveries it is owed.
    pub queued: u32,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// No more is taken for it.
    pub full: bool,
    /// When the oldest of them that is in memory was accepted, milliseconds since 1970.
    pub oldest_wall_ms: Option<u64>,
    /// QoS 2 ids of its client that are half settled.
    pub received: Vec<PacketId>,
}

impl Shard {
    /// The sessions whose client id begins with `prefix`.
    pub fn sessions(&self, prefix: &str) -> Vec<SessionView> {
        let matching = self.sessions.iter().filter(|(_, slot)| slot.client_id.starts_with(prefix));
        matching
            .map(|(_, slot)| {
                let mut view = SessionView {
                    client_id: slot.client_id(),
                    connected: slot.conn.is_some(),
                    filters: slot
                        .subscriptions
                        .iter()
                        .map(|(filter, _)| (**filter).into())
                        .collect(),
                    queued: slot.queued,
                    queued_bytes: slot.queued_bytes,
                    full: slot.full,
                    ..SessionView::default()
                };
                if let Some(Cell::Session(session)) = self.cells.body(slot.cell) {
                    view.received = session.received().collect();
                    view.oldest_wall_ms = session.outbound.oldest_wall_ms();
                }
                view
            })
            .collect()
    }

    /// What kind of client has connected.
    pub(super) fn kind_of(&self, conn: ConnId, connect: &Connect) -> Kind {
        let own = self.is_own(conn);
        // mosquitto's in version 5 are known by their wills only.
        let will = connect.will.as_ref().and_then(|will| bridge_of(&will.topic));
        let says_so = connect.user.iter().any(|(key, _)| key == BRIDGE_PROPERTY)
            || will == Some(&*connect.client_id);
        match (own, connect.bridge || says_so) {
            (true, _) => Kind::Own,
            (false, true) => Kind::Foreign,
            (false, false) => Kind::Client,
        }
    }

    /// The link of a bridge is up, or no longer: told below `$SYS/broker/connection`, as mosquitto does.
    pub fn set_bridge_state(&mut self, name: &str, is_up: bool, now: Now) {
        self.now = now;
        self.bridge_state(name, is_up);
        self.settle();
    }

    /// The states of bridges, for the `$SYS` tree.
    pub(super) fn bridge_states(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let states = self.bridges.states.iter();
        states.map(|(name, is_up)| (format!("{STATES}{name}{STATE}"), u8::from(*is_up).to_string()))
    }

    /// A will that a bridge of another broker brings to say that it is gone: the node says so itself.
    pub(super) fn take_bridge_will(&mut self, conn: ConnId, connect: &mut Connect) {
        let is_notice = connect.will.as_ref().is_some_and(|will| bridge_of(&will.topic).is_some());
        if is_notice && self.kind_of(conn, connect) == Kind::Foreign {
            connect.user.push((BRIDGE_PROPERTY.into(), "1".into())); // it stays known as one
            connect.will = None;
        }
        if self.kind_of(conn, connect) == Kind::Client
            && let Some(will) = &mut connect.will
        {
            path::strip(&mut will.properties);
        }
    }

    /// A bridge of another broker says that it is up or not: taken, and never sent on.
    pub(super) fn take_notice(&mut self, session: u32, publish: &Publish, ticket: Ticket) -> bool {
        let Some(name) = bridge_of(&publish.topic) else { return false };
        let Some(slot) = self.sessions.get(session as usize) else { return false };
        if slot.kind != Kind::Foreign {
            return false;
        }
        if *slot.client_id == *name {
            self.bridge_state(name, publish.payload.first() == Some(&b'1'));
        }
        self.answer(ticket, ReasonCode::Success);
        true
    }

    /// The connection of a bridge of another broker is gone.
    pub(super) fn bridge_left(&mut self, session: u32) {
        self.twin_down(session);
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let client_id = slot.client_id();
        if slot.kind == Kind::Foreign && self.bridges.states.contains_key(&*client_id) {
            self.bridge_state(&client_id, false);
        }
    }

    fn bridge_state(&mut self, name: &str, is_up: bool) {
        let states = &mut self.bridges.states;
        if states.len() < BRIDGE_STATES_MAX || states.contains_key(name) {
            let before = states.insert(name.to_owned(), is_up);
            if before != Some(is_up) {
                self.tell_sys(&format!("{STATES}{name}{STATE}"));
            }
        }
    }

    /// What a subscription of a bridge that cannot say so itself (3.1.1) asks for.
    pub(super) fn options_of_bridge(
        &self,
        session: u32,
        options: SubscribeOptions,
    ) -> SubscribeOptions {
        let Some(slot) = self.sessions.get(session as usize) else { return options };
        let version = slot.conn.and_then(|conn| self.connection(conn)).map(|c| c.version);
        if slot.kind == Kind::Client || version == Some(Version::V5) {
            return options;
        }
        SubscribeOptions { no_local: true, retain_as_published: true, ..options }
    }

    /// The properties of a message for a bridge: with its path. `None`: as they are.
    pub(super) fn with_path(&self, session: u32, message: &Message) -> Option<MessageProperties> {
        let slot = self.sessions.get(session as usize)?;
        if slot.kind == Kind::Client {
            return None;
        }
        let own = self.broker_name();
        let event = || format!("{own}-{:x}-{:x}", message.id.node.0 as u32, message.id.seq);
        Some(path::extended(message.properties.as_deref(), &own, event))
    }

    /// Whether a message that a client sent is new here. `again`: it had to wait with it, and it was asked about before.
    pub(super) fn judge_path(&mut self, session: u32, publish: &mut Publish, again: bool) -> Taken {
        let kind = self.sessions.get(session as usize).map_or(Kind::Client, |slot| slot.kind);
        if publish.properties.is_none() && kind == Kind::Client {
            return Taken::Plain;
        }
        match path::verdict(publish.properties.as_deref(), &self.broker_name()) {
            Verdict::Loop => Taken::Not,
            // A client that is no bridge could name events of others, whose messages would be dropped then.
            Verdict::New(_) | Verdict::TooFar if kind == Kind::Client => {
                publish.properties.as_deref_mut().map(path::strip);
                publish.properties.take_if(|left| **left == MessageProperties::default());
                Taken::Plain
            }
            Verdict::Untold if kind == Kind::Client => Taken::Plain,
            Verdict::Untold if !again && !publish.dup && self.was_here(session, publish) => {
                Taken::Not
            }
            Verdict::Untold => match self.to_note(session, publish) {
                Some(note) => Taken::Noted(note),
                None => Taken::Plain,
            },
            Verdict::TooFar => Taken::Not,
            Verdict::New(event) if self.bridges.seen.contains(&event) => Taken::Not,
            Verdict::New(event) => Taken::Event(event),
        }
    }

    /// A message of this event was taken: another copy of it will not be.
    pub(super) fn remember_event(&mut self, event: &ByteString) {
        self.bridges.seen.insert(event);
    }

    /// A message that was here before: acknowledged, once the first copy of it is on disk.
    pub(super) fn drop_copy(&mut self, ticket: Ticket) {
        self.ledger.drop_unqueued(Drop::Looped, 1);
        if let Ticket::Client { session, id, qos: QoS::ExactlyOnce, .. } = ticket {
            self.write_received(session, id, true);
        }
        match ticket {
            Ticket::None => {}
            _ if self.journal.is_settled() => self.settle_ticket(ticket, ReasonCode::Success),
            _ => self.hold_ticket(ticket, ReasonCode::Success),
        }
    }

    /// What this broker is called in paths: two nodes of one name, and two stores of one node, are not the same.
    fn broker_name(&self) -> String {
        format!("{:x}-{:x}", self.config.node.0, self.config.store_id)
    }
}
