//! A bridge's configuration, checked and ready: address, rules, credentials, certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytestring::ByteString;
use outpost_actors::ports::BRIDGE_CLIENTS;
use outpost_bridge::{Direction, Rule, RuleError, Rules};
use outpost_model::QoS;
use outpost_mqtt::packet::Version;

use super::tls;
use crate::config::{self, BridgeDirection, BridgeProtocol};

/// Why a bridge cannot be configured so.
#[derive(Debug, thiserror::Error)]
#[error("{key} {why}")]
pub struct SettingsError {
    /// The key, below the bridge's own.
    pub key: String,
    /// What is wrong with it.
    pub why: String,
    /// What to do.
    pub help: &'static str,
}

/// Everything one bridge works by.
#[derive(Clone)]
pub struct Settings {
    /// Its name: of the actor, in metrics and topics.
    pub name: String,
    /// The session on this node.
    pub client_id: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Option<tls::Connector>,
    pub(crate) version: Version,
    pub(crate) try_private: bool,
    pub(crate) remote_client_id: ByteString,
    pub(crate) username: Option<ByteString>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) clean_session: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) restart_ms: (u64, u64),
    pub(crate) link_timeout_ms: u64,
    pub(crate) inflight_max: u16,
    pub(crate) rate_bytes_max: u64,
    pub(crate) packet_max_bytes: u32,
    pub(crate) outgoing_retain: bool,
    pub(crate) notifications: bool,
    pub(crate) notifications_local_only: bool,
    pub(crate) rules: Arc<Rules>,
}

impl Settings {
    /// From what is written down; files are read.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(
        bridge: &config::Bridge,
        node: &str,
        packet_max_bytes: u32,
    ) -> Result<Self, Vec<SettingsError>> {
        let mut wrong = Vec::new();
        let mut bad = |key: &str, why: String, help| {
            wrong.push(SettingsError { key: key.to_owned(), why, help });
        };
        if !is_name(&bridge.name) {
            bad(
                "name",
                format!("{:?} is no bridge name", bridge.name),
                "1 to 63 of a-z, 0-9 and -",
            );
        }
        let (host, port, wants_tls) = match address(&bridge.address) {
            Ok(found) => found,
            Err(why) => {
                bad("address", why, "for example \"mqtts://broker.example.org:8883\"");
                (String::new(), 0, false)
            }
        };
        let uses_tls_keys = bridge.cafile.is_some()
            || bridge.certfile.is_some()
            || bridge.keyfile.is_some()
            || bridge.insecure;
        if uses_tls_keys && !wants_tls {
            let why = "is without TLS, but there are TLS files or insecure".to_owned();
            bad("address", why, "begin it with mqtts://");
        }
        let tls = match wants_tls.then(|| tls::Connector::new(bridge)).transpose() {
            Ok(tls) => tls,
            Err((key, why)) => {
                bad(key, why, "");
                None
            }
        };
        if let Some(file) = &bridge.remote_password_file {
            if bridge.remote_username.is_none() {
                bad("remote_password_file", "stands alone".into(), "give remote_username too");
            }
            if let Err(why) = config::first_line(file) {
                bad("remote_password_file", unreadable(file, &why), "");
            }
        }
        if bridge.restart_timeout_min_s > bridge.restart_timeout_max_s {
            let why =
                format!("is less than restart_timeout_min_s = {}", bridge.restart_timeout_min_s);
            bad("restart_timeout_max_s", why, "");
        }
        if bridge.topic.is_empty() {
            bad("topic", "is missing: nothing would cross".into(), "add [[bridge.topic]]");
        }
        let rules: Vec<Rule> = bridge.topic.iter().map(rule).collect();
        let rules = Rules::new(&rules).unwrap_or_else(|(index, why)| {
            let place = match why {
                RuleError::Wildcard(_) => "",
                _ => ".pattern",
            };
            bad(&format!("topic[{index}]{place}"), format!("cannot be used: {why}"), "");
            Rules::default()
        });
        for (index, topic) in bridge.topic.iter().enumerate() {
            let local = format!("{}{}", topic.local_prefix, topic.pattern);
            if topic.direction != BridgeDirection::Out && local.starts_with("$SYS/") {
                let why = "lets another broker write below $SYS/".to_owned();
                bad(&format!("topic[{index}].local_prefix"), why, "give it a local_prefix");
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let remote_client_id = bridge.remote_clientid.clone();
        Ok(Self {
            name: bridge.name.clone(),
            client_id: format!("{BRIDGE_CLIENTS}{}", bridge.name),
            host,
            port,
            tls,
            version: match bridge.protocol_version {
                BridgeProtocol::Mqttv50 => Version::V5,
                BridgeProtocol::Mqttv311 => Version::V4,
            },
            try_private: bridge.try_private,
            remote_client_id: remote_client_id
                .unwrap_or_else(|| format!("{node}.{}", bridge.name))
                .into(),
            username: bridge.remote_username.clone().map(Into::into),
            password_file: bridge.remote_password_file.clone(),
            clean_session: bridge.cleansession,
            keep_alive_s: bridge.keepalive_interval_s,
            restart_ms: (
                u64::from(bridge.restart_timeout_min_s) * 1000,
                u64::from(bridge.restart_timeout_max_s) * 1000,
            ),
            link_timeout_ms: u64::from(bridge.link_timeout_s) * 1000,
            inflight_max: bridge.inflight_max,
            rate_bytes_max: bridge.rate_bytes_max as u64,
            packet_max_bytes,
            outgoing_retain: bridge.outgoing_retain,
            notifications: bridge.notifications,
            notifications_local_only: bridge.notifications_local_only,
            rules: Arc::new(rules),
        })
    }

    /// Where it connects to, for people.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The topic that says whether a link is up.
pub(crate) fn state_topic(of: &str) -> ByteString {
    format!("$SYS/broker/connection/{of}/state").into()
}

fn rule(topic: &config::BridgeTopic) -> Rule {
    Rule {
        pattern: topic.pattern.clone(),
        direction: match topic.direction {
            BridgeDirection::Out => Direction::Out,
            BridgeDirection::In => Direction::In,
            BridgeDirection::Both => Direction::Both,
        },
        qos: QoS::from_bits(topic.qos as u8).unwrap_or(QoS::ExactlyOnce),
        local_prefix: topic.local_prefix.clone(),
        remote_prefix: topic.remote_prefix.clone(),
    }
}

/// `mqtt://host[:1883]`, `mqtts://host[:8883]` or `host[:1883]`: host, port, and whether with TLS.
fn address(text: &str) -> Result<(String, u16, bool), String> {
    let (rest, tls) = match text.split_once("://") {
        Some(("mqtt", rest)) => (rest, false),
        Some(("mqtts", rest)) => (rest, true),
        Some((scheme, _)) => return Err(format!("begins with {scheme}://")),
        None => (text, false),
    };
    let default = if tls { 8_883 } else { 1_883 };
    let is_bare_v6 = rest.matches(':').count() > 1 && !rest.ends_with(']') && !rest.contains("]:");
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !is_bare_v6 && !rest.ends_with(']') => {
            (host, port.parse().map_err(|_| format!("has no port after the colon: {port:?}"))?)
        }
        _ => (rest, default),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains(['/', '@', ' ']) || port == 0 {
        return Err(format!("{text:?} is no host and port"));
    }
    Ok((host.to_owned(), port, tls))
}

fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

pub(super) fn unreadable(file: &Path, why: &std::io::Error) -> String {
    format!("cannot be read: {}: {why}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_ports_of_their_schemes() {
        let check = |text: &str, host: &str, port: u16, tls: bool| {
            assert_eq!(address(text), Ok((host.to_owned(), port, tls)), "{text}");
        };
        check("broker", "broker", 1_883, false);
        check("broker:1884", "broker", 1_884, false);
        check("mqtt://10.0.0.1", "10.0.0.1", 1_883, false);
        check("mqtts://broker.example.org", "broker.example.org", 8_883, true);
        check("mqtts://[::1]:9000", "::1", 9_000, true);
        check("[::1]", "::1", 1_883, false);
        check("fe80::1", "fe80::1", 1_883, false);
        for bad in ["", "http://x", "broker:", "broker:x", "mqtt://user@host", "mqtt://h/p", "h:0"]
        {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_bridge_is_said_all_at_once() {
        let bridge = config::Bridge {
            name: "Cloud".into(),
            address: "ws://broker".into(),
            insecure: true,
            topic: vec![config::BridgeTopic { pattern: "a/#/b".into(), ..Default::default() }],
            ..Default::default()
        };
        let Err(wrong) = Settings::new(&bridge, "edge-1", 1024) else { panic!("it is wrong") };
        let keys: Vec<&str> = wrong.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["name", "address", "address", "topic[0].pattern"]);
    }
}
