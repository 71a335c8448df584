//! What people may see of a shard: its actors and its figures.

use outpost_flow::{Class, Health, Level, Pressure};
use outpost_model::NodeId;

use super::channel::Owner;
use super::{Cell, ListenerStats, Shard, Totals};
use crate::cell::{CellId, MAILBOX_MAX};
use crate::ledger::Ledger;

/// One actor, of either weight, as `outpost actors` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorInfo {
    /// Unique within the node.
    pub id: String,
    /// The supervisor.
    pub parent: Option<String>,
    /// `ractor` or `cell`.
    pub weight: &'static str,
    /// What it is: shard, session, channel, subscriber, …
    pub role: &'static str,
    /// Which one.
    pub name: String,
    /// `running`, `hibernated`, `restarting` or `quarantined`.
    pub state: &'static str,
    /// Messages waiting.
    pub mailbox: usize,
    /// How many can wait.
    pub mailbox_max: usize,
    /// How often it was restarted.
    pub restarts: u64,
    /// Why it failed last.
    pub cause: Option<String>,
    /// More, in words.
    pub detail: String,
}

/// Figures of a shard at this moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShardStats {
    /// Counters since the start.
    pub ledger: Ledger,
    /// What went over connections.
    pub totals: Totals,
    /// The same by listener.
    pub listeners: Vec<ListenerStats>,
    /// Connections open.
    pub connections: usize,
    /// Sessions, connected or not.
    pub sessions: usize,
    /// Sessions with a client.
    pub sessions_connected: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Channels.
    pub channels: usize,
    /// Topics with a retained message.
    pub retained: usize,
    /// Removals of retained messages that a peer has not confirmed yet.
    pub retained_tombstones: usize,
    /// Removals that were forgotten although a peer had not confirmed them.
    pub retained_forgotten: u64,
    /// What the directory holds: client ids of all nodes, and an entry of each node.
    pub directory: usize,
    /// Removals from it that a peer has not confirmed yet.
    pub directory_tombstones: usize,
    /// Entries there was no room for.
    pub directory_refused: u64,
    /// The rules that each node goes by, as far as it has said so.
    pub rules_epochs: Vec<(NodeId, u64)>,
    /// Sessions that came from other nodes.
    pub sessions_arrived: u64,
    /// Sessions that went to other nodes.
    pub sessions_left: u64,
    /// Sessions on their way, and those whose former node still passes on what others send it.
    pub sessions_moving: usize,
    /// Deliveries owed: QoS 1 and 2, and QoS 0 that waits for a slow client.
    pub queued: u64,
    /// Publishes of 3.1.1 clients that wait until they can be accepted.
    pub held_back: usize,
    /// Sessions whose queue is full.
    pub queues_full: u32,
    /// What is in use of the memory budget, in the order of [`Class::ALL`].
    pub memory: [u64; Class::ALL.len()],
    /// The budget; 0 is none.
    pub memory_limit: u64,
    /// What is given up to keep it.
    pub pressure: Pressure,
    /// Sessions whose queue is above a water mark.
    pub queues_high: u32,
    /// Water marks crossed upwards since the start.
    pub queue_marks: u64,
    /// Bytes of the deliveries of QoS 1 and 2 that wait, all sessions together.
    pub queued_bytes: u64,
    /// They have used up the node's quota.
    pub node_queue_full: bool,
    /// Its water marks crossed upwards since the start.
    pub node_queue_marks: u64,
    /// Message bodies on disk.
    pub bodies: usize,
    /// Messages owed to peers.
    pub outbox: usize,
    /// Bytes of them.
    pub outbox_bytes: u64,
    /// Peers whose outbox is full.
    pub outboxes_full: u32,
    /// Peers whose outbox is above a water mark.
    pub outboxes_high: usize,
    /// Water marks of outboxes crossed upwards since the start.
    pub outbox_marks: u64,
    /// Events that came from peers, and how many of them were copies.
    pub peer_events_in: u64,
    /// Copies among them.
    pub peer_duplicates_in: u64,
    /// Events sent to peers.
    pub peer_events_out: u64,
    /// Why nothing is accepted now that needs the disk.
    pub store_stalled: Option<String>,
    /// Why the store does not take anything any more.
    pub store_failed: Option<String>,
}

impl ShardStats {
    /// What the ledger cannot account for; see [`Ledger::missing`].
    pub fn missing(&self) -> i64 {
        self.ledger.missing(self.queued + self.outbox as u64)
    }
}

impl Shard {
    /// All cells, below the shard's own entry `parent`; at most `limit`, those in trouble first.
    pub fn actors(&self, parent: &str, limit: usize) -> Vec<ActorInfo> {
        let mut all: Vec<ActorInfo> = self.cells.iter().map(|id| self.actor(parent, id)).collect();
        all.sort_by_key(|actor| {
            (actor.state != "quarantined", actor.state != "restarting", actor.restarts == 0)
        });
        all.truncate(limit);
        all
    }

    fn actor(&self, parent: &str, id: CellId) -> ActorInfo {
        let (role, name) = self.name_of(id);
        let (health, restarts, waiting) = self.cells.inspect(id).unwrap_or((Health::Running, 0, 0));
        let state = match health {
            Health::Running if self.is_hibernated(id) => "hibernated",
            Health::Running => "running",
            Health::Restarting { .. } => "restarting",
            Health::Quarantined { .. } => "quarantined",
        };
        ActorInfo {
            id: format!("{parent}/{role}/{}", id.index()),
            parent: Some(self.parent_of(parent, id)),
            weight: "cell",
            role,
            name,
            state,
            mailbox: usize::from(waiting),
            mailbox_max: usize::from(MAILBOX_MAX),
            restarts,
            cause: self.cells.last_cause(id).map(ToOwned::to_owned),
            detail: self.detail(id),
        }
    }

    fn parent_of(&self, shard: &str, id: CellId) -> String {
        match self.cells.owner(id) {
            Some(Owner::Subscriber { session, .. }) => match self.sessions.get(*session as usize) {
                Some(slot) => format!("{shard}/session/{}", slot.cell.index()),
                None => shard.to_owned(),
            },
            _ => shard.to_owned(),
        }
    }

    fn is_hibernated(&self, id: CellId) -> bool {
        matches!(self.cells.owner(id), Some(Owner::Session(session))
            if self.sessions.get(*session as usize).is_some_and(|s| s.conn.is_none()))
    }

    fn detail(&self, id: CellId) -> String {
        match (self.cells.owner(id), self.cells.body(id)) {
            (Some(Owner::Session(session)), _) => {
                self.sessions.get(*session as usize).map_or_else(String::new, |slot| {
                    format!("queued {}{}", slot.queued, if slot.full { ", full" } else { "" })
                })
            }
            (_, Some(Cell::Channel(channel))) => format!("published {}", channel.published),
            (_, Some(Cell::Subscriber(subscriber))) => {
                format!("forwarded {}", subscriber.forwarded)
            }
            _ => String::new(),
        }
    }

    /// Figures at this moment.
    pub fn stats(&self) -> ShardStats {
        let peers = self.peers.values();
        ShardStats {
            ledger: self.ledger.clone(),
            totals: self.totals.clone(),
            listeners: self.listener_stats(),
            connections: self.connections.len(),
            sessions: self.sessions.len(),
            sessions_connected: self.sessions.iter().filter(|(_, s)| s.conn.is_some()).count(),
            subscriptions: self.sessions.iter().map(|(_, s)| s.subscriptions.len()).sum(),
            channels: self.channels.len(),
            retained: self.retained.len(),
            retained_tombstones: self.retained.map.tombstones(),
            retained_forgotten: self.retained.forgotten,
            directory: self.state.map.len(),
            directory_tombstones: self.state.map.tombstones(),
            directory_refused: self.state.refused,
            rules_epochs: self.rules_epochs(),
            sessions_arrived: self.moves.arrived,
            sessions_left: self.moves.left,
            sessions_moving: self.moves.len(),
            queued: self.sessions.iter().map(|(_, s)| s.waiting()).sum(),
            held_back: self.connections.iter().map(|(_, c)| c.rare.blocked_len()).sum(),
            queues_full: self.full_sessions,
            queues_high: self.water.high,
            queue_marks: self.water.marks,
            memory: Class::ALL.map(|class| self.budget.used(class)),
            memory_limit: self.budget.limit_bytes(),
            pressure: self.budget.pressure(),
            queued_bytes: self.water.all.bytes(),
            node_queue_full: self.water.all.is_full(),
            node_queue_marks: self.water.all_marks,
            bodies: self.journal.bodies(),
            outbox: peers.clone().map(super::peers::Peer::owed).sum(),
            outbox_bytes: peers.clone().map(|p| p.quota.bytes()).sum(),
            outboxes_full: self.full_peers,
            outboxes_high: peers.clone().filter(|p| p.quota.level() != Level::Low).count(),
            outbox_marks: self.water.outbox_marks,
            peer_events_in: peers.clone().map(|p| p.events_in).sum(),
            peer_duplicates_in: peers.clone().map(|p| p.duplicates_in).sum(),
            peer_events_out: peers.map(|p| p.events_out).sum(),
            store_stalled: self.journal.stalled().map(ToOwned::to_owned),
            store_failed: self.journal.failed().map(ToOwned::to_owned),
        }
    }
}
