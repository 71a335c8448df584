//! The `$SYS` tree as mosquitto_sub shows it, next to what `/metrics` says.

use std::collections::BTreeMap;

use outpost_node::Hooks;

use crate::support::client::{Client, Options};
use crate::support::node::TestNode;
use crate::support::outpost::{Running, finish};
use crate::support::tools::tool;
use crate::support::{http, until};

/// What mosquitto_sub prints for `$SYS/#` until so many lines have come.
async fn tree(node: &TestNode, lines: usize) -> BTreeMap<String, String> {
    let mut command = tool("mosquitto_sub");
    let port = node.mqtt().port().to_string();
    command.args(["-p", &port, "-t", "$SYS/#", "-v", "-C", &lines.to_string()]);
    let done = finish(command).await;
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    // A topic may have a blank in it ("retained messages/count"); a value has none but the version and the uptime.
    let line = |line: &str| {
        let (topic, value) = match line {
            l if l.contains("/version ") || l.contains("/uptime ") => l.split_once(' '),
            l => l.rsplit_once(' '),
        }?;
        Some((topic.to_owned(), value.to_owned()))
    };
    done.stdout.lines().filter_map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_sub_sees_the_figures_that_metrics_shows() {
    let one_interval = |config: &mut outpost_node::config::Config| {
        config.node.sys_interval_s = 3_600; // longer than this story on any machine
    };
    let node = TestNode::start_with(one_interval, Hooks::default()).await;
    let device = Client::connect(node.mqtt(), Options::v4("device").kept(3600)).await;
    device.subscribe("plant/#", 1).await;
    for number in 0..20 {
        device.publish("plant/1", &format!("{number:04}"), 1).await;
    }
    let tree = tree(&node, 52).await;
    let of = |name: &str| {
        let topic = format!("$SYS/broker/{name}");
        tree.get(&topic).cloned().unwrap_or_else(|| panic!("{topic} in {tree:?}"))
    };
    assert!(of("version").starts_with("outpost version "), "{tree:?}");
    assert!(of("uptime").ends_with(" seconds"), "{tree:?}");
    assert_eq!((&*of("clients/connected"), &*of("clients/total")), ("2", "2"));
    assert_eq!(of("publish/messages/received"), "20");
    assert_eq!(of("publish/bytes/received"), "80");
    assert_eq!(of("retained messages/count"), "0");
    assert_eq!(of("load/connections/15min"), "0.00", "the first interval is not over");

    let (status, page) = http::get(node.http(), "/metrics").await;
    let page = page.as_str().expect("a text");
    assert_eq!(status, 200);
    for line in [
        "outpost_traffic_publishes_received_total{qos=\"1\"} 20",
        "outpost_traffic_payload_bytes_received_total 80",
        "outpost_listener_publishes_received_total{listener=\"mqtt\"} 20",
        "outpost_mqtt_sessions_connected_max 2",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_come_again_when_they_change_and_the_heap_is_among_them() {
    let every_second = |config: &mut outpost_node::config::Config| config.node.sys_interval_s = 1;
    let node = TestNode::start_with(every_second, Hooks::default()).await;
    let mut command = tool("mosquitto_sub");
    command.args(["-p", &node.mqtt().port().to_string(), "-t", "$SYS/broker/#", "-F", "%r %t %p"]);
    let watcher = Running::start(command);
    until("the first values", async || {
        watcher.out.all().iter().any(|line| line.starts_with("1 $SYS/broker/clients/connected"))
    })
    .await;
    let _device = Client::connect(node.mqtt(), Options::v5("device")).await;
    until("the change is told, without the retain flag", async || {
        let lines = watcher.out.all();
        lines.iter().any(|line| line == "0 $SYS/broker/clients/connected 2")
            && lines.iter().any(|line| line.starts_with("0 $SYS/broker/load/connections/1min"))
            && lines.iter().any(|line| line.starts_with("0 $SYS/broker/heap/current"))
    })
    .await;
    watcher.kill_9().await;
    node.stop().await;
}
