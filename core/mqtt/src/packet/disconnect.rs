//! DISCONNECT on the wire (MQTT 5 and 3.1.1, §3.14).

use super::{Disconnect, ReasonCode, Version};
use crate::codec::Leave;
use crate::error::DecodeError;
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::Reader;

const ALLOWED: PropertySet =
    PropertySet::of(&[P::SessionExpiry, P::ServerReference, P::ReasonString, P::User]);

/// Table 3-10 of MQTT 5, what a client sends.
const FROM_CLIENT: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::DisconnectWithWill,
    ReasonCode::UnspecifiedError,
    ReasonCode::MalformedPacket,
    ReasonCode::ProtocolError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::TopicNameInvalid,
    ReasonCode::ReceiveMaximumExceeded,
    ReasonCode::TopicAliasInvalid,
    ReasonCode::PacketTooLarge,
    ReasonCode::MessageRateTooHigh,
    ReasonCode::QuotaExceeded,
    ReasonCode::AdministrativeAction,
    ReasonCode::PayloadFormatInvalid,
];

/// Table 3-10, what a server sends.
const FROM_SERVER: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::UnspecifiedError,
    ReasonCode::MalformedPacket,
    ReasonCode::ProtocolError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::NotAuthorized,
    ReasonCode::ServerBusy,
    ReasonCode::ServerShuttingDown,
    ReasonCode::KeepAliveTimeout,
    ReasonCode::SessionTakenOver,
    ReasonCode::TopicFilterInvalid,
    ReasonCode::TopicNameInvalid,
    ReasonCode::ReceiveMaximumExceeded,
    ReasonCode::TopicAliasInvalid,
    ReasonCode::PacketTooLarge,
    ReasonCode::MessageRateTooHigh,
    ReasonCode::QuotaExceeded,
    ReasonCode::AdministrativeAction,
    ReasonCode::PayloadFormatInvalid,
    ReasonCode::RetainNotSupported,
    ReasonCode::QoSNotSupported,
    ReasonCode::UseAnotherServer,
    ReasonCode::ServerMoved,
    ReasonCode::SharedSubscriptionsNotSupported,
    ReasonCode::ConnectionRateExceeded,
    ReasonCode::MaximumConnectTime,
    ReasonCode::SubscriptionIdentifiersNotSupported,
    ReasonCode::WildcardSubscriptionsNotSupported,
];

/// Reads the body.
pub(crate) fn decode(
    version: Version,
    from_client: bool,
    r: &mut Reader<'_>,
) -> Result<Disconnect, DecodeError> {
    let mut disconnect = Disconnect::default();
    // §3.14.2.1: "If the Remaining Length is less than 1 the value of 0x00 (Normal disconnection) is used."
    if version != Version::V5 || r.is_empty() {
        return Ok(disconnect);
    }
    // A client that leaves with a word of the server's is gone: there is nobody to explain it to.
    let allowed = if from_client { FROM_CLIENT } else { FROM_SERVER };
    disconnect.reason = r
        .reason(allowed)
        .map_err(|_| r.unanswered("reason code", "is not for this packet (Table 3-10)"))?;
    // §3.14.2.2.1: "If the Remaining Length is less than 2, a value of 0 is used" for the Property Length.
    if r.is_empty() {
        return Ok(disconnect);
    }
    let mut properties = PropertyReader::new(r, ALLOWED)?;
    while let Some(p) = properties.next()? {
        match p {
            P::SessionExpiry => disconnect.session_expiry_s = properties.u32(p)?,
            P::ServerReference => disconnect.server_reference = properties.string(p)?,
            P::ReasonString => disconnect.reason_string = properties.string(p)?,
            _ => properties.user(&mut disconnect.user)?,
        }
    }
    if !from_client && disconnect.session_expiry_s.is_some() {
        return Err(r.protocol("session expiry interval", "is sent by a server (MQTT-3.14.2-2)"));
    }
    Ok(disconnect)
}

/// Writes the body, as short as it can be.
pub(crate) fn encode(disconnect: &Disconnect, version: Version, leave: Leave, out: &mut Vec<u8>) {
    let reason_string = leave.reason_string(disconnect.reason_string.as_ref());
    let user = leave.user(&disconnect.user);
    let bare = disconnect.session_expiry_s.is_none()
        && disconnect.server_reference.is_none()
        && reason_string.is_none()
        && user.is_empty();
    if version != Version::V5 || (bare && disconnect.reason == ReasonCode::Success) {
        return;
    }
    out.push(disconnect.reason as u8);
    if !bare {
        put_properties(out, |w| {
            w.u32(P::SessionExpiry, disconnect.session_expiry_s);
            w.string(P::ReasonString, reason_string);
            w.string(P::ServerReference, disconnect.server_reference.as_ref());
            w.user(user);
        });
    }
}
