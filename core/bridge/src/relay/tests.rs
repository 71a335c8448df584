//! One link, packet by packet.

use bytes::Bytes;

use super::*;
use crate::topics::{Direction, Rule};

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not 0")
}

fn ack(number: u16) -> Ack {
    Ack::new(id(number), ReasonCode::Success)
}

fn publish(topic: &str, qos: QoS, number: u16) -> Packet {
    Packet::Publish(Box::new(Publish {
        dup: false,
        qos,
        retain: true,
        topic: topic.into(),
        packet_id: PacketId::new(number).filter(|_| qos > QoS::AtMostOnce),
        payload: Bytes::from_static(b"on"),
        topic_alias: None,
        expiry_s: None,
        subscription_ids: vec![1],
        properties: None,
    }))
}

fn remote() -> Remote {
    Remote {
        version: Version::V5,
        qos_max: QoS::ExactlyOnce,
        retain: true,
        no_local: true,
        session_present: true,
    }
}

fn relay(remote: Remote, open_max: u16) -> Relay {
    let rule = |pattern: &str, qos, remote_prefix: &str| Rule {
        pattern: pattern.into(),
        direction: Direction::Both,
        qos,
        local_prefix: String::new(),
        remote_prefix: remote_prefix.into(),
    };
    let rules = [rule("low/#", QoS::AtMostOnce, ""), rule("#", QoS::ExactlyOnce, "far/")];
    let rules = Arc::new(Rules::new(&rules).expect("valid"));
    Relay::new(rules, remote, Pace::new(100, 0), open_max, [])
}

/// What happens next, in short.
fn steps(relay: &mut Relay) -> Vec<String> {
    let side = |side: &str, packet: Packet| match packet {
        Packet::Publish(p) => {
            let number = p.packet_id.map_or(0, PacketId::get);
            format!("{side} PUBLISH {} qos {} id {number}", p.topic, p.qos as u8)
        }
        Packet::Puback(a) => format!("{side} PUBACK {} {:?}", a.packet_id, a.reason),
        Packet::Pubrec(a) => format!("{side} PUBREC {} {:?}", a.packet_id, a.reason),
        Packet::Pubrel(a) => format!("{side} PUBREL {}", a.packet_id),
        Packet::Pubcomp(a) => format!("{side} PUBCOMP {}", a.packet_id),
        other => format!("{side} {other:?}"),
    };
    std::iter::from_fn(|| relay.poll_step())
        .map(|step| match step {
            Step::ToLocal(packet) => side("local", packet),
            Step::ToRemote(packet) => side("remote", packet),
            Step::Broken(why) => format!("broken: {why}"),
        })
        .collect()
}

#[test]
fn a_message_goes_out_under_its_own_id_and_is_done_when_the_broker_says_so() {
    let mut relay = relay(remote(), 10);
    relay.handle_local(publish("a", QoS::ExactlyOnce, 7), 0);
    assert_eq!(steps(&mut relay), ["remote PUBLISH far/a qos 2 id 7"]);
    relay.handle_remote(Packet::Pubrec(ack(7)), 5);
    relay.handle_local(Packet::Pubrel(ack(7)), 6);
    relay.handle_remote(Packet::Pubcomp(ack(7)), 9);
    assert_eq!(steps(&mut relay), ["local PUBREC 7 Success", "remote PUBREL 7", "local PUBCOMP 7"]);
    relay.handle_local(publish("a", QoS::AtLeastOnce, 8), 10);
    relay.handle_remote(Packet::Puback(ack(8)), 11);
    assert_eq!(steps(&mut relay), ["remote PUBLISH far/a qos 1 id 8", "local PUBACK 8 Success"]);
    let counts = relay.take_counts();
    assert_eq!((counts.sent, counts.acked, relay.in_flight()), (2, 2, 0));
}

#[test]
fn a_message_comes_in_and_the_broker_hears_of_it_after_this_node() {
    let mut relay = relay(remote(), 10);
    relay.handle_remote(publish("far/b", QoS::AtLeastOnce, 3), 0);
    assert_eq!(steps(&mut relay), ["local PUBLISH b qos 1 id 3"], "no answer yet");
    relay.handle_local(Packet::Puback(ack(3)), 1);
    assert_eq!(steps(&mut relay), ["remote PUBACK 3 Success"]);
    relay.handle_remote(publish("far/b", QoS::ExactlyOnce, 4), 0);
    relay.handle_local(Packet::Pubrec(ack(4)), 1);
    relay.handle_remote(Packet::Pubrel(ack(4)), 2);
    relay.handle_local(Packet::Pubcomp(ack(4)), 3);
    assert_eq!(
        steps(&mut relay),
        [
            "local PUBLISH b qos 2 id 4",
            "remote PUBREC 4 Success",
            "local PUBREL 4",
            "remote PUBCOMP 4"
        ]
    );
    assert_eq!(relay.take_counts().taken, 2);
}

#[test]
fn what_this_node_refuses_is_not_acknowledged() {
    let mut relay = relay(remote(), 10);
    relay.handle_remote(publish("far/b", QoS::AtLeastOnce, 3), 0);
    relay.handle_local(Packet::Puback(Ack::new(id(3), ReasonCode::QuotaExceeded)), 1);
    let steps = steps(&mut relay);
    assert!(steps.last().is_some_and(|step| step.starts_with("broken")), "{steps:?}");
    assert!(!steps.iter().any(|step| step.starts_with("remote")), "{steps:?}");
}

#[test]
fn a_broker_that_is_full_gets_it_again_and_one_that_refuses_it_does_not() {
    let mut relay = relay(remote(), 10);
    relay.handle_local(publish("a", QoS::AtLeastOnce, 1), 0);
    steps(&mut relay);
    relay.handle_remote(Packet::Puback(Ack::new(id(1), ReasonCode::QuotaExceeded)), 1);
    assert_eq!(steps(&mut relay), ["broken: the broker did not take a message: QuotaExceeded"]);
    relay.handle_remote(Packet::Puback(Ack::new(id(1), ReasonCode::NotAuthorized)), 1);
    assert_eq!(steps(&mut relay), ["local PUBACK 1 NotAuthorized"]);
    assert_eq!(relay.take_counts().refused, 1);
}

#[test]
fn a_broker_of_qos_1_gets_qos_2_as_qos_1() {
    let mut relay = relay(Remote { qos_max: QoS::AtLeastOnce, ..remote() }, 10);
    relay.handle_local(publish("a", QoS::ExactlyOnce, 5), 0);
    relay.handle_remote(Packet::Puback(ack(5)), 1);
    relay.handle_local(Packet::Pubrel(ack(5)), 2);
    assert_eq!(
        steps(&mut relay),
        ["remote PUBLISH far/a qos 1 id 5", "local PUBREC 5 Success", "local PUBCOMP 5"]
    );
    relay.handle_local(Packet::Pubrel(ack(6)), 3);
    assert_eq!(steps(&mut relay), ["local PUBCOMP 6"], "of a link before this one");
}

#[test]
fn a_rule_of_qos_0_sends_without_answer_and_is_done() {
    let mut relay = relay(remote(), 10);
    relay.handle_local(publish("low/a", QoS::ExactlyOnce, 5), 0);
    relay.handle_local(Packet::Pubrel(ack(5)), 2);
    relay.handle_local(publish("low/a", QoS::AtLeastOnce, 6), 3);
    assert_eq!(
        steps(&mut relay),
        [
            "remote PUBLISH low/a qos 0 id 0",
            "local PUBREC 5 Success",
            "local PUBCOMP 5",
            "remote PUBLISH low/a qos 0 id 0",
            "local PUBACK 6 Success"
        ]
    );
}

#[test]
fn the_window_holds_back_and_then_the_node_is_not_read() {
    let mut relay = relay(remote(), 10);
    for n in 1..=300 {
        relay.handle_local(publish("a", QoS::AtLeastOnce, n), 0);
    }
    assert_eq!(steps(&mut relay).len(), crate::pace::WINDOW_MIN);
    assert!(!relay.wants_local());
    relay.handle_remote(Packet::Puback(ack(1)), 1);
    assert_eq!(steps(&mut relay).len(), 1 + 2, "one is done and the window has grown by one");
}

#[test]
fn more_than_this_node_takes_waits_in_order() {
    let mut relay = relay(remote(), 2);
    for n in 1..=3 {
        relay.handle_remote(publish("far/b", QoS::AtLeastOnce, n), 0);
    }
    relay.handle_remote(publish("far/c", QoS::AtMostOnce, 0), 0);
    assert_eq!(steps(&mut relay).len(), 2);
    relay.handle_local(Packet::Puback(ack(1)), 1);
    assert_eq!(
        steps(&mut relay),
        ["local PUBLISH b qos 1 id 3", "local PUBLISH c qos 0 id 0", "remote PUBACK 1 Success"]
    );
}

#[test]
fn a_broker_that_cannot_leave_out_our_own_messages_does_no_harm() {
    let mut relay = relay(Remote { no_local: false, version: Version::V4, ..remote() }, 10);
    relay.handle_local(publish("a", QoS::AtLeastOnce, 1), 0);
    steps(&mut relay);
    relay.handle_remote(publish("far/a", QoS::AtLeastOnce, 9), 5);
    assert_eq!(steps(&mut relay), ["remote PUBACK 9 Success"], "the echo");
    relay.handle_remote(publish("far/a", QoS::AtLeastOnce, 10), 6);
    assert_eq!(steps(&mut relay), ["local PUBLISH a qos 1 id 10"], "somebody else's");
    assert_eq!(relay.take_counts().echoes, 1);
}

#[test]
fn ids_of_a_session_the_broker_has_forgotten_are_free_again() {
    let rules = Arc::new(Rules::default());
    let gone = Remote { session_present: false, ..remote() };
    let mut relay = Relay::new(Arc::clone(&rules), gone, Pace::new(10, 0), 10, [id(4)]);
    relay.handle_local(Packet::Pubcomp(ack(4)), 0);
    assert_eq!(steps(&mut relay), ["local PUBREL 4"], "and the broker hears nothing of it");
    let mut relay = Relay::new(rules, remote(), Pace::new(10, 0), 1, [id(4)]);
    assert!(steps(&mut relay).is_empty(), "it will release it itself");
}

#[test]
fn too_large_for_the_broker_is_done_and_counted() {
    let mut relay = relay(remote(), 10);
    relay.handle_local(publish("a", QoS::ExactlyOnce, 7), 0);
    let Some(Step::ToRemote(Packet::Publish(large))) = relay.poll_step() else {
        panic!("it was sent")
    };
    relay.handle_too_large(&large);
    assert_eq!(steps(&mut relay), ["local PUBREC 7 PacketTooLarge"]);
    assert_eq!((relay.take_counts().too_large, relay.in_flight()), (1, 0));
}
