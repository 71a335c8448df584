//! CONNACK on the wire (MQTT 5 and 3.1.1, §3.2).

use outpost_model::QoS;

use super::{Connack, ReasonCode, Version};
use crate::codec::Leave;
use crate::error::DecodeError;
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::Reader;

const ALLOWED: PropertySet = PropertySet::of(&[
    P::SessionExpiry,
    P::AssignedClientId,
    P::ServerKeepAlive,
    P::AuthMethod,
    P::AuthData,
    P::ResponseInfo,
    P::ServerReference,
    P::ReasonString,
    P::ReceiveMax,
    P::TopicAliasMax,
    P::QosMax,
    P::RetainAvailable,
    P::User,
    P::PacketMax,
    P::WildcardAvailable,
    P::SubscriptionIdsAvailable,
    P::SharedAvailable,
]);

/// Table 3-1 of MQTT 5.
const REASONS: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::UnspecifiedError,
    ReasonCode::MalformedPacket,
    ReasonCode::ProtocolError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::UnsupportedProtocolVersion,
    ReasonCode::ClientIdentifierNotValid,
    ReasonCode::BadUserNameOrPassword,
    ReasonCode::NotAuthorized,
    ReasonCode::ServerUnavailable,
    ReasonCode::ServerBusy,
    ReasonCode::Banned,
    ReasonCode::BadAuthenticationMethod,
    ReasonCode::TopicNameInvalid,
    ReasonCode::PacketTooLarge,
    ReasonCode::QuotaExceeded,
    ReasonCode::PayloadFormatInvalid,
    ReasonCode::RetainNotSupported,
    ReasonCode::QoSNotSupported,
    ReasonCode::UseAnotherServer,
    ReasonCode::ServerMoved,
    ReasonCode::ConnectionRateExceeded,
];

/// The return codes of 3.1.1, Table 3.1: the place is the code.
const RETURN_CODES: [ReasonCode; 6] = [
    ReasonCode::Success,
    ReasonCode::UnsupportedProtocolVersion,
    ReasonCode::ClientIdentifierNotValid,
    ReasonCode::ServerUnavailable,
    ReasonCode::BadUserNameOrPassword,
    ReasonCode::NotAuthorized,
];

/// Reads the body.
pub(crate) fn decode(version: Version, r: &mut Reader<'_>) -> Result<Connack, DecodeError> {
    let flags = r.u8("connect acknowledge flags")?;
    if flags > 1 {
        return Err(
            r.malformed("connect acknowledge flags", "have reserved bits set (MQTT-3.2.2-1)")
        );
    }
    let mut connack = Connack { session_present: flags == 1, ..Connack::default() };
    if version == Version::V5 {
        connack.reason = r.reason(REASONS)?;
        decode_properties(&mut connack, r)?;
    } else {
        let code = usize::from(r.u8("return code")?);
        connack.reason = *RETURN_CODES
            .get(code)
            .ok_or_else(|| r.malformed("return code", "is reserved (Table 3.1)"))?;
    }
    if connack.session_present && connack.reason != ReasonCode::Success {
        return Err(r.protocol("session present", "is set on a refusal (MQTT-3.2.2-6)"));
    }
    Ok(connack)
}

fn decode_properties(connack: &mut Connack, r: &mut Reader<'_>) -> Result<(), DecodeError> {
    let mut properties = PropertyReader::new(r, ALLOWED)?;
    while let Some(p) = properties.next()? {
        match p {
            P::SessionExpiry => connack.session_expiry_s = properties.u32(p)?,
            P::ReceiveMax => connack.receive_max = properties.u16_not_0(p)?,
            P::QosMax => {
                connack.qos_max = properties
                    .bool(p)?
                    .map(|one| if one { QoS::AtLeastOnce } else { QoS::AtMostOnce });
            }
            P::RetainAvailable => connack.retain_available = properties.bool(p)?,
            P::PacketMax => connack.packet_max = properties.u32_not_0(p)?,
            P::AssignedClientId => connack.assigned_client_id = properties.name(p)?,
            P::TopicAliasMax => connack.topic_alias_max = properties.u16(p)?,
            P::ReasonString => connack.reason_string = properties.string(p)?,
            P::WildcardAvailable => connack.wildcard_available = properties.bool(p)?,
            P::SubscriptionIdsAvailable => {
                connack.subscription_ids_available = properties.bool(p)?;
            }
            P::SharedAvailable => connack.shared_available = properties.bool(p)?,
            P::ServerKeepAlive => connack.server_keep_alive_s = properties.u16(p)?,
            P::ResponseInfo => connack.response_info = properties.string(p)?,
            P::ServerReference => connack.server_reference = properties.string(p)?,
            P::AuthMethod => connack.auth_method = properties.name(p)?,
            P::AuthData => connack.auth_data = properties.binary(p)?,
            _ => properties.user(&mut connack.user)?,
        }
    }
    Ok(())
}

/// Writes the body. `qos_max` 2 is not written: absence means it (§3.2.2.3.4).
pub(crate) fn encode(connack: &Connack, version: Version, leave: Leave, out: &mut Vec<u8>) {
    // MQTT-3.2.2-6: "If a Server sends a CONNACK packet containing a non-zero Reason Code it MUST set Session Present to 0."
    out.push(u8::from(connack.session_present && connack.reason == ReasonCode::Success));
    if version != Version::V5 {
        out.push(return_code(connack.reason));
        return;
    }
    out.push(connack.reason as u8);
    put_properties(out, |w| {
        w.u32(P::SessionExpiry, connack.session_expiry_s);
        w.u16(P::TopicAliasMax, connack.topic_alias_max);
        w.u16(P::ReceiveMax, connack.receive_max);
        w.u8(
            P::QosMax,
            connack.qos_max.filter(|qos| *qos != QoS::ExactlyOnce).map(|qos| qos as u8),
        );
        w.bool(P::RetainAvailable, connack.retain_available);
        w.u32(P::PacketMax, connack.packet_max);
        w.string(P::AssignedClientId, connack.assigned_client_id.as_ref());
        w.string(P::ReasonString, leave.reason_string(connack.reason_string.as_ref()));
        w.bool(P::WildcardAvailable, connack.wildcard_available);
        w.bool(P::SubscriptionIdsAvailable, connack.subscription_ids_available);
        w.bool(P::SharedAvailable, connack.shared_available);
        w.u16(P::ServerKeepAlive, connack.server_keep_alive_s);
        w.string(P::ResponseInfo, connack.response_info.as_ref());
        w.string(P::ServerReference, connack.server_reference.as_ref());
        w.string(P::AuthMethod, connack.auth_method.as_ref());
        w.binary(P::AuthData, connack.auth_data.as_ref());
        w.user(leave.user(&connack.user));
    });
}

/// The return code of 3.1.1 that says most of what a reason says. It has none for "try again later" but 3.
fn return_code(reason: ReasonCode) -> u8 {
    match reason {
        ReasonCode::Success => 0,
        ReasonCode::UnsupportedProtocolVersion => 1,
        ReasonCode::ClientIdentifierNotValid => 2,
        ReasonCode::BadUserNameOrPassword | ReasonCode::BadAuthenticationMethod => 4,
        ReasonCode::NotAuthorized | ReasonCode::Banned => 5,
        _ => 3,
    }
}
