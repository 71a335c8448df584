//! Clients, queues and retained messages in the hands of an administrator: the command against a node with real clients.

use serde_json::Value;

use crate::support::client::{Client, Options};
use crate::support::http;
use crate::support::node::TestNode;
use crate::support::outpost::{Running, finish, outpost};
use crate::support::tools::tool;
use crate::support::until;
use crate::support::wire::{Wire, connect};

fn url(node: &TestNode) -> String {
    format!("http://{}", node.http())
}

/// Runs the command against a node; what it printed.
async fn ask(node: &TestNode, args: &[&str]) -> String {
    let url = url(node);
    let done = outpost(&[args, &["--url", &url]].concat()).await;
    assert_eq!(done.code, Some(0), "{args:?}: {}", done.stderr);
    done.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_listed_shown_and_cut_off() {
    let node = TestNode::start().await;
    let mut sub = tool("mosquitto_sub");
    let port = node.mqtt().port().to_string();
    sub.args([
        "-p", &port, "-i", "sensor-7", "-V", "mqttv5", "-k", "33", "-t", "plant/#", "-q", "1",
    ]);
    sub.args(["--will-topic", "gone", "--will-payload", "sensor-7"]);
    let sensor = Running::start(sub);
    let away = Client::connect(node.mqtt(), Options::v5("away").kept(3600)).await;
    away.disconnect().await;
    let mut boss = Client::connect(node.mqtt(), Options::v5("boss")).await;
    boss.subscribe("gone", 1).await;
    until("the sensor is subscribed", async || {
        let (status, shown) = http::get(node.http(), "/api/v1/client?id=sensor-7").await;
        status == 200 && shown["subscriptions"] == 1
    })
    .await;
    boss.publish("plant/1", "21.5", 1).await;
    until("the message has arrived", async || sensor.out.all() == ["21.5"]).await;

    let list = ask(&node, &["client", "ls"]).await;
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 4, "{list}");
    assert!(lines[1].starts_with("away") && lines[1].contains(" away "), "{list}");
    assert!(lines[3].starts_with("sensor-7  connected  5"), "{list}");
    let away: Value =
        serde_json::from_str(&ask(&node, &["client", "ls", "--away", "--json"]).await)
            .expect("JSON");
    assert_eq!(away["clients"].as_array().map(Vec::len), Some(1), "{away}");
    let shown = ask(&node, &["client", "show", "sensor-7"]).await;
    for words in ["listener mqtt, MQTT 5, keep alive 33 s", "QoS 1 plant/#", "0/1/0", "gone"] {
        assert!(shown.contains(words), "{words} in\n{shown}");
    }

    let kicked = ask(&node, &["client", "kick", "sensor-7"]).await;
    assert_eq!(kicked, "sensor-7: cut off; its session has ended\n");
    assert_eq!(boss.next_text().await, ("gone".into(), "sensor-7".into()));
    let url = url(&node);
    let again = outpost(&["client", "kick", "nobody", "--url", &url]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("no client \"nobody\" has a session here"), "{}", again.stderr);
    sensor.kill_9().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_dumped_then_drained_and_stays_empty_after_a_restart() {
    let node = TestNode::start().await;
    let away = Client::connect(node.mqtt(), Options::v4("away").kept(3600)).await;
    away.subscribe("job", 1).await;
    away.disconnect().await;
    let boss = Client::connect(node.mqtt(), Options::v5("boss")).await;
    for number in 0..700 {
        boss.publish("job", &number.to_string(), 1).await;
    }
    let dump = ask(&node, &["client", "queue", "dump", "away"]).await;
    let payloads: Vec<String> = dump
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON lines")["payload"].clone())
        .map(|payload| payload.as_str().expect("a text").to_owned())
        .collect();
    assert_eq!(payloads, (0..700).map(|n| n.to_string()).collect::<Vec<_>>());
    let shown = ask(&node, &["client", "queue", "show", "away"]).await;
    assert!(shown.starts_with("away: 700 of 10000 messages"), "{shown}");

    let url = url(&node);
    let unasked = outpost(&["client", "queue", "drain", "away", "--url", &url]).await;
    assert_eq!(unasked.code, Some(2), "nobody can be asked: {}", unasked.stderr);
    let drained = ask(&node, &["client", "queue", "drain", "away", "--yes"]).await;
    assert_eq!(drained, "away: 700 given up, 0 queued\n");
    let (_, stats) = http::get(node.http(), "/api/v1/stats").await;
    assert_eq!(stats["messages"]["dropped_total"]["by_reason"]["drained"], 700);
    boss.publish("job", "late", 1).await;
    drop(boss);

    let node = node.restart().await;
    let mut away = Client::connect(node.mqtt(), Options::v4("away").kept(3600)).await;
    assert_eq!(away.next_text().await, ("job".into(), "late".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_are_listed_and_cleared_and_subscribers_hear_of_it() {
    let node = TestNode::start().await;
    let port = node.mqtt().port().to_string();
    for topic in ["plant/1", "plant/2", "office/1"] {
        let mut publish = tool("mosquitto_pub");
        publish.args(["-p", &port, "-t", topic, "-m", "on", "-r", "-q", "1"]);
        assert_eq!(finish(publish).await.code, Some(0));
    }
    let list = ask(&node, &["retained", "ls", "plant/#"]).await;
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(list.lines().nth(1).is_some_and(|line| line.starts_with("plant/1  1    2")), "{list}");
    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("plant/1", 1).await;
    assert_eq!(watcher.next_text().await, ("plant/1".into(), "on".into()));

    let cleared = ask(&node, &["retained", "rm", "plant/#", "--yes"]).await;
    assert_eq!(cleared, "plant/1: cleared\nplant/2: cleared\n");
    assert_eq!(watcher.next_text().await, ("plant/1".into(), String::new()));
    let left: Value =
        serde_json::from_str(&ask(&node, &["retained", "ls", "--json"]).await).expect("JSON");
    assert_eq!(left["retained"][0]["topic"], "office/1");
    assert_eq!(left["retained"].as_array().map(Vec::len), Some(1));
    let (status, _) = http::ask(node.http(), "DELETE", "/api/v1/retained?topic=plant/1", "").await;
    assert_eq!(status, 404);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_drained_and_serves_again() {
    let node = TestNode::start().await;
    let mut there = Wire::connected(node.mqtt(), "there").await;
    let old = Wire::connected_v4(node.mqtt(), "old").await;
    let said = ask(&node, &["drain", "--to", "gateway-2:1883"]).await;
    assert_eq!(said, "clients are sent to gateway-2:1883; 0 still connected\n");
    let reference = [&[0x1c, 0, 14][..], b"gateway-2:1883"].concat();
    let disconnect = [&[0xe0, 19, 0x9c, 17][..], &reference].concat();
    assert_eq!(there.packet().await, Some(disconnect), "use another server, and which");
    drop(old);
    for (level, refusal) in
        [(5, [&[0x20, 20, 0, 0x9c, 17][..], &reference].concat()), (4, vec![0x20, 2, 0, 3])]
    {
        let mut wire = Wire::open(node.mqtt()).await;
        wire.send(&connect(level, "new")).await;
        assert_eq!(wire.packet().await, Some(refusal));
        wire.closed().await;
    }
    assert_eq!(ask(&node, &["drain", "--stop"]).await, "clients are served here; 0 connected\n");
    let mut there = Wire::connected(node.mqtt(), "there").await;
    let mut other = Wire::connected(node.mqtt(), "other").await;
    let said = ask(&node, &["drain", "--to", "gateway-2:1883", "--moved", "there"]).await;
    assert_eq!(said, "there: sent there\n");
    assert_eq!(there.packet().await.map(|packet| packet[2]), Some(0x9d), "server moved");
    assert!(other.ping().await);
    let refused = outpost(&["drain", "--to", "a  b", "--url", &url(&node)]).await;
    assert!(refused.stderr.contains("is no host:port"), "{}", refused.stderr);
    node.stop().await;
}
