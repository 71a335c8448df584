//! Bytes in, bytes out: the few primitives that rows and frames are made of.
//!
//! A [`Reader`] believes nothing: every length is checked against what is left, and every element that will occupy
//! memory is charged to a budget first, so a small frame cannot ask for a large allocation.

use outpost_model::{Hlc, NodeId};

use crate::key::ShadowKey;
use crate::stamp::Stamp;

/// A reader may occupy this much memory, whatever its input; plus [`MEMORY_PER_BYTE`] for each byte of input.
/// Lower and an honest shadow of many small leaves is refused; higher and a hostile frame costs more.
pub const MEMORY_BASE: usize = 4 << 20;
/// Memory a reader may occupy for each byte of input, see [`MEMORY_BASE`].
pub const MEMORY_PER_BYTE: usize = 4;

/// Why bytes could not be read. Nothing was changed by reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes end before the value does.
    #[error("the bytes end in the middle of a value")]
    Short,
    /// A value is outside the range it may have.
    #[error("a {0} is out of range")]
    Range(&'static str),
    /// Reading on would occupy more memory than the input is worth.
    #[error("the value would occupy too much memory")]
    Memory,
    /// There are bytes after the end.
    #[error("there are bytes after the end of the value")]
    Trailing,
}

/// Appends values to a byte string.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    /// LEB128: seven bits a byte, low bits first.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub fn fixed(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn u64(&mut self, value: u64) {
        self.fixed(&value.to_be_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.fixed(bytes);
    }

    pub fn stamp(&mut self, stamp: &Stamp) {
        self.varint(stamp.term);
        self.u64(stamp.hlc.0);
        self.u64(stamp.node);
    }

    pub fn key(&mut self, key: &ShadowKey) {
        self.bytes(key.thing.as_bytes());
        self.bytes(key.name.as_deref().unwrap_or("").as_bytes());
    }

    /// A value that may be absent; the length is moved up by one so that 0 says "absent".
    pub fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.varint(0),
            Some(bytes) => {
                self.varint(bytes.len() as u64 + 1);
                self.fixed(bytes);
            }
        }
    }
}

/// Takes values off the front of a byte string.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    memory: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, memory: MEMORY_BASE + bytes.len() * MEMORY_PER_BYTE }
    }

    /// One that may occupy so much.
    pub fn with_memory(bytes: &'a [u8], memory: usize) -> Self {
        Self { rest: bytes, memory }
    }

    /// What may still be occupied.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Demands that everything was read.
    pub fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Trailing) }
    }

    /// Charges memory that the caller is about to occupy.
    pub fn charge(&mut self, bytes: usize) -> Result<(), WireError> {
        self.memory = self.memory.checked_sub(bytes).ok_or(WireError::Memory)?;
        Ok(())
    }

    pub fn fixed(&mut self, length: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        Ok(self.fixed(N)?.try_into().expect("fixed gives exactly N bytes"))
    }

    pub fn byte(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn flag(&mut self) -> Result<bool, WireError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Range("flag")),
        }
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(WireError::Range("number"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Range("number"))
    }

    /// A number of at most `max`.
    pub fn number(&mut self, max: u64, what: &'static str) -> Result<u64, WireError> {
        let value = self.varint()?;
        if value <= max { Ok(value) } else { Err(WireError::Range(what)) }
    }

    /// How many elements follow; each takes at least one byte here and `memory_each` in memory.
    pub fn count(&mut self, max: usize, memory_each: usize) -> Result<usize, WireError> {
        let count = self.number(max as u64, "count")? as usize;
        if count > self.rest.len() {
            return Err(WireError::Short);
        }
        self.charge(count * memory_each)?;
        Ok(count)
    }

    pub fn bytes(&mut self, max: usize) -> Result<&'a [u8], WireError> {
        let length = self.number(max as u64, "length")? as usize;
        self.fixed(length)
    }

    pub fn text(&mut self, max: usize) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes(max)?).map_err(|_| WireError::Range("text"))
    }

    pub fn optional(&mut self, max: usize) -> Result<Option<&'a [u8]>, WireError> {
        match self.number(max as u64 + 1, "length")? {
            0 => Ok(None),
            length => Ok(Some(self.fixed(length as usize - 1)?)),
        }
    }

    pub fn stamp(&mut self) -> Result<Stamp, WireError> {
        Ok(Stamp { term: self.varint()?, hlc: Hlc(self.u64()?), node: self.u64()? })
    }

    pub fn node(&mut self) -> Result<NodeId, WireError> {
        Ok(NodeId(self.u64()?))
    }

    pub fn key(&mut self) -> Result<ShadowKey, WireError> {
        self.charge(256)?;
        let thing = self.text(128)?.to_owned();
        let name = self.text(64)?;
        let key = ShadowKey { thing, name: (!name.is_empty()).then(|| name.to_owned()) };
        if key.is_valid() { Ok(key) } else { Err(WireError::Range("shadow name")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive_and_overlong_ones_are_refused() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Writer::default();
            out.varint(value);
            assert_eq!(Reader::new(&out.0).varint(), Ok(value));
        }
        assert_eq!(Reader::new(&[0xff; 11]).varint(), Err(WireError::Range("number")));
        assert_eq!(Reader::new(&[0x80]).varint(), Err(WireError::Short));
    }

    #[test]
    fn a_count_that_does_not_fit_the_input_or_the_memory_is_refused() {
        assert_eq!(Reader::new(&[100, 0, 0]).count(1000, 1), Err(WireError::Short));
        assert_eq!(Reader::new(&[3, 0, 0, 0]).count(10, MEMORY_BASE), Err(WireError::Memory));
        assert_eq!(Reader::new(&[3, 0, 0, 0]).count(2, 1), Err(WireError::Range("count")));
    }
}
