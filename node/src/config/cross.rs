//! What only shows when keys are read together: open doors without a lock, ports taken twice, files that are not there.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use outpost_actors::shard::Redirect;
use outpost_hardware::config::DEVICES_MAX;
use outpost_hardware::{Drivers, HardwareConfig};
use outpost_model::topic::check_name;
use outpost_security::acl::Who;
use outpost_security::identity;
use outpost_shadow::{POLICIES_MAX, PolicyError};

use crate::bridge::{BRIDGES_MAX, Settings};

use super::keys::{Cluster, Config, Listener, User};
use super::listeners::MQTT_LISTENER;
use super::source::Tree;

/// A token shorter than this can be guessed.
pub const TOKEN_CHARS_MIN: usize = 16;

/// Adds what is wrong with `config` as a whole to the issues of `tree`.
pub(super) fn check(config: &Config, tree: &mut Tree) {
    let mut checks = Checks { tree };
    checks.node(config);
    checks.mqtt(config);
    checks.http(config);
    if let Some(cluster) = &config.cluster {
        checks.cluster(cluster);
        checks.frames(config);
    }
    checks.users(&config.security.user);
    checks.rules(config);
    checks.hardware(config);
    checks.bridges(config);
    checks.log(&config.log.level);
}

/// What a frame carries beside the packet a client sent.
const FRAME_HEADROOM_BYTES: usize = 64 << 10;

pub(super) struct Checks<'a> {
    tree: &'a mut Tree,
}

impl Checks<'_> {
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>, help: impl Into<String>) {
        let origin = self.tree.origin(key);
        let help = help.into();
        self.tree.issue(origin, key, message.into(), (!help.is_empty()).then_some(help));
    }

    /// Whether something below this key has been named already.
    pub(super) fn has_issue(&self, key: &str) -> bool {
        self.tree.issues.iter().any(|issue| issue.key.starts_with(key))
    }

    fn node(&mut self, config: &Config) {
        if let Some(Err(wrong)) = config.node.moved_to.as_deref().map(|to| Redirect::new(to, true))
        {
            self.wrong("node.moved_to", wrong, "like \"gateway-2:1883\"");
        }
        if let Some(prefix) = &config.security.response_information
            && let Err(wrong) = check_name(prefix)
        {
            let text = format!("the topic {prefix:?} {wrong}");
            self.wrong("security.response_information", text, "like \"reply/%c\"");
        }
        let name = &config.node.name;
        if !identity::is_node_name(name) {
            self.wrong(
                "node.name",
                format!("{name:?} is no node name"),
                "a name is 1 to 63 of a-z, 0-9 and -",
            );
        }
        if config.node.data_dir.exists() && !config.node.data_dir.is_dir() {
            self.wrong(
                "node.data_dir",
                format!("{} is not a directory", config.node.data_dir.display()),
                "",
            );
        }
    }

    fn mqtt(&mut self, config: &Config) {
        let listeners = config.listeners();
        if let Some(plain) = listeners.iter().find(|listener| listener.name == MQTT_LISTENER) {
            self.open("listen.mqtt.bind", plain, config);
        }
        self.listeners(config);
    }

    fn http(&mut self, config: &Config) {
        let http = &config.listen.http;
        match &http.token_file {
            None if !http.bind.ip().is_loopback() => self.wrong(
                "listen.http.bind",
                format!(
                    "{} can be reached from other machines, and requests need no token",
                    http.bind
                ),
                "set listen.http.token_file",
            ),
            None => {}
            Some(file) => match first_line(file) {
                Err(cause) => self.unreadable("listen.http.token_file", file, &cause),
                Ok(token) if token.chars().count() < TOKEN_CHARS_MIN => self.wrong(
                    "listen.http.token_file",
                    format!(
                        "the token in {} has fewer than {TOKEN_CHARS_MIN} characters",
                        file.display()
                    ),
                    "",
                ),
                Ok(_) => {}
            },
        }
    }

    /// What a client may publish must fit into a frame to a peer.
    fn frames(&mut self, config: &Config) {
        let most = outpost_cluster::frame::BODY_BYTES_MAX - FRAME_HEADROOM_BYTES;
        if config.listen.mqtt.packet_max_bytes as usize > most {
            self.wrong(
                "listen.mqtt.packet_max_bytes",
                format!("is more than the {most} bytes that nodes can send each other"),
                "lower it, or leave out [cluster]",
            );
        }
    }

    fn cluster(&mut self, cluster: &Cluster) {
        if !identity::is_cluster_name(&cluster.name) {
            let help = "a name is 1 to 63 of a-z, 0-9, - and .";
            self.wrong("cluster.name", format!("{:?} is no cluster name", cluster.name), help);
        }
        let files = [
            ("cluster.ca", &cluster.ca),
            ("cluster.cert", &cluster.cert),
            ("cluster.key", &cluster.key),
        ];
        for (key, file) in files {
            match file {
                None => self.wrong(
                    key,
                    "is missing: nodes only talk with certificates",
                    "`outpost ca init` and `outpost ca issue` make them, or `outpost node join`",
                ),
                Some(file) => self.readable(key, file),
            }
        }
        if let Some(file) = &cluster.ca_key {
            self.readable("cluster.ca_key", file);
        }
        if cluster.bind.ip().is_unspecified() && cluster.advertise.is_none() {
            self.wrong(
                "cluster.bind",
                format!("{} tells peers no address to dial", cluster.bind),
                "set cluster.advertise",
            );
        }
        for seed in &cluster.seeds {
            self.host_port("cluster.seeds", seed);
        }
    }

    fn host_port(&mut self, key: &str, text: &str) {
        let good = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0)
        });
        if !good {
            self.wrong(key, format!("{text:?} is no host:port"), "like \"gateway-1:17447\"");
        }
    }

    fn users(&mut self, users: &[User]) {
        let mut names = BTreeSet::new();
        for (index, user) in users.iter().enumerate() {
            let key = |name: &str| format!("security.user[{index}].{name}");
            let missing = self.tree.issues.iter().any(|issue| issue.key == key("name"));
            if user.name.is_empty() && !missing {
                self.wrong(&key("name"), format!("{:?} is no user name", user.name), "");
            }
            if !names.insert(&user.name) {
                self.wrong(&key("name"), format!("{:?} is there twice", user.name), "");
            }
            if let Some(text) = &user.scram {
                self.verifier(&key("scram"), text);
            }
            match (&user.password, &user.password_file) {
                (None, None) => {
                    self.wrong(&key("password"), "is missing", "give password or password_file");
                }
                (Some(_), Some(_)) => self.wrong(
                    &key("password"),
                    "stands beside password_file",
                    "give one of the two",
                ),
                (Some(hash), None) => self.hash(&key("password"), hash),
                (None, Some(file)) => match first_line(file) {
                    Ok(hash) => {
                        self.hash(&key("password_file"), &hash);
                        if let Ok(second) = line(file, 1)
                            && !second.is_empty()
                        {
                            self.verifier(&key("password_file"), &second);
                        }
                    }
                    Err(cause) => self.unreadable(&key("password_file"), file, &cause),
                },
            }
        }
    }

    fn verifier(&mut self, key: &str, text: &str) {
        if let Err(why) = text.parse::<outpost_security::scram::Verifier>() {
            self.wrong(key, why.to_string(), "`outpost passwd` makes one");
        }
    }

    /// Says nothing of the text itself: it may be a password somebody took for the hash.
    fn hash(&mut self, key: &str, hash: &str) {
        let parts: Vec<_> = hash.split('$').collect();
        if !(parts.len() == 6 && parts[0].is_empty() && parts[1].starts_with("argon2")) {
            self.wrong(
                key,
                "is no Argon2 hash in PHC form ($argon2id$v=19$…)",
                "`outpost passwd` makes one",
            );
        }
    }

    fn rules(&mut self, config: &Config) {
        for (index, rule) in config.limits.overload.iter().enumerate() {
            if let Err(why) = outpost_model::TopicFilter::new(rule.filter.as_str()) {
                let key = format!("limits.overload[{index}].filter");
                self.wrong(&key, format!("the filter {:?} {why}", rule.filter), "");
            }
        }
        for (index, rule) in config.shadows.policy.iter().enumerate() {
            if let Err(why) = crate::shadows::policy_rule(rule) {
                self.wrong(&format!("shadows.policy[{index}].path"), why.to_string(), "");
            }
        }
        if config.shadows.policy.len() > POLICIES_MAX {
            self.wrong("shadows.policy", PolicyError::TooMany.to_string(), "");
        }
        let users = || config.security.user.iter();
        for (index, rule) in config.security.acl.iter().enumerate() {
            let key = |name: &str| format!("security.acl[{index}].{name}");
            match outpost_model::TopicFilter::new(rule.filter.as_str()) {
                Err(why) => {
                    self.wrong(&key("filter"), format!("the filter {:?} {why}", rule.filter), "")
                }
                Ok(filter) if filter.share_group().is_some() => {
                    self.wrong(
                        &key("filter"),
                        "a rule is about topics",
                        "write it without $share/<group>/",
                    );
                }
                Ok(_) => {}
            }
            let Some(who) = who(&rule.who) else {
                let help = "known are everyone, anonymous, user:NAME, client:ID, role:NAME";
                self.wrong(&key("who"), format!("{:?} fits nobody", rule.who), help);
                continue;
            };
            let (kind, name, known): (_, _, Vec<&str>) = match &who {
                Who::User(name) => ("user", name, users().map(|user| user.name.as_str()).collect()),
                Who::Role(name) => (
                    "role",
                    name,
                    users().flat_map(|user| &user.roles).map(String::as_str).collect(),
                ),
                _ => continue,
            };
            // A pattern may be meant for names that come from certificates; so may any name, once there is a CA.
            let certificates =
                config.cluster.is_some() || config.listeners().iter().any(Listener::has_names);
            if !name.contains('*') && !known.contains(&name.as_str()) && !certificates {
                let help = super::issue::closest(name, known)
                    .map(|close| format!("did you mean \"{kind}:{close}\"?"));
                self.wrong(
                    &key("who"),
                    format!("there is no {kind} {name:?}"),
                    help.unwrap_or_default(),
                );
            }
        }
    }

    /// The hardware's own checks, device by device, so that each mistake has its place.
    fn hardware(&mut self, config: &Config) {
        let drivers = Drivers::built_in();
        let mut names = BTreeSet::new();
        for (index, device) in config.hardware.device.iter().enumerate() {
            let key = format!("hardware.device[{index}]");
            let one = HardwareConfig { device: vec![super::hardware::in_its_words(device)] };
            // What is missing has been said already.
            let missing = self.tree.issues.iter().any(|issue| issue.key.starts_with(&key));
            if let (false, Err(why)) = (missing, one.check(&drivers)) {
                self.wrong(&key, why.to_string(), "");
            }
            if !names.insert(&device.name) && !missing {
                self.wrong(&format!("{key}.name"), format!("{:?} is there twice", device.name), "");
            }
        }
        let count = config.hardware.device.len();
        if count > DEVICES_MAX {
            self.wrong(
                "hardware.device",
                format!("there are {count} devices, the limit is {DEVICES_MAX}"),
                "",
            );
        }
    }

    /// The bridges' own checks, so that each mistake has its place.
    fn bridges(&mut self, config: &Config) {
        let mut names = BTreeSet::new();
        for (index, bridge) in config.bridge.iter().enumerate() {
            let key = format!("bridge[{index}]");
            // What is missing has been said already.
            let missing = self.tree.issues.iter().any(|issue| issue.key.starts_with(&key));
            let packet_max = config.listen.mqtt.packet_max_bytes;
            if let (false, Err(wrong)) =
                (missing, Settings::new(bridge, &config.node.name, packet_max))
            {
                for one in wrong {
                    self.wrong(&format!("{key}.{}", one.key), one.why, one.help);
                }
            }
            if !names.insert(&bridge.name) && !missing {
                self.wrong(&format!("{key}.name"), format!("{:?} is there twice", bridge.name), "");
            }
        }
        let count = config.bridge.len();
        if count > BRIDGES_MAX {
            let text = format!("there are {count} bridges, the limit is {BRIDGES_MAX}");
            self.wrong("bridge", text, "");
        }
    }

    fn log(&mut self, level: &str) {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let single = level.chars().all(char::is_alphanumeric);
        if single && !LEVELS.contains(&level) {
            let help = super::issue::closest(level, LEVELS)
                .map(|close| format!("did you mean {close:?}?"));
            self.wrong(
                "log.level",
                format!("{level:?} is no level; levels are {}", LEVELS.join(", ")),
                help.unwrap_or_default(),
            );
        }
    }

    fn readable(&mut self, key: &str, file: &Path) {
        if let Err(cause) = std::fs::File::open(file) {
            self.unreadable(key, file, &cause);
        }
    }

    fn unreadable(&mut self, key: &str, file: &Path, cause: &std::io::Error) {
        self.wrong(key, format!("cannot read {}: {cause}", file.display()), "");
    }
}

/// Reads `user:ann`; `None` when it fits nobody.
pub(super) fn who(text: &str) -> Option<Who> {
    let name = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    match text.split_once(':') {
        None if text == "everyone" => Some(Who::Everyone),
        None if text == "anonymous" => Some(Who::Anonymous),
        Some(("user", user)) => name(user).map(Who::User),
        Some(("client", id)) => name(id).map(Who::Client),
        Some(("role", role)) => name(role).map(Who::Role),
        _ => None,
    }
}

/// The first line of a small secret file, without its end.
///
/// # Errors
/// When it cannot be read.
pub fn first_line(file: &Path) -> std::io::Result<String> {
    line(file, 0)
}

/// A line of a small file, counted from 0; empty when there are fewer.
///
/// # Errors
/// When it cannot be read.
pub fn line(file: &Path, number: usize) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file)?.take(4_096).read_to_string(&mut text)?;
    Ok(text.lines().nth(number).unwrap_or_default().trim_end().to_owned())
}

pub(super) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}
