//! Our codec beside two that other people wrote: what we write they understand as the same packet, and of
//! damaged packets they refuse what we refuse, save what [`STRICTER`] lists with the clause that makes us right.

mod support;

use std::sync::Arc;

use bytes::BytesMut;
use mqtt_protocol_core::mqtt::packet::{v3_1_1, v5_0};
use outpost_model::MessageProperties;
use outpost_mqtt::packet::{Packet, Version};
use outpost_mqtt::{Decoder, encode};
use proptest::prelude::*;
use support::arbitrary::packet;
use support::{client, server};
use tokio_util::codec::{Decoder as _, Encoder as _};

fn any_packet() -> impl Strategy<Value = (Version, bool, Packet)> {
    (prop::sample::select(vec![Version::V4, Version::V5]), any::<bool>()).prop_flat_map(
        |(version, from_client)| {
            packet(version, from_client).prop_map(move |packet| (version, from_client, packet))
        },
    )
}

fn decoder_for(first: u8, version: Version, from_client: bool) -> Decoder {
    match (first >> 4, from_client) {
        (1, _) => Decoder::new(1 << 20),
        (_, true) => server(version),
        (_, false) => client(version),
    }
}

fn written(packet: &Packet, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    encode(packet, version, &mut out);
    out
}

/// `bytes`, read and written again by rmqtt-codec; an error when it refuses them.
fn rmqtt(bytes: &[u8], version: Version) -> Result<Vec<u8>, String> {
    let (mut input, mut out) = (BytesMut::from(bytes), BytesMut::new());
    if version == Version::V5 {
        let mut codec = rmqtt_codec::v5::Codec::new(0, 0);
        let packet = codec.decode(&mut input).map_err(|e| format!("{e:?}"))?.ok_or("incomplete")?.0;
        rmqtt_codec::v5::Codec::new(0, 0)
            .encode(packet, &mut out)
            .map_err(|e| format!("writing: {e:?}"))?;
    } else {
        let mut codec = rmqtt_codec::v3::Codec::new(0);
        let packet = codec.decode(&mut input).map_err(|e| format!("{e:?}"))?.ok_or("incomplete")?.0;
        codec.encode(packet, &mut out).map_err(|e| format!("writing: {e:?}"))?;
    }
    Ok(out.to_vec())
}

/// `bytes`, read and written again by mqtt-protocol-core; an error when it refuses them.
fn protocol_core(bytes: &[u8], version: Version) -> Result<Vec<u8>, String> {
    macro_rules! again {
        ($packet:ty, $body:expr) => {
            <$packet>::parse($body).map_err(|e| format!("{e:?}")).and_then(|(packet, used)| {
                if used == $body.len() {
                    Ok(packet.to_continuous_buffer())
                } else {
                    Err("bytes left over".to_owned())
                }
            })
        };
    }
    let at = bytes.iter().skip(1).position(|b| b & 0x80 == 0).ok_or("no length")? + 2;
    let (flags, body) = (bytes[0] & 0x0F, &bytes[at..]);
    match (bytes[0] >> 4, version == Version::V5) {
        (1, false) => again!(v3_1_1::Connect, body),
        (2, false) => again!(v3_1_1::Connack, body),
        (4, false) => again!(v3_1_1::Puback, body),
        (5, false) => again!(v3_1_1::Pubrec, body),
        (6, false) => again!(v3_1_1::Pubrel, body),
        (7, false) => again!(v3_1_1::Pubcomp, body),
        (8, false) => again!(v3_1_1::Subscribe, body),
        (9, false) => again!(v3_1_1::Suback, body),
        (10, false) => again!(v3_1_1::Unsubscribe, body),
        (11, false) => again!(v3_1_1::Unsuback, body),
        (1, true) => again!(v5_0::Connect, body),
        (2, true) => again!(v5_0::Connack, body),
        (4, true) => again!(v5_0::Puback, body),
        (5, true) => again!(v5_0::Pubrec, body),
        (6, true) => again!(v5_0::Pubrel, body),
        (7, true) => again!(v5_0::Pubcomp, body),
        (8, true) => again!(v5_0::Subscribe, body),
        (9, true) => again!(v5_0::Suback, body),
        (10, true) => again!(v5_0::Unsubscribe, body),
        (11, true) => again!(v5_0::Unsuback, body),
        (14, true) => again!(v5_0::Disconnect, body),
        (15, true) => again!(v5_0::Auth, body),
        (3, false) => v3_1_1::Publish::parse(flags, Arc::from(body))
            .map(|(packet, _)| packet.to_continuous_buffer())
            .map_err(|e| format!("{e:?}")),
        (3, true) => v5_0::Publish::parse(flags, Arc::from(body))
            .map(|(packet, _)| packet.to_continuous_buffer())
            .map_err(|e| format!("{e:?}")),
        _ => Ok(bytes.to_vec()),
    }
}

/// What only we refuse: how our error reads, which of the others does not mind, and why it is to be refused.
const STRICTER: &[(&str, &[Peer], &str)] = &[
    (
        "packet of type",
        BOTH,
        "Table 2-1: neither was told who sends, and the calls below skip type 0 and 15 of 3.1.1",
    ),
    (
        "remaining length is more than its fields need",
        BOTH,
        "§2.1.4: it is the length of this packet",
    ),
    (
        "fixed header has wrong flags",
        &[Peer::ProtocolCore],
        "MQTT-2.1.3-1; its parsers get the body only",
    ),
    (
        "fixed header has reserved flags set",
        &[Peer::ProtocolCore],
        "MQTT-2.1.3-1; its parsers get the body only",
    ),
    (
        "malformed AUTH: property length ends before its end",
        BOTH,
        "§3.15.2.1: reason code and property length are left out together",
    ),
    ("holds U+0000", BOTH, "MQTT-1.5.4-2: MUST NOT include"),
    ("holds a control character", BOTH, "§1.5.4: MAY treat as malformed; names end in logs"),
    ("have reserved bits set", BOTH, "MQTT-3.2.2-1, MQTT-3.8.3-5 (3.1.1: MQTT-3.8.3-4)"),
    ("has a wildcard at the wrong place", BOTH, "MQTT-4.7.1-1, -2"),
    ("holds a wildcard", BOTH, "MQTT-3.3.2-2, MQTT-3.3.2-14"),
    ("topic name is empty", BOTH, "MQTT-4.7.3-1, §3.3.2.1"),
    ("topic filter is empty", BOTH, "MQTT-4.7.3-1"),
    ("$share without a group", BOTH, "MQTT-4.8.2-1, -2"),
    (
        "protocol error in AUTH: authentication method is missing",
        BOTH,
        "§3.15.2.2.2: it is a protocol error to omit it",
    ),
    (
        "maximum QoS is neither 0 nor 1",
        &[Peer::Rmqtt],
        "§3.2.2.3.4: any other value is a protocol error",
    ),
    ("session present is set on a refusal", BOTH, "MQTT-3.2.2-6"),
    ("return code is reserved", BOTH, "3.1.1, Table 3.1"),
    ("have will Q", BOTH, "MQTT-3.1.2-11 to -13"),
    (
        "protocol level 3 is not supported",
        &[Peer::Rmqtt],
        "level 3 is of MQIsdp (3.1), which came before both standards",
    ),
    (
        "have a password without a user name (3.1.1",
        &[Peer::Rmqtt],
        "3.1.1, MQTT-3.1.2-22; 5 has no such rule",
    ),
    ("have the reserved flag set", BOTH, "MQTT-3.1.2-3"),
    ("DUP set with QoS 0", BOTH, "MQTT-3.3.1-2"),
    ("packet identifier is 0", BOTH, "MQTT-2.2.1-3"),
    ("uses more bytes than it needs", BOTH, "MQTT-1.5.5-1"),
    (
        "holds no reason code",
        BOTH,
        "§3.9.3, §3.11.3: one for each filter, of which there is at least one",
    ),
    (
        "reason code is Success, which only a server sends",
        BOTH,
        "Table 3-11; neither was told who sends",
    ),
    ("is sent by a client", BOTH, "MQTT-3.3.4-6; neither was told who sends"),
    ("have no local on a shared subscription", BOTH, "MQTT-3.8.3-4"),
    ("topic is empty", BOTH, "MQTT-4.7.3-1"),
    (
        "reason code is not for this packet",
        BOTH,
        "Table 3-11: Success is the server's, re-authentication the client's",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Rmqtt,
    ProtocolCore,
}

const BOTH: &[Peer] = &[Peer::Rmqtt, Peer::ProtocolCore];

/// §3.1.2.9 allows a password without a user name; mqtt-protocol-core refuses it in MQTT 5 as 3.1.1 does.
fn has_a_password_alone(packet: &Packet) -> bool {
    matches!(packet, Packet::Connect(connect) if connect.password.is_some() && connect.username.is_none())
}

/// An empty client id without clean start. In 3.1.1 it is answered with return code 2 (MQTT-3.1.3-8), which is the
/// session's to send, and 5 has no such rule (§3.1.3.1); rmqtt-codec refuses to decode it in both.
fn is_nameless_and_lasting(packet: &Packet) -> bool {
    let Packet::Connect(connect) = packet else { return false };
    connect.client_id.is_empty() && !connect.clean_start
}

/// The top bit of the protocol level says that a bridge connects, which is mosquitto's convention and no clause's.
fn is_of_a_bridge(packet: &Packet) -> bool {
    matches!(packet, Packet::Connect(connect) if connect.bridge)
}

/// rmqtt-codec does not keep apart "absent" and "the value that absence means"; this writes absence as its value.
fn with_defaults(mut packet: Packet) -> Packet {
    match &mut packet {
        Packet::Connect(connect) => {
            connect.session_expiry_s.get_or_insert(0);
            connect.receive_max.get_or_insert(u16::MAX);
            connect.topic_alias_max.get_or_insert(0);
            connect.request_response_info.get_or_insert(false);
            connect.request_problem_info.get_or_insert(true);
            if let Some(will) = &mut connect.will {
                without_false(&mut will.properties);
                will.delay_s.get_or_insert(0);
                will.expiry_s.get_or_insert(0);
            }
        }
        Packet::Connack(connack) => {
            connack.session_expiry_s.get_or_insert(0);
            connack.receive_max.get_or_insert(u16::MAX);
            connack.topic_alias_max.get_or_insert(0);
            for flag in [
                &mut connack.retain_available,
                &mut connack.wildcard_available,
                &mut connack.subscription_ids_available,
                &mut connack.shared_available,
            ] {
                flag.get_or_insert(true);
            }
        }
        Packet::Publish(publish) => {
            publish.expiry_s.get_or_insert(0);
            if let Some(properties) = &mut publish.properties {
                without_false(properties);
            }
            if publish.properties.as_deref() == Some(&MessageProperties::default()) {
                publish.properties = None;
            }
        }
        _ => {}
    }
    packet
}

fn without_false(properties: &mut MessageProperties) {
    properties.payload_is_utf8 = properties.payload_is_utf8.filter(|utf8| *utf8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn protocol_core_writes_the_same_bytes((version, _, packet) in any_packet()) {
        let bytes = written(&packet, version);
        if version == Version::V5 && has_a_password_alone(&packet) {
            prop_assert!(protocol_core(&bytes, version).is_err(), "the known difference is gone");
            return Ok(());
        }
        prop_assert_eq!(protocol_core(&bytes, version), Ok(bytes));
    }

    #[test]
    fn rmqtt_means_the_same_packet((version, from_client, packet) in any_packet()) {
        let bytes = written(&packet, version);
        if is_nameless_and_lasting(&packet) {
            prop_assert!(rmqtt(&bytes, version).is_err(), "the known difference is gone");
            return Ok(());
        }
        let again = rmqtt(&bytes, version).map_err(TestCaseError::fail)?;
        let decoded = decoder_for(bytes[0], version, from_client).decode(&mut &again[..]);
        prop_assert_eq!(decoded.map(|p| p.map(with_defaults)), Ok(Some(with_defaults(packet))));
    }

    #[test]
    fn damaged_packets_meet_the_same_end(
        (version, from_client, packet) in any_packet(),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..5), 1..3),
    ) {
        let mut bytes = written(&packet, version);
        if bytes.len() >= 128 {
            return Ok(()); // its remaining length has two bytes, which is not kept true below
        }
        for (place, value, how) in damages {
            let place = place.index(bytes.len());
            damage(&mut bytes, place, value, how);
        }
        bytes[1] = (bytes.len() - 2) as u8;
        let ours = decoder_for(bytes[0], version, from_client).decode(&mut &bytes[..]);
        let ends = [(Peer::Rmqtt, rmqtt(&bytes, version)), (Peer::ProtocolCore, protocol_core(&bytes, version))];
        for (peer, theirs) in ends {
            match (&ours, &theirs) {
                (Err(error), Ok(_)) => {
                    let text = error.to_string();
                    let known = STRICTER.iter().any(|(part, peers, _)| text.contains(part) && peers.contains(&peer));
                    prop_assert!(known, "{:?} accepts {:02x?}, we say: {}", peer, bytes, text);
                }
                (Ok(Some(packet)), Err(refusal)) => {
                    let known = has_a_password_alone(packet)
                        || is_nameless_and_lasting(packet)
                        || is_of_a_bridge(packet);
                    prop_assert!(known, "{:?} says {} to {:02x?}, we accept it", peer, refusal, bytes);
                }
                (Ok(None), _) => prop_assert!(false, "{:02x?} is a whole packet", bytes),
                _ => {}
            }
        }
    }
}

fn damage(bytes: &mut Vec<u8>, place: usize, value: u8, how: u8) {
    match how {
        0 => bytes[place] = value,
        1 => bytes[place] ^= 1 << (value % 8),
        2 => bytes[place] = 0,
        3 if bytes.len() < 127 => bytes.insert(place.max(2).min(bytes.len()), value),
        4 if place >= 2 => drop(bytes.remove(place)),
        _ => {}
    }
}
