//! "Why does it not arrive?": the command against a node with access rules, and a trace of one client.

use outpost_node::Hooks;
use outpost_node::config::{Access, Acl, Config, Effect};
use serde_json::Value;

use crate::support::client::{Client, Options};
use crate::support::node::TestNode;
use crate::support::outpost::{Running, command, finish, outpost};
use crate::support::tools::tool;
use crate::support::until;

/// Anonymous clients may do everything below `plant/`, but not write to `plant/secret`.
fn with_rules(config: &mut Config) {
    config.listen.mqtt.anonymous = Some(true);
    let rule = |effect, access, filter: &str| Acl {
        effect,
        who: "anonymous".into(),
        access,
        filter: filter.into(),
    };
    config.security.acl = vec![
        rule(Effect::Allow, Access::ReadWrite, "plant/#"),
        rule(Effect::Deny, Access::Write, "plant/secret"),
    ];
}

async fn ask(node: &TestNode, args: &[&str]) -> String {
    let url = format!("http://{}", node.http());
    let done = outpost(&[args, &["--url", &url]].concat()).await;
    assert_eq!(done.code, Some(0), "{args:?}: {}", done.stderr);
    done.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn which_rule_refused_whom_and_who_would_get_it() {
    let node = TestNode::start_with(with_rules, Hooks::default()).await;
    let port = node.mqtt().port().to_string();
    let reader = Client::connect(node.mqtt(), Options::v5("reader").kept(3600)).await;
    reader.subscribe("plant/#", 1).await;
    let mut publish = tool("mosquitto_pub");
    publish.args(["-p", &port, "-V", "mqttv5", "-i", "writer", "-q", "1"]);
    publish.args(["-t", "plant/secret", "-m", "x"]);
    finish(publish).await;

    let topic = ask(&node, &["why", "plant/secret"]).await;
    for words in [
        "topic plant/secret: 1 would get it",
        "client reader QoS 1: delivered",
        "publish refused: NotAuthorized client writer topic plant/secret",
    ] {
        assert!(topic.contains(words), "{words} in\n{topic}");
    }
    let client = ask(&node, &["why", "reader", "--topic", "plant/secret"]).await;
    for words in [
        "client reader: connected",
        "rule 1: allow readwrite \"plant/#\" for anonymous",
        "publish plant/secret: refused by rule 2: deny write \"plant/secret\" for anonymous",
        "subscribe plant/secret: allowed by rule 1",
    ] {
        assert!(client.contains(words), "{words} in\n{client}");
    }
    reader.disconnect().await;
    let mut client = String::new();
    until("its good-bye has arrived", async || {
        client = ask(&node, &["why", "reader"]).await;
        client.starts_with("client reader: away")
    })
    .await;
    assert!(client.starts_with("client reader: away; last disconnected: Success at "), "{client}");
    let topic = ask(&node, &["why", "plant/secret"]).await;
    assert!(topic.contains("client reader QoS 1: away: QoS 1 and 2 are queued"), "{topic}");
    let nobody = ask(&node, &["why", "never-heard-of"]).await;
    assert!(nobody.contains("no session here; nothing was refused"), "{nobody}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_follows_one_client_from_connect_to_kick() {
    let node = TestNode::start().await;
    let port = node.mqtt().port().to_string();
    let url = format!("http://{}", node.http());
    let mut follow = command();
    follow.args(["trace", "start", "client", "sensor", "--for", "10m", "-f", "--url", &url]);
    let trace = Running::start(follow);
    until("the trace runs", async || !trace.err.with("tracing client sensor").is_empty()).await;
    let other = Client::connect(node.mqtt(), Options::v5("other")).await;
    let mut sub = tool("mosquitto_sub");
    sub.args(["-p", &port, "-i", "sensor", "-u", "ann", "-P", "hunter2", "-t", "a", "-q", "1"]);
    let sensor = Running::start(sub);
    until("it is subscribed", async || !trace.out.with("SUBACK").is_empty()).await;
    other.publish("a", "no payload please", 1).await;
    other.publish("b", "not its topic", 1).await;
    until("its acknowledgement is seen", async || !trace.out.with("PUBACK").is_empty()).await;
    ask(&node, &["client", "kick", "sensor"]).await;
    until("the end is seen", async || !trace.out.with("AdministrativeAction").is_empty()).await;

    let list = ask(&node, &["trace", "ls", "--json"]).await;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let id = list["traces"][0]["id"].as_u64().expect("a number").to_string();
    assert_eq!(list["traces"][0]["running"]["target"], "client sensor");
    ask(&node, &["trace", "stop", &id]).await;
    let (out, err) = (trace.out.clone(), trace.err.clone());
    assert!(trace.wait().await.success(), "it ends with the trace: {err:?}");
    let lines = out.all();
    let records: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    let packets: Vec<_> = records.iter().filter_map(|r| r["packet"].as_str()).collect();
    assert_eq!(
        packets[..6],
        ["CONNECT", "CONNACK", "SUBSCRIBE", "SUBACK", "PUBLISH", "PUBACK"],
        "{lines:?}"
    );
    assert!(records.iter().all(|r| r["client_id"] == "sensor"), "{lines:?}");
    let text = lines.join(" ");
    assert!(!text.contains("hunter2") && !text.contains("no payload please"), "{text}");
    let shown = ask(&node, &["trace", "show", &id]).await;
    assert_eq!(shown.lines().count(), lines.len());
    sensor.kill_9().await;
    node.stop().await;
}
