//! PUBLISH packets that need no understanding: QoS 0, not retained, nothing in them but a topic and a payload. What came
//! in is then, byte for byte, what goes out to whoever speaks the same version.

use crate::error::PacketKind;
use crate::packet::Version;
use crate::wire::read_varint;

/// The first byte of such a packet: no flag is set (MQTT 5, §3.3.1).
const FIRST_BYTE: u8 = (PacketKind::Publish as u8) << 4;

/// Plain PUBLISH packets of one topic, one behind the other, where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainRun<'a> {
    /// All of them.
    pub frames: &'a [u8],
    /// How many there are; one at least.
    pub count: usize,
    /// Bytes of all payloads.
    pub payload_bytes: usize,
    /// What stands where the topic name does, unchecked. It is a topic name when it equals one.
    pub topic: &'a [u8],
}

impl<'a> PlainRun<'a> {
    /// The packets at the front of `input`, sent by a client of this version, that are plain, whole, of the first one's
    /// topic, and together no more than `count_max` and `bytes_max`. `None`: let a [`crate::Decoder`] look at the first.
    pub fn read(
        version: Version,
        input: &'a [u8],
        count_max: usize,
        bytes_max: usize,
    ) -> Option<Self> {
        let first = Frame::read(version, input)?;
        if first.len > bytes_max {
            return None;
        }
        let (mut end, mut count, mut payload_bytes) = (first.len, 1, first.payload.len());
        while count < count_max
            && let Some(next) = Frame::read(version, &input[end..])
            && next.topic == first.topic
            && end + next.len <= bytes_max
        {
            (end, count, payload_bytes) =
                (end + next.len, count + 1, payload_bytes + next.payload.len());
        }
        Some(Self { frames: &input[..end], count, payload_bytes, topic: first.topic })
    }

    /// The first of them alone, and its payload.
    pub fn first(self, version: Version) -> Option<(Self, &'a [u8])> {
        let Frame { len, topic, payload } = Frame::read(version, self.frames)?;
        let frames = &self.frames[..len];
        Some((Self { frames, count: 1, payload_bytes: payload.len(), topic }, payload))
    }
}

struct Frame<'a> {
    len: usize,
    topic: &'a [u8],
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    fn read(version: Version, input: &'a [u8]) -> Option<Self> {
        let (first, rest) = input.split_first()?;
        if *first != FIRST_BYTE {
            return None;
        }
        let (body_len, length_len) = read_varint(rest).ok()??;
        let body = rest.get(length_len..length_len + body_len as usize)?;
        let (topic_len, rest) = body.split_first_chunk::<2>()?;
        let topic_len = usize::from(u16::from_be_bytes(*topic_len));
        let (topic, rest) = rest.split_at_checked(topic_len)?;
        let payload = match (version, rest) {
            (Version::V5, [0, payload @ ..]) => payload, // no properties
            (Version::V5, _) => return None,
            _ => rest,
        };
        Some(Self { len: 1 + length_len + body.len(), topic, payload })
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

    fn plain(version: Version, bytes: &[u8]) -> Option<PlainRun<'_>> {
        PlainRun::read(version, bytes, 9, 1 << 20)
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
                let plain = PlainRun::read(version, &followed, 9, 1 << 20).expect("it is plain");
                assert_eq!((plain.frames, plain.count), (&bytes[..], 1));
                assert_eq!(plain.topic, publish.topic.as_bytes());
                assert_eq!(plain.first(version), Some((plain, &publish.payload[..])));
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
                assert_eq!(plain(version, &bytes_of(other, version)), None);
            }
            let bytes = bytes_of(&publish(200), version);
            for len in 0..bytes.len() {
                assert_eq!(plain(version, &bytes[..len]), None, "{len} bytes");
            }
        }
        for other in [
            Publish { expiry_s: Some(5), ..publish(3) },
            Publish { topic_alias: Some(1), ..publish(3) },
        ] {
            let bytes = bytes_of(&other, Version::V5);
            assert_eq!(plain(Version::V5, &bytes), None);
        }
    }

    #[test]
    fn damaged_packets_are_left_to_the_decoder() {
        let damaged: [&[u8]; 5] = [
            b"\x30\x00",                 // no topic at all
            b"\x30\x01\x00",             // half a length
            b"\x30\x04\x00\x03ab",       // a topic longer than the packet
            b"\x30\x80\x00",             // a length in more bytes than it needs
            b"\x30\xff\xff\xff\xff\x7f", // a length of five bytes
        ];
        for bytes in damaged {
            assert_eq!(plain(Version::V4, bytes), None, "{bytes:02x?}");
        }
    }

    #[test]
    fn a_run_ends_with_its_topic_and_at_either_limit() {
        for version in VERSIONS {
            let same = bytes_of(&publish(20), version);
            let other = bytes_of(&Publish { topic: "plant/hall/8".into(), ..publish(20) }, version);
            let bytes = [&same[..], &same[..], &same[..], &other[..], &same[..]].concat();
            let run = |count_max, bytes_max| {
                let run = PlainRun::read(version, &bytes, count_max, bytes_max)?;
                assert_eq!(run.frames, &bytes[..run.count * same.len()]);
                assert_eq!(run.payload_bytes, run.count * 20);
                Some(run.count)
            };
            assert_eq!(run(9, 1_000), Some(3), "then comes another topic");
            assert_eq!(run(2, 1_000), Some(2));
            assert_eq!(run(9, same.len() * 3 - 1), Some(2));
            assert_eq!(run(9, same.len()), Some(1));
            assert_eq!(run(9, same.len() - 1), None, "the first does not fit");
            let cut = &bytes[..same.len() * 2 - 1];
            assert_eq!(
                plain(version, cut).map(|run| run.count),
                Some(1),
                "the second is not whole"
            );
        }
    }
}
