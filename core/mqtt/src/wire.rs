//! The data types of the wire: integers, strings, binary data (MQTT 5, §1.5), read with checks and written.

use bytes::Bytes;
use bytestring::ByteString;
use outpost_model::topic::{TOPIC_LEVELS_MAX, TopicError, check_name};

use crate::error::{DecodeError, PacketKind};
use crate::packet::{PacketId, ReasonCode};

/// The greatest value of a variable byte integer (MQTT 5, §1.5.5).
pub const VARINT_MAX: u32 = 268_435_455;

/// The greatest length of a string or of binary data (MQTT 5, §1.5.4, §1.5.6).
pub const FIELD_MAX: usize = 65_535;

/// Reads a variable byte integer at the front: `Ok(None)` when more bytes are needed, else value and length.
///
/// # Errors
/// What is wrong: more than four bytes, or more than the value needs (MQTT-1.5.5-1).
pub fn read_varint(input: &[u8]) -> Result<Option<(u32, usize)>, &'static str> {
    let mut value = 0;
    for (place, byte) in input.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            let overlong = place > 0 && *byte == 0;
            return if overlong {
                Err("uses more bytes than it needs")
            } else {
                Ok(Some((value, place + 1)))
            };
        }
    }
    if input.len() >= 4 { Err("is longer than four bytes") } else { Ok(None) }
}

/// Reads the fields of one packet, front to back; each error knows the packet and the field.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    /// Where `rest` lies, so that fields share it; otherwise they are copied.
    body: Option<&'a Bytes>,
    packet: PacketKind,
}

impl<'a> Reader<'a> {
    /// Reads `body`, fields that are kept being copied out of it.
    pub fn new(packet: PacketKind, body: &'a [u8]) -> Self {
        Self { rest: body, body: None, packet }
    }

    /// Reads `body`, fields that are kept sharing its memory.
    pub fn sharing(packet: PacketKind, body: &'a Bytes) -> Self {
        Self { rest: body, body: Some(body), packet }
    }

    /// The packet that is read.
    pub fn packet(&self) -> PacketKind {
        self.packet
    }

    /// Whether all bytes are read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Whether these bytes come next.
    pub fn starts_with(&self, bytes: &[u8]) -> bool {
        self.rest.starts_with(bytes)
    }

    /// "Cannot be parsed."
    pub fn malformed(&self, field: &'static str, problem: &'static str) -> DecodeError {
        DecodeError::Malformed { packet: self.packet, field, problem }
    }

    /// Wrong, and answered with nothing but the end of the connection.
    pub fn unanswered(&self, field: &'static str, problem: &'static str) -> DecodeError {
        DecodeError::Unanswered { packet: self.packet, field, problem }
    }

    /// "Can be parsed, and is not allowed."
    pub fn protocol(&self, field: &'static str, problem: &'static str) -> DecodeError {
        DecodeError::Protocol { packet: self.packet, field, problem }
    }

    /// The next `n` bytes.
    pub fn take(&mut self, n: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or_else(|| self.malformed(field, "ends before its end"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// A part of its own, `n` bytes long, for example the properties.
    pub fn part(&mut self, n: usize, field: &'static str) -> Result<Self, DecodeError> {
        Ok(Self { rest: self.take(n, field)?, body: self.body, packet: self.packet })
    }

    /// One byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, field)?[0])
    }

    /// Two Byte Integer (§1.5.2).
    pub fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        let bytes = self.take(2, field)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Four Byte Integer (§1.5.3).
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        let bytes = self.take(4, field)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// Variable Byte Integer (§1.5.5).
    pub fn varint(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        match read_varint(self.rest) {
            Ok(Some((value, length))) => {
                self.rest = &self.rest[length..];
                Ok(value)
            }
            Ok(None) => Err(self.malformed(field, "ends before its end")),
            Err(problem) => Err(self.malformed(field, problem)),
        }
    }

    /// Binary Data (§1.5.6).
    pub fn binary(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let bytes = self.field(field)?;
        Ok(self.keep(bytes))
    }

    /// Reads over Binary Data or a string.
    pub fn skip(&mut self, field: &'static str) -> Result<(), DecodeError> {
        self.field(field).map(drop)
    }

    /// UTF-8 Encoded String (§1.5.4), free text.
    pub fn string(&mut self, field: &'static str) -> Result<ByteString, DecodeError> {
        let text = self.text(field)?;
        if text.as_bytes().contains(&0) {
            Err(self.malformed(field, "holds U+0000 (MQTT-1.5.4-2)"))
        } else {
            Ok(text)
        }
    }

    /// UTF-8 Encoded String that names something: a client, a user, a topic. Control characters are refused in these,
    /// which §1.5.4 leaves open ("MAY treat the packet as a Malformed Packet"): names end in logs and on terminals.
    pub fn name(&mut self, field: &'static str) -> Result<ByteString, DecodeError> {
        let text = self.text(field)?;
        if !has_control(&text) {
            return Ok(text);
        }
        let nul = text.as_bytes().contains(&0);
        Err(self.malformed(
            field,
            if nul { "holds U+0000 (MQTT-1.5.4-2)" } else { "holds a control character (§1.5.4)" },
        ))
    }

    /// A response topic: a topic name, except that a wildcard in it is a Protocol Error (MQTT-3.3.2-14).
    pub fn response_topic(&mut self, field: &'static str) -> Result<ByteString, DecodeError> {
        let mut text = self.clone();
        if text.name(field)?.contains(['+', '#']) {
            return Err(self.protocol(field, "holds a wildcard (MQTT-3.3.2-14)"));
        }
        self.topic_name(field)
    }

    /// A topic name, checked (§4.7).
    pub fn topic_name(&mut self, field: &'static str) -> Result<ByteString, DecodeError> {
        let start = self.rest;
        let bytes = self.field(field)?;
        if is_plain_name(bytes)
            && let Ok(name) = ByteString::try_from(self.keep(bytes))
        {
            return Ok(name);
        }
        self.rest = start;
        let name = self.name(field)?;
        match check_name(&name) {
            Ok(()) => Ok(name),
            Err(TopicError::TooDeep) => Err(DecodeError::TopicName {
                packet: self.packet,
                field,
                problem: "has too many levels",
            }),
            Err(TopicError::Empty) => Err(self.malformed(field, "is empty (MQTT-4.7.3-1)")),
            Err(TopicError::WildcardInName) => {
                Err(self.malformed(field, "holds a wildcard (MQTT-3.3.2-2)"))
            }
            Err(_) => Err(self.malformed(field, "is not a topic name")),
        }
    }

    /// Packet Identifier (§2.2.1), never 0.
    pub fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16("packet identifier")?)
            .ok_or_else(|| self.protocol("packet identifier", "is 0 (MQTT-2.2.1-3)"))
    }

    /// A reason code that `allowed` holds.
    pub fn reason(&mut self, allowed: &[ReasonCode]) -> Result<ReasonCode, DecodeError> {
        let code = ReasonCode::from_byte(self.u8("reason code")?)
            .ok_or_else(|| self.protocol("reason code", "is none of the standard's"))?;
        if allowed.contains(&code) {
            Ok(code)
        } else {
            Err(self.protocol("reason code", "is not for this packet"))
        }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// To be called last: nothing may be left.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.malformed("remaining length", "is more than its fields need"))
        }
    }

    fn field(&mut self, field: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.u16(field)?;
        self.take(usize::from(length), field)
    }

    /// [MQTT-1.5.4-1] no surrogates and nothing ill-formed. U+FEFF stays what it is ([MQTT-1.5.4-3]), and non-characters
    /// such as U+FFFE pass, which §1.5.4 leaves open. That U+0000 is not in it ([MQTT-1.5.4-2]) the callers check.
    fn text(&mut self, field: &'static str) -> Result<ByteString, DecodeError> {
        let bytes = self.field(field)?;
        ByteString::try_from(self.keep(bytes))
            .map_err(|_| self.malformed(field, "is not UTF-8 (MQTT-1.5.4-1)"))
    }

    fn keep(&self, bytes: &[u8]) -> Bytes {
        match self.body {
            Some(body) if !bytes.is_empty() => body.slice_ref(bytes),
            _ => Bytes::copy_from_slice(bytes),
        }
    }
}

/// Whether bytes are a topic name for sure: short, ASCII, nothing in it that means something or cannot be seen. Nearly
/// every PUBLISH has such a one.
fn is_plain_name(bytes: &[u8]) -> bool {
    let is_odd = |b: u8| !(0x20..0x7F).contains(&b) | (b == b'+') | (b == b'#');
    let odd = bytes.iter().fold(0, |odd, b| odd | u8::from(is_odd(*b)));
    odd == 0 && !bytes.is_empty() && bytes.len() < TOPIC_LEVELS_MAX
}

/// Whether UTF-8 text holds one of U+0000 to U+001F and U+007F to U+009F.
fn has_control(text: &str) -> bool {
    let bytes = text.as_bytes();
    // Most names are ASCII: one pass that never branches on a byte.
    let kinds = bytes.iter().fold(0, |kinds, b| kinds | KINDS[usize::from(*b)]);
    // U+0080 to U+009F are C2 80 to C2 9F.
    kinds & CONTROL != 0
        || (kinds & LONG != 0 && bytes.windows(2).any(|pair| pair[0] == 0xC2 && pair[1] < 0xA0))
}

const CONTROL: u8 = 1;
/// Part of a character of several bytes.
const LONG: u8 = 2;

const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let is_control = byte < 0x20 || byte == 0x7F;
        kinds[byte] = if byte >= 0x80 { LONG } else { is_control as u8 * CONTROL };
        byte += 1;
    }
    kinds
};

/// Writes a variable byte integer (§1.5.5).
pub fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    debug_assert!(value <= VARINT_MAX, "callers keep to the limit");
    while value > 0x7F {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Writes a string (§1.5.4). No string of a decoded packet is too long; text we made ourselves is cut at the limit.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    put_binary(out, &text.as_bytes()[..text.floor_char_boundary(FIELD_MAX)]);
}

/// Writes binary data (§1.5.6), cut at the limit.
pub fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(FIELD_MAX)];
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Writes a length that is known only afterwards: what `body` writes, plus `more` bytes written later by somebody else.
/// Returns that length, which is wrong on the wire when it is greater than [`VARINT_MAX`].
pub fn put_with_length(out: &mut Vec<u8>, more: usize, body: impl FnOnce(&mut Vec<u8>)) -> usize {
    let at = out.len();
    out.push(0);
    body(out);
    let length = out.len() - at - 1 + more;
    if length < 0x80 {
        out[at] = length as u8;
    } else {
        let end = out.len();
        put_varint(out, length.min(VARINT_MAX as usize) as u32);
        let mut digits = [0; 4];
        let count = out.len() - end;
        digits[..count].copy_from_slice(&out[end..]);
        out.truncate(end + count - 1);
        out.copy_within(at + 1..end, at + count);
        out[at..at + count].copy_from_slice(&digits[..count]);
    }
    length
}
