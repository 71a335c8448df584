//! Many publishes as fast as a client can, and which of them were acknowledged.

use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;

use super::client::{Client, Options, Outcome, Properties};

/// Publishes that wait for their acknowledgement at a time.
const WINDOW: usize = 100;

/// Publishes so many QoS 1 messages `ID-0`, `ID-1`, … as 3.1.1. Those acknowledged.
pub async fn burst(
    server: SocketAddr,
    id: &str,
    topic: &'static str,
    count: usize,
) -> BTreeSet<String> {
    burst_of(server, id.to_owned(), topic, count, 1).await
}

/// The same with another QoS. Goes as fast as the window allows, until all are acknowledged or the server is gone.
pub async fn burst_of(
    server: SocketAddr,
    id: String,
    topic: &'static str,
    count: usize,
    qos: u8,
) -> BTreeSet<String> {
    let publisher = Client::connect(server, Options::v4(&id)).await;
    let (mut waiting, mut acknowledged) = (VecDeque::new(), BTreeSet::new());
    for number in 0..count {
        let payload = format!("{id}-{number}");
        let properties = Properties::default();
        let outcome = publisher.publish_with(topic, payload.clone(), qos, false, properties).await;
        waiting.push_back((payload, outcome));
        if waiting.len() >= WINDOW && !settle(&publisher, &mut waiting, &mut acknowledged).await {
            break;
        }
    }
    while !waiting.is_empty() && settle(&publisher, &mut waiting, &mut acknowledged).await {}
    acknowledged
}

type Waiting = VecDeque<(String, Outcome)>;

/// Waits for the oldest; `false` when the connection is gone.
async fn settle(
    publisher: &Client,
    waiting: &mut Waiting,
    acknowledged: &mut BTreeSet<String>,
) -> bool {
    let Some((payload, outcome)) = waiting.pop_front() else { return false };
    let settled = tokio::select! {
        biased;
        settled = outcome => settled.is_ok(),
        _ = publisher.ended() => false,
    };
    if settled {
        acknowledged.insert(payload);
    }
    settled
}
