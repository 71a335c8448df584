//! SUBACK and UNSUBACK on the wire (MQTT 5 and 3.1.1, §3.9, §3.11).

use super::subscribe::FILTERS_MAX;
use super::{ReasonCode, Suback, Version};
use crate::codec::Leave;
use crate::error::{DecodeError, PacketKind};
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::Reader;

const ALLOWED: PropertySet = PropertySet::of(&[P::ReasonString, P::User]);

/// Table 3-8 of MQTT 5.
const SUBACK: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::GrantedQoS1,
    ReasonCode::GrantedQoS2,
    ReasonCode::UnspecifiedError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::NotAuthorized,
    ReasonCode::TopicFilterInvalid,
    ReasonCode::PacketIdentifierInUse,
    ReasonCode::QuotaExceeded,
    ReasonCode::SharedSubscriptionsNotSupported,
    ReasonCode::SubscriptionIdentifiersNotSupported,
    ReasonCode::WildcardSubscriptionsNotSupported,
];

/// 3.1.1, §3.9.3: "SUBACK return codes other than 0x00, 0x01, 0x02 and 0x80 are reserved and MUST NOT be used."
const SUBACK_3: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::GrantedQoS1,
    ReasonCode::GrantedQoS2,
    ReasonCode::UnspecifiedError,
];

/// Table 3-9 of MQTT 5.
const UNSUBACK: &[ReasonCode] = &[
    ReasonCode::Success,
    ReasonCode::NoSubscriptionExisted,
    ReasonCode::UnspecifiedError,
    ReasonCode::ImplementationSpecificError,
    ReasonCode::NotAuthorized,
    ReasonCode::TopicFilterInvalid,
    ReasonCode::PacketIdentifierInUse,
];

/// Reads the body.
pub(crate) fn decode(version: Version, r: &mut Reader<'_>) -> Result<Suback, DecodeError> {
    let mut suback = Suback {
        packet_id: r.packet_id()?,
        reasons: Vec::new(),
        reason_string: None,
        user: Vec::new(),
    };
    let unsuback = r.packet() == PacketKind::Unsuback;
    if version == Version::V5 {
        let mut properties = PropertyReader::new(r, ALLOWED)?;
        while let Some(p) = properties.next()? {
            match p {
                P::ReasonString => suback.reason_string = properties.string(p)?,
                _ => properties.user(&mut suback.user)?,
            }
        }
    } else if unsuback {
        return Ok(suback);
    }
    let allowed = match (unsuback, version) {
        (true, _) => UNSUBACK,
        (false, Version::V5) => SUBACK,
        (false, _) => SUBACK_3,
    };
    while !r.is_empty() {
        if suback.reasons.len() == FILTERS_MAX {
            return Err(DecodeError::TooMany {
                packet: r.packet(),
                what: "reason codes",
                limit: FILTERS_MAX,
            });
        }
        suback.reasons.push(r.reason(allowed)?);
    }
    if suback.reasons.is_empty() {
        return Err(r.malformed("payload", "holds no reason code (§3.9.3)"));
    }
    Ok(suback)
}

/// Writes the body.
pub(crate) fn encode(
    suback: &Suback,
    kind: PacketKind,
    version: Version,
    leave: Leave,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&suback.packet_id.get().to_be_bytes());
    if version == Version::V5 {
        put_properties(out, |w| {
            w.string(P::ReasonString, leave.reason_string(suback.reason_string.as_ref()));
            w.user(leave.user(&suback.user));
        });
        out.extend(suback.reasons.iter().map(|reason| *reason as u8));
    } else if kind == PacketKind::Suback {
        out.extend(
            suback
                .reasons
                .iter()
                .map(|reason| if reason.is_error() { 0x80 } else { *reason as u8 }),
        );
    }
}
