//! Who comes in and may do what, as the configuration says: users, passwords, access rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outpost_actors::ports::{
    Action, Admission, BRIDGE_CLIENTS, BRIDGE_LISTENER, Credentials, Gate, Identity, Method, Origin,
};
use outpost_security::acl::{self, Acl, AclConfig, Subject};
use outpost_security::scram::{self, Verifier};
use sha2::{Digest, Sha256};

use crate::config::{Config, Listener};
use crate::dice;
use crate::scram::{Scram, ScramUsers};

/// The gate of a node.
#[derive(Debug)]
pub struct ConfigGate {
    /// Listeners at which clients without a name come in.
    anonymous: BTreeSet<String>,
    users: BTreeMap<String, UserEntry>,
    /// Those who can log in by SCRAM-SHA-256; absent when nobody can.
    scram: Option<Arc<ScramUsers>>,
    /// Absent: everything is allowed, which only a loopback node without rules does.
    acl: Option<Acl>,
    /// Names the rules and who has which role; 0 without rules.
    epoch: u64,
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
        let (mut users, mut verifiers) = (BTreeMap::new(), BTreeMap::new());
        for user in &config.security.user {
            let hash = user.password_hash().map_err(|error| {
                format!("cannot read the password of user {:?}: {error}", user.name)
            })?;
            let verifier = user.scram_verifier().map_err(|error| {
                format!("cannot read the SCRAM verifier of user {:?}: {error}", user.name)
            })?;
            if !verifier.is_empty() {
                let verifier = verifier.parse::<Verifier>();
                let verifier = verifier.map_err(|why| format!("user {:?}: {why}", user.name))?;
                verifiers.insert(user.name.clone(), verifier);
            }
            users.insert(user.name.clone(), UserEntry { hash, roles: user.roles.clone() });
        }
        let rules = config.acl();
        let epoch = rules.as_ref().map_or(0, |rules| epoch_of(rules, &users));
        let acl = rules.map(|rules| Acl::compile(&rules)).transpose();
        let acl = acl.map_err(|error| error.to_string())?;
        let scram = ScramUsers::new(verifiers);
        let open = config.listeners().into_iter().filter(Listener::is_anonymous);
        Ok(Self {
            anonymous: open.map(|listener| listener.name).collect(),
            users,
            scram,
            acl,
            epoch,
        })
    }
}

impl Gate for ConfigGate {
    fn admit(&self, origin: &Origin, client_id: &str, credentials: &Credentials) -> Admission {
        if &*origin.listener == BRIDGE_LISTENER {
            return Admission::Admit(Some(Arc::from(BRIDGE_LISTENER)));
        }
        // Neither the sessions nor the rights of this node's bridges are for anybody else.
        let is_bridge = |name: &str| without_query(name) == BRIDGE_LISTENER;
        if client_id.starts_with(BRIDGE_CLIENTS)
            || origin.certificate.as_deref().is_some_and(is_bridge)
            || credentials.username.as_deref().is_some_and(is_bridge)
        {
            return Admission::NotAuthorized;
        }
        if let Some(name) = &origin.certificate {
            return Admission::Admit(Some(Arc::clone(name)));
        }
        let anonymous = self.anonymous.contains(&*origin.listener);
        match &credentials.username {
            // A name nobody has to prove means nothing: with no users configured it is not taken for one.
            Some(_) if self.users.is_empty() && anonymous => Admission::Admit(None),
            Some(_) if self.users.is_empty() => Admission::BadCredentials,
            // An SDK that says what it is, and not who.
            Some(name) if without_query(name).is_empty() && anonymous => Admission::Admit(None),
            // Unknown names as well, or the time an answer takes would tell who is known here.
            Some(_) => Admission::Slow,
            None if anonymous => Admission::Admit(None),
            None => Admission::NotAuthorized,
        }
    }

    fn check_slowly(&self, _: &Origin, _: &str, credentials: &Credentials) -> Admission {
        let Some(name) = credentials.username.as_deref() else { return Admission::NotAuthorized };
        let known = self.users.get_key_value(name);
        let known = known.or_else(|| self.users.get_key_value(without_query(name)));
        let Some((name, user)) = known.or_else(|| self.users.iter().next()) else {
            return Admission::BadCredentials;
        };
        let password = credentials.password.as_deref().unwrap_or_default();
        match outpost_security::password::verify(&user.hash, password) {
            Ok(true) if known.is_some() => Admission::Admit(Some(Arc::from(&**name))),
            _ => Admission::BadCredentials,
        }
    }

    fn begin(&self, _: &Origin, _: &str, method: &str) -> Option<Box<dyn Method>> {
        let users = self.scram.as_ref().filter(|_| method == scram::METHOD)?;
        Some(Box::new(Scram::new(Arc::clone(users), dice::nonce())))
    }

    fn allows(&self, who: &Identity, action: Action, topic: &str) -> bool {
        let Some(acl) = &self.acl else { return true };
        // What crosses a bridge is said by its topics.
        if who.user.as_deref() == Some(BRIDGE_LISTENER) {
            return true;
        }
        acl.decide(&self.subject(who), acl_action(action), topic).allow
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn allows_all(&self) -> bool {
        self.acl.is_none()
    }

    fn explain(&self, who: &Identity, action: Action, topic: &str) -> String {
        let Some(acl) = &self.acl else { return "allowed: there are no access rules".to_owned() };
        let decision = acl.decide(&self.subject(who), acl_action(action), topic);
        let word = if decision.allow { "allowed" } else { "refused" };
        match decision.rule.and_then(|index| Some((index, acl.rule(index)?))) {
            Some((index, rule)) => format!("{word} by rule {}: {rule}", index + 1),
            None => format!("{word}: no rule fits, and then the answer is no"),
        }
    }

    fn rules_about(&self, who: &Identity, limit: usize) -> Vec<String> {
        let Some(acl) = &self.acl else { return Vec::new() };
        let subject = self.subject(who);
        let rules = acl.about(&subject).take(limit);
        rules.map(|(index, rule)| format!("rule {}: {rule}", index + 1)).collect()
    }
}

impl ConfigGate {
    fn subject(&self, who: &Identity) -> Subject {
        let user = who.user.as_deref().and_then(|name| self.users.get(name));
        let roles = user.map(|user| &user.roles).into_iter().flatten();
        Subject {
            client_id: who.client_id.clone(),
            user: who.user.as_deref().map(Into::into),
            roles: roles.map(|role| role.as_str().into()).collect(),
        }
    }
}

/// The user name before what SDKs of AWS IoT hang onto it about themselves, `ann?SDK=…&Version=…`.
fn without_query(name: &str) -> &str {
    name.split_once('?').map_or(name, |(name, _)| name)
}

/// Another number for other rules, other roles, and another release, which may read the same rules in another way.
fn epoch_of(rules: &AclConfig, users: &BTreeMap<String, UserEntry>) -> u64 {
    let roles: Vec<_> = users.iter().map(|(name, user)| (name, &user.roles)).collect();
    let text = format!("{} {rules:?} {roles:?}", env!("CARGO_PKG_VERSION"));
    let digest = Sha256::digest(text.as_bytes());
    let first = digest.first_chunk().copied().expect("it has 32 bytes");
    u64::from_be_bytes(first).max(1)
}

fn acl_action(action: Action) -> acl::Action {
    match action {
        Action::Publish => acl::Action::Write,
        Action::Subscribe => acl::Action::Read,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(anonymous: bool, users: &[&str]) -> ConfigGate {
        let entry = |name: &&str| {
            let hash = outpost_security::password::hash(b"secret", b"sixteen bytes ..");
            let hash = hash.expect("within the limits");
            ((*name).to_owned(), UserEntry { hash, roles: Vec::new() })
        };
        let anonymous = anonymous.then(|| "mqtt".to_owned()).into_iter().collect();
        ConfigGate {
            anonymous,
            users: users.iter().map(entry).collect(),
            scram: None,
            acl: None,
            epoch: 0,
        }
    }

    fn asks(gate: &ConfigGate, username: Option<&str>, password: &str) -> Admission {
        let origin = Origin {
            listener: Arc::from("mqtt"),
            remote: ([127, 0, 0, 1], 1).into(),
            certificate: None,
        };
        let credentials = Credentials {
            username: username.map(Into::into),
            password: Some(bytes::Bytes::copy_from_slice(password.as_bytes())),
        };
        match gate.admit(&origin, "c", &credentials) {
            Admission::Slow => gate.check_slowly(&origin, "c", &credentials),
            admission => admission,
        }
    }

    #[test]
    fn an_unknown_name_takes_the_same_way_as_a_wrong_password() {
        let gate = gate(true, &["ann"]);
        let ann = Admission::Admit(Some(Arc::from("ann")));
        assert_eq!(asks(&gate, Some("ann"), "secret"), ann);
        assert_eq!(asks(&gate, Some("ann"), "wrong"), Admission::BadCredentials);
        assert_eq!(asks(&gate, Some("bob"), "secret"), Admission::BadCredentials);
        assert_eq!(asks(&gate, None, ""), Admission::Admit(None));
        let origin = Origin {
            listener: Arc::from("mqtt"),
            remote: ([127, 0, 0, 1], 1).into(),
            certificate: None,
        };
        let bob = Credentials { username: Some("bob".into()), password: None };
        assert_eq!(gate.admit(&origin, "c", &bob), Admission::Slow, "it is hashed as well");
    }

    #[test]
    fn a_certificate_is_the_name_whatever_connect_says() {
        let gate = gate(false, &["ann"]);
        let origin = Origin {
            listener: Arc::from("tls"),
            remote: ([127, 0, 0, 1], 1).into(),
            certificate: Some(Arc::from("lamp-1")),
        };
        // As AWS IoT's SDKs connect: a name about themselves, and no password.
        let username = Some("?SDK=CPPv2&Version=1".into());
        let sdk = Credentials { username, password: None };
        let lamp = Admission::Admit(Some(Arc::from("lamp-1")));
        assert_eq!(gate.admit(&origin, "c", &sdk), lamp);
    }

    #[test]
    fn what_an_sdk_says_about_itself_is_no_part_of_the_name() {
        let sdk = "?x-amz-customauthorizer-name=a&SDK=PythonV2&Version=1.31";
        let ann = Some(format!("ann{sdk}"));
        let gate_of = |users: &[&str]| gate(true, users);
        let known = Admission::Admit(Some(Arc::from("ann")));
        assert_eq!(asks(&gate_of(&["ann"]), ann.as_deref(), "secret"), known);
        assert_eq!(asks(&gate_of(&["ann"]), ann.as_deref(), "wrong"), Admission::BadCredentials);
        assert_eq!(asks(&gate_of(&["ann"]), Some(sdk), ""), Admission::Admit(None));
        assert_eq!(asks(&gate(false, &["ann"]), Some(sdk), ""), Admission::BadCredentials);
        let whole = Admission::Admit(Some(Arc::from("ann?1")));
        assert_eq!(asks(&gate_of(&["ann", "ann?1"]), Some("ann?1"), "secret"), whole);
        let bridge = format!("{BRIDGE_LISTENER}{sdk}");
        assert_eq!(asks(&gate_of(&["ann"]), Some(&bridge), "x"), Admission::NotAuthorized);
    }

    #[test]
    fn who_is_anonymous_depends_on_the_listener() {
        let gate = gate(true, &[]);
        let nobody = Credentials { username: None, password: None };
        let at = |listener: &str| Origin {
            listener: Arc::from(listener),
            remote: ([127, 0, 0, 1], 1).into(),
            certificate: None,
        };
        assert_eq!(gate.admit(&at("mqtt"), "c", &nobody), Admission::Admit(None));
        assert_eq!(gate.admit(&at("outside"), "c", &nobody), Admission::NotAuthorized);
    }

    #[test]
    fn nobody_passes_for_a_bridge_of_this_node() {
        let gate = gate(true, &[]);
        let origin = |listener: &str, certificate: Option<&str>| Origin {
            listener: Arc::from(listener),
            remote: ([127, 0, 0, 1], 1).into(),
            certificate: certificate.map(Arc::from),
        };
        let nobody = Credentials { username: None, password: None };
        let named = Credentials { username: Some(BRIDGE_LISTENER.into()), password: None };
        let bridge = Admission::Admit(Some(Arc::from(BRIDGE_LISTENER)));
        assert_eq!(gate.admit(&origin(BRIDGE_LISTENER, None), "$bridge/a", &nobody), bridge);
        let refused = [
            gate.admit(&origin("mqtt", None), "$bridge/a", &nobody),
            gate.admit(&origin("mqtt", None), "a", &named),
            gate.admit(&origin("mqtt", Some(BRIDGE_LISTENER)), "a", &nobody),
        ];
        assert_eq!(refused, [const { Admission::NotAuthorized }; 3]);
    }

    #[test]
    fn without_users_a_name_proves_nothing() {
        assert_eq!(asks(&gate(true, &[]), Some("ann"), "x"), Admission::Admit(None));
        assert_eq!(asks(&gate(false, &[]), Some("ann"), "x"), Admission::BadCredentials);
        assert_eq!(asks(&gate(false, &[]), None, ""), Admission::NotAuthorized);
    }
}
