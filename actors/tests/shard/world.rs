//! A world for stories: shards on memory stores, clients that speak bytes, a link that can be cut, a clock set by hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use outpost_actors::ports::{Gate, OpenGate, Origin};
use outpost_actors::shard::{ConnId, Event, Probe, Shard, ShardConfig};
use outpost_membership::PeerFrame;
use outpost_model::{NodeId, Now, QoS};
use outpost_mqtt::codec::{Decoder, PACKET_BYTES_MAX, encode};
use outpost_mqtt::packet::{
    Ack, Connack, Connect, Packet, PacketId, Publish, ReasonCode, Subscribe, SubscribeOptions,
    Unsubscribe, Version,
};
use outpost_store::{MemoryStore, Store};

pub use crate::packets::{fleeting, id, publish, text, v4, v5, will};

mod moves;

/// Rounds after which something goes in a circle.
const ROUNDS_MAX: usize = 10_000;

/// A client of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client(usize);

struct Node {
    shard: Shard,
    store: Arc<MemoryStore>,
    config: ShardConfig,
    gate: Arc<dyn Gate>,
    probe: Option<Probe>,
}

struct Wire {
    node: usize,
    conn: ConnId,
    name: String,
    version: Version,
    decoder: Decoder,
    received: Vec<u8>,
    packets: VecDeque<Packet>,
    unsent: Vec<u8>,
    open: bool,
    /// It reads nothing: what is for it stays in its out buffer.
    deaf: bool,
}

/// Everything there is.
pub struct World {
    nodes: Vec<Node>,
    wires: Vec<Wire>,
    now: Now,
    link_up: bool,
    in_flight: VecDeque<(usize, usize, PeerFrame)>,
    /// Frames that went over the link.
    pub frames: usize,
    /// QoS 2 packet ids each client remembers, by client id: it survives its connections.
    taken: BTreeMap<String, BTreeSet<PacketId>>,
    pub logs: Vec<String>,
    next_id: u16,
}

fn node_id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

impl World {
    /// One node with default limits.
    pub fn new() -> Self {
        Self::with(1, |_| {})
    }

    /// Some nodes with limits of their own.
    pub fn with(nodes: usize, limits: impl Fn(&mut ShardConfig)) -> Self {
        let now = Now { mono_ms: 1_000, wall_ms: 1_700_000_000_000 };
        let node = |n: usize| {
            let store = Arc::new(MemoryStore::new(100 + n as u64));
            let mut config = ShardConfig::new(node_id(n), store.store_id());
            limits(&mut config);
            let shard = open(&config, &store, Arc::new(OpenGate), None, now);
            Node { shard, store, config, gate: Arc::new(OpenGate), probe: None }
        };
        Self {
            nodes: (0..nodes).map(node).collect(),
            wires: Vec::new(),
            now,
            link_up: false,
            in_flight: VecDeque::new(),
            frames: 0,
            taken: BTreeMap::new(),
            logs: Vec::new(),
            next_id: 30_000,
        }
    }

    /// One node that asks this gate from now on; it has to be started again after the first.
    pub fn guarded(gate: Arc<dyn Gate>) -> Self {
        let mut world = Self::new();
        world.guard(gate);
        world
    }

    /// The first node starts anew with this gate.
    pub fn guard(&mut self, gate: Arc<dyn Gate>) {
        self.nodes[0].gate = gate;
        self.crash(0);
    }

    pub fn shard(&self, node: usize) -> &Shard {
        &self.nodes[node].shard
    }

    pub fn store(&self, node: usize) -> &MemoryStore {
        &self.nodes[node].store
    }

    pub fn shard_mut(&mut self, node: usize) -> &mut Shard {
        &mut self.nodes[node].shard
    }

    pub fn now(&self) -> Now {
        self.now
    }

    pub fn set_probe(&mut self, node: usize, probe: Probe) {
        self.nodes[node].probe = Some(Arc::clone(&probe));
        self.nodes[node].shard.set_probe(probe);
    }

    /// Connects to the first node and waits for the answer.
    pub fn connect(&mut self, connect: Connect) -> Client {
        self.connect_to(0, connect)
    }

    pub fn connect_to(&mut self, node: usize, connect: Connect) -> Client {
        let (client, connack) = self.try_connect(node, connect);
        assert_eq!(connack.reason, ReasonCode::Success);
        client
    }

    pub fn try_connect(&mut self, node: usize, connect: Connect) -> (Client, Connack) {
        let (client, connack) = self.attempt(node, connect);
        (client, connack.expect("CONNACK"))
    }

    /// Connects; no answer when the connection is closed instead.
    pub fn attempt(&mut self, node: usize, connect: Connect) -> (Client, Option<Connack>) {
        let client = self.start_connect(node, connect);
        self.sync();
        let wire = &mut self.wires[client.0];
        match wire.packets.pop_front() {
            Some(Packet::Connack(connack)) => (client, Some(*connack)),
            None if !wire.open => (client, None),
            other => panic!("CONNACK comes first, got {other:?}"),
        }
    }

    /// Sends CONNECT and does not wait.
    pub fn start_connect(&mut self, node: usize, connect: Connect) -> Client {
        let origin = Origin {
            listener: "tcp".into(),
            remote: "127.0.0.1:9".parse().expect("an address"),
            certificate: None,
        };
        let conn = self.nodes[node].shard.accept(origin, self.now).expect("there is room");
        let (name, version) = (connect.client_id.to_string(), connect.version);
        if connect.clean_start {
            self.taken.remove(&name);
        }
        self.wires.push(Wire {
            node,
            conn,
            name,
            version,
            decoder: Decoder::for_client(version, PACKET_BYTES_MAX),
            received: Vec::new(),
            packets: VecDeque::new(),
            unsent: Vec::new(),
            open: true,
            deaf: false,
        });
        let client = Client(self.wires.len() - 1);
        self.send(client, Packet::Connect(Box::new(connect)));
        client
    }

    /// Bytes of a packet to the node; what it does with them at once is done, nothing is synced.
    pub fn send(&mut self, client: Client, packet: Packet) {
        self.send_all(client, [packet]);
    }

    /// Several packets in one segment.
    pub fn send_all(&mut self, client: Client, packets: impl IntoIterator<Item = Packet>) {
        let wire = &mut self.wires[client.0];
        packets.into_iter().for_each(|packet| encode(&packet, wire.version, &mut wire.unsent));
        self.feed(client);
        self.pump();
    }

    fn feed(&mut self, client: Client) {
        let wire = &mut self.wires[client.0];
        if wire.open {
            let shard = &mut self.nodes[wire.node].shard;
            let received = shard.receive(wire.conn, &wire.unsent, self.now);
            wire.unsent.drain(..received.used);
        }
    }

    pub fn publish(&mut self, client: Client, publish: Publish) {
        self.send(client, Packet::Publish(Box::new(publish)));
    }

    pub fn subscribe(&mut self, client: Client, filter: &str, qos: u8) {
        let qos = QoS::from_bits(qos).expect("0 to 2");
        self.subscribe_with(client, filter, SubscribeOptions { qos, ..Default::default() });
    }

    pub fn subscribe_with(&mut self, client: Client, filter: &str, options: SubscribeOptions) {
        self.next_id += 1;
        let subscribe = Subscribe {
            packet_id: id(self.next_id),
            subscription_id: None,
            filters: vec![(filter.to_owned().into(), options)],
            user: Vec::new(),
        };
        self.send(client, Packet::Subscribe(subscribe));
        self.sync();
        let wire = &mut self.wires[client.0];
        let is_suback = |p: &Packet| matches!(p, Packet::Suback(s) if !s.reasons[0].is_error());
        let place = wire.packets.iter().position(is_suback);
        assert!(place.is_some() || !wire.open, "SUBACK once it is synced");
        place.map(|place| wire.packets.remove(place));
    }

    pub fn unsubscribe(&mut self, client: Client, filter: &str) {
        self.next_id += 1;
        let filters = vec![filter.to_owned().into()];
        let packet_id = id(self.next_id);
        let packet = Packet::Unsubscribe(Unsubscribe { packet_id, filters, user: Vec::new() });
        self.send(client, packet);
        self.sync();
        self.wires[client.0].packets.retain(|p| !matches!(p, Packet::Unsuback(_)));
    }

    pub fn disconnect(&mut self, client: Client) {
        self.send(client, Packet::Disconnect(Box::default()));
    }

    /// The cable is pulled.
    pub fn cut(&mut self, client: Client) {
        let wire = &mut self.wires[client.0];
        if std::mem::replace(&mut wire.open, false) {
            self.nodes[wire.node].shard.connection_lost(wire.conn, self.now);
        }
        self.pump();
    }

    /// The client reads nothing from now on.
    pub fn stop_reading(&mut self, client: Client) {
        self.wires[client.0].deaf = true;
    }

    /// It reads what waits, and goes on reading.
    pub fn read_on(&mut self, client: Client) {
        let wire = &mut self.wires[client.0];
        wire.deaf = false;
        let (node, conn) = (wire.node, wire.conn);
        self.flush(node, conn);
        self.pump();
    }

    /// Bytes the client has sent that the node has not taken.
    pub fn unsent(&self, client: Client) -> usize {
        self.wires[client.0].unsent.len()
    }

    pub fn conn(&self, client: Client) -> ConnId {
        self.wires[client.0].conn
    }

    pub fn is_open(&self, client: Client) -> bool {
        self.wires[client.0].open
    }

    /// What came for a client, unanswered.
    pub fn take(&mut self, client: Client) -> Vec<Packet> {
        self.wires[client.0].packets.drain(..).collect()
    }

    /// The payloads that came, nothing answered.
    pub fn peek(&mut self, client: Client) -> Vec<String> {
        let packets = self.take(client).into_iter();
        packets
            .filter_map(|p| if let Packet::Publish(p) = p { Some(text(&p)) } else { None })
            .collect()
    }

    /// Acknowledges everything as a good client does until nothing more comes. The payloads, QoS 2 copies left out.
    pub fn drain(&mut self, client: Client) -> Vec<String> {
        let mut got = Vec::new();
        for _ in 0..ROUNDS_MAX {
            self.sync();
            let packets = self.take(client);
            if packets.is_empty() {
                return got;
            }
            let mut answers = Vec::new();
            for packet in packets {
                self.answer(client, packet, &mut got, &mut answers);
            }
            self.send_all(client, answers);
        }
        panic!("there is no end to what comes");
    }

    fn answer(
        &mut self,
        client: Client,
        packet: Packet,
        got: &mut Vec<String>,
        answers: &mut Vec<Packet>,
    ) {
        let taken = self.taken.entry(self.wires[client.0].name.clone()).or_default();
        let ack = |id| Ack::new(id, ReasonCode::Success);
        match packet {
            Packet::Publish(publish) => match (publish.qos, publish.packet_id) {
                (QoS::AtLeastOnce, Some(id)) => {
                    got.push(text(&publish));
                    answers.push(Packet::Puback(ack(id)));
                }
                (QoS::ExactlyOnce, Some(id)) => {
                    if taken.insert(id) {
                        got.push(text(&publish));
                    }
                    answers.push(Packet::Pubrec(ack(id)));
                }
                _ => got.push(text(&publish)),
            },
            Packet::Pubrel(release) => {
                taken.remove(&release.packet_id);
                answers.push(Packet::Pubcomp(ack(release.packet_id)));
            }
            _ => {}
        }
    }

    /// Everything submitted becomes durable, and what follows from that too.
    pub fn sync(&mut self) {
        self.pump();
        for _ in 0..ROUNDS_MAX {
            let mut any = false;
            for node in &mut self.nodes {
                if node.store.waiting() > 0 {
                    let before = node.store.synced();
                    let lsn = node.store.sync_all();
                    any |= lsn > before;
                    node.shard.synced(lsn, self.now);
                }
            }
            self.pump();
            if !any {
                return;
            }
        }
        panic!("there is no end to what is written");
    }

    /// Time passes in steps of a second or less.
    pub fn pass(&mut self, ms: u64) {
        let end_ms = self.now.mono_ms + ms;
        while self.now.mono_ms < end_ms {
            let step_ms = (end_ms - self.now.mono_ms).min(1_000);
            self.now.mono_ms += step_ms;
            self.now.wall_ms += step_ms;
            for node in &mut self.nodes {
                node.shard.tick(self.now);
            }
            self.pump();
        }
    }

    /// The first two nodes have a link.
    pub fn join(&mut self) {
        self.heal();
        self.sync();
    }

    pub fn heal(&mut self) {
        self.link(0, 1);
    }

    /// All nodes have links to each other.
    pub fn mesh(&mut self) {
        for a in 0..self.nodes.len() {
            (0..a).for_each(|b| self.link(a, b));
        }
        self.sync();
    }

    /// Two nodes have a link.
    pub fn link(&mut self, a: usize, b: usize) {
        self.link_up = true;
        for (node, peer) in [(a, b), (b, a)] {
            self.nodes[node].shard.peer_up(node_id(peer), self.now);
        }
        self.pump();
    }

    /// The link between two nodes ends; others stay. Nothing was on its way.
    pub fn unlink(&mut self, a: usize, b: usize) {
        for (node, peer) in [(a, b), (b, a)] {
            self.nodes[node].shard.peer_down(node_id(peer), self.now);
        }
        self.pump();
    }

    /// The link breaks; what travels on it is lost.
    pub fn cut_link(&mut self) {
        self.link_up = false;
        self.in_flight.clear();
        self.unlink(0, 1);
    }

    /// The process dies and starts again on what was synced. Its connections and links are gone.
    pub fn crash(&mut self, node: usize) {
        self.check_ledgers();
        for wire in self.wires.iter_mut().filter(|w| w.node == node) {
            wire.open = false;
        }
        if self.link_up {
            self.cut_link();
        }
        let state = &mut self.nodes[node];
        state.store = Arc::new(state.store.crash());
        let gate = Arc::clone(&state.gate);
        state.shard = open(&state.config, &state.store, gate, state.probe.as_ref(), self.now);
        self.sync();
    }

    /// A node starts again with an empty disk.
    pub fn wipe(&mut self, node: usize) {
        let number = self.nodes[node].store.store_id() + 1_000;
        self.nodes[node].store = Arc::new(MemoryStore::new(number));
        self.nodes[node].config.store_id = number;
        self.crash(node);
    }

    /// From now on clocks say 1970.
    pub fn lose_clock(&mut self) {
        self.set_clock(0);
    }

    pub fn set_clock(&mut self, wall_ms: u64) {
        self.now.wall_ms = wall_ms;
    }

    /// Ends turns and carries out what the shards ask for, until nobody asks for anything.
    pub fn pump(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let mut quiet = true;
            for node in 0..self.nodes.len() {
                self.nodes[node].shard.end_turn(self.now);
                while let Some(event) = self.nodes[node].shard.poll_event() {
                    quiet = false;
                    self.carry_out(node, event);
                }
            }
            while let Some((from, to, frame)) = self.in_flight.pop_front() {
                quiet = false;
                self.frames += 1;
                let taken = self.nodes[to].shard.peer_frame(node_id(from), frame, self.now);
                taken.expect("nodes of one kind understand each other");
            }
            if quiet {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn carry_out(&mut self, node: usize, event: Event) {
        match event {
            Event::Flush(conn) => self.flush(node, conn),
            Event::Close(conn) => {
                if let Some(wire) =
                    self.wires.iter_mut().find(|w| w.node == node && w.conn == conn && w.open)
                {
                    wire.open = false;
                    self.nodes[node].shard.connection_lost(conn, self.now);
                }
            }
            Event::Resume(conn) => {
                let of = |w: &Wire| w.node == node && w.conn == conn && w.open;
                if let Some(index) = self.wires.iter().position(of) {
                    self.feed(Client(index));
                }
            }
            Event::Peer(peer, frame) if self.link_up => {
                self.in_flight.push_back((node, peer.0 as usize - 1, frame));
            }
            Event::Step { conn, mut method, data } => {
                let step = method.step(data.as_deref());
                self.nodes[node].shard.stepped(conn, method, step, self.now);
            }
            Event::Log(_, text) => self.logs.push(text),
            _ => {}
        }
    }

    fn flush(&mut self, node: usize, conn: ConnId) {
        let Some(wire) = self.wires.iter_mut().find(|w| w.node == node && w.conn == conn && w.open)
        else {
            return;
        };
        let shard = &mut self.nodes[node].shard;
        if wire.deaf {
            return shard.written(conn); // the socket takes nothing
        }
        let Some(out) = shard.out_buffer(conn) else { return };
        wire.received.extend(out.take());
        shard.written(conn);
        let mut rest = &wire.received[..];
        while let Some(packet) =
            wire.decoder.decode(&mut rest).expect("what a node writes can be read")
        {
            wire.packets.push_back(packet);
        }
        let left = rest.len();
        wire.received.drain(..wire.received.len() - left);
    }

    /// Every delivery owed is delivered, dropped for a reason, or still owed.
    pub fn check_ledgers(&self) {
        for node in &self.nodes {
            let stats = node.shard.stats();
            let ledger = &stats.ledger;
            assert_eq!(stats.missing(), 0, "the ledger does not add up: {stats:?}");
            let sorted = ledger.wanted + ledger.unwanted + ledger.kept + ledger.requests;
            assert_eq!(ledger.accepted, sorted, "the ledger does not add up: {stats:?}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.check_ledgers();
        }
    }
}

fn open(
    config: &ShardConfig,
    store: &Arc<MemoryStore>,
    gate: Arc<dyn Gate>,
    probe: Option<&Probe>,
    now: Now,
) -> Shard {
    let store: Arc<dyn Store> = Arc::clone(store) as Arc<dyn Store>;
    let mut shard = Shard::open(config.clone(), gate, store, now).expect("memory can be read");
    if let Some(probe) = probe {
        shard.set_probe(Arc::clone(probe));
    }
    shard
}
