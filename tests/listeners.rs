//! Every way in: TLS with and without client certificates, WebSocket, QUIC, the PROXY protocol; strangers at the door;
//! certificates that change while clients are connected.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outpost_node::Hooks;
use outpost_node::config::{Acl, ClientCertificate, Config, Transport, UserFrom};
use outpost_node::listen::door::Refusal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::node::TestNode;
use crate::support::outpost::{Running, finish, outpost};
use crate::support::tls::{Pki, quic, stream, tls, web};
use crate::support::tools::tool;
use crate::support::wire::{Wire, connect, framed, named_connect};
use crate::support::{http, until, within};

async fn start(change: impl FnOnce(&mut Config)) -> TestNode {
    TestNode::start_with(change, Hooks::default()).await
}

/// One listener that wants client certificates, and a rule that only lets `lamp-1` publish.
async fn mutual(pki: &Pki, transport: Transport, user_from: UserFrom, user: &str) -> TestNode {
    let rule = |who: &str, filter: &str| Acl {
        who: who.to_owned(),
        filter: filter.to_owned(),
        ..Acl::default()
    };
    let rules = vec![rule(&format!("user:{user}"), "lamp/#")];
    let listener = outpost_node::config::Listener {
        client_ca: Some(pki.path("ca.pem")),
        user_from,
        ..pki.listener("in", transport)
    };
    start(move |config| {
        config.listener.push(listener);
        config.security.acl = rules;
    })
    .await
}

/// SUBACK's reason code for a filter.
async fn subscribe(wire: &mut Wire, filter: &str) -> u8 {
    let text = [&(filter.len() as u16).to_be_bytes(), filter.as_bytes()].concat();
    wire.send(&framed(0x82, &[&[0, 1, 0], &text[..], &[1]].concat())).await;
    *wire.packet().await.expect("SUBACK").last().expect("a reason")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_the_user_name_rules_see_and_connect_cannot_change_it() {
    let pki = Pki::new();
    pki.issue_client("lamp-1");
    pki.issue_client("lamp-2");
    let uri = "spiffe://plant/device/lamp-1";
    for (from, user) in [(UserFrom::Cn, "lamp-1"), (UserFrom::Uri, uri)] {
        let node = mutual(&pki, Transport::Tls, from, user).await;
        let server = node.listener("in");
        for (name, granted) in [("lamp-1", 1), ("lamp-2", 0x87)] {
            let stream = tls(server, pki.client(Some(name))).await.expect("a handshake");
            let mut wire = Wire::over(stream);
            // As AWS IoT's SDKs do: a user name about themselves and no password.
            assert_eq!(wire.enter(&named_connect(name, "?SDK=CPPv2")).await, Some(0));
            assert_eq!(subscribe(&mut wire, "lamp/1").await, granted, "{name} by {from:?}");
            let (_, found) = http::get(node.http(), &format!("/api/v1/client?id={name}")).await;
            assert_eq!(found["user"] == user, granted == 1, "{found}");
            assert_eq!(found["connection"]["listener"], "in", "{found}");
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shows_no_certificate_of_the_ca_does_not_come_in() {
    let (pki, strangers) = (Pki::new(), Pki::new());
    strangers.issue_client("lamp-1");
    let node = mutual(&pki, Transport::Tls, UserFrom::Cn, "lamp-1").await;
    let server = node.listener("in");
    let trusting = pki.client(None);
    let forged = pki.client_with(Some((&strangers, "lamp-1")));
    for config in [trusting, forged] {
        let entered = match tls(server, config).await {
            Ok(stream) => Wire::over(stream).enter(&connect(5, "x")).await,
            Err(_) => None,
        };
        assert_eq!(entered, None);
    }
    let door = &node.listeners().named("in").expect("it is there").door;
    until("both are counted", async || door.refusals(Refusal::Tls) == 2).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_optional_certificate_names_those_who_have_one() {
    let pki = Pki::new();
    pki.issue_client("lamp-1");
    let mut listener = pki.listener("in", Transport::Tls);
    listener.client_ca = Some(pki.path("ca.pem"));
    listener.client_certificate = Some(ClientCertificate::Optional);
    let node = start(|config| config.listener.push(listener)).await;
    for (name, user) in [(Some("lamp-1"), "lamp-1".into()), (None, serde_json::Value::Null)] {
        let stream = tls(node.listener("in"), pki.client(name)).await.expect("a handshake");
        let mut wire = Wire::over(stream);
        assert_eq!(wire.enter(&connect(5, "x")).await, Some(0));
        let (_, found) = http::get(node.http(), "/api/v1/client?id=x").await;
        assert_eq!(found["user"], user, "{found}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_speaks_tls_with_us_in_both_versions() {
    let pki = Pki::new();
    pki.issue_client("lamp-1");
    let mut listener = pki.listener("in", Transport::Tls);
    listener.client_ca = Some(pki.path("ca.pem"));
    let node = start(|config| config.listener.push(listener)).await;
    let port = node.listener("in").port().to_string();
    let path = |name: &str| pki.path(name).display().to_string();
    for version in ["tlsv1.2", "tlsv1.3"] {
        let flags =
            ["-h", "localhost", "-p", &port, "--tls-version", version, "--tls-alpn", "mqtt"];
        let files = [
            "--cafile",
            &path("ca.pem"),
            "--cert",
            &path("lamp-1.pem"),
            "--key",
            &path("lamp-1.key"),
        ];
        let mut publish = tool("mosquitto_pub");
        publish.args(flags).args(files).args(["-t", "t", "-m", version, "-q", "1", "-r"]);
        let done = finish(publish).await;
        assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{version}");
        let mut read = tool("mosquitto_sub");
        read.args(flags).args(files).args(["-t", "t", "-C", "1", "-W", "20"]);
        assert_eq!(finish(read).await.stdout, format!("{version}\n"));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pub_and_sub_go_every_way_mosquittos_flags_and_urls_say() {
    let pki = Pki::new();
    pki.issue_client("lamp-1");
    let mut mutual = pki.listener("mutual", Transport::Tls);
    mutual.client_ca = Some(pki.path("ca.pem"));
    let node = start(|config| {
        config.listener.push(mutual);
        config.listener.push(pki.listener("ws", Transport::Ws));
        config.listener.push(pki.listener("wss", Transport::Wss));
    })
    .await;
    let path = |name: &str| pki.path(name).display().to_string();
    let port = |name: &str| node.listener(name).port().to_string();
    let (ca, cert, key) = (path("ca.pem"), path("lamp-1.pem"), path("lamp-1.key"));
    let (tls, ws, wss) = (port("mutual"), port("ws"), port("wss"));
    let shown = ["--cafile", &ca, "--cert", &cert, "--key", &key, "--tls-alpn", "mqtt"];
    let mqtts_url = format!("mqtts://localhost:{tls}/t");
    let (ws_url, wss_url) = (format!("ws://127.0.0.1:{ws}/t"), format!("wss://localhost:{wss}/t"));
    let ways = [
        [&["-L", &mqtts_url], &shown[..]].concat(),
        [&["-h", "localhost", "-p", &tls, "-t", "t", "-V", "mqttv311"], &shown[..]].concat(),
        vec!["-L", &ws_url],
        vec!["-p", &ws, "--ws", "-t", "t", "-V", "mqttv311"],
        vec!["-L", &wss_url, "--cafile", &ca, "--tls-version", "tlsv1.2"],
    ];
    let large = "x".repeat(100_000);
    for (number, way) in ways.iter().enumerate() {
        let text = format!("{number} {large}");
        let done = outpost(&[&["pub", "-q", "1", "-r", "-m", &text], &way[..]].concat()).await;
        assert_eq!((done.code, &*done.stderr), (Some(0), ""), "{way:?}");
        let got = outpost(&[&["sub", "-C", "1", "-W", "20"], &way[..]].concat()).await;
        assert_eq!(got.code, Some(0), "{way:?}: {}", got.stderr);
        assert!(got.stdout == format!("{text}\n"), "another text came: {way:?}");
    }
    // --insecure forgives another name, never another CA.
    let strangers = Pki::new();
    let other = strangers.path("ca.pem").display().to_string();
    let distrusting = ["pub", "-L", &wss_url, "--cafile", &other, "-m", "x", "--insecure"];
    let refused = outpost(&distrusting).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("the TLS handshake failed"), "{}", refused.stderr);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_packets_pass_a_websocket_both_ways_plain_and_over_tls() {
    let pki = Pki::new();
    let node = start(|config| {
        config.listener.push(pki.listener("ws", Transport::Ws));
        config.listener.push(pki.listener("wss", Transport::Wss));
    })
    .await;
    let plain = TcpStream::connect(node.listener("ws")).await.expect("it listens");
    let secret = tls(node.listener("wss"), pki.client(None)).await.expect("a handshake");
    let (mut a, mut b) = (Box::pin(web(plain)).await, Box::pin(web(secret)).await);
    assert_eq!(a.enter(&connect(4, "a")).await, Some(0));
    assert_eq!(b.enter(&connect(4, "b")).await, Some(0));
    pass(&mut a, &mut b).await;
    pass(&mut b, &mut a).await;
    node.stop().await;
}

/// 200,000 bytes in one packet.
async fn pass(from: &mut Wire, to: &mut Wire) {
    to.send(&framed(0x82, &[0, 1, 0, 1, b't', 0])).await;
    assert_eq!(to.packet().await.expect("SUBACK")[0], 0x90);
    let payload: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
    let packet = [&[0x30, 0xc3, 0x9a, 0x0c, 0, 1, b't'][..], &payload].concat();
    from.send(&packet).await;
    assert!(to.packet().await.expect("PUBLISH") == packet, "another packet came");
    to.send(&framed(0xa2, &[0, 2, 0, 1, b't'])).await;
    assert_eq!(to.packet().await.expect("UNSUBACK")[0], 0xb0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_over_quic_is_one_like_all_others() {
    let pki = Pki::new();
    pki.issue_client("lamp-1");
    let node = mutual(&pki, Transport::Quic, UserFrom::Cn, "lamp-1").await;
    let server = node.listener("in");
    let config = pki.client(Some("lamp-1"));
    let connection = quic(server, &config, b"mqtt").await.expect("a handshake");
    let mut wire = stream(&connection).await;
    assert_eq!(wire.enter(&connect(5, "lamp-1")).await, Some(0));
    assert_eq!(subscribe(&mut wire, "lamp/1").await, 1);
    let (status, _) = http::post(node.http(), "/api/v1/publish?topic=lamp/1&qos=1", "on").await;
    assert_eq!(status, 200);
    let publish = within("PUBLISH", wire.packet()).await.expect("PUBLISH");
    assert!(publish.ends_with(b"on"), "{publish:x?}");
    // A wrong packet: the client reads why it is cut off before its stream ends.
    wire.send(&[0xf1, 0]).await;
    assert_eq!(wire.packet().await.expect("DISCONNECT")[0], 0xe0);
    wire.closed().await;
    within("the end of the connection", connection.closed()).await;
    // Another protocol, and nobody's certificate.
    assert!(quic(server, &config, b"h3").await.is_err(), "only ALPN mqtt");
    let connection = quic(server, &pki.client(None), b"mqtt").await;
    if let Ok(connection) = connection {
        within("the end of the connection", connection.closed()).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_says_where_the_client_is() {
    let pki = Pki::new();
    let mut listener = pki.listener("proxied", Transport::Tcp);
    listener.proxy_protocol = true;
    let node = start(|config| config.listener.push(listener)).await;
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend_from_slice(&[203, 0, 113, 7, 127, 0, 0, 1, 0x30, 0x39, 0x07, 0x5b]);
    let mut wire = Wire::open(node.listener("proxied")).await;
    wire.send(&header).await;
    assert_eq!(wire.enter(&connect(5, "far")).await, Some(0));
    let (_, found) = http::get(node.http(), "/api/v1/client?id=far").await;
    assert_eq!(found["connection"]["address"], "203.0.113.7:12345", "{found}");
    let mut bare = Wire::open(node.listener("proxied")).await;
    assert_eq!(bare.enter(&connect(5, "near")).await, None, "no header, no connection");
    let door = &node.listeners().named("proxied").expect("it is there").door;
    until("it is counted", async || door.refusals(Refusal::Proxy) == 1).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_has_one_deadline_for_everything_and_so_many_bytes() {
    let pki = Pki::new();
    let node = start(|config| {
        config.limits.connect_timeout_s = 4;
        config.limits.connect_bytes_max = 2_048;
        config.listener.push(pki.listener("tls", Transport::Tls));
        config.listener.push(pki.listener("ws", Transport::Ws));
        config.listener.push(pki.listener("quic", Transport::Quic));
    })
    .await;
    let began = Instant::now();
    let (tls_at, ws_at) = (node.listener("tls"), node.listener("ws"));
    // Half a record header; a handshake and then nothing; half a request; a connection without a stream.
    let mut half = TcpStream::connect(tls_at).await.expect("it listens");
    half.write_all(&[0x16, 3]).await.expect("open");
    let mut silent = tls(tls_at, pki.client(None)).await.expect("a handshake");
    let mut request = TcpStream::connect(ws_at).await.expect("it listens");
    request.write_all(b"GET /mqtt HTTP/1.1\r\n").await.expect("open");
    let config = pki.client(None);
    let idle = quic(node.listener("quic"), &config, b"mqtt").await.expect("a handshake");
    let mut byte = [0];
    // Closed or reset, as long as it is over.
    let _ = within("the end", half.read(&mut byte)).await;
    let _ = within("the end", silent.read(&mut byte)).await;
    let _ = within("the end", request.read(&mut byte)).await;
    within("the end", idle.closed()).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3_900), "not before its time: {took:?}");

    // CONNECT of more bytes than a stranger may send.
    let mut greedy = Wire::open(node.mqtt()).await;
    greedy.send(&[&[0x10, 0xff, 0x7f, 0, 4][..], &[0; 4_000]].concat()).await;
    assert_eq!(greedy.packet().await, None);
    let door = &node.listeners().named("mqtt").expect("it is there").door;
    until("it is counted", async || door.refusals(Refusal::Bytes) == 1).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_may_wait_at_a_listener_and_the_others_come_in_elsewhere() {
    let pki = Pki::new();
    let node = start(|config| {
        config.limits.connect_timeout_s = 60;
        config.limits.pending_connect_max = 4;
        config.listener.push(pki.listener("ws", Transport::Ws));
    })
    .await;
    let ws_at = node.listener("ws");
    let door = |name: &str| Arc::clone(&node.listeners().named(name).expect("it is there").door);
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(TcpStream::connect(ws_at).await.expect("it listens"));
    }
    until("four wait", async || door("ws").pending() == 4).await;
    let mut fifth = TcpStream::connect(ws_at).await.expect("it listens");
    // Closed or reset, as long as it is over.
    let _ = within("the end", fifth.read(&mut [0])).await;
    assert_eq!(door("ws").refusals(Refusal::Pending), 1);
    Wire::connected(node.mqtt(), "elsewhere").await;
    drop(waiting);
    until("their places are free", async || door("ws").pending() == 0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_new_certificates_disconnect_nobody() {
    const SWAPS: usize = 1_000;
    let pki = Arc::new(Pki::new());
    pki.issue_client("lamp-1");
    let mut listener = pki.listener("in", Transport::Tls);
    listener.client_ca = Some(pki.path("ca.pem"));
    let node = start(|config| config.listener.push(listener)).await;
    let server = node.listener("in");
    let (done, pings) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for number in 0..8 {
        let (done, pings, config) =
            (Arc::clone(&done), Arc::clone(&pings), pki.client(Some("lamp-1")));
        clients.push(tokio::spawn(async move {
            let mut handshakes = 0;
            let mut lasting = enter(server, &config, &format!("lasting-{number}")).await;
            while !done.load(Ordering::Relaxed) {
                assert!(lasting.ping().await, "a live client was disconnected");
                pings.fetch_add(1, Ordering::Relaxed);
                let mut fresh = enter(server, &config, &format!("fresh-{number}")).await;
                assert!(fresh.ping().await, "a new client was disconnected");
                handshakes += 1;
            }
            assert!(lasting.ping().await, "a live client was disconnected");
            handshakes
        }));
    }
    until("all are connected", async || pings.load(Ordering::Relaxed) >= 8).await;
    for _ in 0..SWAPS {
        pki.issue_server();
        let listeners = node.listeners().clone();
        let reloaded = tokio::task::spawn_blocking(move || listeners.reload()).await;
        let reloaded = reloaded.expect("it does not panic");
        assert!(reloaded.iter().all(|one| one.outcome.is_ok()), "{reloaded:?}");
    }
    done.store(true, Ordering::Relaxed);
    let mut handshakes = 0;
    for client in clients {
        handshakes += client.await.expect("no client was disconnected");
    }
    assert!(handshakes >= 8, "new handshakes went on meanwhile: {handshakes}");

    // A broken file: the old certificate stays, and that is said.
    std::fs::write(pki.path("server.pem"), "no certificate").expect("written");
    let (status, answer) = http::post(node.http(), "/api/v1/reload", "").await;
    assert_eq!((status, &answer["listeners"][0]["reloaded"]), (200, &false.into()), "{answer}");
    let why = answer["listeners"][0]["why"].as_str().expect("why");
    assert!(why.contains("server.pem holds no certificate"), "{why}");
    assert!(enter(server, &pki.client(Some("lamp-1")), "late").await.ping().await);
    node.stop().await;
}

async fn enter(server: SocketAddr, config: &Arc<rustls::ClientConfig>, id: &str) -> Wire {
    let stream = tls(server, Arc::clone(config)).await.expect("a handshake");
    let mut wire = Wire::over(stream);
    assert_eq!(wire.enter(&connect(5, id)).await, Some(0), "{id}");
    wire
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_file_descriptors_left_new_clients_are_sent_away_and_the_others_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let binary = crate::support::outpost::binary().display().to_string();
    let data = folder.path().display();
    let script = format!(
        "ulimit -n 256; exec {binary} dev --mqtt-port 0 --http-port 0 --data-dir {data} --set limits.connect_timeout_s=60"
    );
    let mut command = crate::support::tools::tool("sh");
    command.args(["-c", &script]).env("NO_COLOR", "1");
    let mut node = Running::start(command);
    node.says("Ctrl-C stops it.").await;
    let at = |words: &str| crate::support::outpost::address(&node.out.with(words)[0]);
    let (mqtt, web) = (at("MQTT 3.1.1 and 5"), at("HTTP  "));
    let mut first = Wire::connected(mqtt, "first").await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(mqtt).await.expect("the kernel answers"));
    }
    let refused = async || {
        let (_, stats) = http::get(web, "/api/v1/stats").await;
        let by_reason = &stats["listener"]["refused_total"]["by_listener"]["mqtt"]["by_reason"];
        by_reason["file_descriptors"].as_u64().unwrap_or_default()
    };
    until("the others are sent away", async || refused().await >= 100).await;
    assert!(first.ping().await, "who is in is served");
    for (level, reason) in [(5, 0x97), (4, 0x03)] {
        // Those that say nothing hold the places of those that are told why, for a second.
        until("a client that says CONNECT hears why", async || {
            Wire::open(mqtt).await.enter(&connect(level, "late")).await == Some(reason)
        })
        .await;
    }
    // The store still has the files it needs: a retained message is acknowledged once it is on disk.
    let (status, _) = http::post(web, "/api/v1/publish?topic=t&qos=1&retain=true", "x").await;
    assert_eq!(status, 200);
    drop(crowd);
    let come_in = async || Wire::open(mqtt).await.enter(&connect(5, "late")).await == Some(0);
    until("there is room again", come_in).await;
    assert!(node.terminate().await.success());
}
