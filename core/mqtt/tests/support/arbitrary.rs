//! Arbitrary packets, each allowed in its version and direction.

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::{MessageProperties, QoS};
use outpost_mqtt::packet::*;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;

fn name() -> impl Strategy<Value = ByteString> {
    "[a-zA-Z0-9 äß€😀_.-]{0,12}".prop_map(ByteString::from)
}

fn text() -> impl Strategy<Value = ByteString> {
    "[^\u{0}]{0,20}".prop_map(ByteString::from)
}

fn topic() -> impl Strategy<Value = ByteString> {
    "[a-zé$/]{1,24}".prop_map(ByteString::from)
}

fn filter() -> impl Strategy<Value = ByteString> {
    prop_oneof!["(\\$share/g/)?([a-z]{0,4}|\\+)(/([a-z]{0,4}|\\+)){1,4}(/#)?", "#", "\\+"]
        .prop_map(ByteString::from)
}

fn data(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_map(|id| PacketId::new(id).expect("not 0"))
}

fn user(v5: bool) -> BoxedStrategy<UserProperties> {
    if v5 { vec((text(), text()), 0..4).boxed() } else { Just(Vec::new()).boxed() }
}

/// `None` in 3.1.1, perhaps something in 5.
fn opt<T: Clone + std::fmt::Debug + 'static>(
    v5: bool,
    inner: impl Strategy<Value = T> + 'static,
) -> BoxedStrategy<Option<T>> {
    if v5 { of(inner).boxed() } else { Just(None).boxed() }
}

fn message_properties(v5: bool) -> BoxedStrategy<MessageProperties> {
    (opt(v5, any::<bool>()), opt(v5, text()), opt(v5, topic()), opt(v5, data(20)), user(v5))
        .prop_map(|(payload_is_utf8, content_type, response_topic, correlation_data, user)| {
            MessageProperties {
                payload_is_utf8,
                content_type,
                response_topic,
                correlation_data,
                user,
            }
        })
        .boxed()
}

fn connect(version: Version) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let will = (
        topic(),
        data(40),
        qos(),
        any::<bool>(),
        opt(v5, any::<u32>()),
        opt(v5, any::<u32>()),
        message_properties(v5),
    )
        .prop_map(|(topic, payload, qos, retain, delay_s, expiry_s, properties)| {
            Box::new(Will { topic, payload, qos, retain, delay_s, expiry_s, properties })
        });
    let login = (of(name()), of(data(20))).prop_map(move |(name, password)| {
        if v5 || name.is_some() { (name, password) } else { (None, None) }
    });
    let auth = opt(v5, (name(), of(data(20))));
    let limits = (
        opt(v5, any::<u32>()),
        opt(v5, 1..=u16::MAX),
        opt(v5, 1..=u32::MAX),
        opt(v5, any::<u16>()),
        opt(v5, any::<bool>()),
        opt(v5, any::<bool>()),
    );
    (name(), any::<bool>(), any::<u16>(), of(will), login, auth, limits, user(v5))
        .prop_map(
            move |(
                client_id,
                clean_start,
                keep_alive_s,
                will,
                (username, password),
                auth,
                limits,
                user,
            )| {
                let (auth_method, auth_data) =
                    auth.map_or((None, None), |(method, data)| (Some(method), data));
                Packet::Connect(Box::new(Connect {
                    version,
                    bridge: false,
                    client_id,
                    clean_start,
                    keep_alive_s,
                    will,
                    username,
                    password,
                    session_expiry_s: limits.0,
                    receive_max: limits.1,
                    packet_max: limits.2,
                    topic_alias_max: limits.3,
                    request_response_info: limits.4,
                    request_problem_info: limits.5,
                    auth_method,
                    auth_data,
                    user,
                }))
            },
        )
        .boxed()
}

fn connack(version: Version) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let reasons = [0x00, 0x84, 0x85, 0x88, 0x86, 0x87]
        .map(|code| ReasonCode::from_byte(code).expect("known"));
    let numbers = (
        opt(v5, any::<u32>()),
        opt(v5, 1..=u16::MAX),
        opt(v5, select(vec![QoS::AtMostOnce, QoS::AtLeastOnce])),
        opt(v5, 1..=u32::MAX),
        opt(v5, any::<u16>()),
        opt(v5, any::<u16>()),
    );
    let flags = (
        opt(v5, any::<bool>()),
        opt(v5, any::<bool>()),
        opt(v5, any::<bool>()),
        opt(v5, any::<bool>()),
    );
    let texts = (
        opt(v5, name()),
        opt(v5, text()),
        opt(v5, text()),
        opt(v5, text()),
        opt(v5, name()),
        opt(v5, data(20)),
    );
    (any::<bool>(), select(reasons.to_vec()), numbers, flags, texts, user(v5))
        .prop_map(|(present, reason, numbers, flags, texts, user)| {
            Packet::Connack(Box::new(Connack {
                session_present: present && reason == ReasonCode::Success,
                reason,
                session_expiry_s: numbers.0,
                receive_max: numbers.1,
                qos_max: numbers.2,
                packet_max: numbers.3,
                topic_alias_max: numbers.4,
                server_keep_alive_s: numbers.5,
                retain_available: flags.0,
                wildcard_available: flags.1,
                subscription_ids_available: flags.2,
                shared_available: flags.3,
                assigned_client_id: texts.0,
                reason_string: texts.1,
                response_info: texts.2,
                server_reference: texts.3,
                auth_method: texts.4,
                auth_data: texts.5,
                user,
            }))
        })
        .boxed()
}

fn publish(version: Version, from_client: bool) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let ids = if v5 && !from_client {
        vec(1..=268_435_455_u32, 0..3).boxed()
    } else {
        Just(Vec::new()).boxed()
    };
    (
        (any::<bool>(), qos(), any::<bool>(), packet_id()),
        topic(),
        data(300),
        (opt(v5, 1..=u16::MAX), any::<bool>(), opt(v5, any::<u32>())),
        ids,
        message_properties(v5),
    )
        .prop_map(
            |(
                (dup, qos, retain, id),
                topic,
                payload,
                (topic_alias, by_alias, expiry_s),
                ids,
                properties,
            )| {
                let none = properties == MessageProperties::default();
                Packet::Publish(Box::new(Publish {
                    dup: dup && qos != QoS::AtMostOnce,
                    qos,
                    retain,
                    topic: if topic_alias.is_some() && by_alias {
                        ByteString::new()
                    } else {
                        topic
                    },
                    packet_id: (qos != QoS::AtMostOnce).then_some(id),
                    payload,
                    topic_alias,
                    expiry_s,
                    subscription_ids: ids,
                    properties: if none { None } else { Some(Box::new(properties)) },
                }))
            },
        )
        .boxed()
}

fn reasons(codes: &[u8]) -> impl Strategy<Value = ReasonCode> + use<> {
    select(
        codes.iter().map(|code| ReasonCode::from_byte(*code).expect("known")).collect::<Vec<_>>(),
    )
}

fn ack(version: Version) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let ack = move |codes: &[u8]| {
        let reason = if v5 { reasons(codes).boxed() } else { Just(ReasonCode::Success).boxed() };
        (packet_id(), reason, opt(v5, text()), user(v5)).prop_map(
            |(packet_id, reason, reason_string, user)| Ack {
                packet_id,
                reason,
                reason_string,
                user,
            },
        )
    };
    let received = [0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    prop_oneof![
        ack(&received).prop_map(Packet::Puback),
        ack(&received).prop_map(Packet::Pubrec),
        ack(&[0, 0x92]).prop_map(Packet::Pubrel),
        ack(&[0, 0x92]).prop_map(Packet::Pubcomp),
    ]
    .boxed()
}

fn options(v5: bool) -> BoxedStrategy<SubscribeOptions> {
    let handling =
        select(vec![RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::Never]);
    (qos(), any::<bool>(), any::<bool>(), handling)
        .prop_map(move |(qos, no_local, retain_as_published, retain_handling)| {
            if v5 {
                SubscribeOptions { qos, no_local, retain_as_published, retain_handling }
            } else {
                SubscribeOptions { qos, ..SubscribeOptions::default() }
            }
        })
        .boxed()
}

fn subscribe(version: Version) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let filters = vec((filter(), options(v5)), 1..5).prop_map(|mut filters| {
        for (filter, options) in &mut filters {
            options.no_local &= !filter.starts_with("$share/"); // MQTT-3.8.3-4
        }
        filters
    });
    let subscribe = (packet_id(), opt(v5, 1..=268_435_455_u32), filters, user(v5)).prop_map(
        |(packet_id, subscription_id, filters, user)| {
            Packet::Subscribe(Subscribe { packet_id, subscription_id, filters, user })
        },
    );
    let unsubscribe =
        (packet_id(), vec(filter(), 1..5), user(v5)).prop_map(|(packet_id, filters, user)| {
            Packet::Unsubscribe(Unsubscribe { packet_id, filters, user })
        });
    prop_oneof![subscribe, unsubscribe].boxed()
}

fn suback(version: Version) -> BoxedStrategy<Packet> {
    let v5 = version == Version::V5;
    let codes: &[u8] = if v5 { &[0, 1, 2, 0x80, 0x87, 0x8F, 0x9E] } else { &[0, 1, 2, 0x80] };
    let suback = (packet_id(), vec(reasons(codes), 1..5), opt(v5, text()), user(v5)).prop_map(
        |(packet_id, reasons, reason_string, user)| {
            Packet::Suback(Suback { packet_id, reasons, reason_string, user })
        },
    );
    let codes = if v5 {
        vec(reasons(&[0, 0x11, 0x80, 0x87]), 1..5).boxed()
    } else {
        Just(Vec::new()).boxed()
    };
    let unsuback = (packet_id(), codes, opt(v5, text()), user(v5)).prop_map(
        |(packet_id, reasons, reason_string, user)| {
            Packet::Unsuback(Suback { packet_id, reasons, reason_string, user })
        },
    );
    prop_oneof![suback, unsuback].boxed()
}

fn disconnect(version: Version, from_client: bool) -> BoxedStrategy<Packet> {
    if version != Version::V5 {
        return Just(Packet::Disconnect(Box::default())).boxed();
    }
    let codes: &[u8] =
        if from_client { &[0, 0x04, 0x81, 0x98] } else { &[0, 0x81, 0x8D, 0x8E, 0x9C] };
    (
        reasons(codes),
        opt(from_client, any::<u32>()),
        opt(true, text()),
        opt(true, text()),
        user(true),
    )
        .prop_map(|(reason, session_expiry_s, reason_string, server_reference, user)| {
            let packet =
                Disconnect { reason, session_expiry_s, reason_string, server_reference, user };
            Packet::Disconnect(Box::new(packet))
        })
        .boxed()
}

fn auth(from_client: bool) -> BoxedStrategy<Packet> {
    let codes: &[u8] = if from_client { &[0x18, 0x19] } else { &[0, 0x18] };
    (reasons(codes), name(), of(data(20)), of(text()), user(true))
        .prop_map(|(reason, method, data, reason_string, user)| {
            Packet::Auth(Box::new(Auth { reason, method: Some(method), data, reason_string, user }))
        })
        .boxed()
}

/// Any packet this side may send after the CONNECT, and CONNECT itself.
pub fn packet(version: Version, from_client: bool) -> BoxedStrategy<Packet> {
    let mut all = vec![publish(version, from_client), ack(version)];
    if from_client {
        all.extend([
            connect(version),
            subscribe(version),
            Just(Packet::Pingreq).boxed(),
            disconnect(version, true),
        ]);
    } else {
        all.extend([connack(version), suback(version), Just(Packet::Pingresp).boxed()]);
    }
    if version == Version::V5 {
        all.push(auth(from_client));
        if !from_client {
            all.push(disconnect(version, false));
        }
    }
    proptest::strategy::Union::new(all).boxed()
}
