//! `/api/v1/ledger`: what came in and what became of it, and whether the sums hold.

use std::collections::BTreeMap;

use actix_web::HttpResponse;
use actix_web::web::Data;
use outpost_actors::ledger::Drop;
use outpost_actors::shard::ShardStats;
use serde::{Deserialize, Serialize};

use super::error::{ApiError, within};
use super::server::Shared;

/// The node's account of messages since its data plane started. Taken between two turns, so both sums hold at any load.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerPage {
    /// What publishers sent.
    pub messages: Messages,
    /// What receivers were to get: one delivery for each message and receiver.
    pub deliveries: Deliveries,
    /// `accepted` is the sum of its four parts, and `owed` that of what became of it.
    pub adds_up: bool,
}

/// Messages by what was decided when they came.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Messages {
    /// Taken from clients, peers and the node itself.
    pub accepted: u64,
    /// Accepted, with a receiver.
    pub wanted: u64,
    /// Accepted; nobody subscribes.
    pub unwanted: u64,
    /// Accepted and retained; nobody subscribes now.
    pub kept: u64,
    /// Accepted requests to the shadow service.
    pub requests: u64,
    /// Refused: the publisher was told, or made to wait and gave up.
    pub refused: u64,
    /// Not yet accepted: their 3.1.1 publishers are made to wait.
    pub held_back: u64,
}

/// Deliveries by what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Deliveries {
    /// All of them, those found on disk at the start included.
    pub owed: u64,
    /// QoS 0 handed to the connection, QoS 1 and 2 acknowledged.
    pub delivered: u64,
    /// Wait for a client, or for its acknowledgement.
    pub queued: u64,
    /// Wait for a peer, or for its acknowledgement.
    pub outbox: u64,
    /// Their message expiry came first.
    pub expired: u64,
    /// Given up, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// `owed` minus all of the above; always 0.
    pub missing: i64,
}

impl LedgerPage {
    /// The page for these figures.
    pub fn new(stats: &ShardStats) -> Self {
        let ledger = &stats.ledger;
        let messages = Messages {
            accepted: ledger.accepted,
            wanted: ledger.wanted,
            unwanted: ledger.unwanted,
            kept: ledger.kept,
            requests: ledger.requests,
            refused: ledger.refused,
            held_back: stats.held_back as u64,
        };
        let reasons = Drop::ALL.iter().filter(|why| **why != Drop::Expired);
        let deliveries = Deliveries {
            owed: ledger.owed,
            delivered: ledger.delivered,
            queued: stats.queued,
            outbox: stats.outbox as u64,
            expired: ledger.dropped[Drop::Expired as usize],
            dropped: reasons
                .map(|why| (why.name().to_owned(), ledger.dropped[*why as usize]))
                .collect(),
            missing: stats.missing(),
        };
        let parts = messages.wanted + messages.unwanted + messages.kept + messages.requests;
        let adds_up = messages.accepted == parts && deliveries.missing == 0;
        Self { messages, deliveries, adds_up }
    }
}

/// `GET /api/v1/ledger`.
pub(super) async fn ledger(backend: Data<Shared>) -> Result<HttpResponse, ApiError> {
    match within(backend.ledger()).await? {
        Some(page) => Ok(HttpResponse::Ok().json(page)),
        None => Err(ApiError::new(503, "the data plane is being restarted; try again")),
    }
}
