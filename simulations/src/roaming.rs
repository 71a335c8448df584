//! Clients that come back at other nodes: when they do, and what is promised to them then (decision 0011).
//!
//! Always: nothing acknowledged is lost, and in the end one node has the session. What is not promised depends on what the
//! client has lived through: while its session is on its way (a [`Span`] of `moves`) new messages may come before older
//! ones; and when it was at two nodes at once (a span of `blurs`), one with QoS 2 may come twice.

use outpost_actors::record::{ArrivalRecord, StateRecord, decode};
use outpost_store::{Space, Store as _};

use crate::client::{Client, Wish};
use crate::clock::{MS, Micros, SECOND};
use crate::dice::Dice;
use crate::history::History;
use crate::network::End;
use crate::world::{Happening, NODES, Stage, World};

/// When everything was linked and quick for so long, a session is there when its client is let in.
const CALM: Micros = 3 * SECOND;

/// From one moment to another, or until now.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Its first moment.
    pub from: Micros,
    /// Its last.
    pub to: Option<Micros>,
    /// The client moved on before it was over.
    pub went_on: bool,
}

impl Span {
    /// Whether one of these moments is in it.
    pub fn touches(&self, from: Micros, to: Micros) -> bool {
        self.from <= to && self.to.is_none_or(|end| end >= from)
    }
}

/// What a client has lived through at several nodes.
#[derive(Debug, Default)]
pub struct Roaming {
    /// It comes back at other nodes.
    pub roams: bool,
    /// While more than one node had something of its session.
    pub moves: Vec<Span>,
    /// While it may have been at two nodes at once.
    pub blurs: Vec<Span>,
    /// How often it was told that it has no session where it had one.
    pub anew: u64,
    /// Where its last CONNECT went, when, and whether that was answered.
    asked: Option<(usize, Micros, bool)>,
}

impl Roaming {
    /// It sends CONNECT to a node.
    pub fn connecting(&mut self, node: usize, at: Micros) {
        if let Some((.., answered)) = self.asked.filter(|(before, ..)| *before != node) {
            if let Some(span) = self.moves.last_mut().filter(|span| span.to.is_none()) {
                span.went_on = true;
                self.blur(at); // what it had before it went on is not remembered where it is now
            } else {
                self.moves.push(Span { from: at, to: None, went_on: false });
            }
            if !answered {
                self.blur(at);
            }
        }
        self.asked = Some((node, at, false));
    }

    /// Whether its last CONNECT was answered.
    pub fn has_answer(&self) -> bool {
        self.asked.is_none_or(|(.., answered)| answered)
    }

    fn answered(&mut self) {
        if let Some((.., answered)) = &mut self.asked {
            *answered = true;
        }
    }

    fn blur(&mut self, at: Micros) {
        if !self.is_blurred() {
            self.blurs.push(Span { from: at, to: None, went_on: false });
        }
    }

    /// Whether it may be at two nodes at once, as far as they know.
    pub fn is_blurred(&self) -> bool {
        is_open(&self.blurs)
    }

    /// Whether nobody can be blamed that its session is not there: it is on its way, and something was broken or slow.
    fn may_find_none(&self, history: &History) -> bool {
        let asked_at = self.asked.map_or(0, |(_, at, _)| at);
        is_open(&self.moves) && asked_at < history.calm_since + CALM
    }
}

fn is_open(spans: &[Span]) -> bool {
    spans.last().is_some_and(|span| span.to.is_none())
}

fn close(spans: &mut [Span], at: Micros) {
    if let Some(span) = spans.last_mut() {
        span.to.get_or_insert(at);
    }
}

impl Client {
    /// The server has answered its CONNECT; whether there is a session, and whether the client has one.
    pub(crate) fn welcomed(
        &mut self,
        (is_there, is_expected): (bool, bool),
        at: Micros,
        history: &mut History,
    ) {
        self.roaming.answered();
        if is_there || !is_expected {
            return;
        }
        if self.roaming.may_find_none(history) {
            self.begin_anew(at, history);
        } else {
            let text = format!("client-{}: its session is lost", self.profile.index);
            history.violation(at, text);
        }
    }

    /// It has to begin anew (MQTT-3.2.2-5): what was under way is in doubt, what it wants it asks for again. What it had at
    /// the other node joins later.
    fn begin_anew(&mut self, at: Micros, history: &mut History) {
        self.roaming.blur(at);
        self.roaming.anew += 1;
        self.received.clear();
        for outgoing in std::mem::take(&mut self.outgoing) {
            match outgoing.wish {
                Wish::Publish { number, .. } => {
                    let publish = &mut history.publishes[number];
                    publish.uncertain |= publish.acked.is_none();
                }
                Wish::Subscribe(_) | Wish::Unsubscribe(_) => {}
            }
        }
        for (index, subscription) in history.subscriptions.iter_mut().enumerate() {
            let is_mine = subscription.client == self.profile.index && subscription.asked <= at;
            if is_mine && subscription.ended.is_none() {
                self.wish_first(Wish::Subscribe(index));
            }
        }
    }
}

/// Who roams in a run, and how often.
#[derive(Debug)]
pub struct Roams {
    dice: Dice,
    /// Of a thousand clients whose sessions are kept.
    roamers: u64,
    pause: Micros,
    /// Of a thousand moves those that do not wait until the node before has answered.
    impatient: u64,
}

impl Roams {
    /// Draws it.
    pub fn new(seed: u64, roam: bool) -> Self {
        let mut dice = Dice::new(seed, 5);
        let roamers = if roam { dice.range(200, 1_000) } else { 0 };
        let pause = dice.range(50, 2_000) * MS;
        let impatient = if dice.permille(300) { 300 } else { 0 };
        Self { dice, roamers, pause, impatient }
    }
}

impl World {
    pub(crate) fn prepare_roaming(&mut self) {
        if self.roams.roamers == 0 {
            return;
        }
        for client in self.clients.iter_mut().filter(|client| client.profile.durable) {
            client.roaming.roams = self.roams.dice.permille(self.roams.roamers);
        }
        self.clock.after(self.roams.pause, Happening::Roam);
    }

    /// Some client turns up elsewhere.
    pub(crate) fn roam(&mut self) {
        if self.stage > Stage::Break {
            return;
        }
        let client = self.roams.dice.index(self.clients.len());
        let patient = !self.roams.dice.permille(self.roams.impatient);
        let waits = patient && !self.clients[client].has_answer();
        if self.clients[client].roaming.roams && !waits {
            self.turn_up_elsewhere(client);
        }
        let delay = self.roams.dice.range(self.roams.pause / 8, self.roams.pause * 2);
        self.clock.after(delay, Happening::Roam);
    }

    fn turn_up_elsewhere(&mut self, client: usize) {
        let (at, this) = (self.clock.now(), &mut self.clients[client]);
        let from = this.profile.node;
        let to = (from + 1 + self.roams.dice.index(NODES - 1)) % NODES;
        this.profile.node = to;
        self.history.fault(at, "roam", || format!("client-{client} from node {from} to {to}"));
        if !self.clients[client].is_connected() {
            return; // its next CONNECT goes there
        }
        let delay = self.roams.dice.range(MS, 200 * MS);
        if self.clients[client].is_welcomed() && self.roams.dice.permille(300) {
            self.client_leaves(client, delay);
        } else if self.roams.dice.permille(500) {
            self.plan_connect(client, delay);
            self.cut_client(client);
        } else {
            // The node is never told.
            let link = (client, self.clients[client].link_number);
            if let Some(wire) = self.wires.get_mut(&link) {
                (wire.cut_to_node, wire.cut_to_client) = (true, true);
            }
            self.plan_connect(client, delay);
            self.lost_at_client(link);
        }
    }

    /// A client's connection broke: it may look for another node.
    pub(crate) fn look_elsewhere(&mut self, client: usize) {
        let is_due = self.clients[client].roaming.roams && self.stage == Stage::Break;
        if is_due && self.clients[client].has_answer() && self.roams.dice.permille(300) {
            let node = self.roams.dice.index(NODES);
            self.clients[client].profile.node = node;
        }
    }

    /// All is well: everybody who roams does so once more, while everybody publishes.
    pub(crate) fn roam_calmly(&mut self) {
        let at = self.clock.now();
        for client in 0..self.clients.len() {
            close(&mut self.clients[client].roaming.blurs, at);
            self.wish_calm_bursts(client);
        }
        for client in 0..self.clients.len() {
            if self.clients[client].roaming.roams {
                self.turn_up_elsewhere(client);
            }
        }
    }

    /// Whether somebody roams in this run.
    pub(crate) fn has_roamers(&self) -> bool {
        self.clients.iter().any(|client| client.roaming.roams)
    }

    /// What is broken now, or slow.
    pub(crate) fn note_calm(&mut self) {
        let at = self.clock.now();
        let is_broken = !self.faults.slow_disks.is_empty()
            || self.network.is_blocked(at)
            || self.pairs.len() < NODES * (NODES - 1) / 2
            || self.pairs.values().any(|number| *number == 0)
            || !self.faults.tight_disks.is_empty()
            || self.nodes.iter().any(|node| !node.is_up());
        if is_broken {
            self.history.calm_since = at;
        }
    }

    /// Notes clients that are let in by a node which cannot ask another that has their sessions, and sessions that have come
    /// where their clients are: no other node has anything of them.
    pub(crate) fn note_moves(&mut self) {
        let at = self.clock.now();
        for client in 0..self.clients.len() {
            let roaming = &self.clients[client].roaming;
            if is_open(&roaming.moves) && !roaming.has_answer() {
                self.note_sides(client);
            }
        }
        if self.nodes.iter().any(|node| !node.is_up()) {
            // What a session was given before it came is not remembered by a process that was killed.
            for client in &mut self.clients {
                if is_open(&client.roaming.moves) {
                    client.roaming.blur(at);
                }
            }
            return;
        }
        for client in 0..self.clients.len() {
            let this = &self.clients[client];
            let is_on_its_way = is_open(&this.roaming.moves);
            if is_on_its_way && this.is_welcomed() && self.is_home(client) && self.is_all(client) {
                close(&mut self.clients[client].roaming.moves, at);
            }
        }
    }

    /// A client that asks to be let in, or is, may be at both sides of a cut.
    pub(crate) fn note_sides(&mut self, client: usize) {
        let (at, home) = (self.clock.now(), self.clients[client].profile.node);
        let name = format!("client-{client}");
        let is_apart = (0..NODES).filter(|node| *node != home).any(|other| {
            let node = &self.nodes[other];
            !node.is_up() || (node.has_session(&name) && !self.is_linked(home, other))
        });
        if is_apart {
            self.clients[client].roaming.blur(at);
        }
    }

    fn is_linked(&mut self, a: usize, b: usize) -> bool {
        let at = self.clock.now();
        [(a, b), (b, a)].into_iter().all(|(from, to)| {
            let way = self.network.direction(from, to);
            way.sender != End::Down && way.blocked_until <= at
        })
    }

    /// Whether the node a client is at is the only one that has its session.
    fn is_home(&self, client: usize) -> bool {
        let (home, name) = (self.clients[client].profile.node, format!("client-{client}"));
        self.nodes.iter().all(|node| node.has_session(&name) == (node.index == home))
    }

    /// Whether the node a client is at waits for nothing of its session.
    fn is_all(&self, client: usize) -> bool {
        let home = &self.nodes[self.clients[client].profile.node];
        let key = format!("state/arrival/{}/client-{client}", home.id.0);
        let row = home.disk.get(Space::Meta, key.as_bytes());
        let row = row.expect("reads of a memory store do not fail");
        let record = row.and_then(|row| decode::<StateRecord>("state", &row).ok());
        let value = record.and_then(|record| record.value);
        let arrival = value.and_then(|row| decode::<ArrivalRecord>("arrival", &row).ok());
        arrival.is_none_or(|arrival| arrival.came_from.is_empty())
    }

    /// Sessions that are not where their clients are, or not there alone, or not all there.
    pub(crate) fn on_their_way(&self) -> Vec<String> {
        let clients = self.clients.iter().filter(|client| client.profile.durable);
        let indexes = clients.map(|client| client.profile.index);
        let moving = indexes.filter(|index| !self.is_home(*index) || !self.is_all(*index));
        moving
            .map(|index| {
                let name = format!("client-{index}");
                let at = self.nodes.iter().filter(|node| node.has_session(&name));
                let at: Vec<usize> = at.map(|node| node.index).collect();
                let home = self.clients[index].profile.node;
                format!("{name} is at node {home}, of its session nodes {at:?} have something")
            })
            .collect()
    }

    /// Whether all sessions that are kept are where their clients are, and nowhere else.
    pub(crate) fn are_all_home(&self) -> bool {
        let clients = self.clients.iter().filter(|client| client.profile.durable);
        clients.into_iter().all(|client| self.is_home(client.profile.index))
            && self.nodes.iter().all(|n| n.stats().is_some_and(|s| s.sessions_moving == 0))
    }
}
