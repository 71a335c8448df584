//! Chapter 4 but for AUTH: delivery, resending, order, topics, shared subscriptions.

use super::packet::{
    Connect, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Properties, Publish, SUBACK, ack, ack_with,
    prop, subscribe,
};
use super::peer::{BOTH, Peer, unique};

/// MQTT 5: 4.3.2-5
/// MQTT 3.1.1: 4.3.2-2
#[test]
fn both_4_3_2_5_after_puback_the_same_identifier_is_a_new_message() {
    for version in BOTH {
        let topic = unique("t");
        let (mut reader, mut writer) = (Peer::new(version), Peer::new(version));
        reader.subscribe(&topic, 0);
        for _ in 0..2 {
            writer.publish(&Publish::new(&topic, "").qos(1, 9).dup());
            writer.expect(PUBACK);
        }
        assert_eq!(reader.until_ping().len(), 2);
    }
}

/// MQTT 5: 4.3.3-10, 4.3.3-12
/// MQTT 3.1.1: 4.3.3-2
#[test]
fn both_4_3_3_10_between_pubrec_and_pubcomp_it_is_the_same_message() {
    for version in BOTH {
        let (topic, id) = (unique("t"), unique("kept"));
        let mut reader = Peer::new(version);
        reader.subscribe(&topic, 0);
        let (mut writer, _) = Peer::accepted(&Connect::kept(version, &id));
        let publish = Publish::new(&topic, "once").qos(2, 9);
        writer.publish(&publish);
        assert_eq!(writer.expect(PUBREC).id, 9);
        writer.publish(&publish.clone().dup());
        assert_eq!(writer.expect(PUBREC).id, 9);
        // Over a new connection as well, whatever DUP says.
        writer.drop_connection();
        let (mut writer, _) = Peer::accepted(&Connect::kept(version, &id));
        writer.publish(&publish);
        assert_eq!(writer.expect(PUBREC).id, 9);
        writer.send(&ack(PUBREL, 9));
        assert_eq!(writer.expect(PUBCOMP).id, 9);
        assert_eq!(reader.until_ping().len(), 1);

        writer.publish(&publish);
        assert_eq!(writer.expect(PUBREC).id, 9);
        assert_eq!(reader.until_ping().len(), 1, "after PUBCOMP it is a new one");
        writer.send(&ack(PUBREL, 9));
        writer.expect(PUBCOMP);
    }
}

/// The refusal comes from a topic nobody may publish to.
///
/// MQTT 5: 4.3.3-9
#[test]
fn mqtt5_4_3_3_9_after_a_refusing_pubrec_the_identifier_is_free() {
    let topic = unique("t");
    let (mut reader, mut writer) = (Peer::new(5), Peer::new(5));
    reader.subscribe(&topic, 0);
    writer.publish(&Publish::new("$SYS/broker/uptime", "mine").qos(2, 9));
    assert!(writer.expect(PUBREC).reason >= 0x80);
    writer.publish(&Publish::new(&topic, "new").qos(2, 9));
    assert!(writer.expect(PUBREC).reason < 0x80);
    writer.send(&ack(PUBREL, 9));
    writer.expect(PUBCOMP);
    assert_eq!(reader.message().text(), "new");
}

/// MQTT 5: 4.3.3-3, 4.3.3-5, 4.3.3-6, 4.4.0-1
/// MQTT 3.1.1: 4.3.3-1, 4.4.0-1, 2.3.1-3
#[test]
fn both_4_4_0_1_what_is_unacknowledged_is_sent_again_under_its_identifier() {
    for version in BOTH {
        let (topic, id) = (unique("t"), unique("kept"));
        let kept = Connect::kept(version, &id);
        let (mut reader, _) = Peer::accepted(&kept);
        reader.subscribe(&topic, 2);
        let mut writer = Peer::new(version);
        for (n, qos) in [(1, 2), (2, 1), (3, 2)] {
            writer.publish(&Publish::new(&topic, &n.to_string()).qos(qos, n));
            assert_eq!(writer.next().map(|ack| ack.id), Some(n));
        }
        let sent = [reader.expect(PUBLISH), reader.expect(PUBLISH), reader.expect(PUBLISH)];
        assert_eq!(reader.until_ping(), [], "not again on the same connection");
        // The first one comes as far as PUBREL.
        reader.send(&ack(PUBREC, sent[0].id));
        assert_eq!(reader.expect(PUBREL).id, sent[0].id);
        reader.drop_connection();

        let (mut reader, _) = Peer::accepted(&kept);
        let mut again = [reader.next(), reader.next(), reader.next()]
            .map(|packet| packet.expect("three packets"));
        again.sort_by_key(|packet| packet.kind != PUBREL);
        assert_eq!(
            (again[0].kind, again[0].id),
            (PUBREL, sent[0].id),
            "never the PUBLISH after its PUBREL"
        );
        for (before, now) in sent[1..].iter().zip(&again[1..]) {
            assert_eq!(
                (now.id, now.text(), now.qos(), now.dup()),
                (before.id, before.text(), before.qos(), true)
            );
        }
        reader.send(&ack(PUBCOMP, sent[0].id));
        reader.send(&ack(PUBACK, sent[1].id));
        reader.send(&ack(PUBREC, sent[2].id));
        assert_eq!(reader.expect(PUBREL).id, sent[2].id);
        reader.send(&ack(PUBCOMP, sent[2].id));
        assert_eq!(reader.until_ping(), []);
        reader.drop_connection();
        let (mut reader, _) = Peer::accepted(&kept);
        assert_eq!(reader.until_ping(), [], "all of it is over");
    }
}

/// MQTT 5: 4.4.0-2
#[test]
fn mqtt5_4_4_0_2_an_acknowledgement_that_refuses_is_one() {
    let (topic, id) = (unique("t"), unique("kept"));
    let (mut reader, _) = Peer::accepted(&Connect::kept(5, &id));
    reader.subscribe(&topic, 2);
    let mut writer = Peer::new(5);
    for (qos, kind) in [(1, PUBACK), (2, PUBREC)] {
        writer.publish(&Publish::new(&topic, "").qos(qos, 1));
        writer.next();
        let message = reader.expect(PUBLISH);
        reader.send(&ack_with(kind, message.id, 0x83));
        assert_eq!(reader.until_ping(), []);
    }
    reader.drop_connection();
    let (mut reader, _) = Peer::accepted(&Connect::kept(5, &id));
    assert_eq!(reader.until_ping(), []);
}

/// MQTT 5: 4.3.3-7, 4.3.3-13
#[test]
fn mqtt5_4_3_3_7_what_has_been_sent_does_not_expire() {
    let (topic, id) = (unique("t"), unique("kept"));
    let (mut reader, _) = Peer::accepted(&Connect::kept(5, &id));
    reader.subscribe(&topic, 2);
    let mut writer = Peer::new(5);
    writer.publish(
        &Publish::new(&topic, "sent")
            .qos(2, 1)
            .with(|properties| properties.four(prop::MESSAGE_EXPIRY, 4)),
    );
    writer.expect(PUBREC);
    let sent = reader.expect(PUBLISH);
    reader.drop_connection();
    // A will with a delay of five seconds says that they are over.
    let (mut clock, tick) = (Peer::new(5), unique("tick"));
    clock.subscribe(&tick, 0);
    let will = super::packet::Will {
        topic: tick.as_str().into(),
        properties: Properties::new().four(prop::WILL_DELAY, 5),
        ..super::packet::Will::default()
    };
    Peer::accepted(&Connect::kept(5, &unique("c")).will(will)).0.drop_connection();
    clock.message();
    let (mut reader, _) = Peer::accepted(&Connect::kept(5, &id));
    let again = reader.message();
    assert_eq!((again.id, again.text(), again.dup()), (sent.id, "sent", true));
    writer.send(&ack(PUBREL, 1));
    assert_eq!(writer.expect(PUBCOMP).id, 1, "the other side ends as if nothing had expired");
}

/// MQTT 5: 4.6.0-5, 4.6.0-6
/// MQTT 3.1.1: 4.6.0-5, 4.6.0-6, 4.6.0-1
#[test]
fn both_4_6_0_5_messages_of_a_client_keep_their_order() {
    for version in BOTH {
        let (topic, id) = (unique("t"), unique("kept"));
        let kept = Connect::kept(version, &id);
        let (mut reader, _) = Peer::accepted(&kept);
        reader.subscribe(&topic, 1);
        let mut writer = Peer::new(version);
        for n in 1..=10 {
            writer.publish(&Publish::new(&topic, &n.to_string()).qos(1, n));
        }
        for n in 1..=10 {
            assert_eq!(writer.expect(PUBACK).id, n, "acknowledged in their order");
        }
        for n in 1..=5 {
            assert_eq!(reader.expect(PUBLISH).text(), n.to_string());
        }
        reader.drop_connection();
        let (mut reader, _) = Peer::accepted(&kept);
        for n in 1..=10 {
            assert_eq!(reader.message().text(), n.to_string(), "and again after a reconnect");
        }
    }
}

/// MQTT 5: 4.7.1-1, 4.7.1-2, 4.7.3-1
/// MQTT 3.1.1: 4.7.1-2, 4.7.1-3, 4.7.3-1
#[test]
fn both_4_7_1_1_wildcards_stand_alone_in_their_level() {
    for version in BOTH {
        for filter in ["a#", "a/#/b", "#/a", "a+", "a/b+/c", "+a", "a/+b", ""] {
            let mut peer = Peer::new(version);
            peer.send(&subscribe(version, 1, &Properties::new(), &[(filter, 0)]));
            // Closed, or this filter refused in the SUBACK (4.7.1 names no code).
            let said = peer.next();
            let refused = said.as_ref().is_none_or(|packet| {
                packet.kind == 0xe0 && packet.reason >= 0x80
                    || packet.kind == SUBACK && packet.reasons == [0x8f]
            });
            assert!(refused, "{filter}: {said:?}");
        }
        let mut peer = Peer::new(version);
        for filter in ["#", "+", "+/+", "/+", "a/+/b/#", "/", "a//b", " "] {
            peer.send(&subscribe(version, 1, &Properties::new(), &[(filter, 0)]));
            // Other tests' retained messages come as well.
            let suback = std::iter::from_fn(|| peer.next()).find(|packet| packet.kind == SUBACK);
            assert_eq!(suback.map(|suback| suback.reasons), Some(vec![0]), "{filter}");
        }
    }
}

/// MQTT 5: 4.7.2-1
/// MQTT 3.1.1: 4.7.2-1
#[test]
fn both_4_7_2_1_wildcards_at_the_root_do_not_match_dollar_topics() {
    for version in BOTH {
        let word = unique("dollar");
        let (mut wild, mut plain, mut writer) =
            (Peer::new(version), Peer::new(version), Peer::new(version));
        wild.subscribe_with(
            &Properties::new(),
            &[(&format!("+/{word}"), 0), (&format!("+/{word}/#"), 0)],
        );
        plain.subscribe(&format!("$own/{word}"), 0);
        writer.published(&Publish::new(&format!("$own/{word}"), "dollar"));
        writer.published(&Publish::new(&format!("own/{word}"), "no dollar"));
        let texts: Vec<_> = wild.until_ping().iter().map(|message| message.topic.clone()).collect();
        assert!(
            texts.iter().all(|topic| !topic.starts_with('$')) && !texts.is_empty(),
            "{texts:?}"
        );
        for message in plain.until_ping() {
            assert_eq!(message.text(), "dollar");
        }
    }
}

/// MQTT 5: 4.7.3-3
/// MQTT 3.1.1: 4.7.3-3
#[test]
fn both_4_7_3_3_a_topic_has_at_most_65535_bytes() {
    for version in BOTH {
        let topic = "x".repeat(65_535);
        let mut peer = Peer::new(version);
        // Two bytes of length cannot say more; the greatest is a topic like any other, or refused as a whole.
        peer.publish(&Publish::new(&topic, "").qos(1, 1));
        let answer = peer.next();
        assert!(answer.is_none_or(|answer| answer.kind == PUBACK || answer.kind == 0xe0));
    }
}

/// MQTT 5: 4.8.2-1, 4.8.2-2
#[test]
fn mqtt5_4_8_2_1_a_shared_filter_has_a_name_and_a_filter() {
    for filter in [
        "$share/",
        "$share/g",
        "$share/g/",
        "$share//t",
        "$share/+/t",
        "$share/g#/t",
        "$share/a+b/t",
    ] {
        let mut peer = Peer::new(5);
        peer.send(&subscribe(5, 1, &Properties::new(), &[(filter, 0)]));
        let said = peer.next();
        let refused = said.as_ref().is_none_or(|packet| {
            packet.kind == 0xe0 && packet.reason >= 0x80
                || packet.kind == SUBACK && packet.reasons[0] >= 0x80
        });
        assert!(refused, "{filter}: {said:?}");
    }
    let mut peer = Peer::new(5);
    assert_eq!(peer.subscribe("$share/group/a/#", 1), [1]);
}

/// MQTT 5: 4.8.2-3
#[test]
fn mqtt5_4_8_2_3_a_shared_message_comes_once_with_the_granted_qos() {
    let topic = unique("shared");
    let filter = format!("$share/{}/{topic}", unique("g"));
    let mut readers = [Peer::new(5), Peer::new(5)];
    for reader in &mut readers {
        assert_eq!(reader.subscribe(&filter, 1), [1]);
    }
    let mut writer = Peer::new(5);
    for id in 1..=10 {
        writer.publish(&Publish::new(&topic, &id.to_string()).qos(2, id));
        writer.expect(PUBREC);
        writer.send(&ack(PUBREL, id));
        writer.expect(PUBCOMP);
    }
    let mut texts = Vec::new();
    for reader in &mut readers {
        for message in reader.until_ping() {
            assert_eq!(message.qos(), 1);
            texts.push(message.text().parse::<u16>().expect("a number"));
        }
    }
    texts.sort_unstable();
    assert_eq!(texts, (1..=10).collect::<Vec<_>>());
}

/// MQTT 5: 4.8.2-4, 4.8.2-5
#[test]
fn mqtt5_4_8_2_4_a_qos_2_message_that_has_begun_stays_with_its_member() {
    for comes_back in [true, false] {
        let (topic, id) = (unique("shared"), unique("kept"));
        let filter = format!("$share/{}/{topic}", unique("g"));
        let (mut member, _) = Peer::accepted(&Connect::kept(5, &id));
        member.subscribe(&filter, 2);
        let mut writer = Peer::new(5);
        writer.publish(&Publish::new(&topic, "begun").qos(2, 1));
        writer.expect(PUBREC);
        let begun = member.expect(PUBLISH);
        member.send(&ack(PUBREC, begun.id));
        member.expect(PUBREL);
        let mut other = Peer::new(5);
        other.subscribe(&filter, 2);
        member.drop_connection();
        if comes_back {
            let (mut member, _) = Peer::accepted(&Connect::kept(5, &id));
            assert_eq!(member.expect(PUBREL).id, begun.id);
            member.send(&ack(PUBCOMP, begun.id));
        } else {
            Peer::accepted(&Connect::new(5, &id)).0.disconnect();
        }
        assert_eq!(other.until_ping(), [], "to nobody else");
    }
}

/// MQTT 5: 4.8.2-6
#[test]
fn mqtt5_4_8_2_6_what_a_member_refuses_is_discarded() {
    let topic = unique("shared");
    let filter = format!("$share/{}/{topic}", unique("g"));
    let mut readers = [Peer::new(5), Peer::new(5)];
    for reader in &mut readers {
        reader.subscribe(&filter, 2);
    }
    let mut writer = Peer::new(5);
    for (qos, kind) in [(1, PUBACK), (2, PUBREC)] {
        writer.publish(&Publish::new(&topic, "").qos(qos, 1));
        writer.next();
        let mut refusals = 0;
        for reader in &mut readers {
            for message in reader.until_ping() {
                reader.send(&ack_with(kind, message.id, 0x83));
                refusals += 1;
            }
        }
        assert_eq!(refusals, 1);
        for reader in &mut readers {
            assert_eq!(reader.until_ping(), []);
        }
    }
}

/// MQTT 5: 4.2-1
/// MQTT 3.1.1: 7.1.1-1
#[test]
fn both_4_2_1_bytes_may_come_one_by_one() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        for byte in Connect::new(version, &unique("c")).encode() {
            peer.send(&[byte]);
        }
        assert_eq!(peer.expect(0x20).reason, 0);
    }
}
