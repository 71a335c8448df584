//! One actor fails, and nobody but those who talk to it notices; people see which, how often and why.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use outpost_node::Hooks;
use serde_json::Value;

use crate::support::client::{Client, Options, Version};
use crate::support::node::TestNode;
use crate::support::outpost::outpost;
use crate::support::{http, until};

/// Panics in place of one actor while it is armed, and counts.
#[derive(Default)]
struct Bomb {
    armed: AtomicBool,
    went_off: AtomicU64,
}

impl Bomb {
    fn hooks(self: &Arc<Self>, role: &'static str, name: &'static str) -> Hooks {
        let bomb = Arc::clone(self);
        Hooks {
            probe: Some(Arc::new(move |its_role, its_name| {
                if its_role == role && its_name == name && bomb.armed.load(Ordering::SeqCst) {
                    bomb.went_off.fetch_add(1, Ordering::SeqCst);
                    panic!("the sensor of {name} has lost its mind");
                }
            })),
            ..Hooks::default()
        }
    }
}

/// Two clients that talk to each other all the time, one of each version.
struct Bystanders {
    ping: Client,
    pong: Client,
    rounds: u64,
}

impl Bystanders {
    async fn connect(server: SocketAddr) -> Self {
        let ping = Client::connect(server, Options::new(Version::V4, "ping")).await;
        let pong = Client::connect(server, Options::new(Version::V5, "pong")).await;
        ping.subscribe("to/ping", 1).await;
        pong.subscribe("to/pong", 2).await;
        Self { ping, pong, rounds: 0 }
    }

    async fn talk(&mut self) {
        self.rounds += 1;
        let word = self.rounds.to_string();
        self.ping.publish("to/pong", &word, 2).await;
        assert_eq!(self.pong.next().await.payload, word);
        self.pong.publish("to/ping", &word, 1).await;
        assert_eq!(self.ping.next().await.payload, word);
    }

    fn are_well(&self) -> bool {
        self.ping.is_connected() && self.pong.is_connected()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_panics_costs_its_own_connection_and_no_message() {
    let bomb = Arc::new(Bomb::default());
    let node = TestNode::start_with(|_| {}, bomb.hooks("session", "device")).await;
    let mut bystanders = Bystanders::connect(node.mqtt()).await;
    let device = Client::connect(node.mqtt(), Options::v4("device").kept(3600)).await;
    device.subscribe("job", 1).await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;
    bystanders.talk().await;

    bomb.armed.store(true, Ordering::SeqCst);
    publisher.publish("job", "1", 1).await;
    device.ended().await;
    for number in 2..=20 {
        publisher.publish("job", &number.to_string(), 1).await;
        bystanders.talk().await;
    }
    bomb.armed.store(false, Ordering::SeqCst);
    assert!(bomb.went_off.load(Ordering::SeqCst) > 0);

    let mut device = come_back(node.mqtt(), "device").await;
    let (jobs, _) = device.collect(20).await;
    assert_eq!(jobs.len(), 20, "acknowledged, so they are there");
    bystanders.talk().await;
    assert!(bystanders.are_well() && publisher.is_connected());
    let found = actor(node.http(), "session", "device").await;
    assert!(found["restarts"].as_u64() > Some(0), "{found}");
    assert!(
        found["cause"].as_str().is_some_and(|cause| cause.contains("lost its mind")),
        "{found}"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_panics_again_and_again_is_put_aside_and_shown() {
    let bomb = Arc::new(Bomb::default());
    let node = TestNode::start_with(|_| {}, bomb.hooks("channel", "bad/topic")).await;
    let mut bystanders = Bystanders::connect(node.mqtt()).await;
    let mut reader = Client::connect(node.mqtt(), Options::v5("reader")).await;
    reader.subscribe("bad/topic", 1).await;
    reader.subscribe("good/topic", 1).await;
    let publisher = Client::connect(node.mqtt(), Options::v5("publisher")).await;

    bomb.armed.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    let url = format!("http://{}", node.http());
    let (mut attempts, mut line) = (0, String::new());
    until("the command shows the channel in quarantine", async || {
        let text = format!("bad {attempts}");
        attempts += 1;
        if publisher.try_publish("bad/topic", &text, 1).await.is_ok() {
            acknowledged.push(text);
        }
        publisher.publish("good/topic", "fine", 1).await;
        bystanders.talk().await;
        let shown = outpost(&["actors", "--role", "channel", "--url", &url]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        line = shown
            .stdout
            .lines()
            .find(|line| line.contains("bad/topic"))
            .unwrap_or_default()
            .to_owned();
        line.contains("quarantined")
    })
    .await;
    assert!(line.contains("cause: the sensor of bad/topic has lost its mind"), "{line}");
    let found = actor(node.http(), "channel", "bad/topic").await;
    assert!(found["restarts"].as_u64() >= Some(5), "{found}");
    bomb.armed.store(false, Ordering::SeqCst);

    let mut good = 0;
    let mut healed = false;
    until("the channel is back by itself", async || {
        healed = healed || publisher.try_publish("bad/topic", "healed", 1).await.is_ok();
        bystanders.talk().await;
        healed && actor(node.http(), "channel", "bad/topic").await["state"] == "running"
    })
    .await;
    // A message that was acknowledged is delivered, even when its channel failed with it.
    let mut wanted: std::collections::BTreeSet<_> = acknowledged.into_iter().collect();
    wanted.insert("healed".to_owned());
    while !wanted.is_empty() || good < attempts {
        let message = reader.next().await;
        good += i32::from(message.topic == "good/topic");
        wanted.remove(&message.payload);
    }
    assert!(bystanders.are_well() && publisher.is_connected() && reader.is_connected());
    node.stop().await;
}

/// Connects as soon as the session is there again; until then the node says it is busy.
async fn come_back(server: SocketAddr, id: &str) -> Client {
    let mut back = None;
    until("the session is back", async || {
        back = Client::try_connect(server, Options::v4(id).kept(3600)).await.ok();
        back.is_some()
    })
    .await;
    back.expect("just seen")
}

/// An actor as the HTTP API shows it; null when there is none of that name.
async fn actor(server: SocketAddr, role: &str, name: &str) -> Value {
    let (status, body) = http::get(server, &format!("/api/v1/actors?role={role}")).await;
    assert_eq!(status, 200, "{body}");
    let actors = body["actors"].as_array().expect("a list");
    actors.iter().find(|actor| actor["name"] == name).cloned().unwrap_or_default()
}
