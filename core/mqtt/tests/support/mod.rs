//! Helpers of the codec's tests: hex, decoders in each state, and one valid packet of each kind.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod arbitrary;

use outpost_mqtt::Decoder;
use outpost_mqtt::packet::Version;

/// Bytes from hex digits, blanks between them.
pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> =
        text.chars().filter(|c| *c != ' ').map(|c| c.to_digit(16).expect("a hex digit")).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A decoder that has seen a CONNECT of this version; in 5 it named an authentication method.
pub fn server(version: Version) -> Decoder {
    let mut decoder = Decoder::new(1 << 20);
    let connect = match version {
        Version::V3 => "10 0F 0006 4D5149736470 03 02 000A 0001 70",
        Version::V4 => "10 0D 0004 4D515454 04 02 000A 0001 70",
        Version::V5 => "10 12 0004 4D515454 05 02 000A 04 15 0001 6D 0001 70",
    };
    decoder.decode(&mut &hex(connect)[..]).expect("valid").expect("whole");
    decoder
}

/// A decoder of what a server sends.
pub fn client(version: Version) -> Decoder {
    Decoder::for_client(version, 1 << 20)
}
