//! How a bridge is: for `outpost bridge`, the metrics, and the log.

use outpost_actors::shard::SessionView;
use outpost_bridge::Counts;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use super::settings::Settings;
use crate::clock::now;

/// Shared between a bridge's task and those who look at it. Outlives restarts of the actor.
#[derive(Debug)]
pub struct Status {
    name: String,
    address: String,
    inner: Mutex<Inner>,
    /// Its session on this node was there once, or why not is known.
    is_prepared: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    connected_ms: Option<u64>,
    next_attempt_ms: Option<u64>,
    last_error: Option<String>,
    attempts: u64,
    links: u64,
    rtt_ms: u64,
    window: usize,
    in_flight: usize,
    counts: Counts,
}

/// A bridge as people see it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// Its name.
    pub name: String,
    /// The foreign broker.
    pub address: String,
    /// `connected`, `connecting` or `waiting`.
    pub state: &'static str,
    /// Seconds since the link came up.
    pub connected_s: Option<u64>,
    /// Milliseconds to the next attempt.
    pub next_attempt_ms: Option<u64>,
    /// Why the link ended last, or did not come up.
    pub last_error: Option<String>,
    /// Attempts to connect.
    pub attempts: u64,
    /// Links that came up.
    pub links: u64,
    /// Messages owed to the foreign broker.
    pub queued: u32,
    /// Bytes of them.
    pub queued_bytes: u64,
    /// Publishers are held back: the queue is full.
    pub full: bool,
    /// Age of the oldest, milliseconds.
    pub oldest_ms: Option<u64>,
    /// Messages sent, repetitions included.
    pub sent: u64,
    /// Messages the foreign broker has acknowledged.
    pub acked: u64,
    /// Messages it refused for good.
    pub refused: u64,
    /// Messages too large for it.
    pub too_large: u64,
    /// Messages it sent.
    pub received: u64,
    /// Messages of it that are on disk here and acknowledged.
    pub taken: u64,
    /// Echoes of our own messages, dropped.
    pub echoes: u64,
    /// Messages that fit no rule.
    pub unmatched: u64,
    /// Sent and not acknowledged.
    pub in_flight: usize,
    /// How many may be.
    pub window: usize,
    /// How long answers take lately.
    pub rtt_ms: u64,
}

impl Status {
    /// Of a bridge that has not begun.
    pub fn new(settings: &Settings) -> Self {
        let (name, address) = (settings.name.clone(), settings.address());
        Self { name, address, inner: Mutex::default(), is_prepared: watch::Sender::new(false) }
    }

    /// The first attempt to have a session on this node is over.
    pub(super) fn prepared(&self) {
        self.is_prepared.send_replace(true);
    }

    /// Waits for [`Self::prepared`].
    pub(super) async fn wait_prepared(&self) {
        let mut is_prepared = self.is_prepared.subscribe();
        is_prepared.wait_for(|is| *is).await.expect("its sender is ours");
    }

    pub(super) fn connecting(&self) {
        let mut inner = self.inner.lock();
        inner.attempts += 1;
        inner.next_attempt_ms = None;
    }

    pub(super) fn connected(&self) {
        let mut inner = self.inner.lock();
        inner.links += 1;
        inner.connected_ms = Some(now().mono_ms);
    }

    /// The link ended, or did not come up; the next attempt is in so many milliseconds. `false`: for the same reason as
    /// the one before.
    pub(super) fn waiting(&self, why: &str, wait_ms: u64) -> bool {
        let mut inner = self.inner.lock();
        let is_news =
            inner.connected_ms.take().is_some() || inner.last_error.as_deref() != Some(why);
        inner.next_attempt_ms = Some(now().mono_ms + wait_ms);
        inner.last_error = Some(why.to_owned());
        inner.in_flight = 0;
        is_news
    }

    pub(super) fn count(&self, new: &Counts, in_flight: usize, window: usize, rtt_ms: u64) {
        let mut inner = self.inner.lock();
        (inner.in_flight, inner.window, inner.rtt_ms) = (in_flight, window, rtt_ms);
        let counts = &mut inner.counts;
        counts.sent += new.sent;
        counts.acked += new.acked;
        counts.refused += new.refused;
        counts.too_large += new.too_large;
        counts.received += new.received;
        counts.taken += new.taken;
        counts.echoes += new.echoes;
        counts.unmatched += new.unmatched;
    }

    /// Together with what the node knows of its session.
    pub(super) fn show(&self, session: Option<&SessionView>) -> Shown {
        let (inner, now) = (self.inner.lock(), now());
        let counts = &inner.counts;
        let oldest = session.filter(|s| s.queued > 0).and_then(|s| s.oldest_wall_ms);
        Shown {
            name: self.name.clone(),
            address: self.address.clone(),
            state: match (inner.connected_ms, inner.next_attempt_ms) {
                (Some(_), _) => "connected",
                (None, Some(_)) => "waiting",
                (None, None) => "connecting",
            },
            connected_s: inner.connected_ms.map(|ms| now.mono_ms.saturating_sub(ms) / 1000),
            next_attempt_ms: inner.next_attempt_ms.map(|ms| ms.saturating_sub(now.mono_ms)),
            last_error: inner.last_error.clone(),
            attempts: inner.attempts,
            links: inner.links,
            queued: session.map_or(0, |s| s.queued),
            queued_bytes: session.map_or(0, |s| s.queued_bytes),
            full: session.is_some_and(|s| s.full),
            oldest_ms: oldest.map(|ms| now.wall_ms.saturating_sub(ms)),
            sent: counts.sent,
            acked: counts.acked,
            refused: counts.refused,
            too_large: counts.too_large,
            received: counts.received,
            taken: counts.taken,
            echoes: counts.echoes,
            unmatched: counts.unmatched,
            in_flight: inner.in_flight,
            window: inner.window,
            rtt_ms: inner.rtt_ms,
        }
    }
}

/// The bridges as numbers, for `/api/v1/stats` and `/metrics`: one line a bridge.
pub fn stats(bridges: &[Shown]) -> serde_json::Value {
    let by = |value: &dyn Fn(&Shown) -> u64| {
        let lines = bridges.iter().map(|one| (one.name.clone(), value(one).into()));
        serde_json::json!({ "by_bridge": serde_json::Value::Object(lines.collect()) })
    };
    serde_json::json!({
        "connected": by(&|b| u64::from(b.state == "connected")),
        "attempts_total": by(&|b| b.attempts),
        "links_total": by(&|b| b.links),
        "queued": by(&|b| u64::from(b.queued)),
        "queued_bytes": by(&|b| b.queued_bytes),
        "oldest_ms": by(&|b| b.oldest_ms.unwrap_or(0)),
        "in_flight": by(&|b| b.in_flight as u64),
        "window": by(&|b| b.window as u64),
        "rtt_ms": by(&|b| b.rtt_ms),
        "sent_total": by(&|b| b.sent),
        "acked_total": by(&|b| b.acked),
        "refused_total": by(&|b| b.refused),
        "too_large_total": by(&|b| b.too_large),
        "received_total": by(&|b| b.received),
        "taken_total": by(&|b| b.taken),
        "echoes_total": by(&|b| b.echoes),
        "unmatched_total": by(&|b| b.unmatched),
    })
}
