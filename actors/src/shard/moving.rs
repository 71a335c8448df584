//! Sessions that move: from this node to the one their client has connected to, and here from another.
//!
//! They travel as events of the outbox: a delivery's row here goes in one batch with the event's, so that a crash leaves
//! exactly one of them, and the receiver takes each once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outpost_membership::{SeenMessages, Shares};
use outpost_model::{Hlc, Message, MessageId, NodeId, QoS};

use super::Shard;
use super::pass::Parcel;
use crate::record::{self, DeliveryRecord, PartKind, SessionPart};

/// Deliveries passed on at once. Lower: more batches until a session has moved; higher: a turn takes longer.
pub(super) const MOVED_AT_ONCE: usize = 512;

/// Topic of the parts that carry no message.
const TOPIC: &str = "$session";

/// Sessions on their way, by their places.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) all: BTreeMap<u32, Move>,
    /// Of what waits for the disk, only the last step of a session counts.
    pub(super) steps: u64,
    /// Sessions that came from other nodes since the start.
    pub(super) arrived: u64,
    /// Sessions that went to other nodes.
    pub(super) left: u64,
    /// What those that have come were sent since.
    pub(super) seen: SeenMessages,
    /// Messages of this turn that went on to other nodes as copies: what is written for them has other ids.
    pub(super) copied: BTreeSet<MessageId>,
    /// Something has changed for those from this place on.
    pub(super) due_from: Option<u32>,
}

/// The barriers asked of each node.
pub(super) type Asked = BTreeMap<NodeId, u64>;

/// Of each node the number of its store, and the last of its messages that a session was given where it was: none of those
/// up to there is to come once more when this node is sent it as well.
pub(super) type Given = BTreeMap<NodeId, (u64, u64)>;

#[derive(Debug)]
pub(super) enum Move {
    Leaving(Leaving),
    Arriving(Arriving),
    Arrived(Arrived),
}

/// Deliveries come: nobody may connect yet.
#[derive(Debug)]
pub(super) struct Arriving {
    /// Where it was last, whose word that it is all here counts. Others may have been left something as well.
    pub(super) from: NodeId,
    /// The places that are taken so far.
    pub(super) taken: BTreeSet<u64>,
    /// As in [`Arrived`]: it may subscribe to what another node had of it before it is all here.
    pub(super) stay: u64,
}

#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) to: NodeId,
    /// When it became that node's: it may have lost it in between.
    pub(super) claimed_at: Option<Hlc>,
    pub(super) step: u64,
    /// The first part is in the outbox.
    pub(super) begun: bool,
    /// All there was is in the outbox.
    pub(super) told: bool,
    /// Nodes whose messages for it come here only, and the barriers asked of those that should know better by now. The new
    /// owner is among them: it accepted some before it had the subscriptions; and it stands for this node as well.
    pub(super) left: BTreeMap<NodeId, Option<u64>>,
    /// What it had been given before it was here.
    pub(super) given: Given,
}

/// A session that has come here, or is here and may get more. Its messages may come twice: from where they are published,
/// and from where it was.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// Names this stay: what was seen in an earlier one has left since.
    pub(super) stay: u64,
    /// What there is of it is still to be read.
    pub(super) step: Option<u64>,
    /// It comes back: its deliveries keep the places they have, below this one, as long as nothing stands there.
    pub(super) back: Option<(u64, BTreeSet<u64>)>,
    /// Barriers of nodes that are to know what it wants.
    pub(super) asked: Asked,
    /// What it had been given before; nothing when it was at several nodes, which were given different messages.
    pub(super) given: Given,
}

impl Moves {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Something has changed: acknowledgements, barriers, who knows what. With the end of the turn all are looked at.
    pub(super) fn stir(&mut self) {
        if !self.all.is_empty() {
            self.due_from = Some(0);
        }
    }

    /// More are to be looked at.
    pub(super) fn is_due(&self) -> bool {
        self.due_from.is_some()
    }

    pub(super) fn remove(&mut self, session: u32) {
        self.all.remove(&session);
        if self.all.is_empty() {
            self.seen = SeenMessages::default();
        }
    }

    /// What a session was given before it was here.
    pub(super) fn given(&self, session: u32) -> Given {
        match self.all.get(&session) {
            Some(Move::Leaving(Leaving { given, .. }) | Move::Arrived(Arrived { given, .. })) => {
                given.clone()
            }
            Some(Move::Arriving(_)) | None => Given::new(),
        }
    }

    pub(super) fn next_step(&mut self) -> u64 {
        self.steps += 1;
        self.steps
    }

    pub(super) fn leaving(&mut self, session: u32) -> Option<&mut Leaving> {
        match self.all.get_mut(&session)? {
            Move::Leaving(leaving) => Some(leaving),
            _ => None,
        }
    }

    pub(super) fn arrived_mut(&mut self, session: u32) -> Option<&mut Arrived> {
        match self.all.get_mut(&session)? {
            Move::Arrived(arrived) => Some(arrived),
            _ => None,
        }
    }
}

impl Shard {
    /// Whether a session's deliveries are still to be put in order before its client may have them.
    pub(super) fn is_moving(&self, session: u32) -> bool {
        match self.moves.all.get(&session) {
            Some(Move::Leaving(_) | Move::Arriving(_)) => true,
            Some(Move::Arrived(arrived)) => arrived.step.is_some(),
            None => false,
        }
    }

    /// A message for a session that is on its way. True: that is settled; false: it waits like any other.
    pub(super) fn settles_moving(
        &mut self,
        session: u32,
        parcel: &Parcel<'_>,
        share: Option<&Arc<str>>,
    ) -> bool {
        let source = parcel.message.id;
        let (to, is_told) = match self.moves.all.get_mut(&session) {
            Some(Move::Arrived(Arrived { stay, .. }) | Move::Arriving(Arriving { stay, .. })) => {
                let stay = *stay;
                // What is retained, or comes through a share group as well, may come once more.
                let once = parcel.qos > QoS::AtMostOnce && !parcel.retain && share.is_none();
                if once
                    && (self.was_given(session, source) || !self.moves.seen.insert(stay, source))
                {
                    return true;
                }
                self.take_next_place(session);
                return false;
            }
            Some(Move::Leaving(leaving)) => {
                if parcel.qos == QoS::AtMostOnce {
                    return true; // nobody is here
                }
                let is_own = source.node == self.config.node;
                let via = if is_own { leaving.to } else { source.node };
                if share.is_none() && !leaving.left.contains_key(&via) {
                    return true; // its owner has it from there
                }
                (leaving.to, leaving.told)
            }
            _ => return false,
        };
        if is_told {
            let slot = &self.sessions[session as usize];
            let (client_id, user) = (slot.client_id(), slot.user.clone());
            let record = DeliveryRecord {
                node: source.node.0,
                seq: source.seq,
                qos: parcel.qos as u8,
                retain: parcel.retain,
                released: false,
                subscription_ids: parcel.ids.to_vec(),
                share: share.map(ToString::to_string),
                bytes: None,
                expires_wall_ms: None,
            };
            let kind = PartKind::Delivery { place: 0, record };
            self.send_part(to, &client_id, user.as_deref(), kind, Some(parcel.message));
            if source.node == self.config.node {
                self.moves.copied.insert(source);
            }
        }
        is_told
    }

    /// Whether a session has been given a message at the node it was at before.
    fn was_given(&self, session: u32, source: MessageId) -> bool {
        let Some(Move::Arrived(Arrived { given, .. })) = self.moves.all.get(&session) else {
            return false;
        };
        given.get(&source.node).is_some_and(|(store_id, upto)| {
            let peer = self.peers.get(&source.node);
            source.seq <= *upto && peer.is_some_and(|peer| peer.record.store_id == *store_id)
        })
    }

    /// The next delivery of a session takes a place that others may come with.
    pub(super) fn take_next_place(&mut self, session: u32) {
        let next_place = self.sessions[session as usize].next_place;
        if let Some(Move::Arriving(arriving)) = self.moves.all.get_mut(&session) {
            arriving.taken.insert(next_place);
        }
    }

    /// Looks at sessions that move for which something may have changed, some at a time.
    pub(super) fn go_on_with_moves(&mut self) {
        let Some(from) = self.moves.due_from.take() else { return };
        let mut all = self.moves.all.range(from..).map(|(session, _)| *session);
        let some: Vec<u32> = all.by_ref().take(MOVED_AT_ONCE).collect();
        self.moves.due_from = all.next();
        // One for all of them: nothing is told in between.
        let mut asked = Asked::new();
        for session in some {
            match self.moves.all.get(&session) {
                Some(Move::Leaving(_)) => self.go_on_leaving(session, &mut asked),
                Some(Move::Arrived(_)) => self.tell_arrival(session, &mut asked),
                _ => {}
            }
        }
    }

    pub(super) fn ask_once(&mut self, node: NodeId, asked: &mut Asked) -> u64 {
        *asked.entry(node).or_insert_with(|| self.ask_barrier(node))
    }

    /// Sends a part of a session to its new owner.
    pub(super) fn send_part(
        &mut self,
        to: NodeId,
        client_id: &str,
        user: Option<&str>,
        kind: PartKind,
        message: Option<&Message>,
    ) {
        let (client_id, user) = (client_id.to_owned(), user.map(Into::into));
        let node = self.config.node.0;
        let part = SessionPart { client_id, user, node, kind };
        self.send_whole_part(to, &part, message);
    }

    pub(super) fn send_whole_part(
        &mut self,
        to: NodeId,
        part: &SessionPart,
        message: Option<&Message>,
    ) {
        let id = self.next_message_id();
        let message = match message {
            Some(message) => Message { id, ..message.clone() },
            None => Message {
                id,
                topic: TOPIC.into(),
                payload: bytes::Bytes::new(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: None,
                accepted_wall_ms: self.now.wall_ms,
                expiry_s: None,
            },
        };
        let shares = Shares { session: Some(record::encode(part)), ..Shares::default() };
        self.enqueue_peer(to, true, Some(Arc::new(shares)), false, Arc::new(message));
    }
}
