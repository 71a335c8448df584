//! What happens on the ways: between nodes, and between a client and its node.

use outpost_membership::{PeerFrame, Shares};
use outpost_model::NodeId;

use crate::Mutant;
use crate::clock::{MS, Micros, SECOND};
use crate::network::{End, Network};
use crate::node::Link;
use crate::workload::shared_filters_of;
use crate::world::{Happening, Stage, UnsyncedWill, Wire, World};

/// A link over which nothing passes in one direction for this long breaks.
pub const IDLE_TIMEOUT: Micros = 3 * SECOND;

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    fn link(&self, a: usize, b: usize) -> u64 {
        self.pairs.get(&pair(a, b)).copied().unwrap_or(0)
    }

    fn node_of(&self, id: NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    // ---- nodes -------------------------------------------------------------------------------------------------

    pub(crate) fn dial(&mut self, a: usize, b: usize) {
        let at = self.clock.now();
        let open = |world: &mut Self, from, to| {
            let way = world.network.direction(from, to);
            way.sender == End::Down && way.blocked_until <= at
        };
        let both_up = self.nodes[a].is_up() && self.nodes[b].is_up();
        if both_up && self.link(a, b) == 0 && open(self, a, b) && open(self, b, a) {
            let number = self.network.new_link();
            self.network.lose(a, b);
            self.pairs.insert(pair(a, b), number);
            for (node, peer) in [(a, b), (b, a)] {
                let delay = self.net_dice.range(MS, 30 * MS);
                self.clock.after(delay, Happening::EndUp(node, peer, number));
            }
        }
        let pause = self.net_dice.range(100 * MS, 800 * MS);
        self.clock.after(pause, Happening::Dial(a, b));
    }

    pub(crate) fn end_up(&mut self, node: usize, peer: usize, number: u64) {
        if self.link(node, peer) != number || !self.nodes[node].is_up() {
            return;
        }
        let at = self.clock.now();
        self.history.step(at, &[10, node as u64, peer as u64], || {
            format!("node {node} has a link to {peer}")
        });
        self.network.direction(node, peer).sender = End::Up(number);
        let (id, now) = (self.nodes[peer].id, self.now_at(node));
        self.nodes[node].peer(id, true, now);
        self.plan_turn(node);
        for lane in 0..3 {
            for _ in 0..self.network.direction(peer, node).lanes[lane].frames.len() {
                self.clock.after(1, Happening::Frame(peer, node, lane, number));
            }
        }
    }

    /// A link breaks; each side notices when it does.
    pub(crate) fn break_link(&mut self, a: usize, b: usize) {
        let number = self.link(a, b);
        if number == 0 {
            return;
        }
        self.pairs.insert(pair(a, b), 0);
        self.network.lose(a, b);
        for (node, peer) in [(a, b), (b, a)] {
            let delay = self.net_dice.range(0, 300 * MS);
            self.clock.after(delay, Happening::EndDown(node, peer, number));
        }
    }

    pub(crate) fn end_down(&mut self, node: usize, peer: usize, number: u64) {
        if self.network.direction(node, peer).sender != End::Up(number) {
            return;
        }
        self.network.direction(node, peer).sender = End::Down;
        let at = self.clock.now();
        self.history.step(at, &[11, node as u64, peer as u64], || {
            format!("node {node} lost its link to {peer}")
        });
        let (id, now) = (self.nodes[peer].id, self.now_at(node));
        self.nodes[node].peer(id, false, now);
        self.plan_turn(node);
    }

    pub(crate) fn silent(&mut self, a: usize, b: usize, number: u64) {
        let at = self.clock.now();
        let blocked = [(a, b), (b, a)]
            .into_iter()
            .any(|(from, to)| self.network.direction(from, to).blocked_until > at);
        if blocked && self.link(a, b) == number {
            self.break_link(a, b);
        }
    }

    pub(crate) fn send_frame(&mut self, from: usize, peer: NodeId, frame: PeerFrame) {
        let Some(to) = self.node_of(peer) else { return };
        let (at, number) = (self.clock.now(), self.link(from, to));
        let lane = Network::lane_of(&frame);
        if number == 0 || self.network.direction(from, to).sender != End::Up(number) {
            return;
        }
        if self.vanishes(&frame) {
            return;
        }
        let quick = self.net_dice.permille(900);
        let delay = self.net_dice.range(200, if quick { 5 * MS } else { 120 * MS });
        let reorder = self.mutant(Mutant::LanesReorder);
        let queue = &mut self.network.direction(from, to).lanes[lane];
        let due = (at + delay).max(queue.last);
        queue.last = due;
        if reorder && self.net_dice.permille(20) {
            self.network.direction(from, to).lanes[lane].frames.push_front((due, frame));
        } else {
            self.network.direction(from, to).lanes[lane].frames.push_back((due, frame));
        }
        self.clock.at(due, Happening::Frame(from, to, lane, number));
    }

    fn vanishes(&mut self, frame: &PeerFrame) -> bool {
        let at_risk = match frame {
            PeerFrame::Event { .. } => self.mutant(Mutant::EventsVanish),
            PeerFrame::Shadow(_) => self.mutant(Mutant::ShadowFramesVanish),
            PeerFrame::Retained { .. } => self.mutant(Mutant::RetainedVanishes),
            _ => false,
        };
        at_risk && self.net_dice.permille(20)
    }

    pub(crate) fn frame(&mut self, from: usize, to: usize, lane: usize, number: u64) {
        let at = self.clock.now();
        if self.link(from, to) != number || !self.nodes[to].is_up() {
            return;
        }
        if self.network.direction(to, from).sender != End::Up(number) {
            return; // arrives when this side is up
        }
        let way = self.network.direction(from, to);
        if way.blocked_until > at {
            let due = way.blocked_until;
            return self.clock.at(due, Happening::Frame(from, to, lane, number));
        }
        let Some((_, mut frame)) = way.lanes[lane].frames.pop_front() else { return };
        self.history.step(at, &[12, from as u64, to as u64, lane as u64], || {
            format!("{from} -> {to} {frame:?}")
        });
        self.note_interest(to, from, &frame);
        let (id, now) = (self.nodes[from].id, self.now_at(to));
        if let (true, PeerFrame::Retained { entry, .. }) =
            (self.mutant(Mutant::RetainedByWallClock), &mut frame)
        {
            entry.stamp = outpost_model::Hlc::from_ms(now.wall_ms);
        }
        if let PeerFrame::Event { message, shares, .. } = &mut frame {
            if self.mutant(Mutant::ShareNamesLost) {
                *shares = None;
            }
            if self.mutant(Mutant::SharesEverywhere) {
                let groups = shared_filters_of(&message.topic);
                *shares = Some(std::sync::Arc::new(Shares { groups, ..Shares::default() }));
            }
        }
        self.nodes[to].frame(id, frame, now);
        self.plan_turn(to);
    }

    /// What a node hears of another's durable interest.
    fn note_interest(&mut self, knower: usize, wanter: usize, frame: &PeerFrame) {
        let key = |pattern: &str| (knower, wanter, pattern.to_owned());
        let (set, gone) = match frame {
            PeerFrame::InterestAll(all) => {
                let mine = |key: &(usize, usize, String)| (key.0, key.1) == (knower, wanter);
                let still = |pattern: &str| all.iter().any(|i| i.durable && i.pattern == pattern);
                self.history.interest.retain(|key, _| !mine(key) || still(&key.2));
                self.interest_pending.retain(|key| !mine(key));
                (all.as_slice(), &[][..])
            }
            PeerFrame::InterestAdd(more) => (more.as_slice(), &[][..]),
            PeerFrame::InterestRemove(gone) => (&[][..], gone.as_slice()),
            _ => return,
        };
        for interest in set {
            let key = key(&interest.pattern);
            if !interest.durable {
                self.history.interest.remove(&key);
                self.interest_pending.remove(&key);
            } else if !self.history.interest.contains_key(&key) {
                self.interest_pending.insert(key);
            }
        }
        for pattern in gone {
            self.history.interest.remove(&key(pattern));
            self.interest_pending.remove(&key(pattern));
        }
    }

    /// Everything a node was handed is on its disk now.
    pub(crate) fn promote_interest(&mut self, node: usize) {
        if self.interest_pending.is_empty() || self.nodes[node].disk.waiting() > 0 {
            return;
        }
        let at = self.clock.now();
        let mine: Vec<_> =
            self.interest_pending.iter().filter(|key| key.0 == node).cloned().collect();
        for key in mine {
            self.interest_pending.remove(&key);
            self.history.interest.insert(key, at);
        }
        self.history.note_heard();
    }

    // ---- clients -----------------------------------------------------------------------------------------------

    pub(crate) fn plan_connect(&mut self, client: usize, delay: Micros) {
        if self.connecting.insert(client) {
            self.clock.after(delay, Happening::Connect(client));
        }
    }

    pub(crate) fn connect(&mut self, client: usize) {
        self.connecting.remove(&client);
        if self.clients[client].is_connected() {
            return;
        }
        let node = self.clients[client].profile.node;
        if !self.nodes[node].is_up() {
            let delay = self.net_dice.range(50 * MS, 500 * MS);
            return self.plan_connect(client, delay);
        }
        let will = self.new_will(client);
        let at = self.clock.now();
        let bytes = self.clients[client].connect(will, at, &mut self.history);
        if self.clients[client].roaming.roams {
            self.note_sides(client);
        }
        let link = (client, self.clients[client].link_number);
        self.history.step(at, &[20, client as u64, link.1], || format!("client-{client} connects"));
        let due = at + self.net_dice.range(100, 3 * MS);
        self.wires.insert(link, Wire { node, to_node: due, to_client: due, ..Wire::default() });
        self.clock.at(due, Happening::Accept(link));
        self.send_to_node(link, bytes, None);
        let keep_alive_s = u64::from(self.clients[client].profile.keep_alive_s);
        if keep_alive_s > 0 {
            self.clock.after(keep_alive_s * SECOND / 2, Happening::Ping(link));
        }
    }

    pub(crate) fn accept(&mut self, link: Link) {
        let Some(wire) = self.wires.get(&link).filter(|wire| !wire.cut_to_node) else { return };
        let node = wire.node;
        if !self.nodes[node].is_up() {
            return self.lost_at_client(link);
        }
        let now = self.now_at(node);
        self.nodes[node].accept(link, now);
    }

    pub(crate) fn send_to_node(&mut self, link: Link, bytes: Vec<u8>, calls_off: Option<usize>) {
        if bytes.is_empty() {
            return;
        }
        let at = self.clock.now();
        let delay = self.net_dice.range(100, 4 * MS);
        let Some(wire) = self.wires.get_mut(&link) else { return };
        wire.to_node = wire.to_node.max(at + delay);
        let due = wire.to_node;
        self.clock.at(due, Happening::ToNode(link, bytes, calls_off));
    }

    pub(crate) fn arrive_at_node(&mut self, link: Link, bytes: &[u8], calls_off: Option<usize>) {
        let Some(wire) = self.wires.get(&link).filter(|wire| !wire.cut_to_node) else { return };
        let node = wire.node;
        if !self.nodes[node].is_up() {
            return;
        }
        let at = self.clock.now();
        self.history.step(at, &[21, link.0 as u64, link.1], || {
            format!("client-{} -> node {node} {}", link.0, text_of(bytes))
        });
        self.history.bytes(bytes);
        let now = self.now_at(node);
        if self.nodes[node].receive(link, bytes, now) {
            self.wills_off.extend(calls_off);
            self.wills_unsynced.extend(calls_off.map(|will| UnsyncedWill { node, will, syncs: 0 }));
        }
        self.plan_turn(node);
    }

    pub(crate) fn send_to_client(&mut self, link: Link, bytes: Vec<u8>) {
        let at = self.clock.now();
        let delay = self.net_dice.range(100, 4 * MS);
        let Some(wire) = self.wires.get_mut(&link) else { return };
        wire.to_client = wire.to_client.max(at + delay);
        let due = wire.to_client;
        self.clock.at(due, Happening::ToClient(link, bytes));
    }

    pub(crate) fn arrive_at_client(&mut self, link: Link, bytes: &[u8]) {
        let client = link.0;
        if self.wires.get(&link).is_none_or(|wire| wire.cut_to_client)
            || self.clients[client].link_number != link.1
        {
            return;
        }
        let at = self.clock.now();
        self.history.step(at, &[22, client as u64, link.1], || {
            format!("client-{client} <- {}", text_of(bytes))
        });
        self.history.bytes(bytes);
        if self.clients[client].roaming.roams && !self.clients[client].has_answer() {
            self.note_sides(client);
        }
        let answer = self.clients[client].receive(bytes, at, &mut self.history);
        self.send_to_node(link, answer, None);
        self.let_send(client);
    }

    /// A client sends what it may.
    pub(crate) fn let_send(&mut self, client: usize) {
        let at = self.clock.now();
        let bytes = self.clients[client].send(at, &mut self.history);
        let link = (client, self.clients[client].link_number);
        self.send_to_node(link, bytes, None);
    }

    pub(crate) fn lost_at_node(&mut self, link: Link, in_order: bool) {
        let Some(Wire { node, .. }) = self.wires.remove(&link) else { return };
        let now = self.now_at(node);
        self.nodes[node].lost(link, in_order, now);
        self.plan_turn(node);
    }

    pub(crate) fn lost_at_client(&mut self, link: Link) {
        let client = link.0;
        if self.clients[client].link_number != link.1 || !self.clients[client].is_connected() {
            return;
        }
        let at = self.clock.now();
        self.history.step(at, &[23, client as u64, link.1], || {
            format!("client-{client} lost its connection")
        });
        self.clients[client].disconnected();
        self.look_elsewhere(client);
        let most = if self.stage == Stage::Break { 3 * SECOND } else { 300 * MS };
        let delay = self.net_dice.range(10 * MS, most);
        self.plan_connect(client, delay);
    }

    pub(crate) fn ping(&mut self, link: Link) {
        let client = link.0;
        if self.clients[client].link_number != link.1 || !self.clients[client].is_connected() {
            return;
        }
        let keep_alive_s = u64::from(self.clients[client].profile.keep_alive_s);
        if self.clients[client].is_welcomed() {
            let bytes = self.clients[client].ping();
            self.send_to_node(link, bytes, None);
        }
        self.clock.after(keep_alive_s * SECOND / 2, Happening::Ping(link));
    }
}

fn text_of(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
