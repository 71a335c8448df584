//! All ways in for devices as one list, what each key means where it is left out, and its own checks.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::cross::{Checks, collide};
use super::keys::{ClientCertificate, Config, Listener, Transport, UserFrom};

/// Name of the listener of `[listen.mqtt]`.
pub const MQTT_LISTENER: &str = "mqtt";

/// Listeners a node may have. Fewer: large sites cannot give each network its own; more: a mistake in a generated file
/// opens every port, and metrics have a line for each.
pub const LISTENERS_MAX: usize = 16;

/// A name is at most this long.
const NAME_BYTES_MAX: usize = 32;

impl Config {
    /// Every listener that is opened: the one of `[listen.mqtt]` first.
    pub fn listeners(&self) -> Vec<Listener> {
        let mqtt = &self.listen.mqtt;
        let plain = mqtt.enabled.then(|| Listener {
            name: MQTT_LISTENER.into(),
            bind: Some(mqtt.bind),
            anonymous: mqtt.anonymous,
            ..Listener::default()
        });
        plain.into_iter().chain(self.listener.iter().cloned()).collect()
    }
}

impl Transport {
    /// The port clients expect.
    pub fn port(self) -> u16 {
        match self {
            Self::Tcp => 1883,
            Self::Tls => 8883,
            Self::Ws => 8083,
            Self::Wss => 8084,
            Self::Quic => 14567,
        }
    }

    /// Whether it needs a certificate.
    pub fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss | Self::Quic)
    }

    /// Whether MQTT is in WebSocket frames.
    pub fn has_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// In the configuration and for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Ws => "ws",
            Self::Wss => "wss",
            Self::Quic => "quic",
        }
    }
}

impl Listener {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        self.bind.unwrap_or(SocketAddr::new(loopback, self.transport.port()))
    }

    /// Whether clients without a name may come in here.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous.unwrap_or(self.address().ip().is_loopback())
    }

    /// Whether clients show a certificate.
    pub fn certificates(&self) -> ClientCertificate {
        let by_ca = match self.client_ca {
            Some(_) => ClientCertificate::Required,
            None => ClientCertificate::Off,
        };
        self.client_certificate.unwrap_or(by_ca)
    }

    /// Whether a client can prove its name by a certificate.
    pub fn has_names(&self) -> bool {
        self.certificates() != ClientCertificate::Off && self.user_from != UserFrom::None
    }
}

impl Checks<'_> {
    pub(super) fn listeners(&mut self, config: &Config) {
        let mut names = BTreeSet::from([MQTT_LISTENER]);
        if config.listeners().is_empty() {
            let help = "set it to true or add a [[listener]]";
            self.wrong("listen.mqtt.enabled", "no listener is left for devices", help);
        }
        if config.listener.len() >= LISTENERS_MAX {
            let count = config.listener.len();
            self.wrong("listener", format!("there are {count}, at most {}", LISTENERS_MAX - 1), "");
        }
        for (index, listener) in config.listener.iter().enumerate() {
            let key = format!("listener[{index}]");
            if self.has_issue(&key) {
                continue;
            }
            self.name(&key, listener);
            if !names.insert(&listener.name) {
                let help = "each has a name of its own; \"mqtt\" is the one of [listen.mqtt]";
                self.wrong(
                    &format!("{key}.name"),
                    format!("{:?} is there twice", listener.name),
                    help,
                );
            }
            self.keys_that_do_nothing(&key, listener);
            self.open(&format!("{key}.bind"), listener, config);
            if listener.transport.has_tls() && !self.has_issue(&key) {
                self.certificate(&key, listener);
            }
        }
        self.ports(config);
    }

    /// An open door needs a lock: somebody who can log in, and rules.
    pub(super) fn open(&mut self, key: &str, listener: &Listener, config: &Config) {
        let address = listener.address();
        if address.ip().is_loopback() {
            return;
        }
        let open = format!("{address} can be reached from other machines");
        let has_users = !config.security.user.is_empty() || listener.has_names();
        if !has_users && listener.anonymous != Some(true) {
            let anonymous =
                if listener.name == MQTT_LISTENER { "listen.mqtt.anonymous" } else { "anonymous" };
            let certificates = if listener.transport.has_tls() { ", or client_ca" } else { "" };
            self.wrong(
                key,
                format!("{open}, and nobody can log in"),
                format!(
                    "add [[security.user]] with name and password{certificates} (or set {anonymous} = true)"
                ),
            );
        }
        if config.security.acl.is_empty() {
            self.wrong(
                key,
                format!("{open}, and no rule says what clients may do"),
                "add [[security.acl]], for example effect = \"allow\", filter = \"devices/%c/#\"",
            );
        }
    }

    fn name(&mut self, key: &str, listener: &Listener) {
        let name = &listener.name;
        let good = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(good) {
            self.wrong(
                &format!("{key}.name"),
                format!("{name:?} is no listener name"),
                format!("a name is 1 to {NAME_BYTES_MAX} of a-z, 0-9, - and _"),
            );
        }
    }

    /// A key that has no effect here is a misunderstanding, mostly one about safety.
    fn keys_that_do_nothing(&mut self, key: &str, listener: &Listener) {
        let transport = listener.transport;
        let word = transport.word();
        let mut useless = |name: &str, why: String, help: &str| {
            self.wrong(&format!("{key}.{name}"), why, help);
        };
        if !transport.has_tls() {
            let files: [(&str, &Option<PathBuf>); 4] = [
                ("cert", &listener.cert),
                ("key", &listener.key),
                ("client_ca", &listener.client_ca),
                ("client_crl", &listener.client_crl),
            ];
            for (name, _) in files.into_iter().filter(|(_, file)| file.is_some()) {
                let help = "use transport = \"tls\", \"wss\" or \"quic\"";
                useless(name, format!("a {word} listener has no certificates"), help);
            }
        }
        let asks = listener.certificates() != ClientCertificate::Off;
        if asks && listener.client_ca.is_none() {
            let why = "client certificates cannot be checked without client_ca";
            useless("client_certificate", why.into(), "add client_ca = \"ca.pem\"");
        }
        if !asks && listener.client_ca.is_some() && transport.has_tls() {
            let why = "clients are not asked for a certificate";
            useless("client_ca", why.into(), "leave out client_certificate = \"off\"");
        }
        if listener.client_crl.is_some() && listener.client_ca.is_none() && transport.has_tls() {
            useless("client_crl", "stands without client_ca".into(), "");
        }
        if transport == Transport::Quic && listener.proxy_protocol {
            let why = "the PROXY protocol is for TCP; QUIC has none";
            useless("proxy_protocol", why.into(), "leave it out");
        }
        if transport.has_websocket() && !is_path(&listener.path) {
            let why = format!("{:?} is no path", listener.path);
            useless("path", why, "a path is like \"/mqtt\"");
        }
    }

    /// Loads the files as the listener will.
    fn certificate(&mut self, key: &str, listener: &Listener) {
        for (name, file) in [("cert", &listener.cert), ("key", &listener.key)] {
            if file.is_none() {
                let help = "docs/guides/listeners.md shows how to make one";
                self.wrong(
                    &format!("{key}.{name}"),
                    format!(
                        "is missing: {} needs a certificate and its key",
                        listener.transport.word()
                    ),
                    help,
                );
            }
        }
        if self.has_issue(key) {
            return;
        }
        if let Err(why) = crate::listen::tls::Files::of(listener).load() {
            self.wrong(&format!("{key}.{}", why.key()), why.to_string(), "");
        }
    }

    fn ports(&mut self, config: &Config) {
        let http = config.listen.http.bind;
        let listeners = config.listeners();
        let is_tcp = |listener: &Listener| listener.transport != Transport::Quic;
        for (index, listener) in listeners.iter().enumerate() {
            let address = listener.address();
            let (key, this) = match listener.name.as_str() {
                MQTT_LISTENER => ("listen.mqtt.bind".to_owned(), "listen.mqtt.bind".to_owned()),
                name => {
                    let at = index - usize::from(config.listen.mqtt.enabled);
                    (format!("listener[{at}].bind"), format!("listener {name:?}"))
                }
            };
            if key.strip_suffix(".bind").is_some_and(|key| self.has_issue(key)) {
                continue;
            }
            if is_tcp(listener) && collide(address, http) {
                self.wrong(
                    "listen.http.bind",
                    format!("{http} collides with {this} = {address}"),
                    "choose another port",
                );
            }
            let before = listeners[..index].iter();
            for other in before.filter(|other| is_tcp(other) == is_tcp(listener)) {
                if collide(address, other.address()) {
                    self.wrong(
                        &key,
                        format!("{address} collides with listener {:?}", other.name),
                        "choose another port",
                    );
                }
            }
            let cluster = config.cluster.as_ref().map(|cluster| cluster.bind);
            if let (false, Some(cluster)) = (is_tcp(listener), cluster)
                && collide(address, cluster)
            {
                self.wrong(
                    &key,
                    format!("{address} collides with cluster.bind = {cluster}"),
                    "choose another port",
                );
            }
        }
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| matches!(byte, b'!'..=b'~' if byte != b'?' && byte != b'#'))
}
