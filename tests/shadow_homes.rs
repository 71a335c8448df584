//! Shadows whose home cannot be reached: taken over and given back, refused where that is wished; and a node of the
//! cluster that sends what no honest node sends.

use std::sync::Arc;

use bytes::Bytes;
use outpost_cluster::{BoxFuture, Cluster, LinkHandle, PeerInfo, PeerSink};
use outpost_membership::{Hello, PeerFrame};
use outpost_model::NodeId;
use serde_json::{Value, json};

use crate::cluster::{Member, Site, linked};
use crate::shadow::Device;
use crate::support::client::{Client, Options};
use crate::support::outpost::outpost;
use crate::support::{http, until};

const LAMP: &str = "/things/lamp/shadow";

/// Owners count below this, of each 1,024; nodes that are apart from the home above.
const OWNERS_BELOW: u64 = 960;

async fn post(at: &Member, state: Value) -> (u16, Value) {
    http::post(at.http(), LAMP, &json!({ "state": state }).to_string()).await
}

async fn read(at: &Member) -> Value {
    http::get(at.http(), LAMP).await.1
}

async fn lost(at: &Member, other: &str) {
    until("the cut is noticed", async || {
        at.sees().await.iter().all(|(name, _, linked)| name != other || !linked)
    })
    .await;
}

async fn the_same_on(members: [&Member; 2]) -> Value {
    let mut both = (Value::Null, Value::Null);
    until("both nodes have one state and one version", async || {
        both = (read(members[0]).await, read(members[1]).await);
        let has = |field: &str| both.0[field] == both.1[field] && !both.0[field].is_null();
        has("state") && has("version")
    })
    .await;
    both.0
}

fn version(document: &Value) -> u64 {
    document["version"].as_u64().unwrap_or_else(|| panic!("no version in {document}"))
}

/// The versions a node's own subscribers are told, up to and with `last`, as they come.
async fn told(watcher: &mut Client, last: u64) -> Vec<u64> {
    let mut versions = Vec::new();
    while versions.last() != Some(&last) {
        let documents: Value =
            serde_json::from_str(&watcher.next().await.payload).expect("documents are JSON");
        versions.push(version(&documents["current"]));
    }
    versions
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_whose_home_is_out_of_reach_is_taken_over_and_the_old_home_gives_way() {
    let site = Site::new();
    let a = site.start_behind_a_relay("a", &[]).await;
    let b = site.start_behind_a_relay("b", &[&a]).await;
    linked(&[&a, &b]).await;
    let mut watchers = Vec::new();
    for member in [&a, &b] {
        let watcher = Client::connect(member.mqtt(), Options::v5("watcher")).await;
        watcher.subscribe("$aws/things/lamp/shadow/update/documents", 1).await;
        watchers.push(watcher);
    }
    let mut lamp = Device::connect(a.mqtt(), Options::v5("lamp"), "lamp/shadow").await;
    lamp.ask("update", &json!({ "state": { "reported": { "at": "a" } } })).await;
    let mut newest = version(&lamp.hear("update/accepted").await);
    until("b knows the lamp", async || http::get(b.http(), LAMP).await.0 == 200).await;

    a.set_cut(true);
    b.set_cut(true);
    lost(&b, "a").await;
    lost(&a, "b").await;
    drop(lamp);
    let mut lamp = Device::connect(b.mqtt(), Options::v5("lamp"), "lamp/shadow").await;
    // A home that was heard a moment ago is not taken over; the device is served all the same.
    let move_home = "/api/v1/shadows/home?thing=lamp";
    until("b is the home, as far as it knows", async || {
        lamp.ask("update", &json!({ "state": { "reported": { "at": "b", "was": newest } } })).await;
        let next = version(&lamp.hear("update/accepted").await);
        assert!(next > newest, "the device would ignore {next} after {newest}");
        newest = next;
        let (status, home) = http::post(b.http(), move_home, "").await;
        assert_eq!(status, 200, "{home}");
        home["home"] == NodeId::from_name("b").to_string()
    })
    .await;
    assert!(newest % 1024 >= OWNERS_BELOW, "the owner's numbers are a's: {newest}");
    // The old home knows of nothing and serves its own.
    let (status, accepted) = post(&a, json!({ "desired": { "on": true } })).await;
    assert_eq!((status, version(&accepted)), (200, 2));
    let (status, _) =
        post(&a, json!({ "reported": { "at": "nowhere: a only believes it" } })).await;
    assert_eq!(status, 200);

    a.set_cut(false);
    b.set_cut(false);
    linked(&[&a, &b]).await;
    let healed = the_same_on([&a, &b]).await;
    assert_eq!(healed["state"]["desired"], json!({ "on": true }), "acknowledged by the old home");
    assert_eq!(healed["state"]["reported"]["at"], "b", "what the device said at its home");
    assert!(version(&healed) > newest, "{healed} after {newest}");
    newest = version(&healed);
    // Wherever it comes in, the new home decides, one by one and with the owner's numbers.
    until("a has given the numbers away", async || {
        let (status, accepted) = post(&a, json!({ "desired": { "n": newest } })).await;
        assert_eq!(status, 200, "{accepted}");
        let next = version(&accepted);
        assert!(next > newest, "{next} after {newest}");
        newest = next;
        newest % 1024 < OWNERS_BELOW
    })
    .await;
    let (_, accepted) = post(&b, json!({ "desired": { "n": "last" } })).await;
    assert_eq!(version(&accepted), newest + 1, "one by one");
    let last = version(&the_same_on([&a, &b]).await);
    assert_eq!(last, newest + 1);
    for watcher in &mut watchers {
        let told = told(watcher, last).await;
        assert!(told.is_sorted(), "a version went back: {told:?}");
    }
    for member in [a, b] {
        member.stop().await;
    }
}

/// Another node takes over what the dead one was the home of; what that one had acknowledged and told nobody comes back with
/// its disk.
#[tokio::test(flavor = "multi_thread")]
async fn the_home_of_a_shadow_is_killed_and_its_device_goes_on_at_another_node() {
    let site = Site::new();
    let b = site.start_process("b", &[]).await;
    let a = site.start_process("a", &[&b]).await;
    let mut lamp = Device::connect(a.mqtt, Options::v5("lamp"), "lamp/shadow").await;
    let mut newest = report(&mut lamp, json!({ "at": "a", "n": 0 })).await;
    until("b knows the lamp", async || http::get(b.http, LAMP).await.0 == 200).await;
    let (status, wished) = http::post(b.http, LAMP, r#"{"state":{"desired":{"on":true}}}"#).await;
    assert_eq!((status, version(&wished)), (200, newest + 1), "the home decides");
    for n in 1..20 {
        let next =
            report(&mut lamp, json!({ "at": "a", "n": n, format!("only_at_a_{n}"): n })).await;
        assert!(next > newest, "{next} after {newest}");
        newest = next;
    }
    a.running.kill_9().await;
    let before = newest;
    drop(lamp);

    let mut lamp = Device::connect(b.mqtt, Options::v5("lamp"), "lamp/shadow").await;
    let b_id = NodeId::from_name("b").to_string();
    let mut n = 20;
    until("b is the home, as far as it knows", async || {
        let next = report(&mut lamp, json!({ "at": "b", "n": n })).await;
        assert!(next > newest, "the device would ignore {next} after {newest}");
        (newest, n) = (next, n + 1);
        let (_, home) = http::post(b.http, "/api/v1/shadows/home?thing=lamp", "").await;
        home["home"] == b_id
    })
    .await;
    for _ in 0..10 {
        let next = report(&mut lamp, json!({ "at": "b", "n": n })).await;
        assert!(next > newest, "the device would ignore {next} after {newest}");
        (newest, n) = (next, n + 1);
    }
    assert!(newest > before, "{newest} after {before}, which was acknowledged by the dead node");

    let a = site.start_process("a", &[&b]).await;
    let (_, back) = http::get(a.http, LAMP).await;
    assert!(version(&back) >= before, "acknowledged means on disk: {back}");
    // Its device speaks on while the two find each other.
    let mut both = (Value::Null, Value::Null);
    until("both nodes have one state and one version", async || {
        let next = report(&mut lamp, json!({ "at": "b", "n": n })).await;
        assert!(next > newest, "{next} after {newest}");
        (newest, n) = (next, n + 1);
        both = (http::get(a.http, LAMP).await.1, http::get(b.http, LAMP).await.1);
        both.0["state"] == both.1["state"] && both.0["version"] == both.1["version"]
    })
    .await;
    let reported = &both.0["state"]["reported"];
    assert_eq!((&reported["at"], &reported["n"]), (&json!("b"), &json!(n - 1)), "{reported}");
    for n in 1..20 {
        assert_eq!(reported[format!("only_at_a_{n}")], n, "acknowledged by the dead node");
    }
    assert_eq!(both.0["state"]["desired"], json!({ "on": true }));
    assert!(version(&both.0) >= newest, "{} after {newest}", both.0);
    newest = version(&both.0);
    // The old home forwards what comes in there.
    let (status, wished) = http::post(a.http, LAMP, r#"{"state":{"desired":{"on":false}}}"#).await;
    assert!(status == 200 && version(&wished) > newest, "{wished} after {newest}");
    for node in [a, b] {
        assert!(node.running.terminate().await.success());
    }
}

/// The version a device's report gets.
async fn report(device: &mut Device, reported: Value) -> u64 {
    device.ask("update", &json!({ "state": { "reported": reported } })).await;
    version(&device.hear("update/accepted").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_nodes_refuse_wishes_apart_from_the_home_and_take_the_device_s_word() {
    let site = Site::new();
    let strict = |config: &mut outpost_node::config::Config| config.shadows.strict = true;
    let a = site.start_behind_a_relay_with("a", &[], strict).await;
    let b = site.start_behind_a_relay_with("b", &[&a], strict).await;
    linked(&[&a, &b]).await;
    assert_eq!(post(&a, json!({ "desired": { "on": false } })).await.0, 200);
    until("b knows the lamp", async || http::get(b.http(), LAMP).await.0 == 200).await;
    let (status, _) = post(&b, json!({ "desired": { "on": true } })).await;
    assert_eq!(status, 200, "its home is reached");

    a.set_cut(true);
    b.set_cut(true);
    lost(&b, "a").await;
    let unreachable = json!("The shadow's owner is unreachable");
    let (status, refused) = post(&b, json!({ "desired": { "on": false } })).await;
    assert_eq!((status, &refused["message"]), (500, &unreachable), "{refused}");
    let (status, refused) = http::ask(b.http(), "DELETE", LAMP, "").await;
    assert_eq!((status, &refused["message"]), (500, &unreachable), "{refused}");
    let stale = json!({ "state": { "desired": { "on": false } }, "version": 1 }).to_string();
    let (status, _) = http::post(b.http(), LAMP, &stale).await;
    assert_eq!(status, 500, "no 409 for a version it cannot judge");
    let mut app = Device::connect(b.mqtt(), Options::v5("app"), "lamp/shadow").await;
    app.ask("update", &json!({ "state": { "desired": { "on": false } } })).await;
    assert_eq!(app.hear("update/rejected").await["code"], 500);
    app.ask("update", &json!({ "state": { "reported": { "on": false } } })).await;
    app.hear("update/accepted").await;
    assert_eq!(post(&a, json!({ "desired": { "level": 3 } })).await.0, 200, "a is at home");

    a.set_cut(false);
    b.set_cut(false);
    linked(&[&a, &b]).await;
    let healed = the_same_on([&a, &b]).await;
    assert_eq!(healed["state"]["desired"], json!({ "on": true, "level": 3 }), "{healed}");
    assert_eq!(healed["state"]["reported"], json!({ "on": false }), "{healed}");
    until("wishes are taken again", async || {
        post(&b, json!({ "desired": { "on": false } })).await.0 == 200
    })
    .await;
    for member in [a, b] {
        member.stop().await;
    }
}

/// A node with a certificate of the cluster that says hello and then nonsense about shadows.
struct Hostile;

impl PeerSink for Hostile {
    fn peer_up(&self, _: PeerInfo, link: LinkHandle) {
        let hello = Hello { store_id: 1, your_store_id: 0, events_seen: 0, retained_seen: 0 };
        let nonsense = Bytes::from_static(b"\x02\xff no frame of any hub");
        for frame in [PeerFrame::Hello(hello), PeerFrame::Shadow(nonsense)] {
            link.try_send(frame).expect("a fresh link has room");
        }
    }

    fn peer_down(&self, _: NodeId) {}

    fn frame(&self, _: NodeId, _: PeerFrame) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_peer_is_not_listened_to_and_people_see_why() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    linked(&[&a, &b]).await;
    assert_eq!(post(&a, json!({ "desired": { "on": true } })).await.0, 200);
    let before = the_same_on([&a, &b]).await;
    let stranger = site.stranger("stranger", &[&a]);
    let hostile = Cluster::start(stranger, Arc::new(Hostile), 1).await.expect("it starts");
    let mut reason = Value::Null;
    until("a does not listen to it", async || {
        let (_, seen) = http::get(a.http(), "/api/v1/cluster").await;
        let members = seen["members"].as_array().expect("a list");
        let stranger = members.iter().find(|member| member["name"] == "stranger");
        reason = stranger.map_or(Value::Null, |s| s["shadows_quarantined"]["reason"].clone());
        reason.is_string()
    })
    .await;
    let (_, metrics) = http::get(a.http(), "/metrics").await;
    let metrics = metrics.as_str().expect("a text");
    assert!(metrics.contains("\noutpost_shadows_peers_quarantined 1\n"), "{metrics}");
    assert!(!metrics.contains("\noutpost_shadows_frames_refused_total 0\n"), "{metrics}");
    let url = format!("http://{}", a.http());
    let table = outpost(&["cluster", "status", "--url", &url]).await;
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    let reason = reason.as_str().expect("just seen");
    assert!(table.stdout.contains("its shadows are not listened to for"), "{}", table.stdout);
    assert!(table.stdout.contains(reason), "{}", table.stdout);
    // Nothing of it was used, and the others go on.
    assert_eq!(read(&a).await["version"], before["version"]);
    assert_eq!(post(&b, json!({ "reported": { "on": true } })).await.0, 200);
    let after = the_same_on([&a, &b]).await;
    assert_eq!(version(&after), version(&before) + 1);
    hostile.shutdown().await;
    for member in [a, b] {
        member.stop().await;
    }
}
