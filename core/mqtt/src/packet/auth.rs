//! AUTH on the wire (MQTT 5, §3.15).

use super::{Auth, ReasonCode};
use crate::codec::Leave;
use crate::error::DecodeError;
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::Reader;

const ALLOWED: PropertySet =
    PropertySet::of(&[P::AuthMethod, P::AuthData, P::ReasonString, P::User]);

/// Table 3-11: who may send which.
const FROM_CLIENT: &[ReasonCode] =
    &[ReasonCode::ContinueAuthentication, ReasonCode::ReAuthenticate];
const FROM_SERVER: &[ReasonCode] = &[ReasonCode::Success, ReasonCode::ContinueAuthentication];

/// Reads the body.
pub(crate) fn decode(from_client: bool, r: &mut Reader<'_>) -> Result<Auth, DecodeError> {
    let mut auth = Auth::default();
    // §3.15.2.1: "The Reason Code and Property Length can be omitted if the Reason Code is 0x00 (Success) and there are
    // no Properties." Only a server says Success.
    if r.is_empty() {
        let refused =
            r.protocol("reason code", "is Success, which only a server sends (Table 3-11)");
        return if from_client { Err(refused) } else { Ok(auth) };
    }
    auth.reason = r.reason(if from_client { FROM_CLIENT } else { FROM_SERVER })?;
    let mut properties = PropertyReader::new(r, ALLOWED)?;
    while let Some(p) = properties.next()? {
        match p {
            P::AuthMethod => auth.method = properties.name(p)?,
            P::AuthData => auth.data = properties.binary(p)?,
            P::ReasonString => auth.reason_string = properties.string(p)?,
            _ => properties.user(&mut auth.user)?,
        }
    }
    // §3.15.2.2.2: "It is a Protocol Error to omit the Authentication Method."
    if auth.method.is_none() {
        return Err(r.protocol("authentication method", "is missing (§3.15.2.2.2)"));
    }
    Ok(auth)
}

/// Writes the body.
pub(crate) fn encode(auth: &Auth, leave: Leave, out: &mut Vec<u8>) {
    let reason_string = leave.reason_string(auth.reason_string.as_ref());
    let user = leave.user(&auth.user);
    let bare =
        auth.method.is_none() && auth.data.is_none() && reason_string.is_none() && user.is_empty();
    if bare && auth.reason == ReasonCode::Success {
        return;
    }
    out.push(auth.reason as u8);
    put_properties(out, |w| {
        w.string(P::AuthMethod, auth.method.as_ref());
        w.binary(P::AuthData, auth.data.as_ref());
        w.string(P::ReasonString, reason_string);
        w.user(user);
    });
}
