//! Messages find their subscribers, whole, in both versions; bytes that are no MQTT end one connection and no more.

use rumqttc_v5::mqttbytes::QoS;
use rumqttc_v5::mqttbytes::v5::SubscribeFilter;

use crate::support::client::{BOTH, Client, Options, Properties};
use crate::support::node::TestNode;
use crate::support::outpost::Dev;
use crate::support::until;
use crate::support::wire::{Wire, connect, framed};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_every_matching_subscriber_of_either_version_once() {
    let node = TestNode::start().await;
    let filters = ["plant/7/temp", "plant/+/temp", "plant/#", "+/7/+", "+/#"];
    let mut subscribers = Vec::new();
    for version in BOTH {
        for (number, filter) in filters.iter().enumerate() {
            let options = Options::new(version, &format!("sub-{version:?}-{number}"));
            let client = Client::connect(node.mqtt(), options).await;
            client.subscribe(filter, 2).await;
            subscribers.push(client);
        }
    }
    for version in BOTH {
        let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
        publisher.publish("plants/7/temp/x", "for +/# only", 1).await;
        for qos in [0, 1, 2, 1] {
            publisher.publish("plant/7/temp", &format!("21.{qos} by {version:?}"), qos).await;
        }
        for (place, subscriber) in subscribers.iter_mut().enumerate() {
            if place % filters.len() == filters.len() - 1 {
                assert_eq!(subscriber.next().await.payload, "for +/# only");
            }
            for qos in [0, 1, 2, 1] {
                let message = subscriber.next().await;
                let text = format!("21.{qos} by {version:?}");
                assert_eq!((&*message.topic, message.payload), ("plant/7/temp", text));
                assert_eq!((message.qos, message.retain, message.dup), (qos, false, false));
            }
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_begin_with_a_dollar_are_not_for_wildcards_at_the_start() {
    let node = TestNode::start().await;
    for version in BOTH {
        let mut all = Client::connect(node.mqtt(), Options::new(version, "all")).await;
        let mut own = Client::connect(node.mqtt(), Options::new(version, "own")).await;
        all.subscribe("#", 1).await;
        own.subscribe("$devices/#", 1).await;
        let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
        publisher.publish("$devices/a", "hidden", 1).await;
        publisher.publish("open", "seen", 1).await;
        assert_eq!(own.next_text().await, ("$devices/a".into(), "hidden".into()));
        assert_eq!(all.next_text().await, ("open".into(), "seen".into()), "MQTT-4.7.2-1");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsubscribed_filter_brings_nothing_more() {
    let node = TestNode::start().await;
    for version in BOTH {
        let mut client = Client::connect(node.mqtt(), Options::new(version, "client")).await;
        client.subscribe("a/b", 1).await;
        client.subscribe("last", 1).await;
        client.publish("a/b", "1", 1).await;
        assert_eq!(client.next_text().await, ("a/b".into(), "1".into()));
        client.unsubscribe("a/b").await;
        client.publish("a/b", "2", 1).await;
        client.publish("last", "3", 1).await;
        assert_eq!(client.next_text().await, ("last".into(), "3".into()));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_arrive_as_they_were_sent_and_3_1_1_gets_the_message_without_them() {
    let node = TestNode::start().await;
    let mut five = Client::connect(node.mqtt(), Options::v5("five")).await;
    let mut four = Client::connect(node.mqtt(), Options::v4("four")).await;
    four.subscribe("a", 1).await;
    five.subscribe_with(SubscribeFilter::new("a", QoS::AtLeastOnce), Some(7)).await;
    let properties = Properties {
        content_type: Some("text/plain".into()),
        response_topic: Some("answers".into()),
        user: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        expiry_s: None,
    };
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    let outcome = publisher.publish_with("a", "x", 1, false, properties.clone()).await;
    outcome.await.expect("acknowledged");
    let message = five.next().await;
    assert_eq!(
        (message.content_type, message.response_topic),
        (properties.content_type, properties.response_topic)
    );
    assert_eq!((message.user, message.subscription_ids), (properties.user, vec![7]));
    assert_eq!(four.next_text().await, ("a".into(), "x".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_local_keeps_a_bridge_from_hearing_itself() {
    let node = TestNode::start().await;
    let mut bridge = Client::connect(node.mqtt(), Options::v5("bridge")).await;
    let mut filter = SubscribeFilter::new("#", QoS::AtLeastOnce);
    filter.nolocal = true;
    bridge.subscribe_with(filter, None).await;
    let other = Client::connect(node.mqtt(), Options::v5("other")).await;
    bridge.publish("a", "mine", 1).await;
    other.publish("a", "theirs", 1).await;
    assert_eq!(bridge.next_text().await, ("a".into(), "theirs".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_goes_through_whole() {
    let node = TestNode::start().await;
    let payload = "0123456789abcdef".repeat(60_000);
    for version in BOTH {
        let mut client = Client::connect(node.mqtt(), Options::new(version, "client")).await;
        client.subscribe("firmware", 1).await;
        client.publish("firmware", &payload, 1).await;
        assert_eq!(client.next().await.payload, payload, "960,000 bytes");
    }
    node.stop().await;
}

/// What a broken or hostile client may send once it is connected, what it is told (MQTT 5), and the words in the log.
fn broken() -> Vec<(&'static str, Vec<u8>, u8, &'static str)> {
    vec![
        ("a topic that is not UTF-8", framed(0x30, &[0, 3, b'a', 0xff, b'b', 0]), 0x81, "UTF-8"),
        ("QoS 3", framed(0x36, &[0, 1, b'a', 0, 1, 0]), 0x81, "PUBLISH"),
        ("a packet longer than allowed", vec![0x30, 0xff, 0xff, 0xff, 0x7f], 0x95, "1048576"),
        ("a length of five bytes", vec![0x30, 0xff, 0xff, 0xff, 0xff, 0x01], 0x81, "malformed"),
        ("a second CONNECT", connect(5, "again"), 0x82, "CONNECT"),
        ("a packet of type 0", vec![0x00, 0x00], 0x82, "type 0"),
        ("a wildcard in a topic name", framed(0x30, &[0, 1, b'#', 0]), 0x81, "PUBLISH"),
        ("SUBSCRIBE without a filter", framed(0x82, &[0, 1, 0]), 0x81, "SUBSCRIBE"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_bytes_end_one_connection_with_its_code_and_one_line_in_the_log() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start_with(data.path(), &["--set", "log.level=info"]).await;
    let mut witness = Client::connect(dev.mqtt, Options::v5("witness")).await;
    witness.subscribe("beat", 1).await;
    for (number, (what, bytes, code, words)) in broken().into_iter().enumerate() {
        let before = dev.process.err.all().len();
        let mut wire = Wire::connected(dev.mqtt, &format!("broken-{number}")).await;
        wire.send(&bytes).await;
        let packet = wire.packet().await.unwrap_or_else(|| panic!("{what}: closed without a word"));
        assert_eq!((packet[0], packet[2]), (0xe0, code), "{what}: {packet:x?}");
        wire.closed().await;
        let says = || dev.process.err.all().split_off(before);
        until(what, async || !says().is_empty()).await;
        witness.publish("beat", what, 1).await;
        assert_eq!(witness.next().await.payload, what, "the others go on");
        assert_eq!(says().len(), 1, "{what}: one line: {:#?}", says());
        assert!(
            says()[0].contains("127.0.0.1:") && says()[0].contains(words),
            "{what}: {:?}",
            says()
        );
    }
    for (what, bytes, _, _) in broken() {
        if what == "a second CONNECT" {
            continue;
        }
        // 3.1.1 knows no DISCONNECT from the server: it only closes (MQTT-4.8.0-1).
        let mut wire = Wire::connected_v4(dev.mqtt, "broken").await;
        wire.send(&bytes).await;
        wire.closed().await;
    }
    assert!(witness.is_connected());
    assert!(dev.process.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_connect_are_refused_before_anything_else() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start_with(data.path(), &["--set", "log.level=info"]).await;
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: outpost\r\n\r\n".to_vec(),
        vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3],
        framed(0x30, &[0, 1, b'a', 0]),
    ] {
        let before = dev.process.err.all().len();
        let mut wire = Wire::open(dev.mqtt).await;
        wire.send(&bytes).await;
        wire.closed().await;
        until("a line in the log", async || dev.process.err.all().len() > before).await;
    }
    let mut wire = Wire::open(dev.mqtt).await;
    wire.send(&connect(9, "from the future")).await;
    let connack = wire.packet().await.expect("CONNACK");
    // In the words of 3.1.1, which every client understands: unacceptable protocol version.
    assert_eq!(connack, [0x20, 2, 0, 1]);
    wire.closed().await;
    assert!(dev.process.terminate().await.success());
}
