//! Two connections of one client id: the newer one wins, the session goes with it, nothing is lost between them.

use std::collections::BTreeSet;

use outpost_node::Hooks;

use crate::support::client::{BOTH, Client, Options, Will};
use crate::support::node::TestNode;
use crate::support::outpost::user;
use crate::support::wire::{Wire, kept_connect};

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_connection_wins_and_the_older_is_told() {
    let node = TestNode::start().await;
    for version in BOTH {
        let older = Client::connect(node.mqtt(), Options::new(version, "device").kept(600)).await;
        older.subscribe("a", 1).await;
        let mut newer =
            Client::connect(node.mqtt(), Options::new(version, "device").kept(600)).await;
        assert!(newer.session_present);
        // That it is told 0x8E is read from the bytes in `conformance/`: this client does not know a DISCONNECT without
        // properties.
        older.ended().await;
        let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
        publisher.publish("a", "x", 1).await;
        assert_eq!(newer.next().await.payload, "x", "the subscription came along");
        assert!(newer.is_connected());
        newer.disconnect().await;
        drop(Client::connect(node.mqtt(), Options::new(version, "device")).await);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_a_client_is_taken_over_again_and_again() {
    let node = TestNode::start().await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    let mut device = Client::connect(node.mqtt(), Options::v4("device").kept(600)).await;
    device.subscribe("a", 1).await;
    device.disconnect().await;
    // Reads and acknowledges by hand: what the node may forget is exactly what is counted here.
    let mut connections = Vec::new();
    let mut acknowledged = BTreeSet::new();
    for round in 0..20 {
        for number in 0..10 {
            publisher.publish("a", &format!("{round}-{number}"), 1).await;
        }
        let mut wire = Wire::open(node.mqtt()).await;
        wire.send(&kept_connect("device")).await;
        assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 1, 0]);
        for _ in 0..=round % 7 {
            acknowledged.insert(read_and_acknowledge(&mut wire).await);
        }
        connections.push(wire); // and left open: the next one takes over
    }
    let mut wire = connections.pop().expect("twenty");
    while acknowledged.len() < 200 {
        acknowledged.insert(read_and_acknowledge(&mut wire).await);
    }
    wire.send(&[0xc0, 0]).await;
    assert_eq!(
        wire.packet().await.expect("PINGRESP"),
        [0xd0, 0],
        "the last acknowledgement has arrived"
    );
    for mut older in connections {
        while older.packet().await.is_some() {}
    }
    device = Client::connect(node.mqtt(), Options::v4("device").kept(600)).await;
    device.expect_only(&publisher, "a", "end").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wills_of_the_older_and_the_newer_are_kept_apart() {
    let node = TestNode::start().await;
    let will = |payload: &str| Will {
        topic: "w".into(),
        payload: payload.into(),
        retain: false,
        delay_s: 0,
    };
    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("w", 1).await;
    let older = Client::connect(node.mqtt(), Options::v5("device").will(will("older"))).await;
    let newer = Client::connect(node.mqtt(), Options::v5("device").will(will("newer"))).await;
    older.ended().await;
    assert_eq!(
        watcher.next().await.payload,
        "older",
        "its network connection was closed (MQTT-3.1.2-8)"
    );
    drop(newer);
    assert_eq!(watcher.next().await.payload, "newer");
    node.stop().await;
}

/// The payload of the next QoS 1 message on topic `a`.
async fn read_and_acknowledge(wire: &mut Wire) -> Vec<u8> {
    let message = wire.packet().await.expect("a message");
    assert_eq!((message[0] & 0xf6, &message[2..5]), (0x32, &[0, 1, b'a'][..]), "{message:x?}");
    wire.send(&[0x40, 2, message[5], message[6]]).await;
    message[7..].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_leaves_alone_who_has_the_client_id() {
    let ann = user("ann", "secret").await;
    let node =
        TestNode::start_with(|config| config.security.user = vec![ann], Hooks::default()).await;
    for version in BOTH {
        let options = || Options::new(version, "device");
        let mut there = Client::connect(node.mqtt(), options().login("ann", "secret")).await;
        there.subscribe("a", 1).await;
        for password in ["guess", ""] {
            let refused = Client::try_connect(node.mqtt(), options().login("ann", password)).await;
            assert!(refused.is_err());
        }
        there.publish("a", "x", 1).await;
        assert_eq!(there.next().await.payload, "x");
    }
    node.stop().await;
}
