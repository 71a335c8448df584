//! PUBLISH packets that need no understanding: QoS 0 or 1, sent for the first time, not retained, nothing in them but a topic
//! and a payload. What came in is then, byte for byte, what goes out to whoever speaks the same version; with QoS 1 but for
//! the packet id.

use crate::error::PacketKind;
use crate::packet::{PacketId, Version};
use crate::wire::read_varint;

/// The first byte of such a packet with QoS 0: no flag is set (MQTT 5, §3.3.1).
pub const FIRST_BYTE: u8 = (PacketKind::Publish as u8) << 4;
/// And with QoS 1 (MQTT 5, §3.3.1.2).
pub const FIRST_BYTE_ACKED: u8 = FIRST_BYTE | 0b10;

/// The first byte of a PUBACK (MQTT 5, §3.4.1).
pub const FIRST_BYTE_OF_ACK: u8 = (PacketKind::Puback as u8) << 4;
/// The first two bytes of one that says nothing but yes (MQTT 5, §3.4.2.1).
const ACK_HEAD: [u8; 2] = [FIRST_BYTE_OF_ACK, 2];
/// And how many bytes it has.
pub const PLAIN_ACK_BYTES: usize = 4;

/// The packet id of a PUBACK at the front of `input` that says nothing but yes.
pub fn plain_ack(input: &[u8]) -> Option<PacketId> {
    let (packet, _) = input.split_first_chunk::<PLAIN_ACK_BYTES>()?;
    let [first, len, high, low] = *packet;
    let id = PacketId::new(u16::from_be_bytes([high, low]))?;
    ([first, len] == ACK_HEAD).then_some(id)
}

/// A PUBACK that says nothing but yes.
pub fn plain_ack_of(id: PacketId) -> [u8; PLAIN_ACK_BYTES] {
    let ([first, len], [high, low]) = (ACK_HEAD, id.get().to_be_bytes());
    [first, len, high, low]
}

/// A plain PUBLISH packet of QoS 1, where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainAcked<'a> {
    /// All of it.
    pub frame: &'a [u8],
    /// What stands where the topic name does, unchecked. It is a topic name when it equals one.
    pub topic: &'a [u8],
    /// Its sender's packet id.
    pub id: PacketId,
    /// The payload.
    pub payload: &'a [u8],
    /// Where in the frame the packet id stands.
    id_at: usize,
}

impl<'a> PlainAcked<'a> {
    /// The packet at the front of `input`, sent by a client of this version. `None`: let a [`crate::Decoder`] look at it.
    pub fn read(version: Version, input: &'a [u8]) -> Option<Self> {
        let Body { len, topic, rest } = Body::read(FIRST_BYTE_ACKED, input)?;
        let (id, rest) = rest.split_first_chunk::<2>()?;
        let id_at = len - rest.len() - id.len();
        let id = PacketId::new(u16::from_be_bytes(*id))?;
        let payload = payload_of(version, rest)?;
        Some(Self { frame: &input[..len], topic, id, payload, id_at })
    }

    /// Appends the packet as its receiver gets it: under another packet id.
    pub fn write(&self, id: PacketId, out: &mut Vec<u8>) {
        let at = out.len() + self.id_at;
        out.extend_from_slice(self.frame);
        out[at..at + 2].copy_from_slice(&id.get().to_be_bytes());
    }
}

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
    /// The packet at the front of `input`, sent by a client of this version, when it is plain, whole and no larger than that.
    /// `None`: let a [`crate::Decoder`] look at it.
    pub fn read(version: Version, input: &'a [u8], bytes_max: usize) -> Option<Self> {
        let Frame { len, topic, payload } = Frame::read(version, input)?;
        let frames = input.get(..len).filter(|_| len <= bytes_max)?;
        Some(Self { frames, count: 1, payload_bytes: payload.len(), topic })
    }

    /// With those that follow it in `input`, where they are of the same topic and plain as well: together no more than
    /// `count_max` and `bytes_max`.
    #[must_use]
    pub fn with_followers(
        self,
        version: Version,
        input: &'a [u8],
        count_max: usize,
        bytes_max: usize,
    ) -> Self {
        let Self { frames, mut count, mut payload_bytes, topic } = self;
        let mut end = frames.len();
        while count < count_max
            && let Some(next) = Frame::read(version, &input[end..])
            && next.topic == topic
            && end + next.len <= bytes_max
        {
            (end, count, payload_bytes) =
                (end + next.len, count + 1, payload_bytes + next.payload.len());
        }
        Self { frames: &input[..end], count, payload_bytes, topic }
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
        let Body { len, topic, rest } = Body::read(FIRST_BYTE, input)?;
        Some(Self { len, topic, payload: payload_of(version, rest)? })
    }
}

/// A whole PUBLISH packet as far as its topic.
struct Body<'a> {
    /// Of the packet.
    len: usize,
    topic: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn read(first_byte: u8, input: &'a [u8]) -> Option<Self> {
        let (first, rest) = input.split_first()?;
        if *first != first_byte {
            return None;
        }
        let (body_len, length_len) = read_varint(rest).ok()??;
        let body = rest.get(length_len..length_len + body_len as usize)?;
        let (topic_len, rest) = body.split_first_chunk::<2>()?;
        let topic_len = usize::from(u16::from_be_bytes(*topic_len));
        let (topic, rest) = rest.split_at_checked(topic_len)?;
        Some(Self { len: 1 + length_len + body.len(), topic, rest })
    }
}

/// What stands behind topic and packet id, when that is a payload and no properties.
fn payload_of(version: Version, rest: &[u8]) -> Option<&[u8]> {
    match (version, rest) {
        (Version::V5, [0, payload @ ..]) => Some(payload),
        (Version::V5, _) => None,
        _ => Some(rest),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use outpost_model::QoS;

    use super::*;
    use crate::codec::{Decoder, encode};
    use crate::packet::{Ack, Packet, Publish, ReasonCode};

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
        let first = PlainRun::read(version, bytes, 1 << 20)?;
        Some(first.with_followers(version, bytes, 9, 1 << 20))
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
                let run = plain(version, &followed).expect("it is plain");
                assert_eq!((run.frames, run.count), (&bytes[..], 1));
                assert_eq!(run.topic, publish.topic.as_bytes());
                assert_eq!(run.first(version), Some((run, &publish.payload[..])));
                assert_eq!(decoded(&bytes, version), Some(Packet::Publish(Box::new(publish))));
            }
        }
    }

    fn acked(payload_len: usize, id: u16) -> Publish {
        let packet_id = PacketId::new(id);
        Publish { qos: QoS::AtLeastOnce, packet_id, ..publish(payload_len) }
    }

    #[test]
    fn with_qos_1_what_is_written_again_has_another_packet_id_and_nothing_else() {
        for version in VERSIONS {
            for payload_len in [0, 1, 113, 114, 115, 200, 20_000] {
                let (came, goes) = (acked(payload_len, 0x1234), acked(payload_len, 0xfedc));
                let bytes = bytes_of(&came, version);
                let followed = [&bytes[..], b"\xc0\x00"].concat();
                let plain = PlainAcked::read(version, &followed).expect("it is plain");
                assert_eq!((plain.frame, Some(plain.id)), (&bytes[..], came.packet_id));
                assert_eq!(plain.topic, came.topic.as_bytes());
                assert_eq!(plain.payload, &came.payload[..]);
                let mut out = b"before".to_vec();
                plain.write(goes.packet_id.expect("it has one"), &mut out);
                assert_eq!(out, [b"before", &bytes_of(&goes, version)[..]].concat());
                assert_eq!(decoded(&bytes, version), Some(Packet::Publish(Box::new(came))));
            }
        }
    }

    #[test]
    fn with_qos_1_too_what_has_more_in_it_or_is_not_whole_is_not_plain() {
        for version in VERSIONS {
            let others = [
                publish(3),
                Publish { dup: true, ..acked(3, 1) },
                Publish { retain: true, ..acked(3, 1) },
                Publish { qos: QoS::ExactlyOnce, ..acked(3, 1) },
            ];
            for other in &others {
                assert_eq!(PlainAcked::read(version, &bytes_of(other, version)), None);
            }
            let bytes = bytes_of(&acked(200, 7), version);
            for len in 0..bytes.len() {
                assert_eq!(PlainAcked::read(version, &bytes[..len]), None, "{len} bytes");
            }
        }
        let expiring = Publish { expiry_s: Some(5), ..acked(3, 1) };
        assert_eq!(PlainAcked::read(Version::V5, &bytes_of(&expiring, Version::V5)), None);
        assert_eq!(PlainAcked::read(Version::V4, b"\x32\x05\x00\x01a\x00\x00"), None, "id 0");
    }

    #[test]
    fn an_acknowledgement_that_says_yes_has_four_bytes_in_all_versions() {
        let id = PacketId::new(0x1234).expect("not 0");
        for version in VERSIONS {
            let mut bytes = Vec::new();
            encode(&Packet::Puback(Ack::new(id, ReasonCode::Success)), version, &mut bytes);
            assert_eq!((&bytes[..], plain_ack(&bytes)), (&plain_ack_of(id)[..], Some(id)));
            for len in 0..bytes.len() {
                assert_eq!(plain_ack(&bytes[..len]), None, "{len} bytes");
            }
        }
        let no = Ack::new(id, ReasonCode::QuotaExceeded);
        let mut bytes = Vec::new();
        encode(&Packet::Puback(no), Version::V5, &mut bytes);
        assert_eq!(plain_ack(&bytes), None);
        assert_eq!(plain_ack(b"\x40\x02\x00\x00"), None, "id 0");
        assert_eq!(plain_ack(b"\x50\x02\x00\x01"), None, "a PUBREC");
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
                let first = PlainRun::read(version, &bytes, bytes_max)?;
                let run = first.with_followers(version, &bytes, count_max, bytes_max);
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
