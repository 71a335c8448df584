//! The clients everybody has: mosquitto_pub, mosquitto_sub and paho-mqtt, as they are installed.

use std::net::SocketAddr;

use serde_json::Value;

use crate::support::client::{Client, Options};
use crate::support::node::TestNode;
use crate::support::outpost::{Running, finish};
use crate::support::tools::{python_with_paho, tool};
use crate::support::{http, until};

/// The versions as mosquitto's `-V` takes them.
const VERSIONS: [&str; 2] = ["mqttv311", "mqttv5"];

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_sub_prints_what_mosquitto_pub_sends() {
    let node = TestNode::start().await;
    for version in VERSIONS {
        for qos in ["0", "1", "2"] {
            let sub =
                subscribe(&node, 0, &["-V", version, "-t", "plant/#", "-v", "-C", "2", "-q", qos])
                    .await;
            publish(node.mqtt(), &["-V", version, "-t", "plant/7/temp", "-m", "21.5", "-q", qos])
                .await;
            publish(node.mqtt(), &["-V", version, "-t", "plant/8/temp", "-m", "last", "-q", qos])
                .await;
            let (out, err) = (sub.out.clone(), sub.err.clone());
            assert!(sub.wait().await.success(), "{err:?}");
            until("both lines", async || out.all().len() == 2).await;
            assert_eq!(
                out.all(),
                ["plant/7/temp 21.5", "plant/8/temp last"],
                "{version}, QoS {qos}"
            );
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_keeps_a_session_a_retained_message_and_a_will() {
    let node = TestNode::start().await;
    // With -E mosquitto_sub ends once it is subscribed; -c keeps its session.
    let mut device = tool("mosquitto_sub");
    device.args(at(node.mqtt())).args(["-i", "device", "-c", "-q", "1", "-t", "job", "-E"]);
    assert_eq!(finish(device).await.code, Some(0));
    for number in 0..50 {
        publish(node.mqtt(), &["-t", "job", "-q", "1", "-m", &number.to_string()]).await;
    }
    publish(node.mqtt(), &["-t", "state", "-q", "1", "-r", "-m", "on"]).await;

    let mut device = tool("mosquitto_sub");
    device.args(at(node.mqtt())).args(["-i", "device", "-c", "-q", "1", "-t", "job", "-C", "50"]);
    let got = finish(device).await;
    let wanted: Vec<String> = (0..50).map(|number| number.to_string()).collect();
    assert_eq!(got.stdout.lines().collect::<Vec<_>>(), wanted, "{}", got.stderr);

    let mut late = tool("mosquitto_sub");
    late.args(at(node.mqtt())).args(["-t", "state", "-C", "1", "-F", "%r %p"]);
    assert_eq!(finish(late).await.stdout, "1 on\n");

    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("will", 1).await;
    let doomed =
        subscribe(&node, 2, &["-t", "x", "--will-topic", "will", "--will-payload", "gone"]).await;
    doomed.kill_9().await;
    assert_eq!(watcher.next_text().await, ("will".into(), "gone".into()));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paho_in_both_versions_and_all_qualities() {
    let node = TestNode::start().await;
    let mut python = python_with_paho();
    python.args(["-c", PAHO, &node.mqtt().port().to_string()]);
    let done = finish(python).await;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let report: Value = serde_json::from_str(&done.stdout).expect("the program prints JSON");
    for version in ["3.1.1", "5"] {
        for qos in 0..3 {
            let got = &report[version][qos];
            assert_eq!(got["received"], 100, "{version}, QoS {qos}: {report}");
            assert_eq!(got["in_order"], true, "{version}, QoS {qos}: {report}");
        }
        assert_eq!(report[version][3]["retained"], "kept", "{report}");
    }
    node.stop().await;
}

/// Publishes 100 messages a version and QoS to itself, then reads back a retained one; prints what came as JSON.
const PAHO: &str = r#"
import json, sys, threading
import paho.mqtt.client as mqtt
port = int(sys.argv[1])
report = {}
for name, protocol in (("3.1.1", mqtt.MQTTv311), ("5", mqtt.MQTTv5)):
    report[name] = []
    for qos in (0, 1, 2):
        got, ready, done = [], threading.Event(), threading.Event()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"paho-{name}-{qos}", protocol=protocol)
        client.on_connect = lambda c, *_: c.subscribe("paho", qos)
        client.on_subscribe = lambda *_: ready.set()
        def message(c, u, m):
            got.append(int(m.payload))
            if len(got) == 100:
                done.set()
        client.on_message = message
        client.connect("127.0.0.1", port)
        client.loop_start()
        assert ready.wait(20), "no SUBACK"
        infos = [client.publish("paho", str(n), qos) for n in range(100)]
        for info in infos:
            info.wait_for_publish(20)
        done.wait(20)
        client.disconnect()
        client.loop_stop()
        report[name].append({"received": len(got), "in_order": got == sorted(got)})
    kept, seen = [], threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=f"paho-{name}-r", protocol=protocol)
    client.on_message = lambda c, u, m: (kept.append(m.payload.decode()), seen.set())
    client.connect("127.0.0.1", port)
    client.loop_start()
    client.publish("paho/kept", "kept", 1, retain=True).wait_for_publish(20)
    client.subscribe("paho/kept", 1)
    seen.wait(20)
    client.disconnect()
    client.loop_stop()
    report[name].append({"retained": kept[0] if kept else None})
print(json.dumps(report))
"#;

fn at(server: SocketAddr) -> [String; 4] {
    ["-h".into(), server.ip().to_string(), "-p".into(), server.port().to_string()]
}

async fn publish(server: SocketAddr, args: &[&str]) {
    let mut command = tool("mosquitto_pub");
    command.args(at(server)).args(args);
    let done = finish(command).await;
    assert_eq!((done.code, &*done.stderr), (Some(0), ""), "mosquitto_pub {args:?}");
}

/// Starts mosquitto_sub beside so many subscriptions of others, and waits until the node knows its own.
async fn subscribe(node: &TestNode, others: u64, args: &[&str]) -> Running {
    let there_are = async |count| subscriptions(node.http()).await == count;
    until("earlier ones are gone", async || there_are(others).await).await;
    let mut command = tool("mosquitto_sub");
    command.args(at(node.mqtt())).args(args);
    let running = Running::start(command);
    until("mosquitto_sub is subscribed", async || there_are(others + 1).await).await;
    running
}

async fn subscriptions(server: SocketAddr) -> u64 {
    let (_, stats) = http::get(server, "/api/v1/stats").await;
    stats["mqtt"]["subscriptions"].as_u64().expect("a number")
}
