//! What a session answers, clause by clause: packets of a client in, effects out. Numbers are those of MQTT 5.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use outpost_model::{Message, MessageId, NodeId, Now, QoS};
use outpost_mqtt::packet::{Ack, Connack, Packet, PacketId, ReasonCode, Version};
use outpost_mqtt::session::{Effect, Session, SessionLimits};
use outpost_mqtt::window::Delivery;
use outpost_mqtt::{Decoder, encode};
use support::hex;

const NOW: Now = Now { mono_ms: 0, wall_ms: 0 };

/// The CONNACK a new client of this version gets.
fn connack(session: &mut Session, version: Version, limits: &SessionLimits) -> Connack {
    let connect = match version {
        Version::V3 => hex("10 0F 0006 4D5149736470 03 00 000A 0001 70"),
        Version::V4 => hex("10 0D 0004 4D515454 04 00 000A 0001 70"),
        Version::V5 => hex("10 0E 0004 4D515454 05 00 000A 00 0001 70"),
    };
    let packet = Decoder::new(1024).decode(&mut &connect[..]).expect("valid").expect("whole");
    let Packet::Connect(connect) = packet else { panic!("a CONNECT") };
    let mut fx = Vec::new();
    let connack = Connack { session_present: true, ..Connack::default() };
    session.handle_connect(&connect, connack, limits, &mut fx);
    let Some(Effect::Send(Packet::Connack(connack))) = fx.pop() else { panic!("a CONNACK") };
    *connack
}

fn connected(version: Version) -> Session {
    let mut session = Session::default();
    connack(&mut session, version, &SessionLimits::default());
    session
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not 0")
}

fn ack(number: u16) -> Ack {
    Ack::new(id(number), ReasonCode::Success)
}

fn receive(session: &mut Session, packet: Packet) -> Vec<Effect> {
    let mut fx = Vec::new();
    session.handle_packet(packet, &SessionLimits::default(), NOW, &mut fx);
    fx
}

/// Sends the client the first message of its session; its packet id.
fn deliver(session: &mut Session, qos: QoS) -> PacketId {
    let message = Message {
        id: MessageId { node: NodeId(1), seq: 1 },
        topic: "t".into(),
        payload: Bytes::from_static(b"x"),
        qos,
        retain: false,
        properties: None,
        accepted_wall_ms: 0,
        expiry_s: None,
    };
    let delivery = Delivery {
        place: 1,
        message: Arc::new(message),
        qos,
        retain: false,
        subscription_ids: Vec::new(),
        share: None,
    };
    let mut fx = Vec::new();
    session.handle_delivery(delivery, false, false, NOW, &mut fx);
    let Some(Effect::Deliver { id: Some(id), .. }) = fx.pop() else { panic!("it is sent") };
    id
}

fn is_protocol_error(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Fail(ReasonCode::ProtocolError, _)])
}

#[test]
fn the_first_packet_id_is_1() {
    assert_eq!(deliver(&mut connected(Version::V5), QoS::AtLeastOnce), id(1));
}

#[test]
fn what_a_qos_1_delivery_is_answered_with_4_3_2() {
    for version in [Version::V4, Version::V5] {
        for wrong in [Packet::Pubrec(ack(1)), Packet::Pubcomp(ack(1))] {
            let mut session = connected(version);
            deliver(&mut session, QoS::AtLeastOnce);
            assert!(is_protocol_error(&receive(&mut session, wrong)));
        }
        let mut session = connected(version);
        deliver(&mut session, QoS::AtLeastOnce);
        let done = receive(&mut session, Packet::Puback(ack(1)));
        assert!(matches!(done[..], [Effect::Done { .. }]));
        assert_eq!(receive(&mut session, Packet::Puback(ack(1))), [], "again: it names nothing");
    }
}

#[test]
fn what_a_qos_2_delivery_is_answered_with_4_3_3() {
    for version in [Version::V4, Version::V5] {
        for wrong in [Packet::Puback(ack(1)), Packet::Pubcomp(ack(1))] {
            let mut session = connected(version);
            deliver(&mut session, QoS::ExactlyOnce);
            assert!(is_protocol_error(&receive(&mut session, wrong)));
        }
        let mut session = connected(version);
        deliver(&mut session, QoS::ExactlyOnce);
        let pubrel = Effect::SendDurable(Packet::Pubrel(ack(1)));
        assert_eq!(receive(&mut session, Packet::Pubrec(ack(1))).pop(), Some(pubrel.clone()));
        assert_eq!(receive(&mut session, Packet::Pubrec(ack(1))).pop(), Some(pubrel), "again");
        let mut other = session.clone();
        assert!(is_protocol_error(&receive(&mut other, Packet::Puback(ack(1)))));
        let done = receive(&mut session, Packet::Pubcomp(ack(1)));
        assert!(matches!(done[..], [Effect::Done { .. }]));
        assert_eq!(receive(&mut session, Packet::Pubcomp(ack(1))), [], "again: it names nothing");
    }
}

#[test]
fn pubcomp_of_an_earlier_connection_comes_late_4_4() {
    let mut session = connected(Version::V5);
    deliver(&mut session, QoS::ExactlyOnce);
    receive(&mut session, Packet::Pubrec(ack(1)));
    session.handle_connection_lost();
    connack(&mut session, Version::V5, &SessionLimits::default());
    let done = receive(&mut session, Packet::Pubcomp(ack(1)));
    assert!(matches!(done[..], [Effect::Done { .. }]));
}

#[test]
fn pubrec_and_pubrel_of_unknown_ids_are_answered_without_complaint_3_6_2_1() {
    let mut session = connected(Version::V5);
    let pubrel = Effect::Send(Packet::Pubrel(ack(7)));
    assert_eq!(receive(&mut session, Packet::Pubrec(ack(7))), [pubrel]);
    let pubcomp = Effect::SendDurable(Packet::Pubcomp(ack(7)));
    assert_eq!(receive(&mut session, Packet::Pubrel(ack(7))), [pubcomp]);
}

#[test]
fn connack_names_the_packet_size_unless_it_is_the_wires_own_3_2_2_3_6() {
    let mut limits = SessionLimits { packet_bytes_max: 1 << 20, ..SessionLimits::default() };
    let told = connack(&mut Session::default(), Version::V5, &limits);
    assert_eq!(told.packet_max, Some(1 << 20));
    limits.packet_bytes_max = 268_435_455;
    assert_eq!(connack(&mut Session::default(), Version::V5, &limits).packet_max, None);
    assert_eq!(connack(&mut Session::default(), Version::V4, &limits).packet_max, None);
}

#[test]
fn connack_of_mqtt_3_1_has_a_reserved_byte_instead_of_session_present() {
    for (version, bytes) in [(Version::V3, "20 02 00 00"), (Version::V4, "20 02 01 00")] {
        let connack = connack(&mut Session::default(), version, &SessionLimits::default());
        let mut out = Vec::new();
        encode(&Packet::Connack(Box::new(connack)), version, &mut out);
        assert_eq!(out, hex(bytes));
    }
}
