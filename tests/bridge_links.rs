//! How the link of a bridge is made: over TLS, and by both sides at once.

use outpost_node::Hooks;
use outpost_node::config::{Bridge, BridgeDirection, BridgeProtocol, Config};

use crate::bridge::{all, bridge, node, shown, topic, up, watcher};
use crate::support::client::{Client, Options};
use crate::support::mosquitto::{Mosquitto, OPEN, free_port};
use crate::support::node::TestNode;
use crate::support::tls::Pki;
use crate::support::wire::Wire;
use crate::support::{http, until, within};

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_both_sides_show_who_they_are() {
    let (pki, strangers) = (Pki::new(), Pki::new());
    pki.issue_client("edge-1");
    let plain = free_port();
    let file = |name: &str| pki.path(name).display().to_string();
    // Started as root it would become a user who may not read the key.
    let config = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuser root\n{OPEN}\nlistener {} 127.0.0.1",
        file("ca.pem"),
        file("server.pem"),
        file("server.key"),
        plain.port()
    );
    let mosquitto = Mosquitto::start(&config).await;
    let both = || topic("#", BridgeDirection::Both, 1);
    let link = |name: &str, ca: &Pki, certificate: Option<&str>| Bridge {
        address: format!("mqtts://localhost:{}", mosquitto.addr.port()),
        cafile: Some(ca.path("ca.pem")),
        certfile: certificate.map(|name| pki.path(&format!("{name}.pem"))),
        keyfile: certificate.map(|name| pki.path(&format!("{name}.key"))),
        ..bridge(name, mosquitto.addr, both())
    };
    let node = node(vec![
        link("cloud", &pki, Some("edge-1")),
        link("no-certificate", &pki, None),
        link("wrong-ca", &strangers, Some("edge-1")),
    ])
    .await;
    up(node.http(), "cloud").await;
    let mut near = Client::connect(node.mqtt(), Options::v5("near")).await;
    near.subscribe("in", 1).await;
    let mut far = Client::connect(plain, Options::v5("far")).await;
    far.subscribe("out", 1).await;
    near.publish("out", "from here", 1).await;
    assert_eq!(far.next().await.payload, "from here");
    far.publish("in", "from there", 1).await;
    assert_eq!(near.next().await.payload, "from there");
    for name in ["no-certificate", "wrong-ca"] {
        until("it is turned away", async || {
            shown(node.http(), name).await["attempts"].as_u64() >= Some(2)
        })
        .await;
        let one = shown(node.http(), name).await;
        assert_ne!(one["state"], "connected", "{one}");
        assert!(!one["last_error"].as_str().unwrap_or_default().is_empty(), "{one}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_made_by_both_sides_at_once_makes_no_circle() {
    for protocol_version in [BridgeProtocol::Mqttv311, BridgeProtocol::Mqttv50] {
        let (near_at, far_at) = (free_port(), free_port());
        let link = Bridge {
            protocol_version,
            ..bridge("out", far_at, topic("#", BridgeDirection::Both, 1))
        };
        let change = |config: &mut Config| {
            config.listen.mqtt.bind = near_at;
            config.bridge = vec![link];
        };
        let node = TestNode::start_with(change, Hooks::default()).await;
        let config = format!(
            "{OPEN}\nconnection back\naddress {near_at}\ntopic # both 1\nrestart_timeout 1"
        );
        let mosquitto = Mosquitto::start_at(far_at, &config).await;
        up(node.http(), "out").await;
        until("both links are up", async || {
            let (_, page) = http::get(node.http(), "/api/v1/clients?connected=true").await;
            let clients = page["clients"].as_array().cloned().unwrap_or_default();
            clients.iter().any(|c| {
                c["client_id"].as_str().is_some_and(|id| id.split('.').next_back() == Some("back"))
                    && c["subscriptions"] == 1
            })
        })
        .await;
        let (mut near, mut far) =
            (watcher(near_at, "near").await, watcher(mosquitto.addr, "far").await);
        for number in 0..3 {
            near.publish("t", &format!("from here {number}"), 1).await;
            far.publish("t", &format!("from there {number}"), 1).await;
        }
        let way = |way: &str| (0..3).map(|n| format!("from {way} {n}")).collect::<Vec<_>>();
        let both = [way("here"), way("there")].concat();
        let wanted: Vec<&str> = both.iter().map(String::as_str).collect();
        let (mut here, mut there) = (all(&mut near, &wanted).await, all(&mut far, &wanted).await);
        here.sort();
        assert_eq!(here, both, "one copy here");
        there.sort();
        let copies = there.len();
        there.dedup();
        assert_eq!(there, here, "each of them there");
        assert!(copies <= 3 * here.len(), "and nothing in circles: {copies}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_up_when_it_is_subscribed_and_not_before() {
    let broker = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let to = Bridge {
        protocol_version: BridgeProtocol::Mqttv311,
        ..bridge("cloud", broker.local_addr().expect("bound"), topic("#", BridgeDirection::Both, 1))
    };
    let node = node(vec![to]).await;
    let (stream, _) = within("the bridge", broker.accept()).await.expect("it connects");
    let mut broker = Wire::over(stream);
    assert_eq!(broker.packet().await.expect("CONNECT")[0], 0x10);
    broker.send(&[0x20, 2, 0, 0]).await;
    let subscribe = broker.packet().await.expect("SUBSCRIBE");
    assert_eq!(subscribe[0], 0x82);
    until("it has subscribed here", async || {
        let (_, stats) = http::get(node.http(), "/api/v1/stats").await;
        stats["mqtt"]["subscriptions"] == 1
    })
    .await;
    // What is published at the broker now may pass it by.
    assert_eq!(shown(node.http(), "cloud").await["state"], "connecting");
    broker.send(&[0x90, 3, subscribe[2], subscribe[3], 1]).await;
    up(node.http(), "cloud").await;
    node.stop().await;
}
