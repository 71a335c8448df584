//! 3.1: what a CONNECT must look like, and what becomes of sessions and wills.

use super::packet::{
    CONNACK, Connect, DISCONNECT, PUBACK, PUBLISH, Properties, Publish, SUBACK, Will, disconnect,
    framed, prop, string, subscribe,
};
use super::peer::{BOTH, Peer, unique};

/// MQTT 5: 3.1.0-1
/// MQTT 3.1.1: 3.1.0-1
#[test]
fn both_3_1_0_1_the_first_packet_is_connect() {
    for version in BOTH {
        for packet in [
            Publish::new("t", "").encode(version),
            subscribe(version, 1, &Properties::new(), &[("t", 0)]),
            vec![0xc0, 0],
            vec![0xe0, 0],
        ] {
            let mut peer = Peer::open(version);
            peer.send(&packet);
            assert_eq!(peer.until_closed(), []);
        }
    }
}

/// MQTT 5: 3.1.0-2, 3.2.0-2
/// MQTT 3.1.1: 3.1.0-2
#[test]
fn both_3_1_0_2_a_second_connect_is_a_protocol_error() {
    for version in BOTH {
        let connect = Connect::new(version, &unique("c"));
        let (mut peer, _) = Peer::accepted(&connect);
        peer.send(&connect.encode());
        peer.refused(0x82);
    }
}

/// MQTT 5: 3.1.2-1
/// MQTT 3.1.1: 3.1.2-1
#[test]
fn both_3_1_2_1_the_protocol_is_called_mqtt() {
    for version in BOTH {
        for protocol in ["MQTX", "mqtt", "MQT", "MQTTT", ""] {
            let mut peer = Peer::open(version);
            peer.send(&Connect { protocol, ..Connect::new(version, &unique("c")) }.encode());
            let said = peer.until_closed();
            assert!(
                said.iter().all(|packet| packet.kind == CONNACK && packet.reason != 0),
                "{said:?}"
            );
        }
    }
}

/// MQTT 5: 3.1.2-2
/// MQTT 3.1.1: 3.1.2-2
#[test]
fn both_3_1_2_2_an_unknown_version_is_refused_with_a_code() {
    for version in [1, 2, 6, 99] {
        let (mut peer, connack) = Peer::asked(&Connect::new(version, &unique("c")));
        let unsupported = if version > 5 { [0x01, 0x84] } else { [0x01, 0x01] };
        assert!(unsupported.contains(&connack.reason), "{connack:?}");
        assert_eq!(peer.until_closed(), []);
    }
}

/// MQTT 5: 3.1.2-3
/// MQTT 3.1.1: 3.1.2-3
#[test]
fn both_3_1_2_3_the_reserved_connect_flag_is_0() {
    for version in BOTH {
        refused(&Connect { flip_flags: 0x01, ..Connect::new(version, &unique("c")) });
    }
}

/// MQTT 5: 3.1.2-4, 3.1.2-5, 3.1.2-6, 3.1.4-4, 3.2.2-2, 3.2.2-3, 3.1.3-2
/// MQTT 3.1.1: 3.1.2-4, 3.1.2-6, 3.1.4-3, 3.2.2-1, 3.2.2-2, 3.2.2-3, 3.1.3-2
#[test]
fn both_3_1_2_4_a_clean_start_throws_the_session_away() {
    for version in BOTH {
        let (id, topic) = (unique("kept"), unique("t"));
        let (mut peer, connack) = Peer::accepted(&Connect::kept(version, &id));
        assert_eq!(connack.session_present, 0, "there was none: a new one");
        peer.subscribe(&topic, 1);
        peer.disconnect();

        let (mut peer, connack) = Peer::accepted(&Connect::kept(version, &id));
        assert_eq!(connack.session_present, 1, "gone on with");
        Peer::new(version).published(&Publish::new(&topic, "still subscribed"));
        assert_eq!(peer.message().text(), "still subscribed");
        peer.disconnect();
        // Another client id is another session.
        assert_eq!(Peer::accepted(&Connect::kept(version, &unique("kept"))).1.session_present, 0);

        let (mut peer, connack) = Peer::accepted(&Connect::new(version, &id));
        assert_eq!(connack.session_present, 0, "thrown away");
        Peer::new(version).published(&Publish::new(&topic, "for nobody"));
        assert_eq!(peer.until_ping(), []);
        peer.disconnect();
        assert_eq!(
            Peer::accepted(&Connect::kept(version, &id)).1.session_present,
            0,
            "nothing comes back"
        );
    }
}

/// MQTT 5: 3.1.2-23, 4.1.0-1, 4.5.0-1
/// MQTT 3.1.1: 3.1.2-5, 4.1.0-1, 4.1.0-2, 4.5.0-1
#[test]
fn both_3_1_2_23_messages_for_a_kept_session_wait() {
    for version in BOTH {
        let (id, topic) = (unique("kept"), unique("t"));
        let (mut peer, _) = Peer::accepted(&Connect::kept(version, &id));
        peer.subscribe(&topic, 2);
        peer.drop_connection();
        let mut writer = Peer::new(version);
        for qos in [1, 2] {
            writer.publish(&Publish::new(&topic, &format!("with {qos}")).qos(qos, 1));
            assert_eq!(writer.next().map(|ack| ack.id), Some(1));
        }
        let (mut peer, connack) = Peer::accepted(&Connect::kept(version, &id));
        assert_eq!(connack.session_present, 1);
        assert_eq!(peer.message().text(), "with 1");
        assert_eq!(peer.message().text(), "with 2");
    }
}

/// MQTT 3.1.1: 3.1.2-7
#[test]
fn mqtt311_3_1_2_7_retained_messages_are_not_part_of_the_session() {
    let topic = unique("retained");
    let mut writer = Peer::new(4);
    writer.published(&Publish::new(&topic, "stays").retain());
    writer.disconnect();
    let mut reader = Peer::new(4);
    reader.subscribe(&topic, 0);
    assert_eq!(reader.message().text(), "stays");
}

/// MQTT 5: 3.1.2-7, 3.1.2-8, 3.1.2-12, 3.1.2-14
/// MQTT 3.1.1: 3.1.2-8, 3.1.2-14, 3.1.2-16
#[test]
fn both_3_1_2_7_a_will_is_published_when_the_connection_fails() {
    for version in BOTH {
        for qos in [0, 1, 2] {
            let topic = unique("will");
            let mut reader = Peer::new(version);
            reader.subscribe(&topic, 2);
            let (peer, _) =
                Peer::accepted(&Connect::new(version, &unique("c")).will(will(&topic, qos, false)));
            peer.drop_connection();
            let message = reader.message();
            assert_eq!((message.text(), message.qos(), message.retain()), ("gone", qos, false));
            let mut late = Peer::new(version);
            late.subscribe(&topic, 0);
            assert_eq!(late.until_ping(), [], "not retained");
        }
    }
}

/// MQTT 5: 3.1.2-15
/// MQTT 3.1.1: 3.1.2-17
#[test]
fn both_3_1_2_15_a_retained_will_is_retained() {
    for version in BOTH {
        let topic = unique("will");
        let mut reader = Peer::new(version);
        reader.subscribe(&topic, 0);
        let (peer, _) =
            Peer::accepted(&Connect::new(version, &unique("c")).will(will(&topic, 0, true)));
        peer.drop_connection();
        assert_eq!(reader.message().text(), "gone");
        let mut late = Peer::new(version);
        late.subscribe(&topic, 0);
        let message = late.message();
        assert_eq!((message.text(), message.retain()), ("gone", true));
    }
}

/// MQTT 5: 3.1.2-10, 3.14.4-3
/// MQTT 3.1.1: 3.1.2-10, 3.14.4-3
#[test]
fn both_3_1_2_10_disconnect_deletes_the_will() {
    for version in BOTH {
        let (topic, id) = (unique("will"), unique("c"));
        let mut reader = Peer::new(version);
        reader.subscribe(&topic, 0);
        let (peer, _) = Peer::accepted(&Connect::new(version, &id).will(will(&topic, 0, false)));
        peer.disconnect();
        assert_eq!(reader.until_ping(), []);
        // Nor does the next connection of the client have it.
        let (peer, _) = Peer::accepted(&Connect::new(version, &id));
        peer.drop_connection();
        Peer::new(version).published(&Publish::new(&topic, "the end"));
        assert_eq!(reader.message().text(), "the end");
    }
}

/// MQTT 5: 3.1.2-8
#[test]
fn mqtt5_3_1_2_8_disconnect_with_0x04_keeps_the_will() {
    let topic = unique("will");
    let mut reader = Peer::new(5);
    reader.subscribe(&topic, 0);
    let (mut peer, _) = Peer::accepted(&Connect::new(5, &unique("c")).will(will(&topic, 0, false)));
    peer.send(&disconnect(0x04, &Properties::new()));
    assert_eq!(reader.message().text(), "gone");
}

/// Published once: the second end of the client has no will.
///
/// MQTT 3.1.1: 3.1.2-12
#[test]
fn mqtt311_3_1_2_12_without_a_will_nothing_is_published() {
    let (topic, id) = (unique("will"), unique("c"));
    let mut reader = Peer::new(4);
    reader.subscribe("#", 0);
    let (peer, _) = Peer::accepted(&Connect::new(4, &id).will(will(&topic, 0, false)));
    peer.drop_connection();
    while reader.message().topic != topic {}
    let (peer, _) = Peer::accepted(&Connect::new(4, &id));
    peer.drop_connection();
    let (probe, _) = Peer::accepted(&Connect::new(4, &id));
    drop(probe);
    let again = reader.until_ping().iter().any(|message| message.topic == topic);
    assert!(!again, "the will is used up");
}

/// MQTT 5: 3.1.2-9, 3.1.2-17, 3.1.2-19, 3.1.3-1, 3.1.3-3, 3.1.4-1
/// MQTT 3.1.1: 3.1.2-9, 3.1.2-19, 3.1.2-21, 3.1.3-1, 3.1.3-3, 3.1.4-1
#[test]
fn both_3_1_2_9_what_the_flags_announce_is_there() {
    for version in BOTH {
        let plain = Connect::new(version, &unique("c"));
        // Will, user name, password announced, none of them sent; and a payload without even a client id.
        for flags in [0x04, 0x80, 0xc0] {
            refused(&Connect { flip_flags: flags, ..plain.clone() });
        }
        let mut body = plain.encode()[2..].to_vec();
        body.truncate(if version == 5 { 11 } else { 10 });
        refused_bytes(version, &framed(0x10, &body));
    }
}

/// MQTT 5: 3.1.2-16, 3.1.2-18
/// MQTT 3.1.1: 3.1.2-11, 3.1.2-18, 3.1.2-20
#[test]
fn both_3_1_2_16_what_the_flags_do_not_announce_is_not_there() {
    for version in BOTH {
        let plain = Connect::new(version, &unique("c"));
        refused(&Connect { user: Some("u".into()), flip_flags: 0x80, ..plain.clone() });
        refused(&Connect {
            user: Some("u".into()),
            password: Some("p".into()),
            flip_flags: 0x40,
            ..plain.clone()
        });
        refused(&Connect { will: Some(will("t", 0, false)), flip_flags: 0x04, ..plain });
    }
}

/// MQTT 5: 3.1.2-11, 3.1.2-13
/// MQTT 3.1.1: 3.1.2-13, 3.1.2-15
#[test]
fn both_3_1_2_11_without_a_will_its_qos_and_retain_are_0() {
    for version in BOTH {
        for flags in [0x08, 0x10, 0x20, 0x38] {
            refused(&Connect { flip_flags: flags, ..Connect::new(version, &unique("c")) });
        }
    }
}

/// MQTT 5: 3.1.2-12
/// MQTT 3.1.1: 3.1.2-14
#[test]
fn both_3_1_2_12_a_will_of_qos_3_is_refused() {
    for version in BOTH {
        refused(&Connect::new(version, &unique("c")).will(will("t", 3, false)));
    }
}

/// MQTT 3.1.1: 3.1.2-22
#[test]
fn mqtt311_3_1_2_22_no_password_without_a_user_name() {
    refused(&Connect { password: Some("p".into()), ..Connect::new(4, &unique("c")) });
}

/// MQTT 5: 3.1.2-22, 3.2.2-22
/// MQTT 3.1.1: 3.1.2-24
#[test]
fn both_3_1_2_22_silence_of_one_and_a_half_keep_alives_ends_the_connection() {
    for version in BOTH {
        let topic = unique("will");
        let mut reader = Peer::new(version);
        reader.subscribe(&topic, 0);
        let connect = Connect { keep_alive_s: 1, ..Connect::new(version, &unique("c")) };
        let began = std::time::Instant::now();
        let (mut peer, connack) = Peer::accepted(&connect.will(will(&topic, 0, false)));
        assert!(!connack.has(prop::SERVER_KEEP_ALIVE), "the client's own holds");
        peer.refused(0x8d);
        assert!(began.elapsed().as_millis() >= 1_500, "not before its time");
        assert_eq!(reader.message().text(), "gone", "as if the network had failed");
    }
}

/// MQTT 5: 3.1.2-24, 3.1.2-25
#[test]
fn mqtt5_3_1_2_24_no_packet_is_larger_than_the_client_takes() {
    let topic = unique("large");
    let (mut reader, _) =
        Peer::accepted(&Connect::new(5, &unique("c")).with(|p| p.four(prop::PACKET_MAX, 100)));
    reader.subscribe(&topic, 1);
    let mut writer = Peer::new(5);
    for payload in ["x".repeat(200), "y".repeat(40)] {
        writer.publish(&Publish::new(&topic, &payload).qos(1, 9));
        assert_eq!(writer.expect(PUBACK).reason, 0, "the publisher has nothing to do with it");
    }
    let message = reader.message();
    assert!(
        message.text().starts_with('y') && message.length <= 100,
        "the large one is passed over"
    );
    assert_eq!(reader.until_ping(), []);
}

/// MQTT 5: 3.1.2-26, 3.1.2-27, 3.3.2-11
#[test]
fn mqtt5_3_1_2_26_aliases_of_the_server_stay_below_what_the_client_allows() {
    for allowed in [0, 2] {
        let root = unique("alias");
        let (mut reader, _) = Peer::accepted(
            &Connect::new(5, &unique("c")).with(|p| p.two(prop::TOPIC_ALIAS_MAX, allowed)),
        );
        reader.subscribe(&format!("{root}/#"), 0);
        let mut writer = Peer::new(5);
        let mut names = std::collections::BTreeMap::new();
        for n in 0..12 {
            let topic = format!("{root}/{}", n % 4);
            writer.published(&Publish::new(&topic, ""));
            let message = reader.message();
            let alias = message.number(prop::TOPIC_ALIAS);
            assert!(
                alias.is_none_or(|alias| (1..=u32::from(allowed)).contains(&alias)),
                "{alias:?} of {allowed}"
            );
            let name = match (alias, message.topic.is_empty()) {
                (Some(alias), false) => {
                    names.entry(alias).insert_entry(message.topic).get().clone()
                }
                (Some(alias), true) => names[&alias].clone(),
                (None, _) => message.topic,
            };
            assert_eq!(name, topic);
        }
    }
}

/// MQTT 5: 3.1.2-28
#[test]
fn mqtt5_3_1_2_28_response_information_only_when_asked() {
    for connect in [
        Connect::new(5, &unique("c")),
        Connect::new(5, &unique("c")).with(|p| p.byte(prop::REQUEST_RESPONSE, 0)),
    ] {
        assert!(!Peer::accepted(&connect).1.has(prop::RESPONSE_INFORMATION));
    }
}

/// MQTT 5: 3.1.2-29
#[test]
fn mqtt5_3_1_2_29_no_reasons_in_words_when_the_client_does_not_want_them() {
    let (mut peer, _) =
        Peer::accepted(&Connect::new(5, &unique("c")).with(|p| p.byte(prop::REQUEST_PROBLEM, 0)));
    peer.publish(&Publish::new(&unique("nobody"), "").qos(1, 1));
    peer.publish(&Publish::new(&unique("nobody"), "").qos(2, 2));
    peer.send(&subscribe(5, 3, &Properties::new(), &[("$share/g", 0), ("a", 0)]));
    let packets = [peer.next(), peer.next(), peer.next()];
    for packet in packets.into_iter().flatten().filter(|packet| packet.kind != DISCONNECT) {
        assert!(!packet.has(prop::REASON_STRING) && !packet.has(prop::USER), "{packet:?}");
    }
}

/// MQTT 5: 3.1.3-4, 3.1.3-11, 3.1.3-12
/// MQTT 3.1.1: 3.1.3-4, 3.1.3-10, 3.1.3-11
#[test]
fn both_3_1_3_4_texts_in_connect_are_utf8() {
    for version in BOTH {
        let plain = Connect::new(version, &unique("c"));
        refused(&Connect { client_id: b"c\xff".into(), ..plain.clone() });
        refused(&Connect { user: Some(b"u\xff".into()), ..plain.clone() });
        refused(&plain.will(Will { topic: b"t\xff".into(), ..Will::default() }));
    }
}

/// MQTT 5: 3.1.3-5
/// MQTT 3.1.1: 3.1.3-5
#[test]
fn both_3_1_3_5_client_ids_of_23_letters_and_digits_are_taken() {
    for version in BOTH {
        for id in ["0", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ"] {
            Peer::accepted(&Connect::new(version, id)).0.disconnect();
        }
    }
}

/// MQTT 5: 3.1.3-6, 3.1.3-7, 3.2.2-16
#[test]
fn mqtt5_3_1_3_6_a_client_without_id_gets_one_of_its_own() {
    let mut ids = std::collections::BTreeSet::new();
    let mut peers = Vec::new();
    for _ in 0..3 {
        let (peer, connack) = Peer::accepted(&Connect::new(5, ""));
        let id = connack.bytes(prop::ASSIGNED_CLIENT_ID).expect("an id").to_vec();
        assert!(!id.is_empty() && ids.insert(id));
        peers.push(peer);
    }
    for peer in &mut peers {
        assert_eq!(peer.until_ping(), [], "none was taken over");
    }
    // It is a name like any other: the client can come back under it.
    let id = String::from_utf8(ids.pop_first().expect("three")).expect("a text");
    let (_peer, connack) = Peer::accepted(&Connect::new(5, &id));
    assert!(!connack.has(prop::ASSIGNED_CLIENT_ID));
}

/// MQTT 3.1.1: 3.1.3-6
#[test]
fn mqtt311_3_1_3_6_a_client_without_id_is_a_client() {
    let (mut one, _) = Peer::accepted(&Connect::new(4, ""));
    let (mut two, _) = Peer::accepted(&Connect::new(4, ""));
    assert_eq!((one.until_ping(), two.until_ping()), (vec![], vec![]));
}

/// MQTT 3.1.1: 3.1.3-8, 3.1.3-9, 3.2.2-5
#[test]
fn both_3_1_3_8_an_id_that_is_refused_ends_the_connection() {
    let (mut peer, connack) = Peer::asked(&Connect { clean: false, ..Connect::new(4, "") });
    assert_eq!((connack.reason, connack.session_present), (0x02, 0));
    assert_eq!(peer.until_closed(), []);
}

/// MQTT 5: 3.1.3-9
#[test]
fn mqtt5_3_1_3_9_a_client_back_in_time_has_no_will_published() {
    let (topic, id) = (unique("will"), unique("c"));
    let mut reader = Peer::new(5);
    reader.subscribe(&topic, 0);
    let connect = Connect::kept(5, &id);
    let delayed =
        Will { properties: Properties::new().four(prop::WILL_DELAY, 5), ..will(&topic, 0, false) };
    let (peer, _) = Peer::accepted(&connect.clone().will(delayed.clone()));
    peer.drop_connection();
    let (peer, _) = Peer::accepted(&connect.clone());
    assert_eq!(reader.until_ping(), []);
    // A second client's will, with the same delay and later, comes: the first one's time has passed.
    let (other, _) = Peer::accepted(
        &Connect::kept(5, &unique("c")).will(Will { payload: "other".into(), ..delayed }),
    );
    other.drop_connection();
    assert_eq!(reader.message().text(), "other");
    peer.disconnect();
}

/// MQTT 5: 3.1.3-10
#[test]
fn mqtt5_3_1_3_10_user_properties_of_a_will_keep_their_order() {
    let topic = unique("will");
    let mut reader = Peer::new(5);
    reader.subscribe(&topic, 0);
    let properties = Properties::new().user("b", "1").user("a", "2").user("b", "3");
    let (peer, _) = Peer::accepted(
        &Connect::new(5, &unique("c")).will(Will { properties, ..will(&topic, 0, false) }),
    );
    peer.drop_connection();
    let pairs = reader.message().all(prop::USER).into_iter().cloned().collect::<Vec<_>>();
    let wanted = [("b", "1"), ("a", "2"), ("b", "3")];
    assert_eq!(
        pairs,
        wanted.map(|(key, value)| super::reader::Value::Pair(key.into(), value.into()))
    );
}

/// MQTT 5: 3.1.4-3
/// MQTT 3.1.1: 3.1.4-2
#[test]
fn both_3_1_4_3_the_second_connection_of_a_client_ends_the_first() {
    for version in BOTH {
        let id = unique("c");
        let (mut first, _) = Peer::accepted(&Connect::new(version, &id));
        let (mut second, _) = Peer::accepted(&Connect::new(version, &id));
        first.refused(0x8e);
        assert_eq!(second.until_ping(), []);
    }
}

/// MQTT 5: 3.1.4-5, 3.2.0-1, 3.2.2-1
/// MQTT 3.1.1: 3.1.4-4, 3.2.0-1
#[test]
fn both_3_1_4_5_connack_comes_first() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        // All in one segment: what follows the CONNECT is answered after it.
        let filter = unique("t");
        let more = subscribe(version, 1, &Properties::new(), &[(&filter, 0)]);
        peer.send(&[Connect::new(version, &unique("c")).encode(), more, vec![0xc0, 0]].concat());
        let connack = peer.expect(CONNACK);
        assert_eq!((connack.reason, connack.session_present & 0xfe), (0, 0));
        peer.expect(SUBACK);
        peer.expect(0xd0);
    }
}

/// MQTT 5: 3.1.4-6, 3.2.2-6, 3.2.2-7, 3.2.2-8, 4.13.2-1, 3.14.0-1
/// MQTT 3.1.1: 3.1.4-5, 3.2.2-4, 3.2.2-5
#[test]
fn both_3_1_4_6_after_a_refused_connect_nothing_counts() {
    for version in BOTH {
        let topic = unique("t");
        let mut reader = Peer::new(version);
        reader.subscribe(&topic, 0);
        let mut peer = Peer::open(version);
        // An authentication method nobody has; a 3.1.1 client without id that wants a session.
        let mut connect = Connect::new(version, "")
            .with(|properties| properties.bytes(prop::AUTH_METHOD, "NONE"));
        connect.clean = version == 5;
        peer.send(&[connect.encode(), Publish::new(&topic, "never").encode(version)].concat());
        let said = peer.until_closed();
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!((said[0].kind, said[0].session_present), (CONNACK, 0));
        assert_ne!(said[0].reason, 0);
        assert_eq!(reader.until_ping(), []);
    }
}

fn will(topic: &str, qos: u8, retain: bool) -> Will {
    Will { topic: topic.into(), payload: "gone".into(), qos, retain, properties: Properties::new() }
}

/// A CONNECT that is not one: MQTT 5 may say so, and the connection ends.
fn refused(connect: &Connect) {
    refused_bytes(connect.version, &connect.encode());
}

fn refused_bytes(version: u8, connect: &[u8]) {
    let mut peer = Peer::open(version);
    peer.send(connect);
    let said = peer.until_closed();
    let fine = |packet: &super::reader::Packet| {
        version == 5 && packet.kind == CONNACK && packet.reason >= 0x80
    };
    assert!(said.len() <= 1 && said.iter().all(fine), "{said:?} to {connect:x?}");
}

/// The helpers above say what the standard's pictures say.
#[test]
fn the_builders_build_the_example_of_figure_3_6() {
    let connect = Connect {
        keep_alive_s: 10,
        user: Some("u".into()),
        password: Some("p".into()),
        ..Connect::new(4, "c")
    };
    let wanted =
        [&string("MQTT")[..], &[4, 0xc2, 0, 10], &string("c"), &string("u"), &string("p")].concat();
    assert_eq!(connect.encode(), framed(0x10, &wanted));
    assert_eq!(
        Publish::new("a/b", "").qos(1, 10).encode(4),
        [PUBLISH | 2, 7, 0, 3, b'a', b'/', b'b', 0, 10]
    );
}
