//! What two hubs say to each other, as bytes.
//!
//! ```text
//!  Hello ──▶  who I am, which numbers are mine, how far I have read your feed
//!  Begin ──▶  what follows answers your Hello of this link
//!  Items ──▶  the next stretch of my feed: for each shadow what changed since       ◀── Ack
//!  Sketch ─▶  instead, when your place in my feed is void: see reconcile   ◀── More, WantMembers, then Items
//!  Want ───▶  send these whole: what you sent depends on what I lack                ◀── Items
//!  Forward ▶  a request for the shadow's home node                                  ◀── Answer
//! ```
//! Frames between two hubs arrive in the order they were sent, but any number may be lost when a link breaks, and
//! frames from before the break may still come first after it. So a stretch of feed says where it begins, and a run of
//! symbols too: what does not follow on what is here is not counted.

use outpost_model::NodeId;

use crate::document::Item;
use crate::key::ShadowKey;
use crate::pack::{pack_items, unpack_items};
use crate::peer::{Greeting, Stretch};
use crate::sketch::{SYMBOLS_MAX, Symbol};
use crate::version::SLOTS;
use crate::wire::{Reader, WireError, Writer};

/// The first byte of a frame: raise it when the format changes.
const FRAME_FORMAT: u8 = 2;
/// The same of items whose hashes stand apart, for peers whose hello says that they read it.
const APART_FORMAT: u8 = 3;
/// In a hello, at the sender's own slot: it reads [`APART_FORMAT`]. Earlier builds take the slot without what is above it.
const READS_APART: u8 = 1 << 6;
const _: () =
    assert!(READS_APART.is_multiple_of(SLOTS), "who does not know it sees the slot alone");
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
    /// What follows belongs to the receiver's greeting of this link.
    Begin {
        /// That greeting.
        link: u64,
        /// Names the sender's feed now.
        feed: u64,
    },
    /// Shadows that changed.
    Items {
        /// For the acknowledgement.
        number: u64,
        /// The stretch of the feed this is. `None`: asked for, out of turn.
        stretch: Option<Stretch>,
        /// With these the receiver has all it asked for by [`Frame::WantMembers`].
        settles: bool,
        /// What changed in each.
        items: Vec<(ShadowKey, Item)>,
    },
    /// Everything up to this frame was handled.
    Ack {
        /// The frame.
        number: u64,
        /// Who acknowledges has all changes of the other's feed up to here on disk.
        floor: u64,
        /// A stretch of the feed of whoever acknowledges, with nothing in it that the other did not say itself.
        stretch: Option<Stretch>,
    },
    /// Symbols of the set of all shadows, see [`crate::sketch`].
    Sketch {
        /// For the acknowledgement.
        number: u64,
        /// In the first frame.
        begin: Option<SketchBegin>,
        /// The number of the first symbol.
        first: usize,
        /// The next ones.
        symbols: Vec<Symbol>,
    },
    /// So many symbols are needed, all in all. 0: send the whole feed.
    More(u64),
    /// Send the shadows behind these members of the sketch; a part of the list.
    WantMembers {
        /// Hashes.
        members: Vec<u64>,
        /// There are no others.
        last: bool,
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
    /// Of itself and the receiver's feed.
    pub greeting: Greeting,
    /// The slots of version numbers the sender knows of, its own among them.
    pub slots: Vec<(NodeId, u8)>,
}

/// What a sketch is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SketchBegin {
    /// Names the sender's feed.
    pub feed: u64,
    /// With what differs the receiver has read it up to here.
    pub read: u64,
    /// Of the keyed hash.
    pub salt: [u8; 16],
    /// How many shadows there are.
    pub members: u64,
}

impl Frame {
    /// The frame's bytes, for a peer that reads the hashes of items apart or for one that does not.
    pub fn encode(&self, apart: bool) -> Vec<u8> {
        let mut out = Writer::default();
        let apart = apart && matches!(self, Self::Items { .. });
        out.byte(if apart { APART_FORMAT } else { FRAME_FORMAT });
        match self {
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Items { number, stretch, settles, items } => {
                out.byte(1);
                out.varint(*number);
                encode_stretch(&mut out, *stretch);
                out.byte(u8::from(*settles));
                pack_items(&mut out, items, apart);
            }
            Self::Ack { number, floor, stretch } => {
                out.byte(2);
                out.varint(*number);
                out.varint(*floor);
                encode_stretch(&mut out, *stretch);
            }
            Self::Sketch { number, begin, first, symbols } => {
                encode_sketch(&mut out, *number, *begin, *first, symbols);
            }
            Self::Begin { link, feed } => {
                out.byte(9);
                out.varint(*link);
                out.u64(*feed);
            }
            Self::More(upto) => {
                out.byte(7);
                out.varint(*upto);
            }
            Self::WantMembers { members, last } => {
                out.byte(8);
                out.byte(u8::from(*last));
                out.varint(members.len() as u64);
                members.iter().for_each(|member| out.u64(*member));
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
        let apart = match from.byte()? {
            FRAME_FORMAT => false,
            APART_FORMAT => true,
            _ => return Err(WireError::Range("frame format")),
        };
        let frame = match from.byte()? {
            1 => decode_items(&mut from, apart)?,
            _ if apart => return Err(WireError::Range("frame format")),
            0 => Self::Hello(Hello::decode(&mut from)?),
            2 => Self::Ack {
                number: from.varint()?,
                floor: from.varint()?,
                stretch: decode_stretch(&mut from)?,
            },
            3 => decode_sketch(&mut from)?,
            4 => {
                let count = from.count(FRAME_BYTES_MAX, size_of::<ShadowKey>())?;
                Self::Want((0..count).map(|_| from.key()).collect::<Result<_, _>>()?)
            }
            5 => decode_forward(&mut from)?,
            6 => {
                let (id, status) = (from.varint()?, from.number(999, "status")? as u16);
                Self::Answer { id, status, body: from.bytes(ANSWER_BYTES_MAX)?.to_vec() }
            }
            7 => Self::More(from.varint()?),
            8 => {
                let last = from.flag()?;
                let count = from.count(FRAME_BYTES_MAX, 8)?;
                let members = (0..count).map(|_| from.u64()).collect::<Result<_, _>>()?;
                Self::WantMembers { members, last }
            }
            9 => Self::Begin { link: from.varint()?, feed: from.u64()? },
            _ => return Err(WireError::Range("frame kind")),
        };
        from.end()?;
        Ok(frame)
    }
}

impl Hello {
    /// Says for `node`, its sender, that it reads hashes apart.
    pub fn reading_apart(mut self, node: NodeId) -> Self {
        let own = self.slots.iter_mut().find(|(of, _)| *of == node);
        own.into_iter().for_each(|(_, slot)| *slot |= READS_APART);
        self
    }

    /// `node`, its sender, reads hashes apart.
    pub fn reads_apart(&self, node: NodeId) -> bool {
        self.slots.iter().any(|(of, slot)| *of == node && slot & READS_APART != 0)
    }

    fn encode(&self, out: &mut Writer) {
        let Greeting { link, feed, head, records, your_feed, read, floor } = self.greeting;
        out.byte(0);
        out.u64(feed);
        out.u64(your_feed);
        [link, head, records, read, read - floor].into_iter().for_each(|number| out.varint(number));
        out.varint(self.slots.len() as u64);
        for (node, slot) in &self.slots {
            out.u64(node.0);
            out.byte(*slot);
        }
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let (feed, your_feed) = (from.u64()?, from.u64()?);
        let (link, head) = (from.varint()?, from.varint()?);
        let (records, read) = (from.varint()?, from.varint()?);
        let floor = read - from.number(read, "floor")?;
        let records = records.min(u64::from(u32::MAX));
        let count = from.count(PEERS_MAX + 1, 16)?;
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            slots.push((from.node()?, from.byte()?));
        }
        let greeting = Greeting { link, feed, head, records, your_feed, read, floor };
        Ok(Self { greeting, slots })
    }
}

/// Counts are written as what they differ from the mean by.
fn encode_sketch(
    out: &mut Writer,
    number: u64,
    begin: Option<SketchBegin>,
    first: usize,
    symbols: &[Symbol],
) {
    out.byte(3);
    out.varint(number);
    out.byte(u8::from(begin.is_some()));
    if let Some(begin) = begin {
        out.u64(begin.feed);
        out.varint(begin.read);
        out.fixed(&begin.salt);
        out.varint(begin.members);
    }
    out.varint(first as u64);
    out.varint(symbols.len() as u64);
    let mut before = 0;
    for symbol in symbols {
        out.u64(symbol.sum);
        out.fixed(&symbol.check.to_be_bytes());
        let more = symbol.count.wrapping_sub(before);
        out.varint(u64::from(((more << 1) ^ (more >> 31)) as u32));
        before = symbol.count;
    }
}

fn decode_sketch(from: &mut Reader<'_>) -> Result<Frame, WireError> {
    let number = from.varint()?;
    let begin = if from.flag()? {
        let (feed, read) = (from.u64()?, from.varint()?);
        Some(SketchBegin { feed, read, salt: from.array()?, members: from.varint()? })
    } else {
        None
    };
    let first = from.number(SYMBOLS_MAX as u64, "symbol")? as usize;
    let count = from.count(SYMBOLS_MAX, size_of::<Symbol>())?;
    let mut symbols = Vec::with_capacity(count);
    let mut before = 0i32;
    for _ in 0..count {
        let sum = from.u64()?;
        let check = u32::from_be_bytes(from.array()?);
        let folded = from.number(u64::from(u32::MAX), "symbol")? as u32;
        before = before.wrapping_add((folded >> 1) as i32 ^ -((folded & 1) as i32));
        symbols.push(Symbol { sum, check, count: before });
    }
    Ok(Frame::Sketch { number, begin, first, symbols })
}

/// First 0: none, 1: one that ends before the head of the feed, 2: one that ends there.
fn encode_stretch(out: &mut Writer, stretch: Option<Stretch>) {
    out.byte(stretch.map_or(0, |stretch| 1 + u8::from(stretch.to_head)));
    if let Some(stretch) = stretch {
        out.varint(stretch.after);
        out.varint(stretch.upto);
    }
}

fn decode_stretch(from: &mut Reader<'_>) -> Result<Option<Stretch>, WireError> {
    let to_head = match from.byte()? {
        0 => return Ok(None),
        1 => false,
        2 => true,
        _ => return Err(WireError::Range("stretch")),
    };
    let (after, upto) = (from.varint()?, from.varint()?);
    if after > upto {
        return Err(WireError::Range("stretch"));
    }
    Ok(Some(Stretch { after, upto, to_head }))
}

fn decode_items(from: &mut Reader<'_>, apart: bool) -> Result<Frame, WireError> {
    let number = from.varint()?;
    let (stretch, settles) = (decode_stretch(from)?, from.flag()?);
    Ok(Frame::Items { number, stretch, settles, items: unpack_items(from, apart)? })
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
