//! Raw bytes over TCP or another stream, for what a client library refuses to say.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// A stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection without a library.
pub struct Wire(Box<dyn Stream>);

impl Wire {
    pub async fn open(server: SocketAddr) -> Self {
        let stream = within("a TCP connection", TcpStream::connect(server)).await;
        Self::over(stream.expect("it listens"))
    }

    /// Over a stream that is open.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self(Box::new(stream))
    }

    /// Sends CONNECT and returns the reason code of CONNACK; `None` when the server closes instead.
    pub async fn enter(&mut self, connect: &[u8]) -> Option<u8> {
        self.write(connect).await.ok()?;
        self.packet().await.map(|connack| connack[3])
    }

    /// Sends PINGREQ; whether PINGRESP comes.
    pub async fn ping(&mut self) -> bool {
        self.write(&[0xc0, 0]).await.is_ok() && self.packet().await == Some(vec![0xd0, 0])
    }

    /// Connected as MQTT 5 with a clean start, CONNACK read.
    pub async fn connected(server: SocketAddr, id: &str) -> Self {
        let mut wire = Self::open(server).await;
        wire.send(&connect(5, id)).await;
        let connack = wire.packet().await.expect("CONNACK");
        assert_eq!((connack[0], connack[3]), (0x20, 0), "{connack:x?}");
        wire
    }

    /// The same in 3.1.1.
    pub async fn connected_v4(server: SocketAddr, id: &str) -> Self {
        let mut wire = Self::open(server).await;
        wire.send(&connect(4, id)).await;
        assert_eq!(wire.packet().await.as_deref(), Some(&[0x20, 2, 0, 0][..]));
        wire
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.write(bytes).await.expect("the server reads");
    }

    /// The next packet, whole; `None` when the server has closed the connection.
    pub async fn packet(&mut self) -> Option<Vec<u8>> {
        within("a packet or the end", self.read_packet()).await.ok()
    }

    /// Waits until the server closes; nothing may come before.
    pub async fn closed(&mut self) {
        assert_eq!(self.packet().await, None, "the server closes");
    }

    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    async fn read_packet(&mut self) -> std::io::Result<Vec<u8>> {
        let mut packet = vec![self.0.read_u8().await?];
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await?;
            packet.push(byte);
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        let head = packet.len();
        packet.resize(head + length, 0);
        self.0.read_exact(&mut packet[head..]).await?;
        Ok(packet)
    }
}

/// CONNECT with a clean start, keep alive 60 s, nothing else.
pub fn connect(level: u8, id: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', level, 0x02, 0, 60];
    if level == 5 {
        body.push(0);
    }
    body.extend_from_slice(&(id.len() as u16).to_be_bytes());
    body.extend_from_slice(id.as_bytes());
    framed(0x10, &body)
}

/// CONNECT of MQTT 5 with a user name and no password.
pub fn named_connect(id: &str, user: &str) -> Vec<u8> {
    let mut packet = connect(5, id);
    let text = [&(user.len() as u16).to_be_bytes(), user.as_bytes()].concat();
    packet[9] |= 0x80;
    framed(0x10, &[&packet[2..], &text].concat())
}

/// CONNECT of 3.1.1 that goes on with its session.
pub fn kept_connect(id: &str) -> Vec<u8> {
    let mut packet = connect(4, id);
    packet[9] = 0;
    packet
}

/// A packet of a body shorter than 16,384 bytes.
pub fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    assert!(length < 16_384, "two bytes of length are enough here");
    let mut packet = vec![first];
    if length < 128 {
        packet.push(length as u8);
    } else {
        packet.extend_from_slice(&[(length % 128) as u8 | 0x80, (length / 128) as u8]);
    }
    packet.extend_from_slice(body);
    packet
}
