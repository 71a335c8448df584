//! Who comes in and may do what, as the configuration says: users, passwords, access rules.

use std::collections::BTreeMap;
use std::sync::Arc;

use outpost_actors::ports::{Action, Admission, Credentials, Gate, Identity, Origin};
use outpost_security::acl::{self, Acl, Subject};

use crate::config::Config;

/// The gate of a node.
#[derive(Debug)]
pub struct ConfigGate {
    anonymous: bool,
    users: BTreeMap<String, UserEntry>,
    /// Absent: everything is allowed, which only a loopback node without rules does.
    acl: Option<Acl>,
}

#[derive(Debug)]
struct UserEntry {
    hash: String,
    roles: Vec<String>,
}

impl ConfigGate {
    /// From a checked configuration.
    ///
    /// # Errors
    /// When a password file cannot be read or a rule cannot be compiled.
    pub fn new(config: &Config) -> Result<Self, String> {
        let mut users = BTreeMap::new();
        for user in &config.security.user {
            let hash = user.password_hash().map_err(|error| {
                format!("cannot read the password of user {:?}: {error}", user.name)
            })?;
            users.insert(user.name.clone(), UserEntry { hash, roles: user.roles.clone() });
        }
        let acl = config
            .acl()
            .map(|rules| Acl::compile(&rules))
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self { anonymous: config.anonymous(), users, acl })
    }
}

impl Gate for ConfigGate {
    fn admit(&self, origin: &Origin, _client_id: &str, credentials: &Credentials) -> Admission {
        if let Some(name) = &origin.certificate {
            return Admission::Admit(Some(Arc::clone(name)));
        }
        match &credentials.username {
            // A name nobody has to prove means nothing: with no users configured it is not taken for one.
            Some(_) if self.users.is_empty() && self.anonymous => Admission::Admit(None),
            Some(name) if self.users.contains_key(&**name) => Admission::Slow,
            Some(_) => Admission::BadCredentials,
            None if self.anonymous => Admission::Admit(None),
            None => Admission::NotAuthorized,
        }
    }

    fn check_slowly(&self, _: &Origin, _: &str, credentials: &Credentials) -> Admission {
        let Some(name) = credentials.username.as_deref() else { return Admission::NotAuthorized };
        let Some(user) = self.users.get(name) else { return Admission::BadCredentials };
        let password = credentials.password.as_deref().unwrap_or_default();
        match outpost_security::password::verify(&user.hash, password) {
            Ok(true) => Admission::Admit(Some(Arc::from(name))),
            _ => Admission::BadCredentials,
        }
    }

    fn allows(&self, who: &Identity, action: Action, topic: &str) -> bool {
        let Some(acl) = &self.acl else { return true };
        let roles =
            who.user.as_deref().and_then(|name| self.users.get(name)).map(|user| &user.roles);
        let subject = Subject {
            client_id: who.client_id.clone(),
            user: who.user.as_deref().map(Into::into),
            roles: roles.into_iter().flatten().map(|role| role.as_str().into()).collect(),
        };
        let action = match action {
            Action::Publish => acl::Action::Write,
            Action::Subscribe => acl::Action::Read,
        };
        acl.decide(&subject, action, topic).allow
    }
}
