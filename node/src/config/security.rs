//! The access rules in the words of `outpost_security`.

use outpost_security::acl::{self, AclConfig, Rule};

use super::cross::who;
use super::keys::{Access, Config, Effect, Listener, User};

impl Config {
    /// Whether clients without a user name may connect, at any of the listeners.
    pub fn anonymous(&self) -> bool {
        self.listeners().iter().any(Listener::is_anonymous)
    }

    /// The access rules; `None` when everything is allowed, which only a node on loopback without any rule does.
    pub fn acl(&self) -> Option<AclConfig> {
        let is_local = self.listeners().iter().all(|l| l.address().ip().is_loopback());
        if self.security.acl.is_empty() && is_local {
            return None;
        }
        let rules = self.security.acl.iter().filter_map(|rule| {
            Some(Rule {
                effect: match rule.effect {
                    Effect::Allow => acl::Effect::Allow,
                    Effect::Deny => acl::Effect::Deny,
                },
                // A checked configuration has no other; an unchecked one only loses what fits nobody.
                who: who(&rule.who)?,
                access: match rule.access {
                    Access::Read => acl::Access::Read,
                    Access::Write => acl::Access::Write,
                    Access::ReadWrite => acl::Access::ReadWrite,
                },
                filter: rule.filter.clone(),
            })
        });
        Some(AclConfig { anonymous: self.anonymous(), rules: rules.collect() })
    }
}

impl User {
    /// The Argon2 hash, from wherever it stands.
    ///
    /// # Errors
    /// When `password_file` cannot be read.
    pub fn password_hash(&self) -> std::io::Result<String> {
        match (&self.password, &self.password_file) {
            (Some(hash), _) => Ok(hash.clone()),
            (None, Some(file)) => super::first_line(file),
            (None, None) => Err(std::io::Error::new(
                std::io::ErrorKind::NotFound,
                "neither password nor password_file is set",
            )),
        }
    }

    /// The SCRAM verifier, from wherever it stands; empty when there is none.
    ///
    /// # Errors
    /// When `password_file` cannot be read.
    pub fn scram_verifier(&self) -> std::io::Result<String> {
        match (&self.scram, &self.password_file) {
            (Some(text), _) => Ok(text.clone()),
            (None, Some(file)) => super::line(file, 1),
            (None, None) => Ok(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Acl, Config};

    #[test]
    fn without_rules_only_loopback_allows_everything() {
        let mut config = Config::default();
        assert!(config.anonymous() && config.acl().is_none());
        config.listen.mqtt.bind.set_ip([0, 0, 0, 0].into());
        assert!(!config.anonymous());
        assert_eq!(config.acl().map(|acl| acl.rules.len()), Some(0), "no rule allows nothing");
        config.security.acl.push(Acl {
            who: "user:ann".into(),
            filter: "a/#".into(),
            ..Acl::default()
        });
        assert_eq!(config.acl().map(|acl| acl.rules.len()), Some(1));
    }
}
