//! What the fuzz target and the replay of its corpus do with bytes: decode them in every role and version, and demand
//! that each packet found is written and read again as the same.

use crate::codec::{Decoder, encode};
use crate::packet::Version;

/// Connections that begin in each possible way.
const CONNECTS: [(Version, &[u8]); 3] = [
    (Version::V3, b"\x10\x0F\x00\x06MQIsdp\x03\x02\x00\x0A\x00\x01p"),
    (Version::V4, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x0A\x00\x01p"),
    (Version::V5, b"\x10\x12\x00\x04MQTT\x05\x02\x00\x0A\x04\x15\x00\x01m\x00\x01p"),
];

/// The largest packet accepted here; a fuzzer learns nothing from longer ones.
const PACKET_MAX: u32 = 1 << 20;

/// Decodes `bytes` as a stream in each role and version, and returns how many packets were found in all.
///
/// # Panics
/// When the codec does, or when a decoded packet does not survive being written and read again: that is a bug here.
pub fn exercise(bytes: &[u8]) -> usize {
    let mut found = decode_stream(&Decoder::new(PACKET_MAX), bytes);
    for (version, connect) in CONNECTS {
        let mut server = Decoder::new(PACKET_MAX);
        let mut input = connect;
        server.decode(&mut input).expect("it is a valid CONNECT").expect("it is a whole one");
        found += decode_stream(&server, bytes);
        found += decode_stream(&Decoder::for_client(version, PACKET_MAX), bytes);
    }
    found
}

fn decode_stream(start: &Decoder, bytes: &[u8]) -> usize {
    let mut decoder = start.clone();
    let mut input = bytes;
    let mut found = 0;
    loop {
        let (before, need) = (decoder.clone(), decoder.need(input));
        let length = input.len();
        let Ok(Some(packet)) = decoder.decode(&mut input) else {
            assert_eq!(input.len(), length, "nothing is consumed without a packet");
            return found;
        };
        assert_eq!(need, Some(length - input.len()), "{packet:?} was as long as announced");
        let mut again = Vec::new();
        encode(&packet, decoder.version().expect("a packet was decoded"), &mut again);
        let same = before.clone().decode(&mut &again[..]);
        assert_eq!(same.as_ref(), Ok(&Some(packet)), "written as {again:02x?}");
        found += 1;
    }
}
