//! The PROXY protocol, version 2: a proxy in front of the listener says where the client is.
//!
//! ```text
//!  0d0a0d0a000d0a515549540a | 2 command | family | length (2) | addresses … TLVs …
//! ```
//! Version 1, the text form, is refused: its length is only known at its end, and every proxy that speaks it speaks 2.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::arrival::Refused;
use super::door::Refusal;

/// What follows the first 16 bytes is at most this long. Less: proxies that add certificates and ids as TLVs are
/// refused; more: a stranger makes the node read more before it is known.
pub const PROXY_BYTES_MAX: usize = 2_048;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Reads the header. `None`: the proxy speaks for itself (a health check), or does not know the client's address.
///
/// # Errors
/// When there is no header, or it breaks the rules.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Refused> {
    let mut head = [0; 16];
    stream.read_exact(&mut head).await.map_err(refused)?;
    if head[..12] != SIGNATURE {
        let version_1 = head.starts_with(b"PROXY ");
        return Err(refused(if version_1 {
            "it is version 1; have the proxy send version 2"
        } else {
            "the connection does not begin with one"
        }));
    }
    let (version, command, family) = (head[12] >> 4, head[12] & 15, head[13]);
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if version != 2 || command > 1 {
        return Err(refused(format!("its version and command are {:#04x}", head[12])));
    }
    if length > PROXY_BYTES_MAX {
        return Err(refused(format!("it has {length} more bytes, at most {PROXY_BYTES_MAX}")));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.map_err(refused)?;
    if command == 0 {
        return Ok(None);
    }
    source(family, &rest)
}

/// The client's address.
fn source(family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, Refused> {
    let short = || refused("its addresses are cut off");
    match family {
        0x11 => {
            let rest: &[u8; 12] = rest.first_chunk().ok_or_else(short)?;
            let ip = Ipv4Addr::new(rest[0], rest[1], rest[2], rest[3]);
            Ok(Some((ip, u16::from_be_bytes([rest[8], rest[9]])).into()))
        }
        0x21 => {
            let rest: &[u8; 36] = rest.first_chunk().ok_or_else(short)?;
            let ip: [u8; 16] = *rest.first_chunk().expect("16 of 36");
            Ok(Some((Ipv6Addr::from(ip), u16::from_be_bytes([rest[32], rest[33]])).into()))
        }
        // Unknown, or a Unix socket: there is no address to take.
        0x00 | 0x31 => Ok(None),
        other => Err(refused(format!("its family is {other:#04x}, not a stream"))),
    }
}

fn refused(why: impl std::fmt::Display) -> Refused {
    Refused::new(Refusal::Proxy, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend_from_slice(&[command, family]);
        header.extend_from_slice(&(rest.len() as u16).to_be_bytes());
        header.extend_from_slice(rest);
        header
    }

    async fn parse(bytes: &[u8]) -> Result<Option<SocketAddr>, String> {
        let mut bytes = bytes;
        read(&mut bytes).await.map_err(|refused| refused.text)
    }

    #[tokio::test]
    async fn addresses_are_taken_and_tlvs_are_passed_over() {
        let mut four = vec![203, 0, 113, 7, 10, 0, 0, 1, 0x30, 0x39, 0x07, 0x5b];
        let wanted = "203.0.113.7:12345".parse().expect("an address");
        assert_eq!(parse(&header(0x21, 0x11, &four)).await, Ok(Some(wanted)));
        four.extend_from_slice(&[0x04, 0, 3, 1, 2, 3]);
        let mut stream = header(0x21, 0x11, &four);
        stream.extend_from_slice(b"CONNECT");
        let mut left = &stream[..];
        assert_eq!(read(&mut left).await.expect("a header"), Some(wanted));
        assert_eq!(left, b"CONNECT", "nothing behind the header is read");
        let mut six = vec![0; 36];
        six[15] = 1;
        six[33] = 80;
        let wanted = "[::1]:80".parse().expect("an address");
        assert_eq!(parse(&header(0x21, 0x21, &six)).await, Ok(Some(wanted)));
    }

    #[tokio::test]
    async fn a_health_check_and_an_unknown_client_have_no_address() {
        assert_eq!(parse(&header(0x20, 0x00, &[])).await, Ok(None));
        assert_eq!(parse(&header(0x21, 0x00, &[])).await, Ok(None));
        assert_eq!(parse(&header(0x21, 0x31, &[0; 216])).await, Ok(None));
    }

    #[tokio::test]
    async fn what_breaks_the_rules_is_refused_with_its_reason() {
        let cases: [(Vec<u8>, &str); 7] = [
            (b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04tlsc".to_vec(), "does not begin with one"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n".to_vec(), "version 1"),
            (header(0x31, 0x11, &[0; 12]), "version and command"),
            (header(0x22, 0x11, &[0; 12]), "version and command"),
            (header(0x21, 0x11, &[0; 11]), "cut off"),
            (header(0x21, 0x12, &[0; 12]), "not a stream"),
            (header(0x21, 0x11, &[0; PROXY_BYTES_MAX + 1]), "at most"),
        ];
        for (bytes, why) in cases {
            let text = parse(&bytes).await.expect_err("refused");
            assert!(text.contains(why), "{text:?} for {bytes:x?}");
        }
        let whole = header(0x21, 0x11, &[1; 12]);
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).await.is_err(), "cut at {cut}");
        }
    }
}
