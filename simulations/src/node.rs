//! One node: the real cores (shard and shadow hub) and the driver's part, which in production threads and sockets play.
//!
//! ```text
//!  bytes, frames, ticks ─▶ Shard ──Event──▶ Wanted: bytes to clients, frames to peers
//!                            ▲  └─Shadow──▶ Hub ──Commit──▶ disk … synced ──▶ publishes, frames, completions
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use outpost_actors::ports::{OpenGate, Origin};
use outpost_actors::shard::{
    ConnId, Event, LocalPublish, LogLevel, Shard, ShardConfig, ShardStats,
};
use outpost_membership::PeerFrame;
use outpost_model::{Hlc, NodeId, Now, QoS};
use outpost_mqtt::packet::ReasonCode;
use outpost_shadow::{
    Effect, Event as HubEvent, Hub, HubConfig, Limits, Output, Rows, parse_topic,
};
use outpost_store::{Batch, Lsn, Op, Space, Store, SubmitError};

use crate::Mutant;
use crate::disk::Disk;

/// A client's connection to a node, named by the client and its count of connections.
pub type Link = (usize, u64);

/// Bytes for a slow client before its publishes are no longer read: small, so that it happens.
const OUT_BYTES_MAX: usize = 16 * 1024;
/// Deliveries a session may be owed: small, so that queues fill.
const QUEUE_MESSAGES_MAX: u32 = 60;
/// Messages a peer may be owed: small, so that outboxes fill.
const OUTBOX_MESSAGES_MAX: u64 = 80;
/// Rounds of a turn; more means that shard and hub keep each other busy for ever.
const ROUNDS_MAX: usize = 1_000;

/// What a node wants done outside.
#[derive(Debug)]
pub enum Wanted {
    /// Bytes for a client.
    Bytes(Link, Vec<u8>),
    /// Close a client's connection, after the bytes.
    Close(Link),
    /// A frame for a peer.
    Frame(NodeId, PeerFrame),
    /// The link to a peer is to be closed: it broke the rules.
    Accuse(NodeId, String),
    /// For the trace.
    Log(String),
    /// Documents of a shadow were published here: topic, JSON.
    Documents(String, Vec<u8>),
}

#[derive(Debug)]
struct Conn {
    link: Link,
    /// Bytes the shard did not take yet.
    input: Vec<u8>,
    paused: bool,
    /// The client does not read.
    is_slow: bool,
    closing: bool,
    /// The client has closed it; noticed when all it sent is read.
    ended: bool,
}

/// The running process of a node.
struct Process {
    shard: Shard,
    hub: Hub,
    conns: BTreeMap<ConnId, Conn>,
    by_link: BTreeMap<Link, ConnId>,
    /// Effects of the hub the disk was too busy for.
    unwritten: VecDeque<Effect>,
    /// Outputs that wait for the disk.
    waiting: VecDeque<(Lsn, u64, Vec<Output>)>,
}

/// What the hub reads again.
struct StoredRows(Arc<Disk>);

impl Rows for StoredRows {
    fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        let row = self.0.get(Space::Shadows, key).expect("reads of a memory store do not fail");
        row.map(|row| row.to_vec())
    }
}

/// A node, running or not.
pub struct Node {
    /// Index in the world.
    pub index: usize,
    /// Its id.
    pub id: NodeId,
    /// Its disk.
    pub disk: Arc<Disk>,
    /// How wrong its wall clock is.
    pub wall_offset_ms: i64,
    /// Counts its starts.
    pub boot: u64,
    /// The end of a turn is planned.
    pub turn_planned: bool,
    /// A sync is under way.
    pub syncing: bool,
    mutant: Option<Mutant>,
    process: Option<Process>,
    wanted: VecDeque<Wanted>,
}

impl Node {
    /// A node with an empty disk, not running.
    pub fn new(index: usize, mutant: Option<Mutant>) -> Self {
        Self {
            index,
            id: NodeId::from_name(&name_of(index)),
            disk: Disk::new(1_000 + index as u64),
            wall_offset_ms: 0,
            boot: 0,
            turn_planned: false,
            syncing: false,
            mutant,
            process: None,
            wanted: VecDeque::new(),
        }
    }

    /// Whether its process runs.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Starts the process from what the disk has.
    pub fn start(&mut self, dice: u64, now: Now) {
        self.boot += 1;
        let mut config = ShardConfig::new(self.id, self.disk.store_id());
        config.out_bytes_max = OUT_BYTES_MAX;
        config.queue_messages_max = QUEUE_MESSAGES_MAX;
        config.outbox_messages_max = OUTBOX_MESSAGES_MAX;
        let store: Arc<dyn Store> = self.disk.clone();
        let shard = Shard::open(config, Arc::new(OpenGate), store, now)
            .expect("reads of a memory store do not fail");
        let config = HubConfig {
            node: self.id,
            node_name: name_of(self.index),
            limits: Limits { sweep_every_ms: 1_000, hot_shadows_max: 1, ..Limits::default() },
            hlc_ahead_ms_max: 300_000,
            rules: outpost_shadow::Rules::default(),
        };
        let mut hub = Hub::new(config, dice, Hlc::default());
        hub.read_rows_from(Box::new(StoredRows(self.disk.clone())));
        for ((space, key), value) in self.disk.rows() {
            if space == Space::Shadows
                && let Err(error) = hub.load_row(&key, &value)
            {
                self.wanted.push_back(Wanted::Accuse(self.id, error.to_string()));
            }
        }
        self.process = Some(Process {
            shard,
            hub,
            conns: BTreeMap::new(),
            by_link: BTreeMap::new(),
            unwritten: VecDeque::new(),
            waiting: VecDeque::new(),
        });
    }

    /// The power is cut.
    pub fn crash(&mut self, torn: Option<u64>) {
        self.process = None;
        self.wanted.clear();
        self.disk = self.disk.crash(torn, self.mutant);
        (self.turn_planned, self.syncing) = (false, false);
    }

    /// A client's connection arrives.
    pub fn accept(&mut self, link: Link, now: Now) {
        let Some(process) = self.process.as_mut() else { return };
        let origin = Origin {
            listener: Arc::from("sim"),
            remote: SocketAddr::from(([10, 0, 0, link.0 as u8], 1883)),
            certificate: None,
        };
        if let Some(conn) = process.shard.accept(origin, now) {
            process.by_link.insert(link, conn);
            let input = Vec::new();
            let state =
                Conn { link, input, paused: false, is_slow: false, closing: false, ended: false };
            process.conns.insert(conn, state);
        }
    }

    /// Bytes of a client arrive. True when all of them were read, and do not wait until the node reads again.
    pub fn receive(&mut self, link: Link, bytes: &[u8], now: Now) -> bool {
        let Some(process) = self.process.as_mut() else { return false };
        let Some(conn) = process.by_link.get(&link).copied() else { return false };
        if let Some(state) = process.conns.get_mut(&conn) {
            state.input.extend_from_slice(bytes);
        }
        process.feed(conn, now);
        process.conns.get(&conn).is_none_or(|state| state.input.is_empty())
    }

    /// A client's connection is gone: reset, or closed in order after what was sent.
    pub fn lost(&mut self, link: Link, in_order: bool, now: Now) {
        let Some(process) = self.process.as_mut() else { return };
        let Some(conn) = process.by_link.get(&link).copied() else { return };
        if let Some(state) = process.conns.get_mut(&conn) {
            state.ended = true;
            if !in_order {
                state.input.clear();
            }
        }
        process.forget_ended(conn, now);
    }

    /// A client stops reading, or reads again.
    pub fn set_slow(&mut self, client: usize, is_slow: bool) {
        let Some(process) = self.process.as_mut() else { return };
        let conns: Vec<ConnId> =
            process.conns.iter().filter(|(_, c)| c.link.0 == client).map(|(id, _)| *id).collect();
        for conn in conns {
            process.conns.get_mut(&conn).expect("just seen").is_slow = is_slow;
            if !is_slow {
                process.flush(conn, &mut self.wanted);
            }
        }
    }

    /// The link to a peer is up or down.
    pub fn peer(&mut self, peer: NodeId, up: bool, now: Now) {
        let Some(process) = self.process.as_mut() else { return };
        if up {
            process.shard.peer_up(peer, now);
            process.hub.peer_up(peer, now);
        } else {
            process.shard.peer_down(peer, now);
            process.hub.peer_down(peer, now);
        }
    }

    /// A frame of a peer arrives.
    pub fn frame(&mut self, peer: NodeId, frame: PeerFrame, now: Now) {
        let Some(process) = self.process.as_mut() else { return };
        let result = match frame {
            PeerFrame::Shadow(bytes) => {
                process.hub.handle_peer_frame(peer, &bytes, now).map_err(|error| error.to_string())
            }
            frame => process.shard.peer_frame(peer, frame, now),
        };
        if let Err(why) = result {
            self.wanted.push_back(Wanted::Accuse(peer, why));
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: Now) {
        let Some(process) = self.process.as_mut() else { return };
        if process.shard.next_tick_ms().is_some_and(|due| due <= now.mono_ms) {
            process.shard.tick(now);
        }
        if process.hub.next_tick_ms(now).is_some_and(|due| due <= now.mono_ms) {
            process.hub.handle_tick(now);
        }
    }

    /// The disk has synced everything up to `upto`.
    pub fn synced(&mut self, upto: Lsn, now: Now) {
        let synced = self.disk.sync_to(upto);
        let Some(process) = self.process.as_mut() else { return };
        process.shard.synced(synced, now);
        process.release(synced, now, &mut self.wanted);
    }

    /// Ends the turn, and says what is wanted outside.
    pub fn end_turn(&mut self, now: Now) -> Vec<Wanted> {
        self.turn_planned = false;
        if let Some(process) = self.process.as_mut() {
            process.end_turn(&self.disk, self.mutant, now, &mut self.wanted);
        }
        self.wanted.drain(..).collect()
    }

    /// Figures of the shard.
    pub fn stats(&self) -> Option<ShardStats> {
        self.process.as_ref().map(|process| process.shard.stats())
    }

    /// Whether it has something of a client's session.
    pub fn has_session(&self, client_id: &str) -> bool {
        self.process.as_ref().is_some_and(|process| process.shard.queue(client_id).is_some())
    }

    /// The hub.
    pub fn hub(&self) -> Option<&Hub> {
        self.process.as_ref().map(|process| &process.hub)
    }

    /// Nothing waits for the disk and nothing for a slow reader.
    pub fn is_quiet(&self) -> bool {
        !self.turn_planned
            && !self.syncing
            && self.disk.waiting() == 0
            && self.process.as_ref().is_some_and(|p| {
                p.waiting.is_empty()
                    && p.unwritten.is_empty()
                    && p.conns.values().all(|conn| conn.input.is_empty())
            })
    }
}

/// The name of a node.
pub fn name_of(index: usize) -> String {
    format!("edge-{}", index + 1)
}

impl Process {
    fn feed(&mut self, conn: ConnId, now: Now) {
        let Some(state) = self.conns.get_mut(&conn).filter(|state| !state.paused) else { return };
        let received = self.shard.receive(conn, &state.input, now);
        state.input.drain(..received.used);
        state.paused = received.paused;
        self.forget_ended(conn, now);
    }

    fn forget_ended(&mut self, conn: ConnId, now: Now) {
        let Some(state) =
            self.conns.get(&conn).filter(|state| state.ended && state.input.is_empty())
        else {
            return;
        };
        self.by_link.remove(&state.link);
        self.conns.remove(&conn);
        self.shard.connection_lost(conn, now);
    }

    fn end_turn(
        &mut self,
        disk: &Arc<Disk>,
        mutant: Option<Mutant>,
        now: Now,
        wanted: &mut VecDeque<Wanted>,
    ) {
        for _ in 0..ROUNDS_MAX {
            self.shard.end_turn(now);
            if mutant == Some(Mutant::AcksBeforeSync) {
                self.shard.synced(disk.last(), now);
            }
            let mut idle = true;
            while let Some(event) = self.shard.poll_event() {
                idle = false;
                self.carry_out(event, now, wanted);
            }
            while let Some(effect) = self.hub.poll_effect() {
                self.unwritten.push_back(effect);
            }
            idle &= !self.write(disk, mutant, now, wanted);
            if idle {
                return;
            }
        }
        wanted.push_back(Wanted::Log("a turn does not end".to_owned()));
    }

    fn carry_out(&mut self, event: Event, now: Now, wanted: &mut VecDeque<Wanted>) {
        match event {
            Event::Flush(conn) => self.flush(conn, wanted),
            Event::Close(conn) => self.close(conn, now, wanted),
            Event::Resume(conn) => {
                if let Some(state) = self.conns.get_mut(&conn) {
                    state.paused = false;
                }
                self.feed(conn, now);
            }
            Event::Authenticate { .. } | Event::Step { .. } => {
                unreachable!("an open gate is never slow and offers no method")
            }
            Event::Peer(peer, frame) => wanted.push_back(Wanted::Frame(peer, frame)),
            Event::Shadow { topic, payload, client, job } => match parse_topic(&topic) {
                Some((key, verb)) => {
                    if key.thing == *client {
                        self.hub.device_here(&key, now);
                    }
                    self.hub.request(key, verb, &payload, job, now)
                }
                None => self.shard.complete(job, ReasonCode::Success, now),
            },
            Event::Published(..) | Event::Local(..) | Event::Traced(..) | Event::TraceEnded(_) => {}
            Event::Log(LogLevel::Info | LogLevel::Warn, text) => {
                wanted.push_back(Wanted::Log(text))
            }
        }
    }

    fn flush(&mut self, conn: ConnId, wanted: &mut VecDeque<Wanted>) {
        let Some(state) = self.conns.get(&conn).filter(|state| !state.is_slow || state.closing)
        else {
            return;
        };
        let Some(out) = self.shard.out_buffer(conn) else { return };
        let bytes = out.take();
        if !bytes.is_empty() {
            wanted.push_back(Wanted::Bytes(state.link, bytes));
            self.shard.written(conn);
        }
    }

    fn close(&mut self, conn: ConnId, now: Now, wanted: &mut VecDeque<Wanted>) {
        if let Some(state) = self.conns.get_mut(&conn) {
            state.closing = true;
        }
        self.flush(conn, wanted);
        if let Some(state) = self.conns.remove(&conn) {
            self.by_link.remove(&state.link);
            wanted.push_back(Wanted::Close(state.link));
        }
        self.shard.connection_lost(conn, now);
    }

    /// Writes what the hub wants written. True when something moved.
    fn write(
        &mut self,
        disk: &Arc<Disk>,
        mutant: Option<Mutant>,
        now: Now,
        wanted: &mut VecDeque<Wanted>,
    ) -> bool {
        let mut moved = false;
        while let Some(effect) = self.unwritten.pop_front() {
            match effect {
                Effect::Now(output) => self.output(output, now, wanted),
                Effect::Commit { number, rows, then } => {
                    if !rows.is_empty() {
                        match disk.submit(batch_of(&rows)) {
                            Ok(_) => {}
                            Err(SubmitError::Busy { .. }) => {
                                self.unwritten.push_front(Effect::Commit { number, rows, then });
                                return moved;
                            }
                            Err(error) => {
                                wanted.push_back(Wanted::Log(error.to_string()));
                                continue;
                            }
                        }
                    }
                    self.waiting.push_back((disk.last(), number, then));
                    let early = mutant == Some(Mutant::ShadowBeforeSync);
                    let synced = if early { disk.last() } else { disk.synced() };
                    self.release(synced, now, wanted);
                }
            }
            moved = true;
        }
        moved
    }

    fn release(&mut self, synced: Lsn, now: Now, wanted: &mut VecDeque<Wanted>) {
        while self.waiting.front().is_some_and(|(needs, ..)| *needs <= synced) {
            let (_, commit, outputs) = self.waiting.pop_front().expect("just seen");
            self.hub.synced(commit);
            outputs.into_iter().for_each(|output| self.output(output, now, wanted));
        }
    }

    fn output(&mut self, output: Output, now: Now, wanted: &mut VecDeque<Wanted>) {
        match output {
            Output::Publish { topic, payload } => {
                if topic.ends_with("/update/documents") {
                    wanted.push_back(Wanted::Documents(topic.clone(), payload.clone()));
                }
                let publish = LocalPublish {
                    here_only: topic.ends_with("/delta") || topic.ends_with("/documents"),
                    topic: topic.into(),
                    payload: payload.into(),
                    qos: QoS::AtLeastOnce,
                    retain: false,
                    expiry_s: None,
                    properties: None,
                };
                self.shard.publish(publish, 0, now);
            }
            Output::ToPeer { peer, frame } => {
                wanted.push_back(Wanted::Frame(peer, PeerFrame::Shadow(frame.into())));
            }
            Output::Reply { id: 0, .. } => {}
            Output::Reply { id, .. } => self.shard.complete(id, ReasonCode::Success, now),
            Output::Event(HubEvent::Written { .. } | HubEvent::Merged { .. }) => {}
            Output::Event(event) => wanted.push_back(Wanted::Log(format!("{event:?}"))),
        }
    }
}

fn batch_of(rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Batch {
    let op = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| match value {
        Some(value) => Op::Put(Space::Shadows, key.clone().into(), value.clone().into()),
        None => Op::Delete(Space::Shadows, key.clone().into()),
    };
    rows.iter().map(op).collect()
}
