//! 3.8 to 3.15 but for AUTH: subscriptions, pings, the end of a connection.

use super::packet::{
    CONNACK, Connect, DISCONNECT, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Properties, Publish,
    SUBACK, UNSUBACK, ack, ack_with, disconnect, framed, prop, string, subscribe, unsubscribe,
};
use super::peer::{BOTH, Peer, unique};

/// MQTT 5: 3.8.3-1, 3.10.3-1
/// MQTT 3.1.1: 3.8.3-1, 3.10.3-1
#[test]
fn both_3_8_3_1_filters_are_utf8() {
    for version in BOTH {
        for (first, options) in [(0x82, &[0][..]), (0xa2, &[])] {
            let mut peer = Peer::new(version);
            let properties: &[u8] = if version == 5 { &[0] } else { &[] };
            peer.send(&framed(first, &[&[0, 1], properties, &string(b"a/\xff"), options].concat()));
            peer.refused(0x81);
        }
    }
}

/// MQTT 5: 3.8.3-2, 3.10.3-2
/// MQTT 3.1.1: 3.8.3-3, 3.10.3-2
#[test]
fn both_3_8_3_2_a_request_without_filters_closes() {
    for version in BOTH {
        for packet in [subscribe(version, 1, &Properties::new(), &[]), unsubscribe(version, 1, &[])]
        {
            let mut peer = Peer::new(version);
            peer.send(&packet);
            peer.closed();
        }
    }
}

/// MQTT 5: 3.8.3-3
#[test]
fn mqtt5_3_8_3_3_no_local_means_not_my_own() {
    let topic = unique("local");
    let mut peer = Peer::new(5);
    peer.subscribe(&topic, 0x04);
    peer.published(&Publish::new(&topic, "mine"));
    Peer::new(5).published(&Publish::new(&topic, "yours"));
    assert_eq!(peer.message().text(), "yours");
    // Without it: also my own.
    peer.subscribe(&topic, 0x00);
    peer.publish(&Publish::new(&topic, "mine"));
    assert_eq!(peer.message().text(), "mine");
}

/// MQTT 5: 3.8.3-4
#[test]
fn mqtt5_3_8_3_4_no_local_with_a_shared_subscription_is_a_protocol_error() {
    let mut peer = Peer::new(5);
    peer.send(&subscribe(5, 1, &Properties::new(), &[("$share/g/t", 0x04)]));
    peer.refused(0x82);
}

/// MQTT 5: 3.8.3-5
/// MQTT 3.1.1: 3.8.3-4
#[test]
fn both_3_8_3_5_reserved_bits_and_qos_3_are_malformed() {
    for version in BOTH {
        let wrong: &[u8] =
            if version == 5 { &[0x03, 0x30, 0x40, 0x80] } else { &[0x03, 0x04, 0x08, 0x10, 0x80] };
        for options in wrong {
            let mut peer = Peer::new(version);
            peer.send(&subscribe(version, 1, &Properties::new(), &[("t", *options)]));
            peer.closed();
        }
    }
}

/// MQTT 5: 3.8.4-3, 3.8.4-4
/// MQTT 3.1.1: 3.8.4-3
#[test]
fn both_3_8_4_3_the_same_filter_replaces_the_subscription() {
    for version in BOTH {
        let topic = unique("again");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        for (qos, payload) in [(0, "one"), (2, "two"), (1, "three")] {
            assert_eq!(reader.subscribe(&topic, qos), [qos]);
            writer.publish(&Publish::new(&topic, payload).qos(2, 7));
            assert_eq!(writer.expect(PUBREC).id, 7);
            writer.send(&ack(PUBREL, 7));
            writer.expect(PUBCOMP);
            let message = reader.message();
            assert_eq!((message.text(), message.qos()), (payload, qos), "one copy, as asked last");
            assert_eq!(reader.until_ping(), []);
        }
    }
}

/// MQTT 5: 3.8.4-5, 3.8.4-6, 3.8.4-7, 3.9.3-1, 3.9.3-2, 3.2.2-10
/// MQTT 3.1.1: 3.8.4-4, 3.8.4-5, 3.9.3-1, 3.9.3-2, 3.8.3-2
#[test]
fn both_3_8_4_5_several_filters_one_suback_in_their_order() {
    for version in BOTH {
        let root = unique("several");
        let filters = [2, 0, 1, 2].map(|qos| (format!("{root}/{qos}/+"), qos));
        let asked: Vec<_> = filters.iter().map(|(filter, qos)| (filter.as_str(), *qos)).collect();
        let mut reader = Peer::new(version);
        assert_eq!(reader.subscribe_with(&Properties::new(), &asked), [2, 0, 1, 2]);
        let mut writer = Peer::new(version);
        for qos in [0, 1, 2] {
            writer.publish(&Publish::new(&format!("{root}/{qos}/x"), "").qos(1, 1));
            writer.expect(PUBACK);
            assert_eq!(reader.message().qos(), qos.min(1));
        }
    }
}

/// MQTT 5: 3.10.4-1
/// MQTT 3.1.1: 3.10.4-1
#[test]
fn both_3_10_4_1_only_the_very_same_filter_is_ended() {
    for version in BOTH {
        let root = unique("unsub");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        reader.subscribe(&format!("{root}/+"), 0);
        let others =
            [format!("{root}/#"), format!("{root}/a"), format!("{root}/+/"), root.to_uppercase()];
        let others: Vec<_> = others.iter().map(String::as_str).collect();
        reader.send(&unsubscribe(version, 1, &others));
        let unsuback = reader.expect(UNSUBACK);
        if version == 5 {
            assert_eq!(unsuback.reasons, [0x11; 4], "no subscription existed");
        }
        writer.published(&Publish::new(&format!("{root}/a"), "still"));
        assert_eq!(reader.message().text(), "still");
        reader.send(&unsubscribe(version, 2, &[&format!("{root}/+")]));
        assert!(reader.expect(UNSUBACK).reasons.iter().all(|reason| *reason == 0));
        writer.published(&Publish::new(&format!("{root}/a"), "no more"));
        assert_eq!(reader.until_ping(), []);
    }
}

/// MQTT 5: 3.10.4-2, 3.10.4-3, 4.3.3-4, 4.3.3-5
/// MQTT 3.1.1: 3.10.4-2, 3.10.4-3
#[test]
fn both_3_10_4_3_what_has_begun_is_brought_to_its_end() {
    for version in BOTH {
        let topic = unique("begun");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        reader.subscribe(&topic, 2);
        writer.publish(&Publish::new(&topic, "begun").qos(2, 1));
        assert_eq!(writer.expect(PUBREC).id, 1);
        let begun = reader.expect(PUBLISH);
        reader.send(&unsubscribe(version, 1, &[&topic]));
        reader.expect(UNSUBACK);
        writer.published(&Publish::new(&topic, "afterwards"));
        reader.send(&ack(PUBREC, begun.id));
        assert_eq!(reader.expect(PUBREL).id, begun.id);
        reader.send(&ack(PUBCOMP, begun.id));
        assert_eq!(reader.until_ping(), []);
    }
}

/// MQTT 5: 3.10.4-6, 3.11.3-1, 3.11.3-2
/// MQTT 3.1.1: 3.10.4-6
#[test]
fn both_3_10_4_6_several_filters_one_unsuback_in_their_order() {
    for version in BOTH {
        let root = unique("several");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        for name in ["a", "c"] {
            reader.subscribe(&format!("{root}/{name}"), 0);
        }
        let filters = ["a", "b", "c"].map(|name| format!("{root}/{name}"));
        reader.send(&unsubscribe(version, 3, &filters.each_ref().map(String::as_str)));
        let unsuback = reader.expect(UNSUBACK);
        if version == 5 {
            assert_eq!(unsuback.reasons, [0x00, 0x11, 0x00]);
        }
        for filter in &filters {
            writer.published(&Publish::new(filter, ""));
        }
        assert_eq!(reader.until_ping(), []);
    }
}

/// MQTT 5: 3.12.4-1
/// MQTT 3.1.1: 3.12.4-1
#[test]
fn both_3_12_4_1_a_ping_is_answered() {
    for version in BOTH {
        let mut peer = Peer::new(version);
        for _ in 0..3 {
            assert_eq!(peer.until_ping(), []);
        }
    }
}

/// Sessions that are taken over, silent, over their quota: whatever the reason, it is one of Table 3-10 and the end.
///
/// MQTT 5: 3.14.2-1, 3.14.2-2, 3.14.4-1, 3.14.4-2, 4.13.2-1
#[test]
fn mqtt5_3_14_4_1_after_disconnect_the_server_says_nothing_more() {
    let id = unique("c");
    let (mut first, _) = Peer::accepted(&Connect::new(5, &id));
    let _second = Peer::accepted(&Connect::new(5, &id));
    let said = first.until_closed();
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!((said[0].kind, said[0].reason), (DISCONNECT, 0x8e));
    assert!(!said[0].has(prop::SESSION_EXPIRY));
}

/// MQTT 3.1.1: 3.14.4-3
/// MQTT 5: 3.14.4-3
#[test]
fn both_3_14_4_3_after_the_clients_disconnect_the_server_closes() {
    for version in BOTH {
        let mut peer = Peer::new(version);
        peer.send(
            &[&[DISCONNECT, 0][..], &Publish::new("after/the/end", "").qos(1, 1).encode(version)]
                .concat(),
        );
        assert_eq!(peer.until_closed(), [], "what comes after it is not processed");
    }
}

/// A session expiry of 0 in CONNECT cannot be raised at the end (3.14.2.2.2).
///
/// MQTT 5: 4.13.1-1
#[test]
fn mqtt5_3_14_2_2_2_a_session_that_was_to_end_does_not_become_a_kept_one() {
    let id = unique("c");
    let (mut peer, _) = Peer::accepted(&Connect::new(5, &id));
    peer.send(&disconnect(0, &Properties::new().four(prop::SESSION_EXPIRY, 100)));
    peer.refused(0x82);
    // But a kept one may be shortened.
    let (mut peer, _) = Peer::accepted(&Connect::kept(5, &id));
    peer.send(&disconnect(0, &Properties::new().four(prop::SESSION_EXPIRY, 0)));
    assert_eq!(peer.until_closed(), []);
    assert_eq!(Peer::accepted(&Connect::kept(5, &id)).1.session_present, 0);
}

/// A client that takes so little that not even the reason fits gets the bare packet.
///
/// MQTT 5: 3.2.2-19, 3.2.2-20, 3.4.2-2, 3.4.2-3, 3.5.2-2, 3.5.2-3, 3.7.2-2, 3.7.2-3, 3.9.2-1, 3.9.2-2, 3.11.2-1, 3.11.2-2, 3.14.2-3, 3.14.2-4
#[test]
fn mqtt5_3_4_2_2_reasons_in_words_only_where_they_fit() {
    const TINY: u32 = 40;
    let connect =
        Connect::new(5, &unique("c")).with(|properties| properties.four(prop::PACKET_MAX, TINY));
    let mut peer = Peer::open(5);
    peer.send(&connect.encode());
    let connack = peer.expect(CONNACK);
    assert!(connack.length <= TINY as usize && connack.reason == 0, "{connack:?}");
    let topic = unique("t");
    peer.publish(&Publish::new(&topic, "").qos(1, 1));
    peer.publish(&Publish::new(&topic, "").qos(2, 2));
    peer.send(&ack(PUBREL, 2));
    // An identifier nobody knows is where a PUBCOMP has most to say (0x92).
    peer.send(&ack(PUBREL, 999));
    peer.send(&subscribe(5, 3, &Properties::new(), &[("a", 0), ("b", 0)]));
    peer.send(&unsubscribe(5, 4, &["a", "nothing"]));
    for packet in peer.until_ping() {
        assert!(packet.length <= TINY as usize, "{packet:?}");
    }
    peer.publish(&Publish::new("wild/#", ""));
    for packet in peer.until_closed() {
        assert!(packet.length <= TINY as usize, "{packet:?}");
    }
}

/// An identifier nobody knows is 0x92, or 0x00 where it may be left from before.
///
/// MQTT 5: 3.6.2-1, 3.6.2-2, 3.6.2-3, 3.7.2-1
#[test]
fn mqtt5_3_6_2_1_pubrel_and_pubcomp_have_their_own_codes() {
    let topic = unique("t");
    let (mut reader, _) =
        Peer::accepted(&Connect::new(5, &unique("c")).with(|p| p.four(prop::PACKET_MAX, 40)));
    reader.subscribe(&topic, 2);
    Peer::new(5).publish(&Publish::new(&topic, "").qos(2, 1));
    let message = reader.expect(PUBLISH);
    reader.send(&ack(PUBREC, message.id));
    let pubrel = reader.expect(PUBREL);
    assert_eq!((pubrel.id, pubrel.flags, pubrel.reason), (message.id, 2, 0));
    assert!(pubrel.length <= 40);
    reader.send(&ack_with(PUBREL, 4_321, 0));
    let pubcomp = reader.expect(PUBCOMP);
    assert!(pubcomp.id == 4_321 && [0x00, 0x92].contains(&pubcomp.reason), "{pubcomp:?}");
    reader.send(&ack(PUBREC, 4_322));
    let pubrel = reader.expect(PUBREL);
    assert!(pubrel.id == 4_322 && [0x00, 0x92].contains(&pubrel.reason), "{pubrel:?}");
}

/// MQTT 5: 3.8.4-1
#[test]
fn mqtt5_3_8_2_a_subscription_identifier_of_0_closes() {
    for id in [0, 268_435_455] {
        let mut peer = Peer::new(5);
        let identifier = Properties::new().varint(prop::SUBSCRIPTION_ID, id);
        peer.send(&subscribe(5, 1, &identifier, &[("t", 0)]));
        if id == 0 {
            peer.closed();
        } else {
            peer.expect(SUBACK);
        }
    }
}
