//! The HTTP API, for people, scripts and dashboards.

pub mod backend;

use std::time::Duration;

/// A request that the node has not answered by now gets 504: long enough for a slow card's sync, shorter than clients wait.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
