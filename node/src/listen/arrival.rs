//! From an accepted socket to a byte stream of MQTT: PROXY header, TLS, WebSocket, whichever the listener has.

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{fmt, io};

use outpost_actors::ports::Origin;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout_at;
use tracing::info;

use super::connection::{ByteStream, Stream};
use super::door::{Door, Refusal, Ticket};
use super::socket::Socket;
use super::{Listening, proxy, tls, websocket};
use crate::config::Transport;
use crate::plane::Plane;

/// Why a handshake ended.
#[derive(Debug)]
pub struct Refused {
    /// What it counts as.
    pub why: Refusal,
    /// In words, for the log.
    pub text: String,
}

impl Refused {
    /// With its text.
    pub fn new(why: Refusal, text: impl fmt::Display) -> Self {
        Self { why, text: text.to_string() }
    }
}

/// Turns somebody away: counted always, told in the log now and then.
pub fn refuse(door: &Door, remote: Option<SocketAddr>, why: Refusal, text: &str) {
    let Some(others) = door.refused(why) else { return };
    let from = remote.map_or_else(String::new, |remote| format!(" from {remote}"));
    let text = if text.is_empty() { String::new() } else { format!(": {text}") };
    info!(
        "listener {}: refused a connection{from}, {}{text} ({others} more since this was last said)",
        door.name,
        why.name()
    );
}

/// Whether the first byte is one of MQTT.
pub fn is_plain(listening: &Listening) -> bool {
    listening.config.transport == Transport::Tcp && !listening.config.proxy_protocol
}

/// Takes an accepted TCP connection to the shard.
pub fn over_tcp(
    stream: std::net::TcpStream,
    remote: SocketAddr,
    ticket: Ticket,
    listening: &Arc<Listening>,
    plane: &Rc<Plane>,
) {
    let stream = Socket::new(stream, ticket.door().limits.bytes_max, plane.reactor());
    if is_plain(listening) {
        return plane.accept(origin(listening, remote, None), Stream::Tcp(stream), ticket);
    }
    let (listening, plane) = (Arc::clone(listening), Rc::clone(plane));
    let (host, handle) = (Rc::clone(&plane), plane);
    host.spawn(async move {
        let greeted = timeout_at(ticket.deadline(), handshakes(stream, remote, &listening)).await;
        match greeted {
            Ok(Ok((origin, stream))) => handle.accept(origin, stream, ticket),
            Ok(Err(refused)) => {
                refuse(&listening.door, Some(remote), refused.why, &refused.text);
            }
            Err(_) => refuse(&listening.door, Some(remote), Refusal::Timeout, ""),
        }
    });
}

type Greeted = (Origin, Stream);

async fn handshakes(
    mut stream: Socket,
    mut remote: SocketAddr,
    listening: &Listening,
) -> Result<Greeted, Refused> {
    if listening.config.proxy_protocol {
        remote = proxy::read(&mut stream).await?.unwrap_or(remote);
    }
    let Some(tls) = &listening.tls else {
        return Ok((origin(listening, remote, None), framed(stream, listening).await?));
    };
    let (mut stream, certificate) = tls::accept(tls, stream).await?;
    // A TLS session takes as much memory as the other half.
    stream.get_mut().0.at_most(listening.door.limits.bytes_max / 2);
    Ok((origin(listening, remote, certificate), framed(stream, listening).await?))
}

async fn framed<S: ByteStream + 'static>(
    stream: S,
    listening: &Listening,
) -> Result<Stream, Refused> {
    if listening.config.transport.has_websocket() {
        let (path, bytes_max) = (&listening.config.path, listening.message_bytes_max);
        // Boxed: who comes without WebSocket is to keep no place for its handshake.
        let accepting = Box::pin(websocket::accept(stream, path, bytes_max));
        return Ok(Box::new(accepting.await?).into());
    }
    Ok(Box::new(stream).into())
}

/// A stranger may send no more.
pub fn too_many_bytes() -> io::Error {
    let text = "it sent more than limits.connect_bytes_max before its CONNECT was complete";
    io::Error::new(io::ErrorKind::QuotaExceeded, text)
}

/// Where a connection came from.
pub fn origin(listening: &Listening, remote: SocketAddr, certificate: Option<Arc<str>>) -> Origin {
    Origin { listener: Arc::clone(&listening.door.name), remote, certificate }
}

/// A stream of which only so many bytes are read until its first packet is here. Whatever buffers lie above hold no more
/// than was read here, so this bounds what a stranger can make the node remember.
#[derive(Debug)]
pub struct Stranger<S> {
    stream: S,
    /// `None`: no stranger any more.
    left: Option<u32>,
}

impl<S> Stranger<S> {
    /// At most `bytes_max` are read.
    pub fn new(stream: S, bytes_max: usize) -> Self {
        Self { stream, left: Some(u32::try_from(bytes_max).unwrap_or(u32::MAX)) }
    }
}

impl<S: ByteStream> ByteStream for Stranger<S> {
    fn opened(&mut self) {
        self.left = None;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stranger<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(left) = self.left else {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        };
        if left == 0 {
            return Poll::Ready(Err(too_many_bytes()));
        }
        let allowed = buffer.remaining().min(left as usize);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(allowed));
        let result = Pin::new(&mut self.stream).poll_read(cx, &mut part);
        let count = part.filled().len();
        buffer.advance(count);
        self.left = Some(left - count as u32); // no more than was allowed
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stranger<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_stranger_is_read_up_to_its_limit_and_a_client_without() {
        let (mut client, server) = duplex(64);
        let mut server = Stranger::new(server, 4);
        client.write_all(b"abcdefgh").await.expect("room");
        let mut got = [0; 8];
        assert_eq!(server.read(&mut got).await.expect("the first four"), 4);
        assert!(server.read(&mut got).await.is_err(), "no more from a stranger");
        server.opened();
        assert_eq!(server.read(&mut got).await.expect("the rest"), 4);
        assert_eq!(&got[..4], b"efgh");
    }
}
