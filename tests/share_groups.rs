//! Share groups over several nodes: each message to one member in the whole cluster, also when a node with members is gone.

use std::collections::BTreeSet;

use crate::cluster::{Site, linked};
use crate::support::burst::burst;
use crate::support::client::{Client, Options};
use crate::support::until;

const SHARED: &str = "$share/g/jobs";

#[tokio::test(flavor = "multi_thread")]
async fn a_group_on_two_nodes_gets_each_message_once_and_none_is_lost_with_a_member() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    linked(&[&a, &b]).await;
    let mut at_a = Client::connect(a.mqtt(), Options::v5("at-a").kept(3600)).await;
    let mut at_b = Client::connect(b.mqtt(), Options::v5("at-b").kept(3600)).await;
    at_a.subscribe(SHARED, 1).await;
    at_b.subscribe(SHARED, 1).await;
    // Once b serves some of what a takes, a knows of b's member; what came until then is read and put aside.
    let probe = Client::connect(a.mqtt(), Options::v5("probe")).await;
    let (mut probes, mut came) = (0, 0);
    until("b's member is known", async || {
        probes += 1;
        probe.publish("jobs", "probe", 1).await;
        came += usize::from(at_b.next_soon().await.is_some());
        came > 0
    })
    .await;
    while came < probes {
        tokio::select! {
            _ = at_a.next() => {}
            _ = at_b.next() => {}
        }
        came += 1;
    }

    let sent = burst(a.mqtt(), "one", "jobs", 1_000).await;
    let (mut got, mut count) = (BTreeSet::new(), [0, 0]);
    while got.len() < sent.len() {
        let (place, message) = tokio::select! {
            message = at_a.next() => (0, message),
            message = at_b.next() => (1, message),
        };
        assert!(got.insert(message.payload.clone()), "{} came twice", message.payload);
        count[place] += 1;
    }
    assert_eq!(got, sent);
    assert!(count.iter().all(|count| *count > 300), "both nodes have their part: {count:?}");

    // b's member leaves for good: all goes to a's.
    at_b.unsubscribe(SHARED).await;
    let sent = burst(a.mqtt(), "two", "jobs", 500).await;
    assert_eq!(at_a.collect(500).await, (sent, 500));
    assert!(at_b.next_soon().await.is_none(), "nothing for who has left");
    for member in [a, b] {
        member.stop().await;
    }
}
