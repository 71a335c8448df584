//! Chapter 6: MQTT over WebSocket (RFC 6455), by frames made here.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::packet::{Connect, PINGREQ, PINGRESP};
use super::peer::{BOTH, unique, web};

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;

/// MQTT 5: 6.0.0-1
/// MQTT 3.1.1: 6.0.0-1
#[test]
fn both_6_0_0_1_anything_but_a_binary_frame_closes() {
    for version in BOTH {
        let (mut socket, _) = Socket::open(Some("mqtt"));
        socket.send(TEXT, &Connect::new(version, &unique("c")).encode());
        assert!(socket.until_closed().is_empty(), "no CONNACK");
    }
}

/// MQTT 5: 6.0.0-2
/// MQTT 3.1.1: 6.0.0-2
#[test]
fn both_6_0_0_2_packets_are_not_frames() {
    for version in BOTH {
        // Half a packet, the rest and two more in one, and one cut in three.
        let connect = Connect::new(version, &unique("c")).encode();
        let (mut socket, _) = Socket::open(Some("mqtt"));
        let (half, rest) = connect.split_at(7);
        socket.send(BINARY, half);
        socket.send(BINARY, &[rest, &PINGREQ, &PINGREQ].concat());
        socket.send(BINARY, &PINGREQ[..1]);
        socket.send(BINARY, &[]);
        socket.send(BINARY, &PINGREQ[1..]);
        let pings = [PINGRESP, 0].repeat(3);
        let mut got = Vec::new();
        while !got.ends_with(&pings) {
            got.extend(socket.frame().expect("open").1);
        }
        assert_eq!(got[0], 0x20);
    }
}

/// MQTT 5: 6.0.0-4
/// MQTT 3.1.1: 6.0.0-4
#[test]
fn both_6_0_0_4_the_subprotocol_is_mqtt() {
    for (offered, chosen) in
        [(Some("mqtt"), true), (Some("chat, mqtt"), true), (Some("chat"), false), (None, false)]
    {
        let (_, answer) = Socket::open(offered);
        let answer = answer.to_lowercase();
        assert_eq!(
            answer.contains("sec-websocket-protocol: mqtt\r\n"),
            chosen,
            "{offered:?}: {answer}"
        );
        assert_eq!(answer.starts_with("http/1.1 101"), chosen, "{offered:?}: {answer}");
    }
}

/// A WebSocket of a client.
struct Socket(TcpStream);

impl Socket {
    /// The handshake; what the server answers.
    fn open(subprotocols: Option<&str>) -> (Self, String) {
        let mut stream = TcpStream::connect(web()).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let offer = subprotocols
            .map(|offer| format!("Sec-WebSocket-Protocol: {offer}\r\n"))
            .unwrap_or_default();
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read(&mut byte).expect("an answer") == 0 {
                break;
            }
            answer.push(byte[0]);
        }
        (Self(stream), String::from_utf8(answer).expect("a text"))
    }

    /// A whole frame of at most 125 bytes, masked as a client's are.
    fn send(&mut self, kind: u8, payload: &[u8]) {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let length =
            u8::try_from(payload.len()).ok().filter(|length| *length < 126).expect("a short one");
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let frame: Vec<_> =
            [0x80 | kind, 0x80 | length].into_iter().chain(mask).chain(masked).collect();
        self.0.write_all(&frame).expect("sent");
    }

    /// The server's next frame; nothing when the connection is over.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).ok()?;
        assert!(head[1] < 126, "the server does not mask, and has nothing long to say");
        let mut payload = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut payload).ok()?;
        Some((head[0] & 0x0f, payload))
    }

    /// What comes before the end, without the close frame.
    fn until_closed(&mut self) -> Vec<Vec<u8>> {
        let frames = std::iter::from_fn(|| self.frame());
        frames.filter(|(kind, _)| *kind != CLOSE).map(|(_, payload)| payload).collect()
    }
}
