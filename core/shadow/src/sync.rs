//! What two hubs say to each other, as bytes.
//!
//! ```text
//!  Hello ──▶  who I am, which numbers are mine, how far I have read your feed
//!  Items ──▶  the next stretch of my feed: for each shadow what changed since       ◀── Ack
//!  Prints ─▶  instead, when your place in my feed is void: a print of each shadow   ◀── Want, then Items
//!  Forward ▶  a request for the shadow's home node                                  ◀── Answer
//! ```
//! A void place costs 16 bytes and the name for every shadow; a set reconciliation (rateless IBLT) that costs only what
//! differs can take the place of `Prints` later without touching the rest.
//!
//! Frames between two hubs arrive in the order they were sent, but any number may be lost when a link breaks, and
//! frames from before the break may still come first after it. So a stretch of feed says where it begins, and prints
//! are numbered: what does not follow on what is here is not counted as read.

use outpost_model::NodeId;

use crate::document::Item;
use crate::key::ShadowKey;
use crate::wire::{Reader, WireError, Writer};

/// The first byte of a frame: raise it when the format changes.
const FRAME_FORMAT: u8 = 1;
/// The longest frame that is read. Shorter and a large shadow cannot be sent; longer and a peer may occupy more memory.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// A frame is closed when it has reached this size; only a single large shadow makes a longer one.
pub const FRAME_BYTES_AIM: usize = 48 << 10;
/// Nodes a hub keeps a slot and a cursor for; as many as there are slots of version numbers.
pub const PEERS_MAX: usize = 64;
/// The longest request that is forwarded: the largest state AWS software allows, with its envelope.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest answer that comes back: a state with its metadata.
pub const ANSWER_BYTES_MAX: usize = 512 << 10;

/// What a forwarded request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// An update with the client's payload.
    Update,
    /// A delete with the client's payload.
    Delete,
    /// Hand the shadow over to this node.
    SetHome(NodeId),
}

/// One statement of a hub to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First in each direction.
    Hello(Hello),
    /// Shadows that changed.
    Items {
        /// For the acknowledgement.
        number: u64,
        /// The stretch of the feed this is: after the first place, up to the second. `None`: asked for, out of turn.
        stretch: Option<(u64, u64)>,
        /// What changed in each.
        items: Vec<(ShadowKey, Item)>,
    },
    /// Everything up to this frame was handled.
    Ack {
        /// The frame.
        number: u64,
        /// The receiver has the sender's feed up to here on disk.
        read: u64,
        /// A stretch of the feed of whoever acknowledges, with nothing in it that the other did not say itself.
        stretch: Option<(u64, u64)>,
    },
    /// Prints of all shadows, a part of the list.
    Prints {
        /// For the acknowledgement.
        number: u64,
        /// 0 for the first part.
        part: u64,
        /// In the last part: with all these the receiver has read the feed up to here.
        read: Option<u64>,
        /// [`crate::document::Shadow::whole_print`] of each.
        prints: Vec<(ShadowKey, [u8; 16])>,
    },
    /// Send these whole.
    Want(Vec<ShadowKey>),
    /// A request, sent on to the home node.
    Forward {
        /// Chosen by the sender, comes back in the answer.
        id: u64,
        /// The shadow.
        key: ShadowKey,
        /// What is asked.
        ask: Ask,
        /// As the client sent it.
        payload: Vec<u8>,
    },
    /// The outcome of a forwarded request.
    Answer {
        /// As in the request.
        id: u64,
        /// HTTP status, 0 when the receiver is not who decides (then ask again).
        status: u16,
        /// Accepted or rejected document.
        body: Vec<u8>,
    },
}

/// Who speaks, and how far it has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Names the sender's feed.
    pub feed: u64,
    /// The receiver's feed as the sender last knew it; 0 when it never did.
    pub your_feed: u64,
    /// How far the sender has read it.
    pub read: u64,
    /// The slots of version numbers the sender knows of, its own among them.
    pub slots: Vec<(NodeId, u8)>,
}

impl Frame {
    /// The frame's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.byte(FRAME_FORMAT);
        match self {
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Items { number, stretch, items } => {
                encode_items(&mut out, *number, *stretch, items)
            }
            Self::Ack { number, read, stretch } => {
                out.byte(2);
                out.varint(*number);
                out.varint(*read);
                encode_stretch(&mut out, *stretch);
            }
            Self::Prints { number, part, read, prints } => {
                out.byte(3);
                out.varint(*number);
                out.varint(*part);
                out.varint(read.map_or(0, |read| read + 1));
                out.varint(prints.len() as u64);
                for (key, print) in prints {
                    out.key(key);
                    out.fixed(print);
                }
            }
            Self::Want(keys) => {
                out.byte(4);
                out.varint(keys.len() as u64);
                keys.iter().for_each(|key| out.key(key));
            }
            Self::Forward { id, key, ask, payload } => {
                out.byte(5);
                out.varint(*id);
                out.key(key);
                let (kind, node) = match ask {
                    Ask::Update => (0, NodeId(0)),
                    Ask::Delete => (1, NodeId(0)),
                    Ask::SetHome(node) => (2, *node),
                };
                out.byte(kind);
                out.u64(node.0);
                out.bytes(payload);
            }
            Self::Answer { id, status, body } => {
                out.byte(6);
                out.varint(*id);
                out.varint(u64::from(*status));
                out.bytes(body);
            }
        }
        out.0
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`WireError`] for anything [`Frame::encode`] would not write. Memory is bounded, see [`Reader`].
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(WireError::Range("frame length"));
        }
        let mut from = Reader::new(bytes);
        if from.byte()? != FRAME_FORMAT {
            return Err(WireError::Range("frame format"));
        }
        let frame = match from.byte()? {
            0 => Self::Hello(Hello::decode(&mut from)?),
            1 => decode_items(&mut from)?,
            2 => Self::Ack {
                number: from.varint()?,
                read: from.varint()?,
                stretch: decode_stretch(&mut from)?,
            },
            3 => decode_prints(&mut from)?,
            4 => {
                let count = from.count(FRAME_BYTES_MAX, size_of::<ShadowKey>())?;
                Self::Want((0..count).map(|_| from.key()).collect::<Result<_, _>>()?)
            }
            5 => decode_forward(&mut from)?,
            6 => {
                let (id, status) = (from.varint()?, from.number(999, "status")? as u16);
                Self::Answer { id, status, body: from.bytes(ANSWER_BYTES_MAX)?.to_vec() }
            }
            _ => return Err(WireError::Range("frame kind")),
        };
        from.end()?;
        Ok(frame)
    }
}

impl Hello {
    fn encode(&self, out: &mut Writer) {
        out.byte(0);
        out.u64(self.feed);
        out.u64(self.your_feed);
        out.varint(self.read);
        out.varint(self.slots.len() as u64);
        for (node, slot) in &self.slots {
            out.u64(node.0);
            out.byte(*slot);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let (feed, your_feed, read) = (from.u64()?, from.u64()?, from.varint()?);
        let count = from.count(PEERS_MAX + 1, 16)?;
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            slots.push((from.node()?, from.byte()?));
        }
        Ok(Self { feed, your_feed, read, slots })
    }
}

fn encode_items(
    out: &mut Writer,
    number: u64,
    stretch: Option<(u64, u64)>,
    items: &[(ShadowKey, Item)],
) {
    out.byte(1);
    out.varint(number);
    encode_stretch(out, stretch);
    out.varint(items.len() as u64);
    for (key, item) in items {
        out.key(key);
        item.encode(out);
    }
}

fn encode_stretch(out: &mut Writer, stretch: Option<(u64, u64)>) {
    out.byte(u8::from(stretch.is_some()));
    if let Some((after, upto)) = stretch {
        out.varint(after);
        out.varint(upto);
    }
}

fn decode_stretch(from: &mut Reader<'_>) -> Result<Option<(u64, u64)>, WireError> {
    if !from.flag()? {
        return Ok(None);
    }
    let (after, upto) = (from.varint()?, from.varint()?);
    if after <= upto { Ok(Some((after, upto))) } else { Err(WireError::Range("stretch")) }
}

fn decode_items(from: &mut Reader<'_>) -> Result<Frame, WireError> {
    let number = from.varint()?;
    let stretch = decode_stretch(from)?;
    let count = from.count(FRAME_BYTES_MAX, size_of::<(ShadowKey, Item)>())?;
    let mut items = Vec::with_capacity(count);
    for _ in 0..count {
        items.push((from.key()?, Item::decode(from)?));
    }
    Ok(Frame::Items { number, stretch, items })
}

fn decode_prints(from: &mut Reader<'_>) -> Result<Frame, WireError> {
    let (number, part) = (from.varint()?, from.varint()?);
    let read = from.varint()?.checked_sub(1);
    let count = from.count(FRAME_BYTES_MAX, size_of::<(ShadowKey, [u8; 16])>())?;
    let mut prints = Vec::with_capacity(count);
    for _ in 0..count {
        prints.push((from.key()?, from.array()?));
    }
    Ok(Frame::Prints { number, part, read, prints })
}

fn decode_forward(from: &mut Reader<'_>) -> Result<Frame, WireError> {
    let (id, key) = (from.varint()?, from.key()?);
    let kind = from.byte()?;
    let node = from.node()?;
    let ask = match kind {
        0 => Ask::Update,
        1 => Ask::Delete,
        2 => Ask::SetHome(node),
        _ => return Err(WireError::Range("request kind")),
    };
    Ok(Frame::Forward { id, key, ask, payload: from.bytes(REQUEST_BYTES_MAX)?.to_vec() })
}
