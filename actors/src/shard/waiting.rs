//! CONNECTs that wait for a session which comes from other nodes, or from the disk; and what this node owes those of others.
//! See [`outpost_membership::takeover`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytestring::ByteString;
use outpost_membership::PeerFrame;
use outpost_model::NodeId;
use outpost_mqtt::packet::{Connect, ReasonCode};

use super::connection::Phase;
use super::moving::Asked;
use super::{ConnId, Hold, LogLevel, Shard};
use crate::record::PartKind;

/// A CONNECT waits so long for what the client has at other nodes that are linked. Shorter: its queue comes after what is
/// published meanwhile; longer: its client, which may wait for five seconds only, gives up and tries again.
pub const TAKEOVER_WAIT_MS_MAX: u64 = 4_000;

/// Nodes that are not answered yet whether anything comes from here, as something may still be on its way to this one. Fewer:
/// under load what goes on from here may come after what is newer; more: memory for each.
pub const TAKEOVER_ANSWERS_MAX: usize = 4_096;

/// What is under way.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// CONNECTs that wait for a session, by client id.
    waiting: BTreeMap<ByteString, Waiting>,
    /// Whom nothing comes from here for, by client id.
    answers: BTreeMap<String, Answer>,
    /// Sessions from this place of the table on are still to be compared.
    pub(super) review_from: Option<usize>,
}

#[derive(Debug)]
struct Waiting {
    conn: ConnId,
    user: Option<Arc<str>>,
    /// Where something of the session may be; nowhere when it is on the disk here.
    from: BTreeSet<NodeId>,
}

/// An answer that is given when what others have sent here has gone on.
#[derive(Debug)]
struct Answer {
    to: NodeId,
    asked: Asked,
}

impl Shard {
    /// A CONNECT waits for a session that comes from other nodes, or from the disk.
    pub(super) fn wait_for_session(
        &mut self,
        conn: ConnId,
        connect: Box<Connect>,
        user: Option<Arc<str>>,
        from: BTreeSet<NodeId>,
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

    /// The nodes that an earlier CONNECT of this client waits for.
    pub(super) fn waited_for(&self, client_id: &str) -> BTreeSet<NodeId> {
        let waiting = self.directory.waiting.get(client_id);
        waiting.map(|waiting| waiting.from.clone()).unwrap_or_default()
    }

    pub(super) fn is_waiting(&self, client_id: &str) -> bool {
        self.directory.waiting.contains_key(client_id)
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

    /// The client has begun anew meanwhile, or is at yet another node. The nodes that something may come from.
    pub(super) fn give_up_waiting(&mut self, client_id: &str) -> BTreeSet<NodeId> {
        let Some(waiting) = self.directory.waiting.remove(client_id) else {
            return BTreeSet::new();
        };
        let why = "it has connected again, or to another node";
        self.close(waiting.conn, ReasonCode::SessionTakenOver, why);
        waiting.from
    }

    /// These nodes have passed on all they had, or have nothing.
    pub(super) fn stop_waiting_for_nodes(&mut self, client_id: &str, nodes: [NodeId; 2]) {
        if let Some(waiting) = self.directory.waiting.get_mut(client_id) {
            waiting.from.retain(|node| !nodes.contains(node));
        }
    }

    /// A CONNECT that waits for nothing any more, neither a node nor the disk, comes in.
    pub(super) fn let_in(&mut self, client_id: &str) {
        let waiting = self.directory.waiting.get(client_id);
        let is_all_told = waiting.is_some_and(|waiting| waiting.from.is_empty());
        if is_all_told && !self.session_of(client_id).is_some_and(|session| self.is_moving(session))
        {
            self.stop_waiting(client_id);
        }
    }

    /// Its time is up.
    pub(super) fn fetching_timeout(&mut self, conn: ConnId) {
        let waiting = self.connection(conn).and_then(|c| c.rare.connect());
        let Some(client_id) = waiting.map(|connect| connect.client_id.clone()) else { return };
        for node in self.waited_for(&client_id) {
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
        let theirs: Vec<ByteString> = waiting
            .filter(|(_, waiting)| waiting.from.contains(&node))
            .map(|(id, _)| id.clone())
            .collect();
        for client_id in theirs {
            self.stop_waiting_for_nodes(&client_id, [node; 2]);
            if self.waited_for(&client_id).is_empty() {
                self.stop_waiting(&client_id); // what has not come will follow
            }
        }
        for answer in self.directory.answers.values_mut() {
            answer.asked.remove(&node);
        }
        self.give_answers();
    }

    /// Nothing of a session is here that its owner may expect. It hears of that when what the others had sent here, as long
    /// as a CONNECT waited for it, has gone on to it.
    pub(super) fn answer_absent(
        &mut self,
        client_id: &str,
        owner: NodeId,
        waited_for: BTreeSet<NodeId>,
    ) {
        let earlier = self.directory.answers.remove(client_id);
        let mut asked = earlier.map(|answer| answer.asked).unwrap_or_default();
        if self.directory.answers.len() < TAKEOVER_ANSWERS_MAX {
            for node in waited_for.into_iter().filter(|node| *node != owner) {
                // Behind the change that has led to this: who has heard of it sends nothing here any more.
                let number = self.number_barrier(node);
                self.journal.hold(Hold::Peer(node, PeerFrame::Barrier { number }));
                asked.insert(node, number);
            }
        }
        self.directory.answers.insert(client_id.to_owned(), Answer { to: owner, asked });
        self.give_answers();
    }

    /// Answers those for whom nothing is on its way to this node any more.
    pub(super) fn give_answers(&mut self) {
        let peers = &self.peers;
        let is_due = |answer: &Answer| {
            answer.asked.iter().all(|(node, number)| {
                peers.get(node).is_none_or(|peer| !peer.up || peer.barriers.has_passed(*number))
            })
        };
        let due = self.directory.answers.extract_if(.., |_, answer| is_due(answer));
        for (client_id, Answer { to, .. }) in due.collect::<Vec<_>>() {
            self.send_part(to, &client_id, None, PartKind::Absent, None);
        }
    }
}
