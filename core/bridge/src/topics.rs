//! Which topics cross a bridge, in which direction, and what they are called on the other side.

use bytestring::ByteString;
use outpost_model::topic::{TopicError, check_name};
use outpost_model::{QoS, TopicFilter};

/// Which way messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From here to the foreign broker.
    Out,
    /// From the foreign broker to here.
    In,
    /// Either way.
    Both,
}

/// A rule as it is written down: here a topic is `local_prefix` + what fits `pattern`, there `remote_prefix` + the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// A topic filter, without the prefixes. Empty: exactly the two prefixes, one topic each.
    pub pattern: String,
    /// Which way.
    pub direction: Direction,
    /// Messages cross with at most this QoS.
    pub qos: QoS,
    /// What a topic begins with on this node.
    pub local_prefix: String,
    /// What it begins with at the foreign broker.
    pub remote_prefix: String,
}

/// Why a rule cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleError {
    /// The pattern is empty, and so is one of the prefixes.
    Empty,
    /// Prefix and pattern together are no topic filter.
    Filter(String, TopicError),
    /// A prefix has a wildcard in it.
    Wildcard(String),
    /// A bridge has its own queue already.
    Shared,
}

impl std::fmt::Display for RuleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => write!(f, "pattern is empty; then both prefixes are whole topics"),
            Self::Filter(filter, why) => write!(f, "the filter {filter:?} {why}"),
            Self::Wildcard(prefix) => write!(f, "the prefix {prefix:?} has a wildcard in it"),
            Self::Shared => write!(f, "a bridge cannot share a subscription"),
        }
    }
}

/// One direction of a rule, ready for use.
#[derive(Debug, Clone)]
struct Way {
    from: TopicFilter,
    from_prefix: String,
    to_prefix: String,
    qos: QoS,
}

/// All rules of a bridge. The first that fits a topic decides; each message crosses once.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    outgoing: Vec<Way>,
    incoming: Vec<Way>,
}

impl Rules {
    /// From rules as they are written down.
    ///
    /// # Errors
    /// Which rule, counted from 0, cannot be used, and why.
    pub fn new(rules: &[Rule]) -> Result<Self, (usize, RuleError)> {
        let mut all = Self::default();
        for (index, rule) in rules.iter().enumerate() {
            let (local, remote) = (&rule.local_prefix, &rule.remote_prefix);
            let to_remote = way(rule, local, remote).map_err(|why| (index, why))?;
            let to_local = way(rule, remote, local).map_err(|why| (index, why))?;
            if rule.direction != Direction::In {
                all.outgoing.push(to_remote);
            }
            if rule.direction != Direction::Out {
                all.incoming.push(to_local);
            }
        }
        Ok(all)
    }

    /// What to subscribe to on this node.
    pub fn local_filters(&self) -> Vec<(ByteString, QoS)> {
        filters(&self.outgoing)
    }

    /// What to subscribe to at the foreign broker.
    pub fn remote_filters(&self) -> Vec<(ByteString, QoS)> {
        filters(&self.incoming)
    }

    /// What a topic of this node is called at the foreign broker, and the QoS it crosses with; `None`: it does not cross.
    pub fn outgoing(&self, topic: &str) -> Option<(ByteString, QoS)> {
        cross(&self.outgoing, topic)
    }

    /// What a topic of the foreign broker is called on this node, and the QoS it crosses with; `None`: it does not cross.
    pub fn incoming(&self, topic: &str) -> Option<(ByteString, QoS)> {
        cross(&self.incoming, topic)
    }
}

fn way(rule: &Rule, from: &str, to: &str) -> Result<Way, RuleError> {
    if rule.pattern.is_empty() && (from.is_empty() || to.is_empty()) {
        return Err(RuleError::Empty);
    }
    for prefix in [from, to] {
        if prefix.contains(['+', '#']) {
            return Err(RuleError::Wildcard(prefix.to_owned()));
        }
    }
    let text = format!("{from}{}", rule.pattern);
    let filter = TopicFilter::new(text.clone()).map_err(|why| RuleError::Filter(text, why))?;
    if filter.share_group().is_some() {
        return Err(RuleError::Shared);
    }
    Ok(Way { from: filter, from_prefix: from.into(), to_prefix: to.into(), qos: rule.qos })
}

/// A filter that stands in two rules is subscribed to once, with the greater QoS.
fn filters(ways: &[Way]) -> Vec<(ByteString, QoS)> {
    let mut all: Vec<(ByteString, QoS)> = Vec::new();
    for way in ways {
        match all.iter_mut().find(|(filter, _)| filter == way.from.as_byte_string()) {
            Some((_, qos)) => *qos = (*qos).max(way.qos),
            None => all.push((way.from.as_byte_string().clone(), way.qos)),
        }
    }
    all
}

fn cross(ways: &[Way], topic: &str) -> Option<(ByteString, QoS)> {
    let way = ways.iter().find(|way| way.from.matches(topic))?;
    let rest = topic.strip_prefix(way.from_prefix.as_str())?;
    let to = format!("{}{rest}", way.to_prefix);
    // A prefix can make a name too long or too deep.
    check_name(&to).ok()?;
    Some((to.into(), way.qos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(pattern: &str, direction: Direction, local: &str, remote: &str) -> Rule {
        Rule {
            pattern: pattern.into(),
            direction,
            qos: QoS::AtLeastOnce,
            local_prefix: local.into(),
            remote_prefix: remote.into(),
        }
    }

    fn names(found: Option<(ByteString, QoS)>) -> String {
        found.map_or("-".into(), |(topic, _)| topic.to_string())
    }

    #[test]
    fn prefixes_are_exchanged_in_both_directions() {
        let rules = Rules::new(&[
            rule("sensor/#", Direction::Both, "plant/", "site1/"),
            rule("cmd/+", Direction::In, "", "site1/"),
        ])
        .expect("valid");
        assert_eq!(names(rules.outgoing("plant/sensor/1/t")), "site1/sensor/1/t");
        assert_eq!(names(rules.incoming("site1/sensor/1/t")), "plant/sensor/1/t");
        assert_eq!(names(rules.incoming("site1/cmd/7")), "cmd/7");
        assert_eq!(names(rules.outgoing("cmd/7")), "-", "it only comes in");
        assert_eq!(names(rules.incoming("site1/other")), "-");
        assert_eq!(rules.local_filters().len(), 1);
        assert_eq!(rules.remote_filters().len(), 2);
    }

    #[test]
    fn an_empty_pattern_maps_one_topic_to_another() {
        let rules = Rules::new(&[rule("", Direction::Out, "a/b", "c")]).expect("valid");
        assert_eq!(names(rules.outgoing("a/b")), "c");
        assert_eq!(names(rules.outgoing("a/b/c")), "-");
    }

    #[test]
    fn what_cannot_be_used_is_told_by_its_place() {
        let check = |bad: Rule, expected: RuleError| {
            let good = rule("#", Direction::Both, "", "");
            assert_eq!(Rules::new(&[good, bad]).expect_err("it is wrong"), (1, expected));
        };
        check(rule("", Direction::Out, "a", ""), RuleError::Empty);
        check(rule("a", Direction::Out, "+/", ""), RuleError::Wildcard("+/".into()));
        check(rule("$share/g/a", Direction::In, "", ""), RuleError::Shared);
        let bad = Rules::new(&[rule("a/#/b", Direction::In, "", "")]).expect_err("no filter");
        assert!(bad.1.to_string().contains("a/#/b"), "{}", bad.1);
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let mut lower = rule("#", Direction::Out, "", "all/");
        lower.qos = QoS::AtMostOnce;
        let rules = Rules::new(&[rule("a", Direction::Out, "", "one/"), lower]).expect("valid");
        assert_eq!(rules.outgoing("a"), Some(("one/a".into(), QoS::AtLeastOnce)));
        assert_eq!(rules.outgoing("b"), Some(("all/b".into(), QoS::AtMostOnce)));
    }
}
