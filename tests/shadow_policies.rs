//! Whose word counts for a key: `[[shadows.policy]]` at a node that runs.

use outpost_node::Hooks;
use outpost_node::config::{PolicyKind, ShadowPolicy};
use serde_json::{Value, json};

use crate::support::node::TestNode;
use crate::support::{http, until};

const RADIATOR: &str = "/things/radiator-1/shadow";

fn rule(path: &str, policy: PolicyKind, expiry_s: usize) -> ShadowPolicy {
    ShadowPolicy { things: "radiator-*".to_owned(), path: path.to_owned(), policy, expiry_s }
}

async fn start() -> TestNode {
    let rules = vec![
        rule("sensors.#", PolicyKind::ReportedOnly, 0),
        rule("knob", PolicyKind::LocalOverride, 0),
        rule("scene", PolicyKind::LocalOverride, 1),
    ];
    TestNode::start_with(|config| config.shadows.policy = rules, Hooks::default()).await
}

async fn write(node: &TestNode, state: Value) {
    let body = json!({ "state": state }).to_string();
    let (status, answer) = http::post(node.http(), RADIATOR, &body).await;
    assert_eq!(status, 200, "{answer}");
}

/// What is still to do.
async fn delta(node: &TestNode) -> Value {
    http::get(node.http(), RADIATOR).await.1["state"]["delta"].take()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_is_in_the_delta_as_its_policy_says_also_after_a_restart() {
    let node = start().await;
    write(&node, json!({ "desired": { "on": true } })).await;
    write(&node, json!({ "reported": { "on": true } })).await;
    write(&node, json!({ "reported": { "on": false } })).await;
    assert_eq!(delta(&node).await, json!({ "on": true }), "controlled: wanted whenever it differs");
    write(&node, json!({ "reported": { "on": true } })).await;

    let wish = json!({ "state": { "desired": { "sensors": { "temp": 20 } } } }).to_string();
    let (status, refused) = http::post(node.http(), RADIATOR, &wish).await;
    assert_eq!(status, 400, "{refused}");
    write(&node, json!({ "reported": { "sensors": { "temp": 21 } } })).await;
    assert_eq!(delta(&node).await, Value::Null, "what is only reported is never to do");

    write(&node, json!({ "desired": { "knob": 5 } })).await;
    write(&node, json!({ "reported": { "knob": 2 } })).await;
    assert_eq!(delta(&node).await, json!({ "knob": 5 }), "not shown yet: still wanted");
    write(&node, json!({ "reported": { "knob": 5 } })).await;
    write(&node, json!({ "reported": { "knob": 9 } })).await;
    assert_eq!(delta(&node).await, Value::Null, "turned by hand: no fight");
    let node = node
        .restart_with(|config| {
            config.shadows.policy = vec![rule("knob", PolicyKind::LocalOverride, 0)];
        })
        .await;
    assert_eq!(delta(&node).await, Value::Null, "and none after a restart");
    write(&node, json!({ "desired": { "knob": 5 } })).await;
    assert_eq!(delta(&node).await, json!({ "knob": 5 }), "a new wish, though of the same value");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_turned_by_hand_stands_until_its_time_is_over() {
    let node = start().await;
    write(&node, json!({ "desired": { "scene": "day" } })).await;
    write(&node, json!({ "reported": { "scene": "day" } })).await;
    write(&node, json!({ "reported": { "scene": "party" } })).await;
    until("the wish is back after a second", async || {
        delta(&node).await == json!({ "scene": "day" })
    })
    .await;
    write(&node, json!({ "reported": { "scene": "day" } })).await;
    assert_eq!(delta(&node).await, Value::Null);
    node.stop().await;
}
