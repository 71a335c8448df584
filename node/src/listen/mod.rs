//! Where devices come in. Every way in ends in one loop for byte streams.
//!
//! ```text
//!  accept ─▶ PROXY header ─▶ TLS ─▶ WebSocket ─┐
//!  QUIC handshake ─▶ first stream ─────────────┴─▶ connection.rs ◀─▶ shard
//! ```
//! From the first byte to CONNECT a connection is a stranger: [`door`] counts them, bounds their number, bytes and time.

pub mod acceptor;
pub mod arrival;
pub mod connection;
pub mod courtesy;
pub mod descriptors;
pub mod door;
pub mod proxy;
pub mod quic;
pub mod socket;
pub mod tcp;
pub mod tls;
pub mod websocket;

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;

use door::Door;
use tls::Tls;
use tokio::sync::watch;

use crate::config::{Listener, Transport};
use crate::plane::Plane;

/// A listener whose socket is open. It outlives the data threads that serve it.
#[derive(Debug)]
pub struct Listening {
    /// As configured.
    pub config: Listener,
    /// Where it listens, with the port the system chose when 0 was asked for.
    pub address: SocketAddr,
    /// Who stands before it.
    pub door: Arc<Door>,
    /// Its certificates, for the transports that have some.
    pub tls: Option<Arc<Tls>>,
    /// Longest WebSocket message a client may send.
    pub message_bytes_max: usize,
    /// Whether clients are let in yet.
    is_open: watch::Receiver<bool>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Listening {
    /// Opens the socket of a listener. Clients wait before it until `is_open`.
    ///
    /// # Errors
    /// What the operating system says, for example that the port is in use.
    pub fn open(
        config: Listener,
        door: Arc<Door>,
        tls: Option<Arc<Tls>>,
        message_bytes_max: usize,
        is_open: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        let address = config.address();
        let (socket, address) = if config.transport == Transport::Quic {
            let socket = UdpSocket::bind(address)?;
            let address = socket.local_addr()?;
            (Socket::Udp(socket), address)
        } else {
            let socket = tcp::bind(address)?;
            let address = socket.local_addr()?;
            (Socket::Tcp(socket), address)
        };
        Ok(Self { config, address, door, tls, message_bytes_max, is_open, socket })
    }

    /// Serves it on this data thread, for ever.
    ///
    /// # Errors
    /// When the socket cannot be used on this thread.
    pub fn serve(self: Arc<Self>, plane: &Rc<Plane>) -> io::Result<tokio::task::JoinHandle<()>> {
        Ok(match &self.socket {
            Socket::Tcp(socket) => {
                let socket = acceptor::Acceptor::new(socket.try_clone()?, plane.reactor());
                plane.spawn(tcp::serve(socket, Arc::clone(&self), Rc::clone(plane)))
            }
            Socket::Udp(socket) => {
                let endpoint = quic::endpoint(socket.try_clone()?)?;
                plane.spawn(quic::serve(endpoint, Arc::clone(&self), Rc::clone(plane)))
            }
        })
    }

    /// Waits until clients are let in. `false`: the node ends first.
    async fn opened(&self) -> bool {
        self.is_open.clone().wait_for(|is_open| *is_open).await.is_ok()
    }

    /// What it serves, for people: `MQTT over TLS on 127.0.0.1:8883`.
    pub fn words(&self) -> String {
        let over = match self.config.transport {
            Transport::Tcp => "TCP",
            Transport::Tls => "TLS",
            Transport::Ws => "WebSocket",
            Transport::Wss => "WebSocket with TLS",
            Transport::Quic => "QUIC",
        };
        let path = if self.config.transport.has_websocket() { &self.config.path } else { "" };
        format!("MQTT over {over} on {}{path}", self.address)
    }
}
