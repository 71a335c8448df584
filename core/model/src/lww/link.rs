//! How far two copies of an [`LwwMap`] know of each other, as one of them sees it.
//!
//! Each side tells the changes of its copy in the order of their places, those that the other side wrote excepted, and
//! confirms what it has kept of the other's. Both travel in one order: a confirmation may not overtake a change that was
//! told before it, or a removal is collected while what it removed is still under way.

use super::{LwwEntry, LwwMap};
use crate::ids::NodeId;
use crate::time::Hlc;

/// See the module. The two `seen` outlive a restart, in one step with the entries they speak of; the rest begins anew with
/// each link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LwwLink {
    /// The peer's changes up to this place are here.
    pub seen: u64,
    /// What the peer itself wrote up to this stamp is here, or was replaced by something later.
    pub seen_own: Hlc,
    /// A change of the peer was not taken: later ones do not count as seen on this link.
    gap: bool,
    /// The peer has lost what it wrote, or never had it.
    tells_own: bool,
    /// Looked through up to this place.
    sent: u64,
    /// The last place that was told.
    told: u64,
    confirmed: u64,
    /// Removals up to this place are forgotten.
    forgotten: u64,
}

impl LwwLink {
    /// What was known before a restart.
    pub fn from_disk(seen: u64, seen_own: Hlc) -> Self {
        Self { seen, seen_own, ..Self::default() }
    }

    /// The peer's copy is another one than before.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// A link begins. Nothing is told on it before [`LwwLink::greet`].
    pub fn begin(&mut self) {
        self.seen = self.seen_safely();
        (self.gap, self.forgotten, self.sent, self.told) = (false, 0, 0, 0);
    }

    /// The peer says how far it has seen this copy; nothing when it does not know it. Who has seen nothing of it is told what
    /// it wrote itself as well.
    pub fn greet(&mut self, seen: Option<u64>) {
        let seen = seen.unwrap_or(0);
        self.tells_own = seen == 0;
        (self.sent, self.told, self.confirmed) = (seen, seen, seen);
    }

    /// What to tell the peer next, of changes up to the place `upto`.
    pub fn next<'a, K: Ord + Clone, V: Ord + Clone>(
        &mut self,
        peer: NodeId,
        map: &'a LwwMap<K, V>,
        upto: u64,
    ) -> Option<(u64, &'a K, &'a LwwEntry<V>)> {
        while let Some((place, key, entry)) = map.next_change(self.sent) {
            if place > upto {
                return None;
            }
            self.sent = place;
            // A removal may be found out by somebody else than the writer, see `is_gone`.
            if entry.stamp.node != peer || self.tells_own || entry.value.is_none() {
                self.told = place;
                return Some((place, key, entry));
            }
        }
        None
    }

    /// The peer has kept everything up to this place.
    pub fn confirm(&mut self, place: u64) {
        self.confirmed = self.confirmed.max(place.min(self.sent));
    }

    /// The peer has everything of this copy up to this place: told and confirmed, or written by itself.
    pub fn confirmed(&self) -> u64 {
        if self.confirmed >= self.told { self.sent.max(self.confirmed) } else { self.confirmed }
    }

    /// The peer told this at that place, and it was taken in (or something later stood there): true when it counts as seen.
    pub fn see<V>(&mut self, peer: NodeId, place: u64, entry: &LwwEntry<V>) -> bool {
        if self.gap {
            return false;
        }
        self.seen = self.seen.max(place);
        if entry.stamp.node == peer {
            self.seen_own = self.seen_own.max(entry.stamp.hlc);
        }
        true
    }

    /// A removal that stood at this place is forgotten, whether or not the peer knows it. True when [`LwwLink::seen_safely`]
    /// has changed.
    pub fn forget(&mut self, place: u64) -> bool {
        let before = self.seen_safely();
        // What was not even told yet never will be, whatever the peer confirms.
        let upto = if place <= self.sent { place } else { u64::MAX };
        self.forgotten = self.forgotten.max(upto);
        self.seen_safely() != before
    }

    /// How far the peer need not tell again. Nothing when it may lack removals that nobody remembers: it then tells
    /// everything with the next link, and what is gone here is found out.
    pub fn seen_safely(&self) -> u64 {
        if self.forgotten > self.confirmed() { 0 } else { self.seen }
    }

    /// A change of the peer was not taken. True when it is the first on this link.
    pub fn miss(&mut self) -> bool {
        !std::mem::replace(&mut self.gap, true)
    }
}

/// What this node itself has written since its copy began, by the stamps of the first and the last of it. The first is
/// on disk with what it was the stamp of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OwnWrites {
    /// Nothing when it is not known: an earlier copy, which is lost, may have written under the same stamps.
    pub span: Option<(Hlc, Hlc)>,
}

impl OwnWrites {
    /// This node writes. True when that is the first.
    pub fn note(&mut self, stamp: Hlc) -> bool {
        let first = self.span.map(|(first, _)| first);
        self.span = Some((first.unwrap_or(stamp), stamp));
        first.is_none()
    }

    /// A peer tells what is said to be this node's. True when this copy wrote it.
    pub fn handle_told(&mut self, stamp: Hlc) -> bool {
        let Some((first, last)) = self.span else { return false };
        if stamp > last {
            self.span = None; // written by a copy that is lost, by a clock that was ahead of this one
        }
        (first..=last).contains(&stamp)
    }
}

/// Whether an entry that is told was here before and is gone: all of its writer's up to `seen_own` was, and a key that is not
/// there now was removed and its removal collected. What comes from there is late, and whoever tells it as a value has to hear
/// of the removal again.
pub fn is_gone<K: Ord + Clone, V: Ord + Clone>(
    map: &LwwMap<K, V>,
    key: &K,
    entry: &LwwEntry<V>,
    seen_own: Hlc,
) -> bool {
    entry.stamp.hlc <= seen_own && map.entry(key).is_none()
}
