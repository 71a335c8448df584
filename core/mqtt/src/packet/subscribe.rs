//! SUBSCRIBE and UNSUBSCRIBE on the wire (MQTT 5 and 3.1.1, §3.8, §3.10).

use bytestring::ByteString;
use outpost_model::topic::TopicError;
use outpost_model::{QoS, TopicFilter};

use super::{RetainHandling, Subscribe, SubscribeOptions, Unsubscribe, Version};
use crate::error::DecodeError;
use crate::properties::{Property as P, PropertyReader, PropertySet, put_properties};
use crate::wire::{Reader, put_string};

/// More filters in one SUBSCRIBE or UNSUBSCRIBE are refused. Lower turns away gateways that subscribe to all their
/// devices at once; each filter costs a walk of the topic table and up to a few hundred bytes.
pub const FILTERS_MAX: usize = 1024;

const ALLOWED_SUBSCRIBE: PropertySet = PropertySet::of(&[P::SubscriptionId, P::User]);
const ALLOWED_UNSUBSCRIBE: PropertySet = PropertySet::of(&[P::User]);

const NO_LOCAL: u8 = 0x04;
const RETAIN_AS_PUBLISHED: u8 = 0x08;
const RETAIN_HANDLING_SHIFT: u8 = 4;

/// Reads the body of a SUBSCRIBE.
pub(crate) fn decode_subscribe(
    version: Version,
    r: &mut Reader<'_>,
) -> Result<Subscribe, DecodeError> {
    let mut subscribe = Subscribe {
        packet_id: r.packet_id()?,
        subscription_id: None,
        filters: Vec::new(),
        user: Vec::new(),
    };
    if version == Version::V5 {
        let mut properties = PropertyReader::new(r, ALLOWED_SUBSCRIBE)?;
        while let Some(p) = properties.next()? {
            match p {
                P::SubscriptionId => subscribe.subscription_id = Some(properties.varint_not_0(p)?),
                _ => properties.user(&mut subscribe.user)?,
            }
        }
    }
    while !r.is_empty() {
        check_count(subscribe.filters.len(), r)?;
        let filter = decode_filter(r)?;
        let options = decode_options(version, &filter, r)?;
        subscribe.filters.push((filter, options));
    }
    if subscribe.filters.is_empty() {
        return Err(r.malformed("payload", "holds no topic filter (MQTT-3.8.3-2)"));
    }
    Ok(subscribe)
}

/// Reads the body of an UNSUBSCRIBE.
pub(crate) fn decode_unsubscribe(
    version: Version,
    r: &mut Reader<'_>,
) -> Result<Unsubscribe, DecodeError> {
    let mut unsubscribe =
        Unsubscribe { packet_id: r.packet_id()?, filters: Vec::new(), user: Vec::new() };
    if version == Version::V5 {
        let mut properties = PropertyReader::new(r, ALLOWED_UNSUBSCRIBE)?;
        while properties.next()?.is_some() {
            properties.user(&mut unsubscribe.user)?;
        }
    }
    while !r.is_empty() {
        check_count(unsubscribe.filters.len(), r)?;
        unsubscribe.filters.push(decode_filter(r)?);
    }
    if unsubscribe.filters.is_empty() {
        return Err(r.malformed("payload", "holds no topic filter (MQTT-3.10.3-2)"));
    }
    Ok(unsubscribe)
}

fn check_count(filters: usize, r: &Reader<'_>) -> Result<(), DecodeError> {
    if filters < FILTERS_MAX {
        return Ok(());
    }
    Err(DecodeError::TooMany { packet: r.packet(), what: "topic filters", limit: FILTERS_MAX })
}

/// A filter that breaks the grammar of §4.7 is malformed, one that breaks that of §4.8.2 a Protocol Error. One with too many levels passes: that limit is ours,
/// and the session can refuse it alone, with 0x8F in its SUBACK.
fn decode_filter(r: &mut Reader<'_>) -> Result<ByteString, DecodeError> {
    const FIELD: &str = "topic filter";
    let text = r.name(FIELD)?;
    match TopicFilter::new(text.clone()) {
        Ok(_) | Err(TopicError::TooDeep) => Ok(text),
        Err(TopicError::Empty) => Err(r.malformed(FIELD, "is empty (MQTT-4.7.3-1)")),
        Err(TopicError::BadShare) => {
            Err(r.protocol(FIELD, "is $share without a group and a filter (MQTT-4.8.2-1, -2)"))
        }
        Err(_) => Err(r.malformed(FIELD, "has a wildcard at the wrong place (MQTT-4.7.1-1, -2)")),
    }
}

fn decode_options(
    version: Version,
    filter: &str,
    r: &mut Reader<'_>,
) -> Result<SubscribeOptions, DecodeError> {
    const FIELD: &str = "subscription options";
    let bits = r.u8(FIELD)?;
    let reserved = if version == Version::V5 { 0xC0 } else { 0xFC };
    if bits & reserved != 0 {
        return Err(r.malformed(FIELD, "have reserved bits set (MQTT-3.8.3-5)"));
    }
    // [MQTT-3.8.3-4] of 3.1.1 calls QoS 3 malformed, §3.8.3.1 of 5 a Protocol Error: bits without a meaning are the former
    // here, in both and for retain handling too.
    let qos =
        QoS::from_bits(bits & 3).ok_or_else(|| r.malformed(FIELD, "have QoS 3 (§3.8.3.1)"))?;
    let retain_handling = match bits >> RETAIN_HANDLING_SHIFT & 3 {
        0 => RetainHandling::Send,
        1 => RetainHandling::SendIfNew,
        2 => RetainHandling::Never,
        _ => return Err(r.malformed(FIELD, "have retain handling 3 (§3.8.3.1)")),
    };
    let no_local = bits & NO_LOCAL != 0;
    if no_local && filter.starts_with("$share/") {
        return Err(r.protocol(FIELD, "have no local on a shared subscription (MQTT-3.8.3-4)"));
    }
    Ok(SubscribeOptions {
        qos,
        no_local,
        retain_as_published: bits & RETAIN_AS_PUBLISHED != 0,
        retain_handling,
    })
}

/// Writes the body of a SUBSCRIBE.
pub(crate) fn encode_subscribe(subscribe: &Subscribe, version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(&subscribe.packet_id.get().to_be_bytes());
    if version == Version::V5 {
        put_properties(out, |w| {
            w.varint(P::SubscriptionId, subscribe.subscription_id);
            w.user(&subscribe.user);
        });
    }
    for (filter, options) in &subscribe.filters {
        put_string(out, filter);
        out.push(if version == Version::V5 { bits_of(*options) } else { options.qos as u8 });
    }
}

fn bits_of(options: SubscribeOptions) -> u8 {
    let no_local = if options.no_local { NO_LOCAL } else { 0 };
    let retain_as_published = if options.retain_as_published { RETAIN_AS_PUBLISHED } else { 0 };
    options.qos as u8
        | no_local
        | retain_as_published
        | (options.retain_handling as u8) << RETAIN_HANDLING_SHIFT
}

/// Writes the body of an UNSUBSCRIBE.
pub(crate) fn encode_unsubscribe(unsubscribe: &Unsubscribe, version: Version, out: &mut Vec<u8>) {
    out.extend_from_slice(&unsubscribe.packet_id.get().to_be_bytes());
    if version == Version::V5 {
        put_properties(out, |w| w.user(&unsubscribe.user));
    }
    for filter in &unsubscribe.filters {
        put_string(out, filter);
    }
}
