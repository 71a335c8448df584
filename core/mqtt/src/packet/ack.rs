//! PUBACK, PUBREC, PUBREL and PUBCOMP on the wire (MQTT 5 and 3.1.1, §3.4–3.7).

use super::{Ack, ReasonCode, Version};
use crate::codec::Leave;
use crate::error::{DecodeError, PacketKind};
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::Reader;

const ALLOWED: PropertySet = PropertySet::of(&[P::ReasonString, P::User]);

/// Tables 3-4 and 3-5 of MQTT 5.
const RECEIVED: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::NoMatchingSubscribers,
    ReasonCode::UnspecifiedError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::NotAuthorized,
    ReasonCode::TopicNameInvalid,
    ReasonCode::PacketIdentifierInUse,
    ReasonCode::QuotaExceeded,
    ReasonCode::PayloadFormatInvalid,
];

/// Tables 3-6 and 3-7.
const RELEASED: &[ReasonCode] = &[ReasonCode::Success, ReasonCode::PacketIdentifierNotFound];

/// Reads the body.
pub(crate) fn decode(version: Version, r: &mut Reader<'_>) -> Result<Ack, DecodeError> {
    let mut ack = Ack::new(r.packet_id()?, ReasonCode::Success);
    // §3.4.2.1: "If the Remaining Length is 2, then there is no Reason Code and the value of 0x00 is used."
    if version != Version::V5 || r.is_empty() {
        return Ok(ack);
    }
    let received = matches!(r.packet(), PacketKind::Puback | PacketKind::Pubrec);
    ack.reason = r.reason(if received { RECEIVED } else { RELEASED })?;
    // §3.4.2.2.1: "If the Remaining Length is less than 4 there is no Property Length and the value of 0 is used."
    if r.is_empty() {
        return Ok(ack);
    }
    let mut properties = PropertyReader::new(r, ALLOWED)?;
    while let Some(p) = properties.next()? {
        match p {
            P::ReasonString => ack.reason_string = properties.string(p)?,
            _ => properties.user(&mut ack.user)?,
        }
    }
    Ok(ack)
}

/// Writes the body, as short as it can be.
pub(crate) fn encode(ack: &Ack, version: Version, leave: Leave, out: &mut Vec<u8>) {
    out.extend_from_slice(&ack.packet_id.get().to_be_bytes());
    let reason_string = leave.reason_string(ack.reason_string.as_ref());
    let user = leave.user(&ack.user);
    let bare = reason_string.is_none() && user.is_empty();
    if version != Version::V5 || (bare && ack.reason == ReasonCode::Success) {
        return;
    }
    out.push(ack.reason as u8);
    if !bare {
        put_properties(out, |w| {
            w.string(P::ReasonString, reason_string);
            w.user(user);
        });
    }
}
