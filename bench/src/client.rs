//! One connection of the generator: bytes in and out, never waiting but for CONNACK and SUBACK.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use crate::wire::{self, Frame};
use crate::{PATIENCE, websocket};

/// Connections from one source address: a port range of the kernel holds some 28,000.
const PER_ADDRESS: usize = 20_000;

/// The socket's reading side is emptied through this; one for all connections.
pub type Scratch = Box<[u8; 256 * 1024]>;

/// Where the server is, and how it is spoken to.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    pub address: SocketAddr,
    pub websocket: bool,
}

/// A connected client.
#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
    pub out: Vec<u8>,
    /// The beginning of a packet.
    rest: Vec<u8>,
    /// Packets travel in WebSocket messages.
    web: Option<Web>,
}

#[derive(Debug, Default)]
struct Web {
    /// Messages that are not all written.
    out: Vec<u8>,
    /// The beginning of a message.
    rest: Vec<u8>,
}

impl Client {
    /// Connects the client with this number and subscribes when asked to. Waits for the answers.
    pub fn connect(
        server: Server,
        number: usize,
        client_id: &str,
        clean: bool,
        subscribe: Option<(&str, u8)>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(server.address), Type::STREAM, None)?;
        if server.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            let own = Ipv4Addr::new(127, 0, 1, (number / PER_ADDRESS) as u8 + 1);
            socket.bind(&SocketAddr::from((own, 0)).into())?;
        }
        socket.connect(&server.address.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream: std::net::TcpStream = socket.into();
        let mut web = server.websocket.then(Web::default);
        if let Some(web) = &mut web {
            web.rest = websocket::open(&mut stream)?;
        }
        let (mut out, mut rest) = (Vec::new(), Vec::new());
        wire::connect(&mut out, client_id, clean);
        ask(&mut stream, &mut web, &out, wire::CONNACK, &mut rest)?;
        if let Some((filter, qos)) = subscribe {
            out.clear();
            wire::subscribe(&mut out, filter, qos);
            ask(&mut stream, &mut web, &out, wire::SUBACK, &mut rest)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Self { stream: TcpStream::from_std(stream), out: Vec::new(), rest, web })
    }

    /// Reads all that is there and shows each packet with the buffer for answers.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn read(
        &mut self,
        scratch: &mut Scratch,
        mut each: impl FnMut(Frame<'_>, &mut Vec<u8>),
    ) -> io::Result<()> {
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest); // came with the answer to CONNECT, perhaps
            let mut input = &rest[..];
            while let Some(frame) = Frame::take(&mut input) {
                each(frame, &mut self.out);
            }
            self.rest = input.to_vec();
        }
        loop {
            let count = match self.stream.read(&mut scratch[..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let mut input = &scratch[..count];
            if let Some(web) = &mut self.web {
                web.rest.extend_from_slice(input);
                websocket::unwrap(&mut web.rest, &mut self.rest);
                input = &[];
            }
            if !self.rest.is_empty() {
                self.rest.extend_from_slice(input);
                input = &self.rest;
            }
            while let Some(frame) = Frame::take(&mut input) {
                each(frame, &mut self.out);
            }
            self.rest = input.to_vec();
            if count < scratch.len() {
                return Ok(());
            }
        }
    }

    /// Writes what waits, as far as it goes.
    ///
    /// # Errors
    /// When the server is gone.
    pub fn write(&mut self) -> io::Result<()> {
        let mut out = &mut self.out;
        if let Some(web) = &mut self.web {
            if web.out.is_empty() && !out.is_empty() {
                websocket::wrap(out, &mut web.out);
                out.clear();
            }
            out = &mut web.out;
        }
        while !out.is_empty() {
            match self.stream.write(out) {
                Ok(count) => drop(out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Sends a packet and waits for the answer; what follows it stays in `rest`.
fn ask(
    stream: &mut std::net::TcpStream,
    web: &mut Option<Web>,
    packet: &[u8],
    answer: u8,
    rest: &mut Vec<u8>,
) -> io::Result<()> {
    let mut wrapped = Vec::new();
    if web.is_some() {
        websocket::wrap(packet, &mut wrapped);
    }
    stream.write_all(if web.is_some() { &wrapped } else { packet })?;
    let mut buffer = [0; 1_024];
    loop {
        let mut input = &rest[..];
        if let Some(frame) = Frame::take(&mut input) {
            if frame.kind != answer || frame.body.get(1) != Some(&0) && answer == wire::CONNACK {
                let text = format!("instead of packet type {answer} came {frame:?}");
                return Err(io::Error::other(text));
            }
            *rest = input.to_vec();
            return Ok(());
        }
        let count = stream.read(&mut buffer)?;
        let came = &buffer[..count];
        match web {
            _ if came.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(web) => {
                web.rest.extend_from_slice(came);
                websocket::unwrap(&mut web.rest, rest);
            }
            None => rest.extend_from_slice(came),
        }
    }
}
