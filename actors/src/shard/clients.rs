//! Clients as people see them: who is here, who is away, what each of them costs; and the way out for one.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use outpost_model::Now;
use outpost_mqtt::packet::{ReasonCode, Version};
use serde::Serialize;

use super::channel::Owner;
use super::decisions::Decision;
use super::slot::SessionSlot;
use super::{Cell, Shard};
use crate::ledger::Drop;
use crate::ports::Identity;

/// Clients in one page at most. More: one answer holds the data thread for longer; fewer: lists take more requests.
pub const CLIENTS_PAGE_MAX: usize = 1_000;

/// Sessions looked at for one page. More: a filter that fits few holds the data thread for longer; fewer: it takes more
/// requests to find them.
pub const CLIENTS_SCANNED_MAX: usize = 20_000;

/// Subscriptions shown of one client.
pub const SUBSCRIPTIONS_SHOWN_MAX: usize = 1_000;

/// Recent decisions shown about one client or topic.
pub const DECISIONS_SHOWN_MAX: usize = 50;

/// Which clients to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientFilter {
    /// The client id begins so.
    pub prefix: String,
    /// Only those with a connection, or only those without.
    pub connected: Option<bool>,
    /// Only those of this user.
    pub user: Option<String>,
    /// Only those on this listener.
    pub listener: Option<String>,
    /// Only those with something queued.
    pub queued: bool,
    /// Where to go on: what the last page said.
    pub after: usize,
    /// At most so many.
    pub limit: usize,
}

/// Some clients, in no order that means anything.
#[derive(Debug, Clone, Serialize)]
pub struct ClientPage {
    /// The clients.
    pub clients: Vec<ClientInfo>,
    /// Where to go on; there may be none left even so.
    pub next: Option<usize>,
}

/// The connection of a client. Counters are of this connection.
#[derive(Debug, Clone, Serialize)]
pub struct LinkInfo {
    /// The other end.
    pub address: String,
    /// Name of the listener it came by.
    pub listener: String,
    /// `3.1`, `3.1.1` or `5`.
    pub version: &'static str,
    /// Seconds it may be silent; 0 for ever.
    pub keep_alive_s: u64,
    /// How long it has been here.
    pub connected_s: u64,
    /// How long since its last packet.
    pub idle_s: u64,
    /// Bytes waiting to be written to it.
    pub unwritten_bytes: usize,
    /// Its publishes that wait because a receiver's queue is full.
    pub held_back: usize,
    /// Bytes from it.
    pub bytes_received: u64,
    /// Bytes to it.
    pub bytes_sent: u64,
    /// PUBLISH packets from it, by QoS.
    pub publishes_received: [u64; 3],
    /// PUBLISH packets to it, by QoS.
    pub publishes_sent: [u64; 3],
}

/// One client.
#[derive(Debug, Clone, Serialize)]
pub struct ClientInfo {
    /// Its id.
    pub client_id: String,
    /// The name it proved.
    pub user: Option<String>,
    /// Present while it is connected.
    pub connection: Option<LinkInfo>,
    /// Seconds its session outlives its connection.
    pub session_expiry_s: u32,
    /// Seconds until it ends, while its client is away.
    pub session_ends_in_s: Option<u64>,
    /// It has left a will.
    pub will: bool,
    /// Subscriptions.
    pub subscriptions: usize,
    /// QoS 1 and 2 deliveries owed.
    pub queued: u32,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// How many of them were sent and not acknowledged.
    pub in_flight: usize,
    /// The queue is full: its publishers are refused or held back.
    pub full: bool,
    /// Deliveries given up since the session or the process began, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// One subscription.
#[derive(Debug, Clone, Serialize)]
pub struct SubscriptionInfo {
    /// As the client wrote it.
    pub filter: String,
    /// Granted.
    pub qos: u8,
    /// Not its own messages.
    pub no_local: bool,
    /// The retain flag as published.
    pub retain_as_published: bool,
    /// Its number.
    pub id: Option<u32>,
}

/// Everything about one client.
#[derive(Debug, Clone, Serialize)]
pub struct ClientDetail {
    /// What the list shows too.
    #[serde(flatten)]
    pub info: ClientInfo,
    /// Its subscriptions, the first [`SUBSCRIPTIONS_SHOWN_MAX`].
    pub filters: Vec<SubscriptionInfo>,
    /// Topic of its will.
    pub will_topic: Option<String>,
    /// Room in its queue, messages.
    pub queue_messages_limit: u32,
    /// Room in its queue, bytes.
    pub queue_bytes_limit: u64,
    /// Room for subscriptions.
    pub subscriptions_limit: usize,
    /// What was refused, dropped or cut off lately, the newest first.
    pub recent: Vec<Decision>,
}

/// What became of a client that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Kicked {
    /// It was connected and is not any more.
    pub disconnected: bool,
    /// Its session has ended.
    pub session_ended: bool,
}

impl Shard {
    /// One page of clients.
    pub fn clients(&self, filter: &ClientFilter, now: Now) -> ClientPage {
        let limit = filter.limit.min(CLIENTS_PAGE_MAX);
        let mut page = ClientPage { clients: Vec::new(), next: None };
        let last = filter.after.saturating_add(CLIENTS_SCANNED_MAX);
        // By place in the table: one that stays is seen once, whatever comes and goes between two pages.
        let mut place = filter.after;
        while place < self.sessions.capacity() {
            if page.clients.len() >= limit || place >= last {
                page.next = Some(place);
                return page;
            }
            if let Some(slot) = self.sessions.get(place)
                && self.fits(filter, slot)
            {
                page.clients.push(self.client_info(slot, now));
            }
            place += 1;
        }
        page
    }

    fn fits(&self, filter: &ClientFilter, slot: &SessionSlot) -> bool {
        let connection = || slot.conn.and_then(|conn| self.connection(conn));
        let listener = || connection().and_then(|connection| self.listener_of(connection));
        slot.client_id.starts_with(&filter.prefix)
            && filter.connected.is_none_or(|connected| connected == slot.conn.is_some())
            && filter.user.as_deref().is_none_or(|user| slot.user.as_deref() == Some(user))
            && filter
                .listener
                .as_deref()
                .is_none_or(|name| listener().is_some_and(|c| *c.name == *name))
            && (!filter.queued || slot.queued > 0)
    }

    /// Everything about a client; nothing when it has no session.
    pub fn client(&self, client_id: &str, now: Now) -> Option<ClientDetail> {
        let slot = self.sessions.get(self.session_of(client_id)? as usize)?;
        let filters = slot.subscriptions.iter().take(SUBSCRIPTIONS_SHOWN_MAX);
        let filters = filters.filter_map(|(filter, cell)| match self.cells.owner(*cell) {
            Some(Owner::Subscriber { options, id, .. }) => Some(SubscriptionInfo {
                filter: filter.to_string(),
                qos: options.qos as u8,
                no_local: options.no_local,
                retain_as_published: options.retain_as_published,
                id: id.map(NonZeroU32::get),
            }),
            _ => None,
        });
        Some(ClientDetail {
            info: self.client_info(slot, now),
            filters: filters.collect(),
            will_topic: slot.will.as_ref().map(|t| t.will.topic.to_string()),
            queue_messages_limit: self.config.queue_messages_max,
            queue_bytes_limit: self.config.queue_bytes_max,
            subscriptions_limit: self.config.subscriptions_max,
            recent: self.decisions_about(client_id),
        })
    }

    /// What was decided about a client lately, the newest first.
    pub fn decisions_about(&self, client_id: &str) -> Vec<Decision> {
        self.decisions.find(DECISIONS_SHOWN_MAX, |decision| decision.client_id == client_id)
    }

    /// Who a client with a session is, for questions to the gate.
    pub fn identity_of(&self, client_id: &str) -> Option<Identity> {
        let session = self.session_of(client_id)?;
        self.sessions.get(session as usize).map(SessionSlot::identity)
    }

    fn client_info(&self, slot: &SessionSlot, now: Now) -> ClientInfo {
        let in_flight = match self.cells.body(slot.cell) {
            Some(Cell::Session(session)) => session.outbound.in_flight(),
            _ => 0,
        };
        let dropped = slot.drops().map(|drops| {
            let counts = Drop::ALL.iter().map(|why| (why.name(), drops.counts[*why as usize]));
            counts.filter(|(_, count)| *count > 0).collect()
        });
        ClientInfo {
            client_id: slot.client_id.to_string(),
            user: slot.user.as_deref().map(ToOwned::to_owned),
            connection: self.link_info(slot, now),
            session_expiry_s: slot.expiry_s,
            session_ends_in_s: slot
                .expires_ms
                .get()
                .filter(|_| slot.conn.is_none())
                .map(|ms| ms.saturating_sub(now.mono_ms) / 1000),
            will: slot.will.is_some(),
            subscriptions: slot.subscriptions.len(),
            queued: slot.queued,
            queued_bytes: slot.queued_bytes,
            in_flight,
            full: slot.full,
            dropped: dropped.unwrap_or_default(),
        }
    }

    fn link_info(&self, slot: &SessionSlot, now: Now) -> Option<LinkInfo> {
        let conn = slot.conn?;
        let connection = self.connection(conn)?;
        let messages = connection.traffic.messages();
        let (opened_ms, heard_ms) = connection.traffic.moments_ms();
        let ago_s = |ms: u64| now.mono_ms.saturating_sub(ms) / 1000;
        Some(LinkInfo {
            address: connection.remote().to_string(),
            listener: self.listener_of(connection)?.name.to_string(),
            version: match connection.version {
                Version::V3 => "3.1",
                Version::V4 => "3.1.1",
                Version::V5 => "5",
            },
            keep_alive_s: connection.keep_alive_s.into(),
            connected_s: ago_s(opened_ms),
            idle_s: ago_s(heard_ms),
            unwritten_bytes: self.out_len(conn),
            held_back: connection.rare.blocked_len(),
            bytes_received: connection.traffic.bytes_received,
            bytes_sent: connection.traffic.bytes_sent,
            publishes_received: messages.received,
            publishes_sent: messages.sent,
        })
    }

    /// Cuts a client off: DISCONNECT with Administrative action (0x98) for version 5, the end of the connection for all; its
    /// will goes out. With `end_session` its session ends too: subscriptions and queue go. Nothing when it has none.
    pub fn kick(&mut self, client_id: &str, end_session: bool, now: Now) -> Option<Kicked> {
        self.now = now;
        let session = self.session_of(client_id)?;
        let conn = self.sessions.get(session as usize)?.conn;
        if let Some(conn) = conn {
            self.close(conn, ReasonCode::AdministrativeAction, "cut off by an administrator");
            self.settle();
        }
        let left = self.session_of(client_id);
        if let (true, Some(session)) = (end_session, left) {
            self.end_session(session);
            self.settle();
        }
        let session_ended = self.session_of(client_id).is_none();
        Some(Kicked { disconnected: conn.is_some(), session_ended })
    }
}
