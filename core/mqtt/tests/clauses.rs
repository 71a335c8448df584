//! What the standard calls malformed and what a protocol error, clause by clause. Numbers are those of MQTT 5 unless a
//! line says 3.1.1; "server" decodes what a client sends, "client" what a server sends.

mod support;

use outpost_mqtt::packet::{Packet, ReasonCode, Version};
use outpost_mqtt::{DecodeError, Decoder};
use support::{client, hex, server};

const MALFORMED: ReasonCode = ReasonCode::MalformedPacket;
const PROTOCOL: ReasonCode = ReasonCode::ProtocolError;

fn refused(decoder: &Decoder, bytes: &str, reason: ReasonCode) -> DecodeError {
    let bytes = hex(bytes);
    let mut input = &bytes[..];
    let outcome = decoder.clone().decode(&mut input);
    let error = outcome.expect_err(&format!("{bytes:02x?} must be refused"));
    assert_eq!(error.reason(), Some(reason), "{bytes:02x?}: {error}");
    assert_eq!(input, &bytes[..], "the input is untouched");
    error
}

/// Refused, and nothing is said.
fn unanswered(decoder: &Decoder, bytes: &str) {
    let error = decoder.clone().decode(&mut &hex(bytes)[..]).expect_err(bytes);
    assert_eq!(error.reason(), None, "{bytes}: {error}");
}

fn accepted(decoder: &Decoder, bytes: &str) -> Packet {
    let bytes = hex(bytes);
    let mut input = &bytes[..];
    let packet = decoder.clone().decode(&mut input).unwrap_or_else(|e| panic!("{bytes:02x?}: {e}"));
    assert!(input.is_empty(), "{bytes:02x?} is one packet");
    packet.expect("a whole packet")
}

fn digits(text: &str) -> String {
    text.bytes().map(|b| format!("{b:02X}")).collect::<Vec<_>>().concat()
}

fn fresh() -> Decoder {
    Decoder::new(1 << 20)
}

#[test]
fn remaining_length_has_at_most_four_bytes_and_no_more_than_needed_1_5_5() {
    for (bytes, decoder) in [
        ("10 FF FF FF FF 01", fresh()),
        ("30 FF FF FF FF", server(Version::V4)),
        ("C0 80 00", server(Version::V5)), // MQTT-1.5.5-1: "MUST use the minimum number of bytes"
        ("C0 80 80 00", server(Version::V5)),
        ("C0 80 80 80 00", server(Version::V5)),
    ] {
        refused(&decoder, bytes, MALFORMED);
    }
}

#[test]
fn variable_byte_integers_elsewhere_keep_the_same_rule_1_5_5() {
    let v5 = server(Version::V5);
    refused(&v5, "30 08 0001 70 FF FF FF FF 01", MALFORMED); // property length, five bytes
    refused(&v5, "30 05 0001 70 80 00", MALFORMED); // property length, overlong
    refused(&v5, "30 06 0001 70 02 81 00", MALFORMED); // property identifier 1, overlong
    refused(&v5, "82 0A 0001 03 0B 81 00 0001 70 00", MALFORMED); // subscription identifier 1, overlong
    refused(&v5, "82 0C 0001 05 0B FFFFFFFF 0001 70 00", MALFORMED);
}

#[test]
fn a_claimed_length_is_refused_before_any_byte_of_the_body_comes_3_1_2_11_4() {
    let error = refused(&fresh(), "10 FF FF FF 7F", ReasonCode::PacketTooLarge);
    assert_eq!(error, DecodeError::TooLarge { size: 268_435_460, limit: 1 << 20 });
    // "The packet size is the total number of bytes in an MQTT Control Packet": header included.
    let mut exact = Decoder::new(15);
    exact
        .decode(&mut &hex("10 0D 0004 4D515454 04 02 000A 0001 70")[..])
        .expect("15 bytes fit in 15");
    refused(&Decoder::new(14), "10 0D", ReasonCode::PacketTooLarge);
    assert_eq!(fresh().need(&hex("10 FF FF FF 7F")), None);
    assert_eq!(fresh().need(&hex("10 0D 00")), Some(15));
}

#[test]
fn no_limit_means_what_the_wire_can_carry_2_1_4() {
    let mut server = Decoder::new(268_435_455);
    server.decode(&mut &hex("10 0D 0004 4D515454 04 02 000A 0001 70")[..]).expect("valid");
    let longest = hex("30 FFFFFF7F");
    assert_eq!(server.need(&longest), Some(268_435_460));
}

#[test]
fn only_connect_comes_first_and_only_once_3_1_0() {
    for first in 0u8..=15 {
        if first != 1 {
            refused(&fresh(), &format!("{:02X}", first << 4), PROTOCOL); // MQTT-3.1.0-1, at the first byte
        }
    }
    for version in [Version::V3, Version::V4, Version::V5] {
        refused(&server(version), "10", PROTOCOL); // MQTT-3.1.0-2
    }
}

#[test]
fn each_side_sends_its_own_packets_2_1_2() {
    for version in [Version::V3, Version::V4, Version::V5] {
        for first in ["00", "20", "90", "B0", "D0 00"] {
            refused(&server(version), first, PROTOCOL);
        }
        for first in ["00", "10", "82", "A2", "C0"] {
            refused(&client(version), first, PROTOCOL);
        }
    }
    for version in [Version::V3, Version::V4] {
        refused(&server(version), "F0 00", PROTOCOL); // 3.1.1, Table 2.1: 15 is reserved
        refused(&client(version), "E0 00", PROTOCOL); // 3.1.1, Table 2.1: client to server only
    }
}

#[test]
fn reserved_flags_of_the_fixed_header_2_1_3() {
    for version in [Version::V4, Version::V5] {
        for first in ["41", "52", "60", "63", "74", "80", "83", "8A", "A0", "A6", "C1", "E8"] {
            refused(&server(version), first, MALFORMED);
        }
        for first in ["91", "B8"] {
            refused(&server(version), first, MALFORMED); // although no client sends them at all
        }
        for first in ["21", "92", "B4", "D8"] {
            refused(&client(version), first, MALFORMED);
        }
    }
    refused(&server(Version::V5), "F1 00", MALFORMED); // MQTT-3.15.1-1
    refused(&fresh(), "14 0D 0004 4D515454 04 02 000A 0001 70", MALFORMED);
    // MQTT 3.1 has DUP and QoS in these bits.
    accepted(&fresh(), "14 0F 0006 4D5149736470 03 03 000A 0001 70");
    accepted(&server(Version::V3), "8A 06 1234 0001 70 00");
}

#[test]
fn connect_names_the_protocol_and_its_level_3_1_2_1() {
    refused(&fresh(), "10 0D 0004 4D515455 04 02 000A 0001 70", PROTOCOL); // MQTT-3.1.2-1
    refused(&fresh(), "10 09 0000 04 02 000A 0001 70", PROTOCOL);
    for bytes in [
        "10 0D 0004 4D515454 06 02 000A 0001 70",
        "10 0D 0004 4D515454 03 02 000A 0001 70",
        "10 0F 0006 4D5149736470 04 02 000A 0001 70",
    ] {
        let error = refused(&fresh(), bytes, ReasonCode::UnsupportedProtocolVersion); // MQTT-3.1.2-2
        assert!(matches!(error, DecodeError::UnsupportedVersion { level: 3 | 4 | 6 }), "{error}");
    }
}

#[test]
fn connect_flags_3_1_2_3() {
    let connect = |level: u8, flags: u8, rest: &str| {
        let properties = if level == 5 { "00" } else { "" };
        let body = format!("0004 4D515454 {level:02X} {flags:02X} 000A {properties} {rest}");
        format!("10 {:02X} {body}", hex(&body).len())
    };
    for level in [4, 5] {
        refused(&fresh(), &connect(level, 0x03, "0001 70"), MALFORMED); // MQTT-3.1.2-3
        refused(&fresh(), &connect(level, 0x0A, "0001 70"), MALFORMED); // MQTT-3.1.2-11
        refused(&fresh(), &connect(level, 0x22, "0001 70"), MALFORMED); // MQTT-3.1.2-13
        refused(&fresh(), &connect(level, 0x1E, "0001 70 0001 70 0001 70"), MALFORMED); // MQTT-3.1.2-12
        refused(&fresh(), &connect(level, 0x82, "0001 70"), MALFORMED); // MQTT-3.1.2-17
        refused(&fresh(), &connect(level, 0x02, "0001 70 0001 70"), MALFORMED); // MQTT-3.1.2-16
        accepted(&fresh(), &connect(level, 0xC2, "0001 70 0000 0002 0000"));
        accepted(&fresh(), &connect(level, 0x00, "0000")); // an empty client id is the session's to judge
    }
    refused(&fresh(), &connect(4, 0x42, "0001 70 0001 70"), MALFORMED); // 3.1.1, MQTT-3.1.2-22
    accepted(&fresh(), &connect(5, 0x42, "0001 70 0001 70")); // §3.1.2.9
}

#[test]
fn connect_properties_3_1_2_11() {
    let connect = |properties: &str| {
        let body =
            format!("0004 4D515454 05 02 000A {:02X} {properties} 0001 70", hex(properties).len());
        format!("10 {:02X} {body}", hex(&body).len())
    };
    for zero in ["21 0000", "27 00000000"] {
        refused(&fresh(), &connect(zero), PROTOCOL); // "It is a Protocol Error … for it to have the value 0"
    }
    for two in ["17 02", "19 02"] {
        refused(&fresh(), &connect(two), PROTOCOL); // "… to have a value other than 0 or 1"
    }
    for twice in
        ["11 00000001 11 00000001", "21 0001 21 0001", "17 01 17 01", "15 0001 70 15 0001 70"]
    {
        refused(&fresh(), &connect(twice), PROTOCOL); // "… to include … more than once"
    }
    refused(&fresh(), &connect("16 0001 70"), PROTOCOL); // §3.1.2.11.10: data without a method
    for foreign in ["01 01", "23 0001", "0B 01", "24 01", "1F 0001 70", "18 00000001"] {
        refused(&fresh(), &connect(foreign), MALFORMED); // §2.2.2.2
    }
    for unknown in ["00 01", "04 01", "7F 01", "FFFFFF7F 01"] {
        refused(&fresh(), &connect(unknown), MALFORMED); // §2.2.2.2
    }
    accepted(&fresh(), &connect("26 0001 61 0001 62 26 0001 61 0001 62")); // §3.1.2.11.8: may come more than once
}

#[test]
fn will_properties_in_every_order_and_what_they_may_not_be_3_1_3_2() {
    let connect = |properties: &str, topic: &str| {
        let body = format!(
            "0004 4D515454 05 06 000A 00 0001 70 {:02X} {properties} {:04X} {topic} 0001 70",
            hex(properties).len(),
            hex(topic).len()
        );
        format!("10 {:02X} {body}", hex(&body).len())
    };
    let parts = [
        "18 00000005",
        "01 01",
        "02 00000009",
        "03 0001 61",
        "08 0001 62",
        "09 0001 63",
        "26 0001 61 0001 62",
    ];
    for turn in 0..parts.len() {
        let turned: Vec<_> = parts.iter().cycle().skip(turn).take(parts.len()).copied().collect();
        accepted(&fresh(), &connect(&turned.join(" "), "70"));
        refused(
            &fresh(),
            &connect(&format!("{} {}", turned.join(" "), "18 00000005"), "70"),
            PROTOCOL,
        );
    }
    refused(&fresh(), &connect("23 0001", "70"), MALFORMED);
    refused(&fresh(), &connect("01 02", "70"), PROTOCOL);
    refused(&fresh(), &connect("08 0001 23", "70"), PROTOCOL); // MQTT-3.3.2-14
    for topic in ["", "23", "612F2B", "610061"] {
        refused(&fresh(), &connect("", topic), MALFORMED);
    }
}

#[test]
fn strings_1_5_4() {
    let publish = |version: Version, topic: &str| {
        let properties = if version == Version::V5 { "00" } else { "" };
        let body = format!("{:04X} {topic} {properties}", hex(topic).len());
        format!("30 {:02X} {body}", hex(&body).len())
    };
    for version in [Version::V3, Version::V4, Version::V5] {
        for bad in ["EDA080", "EDBFBF", "C080", "FF", "6100", "F4908080", "01", "7F", "C29F"] {
            refused(&server(version), &publish(version, bad), MALFORMED);
        }
        for good in ["EFBFBE", "EFBFBF", "EFBBBF61", "C2A0", "F09F9880"] {
            accepted(&server(version), &publish(version, good)); // non-characters and U+FEFF (MQTT-1.5.4-3) pass
        }
    }
}

#[test]
fn publish_3_3() {
    for version in [Version::V4, Version::V5] {
        let end = if version == Version::V5 { "00" } else { "" };
        let packet = |first: &str, body: &str| {
            format!("{first} {:02X} {body} {end}", hex(body).len() + end.len() / 2)
        };
        let server = server(version);
        refused(&server, &packet("36", "0001 70 0001"), MALFORMED); // MQTT-3.3.1-4
        refused(&server, &packet("38", "0001 70"), MALFORMED); // MQTT-3.3.1-2
        refused(&server, &packet("32", "0001 70 0000"), PROTOCOL); // MQTT-2.2.1-3
        refused(&server, "32 03 0001 70", MALFORMED); // ends after the topic
        for topic in ["0001 23", "0003 61 2F 2B", "0002 61 23"] {
            refused(&server, &packet("30", topic), MALFORMED); // MQTT-3.3.2-2
        }
        accepted(&server, &packet("3D", "0001 70 0001"));
        accepted(&server, &packet("30", "0001 24"));
    }
    refused(&server(Version::V4), "30 02 0000", MALFORMED); // MQTT-4.7.3-1
    refused(&server(Version::V5), "30 03 0000 00", MALFORMED); // §3.3.2.1, MQTT-4.7.3-1
    accepted(&server(Version::V5), "30 06 0000 03 230001");
}

#[test]
fn a_topic_of_32_thousand_levels_is_not_accepted() {
    let topic = "2F".repeat(32_767);
    refused(
        &server(Version::V4),
        &format!("30 81 80 02 7FFF {topic}"),
        ReasonCode::TopicNameInvalid,
    );
}

#[test]
fn publish_properties_3_3_2_3() {
    let publish = |properties: &str| {
        let body = format!("0001 70 {:02X} {properties}", hex(properties).len());
        format!("30 {:02X} {body}", hex(&body).len())
    };
    let v5 = server(Version::V5);
    refused(&v5, &publish("23 0000"), ReasonCode::TopicAliasInvalid); // MQTT-3.3.2-8
    refused(&v5, &publish("01 02"), PROTOCOL);
    refused(&v5, &publish("08 0001 2B"), PROTOCOL); // MQTT-3.3.2-14
    refused(&v5, &publish("08 0000"), MALFORMED); // MQTT-4.7.3-1
    for twice in [
        "01 01 01 01",
        "02 00000001 02 00000001",
        "23 0001 23 0001",
        "03 0000 03 0000",
        "09 0000 09 0000",
    ] {
        refused(&v5, &publish(twice), PROTOCOL);
    }
    refused(&v5, &publish("0B 00"), PROTOCOL); // §3.3.2.3.8
    refused(&v5, &publish("0B 01 0B 01"), PROTOCOL);
    let Packet::Publish(echoed) = accepted(&v5, &publish("0B FFFFFF7F")) else {
        panic!("a PUBLISH")
    };
    assert!(echoed.subscription_ids.is_empty(), "MQTT-3.3.4-6: a client's mean nothing");
    refused(&client(Version::V5), &publish("0B 00"), PROTOCOL); // §3.3.2.3.8
    let Packet::Publish(publish_of_two) =
        accepted(&client(Version::V5), &publish("0B 01 0B FFFFFF7F"))
    else {
        panic!("a PUBLISH")
    };
    assert_eq!(publish_of_two.subscription_ids, [1, 268_435_455]);
    for foreign in
        ["11 00000001", "15 0001 70", "18 00000001", "1F 0001 70", "21 0001", "27 00000001"]
    {
        refused(&v5, &publish(foreign), PROTOCOL); // §2.2.2.2, see Reader::foreign
    }
    for cut in ["11 000000", "15 0002 70", "21 00", "25", "26 0001 70"] {
        refused(&v5, &publish(cut), MALFORMED); // not even a value
    }
    refused(&v5, "30 05 0001 70 09 00", MALFORMED); // the properties claim more than there is
}

#[test]
fn acknowledgements_3_4() {
    let v5 = server(Version::V5);
    for (first, good, bad) in
        [("40", "10", "92"), ("50", "97", "01"), ("62", "92", "10"), ("70", "92", "80")]
    {
        accepted(&v5, &format!("{first} 02 0001"));
        accepted(&v5, &format!("{first} 03 0001 {good}"));
        accepted(&v5, &format!("{first} 04 0001 {good} 00"));
        accepted(&v5, &format!("{first} 0F 0001 {good} 0B 1F 0001 70 26 0001 61 0001 62"));
        refused(&v5, &format!("{first} 03 0001 {bad}"), PROTOCOL);
        refused(&v5, &format!("{first} 03 0001 FF"), PROTOCOL);
        refused(&v5, &format!("{first} 02 0000"), PROTOCOL);
        refused(&v5, &format!("{first} 01 00"), MALFORMED);
        refused(&v5, &format!("{first} 00"), MALFORMED);
        refused(&v5, &format!("{first} 06 0001 00 02 0100"), PROTOCOL); // §2.2.2.2
        refused(&v5, &format!("{first} 05 0001 00 01 01"), MALFORMED);
        refused(&v5, &format!("{first} 05 0001 00 00 00"), MALFORMED);
        refused(&server(Version::V4), &format!("{first} 03 0001 00"), MALFORMED);
    }
}

#[test]
fn subscribe_3_8() {
    for version in [Version::V4, Version::V5] {
        let properties = if version == Version::V5 { "00" } else { "" };
        let packet = |payload: &str| {
            let body = format!("1234 {properties} {payload}");
            format!("82 {:02X} {body}", hex(&body).len())
        };
        let server = server(version);
        refused(&server, &packet(""), MALFORMED); // MQTT-3.8.3-2
        refused(&server, &packet("0001 70"), MALFORMED); // ends before the options
        refused(&server, &packet("0001 70 03"), MALFORMED); // 3.1.1, MQTT-3.8.3-4; §3.8.3.1
        refused(&server, &packet("0001 70 80"), MALFORMED); // MQTT-3.8.3-5
        refused(&server, &packet("0000 00"), MALFORMED); // MQTT-4.7.3-1
        refused(&server, "82 02 0000", PROTOCOL); // MQTT-2.2.1-3
        for filter in ["2B61", "6123", "232F61", "612F232F62", "6100", "EDA080"] {
            refused(&server, &packet(&format!("{:04X} {filter} 00", filter.len() / 2)), MALFORMED); // MQTT-4.7.1
        }
        for share in ["$share", "$share/g", "$share/g/", "$share//t", "$share/+/t", "$share/#/t"] {
            let filter = digits(share);
            refused(&server, &packet(&format!("{:04X} {filter} 00", share.len())), PROTOCOL); // MQTT-4.8.2-1, -2
        }
        accepted(&server, &packet("0001 23 00 0001 2B 01 0003 2B2F23 02"));
    }
    let v5 = server(Version::V5);
    refused(&server(Version::V4), "82 06 1234 0001 70 04", MALFORMED); // 3.1.1, MQTT-3.8.3-4
    accepted(&v5, "82 07 1234 00 0001 70 2E");
    refused(&v5, "82 07 1234 00 0001 70 30", MALFORMED); // retain handling 3
    refused(&v5, "82 10 1234 00 000A 2473686172652F672F74 04", PROTOCOL); // MQTT-3.8.3-4, no local on a shared one
    refused(&v5, "82 09 0001 02 0B00 0001 70 00", MALFORMED); // subscription identifier 0
    refused(&v5, "82 0B 0001 04 0B01 0B01 0001 70 00", PROTOCOL); // twice
    let deep = "2F".repeat(200);
    accepted(&v5, &format!("82 CE 01 0001 00 00C8 {deep} 00")); // the session's to refuse, alone
}

#[test]
fn unsubscribe_3_10() {
    refused(&server(Version::V5), "A2 03 1234 00", MALFORMED); // MQTT-3.10.3-2
    refused(&server(Version::V4), "A2 02 1234", MALFORMED);
    refused(&server(Version::V5), "A2 06 0000 00 0001 70", PROTOCOL);
    refused(&server(Version::V5), "A2 08 1234 02 0B01 0001 70", MALFORMED); // not a property of UNSUBSCRIBE
    refused(&server(Version::V5), "A2 07 1234 00 0002 6123", MALFORMED);
    accepted(&server(Version::V5), "A2 09 1234 00 0001 70 0001 71");
}

#[test]
fn suback_and_unsuback_3_9() {
    let v5 = client(Version::V5);
    accepted(&v5, "90 06 0001 00 00 01 97");
    refused(&v5, "90 04 0001 00 11", PROTOCOL);
    refused(&v5, "90 03 0001 00", MALFORMED); // no codes at all
    refused(&client(Version::V4), "90 03 0001 03", PROTOCOL); // 3.1.1, MQTT-3.9.3-2: reserved
    accepted(&client(Version::V4), "90 03 0001 80");
    accepted(&client(Version::V4), "B0 02 0001");
    refused(&client(Version::V4), "B0 03 0001 00", MALFORMED);
    accepted(&v5, "B0 05 0001 00 11 00");
    refused(&v5, "B0 04 0001 00 01", PROTOCOL);
}

#[test]
fn connack_3_2() {
    let (v4, v5) = (client(Version::V4), client(Version::V5));
    accepted(&v4, "20 02 01 00");
    refused(&v4, "20 02 02 00", MALFORMED); // MQTT-3.2.2-1
    refused(&v4, "20 02 00 06", MALFORMED); // 3.1.1, Table 3.1: reserved
    refused(&v4, "20 02 01 05", PROTOCOL); // MQTT-3.2.2-6
    refused(&v4, "20 03 00 00 00", MALFORMED);
    refused(&v5, "20 03 00 01 00", PROTOCOL);
    refused(&v5, "20 05 00 00 02 24 02", PROTOCOL); // §3.2.2.3.4
    refused(&v5, "20 06 00 00 03 21 0000", PROTOCOL);
    refused(&v5, "20 08 00 00 05 27 00000000", PROTOCOL);
    accepted(&v5, "20 0D 00 00 0A 22000A 210014 2400 2900");
}

#[test]
fn disconnect_3_14() {
    let (from_client, from_server) = (server(Version::V5), client(Version::V5));
    accepted(&from_client, "E0 00");
    accepted(&from_client, "E0 01 04");
    unanswered(&from_server, "E0 01 04"); // Table 3-10: client only
    unanswered(&from_client, "E0 01 8D"); // server only
    unanswered(&from_client, "E0 01 05"); // none of Table 3-10
    accepted(&from_client, "E0 07 00 05 11 00000001");
    refused(&from_server, "E0 07 00 05 11 00000001", PROTOCOL); // MQTT-3.14.2-2
    refused(&from_client, "E0 03 00 00 00", MALFORMED);
    refused(&server(Version::V4), "E0 01 00", MALFORMED);
}

#[test]
fn auth_3_15() {
    let v5 = server(Version::V5);
    accepted(&v5, "F0 06 18 04 15 0001 70");
    refused(&v5, "F0 00", PROTOCOL); // Success is the server's to say
    accepted(&client(Version::V5), "F0 00");
    refused(&client(Version::V5), "F0 06 19 04 15 0001 70", PROTOCOL); // re-authentication is the client's
    refused(&v5, "F0 02 18 00", PROTOCOL); // §3.15.2.2.2: no method
    refused(&v5, "F0 01 18", MALFORMED);
    refused(&v5, "F0 0A 18 08 15 0001 70 15 0001 70", PROTOCOL);
    let mut without = fresh();
    without.decode(&mut &hex("10 0E 0004 4D515454 05 02 000A 00 0001 70")[..]).expect("valid");
    for any in ["F0", "F1 00", "F0 06 18 04 15 0001 70"] {
        refused(&without, any, PROTOCOL); // MQTT-4.12.0-6
    }
}

#[test]
fn pings_are_empty_3_12() {
    accepted(&server(Version::V4), "C0 00");
    unanswered(&server(Version::V4), "C0 01 00");
    unanswered(&client(Version::V5), "D0 01 00");
    unanswered(&server(Version::V5), "D0 01 00");
    refused(&server(Version::V5), "D0 00", PROTOCOL); // §3.13: from a server only
}

#[test]
fn lists_have_limits() {
    let user = "26 0001 61 0001 62".repeat(outpost_mqtt::USER_PROPERTIES_MAX);
    let publish = |user: &str| {
        let length = hex(user).len();
        let varint = |n: usize| format!("{:02X} {:02X}", n % 128 + 128, n / 128);
        format!("30 {} 0001 70 {} {user}", varint(length + 5), varint(length))
    };
    accepted(&server(Version::V5), &publish(&user));
    let error = refused(
        &server(Version::V5),
        &publish(&format!("{user} 26 0001 61 0001 62")),
        ReasonCode::QuotaExceeded,
    );
    assert!(error.to_string().contains("user properties"), "{error}");
    let filters = "0001 61 00".repeat(outpost_mqtt::packet::FILTERS_MAX + 1);
    refused(&server(Version::V4), &format!("82 86 20 0001 {filters}"), ReasonCode::QuotaExceeded);
}
