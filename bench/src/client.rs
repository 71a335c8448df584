//! One connection of the generator: bytes in and out, never waiting but for CONNACK and SUBACK.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Socket, Type};

use crate::PATIENCE;
use crate::wire::{self, Frame};

/// Connections from one source address: a port range of the kernel holds some 28,000.
const PER_ADDRESS: usize = 20_000;

/// The socket's reading side is emptied through this; one for all connections.
pub type Scratch = Box<[u8; 256 * 1024]>;

/// A connected client.
#[derive(Debug)]
pub struct Client {
    pub stream: TcpStream,
    pub out: Vec<u8>,
    /// The beginning of a packet.
    rest: Vec<u8>,
}

impl Client {
    /// Connects the client with this number and subscribes when asked to. Waits for the answers.
    pub fn connect(
        server: SocketAddr,
        number: usize,
        client_id: &str,
        clean: bool,
        subscribe: Option<(&str, u8)>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        if server.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            let own = Ipv4Addr::new(127, 0, 1, (number / PER_ADDRESS) as u8 + 1);
            socket.bind(&SocketAddr::from((own, 0)).into())?;
        }
        socket.connect(&server.into())?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut stream: std::net::TcpStream = socket.into();
        let mut out = Vec::new();
        wire::connect(&mut out, client_id, clean);
        stream.write_all(&out)?;
        let mut rest = Vec::new();
        wait_for(&mut stream, wire::CONNACK, &mut rest)?;
        if let Some((filter, qos)) = subscribe {
            out.clear();
            wire::subscribe(&mut out, filter, qos);
            stream.write_all(&out)?;
            wait_for(&mut stream, wire::SUBACK, &mut rest)?;
        }
        stream.set_nonblocking(true)?;
        Ok(Self { stream: TcpStream::from_std(stream), out: Vec::new(), rest })
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
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What follows the packet stays in `rest`.
fn wait_for(stream: &mut std::net::TcpStream, kind: u8, rest: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 1_024];
    loop {
        let mut input = &rest[..];
        if let Some(frame) = Frame::take(&mut input) {
            if frame.kind != kind || frame.body.get(1) != Some(&0) && kind == wire::CONNACK {
                let text = format!("instead of packet type {kind} came {frame:?}");
                return Err(io::Error::other(text));
            }
            *rest = input.to_vec();
            return Ok(());
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => rest.extend_from_slice(&buffer[..count]),
        }
    }
}
