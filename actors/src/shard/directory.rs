//! The directory: which node has the session of a client id. A client may come back at any node, and is the same client
//! there. See [`outpost_membership::takeover`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use outpost_membership::{Arrival, Residence, Verdict, takeover};
use outpost_model::{Hlc, NodeId};
use outpost_mqtt::packet::{Connect, ReasonCode};

use super::connection::Phase;
use super::peers::Peer;
use super::{ConnId, LogLevel, Shard};
use crate::ports::{BRIDGE_CLIENTS, Identity};
use crate::record::{self, ArrivalRecord, PartKind, ResidenceRecord};

/// A CONNECT waits so long for what the client has at another node that is linked. Shorter: its queue comes after what is
/// published meanwhile; longer: a client waits for a node that is too busy to answer.
pub const TAKEOVER_WAIT_MS_MAX: u64 = 5_000;

/// Sessions compared with the directory in one go. More: a turn takes longer; fewer: it takes longer after a first link.
const REVIEWED_AT_ONCE: usize = 512;

/// Before the client id in the key of its owner's entry.
const SESSION: &str = "session/";

/// Before the owner and the client id in the key of an [`Arrival`].
const ARRIVAL: &str = "arrival/";

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// CONNECTs that wait for a session, by client id.
    waiting: BTreeMap<ByteString, Waiting>,
    /// Sessions from this place of the table on are still to be compared.
    review_from: Option<usize>,
}

#[derive(Debug)]
struct Waiting {
    conn: ConnId,
    user: Option<Arc<str>>,
    /// Where the session is; nothing when it is on the disk here.
    from: Option<NodeId>,
}

fn session_key(client_id: &str) -> String {
    format!("{SESSION}{client_id}")
}

fn arrival_key(owner: NodeId, client_id: &str) -> String {
    format!("{ARRIVAL}{}/{client_id}", owner.0)
}

fn encode(residence: &Residence) -> Bytes {
    let Residence { user, discards, moved } = residence.clone();
    record::encode(&ResidenceRecord { user, discards, moved })
}

impl Shard {
    /// Who has the session of a client id, as far as it is known here.
    pub(super) fn residence(&self, client_id: &str) -> Option<(NodeId, Residence)> {
        if self.state.map.is_empty() {
            return None;
        }
        let entry = self.state.map.entry(&*session_key(client_id))?;
        let record: ResidenceRecord = record::decode("residence", entry.value.as_ref()?).ok()?;
        let ResidenceRecord { user, discards, moved } = record;
        Some((entry.stamp.node, Residence { user, discards, moved }))
    }

    /// When it became its owner's.
    pub(super) fn claimed_at(&self, client_id: &str) -> Option<Hlc> {
        self.state.map.entry(&*session_key(client_id)).map(|entry| entry.stamp.hlc)
    }

    /// How far a session has come to its owner, as that has said.
    pub(super) fn arrival(&self, owner: NodeId, client_id: &str) -> Option<Arrival> {
        let row = self.state.map.get(&*arrival_key(owner, client_id))?;
        let record: ArrivalRecord = record::decode("arrival", row).ok()?;
        let nodes = |all: Vec<u64>| all.into_iter().map(NodeId).collect();
        Some(Arrival { came_from: nodes(record.came_from), known_by: nodes(record.known_by) })
    }

    /// Says how far a session has come here.
    pub(super) fn write_arrival(&mut self, client_id: &str, arrival: &Arrival) {
        let nodes = |all: &BTreeSet<NodeId>| all.iter().map(|node| node.0).collect();
        let (came_from, known_by) = (nodes(&arrival.came_from), nodes(&arrival.known_by));
        let row = record::encode(&ArrivalRecord { came_from, known_by });
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
        let Some((_, residence)) = self.residence(client_id).filter(|(owner, _)| *owner == me)
        else {
            return false;
        };
        self.arrival(me, client_id).map_or(residence.moved, |arrival| !arrival.came_from.is_empty())
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

    /// A client has proved who it is: its session is here from now on. The node it is to be waited for, when its session is
    /// at one that is linked.
    pub(super) fn claim(&mut self, who: &Identity, clean: bool, stays: bool) -> Option<NodeId> {
        if self.peers.is_empty() || who.client_id.starts_with(BRIDGE_CLIENTS) {
            return None;
        }
        let before = self.residence(&who.client_id).map(|(owner, _)| owner);
        if clean && self.give_up_waiting(&who.client_id) && !stays {
            self.leave_directory(&who.client_id);
            return None;
        }
        if before == Some(self.config.node) && !clean {
            // An earlier CONNECT may be waiting for it.
            return self.directory.waiting.get(&who.client_id).and_then(|waiting| waiting.from);
        }
        if before.is_none() && !stays {
            return None;
        }
        let user = who.user.as_deref().map(ToOwned::to_owned);
        let residence = Residence { user, discards: clean, moved: before.is_some() && !clean };
        if !self.write_residence(&who.client_id, &residence) {
            return None; // no room: it is served as without a directory
        }
        let answers = |peer: &Peer| peer.up && peer.knows_state;
        before.filter(|owner| !clean && self.peers.get(owner).is_some_and(answers))
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
        if key.starts_with(ARRIVAL) {
            return self.moves.stir();
        }
        let Some(client_id) = key.strip_prefix(SESSION) else { return };
        let owner = self.residence(client_id).map(|(owner, _)| owner);
        let is_elsewhere = owner.is_some_and(|owner| owner != self.config.node);
        let comes = is_elsewhere && self.give_up_waiting(client_id);
        if self.session_of(client_id).is_some() {
            return self.review(client_id);
        }
        let owner = self.residence(client_id).filter(|(_, residence)| !residence.discards);
        if let Some((owner, _)) = owner
            && before == Some(self.config.node)
            && !comes
        {
            // It waits for an answer.
            let user = None;
            self.send_part(owner, client_id, user, PartKind::Absent, None);
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
        self.moves.stir();
        self.review_all();
    }

    /// A CONNECT waits for a session that comes from another node, or from the disk.
    pub(super) fn wait_for_session(
        &mut self,
        conn: ConnId,
        connect: Box<Connect>,
        user: Option<Arc<str>>,
        from: Option<NodeId>,
    ) {
        let due_ms = self.now.mono_ms + TAKEOVER_WAIT_MS_MAX;
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.phase = Phase::Fetching;
        let client_id = connect.client_id.clone();
        connection.rare.set_connect(connect);
        self.connection_wheel.set(conn.index, due_ms);
        let waiting = Waiting { conn, user, from };
        if let Some(other) = self.directory.waiting.insert(client_id, waiting)
            && other.conn != conn
        {
            self.close(
                other.conn,
                ReasonCode::SessionTakenOver,
                "another connection uses this client id",
            );
        }
    }

    /// What a CONNECT waited for is here, or will not come in time.
    pub(super) fn stop_waiting(&mut self, client_id: &str) {
        let Some(waiting) = self.directory.waiting.remove(client_id) else { return };
        let Some(connection) = self.connection_mut(waiting.conn) else { return };
        if connection.phase != Phase::Fetching {
            return;
        }
        if let Some(connect) = connection.rare.take_connect() {
            self.enter(waiting.conn, connect, waiting.user);
            self.run_cells();
            self.resume(waiting.conn);
        }
    }

    /// The client has begun anew meanwhile, or is at yet another node. Whether its session is on its way.
    fn give_up_waiting(&mut self, client_id: &str) -> bool {
        let Some(waiting) = self.directory.waiting.remove(client_id) else { return false };
        let why = "it has connected again, or to another node";
        self.close(waiting.conn, ReasonCode::SessionTakenOver, why);
        waiting.from.is_some()
    }

    /// A node says that it has no session of this client.
    pub(super) fn nothing_comes_from(&mut self, node: NodeId, client_id: &str) {
        if self.directory.waiting.get(client_id).is_some_and(|w| w.from == Some(node)) {
            self.stop_waiting(client_id);
        }
    }

    /// One of these nodes has passed on all it had. When it is the one that is waited for, that has to be put in order.
    pub(super) fn stop_waiting_for_node(&mut self, client_id: &str, nodes: [NodeId; 2]) {
        if let Some(waiting) = self.directory.waiting.get_mut(client_id) {
            waiting.from = waiting.from.filter(|from| !nodes.contains(from));
        }
    }

    /// What is on the disk can be read: a CONNECT that waited for that only may come in.
    pub(super) fn stop_waiting_for_disk(&mut self, client_id: &str) {
        if self.directory.waiting.get(client_id).is_some_and(|waiting| waiting.from.is_none()) {
            self.stop_waiting(client_id);
        }
    }

    /// Its time is up.
    pub(super) fn fetching_timeout(&mut self, conn: ConnId) {
        let waiting = self.connection(conn).and_then(|c| c.rare.connect());
        let Some(client_id) = waiting.map(|connect| connect.client_id.clone()) else { return };
        let waits_for = self.directory.waiting.get(&client_id).and_then(|waiting| waiting.from);
        if let Some(node) = waits_for {
            let text = format!(
                "client {client_id:?} is let in without all that it had at node {node}, which has not passed it on in time; \
                 it follows"
            );
            self.log(LogLevel::Warn, text);
        }
        self.stop_waiting(&client_id);
    }

    /// A connection that waited is gone.
    pub(super) fn forget_waiting(&mut self, conn: ConnId) {
        self.directory.waiting.retain(|_, waiting| waiting.conn != conn);
    }

    /// The link to a node is down: nobody waits for it.
    pub(super) fn stop_waiting_for(&mut self, node: NodeId) {
        let waiting = self.directory.waiting.iter();
        let theirs: Vec<ByteString> =
            waiting.filter(|(_, w)| w.from == Some(node)).map(|(id, _)| id.clone()).collect();
        theirs.iter().for_each(|client_id| self.stop_waiting(client_id));
    }
}
