//! The HTTP API, for people, scripts and dashboards: actix-web on a thread of its own.
//!
//! ```text
//!  socket ─▶ guard (host, origin, token) ─▶ handler ─▶ Backend (the assembly) ─▶ shard, hub, store
//! ```
//! Nothing here decides anything about messages or shadows; it asks the [`Backend`] and words the answer.

mod admin;
pub mod backend;
mod dataplane;
mod error;
mod guard;
mod ledger;
pub mod metrics;
mod node;
mod publish;
mod server;
mod shadows;

use std::time::Duration;

pub use backend::{
    ActorInfo, AdminError, AdminRequest, Backend, BoxFuture, Health, PublishError, PublishRequest,
    ShadowKey, ShadowReply, ShadowRequest, ShadowVerb, ShadowsDown,
};
pub use ledger::LedgerPage;
pub use server::{HttpError, HttpServer};

/// A request that the node has not answered by now gets 504: long enough for a slow card's sync, shorter than clients wait.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Entries of a shadow's history, or values explained, in one answer at most. More makes one request hold the hub for
/// long.
pub const HISTORY_PAGE_MAX: usize = 1_000;
/// Shadows in one page at most. More makes one request hold the hub for long; fewer makes lists slow.
pub const SHADOWS_PAGE_MAX: usize = 1_000;
