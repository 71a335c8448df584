//! Topic names and topic filters (MQTT 5, §4.7).

use std::fmt;

use bytestring::ByteString;

/// More levels than this are refused: a name of 65,535 slashes costs its sender nothing and a tree walk a lot.
pub const TOPIC_LEVELS_MAX: usize = 128;

/// Why a topic name or filter was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Zero characters (MQTT-4.7.3-1).
    #[error("is empty")]
    Empty,
    /// Holds U+0000 (MQTT-4.7.3-2).
    #[error("holds a NUL character")]
    Nul,
    /// More than [`TOPIC_LEVELS_MAX`] levels.
    #[error("has more than {TOPIC_LEVELS_MAX} levels")]
    TooDeep,
    /// `+` or `#` in a name (MQTT-3.3.2-2).
    #[error("is a topic name and must not hold the wildcards + or #")]
    WildcardInName,
    /// `#` not alone in the last level, or `+` not alone in its level (MQTT-4.7.1-1, -2).
    #[error("has a wildcard that does not fill its level, or a # before the end")]
    MisplacedWildcard,
    /// `$share/…` without a group name or a filter (MQTT-4.8.2-1, -2).
    #[error("is a shared subscription without a valid group name and filter")]
    BadShare,
}

/// Checks a topic name, what a PUBLISH carries.
///
/// # Errors
/// [`TopicError`] says which rule it breaks.
pub fn check_name(name: &str) -> Result<(), TopicError> {
    if check_common(name)? & WILD != 0 { Err(TopicError::WildcardInName) } else { Ok(()) }
}

/// What kinds of bytes a text has.
fn check_common(text: &str) -> Result<u8, TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    // Without a branch for each byte: every PUBLISH comes by here.
    let kinds = text.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)]);
    if kinds & NUL != 0 {
        return Err(TopicError::Nul);
    }
    let may_be_deep = text.len() >= TOPIC_LEVELS_MAX;
    if may_be_deep && text.bytes().filter(|b| *b == b'/').count() >= TOPIC_LEVELS_MAX {
        return Err(TopicError::TooDeep);
    }
    Ok(kinds)
}

const NUL: u8 = 1;
const WILD: u8 = 2;

/// The kind of each byte that matters in a topic.
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    kinds[0] = NUL;
    kinds[b'+' as usize] = WILD;
    kinds[b'#' as usize] = WILD;
    kinds
};

/// A checked topic filter, with its share group when it is a shared subscription.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter {
    whole: ByteString,
    /// Where the filter proper begins in `whole`; 0 unless shared.
    start: usize,
}

impl TopicFilter {
    /// Checks a filter as a SUBSCRIBE carries it, `$share/<group>/<filter>` included.
    ///
    /// # Errors
    /// [`TopicError`] says which rule it breaks.
    pub fn new(text: impl Into<ByteString>) -> Result<Self, TopicError> {
        let whole = text.into();
        let kinds = check_common(&whole)?;
        let mut start = 0;
        if let Some(rest) = whole.strip_prefix("$share/") {
            let (group, filter) = rest.split_once('/').ok_or(TopicError::BadShare)?;
            if group.is_empty() || filter.is_empty() || group.contains(['+', '#']) {
                return Err(TopicError::BadShare);
            }
            start = whole.len() - filter.len();
        } else if whole == "$share" {
            return Err(TopicError::BadShare);
        }
        let mut levels = whole[start..].split('/').peekable();
        while kinds & WILD != 0
            && let Some(level) = levels.next()
        {
            let wild = level.contains(['+', '#']);
            if wild && (level.len() > 1 || (level == "#" && levels.peek().is_some())) {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Self { whole, start })
    }

    /// The filter as the client wrote it, with `$share/<group>/`.
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// The filter as the client wrote it, sharing its bytes.
    pub fn as_byte_string(&self) -> &ByteString {
        &self.whole
    }

    /// The part that topics are matched against.
    pub fn pattern(&self) -> &str {
        &self.whole[self.start..]
    }

    /// The pattern in the text of a filter that was checked before.
    pub fn pattern_of(whole: &str) -> &str {
        let shared = whole.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
        shared.map_or(whole, |(_, pattern)| pattern)
    }

    /// The share group, when there is one.
    pub fn share_group(&self) -> Option<&str> {
        (self.start > 0).then(|| &self.whole["$share/".len()..self.start - 1])
    }

    /// Whether it is a plain name, without wildcards.
    pub fn is_exact(&self) -> bool {
        !self.pattern().contains(['+', '#'])
    }

    /// Whether `topic` matches, by the rules of §4.7.
    pub fn matches(&self, topic: &str) -> bool {
        pattern_matches(self.pattern(), topic)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether `topic` matches `pattern` (§4.7.1), wildcards not matching a leading `$` (MQTT-4.7.2-1).
pub fn pattern_matches(pattern: &str, topic: &str) -> bool {
    if topic.starts_with('$') && pattern.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in pattern.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TopicTable;

    /// The single matcher, the table, and the expectation must say the same.
    fn check(pattern: &str, topic: &str, expected: bool) {
        let filter = TopicFilter::new(pattern).expect("a valid filter");
        assert_eq!(filter.matches(topic), expected, "{pattern} against {topic}");
        let mut table = TopicTable::default();
        table.insert(&"other/+/#".into(), 0);
        table.insert(&filter.pattern().into(), 1);
        let mut found = Vec::new();
        table.matches(topic, |k| found.push(*k));
        assert_eq!(found.contains(&1), expected, "table: {pattern} against {topic}");
    }

    #[test]
    fn wildcards_of_mqtt5_4_7_1() {
        check("plant/+/temp", "plant/7/temp", true);
        check("plant/+/temp", "plant/7/8/temp", false);
        check("plant/#", "plant", true); // "#" includes the parent level, §4.7.1.2
        check("plant/#", "plant/7/temp", true);
        check("+", "plant", true);
        check("+", "/plant", false);
        check("+/+", "/plant", true);
        check("/+", "/plant", true);
        check("#", "a/b/c", true);
        check("a//b", "a//b", true);
        check("a/+/b", "a//b", true);
        check("a/b/", "a/b", false);
    }

    #[test]
    fn wildcards_do_not_match_a_leading_dollar_4_7_2_1() {
        check("#", "$SYS/broker", false);
        check("+/broker", "$SYS/broker", false);
        check("$SYS/#", "$SYS/broker", true);
        check("$SYS/+", "$SYS/broker", true);
        check("$share/g/#", "a/b", true);
    }

    #[test]
    fn malformed_filters_are_refused() {
        for bad in [
            "",
            "a#",
            "#/a",
            "a/#/b",
            "+a",
            "a/b+",
            "a\0",
            "$share",
            "$share/g",
            "$share/g/",
            "$share//t",
            "$share/+/t",
        ] {
            assert!(TopicFilter::new(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(TopicFilter::new("/".repeat(200)).is_err());
        assert_eq!(check_name("a/+"), Err(TopicError::WildcardInName));
    }

    #[test]
    fn a_shared_filter_knows_its_group_and_pattern() {
        let filter = TopicFilter::new("$share/workers/jobs/#").expect("valid");
        assert_eq!((filter.share_group(), filter.pattern()), (Some("workers"), "jobs/#"));
    }
}
