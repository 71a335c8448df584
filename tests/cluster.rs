//! Several nodes with real certificates: each message where it is wanted, once; each node serves while others are gone.

use std::net::SocketAddr;
use std::path::PathBuf;

use outpost_cluster::ClusterConfig;
use outpost_cluster::ca::Ca;
use outpost_node::Node;
use outpost_node::config::{Cluster, Config};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::burst::burst;
use crate::support::client::{Client, Options};
use crate::support::node::config;
use crate::support::outpost::{Running, command, outpost};
use crate::support::relay::{Front, Relay};
use crate::support::{http, until};

/// A cluster's certificates and its nodes' data.
pub struct Site {
    folder: TempDir,
    ca: Ca,
}

/// A node of a cluster, perhaps with a relay in front of it.
pub struct Member {
    node: Node,
    config: Config,
    relay: Option<Relay>,
}

impl Site {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = Ca::create(&folder.path().join("ca"), "plant").expect("a CA");
        Self { folder, ca }
    }

    /// Configuration of a node with a certificate of its own.
    fn config(&self, name: &str, seeds: &[&Member]) -> Config {
        let certificates = self.certificates(name);
        let mut config = config(&self.folder.path().join(name).join("data"));
        name.clone_into(&mut config.node.name);
        config.cluster = Some(Cluster {
            name: "plant".to_owned(),
            bind: "127.0.0.1:0".parse().expect("an address"),
            seeds: seeds.iter().map(|member| member.address().to_string()).collect(),
            ca: Some(self.folder.path().join("ca").join("ca.pem")),
            cert: Some(certificates.join("node.pem")),
            key: Some(certificates.join("node.key")),
            lossy_links: name == "b", // so that both kinds of congestion control are in use
            ..Cluster::default()
        });
        config
    }

    fn certificates(&self, name: &str) -> PathBuf {
        let folder = self.folder.path().join(name);
        if !folder.exists() {
            let issued = self.ca.issue_node(name).expect("a certificate");
            issued.write_as_node(&folder).expect("written");
        }
        folder
    }

    /// What a program of one's own needs to speak to the nodes as a node of this name.
    pub fn stranger(&self, name: &str, seeds: &[&Member]) -> ClusterConfig {
        let folder = self.certificates(name);
        std::fs::write(folder.join("ca.pem"), self.ca.pem()).expect("written");
        let mut config = ClusterConfig::in_folder("plant", name, &folder);
        config.bind = "127.0.0.1:0".parse().expect("an address");
        config.seeds = seeds.iter().map(|member| member.address().to_string()).collect();
        config
    }

    pub async fn start(&self, name: &str, seeds: &[&Member]) -> Member {
        start(self.config(name, seeds)).await
    }

    /// A node as a process, on the data it left when it was one before.
    pub async fn start_process(&self, name: &str, seeds: &[&Process]) -> Process {
        let mut config = self.config(name, &[]);
        let seeds = seeds.iter().map(|seed| seed.address.clone()).collect();
        config.cluster.as_mut().expect("a member").seeds = seeds;
        let file = self.folder.path().join(format!("{name}.toml"));
        std::fs::write(&file, config.to_toml()).expect("written");
        let mut node = command();
        node.args(["node", "-c"]).arg(&file);
        let mut running = Running::start(node);
        let line = running.logs("the node is up").await;
        let address = |name: &str| {
            let of = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            of.unwrap_or_else(|| panic!("no {name} in {line}")).parse().expect("an address")
        };
        let (mqtt, http) = (address("mqtt="), address("http="));
        let (_, status) = http::get(http, "/api/v1/cluster").await;
        let address = status["address"].as_str().expect("an address").to_owned();
        Process { running, mqtt, http, address }
    }

    /// A node others reach through a relay only.
    pub async fn start_behind_a_relay(&self, name: &str, seeds: &[&Member]) -> Member {
        self.start_behind_a_relay_with(name, seeds, |_| {}).await
    }

    /// The same with something set.
    pub async fn start_behind_a_relay_with(
        &self,
        name: &str,
        seeds: &[&Member],
        change: impl FnOnce(&mut Config),
    ) -> Member {
        let front = Front::bind().await;
        let mut config = self.config(name, seeds);
        change(&mut config);
        config.cluster.as_mut().expect("just set").advertise = Some(front.addr());
        let mut member = start(config).await;
        member.relay = Some(front.relay_to(member.node.cluster_addr().expect("it has one")));
        member
    }
}

/// A node of a cluster as a process.
pub struct Process {
    pub running: Running,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    /// Where other nodes find it.
    pub address: String,
}

async fn start(config: Config) -> Member {
    let node = Node::start(config.clone()).await.unwrap_or_else(|why| panic!("{why}"));
    let mut config = config;
    // The others know it by this address: it comes back to the same one.
    config.cluster.as_mut().expect("a member").bind = node.cluster_addr().expect("it has one");
    Member { node, config, relay: None }
}

impl Member {
    pub fn mqtt(&self) -> SocketAddr {
        self.node.mqtt_addr()
    }

    pub fn http(&self) -> SocketAddr {
        self.node.http_addr()
    }

    fn address(&self) -> SocketAddr {
        let cluster = self.config.cluster.as_ref().expect("a member");
        cluster.advertise.unwrap_or(cluster.bind)
    }

    pub fn set_cut(&self, cut: bool) {
        self.relay.as_ref().expect("it is behind a relay").set_cut(cut);
    }

    pub async fn stop(self) -> Config {
        self.node.shutdown().await;
        self.config
    }

    /// `(name, state, linked)` of the others, as this node sees them.
    pub async fn sees(&self) -> Vec<(String, String, bool)> {
        let (status, body) = http::get(self.http(), "/api/v1/cluster").await;
        assert_eq!(status, 200, "{body}");
        let members = body["members"].as_array().expect("a list").iter();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        members
            .map(|one| (text(&one["name"]), text(&one["state"]), one["linked"] == true))
            .collect()
    }

    async fn is_linked_to(&self, names: &[&str]) -> bool {
        let sees = self.sees().await;
        names.iter().all(|name| sees.contains(&((*name).to_owned(), "alive".to_owned(), true)))
    }

    async fn figure(&self, group: &str, name: &str) -> u64 {
        let (_, stats) = http::get(self.http(), "/api/v1/stats").await;
        stats[group][name].as_u64().unwrap_or_else(|| panic!("no {group}.{name} in {stats}"))
    }
}

/// Waits until each is linked to all others.
pub async fn linked(members: &[&Member]) {
    let name = |member: &Member| member.config.node.name.clone();
    for one in members {
        let others: Vec<String> =
            members.iter().map(|other| name(other)).filter(|other| *other != name(one)).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        until("all nodes are linked", async || one.is_linked_to(&others).await).await;
    }
}

/// Publishes at one node until a subscriber at another gets it: then that node's interest is known. The payload it got: all
/// others were published before.
pub async fn interest_is_known(publisher: &Client, subscriber: &mut Client, topic: &str) -> String {
    let mut probes = 0;
    loop {
        let text = format!("probe {probes}");
        publisher.publish(topic, &text, 1).await;
        if let Some(found) = subscriber.next_soon().await {
            // Earlier probes were for nobody; this and later ones arrive.
            let mut got = found.payload;
            while got != text {
                got = subscriber.next().await.payload;
            }
            return text;
        }
        probes += 1;
        assert!(probes < 300, "the interest in {topic} never became known");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_reach_exactly_the_nodes_that_want_them_once() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    let c = site.start("c", &[&a]).await;
    linked(&[&a, &b, &c]).await;
    let publisher = Client::connect(a.mqtt(), Options::v5("publisher")).await;
    let mut at_a = Client::connect(a.mqtt(), Options::v4("at-a")).await;
    let mut at_b = Client::connect(b.mqtt(), Options::v5("at-b")).await;
    at_a.subscribe("line/1/#", 1).await;
    at_b.subscribe("line/+/temp", 1).await;
    interest_is_known(&publisher, &mut at_b, "line/9/temp").await;

    let (b_before, c_before) =
        (b.figure("peers", "events_in_total").await, c.figure("peers", "events_in_total").await);
    for number in 0..200 {
        publisher.publish("line/1/temp", &number.to_string(), u8::from(number % 2 == 0)).await;
        publisher.publish("line/2/noise", "nobody", 1).await;
    }
    for number in 0..200 {
        assert_eq!(at_a.next().await.payload, number.to_string());
        assert_eq!(at_b.next().await.payload, number.to_string(), "once and in order");
    }
    at_b.expect_only(&publisher, "line/3/temp", "nothing twice").await;
    assert_eq!(
        b.figure("peers", "events_in_total").await - b_before,
        201,
        "nothing it does not want"
    );
    assert_eq!(c.figure("peers", "events_in_total").await - c_before, 0, "c wants nothing");

    at_b.subscribe("last", 1).await;
    at_b.unsubscribe("line/+/temp").await;
    interest_is_known(&publisher, &mut at_b, "last").await;
    let before = b.figure("peers", "events_in_total").await;
    publisher.publish("line/1/temp", "withdrawn", 1).await;
    at_b.expect_only(&publisher, "last", "end").await;
    assert_eq!(b.figure("peers", "events_in_total").await - before, 1, "its interest is withdrawn");
    for member in [a, b, c] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_is_told_all_retained_messages_over_one_link() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let sender = Client::connect(a.mqtt(), Options::v5("sender")).await;
    // Twice what may wait in front of a link.
    let (count, large) = (400, "x".repeat(40_000));
    for number in 0..count - 1 {
        sender.retain(&format!("plant/{number}"), &large, 0).await;
    }
    sender.retain("plant/last", &large, 1).await;
    let b = site.start("b", &[&a]).await;
    linked(&[&a, &b]).await;
    until("the new node has them all", async || b.figure("mqtt", "retained").await == count).await;
    let (_, cluster) = http::get(a.http(), "/api/v1/cluster").await;
    assert_eq!(cluster["counters"]["links_lost"], 0, "{}", cluster["counters"]);
    for member in [a, b] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retained_message_is_on_every_node_and_the_newest_wins() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    linked(&[&a, &b]).await;
    let on_a = Client::connect(a.mqtt(), Options::v5("on-a")).await;
    let on_b = Client::connect(b.mqtt(), Options::v5("on-b")).await;
    on_a.retain("state", "first, from a", 1).await;
    expect_retained(&b, "state", "first, from a").await;
    on_b.retain("state", "second, from b", 1).await;
    expect_retained(&a, "state", "second, from b").await;
    on_a.retain("gone", "x", 1).await;
    expect_retained(&b, "gone", "x").await;
    on_b.retain("gone", "", 1).await;
    until("a has forgotten it as well", async || a.figure("mqtt", "retained").await == 1).await;
    // A node that comes later gets what was there before.
    let c = site.start("c", &[&b]).await;
    expect_retained(&c, "state", "second, from b").await;
    for member in [a, b, c] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_gone_for_good_is_forgotten_by_hand() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    linked(&[&a, &b]).await;
    let on_a = Client::connect(a.mqtt(), Options::v5("on-a")).await;
    let mut on_b = Client::connect(b.mqtt(), Options::v5("on-b").kept(3_600)).await;
    on_b.subscribe("orders", 1).await;
    interest_is_known(&on_a, &mut on_b, "orders").await;
    let url = format!("http://{}", a.http());
    let forget = ["cluster", "forget", "b", "--url", &url];
    let refused = outpost(&forget).await;
    assert_ne!(refused.code, Some(0), "it is there");
    assert!(refused.stderr.contains("has a link to this node"), "{}", refused.stderr);

    b.stop().await;
    until("a has lost its link", async || !a.is_linked_to(&["b"]).await).await;
    for number in 0..10 {
        on_a.publish("orders", &number.to_string(), 1).await;
    }
    assert_eq!(a.figure("peers", "outbox").await, 10);
    let mut done = outpost(&forget).await;
    while done.stderr.contains("has a link to this node") {
        done = outpost(&forget).await; // the data plane hears of the end of a link a little later
    }
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert_eq!(done.stdout, "b is forgotten; messages dropped: 10\n");
    assert_eq!(a.figure("peers", "outbox").await, 0);
    on_a.publish("orders", "nobody waits for it", 1).await;
    assert_eq!(a.figure("peers", "outbox").await, 0, "nothing is kept for it any more");
    let again = outpost(&forget).await;
    assert!(again.stderr.contains("no node \"b\" is known here"), "{}", again.stderr);
    a.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_stops_nothing_on_the_others_and_comes_back_by_itself() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    let c = site.start("c", &[&a]).await;
    linked(&[&a, &b, &c]).await;
    let on_a = Client::connect(a.mqtt(), Options::v5("on-a")).await;
    let mut on_b = Client::connect(b.mqtt(), Options::v5("on-b")).await;
    let kept = Client::connect(c.mqtt(), Options::v5("kept").kept(3600)).await;
    on_b.subscribe("x", 1).await;
    kept.subscribe("x", 1).await;
    interest_is_known(&on_a, &mut on_b, "x").await;
    until("c's interest is known", async || {
        on_a.publish("x", "probe", 1).await;
        on_b.next().await;
        c.figure("peers", "events_in_total").await > 0
    })
    .await;
    kept.disconnect().await;

    let c = c.stop().await;
    for number in 0..100 {
        on_a.publish("x", &format!("while c is away {number}"), 1).await;
        assert_eq!(on_b.next().await.payload, format!("while c is away {number}"));
    }
    until("both see that c is gone", async || {
        let gone = |sees: Vec<(String, String, bool)>| {
            sees.iter().any(|(name, state, linked)| name == "c" && state == "down" && !linked)
        };
        gone(a.sees().await) && gone(b.sees().await)
    })
    .await;
    assert!(on_a.is_connected() && on_b.is_connected());

    let c = start(c).await;
    linked(&[&a, &b, &c]).await;
    let mut kept = Client::connect(c.mqtt(), Options::v5("kept").kept(3600)).await;
    assert!(kept.session_present);
    let mut missing: std::collections::BTreeSet<_> =
        (0..100).map(|number| format!("while c is away {number}")).collect();
    while !missing.is_empty() {
        let payload = kept.next().await.payload;
        assert!(
            payload == "probe" || payload.starts_with("probe ") || missing.remove(&payload),
            "{payload} twice"
        );
    }
    for member in [a, b, c] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_cable_costs_nothing_on_either_side_and_what_was_owed_arrives_once() {
    let site = Site::new();
    let a = site.start_behind_a_relay("a", &[]).await;
    let b = site.start_behind_a_relay("b", &[&a]).await;
    linked(&[&a, &b]).await;
    let on_a = Client::connect(a.mqtt(), Options::v5("on-a")).await;
    let mut near = Client::connect(a.mqtt(), Options::v5("near")).await;
    let mut far = Client::connect(b.mqtt(), Options::v4("far").kept(3600)).await;
    near.subscribe("x", 1).await;
    far.subscribe("x", 1).await;
    far.subscribe("local", 1).await;
    let on_b = Client::connect(b.mqtt(), Options::v5("on-b")).await;
    let last = interest_is_known(&on_a, &mut far, "x").await;
    while near.next().await.payload != last {}

    a.set_cut(true);
    b.set_cut(true);
    let owed = burst(a.mqtt(), "owed", "x", 5_000).await;
    assert_eq!(owed.len(), 5_000, "a goes on acknowledging");
    assert_eq!(near.collect(5_000).await, (owed.clone(), 5_000));
    on_b.publish("local", "b serves its own", 1).await;
    assert_eq!(far.next().await.payload, "b serves its own");
    until("a has noticed", async || !a.is_linked_to(&["b"]).await).await;
    a.set_cut(false);
    b.set_cut(false);
    for number in 0..5_000 {
        assert_eq!(far.next().await.payload, format!("owed-{number}"), "all, once, in order");
    }
    linked(&[&a, &b]).await;
    far.expect_only(&on_a, "x", "nothing twice").await;
    for member in [a, b] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_status_tells_the_same_story_on_every_node() {
    let site = Site::new();
    let a = site.start("a", &[]).await;
    let b = site.start("b", &[&a]).await;
    let c = site.start("c", &[&b]).await;
    linked(&[&a, &b, &c]).await;
    for (one, others) in [(&a, ["b", "c"]), (&b, ["a", "c"]), (&c, ["a", "b"])] {
        let url = format!("http://{}", one.http());
        let shown = outpost(&["cluster", "status", "--url", &url]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
        let head =
            format!("cluster plant, this node {} at {}", one.config.node.name, one.address());
        assert!(shown.stdout.starts_with(&head), "{}", shown.stdout);
        assert!(shown.stdout.contains(&site.ca.fingerprint()), "{}", shown.stdout);
        for name in others {
            let line = shown.stdout.lines().find(|line| line.starts_with(&format!("{name} ")));
            let line = line.unwrap_or_else(|| panic!("no line for {name}:\n{}", shown.stdout));
            assert!(line.contains("alive") && line.contains("linked"), "{line}");
        }
    }
    for member in [a, b, c] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_with_one_clear_line() {
    let site = Site::new();
    let node = site.start_process("a", &[]).await;

    let elsewhere = Site::new();
    let mut config = elsewhere.config("b", &[]);
    config.cluster.as_mut().expect("a member").seeds = vec![node.address.clone()];
    let stranger = start(config).await;
    until("it has tried more than once", async || {
        let (_, status) = http::get(stranger.http(), "/api/v1/cluster").await;
        status["counters"]["refused_handshakes"].as_u64() > Some(2)
    })
    .await;
    let (_, status) = http::get(node.http, "/api/v1/cluster").await;
    assert_eq!(status["members"].as_array().map(Vec::len), Some(0), "{status}");
    until("it is in the log", async || !node.running.err.with(" WARN ").is_empty()).await;
    let lines: Vec<String> =
        node.running.err.all().into_iter().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(lines.len(), 1, "one line, not one an attempt: {lines:#?}");
    assert!(lines[0].contains("refused a connection") && lines[0].contains("CA"), "{lines:?}");
    let client = Client::connect(stranger.mqtt(), Options::v5("client")).await;
    client.publish("a", "alone and well", 1).await;
    stranger.stop().await;
    assert!(node.running.terminate().await.success());
}

/// Waits until a new subscriber at this node is told so.
async fn expect_retained(member: &Member, topic: &str, payload: &str) {
    until(payload, async || {
        let mut client = Client::connect(member.mqtt(), Options::v5("asks")).await;
        client.subscribe(topic, 1).await;
        client.next_soon().await.is_some_and(|message| message.retain && message.payload == payload)
    })
    .await;
}
