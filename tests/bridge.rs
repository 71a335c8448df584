//! Bridges to another broker: mosquitto as it comes from Debian, and a second Outpost.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use outpost_node::Hooks;
use outpost_node::config::{Bridge, BridgeDirection, BridgeProtocol, BridgeTopic};

use crate::support::burst::burst;
use crate::support::client::{Client, Options};
use crate::support::mosquitto::{Mosquitto, OPEN, free_port};
use crate::support::node::TestNode;
use crate::support::outpost::{Running, command, outpost};
use crate::support::stall::Stall;
use crate::support::{http, until};

/// As long as a loop needs to show: mosquitto alone makes thousands of copies in it.
const A_LOOP_SHOWS: Duration = Duration::from_secs(2);

pub fn topic(pattern: &str, direction: BridgeDirection, qos: u16) -> BridgeTopic {
    BridgeTopic { pattern: pattern.into(), direction, qos, ..BridgeTopic::default() }
}

pub fn bridge(name: &str, to: SocketAddr, topic: BridgeTopic) -> Bridge {
    Bridge {
        name: name.into(),
        address: to.to_string(),
        topic: vec![topic],
        restart_timeout_max_s: 1,
        ..Bridge::default()
    }
}

pub async fn node(bridges: Vec<Bridge>) -> TestNode {
    TestNode::start_with(|config| config.bridge = bridges, Hooks::default()).await
}

pub async fn shown(http: SocketAddr, name: &str) -> serde_json::Value {
    let (_, body) = http::get(http, "/api/v1/bridges").await;
    let all = body["bridges"].as_array().expect("a list");
    all.iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
}

pub async fn up(http: SocketAddr, name: &str) {
    until("the bridge is up", async || shown(http, name).await["state"] == "connected").await;
}

/// A client that sees everything.
pub async fn watcher(at: SocketAddr, name: &str) -> Client {
    let client = Client::connect(at, Options::v5(name)).await;
    client.subscribe("#", 2).await;
    client
}

/// Everything that comes, `wanted` at least, until nothing has come for a while.
pub async fn all(client: &mut Client, wanted: &[&str]) -> Vec<String> {
    let mut got = Vec::new();
    while !wanted.iter().all(|text| got.iter().any(|one| one == text)) {
        got.push(client.next().await.payload);
        assert!(got.len() < 1_000, "it goes in circles");
    }
    while let Ok(message) = tokio::time::timeout(A_LOOP_SHOWS, client.next()).await {
        got.push(message.payload);
        assert!(got.len() < 1_000, "it goes in circles");
    }
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_cross_both_ways_with_other_names_their_qos_and_the_retain_flag() {
    let mosquitto = Mosquitto::start(OPEN).await;
    for protocol_version in [BridgeProtocol::Mqttv50, BridgeProtocol::Mqttv311] {
        let names = BridgeTopic {
            local_prefix: "plant/".into(),
            remote_prefix: format!("site-{protocol_version:?}/"),
            ..topic("#", BridgeDirection::Both, 2)
        };
        let to = Bridge { protocol_version, ..bridge("cloud", mosquitto.addr, names) };
        let node = node(vec![to]).await;
        up(node.http(), "cloud").await;
        let far_name = format!("site-{protocol_version:?}");
        let mut far = Client::connect(mosquitto.addr, Options::v5("far")).await;
        far.subscribe(&format!("{far_name}/#"), 2).await;
        let mut near = Client::connect(node.mqtt(), Options::v5("near")).await;
        near.subscribe("plant/#", 2).await;
        for qos in [0, 1, 2] {
            near.publish("plant/out", &format!("out {qos}"), qos).await;
            far.publish(&format!("{far_name}/in"), &format!("in {qos}"), qos).await;
        }
        for client in [&mut near, &mut far] {
            let (mut got, mut count) = (Vec::new(), 0);
            while count < 6 {
                let message = client.next().await;
                got.push((message.topic.rsplit('/').next().map(str::to_owned), message.qos));
                count += 1;
            }
            got.sort();
            let expected = |way: &str| [0, 1, 2].map(|qos| (Some(way.to_owned()), qos));
            assert_eq!(got, [expected("in"), expected("out")].concat());
        }
        near.retain("plant/state", "on", 1).await;
        until("it is retained there", async || {
            let mut late = Client::connect(mosquitto.addr, Options::v5("late")).await;
            late.subscribe(&format!("{far_name}/state"), 1).await;
            let next = tokio::time::timeout(Duration::from_millis(300), late.next()).await;
            next.is_ok_and(|message| message.retain && message.payload == "on")
        })
        .await;
        node.stop().await;
    }
    drop(mosquitto.process);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_publish_over_a_bridge_both_ways_is_one_copy_r3() {
    let mosquitto = Mosquitto::start(OPEN).await;
    for protocol_version in [BridgeProtocol::Mqttv50, BridgeProtocol::Mqttv311] {
        let both = topic("#", BridgeDirection::Both, 0);
        let to = Bridge { protocol_version, ..bridge("cloud", mosquitto.addr, both) };
        let node = node(vec![to]).await;
        up(node.http(), "cloud").await;
        let mut near = watcher(node.mqtt(), "near").await;
        let mut far = watcher(mosquitto.addr, "far").await;
        near.publish("t", "from here", 1).await;
        far.publish("t", "from there", 1).await;
        let both = ["from here", "from there"];
        let (mut here, mut there) = (all(&mut near, &both).await, all(&mut far, &both).await);
        here.sort();
        there.sort();
        assert_eq!((&here, &there), (&vec!["from here".to_owned(), "from there".into()], &here));
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mosquitto_that_bridges_to_this_node_gets_one_copy_each_r3() {
    let node = node(Vec::new()).await;
    let config = format!(
        "{OPEN}\nconnection up\naddress {}\ntopic # both 1\nrestart_timeout 1",
        node.mqtt()
    );
    let mosquitto = Mosquitto::start(&config).await;
    let mut near = watcher(node.mqtt(), "near").await;
    let mut far = watcher(mosquitto.addr, "far").await;
    until("the bridge of mosquitto is up", async || {
        near.publish("probe", "x", 1).await;
        tokio::time::timeout(Duration::from_millis(200), far.next()).await.is_ok()
    })
    .await;
    near.publish("t", "from here", 1).await;
    far.publish("t", "from there", 1).await;
    let both = ["from here", "from there"];
    let (mut here, mut there) = (all(&mut near, &both).await, all(&mut far, &both).await);
    for got in [&mut here, &mut there] {
        got.retain(|text| text != "x");
        got.sort();
    }
    assert_eq!((&here, &there), (&vec!["from here".to_owned(), "from there".into()], &here));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_outposts_that_bridge_to_each_other_twice_make_one_copy_r3() {
    let (at_a, at_b) = (free_port(), free_port());
    let start = async |at: SocketAddr, to: SocketAddr| {
        let link = bridge("other", to, topic("#", BridgeDirection::Both, 1));
        let change = |config: &mut outpost_node::config::Config| {
            config.listen.mqtt.bind = at;
            config.bridge = vec![link];
        };
        TestNode::start_with(change, Hooks::default()).await
    };
    let (a, b) = (start(at_a, at_b).await, start(at_b, at_a).await);
    up(a.http(), "other").await;
    up(b.http(), "other").await;
    let (mut near, mut far) = (watcher(at_a, "near").await, watcher(at_b, "far").await);
    near.publish("t", "from a", 1).await;
    far.publish("t", "from b", 1).await;
    let both = ["from a", "from b"];
    let (mut here, mut there) = (all(&mut near, &both).await, all(&mut far, &both).await);
    here.sort();
    there.sort();
    assert_eq!((&here, &there), (&vec!["from a".to_owned(), "from b".into()], &here));
    let (_, stats) = http::get(a.http(), "/api/v1/stats").await;
    assert!(stats["messages"]["dropped_total"]["by_reason"]["looped"].as_u64() > Some(0));
    a.stop().await;
    b.stop().await;
}

/// `outpost node` with one bridge, on ports of its own.
struct Process {
    running: Running,
    mqtt: SocketAddr,
    http: SocketAddr,
}

async fn process(data: &Path, mqtt: SocketAddr, bridge: &str) -> Process {
    let http = free_port();
    let file = data.join("outpost.toml");
    let text = format!(
        "[node]\ndata_dir = {:?}\n[listen.mqtt]\nbind = \"{mqtt}\"\n[listen.http]\nbind = \"{http}\"\n{bridge}",
        data.join("store").to_string_lossy()
    );
    std::fs::write(&file, text).expect("writable");
    let mut command = command();
    command.arg("node").arg("-c").arg(&file);
    let process = Running::start(command);
    until("it serves", async || tokio::net::TcpStream::connect(http).await.is_ok()).await;
    Process { running: process, mqtt, http }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_while_the_other_is_down_are_five_thousand_after_a_kill_9_r4() {
    let data = tempfile::tempdir().expect("a folder");
    let (far, near) = (free_port(), free_port());
    let config = format!(
        "[[bridge]]\nname = \"cloud\"\naddress = \"{far}\"\nrestart_timeout_max_s = 1\n[[bridge.topic]]\npattern = \"job\"\n"
    );
    let node = process(data.path(), near, &config).await;
    let first = burst(node.mqtt, "one", "job", 2_500).await;
    node.running.kill_9().await;
    let node = process(data.path(), near, &config).await;
    let second = burst(node.mqtt, "two", "job", 2_500).await;
    assert_eq!(first.len() + second.len(), 5_000, "each has its PUBACK");
    // What is shown is counted now and then.
    until("all of them are queued", async || shown(node.http, "cloud").await["queued"] == 5_000)
        .await;
    // It is there only now, and its subscriber before the bridge comes again.
    let mosquitto = Mosquitto::start_at(far, OPEN).await;
    let mut device = Client::connect(mosquitto.addr, Options::v5("device")).await;
    device.subscribe("job", 1).await;
    let (got, count) = device.collect(5_000).await;
    assert!(got.is_superset(&first) && got.is_superset(&second), "{count} came");
    until("nothing is owed", async || shown(node.http, "cloud").await["queued"] == 0).await;
    let one = shown(node.http, "cloud").await;
    assert_eq!((one["acked"].as_u64(), one["refused"].as_u64()), (Some(5_000), Some(0)));
    assert!(node.running.terminate().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn qos_2_arrives_exactly_once_through_kill_9_of_the_node() {
    let data = tempfile::tempdir().expect("a folder");
    let mosquitto = Mosquitto::start(OPEN).await;
    let near = free_port();
    let config = format!(
        "[[bridge]]\nname = \"cloud\"\naddress = \"{}\"\nrestart_timeout_max_s = 1\n[[bridge.topic]]\npattern = \"job\"\nqos = 2\n",
        mosquitto.addr
    );
    let mut device = Client::connect(mosquitto.addr, Options::v5("device")).await;
    device.subscribe("job", 2).await;
    let mut sent = 0;
    for round in 0..4 {
        let node = process(data.path(), near, &config).await;
        up(node.http, "cloud").await;
        let publisher = Client::connect(node.mqtt, Options::v5("publisher")).await;
        for _ in 0..150 {
            publisher.publish("job", &format!("{sent}"), 2).await;
            sent += 1;
        }
        if round == 3 {
            until("nothing is owed", async || shown(node.http, "cloud").await["queued"] == 0).await;
        }
        node.running.kill_9().await; // some are half way
    }
    let mut got: Vec<u32> = Vec::new();
    while got.len() < sent as usize {
        got.push(device.next().await.payload.parse().expect("a number"));
    }
    while let Ok(message) = tokio::time::timeout(A_LOOP_SHOWS, device.next()).await {
        got.push(message.payload.parse().expect("a number"));
    }
    got.sort_unstable();
    assert_eq!(got, (0..sent).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_other_kept_for_us_comes_when_the_link_is_back() {
    let mosquitto = Mosquitto::start(OPEN).await;
    let relay = Stall::in_front_of(mosquitto.addr).await;
    let both = topic("#", BridgeDirection::Both, 2);
    let node = node(vec![bridge("cloud", relay.addr(), both)]).await;
    up(node.http(), "cloud").await;
    let mut near = watcher(node.mqtt(), "near").await;
    let mut far = watcher(mosquitto.addr, "far").await;
    relay.set_stalled(true);
    until("the dead link is noticed", async || {
        shown(node.http(), "cloud").await["state"] != "connected"
    })
    .await;
    for number in 0..100 {
        near.publish("out", &number.to_string(), 2).await;
        far.publish("in", &number.to_string(), 2).await;
    }
    relay.set_stalled(false);
    for client in [&mut near, &mut far] {
        let mut got = Vec::new();
        for _ in 0..200 {
            got.push(client.next().await.payload.parse::<u32>().expect("a number"));
        }
        got.sort_unstable();
        assert_eq!(got, (0..100).flat_map(|n| [n, n]).collect::<Vec<_>>());
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_does_not_flood() {
    let folder = tempfile::tempdir().expect("a folder");
    let passwords = folder.path().join("passwords");
    std::fs::write(&passwords, "").expect("writable");
    let config = format!("allow_anonymous false\npassword_file {}", passwords.display());
    let mosquitto = Mosquitto::start(&config).await;
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, "guess\n").expect("writable");
    let to = Bridge {
        remote_username: Some("edge".into()),
        remote_password_file: Some(wrong),
        restart_timeout_max_s: 30,
        ..bridge("cloud", mosquitto.addr, topic("#", BridgeDirection::Out, 1))
    };
    let node = node(vec![to]).await;
    // What is left of the pause is shown: who looks late sees less of it, and more of the next.
    let mut one = serde_json::Value::Null;
    until("after some refusals there is more than a second to the next attempt", async || {
        one = shown(node.http(), "cloud").await;
        one["attempts"].as_u64() >= Some(3) && one["next_attempt_ms"].as_u64() > Some(1_000)
    })
    .await;
    assert_eq!(one["state"], "waiting", "{one}");
    let why = one["last_error"].as_str().expect("there is one");
    assert!(why.contains("refused") && why.contains("NotAuthorized"), "{why}");
    assert!(one["attempts"].as_u64() < Some(20), "longer each time: {one}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_refused_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("outpost.toml");
    let check = async |text: &str, words: &str| {
        std::fs::write(&file, text).expect("writable");
        let path = file.to_string_lossy().into_owned();
        let finished = outpost(&["config", "check", &path]).await;
        assert_eq!(finished.code, Some(3), "{}", finished.stderr);
        assert!(finished.stderr.contains(words), "{words:?} is not in {}", finished.stderr);
    };
    let bridge = "[[bridge]]\nname = \"cloud\"\naddress = \"broker\"\n";
    check(bridge, "bridge[0].topic").await;
    check(&format!("{bridge}[[bridge.topic]]\npattern = \"a/#/b\"\n"), "a/#/b").await;
    check(&format!("{bridge}[[bridge.topic]]\npatern = \"a\"\n"), "patern").await;
    let file = format!("{bridge}cafile = \"/nowhere\"\n[[bridge.topic]]\npattern = \"a\"\n");
    check(&file, "mqtts://").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_panics_starts_again_and_harms_nobody() {
    let mosquitto = Mosquitto::start(OPEN).await;
    let panics = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = std::sync::Arc::clone(&panics);
    let to = bridge("cloud", mosquitto.addr, topic("#", BridgeDirection::Out, 1));
    let probe = move |role: &str, _: &str| {
        let order = std::sync::atomic::Ordering::SeqCst;
        assert!(role != "bridge" || counted.fetch_add(1, order) >= 2, "a bad bridge");
    };
    let hooks = Hooks { probe: Some(std::sync::Arc::new(probe)), ..Hooks::default() };
    let node = TestNode::start_with(|config| config.bridge = vec![to], hooks).await;
    let mut near = watcher(node.mqtt(), "near").await;
    near.publish("t", "x", 1).await;
    assert_eq!(near.next().await.payload, "x");
    up(node.http(), "cloud").await;
    let (_, actors) = http::get(node.http(), "/api/v1/actors?role=bridge").await;
    assert_eq!(actors["actors"][0]["restarts"], 2);
    node.stop().await;
}
