//! What the shard owes the disk in this turn, and what waits for the disk: batch, holds, and the count of who needs
//! which message body.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;
use outpost_model::{Message, MessageId};
use outpost_store::{Batch, Lsn, Op, Space, Store, SubmitError};

use crate::record;

/// The batch of the present turn, and everything that may only happen once a batch is durable. `H` is what is held.
#[derive(Debug)]
pub struct Journal<H> {
    store: Shelf,
    /// Acknowledge without waiting for the disk (`durability = "memory"`).
    lazy: bool,
    batch: Batch,
    held: Vec<H>,
    /// Held until rows can be read, also when nobody waits for the disk.
    reads: Vec<H>,
    waiting: VecDeque<(Lsn, Vec<H>)>,
    last: Lsn,
    synced: Lsn,
    /// Batches handed to the store so far.
    batches: u32,
    /// Of those, how many are synced; and the numbers of the others, in order. The store's backlog bounds them.
    batches_synced: u32,
    unsynced: VecDeque<(Lsn, u32)>,
    failed: Option<String>,
    /// Why what can be refused should be.
    stalled: Option<String>,
    busy: bool,
    bodies: HashMap<MessageId, u32>,
}

struct Shelf(Arc<dyn Store>);

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl<H> Journal<H> {
    /// A journal on a store.
    pub fn new(store: Arc<dyn Store>, lazy: bool) -> Self {
        Self {
            store: Shelf(store),
            lazy,
            batch: Batch::new(),
            held: Vec::new(),
            reads: Vec::new(),
            waiting: VecDeque::new(),
            last: Lsn(0),
            synced: Lsn(0),
            batches: 0,
            batches_synced: 0,
            unsynced: VecDeque::new(),
            failed: None,
            stalled: None,
            busy: false,
            bodies: HashMap::new(),
        }
    }

    /// The store, for reading.
    pub fn store(&self) -> &dyn Store {
        &*self.store.0
    }

    /// The same, for who changes the shard while it reads.
    pub fn shared_store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store.0)
    }

    /// Why nothing more is acknowledged, when that is so.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Why nothing that needs the disk should be accepted, when that is so and anybody waits for the disk.
    pub fn stalled(&self) -> Option<&str> {
        self.stalled.as_deref().filter(|_| !self.lazy)
    }

    /// The store stalls. True when it did not before.
    pub fn stall(&mut self, cause: &str) -> bool {
        self.stalled.replace(cause.to_owned()).is_none()
    }

    /// The store writes again. True when it had stalled.
    pub fn resume(&mut self) -> bool {
        self.stalled.take().is_some()
    }

    /// The disk is behind: nothing new should be read from clients.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Sets a row.
    pub fn put(&mut self, space: Space, key: impl Into<Bytes>, value: Bytes) {
        self.batch.push(Op::Put(space, key.into(), value));
    }

    /// Takes a row away.
    pub fn delete(&mut self, space: Space, key: impl Into<Bytes>) {
        self.batch.push(Op::Delete(space, key.into()));
    }

    /// One more durable recipient needs this message; its body is written for the first.
    pub fn need_body(&mut self, message: &Message) {
        let needed = self.bodies.entry(message.id).or_insert(0);
        *needed += 1;
        if *needed == 1 {
            let (key, body) = (message.id.to_bytes().to_vec(), record::encode_message(message));
            self.put(Space::Messages, key, body);
        }
    }

    /// One durable recipient needs it no more; after the last the body goes.
    pub fn release_body(&mut self, id: MessageId) {
        if let Some(needed) = self.bodies.get_mut(&id) {
            *needed -= 1;
            if *needed == 0 {
                self.bodies.remove(&id);
                self.delete(Space::Messages, id.to_bytes().to_vec());
            }
        }
    }

    /// At start: a row on disk needs this body.
    pub fn count_body(&mut self, id: MessageId) {
        *self.bodies.entry(id).or_insert(0) += 1;
    }

    /// Whether any durable recipient needs this message.
    pub fn is_needed(&self, id: MessageId) -> bool {
        self.bodies.contains_key(&id)
    }

    /// Message bodies on disk.
    pub fn bodies(&self) -> usize {
        self.bodies.len()
    }

    /// Keeps something back until everything written so far, this turn included, is durable.
    pub fn hold(&mut self, what: H) {
        self.held.push(what);
    }

    /// Keeps something back until everything written so far can be read from the store.
    pub fn hold_for_reading(&mut self, what: H) {
        self.reads.push(what);
    }

    /// Whether a hold taken now would not have to wait.
    pub fn is_settled(&self) -> bool {
        let idle = self.batch.is_empty() && self.held.is_empty();
        idle && (self.lazy || self.synced >= self.last)
    }

    /// Names what is written in this turn, for [`Journal::is_synced`]. 0 names what was there at the start.
    pub fn mark(&self) -> u32 {
        self.batches.wrapping_add(1)
    }

    /// Whether what was written in the turn of this mark, and before it, is durable and can be read from the store. After
    /// two billion batches it may say no where yes is true.
    pub fn is_synced(&self, mark: u32) -> bool {
        self.batches_synced.wrapping_sub(mark) <= u32::MAX / 2
    }

    /// Whether everything written so far can be read from the store.
    pub fn is_readable(&self) -> bool {
        self.batch.is_empty() && self.synced >= self.last
    }

    /// Whether a commit would do something.
    pub fn has_work(&self) -> bool {
        !self.is_empty() && !self.busy && self.failed.is_none()
    }

    /// Nothing is to be written, is refused for now, or waits for what is written.
    pub fn is_idle(&self) -> bool {
        self.is_empty() && !self.busy
    }

    fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.held.is_empty() && self.reads.is_empty()
    }

    /// Ends the turn: hands the batch to the store. What may happen at once is returned.
    pub fn commit(&mut self) -> Vec<H> {
        if self.failed.is_some() {
            self.batch.clear();
            self.held.clear();
            self.reads.clear();
            return Vec::new();
        }
        if !self.batch.is_empty() {
            // A copy is kept back only for the rare refusal; `Op`s are references to bytes.
            match self.store.0.submit(self.batch.clone()) {
                Ok(lsn) => {
                    self.batch.clear();
                    self.last = lsn;
                    self.busy = false;
                    self.batches = self.batches.wrapping_add(1);
                    self.unsynced.push_back((lsn, self.batches));
                }
                Err(SubmitError::Busy { .. }) => {
                    self.busy = true;
                    return Vec::new();
                }
                Err(error @ (SubmitError::Failed(_) | SubmitError::Key { .. })) => {
                    self.fail(error.to_string());
                    return Vec::new();
                }
            }
        }
        let (mut held, reads) = (std::mem::take(&mut self.held), std::mem::take(&mut self.reads));
        if self.synced >= self.last && self.waiting.is_empty() {
            held.extend(reads);
            return held;
        }
        let (free, mut wait) = if self.lazy { (held, Vec::new()) } else { (Vec::new(), held) };
        wait.extend(reads);
        if !wait.is_empty() {
            self.waiting.push_back((self.last, wait));
        }
        free
    }

    /// The store has synced up to `lsn`: what may happen now, in order.
    pub fn handle_synced(&mut self, lsn: Lsn) -> Vec<H> {
        self.synced = self.synced.max(lsn);
        while let Some((_, number)) = self.unsynced.pop_front_if(|(of, _)| *of <= self.synced) {
            self.batches_synced = number;
        }
        let mut free = Vec::new();
        while self.waiting.front().is_some_and(|(needs, _)| *needs <= self.synced) {
            free.extend(self.waiting.pop_front().expect("just seen").1);
        }
        free
    }

    /// The store stopped: what was held is never done.
    pub fn fail(&mut self, cause: String) {
        self.failed.get_or_insert(cause);
        self.waiting.clear();
        self.held.clear();
        self.reads.clear();
        self.batch.clear();
        self.busy = false;
    }
}
