//! A map many nodes write apart and merge: the last writer of a key wins, and removals are remembered until nobody can
//! need them any more.
//!
//! It is the LWW-element-set of Shapiro et al., "A comprehensive study of Convergent and Commutative Replicated Data Types"
//! (2011), §3.3.3, with two changes: "last" is a hybrid logical stamp, so that a node whose clock says 1970 does not lose
//! what it writes; and of a key only the later of its addition and removal is kept. [`LwwMap::merge`] is commutative,
//! associative and idempotent.
//!
//! Each key also has a *place* in the feed of this copy: a number that grows with each change here. What another node lacks
//! lies behind the place it has confirmed, and a removal (*tombstone*) that all have confirmed is causally stable and goes.
//! [`LwwLink`] keeps these places for one peer.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

use crate::ids::NodeId;
use crate::time::Hlc;

mod link;
#[cfg(test)]
mod tests;

pub use link::{LwwLink, OwnWrites, is_gone};

/// When and by whom a key was written. Greater is later; two writes of one node never share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LwwStamp {
    /// Hybrid time at the node that wrote.
    pub hlc: Hlc,
    /// That node; decides between equal times.
    pub node: NodeId,
}

/// The last write of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LwwEntry<V> {
    /// When and by whom.
    pub stamp: LwwStamp,
    /// `None`: it was removed.
    pub value: Option<V>,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct LwwMap<K, V> {
    slots: BTreeMap<K, Slot<V>>,
    /// Keys by the time of their last change here.
    feed: BTreeMap<u64, K>,
    last_place: u64,
    /// Places of removals.
    tombstones: BTreeSet<u64>,
}

#[derive(Debug, Clone)]
struct Slot<V> {
    entry: LwwEntry<V>,
    place: u64,
}

/// What a write that was taken in has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Joined<V> {
    /// Its place in the feed.
    pub place: u64,
    /// What stood there.
    pub replaced: Option<V>,
}

impl<K, V> Default for LwwMap<K, V> {
    fn default() -> Self {
        let (slots, feed, tombstones) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { slots, feed, last_place: 0, tombstones }
    }
}

/// Removals that were forgotten; see [`LwwMap::collect_some`].
#[derive(Debug, PartialEq, Eq)]
pub struct Collected<K> {
    /// Their keys.
    pub keys: Vec<K>,
    /// How many of them a peer may still have needed; they are the last.
    pub too_early: usize,
    /// The place of the last of these; 0 when there is none.
    pub last_place: u64,
}

/// Equal when they say the same; how they came to it does not count.
impl<K: Ord, V: PartialEq> PartialEq for LwwMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        let mut pairs = self.slots.iter().zip(&other.slots);
        let same_length = self.slots.len() == other.slots.len();
        same_length && pairs.all(|((a, x), (b, y))| a == b && x.entry == y.entry)
    }
}

impl<K: Ord + Clone, V: Ord + Clone> LwwMap<K, V> {
    /// The value of a key that is there.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entry(key)?.value.as_ref()
    }

    /// What is known of a key, a removal included.
    pub fn entry<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&LwwEntry<V>>
    where
        K: Borrow<Q>,
    {
        self.slots.get(key).map(|slot| &slot.entry)
    }

    /// Everything that is known of keys in a range, removals included, in order.
    pub fn range<Q: Ord + ?Sized, R: RangeBounds<Q>>(
        &self,
        keys: R,
    ) -> impl Iterator<Item = (&K, &LwwEntry<V>)>
    where
        K: Borrow<Q>,
    {
        self.slots.range(keys).map(|(key, slot)| (key, &slot.entry))
    }

    /// How many keys are there.
    pub fn len(&self) -> usize {
        self.slots.len() - self.tombstones.len()
    }

    /// No key is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many removals are remembered.
    pub fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// The place of the last change.
    pub fn last_place(&self) -> u64 {
        self.last_place
    }

    /// The change with the lowest place above `after`.
    pub fn next_change(&self, after: u64) -> Option<(u64, &K, &LwwEntry<V>)> {
        let (place, key) = self.feed.range(after.checked_add(1)?..).next()?;
        Some((*place, key, &self.slots.get(key)?.entry))
    }

    /// Takes a write of anybody in, unless something later stands there. Equal stamps with different values come only from
    /// a node that broke the rules; then a removal wins, else the greater value, so that all agree.
    pub fn join(&mut self, key: K, entry: LwwEntry<V>) -> Option<Joined<V>> {
        let have = self.slots.get(&key);
        if have.is_some_and(|have| rank(&have.entry) >= rank(&entry)) {
            return None;
        }
        let place = self.last_place + 1;
        let replaced = self.restore(key, entry, place);
        Some(Joined { place, replaced })
    }

    /// Puts an entry back at the place it had, whatever stands there; the value it replaces.
    pub fn restore(&mut self, key: K, entry: LwwEntry<V>, place: u64) -> Option<V> {
        self.raise_place(place);
        if entry.value.is_none() {
            self.tombstones.insert(place);
        }
        self.feed.insert(place, key.clone());
        let old = self.slots.insert(key, Slot { entry, place })?;
        if old.place != place {
            self.feed.remove(&old.place);
            self.tombstones.remove(&old.place);
        }
        old.entry.value
    }

    /// No later change gets this place or a lower one: what stood there last may have been collected before a restart.
    pub fn raise_place(&mut self, place: u64) {
        self.last_place = self.last_place.max(place);
    }

    /// Takes in everything another map knows. How many keys changed.
    pub fn merge(&mut self, other: &Self) -> usize {
        let take = |(key, slot): (&K, &Slot<V>)| self.join(key.clone(), slot.entry.clone());
        other.slots.iter().filter_map(take).count()
    }

    /// Forgets the removal with the lowest place, if all have confirmed that place. Its key.
    pub fn collect(&mut self, confirmed: u64) -> Option<K> {
        if *self.tombstones.first()? > confirmed {
            return None;
        }
        self.forget_tombstone().map(|(_, key)| key)
    }

    /// Forgets up to `at_once` removals that all have confirmed, and the oldest of those beyond `max`, whoever may still need
    /// them.
    pub fn collect_some(&mut self, confirmed: u64, at_once: usize, max: usize) -> Collected<K> {
        let mut gone = Collected { keys: Vec::new(), too_early: 0, last_place: 0 };
        while gone.keys.len() < at_once
            && let Some(key) = self.collect(confirmed)
        {
            gone.keys.push(key);
        }
        while self.tombstones() > max
            && let Some((place, key)) = self.forget_tombstone()
        {
            gone.keys.push(key);
            (gone.too_early, gone.last_place) = (gone.too_early + 1, place);
        }
        gone
    }

    /// Forgets the removal with the lowest place, whoever may still need it. Its place and key.
    pub fn forget_tombstone(&mut self) -> Option<(u64, K)> {
        let place = self.tombstones.pop_first()?;
        let key = self.feed.remove(&place)?;
        self.slots.remove(&key);
        Some((place, key))
    }
}

/// What decides between two writes of one key.
fn rank<V>(entry: &LwwEntry<V>) -> (LwwStamp, bool, Option<&V>) {
    (entry.stamp, entry.value.is_none(), entry.value.as_ref())
}
