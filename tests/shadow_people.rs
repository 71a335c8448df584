//! Shadows for people: the verbs of `outpost shadow`, who wrote a value and what it replaced, where two nodes differ.

use serde_json::{Value, json};

use crate::support::client::{Client, Options};
use crate::support::http;
use crate::support::node::TestNode;
use crate::support::outpost::outpost;

/// Runs a verb at a node, to its end; what it printed.
async fn shadow(node: &TestNode, words: &[&str]) -> String {
    let url = format!("http://{}", node.http());
    let done = outpost(&[&["shadow"], words, &["--url", &url]].concat()).await;
    assert_eq!(done.code, Some(0), "{words:?}: {}", done.stderr);
    done.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_says_who_wrote_it_and_what_it_replaced_also_after_a_restart() {
    let node = TestNode::start().await;
    shadow(&node, &["set", "lamp", "desired.level=1", "desired.on=true"]).await;
    let mut app = Client::connect(node.mqtt(), Options::v5("app-7")).await;
    app.subscribe("$aws/things/lamp/shadow/update/accepted", 1).await;
    let body = json!({ "state": { "desired": { "level": 9 } } }).to_string();
    app.publish("$aws/things/lamp/shadow/update", &body, 1).await;
    app.next().await;
    drop(app);
    let why = shadow(&node, &["why", "lamp", "desired.level"]).await;
    assert!(why.starts_with("desired.level = 9\n"), "{why}");
    assert!(why.contains("v2  1 -> 9; written by client \"app-7\"; no conflict"), "{why}");
    assert!(why.contains("v1  nothing -> 1; written by client \"(http)\""), "{why}");
    assert!(!why.contains("desired.on"), "{why}");
    let node = node.restart().await;
    let history = shadow(&node, &["history", "lamp", "--json"]).await;
    let entries: Vec<Value> =
        history.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let whose: Vec<&Value> = entries.iter().map(|entry| &entry["client"]).collect();
    assert_eq!(whose, [&json!("app-7"), &json!("(http)")], "the newest first: {history}");
    assert_eq!(entries[0]["changes"][0]["replaced"], "1");
    assert_eq!(entries[0]["changes"][0]["node"], "outpost", "the node by its name");
    assert_eq!(shadow(&node, &["ls"]).await, "lamp\n");
    shadow(&node, &["rm", "lamp"]).await;
    assert!(shadow(&node, &["history", "lamp"]).await.contains("deleted by client \"(http)\""));
    assert_eq!(shadow(&node, &["ls"]).await, "");
    let url = format!("http://{}", node.http());
    let none = outpost(&["shadow", "why", "lamp", "desired.nothing", "--url", &url]).await;
    assert_eq!(none.code, Some(1), "{}", none.stderr);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_shows_the_shadows_that_differ_and_in_what() {
    let (a, b) = (TestNode::start().await, TestNode::start().await);
    let post = async |node: &TestNode, thing: &str, level: u64| {
        let body = json!({ "state": { "desired": { "level": level, "on": true } } }).to_string();
        let path = format!("/things/{thing}/shadow");
        assert_eq!(http::post(node.http(), &path, &body).await.0, 200);
    };
    for node in [&a, &b] {
        post(node, "plant-1", 1).await;
    }
    let (one, other) = (a.http().to_string(), format!("http://{}", b.http()));
    let same = outpost(&["shadow", "diff", &one, &other]).await;
    assert_eq!((same.code, &*same.stdout), (Some(0), "1 shadows, all equal\n"), "{}", same.stderr);
    post(&a, "plant-1", 2).await;
    post(&b, "plant-2", 3).await;
    post(&b, "office", 4).await;
    let differ = outpost(&["shadow", "diff", &one, &other, "--prefix", "plant-"]).await;
    assert_eq!(differ.code, Some(1));
    assert!(differ.stderr.contains("2 of 2 shadows differ"), "{}", differ.stderr);
    let expected = format!(
        "plant-1\n  {one}: version 2\n    desired.level = 2\n  {other}: version 1\n    desired.level = 1\n\
         plant-2\n  {one}: there is none\n  {other}: version 1\n    desired.level = 3\n    desired.on = true\n"
    );
    assert_eq!(differ.stdout, expected);
    for node in [a, b] {
        node.stop().await;
    }
}
