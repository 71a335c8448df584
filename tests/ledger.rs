//! The ledger: accepted = delivered + queued + expired + dropped for a reason, to the message.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use outpost_node::Hooks;
use outpost_node::http::LedgerPage;

use crate::support::burst::{burst, burst_of};
use crate::support::client::{Client, Options, Properties};
use crate::support::node::TestNode;
use crate::support::outpost::{Dev, outpost};
use crate::support::wire::{Wire, framed};
use crate::support::{http, until};

/// Of one receiver; the next is refused.
const QUEUE_MAX: usize = 200;

async fn page(server: SocketAddr) -> LedgerPage {
    let (status, body) = http::get(server, "/api/v1/ledger").await;
    assert_eq!(status, 200, "{body}");
    let page: LedgerPage = serde_json::from_value(body).expect("a ledger");
    assert!(page.adds_up, "{page:#?}");
    page
}

/// Subscribes and acknowledges nothing, ever.
async fn lazy(server: SocketAddr, id: &str, filter: &str, qos: u8) -> Wire {
    let mut wire = Wire::connected_v4(server, id).await;
    let mut body = vec![0, 1, 0, filter.len() as u8];
    body.extend_from_slice(filter.as_bytes());
    body.push(qos);
    wire.send(&framed(0x82, &body)).await;
    assert_eq!(wire.packet().await.expect("SUBACK"), [0x90, 3, 0, 1, qos]);
    wire
}

async fn send(client: &Client, topic: &str, payload: &str, qos: u8, expiry_s: Option<u32>) -> bool {
    let properties = Properties { expiry_s, ..Properties::default() };
    client.publish_with(topic, payload.to_owned(), qos, false, properties).await.await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_load_of_everything_every_message_is_accounted_for() {
    let change = |config: &mut outpost_node::config::Config| {
        config.limits.queue_messages_max = QUEUE_MAX;
        config.limits.write_buffer_bytes_max = 16_384;
    };
    let node = TestNode::start_with(change, Hooks::default()).await;
    let (mqtt, http) = (node.mqtt(), node.http());
    let publisher = Client::connect(mqtt, Options::v5("publisher")).await;

    // Receivers of every kind.
    let mut keen = Vec::new();
    for qos in 0..3 {
        let client = Client::connect(mqtt, Options::v5(&format!("keen-{qos}"))).await;
        client.subscribe("load/#", qos).await;
        keen.push(client);
    }
    let stopped = lazy(mqtt, "stopped", "wide", 0).await;
    let full = lazy(mqtt, "full", "full", 1).await;
    let dying = lazy(mqtt, "dying", "dying", 2).await;
    let away = Client::connect(mqtt, Options::v5("away").kept(3600)).await;
    away.subscribe("away", 1).await;
    away.disconnect().await;
    let lazy_member = lazy(mqtt, "lazy", "$share/g/job", 1).await;
    let mut member = Client::connect(mqtt, Options::v5("member")).await;
    member.subscribe("$share/g/job", 1).await;
    let kicked = Client::connect(mqtt, Options::v5("kicked")).await;
    kicked.subscribe("dying", 1).await;

    // While it runs the sums hold as well: no slack is needed.
    let watch = tokio::spawn(async move {
        let mut looks = 0;
        loop {
            let page = page(http).await;
            looks += 1;
            if page.messages.unwanted >= 30 {
                return looks;
            }
        }
    });
    let mut accepted = 0;
    for number in 0..100 {
        for qos in 0..3 {
            accepted += u64::from(send(&publisher, "load/x", &number.to_string(), qos, None).await);
        }
        // They keep up: the queues that fill are those of others.
        for client in &mut keen {
            for _ in 0..3 {
                client.next().await;
            }
        }
    }
    let wide = "w".repeat(8_000);
    for _ in 0..2_000 {
        accepted += u64::from(send(&publisher, "wide", &wide, 0, None).await);
    }
    let mut refused = 0;
    for number in 0..QUEUE_MAX + 50 {
        let taken = send(&publisher, "full", &number.to_string(), 1, None).await;
        (accepted, refused) = (accepted + u64::from(taken), refused + u64::from(!taken));
    }
    for number in 0..40 {
        accepted += u64::from(send(&publisher, "dying", &number.to_string(), 2, None).await);
        accepted += u64::from(send(&publisher, "away", "late", 1, Some(1)).await);
        accepted += u64::from(send(&publisher, "away", "soon", 1, None).await);
        accepted += u64::from(send(&publisher, "job", &number.to_string(), 1, None).await);
    }
    let sent = Instant::now();
    let again = Client::connect(mqtt, Options::v5("kicked")).await;
    drop((dying, lazy_member));
    for number in 0..20 {
        publisher.retain(&format!("kept/{number}"), "on", 1).await;
        accepted += 1;
    }
    let mut late = Client::connect(mqtt, Options::v5("late")).await;
    late.subscribe("kept/#", 1).await;
    for number in 0..30 {
        accepted += u64::from(send(&publisher, "nobody", &number.to_string(), 1, None).await);
    }
    assert!(watch.await.expect("it does not panic") > 3);

    // Everybody gets what is due.
    let (jobs, _) = member.collect(40).await;
    assert_eq!(jobs.len(), 40);
    assert_eq!(late.collect(1).await.0.len(), 1);
    until("the short ones are out of date", async || sent.elapsed() > Duration::from_millis(2_100))
        .await;
    let mut back = Client::connect(mqtt, Options::v5("away").kept(3600)).await;
    for _ in 0..40 {
        assert_eq!(back.next().await.payload, "soon");
    }

    until("it is quiet", async || page(http).await.deliveries.queued == QUEUE_MAX as u64).await;
    let quiet = page(http).await;
    let (messages, deliveries) = (&quiet.messages, &quiet.deliveries);
    assert_eq!((messages.accepted, messages.refused, refused), (accepted, refused, 50));
    assert_eq!((messages.unwanted, messages.kept), (30, 20));
    assert_eq!(deliveries.expired, 40);
    let dropped = |why: &str| deliveries.dropped[why];
    // 900 to the keen, 40 jobs, 20 retained, 40 to the one that was away, and what was acknowledged before the kick.
    let certain = 900 + 40 + 20 + 40;
    let wide = 2_000 - dropped("slow_client");
    let kicked_got = deliveries.delivered - certain - wide;
    assert!(kicked_got <= 40, "{quiet:#?}");
    // The dying one never completed any of its 40, nor did the kicked one the rest.
    assert_eq!(dropped("session_ended"), 40 + (40 - kicked_got), "{quiet:#?}");
    assert!(dropped("slow_client") > 0, "{quiet:#?}");
    let (_, metrics) = http::get(http, "/metrics").await;
    let metrics = metrics.as_str().expect("a text");
    assert!(metrics.contains("outpost_messages_missing 0\n"), "{metrics}");
    let line =
        format!("outpost_messages_dropped_total{{reason=\"expired\"}} {}\n", deliveries.expired);
    assert!(metrics.contains(&line), "{metrics}");
    drop((stopped, full, again));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_what_is_durable_is_accounted_for_again() {
    let data = tempfile::tempdir().expect("a folder");
    let dev = Dev::start(data.path()).await;
    for (id, topic, qos) in [("one", "job", 1), ("two", "job2", 2)] {
        let device = Client::connect(dev.mqtt, Options::v5(id).kept(3600)).await;
        device.subscribe(topic, qos).await;
        device.disconnect().await;
    }
    assert_eq!(burst(dev.mqtt, "publisher", "job", 300).await.len(), 300);
    assert_eq!(burst_of(dev.mqtt, "two-of".to_owned(), "job2", 150, 2).await.len(), 150);
    let before = page(dev.http).await;
    assert_eq!((before.deliveries.owed, before.deliveries.queued), (450, 450));
    dev.process.kill_9().await;

    let dev = Dev::start(data.path()).await;
    let found = page(dev.http).await;
    assert_eq!((found.deliveries.owed, found.deliveries.queued), (450, 450));
    let mut one = Client::connect(dev.mqtt, Options::v5("one").kept(3600)).await;
    let mut two = Client::connect(dev.mqtt, Options::v5("two").kept(3600)).await;
    assert_eq!((one.collect(300).await.1, two.collect(150).await.1), (300, 150));
    until("all are acknowledged", async || page(dev.http).await.deliveries.delivered == 450).await;
    assert_eq!(page(dev.http).await.deliveries.queued, 0);
    let told = outpost(&["ledger", "--url", &format!("http://{}", dev.http)]).await;
    assert_eq!(told.code, Some(0), "{told:?}");
    assert!(told.stdout.contains("every one is accounted for"), "{told:?}");
    assert!(dev.process.terminate().await.success());
}
