//! The little of WebSocket (RFC 6455) that a load generator needs: opening, and binary messages of one frame each.

use std::io::{self, Read, Write};

/// FIN and the opcode of binary data (§5.2).
const BINARY: u8 = 0x82;
const MASKED: u8 = 0x80;

/// The opening handshake (§4.1). What came behind the answer.
pub fn open(stream: &mut (impl Read + Write)) -> io::Result<Vec<u8>> {
    stream.write_all(
        b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\
        Sec-WebSocket-Version: 13\r\n\r\n",
    )?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 1_024]);
    loop {
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            if !answer.starts_with(b"HTTP/1.1 101 ") {
                let text = String::from_utf8_lossy(&answer[..end]).into_owned();
                return Err(io::Error::other(text));
            }
            return Ok(answer.split_off(end + 4));
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Appends a message. The masking key is 0, which leaves the bytes as they are.
pub fn wrap(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(BINARY);
    match bytes.len() {
        len @ ..=0x7D => out.push(MASKED | len as u8),
        len @ ..=0xFFFF => {
            out.push(MASKED | 0x7E);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(MASKED | 0x7F);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(bytes);
}

/// Moves what whole binary messages carry from `input` to `out`.
pub fn unwrap(input: &mut Vec<u8>, out: &mut Vec<u8>) {
    let mut at = 0;
    while let Some((header, len)) = head(&input[at..])
        && let Some(body) = input.get(at + header..at + header + len)
    {
        if input[at] & 0x0F == BINARY & 0x0F {
            out.extend_from_slice(body);
        }
        at += header + len;
    }
    input.drain(..at);
}

/// Bytes of the header and of what follows it; servers do not mask.
fn head(input: &[u8]) -> Option<(usize, usize)> {
    let wide = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    match input.get(1)? & !MASKED {
        126 => Some((4, wide(input.get(2..4)?))),
        127 => Some((10, wide(input.get(2..10)?))),
        len => Some((2, usize::from(len))),
    }
}
