//! The way a message has come: a user property that bridges write and read, so that nothing goes in circles.
//!
//! `outpost-path: <event> <broker> <broker> …`: which message it is, by the broker that first sent it over a bridge, and
//! every broker it has been at. A broker that finds itself in it drops the message; one that has seen the event before,
//! by another way, drops the copy.

use std::collections::{BTreeSet, VecDeque};

use bytestring::ByteString;
use outpost_model::MessageProperties;

/// The name of the user property (MQTT 5, §3.3.2.3.7).
pub const PATH_PROPERTY: &str = "outpost-path";

/// The user property of a CONNECT by which a bridge tells a listening Outpost that it is one.
pub const BRIDGE_PROPERTY: &str = "outpost-bridge";

/// Brokers a message may pass. Lower cuts off long chains; higher lets a property that somebody made up grow.
pub const HOPS_MAX: usize = 16;

/// Events of bridges that are remembered. Lower: a copy that comes much later than the first is taken for another
/// message; higher costs some 50 bytes each.
pub const EVENTS_MAX: usize = 16_384;

/// What a path says to a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It came over no bridge, or the property is none of ours.
    Untold,
    /// It was here before.
    Loop,
    /// It has passed more than [`HOPS_MAX`] brokers.
    TooFar,
    /// Not yet, by this path. The event names it.
    New(ByteString),
}

/// What the path of a message says to this broker.
pub fn verdict(properties: Option<&MessageProperties>, own: &str) -> Verdict {
    let Some(value) = properties.and_then(find) else { return Verdict::Untold };
    let mut words = value.split(' ');
    let Some(event) = words.next().filter(|event| is_word(event)) else { return Verdict::Untold };
    let mut count = 0;
    for hop in words {
        if hop == own {
            return Verdict::Loop;
        }
        count += 1;
    }
    if count > HOPS_MAX { Verdict::TooFar } else { Verdict::New(ByteString::from(event)) }
}

/// The properties of a message on its way over a bridge: this broker is added to its path, or begins it.
pub fn extended(
    properties: Option<&MessageProperties>,
    own: &str,
    event: impl FnOnce() -> String,
) -> MessageProperties {
    let mut all = properties.cloned().unwrap_or_default();
    match all.user.iter_mut().find(|(key, _)| key == PATH_PROPERTY) {
        Some((_, value)) if value.split(' ').skip(1).any(|hop| hop == own) => {}
        Some((_, value)) => *value = format!("{value} {own}").into(),
        None => all
            .user
            .push((ByteString::from_static(PATH_PROPERTY), format!("{} {own}", event()).into())),
    }
    all
}

/// Takes the property away: whoever set it is no bridge.
pub fn strip(properties: &mut MessageProperties) {
    properties.user.retain(|(key, _)| key != PATH_PROPERTY);
}

/// The events that have come, the last [`EVENTS_MAX`] of them.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    known: BTreeSet<ByteString>,
    order: VecDeque<ByteString>,
}

impl Seen {
    /// Whether an event was here before.
    pub fn contains(&self, event: &ByteString) -> bool {
        self.known.contains(event)
    }

    /// Remembers an event whose message was taken.
    pub fn insert(&mut self, event: &ByteString) {
        // Copied: an event must not keep the packet it came in alive.
        let event = ByteString::from(event.to_string());
        if !self.known.insert(event.clone()) {
            return;
        }
        self.order.push_back(event);
        if self.order.len() > EVENTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

fn find(properties: &MessageProperties) -> Option<&ByteString> {
    properties.user.iter().find(|(key, _)| key == PATH_PROPERTY).map(|(_, value)| value)
}

/// What an event looks like: short, of letters, digits and hyphens.
fn is_word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_knows_what_has_been_at_it() {
        let at_a = extended(None, "a", || "a-1".into());
        assert_eq!(verdict(Some(&at_a), "b"), Verdict::New("a-1".into()));
        let at_b = extended(Some(&at_a), "b", || unreachable!("it has a path"));
        assert_eq!(verdict(Some(&at_b), "a"), Verdict::Loop);
        assert_eq!(verdict(Some(&at_b), "c"), Verdict::New("a-1".into()), "the same event");
        assert_eq!(extended(Some(&at_b), "b", String::new), at_b, "once each");
        assert_eq!(verdict(None, "a"), Verdict::Untold);
    }

    #[test]
    fn what_others_write_there_is_harmless() {
        let with = |value: &str| MessageProperties {
            user: vec![(PATH_PROPERTY.into(), value.into())],
            ..MessageProperties::default()
        };
        assert_eq!(verdict(Some(&with("")), "a"), Verdict::Untold);
        assert_eq!(verdict(Some(&with("ünicode x")), "a"), Verdict::Untold);
        assert_eq!(verdict(Some(&with(&"x".repeat(65))), "a"), Verdict::Untold);
        let long = format!("e{}", " h".repeat(HOPS_MAX + 1));
        assert_eq!(verdict(Some(&with(&long)), "a"), Verdict::TooFar);
    }

    #[test]
    fn the_oldest_event_is_forgotten_first() {
        let mut seen = Seen::default();
        for n in 0..=EVENTS_MAX {
            seen.insert(&format!("e-{n}").into());
        }
        assert!(!seen.contains(&"e-0".into()) && seen.contains(&"e-1".into()));
        assert_eq!(seen.known.len(), EVENTS_MAX);
    }
}
