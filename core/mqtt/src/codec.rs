//! Bytes to packets and back, MQTT 3.1, 3.1.1 and 5. Pure: bytes in, packets or a reason out.
//!
//! ```text
//! stream ─► Decoder (fixed header, size, who may send what) ─► packet/*.rs (fields) ─► wire.rs, properties.rs
//! ```

use bytestring::ByteString;

use crate::error::{DecodeError, PacketKind, TooLarge};
use crate::packet::{
    Packet, ReasonCode, Version, ack, auth, connack, connect, disconnect, publish, suback,
    subscribe,
};
use crate::wire::{Reader, VARINT_MAX, put_with_length, read_varint};

/// The largest packet the wire can carry: five bytes of fixed header and the greatest remaining length (§2.1.4).
pub const PACKET_BYTES_MAX: u32 = VARINT_MAX + 5;

/// Takes packets off the front of what one connection has sent. Remembers which version it speaks and nothing else.
#[derive(Debug, Clone)]
pub struct Decoder {
    version: Option<Version>,
    from_client: bool,
    /// The CONNECT named an authentication method: AUTH may come.
    auth: bool,
    packet_max: u32,
}

const FROM_SERVERS: &str = "is sent by servers only (Table 2-1)";

#[derive(Debug, Clone, Copy)]
struct Header {
    first: u8,
    kind: PacketKind,
    fixed_len: usize,
    body_len: usize,
}

impl Decoder {
    /// For a server: reads what a client sends, first of all a CONNECT, which decides the version. A packet of more than
    /// `packet_max` bytes, fixed header included, is refused as soon as its length is known; 268,435,455 is no limit, as
    /// for the CONNACK.
    pub fn new(packet_max: u32) -> Self {
        Self { version: None, from_client: true, auth: false, packet_max }
    }

    /// For a client that has sent a CONNECT of this version: reads what a server sends.
    pub fn for_client(version: Version, packet_max: u32) -> Self {
        Self { version: Some(version), from_client: false, auth: true, packet_max }
    }

    /// Accepts packets of this size from now on, for example more once a client is known.
    pub fn set_packet_max(&mut self, packet_max: u32) {
        self.packet_max = packet_max;
    }

    /// The version of the connection, once its CONNECT was decoded.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Takes one whole packet off the front of `input`. `Ok(None)`: more bytes are needed, `input` is untouched.
    ///
    /// # Errors
    /// [`DecodeError`]; `input` and the decoder are untouched, and the connection has to end. What can be told from the
    /// first bytes is told before the rest has come.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Packet>, DecodeError> {
        let Some(header) = self.header(input)? else { return Ok(None) };
        let end = header.fixed_len + header.body_len;
        let Some(body) = input.get(header.fixed_len..end) else { return Ok(None) };
        let packet = self.decode_body(header, body)?;
        if let Packet::Connect(connect) = &packet {
            self.version = Some(connect.version);
            self.auth = connect.auth_method.is_some();
        }
        *input = &input[end..];
        Ok(Some(packet))
    }

    /// How many bytes the packet at the front has in all, once its fixed header is there. `None` also when it will be
    /// refused anyway: nobody should make room for it.
    pub fn need(&self, input: &[u8]) -> Option<usize> {
        self.header(input).ok().flatten().map(|header| header.fixed_len + header.body_len)
    }

    fn header(&self, input: &[u8]) -> Result<Option<Header>, DecodeError> {
        let Some((&first, rest)) = input.split_first() else { return Ok(None) };
        let kind = self.check_kind(first)?;
        self.check_flags(first & 0x0F, kind)?;
        let (body_len, length_len) = match read_varint(rest) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(problem) => {
                return Err(DecodeError::Malformed {
                    packet: kind,
                    field: "remaining length",
                    problem,
                });
            }
        };
        self.check_body(kind, body_len)?;
        let fixed_len = 1 + length_len;
        let size = fixed_len as u32 + body_len;
        if size > self.packet_max && self.packet_max < VARINT_MAX {
            return Err(DecodeError::TooLarge { size, limit: self.packet_max });
        }
        Ok(Some(Header { first, kind, fixed_len, body_len: body_len as usize }))
    }

    /// Whether a packet of this kind may come now (Table 2-1, MQTT-3.1.0-1, MQTT-3.1.0-2).
    fn check_kind(&self, first: u8) -> Result<PacketKind, DecodeError> {
        let refuse = |problem| Err(DecodeError::Unexpected { kind: first >> 4, problem });
        let Some(kind) = PacketKind::from_first_byte(first) else {
            return refuse("is forbidden (§2.1.2)");
        };
        let Some(version) = self.version else {
            return if kind == PacketKind::Connect {
                Ok(kind)
            } else {
                refuse("comes before CONNECT (MQTT-3.1.0-1)")
            };
        };
        if version != Version::V5
            && (kind == PacketKind::Auth || (kind == PacketKind::Disconnect && !self.from_client))
        {
            return refuse("needs MQTT 5");
        }
        match kind {
            // Its body decides (§3.13.1): see check_body.
            PacketKind::Pingresp if self.from_client => Ok(kind),
            PacketKind::Auth if !self.auth => {
                refuse("comes without an authentication method in CONNECT (MQTT-4.12.0-6)")
            }
            PacketKind::Connect if self.from_client => refuse("is a second CONNECT (MQTT-3.1.0-2)"),
            PacketKind::Connect
            | PacketKind::Subscribe
            | PacketKind::Unsubscribe
            | PacketKind::Pingreq
                if !self.from_client =>
            {
                refuse("is sent by clients only (Table 2-1)")
            }
            PacketKind::Connack if self.from_client => refuse(FROM_SERVERS),
            // Both wrong here and malformed: what comes first on the wire is said first.
            PacketKind::Suback | PacketKind::Unsuback if self.from_client => {
                self.check_flags(first & 0x0F, kind)?;
                refuse(FROM_SERVERS)
            }
            _ => Ok(kind),
        }
    }

    /// PINGREQ and PINGRESP have no body (§3.12, §3.13), and the latter is not sent by clients.
    fn check_body(&self, kind: PacketKind, body_len: u32) -> Result<(), DecodeError> {
        match kind {
            PacketKind::Pingreq | PacketKind::Pingresp if body_len > 0 => {
                Err(DecodeError::Unanswered {
                    packet: kind,
                    field: "remaining length",
                    problem: "is more than its fields need",
                })
            }
            PacketKind::Pingresp if self.from_client => {
                Err(DecodeError::Unexpected { kind: kind as u8, problem: FROM_SERVERS })
            }
            _ => Ok(()),
        }
    }

    /// §2.1.3: "If invalid flags are received it is a Malformed Packet." MQTT 3.1 has DUP and QoS in them, without a
    /// meaning here; in a CONNECT the flags are looked at once its version is known.
    fn check_flags(&self, flags: u8, kind: PacketKind) -> Result<(), DecodeError> {
        let wanted = match kind {
            PacketKind::Publish | PacketKind::Connect => return Ok(()),
            PacketKind::Pubrel | PacketKind::Subscribe | PacketKind::Unsubscribe => 0b0010,
            // From a client its direction is what is wrong.
            PacketKind::Pingresp if self.from_client => return Ok(()),
            _ => 0,
        };
        if flags == wanted || self.version == Some(Version::V3) {
            return Ok(());
        }
        Err(DecodeError::Malformed {
            packet: kind,
            field: "fixed header",
            problem: "has wrong flags (MQTT-2.1.3-1)",
        })
    }

    fn decode_body(&self, header: Header, body: &[u8]) -> Result<Packet, DecodeError> {
        let flags = header.first & 0x0F;
        let version = self.version.unwrap_or(Version::V5);
        if header.kind == PacketKind::Publish {
            return Ok(Packet::Publish(Box::new(publish::decode(
                flags,
                version,
                self.from_client,
                body,
            )?)));
        }
        let mut r = Reader::new(header.kind, body);
        let packet = match header.kind {
            PacketKind::Connect => Packet::Connect(Box::new(connect::decode(flags, &mut r)?)),
            PacketKind::Connack => Packet::Connack(Box::new(connack::decode(version, &mut r)?)),
            PacketKind::Puback => Packet::Puback(ack::decode(version, &mut r)?),
            PacketKind::Pubrec => Packet::Pubrec(ack::decode(version, &mut r)?),
            PacketKind::Pubrel => Packet::Pubrel(ack::decode(version, &mut r)?),
            PacketKind::Pubcomp => Packet::Pubcomp(ack::decode(version, &mut r)?),
            PacketKind::Subscribe => {
                Packet::Subscribe(subscribe::decode_subscribe(version, &mut r)?)
            }
            PacketKind::Suback => Packet::Suback(suback::decode(version, &mut r)?),
            PacketKind::Unsubscribe => {
                Packet::Unsubscribe(subscribe::decode_unsubscribe(version, &mut r)?)
            }
            PacketKind::Unsuback => Packet::Unsuback(suback::decode(version, &mut r)?),
            PacketKind::Pingreq => Packet::Pingreq,
            PacketKind::Pingresp => Packet::Pingresp,
            PacketKind::Disconnect => {
                Packet::Disconnect(Box::new(disconnect::decode(version, self.from_client, &mut r)?))
            }
            PacketKind::Auth => Packet::Auth(Box::new(auth::decode(self.from_client, &mut r)?)),
            PacketKind::Publish => unreachable!("it was decoded above"),
        };
        r.finish()?;
        Ok(packet)
    }
}

/// What is left out of a packet so that it fits its receiver. "The sender MUST NOT send this Property if it would
/// increase the size of the packet beyond the Maximum Packet Size" (§3.2.2.3.9 and the like).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    Nothing,
    User,
    UserAndReasonString,
}

impl Leave {
    pub(crate) fn user(self, user: &[(ByteString, ByteString)]) -> &[(ByteString, ByteString)] {
        if self == Self::Nothing { user } else { &[] }
    }

    pub(crate) fn reason_string(self, text: Option<&ByteString>) -> Option<&ByteString> {
        text.filter(|_| self != Self::UserAndReasonString)
    }
}

/// Writes a packet in the form of a version; a CONNECT in the form of its own. What the version does not have is left
/// out, and nothing is written for an AUTH in 3.1.1.
///
/// # Panics
/// When the packet has more than [`PACKET_BYTES_MAX`] bytes, which only a message can have that came in otherwise than
/// through MQTT; [`encode_within`] refuses it.
pub fn encode(packet: &Packet, version: Version, out: &mut Vec<u8>) {
    encode_within(packet, version, PACKET_BYTES_MAX, out)
        .expect("the caller keeps to what the wire can carry");
}

/// Writes a packet for a receiver that takes at most `packet_max` bytes. When it would have more, user properties and
/// then the reason string are left out of it, where they are for people to read; those of a message stay.
///
/// # Errors
/// `TooLarge` when that is not enough; nothing was written.
pub fn encode_within(
    packet: &Packet,
    version: Version,
    packet_max: u32,
    out: &mut Vec<u8>,
) -> Result<(), TooLarge> {
    if let Packet::Publish(publish) = packet {
        publish.head().encode(version, packet_max, out)?;
        out.extend_from_slice(&publish.payload);
        return Ok(());
    }
    if let Some(short) = short_ack(packet).filter(|short| short.len() <= packet_max as usize) {
        out.extend_from_slice(&short);
        return Ok(());
    }
    let start = out.len();
    let mut size = 0;
    for leave in [Leave::Nothing, Leave::User, Leave::UserAndReasonString] {
        let length = encode_leaving(packet, version, leave, out);
        size = size.max(out.len() - start);
        if length <= VARINT_MAX as usize && out.len() - start <= packet_max as usize {
            return Ok(());
        }
        out.truncate(start);
    }
    Err(TooLarge { size, limit: packet_max })
}

/// An acknowledgement that says yes and nothing more: the same in all versions, and every second packet.
fn short_ack(packet: &Packet) -> Option<[u8; 4]> {
    let (Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack)) =
        packet
    else {
        return None;
    };
    let is_bare =
        ack.reason == ReasonCode::Success && ack.reason_string.is_none() && ack.user.is_empty();
    let flags = if matches!(packet, Packet::Pubrel(_)) { 0b0010 } else { 0 };
    let [high, low] = ack.packet_id.get().to_be_bytes();
    is_bare.then_some([(packet.kind() as u8) << 4 | flags, 2, high, low])
}

fn encode_leaving(packet: &Packet, version: Version, leave: Leave, out: &mut Vec<u8>) -> usize {
    let kind = packet.kind();
    if kind == PacketKind::Auth && version != Version::V5 {
        return 0;
    }
    let flags = match kind {
        PacketKind::Pubrel | PacketKind::Subscribe | PacketKind::Unsubscribe => 0b0010,
        _ => 0,
    };
    out.push((kind as u8) << 4 | flags);
    put_with_length(out, 0, |out| match packet {
        Packet::Connect(packet) => connect::encode(packet, out),
        Packet::Connack(packet) => connack::encode(packet, version, leave, out),
        Packet::Puback(packet)
        | Packet::Pubrec(packet)
        | Packet::Pubrel(packet)
        | Packet::Pubcomp(packet) => {
            ack::encode(packet, version, leave, out);
        }
        Packet::Subscribe(packet) => subscribe::encode_subscribe(packet, version, out),
        Packet::Suback(packet) | Packet::Unsuback(packet) => {
            suback::encode(packet, kind, version, leave, out);
        }
        Packet::Unsubscribe(packet) => subscribe::encode_unsubscribe(packet, version, out),
        Packet::Disconnect(packet) => disconnect::encode(packet, version, leave, out),
        Packet::Auth(packet) => auth::encode(packet, leave, out),
        Packet::Pingreq | Packet::Pingresp => {}
        Packet::Publish(_) => unreachable!("its head is written by encode_within"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b' ').collect();
        digits
            .chunks(2)
            .map(|pair| {
                u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")
            })
            .collect()
    }

    #[test]
    fn a_connection_from_connect_to_disconnect() {
        let mut decoder = Decoder::new(1024);
        let bytes = hex("10 0D 0004 4D515454 04 02 000A 0001 70 30 05 0001 70 6869 E0 00");
        let mut input = &bytes[..];
        let mut kinds = Vec::new();
        while let Some(packet) = decoder.decode(&mut input).expect("all valid") {
            let mut again = Vec::new();
            encode(&packet, Version::V4, &mut again);
            assert!(
                bytes.windows(again.len()).any(|part| part == again),
                "{packet:?} written as {again:02x?}"
            );
            kinds.push(packet.kind());
        }
        assert_eq!(kinds, [PacketKind::Connect, PacketKind::Publish, PacketKind::Disconnect]);
        assert!(input.is_empty());
    }
}
