//! MQTT in WebSocket frames (RFC 6455; MQTT 5, §6): the HTTP request, and the frames as a stream of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::arrival::Refused;
use super::connection::ByteStream;
use super::door::Refusal;

/// Each connection has a buffer of this size for what comes in. Smaller: more system calls for large messages; larger:
/// idle connections cost more.
const READ_BUFFER_BYTES: usize = 4 * 1024;
/// Frames we send hold one packet, as simple clients expect, or this much of a longer one (MQTT 5, §6.0.0-2 allows both).
/// They are gathered up to this size, and a connection keeps a buffer of that. Smaller: more system calls; larger: more
/// memory.
const FRAME_BYTES: usize = 8 * 1024;
/// Header lines of a request: more is no WebSocket client.
const HEADERS_MAX: usize = 64;

/// Reads the HTTP request of a client, answers it, and goes on in frames. A frame or message of the client has at most
/// `message_bytes_max`: it must be here as a whole before its first byte is looked at.
///
/// # Errors
/// When it asks for something else; it has been answered then.
pub async fn accept<S: ByteStream>(
    mut stream: S,
    path: &str,
    message_bytes_max: usize,
) -> Result<Frames<S>, Refused> {
    let failed = |why: io::Error| Refused::new(Refusal::WebSocket, why);
    let mut head = Vec::with_capacity(1_024);
    let asked = loop {
        if stream.read_buf(&mut head).await.map_err(failed)? == 0 {
            return Err(Refused::new(Refusal::WebSocket, "it closed before its request was whole"));
        }
        if let Some(asked) = parse(&head, path) {
            break asked;
        }
    };
    match asked {
        Ok(request) => {
            stream.write_all(&request.answer()).await.map_err(failed)?;
            stream.flush().await.map_err(failed)?;
            let rest = head.split_off(request.length);
            let config = Some(config(message_bytes_max));
            let frames = WebSocketStream::from_partially_read(stream, rest, Role::Server, config);
            Ok(Frames::new(frames.await))
        }
        Err(status) => {
            let answer = format!(
                "HTTP/1.1 {status}\r\nSec-WebSocket-Version: 13\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            );
            // Who is gone already does not need it.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
            Err(Refused::new(Refusal::WebSocket, format!("answered {status}")))
        }
    }
}

/// How both sides of a WebSocket are set: small buffers, nothing that is not masked, whole packets.
pub fn config(message_bytes_max: usize) -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(FRAME_BYTES)
        .max_write_buffer_size(4 * FRAME_BYTES)
        .max_frame_size(Some(message_bytes_max))
        .max_message_size(Some(message_bytes_max))
}

/// A request that is one for MQTT.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    /// Bytes of its head.
    length: usize,
    key: Vec<u8>,
    protocol: &'static str,
}

impl Request {
    fn answer(&self) -> Vec<u8> {
        let (key, protocol) = (derive_accept_key(&self.key), self.protocol);
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {key}\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        )
        .into_bytes()
    }
}

/// `None`: it is not whole. The error is the status to answer.
fn parse(head: &[u8], path: &str) -> Option<Result<Request, &'static str>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(length)) => Some(check(&request, path, length)),
        Err(_) => Some(Err("400 Bad Request")),
    }
}

fn check(
    request: &httparse::Request<'_, '_>,
    path: &str,
    length: usize,
) -> Result<Request, &'static str> {
    let bad = "400 Bad Request";
    if request.method != Some("GET") || request.version != Some(1) {
        return Err(bad);
    }
    let asked = request.path.unwrap_or_default();
    if asked.split('?').next() != Some(path) {
        return Err("404 Not Found");
    }
    let all = |name: &'static str| {
        let headers = request.headers.iter();
        headers.filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|h| h.value)
    };
    let words = |name| {
        all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
    };
    let has = |name, word: &[u8]| words(name).any(|found| found.eq_ignore_ascii_case(word));
    if !has("upgrade", b"websocket") || !has("connection", b"upgrade") || all("host").count() != 1 {
        return Err(bad);
    }
    if all("sec-websocket-version").next() != Some(b"13") {
        return Err("426 Upgrade Required");
    }
    let mut keys = all("sec-websocket-key");
    let (Some(key), None) = (keys.next(), keys.next()) else { return Err(bad) };
    // 16 bytes in base64 (RFC 6455, §4.1).
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    if key.len() != 24 || !key.ends_with(b"==") || !key.iter().all(is_base64) {
        return Err(bad);
    }
    // MQTT 5, §6.0.0-3 and -4: the client offers "mqtt"; MQTT 3.1 had a name of its own.
    let offered = |name: &'static str| {
        words("sec-websocket-protocol").any(|found| found == name.as_bytes()).then_some(name)
    };
    let protocol = offered("mqtt").or_else(|| offered("mqttv3.1")).ok_or(bad)?;
    Ok(Request { length, key: key.to_vec(), protocol })
}

/// WebSocket frames as a stream of bytes.
#[derive(Debug)]
pub struct Frames<S> {
    socket: WebSocketStream<S>,
    /// What of the last frame nobody has read yet.
    rest: Bytes,
    packets: Packets,
}

impl<S> Frames<S> {
    /// After the handshake.
    pub fn new(socket: WebSocketStream<S>) -> Self {
        Self { socket, rest: Bytes::new(), packets: Packets::default() }
    }
}

impl<S: ByteStream> ByteStream for Frames<S> {
    fn opened(&mut self) {
        self.socket.get_mut().opened();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Frames<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                // MQTT 5, §6.0.0-1: anything but binary ends the connection.
                Some(Ok(Message::Text(_))) => {
                    self.say_why(cx, CloseCode::Unsupported);
                    return Poll::Ready(Err(invalid("a text frame, and MQTT is binary")));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    if let Some(code) = code(&error) {
                        self.say_why(cx, code);
                    }
                    return Poll::Ready(Err(broken(error)));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// Where packets end in what is sent.
#[derive(Debug, Default)]
struct Packets {
    /// Bytes of the packet that have not been sent.
    left: usize,
}

impl Packets {
    /// How many bytes belong into the next frame; they begin like this and there are so many.
    fn next(&mut self, head: &[u8], there_are: usize) -> usize {
        if self.left == 0 {
            // A header that is cut off is sent with what there is; the frames are only less tidy then.
            self.left = packet_length(head).unwrap_or(there_are);
        }
        let count = self.left.min(there_are).min(FRAME_BYTES);
        self.left -= count;
        count
    }
}

/// Length of the packet that begins here (MQTT 5, §2.1.4).
fn packet_length(head: &[u8]) -> Option<usize> {
    let mut length = 0;
    for (index, byte) in head.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(index + 2 + length);
        }
    }
    None
}

/// What is to be written, as one run of bytes.
struct Slices<'a> {
    slices: &'a [io::IoSlice<'a>],
    /// Bytes of the first slice that are written.
    offset: usize,
}

impl Slices<'_> {
    fn length(&self) -> usize {
        self.slices.iter().map(|slice| slice.len()).sum::<usize>() - self.offset
    }

    /// The first bytes, as many as a packet's header has at most.
    fn peek(&self) -> Vec<u8> {
        self.slices
            .iter()
            .flat_map(|slice| slice.iter())
            .skip(self.offset)
            .take(5)
            .copied()
            .collect()
    }

    fn take(&mut self, count: usize) -> Bytes {
        let mut taken = Vec::with_capacity(count);
        while let (Some(first), true) = (self.slices.first(), taken.len() < count) {
            let part = &first[self.offset..];
            let part = &part[..part.len().min(count - taken.len())];
            taken.extend_from_slice(part);
            self.offset += part.len();
            if self.offset == first.len() {
                (self.slices, self.offset) = (&self.slices[1..], 0);
            }
        }
        Bytes::from(taken)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Frames<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut rest = Slices { slices, offset: 0 };
        let mut written = 0;
        while rest.length() > 0 {
            // Not ready while an earlier frame waits for room in the socket.
            match Pin::new(&mut self.socket).poll_ready(cx) {
                Poll::Ready(ready) => ready.map_err(broken)?,
                Poll::Pending if written == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
            let frame = rest.take(self.packets.next(&rest.peek(), rest.length()));
            written += frame.len();
            Pin::new(&mut self.socket).start_send(Message::Binary(frame)).map_err(broken)?;
        }
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(broken)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// Tells the other side which rule it broke (RFC 6455, §7.4.1), if it still listens.
    fn say_why(&mut self, cx: &mut Context<'_>, code: CloseCode) {
        let why = CloseFrame { code, reason: "".into() };
        if Pin::new(&mut self.socket).start_send(Message::Close(Some(why))).is_ok() {
            let _ = Pin::new(&mut self.socket).poll_flush(cx);
        }
    }
}

fn code(error: &Error) -> Option<CloseCode> {
    match error {
        Error::Protocol(_) => Some(CloseCode::Protocol),
        Error::Capacity(_) => Some(CloseCode::Size),
        Error::Utf8(_) => Some(CloseCode::Invalid),
        _ => None,
    }
}

fn broken(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        Error::ConnectionClosed | Error::AlreadyClosed => io::ErrorKind::UnexpectedEof.into(),
        other => invalid(&other.to_string()),
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the WebSocket broke off: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: x, mqtt\r\n\r\n";

    fn parsed(head: &str) -> Option<Result<&'static str, &'static str>> {
        Some(parse(head.as_bytes(), "/mqtt")?.map(|request| request.protocol))
    }

    #[test]
    fn the_request_of_rfc_6455_is_answered_with_its_key() {
        let request = parse(GOOD.as_bytes(), "/mqtt").expect("whole").expect("good");
        assert_eq!(request.length, GOOD.len());
        let answer = String::from_utf8(request.answer()).expect("text");
        assert!(
            answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "{answer}"
        );
        assert!(answer.contains("Sec-WebSocket-Protocol: mqtt\r\n"), "{answer}");
        assert_eq!(parsed(&GOOD.replace("x, mqtt", "mqttv3.1")), Some(Ok("mqttv3.1")));
        assert_eq!(parsed(&GOOD.replace("/mqtt HTTP", "/mqtt?x=1 HTTP")), Some(Ok("mqtt")));
        for cut in 0..GOOD.len() {
            assert_eq!(parsed(&GOOD[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_ends_with_its_packet_or_where_it_is_long_enough() {
        let ping = [0xd0, 0];
        let publish = [0x30, 3, 0, 1, b'a'];
        // A packet whose payload is kept apart from its header, and one that is cut off in its header.
        let slices = [&ping[..], &publish[..2], &publish[2..], &[0x30]].map(io::IoSlice::new);
        let mut rest = Slices { slices: &slices, offset: 0 };
        let mut packets = Packets::default();
        let mut frames = Vec::new();
        while rest.length() > 0 {
            frames.push(rest.take(packets.next(&rest.peek(), rest.length())));
        }
        assert_eq!(frames, [&ping[..], &publish[..], &[0x30]]);
        let mut packets = Packets::default();
        let long = [0x30, 0x80, 0x80, 0x01];
        assert_eq!(packets.next(&long, 20_000), FRAME_BYTES);
        assert_eq!(packets.next(&[], 20_000 - FRAME_BYTES), FRAME_BYTES);
        assert_eq!(
            packets.next(&[], 20_000 - 2 * FRAME_BYTES),
            4,
            "4 of header, 16,384 of payload"
        );
    }

    #[test]
    fn other_requests_get_a_status() {
        let cases = [
            ("GET /mqtt", "POST /mqtt", "400 Bad Request"),
            ("GET /mqtt", "GET /other", "404 Not Found"),
            ("HTTP/1.1", "HTTP/1.0", "400 Bad Request"),
            ("Upgrade: websocket\r\n", "", "400 Bad Request"),
            ("keep-alive, Upgrade", "keep-alive", "400 Bad Request"),
            ("Host: h\r\n", "", "400 Bad Request"),
            ("Version: 13", "Version: 8", "426 Upgrade Required"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short", "400 Bad Request"),
            ("x, mqtt", "x", "400 Bad Request"),
        ];
        for (from, to, status) in cases {
            assert_eq!(parsed(&GOOD.replace(from, to)), Some(Err(status)), "{from:?} as {to:?}");
        }
    }
}
