//! ACL rules as they are written down, and whom each one fits.

use std::fmt;

use outpost_model::TopicFilter;
use serde::Deserialize;

use super::{AclError, Action, Subject};

/// The section `[acl]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AclConfig {
    /// Whether clients without a name may do anything at all; what, the rules with `who = "anonymous"` say.
    pub anonymous: bool,
    /// The rules; their order matters only between equally specific ones, for which of them is reported.
    pub rules: Vec<Rule>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Whether it allows or denies.
    pub effect: Effect,
    /// Whom it is about.
    pub who: Who,
    /// What it is about.
    pub access: Access,
    /// The topics, as a filter. `%c` stands for the client id and `%u` for the user name of whoever asks.
    pub filter: String,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Permits.
    Allow,
    /// Forbids.
    Deny,
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Subscribing and receiving.
    Read,
    /// Publishing.
    Write,
    /// Both.
    ReadWrite,
}

/// Whom a rule is about. In patterns `*` stands for any run of characters.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// Whoever has an authenticated name; a denying rule is about the anonymous too.
    Everyone,
    /// Clients without a name.
    Anonymous,
    /// A pattern for the authenticated name.
    User(String),
    /// A pattern for the client id of somebody with a name; a denying rule is about the anonymous too.
    Client(String),
    /// A role.
    Role(String),
}

impl Rule {
    pub(super) fn check(&self, index: usize) -> Result<(), AclError> {
        let filter = TopicFilter::new(self.filter.as_str()).map_err(|source| AclError::Filter {
            rule: index,
            filter: self.filter.clone(),
            source,
        })?;
        if filter.share_group().is_some() {
            return Err(AclError::Shared { rule: index });
        }
        match &self.who {
            Who::User(name) | Who::Client(name) | Who::Role(name) if name.is_empty() => {
                Err(AclError::EmptyWho { rule: index })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Rule {
    /// As the configuration has it, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let effect = if self.effect == Effect::Allow { "allow" } else { "deny" };
        let access = match self.access {
            Access::Read => "read",
            Access::Write => "write",
            Access::ReadWrite => "readwrite",
        };
        write!(f, "{effect} {access} {:?} for ", self.filter)?;
        match &self.who {
            Who::Everyone => f.write_str("everyone"),
            Who::Anonymous => f.write_str("anonymous"),
            Who::User(name) => write!(f, "user:{name}"),
            Who::Client(id) => write!(f, "client:{id}"),
            Who::Role(role) => write!(f, "role:{role}"),
        }
    }
}

impl Access {
    pub(super) fn includes(self, action: Action) -> bool {
        match self {
            Self::Read => action == Action::Read,
            Self::Write => action == Action::Write,
            Self::ReadWrite => true,
        }
    }
}

impl Who {
    pub(super) fn fits(&self, who: &Subject, effect: Effect) -> bool {
        // An anonymous client chooses its id itself, so what is allowed to a client id is not allowed to it.
        let counts = who.user.is_some() || effect == Effect::Deny;
        match self {
            Self::Everyone => counts,
            Self::Anonymous => who.user.is_none(),
            Self::User(pattern) => {
                who.user.as_ref().is_some_and(|user| glob_matches(pattern, user))
            }
            Self::Client(pattern) => counts && glob_matches(pattern, &who.client_id),
            Self::Role(role) => who.roles.iter().any(|r| r == role),
        }
    }
}

/// Whether `text` fits `pattern`, where `*` stands for any run of bytes. Quadratic at worst, never exponential.
pub(super) fn glob_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None; // after the last star, and where its run ends for now
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, t));
        } else if pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if let Some((after, run_end)) = star {
            star = Some((after, run_end + 1));
            p = after;
            t = run_end + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}
