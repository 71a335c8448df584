//! Time passing: requests give up waiting, and tombstones go once nobody can need them.

use std::ops::Bound::{Excluded, Unbounded};

use outpost_model::Now;

use crate::document::Shadow;
use crate::hub::Hub;
use crate::key::ShadowKey;
use crate::leaves::Leaf;
use crate::planted::{Bug, is};

impl Hub {
    /// Time has passed. See [`Hub::next_tick_ms`].
    pub fn handle_tick(&mut self, now: Now) {
        self.mono_ms = now.mono_ms;
        self.keep_time(now);
        self.settle_pending(None, now);
        self.hurry_sketches(now);
        self.end_overrides(now);
        self.end_quarantines(now);
        self.trim_history();
        self.renounce_some(now);
        if self.sweep_at_ms.is_none_or(|at| at <= now.mono_ms) {
            self.sweep_at_ms = Some(now.mono_ms + self.config.limits.sweep_every_ms);
            self.sweep(now);
            self.tell_places();
        }
        self.finish();
    }

    /// When [`Hub::handle_tick`] should next be called, in monotonic milliseconds. Asked anew after every call: until then
    /// nothing is due.
    pub fn next_tick_ms(&self, now: Now) -> Option<u64> {
        let sweep = self.sweep_at_ms.or((!self.shadows.is_empty()).then_some(0));
        let goes_on = self.too_much_history() > 0 || self.renounced.is_searching;
        let part = goes_on.then_some(0);
        let override_ends = (!self.overrides.is_empty())
            .then(|| now.mono_ms + self.overrides_due_ms.saturating_sub(self.time_ms(now)));
        [
            self.pending_deadline_ms(),
            sweep,
            part,
            override_ends,
            self.held_until_ms(),
            self.sketches_due_ms(),
            self.quarantine_ends_ms(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn sweep(&mut self, now: Now) {
        let after = self.sweep_after.take();
        let from = after.as_ref().map_or(Unbounded, Excluded);
        let range = self.shadows.range((from, Unbounded)).take(self.config.limits.sweep_shadows);
        let (mut keys, mut seen, mut last) = (Vec::new(), 0, None);
        for (key, facts) in range {
            (seen, last) = (seen + 1, Some(key));
            if facts.tombstones || !facts.exists {
                keys.push(key.clone());
            }
        }
        if seen == self.config.limits.sweep_shadows {
            self.sweep_after = last.cloned();
        }
        for key in keys {
            self.sweep_one(&key, now);
        }
    }

    fn sweep_one(&mut self, key: &ShadowKey, now: Now) {
        self.forget_deleted(key, now);
        let Some(mut shadow) = self.shadows.copy(key) else { return };
        if self.collect_tombstones(&mut shadow, now) > 0 {
            self.install_in_place(key.clone(), shadow);
        }
    }

    /// Takes the record of a deleted shadow away when its time is over: the next one of its name begins anew.
    pub(crate) fn forget_deleted(&mut self, key: &ShadowKey, now: Now) {
        if self.shadows.facts(key).is_none_or(|facts| facts.exists) {
            return;
        }
        let Some(shadow) = self.shadows.get(key) else { return };
        let age_ms = self.time_ms(now).saturating_sub(shadow.deleted.hlc.ms());
        let limits = &self.config.limits;
        let seen = shadow.seq <= self.seen_by_all() && age_ms >= limits.deleted_keep_ms;
        if seen || age_ms >= limits.tombstone_grace_ms {
            self.forget(key);
        }
    }

    /// Takes away the tombstones that every known peer has on disk, those past the grace period, and the oldest when
    /// there are too many. Who has a tombstone holds no older write at or below its path any more, so none comes back.
    pub(crate) fn collect_tombstones(&mut self, shadow: &mut Shadow, now: Now) -> usize {
        let (seen, limits) = (self.seen_by_all(), &self.config.limits);
        let time_ms = self.time_ms(now);
        let mut collected = 0;
        for leaves in [shadow.desired.leaves_mut(), &mut shadow.reported] {
            let tombstones = leaves.tombstones();
            if tombstones == 0 {
                continue;
            }
            let mut moments: Vec<u64> =
                leaves.iter().filter(|l| l.value.is_none()).map(|l| l.stamp.hlc.0).collect();
            moments.sort_unstable();
            let too_many = tombstones.saturating_sub(limits.tombstones_max);
            let oldest = too_many.checked_sub(1).map_or(0, |last| moments[last]);
            collected += leaves.forget_tombstones(|leaf: &Leaf| {
                let age_ms = time_ms.saturating_sub(leaf.stamp.hlc.ms());
                is(Bug::TombstonesGoAtOnce)
                    || leaf.seq <= seen
                    || leaf.stamp.hlc.0 <= oldest
                    || age_ms >= limits.tombstone_grace_ms
            });
        }
        self.stats.tombstones_collected += collected as u64;
        collected
    }

    /// Every known peer has this node's feed on disk up to here.
    fn seen_by_all(&self) -> u64 {
        self.peers.values().map(|peer| peer.seen).min().unwrap_or(u64::MAX)
    }
}
