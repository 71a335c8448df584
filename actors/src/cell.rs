//! Cells: the light weight of actor. Many, cheap, and they never wait.
//!
//! ```text
//!   send(to, message) ──▶ one queue for all cells of a shard ──▶ turn(cell, message) ──▶ effects
//!                          (each cell: at most MAILBOX_MAX in it)   under catch_unwind
//! ```
//! A cell is a pure state machine from `core/` or a small one here. A turn that panics is undone as far as the shard
//! is concerned: none of its effects happen, and the cell's supervisor, the shard, decides by the same policy the
//! ractor tree uses ([`outpost_flow::restart`]).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use hashbrown::HashMap;
use outpost_flow::{Health, RestartPolicy, RestartState, Verdict};

/// Messages one cell may have waiting. Within a turn of the shard everything is handled to the end, so more than a few
/// means a cell that is sent to faster than it can be run; what does not fit is refused and counted.
pub const MAILBOX_MAX: u16 = 256;

/// Where a cell lives. Never reused: the generation tells a new tenant from the old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId {
    index: u32,
    generation: u32,
}

impl CellId {
    /// Index in the slab, for timers.
    pub fn index(self) -> u32 {
        self.index
    }
}

/// The mailbox is full; the message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the mailbox holds {MAILBOX_MAX} messages; the message was not taken")]
pub struct MailboxFull;

/// How a turn went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// The message was handled.
    Done,
    /// The cell panicked; its state is gone, what it wanted done is not done.
    Panicked(Verdict),
    /// The cell is being restarted or in quarantine; the message was not handled.
    Unavailable,
    /// The cell has stopped; the message was not handled.
    Gone,
}

#[derive(Debug)]
struct Slot<B, O> {
    generation: u32,
    owner: Option<O>,
    waiting: u16,
    body: Option<B>,
}

/// All cells of one shard, with bodies `B`, messages `M`, and what the shard needs to know to restart one, `O`.
#[derive(Debug)]
pub struct Cells<B, M, O> {
    slots: Vec<Slot<B, O>>,
    free: Vec<u32>,
    /// Of the last cell.
    generation: u32,
    queue: VecDeque<(CellId, M)>,
    /// Of cells that have failed, by their places: a word less in each of the others.
    health: HashMap<u32, RestartState>,
    policy: Arc<RestartPolicy>,
}

impl<B, M, O> Cells<B, M, O> {
    /// No cells yet.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            generation: 0,
            queue: VecDeque::new(),
            health: HashMap::new(),
            policy: Arc::new(policy),
        }
    }

    /// A new cell.
    pub fn spawn(&mut self, owner: O, body: B) -> CellId {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let slot = Slot { generation, owner: Some(owner), waiting: 0, body: Some(body) };
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = slot;
            return CellId { index, generation };
        }
        self.slots.push(slot);
        CellId { index: self.slots.len() as u32 - 1, generation }
    }

    /// Makes places for so many more cells.
    pub fn reserve(&mut self, more: usize) {
        self.slots.reserve_exact(more);
    }

    /// Who it belongs to, to be changed.
    pub fn owner_mut(&mut self, id: CellId) -> Option<&mut O> {
        self.slot_mut(id)?.owner.as_mut()
    }

    /// Who it belongs to.
    pub fn owner(&self, id: CellId) -> Option<&O> {
        self.slot(id)?.owner.as_ref()
    }

    /// Every cell alive.
    pub fn iter(&self) -> impl Iterator<Item = CellId> + '_ {
        let alive = |(index, slot): (usize, &Slot<B, O>)| {
            slot.owner
                .is_some()
                .then_some(CellId { index: index as u32, generation: slot.generation })
        };
        self.slots.iter().enumerate().filter_map(alive)
    }

    /// Ends a cell; messages to it are dropped from now on. Its body, when it has one.
    pub fn stop(&mut self, id: CellId) -> Option<B> {
        let slot = self.slot_mut(id)?;
        slot.owner = None;
        slot.waiting = 0;
        let body = slot.body.take();
        self.free.push(id.index);
        if !self.health.is_empty() {
            self.health.remove(&id.index);
        }
        body
    }

    /// Puts a message into a cell's mailbox.
    ///
    /// # Errors
    /// [`MailboxFull`]; sending to a cell that is gone is not an error.
    pub fn send(&mut self, to: CellId, message: M) -> Result<(), MailboxFull> {
        if let Some(slot) = self.slot_mut(to) {
            if slot.waiting >= MAILBOX_MAX {
                return Err(MailboxFull);
            }
            slot.waiting += 1;
        }
        self.queue.push_back((to, message));
        Ok(())
    }

    /// Whether all mailboxes are empty.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether a message to this cell would be taken.
    pub fn has_room(&self, to: CellId) -> bool {
        self.slot(to).is_none_or(|slot| slot.waiting < MAILBOX_MAX)
    }

    /// The next message of any cell.
    pub fn next_message(&mut self) -> Option<(CellId, M)> {
        let (to, message) = self.queue.pop_front()?;
        if let Some(slot) = self.slot_mut(to) {
            slot.waiting -= 1;
        }
        Some((to, message))
    }

    /// One turn of one cell.
    pub fn turn(&mut self, id: CellId, now_ms: u64, handle: impl FnOnce(&mut B)) -> Turn {
        let policy = &self.policy;
        let slot = self.slots.get_mut(id.index as usize);
        let slot = slot.filter(|slot| slot.generation == id.generation && slot.owner.is_some());
        let Some(slot) = slot else { return Turn::Gone };
        let Some(body) = slot.body.as_mut() else { return Turn::Unavailable };
        match catch_unwind(AssertUnwindSafe(|| handle(body))) {
            Ok(()) => Turn::Done,
            Err(panic) => {
                slot.body = None;
                let health = self.health.entry(id.index);
                let health = health.or_insert_with(|| RestartState::new(Arc::clone(policy)));
                Turn::Panicked(health.handle_failure(&panic_text(&*panic), now_ms))
            }
        }
    }

    /// Gives a failed cell a new body.
    pub fn revive(&mut self, id: CellId, body: B) {
        if let Some(slot) = self.slot_mut(id) {
            slot.body = Some(body);
        }
    }

    /// The waiting time of a failed cell may be over: `true` when it is to be revived now.
    pub fn handle_timeout(&mut self, id: CellId, now_ms: u64) -> bool {
        let is_here = self.slot(id).is_some();
        let health = self.health.get_mut(&id.index).filter(|_| is_here);
        health.is_some_and(|health| health.handle_timeout(now_ms))
    }

    /// When a failed cell wants [`Cells::handle_timeout`].
    pub fn due_ms(&self, id: CellId) -> Option<u64> {
        self.health_of(id)?.poll_timeout()
    }

    /// The present tenant of a place in the slab.
    pub fn at(&self, index: u32) -> Option<CellId> {
        let slot = self.slots.get(index as usize)?;
        Some(CellId { index, generation: slot.generation })
    }

    /// Looks at a cell's body.
    pub fn body(&self, id: CellId) -> Option<&B> {
        self.slot(id)?.body.as_ref()
    }

    /// The body between two turns, for what people ask of it.
    pub fn body_mut(&mut self, id: CellId) -> Option<&mut B> {
        let slot =
            self.slots.get_mut(id.index as usize).filter(|s| s.generation == id.generation)?;
        slot.body.as_mut()
    }

    /// Health, restarts, and messages waiting, for `outpost actors`.
    pub fn inspect(&self, id: CellId) -> Option<(Health, u64, u16)> {
        let slot = self.slot(id)?;
        let (health, restarts) = self
            .health_of(id)
            .map_or((Health::Running, 0), |health| (health.health(), health.restarts()));
        Some((health, restarts, slot.waiting))
    }

    /// The cause of its last failure.
    pub fn last_cause(&self, id: CellId) -> Option<&str> {
        self.health_of(id)?.last_cause()
    }

    /// Cells alive.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives back the memory of cells that have stopped, as far as it lies behind the others.
    pub fn shrink(&mut self) {
        while self.slots.last().is_some_and(|slot| slot.owner.is_none()) {
            self.slots.pop();
        }
        let left = self.slots.len();
        self.free.retain(|index| (*index as usize) < left);
        self.slots.shrink_to_fit();
        self.free.shrink_to_fit();
        self.queue.shrink_to_fit();
    }

    fn health_of(&self, id: CellId) -> Option<&RestartState> {
        self.slot(id).and_then(|_| self.health.get(&id.index))
    }

    fn slot(&self, id: CellId) -> Option<&Slot<B, O>> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation && slot.owner.is_some()).then_some(slot)
    }

    fn slot_mut(&mut self, id: CellId) -> Option<&mut Slot<B, O>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation && slot.owner.is_some()).then_some(slot)
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_one_cell_its_state_and_nobody_else() {
        let mut cells: Cells<u32, u32, ()> = Cells::new(RestartPolicy::default());
        let (bad, good) = (cells.spawn((), 1), cells.spawn((), 1));
        let went = cells.turn(bad, 0, |_| panic!("bad sensor"));
        assert_eq!(went, Turn::Panicked(Verdict::RestartNow));
        assert_eq!(cells.turn(bad, 0, |_| {}), Turn::Unavailable);
        assert_eq!(cells.turn(good, 0, |n| *n += 1), Turn::Done);
        assert_eq!((cells.body(good), cells.last_cause(bad)), (Some(&2), Some("bad sensor")));
        cells.revive(bad, 5);
        assert_eq!(cells.turn(bad, 0, |n| assert_eq!(*n, 5)), Turn::Done);
    }

    #[test]
    fn one_failure_too_many_is_quarantine_and_ends_by_itself() {
        let mut cells: Cells<u32, u32, ()> =
            Cells::new(RestartPolicy { intensity: 0, ..RestartPolicy::default() });
        let id = cells.spawn((), 1);
        let Turn::Panicked(Verdict::Quarantine { until_ms, .. }) =
            cells.turn(id, 10, |_| panic!("again"))
        else {
            panic!("quarantine expected")
        };
        assert!(!cells.handle_timeout(id, until_ms - 1));
        assert!(cells.handle_timeout(id, until_ms));
    }

    #[test]
    fn a_mailbox_is_bounded_and_a_stopped_cell_hears_nothing() {
        let mut cells: Cells<u32, u32, ()> = Cells::new(RestartPolicy::default());
        let id = cells.spawn((), 1);
        for n in 0..u32::from(MAILBOX_MAX) {
            cells.send(id, n).expect("there is room");
        }
        assert_eq!(cells.send(id, 0), Err(MailboxFull));
        cells.stop(id);
        cells.shrink();
        assert!(cells.slots.is_empty() && cells.free.is_empty(), "nothing is kept for it");
        let reused = cells.spawn((), 2);
        assert_ne!(id, reused);
        let (to, _) = cells.next_message().expect("queued before");
        assert_eq!(cells.turn(to, 0, |_| unreachable!("the old cell is gone")), Turn::Gone);
    }
}
