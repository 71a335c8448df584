//! PUBLISH packets that need no understanding: QoS 0, not retained, nothing in them but a topic and a payload. What came
//! in is then, byte for byte, what goes out to whoever speaks the same version.

use crate::error::PacketKind;
use crate::packet::Version;
use crate::wire::read_varint;

/// The first byte of such a packet: no flag is set (MQTT 5, §3.3.1).
const FIRST_BYTE: u8 = (PacketKind::Publish as u8) << 4;

/// A plain PUBLISH, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainPublish<'a> {
    /// All of it.
    pub frame: &'a [u8],
    /// What stands where the topic name does: UTF-8, and nothing else was checked. It is one when it equals one.
    pub topic: &'a str,
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> PlainPublish<'a> {
    /// The packet at the front of `input`, sent by a client of this version, when it is plain and whole. `None`: let a
    /// [`crate::Decoder`] look at it.
    pub fn read(version: Version, input: &'a [u8]) -> Option<Self> {
        let (first, rest) = input.split_first()?;
        if *first != FIRST_BYTE {
            return None;
        }
        let (body_len, length_len) = read_varint(rest).ok()??;
        let head_len = 1 + length_len;
        let frame = input.get(..head_len + body_len as usize)?;
        let (topic_len, rest) = frame[head_len..].split_first_chunk::<2>()?;
        let topic_len = usize::from(u16::from_be_bytes(*topic_len));
        let (topic, rest) = rest.split_at_checked(topic_len)?;
        let payload = match (version, rest) {
            (Version::V5, [0, payload @ ..]) => payload, // no properties
            (Version::V5, _) => return None,
            _ => rest,
        };
        Some(Self { frame, topic: std::str::from_utf8(topic).ok()?, payload })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use outpost_model::QoS;

    use super::*;
    use crate::codec::{Decoder, encode};
    use crate::packet::{Packet, PacketId, Publish};

    const VERSIONS: [Version; 3] = [Version::V3, Version::V4, Version::V5];

    fn publish(payload_len: usize) -> Publish {
        Publish {
            dup: false,
            qos: QoS::AtMostOnce,
            retain: false,
            topic: "plant/hall/7".into(),
            packet_id: None,
            payload: Bytes::from(vec![7; payload_len]),
            topic_alias: None,
            expiry_s: None,
            subscription_ids: Vec::new(),
            properties: None,
        }
    }

    fn bytes_of(publish: &Publish, version: Version) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(&Packet::Publish(Box::new(publish.clone())), version, &mut bytes);
        bytes
    }

    /// What the decoder of a server makes of it.
    fn decoded(bytes: &[u8], version: Version) -> Option<Packet> {
        let mut decoder = Decoder::new(1 << 20);
        let mut connect: &[u8] = match version {
            Version::V3 => b"\x10\x0f\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01c",
            Version::V4 => b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c",
            Version::V5 => b"\x10\x0e\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01c",
        };
        decoder.decode(&mut connect).expect("a CONNECT");
        decoder.decode(&mut &bytes[..]).ok().flatten()
    }

    #[test]
    fn what_is_plain_is_what_the_decoder_reads_and_what_is_written_again() {
        for version in VERSIONS {
            for payload_len in [0, 1, 113, 114, 115, 200, 20_000] {
                let publish = publish(payload_len);
                let bytes = bytes_of(&publish, version);
                let followed = [&bytes[..], b"\xc0\x00"].concat();
                let plain = PlainPublish::read(version, &followed).expect("it is plain");
                assert_eq!(plain.frame, bytes);
                assert_eq!((plain.topic, plain.payload), (&*publish.topic, &publish.payload[..]));
                assert_eq!(decoded(&bytes, version), Some(Packet::Publish(Box::new(publish))));
            }
        }
    }

    #[test]
    fn what_has_more_in_it_or_is_not_whole_is_not_plain() {
        let id = PacketId::new(1);
        let others = [
            Publish { qos: QoS::AtLeastOnce, packet_id: id, ..publish(3) },
            Publish { qos: QoS::ExactlyOnce, packet_id: id, ..publish(3) },
            Publish { retain: true, ..publish(3) },
        ];
        for version in VERSIONS {
            for other in &others {
                assert_eq!(PlainPublish::read(version, &bytes_of(other, version)), None);
            }
            let bytes = bytes_of(&publish(200), version);
            for len in 0..bytes.len() {
                assert_eq!(PlainPublish::read(version, &bytes[..len]), None, "{len} bytes");
            }
        }
        for other in [
            Publish { expiry_s: Some(5), ..publish(3) },
            Publish { topic_alias: Some(1), ..publish(3) },
        ] {
            let bytes = bytes_of(&other, Version::V5);
            assert_eq!(PlainPublish::read(Version::V5, &bytes), None);
        }
    }

    #[test]
    fn damaged_packets_are_left_to_the_decoder() {
        let damaged: [&[u8]; 6] = [
            b"\x30\x00",                  // no topic at all
            b"\x30\x01\x00",              // half a length
            b"\x30\x04\x00\x03ab",        // a topic longer than the packet
            b"\x30\x80\x00",              // a length in more bytes than it needs
            b"\x30\x05\x00\x03\xff\xfeb", // no UTF-8
            b"\x30\xff\xff\xff\xff\x7f",  // a length of five bytes
        ];
        for bytes in damaged {
            assert_eq!(PlainPublish::read(Version::V4, bytes), None, "{bytes:02x?}");
        }
    }
}
