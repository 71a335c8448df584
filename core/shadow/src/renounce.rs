//! A disk that turns out to be an older copy of what it was: what this node gave away or dealt out since is not known. It keeps
//! no owner's numbers (R13), and goes on above what it may have dealt out.
//!
//! Each shadow is given up before anything else is done with it, and all others a part at a time, so that a node with many
//! does not stand still.

use outpost_model::Now;

use std::ops::Bound::{Excluded, Unbounded};

use crate::document::Shadow;
use crate::home::Home;
use crate::hub::Hub;
use crate::key::ShadowKey;

/// What is given up. It is on disk, and the search begins anew with each start.
#[derive(Debug, Default)]
pub(crate) struct Renounced {
    /// The numbers of homes with terms below this one; 0: of none.
    pub below: u64,
    /// Not all shadows have been looked at.
    pub is_searching: bool,
    /// They have been up to this one.
    after: Option<ShadowKey>,
}

impl Renounced {
    pub fn from_disk(below: u64) -> Self {
        Self { below, is_searching: below > 0, after: None }
    }
}

impl Hub {
    /// The disk is an older copy of what it was.
    pub(crate) fn give_up_numbers(&mut self, now: Now) {
        let terms = self.shadows.iter().filter_map(|(_, facts)| facts.home.map(|home| home.term));
        let below = terms.max().map_or(0, |term| term + 1).max(self.stamp(now).0);
        self.renounced = Renounced::from_disk(below);
        self.save_own();
    }

    /// Gives up the numbers of one shadow, where that is due.
    pub(crate) fn renounce(&mut self, key: &ShadowKey, now: Now) {
        if !self.is_renounced(self.shadows.facts(key).and_then(|facts| facts.home)) {
            return;
        }
        let Some(mut shadow) = self.shadows.copy(key) else { return };
        self.renounce_in(&mut shadow, now);
        shadow.seq = self.feed.head + 1;
        self.install(key.clone(), shadow);
    }

    /// The same for one that is about to be installed. True when it changed.
    pub(crate) fn renounce_in(&mut self, shadow: &mut Shadow, now: Now) -> bool {
        let is_due = self.is_renounced(shadow.home);
        if is_due {
            let since_s = self.time_ms(now).saturating_sub(shadow.touched.hlc.ms()) / 1000;
            let term = self.stamp(now).0.max(self.renounced.below);
            shadow.home = Some(Home { term, node: self.config.node, sure: false });
            self.jump(shadow, since_s);
        }
        is_due
    }

    /// Goes on with the others.
    pub(crate) fn renounce_some(&mut self, now: Now) {
        if !self.renounced.is_searching {
            return;
        }
        let from = self.renounced.after.as_ref().map_or(Unbounded, Excluded);
        let range = self.shadows.range((from, Unbounded)).take(self.config.limits.sweep_shadows);
        let keys: Vec<ShadowKey> = range.map(|(key, _)| key.clone()).collect();
        self.renounced.is_searching = keys.len() == self.config.limits.sweep_shadows;
        self.renounced.after = keys.last().cloned().filter(|_| self.renounced.is_searching);
        keys.iter().for_each(|key| self.renounce(key, now));
    }

    fn is_renounced(&self, home: Option<Home>) -> bool {
        let is_own = |home: Home| home.node == self.config.node;
        home.is_some_and(|home| is_own(home) && home.term < self.renounced.below)
    }
}
