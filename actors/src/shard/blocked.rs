//! Publishes that clients of 3.1.1 have to wait with: nothing in their protocol says no.

use std::collections::VecDeque;

use outpost_mqtt::packet::Publish;

/// QoS 1 and 2 publishes of one 3.1.1 client that wait while a receiver's queue is full; its other packets are read meanwhile. Lower:
/// a client that sends more before it reads is held back with its own acknowledgements behind them; higher: more memory
/// for each publisher to a receiver that is away.
const BLOCKED_MAX: usize = 128;

/// Bytes of their payloads, and one message more.
const BLOCKED_BYTES_MAX: usize = 256 * 1024;

/// Publishes a 3.1.1 client has to wait with, in order: a receiver's queue is full. One word while there are none.
#[derive(Debug, Default)]
pub(super) struct Blocked(Option<Box<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    publishes: VecDeque<Box<Publish>>,
    payload_bytes: usize,
}

impl Blocked {
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.publishes.len())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `part` is 1, or how much less it may be when memory is short.
    pub(super) fn is_full(&self, part: usize) -> bool {
        let is_full = |w: &Waiting| {
            w.publishes.len() >= BLOCKED_MAX / part || w.payload_bytes >= BLOCKED_BYTES_MAX / part
        };
        self.0.as_deref().is_some_and(is_full)
    }

    pub(super) fn payload_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |waiting| waiting.payload_bytes)
    }

    /// One more, behind the others.
    pub(super) fn push_back(&mut self, publish: Box<Publish>) {
        let waiting = self.0.get_or_insert_default();
        waiting.payload_bytes += publish.payload.len();
        waiting.publishes.push_back(publish);
    }

    /// One that cannot go yet, before the others.
    pub(super) fn push_front(&mut self, publish: Box<Publish>) {
        let waiting = self.0.get_or_insert_default();
        waiting.payload_bytes += publish.payload.len();
        waiting.publishes.push_front(publish);
    }

    pub(super) fn pop_front(&mut self) -> Option<Box<Publish>> {
        let waiting = self.0.as_mut()?;
        let publish = waiting.publishes.pop_front()?;
        waiting.payload_bytes -= publish.payload.len();
        Some(publish)
    }

    pub(super) fn into_all(self) -> VecDeque<Box<Publish>> {
        self.0.map_or_else(VecDeque::new, |waiting| waiting.publishes)
    }
}
