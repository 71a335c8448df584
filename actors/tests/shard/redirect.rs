//! What MQTT 5 leaves to the server: another server, response information, the payload format.

use bytes::Bytes;
use outpost_actors::shard::{MOVED_AT_ONCE_MAX, Redirect};
use outpost_model::MessageProperties;
use outpost_mqtt::packet::{Connect, Packet, Publish, ReasonCode};

use crate::world::{World, fleeting, publish, v4, v5, will};

fn elsewhere(moved: bool) -> Redirect {
    Redirect::new("gateway-2:1883", moved).expect("a reference")
}

#[test]
fn clients_are_sent_to_another_server_with_its_name_4_11() {
    let mut world = World::new();
    let (five, four) = (world.connect(v5("five")), world.connect(v4("four")));
    world.subscribe(five, "a", 1);
    let now = world.now();
    world.shard_mut(0).redirect(Some(elsewhere(false)), now);
    world.pump();
    let heard = world.take(five);
    let [Packet::Disconnect(disconnect)] = &heard[..] else { panic!("DISCONNECT, not {heard:?}") };
    assert_eq!(disconnect.reason, ReasonCode::UseAnotherServer);
    assert_eq!(disconnect.server_reference.as_deref(), Some("gateway-2:1883"));
    assert!(world.take(four).is_empty() && !world.is_open(four) && !world.is_open(five));

    let (_, connack) = world.try_connect(0, v5("five"));
    assert_eq!(connack.reason, ReasonCode::UseAnotherServer);
    assert_eq!(connack.server_reference.as_deref(), Some("gateway-2:1883"));
    let (_, connack) = world.try_connect(0, v4("four"));
    assert_eq!(connack.reason, ReasonCode::ServerUnavailable, "0x03 is all 3.1.1 has");
    assert_eq!(world.shard(0).redirection().moved, 2);
    let now = world.now();
    world.shard_mut(0).redirect(Some(elsewhere(true)), now);
    let (_, connack) = world.try_connect(0, v5("new"));
    assert_eq!(connack.reason, ReasonCode::ServerMoved);

    world.shard_mut(0).redirect(None, now);
    let four = world.connect(v4("four"));
    world.publish(four, publish("a", "x", 1, 1));
    let five = world.connect(v5("five"));
    assert_eq!(world.drain(five), ["x"], "its session stayed here");
}

#[test]
fn a_full_node_is_emptied_some_clients_at_a_time() {
    let mut world = World::new();
    let all: Vec<_> = (0..=2 * MOVED_AT_ONCE_MAX)
        .map(|number| world.connect(fleeting(&format!("c{number}"))))
        .collect();
    let now = world.now();
    world.shard_mut(0).redirect(Some(elsewhere(false)), now);
    world.pump();
    for left in [1 + MOVED_AT_ONCE_MAX, 1, 0] {
        assert_eq!(all.iter().filter(|client| world.is_open(**client)).count(), left);
        world.pass(100);
    }
    assert_eq!(world.shard(0).next_tick_ms(), None, "nothing is left to do");
}

#[test]
fn one_client_is_sent_elsewhere_and_may_come_back() {
    let mut world = World::new();
    let (one, other) = (world.connect(v5("one")), world.connect(v5("other")));
    let now = world.now();
    let kicked = world.shard_mut(0).move_client("one", &elsewhere(false), now);
    assert!(kicked.is_some_and(|kicked| kicked.disconnected && !kicked.session_ended));
    assert!(world.shard_mut(0).move_client("nobody", &elsewhere(false), now).is_none());
    world.pump();
    assert!(!world.is_open(one) && world.is_open(other));
    world.connect(v5("one"));
}

#[test]
fn response_information_is_told_to_who_asks_and_may_read_there_3_2_2_3_15() {
    let mut world = World::with(1, |c| c.response_information = Some("reply/%u/%c".into()));
    let asks = |name: &str, user: Option<&str>, asks: bool| Connect {
        request_response_info: Some(asks),
        username: user.map(|user| user.to_owned().into()),
        ..fleeting(name)
    };
    for (connect, told) in [
        (asks("c1", Some("ann"), true), Some("reply/ann/c1")),
        (asks("c2", Some("ann"), false), None),
        (asks("c3", None, true), None),
        (asks("c/#", Some("ann"), true), None),
        (asks("%u", Some("ann"), true), None),
    ] {
        let (_, connack) = world.try_connect(0, connect);
        assert_eq!((connack.reason, connack.response_info.as_deref()), (ReasonCode::Success, told));
    }
}

#[test]
fn a_payload_that_is_said_to_be_text_is_text_3_3_2_3_2() {
    let says_text = |qos, bytes: &'static [u8], id| {
        let text = MessageProperties { payload_is_utf8: Some(true), ..Default::default() };
        let properties = Some(Box::new(text));
        Publish { payload: Bytes::from_static(bytes), properties, ..publish("a", "", qos, id) }
    };
    let bad = |qos, id| says_text(qos, b"\xff\xfe", id);
    for check in [false, true] {
        let mut world = World::with(1, |c| c.payload_format_check = check);
        let reader = world.connect(v5("reader"));
        world.subscribe(reader, "a", 1);
        let boss = world.connect(fleeting("boss"));
        world.publish(boss, bad(1, 1));
        world.publish(boss, bad(2, 2));
        world.publish(boss, says_text(1, "grün".as_bytes(), 3));
        world.sync();
        let reasons: Vec<_> = world.take(boss).iter().map(reason).collect();
        let refused = if check { ReasonCode::PayloadFormatInvalid } else { ReasonCode::Success };
        assert_eq!(reasons, [refused, refused, ReasonCode::Success]);
        assert_eq!(world.drain(reader).len(), if check { 1 } else { 3 });
        world.publish(boss, bad(0, 0));
        let heard = world.take(boss);
        let cut_off = [ReasonCode::PayloadFormatInvalid];
        assert_eq!(heard.iter().map(reason).collect::<Vec<_>>(), &cut_off[..usize::from(check)]);
        assert_eq!(world.is_open(boss), !check);
        let mut connect = fleeting("willing");
        let mut said = will("a", 0);
        (said.payload, said.properties.payload_is_utf8) = (Bytes::from_static(b"\xff"), Some(true));
        connect.will = Some(said);
        assert_eq!(world.try_connect(0, connect).1.reason, refused);
        world.check_ledgers();
    }
}

fn reason(packet: &Packet) -> ReasonCode {
    match packet {
        Packet::Puback(ack) | Packet::Pubrec(ack) => ack.reason,
        Packet::Disconnect(disconnect) => disconnect.reason,
        other => panic!("no {other:?} is expected"),
    }
}
