//! Retained messages whose time is over: the node that retained them takes them away, and the others hear of it. By the clock of
//! one node alone, or one that is years ahead would take away what others have.

use std::sync::Arc;

use outpost_model::{LwwEntry, Message, NodeId};

use super::Shard;
use super::retained::{Kept, Retained};

/// So many go in one turn. More: the turn takes longer; fewer: they occupy their places for longer.
const EXPIRED_AT_ONCE: usize = 256;

impl Retained {
    /// What stood on a topic was replaced by something whose time is over then.
    pub(super) fn note_expiry(
        &mut self,
        topic: &Arc<str>,
        old: Option<&Kept>,
        new_due_ms: Option<u64>,
    ) {
        if let Some(due_ms) = old.and_then(|old| due_ms(&old.0)) {
            self.expiring.remove(&(due_ms, Arc::clone(topic)));
        }
        if let Some(due_ms) = new_due_ms {
            self.expiring.insert((due_ms, Arc::clone(topic)));
        }
    }
}

/// When the time of an entry is over that this node is to take away.
pub(super) fn own_due_ms(own: NodeId, entry: &LwwEntry<Kept>) -> Option<u64> {
    let kept = entry.value.as_ref().filter(|_| entry.stamp.node == own)?;
    due_ms(&kept.0)
}

/// When its time is over, by the wall clock.
fn due_ms(message: &Message) -> Option<u64> {
    let left_ms = u64::from(message.expiry_s?) * 1_000;
    Some(message.accepted_wall_ms.saturating_add(left_ms))
}

impl Shard {
    /// When one is over, as far as the clocks say now, in milliseconds of the monotonic one.
    pub(super) fn retained_expiry_due_ms(&self) -> Option<u64> {
        let (due_ms, _) = self.retained.expiring.first()?;
        Some(self.now.mono_ms + due_ms.saturating_sub(self.now.wall_ms))
    }

    /// Takes away those whose time is over.
    pub(super) fn expire_retained(&mut self) {
        for _ in 0..EXPIRED_AT_ONCE {
            let over = self.retained.expiring.first().filter(|(due, _)| *due <= self.now.wall_ms);
            let Some((_, topic)) = over.cloned() else { return };
            let Some(stamp) = self.retained.map.entry(&*topic).map(|entry| entry.stamp) else {
                return;
            };
            // Under its own stamp: whatever was written since stays.
            self.merge_retained(&topic, LwwEntry { stamp, value: None });
        }
    }
}
