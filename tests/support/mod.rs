//! What the stories share: nodes, clients, processes, and waiting for something to become true.

pub mod burst;
pub mod client;
pub mod flood;
pub mod group;
pub mod http;
pub mod mosquitto;
pub mod node;
pub mod outpost;
pub mod relay;
pub mod stall;
pub mod steady;
pub mod tls;
pub mod tools;
pub mod wire;

use std::future::Future;
use std::time::{Duration, Instant};

/// How long anything may take before a story fails. Generous: the slowest machine decides.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Waits until a condition holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits for a future, within the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("no answer in {DEADLINE:?}: {what}"))
}
