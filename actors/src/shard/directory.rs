//! The directory: which node has the session of a client id. A client may come back at any node, and is the same client
//! there. See [`outpost_membership::takeover`].

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use outpost_membership::{Arrival, Residence, Verdict, takeover};
use outpost_model::{Hlc, NodeId};
use outpost_mqtt::packet::ReasonCode;

use super::peers::Peer;
use super::{LogLevel, Shard};
use crate::ports::{BRIDGE_CLIENTS, Identity};
use crate::record::{self, ArrivalRecord, PartKind, ResidenceRecord};

/// Sessions compared with the directory in one go. More: a turn takes longer; fewer: it takes longer after a first link.
const REVIEWED_AT_ONCE: usize = 512;

/// Before the client id in the key of its owner's entry.
const SESSION: &str = "session/";

/// Before the owner and the client id in the key of an [`Arrival`].
const ARRIVAL: &str = "arrival/";

fn session_key(client_id: &str) -> String {
    format!("{SESSION}{client_id}")
}

fn arrival_key(owner: NodeId, client_id: &str) -> String {
    format!("{ARRIVAL}{}/{client_id}", owner.0)
}

fn encode(residence: &Residence) -> Bytes {
    let Residence { user, discards, from } = residence.clone();
    let (moved, from) = (!from.is_empty(), Some(numbers(&from)));
    record::encode(&ResidenceRecord { user, discards, moved, from })
}

fn numbers(nodes: &BTreeSet<NodeId>) -> Vec<u64> {
    nodes.iter().map(|node| node.0).collect()
}

fn nodes(numbers: Vec<u64>) -> BTreeSet<NodeId> {
    numbers.into_iter().map(NodeId).collect()
}

impl Shard {
    /// Who has the session of a client id, as far as it is known here.
    pub(super) fn residence(&self, client_id: &str) -> Option<(NodeId, Residence)> {
        if self.state.map.is_empty() {
            return None;
        }
        let entry = self.state.map.entry(&*session_key(client_id))?;
        let record: ResidenceRecord = record::decode("residence", entry.value.as_ref()?).ok()?;
        let ResidenceRecord { user, discards, from, .. } = record;
        let from = nodes(from.unwrap_or_default());
        Some((entry.stamp.node, Residence { user, discards, from }))
    }

    /// When it became its owner's.
    pub(super) fn claimed_at(&self, client_id: &str) -> Option<Hlc> {
        self.state.map.entry(&*session_key(client_id)).map(|entry| entry.stamp.hlc)
    }

    /// How far a session has come to its owner, as that has said.
    pub(super) fn arrival(&self, owner: NodeId, client_id: &str) -> Option<Arrival> {
        let row = self.state.map.get(&*arrival_key(owner, client_id))?;
        let record: ArrivalRecord = record::decode("arrival", row).ok()?;
        let ArrivalRecord { came_from, known_by, gone } = record;
        let gone = nodes(gone.unwrap_or_default());
        Some(Arrival { came_from: nodes(came_from), known_by: nodes(known_by), gone })
    }

    /// Says how far a session has come here.
    pub(super) fn write_arrival(&mut self, client_id: &str, arrival: &Arrival) {
        let Arrival { came_from, known_by, gone } = arrival;
        let (came_from, known_by) = (numbers(came_from), numbers(known_by));
        let gone = Some(numbers(gone));
        let row = record::encode(&ArrivalRecord { came_from, known_by, gone });
        self.write_state(&arrival_key(self.config.node, client_id), Some(row));
    }

    /// Its session is not here any more.
    pub(super) fn remove_arrival(&mut self, client_id: &str) {
        let key = arrival_key(self.config.node, client_id);
        if self.state.map.get(&*key).is_some() {
            self.write_state(&key, None);
        }
    }

    /// Whether a session is this node's and something may still come for it from where it was.
    pub(super) fn expects_more(&self, client_id: &str) -> bool {
        let me = self.config.node;
        self.residence(client_id).is_some_and(|(owner, residence)| {
            let arrival = self.arrival(me, client_id);
            owner == me && !takeover::still_expected(&residence, arrival.as_ref()).is_empty()
        })
    }

    /// Writes what this node has of a client id.
    pub(super) fn write_residence(&mut self, client_id: &str, residence: &Residence) -> bool {
        self.write_state(&session_key(client_id), Some(encode(residence)))
    }

    /// Whether a client id is another user's, at another node.
    pub(super) fn is_foreign(&self, who: &Identity) -> bool {
        let theirs = self.residence(&who.client_id);
        theirs.is_some_and(|(owner, residence)| {
            owner != self.config.node && residence.user.as_deref() != who.user.as_deref()
        })
    }

    /// A client has proved who it is: its session is here from now on. The nodes that are linked, and may have something of
    /// it that is waited for.
    pub(super) fn claim(&mut self, who: &Identity, clean: bool, stays: bool) -> BTreeSet<NodeId> {
        let (me, client_id) = (self.config.node, &who.client_id);
        let nobody = BTreeSet::new();
        if self.peers.is_empty() || client_id.starts_with(BRIDGE_CLIENTS) {
            return nobody;
        }
        let before = self.residence(client_id);
        if clean && !self.give_up_waiting(client_id).is_empty() && !stays {
            self.leave_directory(client_id);
            return nobody;
        }
        let from = match &before {
            Some((owner, _)) if *owner == me && !clean => return self.waited_for(client_id),
            None if !stays => return nobody,
            Some((owner, residence)) if !clean => {
                let arrival = self.arrival(*owner, client_id);
                takeover::sources(me, (*owner, residence), arrival.as_ref())
            }
            _ => BTreeSet::new(),
        };
        let user = who.user.as_deref().map(ToOwned::to_owned);
        let residence = Residence { user, discards: clean, from };
        if !self.write_residence(client_id, &residence) {
            return nobody; // no room: it is served as without a directory
        }
        let answers = |peer: &Peer| peer.up && peer.knows_state;
        let from = residence.from.into_iter();
        from.filter(|node| self.peers.get(node).is_some_and(answers)).collect()
    }

    /// A session has ended here.
    pub(super) fn leave_directory(&mut self, client_id: &str) {
        if self.state.map.is_empty() {
            return; // a node that is alone has none
        }
        if self.residence(client_id).is_some_and(|(owner, _)| owner == self.config.node) {
            self.write_state(&session_key(client_id), None);
        }
        self.remove_arrival(client_id);
    }

    /// An entry was written by a peer; `before`: who had written it last.
    pub(super) fn state_changed(&mut self, key: &str, before: Option<NodeId>) {
        if let Some(key) = key.strip_prefix(ARRIVAL) {
            self.moves.stir();
            return self.check_arrival(key);
        }
        let Some(client_id) = key.strip_prefix(SESSION) else { return };
        let me = self.config.node;
        let elsewhere = self.residence(client_id).filter(|(owner, _)| *owner != me);
        let Some((owner, residence)) = elsewhere else { return self.review(client_id) };
        let waited_for = self.give_up_waiting(client_id);
        self.remove_arrival(client_id);
        if self.session_of(client_id).is_some() {
            return self.review(client_id);
        }
        if !residence.discards && (residence.from.contains(&me) || before == Some(me)) {
            self.answer_absent(client_id, owner, waited_for);
        }
    }

    /// An owner has said how far a session is: one that expects something of this node which has nothing is told so.
    fn check_arrival(&mut self, key: &str) {
        let Some((owner, client_id)) = key.split_once('/') else { return };
        let Ok(owner) = owner.parse().map(NodeId) else { return };
        let arrival = self.arrival(owner, client_id).unwrap_or_default();
        if owner == self.config.node || !arrival.came_from.contains(&self.config.node) {
            return;
        }
        let session = self.session_of(client_id);
        let leaving = session.and_then(|session| self.moves.leaving(session));
        if leaving.is_none_or(|leaving| leaving.to != owner) {
            self.send_part(owner, client_id, None, PartKind::Gone, None);
        }
    }

    /// At start: what was to be answered may have been forgotten with the process.
    pub(super) fn answer_owners(&mut self) {
        let me = self.config.node;
        let sessions = (Bound::Included(SESSION), Bound::Unbounded);
        let all = self.state.map.range::<str, _>(sessions);
        let waits = |client_id: &str| {
            let (owner, residence) = self.residence(client_id)?;
            let arrival = self.arrival(owner, client_id);
            let is_expected = takeover::still_expected(&residence, arrival.as_ref()).contains(&me);
            let is_here = residence.discards || self.session_of(client_id).is_some();
            (is_expected && !is_here).then(|| (owner, client_id.to_owned()))
        };
        let client_ids = all.map_while(|(key, _)| key.strip_prefix(SESSION));
        for (owner, client_id) in client_ids.filter_map(waits).collect::<Vec<_>>() {
            self.send_part(owner, &client_id, None, PartKind::Absent, None);
        }
    }

    /// Compares a session with the directory, and does what follows.
    pub(super) fn review(&mut self, client_id: &str) {
        let Some(session) = self.session_of(client_id) else { return };
        if client_id.starts_with(BRIDGE_CLIENTS) || self.peers.is_empty() {
            return;
        }
        let slot = &self.sessions[session as usize];
        let (user, is_durable, is_here) = (slot.user.clone(), slot.durable, slot.conn.is_some());
        let entry = self.residence(client_id);
        let entry = entry.as_ref().map(|(owner, residence)| (*owner, residence));
        match takeover::verdict(self.config.node, user.as_deref(), entry) {
            Verdict::Stay if self.expects_more(client_id) => self.expect_more(session),
            Verdict::Stay => {}
            Verdict::Claim if self.is_leaving(session) => self.end_session(session),
            Verdict::Claim if is_durable => {
                // Of two nodes that meet for the first time, the one where the client is has the session.
                let hlc = if is_here { self.clock.tick(self.now) } else { Hlc(1) };
                let user = user.as_deref().map(ToOwned::to_owned);
                let residence = Residence { user, ..Residence::default() };
                self.write_state_at(hlc, &session_key(client_id), Some(encode(&residence)));
            }
            Verdict::Leave(to) => self.leave(session, to),
            Verdict::End(owner) => {
                let text = "the client has begun anew at another node";
                self.log(
                    LogLevel::Info,
                    format!("client {client_id:?} ends here: {text} ({owner})"),
                );
                self.close_session(session, text);
                if let Some(session) = self.session_of(client_id) {
                    self.end_session(session);
                }
            }
            Verdict::Claim | Verdict::Foreign(_) => {}
        }
    }

    /// The connection of a session, if it has one, is another node's from now on.
    pub(super) fn close_session(&mut self, session: u32, why: &'static str) {
        if let Some(conn) = self.sessions.get(session as usize).and_then(|slot| slot.conn) {
            self.close(conn, ReasonCode::SessionTakenOver, why);
            self.run_cells();
        }
    }

    /// All sessions are to be compared with the directory, some at a time.
    pub(super) fn review_all(&mut self) {
        self.directory.review_from = (!self.sessions.is_empty()).then_some(0);
    }

    pub(super) fn review_due_ms(&self) -> Option<u64> {
        let is_due = self.directory.review_from.is_some() || self.moves.is_due();
        is_due.then_some(self.now.mono_ms)
    }

    pub(super) fn review_timeout(&mut self) {
        let Some(from) = self.directory.review_from else { return };
        let upto = (from + REVIEWED_AT_ONCE).min(self.sessions.capacity());
        for place in from..upto {
            if let Some(slot) = self.sessions.get(place) {
                let client_id = slot.client_id();
                self.review(&client_id);
                self.run_cells();
            }
        }
        self.directory.review_from = (upto < self.sessions.capacity()).then_some(upto);
    }

    /// A node is gone for good: what it had is nobody's any more.
    pub(super) fn forget_residences(&mut self, node: NodeId) {
        let of_node = format!("{ARRIVAL}{}/", node.0);
        let is_theirs = |key: &str, writer| {
            key.starts_with(&*of_node) || (key.starts_with(SESSION) && writer == node)
        };
        let all = self.state.map.range::<str, _>(..).filter(|(_, entry)| entry.value.is_some());
        let theirs = all.filter(|(key, entry)| is_theirs(key, entry.stamp.node));
        let theirs: Vec<Arc<str>> = theirs.map(|(key, _)| Arc::clone(key)).collect();
        for key in theirs {
            self.write_state(&key, None);
        }
        self.stay_after_all(node);
        self.expect_nothing_of(node);
        self.moves.stir();
        self.review_all();
    }
}
