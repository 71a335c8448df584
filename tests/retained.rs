//! The last word on a topic waits for who comes later, restarts included.

use rumqttc_v5::mqttbytes::QoS;
use rumqttc_v5::mqttbytes::v5::{RetainForwardRule, SubscribeFilter};

use crate::support::client::{BOTH, Client, Options};
use crate::support::node::TestNode;

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_later_gets_the_last_message_of_each_topic() {
    let node = TestNode::start().await;
    for version in BOTH {
        let publisher = Client::connect(node.mqtt(), Options::new(version, "publisher")).await;
        for qos in 0..3 {
            publisher.retain("lamp/1/state", &format!("old {qos}"), qos).await;
            publisher.retain("lamp/1/state", &format!("new {qos}"), qos).await;
            publisher.retain("lamp/2/state", "steady", qos).await;
            publisher.publish("sync", "QoS 0 before it has arrived as well", 1).await;
            let mut late = Client::connect(node.mqtt(), Options::new(version, "late")).await;
            late.subscribe("lamp/+/state", 2).await;
            let mut got = [late.next().await, late.next().await];
            got.sort_by(|a, b| a.topic.cmp(&b.topic));
            assert_eq!((&*got[0].payload, &*got[1].payload), (&*format!("new {qos}"), "steady"));
            assert!(got.iter().all(|message| message.retain && message.qos == qos), "{got:?}");
            publisher.retain("lamp/1/state", "live", 1).await;
            let live = late.next().await;
            assert_eq!((&*live.payload, live.retain), ("live", false), "MQTT-3.3.1-12");
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_payload_clears_it() {
    let node = TestNode::start().await;
    for version in BOTH {
        let mut client = Client::connect(node.mqtt(), Options::new(version, "client")).await;
        client.retain("a", "x", 1).await;
        client.retain("b", "y", 1).await;
        client.retain("a", "", 1).await;
        client.subscribe("#", 1).await;
        assert_eq!(client.next_text().await, ("b".into(), "y".into()));
        client.expect_only_own("end").await;
        client.retain("b", "", 1).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_survives_a_restart_of_the_node() {
    let mut node = TestNode::start().await;
    let client = Client::connect(node.mqtt(), Options::v5("client")).await;
    for number in 0..300 {
        client.retain(&format!("t/{number}"), "first", u8::from(number % 2 == 0)).await;
    }
    client.retain("t/1", "second", 1).await;
    client.retain("t/2", "", 1).await;
    node = node.restart().await;
    let mut client = Client::connect(node.mqtt(), Options::v5("client")).await;
    client.subscribe("t/#", 1).await;
    let mut topics = std::collections::BTreeMap::new();
    while topics.len() < 299 {
        let (topic, payload) = client.next_text().await;
        assert_eq!(topics.insert(topic, payload), None, "each topic once");
    }
    assert_eq!((topics.get("t/1").map(String::as_str), topics.get("t/2")), (Some("second"), None));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retain_handling_of_mqtt5_3_8_3_1() {
    let node = TestNode::start().await;
    let mut client = Client::connect(node.mqtt(), Options::v5("client")).await;
    client.retain("a", "kept", 1).await;
    let with = |rule: RetainForwardRule, as_published: bool| {
        let mut filter = SubscribeFilter::new("a", QoS::AtLeastOnce);
        filter.retain_forward_rule = rule;
        filter.preserve_retain = as_published;
        filter
    };
    client.subscribe_with(with(RetainForwardRule::Never, false), None).await;
    client.expect_only_own("a").await;
    client.subscribe_with(with(RetainForwardRule::OnNewSubscribe, false), None).await;
    client.expect_only_own("a").await;
    client.unsubscribe("a").await;
    client.subscribe_with(with(RetainForwardRule::OnNewSubscribe, true), None).await;
    assert_eq!(client.next_text().await, ("a".into(), "kept".into()));
    client.subscribe_with(with(RetainForwardRule::OnEverySubscribe, true), None).await;
    assert_eq!(client.next_text().await, ("a".into(), "kept".into()));
    client.retain("a", "newer", 1).await;
    assert!(client.next().await.retain, "retain as published");
    node.stop().await;
}
