//! The little of MQTT 3.1.1 that a load generator writes and reads.

pub const CONNACK: u8 = 2;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
pub const PUBREC: u8 = 5;
pub const PUBREL: u8 = 6;
pub const PUBCOMP: u8 = 7;
pub const SUBACK: u8 = 9;

/// One packet.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub kind: u8,
    pub qos: u8,
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Takes a whole packet off the front.
    pub fn take(input: &mut &'a [u8]) -> Option<Self> {
        let mut len = 0;
        let mut at = 1;
        loop {
            let byte = *input.get(at)?;
            len |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte < 0x80 {
                break;
            }
        }
        let body = input.get(at..at + len)?;
        let first = input[0];
        *input = &input[at + len..];
        Some(Self { kind: first >> 4, qos: first >> 1 & 3, body })
    }

    /// The packet id of an acknowledgement.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// Packet id and payload of a PUBLISH.
    pub fn message(&self) -> (u16, &'a [u8]) {
        let after_topic = 2 + usize::from(self.id());
        if self.qos == 0 {
            return (0, &self.body[after_topic..]);
        }
        let id = u16::from_be_bytes([self.body[after_topic], self.body[after_topic + 1]]);
        (id, &self.body[after_topic + 2..])
    }
}

pub fn connect(out: &mut Vec<u8>, client_id: &str, clean: bool) {
    let mut body = b"\x00\x04MQTT\x04".to_vec();
    body.extend_from_slice(&[u8::from(clean) << 1, 0, 60]);
    put_text(&mut body, client_id);
    put_packet(out, 0x10, &body);
}

pub fn subscribe(out: &mut Vec<u8>, filter: &str, qos: u8) {
    let mut body = vec![0, 1];
    put_text(&mut body, filter);
    body.push(qos);
    put_packet(out, 0x82, &body);
}

pub fn acknowledge(out: &mut Vec<u8>, kind: u8, id: u16) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[kind << 4 | if kind == PUBREL { 2 } else { 0 }, 2, high, low]);
}

pub fn publish(out: &mut Vec<u8>, topic: &str, qos: u8, dup: bool, id: u16, payload: &[u8]) {
    let id = if qos > 0 { &id.to_be_bytes()[..] } else { &[] };
    out.push(PUBLISH << 4 | u8::from(dup) << 3 | qos << 1);
    put_length(out, 2 + topic.len() + id.len() + payload.len());
    put_text(out, topic);
    out.extend_from_slice(id);
    out.extend_from_slice(payload);
}

fn put_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    put_length(out, body.len());
    out.extend_from_slice(body);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_length(out: &mut Vec<u8>, mut len: usize) {
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
}
