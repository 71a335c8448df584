//! 3.3: what a PUBLISH carries, in both directions.

use super::packet::{
    Connect, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Properties, Publish, SUBACK, ack, framed,
    prop, string,
};
use super::peer::{BOTH, Peer, unique};
use super::reader::Value;

/// Retain As Published.
const AS_PUBLISHED: u8 = 0x08;

/// MQTT 5: 3.3.1-1, 3.3.1-3, 4.3.2-3, 4.4.0-1
/// MQTT 3.1.1: 3.3.1-1, 3.3.1-3, 4.4.0-1
#[test]
fn both_3_3_1_1_dup_says_sent_before_and_nothing_else() {
    for version in BOTH {
        let (id, topic) = (unique("kept"), unique("t"));
        let (mut reader, _) = Peer::accepted(&Connect::kept(version, &id));
        reader.subscribe(&topic, 1);
        let mut writer = Peer::new(version);
        writer.publish(&Publish::new(&topic, "once more").qos(1, 5).dup());
        let first = reader.expect(PUBLISH);
        assert!(!first.dup(), "the publisher's own flag is not passed on");
        reader.drop_connection();
        let (mut reader, _) = Peer::accepted(&Connect::kept(version, &id));
        let again = reader.expect(PUBLISH);
        assert!(again.dup());
        assert_eq!((again.id, again.text()), (first.id, "once more"));
    }
}

/// MQTT 5: 3.3.1-2, 4.3.1-1
/// MQTT 3.1.1: 3.3.1-2, 4.3.1-1
#[test]
fn both_3_3_1_2_dup_is_0_with_qos_0() {
    for version in BOTH {
        let topic = unique("t");
        let mut reader = Peer::new(version);
        reader.subscribe(&topic, 0);
        Peer::new(version).publish(&Publish::new(&topic, "").qos(1, 1).dup());
        let message = reader.expect(PUBLISH);
        assert_eq!((message.qos(), message.dup()), (0, false));
        // And a client that sets it is refused.
        let mut peer = Peer::new(version);
        peer.publish(&Publish::new(&topic, "").dup());
        peer.closed();
    }
}

/// MQTT 5: 3.3.1-4
/// MQTT 3.1.1: 3.3.1-4
#[test]
fn both_3_3_1_4_qos_3_closes() {
    for version in BOTH {
        let mut peer = Peer::new(version);
        peer.publish(&Publish::new("t", "").qos(3, 1));
        peer.refused(0x81);
    }
}

/// MQTT 5: 3.3.1-5
/// MQTT 3.1.1: 3.3.1-5, 3.3.1-7
#[test]
fn both_3_3_1_5_the_last_retained_message_stays() {
    for version in BOTH {
        let topic = unique("retained");
        let mut writer = Peer::new(version);
        for (qos, payload) in [(1, "first"), (2, "second"), (0, "third")] {
            writer.publish(&Publish::new(&topic, payload).qos(qos, 1).retain());
            finish(&mut writer, qos);
            let mut reader = Peer::new(version);
            reader.subscribe(&topic, 2);
            let message = reader.message();
            assert_eq!((message.text(), message.qos(), message.retain()), (payload, qos, true));
            assert_eq!(reader.until_ping(), []);
        }
    }
}

/// MQTT 5: 3.3.1-6, 3.3.1-7
/// MQTT 3.1.1: 3.3.1-10, 3.3.1-11
#[test]
fn both_3_3_1_6_an_empty_retained_message_removes_and_is_not_kept() {
    for version in BOTH {
        let topic = unique("retained");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        reader.subscribe(&topic, 0);
        writer.published(&Publish::new(&topic, "here").retain());
        writer.published(&Publish::new(&topic, "").retain());
        assert_eq!(reader.message().text(), "here");
        assert_eq!(reader.message().text(), "", "processed as any other");
        let mut late = Peer::new(version);
        late.subscribe(&topic, 0);
        assert_eq!(late.until_ping(), []);
    }
}

/// MQTT 5: 3.3.1-8
/// MQTT 3.1.1: 3.3.1-12
#[test]
fn both_3_3_1_8_without_retain_the_kept_message_stays() {
    for version in BOTH {
        let topic = unique("retained");
        let mut writer = Peer::new(version);
        writer.published(&Publish::new(&topic, "kept").retain());
        writer.published(&Publish::new(&topic, "passing"));
        writer.published(&Publish::new(&topic, ""));
        let mut late = Peer::new(version);
        late.subscribe(&topic, 0);
        assert_eq!(late.message().text(), "kept");
        assert_eq!(late.until_ping(), []);
    }
}

/// MQTT 5: 3.3.1-9, 3.8.4-4
/// MQTT 3.1.1: 3.3.1-6, 3.3.1-8, 3.8.4-3
#[test]
fn both_3_3_1_9_each_subscription_brings_the_retained_messages() {
    for version in BOTH {
        let root = unique("retained");
        let mut writer = Peer::new(version);
        for name in ["a", "b"] {
            writer.published(&Publish::new(&format!("{root}/{name}"), name).retain());
        }
        let mut reader = Peer::new(version);
        for _ in 0..2 {
            reader.subscribe(&format!("{root}/+"), 0);
            let mut brought: Vec<_> = reader.until_ping();
            brought.sort_by(|one, other| one.topic.cmp(&other.topic));
            let texts: Vec<_> =
                brought.iter().map(|message| (message.text(), message.retain())).collect();
            assert_eq!(texts, [("a", true), ("b", true)]);
        }
    }
}

/// MQTT 5: 3.3.1-10
#[test]
fn mqtt5_3_3_1_10_retain_handling_1_only_for_a_new_subscription() {
    let topic = unique("retained");
    Peer::new(5).published(&Publish::new(&topic, "kept").retain());
    let mut reader = Peer::new(5);
    reader.subscribe(&topic, 0x10);
    assert_eq!(reader.until_ping().len(), 1);
    reader.subscribe(&topic, 0x10);
    assert_eq!(reader.until_ping(), []);
}

/// MQTT 5: 3.3.1-11
#[test]
fn mqtt5_3_3_1_11_retain_handling_2_brings_none() {
    let topic = unique("retained");
    Peer::new(5).published(&Publish::new(&topic, "kept").retain());
    let mut reader = Peer::new(5);
    for _ in 0..2 {
        reader.subscribe(&topic, 0x20);
        assert_eq!(reader.until_ping(), []);
    }
}

/// MQTT 5: 3.3.1-12, 3.3.1-13
/// MQTT 3.1.1: 3.3.1-9
#[test]
fn both_3_3_1_12_retain_is_passed_on_as_the_subscription_says() {
    for version in BOTH {
        let options: &[u8] = if version == 5 { &[0, AS_PUBLISHED] } else { &[0] };
        for option in options {
            let topic = unique("retained");
            let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
            reader.subscribe(&topic, *option);
            writer.published(&Publish::new(&topic, "kept").retain());
            writer.published(&Publish::new(&topic, "passing"));
            assert_eq!(reader.message().retain(), *option == AS_PUBLISHED);
            assert!(!reader.message().retain());
        }
    }
}

/// MQTT 5: 3.3.2-2, 4.7.0-1
/// MQTT 3.1.1: 3.3.2-2, 4.7.1-1
#[test]
fn both_3_3_2_2_wildcards_in_a_topic_name_close() {
    for version in BOTH {
        for topic in ["#", "a/#", "a/+/b", "+", "a#", "a+b"] {
            let mut peer = Peer::new(version);
            peer.publish(&Publish::new(topic, ""));
            peer.closed();
        }
    }
}

/// MQTT 5: 3.3.2-3
/// MQTT 3.1.1: 3.3.2-3
#[test]
fn both_3_3_2_3_what_is_delivered_matches_the_filter() {
    for version in BOTH {
        let root = unique("match");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        reader.subscribe(&format!("{root}/+/c/#"), 0);
        for (topic, fits) in [
            ("a/c", true),
            ("b/c/d/e", true),
            ("/c", true),
            ("a/b/c", false),
            ("a", false),
            ("a/cc", false),
        ] {
            let topic = format!("{root}/{topic}");
            writer.published(&Publish::new(&topic, ""));
            let got: Vec<_> =
                reader.until_ping().into_iter().map(|message| message.topic).collect();
            assert_eq!(got, if fits { vec![topic] } else { vec![] });
        }
    }
}

/// MQTT 5: 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18, 3.3.2-20
#[test]
fn mqtt5_3_3_2_4_what_belongs_to_the_message_reaches_every_subscriber_unaltered() {
    let topic = unique("props");
    let mut readers = [Peer::new(5), Peer::new(5)];
    for (reader, qos) in readers.iter_mut().zip([0, 1]) {
        reader.subscribe(&topic, qos);
    }
    let mut writer = Peer::new(5);
    writer.publish(&Publish::new(&topic, "{}").qos(1, 1).with(|properties| {
        properties
            .byte(prop::PAYLOAD_FORMAT, 1)
            .bytes(prop::CONTENT_TYPE, "application/json")
            .bytes(prop::RESPONSE_TOPIC, "answers/here")
            .bytes(prop::CORRELATION_DATA, b"\0\xff\x01")
            .user("z", "1")
            .user("a", "2")
            .user("z", "1")
    }));
    for reader in &mut readers {
        let message = reader.message();
        assert_eq!(message.number(prop::PAYLOAD_FORMAT), Some(1));
        assert_eq!(message.bytes(prop::CONTENT_TYPE), Some(&b"application/json"[..]));
        assert_eq!(message.bytes(prop::RESPONSE_TOPIC), Some(&b"answers/here"[..]));
        assert_eq!(message.bytes(prop::CORRELATION_DATA), Some(&b"\0\xff\x01"[..]));
        let pair = |key: &str, value: &str| Value::Pair(key.into(), value.into());
        assert_eq!(message.all(prop::USER), [&pair("z", "1"), &pair("a", "2"), &pair("z", "1")]);
    }
}

/// MQTT 5: 3.3.2-5, 3.3.2-6
#[test]
fn mqtt5_3_3_2_5_expired_messages_are_not_delivered_and_the_rest_say_what_is_left() {
    let (id, topic) = (unique("kept"), unique("t"));
    let (mut reader, _) = Peer::accepted(&Connect::kept(5, &id));
    reader.subscribe(&topic, 1);
    reader.drop_connection();
    let mut writer = Peer::new(5);
    let expiring = |payload, seconds| {
        Publish::new(&topic, payload)
            .qos(1, 1)
            .with(|properties| properties.four(prop::MESSAGE_EXPIRY, seconds))
    };
    writer.publish(&expiring("short", 1));
    writer.expect(PUBACK);
    writer.publish(&expiring("long", 1_000));
    writer.expect(PUBACK);
    // A will of a second's delay says that the second has passed on the server as well.
    let mut clock = Peer::new(5);
    let tick = unique("tick");
    clock.subscribe(&tick, 0);
    let will = super::packet::Will {
        topic: tick.as_str().into(),
        properties: Properties::new().four(prop::WILL_DELAY, 2),
        ..super::packet::Will::default()
    };
    Peer::accepted(&Connect::kept(5, &unique("c")).will(will)).0.drop_connection();
    clock.message();
    let (mut reader, _) = Peer::accepted(&Connect::kept(5, &id));
    let message = reader.message();
    assert_eq!(message.text(), "long");
    let left = message.number(prop::MESSAGE_EXPIRY).expect("an expiry");
    assert!((900..1_000).contains(&left), "{left}");
    assert_eq!(reader.until_ping(), []);
}

/// MQTT 5: 3.3.2-7
#[test]
fn mqtt5_3_3_2_7_aliases_end_with_the_connection() {
    let (id, topic) = (unique("kept"), unique("t"));
    let (mut peer, _) = Peer::accepted(&Connect::kept(5, &id));
    peer.published(
        &Publish::new(&topic, "").with(|properties| properties.two(prop::TOPIC_ALIAS, 1)),
    );
    peer.drop_connection();
    let (mut peer, _) = Peer::accepted(&Connect::kept(5, &id));
    peer.publish(&Publish::new("", "").with(|properties| properties.two(prop::TOPIC_ALIAS, 1)));
    peer.refused(0x82);
}

/// MQTT 5: 3.3.2-8
#[test]
fn mqtt5_3_3_2_8_alias_0_and_aliases_too_great_close() {
    let (_, connack) = Peer::accepted(&Connect::new(5, &unique("c")));
    let greatest = connack.number(prop::TOPIC_ALIAS_MAX).unwrap_or(0);
    for alias in [0, greatest as u16 + 1, 0xffff] {
        let mut peer = Peer::new(5);
        peer.publish(
            &Publish::new("t", "").with(|properties| properties.two(prop::TOPIC_ALIAS, alias)),
        );
        peer.refused(0x94);
    }
}

/// MQTT 5: 3.3.2-12
#[test]
fn mqtt5_3_3_2_12_every_alias_the_server_announced_is_taken() {
    let (mut writer, connack) = Peer::accepted(&Connect::new(5, &unique("c")));
    let greatest = connack.number(prop::TOPIC_ALIAS_MAX).expect("this server takes aliases");
    let root = unique("alias");
    let mut reader = Peer::new(5);
    reader.subscribe(&format!("{root}/#"), 0);
    let with = |topic: &str, alias: u32| {
        Publish::new(topic, "").with(|properties| properties.two(prop::TOPIC_ALIAS, alias as u16))
    };
    for alias in 1..=greatest {
        writer.publish(&with(&format!("{root}/{alias}"), alias));
    }
    for alias in 1..=greatest {
        writer.publish(&with("", alias));
    }
    for _ in 0..2 {
        for alias in 1..=greatest {
            assert_eq!(reader.message().topic, format!("{root}/{alias}"));
        }
    }
}

/// MQTT 5: 3.3.2-13, 3.3.2-14, 3.3.2-19
#[test]
fn mqtt5_3_3_2_13_response_topic_and_content_type_are_checked() {
    for (property, value) in [
        (prop::RESPONSE_TOPIC, &b"a/\xff"[..]),
        (prop::RESPONSE_TOPIC, b"a/#"),
        (prop::RESPONSE_TOPIC, b"+/b"),
        (prop::CONTENT_TYPE, b"\xc0\x80"),
    ] {
        let mut peer = Peer::new(5);
        peer.publish(&Publish::new("t", "").with(|properties| properties.bytes(property, value)));
        peer.closed();
    }
}

/// One copy for each subscription or one for all: the QoS is the greatest that fits, in either case not above the publisher's.
///
/// MQTT 5: 3.3.4-2, 3.8.4-8
/// MQTT 3.1.1: 3.3.5-1, 3.8.4-6
#[test]
fn both_3_3_4_2_overlapping_subscriptions_respect_their_greatest_qos() {
    for version in BOTH {
        let root = unique("overlap");
        let mut reader = Peer::new(version);
        reader.subscribe_with(
            &Properties::new(),
            &[(&format!("{root}/#"), 0), (&format!("{root}/+"), 2), (&format!("{root}/a"), 1)],
        );
        let mut writer = Peer::new(version);
        for published in [0, 1, 2] {
            writer.publish(&Publish::new(&format!("{root}/a"), "").qos(published, 1));
            finish(&mut writer, published);
            let best = reader.message().qos();
            let more = reader.until_ping().into_iter().map(|message| message.qos());
            assert_eq!(more.chain([best]).max(), Some(published));
        }
    }
}

/// MQTT 5: 3.3.4-3, 3.3.4-4, 3.3.4-5
#[test]
fn mqtt5_3_3_4_3_subscription_identifiers_come_with_the_message() {
    let root = unique("subid");
    let mut reader = Peer::new(5);
    for (filter, id) in [("#", 1), ("+", 268_435_455), ("a", 200)] {
        let identifier = Properties::new().varint(prop::SUBSCRIPTION_ID, id);
        reader.subscribe_with(&identifier, &[(&format!("{root}/{filter}"), 0)]);
    }
    reader.subscribe(&format!("{root}/a/#"), 0);
    Peer::new(5).published(&Publish::new(&format!("{root}/a"), ""));
    let mut ids: Vec<_> = reader
        .until_ping()
        .iter()
        .flat_map(|message| {
            message.all(prop::SUBSCRIPTION_ID).into_iter().cloned().collect::<Vec<_>>()
        })
        .collect();
    ids.sort_by_key(|value| if let Value::Number(number) = value { *number } else { 0 });
    assert_eq!(ids, [1, 200, 268_435_455].map(Value::Number));
}

/// What a client sends against the rule means nothing: it is not passed on. Mosquitto does the same, and clients that
/// send a message back as it came rely on it.
///
/// MQTT 5: 3.3.4-6
#[test]
fn mqtt5_3_3_4_6_subscription_identifiers_of_a_client_go_nowhere() {
    let topic = unique("subid");
    let (mut reader, mut writer) = (Peer::new(5), Peer::new(5));
    reader.subscribe(&topic, 0);
    writer.publish(
        &Publish::new(&topic, "").with(|properties| properties.varint(prop::SUBSCRIPTION_ID, 1)),
    );
    assert!(!reader.message().has(prop::SUBSCRIPTION_ID));
}

/// The CONNACK says how large; 0x95 is what the server says about more.
///
/// MQTT 5: 3.2.2-15
#[test]
fn mqtt5_3_2_2_15_a_packet_larger_than_the_server_takes_ends_the_connection() {
    let (mut peer, connack) = Peer::accepted(&Connect::new(5, &unique("c")));
    let largest = connack.number(prop::PACKET_MAX).expect("announced") as usize;
    peer.publish(&Publish::new("t", &"x".repeat(largest)));
    let said = peer.until_closed();
    assert!(said.iter().all(|packet| (packet.kind, packet.reason) == (0xe0, 0x95)), "{said:?}");
}

/// What the server says about too many is 0x93 (4.9).
///
/// MQTT 5: 3.3.4-7
#[test]
fn mqtt5_3_3_4_7_more_than_the_receive_maximum_ends_the_connection() {
    let (mut peer, connack) = Peer::accepted(&Connect::new(5, &unique("c")));
    let greatest = connack.number(prop::RECEIVE_MAX).unwrap_or(65_535);
    for id in 1..=greatest.min(65_534) + 1 {
        // PUBREC alone does not give room: PUBCOMP does.
        peer.publish(&Publish::new("many", "").qos(2, id as u16));
    }
    let said = peer.until_closed();
    assert_eq!(said.last().map(|packet| (packet.kind, packet.reason)), Some((0xe0, 0x93)));
}

/// MQTT 5: 3.3.4-9, 3.3.4-10, 4.9.0-1, 4.9.0-2, 4.9.0-3
#[test]
fn mqtt5_3_3_4_9_no_more_in_flight_than_the_client_takes() {
    let topic = unique("flow");
    let (mut reader, _) =
        Peer::accepted(&Connect::new(5, &unique("c")).with(|p| p.two(prop::RECEIVE_MAX, 2)));
    reader.subscribe(&topic, 2);
    let mut writer = Peer::new(5);
    for id in 1..=6 {
        writer.publish(&Publish::new(&topic, &id.to_string()).qos(1 + (id % 2) as u8, id));
        writer.next();
    }
    let first = reader.until_ping();
    assert_eq!(first.len(), 2, "two, and the answer to the ping all the same");
    // QoS 0 has no part in it, and other packets are answered.
    writer.published(&Publish::new(&topic, "at most once"));
    assert_eq!(reader.message().text(), "at most once");
    reader.send(&super::packet::subscribe(5, 9, &Properties::new(), &[("another", 0)]));
    assert_eq!(reader.expect(SUBACK).id, 9);

    // The first one is of QoS 2: PUBREC gives no room, PUBCOMP does.
    assert_eq!((first[0].qos(), first[1].qos()), (2, 1));
    reader.send(&ack(PUBREC, first[0].id));
    reader.expect(PUBREL);
    assert_eq!(reader.until_ping(), []);
    reader.send(&ack(PUBCOMP, first[0].id));
    assert_eq!(reader.expect(PUBLISH).text(), "3");
    reader.send(&ack(PUBACK, first[1].id));
    assert_eq!(reader.expect(PUBLISH).text(), "4");
}

/// A 3.1.1 server that lets nobody publish there says yes and forgets, or closes; this one answers and has a rule.
///
/// MQTT 3.1.1: 3.3.5-2
#[test]
fn mqtt311_3_3_5_2_a_publish_that_is_not_allowed_is_acknowledged_or_ends_the_connection() {
    let mut peer = Peer::new(4);
    peer.publish(&Publish::new("$SYS/broker/version", "mine").qos(1, 1));
    let answer = peer.next();
    assert!(answer.is_none_or(|answer| (answer.kind, answer.id) == (PUBACK, 1)));
}

/// MQTT 5: 3.3.2-1
/// MQTT 3.1.1: 3.3.2-1
#[test]
fn both_3_3_2_1_the_topic_name_comes_first_and_is_there() {
    for version in BOTH {
        for body in [vec![], vec![0], vec![0, 5, b'a']] {
            let mut peer = Peer::new(version);
            peer.send(&framed(0x30, &body));
            peer.closed();
        }
        let mut peer = Peer::new(version);
        peer.send(&framed(
            0x30,
            &[string(""), if version == 5 { vec![0] } else { vec![] }].concat(),
        ));
        peer.closed();
    }
}

/// Takes the acknowledgements of a message just published with identifier 1.
fn finish(writer: &mut Peer, qos: u8) {
    match qos {
        1 => assert_eq!(writer.expect(PUBACK).id, 1),
        2 => {
            assert_eq!(writer.expect(PUBREC).id, 1);
            writer.send(&ack(PUBREL, 1));
            assert_eq!(writer.expect(PUBCOMP).id, 1);
        }
        _ => assert_eq!(writer.until_ping(), []),
    }
}
