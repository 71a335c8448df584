//! Shared subscriptions (MQTT 5, §4.8.2): each message to one member of the group, none lost with a member.

use std::collections::BTreeSet;

use crate::support::client::{BOTH, Client, Options};
use crate::support::node::TestNode;
use crate::support::wire::{Wire, framed, kept_connect};

#[tokio::test(flavor = "multi_thread")]
async fn each_message_goes_to_one_member_and_to_every_group() {
    let node = TestNode::start().await;
    for version in BOTH {
        let mut members = Vec::new();
        for (group, name) in [("g", "1"), ("g", "2"), ("g", "3"), ("h", "4")] {
            let client = Client::connect(node.mqtt(), Options::new(version, name)).await;
            client.subscribe(&format!("$share/{group}/job/+"), 1).await;
            client.subscribe(&format!("end/{name}"), 1).await;
            members.push(client);
        }
        let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
        for number in 0..300 {
            publisher.publish(&format!("job/{number}"), &number.to_string(), 1).await;
        }
        let mut counts = Vec::new();
        let mut by_group = [BTreeSet::new(), BTreeSet::new()];
        for (place, member) in members.iter_mut().enumerate() {
            publisher.publish(&format!("end/{}", place + 1), "end", 1).await;
            let mut count = 0;
            loop {
                let (_, payload) = member.next_text().await;
                if payload == "end" {
                    break;
                }
                assert!(by_group[place / 3].insert(payload), "one member only");
                count += 1;
            }
            counts.push(count);
        }
        assert_eq!(by_group.map(|group| group.len()), [300, 300], "{counts:?}");
        assert!(counts[..3].iter().all(|count| *count >= 50), "the work is shared: {counts:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_member_did_not_acknowledge_goes_to_another_when_its_session_ends() {
    let node = TestNode::start().await;
    // Takes messages and never acknowledges them.
    let mut lazy = Wire::connected_v4(node.mqtt(), "lazy").await;
    let filter = b"$share/g/job";
    let mut body = vec![0, 1, 0, filter.len() as u8];
    body.extend_from_slice(filter);
    body.push(1);
    lazy.send(&framed(0x82, &body)).await;
    assert_eq!(lazy.packet().await.expect("SUBACK"), [0x90, 3, 0, 1, 1]);
    let mut keen = Client::connect(node.mqtt(), Options::v5("keen")).await;
    keen.subscribe("$share/g/job", 1).await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    for number in 0..20 {
        publisher.publish("job", &number.to_string(), 1).await;
    }
    assert_eq!(lazy.packet().await.expect("a job")[0], 0x32);
    drop(lazy);
    let (all, _) = keen.collect(20).await;
    assert_eq!(all.len(), 20, "nothing is stuck with the one that is gone");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_away_does_not_hold_up_those_that_are_here() {
    let node = TestNode::start().await;
    let mut wire = Wire::open(node.mqtt()).await;
    wire.send(&kept_connect("away")).await;
    assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 0, 0]);
    drop(wire);
    let away = Client::connect(node.mqtt(), Options::v5("away-too").kept(3600)).await;
    away.subscribe("$share/g/job", 1).await;
    away.disconnect().await;
    let mut here = Client::connect(node.mqtt(), Options::v5("here")).await;
    here.subscribe("$share/g/job", 1).await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    for number in 0..50 {
        publisher.publish("job", &number.to_string(), 1).await;
    }
    assert_eq!(here.collect(50).await.1, 50);
    node.stop().await;
}
