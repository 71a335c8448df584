//! Share groups with members on several nodes: each message goes to one node, and there to one member.
//!
//! ```text
//!  PUBLISH ─▶ nodes with members ─choose─▶ here: a member
//!                                     └──▶ a peer, told which groups it serves ─▶ a member
//!                                                └─ nobody there any more ─▶ another node, or back to whoever sent it, who
//!                                                   may know of others; at most SHARE_HOPS_MAX times
//! ```
//! First come nodes with a member that is connected, then those where one that is away waits for the message, then
//! those that cannot be reached now. Among equals the message's number decides, so that each gets its part.

use std::collections::BTreeMap;
use std::sync::Arc;

use outpost_membership::{EVENT_SHARES_MAX, ShareInterest, Shares};
use outpost_model::{Message, NodeId, QoS};

use super::Shard;
use super::channel::Recipient;
use super::peers::{PEER_WINDOW_BYTES, Peer};
use crate::cell::CellId;
use crate::ledger::Drop;

/// How often a message may be passed on because the node chosen for a share group has no member any more. Lower: it is
/// dropped although there is a member somewhere; higher: groups whose members come and go keep messages travelling.
pub const SHARE_HOPS_MAX: u8 = 3;

/// Messages in an outbox beyond `limits.outbox_messages_max` (and as much beyond its bytes as may be under way on a link) that a
/// peer sent and that go on to another. Fewer: a circle of nodes
/// that pass messages on makes smaller steps; more: memory and disk beyond the limit.
pub const PASSING_MAX: u64 = 1_024;

/// A share group, wherever its members are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shared {
    /// Its filter as members write it.
    pub(super) name: Arc<str>,
    /// The group of this node, when it has members here.
    pub(super) here: Option<u32>,
    away: Vec<(NodeId, ShareInterest)>,
}

/// Where a message for a share group goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Here(u32),
    Peer(NodeId),
}

impl Shard {
    /// Joins what peers want through share groups to the receivers found here.
    pub(super) fn join_shares(&self, topic: &str, found: &mut Vec<Recipient>) {
        let mut away: BTreeMap<Arc<str>, Vec<(NodeId, ShareInterest)>> = BTreeMap::new();
        for (peer, state) in &self.peers {
            state.interest.shares(topic, |name, share| {
                away.entry(Arc::clone(name)).or_default().push((*peer, share));
            });
        }
        if away.is_empty() {
            return;
        }
        for recipient in found.iter_mut() {
            if let Recipient::Group(group) = *recipient
                && let Some((name, away)) = away.remove_entry(&*self.group_name(group))
            {
                *recipient = Recipient::Shared(Shared { name, here: Some(group), away });
            }
        }
        let elsewhere = away.into_iter().map(|(name, away)| Shared { name, here: None, away });
        found.extend(elsewhere.map(Recipient::Shared));
    }

    /// A share group by its name, as far as it is known here.
    pub(super) fn shared(&self, name: Arc<str>) -> Shared {
        let of = |(id, peer): (&NodeId, &Peer)| Some((*id, peer.interest.share(&name)?));
        let away = self.peers.iter().filter_map(of).collect();
        Shared { here: self.group_of(&name), name, away }
    }

    /// Receivers on this node.
    pub(super) fn here(all: &Arc<[Recipient]>) -> Arc<[Recipient]> {
        let is_away = |r: &Recipient| matches!(r, Recipient::Peer { .. } | Recipient::Shared(_));
        if !all.iter().any(is_away) {
            return Arc::clone(all);
        }
        let here = |recipient: &Recipient| match recipient {
            Recipient::Peer { .. } => None,
            Recipient::Shared(shared) => shared.here.map(Recipient::Group),
            other => Some(other.clone()),
        };
        all.iter().filter_map(here).collect()
    }

    /// Puts the place chosen for this message where share groups of several nodes stand.
    pub(super) fn choose_shares(
        &mut self,
        recipients: Arc<[Recipient]>,
        message: &Arc<Message>,
    ) -> Arc<[Recipient]> {
        if !recipients.iter().any(|r| matches!(r, Recipient::Shared(_))) {
            return recipients;
        }
        let mut chosen = Vec::with_capacity(recipients.len());
        let mut served: BTreeMap<NodeId, Vec<String>> = BTreeMap::new();
        for recipient in recipients.iter() {
            let Recipient::Shared(shared) = recipient else {
                chosen.push(recipient.clone());
                continue;
            };
            match self.choose(shared, message.qos, message.id.seq) {
                Some(Place::Here(group)) => chosen.push(Recipient::Group(group)),
                Some(Place::Peer(peer)) => {
                    served.entry(peer).or_default().push(shared.name.to_string());
                }
                None => self.ledger.drop_unqueued(Drop::Offline, 1),
            }
        }
        for (peer, mut groups) in served {
            let more = groups.split_off(groups.len().min(EVENT_SHARES_MAX));
            for groups in more.chunks(EVENT_SHARES_MAX) {
                self.pass_on(peer, groups.to_vec(), 1, message);
            }
            name_groups(&mut chosen, peer, Arc::new(Shares { groups, ..Shares::default() }));
        }
        chosen.into()
    }

    /// Where a message for a group goes: a node where there is room, if possible.
    pub(super) fn choose(&self, shared: &Shared, qos: QoS, number: u64) -> Option<Place> {
        let mut places = self.places(shared, qos, true);
        if places.is_empty() {
            places = self.places(shared, qos, false);
        }
        let count = places.len() as u64;
        (count > 0).then(|| places[(spread(number) % count) as usize])
    }

    /// Whether all who could take a QoS 1 or 2 message are full, on all nodes.
    pub(super) fn is_shared_full(&self, shared: &Shared) -> bool {
        self.places(shared, QoS::AtLeastOnce, true).is_empty()
            && !self.places(shared, QoS::AtLeastOnce, false).is_empty()
    }

    /// The same for one that a peer sent and that goes on to another: there is a little more room for these. In a circle of
    /// full outboxes each waits for the next one; what goes on leaves one as it enters another, so with this not all of them
    /// can be full.
    pub(super) fn is_passing_full(&self, shared: &Shared, message: &Message) -> bool {
        self.is_shared_full(shared)
            && match self.choose(shared, message.qos, message.id.seq) {
                Some(Place::Peer(peer)) => !self.has_passing_room(peer),
                _ => true,
            }
    }

    /// Whether a peer may be owed one more that goes on to it.
    pub(super) fn has_passing_room(&self, peer: NodeId) -> bool {
        let messages_max = self.config.outbox_messages_max.saturating_add(PASSING_MAX);
        let bytes_max = self.config.outbox_bytes_max.saturating_add(PEER_WINDOW_BYTES as u64);
        self.peers
            .get(&peer)
            .is_some_and(|p| p.quota.messages() < messages_max && p.quota.bytes() < bytes_max)
    }

    /// The best places there are, in order of the nodes.
    fn places(&self, shared: &Shared, qos: QoS, room: bool) -> Vec<Place> {
        let keeps = qos > QoS::AtMostOnce;
        let peers = |wanted: &dyn Fn(bool, ShareInterest) -> bool| {
            let fits = |(id, share): &(NodeId, ShareInterest)| {
                let peer = self.peers.get(id)?;
                let fits = wanted(peer.up, *share) && !(room && keeps && peer.quota.is_full());
                fits.then_some((*id, Place::Peer(*id)))
            };
            shared.away.iter().filter_map(fits).collect::<BTreeMap<_, _>>()
        };
        let here = |connected: bool| {
            let group = shared.here?;
            let fits = self.has_member(group, qos, connected, room && keeps);
            fits.then_some((self.config.node, Place::Here(group)))
        };
        let mut found = peers(&|up, share| up && share.live);
        found.extend(here(true));
        if found.is_empty() && keeps {
            found = peers(&|up, share| up && share.durable);
            found.extend(here(false));
        }
        if found.is_empty() && keeps {
            found = peers(&|_, share| share.durable);
        }
        found.into_values().collect()
    }

    /// Sends a copy of a message to a peer, for share groups only.
    pub(super) fn pass_on(
        &mut self,
        peer: NodeId,
        groups: Vec<String>,
        hops: u8,
        message: &Message,
    ) {
        // A number of this node: its peers take each number of it once.
        let copy = Arc::new(Message { id: self.next_message_id(), ..message.clone() });
        self.enqueue_peer(
            peer,
            true,
            Some(Arc::new(Shares { groups, hops, session: None })),
            false,
            copy,
        );
    }

    /// Who receives an event of a peer: the ordinary receivers here, never another peer, and the groups it names; and the
    /// groups among them that have nobody here any more.
    pub(super) fn receivers_of_event(
        &mut self,
        message: &Message,
        shares: Option<&Shares>,
    ) -> (CellId, Arc<[Recipient]>, Vec<Shared>) {
        let (cell, all) = self.channel(&message.topic);
        let is_plain = |r: &Recipient| matches!(r, Recipient::Session { .. } | Recipient::Local(_));
        if shares.is_none() && all.iter().all(is_plain) {
            return (cell, all, Vec::new());
        }
        let plain = all.iter().filter(|r| is_plain(r) && shares.is_none_or(|s| s.hops == 0));
        let mut recipients: Vec<Recipient> = plain.cloned().collect();
        let mut away = Vec::new();
        for name in shares.iter().flat_map(|shares| &shares.groups) {
            let shared = self.shared(name.as_str().into());
            let here =
                shared.here.filter(|group| self.has_member(*group, message.qos, false, false));
            match here {
                Some(group) => recipients.push(Recipient::Group(group)),
                None => away.push(shared),
            }
        }
        (cell, recipients.into(), away)
    }

    /// An event of a peer; `numbered` when its place in what the peer sends is written down.
    pub(super) fn route_from_peer(
        &mut self,
        from: NodeId,
        message: &Arc<Message>,
        shares: Option<&Shares>,
        numbered: bool,
    ) {
        if self.traces.is_on() {
            self.trace_accepted(None, message);
        }
        let (cell, recipients, away) = self.receivers_of_event(message, shares);
        self.ledger.accept(!recipients.is_empty() || !away.is_empty(), false, false);
        let hops = shares.map_or(0, |shares| shares.hops) + 1;
        for shared in away {
            let to = match self.choose(&shared, message.qos, message.id.seq) {
                Some(Place::Peer(peer)) => Some(peer),
                // Nobody that is known here; whoever sent it may know nodes that this one has not met.
                None if message.qos > QoS::AtMostOnce => Some(from),
                _ => None,
            };
            match to.filter(|_| hops <= SHARE_HOPS_MAX) {
                Some(peer) => self.pass_on(peer, vec![shared.name.to_string()], hops, message),
                None => self.ledger.drop_unqueued(Drop::Offline, 1),
            }
        }
        if !recipients.is_empty() {
            let waits = numbered && message.qos == QoS::ExactlyOnce;
            self.publish_on(cell, message, None, waits, &recipients);
        }
    }
}

/// The event that goes to a peer anyway names the groups as well; else there is one for them.
fn name_groups(chosen: &mut Vec<Recipient>, to: NodeId, named: Arc<Shares>) {
    for recipient in chosen.iter_mut() {
        if let Recipient::Peer { peer, shares, .. } = recipient
            && *peer == to
        {
            *shares = Some(named);
            return;
        }
    }
    chosen.push(Recipient::Peer { peer: to, durable: true, shares: Some(named) });
}

/// Numbers that grow by a pattern must not choose by it (the finalizer of SplitMix64).
fn spread(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}
