//! Acknowledged means durable; and what is acknowledged arrives.

use outpost_membership::{Hello, Interest, PeerFrame};
use outpost_model::NodeId;
use outpost_mqtt::packet::{Ack, Connect, Packet, ReasonCode};
use outpost_store::FaultPlan;

use crate::world::{Client, World, fleeting, id, publish, v4, v5, will};

fn ack(number: u16) -> Ack {
    Ack::new(id(number), ReasonCode::Success)
}

#[test]
fn every_qos_reaches_both_versions() {
    let mut world = World::new();
    let receivers =
        [world.connect(v5("r5")), world.connect(v4("r4")), world.connect(fleeting("rf"))];
    for receiver in receivers {
        world.subscribe(receiver, "t/#", 2);
    }
    for name in ["s5", "s4"] {
        let sender = world.connect(if name == "s5" { v5(name) } else { v4(name) });
        for qos in 0..3 {
            world
                .publish(sender, publish("t/1", &format!("{name}-{qos}"), qos, u16::from(qos) + 1));
        }
        world.drain(sender);
    }
    for receiver in receivers {
        let got = world.drain(receiver);
        assert_eq!(got, ["s5-0", "s5-1", "s5-2", "s4-0", "s4-1", "s4-2"]);
    }
    assert_eq!(world.shard(0).stats().queued, 0);
}

#[test]
fn puback_pubrec_and_suback_wait_for_the_disk() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "one", 1, 1));
    world.publish(sender, publish("t", "two", 2, 2));
    assert_eq!(world.take(sender), []);
    world.sync();
    let expected = [Packet::Puback(ack(1)), Packet::Pubrec(ack(2))];
    assert_eq!(world.take(sender), expected);
}

#[test]
fn an_answer_of_the_wrong_qos_ends_the_connection_and_is_in_the_log_4_3() {
    let mut world = World::new();
    let sender = world.connect(v5("s"));
    for (connect, is_told) in [(v4("old"), false), (v5("new"), true)] {
        let name = connect.client_id.to_string();
        let receiver = world.connect(connect);
        world.subscribe(receiver, "t", 1);
        world.publish(sender, publish("t", "x", 1, 1));
        world.sync();
        let Some(Packet::Publish(got)) = world.take(receiver).pop() else { panic!("a PUBLISH") };
        let wrong = Ack::new(got.packet_id.expect("QoS 1"), ReasonCode::Success);
        world.send(receiver, Packet::Pubrec(wrong));
        let is_0x82 = |p: &Packet| matches!(p, Packet::Disconnect(d) if d.reason == ReasonCode::ProtocolError);
        assert_eq!(answers(&mut world, receiver).iter().any(is_0x82), is_told);
        assert!(!world.is_open(receiver));
        let line = world.logs.last().expect("a line");
        assert!(line.contains(&format!("{name:?}")) && line.contains("does not fit"), "{line}");
    }
}

fn answers(world: &mut World, client: Client) -> Vec<Packet> {
    world.sync();
    world.take(client)
}

/// Between its hello and the end of its list a peer may still name the filter.
#[test]
fn that_nobody_subscribes_is_told_only_when_the_list_of_each_peer_has_ended() {
    let mut world = World::new();
    let (now, peer) = (world.now(), NodeId(2));
    let sender = world.connect(v5("s"));
    let reason = |world: &mut World| {
        world.publish(sender, publish("t", "x", 1, 1));
        world.sync();
        match &world.take(sender)[..] {
            [Packet::Puback(ack)] => ack.reason,
            other => panic!("{other:?}"),
        }
    };
    let hello = Hello { store_id: 77, your_store_id: 0, events_seen: 0, retained_seen: 0 };
    let other = Interest { pattern: "other".to_owned(), durable: false, live: false };
    let said = [
        (PeerFrame::Hello(hello), ReasonCode::Success),
        (PeerFrame::InterestAll(vec![other]), ReasonCode::Success),
        (PeerFrame::InterestAdd(Vec::new()), ReasonCode::NoMatchingSubscribers),
        (PeerFrame::InterestAll(Vec::new()), ReasonCode::Success),
    ];
    world.shard_mut(0).peer_up(peer, now);
    for (frame, expected) in said {
        world.shard_mut(0).peer_frame(peer, frame, now).expect("as a peer says it");
        assert_eq!(reason(&mut world), expected);
    }
}

#[test]
fn puback_tells_that_nobody_subscribes_3_4_2_1() {
    let mut world = World::with(2, |_| {});
    let sender = world.connect(v5("s"));
    let unheard = Packet::Puback(Ack::new(id(1), ReasonCode::NoMatchingSubscribers));
    world.publish(sender, publish("t", "x", 1, 1));
    assert_eq!(answers(&mut world, sender), std::slice::from_ref(&unheard));
    world.publish(sender, publish("t", "x", 2, 2));
    assert_eq!(answers(&mut world, sender), [Packet::Pubrec(ack(2))], "said again as success");
    let old = world.connect(v4("old"));
    world.publish(old, publish("t", "x", 1, 1));
    assert_eq!(answers(&mut world, old), [Packet::Puback(ack(1))], "3.1.1 has no reasons");

    world.join();
    world.publish(sender, publish("t", "x", 1, 1));
    assert_eq!(answers(&mut world, sender), [unheard], "the peer has nobody either");
    world.cut_link();
    world.publish(sender, publish("t", "x", 1, 1));
    assert_eq!(answers(&mut world, sender), [Packet::Puback(ack(1))], "who knows");
    world.join();
    let receiver = world.connect_to(1, fleeting("r"));
    world.subscribe(receiver, "t", 0);
    world.publish(sender, publish("t", "x", 1, 1));
    assert_eq!(answers(&mut world, sender), [Packet::Puback(ack(1))], "somebody");
}

#[test]
fn a_thousand_acknowledgements_come_from_one_sync() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v4("s"));
    let all = (1..=1_000).map(|n| Packet::Publish(Box::new(publish("t", "x", 1, n))));
    world.send_all(sender, all);
    world.sync();
    assert_eq!(world.take(sender).len(), 1_000);
}

#[test]
fn what_was_acknowledged_survives_a_crash_and_what_was_not_is_sent_again() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "safe", 1, 1));
    world.sync();
    assert_eq!(world.take(sender), [Packet::Puback(ack(1))]);
    world.publish(sender, publish("t", "lost", 1, 2));
    world.crash(0);
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver), ["safe"]);
}

#[test]
fn connack_is_first_and_waits_for_no_sync_when_all_it_says_is_durable() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(fleeting("s"));
    world.publish(sender, publish("t", "queued", 1, 1));
    world.sync();
    let receiver = world.start_connect(0, v5("r"));
    let packets = world.take(receiver);
    assert!(matches!(&packets[0], Packet::Connack(c) if c.session_present), "{packets:?}");
    assert!(matches!(&packets[1], Packet::Publish(_)), "{packets:?}");
}

#[test]
fn messages_that_are_durable_are_read_while_others_wait_for_the_disk() {
    let mut world = World::new();
    for name in ["r", "o"] {
        let client = world.connect(v5(name));
        world.subscribe(client, name, 1);
        world.cut(client);
    }
    let sender = world.connect(fleeting("s"));
    world.publish(sender, publish("r", "durable", 1, 1));
    world.sync();
    world.crash(0); // what is queued is on disk only
    let sender = world.connect(fleeting("s"));
    world.publish(sender, publish("o", "not yet", 1, 1));
    let receiver = world.start_connect(0, v5("r"));
    let packets = world.take(receiver);
    assert!(matches!(&packets[0], Packet::Connack(c) if c.session_present), "{packets:?}");
    assert!(matches!(&packets[1], Packet::Publish(p) if p.payload == "durable"), "{packets:?}");
    assert_eq!(world.take(sender), [], "its message is not durable");
    world.sync();
    assert_eq!(world.take(sender), [Packet::Puback(ack(1))]);
}

#[test]
fn connack_waits_when_it_promises_more_than_the_disk_says() {
    let mut world = World::new();
    let client = world.connect(v5("r"));
    world.cut(client);
    world.sync();
    let longer = Connect { session_expiry_s: Some(7_200), ..v5("r") };
    let client = world.start_connect(0, longer.clone());
    assert_eq!(world.take(client), [], "the longer time is not durable yet");
    world.cut(client);
    let client = world.start_connect(0, longer);
    assert_eq!(world.take(client), [], "nor is it now");
    world.sync();
    assert!(matches!(&world.take(client)[0], Packet::Connack(c) if c.session_present));
}

#[test]
fn connack_waits_until_a_will_that_is_not_to_be_said_is_gone() {
    let mut world = World::new();
    let client = world.connect(Connect { will: Some(will("w", 60)), ..v5("r") });
    world.cut(client);
    world.sync();
    let client = world.start_connect(0, v5("r"));
    assert_eq!(world.take(client), [], "after a crash it would be said");
    world.sync();
    assert!(matches!(&world.take(client)[0], Packet::Connack(c) if c.session_present));
}

#[test]
fn connack_waits_until_qos_2_ids_are_durably_free() {
    let mut world = World::new();
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "x", 2, 1));
    world.sync();
    assert_eq!(world.take(sender), [Packet::Pubrec(ack(1))]);
    world.send_all(sender, [Packet::Pubrel(ack(1))]);
    world.cut(sender);
    let sender = world.start_connect(0, v5("s"));
    assert_eq!(world.take(sender), [], "its PUBREL would be answered, and the id used again");
    world.sync();
    assert!(matches!(&world.take(sender)[0], Packet::Connack(c) if c.session_present));
}

#[test]
fn a_qos_2_delivery_keeps_its_packet_id_through_a_crash() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 7));
    world.sync();
    let Some(Packet::Publish(first)) = world.take(receiver).pop() else { panic!("a publish") };
    world.crash(0);
    let receiver = world.connect(v5("r"));
    world.sync();
    let Some(Packet::Publish(again)) = world.take(receiver).pop() else { panic!("it again") };
    assert_eq!((first.packet_id, again.dup), (again.packet_id, true));
    world.send(receiver, Packet::Pubrec(ack(again.packet_id.expect("QoS 2").get())));
    world.sync();
    world.crash(0);
    let receiver = world.connect(v5("r"));
    world.sync();
    let got = world.take(receiver);
    assert!(
        matches!(&got[..], [Packet::Pubrel(r)] if Some(r.packet_id) == first.packet_id),
        "{got:?}"
    );
    assert_eq!(world.drain(receiver), Vec::<String>::new());
}

#[test]
fn a_qos_2_delivery_is_not_sent_before_its_packet_id_is_safe() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "a", 2, 1));
    assert_eq!(world.take(receiver), [], "a crash now would give its id to another message");
    world.crash(0);
    let (receiver, other) = (world.connect(v5("r")), world.connect(v5("other")));
    world.publish(other, publish("t", "b", 2, 1));
    assert_eq!(world.drain(receiver), ["b"]);
}

#[test]
fn a_qos_2_publish_sent_again_is_routed_once() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 7));
    world.cut(sender);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 7));
    world.sync();
    let sender_got = world.take(sender);
    assert!(sender_got.contains(&Packet::Pubrec(ack(7))), "{sender_got:?}");
    world.crash(0);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 7));
    world.drain(sender);
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver), ["once"]);
}

#[test]
fn more_than_the_receive_maximum_is_refused_and_takes_no_id() {
    let mut world = World::with(1, |config| config.session.receive_max = 2);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    for number in 1..=3 {
        world.publish(sender, publish("t", &number.to_string(), 2, number));
    }
    assert!(!world.is_open(sender));
    world.sync();
    let sender = world.connect(v5("s"));
    world.send_all(sender, [Packet::Pubrel(ack(1)), Packet::Pubrel(ack(2))]);
    world.sync();
    world.publish(sender, publish("t", "3", 2, 3));
    world.drain(sender);
    assert_eq!(world.drain(receiver), ["1", "2", "3"]);
}

#[test]
fn a_client_s_receive_maximum_is_kept() {
    let mut world = World::new();
    let mut connect = v5("r");
    connect.receive_max = Some(2);
    let receiver = world.connect(connect);
    world.subscribe(receiver, "t", 1);
    let sender = world.connect(v5("s"));
    for number in 1..=5 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    world.sync();
    assert_eq!(world.peek(receiver), ["1", "2"]);
}

#[test]
fn a_packet_larger_than_the_client_takes_counts_as_done() {
    let mut world = World::new();
    let mut connect = v5("r");
    connect.packet_max = Some(100);
    let receiver = world.connect(connect);
    world.subscribe(receiver, "t", 1);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", &"x".repeat(200), 1, 1));
    world.publish(sender, publish("t", &"x".repeat(200), 0, 0));
    world.publish(sender, publish("t", "small", 1, 2));
    assert_eq!(world.drain(receiver), ["small"]);
    assert_eq!(world.shard(0).stats().queued, 0);
}

#[test]
fn a_busy_store_holds_clients_back_and_loses_nothing() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    let sender = world.connect(v5("s"));
    world.sync();
    let plan = FaultPlan { backlog_bytes_max: 1_000, ..FaultPlan::default() };
    world.store(0).set_faults(plan);
    for number in 1..=50 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    world.sync();
    let numbers: Vec<String> = (1..=50).map(|n: u16| n.to_string()).collect();
    assert_eq!(world.drain(receiver), numbers);
    assert_eq!(world.take(sender).len(), 50);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged_and_qos_0_goes_on() {
    let mut world = World::new();
    let (receiver, quick) = (world.connect(v5("r")), world.connect(fleeting("q")));
    world.subscribe(receiver, "t", 1);
    world.subscribe(quick, "t", 0);
    let sender = world.connect(fleeting("s"));
    world.store(0).set_faults(FaultPlan { fail_at_sync: Some(0), ..FaultPlan::default() });
    world.publish(sender, publish("t", "unsafe", 1, 1));
    let now = world.now();
    world.shard_mut(0).store_failed("the disk is gone".to_owned(), now);
    world.sync();
    assert_eq!(world.take(sender), []);
    world.publish(sender, publish("t", "refused", 1, 2));
    let refused = Packet::Puback(Ack::new(id(2), ReasonCode::ImplementationSpecificError));
    assert_eq!(world.take(sender), [refused]);
    // One that is not kept needs no disk, and has a PUBACK that never comes.
    world.subscribe(sender, "u", 0);
    world.publish(sender, publish("u", "heard", 0, 0));
    assert_eq!(world.peek(sender), ["heard"]);
    world.publish(sender, publish("t", "still", 0, 0));
    assert_eq!(world.peek(quick), ["unsafe", "still"]);
    let (_, connack) = world.try_connect(0, v5("late"));
    assert_eq!(connack.reason, ReasonCode::ServerUnavailable);
    let (_, connack) = world.try_connect(0, fleeting("r"));
    assert_eq!(connack.reason, ReasonCode::ServerUnavailable);
    assert!(world.is_open(receiver), "a clean start that is refused ends nobody's session");
    let (_, connack) = world.try_connect(0, fleeting("q"));
    assert_eq!(connack.reason, ReasonCode::Success, "what was never kept may begin anew");
}
