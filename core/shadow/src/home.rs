//! Whose a shadow is: the node where its device's session lives deals out its version numbers.
//!
//! ```text
//!  A is home ── set_home(B) agreed by A ──▶ B is home, surely: A gave the numbers away
//!  A is home ── A unreachable, device at B ─▶ B took over: B's term, but numbers of B's slot …
//!                                             … until A hears of it and gives the numbers away
//! ```
//! At any moment one node at most may use the owner's numbers: whoever has them passes them on in the same step in which
//! it learns of a newer home. That is why a takeover needs no vote, and why it costs jumps until the old home is heard.

use outpost_model::{Hlc, NodeId, Now};
use serde_json::{Value, json};

use crate::document::Shadow;
use crate::event::Event;
use crate::hub::{Hub, Output};
use crate::key::ShadowKey;
use crate::planted::{Bug, is};
use crate::request::Reject;
use crate::version::{self, Class, VERSION_MAX};

/// Version numbers a home uses in a second, as far as a takeover without contact reckons. Lower and a device may have
/// seen higher numbers than the ones it is sent after a takeover, and ignore them; higher and each takeover uses up more.
pub const VERSIONS_PER_SECOND_MAX: u64 = 10;
/// The longest jump of a takeover. Shorter and an absence of days is not covered; longer and a few hundred takeovers use
/// a shadow's numbers up.
pub const TAKEOVER_JUMP_MAX: u64 = 1 << 22;
/// A home rests this long before it follows its device again, and one that was heard so lately is not taken over. Shorter
/// and a device or link that goes to and fro drags shadows along; longer and writes go over the old home for that time, or
/// are made apart from it.
pub const HOME_REST_MS: u64 = 10_000;

/// Who deals out a shadow's version numbers, and since when. The greater one is the newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Home {
    /// The hybrid time of the handover.
    pub term: u64,
    /// The node.
    pub node: NodeId,
    /// The one who had the owner's numbers gave them to this one. Else it took over without contact, and counts in its
    /// own slot until the old home is heard.
    pub sure: bool,
}

/// This node, as far as its version numbers go.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// Its slot.
    pub slot: u8,
}

impl Place {
    /// Whose numbers this node takes under a home.
    pub fn class(self, home: Option<Home>) -> Class {
        let sure = |home: Home| home.sure || is(Bug::TakeoverUsesOwnersNumbers);
        if home.is_some_and(|home| home.node == self.node && sure(home)) {
            Class::Owner
        } else {
            self.slot()
        }
    }

    /// The numbers of this node's slot.
    pub fn slot(self) -> Class {
        if is(Bug::ApartUsesOwnersNumbers) { Class::Owner } else { Class::Slot(self.slot) }
    }

    /// The newer of two homes. When it takes the numbers from this node, this node gives them away here and now.
    pub fn join(self, mine: Option<Home>, theirs: Option<Home>) -> Option<Home> {
        let newer = mine.max(theirs)?;
        let gives = newer.node != self.node && self.class(mine) == Class::Owner;
        Some(Home { sure: newer.sure || (gives && mine.is_some()), ..newer })
    }
}

/// What a takeover is to do about the old home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldHome {
    /// It may come back: numbers of the own slot until it is heard.
    MayReturn,
    /// A person says that it never will: its numbers are free.
    IsGone,
}

impl Hub {
    /// The device of this shadow speaks at this node: the home follows it, with the old home's consent or, when that one
    /// cannot be reached, without. Cheap when it is at home already.
    pub fn device_here(&mut self, key: &ShadowKey, now: Now) {
        let Some(home) = self.home(key) else { return };
        if home.node == self.config.node || self.is_moving(key) {
            return;
        }
        let heard_ms = self.peers.get(&home.node).map_or(0, |peer| peer.heard_ms);
        let time_ms = self.time_ms(now);
        let rests = |since_ms: u64| time_ms.saturating_sub(since_ms) < HOME_REST_MS;
        if !self.can_reach(home.node) && !rests(heard_ms) {
            self.take_over(key, OldHome::MayReturn, now);
        } else if self.can_reach(home.node) && !rests(Hlc(home.term).ms()) {
            self.set_home(key.clone(), self.config.node, now);
        }
    }

    /// Makes this node the home of a shadow, asking nobody. False when there is no such shadow, or nothing to take.
    pub fn take_over(&mut self, key: &ShadowKey, old: OldHome, now: Now) -> bool {
        self.renounce(key, now);
        let Some(shadow) = self.shadows.fetch(key) else { return false };
        let is_home = shadow.home.is_some_and(|home| home.node == self.config.node && home.sure);
        let is_mine = shadow.home.is_some_and(|home| home.node == self.config.node);
        if is_home || (is_mine && old == OldHome::MayReturn) {
            return false;
        }
        let mut shadow = Shadow::clone(&shadow);
        let absent_s = self.absent_s(&shadow, now);
        let (node, sure) = (self.config.node, old == OldHome::IsGone);
        shadow.home = Some(Home { term: self.stamp(now).0, node, sure });
        self.jump(&mut shadow, absent_s);
        shadow.seq = self.feed.head + 1;
        let version = shadow.version;
        self.then.push(Output::Event(Event::TakenOver { key: key.clone(), version, sure }));
        self.install(key.clone(), shadow);
        self.finish();
        true
    }

    /// The owner's class of version numbers passes to another node. That node uses it once this record has reached it.
    pub(crate) fn hand_over(
        &mut self,
        key: &ShadowKey,
        node: NodeId,
        now: Now,
    ) -> Result<Value, Reject> {
        self.renounce(key, now);
        let (me, term) = (self.place(), self.stamp(now).0);
        let Some(shadow) = self.shadows.fetch(key) else {
            return Err(Reject::new(404, "There is no such shadow"));
        };
        if shadow.home.is_none_or(|home| home.node != node) {
            let mut shadow = Shadow::clone(&shadow);
            let sure = shadow.home.is_none() || me.class(shadow.home) == Class::Owner;
            shadow.home = Some(Home { term, node, sure });
            shadow.seq = self.feed.head + 1;
            self.install(key.clone(), shadow);
        }
        Ok(json!({}))
    }

    /// This node and its slot.
    pub(crate) fn place(&self) -> Place {
        Place { node: self.config.node, slot: self.slot() }
    }

    /// A link to this node is up and it said hello.
    pub(crate) fn can_reach(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.greeted)
    }

    /// A frame of this peer came.
    pub(crate) fn note_heard(&mut self, peer: NodeId, now: Now) {
        let time_ms = self.time_ms(now);
        if let Some(known) = self.peers.get_mut(&peer) {
            known.heard_ms = known.heard_ms.max(time_ms);
        }
    }

    /// How long the home was not heard, at most.
    fn absent_s(&self, shadow: &Shadow, now: Now) -> u64 {
        let heard_ms =
            shadow.home.and_then(|home| self.peers.get(&home.node)).map_or(0, |peer| peer.heard_ms);
        self.time_ms(now).saturating_sub(heard_ms.max(shadow.touched.hlc.ms())).div_ceil(1000)
    }

    /// Goes on above whatever was dealt out in so many seconds.
    pub(crate) fn jump(&self, shadow: &mut Shadow, seconds: u64) {
        let jump = seconds.saturating_mul(VERSIONS_PER_SECOND_MAX).min(TAKEOVER_JUMP_MAX);
        let above = (shadow.version + jump).min(VERSION_MAX);
        shadow.version = version::next(above, self.place().class(shadow.home));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "a shadow has a home or none")]
    fn home(term: u64, node: u64, sure: bool) -> Option<Home> {
        Some(Home { term, node: NodeId(node), sure })
    }

    #[test]
    fn only_who_has_the_numbers_gives_them_away() {
        let me = |node| Place { node: NodeId(node), slot: 0 };
        let (old, taken) = (home(1, 1, true), home(2, 2, false));
        assert_eq!(me(1).join(old, taken), home(2, 2, true), "the old home hears of it");
        assert_eq!(me(3).join(old, taken), taken, "a third node only passes it on");
        assert_eq!(me(2).join(taken, old), taken, "hearing the old home's old word is not enough");
        assert_eq!(me(2).join(taken, home(2, 2, true)), home(2, 2, true));
        let rival = home(3, 3, false);
        assert_eq!(me(1).join(home(2, 2, true), rival), rival, "they are given away already");
        assert_eq!(me(2).join(home(2, 2, true), rival), home(3, 3, true));
        assert_eq!(me(1).join(None, taken), taken);
    }
}
