//! A client that comes back at another node is the same client there: its session follows it.

use std::sync::Arc;

use outpost_actors::record::{DeliveryRecord, PartKind, SessionPart, SubscriptionRecord, encode};
use outpost_actors::shard::{NAME_BYTES_MAX, PASSING_MAX, TAKEOVER_WAIT_MS_MAX};
use outpost_membership::{PeerFrame, Shares};
use outpost_model::{Message, MessageId, NodeId, QoS};
use outpost_mqtt::packet::{Ack, Packet, PacketId, ReasonCode};
use outpost_store::{FaultPlan, Space};

use crate::world::{Client, World, fleeting, publish, v5, will};

/// Nodes that all have a link to each other.
pub fn cluster(nodes: usize) -> World {
    let mut world = World::with(nodes, |_| {});
    world.mesh();
    world
}

/// The same, and a client with a kept session at the first.
pub fn cluster_with_client(nodes: usize, filter: &str, qos: u8) -> (World, Client) {
    let mut world = cluster(nodes);
    let client = world.connect_to(0, v5("c"));
    world.subscribe(client, filter, qos);
    (world, client)
}

/// The same, when it is away; and one that publishes there.
pub fn cluster_with_client_away(nodes: usize, filter: &str, qos: u8) -> (World, Client) {
    let (mut world, client) = cluster_with_client(nodes, filter, qos);
    world.cut(client);
    let sender = world.connect_to(0, v5("s"));
    (world, sender)
}

pub fn numbers(from: u16, to: u16) -> Vec<String> {
    (from..=to).map(|n| n.to_string()).collect()
}

fn pubrec(id: PacketId) -> Packet {
    Packet::Pubrec(Ack::new(id, ReasonCode::Success))
}

/// Publishes these numbers, each durable when this is over.
pub fn send(world: &mut World, client: Client, topic: &str, (from, to): (u16, u16), qos: u8) {
    for number in from..=to {
        world.publish(client, publish(topic, &number.to_string(), qos, number));
        if number % 100 == 0 {
            world.drain(client);
        }
    }
    world.drain(client);
}

/// Connects with what there may be of an earlier session; whether there was any.
pub fn resume(world: &mut World, node: usize, name: &str) -> (Client, bool) {
    let (client, connack) = world.try_connect(node, v5(name));
    assert_eq!(connack.reason, ReasonCode::Success);
    (client, connack.session_present)
}

fn reason_of_end(world: &mut World, client: Client) -> Option<ReasonCode> {
    world.take(client).into_iter().find_map(|packet| match packet {
        Packet::Disconnect(disconnect) => Some(disconnect.reason),
        _ => None,
    })
}

/// Everything that is under way comes to its end.
pub fn rest(world: &mut World) {
    for _ in 0..4 {
        world.sync();
        world.pass(1_000);
    }
    world.sync();
}

pub fn has_session(world: &World, node: usize, name: &str) -> bool {
    world.shard(node).queue(name).is_some()
}

#[test]
fn a_client_that_moves_has_its_subscriptions_and_its_queue_at_the_other_node() {
    let (mut world, sender) = cluster_with_client_away(2, "t/#", 2);
    send(&mut world, sender, "t/1", (1, 700), 1);
    let (client, present) = resume(&mut world, 1, "c");
    assert!(present);
    assert_eq!(world.drain(client), numbers(1, 700));
    send(&mut world, sender, "t/1", (701, 710), 2);
    assert_eq!(world.drain(client), numbers(701, 710));
    rest(&mut world);
    assert!(!has_session(&world, 0, "c"), "nothing is left where it was");
    assert_eq!((world.shard(0).stats().bodies, world.shard(0).stats().outbox), (0, 0));
    let (client, present) = resume(&mut world, 0, "c");
    assert!(present, "and back");
    send(&mut world, sender, "t/1", (711, 720), 1);
    assert_eq!(world.drain(client), numbers(711, 720));
    rest(&mut world);
    assert!(!has_session(&world, 1, "c"));
}

#[test]
fn the_connection_at_the_other_node_is_told_that_it_is_taken_over() {
    let mut world = cluster(2);
    let old = world.connect_to(0, v5("c"));
    let (_, present) = resume(&mut world, 1, "c");
    assert!(present);
    assert_eq!(reason_of_end(&mut world, old), Some(ReasonCode::SessionTakenOver));
    assert!(!world.is_open(old));
}

#[test]
fn a_qos_2_delivery_that_is_half_over_keeps_its_packet_id() {
    for received in [false, true] {
        let mut world = cluster(2);
        let client = world.connect_to(0, v5("c"));
        world.subscribe(client, "t", 2);
        let sender = world.connect_to(1, v5("s"));
        send(&mut world, sender, "t", (1, 3), 2);
        world.sync();
        if received {
            // PUBREC goes out, its PUBREL does not come.
            let first = world.take(client).into_iter().find_map(|packet| match packet {
                Packet::Publish(publish) => publish.packet_id,
                _ => None,
            });
            world.note_taken("c", first.expect("sent"));
            world.send(client, pubrec(first.expect("sent")));
            world.sync();
        }
        let (client, present) = resume(&mut world, 1, "c");
        assert!(present);
        let left = if received { numbers(2, 3) } else { numbers(1, 3) };
        assert_eq!(world.drain(client), left, "received: {received}");
    }
}

#[test]
fn a_publish_of_qos_2_that_is_half_over_is_not_taken_again() {
    let mut world = cluster(2);
    let receiver = world.connect_to(0, v5("r"));
    world.subscribe(receiver, "t", 2);
    let client = world.connect_to(0, v5("c"));
    world.publish(client, publish("t", "once", 2, 7));
    world.sync();
    let (client, present) = resume(&mut world, 1, "c");
    assert!(present);
    let mut again = publish("t", "once", 2, 7);
    again.dup = true;
    world.publish(client, again);
    rest(&mut world);
    assert_eq!(world.drain(receiver), ["once"]);
}

#[test]
fn two_sessions_that_grew_apart_become_one_and_nothing_is_lost() {
    let mut world = cluster(2);
    let left = world.connect_to(0, v5("c"));
    world.subscribe(left, "left", 1);
    world.subscribe(left, "both", 1);
    world.cut_link();
    let (right, present) = resume(&mut world, 1, "c");
    assert!(!present, "the other node cannot be asked");
    world.subscribe(right, "right", 1);
    world.subscribe(right, "both", 1);
    let at_left = world.connect_to(0, v5("s0"));
    let at_right = world.connect_to(1, v5("s1"));
    world.stop_reading(left);
    send(&mut world, at_left, "both", (1, 20), 1);
    send(&mut world, at_left, "left", (21, 30), 2);
    world.cut(right);
    send(&mut world, at_right, "both", (31, 40), 1);
    send(&mut world, at_right, "right", (41, 50), 2);
    world.read_on(left);
    world.heal();
    rest(&mut world);
    assert!(!world.is_open(left), "the later CONNECT counts");
    assert_eq!(reason_of_end(&mut world, left), Some(ReasonCode::SessionTakenOver));
    assert_eq!([0, 1].map(|node| has_session(&world, node, "c")), [false, true]);
    let (right, present) = resume(&mut world, 1, "c");
    assert!(present);
    let mut got: Vec<u16> =
        world.drain(right).iter().map(|n| n.parse().expect("a number")).collect();
    got.sort_unstable();
    assert_eq!(got, (1..=50).collect::<Vec<u16>>());
    for (topic, from) in [("left", 60), ("both", 70), ("right", 80)] {
        send(&mut world, at_left, topic, (from, from + 4), 1);
        assert_eq!(world.drain(right), numbers(from, from + 4), "{topic}");
    }
}

#[test]
fn who_begins_anew_elsewhere_ends_what_was() {
    let mut world = cluster(2);
    let old = world.connect_to(0, v5("c"));
    world.subscribe(old, "t", 1);
    let sender = world.connect_to(0, v5("s"));
    let new = world.connect_to(1, fleeting("c"));
    rest(&mut world);
    assert_eq!(reason_of_end(&mut world, old), Some(ReasonCode::SessionTakenOver));
    send(&mut world, sender, "t", (1, 3), 1);
    assert_eq!(world.drain(new), Vec::<String>::new());
    assert!(!has_session(&world, 0, "c"));
    world.disconnect(new);
    rest(&mut world);
    let (_, present) = resume(&mut world, 0, "c");
    assert!(!present);
}

#[test]
fn a_node_that_was_away_sends_what_it_had_for_the_client_after_it() {
    let mut world = cluster(3);
    let client = world.connect_to(0, v5("c"));
    world.subscribe(client, "t", 2);
    world.cut(client);
    let away = world.connect_to(2, v5("away"));
    let near = world.connect_to(0, v5("near"));
    world.sync();
    world.unlink(0, 2);
    world.unlink(1, 2);
    send(&mut world, away, "t", (1, 20), 2);
    let (client, present) = resume(&mut world, 1, "c");
    assert!(present);
    rest(&mut world);
    send(&mut world, near, "t", (101, 105), 2);
    assert_eq!(world.drain(client), numbers(101, 105));
    assert!(has_session(&world, 0, "c"), "it waits for the one that is away");
    world.crash(0);
    for (a, b) in [(0, 1), (0, 2), (1, 2)] {
        world.link(a, b);
    }
    rest(&mut world);
    let (client, _) = resume(&mut world, 1, "c");
    assert_eq!(world.drain(client), numbers(1, 20));
    send(&mut world, away, "t", (21, 30), 2);
    assert_eq!(world.drain(client), numbers(21, 30));
    rest(&mut world);
    assert!(!has_session(&world, 0, "c"), "now it has heard of it");
}

#[test]
fn a_third_node_publishes_all_the_while_and_each_message_comes_once() {
    let mut world = cluster(3);
    let mut client = world.connect_to(0, v5("c"));
    world.subscribe(client, "t", 2);
    let sender = world.connect_to(2, v5("s"));
    let mut got = Vec::new();
    for round in 0..12_u16 {
        let (from, to) = (round * 10 + 1, round * 10 + 10);
        // Nobody waits for anything.
        for number in from..=to {
            world.publish(sender, publish("t", &number.to_string(), 2, number));
        }
        client = resume(&mut world, usize::from(round % 2 == 0), "c").0;
        world.drain(sender);
        got.extend(world.drain(client));
    }
    rest(&mut world);
    got.extend(world.drain(client));
    let mut sorted: Vec<u16> = got.iter().map(|n| n.parse().expect("a number")).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=120).collect::<Vec<u16>>());
}

#[test]
fn a_crash_of_either_node_at_any_moment_loses_nothing() {
    for crashed in [0, 1] {
        for moment in 0..8 {
            let (mut world, sender) = cluster_with_client_away(2, "t", 2);
            send(&mut world, sender, "t", (1, 240), 2);
            world.start_connect(1, v5("c"));
            for step in 0..moment {
                world.sync_one(step % 2);
            }
            world.crash(crashed);
            world.join();
            rest(&mut world);
            let (client, _) = resume(&mut world, 1, "c");
            let mut got = world.drain(client);
            rest(&mut world);
            got.extend(world.drain(client));
            let expected = numbers(1, 240);
            assert_eq!(got.len(), expected.len(), "crashed {crashed} at {moment}");
            assert!(got == expected, "crashed {crashed} at {moment}: out of order");
            assert!(!has_session(&world, 0, "c"), "crashed {crashed} at {moment}");
        }
    }
}

#[test]
fn a_client_is_not_kept_waiting_by_a_node_that_does_not_answer() {
    let (mut world, sender) = cluster_with_client_away(2, "t", 1);
    send(&mut world, sender, "t", (1, 5), 1);
    world.lose_frames();
    let client = world.start_connect(1, v5("c"));
    world.sync();
    assert!(world.take(client).is_empty(), "it waits for what it has there");
    world.pass(TAKEOVER_WAIT_MS_MAX);
    world.sync();
    let connack = world.take(client).into_iter().next();
    assert!(
        matches!(&connack, Some(Packet::Connack(c)) if !c.session_present && !c.reason.is_error()),
        "{connack:?}"
    );
    world.cut_link();
    world.heal();
    rest(&mut world);
    assert_eq!(world.drain(client), numbers(1, 5), "it follows");
}

#[test]
fn a_member_of_a_share_group_that_moves_gets_its_part_there() {
    let mut world = cluster(3);
    let client = world.connect_to(0, v5("c"));
    world.subscribe(client, "$share/g/t", 1);
    world.cut(client);
    let sender = world.connect_to(2, v5("s"));
    send(&mut world, sender, "t", (1, 10), 1);
    let (client, present) = resume(&mut world, 1, "c");
    assert!(present);
    assert_eq!(world.drain(client), numbers(1, 10));
    rest(&mut world);
    send(&mut world, sender, "t", (11, 20), 1);
    assert_eq!(world.drain(client), numbers(11, 20));
}

#[test]
fn the_will_of_a_client_that_is_back_elsewhere_in_time_is_not_said() {
    let mut world = cluster(2);
    let watcher = world.connect_to(0, fleeting("w"));
    world.subscribe(watcher, "will", 1);
    let mut connect = v5("c");
    connect.will = Some(will("will", 60));
    let client = world.connect_to(0, connect);
    world.cut(client);
    resume(&mut world, 1, "c");
    rest(&mut world);
    world.pass(120_000);
    assert_eq!(world.drain(watcher), Vec::<String>::new());
}

#[test]
fn nodes_that_meet_for_the_first_time_agree_on_who_has_a_client() {
    let mut world = World::with(2, |_| {});
    for node in [0, 1] {
        let client = world.connect_to(node, v5("c"));
        world.subscribe(client, "t", 1);
        world.cut(client);
        let sender = world.connect_to(node, v5("s"));
        let from = node as u16 * 10 + 1;
        send(&mut world, sender, "t", (from, from + 4), 1);
        world.cut(sender);
    }
    let at_one = resume(&mut world, 1, "c").0;
    world.stop_reading(at_one);
    world.join();
    rest(&mut world);
    assert!(world.is_open(at_one), "where it is connected, it stays");
    world.read_on(at_one);
    let mut got: Vec<u16> =
        world.drain(at_one).iter().map(|n| n.parse().expect("a number")).collect();
    got.sort_unstable();
    assert_eq!(got, [1, 2, 3, 4, 5, 11, 12, 13, 14, 15]);
    assert_eq!([0, 1].map(|node| has_session(&world, node, "c")), [false, true]);
}

#[test]
fn a_node_that_is_forgotten_leaves_its_clients_to_the_others() {
    let (mut world, sender) = cluster_with_client_away(2, "t", 1);
    send(&mut world, sender, "t", (1, 5), 1);
    world.lose_frames();
    world.start_connect(1, v5("c"));
    world.sync();
    world.cut_link();
    // It had begun to leave for a node that is gone for good now.
    let now = world.now();
    world.shard_mut(0).forget_peer(NodeId(2), now);
    rest(&mut world);
    let (client, present) = resume(&mut world, 0, "c");
    assert!(present);
    assert_eq!(world.drain(client), numbers(1, 5));
}

#[test]
fn a_full_directory_leaves_clients_where_they_connect() {
    let mut world = World::with(2, |config| config.directory_max = 3);
    world.join();
    for n in 0..6 {
        world.connect_to(0, v5(&format!("c{n}")));
    }
    rest(&mut world);
    assert!(world.shard(0).stats().directory_refused > 0);
    assert!(world.shard(0).stats().directory <= 3 && world.shard(1).stats().directory <= 3);
    let (_, present) = resume(&mut world, 1, "c5");
    assert!(!present);
}

#[test]
fn sessions_that_end_leave_the_directory_of_all_nodes() {
    let mut world = cluster(2);
    for n in 0..5 {
        let client = world.connect_to(n % 2, v5(&format!("c{n}")));
        world.disconnect(client);
    }
    rest(&mut world);
    let rules = 2; // one entry a node: what it goes by
    assert_eq!([0, 1].map(|n| world.shard(n).stats().directory), [5 + rules; 2]);
    world.pass(4_000_000);
    rest(&mut world);
    for node in [0, 1] {
        let stats = world.shard(node).stats();
        assert_eq!((stats.directory, stats.directory_tombstones), (rules, 0), "node {node}");
    }
    assert_eq!(world.shard(0).stats().rules_epochs, world.shard(1).stats().rules_epochs);
    assert_eq!(world.shard(0).stats().rules_epochs.len(), 2);
}

#[test]
fn what_no_client_can_have_is_left_out_when_a_peer_passes_it_on() {
    let mut world = cluster(2);
    let (now, peer) = (world.now(), NodeId(2));
    let part = |client_id: String, kind| SessionPart { client_id, user: None, node: 2, kind };
    let begin = |next_place| PartKind::Begin { expiry_s: 60, next_place, received: vec![0, 7] };
    let long = "c".repeat(NAME_BYTES_MAX + 1);
    let record = DeliveryRecord {
        node: 2,
        seq: 9,
        qos: 1,
        retain: false,
        released: false,
        subscription_ids: Vec::new(),
        share: None,
        bytes: None,
        expires_wall_ms: None,
    };
    let client = world.connect_to(0, v5("known"));
    world.subscribe(client, "t", 1);
    let end = PartKind::End {
        subscriptions: vec![
            ("#/a".to_owned(), SubscriptionRecord { options: 1, id: None }),
            (long.clone(), SubscriptionRecord { options: 1, id: Some(0) }),
        ],
        given: Some(vec![(2, 9, u64::MAX)]),
    };
    let parts = [
        part(long, begin(1)),
        part("unknown".to_owned(), begin(u64::MAX)),
        part("unknown".to_owned(), PartKind::Delivery { place: u64::MAX, record: record.clone() }),
        part("known".to_owned(), begin(u64::MAX)),
        part("known".to_owned(), PartKind::Delivery { place: u64::MAX, record }),
        part("known".to_owned(), end),
    ];
    for (number, part) in parts.iter().enumerate() {
        let seq = 1_000 + number as u64;
        let frame = event(seq, encode(part), now.wall_ms);
        world.shard_mut(0).peer_frame(peer, frame, now).expect("it is no reason to cut the link");
    }
    let frame = event(2_000, "no part".into(), now.wall_ms);
    world.shard_mut(0).peer_frame(peer, frame, now).expect("nor is what cannot be read");
    rest(&mut world);
    assert!(!has_session(&world, 0, "unknown"));
    assert_eq!(world.shard(0).stats().store_failed, None);
    assert_eq!(world.drain(client), ["x"], "the one for a client that is here");
}

/// An event of the second node with a part of a session.
fn event(seq: u64, part: bytes::Bytes, accepted_wall_ms: u64) -> PeerFrame {
    let message = Message {
        id: MessageId { node: NodeId(2), seq },
        topic: "t".into(),
        payload: "x".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: None,
        accepted_wall_ms,
        expiry_s: None,
    };
    let shares = Some(Arc::new(Shares { session: Some(part), ..Shares::default() }));
    PeerFrame::Event { seq, message: Arc::new(message), shares }
}

#[test]
fn a_client_whose_queue_cannot_be_read_waits_and_then_has_it() {
    let (mut world, sender) = cluster_with_client_away(2, "t", 1);
    send(&mut world, sender, "t", (1, 5), 1);
    let unreadable = |world: &World, spaces: &[Space]| {
        let unreadable = spaces.iter().copied().collect();
        world.store(1).set_faults(FaultPlan { unreadable, ..FaultPlan::default() });
    };
    unreadable(&world, &[Space::Queues]);
    let client = world.start_connect(1, v5("c"));
    rest(&mut world);
    assert!(world.take(client).is_empty(), "it is neither let in without its queue nor sent away");
    unreadable(&world, &[]);
    world.pass(TAKEOVER_WAIT_MS_MAX); // it is let try again
    world.sync();
    assert!(world.connack(client).is_some_and(|connack| connack.session_present));
    assert_eq!(world.drain(client), numbers(1, 5));
}

#[test]
fn a_session_that_has_left_takes_no_more_than_its_way_holds() {
    let mut world = World::with(3, |config| config.outbox_messages_max = 8);
    world.mesh();
    let client = world.connect_to(0, v5("c"));
    world.subscribe(client, "t", 1);
    world.cut(client);
    let sender = world.connect_to(2, v5("s"));
    world.unlink(1, 2); // it will not hear of the move, and goes on sending to the first
    let (client, _) = resume(&mut world, 1, "c");
    rest(&mut world);
    world.unlink(0, 1);
    // A little more than the limit, as each leaves another outbox.
    let most = 8 + PASSING_MAX as u16;
    for number in 1..=most + 60 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
        world.sync();
    }
    let waiting = world.shard(0).stats().outbox;
    assert!(waiting <= usize::from(most) + 2, "{waiting} messages wait for the second node");
    world.link(0, 1);
    world.link(1, 2);
    rest(&mut world);
    let got = world.drain(client);
    rest(&mut world);
    let accepted = world.accepted(sender);
    let all = usize::from(most) + 60;
    assert!((8..all).contains(&accepted.len()), "some were refused: {}", accepted.len());
    assert_eq!(got, accepted.iter().map(ToString::to_string).collect::<Vec<_>>());
}
