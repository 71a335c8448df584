//! MQTT over QUIC: one connection and one bidirectional stream a client, which the client opens (ALPN `mqtt`).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    AsyncTimer, AsyncUdpSocket, Connection, Endpoint, EndpointConfig, Incoming, RecvStream,
    Runtime, SendStream, TokioRuntime, VarInt,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout_at;

use super::Listening;
use super::arrival::{self, Refused, Stranger};
use super::connection::ByteStream;
use super::door::{Refusal, Ticket};
use crate::clock;
use crate::plane::Plane;

/// A connection over which nothing comes for so long is given up. Shorter: a radio that sleeps loses its connection;
/// longer: the dead are noticed late (MQTT's keep-alive notices them too).
const IDLE_TIME_MAX: Duration = Duration::from_secs(90);
/// How often an idle connection is kept alive: most home routers forget a UDP flow after 30 seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// Bytes a client may have on their way to us that nobody has read. Smaller: large messages wait for round trips;
/// larger: each client claims that much memory.
const RECEIVE_WINDOW: u32 = 64 * 1024;
/// Bytes on their way to a client. Smaller: slow over long distances; larger: memory for each slow reader.
const SEND_WINDOW: u64 = 64 * 1024;
/// What a client may send of its handshake: certificate chains are smaller.
const CRYPTO_BYTES_MAX: usize = 8 * 1024;
/// First packets that wait for their handshake.
const INCOMING_MAX: usize = 256;
/// Bytes that come before the handshake is looked at, in all.
const INCOMING_BYTES_MAX: u64 = 1 << 20;

/// No error: MQTT has said what there is to say.
const DONE: VarInt = VarInt::from_u32(0);

/// The endpoint of a socket, on the thread this is called on.
///
/// # Errors
/// What the operating system says.
pub fn endpoint(socket: UdpSocket) -> io::Result<Endpoint> {
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(Here))
}

/// Tokio's clocks and sockets, and tasks that end with this thread: one that goes on would take packets from its successor.
#[derive(Debug)]
struct Here;

impl Runtime for Here {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::task::spawn_local(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// How connections behave.
///
/// # Panics
/// When the TLS configuration lacks the suite for QUIC's first packets, which every TLS 1.3 provider of ours has.
pub fn server_config(tls: rustls::ServerConfig) -> Arc<quinn::ServerConfig> {
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3 with AES-128-GCM is there");
    let mut transport = quinn::TransportConfig::default();
    let idle_ms = u32::try_from(IDLE_TIME_MAX.as_millis()).expect("a minute and a half");
    transport
        .max_idle_timeout(Some(VarInt::from_u32(idle_ms).into()))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .crypto_buffer_size(CRYPTO_BYTES_MAX)
        .datagram_receive_buffer_size(None);
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(CRYPTO_BYTES_MAX as u64)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    Arc::new(config)
}

/// Accepts connections for ever, from when the node is open.
pub async fn serve(endpoint: Endpoint, listening: Arc<Listening>, plane: Rc<Plane>) {
    if !listening.opened().await {
        return;
    }
    let tls = listening.tls.clone().expect("a checked QUIC listener has certificates");
    let now = tls.current().quic.expect("and they were loaded for QUIC");
    // Without one, an endpoint takes no connections at all; which one is used is said for each connection.
    endpoint.set_server_config(Some((*now).clone()));
    let mut admission = plane.admission();
    while let Some(incoming) = endpoint.accept().await {
        let remote = incoming.remote_address();
        // Half the places are for whoever comes first; the other half for those that prove to be where they say.
        let is_crowded = listening.door.pending() * 2 >= listening.door.limits.pending_max;
        // So for all where addresses are counted: a stranger must not use up what belongs to another's.
        if (is_crowded || admission.counts_addresses()) && incoming.may_retry() {
            let _ = incoming.retry();
            continue;
        }
        loop {
            let wait_ms = admission.wait_ms(clock::now().mono_ms);
            if wait_ms == 0 {
                break;
            }
            // The others wait in the endpoint meanwhile, at most `INCOMING_MAX`.
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        }
        if !admission.admits(remote.ip(), clock::now().mono_ms) {
            arrival::refuse(&listening.door, Some(remote), Refusal::Address, "");
            incoming.refuse();
            continue;
        }
        let ticket = match listening.door.arrive() {
            Ok(ticket) => ticket,
            Err(why) => {
                arrival::refuse(&listening.door, Some(remote), why, "");
                incoming.refuse();
                continue;
            }
        };
        let (listening, handle) = (Arc::clone(&listening), Rc::clone(&plane));
        // Boxed until it is accepted: the task would keep places for it while its client is silent.
        let incoming = Box::new(incoming);
        plane.spawn(async move { arrived(incoming, remote, ticket, &listening, &handle).await });
    }
}

async fn arrived(
    incoming: Box<Incoming>,
    remote: SocketAddr,
    ticket: Ticket,
    listening: &Listening,
    plane: &Rc<Plane>,
) {
    match timeout_at(ticket.deadline(), handshake(incoming, listening)).await {
        Ok(Ok((connection, stream, user))) => {
            let bytes_max = listening.door.limits.bytes_max;
            // The other half may have moved since its first packet.
            let origin = arrival::origin(listening, connection.remote_address(), user);
            let stream = Box::new(Stranger::new(stream, bytes_max));
            plane.accept(origin, stream.into(), ticket);
        }
        Ok(Err(refused)) => {
            arrival::refuse(&listening.door, Some(remote), refused.why, &refused.text);
        }
        Err(_) => arrival::refuse(&listening.door, Some(remote), Refusal::Timeout, ""),
    }
}

async fn handshake(
    incoming: Box<Incoming>,
    listening: &Listening,
) -> Result<(Connection, QuicStream, Option<Arc<str>>), Refused> {
    let tls = listening.tls.as_ref().expect("a checked QUIC listener has certificates");
    let config = tls.current().quic.expect("and they were loaded for QUIC");
    let failed = |why| Refused::new(Refusal::Tls, why);
    let connection = incoming.accept_with(config).map_err(failed)?.await.map_err(failed)?;
    let chain = connection
        .peer_identity()
        .and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
    let user = tls.user(chain.as_ref().map(|chain| chain.as_slice()))?;
    let (send, receive) = connection.accept_bi().await.map_err(failed)?;
    let stream = QuicStream { send, receive, connection: connection.clone() };
    Ok((connection, stream, user))
}

/// The one stream of a connection.
#[derive(Debug)]
struct QuicStream {
    send: SendStream,
    receive: RecvStream,
    connection: Connection,
}

impl Drop for QuicStream {
    fn drop(&mut self) {
        self.connection.close(DONE, b"");
    }
}

impl ByteStream for QuicStream {}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        AsyncRead::poll_read(Pin::new(&mut self.receive), cx, buffer)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_shutdown(Pin::new(&mut self.send), cx)
    }
}
