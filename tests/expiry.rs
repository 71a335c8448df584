//! What is out of date is not delivered: messages, sessions.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Options, Properties};
use crate::support::node::TestNode;
use crate::support::until;

fn expiring(seconds: u32) -> Properties {
    Properties { expiry_s: Some(seconds), ..Properties::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waited_too_long_is_not_delivered_and_others_say_what_is_left() {
    let node = TestNode::start().await;
    let away = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    away.subscribe("a", 1).await;
    away.disconnect().await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    let began = Instant::now();
    for (payload, seconds) in [("short", 1), ("long", 600)] {
        publisher
            .publish_with("a", payload, 1, true, expiring(seconds))
            .await
            .await
            .expect("acknowledged");
        publisher
            .publish_with(payload, payload, 1, true, expiring(seconds))
            .await
            .await
            .expect("acknowledged");
    }
    until("more than a second", async || began.elapsed() > Duration::from_millis(2_100)).await;
    let mut back = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    let message = back.next().await;
    assert_eq!((&*message.topic, &*message.payload), ("a", "long"));
    let left = message.expiry_s.expect("MQTT-3.3.2-6");
    assert!((570..=599).contains(&left), "{left} s are left");
    let mut late = Client::connect(node.mqtt(), Options::v5("late")).await;
    late.subscribe("short", 1).await;
    late.subscribe("long", 1).await;
    assert_eq!(late.next().await.payload, "long", "retained messages expire as well");
    node.stop().await;
}

/// MQTT 5: 4.1.0-2
#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_when_its_time_is_over_and_not_before() {
    let node = TestNode::start().await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    for (id, seconds) in [("short", 1), ("long", 600)] {
        let client = Client::connect(node.mqtt(), Options::v5(id).kept(seconds)).await;
        client.subscribe("a", 1).await;
        drop(client);
    }
    until("the short session is over", async || {
        let (_, stats) = crate::support::http::get(node.http(), "/api/v1/stats").await;
        stats["mqtt"]["sessions"] == 2
    })
    .await;
    publisher.publish("a", "x", 1).await;
    let short = Client::connect(node.mqtt(), Options::v5("short").kept(600)).await;
    assert!(!short.session_present);
    let mut long = Client::connect(node.mqtt(), Options::v5("long").kept(600)).await;
    assert!(long.session_present);
    assert_eq!(long.next().await.payload, "x");
    node.stop().await;
}
