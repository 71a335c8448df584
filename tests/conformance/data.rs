//! Chapters 1 and 2: texts, numbers, fixed headers, packet identifiers, properties.

use super::packet::{
    CONNACK, Connect, PUBACK, PUBCOMP, PUBREC, PUBREL, Properties, Publish, UNSUBACK, ack, framed,
    prop, string, subscribe, unsubscribe,
};
use super::peer::{BOTH, Peer, unique};

/// Over-long, a surrogate, cut short, never a first byte.
const ILL_FORMED: [&[u8]; 4] = [b"a/\xc0\x80", b"a/\xed\xa0\x80", b"a/\xe2\x82", b"a/\xff"];

/// MQTT 5: 1.5.4-1, 3.3.2-1, 4.13.1-1
/// MQTT 3.1.1: 1.5.3-1, 3.3.2-1
#[test]
fn both_1_5_4_1_ill_formed_utf8_closes() {
    for version in BOTH {
        for topic in ILL_FORMED {
            let mut peer = Peer::new(version);
            peer.publish(&Publish { topic: topic.into(), ..Publish::default() });
            peer.refused(0x81);
        }
    }
}

/// MQTT 5: 1.5.4-2, 4.7.3-2
/// MQTT 3.1.1: 1.5.3-2, 4.7.3-2
#[test]
fn both_1_5_4_2_the_null_character_closes() {
    for version in BOTH {
        let mut peer = Peer::new(version);
        peer.publish(&Publish::new("a\0b", ""));
        peer.closed();
        let mut peer = Peer::new(version);
        peer.send(&subscribe(version, 1, &Properties::new(), &[("a\0b", 0)]));
        peer.closed();
    }
}

/// MQTT 5: 1.5.4-3, 4.7.3-4
/// MQTT 3.1.1: 1.5.3-3, 4.7.3-4
#[test]
fn both_1_5_4_3_a_byte_order_mark_stays_and_nothing_is_normalised() {
    for version in BOTH {
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        let word = unique("bom");
        for topic in [format!("\u{feff}{word}"), format!("{word}/\u{e9}")] {
            reader.subscribe(&topic, 0);
            writer.published(&Publish::new(&topic, "as it is"));
            assert_eq!(reader.message().topic, topic);
        }
        // Without the mark, in another case, composed differently, with one more slash.
        for other in [
            word.clone(),
            word.to_uppercase(),
            format!("{word}/e\u{301}"),
            format!("{word}/\u{e9}/"),
        ] {
            writer.published(&Publish::new(&other, "another"));
        }
        assert_eq!(reader.until_ping(), []);
    }
}

/// `Peer::next` asserts the shortest form of every length the server ever sends; here at the edges.
///
/// MQTT 5: 1.5.5-1
#[test]
fn mqtt5_1_5_5_1_lengths_have_their_shortest_form() {
    let (mut reader, mut writer) = (Peer::new(5), Peer::new(5));
    let topic = unique("length");
    reader.subscribe(&topic, 0);
    for length in [0, 100, 127, 128, 129, 16_300, 16_383, 16_384, 70_000] {
        let payload = "x".repeat(length);
        writer.publish(&Publish::new(&topic, &payload));
        let message = reader.message();
        assert_eq!(message.payload.len(), length);
        let body = 2 + topic.len() + 1 + length;
        assert_eq!(message.length, framed(0, &vec![0; body]).len());
    }
}

/// MQTT 5: 1.5.7-1
#[test]
fn mqtt5_1_5_7_1_both_texts_of_a_user_property_are_utf8() {
    for (key, value) in [(&b"\xff"[..], &b"v"[..]), (b"k", b"\xff"), (b"k\0", b"v"), (b"k", b"\0")]
    {
        let mut peer = Peer::new(5);
        let pair = [&[prop::USER][..], &string(key), &string(value)].concat();
        let body = [string("t"), vec![pair.len() as u8], pair].concat();
        peer.send(&framed(0x30, &body));
        peer.closed();
    }
}

/// MQTT 5: 2.1.3-1, 3.8.1-1, 3.10.1-1, 3.6.1-1, 3.14.1-1, 3.15.1-1
/// MQTT 3.1.1: 2.2.2-1, 2.2.2-2, 3.6.1-1, 3.8.1-1, 3.10.1-1, 3.14.1-1
#[test]
fn both_2_1_3_1_reserved_flags_that_are_set_close() {
    for version in BOTH {
        let wrong = [
            framed(0x81, &subscribe(version, 1, &Properties::new(), &[("a", 0)])[2..]),
            framed(0x80, &subscribe(version, 1, &Properties::new(), &[("a", 0)])[2..]),
            framed(0xa0, &unsubscribe(version, 1, &["a"])[2..]),
            framed(0xa3, &unsubscribe(version, 1, &["a"])[2..]),
            framed(0x60, &[0, 1]),
            framed(0x63, &[0, 1]),
            framed(0x41, &[0, 1]),
            framed(0x52, &[0, 1]),
            framed(0x78, &[0, 1]),
            framed(0xc1, &[]),
            framed(0xe1, &[]),
            framed(0xe4, &[]),
            framed(0xf2, &[]),
        ];
        for packet in wrong {
            let mut peer = Peer::new(version);
            peer.send(&packet);
            peer.closed();
        }
        let mut peer = Peer::open(version);
        let mut connect = Connect::new(version, &unique("c")).encode();
        connect[0] = 0x11;
        peer.send(&connect);
        assert!(
            peer.until_closed().iter().all(|packet| packet.kind == CONNACK && packet.reason != 0)
        );
    }
}

/// A type the server never gets, and 0, which nobody may send.
///
/// MQTT 5: 4.13.1-1
/// MQTT 3.1.1: 4.8.0-1
#[test]
fn both_4_13_1_1_packets_of_the_wrong_direction_close() {
    for version in BOTH {
        for first in [0x00, 0x20, 0x90, 0xb0, 0xd0] {
            let mut peer = Peer::new(version);
            peer.send(&framed(first, &[0, 0]));
            peer.closed();
        }
    }
}

/// The reader would take a packet identifier for the beginning of properties or payload.
///
/// MQTT 5: 2.2.1-2
/// MQTT 3.1.1: 2.3.1-5
#[test]
fn both_2_2_1_2_qos_0_has_no_packet_identifier() {
    for version in BOTH {
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        let topic = unique("noid");
        reader.subscribe(&topic, 2);
        writer.publish(&Publish::new(&topic, "payload"));
        let message = reader.expect(0x30);
        assert_eq!((message.qos(), message.text()), (0, "payload"));
        assert_eq!(message.length, 2 + 2 + topic.len() + usize::from(version == 5) + 7);
    }
}

/// MQTT 5: 2.2.1-3
/// MQTT 3.1.1: 2.3.1-1
#[test]
fn both_2_2_1_3_packet_identifier_0_closes() {
    for version in BOTH {
        for packet in [
            subscribe(version, 0, &Properties::new(), &[("a", 0)]),
            unsubscribe(version, 0, &["a"]),
            Publish::new("a", "").qos(1, 0).encode(version),
            Publish::new("a", "").qos(2, 0).encode(version),
        ] {
            let mut peer = Peer::new(version);
            peer.send(&packet);
            peer.closed();
        }
    }
}

/// MQTT 5: 2.2.1-4, 4.3.2-1, 4.3.2-2, 4.3.3-1, 4.3.3-2
/// MQTT 3.1.1: 2.3.1-4, 4.3.2-1, 4.3.3-1
#[test]
fn both_2_2_1_4_each_message_in_flight_has_an_identifier_of_its_own() {
    for version in BOTH {
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        let topic = unique("ids");
        reader.subscribe(&topic, 2);
        let mut seen = std::collections::BTreeSet::new();
        for n in 0..20_u16 {
            writer.publish(&Publish::new(&topic, &n.to_string()).qos(1 + (n % 2) as u8, n + 1));
            let message = reader.expect(0x30);
            assert_eq!((message.qos(), message.dup()), (1 + (n % 2) as u8, false));
            assert!(message.id > 0 && seen.insert(message.id), "{seen:?}");
        }
    }
}

/// MQTT 5: 2.2.1-5, 3.3.4-1, 4.3.2-4, 4.3.3-8, 4.3.3-11, 3.4.2-1, 3.5.2-1, 3.7.2-1
/// MQTT 3.1.1: 2.3.1-6, 3.3.4-1, 4.3.2-2, 4.3.3-2
#[test]
fn both_2_2_1_5_acknowledgements_carry_the_identifier_of_the_publish() {
    for version in BOTH {
        let mut peer = Peer::new(version);
        for id in [1, 77, 0x1234, 0xffff] {
            peer.publish(&Publish::new("acks", "").qos(1, id));
            let puback = peer.expect(PUBACK);
            assert_eq!(puback.id, id);
            assert!([0x00, 0x10].contains(&puback.reason), "{puback:?}");
            peer.publish(&Publish::new("acks", "").qos(2, id));
            let pubrec = peer.expect(PUBREC);
            assert_eq!(pubrec.id, id);
            assert!([0x00, 0x10].contains(&pubrec.reason), "{pubrec:?}");
            peer.send(&ack(PUBREL, id));
            let pubcomp = peer.expect(PUBCOMP);
            assert_eq!((pubcomp.id, pubcomp.reason), (id, 0));
        }
    }
}

/// MQTT 5: 2.2.1-6, 3.8.4-1, 3.8.4-2, 3.10.4-4, 3.10.4-5
/// MQTT 3.1.1: 2.3.1-7, 3.8.4-1, 3.8.4-2, 3.10.4-4, 3.10.4-5
#[test]
fn both_2_2_1_6_suback_and_unsuback_carry_the_identifier_of_the_request() {
    for version in BOTH {
        let mut peer = Peer::new(version);
        for id in [1, 300, 0xffff] {
            peer.send(&subscribe(version, id, &Properties::new(), &[("some/thing", 0)]));
            assert_eq!(peer.expect(0x90).id, id);
            // Once there is something to end, and once there is nothing.
            for _ in 0..2 {
                peer.send(&unsubscribe(version, id, &["some/thing"]));
                assert_eq!(peer.expect(UNSUBACK).id, id);
            }
        }
    }
}

/// The reader fails on a packet of the server without a property length.
///
/// MQTT 5: 2.2.2-1
#[test]
fn mqtt5_2_2_2_1_a_missing_property_length_is_malformed() {
    let (_, connack) = Peer::accepted(&Connect::new(5, &unique("c")));
    assert!(connack.length > 4, "flags, reason, property length");
    let mut peer = Peer::new(5);
    peer.send(&framed(0x82, &[&[0, 1][..], &string("filter"), &[0]].concat()));
    peer.closed();
    let mut peer = Peer::new(5);
    peer.send(&framed(0x30, &string("topic")));
    peer.refused(0x81);
}
