//! What each quality of service promises, with the connection breaking in the middle.

use outpost_node::Hooks;

use crate::support::client::{BOTH, Client, Options, Properties};
use crate::support::node::TestNode;
use crate::support::wire::{Wire, framed, kept_connect};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_comes_with_the_lower_of_both_qualities() {
    let node = TestNode::start().await;
    for version in BOTH {
        let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
        for granted in 0..3 {
            let mut client = Client::connect(node.mqtt(), Options::new(version, "client")).await;
            client.subscribe("a", granted).await;
            for published in 0..3 {
                publisher.publish("a", "x", published).await;
                assert_eq!(client.next().await.qos, published.min(granted));
            }
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_one_publisher_keep_their_order() {
    let node = TestNode::start().await;
    for version in BOTH {
        for qos in 0..3 {
            let mut client = Client::connect(node.mqtt(), Options::new(version, "client")).await;
            client.subscribe("a", qos).await;
            let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
            let mut outcomes = Vec::new();
            for number in 0..500 {
                outcomes.push(
                    publisher
                        .publish_with("a", number.to_string(), qos, false, Properties::default())
                        .await,
                );
            }
            for number in 0..500 {
                assert_eq!(
                    client.next().await.payload,
                    number.to_string(),
                    "{version:?}, QoS {qos}"
                );
            }
            for outcome in outcomes {
                outcome.await.expect("acknowledged");
            }
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_comes_again_marked_as_such() {
    let node = TestNode::start().await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    let mut wire = Wire::open(node.mqtt()).await;
    wire.send(&kept_connect("device")).await;
    assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 0, 0]);
    wire.send(&framed(0x82, &[0, 1, 0, 1, b'a', 1])).await;
    assert_eq!(wire.packet().await.expect("SUBACK"), [0x90, 3, 0, 1, 1]);
    publisher.publish("a", "x", 1).await;
    let first = wire.packet().await.expect("the message");
    assert_eq!(first[0], 0x32, "QoS 1, the first time");
    drop(wire);

    let mut wire = Wire::open(node.mqtt()).await;
    wire.send(&kept_connect("device")).await;
    assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 1, 0], "the session was kept");
    let again = wire.packet().await.expect("the message again");
    assert_eq!(
        (again[0], &again[1..]),
        (0x3a, &first[1..]),
        "the same packet id, DUP set (MQTT-4.4.0-1)"
    );
    wire.send(&[0x40, 2, again[5], again[6]]).await;
    wire.send(&[0xc0, 0]).await;
    assert_eq!(wire.packet().await.expect("PINGRESP"), [0xd0, 0]);
    drop(wire);

    let mut wire = Wire::open(node.mqtt()).await;
    wire.send(&kept_connect("device")).await;
    assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 1, 0]);
    wire.send(&[0xc0, 0]).await;
    assert_eq!(wire.packet().await.expect("PINGRESP"), [0xd0, 0], "acknowledged is acknowledged");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_qos_2_publish_sent_twice_is_delivered_once() {
    let node = TestNode::start().await;
    let mut client = Client::connect(node.mqtt(), Options::v5("client")).await;
    client.subscribe("#", 2).await;
    let publish = |dup: u8, payload: u8| framed(0x34 | dup << 3, &[0, 1, b'a', 0, 9, payload]);
    let mut wire = Wire::open(node.mqtt()).await;
    wire.send(&kept_connect("device")).await;
    assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 0, 0]);
    wire.send(&publish(0, b'1')).await;
    assert_eq!(wire.packet().await.expect("PUBREC"), [0x50, 2, 0, 9]);
    drop(wire); // the device never learns of it

    let mut wire = Wire::open(node.mqtt()).await;
    wire.send(&kept_connect("device")).await;
    assert_eq!(wire.packet().await.expect("CONNACK"), [0x20, 2, 1, 0]);
    wire.send(&publish(1, b'1')).await;
    assert_eq!(wire.packet().await.expect("PUBREC"), [0x50, 2, 0, 9]);
    for _ in 0..2 {
        wire.send(&[0x62, 2, 0, 9]).await;
        assert_eq!(wire.packet().await.expect("PUBCOMP"), [0x70, 2, 0, 9]);
    }
    wire.send(&publish(0, b'2')).await;
    assert_eq!(wire.packet().await.expect("PUBREC"), [0x50, 2, 0, 9], "the id is free again");
    assert_eq!(
        (client.next().await.payload, client.next().await.payload),
        ("1".into(), "2".into())
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_full_refuses_and_loses_nothing_it_acknowledged() {
    let node =
        TestNode::start_with(|config| config.limits.queue_messages_max = 10, Hooks::default())
            .await;
    let away = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    away.subscribe("a", 1).await;
    away.disconnect().await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    let mut accepted = Vec::new();
    for number in 0..15 {
        match publisher.try_publish("a", &number.to_string(), 1).await {
            Ok(()) => accepted.push(number.to_string()),
            Err(why) => assert!(why.contains("QuotaExceeded"), "0x97, not {why}"),
        }
    }
    assert_eq!(accepted.len(), 10);
    let mut back = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    assert!(back.session_present);
    for number in accepted {
        assert_eq!(back.next().await.payload, number);
    }
    publisher.publish("a", "room again", 1).await;
    assert_eq!(back.next().await.payload, "room again");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_3_1_1_publisher_has_to_wait_for_a_full_queue_and_goes_on_when_there_is_room() {
    let limit = |config: &mut outpost_node::config::Config| config.limits.queue_messages_max = 10;
    let node = TestNode::start_with(limit, Hooks::default()).await;
    let away = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    away.subscribe("a", 1).await;
    away.disconnect().await;
    let publisher = Client::connect(node.mqtt(), Options::v4("publisher")).await;
    for number in 0..10 {
        publisher.publish("a", &number.to_string(), 1).await;
    }
    // 3.1.1 has no word for "full": the eleventh is not acknowledged until it is on disk.
    let mut eleventh = publisher.publish_with("a", "10", 1, false, Properties::default()).await;
    let other = Client::connect(node.mqtt(), Options::v4("other")).await;
    other.publish("b", "others go on", 1).await;
    let now = std::future::ready(());
    tokio::select! {
        biased;
        settled = &mut eleventh => panic!("settled while the queue is full: {settled:?}"),
        () = now => {}
    }
    let mut back = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    for number in 0..11 {
        assert_eq!(back.next().await.payload, number.to_string());
    }
    eleventh.await.expect("there is room now");
    assert!(publisher.is_connected());
    node.stop().await;
}
