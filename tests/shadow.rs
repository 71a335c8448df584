//! Device shadows as AWS IoT has them, by MQTT and by HTTP, on one node and on both sides of a cut cable.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::cluster::{Site, linked};
use crate::support::client::{BOTH, Client, Options};
use crate::support::node::TestNode;
use crate::support::{http, until};

/// A client that asks for the shadow of one thing and hears all answers.
pub struct Device {
    client: Client,
    prefix: String,
}

impl Device {
    pub async fn connect(server: SocketAddr, options: Options, shadow: &str) -> Self {
        let client = Client::connect(server, options).await;
        let prefix = format!("$aws/things/{shadow}");
        client.subscribe(&format!("{prefix}/#"), 1).await;
        Self { client, prefix }
    }

    /// Publishes a request and skips its own echo.
    pub async fn ask(&mut self, verb: &str, body: &Value) {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.client.publish(&format!("{}/{verb}", self.prefix), &text, 1).await;
    }

    /// The next answer of this kind; others that come before it are returned as well.
    pub async fn hear(&mut self, kind: &str) -> Value {
        let topic = format!("{}/{kind}", self.prefix);
        loop {
            let message = self.client.next().await;
            if message.topic == topic {
                return serde_json::from_str(&message.payload).expect("a shadow document is JSON");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_shadow_by_mqtt() {
    let node = TestNode::start().await;
    for version in BOTH {
        let thing = format!("lamp-{version:?}");
        let options = Options::new(version, "device");
        let mut lamp = Device::connect(node.mqtt(), options, &format!("{thing}/shadow")).await;

        lamp.ask("get", &Value::Null).await;
        let refused = lamp.hear("get/rejected").await;
        assert_eq!(refused["code"], 404, "{refused}");

        lamp.ask(
            "update",
            &json!({ "state": { "desired": { "on": true, "level": 7 } }, "clientToken": "t1" }),
        )
        .await;
        let accepted = lamp.hear("update/accepted").await;
        assert_eq!((&accepted["version"], &accepted["clientToken"]), (&json!(1), &json!("t1")));
        assert_eq!(accepted["state"], json!({ "desired": { "on": true, "level": 7 } }));
        assert!(accepted["metadata"]["desired"]["on"]["timestamp"].is_u64(), "{accepted}");

        lamp.ask("update", &json!({ "state": { "reported": { "on": true } } })).await;
        let documents = lamp.hear("update/documents").await;
        let documents = if documents["current"]["version"] == 1 {
            lamp.hear("update/documents").await
        } else {
            documents
        };
        assert_eq!(
            documents["previous"]["state"],
            json!({ "desired": { "on": true, "level": 7 } })
        );
        assert_eq!(documents["current"]["state"]["reported"], json!({ "on": true }));

        lamp.ask("update", &json!({ "state": { "desired": { "level": 9 } } })).await;
        let mut delta = lamp.hear("update/delta").await;
        while delta["version"] != 3 {
            delta = lamp.hear("update/delta").await;
        }
        assert_eq!(delta["state"], json!({ "level": 9 }), "only what is still to do");

        lamp.ask("update", &json!({ "state": { "desired": { "level": 1 } }, "version": 2 })).await;
        let refused = lamp.hear("update/rejected").await;
        assert_eq!(
            (&refused["code"], &refused["message"]),
            (&json!(409), &json!("Version conflict"))
        );
        lamp.ask("update", &json!({ "state": 5 })).await;
        assert_eq!(lamp.hear("update/rejected").await["code"], 400);

        lamp.ask("update", &json!({ "state": { "desired": { "on": null } } })).await;
        lamp.ask("get", &json!({ "clientToken": "t2" })).await;
        let found = lamp.hear("get/accepted").await;
        assert_eq!(found["state"]["desired"], json!({ "level": 9 }), "null takes a key away");
        assert_eq!((&found["version"], &found["clientToken"]), (&json!(4), &json!("t2")));

        lamp.ask("delete", &Value::Null).await;
        lamp.hear("delete/accepted").await;
        lamp.ask("get", &Value::Null).await;
        assert_eq!(lamp.hear("get/rejected").await["code"], 404);
        drop(lamp);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_twin_and_mqtt_see_one_shadow() {
    let node = TestNode::start().await;
    let mut lamp = Device::connect(node.mqtt(), Options::v5("device"), "lamp/shadow").await;
    let path = "/things/lamp/shadow";
    assert_eq!(http::get(node.http(), path).await.0, 404);
    let (status, accepted) =
        http::post(node.http(), path, r#"{"state":{"desired":{"on":true}}}"#).await;
    assert_eq!((status, &accepted["version"]), (200, &json!(1)));
    assert_eq!(lamp.hear("update/delta").await["state"], json!({ "on": true }));
    lamp.ask("update", &json!({ "state": { "reported": { "on": true } } })).await;
    lamp.hear("update/accepted").await;
    let (status, found) = http::get(node.http(), path).await;
    assert_eq!((status, &found["version"]), (200, &json!(2)));
    assert_eq!(found["state"], json!({ "desired": { "on": true }, "reported": { "on": true } }));
    let stale = r#"{"state":{"desired":{"on":false}},"version":1}"#;
    let (status, refused) = http::post(node.http(), path, stale).await;
    assert_eq!((status, &refused["code"]), (409, &json!(409)), "{refused}");
    assert_eq!(http::post(node.http(), path, "{").await.0, 400);
    assert_eq!(http::ask(node.http(), "DELETE", path, "").await.0, 200);
    lamp.hear("delete/accepted").await;
    assert_eq!(http::get(node.http(), path).await.0, 404);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn named_shadows_are_apart_and_listed_and_all_survive_a_restart() {
    let node = TestNode::start().await;
    let mut config =
        Device::connect(node.mqtt(), Options::v4("device"), "pump/shadow/name/config").await;
    config.ask("update", &json!({ "state": { "desired": { "rpm": 900 } } })).await;
    assert_eq!(config.hear("update/delta").await["state"], json!({ "rpm": 900 }));
    let post = |path: &'static str, value: u64| {
        let body = json!({ "state": { "reported": { "value": value } } }).to_string();
        let http = node.http();
        async move { assert_eq!(http::post(http, path, &body).await.0, 200) }
    };
    post("/things/pump/shadow", 1).await;
    post("/things/pump/shadow?name=health", 2).await;
    post("/things/valve/shadow", 3).await;
    let node = node.restart().await;
    let (_, named) =
        http::get(node.http(), "/api/things/shadow/ListNamedShadowsForThing/pump").await;
    assert_eq!(named["results"], json!(["config", "health"]));
    let (_, all) = http::get(node.http(), "/api/v1/shadows").await;
    assert_eq!(all["shadows"].as_array().map(Vec::len), Some(4), "{all}");
    for (path, value) in [("/things/pump/shadow", 1), ("/things/pump/shadow?name=health", 2)] {
        assert_eq!(http::get(node.http(), path).await.1["state"]["reported"]["value"], value);
    }
    let (_, found) = http::get(node.http(), "/things/pump/shadow?name=config").await;
    assert_eq!(found["state"]["desired"], json!({ "rpm": 900 }));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_of_a_cut_are_written_and_equal_after_healing() {
    let site = Site::new();
    let a = site.start_behind_a_relay("a", &[]).await;
    let b = site.start_behind_a_relay("b", &[&a]).await;
    linked(&[&a, &b]).await;
    let path = "/things/lamp/shadow";
    let start = r#"{"state":{"desired":{"on":false,"level":1}}}"#;
    assert_eq!(http::post(a.http(), path, start).await.0, 200);
    until("b knows the lamp", async || http::get(b.http(), path).await.0 == 200).await;

    a.set_cut(true);
    b.set_cut(true);
    let mut lamp = Device::connect(b.mqtt(), Options::v5("lamp"), "lamp/shadow").await;
    for number in 0..20 {
        let desired =
            json!({ "state": { "desired": { "level": number, format!("a{number}"): true } } });
        assert_eq!(
            http::post(a.http(), path, &desired.to_string()).await.0,
            200,
            "a serves on its own"
        );
        lamp.ask(
            "update",
            &json!({ "state": { "reported": { "level": 1, format!("b{number}"): true } } }),
        )
        .await;
        lamp.hear("update/accepted").await;
    }
    lamp.ask("update", &json!({ "state": { "desired": { "on": true } } })).await;
    lamp.hear("update/accepted").await;
    let other = r#"{"state":{"reported":{"found":"while cut"}}}"#;
    assert_eq!(http::post(b.http(), "/things/new/shadow", other).await.0, 200);
    assert_eq!(http::get(a.http(), "/things/new/shadow").await.0, 404, "the cable is cut");
    a.set_cut(false);
    b.set_cut(false);

    let mut both = (Value::Null, Value::Null);
    until("both tell the same story", async || {
        both = (http::get(a.http(), path).await.1, http::get(b.http(), path).await.1);
        both.0["state"] == both.1["state"]
            && both.0["state"]["reported"]["b19"] == true
            && both.1["state"]["desired"]["a19"] == true
    })
    .await;
    let state = &both.0["state"];
    for number in 0..20 {
        assert_eq!(state["desired"][format!("a{number}")], true, "acknowledged by a: {state}");
        assert_eq!(state["reported"][format!("b{number}")], true, "acknowledged by b: {state}");
    }
    assert_eq!((&state["desired"]["on"], &state["desired"]["level"]), (&json!(true), &json!(19)));
    assert_eq!(state["delta"]["level"], 19, "{state}");
    let mut delta = Value::Null;
    while delta["state"]["level"] != 19 {
        delta = lamp.hear("update/delta").await; // the device learns what was wanted meanwhile
    }
    until("a knows the new one", async || http::get(a.http(), "/things/new/shadow").await.0 == 200)
        .await;
    for member in [a, b] {
        member.stop().await;
    }
}
