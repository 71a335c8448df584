//! Who may read and write which topics.
//!
//! ```text
//!  [[acl.rules]]  ──compile──►  Acl (immutable, shared)  ──decide(subject, action, topic or filter)──►  Decision
//! ```
//! Of the rules that fit the identity, the action and the topic, the most specific decides: levels are compared from
//! the left, a plain level before `+` before `#`. Between equals deny wins; where nothing fits, the answer is no.
//!
//! A subscription needs one allowing rule that covers its whole filter, and no denying rule in it that would win: so
//! every topic a granted filter can deliver is one the identity may read.

mod config;
mod template;
mod tree;

use bytestring::ByteString;
use outpost_model::topic::TopicError;

pub use config::{Access, AclConfig, Effect, Rule, Who};
use tree::Tree;

/// The most rules an ACL may have. Smaller: a site that lists every device by hand is refused (it should use `%c`);
/// greater: a subscription to `#` looks at all denying rules in one turn of a shard, and loading takes seconds.
pub const RULES_MAX: usize = 100_000;

/// Why an ACL was not compiled. The one that was in force stays in force.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AclError {
    /// More than [`RULES_MAX`].
    #[error("the ACL has {0} rules, the limit is {RULES_MAX}; it was not loaded")]
    TooMany(usize),
    /// A rule's filter breaks the rules for filters.
    #[error("ACL rule {rule}: the filter {filter:?} {source}; the ACL was not loaded")]
    Filter {
        /// Index of the rule, from 0.
        rule: usize,
        /// As written.
        filter: String,
        /// What is wrong with it.
        source: TopicError,
    },
    /// A rule names a shared subscription; rules are about the topics below it.
    #[error("ACL rule {rule}: write the filter without $share/<group>/; the ACL was not loaded")]
    Shared {
        /// Index of the rule, from 0.
        rule: usize,
    },
    /// A user, client or role is the empty text, which fits nobody.
    #[error("ACL rule {rule}: an empty name in `who` fits nobody; the ACL was not loaded")]
    EmptyWho {
        /// Index of the rule, from 0.
        rule: usize,
    },
}

/// Who asks: what authentication has established about one connection.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subject {
    /// MQTT client id. Chosen by the client unless authentication bound it.
    pub client_id: ByteString,
    /// The authenticated name, from a certificate or a password. `None`: anonymous.
    pub user: Option<ByteString>,
    /// Roles given to the user by configuration or certificate.
    pub roles: Vec<ByteString>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Subscribe to a filter, or receive a message of a topic.
    Read,
    /// Publish to a topic, also as a will.
    Write,
}

/// The answer, with the rule that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may.
    pub allow: bool,
    /// Index of the deciding rule in the configuration; `None` when no rule fits and the default, no, applies.
    pub rule: Option<usize>,
}

impl Decision {
    const BY_DEFAULT: Self = Self { allow: false, rule: None };
}

/// A compiled, immutable set of rules. The empty one allows nothing.
#[derive(Debug, Default)]
pub struct Acl {
    anonymous: bool,
    rules: Vec<Rule>,
    allow: Tree,
    deny: Tree,
}

impl Acl {
    /// Checks and compiles a configuration.
    ///
    /// # Errors
    /// [`AclError`] names the first rule that is wrong.
    pub fn compile(config: &AclConfig) -> Result<Self, AclError> {
        if config.rules.len() > RULES_MAX {
            return Err(AclError::TooMany(config.rules.len()));
        }
        let mut acl =
            Self { anonymous: config.anonymous, rules: config.rules.clone(), ..Self::default() };
        for (index, rule) in config.rules.iter().enumerate() {
            rule.check(index)?;
            let tree = if rule.effect == Effect::Allow { &mut acl.allow } else { &mut acl.deny };
            tree.insert(&rule.filter, index);
        }
        Ok(acl)
    }

    /// How many rules it has.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether it has none, and so allows nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// May `who` do this? `topic_or_filter` is a topic name, a filter, or `$share/<group>/<filter>`.
    ///
    /// For a filter the answer holds for every topic it matches.
    pub fn decide(&self, who: &Subject, action: Action, topic_or_filter: &str) -> Decision {
        if who.user.is_none() && !self.anonymous {
            return Decision::BY_DEFAULT;
        }
        let pattern = without_share(topic_or_filter);
        let mut allowed: Option<(&[u8], usize)> = None;
        self.allow.covering(pattern, who, &mut |rank, rule| {
            let better =
                allowed.is_none_or(|(best, index)| rank > best || (rank == best && rule < index));
            if better && self.fits(rule, who, action) {
                allowed = Some((rank, rule));
            }
        });
        let Some((allowed_rank, allowed_rule)) = allowed else {
            return self.refusal(who, action, pattern);
        };
        let mut denied: Option<(&[u8], usize)> = None;
        self.deny.overlapping(pattern, who, &mut |rank, rule| {
            let better =
                denied.is_none_or(|(best, index)| rank > best || (rank == best && rule < index));
            if rank >= allowed_rank && better && self.fits(rule, who, action) {
                denied = Some((rank, rule));
            }
        });
        match denied {
            Some((_, rule)) => Decision { allow: false, rule: Some(rule) },
            None => Decision { allow: true, rule: Some(allowed_rule) },
        }
    }

    /// The rules that are about somebody, in the order of the configuration.
    pub fn about(&self, who: &Subject) -> impl Iterator<Item = (usize, &Rule)> {
        let reached = who.user.is_some() || self.anonymous;
        let rules = self.rules.iter().enumerate();
        rules.filter(move |(_, rule)| reached && rule.who.fits(who, rule.effect))
    }

    /// A rule by its place in the configuration.
    pub fn rule(&self, index: usize) -> Option<&Rule> {
        self.rules.get(index)
    }

    /// The denying rule that speaks of the whole pattern, when there is one: a better reason than "by default".
    fn refusal(&self, who: &Subject, action: Action, pattern: &str) -> Decision {
        let mut denied: Option<(&[u8], usize)> = None;
        self.deny.covering(pattern, who, &mut |rank, rule| {
            let better =
                denied.is_none_or(|(best, index)| rank > best || (rank == best && rule < index));
            if better && self.fits(rule, who, action) {
                denied = Some((rank, rule));
            }
        });
        Decision { allow: false, rule: denied.map(|(_, rule)| rule) }
    }

    fn fits(&self, rule: usize, who: &Subject, action: Action) -> bool {
        let rule = &self.rules[rule];
        rule.access.includes(action) && rule.who.fits(who, rule.effect)
    }
}

/// The part of a subscription that topics are matched against.
fn without_share(filter: &str) -> &str {
    let Some(rest) = filter.strip_prefix("$share/") else { return filter };
    rest.split_once('/').map_or(filter, |(_, pattern)| pattern)
}

#[cfg(test)]
mod tests;
