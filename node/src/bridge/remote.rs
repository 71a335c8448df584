//! The foreign broker's side: TCP, TLS, CONNECT.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use outpost_bridge::Remote;
use outpost_bridge::path::BRIDGE_PROPERTY;
use outpost_model::{MessageProperties, QoS};
use outpost_mqtt::packet::{
    Connack, Connect, Packet, Publish, ReasonCode, RetainHandling, Subscribe, SubscribeOptions,
    Version, Will,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::link::{LinkError, Wire};
use super::local::REQUEST_ID;
use super::settings::{Settings, state_topic};
use crate::config;

/// How long each step of coming up may take: resolving, TCP, TLS, CONNACK. Shorter: slow links never come up; longer:
/// a broker that does not answer is noticed late.
const STEP_MAX: Duration = Duration::from_secs(10);

/// Who it is, in the log.
pub(super) const WHO: &str = "the broker";

/// A stream to the foreign broker.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// The connection to the foreign broker.
pub(super) type Far = Wire<Box<dyn Stream>>;

/// How to come up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// Begin with an empty session.
    pub(super) clean_start: bool,
    /// Say that we are a bridge, as mosquitto does (3.1.1).
    pub(super) private: bool,
    /// Unacknowledged messages that this node takes.
    pub(super) receive_max: u16,
}

/// Connects, up to and with CONNACK. Also says where the broker is.
///
/// # Errors
/// [`LinkError`].
pub(super) async fn connect(
    settings: &Settings,
    wish: Wish,
) -> Result<(Far, SocketAddr, Remote, Connack), LinkError> {
    let (stream, peer) = open(settings).await?;
    let mut far: Far = Wire::new(WHO, stream, settings.version, settings.packet_max_bytes);
    let connect = request(settings, wish)?;
    far.put(&Packet::Connect(Box::new(connect)))
        .map_err(|why| LinkError::Other(why.to_string()))?;
    let connack = step(far.next()).await?;
    let Packet::Connack(connack) = connack else {
        return Err(LinkError::Other("the broker answered CONNECT with something else".into()));
    };
    if connack.reason.is_error() {
        let text = connack.reason_string.as_deref().map(|text| format!(": {text}"));
        return Err(LinkError::Refused {
            who: format!("the broker at {}", settings.address()),
            reason: connack.reason,
            text: text.unwrap_or_default(),
        });
    }
    far.set_packet_max(connack.packet_max);
    let remote = Remote {
        version: settings.version,
        qos_max: connack.qos_max.unwrap_or(QoS::ExactlyOnce),
        retain: settings.outgoing_retain && connack.retain_available.unwrap_or(true),
        no_local: settings.version == Version::V5 || wish.private,
        session_present: connack.session_present,
    };
    Ok((far, peer, remote, *connack))
}

async fn open(settings: &Settings) -> Result<(Box<dyn Stream>, SocketAddr), LinkError> {
    let address = settings.address();
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    let connect = TcpStream::connect((host, settings.port));
    let tcp = match tokio::time::timeout(STEP_MAX, connect).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(why)) => return Err(LinkError::Connect { address, why: why.to_string() }),
        Err(_) => return Err(LinkError::Connect { address, why: "no answer".into() }),
    };
    let unusable = |why: std::io::Error| LinkError::Connect {
        address: settings.address(),
        why: why.to_string(),
    };
    tcp.set_nodelay(true).map_err(unusable)?;
    let peer = tcp.peer_addr().map_err(unusable)?;
    let Some(tls) = &settings.tls else { return Ok((Box::new(tcp), peer)) };
    match tokio::time::timeout(STEP_MAX, tls.connect(host, tcp)).await {
        Ok(Ok(stream)) => Ok((Box::new(stream), peer)),
        Ok(Err(source)) => Err(LinkError::Tls { address, source }),
        Err(_) => Err(LinkError::Tls { address, source: std::io::ErrorKind::TimedOut.into() }),
    }
}

fn request(settings: &Settings, wish: Wish) -> Result<Connect, LinkError> {
    let five = settings.version == Version::V5;
    let mut connect = Connect::new(settings.version, &settings.remote_client_id);
    connect.bridge = wish.private;
    connect.clean_start = wish.clean_start || settings.clean_session;
    connect.keep_alive_s = settings.keep_alive_s;
    connect.username.clone_from(&settings.username);
    if let Some(file) = &settings.password_file {
        // Read each time: a new password needs no restart.
        let password = config::first_line(file)
            .map_err(|why| LinkError::Other(super::settings::unreadable(file, &why)))?;
        connect.password = Some(Bytes::from(password));
    }
    if five {
        connect.session_expiry_s = (!settings.clean_session).then_some(u32::MAX);
        connect.receive_max = Some(wish.receive_max.max(1));
        connect.packet_max = Some(settings.packet_max_bytes);
        connect.user.push((ByteString::from_static(BRIDGE_PROPERTY), "1".into()));
    }
    if settings.notifications && !settings.notifications_local_only {
        connect.will = Some(Box::new(Will {
            topic: state_topic(&settings.remote_client_id),
            payload: Bytes::from_static(b"0"),
            qos: QoS::AtLeastOnce,
            retain: true,
            delay_s: None,
            expiry_s: None,
            properties: MessageProperties::default(),
        }));
    }
    Ok(connect)
}

/// What to subscribe to. A session that was kept has its subscriptions; 3.1.1 would send all retained messages again.
pub(super) fn subscribe(settings: &Settings, remote: &Remote, first: bool) -> Option<Subscribe> {
    if settings.version != Version::V5 && remote.session_present && !first {
        return None;
    }
    let filters = settings.rules.remote_filters().into_iter().map(|(filter, qos)| {
        let qos = qos.min(remote.qos_max);
        let options = SubscribeOptions {
            qos,
            no_local: true,
            retain_as_published: true,
            retain_handling: RetainHandling::SendIfNew,
        };
        (filter, options)
    });
    let filters: Vec<_> = filters.collect();
    (!filters.is_empty()).then_some(Subscribe {
        packet_id: REQUEST_ID,
        subscription_id: None,
        filters,
        user: Vec::new(),
    })
}

/// The message that says at the foreign broker that the bridge is up.
pub(super) fn up(settings: &Settings) -> Option<Packet> {
    let wanted = settings.notifications && !settings.notifications_local_only;
    wanted.then(|| {
        Packet::Publish(Box::new(Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: true,
            topic: state_topic(&settings.remote_client_id),
            packet_id: None,
            payload: Bytes::from_static(b"1"),
            topic_alias: None,
            expiry_s: None,
            subscription_ids: Vec::new(),
            properties: None,
        }))
    })
}

/// Whether a broker may have refused because we said that we are a bridge.
pub(super) fn refuses_bridges(error: &LinkError) -> bool {
    match error {
        LinkError::Closed(WHO) | LinkError::Broke { who: WHO, .. } => true,
        LinkError::Refused { reason, .. } => *reason == ReasonCode::UnsupportedProtocolVersion,
        _ => false,
    }
}

async fn step<T>(future: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    let silent = LinkError::Silent { who: WHO, ms: STEP_MAX.as_millis() as u64 };
    tokio::time::timeout(STEP_MAX, future).await.unwrap_or(Err(silent))
}
