//! The flags that `outpost pub` and `outpost sub` share with mosquitto_pub and mosquitto_sub, letter for letter.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;

use super::dial::{Dialer, Layers, Secure};
use super::properties::Properties;
use crate::cli::failure::Failure;

/// Where to connect, as whom, and with what will.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// Host to connect to
    #[arg(
        short = 'h',
        long,
        value_name = "HOST",
        default_value = "127.0.0.1",
        env = "OUTPOST_MQTT_HOST",
        hide_env_values = true
    )]
    pub host: String,
    /// Port to connect to; left out: 1883, 8883 with TLS, 8083 with WebSocket, 8084 with both
    #[arg(
        short = 'p',
        long,
        value_name = "PORT",
        env = "OUTPOST_MQTT_PORT",
        hide_env_values = true
    )]
    pub port: Option<u16>,
    /// All in one: mqtt://[user[:password]@]host[:port][/topic], or mqtts://, ws://, wss://; goes before -h and -p
    #[arg(short = 'L', long, value_name = "URL")]
    pub url: Option<String>,
    /// Client id; made up when left out
    #[arg(short = 'i', long, value_name = "ID")]
    pub id: Option<String>,
    /// Client id of this and the process id
    #[arg(short = 'I', long, value_name = "PREFIX", conflicts_with = "id")]
    pub id_prefix: Option<String>,
    /// User name
    #[arg(short = 'u', long, value_name = "NAME")]
    pub username: Option<String>,
    /// Password; better in OUTPOST_MQTT_PASSWORD, where `ps` does not show it
    #[arg(
        short = 'P',
        long,
        value_name = "PASSWORD",
        env = "OUTPOST_MQTT_PASSWORD",
        hide_env_values = true
    )]
    pub pw: Option<String>,
    /// Say what is sent and received, on standard error
    #[arg(short = 'd', long)]
    pub debug: bool,
    /// Say nothing on standard error, not even errors
    #[arg(long)]
    pub quiet: bool,
    /// Keep the session: no clean session (3.1.1), no clean start (5); needs -i
    #[arg(short = 'c', long, requires = "id")]
    pub disable_clean_session: bool,
    /// Seconds between pings
    #[arg(short = 'k', long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..))]
    pub keepalive: u16,
    /// mqttv5 (or 5), mqttv311 (or 311)
    #[arg(short = 'V', long, value_name = "VERSION", default_value = "mqttv5", value_parser = Version::parse)]
    pub protocol_version: Version,
    /// Session expiry interval in seconds after disconnecting (MQTT 5)
    #[arg(short = 'x', long, value_name = "SECONDS")]
    pub session_expiry_interval: Option<u32>,
    /// Most QoS 1 and 2 messages on their way at a time
    #[arg(short = 'M', long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    pub max_inflight: u16,
    /// MQTT 5 property: -D COMMAND NAME VALUE, or -D COMMAND user-property NAME VALUE
    #[arg(short = 'D', long, num_args = 3..=4, value_names = ["COMMAND", "NAME", "VALUE"], allow_negative_numbers = true)]
    pub property: Vec<String>,
    /// Topic of the will
    #[arg(long, value_name = "TOPIC")]
    pub will_topic: Option<String>,
    /// Payload of the will
    #[arg(long, value_name = "TEXT", requires = "will_topic")]
    pub will_payload: Option<String>,
    /// QoS of the will
    #[arg(long, value_name = "QOS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub will_qos: u8,
    /// Retain the will
    #[arg(long, requires = "will_topic")]
    pub will_retain: bool,
    #[command(flatten)]
    pub secure: Secure,
    #[command(flatten)]
    pub absent: Absent,
}

/// Flags of mosquitto's clients that this one knows and refuses, rather than connecting in another way than asked.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Known and refused: this client has no such way to connect")]
pub struct Absent {
    /// Pre-shared key
    #[arg(long, value_name = "HEX")]
    pub psk: Option<String>,
    /// Identity of the pre-shared key
    #[arg(long, value_name = "ID")]
    pub psk_identity: Option<String>,
    /// Unix socket
    #[arg(long, value_name = "PATH")]
    pub unix: Option<PathBuf>,
    /// SOCKS proxy
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
    /// Local address to connect from
    #[arg(short = 'A', value_name = "ADDRESS")]
    pub bind: Option<String>,
}

impl Absent {
    fn first(&self) -> Option<&'static str> {
        let flags = [
            (self.psk.is_some(), "--psk"),
            (self.psk_identity.is_some(), "--psk-identity"),
            (self.unix.is_some(), "--unix"),
            (self.proxy.is_some(), "--proxy"),
            (self.bind.is_some(), "-A"),
        ];
        flags.into_iter().find(|(given, _)| *given).map(|(_, name)| name)
    }
}

/// The protocol's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

impl Version {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "mqttv5" | "5" => Ok(Self::V5),
            "mqttv311" | "311" => Ok(Self::V311),
            "mqttv31" | "31" => Err("MQTT 3.1 is not spoken here; mqttv311 or mqttv5".into()),
            _ => Err("known are mqttv5 (or 5) and mqttv311 (or 311)".into()),
        }
    }
}

/// The last will.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    pub topic: String,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
}

/// What the flags come to.
#[derive(Debug, Clone)]
pub struct Target {
    pub host: String,
    pub port: u16,
    /// How to connect when it is not plain TCP.
    pub dialer: Option<Dialer>,
    pub client_id: String,
    pub username: Option<String>,
    pub password: Option<String>,
    pub clean: bool,
    pub keep_alive_s: u16,
    pub version: Version,
    pub session_expiry_s: Option<u32>,
    /// Messages of QoS 1 and 2 under way to the verb at most. Fewer: a slow link waits for each answer; more: memory, and
    /// more that comes again after a cut.
    pub inflight_max: u16,
    pub will: Option<Will>,
    pub properties: Properties,
    /// From the URL.
    pub topic: Option<String>,
}

impl Connection {
    /// Checks what clap cannot, and puts URL and flags together. `verb` goes into a made-up client id.
    ///
    /// # Errors
    /// A usage error.
    pub fn target(&self, verb: &str) -> Result<Target, Failure> {
        if let Some(flag) = self.absent.first() {
            return Err(Failure::usage(format!(
                "{flag}: this client has no such way to connect; nothing was sent"
            )));
        }
        let properties = Properties::parse(&self.property)?;
        if self.protocol_version == Version::V311
            && (!self.property.is_empty() || self.session_expiry_interval.is_some())
        {
            return Err(Failure::usage("-D and -x need MQTT 5; leave out -V mqttv311"));
        }
        if let Some(topic) = &self.will_topic {
            outpost_model::topic::check_name(topic)
                .map_err(|why| Failure::usage(format!("--will-topic {topic:?} {why}")))?;
        }
        let mut target = Target {
            host: self.host.clone(),
            port: 0,
            dialer: None,
            client_id: self.client_id(verb),
            username: self.username.clone(),
            password: self.pw.clone(),
            clean: !self.disable_clean_session,
            keep_alive_s: self.keepalive,
            version: self.protocol_version,
            session_expiry_s: self.session_expiry_s(&properties),
            inflight_max: self.max_inflight,
            will: self.will(),
            properties,
            topic: None,
        };
        let (mut layers, mut port) = (self.secure.layers(), self.port);
        if let Some(url) = &self.url {
            let of_url = apply_url(url, &mut target)
                .map_err(|why| Failure::usage(format!("-L {url}: {why}")))?;
            port = of_url.port;
            layers =
                Layers { tls: layers.tls || of_url.layers.tls, ws: layers.ws || of_url.layers.ws };
        }
        target.port = port.unwrap_or(layers.port());
        target.dialer = self.secure.dialer(layers, &target.host, target.port)?;
        Ok(target)
    }

    fn client_id(&self, verb: &str) -> String {
        match (&self.id, &self.id_prefix) {
            (Some(id), _) => id.clone(),
            (None, Some(prefix)) => format!("{prefix}{}", std::process::id()),
            (None, None) => {
                let now = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .unwrap_or_default();
                format!(
                    "outpost-{verb}-{:x}-{:x}",
                    std::process::id(),
                    now.as_nanos() & 0xffff_ffff
                )
            }
        }
    }

    /// As mosquitto: -c without -x keeps the session for as long as the server allows.
    fn session_expiry_s(&self, properties: &Properties) -> Option<u32> {
        let kept = (self.disable_clean_session && self.protocol_version == Version::V5)
            .then_some(u32::MAX);
        self.session_expiry_interval.or(properties.connect.session_expiry_interval).or(kept)
    }

    fn will(&self) -> Option<Will> {
        self.will_topic.as_ref().map(|topic| Will {
            topic: topic.clone(),
            payload: self.will_payload.clone().unwrap_or_default().into(),
            qos: self.will_qos,
            retain: self.will_retain,
        })
    }
}

/// What a URL says of the way to the server.
struct OfUrl {
    layers: Layers,
    port: Option<u16>,
}

fn apply_url(url: &str, target: &mut Target) -> Result<OfUrl, String> {
    let (scheme, rest) =
        url.split_once("://").ok_or("it has no scheme; write mqtt://host/topic")?;
    let known = "mqtt://, mqtts://, ws:// and wss://";
    let layers = Layers::of_scheme(scheme)
        .ok_or_else(|| format!("{scheme}:// is not spoken here, only {known}"))?;
    let (authority, topic) =
        rest.split_once('/').map_or((rest, None), |(authority, topic)| (authority, Some(topic)));
    let (user, address) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(user, address)| (Some(user), address));
    if let Some(user) = user {
        let (name, password) =
            user.split_once(':').map_or((user, None), |(name, password)| (name, Some(password)));
        target.username = Some(percent_decoded(name)?);
        target.password = password.map(percent_decoded).transpose()?.or(target.password.take());
    }
    let colon = address.rfind(':').filter(|at| !address[*at..].contains(']'));
    let (host, port) =
        colon.map_or((address, None), |at| (&address[..at], Some(&address[at + 1..])));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err("it names no host".into());
    }
    host.clone_into(&mut target.host);
    let port = port
        .map(str::parse)
        .transpose()
        .map_err(|_| "its port is no number below 65536".to_owned())?;
    target.topic = topic.filter(|topic| !topic.is_empty()).map(percent_decoded).transpose()?;
    Ok(OfUrl { layers, port })
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            bytes.push(
                hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())
                    .ok_or("a % without two hex digits after it")?,
            );
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).map_err(|_| "it is no UTF-8 after decoding %".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct Only {
        #[command(flatten)]
        connection: Connection,
    }

    fn target(flags: &[&str]) -> Result<Target, Failure> {
        let only = Only::try_parse_from([&["x"], flags].concat())
            .map_err(|error| Failure::usage(error.to_string()))?;
        only.connection.target("test")
    }

    #[test]
    fn a_url_carries_everything() {
        let found = target(&["-L", "mqtt://an%40n:pw@gateway:1884/a/%2Bb"]).expect("valid");
        assert_eq!((found.host.as_str(), found.port), ("gateway", 1884));
        assert_eq!(
            (found.username.as_deref(), found.password.as_deref()),
            (Some("an@n"), Some("pw"))
        );
        assert_eq!(found.topic.as_deref(), Some("a/+b"));
        let found = target(&["-L", "mqtt://[::1]/t"]).expect("valid");
        assert_eq!((found.host.as_str(), found.port), ("::1", 1883));
        for bad in ["quic://h/t", "h/t", "mqtt:///t", "mqtt://h:x/t", "mqtt://h/%4"] {
            assert!(target(&["-L", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_port_follows_from_what_is_spoken() {
        let port = |flags: &[&str]| target(flags).expect("valid").port;
        assert_eq!(port(&[]), 1883);
        assert_eq!(port(&["--ws"]), 8083);
        assert_eq!(port(&["-L", "ws://h/t"]), 8083);
        assert_eq!(port(&["-L", "ws://h:9001/t"]), 9001);
        assert_eq!(port(&["--ws", "-p", "9001"]), 9001);
        assert!(target(&[]).expect("valid").dialer.is_none(), "plain TCP is the library's own");
    }

    #[test]
    fn what_cannot_be_done_as_asked_is_refused_by_name() {
        for (flags, name) in [
            (&["--psk", "00"][..], "--psk"),
            (&["--insecure"], "--insecure"),
            (&["--tls-version", "tlsv1.2"], "--tls-version"),
            (&["--cafile", "/nowhere/ca.pem"], "--cafile /nowhere/ca.pem: No such file"),
        ] {
            let refused = target(flags).expect_err("refused");
            assert!(refused.to_string().contains(name), "{refused}");
            assert_eq!(refused.code(), 2);
        }
    }

    #[test]
    fn a_kept_session_needs_an_id_and_does_not_expire_in_mqtt_5() {
        assert!(target(&["-c"]).is_err());
        let kept = target(&["-c", "-i", "x"]).expect("valid");
        assert_eq!((kept.clean, kept.session_expiry_s), (false, Some(u32::MAX)));
        assert_eq!(
            target(&["-c", "-i", "x", "-x", "60"]).expect("valid").session_expiry_s,
            Some(60)
        );
        assert_eq!(target(&["-c", "-i", "x", "-V", "311"]).expect("valid").session_expiry_s, None);
    }

    #[test]
    fn made_up_client_ids_say_who_made_them() {
        assert!(target(&[]).expect("valid").client_id.starts_with("outpost-test-"));
        assert_eq!(
            target(&["-I", "line-"]).expect("valid").client_id,
            format!("line-{}", std::process::id())
        );
    }
}
