//! The world: everything that can happen, and the loop that lets it happen.

use std::collections::{BTreeMap, BTreeSet};

use outpost_model::Now;
use outpost_store::Lsn;

use crate::client::Client;
use crate::clock::{Clock, MS, Micros, SECOND};
use crate::dice::Dice;
use crate::faults::Faults;
use crate::history::History;
use crate::network::Network;
use crate::node::{Link, Node, Wanted};
use crate::roaming::Roams;
use crate::workload::Workload;
use crate::{Mutant, Options, checkers};

/// How many nodes there are.
pub const NODES: usize = 3;
/// How often a node's timers are looked at.
const TICK: Micros = 20 * MS;
/// How long after the faults everything must be at rest.
const REST_WITHIN: Micros = 120 * SECOND;
/// Steps of one run; more means something runs away.
const STEPS_MAX: u64 = 3_000_000;
/// After so many syncs what a node read is on disk: one was under way, and the batch may have been refused as busy once.
const SYNCS_OF_A_DISCONNECT: u8 = 3;

/// What can happen.
#[derive(Debug)]
pub enum Happening {
    /// A node's timers.
    Tick(usize),
    /// A node ends its turn (in this life of its process).
    Turn(usize, u64),
    /// A sync ends.
    Synced(usize, u64, Lsn),
    /// A crashed node starts.
    Start(usize),
    /// The nodes try to open their link.
    Dial(usize, usize),
    /// The link's end comes up: node, peer, number of the link.
    EndUp(usize, usize, u64),
    /// The link's end is noticed to be down.
    EndDown(usize, usize, u64),
    /// The first frame of a lane arrives: from, to, lane, number of the link.
    Frame(usize, usize, usize, u64),
    /// The link was silent for too long.
    Silent(usize, usize, u64),
    /// A client connects.
    Connect(usize),
    /// Its connection reaches the node.
    Accept(Link),
    /// Bytes reach the node; the will they call off.
    ToNode(Link, Vec<u8>, Option<usize>),
    /// Bytes reach the client.
    ToClient(Link, Vec<u8>),
    /// The node notices that the connection is gone, in order or not.
    LostAtNode(Link, bool),
    /// The client notices.
    LostAtClient(Link),
    /// The client's keep-alive timer.
    Ping(Link),
    /// Somebody wants something.
    Work,
    /// A fault strikes.
    Fault,
    /// A client turns up at another node.
    Roam,
    /// A fault ends: a name for what to undo, and where.
    Undo(Undo, usize),
    /// Look whether everything is at rest.
    Look,
}

/// What ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undo {
    /// A slow disk.
    SlowDisk,
    /// A tight disk.
    TightDisk,
    /// A client that does not read.
    SlowClient,
}

/// The way between a client and its node.
#[derive(Debug, Default)]
pub struct Wire {
    /// The node.
    pub node: usize,
    /// When the last bytes arrive at the node.
    pub to_node: Micros,
    /// When the last bytes arrive at the client.
    pub to_client: Micros,
    /// Nothing more arrives at the node.
    pub cut_to_node: bool,
    /// Nothing more arrives at the client.
    pub cut_to_client: bool,
}

/// A will that was called off, perhaps only in memory.
#[derive(Debug)]
pub(crate) struct UnsyncedWill {
    pub(crate) node: usize,
    pub(crate) will: usize,
    /// Of the node since then.
    pub(crate) syncs: u8,
}

/// What the run is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Work under faults.
    Break,
    /// Everything is healed, work comes to its end.
    Heal,
    /// Clients that roam do so once more, with nothing in their way.
    Roam,
    /// Each client publishes once more, to see that everybody is heard.
    Probe,
    /// Everything is checked.
    Done,
}

/// See the module.
pub struct World {
    pub(crate) options: Options,
    pub(crate) clock: Clock<Happening>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) network: Network,
    /// The number of the link between two nodes, 0 for none.
    pub(crate) pairs: BTreeMap<(usize, usize), u64>,
    pub(crate) clients: Vec<Client>,
    pub(crate) wires: BTreeMap<Link, Wire>,
    /// Clients that will connect.
    pub(crate) connecting: BTreeSet<usize>,
    pub(crate) history: History,
    pub(crate) workload: Workload,
    pub(crate) faults: Faults,
    pub(crate) roams: Roams,
    pub(crate) net_dice: Dice,
    pub(crate) disk_dice: Dice,
    pub(crate) stage: Stage,
    /// Interest that arrived and is not yet durable: (knower, wanter, filter).
    pub(crate) interest_pending: BTreeSet<(usize, usize, String)>,
    /// Wills that were called off by a DISCONNECT the node read.
    pub(crate) wills_off: BTreeSet<usize>,
    /// Those of them that a crash of their node may still bring back: nothing tells a client that its DISCONNECT is on disk.
    pub(crate) wills_unsynced: Vec<UnsyncedWill>,
    /// The last version of a shadow's documents, by node and topic.
    pub(crate) versions: BTreeMap<(usize, String), u64>,
    quiet_looks: u32,
    stage_began: Micros,
}

impl World {
    /// The world of a seed, nothing has happened yet.
    pub fn new(seed: u64, options: Options) -> Self {
        let history = if options.trace { History::printing() } else { History::default() };
        let mut world = Self {
            options,
            clock: Clock::default(),
            nodes: (0..NODES).map(|index| Node::new(index, options.mutant)).collect(),
            network: Network::new(NODES),
            pairs: BTreeMap::new(),
            clients: Vec::new(),
            wires: BTreeMap::new(),
            connecting: BTreeSet::new(),
            history,
            workload: Workload::new(seed),
            faults: Faults::new(seed),
            roams: Roams::new(seed, options.roam),
            net_dice: Dice::new(seed, 1),
            disk_dice: Dice::new(seed, 2),
            stage: Stage::Break,
            interest_pending: BTreeSet::new(),
            wills_off: BTreeSet::new(),
            wills_unsynced: Vec::new(),
            versions: BTreeMap::new(),
            quiet_looks: 0,
            stage_began: 0,
        };
        world.prepare();
        world
    }

    fn prepare(&mut self) {
        self.faults.draw_clocks(&mut self.nodes);
        self.prepare_clients();
        self.prepare_roaming();
        for node in 0..NODES {
            self.start(node);
            self.clock.after(TICK + node as u64, Happening::Tick(node));
            for peer in node + 1..NODES {
                self.clock.after(node as u64 * MS, Happening::Dial(node, peer));
            }
        }
        self.clock.after(20 * MS, Happening::Work);
        self.plan_fault();
        self.clock.at(self.faults.ends, Happening::Look);
    }

    /// Lets everything happen, until all is checked.
    pub fn run(&mut self) {
        while self.stage < Stage::Done {
            let Some(happening) = self.clock.next(Micros::MAX - 1) else { break };
            self.happen(happening);
            if self.history.steps > STEPS_MAX {
                let now = self.clock.now();
                self.history
                    .violation(now, format!("more than {STEPS_MAX} steps: something runs away"));
                break;
            }
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick(node) => self.tick(node),
            Happening::Turn(node, boot) => self.end_turn(node, boot),
            Happening::Synced(node, boot, upto) => self.synced(node, boot, upto),
            Happening::Start(node) => self.start(node),
            Happening::Dial(a, b) => self.dial(a, b),
            Happening::EndUp(node, peer, number) => self.end_up(node, peer, number),
            Happening::EndDown(node, peer, number) => self.end_down(node, peer, number),
            Happening::Frame(from, to, lane, number) => self.frame(from, to, lane, number),
            Happening::Silent(a, b, number) => self.silent(a, b, number),
            Happening::Connect(client) => self.connect(client),
            Happening::Accept(link) => self.accept(link),
            Happening::ToNode(link, bytes, will) => self.arrive_at_node(link, &bytes, will),
            Happening::ToClient(link, bytes) => self.arrive_at_client(link, &bytes),
            Happening::LostAtNode(link, in_order) => self.lost_at_node(link, in_order),
            Happening::LostAtClient(link) => self.lost_at_client(link),
            Happening::Ping(link) => self.ping(link),
            Happening::Work => self.work(),
            Happening::Fault => self.fault(),
            Happening::Roam => self.roam(),
            Happening::Undo(what, index) => self.undo(what, index),
            Happening::Look => self.look(),
        }
    }

    /// The present as a node sees it.
    pub(crate) fn now_at(&self, node: usize) -> Now {
        self.clock.seen_with(self.nodes[node].wall_offset_ms)
    }

    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].is_up() {
            return;
        }
        let (now, dice) = (self.now_at(node), self.disk_dice.bits());
        self.history.step(self.clock.now(), &[3, node as u64], || format!("node {node} starts"));
        self.nodes[node].start(dice, now);
        self.plan_turn(node);
    }

    fn tick(&mut self, node: usize) {
        let now = self.now_at(node);
        self.nodes[node].tick(now);
        self.plan_turn(node);
        self.clock.after(TICK, Happening::Tick(node));
        if node == 0 {
            self.note_calm();
            self.note_moves();
        }
    }

    /// What was handed in is handled to the end a little later, as the thread would.
    pub(crate) fn plan_turn(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if this.is_up() && !this.turn_planned {
            this.turn_planned = true;
            let boot = this.boot;
            let delay = self.disk_dice.range(0, 400);
            self.clock.after(delay, Happening::Turn(node, boot));
        }
    }

    fn end_turn(&mut self, node: usize, boot: u64) {
        if self.nodes[node].boot != boot || !self.nodes[node].is_up() {
            return;
        }
        let now = self.now_at(node);
        let wanted = self.nodes[node].end_turn(now);
        let mut acked = false;
        for one in wanted {
            if let Wanted::Bytes(_, bytes) = &one {
                acked |= has_ack(bytes);
            }
            self.carry_out(node, one);
        }
        self.plan_sync(node);
        self.promote_interest(node);
        if acked && self.faults.crash_at_ack.remove(&node) {
            self.crash(node, "crash at an ack");
        }
    }

    fn carry_out(&mut self, node: usize, wanted: Wanted) {
        let at = self.clock.now();
        match wanted {
            Wanted::Bytes(link, bytes) => self.send_to_client(link, bytes),
            Wanted::Close(link) => {
                let due = self.wires.get(&link).map_or(at, |wire| wire.to_client);
                self.clock.at(due, Happening::LostAtClient(link));
            }
            Wanted::Frame(peer, frame) => self.send_frame(node, peer, frame),
            Wanted::Accuse(peer, why) => {
                let text = format!("node {node} accuses {peer}: {why}");
                self.history.violation(at, text);
            }
            Wanted::Log(text) => {
                self.history.step(at, &[4], || format!("node {node} says: {text}"))
            }
            Wanted::Documents(topic, json) => self.documents(node, &topic, &json),
        }
    }

    fn plan_sync(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if this.syncing || this.disk.waiting() == 0 {
            return;
        }
        this.syncing = true;
        let (boot, upto) = (this.boot, this.disk.last());
        let delay = if self.faults.slow_disks.contains(&node) {
            self.disk_dice.range(20 * MS, 600 * MS)
        } else {
            self.disk_dice.range(300, 6 * MS)
        };
        self.clock.after(delay, Happening::Synced(node, boot, upto));
    }

    fn synced(&mut self, node: usize, boot: u64, upto: Lsn) {
        if self.nodes[node].boot != boot || !self.nodes[node].is_up() {
            return;
        }
        let now = self.now_at(node);
        self.history.step(self.clock.now(), &[5, node as u64, upto.0], || {
            format!("node {node} synced {}", upto.0)
        });
        self.nodes[node].syncing = false;
        self.nodes[node].synced(upto, now);
        for will in self.wills_unsynced.iter_mut().filter(|will| will.node == node) {
            will.syncs += 1;
        }
        self.wills_unsynced.retain(|will| will.syncs < SYNCS_OF_A_DISCONNECT);
        self.plan_turn(node);
        self.plan_sync(node);
    }

    fn documents(&mut self, node: usize, topic: &str, json: &[u8]) {
        let version = serde_json::from_slice::<serde_json::Value>(json)
            .ok()
            .and_then(|json| json["current"]["version"].as_u64())
            .unwrap_or(0);
        let last = self.versions.insert((node, topic.to_owned()), version).unwrap_or(0);
        if version <= last {
            let at = self.clock.now();
            self.history
                .violation(at, format!("node {node}: version {version} of {topic} after {last}"));
        }
    }

    fn look(&mut self) {
        let now = self.clock.now();
        match self.stage {
            Stage::Break => {
                self.heal();
                self.enter(Stage::Heal);
            }
            _ if self.at_rest() => {
                self.quiet_looks += 1;
                if self.quiet_looks >= 3 {
                    self.next_stage();
                }
            }
            _ if now - self.stage_began > REST_WITHIN => {
                let why = self.unrest();
                self.history.violation(
                    now,
                    format!("no rest {} s after healing: {why}", REST_WITHIN / SECOND),
                );
                self.stage = Stage::Done;
            }
            _ => self.quiet_looks = 0,
        }
        self.clock.after(500 * MS, Happening::Look);
    }

    fn next_stage(&mut self) {
        if self.stage == Stage::Heal && self.has_roamers() {
            self.roam_calmly();
            self.enter(Stage::Roam);
        } else if self.stage < Stage::Probe {
            self.probe();
            self.enter(Stage::Probe);
        } else {
            checkers::check(self);
            self.stage = Stage::Done;
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.history.step(self.clock.now(), &[6], || format!("---- {stage:?}"));
        (self.stage, self.stage_began, self.quiet_looks) = (stage, self.clock.now(), 0);
    }

    fn at_rest(&self) -> bool {
        self.workload.is_done()
            && self.network.is_quiet()
            && self.nodes.iter().all(Node::is_quiet)
            && self.pairs.len() == NODES * (NODES - 1) / 2
            && self.pairs.values().all(|number| *number > 0)
            && self.clients.iter().all(|client| client.is_welcomed() && client.is_idle())
            && self.nodes.iter().all(|node| {
                node.stats().is_some_and(|stats| stats.outbox == 0 && stats.queued == 0)
            })
            && self.are_all_home()
    }

    fn unrest(&self) -> String {
        let mut why = Vec::new();
        for client in &self.clients {
            if !client.is_welcomed() || !client.is_idle() {
                why.push(format!("client-{} {}", client.profile.index, client.waits_for()));
            }
        }
        why.extend(self.on_their_way());
        for node in &self.nodes {
            let stats = node.stats().unwrap_or_default();
            if stats.sessions_moving > 0 {
                why.push(format!("node {}: {} sessions move", node.index, stats.sessions_moving));
            }
            if stats.outbox + stats.queued as usize > 0 || !node.is_quiet() {
                why.push(format!(
                    "node {}: up {}, quiet {}, outbox {}, queued {}",
                    node.index,
                    node.is_up(),
                    node.is_quiet(),
                    stats.outbox,
                    stats.queued
                ));
            }
        }
        why.push(format!("links {:?}, network quiet {}", self.pairs, self.network.is_quiet()));
        why.join("; ")
    }

    pub(crate) fn mutant(&self, mutant: Mutant) -> bool {
        self.options.mutant == Some(mutant)
    }
}

/// Whether PUBACK or PUBREC is among the packets of a flush.
fn has_ack(bytes: &[u8]) -> bool {
    packets(bytes).any(|(kind, _)| matches!(kind, 4 | 5))
}

/// The packets of a flush: their types and what follows the length.
fn packets(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.len() < 2 {
            return None;
        }
        let (kind, mut length, mut used) = (rest[0] >> 4, 0usize, 1);
        for (place, byte) in rest[1..rest.len().min(5)].iter().enumerate() {
            length |= usize::from(byte & 0x7f) << (7 * place);
            used += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let body = rest.get(used..used + length).unwrap_or(&[]);
        rest = rest.get(used + length..).unwrap_or(&[]);
        Some((kind, body))
    })
}
