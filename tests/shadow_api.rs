//! Device shadows as clients made for AWS IoT expect them: certificates, codes, limits of a connection, the REST twins.

use std::os::unix::fs::PermissionsExt;

use outpost_node::Hooks;
use outpost_node::config::{Listener, Transport};
use serde_json::{Value, json};

use crate::support::client::{Client, Options, Will};
use crate::support::node::TestNode;
use crate::support::outpost::outpost;
use crate::support::wire::{Wire, framed};
use crate::support::{http, until};

#[tokio::test(flavor = "multi_thread")]
async fn certificates_by_outpost_cert_open_a_listener_to_a_device() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |file: &str| folder.path().join(file).display().to_string();
    let dir = folder.path().display().to_string();
    for line in [
        &["cert", "ca", "plant", "--dir", &dir][..],
        &["cert", "server", "localhost", "127.0.0.1", "--dir", &dir],
        &["cert", "device", "lamp-1", "--dir", &dir, "--days", "30"],
    ] {
        let made = outpost(line).await;
        assert_eq!(made.code, Some(0), "{line:?}: {}", made.stderr);
    }
    for key in ["ca.key", "server.key", "lamp-1.key"] {
        let mode = std::fs::metadata(path(key)).expect("it is made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    let again = outpost(&["cert", "ca", "plant", "--dir", &dir]).await;
    assert_eq!(again.code, Some(1), "a CA stays: {}", again.stderr);

    let listener = Listener {
        name: "devices".to_owned(),
        transport: Transport::Tls,
        bind: Some(([127, 0, 0, 1], 0).into()),
        cert: Some(path("server.pem").into()),
        key: Some(path("server.key").into()),
        client_ca: Some(path("ca.pem").into()),
        ..Listener::default()
    };
    let node =
        TestNode::start_with(|config| config.listener.push(listener), Hooks::default()).await;
    let port = node.listener("devices").port().to_string();
    let (ca, cert, key) = (path("ca.pem"), path("lamp-1.pem"), path("lamp-1.key"));
    let message = r#"{"state":{"reported":{"on":true}}}"#;
    let topic = "$aws/things/lamp-1/shadow/update";
    let to = ["pub", "-h", "localhost", "-p", &port, "-t", topic, "-m", message, "-q", "1"];
    let trusts = ["--cafile", &ca];
    let shows = ["--cert", &cert, "--key", &key];
    let stranger = outpost(&[&to[..], &trusts].concat()).await;
    assert_ne!(stranger.code, Some(0), "without a certificate nobody comes in");
    let sent = outpost(&[&to[..], &trusts, &shows].concat()).await;
    assert_eq!(sent.code, Some(0), "{}", sent.stderr);
    let (_, found) = http::get(node.http(), "/things/lamp-1/shadow").await;
    assert_eq!(found["state"]["reported"], json!({ "on": true }));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_those_a_connection_may_have_under_way_are_429() {
    const ASKED: usize = 300;
    let node =
        TestNode::start_with(|config| config.limits.shadow_in_flight_max = 1, Hooks::default())
            .await;
    let mut listener = Client::connect(node.mqtt(), Options::v5("listener")).await;
    listener.subscribe("$aws/things/lamp/shadow/update/accepted", 1).await;
    listener.subscribe("$aws/things/lamp/shadow/update/rejected", 1).await;
    let topic = "$aws/things/lamp/shadow/update";
    let request = |number: usize| {
        let body =
            format!(r#"{{"state":{{"reported":{{"n":{number}}}}},"clientToken":"{number}"}}"#);
        let topic_bytes = [&(topic.len() as u16).to_be_bytes(), topic.as_bytes()].concat();
        framed(0x30, &[&topic_bytes[..], &[0], body.as_bytes()].concat())
    };
    let mut lamp = Wire::connected(node.mqtt(), "lamp").await;
    lamp.send(&(0..ASKED).flat_map(request).collect::<Vec<u8>>()).await;
    let (mut accepted, mut busy) = (0, 0);
    let mut tokens = std::collections::BTreeSet::new();
    for _ in 0..ASKED {
        let message = listener.next().await;
        let body: Value = serde_json::from_str(&message.payload).expect("JSON");
        tokens.insert(body["clientToken"].as_str().expect("a token").to_owned());
        if message.topic.ends_with("accepted") {
            accepted += 1;
        } else {
            assert_eq!(body["code"], 429, "{body}");
            busy += 1;
        }
    }
    assert_eq!(tokens.len(), ASKED, "each is answered once");
    assert!(accepted > 0 && busy > 0, "{accepted} accepted, {busy} refused");
    let (_, found) = http::get(node.http(), "/things/lamp/shadow").await;
    assert_eq!(found["version"], accepted, "what was refused changed nothing");
    lamp.send(&request(7)).await;
    let last = listener.next().await;
    assert!(last.topic.ends_with("accepted"), "there is room again: {}", last.payload);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_will_does_not_reach_the_shadow_service() {
    let node = TestNode::start().await;
    let will = Will {
        topic: "$aws/things/lamp/shadow/update".into(),
        payload: r#"{"state":{"reported":{"on":false}}}"#.into(),
        retain: false,
        delay_s: 0,
    };
    let mut watcher = Client::connect(node.mqtt(), Options::v5("watcher")).await;
    watcher.subscribe("$aws/things/+/shadow/update", 1).await;
    drop(Client::connect(node.mqtt(), Options::v5("lamp").will(will)).await);
    assert!(watcher.next().await.payload.contains("false"), "whoever subscribes hears it");
    // Takes the same way, behind the will.
    watcher.publish("$aws/things/other/shadow/update", r#"{"state":{}}"#, 1).await;
    until("the service has seen what came after the will", async || {
        http::get(node.http(), "/things/other/shadow").await.0 == 200
    })
    .await;
    assert_eq!(http::get(node.http(), "/things/lamp/shadow").await.0, 404);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rest_twins_refuse_with_the_codes_and_bodies_of_the_topics() {
    let node = TestNode::start().await;
    let mut listener = Client::connect(node.mqtt(), Options::v5("listener")).await;
    listener.subscribe("$aws/things/lamp/shadow/update/+", 1).await;
    let path = "/things/lamp/shadow";
    let large =
        format!(r#"{{"state":{{"reported":{{"a":"{}"}}}},"clientToken":"t"}}"#, "x".repeat(9_000));
    for (body, code, message) in [
        (r#"{"clientToken":"t"}"#, 400, "Missing required node: state"),
        ("", 400, "Invalid JSON"),
        (r#"{"state":{},"version":7,"clientToken":"t"}"#, 400, "Invalid version"),
        (&large, 413, "The payload exceeds the maximum size allowed"),
    ] {
        let (status, refused) = http::post(node.http(), path, body).await;
        assert_eq!(
            (status, &refused["code"], &refused["message"]),
            (code, &json!(code), &json!(message))
        );
        let heard = listener.next().await;
        assert!(heard.topic.ends_with("/rejected"), "{}", heard.topic);
        assert_eq!(serde_json::from_str::<Value>(&heard.payload).expect("JSON"), refused);
    }
    let (status, refused) = http::ask(node.http(), "DELETE", path, "").await;
    assert_eq!((status, &refused["message"]), (404, &json!("No shadow exists with name: 'lamp'")));
    let (status, refused) = http::get(node.http(), "/things/lamp/shadow?name=config").await;
    assert_eq!(
        (status, &refused["message"]),
        (404, &json!("No shadow exists with name: 'lamp~config'"))
    );
    assert_eq!(http::get(node.http(), "/things/a.b/shadow").await.0, 400);
    assert_eq!(http::ask(node.http(), "PUT", path, "").await.0, 405);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn named_shadows_are_listed_in_pages() {
    let node = TestNode::start().await;
    let mut wanted = Vec::new();
    for number in 0..30 {
        let name = format!("shadow-{number:02}");
        let path = format!("/things/pump/shadow?name={name}");
        assert_eq!(http::post(node.http(), &path, r#"{"state":{}}"#).await.0, 200);
        wanted.push(name);
    }
    for path in ["/things/pump/shadow", "/things/pumpe/shadow?name=a", "/things/pum/shadow?name=b"]
    {
        assert_eq!(http::post(node.http(), path, r#"{"state":{}}"#).await.0, 200);
    }
    let list = "/api/things/shadow/ListNamedShadowsForThing/pump";
    let (_, first) = http::get(node.http(), list).await;
    assert_eq!(first["results"], json!(wanted[..25]), "25 unless told otherwise");
    assert!(first["timestamp"].is_u64());
    for size in [1, 7, 30, 100] {
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let (status, page) =
                http::get(node.http(), &format!("{list}?pageSize={size}{token}")).await;
            assert_eq!(status, 200, "{page}");
            let names = page["results"].as_array().expect("a list");
            assert!(names.len() <= size);
            found.extend(names.iter().map(|name| name.as_str().expect("a name").to_owned()));
            let Some(next) = page["nextToken"].as_str() else { break };
            token = format!("&nextToken={next}");
        }
        assert_eq!(found, wanted, "in pages of {size}");
    }
    for wrong in ["?pageSize=0", "?pageSize=101", "?pageSize=x", "?nextToken=a.b"] {
        assert_eq!(http::get(node.http(), &format!("{list}{wrong}")).await.0, 400, "{wrong}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_application_made_for_aws_publishes_reads_and_cuts_off() {
    let node = TestNode::start().await;
    let mut lamp = Client::connect(node.mqtt(), Options::v5("lamp/1")).await;
    lamp.subscribe("plant/#", 1).await;
    let path =
        "/topics/plant%2F7%2Ftemp?qos=1&retain=true&contentType=text%2Fplain&messageExpiry=60";
    assert_eq!(http::post(node.http(), path, "21.5").await, (200, json!({ "message": "OK" })));
    let heard = lamp.next().await;
    assert_eq!((&*heard.topic, &*heard.payload, heard.qos), ("plant/7/temp", "21.5", 1));
    assert_eq!(heard.content_type.as_deref(), Some("text/plain"));
    assert!(heard.expiry_s.is_some_and(|left| left <= 60));

    let (status, kept) = http::get(node.http(), "/retainedMessage/plant%2F7%2Ftemp").await;
    assert_eq!((status, &kept["payload"], &kept["qos"]), (200, &json!("MjEuNQ=="), &json!(1)));
    let (_, listed) = http::get(node.http(), "/retainedMessage?maxResults=1").await;
    assert_eq!(listed["retainedTopics"][0]["topic"], "plant/7/temp");
    assert_eq!(listed["retainedTopics"][0]["lastModifiedTime"], kept["lastModifiedTime"]);
    let (status, _) = http::post(node.http(), "/topics/plant/7/temp?retain=true", "").await;
    assert_eq!((status, &*lamp.next().await.payload), (200, ""), "an empty one clears it");
    assert_eq!(http::get(node.http(), "/retainedMessage/plant%2F7%2Ftemp").await.0, 404);

    let request = r#"{"state":{"desired":{"on":true}}}"#;
    let shadow = "/topics/%24aws%2Fthings%2Flamp%2Fshadow%2Fupdate?qos=1";
    assert_eq!(http::post(node.http(), shadow, request).await.0, 200);
    until("it was a request of the shadow", async || {
        http::get(node.http(), "/things/lamp/shadow").await.0 == 200
    })
    .await;

    assert_eq!(
        http::ask(node.http(), "DELETE", "/connections/lamp%2F1", "").await,
        (200, json!({}))
    );
    assert!(lamp.ended().await.contains("Administrative"), "it hears why");
    assert_eq!(http::ask(node.http(), "DELETE", "/connections/lamp%2F1", "").await.0, 404);
    node.stop().await;
}
