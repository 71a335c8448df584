//! Whose word counts for a key when `desired` and `reported` differ: rules by thing and path.
//!
//! AWS knows one answer: `desired` counts, for ever. A knob that people turn by hand needs another one, and a measured
//! value a third.

use crate::leaves::SEPARATOR;

/// Rules of one node. Fewer and a fleet of many kinds cannot be described; more and each write of `desired` takes longer.
pub const POLICIES_MAX: usize = 256;

/// Whose word counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// `desired`: whatever differs is in the delta. As AWS does.
    #[default]
    Controlled,
    /// `reported`: there is never a delta, and `desired` cannot be written.
    ReportedOnly,
    /// `desired` until the device has shown it once; then whoever turns the knob at the device, till `desired` is written
    /// again or the time is over.
    LocalOverride {
        /// How long a change at the device stands. `None`: till `desired` is written again.
        expiry_ms: Option<u64>,
    },
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRule {
    things: String,
    path: Vec<String>,
    policy: Policy,
}

/// All rules; the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policies(Vec<PolicyRule>);

/// Why a rule is none. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The path is empty or has an empty key.
    #[error(
        "{0:?} is no path: keys with a dot between them, * for one key, # as the last for all below"
    )]
    Path(String),
    /// Too many.
    #[error("there are more than {POLICIES_MAX} rules")]
    TooMany,
}

impl PolicyRule {
    /// `things` is a thing's name in which `*` stands for anything; `path` is keys with dots between them, in which `*` is
    /// one key and a last `#` is everything below.
    ///
    /// # Errors
    /// [`PolicyError::Path`].
    pub fn new(things: &str, path: &str, policy: Policy) -> Result<Self, PolicyError> {
        let keys: Vec<String> = path.split('.').map(str::to_owned).collect();
        let inner_hash = keys.iter().rev().skip(1).any(|key| key == "#");
        if keys.iter().any(String::is_empty) || inner_hash {
            return Err(PolicyError::Path(path.to_owned()));
        }
        Ok(Self { things: things.to_owned(), path: keys, policy })
    }

    fn matches(&self, thing: &str, path: &str) -> bool {
        if !matches_name(&self.things, thing) {
            return false;
        }
        let mut keys = path.split(SEPARATOR).skip(1);
        for wanted in &self.path {
            if wanted == "#" {
                return true;
            }
            if keys.next().is_none_or(|key| wanted != "*" && wanted != key) {
                return false;
            }
        }
        keys.next().is_none()
    }
}

impl Policies {
    /// # Errors
    /// [`PolicyError::TooMany`].
    pub fn new(rules: Vec<PolicyRule>) -> Result<Self, PolicyError> {
        if rules.len() > POLICIES_MAX { Err(PolicyError::TooMany) } else { Ok(Self(rules)) }
    }

    /// There are none: everything is as AWS does.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The policy of a leaf.
    pub fn of(&self, thing: &str, path: &str) -> Policy {
        let rule = self.0.iter().find(|rule| rule.matches(thing, path));
        rule.map_or(Policy::Controlled, |rule| rule.policy)
    }
}

/// `*` stands for any number of characters. Linear: after each `*` the first place that fits is as good as any.
fn matches_name(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(head) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let tail = pieces.pop().unwrap_or("");
    for piece in pieces {
        let Some(at) = name.find(piece) else { return false };
        name = &name[at + piece.len()..];
    }
    name.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rule = |things, path, policy| PolicyRule::new(things, path, policy).expect("a rule");
        let local = Policy::LocalOverride { expiry_ms: None };
        let policies = Policies::new(vec![
            rule("pump-*", "mode", local),
            rule("*", "sensors.#", Policy::ReportedOnly),
            rule("*-1", "*.level", Policy::ReportedOnly),
        ])
        .expect("not too many");
        let of = |thing: &str, path: &str| policies.of(thing, &path.replace('.', "\u{1f}"));
        assert_eq!(of("pump-1", "d.mode"), local);
        assert_eq!(of("lamp", "d.mode"), Policy::Controlled);
        assert_eq!(of("pump-1", "d.mode.x"), Policy::Controlled, "not below it");
        assert_eq!(of("lamp", "d.sensors.a.b"), Policy::ReportedOnly);
        assert_eq!(of("lamp-1", "d.tank.level"), Policy::ReportedOnly);
        assert_eq!(of("lamp-2", "d.tank.level"), Policy::Controlled);
    }

    #[test]
    fn a_star_in_a_name_is_anything() {
        for (pattern, name, matches) in [
            ("*", "a", true),
            ("a*", "a", true),
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("*b*", "abc", true),
            ("ab*ba", "aba", false),
            ("a", "ab", false),
        ] {
            assert_eq!(matches_name(pattern, name), matches, "{pattern} {name}");
        }
    }

    #[test]
    fn paths_with_empty_keys_or_an_inner_hash_are_refused() {
        for path in ["", "a..b", "#.a", "a."] {
            assert!(PolicyRule::new("*", path, Policy::Controlled).is_err(), "{path}");
        }
    }
}
