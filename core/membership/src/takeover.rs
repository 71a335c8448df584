//! Whose session a client id is: what the nodes' directory says of it, and what a node does about that.
//!
//! ```text
//!   the client connects to B ─▶ B writes "c is here" ─▶ the feed ─▶ A has a session of c
//!      A: 0x8E to its client ─▶ queue, then subscriptions, one after the other through the outbox ─▶ B
//!      B: subscribes for c ─▶ tells who knows of that ─▶ A takes in for c what those who do not know send, and passes it on
//!      everybody knows ─▶ A forgets c
//! ```
//! The directory is an [`LwwMap`](outpost_model::LwwMap): apart, two nodes may both have a session of one client id; after
//! the cut the later CONNECT counts, the other node's messages go there, and none is lost.

use std::collections::{BTreeSet, VecDeque};

use outpost_model::{MessageId, NodeId};

/// Messages, of all sessions that come from other nodes, that are remembered by their ids: those nodes may send them too.
/// Fewer: what was published meanwhile comes twice to more of them; more: memory for each.
pub const TAKEOVER_SEEN_MAX: usize = 65_536;

/// What the directory says of a client id. Its owner is the node that wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Residence {
    /// Whose session it is, when the client proved a name.
    pub user: Option<String>,
    /// The client wants nothing of what it had elsewhere (Clean Start).
    pub discards: bool,
    /// Nodes that may have had something of it when it became its owner's: each passes it on, or says that it has none.
    pub from: BTreeSet<NodeId>,
}

/// How far a session has come to its owner; an entry of its own, for writing this must not look like another CONNECT.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrival {
    /// Nodes that have told all they had of it, and still pass on what is sent to them.
    pub came_from: BTreeSet<NodeId>,
    /// Nodes that know what the session wants, with all that those have told; its owner among them.
    pub known_by: BTreeSet<NodeId>,
    /// Nodes that have nothing of it, or nothing any more.
    pub gone: BTreeSet<NodeId>,
}

/// Who may have something of a session that becomes `me`'s: its owner until now, and those from which it had not all come
/// to that one.
pub fn sources(
    me: NodeId,
    (owner, residence): (NodeId, &Residence),
    arrival: Option<&Arrival>,
) -> BTreeSet<NodeId> {
    let mut sources = still_expected(residence, arrival);
    sources.insert(owner);
    sources.remove(&me);
    sources
}

/// Nodes that may still pass on something of a session to its owner.
pub fn still_expected(residence: &Residence, arrival: Option<&Arrival>) -> BTreeSet<NodeId> {
    let Some(arrival) = arrival else { return residence.from.clone() };
    let silent = residence.from.difference(&arrival.gone);
    silent.chain(&arrival.came_from).copied().collect()
}

/// What a node that has a session does when the directory says this of its client id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it is the owner.
    Stay,
    /// Say that it is here: nobody else is said to have it.
    Claim,
    /// Pass it on to its new owner.
    Leave(NodeId),
    /// End it: its client began anew at this node.
    End(NodeId),
    /// Nothing: the client id belongs to another user at that node. Theirs are two sessions.
    Foreign(NodeId),
}

/// See [`Verdict`]. `entry` is the owner and what it wrote; nothing when nobody has the client id, or nobody any more.
pub fn verdict(me: NodeId, user: Option<&str>, entry: Option<(NodeId, &Residence)>) -> Verdict {
    match entry {
        None => Verdict::Claim,
        Some((owner, _)) if owner == me => Verdict::Stay,
        Some((owner, residence)) if residence.user.as_deref() != user => Verdict::Foreign(owner),
        Some((owner, Residence { discards: true, .. })) => Verdict::End(owner),
        Some((owner, _)) => Verdict::Leave(owner),
    }
}

/// What sessions have got lately, by their numbers; the oldest is forgotten first.
#[derive(Debug, Default)]
pub struct SeenMessages {
    ids: BTreeSet<(u64, MessageId)>,
    order: VecDeque<(u64, MessageId)>,
}

impl SeenMessages {
    /// Notes that a session has got a message. False: it was noted before.
    pub fn insert(&mut self, session: u64, id: MessageId) -> bool {
        if !self.ids.insert((session, id)) {
            return false;
        }
        if self.order.len() >= TAKEOVER_SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.order.push_back((session, id));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);
    const THIRD: NodeId = NodeId(3);

    fn of(user: Option<&str>, discards: bool) -> Residence {
        Residence { user: user.map(Into::into), discards, ..Residence::default() }
    }

    #[test]
    fn the_owner_stays_and_everybody_else_makes_way() {
        let plain = of(None, false);
        assert_eq!(verdict(ME, None, None), Verdict::Claim);
        assert_eq!(verdict(ME, None, Some((ME, &plain))), Verdict::Stay);
        assert_eq!(verdict(ME, None, Some((OTHER, &plain))), Verdict::Leave(OTHER));
        assert_eq!(verdict(ME, None, Some((OTHER, &of(None, true)))), Verdict::End(OTHER));
    }

    #[test]
    fn nobody_gets_the_session_of_another_user() {
        for (mine, theirs) in [(None, Some("b")), (Some("a"), None), (Some("a"), Some("b"))] {
            for discards in [false, true] {
                let residence = of(theirs, discards);
                assert_eq!(
                    verdict(ME, mine, Some((OTHER, &residence))),
                    Verdict::Foreign(OTHER),
                    "{mine:?} {theirs:?}"
                );
            }
        }
        let same = of(Some("a"), false);
        assert_eq!(verdict(ME, Some("a"), Some((OTHER, &same))), Verdict::Leave(OTHER));
    }

    #[test]
    fn it_is_expected_from_everybody_who_had_it_until_each_has_none_any_more() {
        let theirs = Residence { from: [ME, THIRD].into(), ..Residence::default() };
        assert_eq!(sources(ME, (OTHER, &theirs), None), [OTHER, THIRD].into());
        let mut arrival = Arrival { gone: [THIRD].into(), ..Arrival::default() };
        assert_eq!(sources(ME, (OTHER, &theirs), Some(&arrival)), [OTHER].into());
        assert_eq!(still_expected(&theirs, Some(&arrival)), [ME].into());
        // It had none, and has got something since.
        arrival.came_from.insert(THIRD);
        assert_eq!(still_expected(&theirs, Some(&arrival)), [ME, THIRD].into());
        (arrival.came_from, arrival.gone) = ([].into(), [ME, THIRD].into());
        assert!(still_expected(&theirs, Some(&arrival)).is_empty());
    }

    #[test]
    fn what_was_seen_is_known_again_until_too_much_came_after_it() {
        let id = |seq| MessageId { node: OTHER, seq };
        let mut seen = SeenMessages::default();
        assert!(seen.insert(1, id(0)) && !seen.insert(1, id(0)) && seen.insert(2, id(0)));
        (1..TAKEOVER_SEEN_MAX as u64).for_each(|seq| assert!(seen.insert(1, id(seq))));
        assert!(!seen.insert(2, id(0)) && !seen.insert(1, id(1)) && seen.insert(1, id(0)));
        assert_eq!(seen.ids.len(), TAKEOVER_SEEN_MAX);
    }
}
