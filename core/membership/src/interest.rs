//! Which filters this node wants, counted, and which filters a peer wants.
//!
//! [`LocalInterest`] turns subscriptions coming and going into the few frames a peer needs to hear; [`PeerInterest`]
//! holds what a peer said. Both are plain tables.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outpost_model::{TopicFilter, TopicTable};

use crate::frame::{Interest, PeerFrame};

/// How many filters a peer may want. Lower: a busy node's subscriptions are refused and its link closed. Higher: a
/// peer can make this node keep that many times about 200 bytes.
pub const PEER_FILTERS_MAX: usize = 100_000;
/// Interest is told in frames of about this size. Lower: more frames after a link comes up. Higher: one frame may reach
/// the frame limit of the link, and acknowledgements wait behind it.
pub const INTEREST_FRAME_BYTES: usize = 256 * 1024;

/// What the subscribers of this node want, counted per filter.
#[derive(Debug, Default)]
pub struct LocalInterest {
    wanted: BTreeMap<String, Count>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    fleeting: u64,
    durable: u64,
    /// Members that are connected, for a shared filter.
    live: u64,
}

/// What a peer is told of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flags {
    durable: bool,
    live: bool,
}

impl LocalInterest {
    /// Counts one more subscriber. What peers must hear, if anything changed for them.
    pub fn add(&mut self, pattern: &str, durable: bool) -> Option<PeerFrame> {
        let before = self.flags(pattern);
        let count = self.wanted.entry(pattern.to_owned()).or_default();
        *(if durable { &mut count.durable } else { &mut count.fleeting }) += 1;
        self.told(pattern, before)
    }

    /// Counts one subscriber less; nothing happens when there was none of the kind.
    pub fn remove(&mut self, pattern: &str, durable: bool) -> Option<PeerFrame> {
        let before = self.flags(pattern);
        let count = self.wanted.get_mut(pattern)?;
        let place = if durable { &mut count.durable } else { &mut count.fleeting };
        *place = place.saturating_sub(1);
        if count.durable + count.fleeting == 0 {
            self.wanted.remove(pattern);
        }
        self.told(pattern, before)
    }

    /// A member of a share group has connected, or is gone; its subscription is counted apart from this.
    pub fn set_live(&mut self, pattern: &str, more: bool) -> Option<PeerFrame> {
        let before = self.flags(pattern);
        let count = self.wanted.get_mut(pattern)?;
        count.live = if more { count.live + 1 } else { count.live.saturating_sub(1) };
        self.told(pattern, before)
    }

    /// How many different filters are wanted.
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Everything wanted, in order of the filters.
    pub fn all(&self) -> Vec<Interest> {
        let one = |(pattern, count): (&String, &Count)| Interest {
            pattern: pattern.clone(),
            durable: count.durable > 0,
            live: count.live > 0,
        };
        self.wanted.iter().map(one).collect()
    }

    /// Everything wanted, as the frames that tell a peer whose link just came up: one [`PeerFrame::InterestAll`], then
    /// [`PeerFrame::InterestAdd`] as often as [`INTEREST_FRAME_BYTES`] makes necessary, and an empty one that ends the list.
    pub fn all_frames(&self) -> Vec<PeerFrame> {
        let mut parts = vec![Vec::new()];
        let mut bytes = 0;
        for interest in self.all() {
            bytes += interest.pattern.len() + 4;
            if bytes > INTEREST_FRAME_BYTES {
                parts.push(Vec::new());
                bytes = interest.pattern.len() + 4;
            }
            parts.last_mut().expect("never empty").push(interest);
        }
        let mut parts = parts.into_iter();
        let first = PeerFrame::InterestAll(parts.next().expect("never empty"));
        let end = PeerFrame::InterestAdd(Vec::new());
        std::iter::once(first).chain(parts.map(PeerFrame::InterestAdd)).chain([end]).collect()
    }

    fn flags(&self, pattern: &str) -> Option<Flags> {
        let count = self.wanted.get(pattern)?;
        Some(Flags { durable: count.durable > 0, live: count.live > 0 })
    }

    fn told(&self, pattern: &str, before: Option<Flags>) -> Option<PeerFrame> {
        match self.flags(pattern) {
            after if after == before => None,
            Some(Flags { durable, live }) => {
                let pattern = pattern.to_owned();
                Some(PeerFrame::InterestAdd(vec![Interest { pattern, durable, live }]))
            }
            None => Some(PeerFrame::InterestRemove(vec![pattern.to_owned()])),
        }
    }
}

/// What one peer wants, as it told us.
#[derive(Debug)]
pub struct PeerInterest {
    /// By filter, `$share/<group>/` included.
    wanted: BTreeMap<Arc<str>, Flags>,
    table: TopicTable<Want>,
    filters_max: usize,
    /// Wanted durably before the list that is being told, and not named in it so far: until it ends nobody knows whether
    /// they are wanted still, and the link may break before that.
    unconfirmed: BTreeSet<Arc<str>>,
}

/// Who wants what stands under a filter.
#[derive(Debug, PartialEq, Eq)]
enum Want {
    /// The peer's ordinary subscribers; whether durably.
    Plain(bool),
    /// A share group, by its whole filter.
    Share(Arc<str>),
}

/// A share group at a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareInterest {
    /// A persistent member takes QoS 1 or 2 while it is away.
    pub durable: bool,
    /// A member is connected, as far as the peer said.
    pub live: bool,
}

/// Why a peer's frame was refused. What had been applied of it stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterestError {
    /// More filters than agreed.
    #[error("the peer wants more than {limit} filters; the rest was not taken")]
    TooMany {
        /// The limit in force.
        limit: usize,
    },
    /// Not a topic filter.
    #[error("the peer wants {0:?}, which is not a topic filter")]
    BadFilter(String),
}

impl Default for PeerInterest {
    fn default() -> Self {
        Self::new(PEER_FILTERS_MAX)
    }
}

impl PeerInterest {
    /// Wants nothing yet, and never more than `filters_max` filters.
    pub fn new(filters_max: usize) -> Self {
        let (wanted, unconfirmed) = (BTreeMap::new(), BTreeSet::new());
        Self { wanted, table: TopicTable::default(), filters_max, unconfirmed }
    }

    /// Applies one of the three interest frames; every other frame changes nothing.
    ///
    /// # Errors
    /// [`InterestError`] when a filter was refused; close the link then, the two sides no longer agree.
    pub fn apply(&mut self, frame: &PeerFrame) -> Result<(), InterestError> {
        match frame {
            PeerFrame::InterestAll(all) => {
                self.begin_list();
                all.iter().try_for_each(|interest| self.want(interest))
            }
            PeerFrame::InterestAdd(more) if more.is_empty() => {
                let gone = std::mem::take(&mut self.unconfirmed);
                gone.iter().for_each(|pattern| self.forget(pattern));
                Ok(())
            }
            PeerFrame::InterestAdd(more) => {
                more.iter().try_for_each(|interest| self.want(interest))
            }
            PeerFrame::InterestRemove(gone) => {
                gone.iter().for_each(|pattern| self.forget(pattern));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether the peer wants this topic: `Some(true)` when it must arrive even if the link is down.
    pub fn wants(&self, topic: &str) -> Option<bool> {
        let mut found = None;
        self.table.matches(topic, |want| {
            if let Want::Plain(durable) = want {
                found = Some(found.unwrap_or(false) | *durable);
            }
        });
        found
    }

    /// Calls `found` for each share group of the peer that wants this topic.
    pub fn shares<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a Arc<str>, ShareInterest)) {
        self.table.matches(topic, |want| {
            if let Want::Share(name) = want
                && let Some(share) = self.share(name)
            {
                found(name, share);
            }
        });
    }

    /// What a share group has at the peer, if there are members; by its filter as members wrote it.
    pub fn share(&self, name: &str) -> Option<ShareInterest> {
        self.wanted.get(name).map(|f| ShareInterest { durable: f.durable, live: f.live })
    }

    /// Everything the peer wants, in order of the filters; what to keep on disk for the time it is away.
    pub fn all(&self) -> Vec<Interest> {
        self.wanted
            .iter()
            .map(|(pattern, &Flags { durable, live })| {
                let pattern = pattern.to_string();
                Interest { pattern, durable, live }
            })
            .collect()
    }

    /// Whether the peer wants this filter also while it is away.
    pub fn is_durable(&self, pattern: &str) -> bool {
        self.wanted.get(pattern).is_some_and(|flags| flags.durable)
    }

    /// How many filters it wants.
    pub fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Whether it wants nothing.
    pub fn is_empty(&self) -> bool {
        self.wanted.is_empty()
    }

    /// What is wanted only while the link is up is told anew; the rest stays until the list has ended.
    fn begin_list(&mut self) {
        let (durable, fleeting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.wanted).into_iter().partition(|(_, flags)| flags.durable);
        self.wanted = fleeting.iter().cloned().collect();
        fleeting.iter().for_each(|(pattern, _)| self.forget(pattern));
        self.unconfirmed = durable.iter().map(|(pattern, _)| Arc::clone(pattern)).collect();
        let away = |(pattern, flags): (Arc<str>, Flags)| (pattern, Flags { live: false, ..flags });
        self.wanted = durable.into_iter().map(away).collect();
    }

    fn want(&mut self, interest: &Interest) -> Result<(), InterestError> {
        let name = &interest.pattern;
        let Ok(filter) = TopicFilter::new(name.as_str()) else {
            return Err(InterestError::BadFilter(name.chars().take(200).collect()));
        };
        self.unconfirmed.remove(&**name);
        if !self.wanted.contains_key(&**name) && self.wanted.len() >= self.filters_max {
            let Some(old) = self.unconfirmed.pop_first() else {
                return Err(InterestError::TooMany { limit: self.filters_max });
            };
            self.forget(&old);
        }
        self.forget(name);
        let name: Arc<str> = name.as_str().into();
        if filter.share_group().is_some() {
            self.table.insert(&filter.pattern().into(), Want::Share(Arc::clone(&name)));
        } else {
            self.table.insert(&name, Want::Plain(interest.durable));
        }
        self.wanted.insert(name, Flags { durable: interest.durable, live: interest.live });
        Ok(())
    }

    fn forget(&mut self, name: &str) {
        self.unconfirmed.remove(name);
        let Some((name, flags)) = self.wanted.remove_entry(name) else { return };
        let pattern = TopicFilter::pattern_of(&name);
        if pattern.len() < name.len() {
            self.table.remove(pattern, &Want::Share(Arc::clone(&name)));
        } else {
            self.table.remove(pattern, &Want::Plain(flags.durable));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interest(pattern: &str, durable: bool) -> Interest {
        Interest { pattern: pattern.to_owned(), durable, live: false }
    }

    #[test]
    fn peers_hear_only_what_changes_for_them() {
        let mut local = LocalInterest::default();
        assert_eq!(
            local.add("a/#", false),
            Some(PeerFrame::InterestAdd(vec![interest("a/#", false)]))
        );
        assert_eq!(local.add("a/#", false), None);
        assert_eq!(
            local.add("a/#", true),
            Some(PeerFrame::InterestAdd(vec![interest("a/#", true)]))
        );
        assert_eq!(local.remove("a/#", false), None);
        assert_eq!(local.remove("a/#", false), None);
        assert_eq!(local.all(), [interest("a/#", true)]);
        assert_eq!(
            local.remove("a/#", true),
            Some(PeerFrame::InterestRemove(vec!["a/#".to_owned()]))
        );
        assert_eq!(local.remove("a/#", true), None);
        assert!(local.is_empty());
    }

    #[test]
    fn losing_the_last_durable_subscriber_is_told() {
        let mut local = LocalInterest::default();
        local.add("a", true);
        assert_eq!(local.add("a", false), None);
        assert_eq!(
            local.remove("a", true),
            Some(PeerFrame::InterestAdd(vec![interest("a", false)]))
        );
    }

    #[test]
    fn a_peer_ends_up_with_what_we_want_also_in_many_frames() {
        let mut local = LocalInterest::default();
        for n in 0..20_000 {
            local.add(&format!("plant/line-{n}/machine/+/temperature"), n % 3 == 0);
        }
        let frames = local.all_frames();
        assert!(frames.len() > 2, "must be split, is {}", frames.len());
        let mut peer = PeerInterest::default();
        peer.apply(&PeerFrame::InterestAll(vec![interest("old", true)])).expect("valid");
        frames.iter().for_each(|frame| peer.apply(frame).expect("valid"));
        assert_eq!(peer.all(), local.all());
        assert_eq!(peer.wants("plant/line-3/machine/9/temperature"), Some(true));
        assert_eq!(peer.wants("plant/line-4/machine/9/temperature"), Some(false));
        assert_eq!(peer.wants("old"), None);
        let nothing = [PeerFrame::InterestAll(Vec::new()), PeerFrame::InterestAdd(Vec::new())];
        assert_eq!(LocalInterest::default().all_frames(), nothing);
    }

    #[test]
    fn what_a_peer_wants_durably_outlives_a_list_that_breaks_off() {
        let mut peer = PeerInterest::new(3);
        let before = vec![interest("a", true), interest("b", false), interest("c", true)];
        peer.apply(&PeerFrame::InterestAll(before)).expect("valid");
        peer.apply(&PeerFrame::InterestAll(vec![interest("d", false)])).expect("valid");
        assert_eq!(peer.all(), [interest("a", true), interest("c", true), interest("d", false)]);
        // Nothing is kept in place of what is named.
        peer.apply(&PeerFrame::InterestAdd(vec![interest("c", true), interest("e", true)]))
            .expect("there is room");
        assert_eq!(peer.all(), [interest("c", true), interest("d", false), interest("e", true)]);
        let again = vec![interest("e", true)];
        peer.apply(&PeerFrame::InterestAll(again.clone())).expect("valid");
        assert_eq!(peer.wants("c"), Some(true), "the list may go on");
        peer.apply(&PeerFrame::InterestAdd(Vec::new())).expect("the end");
        assert_eq!((peer.all(), peer.wants("c"), peer.wants("e")), (again, None, Some(true)));
    }

    #[test]
    fn a_peer_that_wants_too_much_or_nonsense_is_refused() {
        let mut peer = PeerInterest::new(2);
        let three = vec![interest("a", false), interest("b", true), interest("c", false)];
        assert_eq!(
            peer.apply(&PeerFrame::InterestAdd(three)),
            Err(InterestError::TooMany { limit: 2 })
        );
        assert_eq!(peer.len(), 2);
        peer.apply(&PeerFrame::InterestAdd(vec![interest("a", true)]))
            .expect("a change needs no place");
        for bad in ["a/#/b", "", "$share/g"] {
            assert!(
                peer.apply(&PeerFrame::InterestAdd(vec![interest(bad, true)])).is_err(),
                "{bad:?}"
            );
        }
        peer.apply(&PeerFrame::InterestRemove(vec!["a".into(), "never".into()]))
            .expect("removing is always fine");
        assert_eq!(peer.all(), [interest("b", true)]);
    }

    #[test]
    fn a_group_is_told_with_its_name_and_whether_somebody_is_there() {
        let (mut local, mut peer) = (LocalInterest::default(), PeerInterest::default());
        let mut tell = |frame: Option<PeerFrame>| {
            peer.apply(&frame.expect("a change for peers")).expect("valid");
            let mut found = Vec::new();
            peer.shares("jobs/1", |name, share| found.push((name.to_string(), share)));
            (found, peer.wants("jobs/1"))
        };
        let group = |durable, live| {
            (vec![("$share/g/jobs/+".to_owned(), ShareInterest { durable, live })], None)
        };
        assert_eq!(tell(local.add("$share/g/jobs/+", true)), group(true, false));
        assert_eq!(tell(local.set_live("$share/g/jobs/+", true)), group(true, true));
        assert_eq!(local.set_live("$share/g/jobs/+", true), None, "two of them");
        assert_eq!(local.set_live("$share/g/jobs/+", false), None);
        assert_eq!(tell(local.set_live("$share/g/jobs/+", false)), group(true, false));
        assert_eq!(tell(local.add("jobs/1", false)), (group(true, false).0, Some(false)));
        assert_eq!(tell(local.remove("$share/g/jobs/+", true)), (Vec::new(), Some(false)));
        assert_eq!(local.set_live("$share/g/jobs/+", false), None, "there is no such group");
    }
}
