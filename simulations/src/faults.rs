//! What goes wrong, and when. Each seed has its own choice of kinds of faults: bugs hide from a mixture of everything.

use std::collections::BTreeSet;

use outpost_mqtt::packet::Version;

use crate::clock::{MS, Micros, SECOND};
use crate::dice::Dice;
use crate::links::IDLE_TIMEOUT;
use crate::node::Node;
use crate::world::{Happening, NODES, Undo, World};

/// The most a wall clock is wrong, milliseconds. Two nodes may then differ by less than the minute at which stamps of a
/// peer are refused.
const WALL_OFF_MS: u64 = 25_000;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crash,
    CrashAtAck,
    BreakLink,
    BlockOneWay,
    Partition,
    ClientCut,
    ClientLeaves,
    ClientStartsClean,
    SlowDisk,
    TightDisk,
    SlowClient,
    ClockJump,
}

/// Kind and weight.
const KINDS: [(Kind, u64); 12] = [
    (Kind::Crash, 3),
    (Kind::CrashAtAck, 3),
    (Kind::BreakLink, 3),
    (Kind::BlockOneWay, 2),
    (Kind::Partition, 2),
    (Kind::ClientCut, 5),
    (Kind::ClientLeaves, 2),
    (Kind::ClientStartsClean, 1),
    (Kind::SlowDisk, 2),
    (Kind::TightDisk, 2),
    (Kind::SlowClient, 2),
    (Kind::ClockJump, 2),
];

/// The faults of a run.
#[derive(Debug)]
pub struct Faults {
    dice: Dice,
    kinds: Vec<(Kind, u64)>,
    pause: Micros,
    /// When the last one strikes and everything is healed.
    pub ends: Micros,
    /// Nodes that crash as soon as they acknowledge something.
    pub crash_at_ack: BTreeSet<usize>,
    /// Nodes whose disk is slow.
    pub slow_disks: BTreeSet<usize>,
    /// Nodes whose disk is tight.
    pub tight_disks: BTreeSet<usize>,
}

impl Faults {
    /// Draws which kinds there are, how often they strike and how long.
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 3);
        let mut kinds: Vec<_> = KINDS.into_iter().filter(|_| dice.permille(600)).collect();
        if kinds.is_empty() {
            kinds.push(KINDS[0]);
        }
        let pause = dice.range(80, 1_500) * MS;
        let ends = dice.range(4, 16) * SECOND;
        Self {
            dice,
            kinds,
            pause,
            ends,
            crash_at_ack: BTreeSet::new(),
            slow_disks: BTreeSet::new(),
            tight_disks: BTreeSet::new(),
        }
    }

    /// Draws how wrong the wall clocks are.
    pub fn draw_clocks(&mut self, nodes: &mut [Node]) {
        for node in nodes {
            node.wall_offset_ms = self.wall_offset();
        }
    }

    fn wall_offset(&mut self) -> i64 {
        self.dice.range(0, 2 * WALL_OFF_MS) as i64 - WALL_OFF_MS as i64
    }

    fn draw(&mut self) -> Kind {
        let all: u64 = self.kinds.iter().map(|(_, weight)| weight).sum();
        let mut left = self.dice.range(0, all);
        for (kind, weight) in &self.kinds {
            if left < *weight {
                return *kind;
            }
            left -= weight;
        }
        self.kinds[0].0
    }
}

impl World {
    pub(crate) fn plan_fault(&mut self) {
        let delay = self.faults.dice.range(self.faults.pause / 4, self.faults.pause * 2);
        if self.clock.now() + delay < self.faults.ends {
            self.clock.after(delay, Happening::Fault);
        }
    }

    pub(crate) fn fault(&mut self) {
        let kind = self.faults.draw();
        let node = self.faults.dice.index(NODES);
        let peer = (node + 1 + self.faults.dice.index(NODES - 1)) % NODES;
        let client = self.faults.dice.index(self.clients.len());
        let lasts = self.faults.dice.range(50 * MS, 4 * SECOND);
        let at = self.clock.now();
        match kind {
            Kind::Crash => self.crash(node, "crash"),
            Kind::CrashAtAck => drop(self.faults.crash_at_ack.insert(node)),
            Kind::BreakLink => {
                self.history.fault(at, "break link", || format!("{node} - {peer}"));
                self.break_link(node, peer);
            }
            Kind::BlockOneWay => self.block(&[(node, peer)], lasts),
            Kind::Partition => {
                let both = |a: usize, b: usize| [(a, b), (b, a)];
                let others = (0..NODES).filter(|other| *other != node);
                let ways: Vec<_> = others.flat_map(|other| both(node, other)).collect();
                self.block(&ways, lasts + SECOND);
            }
            Kind::ClientCut => self.cut_client(client),
            Kind::ClientLeaves => {
                let delay = self.faults.dice.range(10 * MS, 3 * SECOND);
                self.client_leaves(client, delay);
            }
            Kind::ClientStartsClean => {
                self.history.fault(at, "clean start", || format!("client-{client}"));
                // In 3.1.1 a clean session would also end with this connection.
                // Apart, nobody at the other nodes can know of it.
                self.clients[client].roaming.roams = false;
                self.clients[client].start_clean =
                    self.clients[client].profile.version == Version::V5;
                self.cut_client(client);
            }
            Kind::SlowDisk => {
                self.history.fault(at, "slow disk", || format!("{node} for {lasts} us"));
                self.faults.slow_disks.insert(node);
                self.clock.after(lasts, Happening::Undo(Undo::SlowDisk, node));
            }
            Kind::TightDisk => {
                self.history.fault(at, "tight disk", || format!("{node} for {lasts} us"));
                self.nodes[node].disk.be_tight(true);
                self.faults.tight_disks.insert(node);
                self.clock.after(lasts, Happening::Undo(Undo::TightDisk, node));
            }
            Kind::SlowClient => {
                self.history.fault(at, "slow client", || format!("client-{client} for {lasts} us"));
                let home = self.clients[client].profile.node;
                self.nodes[home].set_slow(client, true);
                self.clock.after(lasts, Happening::Undo(Undo::SlowClient, client));
            }
            Kind::ClockJump => {
                let offset = self.faults.wall_offset();
                self.history.fault(at, "clock jump", || format!("{node} to {offset} ms"));
                self.nodes[node].wall_offset_ms = offset;
            }
        }
        self.plan_fault();
    }

    pub(crate) fn undo(&mut self, what: Undo, index: usize) {
        match what {
            Undo::SlowDisk => drop(self.faults.slow_disks.remove(&index)),
            Undo::TightDisk => {
                self.faults.tight_disks.remove(&index);
                self.nodes[index].disk.be_tight(false);
            }
            Undo::SlowClient => {
                self.nodes.iter_mut().for_each(|node| node.set_slow(index, false));
                (0..NODES).for_each(|node| self.plan_turn(node));
            }
        }
    }

    /// Everything that can be mended is mended. Wall clocks stay wrong: nobody mends those.
    pub(crate) fn heal(&mut self) {
        let at = self.clock.now();
        self.history.step(at, &[30], || "---- everything is healed".to_owned());
        self.faults.crash_at_ack.clear();
        self.faults.slow_disks.clear();
        self.faults.tight_disks.clear();
        for node in 0..NODES {
            self.nodes[node].disk.be_tight(false);
            for other in 0..NODES {
                self.network.direction(node, other).blocked_until = at;
            }
            self.start(node);
        }
        for client in 0..self.clients.len() {
            self.undo(Undo::SlowClient, client);
            if !self.clients[client].is_connected() {
                self.plan_connect(client, 10 * MS);
            }
        }
    }

    fn block(&mut self, ways: &[(usize, usize)], lasts: Micros) {
        let at = self.clock.now();
        self.history.fault(at, "block", || format!("{ways:?} for {lasts} us"));
        for (from, to) in ways {
            self.network.direction(*from, *to).blocked_until = at + lasts;
            let (a, b) = (*from.min(to), *from.max(to));
            if let (Some(number), true) = (self.pairs.get(&(a, b)).copied(), lasts > IDLE_TIMEOUT) {
                self.clock.after(IDLE_TIMEOUT, Happening::Silent(a, b, number));
            }
        }
    }

    pub(crate) fn crash(&mut self, node: usize, name: &'static str) {
        if !self.nodes[node].is_up() {
            return;
        }
        let at = self.clock.now();
        let torn = self.faults.dice.permille(500).then(|| self.faults.dice.bits());
        self.history.fault(at, name, || format!("node {node}, torn {}", torn.is_some()));
        self.nodes[node].crash(torn);
        self.interest_pending.retain(|key| key.0 != node);
        for lost in self.wills_unsynced.extract_if(.., |will| will.node == node) {
            self.wills_off.remove(&lost.will);
        }
        for other in (0..NODES).filter(|other| *other != node) {
            self.break_link(node, other);
            self.network.direction(node, other).sender = crate::network::End::Down;
        }
        let bytes_are_lost = self.faults.dice.permille(500);
        for client in 0..self.clients.len() {
            let link = (client, self.clients[client].link_number);
            let is_here = self.wires.get(&link).is_some_and(|wire| wire.node == node);
            if is_here && self.clients[client].is_connected() {
                let after_bytes = self.wires.get(&link).map_or(at, |wire| wire.to_client);
                let delay = self.faults.dice.range(0, 500 * MS);
                let due = if bytes_are_lost { at } else { after_bytes } + delay;
                if let Some(wire) = self.wires.get_mut(&link) {
                    (wire.cut_to_node, wire.cut_to_client) = (true, bytes_are_lost);
                }
                self.clock.at(due, Happening::LostAtClient(link));
            }
        }
        let delay = self.faults.dice.range(10 * MS, 2 * SECOND);
        self.clock.after(delay, Happening::Start(node));
    }

    /// A client's connection breaks; the node hears of it now, later, or never.
    pub(crate) fn cut_client(&mut self, client: usize) {
        if !self.clients[client].is_connected() {
            return;
        }
        let (at, link) = (self.clock.now(), (client, self.clients[client].link_number));
        let (loses_in, loses_out) =
            (self.faults.dice.permille(500), self.faults.dice.permille(700));
        let delay = self.faults.dice.range(0, 2 * SECOND);
        self.history.fault(at, "client cut", || format!("client-{client}, heard after {delay} us"));
        let mut due = at + delay;
        if let Some(wire) = self.wires.get_mut(&link) {
            (wire.cut_to_node, wire.cut_to_client) = (loses_in, loses_out);
            due = due.max(wire.to_node);
        }
        self.clock.at(due, Happening::LostAtNode(link, !loses_in));
        self.lost_at_client(link);
    }

    pub(crate) fn client_leaves(&mut self, client: usize, delay: Micros) {
        if !self.clients[client].is_welcomed() {
            return;
        }
        let (at, link) = (self.clock.now(), (client, self.clients[client].link_number));
        self.history.fault(at, "client leaves", || format!("client-{client}"));
        let will = self.clients[client].will();
        let bytes = self.clients[client].goodbye();
        self.send_to_node(link, bytes, will);
        let due = self.wires.get(&link).map_or(at, |wire| wire.to_node);
        self.clock.at(due, Happening::LostAtNode(link, true));
        self.plan_connect(client, delay);
    }
}
