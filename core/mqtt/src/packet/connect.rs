//! CONNECT on the wire (MQTT 5 and 3.1.1, §3.1).

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::{MessageProperties, QoS};

use super::{Connect, Version, Will};
use crate::error::DecodeError;
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::{Reader, put_binary, put_string};

const ALLOWED: PropertySet = PropertySet::of(&[
    P::SessionExpiry,
    P::AuthMethod,
    P::AuthData,
    P::RequestProblemInfo,
    P::RequestResponseInfo,
    P::ReceiveMax,
    P::TopicAliasMax,
    P::User,
    P::PacketMax,
]);

const ALLOWED_WILL: PropertySet = PropertySet::of(&[
    P::PayloadFormat,
    P::MessageExpiry,
    P::ContentType,
    P::ResponseTopic,
    P::CorrelationData,
    P::WillDelay,
    P::User,
]);

/// In the protocol level.
const BRIDGE: u8 = 0x80;
const CLEAN_START: u8 = 0x02;
const WILL: u8 = 0x04;
const WILL_QOS_SHIFT: u8 = 3;
const WILL_RETAIN: u8 = 0x20;
const PASSWORD: u8 = 0x40;
const USERNAME: u8 = 0x80;

/// Reads the body of a CONNECT whose fixed header had these flags.
pub(crate) fn decode(header_flags: u8, r: &mut Reader<'_>) -> Result<Connect, DecodeError> {
    let (version, bridge) = decode_version(r)?;
    // MQTT-2.2.2-2 (2.1.3-1 in 5); in 3.1 the bits are "not used" (3.1 §3.1).
    if header_flags != 0 && version != Version::V3 {
        return Err(r.malformed("fixed header", "has reserved flags set (MQTT-2.1.3-1)"));
    }
    let flags = r.u8("connect flags")?;
    check_flags(flags, version, r)?;
    let mut connect = empty(version);
    connect.bridge = bridge;
    connect.clean_start = flags & CLEAN_START != 0;
    connect.keep_alive_s = r.u16("keep alive")?;
    if version == Version::V5 {
        decode_properties(&mut connect, r)?;
    }
    connect.client_id = r.name("client identifier")?;
    if flags & WILL != 0 {
        connect.will = Some(Box::new(decode_will(flags, version, r)?));
    }
    if flags & USERNAME != 0 {
        connect.username = Some(r.name("user name")?);
    }
    if flags & PASSWORD != 0 {
        connect.password = Some(r.binary("password")?);
    }
    Ok(connect)
}

/// The protocol name and level. "If the Server does not want to accept the CONNECT" because of the name it may just
/// close (MQTT-3.1.2-1); because of the level it answers 0x84 (MQTT-3.1.2-2).
fn decode_version(r: &mut Reader<'_>) -> Result<(Version, bool), DecodeError> {
    let name = r.string("protocol name")?;
    if name != "MQTT" && name != "MQIsdp" {
        return Err(r.protocol("protocol name", "is not MQTT (MQTT-3.1.2-1)"));
    }
    match (&*name, r.u8("protocol level")?) {
        ("MQIsdp", 3) => Ok((Version::V3, false)),
        ("MQTT", 4) => Ok((Version::V4, false)),
        ("MQTT", 5) => Ok((Version::V5, false)),
        ("MQIsdp", 0x83) => Ok((Version::V3, true)),
        ("MQTT", 0x84) => Ok((Version::V4, true)),
        (_, level) => Err(DecodeError::UnsupportedVersion { level }),
    }
}

fn check_flags(flags: u8, version: Version, r: &Reader<'_>) -> Result<(), DecodeError> {
    const FIELD: &str = "connect flags";
    if flags & 0x01 != 0 && version != Version::V3 {
        return Err(r.malformed(FIELD, "have the reserved flag set (MQTT-3.1.2-3)"));
    }
    let will_qos = flags >> WILL_QOS_SHIFT & 3;
    if will_qos == 3 {
        return Err(r.malformed(FIELD, "have will QoS 3 (MQTT-3.1.2-12)"));
    }
    if flags & WILL == 0 && (will_qos != 0 || flags & WILL_RETAIN != 0) {
        return Err(
            r.malformed(FIELD, "have will QoS or will retain without a will (MQTT-3.1.2-11, -13)")
        );
    }
    // 3.1.1 only, [MQTT-3.1.2-22]; 5 allows a password alone (§3.1.2.9).
    if flags & PASSWORD != 0 && flags & USERNAME == 0 && version != Version::V5 {
        return Err(
            r.malformed(FIELD, "have a password without a user name (3.1.1, MQTT-3.1.2-22)")
        );
    }
    Ok(())
}

pub(super) fn empty(version: Version) -> Connect {
    Connect {
        version,
        bridge: false,
        client_id: ByteString::new(),
        clean_start: false,
        keep_alive_s: 0,
        will: None,
        username: None,
        password: None,
        session_expiry_s: None,
        receive_max: None,
        packet_max: None,
        topic_alias_max: None,
        request_response_info: None,
        request_problem_info: None,
        auth_method: None,
        auth_data: None,
        user: Vec::new(),
    }
}

fn decode_properties(connect: &mut Connect, r: &mut Reader<'_>) -> Result<(), DecodeError> {
    let mut properties = PropertyReader::new(r, ALLOWED)?;
    while let Some(p) = properties.next()? {
        match p {
            P::SessionExpiry => connect.session_expiry_s = properties.u32(p)?,
            P::ReceiveMax => connect.receive_max = properties.u16_not_0(p)?,
            P::PacketMax => connect.packet_max = properties.u32_not_0(p)?,
            P::TopicAliasMax => connect.topic_alias_max = properties.u16(p)?,
            P::RequestResponseInfo => connect.request_response_info = properties.bool(p)?,
            P::RequestProblemInfo => connect.request_problem_info = properties.bool(p)?,
            P::AuthMethod => connect.auth_method = properties.name(p)?,
            P::AuthData => connect.auth_data = properties.binary(p)?,
            _ => properties.user(&mut connect.user)?,
        }
    }
    if connect.auth_data.is_some() && connect.auth_method.is_none() {
        return Err(r.protocol("authentication data", "comes without a method (§3.1.2.11.10)"));
    }
    Ok(())
}

fn decode_will(flags: u8, version: Version, r: &mut Reader<'_>) -> Result<Will, DecodeError> {
    let mut will = Will {
        topic: ByteString::new(),
        payload: Bytes::new(),
        qos: QoS::from_bits(flags >> WILL_QOS_SHIFT & 3).expect("3 was refused with the flags"),
        retain: flags & WILL_RETAIN != 0,
        delay_s: None,
        expiry_s: None,
        properties: MessageProperties::default(),
    };
    if version == Version::V5 {
        let mut properties = PropertyReader::new(r, ALLOWED_WILL)?;
        while let Some(p) = properties.next()? {
            match p {
                P::WillDelay => will.delay_s = properties.u32(p)?,
                P::MessageExpiry => will.expiry_s = properties.u32(p)?,
                _ => properties.message(p, &mut will.properties)?,
            }
        }
    }
    will.topic = r.topic_name("will topic")?;
    will.payload = r.binary("will payload")?;
    Ok(will)
}

/// Writes the body.
pub(crate) fn encode(connect: &Connect, out: &mut Vec<u8>) {
    put_string(out, if connect.version == Version::V3 { "MQIsdp" } else { "MQTT" });
    out.push(connect.version as u8 | if connect.bridge { BRIDGE } else { 0 });
    out.push(flags_of(connect));
    out.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    if connect.version == Version::V5 {
        encode_properties(connect, out);
    }
    put_string(out, &connect.client_id);
    if let Some(will) = &connect.will {
        if connect.version == Version::V5 {
            put_properties(out, |w| {
                w.u32(P::WillDelay, will.delay_s);
                w.u32(P::MessageExpiry, will.expiry_s);
                w.message(&will.properties);
            });
        }
        put_string(out, &will.topic);
        put_binary(out, &will.payload);
    }
    if let Some(username) = &connect.username {
        put_string(out, username);
    }
    if let Some(password) = &connect.password {
        put_binary(out, password);
    }
}

fn flags_of(connect: &Connect) -> u8 {
    let will = connect.will.as_ref().map_or(0, |will| {
        WILL | (will.qos as u8) << WILL_QOS_SHIFT | if will.retain { WILL_RETAIN } else { 0 }
    });
    will | if connect.clean_start { CLEAN_START } else { 0 }
        | if connect.username.is_some() { USERNAME } else { 0 }
        | if connect.password.is_some() { PASSWORD } else { 0 }
}

fn encode_properties(connect: &Connect, out: &mut Vec<u8>) {
    put_properties(out, |w| {
        w.u32(P::SessionExpiry, connect.session_expiry_s);
        w.u16(P::ReceiveMax, connect.receive_max);
        w.u32(P::PacketMax, connect.packet_max);
        w.u16(P::TopicAliasMax, connect.topic_alias_max);
        w.bool(P::RequestResponseInfo, connect.request_response_info);
        w.bool(P::RequestProblemInfo, connect.request_problem_info);
        w.string(P::AuthMethod, connect.auth_method.as_ref());
        w.binary(P::AuthData, connect.auth_data.as_ref());
        w.user(&connect.user);
    });
}
