//! Two and three real nodes on loopback: they find each other, talk, lose each other, and find each other again.

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use outpost_cluster::{Cluster, LinkFull};
use outpost_membership::{Interest, Lane, PeerFrame};
use outpost_model::{Message, MessageId, NodeId, QoS};
use support::{Plant, Relay, start, until};

fn event(seq: u64, bytes: usize) -> PeerFrame {
    let message = Message {
        id: MessageId { node: NodeId(1), seq },
        topic: "plant/7/temp".into(),
        payload: Bytes::from(vec![b'x'; bytes]),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: None,
        accepted_wall_ms: 1,
        expiry_s: None,
    };
    PeerFrame::Event { seq, message: Arc::new(message), shares: None }
}

/// So often nothing may have changed for it to count as stable.
const LOOKS: u32 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_find_each_other_and_frames_of_all_lanes_arrive_in_order() {
    let plant = Plant::new("plant");
    let (a, on_a) = start(plant.config("edge-a", &[])).await;
    let (b, on_b) = start(plant.config("edge-b", &[a.local_addr()])).await;
    until("both are linked", || on_a.linked("edge-b") && on_b.linked("edge-a")).await;
    let link = on_b.link("edge-a").expect("linked");
    let interest = PeerFrame::InterestAll(vec![Interest {
        pattern: "plant/#".into(),
        durable: true,
        live: false,
    }]);
    link.try_send(interest.clone()).expect("room");
    for seq in 1..=500 {
        link.try_send(event(seq, 200)).expect("room");
    }
    link.try_send(PeerFrame::Shadow(Bytes::from_static(b"sync"))).expect("room");
    until("all arrived", || on_a.frames_of("edge-b").len() == 503).await;
    let frames = on_a.frames_of("edge-b");
    assert!(
        frames.contains(&interest)
            && frames.contains(&PeerFrame::Shadow(Bytes::from_static(b"sync")))
    );
    let events: Vec<_> = frames.iter().filter(|f| f.lane() == Lane::Events).cloned().collect();
    assert_eq!(events, (1..=500).map(|seq| event(seq, 200)).collect::<Vec<_>>());
    let control: Vec<_> = frames.iter().filter(|f| f.lane() == Lane::Control).collect();
    assert!(matches!(control[0], PeerFrame::Hello(_)), "the first frame is Hello");

    until("gossip knows both", || {
        a.status().members.len() == 1 && b.status().members[0].state == "alive"
    })
    .await;
    let seen = &a.status().members[0];
    assert_eq!(
        (seen.name.as_str(), seen.address, seen.linked),
        ("edge-b", Some(b.local_addr()), true)
    );
    assert_eq!((seen.lanes[1].frames_in, seen.lanes[1].lane), (500, "events"));
    assert!(seen.rtt_ms.is_some_and(|rtt| rtt < 1_000.0));
    b.shutdown().await;
    until("a sees b go", || !on_a.linked("edge-b")).await;
    until("and gossip says it left", || a.status().members[0].state == "down").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_with_one_seed_are_all_linked_and_one_that_dies_comes_back() {
    let plant = Plant::new("plant");
    let (a, on_a) = start(plant.config("edge-a", &[])).await;
    let (_b, on_b) = start(plant.config("edge-b", &[a.local_addr()])).await;
    // A runtime of its own, so that it can die as a process does: without a word.
    let doomed = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let (c, on_c) =
        doomed.spawn(start(plant.config("edge-c", &[a.local_addr()]))).await.expect("starts");
    until("b and c know each other through a", || on_b.linked("edge-c") && on_c.linked("edge-b"))
        .await;
    until("a has both", || on_a.linked("edge-b") && on_a.linked("edge-c")).await;

    let mut again = plant.config("edge-c", &[]);
    again.bind = c.local_addr();
    let killed =
        tokio::task::spawn_blocking(move || doomed.shutdown_timeout(Duration::from_secs(5)));
    killed.await.expect("its runtime is gone");
    drop(c);
    let noticed =
        until("a and b notice", || !on_a.linked("edge-c") && !on_b.linked("edge-c")).await;
    until("its port is free", || std::net::UdpSocket::bind(again.bind).is_ok()).await;
    let (_c, on_c) = start(again).await;
    let back = until("c is back without a seed", || {
        on_c.linked("edge-a")
            && on_c.linked("edge-b")
            && on_a.linked("edge-c")
            && on_b.linked("edge-c")
    })
    .await;
    println!("a dead node was noticed after {noticed:?}, back after {back:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_noticed_and_a_healed_link_is_back_by_itself() {
    let plant = Plant::new("plant");
    let ((front_a, at_a), (front_b, at_b)) = (Relay::bind().await, Relay::bind().await);
    let mut config = plant.config("edge-a", &[at_b]);
    config.advertise = Some(at_a);
    let (a, on_a) = start(config).await;
    let mut config = plant.config("edge-b", &[at_a]);
    config.advertise = Some(at_b);
    let (b, on_b) = start(config).await;
    let relays = [Relay::start(front_a, a.local_addr()), Relay::start(front_b, b.local_addr())];
    until("linked through the relay", || on_a.linked("edge-b") && on_b.linked("edge-a")).await;
    until("the advertised address is known", || {
        a.status().members.first().is_some_and(|m| m.address == Some(at_b))
            && b.status().members.first().is_some_and(|m| m.address == Some(at_a))
    })
    .await;
    for until_down in [false, true] {
        relays.iter().for_each(|relay| relay.set_cut(true));
        let noticed =
            until("the cut is noticed", || !on_a.linked("edge-b") && !on_b.linked("edge-a")).await;
        if until_down {
            until("each thinks the other down", || is_down(&a) && is_down(&b)).await;
        }
        relays.iter().for_each(|relay| relay.set_cut(false));
        let back =
            until("the link is back", || on_a.linked("edge-b") && on_b.linked("edge-a")).await;
        println!("down: {until_down}, noticed after {noticed:?}, back after {back:?}");
        on_a.link("edge-b").expect("linked").try_send(event(7, 10)).expect("room");
        until("frames flow", || on_b.frames_of("edge-a").contains(&event(7, 10))).await;
    }
    until("gossip agrees again", || {
        a.status().members[0].state == "alive" && b.status().members[0].state == "alive"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_fills_its_lane_and_no_other() {
    let plant = Plant::new("plant");
    let (a, on_a) = start(plant.config("edge-a", &[])).await;
    let mut config = plant.config("edge-b", &[a.local_addr()]);
    config.limits.events_queue_bytes_max = 1 << 20;
    let (_b, on_b) = start(config).await;
    until("both are linked", || on_a.linked("edge-b") && on_b.linked("edge-a")).await;
    on_a.stuck.store(true, Ordering::SeqCst);
    let link = on_b.link("edge-a").expect("linked");
    let mut sent = 0;
    until("the lane is full", || {
        while sent < 20_000 {
            match link.try_send(event(sent + 1, 10_000)) {
                Ok(()) => sent += 1,
                Err(refused) => {
                    return refused == LinkFull::Full(Lane::Events)
                        && link.queued_bytes(Lane::Events) > 900_000;
                }
            }
        }
        false
    })
    .await;
    assert!(link.queued_bytes(Lane::Events) <= 1 << 20);
    link.try_send(PeerFrame::EventAck { seq: 9 }).expect("another lane");
    until("the other lane flows", || {
        on_a.frames_of("edge-b").contains(&PeerFrame::EventAck { seq: 9 })
    })
    .await;
    on_a.stuck.store(false, Ordering::SeqCst);
    until("nothing of what was taken is lost", || {
        on_a.frames_of("edge-b").iter().filter(|f| f.lane() == Lane::Events).count() as u64 == sent
    })
    .await;
    assert!(on_b.writables().contains(&(NodeId::from_name("edge-a"), Lane::Events)));
    assert_eq!(
        link.try_send(PeerFrame::Shadow(Bytes::from(vec![0; 5 << 20]))),
        Err(LinkFull::TooLarge)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_one_link_restarts_that_link_only() {
    let plant = Plant::new("plant");
    let (a, on_a) = start(plant.config("edge-a", &[])).await;
    let (_b, on_b) = start(plant.config("edge-b", &[a.local_addr()])).await;
    let (_c, on_c) = start(plant.config("edge-c", &[a.local_addr()])).await;
    until("all are linked", || {
        on_a.linked("edge-b") && on_a.linked("edge-c") && on_b.linked("edge-c")
    })
    .await;
    let of_c = on_a.history("edge-c").len();
    on_a.panic_on_shadow.store(true, Ordering::SeqCst);
    on_b.link("edge-a")
        .expect("linked")
        .try_send(PeerFrame::Shadow(Bytes::from_static(b"boom")))
        .expect("room");
    until("the link to b restarts", || on_a.history("edge-b").ends_with(&["up", "down", "up"]))
        .await;
    assert_eq!(a.status().counters.link_panics, 1);
    assert_eq!(on_a.history("edge-c").len(), of_c, "the other link knows nothing of it");
    assert!(on_c.linked("edge-a"));
}

/// Whether the gossip has given up on the other node.
fn is_down(node: &Cluster) -> bool {
    node.status().members.first().is_some_and(|member| member.state == "down")
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_start_at_once_end_with_one_link_each() {
    let plant = Plant::new("plant");
    let mut nodes = Vec::new();
    let ports: Vec<_> =
        (0..4).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a port")).collect();
    let addrs: Vec<_> = ports.iter().map(|port| port.local_addr().expect("bound")).collect();
    drop(ports);
    for (n, addr) in addrs.iter().enumerate() {
        let mut config = plant.config(&format!("edge-{n}"), &addrs);
        config.bind = *addr;
        nodes.push(start(config).await);
    }
    let all_linked =
        || (0..4).all(|n| (0..4).all(|m| n == m || nodes[n].1.linked(&format!("edge-{m}"))));
    until("all are linked", all_linked).await;
    // Links of two that dialled each other at once are replaced, once; then none is any more.
    let (mut opened, mut looks) = (Vec::new(), 0);
    let is_stable = || {
        let now: Vec<_> =
            nodes.iter().map(|(node, _)| node.status().counters.links_opened).collect();
        looks = if now == opened && all_linked() { looks + 1 } else { 0 };
        opened = now;
        looks >= LOOKS
    };
    until("no link is replaced any more", is_stable).await;
    println!("links opened per node (3 without a double dial): {opened:?}");
}
