//! This node's side: the bridge as a client of its own shard, through memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytestring::ByteString;
use outpost_actors::ports::{BRIDGE_LISTENER, Origin};
use outpost_model::QoS;
use outpost_mqtt::codec::PACKET_BYTES_MAX;
use outpost_mqtt::packet::{
    Connack, Connect, Disconnect, Packet, PacketId, RetainHandling, Subscribe, SubscribeOptions,
    Unsubscribe, Version,
};
use tokio::io::DuplexStream;

use super::link::{LinkError, Wire};
use super::settings::Settings;
use crate::listen::door::{Door, StrangerLimits};
use crate::plane::{Command, PlaneHandle};

/// Bytes on their way between shard and bridge. Smaller: more turns for large messages; larger: more is taken from the
/// session than the link has room for.
const PIPE_BYTES: usize = 64 * 1024;
/// How long the shard may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The packet id of the bridge's own requests: messages are numbered from the other end.
pub(super) const REQUEST_ID: PacketId = PacketId::MAX;

const WHO: &str = "this node";

/// Where the broker is while there is no link.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The connection to the shard.
pub(super) type Local = Wire<DuplexStream>;

/// Makes sure that the session is there and subscribes to what the rules say, so that messages queue up whether or not
/// the foreign broker can be reached.
pub(super) struct Prepared {
    /// The session is new: this node's store has forgotten it, or never knew it.
    pub(super) is_new: bool,
    /// Unacknowledged messages that this node takes of one client.
    pub(super) receive_max: u16,
    /// There are filters that were not subscribed to before.
    pub(super) has_new_filters: bool,
}

/// See [`Prepared`]. `known` is what the session subscribes to so far.
///
/// # Errors
/// [`LinkError`].
pub(super) async fn prepare(
    plane: &PlaneHandle,
    settings: &Settings,
    known: &[ByteString],
) -> Result<Prepared, LinkError> {
    let (mut local, connack) = attach(plane, &settings.client_id, NOWHERE, false, 1).await?;
    let filters = settings.rules.local_filters();
    let stale: Vec<ByteString> =
        known.iter().filter(|k| !filters.iter().any(|(f, _)| f == *k)).cloned().collect();
    let has_new_filters = filters.iter().any(|(filter, _)| !known.contains(filter));
    if !stale.is_empty() {
        let request = Unsubscribe { packet_id: REQUEST_ID, filters: stale, user: Vec::new() };
        put(&mut local, &Packet::Unsubscribe(request));
        answer(&mut local, |packet| matches!(packet, Packet::Unsuback(_))).await?;
    }
    if let Some(request) = subscribe(settings, RetainHandling::Never, QoS::ExactlyOnce) {
        put(&mut local, &Packet::Subscribe(request));
        answer(&mut local, |packet| matches!(packet, Packet::Suback(_))).await?;
    }
    put(&mut local, &Packet::Disconnect(Box::default()));
    local.close().await?;
    Ok(Prepared {
        is_new: !connack.session_present,
        receive_max: connack.receive_max.unwrap_or(u16::MAX),
        has_new_filters,
    })
}

/// Ends a session and gives up its queue.
///
/// # Errors
/// [`LinkError`].
pub(super) async fn forget(plane: &PlaneHandle, client_id: &str) -> Result<(), LinkError> {
    let (mut local, _) = attach(plane, client_id, NOWHERE, true, 1).await?;
    let end = Disconnect { session_expiry_s: Some(0), ..Disconnect::default() };
    put(&mut local, &Packet::Disconnect(Box::new(end)));
    local.close().await
}

/// Connects to the shard, for a link to the broker at `peer`.
///
/// # Errors
/// [`LinkError`].
pub(super) async fn attach(
    plane: &PlaneHandle,
    client_id: &str,
    peer: SocketAddr,
    clean_start: bool,
    receive_max: u16,
) -> Result<(Local, Connack), LinkError> {
    let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
    let origin = Origin { listener: BRIDGE_LISTENER.into(), remote: peer, certificate: None };
    // A door for one: bridges are no strangers, and take no socket.
    let limits = StrangerLimits { pending_max: 1, bytes_max: PIPE_BYTES, time_max: PATIENCE };
    let ticket = Door::new(BRIDGE_LISTENER, limits, 1, None).arrive();
    let ticket = ticket.expect("it is the first at this door");
    plane.send(Command::Attach(origin, theirs, ticket)).await.map_err(|_| LinkError::Plane)?;
    let mut local = Wire::new(WHO, ours, Version::V5, PACKET_BYTES_MAX);
    let mut connect = Connect::new(Version::V5, client_id);
    connect.clean_start = clean_start;
    connect.session_expiry_s = Some(u32::MAX);
    connect.receive_max = Some(receive_max.max(1));
    put(&mut local, &Packet::Connect(Box::new(connect)));
    let connack = within(local.next()).await?;
    let Packet::Connack(connack) = connack else {
        return Err(LinkError::Other("this node answered CONNECT with something else".into()));
    };
    if connack.reason.is_error() {
        let (who, reason) = (WHO.to_owned(), connack.reason);
        return Err(LinkError::Refused { who, reason, text: String::new() });
    }
    local.set_packet_max(connack.packet_max);
    Ok((local, *connack))
}

/// What the bridge subscribes to on this node: not what it publishes itself, and with the retain flag as published.
pub(super) fn subscribe(
    settings: &Settings,
    retain_handling: RetainHandling,
    qos_max: QoS,
) -> Option<Subscribe> {
    let filters = settings.rules.local_filters().into_iter().map(|(filter, qos)| {
        let qos = qos.min(qos_max);
        let options =
            SubscribeOptions { qos, no_local: true, retain_as_published: true, retain_handling };
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

fn put(local: &mut Local, packet: &Packet) {
    local.put(packet).expect("requests are small");
}

/// Waits for the answer to a request. What the session sends meanwhile it sends again on the next connection.
async fn answer(local: &mut Local, is_it: impl Fn(&Packet) -> bool) -> Result<(), LinkError> {
    loop {
        let packet = within(local.next()).await?;
        if let Packet::Suback(suback) | Packet::Unsuback(suback) = &packet
            && let Some(reason) = suback.reasons.iter().find(|reason| reason.is_error())
        {
            return Err(LinkError::Other(format!("this node refused a topic: {reason:?}")));
        }
        if is_it(&packet) {
            return Ok(());
        }
    }
}

async fn within<T>(future: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    let silent = LinkError::Silent { who: WHO, ms: PATIENCE.as_millis() as u64 };
    tokio::time::timeout(PATIENCE, future).await.unwrap_or(Err(silent))
}
