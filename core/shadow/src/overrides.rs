//! Knobs that people turn by hand: what `desired` wanted and the device has shown once is satisfied, and a later change at
//! the device does not bring it back into the delta ([`Policy::LocalOverride`]).
//!
//! A mark says "this write of `desired` was satisfied". It belongs to that one write: a new write of `desired`, also with
//! the same value, is a new wish. Marks travel with the shadow and are joined as a set; a mark for another write than the
//! one in force says nothing and is dropped.

use std::collections::BTreeMap;

use outpost_model::Now;

use crate::document::{Shadow, same};
use crate::hub::Hub;
use crate::key::ShadowKey;
use crate::leaves::{LEAVES_MAX, Leaf, PATH_BYTES_MAX, check_path};
use crate::policy::{Policies, Policy};
use crate::stamp::Stamp;
use crate::wire::{Reader, WireError, Writer};

/// What a mark roughly occupies besides its path.
pub const MARK_MEMORY: usize = 2 * size_of::<(Box<str>, Mark)>();

/// Which writes of `desired` were satisfied, and which of them are not counted in the delta now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks(BTreeMap<Box<str>, Mark>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// Of the write; the default stamp when none was satisfied and the leaf is never in the delta.
    satisfied: Stamp,
    /// Left out of the delta here and now.
    muted: bool,
}

impl Marks {
    /// The leaf is left out of the delta.
    pub fn mutes(&self, path: &str) -> bool {
        self.0.get(path).is_some_and(|mark| mark.muted)
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The satisfied writes.
    pub fn satisfied(&self) -> impl Iterator<Item = (&str, Stamp)> {
        let real = self.0.iter().filter(|(_, mark)| mark.satisfied != Stamp::default());
        real.map(|(path, mark)| (&**path, mark.satisfied))
    }

    /// Takes in that a write was satisfied. True when that is news.
    pub fn satisfy(&mut self, path: &str, stamp: Stamp) -> bool {
        let muted = self.mutes(path);
        let old = self.0.insert(path.into(), Mark { satisfied: stamp, muted });
        old.is_none_or(|old| old.satisfied != stamp)
    }

    /// For a row.
    pub fn encode(&self, out: &mut Writer) {
        out.varint(self.0.len() as u64);
        for (path, mark) in &self.0 {
            out.bytes(path.as_bytes());
            out.stamp(&mark.satisfied);
            out.byte(u8::from(mark.muted));
        }
    }

    /// Reads what [`Marks::encode`] wrote.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let count = from.count(LEAVES_MAX, MARK_MEMORY)?;
        let mut marks = BTreeMap::new();
        for _ in 0..count {
            let path = check_path(from.bytes(PATH_BYTES_MAX)?, 'd')?;
            from.charge(path.len())?;
            let (satisfied, muted) = (from.stamp()?, from.flag()?);
            marks.insert(path.into(), Mark { satisfied, muted });
        }
        Ok(Self(marks))
    }
}

impl Shadow {
    /// Takes in a peer's marks for the writes that are in force here. True when there was news.
    pub fn join_marks(&mut self, theirs: &Marks) -> bool {
        let mut news = false;
        for (path, stamp) in theirs.satisfied() {
            if self.desired.leaves().shows(path, stamp) {
                news |= self.marks.satisfy(path, stamp);
            }
        }
        news
    }

    /// Marks what is satisfied now, and sees which leaves count in the delta. True when a write became satisfied.
    pub fn judge(&mut self, thing: &str, policies: &Policies, now: Now) -> bool {
        if policies.is_empty() {
            return false;
        }
        let (mut news, mut marks) = (false, Marks::default());
        for leaf in self.desired.leaves().live() {
            let policy = policies.of(thing, &leaf.path);
            if policy == Policy::Controlled {
                continue;
            }
            let shown = self.shown(leaf);
            let is_shown = shown.is_some_and(|shown| same(&shown.json(), &leaf.json()));
            let known = self.marks.0.get(&leaf.path).map(|mark| mark.satisfied);
            let was = known == Some(leaf.stamp);
            let satisfied = if was || is_shown { leaf.stamp } else { Stamp::default() };
            let muted = match policy {
                Policy::Controlled => false,
                Policy::ReportedOnly => true,
                Policy::LocalOverride { expiry_ms } => {
                    let since_ms = shown.map_or(self.touched, |shown| shown.stamp).hlc.ms();
                    let over = expiry_ms.is_some_and(|ms| now.wall_ms >= since_ms + ms);
                    (was || is_shown) && !over
                }
            };
            let is_override = matches!(policy, Policy::LocalOverride { .. });
            news |= is_override && is_shown && !was;
            let satisfied = if is_override { satisfied } else { Stamp::default() };
            if muted || satisfied != Stamp::default() {
                marks.0.insert(leaf.path.clone(), Mark { satisfied, muted });
            }
        }
        self.marks = marks;
        news
    }

    /// When a change at the device stops to stand, in milliseconds since 1970; the first of them.
    pub fn override_ends_ms(&self, thing: &str, policies: &Policies) -> Option<u64> {
        let muted = self.desired.leaves().live().filter(|leaf| self.marks.mutes(&leaf.path));
        let ends = muted.filter_map(|leaf| match policies.of(thing, &leaf.path) {
            Policy::LocalOverride { expiry_ms: Some(ms) } => {
                let shown = self.shown(leaf)?;
                let differs = !same(&shown.json(), &leaf.json());
                differs.then(|| shown.stamp.hlc.ms() + ms)
            }
            _ => None,
        });
        ends.min()
    }

    /// What `reported` says at the place of a leaf of `desired`.
    fn shown(&self, leaf: &Leaf) -> Option<&Leaf> {
        self.reported.get(&format!("r{}", &leaf.path[1..]))
    }
}

impl Hub {
    /// To be called for each shadow that changed, before it is shown: which of its leaves count in the delta. True when a
    /// write became satisfied, which peers are to know.
    pub(crate) fn judge(&mut self, key: &ShadowKey, shadow: &mut Shadow, now: Now) -> bool {
        let policies = &self.config.rules.policies;
        let news = shadow.judge(&key.thing, policies, self.reckoned(now));
        match shadow.override_ends_ms(&key.thing, policies) {
            Some(ends_ms) => {
                self.overrides_due_ms = self.overrides_due_ms.min(ends_ms);
                self.overrides.insert(key.clone(), ends_ms)
            }
            None => self.overrides.remove(key),
        };
        news
    }

    /// Changes at devices that no longer stand are in the delta again, and it is said.
    pub(crate) fn end_overrides(&mut self, now: Now) {
        let time_ms = self.time_ms(now);
        if time_ms < self.overrides_due_ms {
            return;
        }
        let due = self.overrides.iter().filter(|(_, ends_ms)| **ends_ms <= time_ms);
        let due: Vec<ShadowKey> =
            due.map(|(key, _)| key.clone()).take(self.config.limits.sweep_shadows).collect();
        for key in due {
            let Some(mut shadow) = self.shadows.copy(&key) else {
                self.overrides.remove(&key);
                continue;
            };
            self.judge(&key, &mut shadow, now);
            if let Some(delta) = shadow.delta_message(now.wall_s(), None) {
                self.publish(&key, "update/delta", delta.to_string().into_bytes());
            }
            self.install_in_place(key, shadow);
        }
        self.overrides_due_ms = self.overrides.values().copied().min().unwrap_or(u64::MAX);
    }
}
