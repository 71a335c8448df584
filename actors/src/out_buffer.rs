//! Bytes on their way to one client: small ones gathered, large payloads by reference. Owns no memory while empty.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Payloads from this size on are not copied.
const BY_REFERENCE_BYTES: usize = 2 * 1024;

/// A buffer that grew beyond this is given back when it is empty.
const KEEP_BYTES: usize = 4 * 1024;

/// One that never grew to this is given back too: an idle client was sent its CONNACK and SUBACK and nothing since.
const KEEP_FROM_BYTES: usize = 32;

/// How many slices one vectored write takes.
pub const SLICES_MAX: usize = 16;

/// Output of one connection, in order.
#[derive(Debug, Default)]
pub struct OutBuffer {
    /// Boxed: most never have any.
    front: Option<Box<Front>>,
    tail: Vec<u8>,
    /// Bytes of `tail` already written. What waits for one client is far below 4 GiB, and many wait for nothing.
    written: u32,
    /// Bytes written since [`OutBuffer::take_count`].
    gone: u32,
}

/// What goes before the tail.
#[derive(Debug, Default)]
struct Front {
    chunks: VecDeque<Bytes>,
    /// In all of them.
    bytes: usize,
}

impl Front {
    fn push(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
    }

    /// Forgets the first `count` bytes, as far as there are so many: how many there were.
    fn advance(&mut self, count: usize) -> usize {
        let count = count.min(self.bytes);
        let mut left = count;
        while left > 0
            && let Some(chunk) = self.chunks.front_mut()
        {
            let part = left.min(chunk.len());
            chunk.advance(part);
            left -= part;
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        self.bytes -= count;
        count
    }
}

impl OutBuffer {
    /// Bytes waiting.
    pub fn len(&self) -> usize {
        let tail = self.tail.len() - self.written();
        self.front.as_ref().map_or(tail, |front| front.bytes + tail)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.tail.len() == self.written() && self.is_front_empty()
    }

    /// Appends a copy.
    pub fn put(&mut self, bytes: &[u8]) {
        self.put_with(|tail| tail.extend_from_slice(bytes));
    }

    /// Appends what `write` appends.
    pub fn put_with<R>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        write(&mut self.tail)
    }

    /// Appends a payload, by reference when it is large.
    pub fn put_payload(&mut self, payload: &Bytes) {
        if payload.len() < BY_REFERENCE_BYTES {
            return self.put(payload);
        }
        if self.tail.len() > self.written() {
            let tail = Bytes::from(std::mem::take(&mut self.tail));
            let rest = tail.slice(self.written()..);
            self.front.get_or_insert_default().push(rest);
            self.written = 0;
        }
        self.front.get_or_insert_default().push(payload.clone());
    }

    /// Appends a message: what stands before its payload, and the payload, by reference when it is large.
    pub fn put_message(&mut self, head: &[u8], payload: &Bytes) {
        if payload.len() < BY_REFERENCE_BYTES {
            self.tail.reserve(head.len() + payload.len());
            self.tail.extend_from_slice(head);
            self.tail.extend_from_slice(payload);
        } else {
            self.put(head);
            self.put_payload(payload);
        }
    }

    /// All that is to be written, when it is in one piece: a vectored write costs more.
    pub fn as_one(&self) -> Option<&[u8]> {
        self.is_front_empty().then(|| &self.tail[self.written()..])
    }

    /// The next bytes to write, as slices for one vectored write.
    pub fn slices<'a>(&'a self, into: &mut Vec<IoSlice<'a>>) {
        let front = self.front.iter().flat_map(|front| front.chunks.iter());
        into.extend(front.take(SLICES_MAX - 1).map(|chunk| IoSlice::new(chunk)));
        let is_front_in = self.front.as_ref().is_none_or(|front| front.chunks.len() < SLICES_MAX);
        if is_front_in && self.tail.len() > self.written() {
            into.push(IoSlice::new(&self.tail[self.written()..]));
        }
    }

    /// Forgets the first `count` bytes: they are written.
    pub fn advance(&mut self, count: usize) {
        let is_all = count == self.len();
        self.gone = self.gone.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if is_all && self.is_front_empty() && self.tail.capacity() <= KEEP_BYTES {
            self.written = 0;
            if self.tail.capacity() < KEEP_FROM_BYTES {
                self.tail = Vec::new();
            }
            self.tail.clear();
            return;
        }
        let of_front = self.front.as_mut().map_or(0, |front| front.advance(count));
        let written = self.written() + count - of_front;
        self.written = u32::try_from(written).expect("what waits for one client is below 4 GiB");
        if is_all {
            self.tail.clear();
            self.written = 0;
            if self.tail.capacity() > KEEP_BYTES {
                self.tail = Vec::new();
                self.front = None;
            }
        } else if written > KEEP_BYTES.max(self.tail.len() / 2) {
            // A client that never catches up would otherwise keep all it was ever sent.
            self.tail.drain(..written);
            self.written = 0;
        }
    }

    /// Takes everything out at once; for tests and the simulator.
    pub fn take(&mut self) -> Vec<u8> {
        let len = self.len();
        let mut all = Vec::with_capacity(len);
        let front = self.front.iter().flat_map(|front| front.chunks.iter());
        front.for_each(|chunk| all.extend_from_slice(chunk));
        all.extend_from_slice(&self.tail[self.written()..]);
        let gone = self.gone.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
        *self = Self { gone, ..Self::default() };
        all
    }

    fn is_front_empty(&self) -> bool {
        self.front.as_ref().is_none_or(|front| front.chunks.is_empty())
    }

    /// Bytes written since this was asked last.
    pub fn take_count(&mut self) -> u64 {
        u64::from(std::mem::take(&mut self.gone))
    }

    fn written(&self) -> usize {
        self.written as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_head_and_its_payload_whatever_its_size() {
        for size in [0, 64, 3_000] {
            let payload = Bytes::from(vec![7; size]);
            let mut out = OutBuffer::default();
            out.put(b"ab");
            out.put_message(b"cd", &payload);
            assert_eq!(out.as_one().is_some(), size < BY_REFERENCE_BYTES);
            assert_eq!((out.len(), out.take()), (4 + size, [b"abcd", &payload[..]].concat()));
        }
    }

    #[test]
    fn order_is_kept_across_small_and_large() {
        let mut out = OutBuffer::default();
        let large = Bytes::from(vec![7; 3_000]);
        out.put(b"ab");
        out.put_payload(&large);
        out.put(b"cd");
        assert_eq!(out.len(), 3_004);
        out.advance(1);
        out.advance(3_000);
        assert_eq!(out.len(), 3);
        assert_eq!(out.take(), [7, b'c', b'd']);
        assert_eq!((out.take_count(), out.take_count()), (3_004, 0));
    }

    #[test]
    fn what_is_written_is_given_back_though_something_always_waits() {
        let mut out = OutBuffer::default();
        out.put(&[0; 1_000]);
        for round in 0..10_000_u32 {
            out.put(&round.to_be_bytes().repeat(250));
            out.advance(1_000);
        }
        assert_eq!(out.len(), 1_000);
        assert!(out.tail.capacity() <= 64 * 1_024, "{} bytes for 1,000", out.tail.capacity());
        assert_eq!(out.take(), 9_999_u32.to_be_bytes().repeat(250));
    }

    #[test]
    fn an_empty_buffer_owns_nothing_large() {
        let mut out = OutBuffer::default();
        (0..100).for_each(|_| out.put(&[0; 1_000]));
        out.advance(100_000);
        assert!(out.is_empty() && out.tail.capacity() <= KEEP_BYTES);
    }

    #[test]
    fn who_was_sent_two_small_answers_keeps_nothing_and_who_gets_messages_their_buffer() {
        let mut out = OutBuffer::default();
        for size in [4, 5] {
            out.put(&[0; 8][..size]);
            out.advance(size);
            assert_eq!(out.tail.capacity(), 0);
        }
        out.put(&[0; 80]);
        out.advance(80);
        assert!(out.tail.capacity() >= 80);
        assert!(size_of::<OutBuffer>() <= 40, "{}", size_of::<OutBuffer>());
    }
}
