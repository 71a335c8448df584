//! The `$SYS` tree, with Mosquitto's names: figures of this node, for those who subscribe to them and nobody else.
//!
//! They are published when they change, kept in memory for new subscribers like retained messages, never written to
//! disk and never sent to another node. While nobody subscribes only the load averages are kept up to date.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use outpost_flow::LoadAverage;
use outpost_model::{Message, QoS, TopicFilter};

use super::channel::Recipient;
use super::pass::Parcel;
use super::{Cell, Shard};

/// What all of its topics begin with. Clients may not publish there.
const PREFIX: &str = "$SYS/";

/// Who subscribes is shown figures at most this old. Younger: clients that subscribe again and again have every session
/// looked at each time; older: what they are shown is.
const REFRESH_MS: u64 = 1_000;

/// The counters with load averages, in the order of [`Shard::load_counters`].
const LOADS: [&str; 9] = [
    "messages/received",
    "messages/sent",
    "publish/dropped",
    "publish/received",
    "publish/sent",
    "bytes/received",
    "bytes/sent",
    "sockets",
    "connections",
];

/// Names of the windows of a load average.
const WINDOWS: [&str; 3] = ["1min", "5min", "15min"];

/// Whether a topic name or filter is of the tree.
pub(super) fn is_sys(topic: &str) -> bool {
    topic.starts_with(PREFIX)
}

/// A topic's value.
#[derive(Debug)]
struct Value {
    message: Arc<Message>,
    /// Subscribers have heard it, or got it when they subscribed.
    told: Bytes,
}

/// The tree.
#[derive(Debug, Default)]
pub(super) struct Sys {
    started_ms: u64,
    looked_ms: u64,
    refreshed_ms: u64,
    due_ms: Option<u64>,
    loads: [LoadAverage; LOADS.len()],
    /// Subscriptions to the tree.
    wanted: usize,
    /// Resident memory of the process now and at most, bytes.
    memory: Option<(u64, u64)>,
    values: BTreeMap<String, Value>,
}

impl Sys {
    pub(super) fn new(now_ms: u64, interval_ms: u64) -> Self {
        let due_ms = (interval_ms > 0).then_some(now_ms + interval_ms);
        Self { started_ms: now_ms, looked_ms: now_ms, due_ms, ..Self::default() }
    }

    /// When it has something to do.
    pub(super) fn due_ms(&self) -> Option<u64> {
        self.due_ms
    }

    /// At most `limit` values whose topic matches and comes after `after`, and where to go on.
    pub(super) fn matching(
        &self,
        filter: &TopicFilter,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<Message>>, Option<String>) {
        let mut found = Vec::new();
        let values = self.values.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        for (topic, value) in values.filter(|(topic, _)| filter.matches(topic)) {
            found.push(Arc::clone(&value.message));
            if found.len() == limit {
                return (found, Some(topic.clone()));
            }
        }
        (found, None)
    }
}

impl Shard {
    /// Whether the driver should call [`Shard::set_memory`] before the next [`Shard::tick`].
    pub fn wants_memory(&self, now_ms: u64) -> bool {
        self.sys.wanted > 0 && self.sys.due_ms.is_some_and(|due_ms| due_ms <= now_ms)
    }

    /// What the process occupies now, and the most it ever did, in bytes.
    pub fn set_memory(&mut self, current: u64, maximum: u64) {
        self.sys.memory = Some((current, maximum));
    }

    /// A subscription to the tree came (`true`) or went.
    pub(super) fn sys_wanted(&mut self, pattern: &str, more: bool) {
        if is_sys(pattern) {
            self.sys.wanted =
                if more { self.sys.wanted + 1 } else { self.sys.wanted.saturating_sub(1) };
        }
    }

    /// The figures for somebody who has just subscribed.
    pub(super) fn refresh_sys_for_subscriber(&mut self) {
        let age_ms = self.now.mono_ms.saturating_sub(self.sys.refreshed_ms);
        if self.sys.values.is_empty() || age_ms >= REFRESH_MS {
            self.refresh_sys();
        }
    }

    fn refresh_sys(&mut self) {
        if self.sys.due_ms.is_none() {
            return;
        }
        self.sys.refreshed_ms = self.now.mono_ms;
        for (topic, text) in self.sys_values() {
            let known = self.sys.values.get(&topic);
            if known.is_some_and(|value| value.message.payload == text.as_bytes()) {
                continue;
            }
            let told = known.map(|value| value.told.clone());
            let message = Arc::new(Message {
                id: self.next_message_id(),
                topic: topic.as_str().into(),
                payload: text.into(),
                qos: QoS::AtMostOnce,
                retain: true,
                properties: None,
                accepted_wall_ms: self.now.wall_ms,
                expiry_s: None,
            });
            // The first who wants it gets it as it is.
            let told = told.unwrap_or_else(|| message.payload.clone());
            self.sys.values.insert(topic, Value { message, told });
        }
    }

    /// The interval has passed: the averages move on, and what changed is published.
    pub(super) fn sys_timeout(&mut self) {
        let now_ms = self.now.mono_ms;
        if self.sys.due_ms.is_none_or(|due_ms| due_ms > now_ms) {
            return;
        }
        self.sys.due_ms = Some(now_ms + self.config.sys_interval_ms);
        let elapsed_ms = now_ms - std::mem::replace(&mut self.sys.looked_ms, now_ms);
        let counters = self.load_counters();
        for (load, count) in self.sys.loads.iter_mut().zip(counters) {
            load.observe(count, elapsed_ms);
        }
        if self.sys.wanted == 0 {
            return self.sys.values.clear();
        }
        self.refresh_sys();
        let mut news = Vec::new();
        for value in self.sys.values.values_mut().filter(|v| v.message.payload != v.told) {
            value.told = value.message.payload.clone();
            news.push(Arc::clone(&value.message));
        }
        for message in news {
            self.publish_sys(&message);
            self.run_cells(); // a mailbox is not made for the whole tree at once
        }
    }

    /// One topic that cannot wait for the interval.
    pub(super) fn tell_sys(&mut self, topic: &str) {
        if self.sys.wanted == 0 {
            return;
        }
        self.refresh_sys();
        if let Some(value) = self.sys.values.get_mut(topic) {
            value.told = value.message.payload.clone();
            let message = Arc::clone(&value.message);
            self.publish_sys(&message);
        }
    }

    /// To clients of this node that are here; nobody is owed it.
    fn publish_sys(&mut self, message: &Arc<Message>) {
        for recipient in self.find_recipients(&message.topic) {
            match recipient {
                Recipient::Session { session, retain_as_published: retain, ids, .. } => {
                    if self.sessions.get(session as usize).is_some_and(|s| s.conn.is_some()) {
                        let qos = QoS::AtMostOnce;
                        let parcel = Parcel { message, qos, retain, ids: &ids, waits: false };
                        self.enqueue(session, parcel, None);
                    }
                }
                Recipient::Group(group) => self.enqueue_group(group, message, false, false),
                Recipient::Shared(shared) => {
                    if let Some(group) = shared.here {
                        self.enqueue_group(group, message, false, false);
                    }
                }
                Recipient::Peer { .. } | Recipient::Local(_) => {}
            }
        }
    }

    fn load_counters(&self) -> [u64; LOADS.len()] {
        let totals = &self.totals;
        [
            totals.packets_received,
            totals.packets_sent,
            self.ledger.dropped_all(),
            totals.messages.received.iter().sum(),
            totals.messages.sent.iter().sum(),
            totals.bytes_received,
            totals.bytes_sent,
            self.ledger.connections,
            totals.connects,
        ]
    }

    fn sys_values(&self) -> Vec<(String, String)> {
        let (sessions, totals) = (self.session_sums(), &self.totals);
        let away = self.sessions.len().saturating_sub(totals.connected);
        let stored = sessions.queued + self.retained.len() as u64;
        let figures: [(&str, u64); 23] = [
            ("clients/total", self.sessions.len() as u64),
            ("clients/connected", totals.connected as u64),
            ("clients/active", totals.connected as u64),
            ("clients/disconnected", away as u64),
            ("clients/inactive", away as u64),
            ("clients/maximum", totals.connected_peak as u64),
            ("clients/expired", totals.sessions_expired),
            ("messages/received", totals.packets_received),
            ("messages/sent", totals.packets_sent),
            ("messages/stored", stored),
            ("messages/inflight", sessions.in_flight),
            ("store/messages/count", stored),
            ("store/messages/bytes", sessions.queued_bytes + self.retained.bytes()),
            ("publish/messages/received", totals.messages.received.iter().sum()),
            ("publish/messages/sent", totals.messages.sent.iter().sum()),
            ("publish/messages/dropped", self.ledger.dropped_all()),
            ("publish/bytes/received", totals.messages.payload_bytes_received),
            ("publish/bytes/sent", totals.messages.payload_bytes_sent),
            ("bytes/received", totals.bytes_received),
            ("bytes/sent", totals.bytes_sent),
            ("subscriptions/count", sessions.subscriptions),
            ("shared_subscriptions/count", self.shared_subscriptions()),
            ("retained messages/count", self.retained.len() as u64),
        ];
        let topic = |name: &str| format!("{PREFIX}broker/{name}");
        let uptime_s = (self.now.mono_ms - self.sys.started_ms) / 1000;
        let mut values = vec![
            (topic("version"), concat!("outpost version ", env!("CARGO_PKG_VERSION")).to_owned()),
            (topic("uptime"), format!("{uptime_s} seconds")),
        ];
        values.extend(figures.iter().map(|(name, value)| (topic(name), value.to_string())));
        values.extend(self.bridge_states());
        if let Some((current, maximum)) = self.sys.memory {
            values.push((topic("heap/current"), current.to_string()));
            values.push((topic("heap/maximum"), maximum.to_string()));
        }
        for (name, load) in LOADS.iter().zip(&self.sys.loads) {
            let averages = WINDOWS.iter().zip(load.per_minute());
            values.extend(
                averages
                    .map(|(w, value)| (topic(&format!("load/{name}/{w}")), format!("{value:.2}"))),
            );
        }
        values
    }

    fn session_sums(&self) -> SessionSums {
        let mut sums = SessionSums::default();
        for (_, slot) in &self.sessions {
            sums.queued += u64::from(slot.queued);
            sums.queued_bytes += slot.queued_bytes;
            sums.subscriptions += slot.subscriptions.len() as u64;
            if slot.queued > 0
                && let Some(Cell::Session(session)) = self.cells.body(slot.cell)
            {
                sums.in_flight += session.outbound.in_flight() as u64;
            }
        }
        sums
    }
}

/// What sessions hold, together.
#[derive(Debug, Default)]
struct SessionSums {
    queued: u64,
    queued_bytes: u64,
    subscriptions: u64,
    in_flight: u64,
}
