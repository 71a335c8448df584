//! The bytes of a gossip packet. Every length is checked, nothing is allocated that a packet does not hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Message, State};
use outpost_model::NodeId;

use crate::swim::Member;

/// A node's name in a packet is at most this long.
pub(crate) const NAME_BYTES_MAX: usize = 63;

/// Writes and reads [`Member`]s for foca.
#[derive(Debug, Clone)]
pub(crate) struct MemberCodec {
    /// A packet for "whoever you are" is read as one for this member.
    pub(crate) me: NodeId,
}

/// Why bytes are not a gossip packet, or did not fit in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Ends too early.
    #[error("the packet ends too early")]
    Short,
    /// A tag nobody knows.
    #[error("the packet has the unknown {what} {tag}")]
    Tag {
        /// Which field.
        what: &'static str,
        /// Its value.
        tag: u8,
    },
    /// Not a node's name.
    #[error("the packet names a node that cannot exist")]
    Name,
    /// No room left to write into.
    #[error("the packet is full")]
    Full,
}

impl Codec<Member> for MemberCodec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Member>,
        mut to: impl BufMut,
    ) -> Result<(), CodecError> {
        put_member(&header.src, &mut to)?;
        put(&mut to, &header.src_incarnation.to_be_bytes())?;
        put_member(&header.dst, &mut to)?;
        let (tag, whom, number) = message_parts(&header.message);
        put(&mut to, &[tag])?;
        if let Some(whom) = whom {
            put_member(whom, &mut to)?;
        }
        if let Some(number) = number {
            put(&mut to, &[number])?;
        }
        Ok(())
    }

    fn decode_header(&mut self, mut from: impl Buf) -> Result<Header<Member>, CodecError> {
        let src = get_member(&mut from)?.ok_or(CodecError::Name)?;
        let src_incarnation = get_u16(&mut from)?;
        let dst = get_member(&mut from)?.unwrap_or_else(|| Member::unknown(self.me));
        let message = get_message(&mut from)?;
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<Member>,
        mut to: impl BufMut,
    ) -> Result<(), CodecError> {
        put_member(member.id(), &mut to)?;
        let state = match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        };
        put(&mut to, &member.incarnation().to_be_bytes())?;
        put(&mut to, &[state])
    }

    fn decode_member(&mut self, mut from: impl Buf) -> Result<foca::Member<Member>, CodecError> {
        let id = get_member(&mut from)?.ok_or(CodecError::Name)?;
        let incarnation = get_u16(&mut from)?;
        let state = match get_u8(&mut from)? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            tag => return Err(CodecError::Tag { what: "state", tag }),
        };
        Ok(foca::Member::new(id, incarnation, state))
    }
}

fn message_parts(message: &Message<Member>) -> (u8, Option<&Member>, Option<u8>) {
    match message {
        Message::Ping(number) => (0, None, Some(*number)),
        Message::Ack(number) => (1, None, Some(*number)),
        Message::PingReq { target, probe_number } => (2, Some(target), Some(*probe_number)),
        Message::IndirectPing { origin, probe_number } => (3, Some(origin), Some(*probe_number)),
        Message::IndirectAck { target, probe_number } => (4, Some(target), Some(*probe_number)),
        Message::ForwardedAck { origin, probe_number } => (5, Some(origin), Some(*probe_number)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        Message::Gossip => (8, None, None),
        Message::Broadcast => (9, None, None),
        Message::TurnUndead => (10, None, None),
    }
}

fn get_message(from: &mut impl Buf) -> Result<Message<Member>, CodecError> {
    let whom = |from: &mut _| get_member(from)?.ok_or(CodecError::Name);
    Ok(match get_u8(from)? {
        0 => Message::Ping(get_u8(from)?),
        1 => Message::Ack(get_u8(from)?),
        2 => Message::PingReq { target: whom(from)?, probe_number: get_u8(from)? },
        3 => Message::IndirectPing { origin: whom(from)?, probe_number: get_u8(from)? },
        4 => Message::IndirectAck { target: whom(from)?, probe_number: get_u8(from)? },
        5 => Message::ForwardedAck { origin: whom(from)?, probe_number: get_u8(from)? },
        6 => Message::Announce,
        7 => Message::Feed,
        8 => Message::Gossip,
        9 => Message::Broadcast,
        10 => Message::TurnUndead,
        tag => return Err(CodecError::Tag { what: "message", tag }),
    })
}

fn put(to: &mut impl BufMut, bytes: &[u8]) -> Result<(), CodecError> {
    if to.remaining_mut() < bytes.len() {
        return Err(CodecError::Full);
    }
    to.put_slice(bytes);
    Ok(())
}

/// An empty name stands for "whoever you are" and is all there is of such a member.
fn put_member(member: &Member, to: &mut impl BufMut) -> Result<(), CodecError> {
    let name = member.name.as_bytes();
    let length = u8::try_from(name.len())
        .ok()
        .filter(|n| usize::from(*n) <= NAME_BYTES_MAX)
        .ok_or(CodecError::Name)?;
    put(to, &[length])?;
    if name.is_empty() {
        return Ok(());
    }
    put(to, name)?;
    put(to, &member.incarnation.to_be_bytes())?;
    match member.addr.ip() {
        IpAddr::V4(ip) => {
            put(to, &[4])?;
            put(to, &ip.octets())?;
        }
        IpAddr::V6(ip) => {
            put(to, &[6])?;
            put(to, &ip.octets())?;
        }
    }
    put(to, &member.addr.port().to_be_bytes())
}

fn get_member(from: &mut impl Buf) -> Result<Option<Member>, CodecError> {
    let length = usize::from(get_u8(from)?);
    if length == 0 {
        return Ok(None);
    }
    if length > NAME_BYTES_MAX {
        return Err(CodecError::Name);
    }
    let mut name = [0; NAME_BYTES_MAX];
    get(from, &mut name[..length])?;
    let name = std::str::from_utf8(&name[..length]).map_err(|_| CodecError::Name)?;
    if !name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
        return Err(CodecError::Name);
    }
    let mut incarnation = [0; 8];
    get(from, &mut incarnation)?;
    let ip = match get_u8(from)? {
        4 => {
            let mut octets = [0; 4];
            get(from, &mut octets)?;
            IpAddr::V4(Ipv4Addr::from(octets))
        }
        6 => {
            let mut octets = [0; 16];
            get(from, &mut octets)?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        tag => return Err(CodecError::Tag { what: "address family", tag }),
    };
    let addr = SocketAddr::new(ip, get_u16(from)?);
    Ok(Some(Member::new(name, addr, u64::from_be_bytes(incarnation))))
}

fn get(from: &mut impl Buf, into: &mut [u8]) -> Result<(), CodecError> {
    from.try_copy_to_slice(into).map_err(|_| CodecError::Short)
}

fn get_u8(from: &mut impl Buf) -> Result<u8, CodecError> {
    from.try_get_u8().map_err(|_| CodecError::Short)
}

fn get_u16(from: &mut impl Buf) -> Result<u16, CodecError> {
    from.try_get_u16().map_err(|_| CodecError::Short)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, addr: &str) -> Member {
        Member::new(name, addr.parse().expect("an address"), 7)
    }

    #[test]
    fn every_message_survives_its_bytes_and_no_cut_of_it_panics() {
        let (a, b) = (member("edge-1", "10.0.0.1:17447"), member("edge-2", "[2001:db8::1]:17447"));
        let mut codec = MemberCodec { me: b.id };
        let messages = [
            Message::Ping(3),
            Message::Ack(4),
            Message::PingReq { target: b.clone(), probe_number: 1 },
            Message::IndirectPing { origin: b.clone(), probe_number: 1 },
            Message::IndirectAck { target: a.clone(), probe_number: 1 },
            Message::ForwardedAck { origin: a.clone(), probe_number: 1 },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ];
        for message in messages {
            let header = Header { src: a.clone(), src_incarnation: 9, dst: b.clone(), message };
            let mut bytes = Vec::new();
            codec.encode_header(&header, &mut bytes).expect("a Vec has room");
            assert_eq!(codec.decode_header(&bytes[..]), Ok(header));
            for end in 0..bytes.len() {
                assert!(codec.decode_header(&bytes[..end]).is_err());
            }
        }
    }

    #[test]
    fn a_packet_without_room_is_an_error_not_a_panic() {
        let a = member("edge-1", "10.0.0.1:17447");
        let mut codec = MemberCodec { me: a.id };
        for room in 0..20 {
            let full = codec.encode_member(&foca::Member::alive(a.clone()), Vec::new().limit(room));
            assert_eq!(full, Err(CodecError::Full));
        }
    }

    #[test]
    fn names_and_tags_nobody_may_use_are_refused() {
        let mut codec = MemberCodec { me: NodeId(1) };
        assert_eq!(codec.decode_member(&b"\x01A"[..]), Err(CodecError::Name));
        assert_eq!(codec.decode_member(&b"\xff"[..]), Err(CodecError::Name));
        assert_eq!(codec.decode_member(&[0][..]), Err(CodecError::Name));
        let family = CodecError::Tag { what: "address family", tag: 5 };
        assert_eq!(codec.decode_member(&b"\x01a\0\0\0\0\0\0\0\0\x05"[..]), Err(family));
    }
}
