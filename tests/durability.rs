//! Acknowledged means on disk: the process is killed at any moment, and nothing acknowledged is missing afterwards.

use std::collections::BTreeSet;

use crate::support::burst::{burst, burst_of};
use crate::support::client::{Client, Options};
use crate::support::outpost::Dev;
use crate::support::{http, until};

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_for_one_that_is_away_are_five_thousand_when_it_is_back() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    let device = Client::connect(dev.mqtt, Options::v4("device").kept(3600)).await;
    device.subscribe("job", 1).await;
    device.disconnect().await;
    let acknowledged = burst(dev.mqtt, "publisher", "job", 5_000).await;
    assert_eq!(acknowledged.len(), 5_000, "each has its PUBACK");
    let mut device = Client::connect(dev.mqtt, Options::v4("device").kept(3600)).await;
    assert!(device.session_present);
    let (got, count) = device.collect(5_000).await;
    assert_eq!((got == acknowledged, count), (true, 5_000));
    let (_, stats) = http::get(dev.http, "/api/v1/stats").await;
    assert_eq!(stats["messages"]["refused_total"], 0);
    assert!(dev.process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_retained_and_a_hundred_queued_survive_kill_9() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    let device = Client::connect(dev.mqtt, Options::v5("device").kept(3600)).await;
    device.subscribe("job", 1).await;
    device.disconnect().await;
    let publisher = Client::connect(dev.mqtt, Options::v5("publisher")).await;
    publisher.retain("state", "on", 1).await;
    assert_eq!(burst(dev.mqtt, "burst", "job", 100).await.len(), 100);
    dev.process.kill_9().await;

    let dev = Dev::start(data.path()).await;
    let mut device = Client::connect(dev.mqtt, Options::v5("device").kept(3600)).await;
    assert!(device.session_present);
    let (queued, _) = device.collect(100).await;
    let mut late = Client::connect(dev.mqtt, Options::v5("late")).await;
    late.subscribe("state", 1).await;
    assert_eq!((late.next().await.payload.as_str(), queued.len() + 1), ("on", 101));
    assert!(dev.process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_in_the_middle_of_a_burst_again_and_again_loses_nothing_acknowledged() {
    let data = tempfile::tempdir().expect("a folder");
    let mut acknowledged = BTreeSet::new();
    for round in 0..6 {
        let dev = Dev::start(data.path()).await;
        if round == 0 {
            let device = Client::connect(dev.mqtt, Options::v5("device").kept(3600)).await;
            device.subscribe("job", 1).await;
            device.subscribe("job2", 2).await;
            device.disconnect().await;
        }
        let one = tokio::spawn(burst_of(dev.mqtt, format!("one-{round}"), "job", 100_000, 1));
        let two = tokio::spawn(burst_of(dev.mqtt, format!("two-{round}"), "job2", 100_000, 2));
        until("the burst is under way", async || {
            let (_, stats) = http::get(dev.http, "/api/v1/stats").await;
            stats["messages"]["accepted_total"].as_u64() > Some(100 + round * 60)
        })
        .await;
        dev.process.kill_9().await;
        acknowledged.extend(one.await.expect("it does not panic"));
        acknowledged.extend(two.await.expect("it does not panic"));
    }
    assert!(acknowledged.len() > 600, "{} were acknowledged", acknowledged.len());
    let dev = Dev::start(data.path()).await;
    let mut device = Client::connect(dev.mqtt, Options::v5("device").kept(3600)).await;
    assert!(device.session_present);
    let mut missing = acknowledged;
    while !missing.is_empty() {
        let message = device.next().await;
        missing.remove(&message.payload);
    }
    assert!(dev.process.terminate().await.success());
}
