//! Whatever happens in whatever order: nothing acknowledged is lost, nothing of QoS 2 comes twice, all is in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use outpost_actors::shard::Probe;
use outpost_mqtt::packet::{Ack, Connect, Packet, PacketId, ReasonCode};
use outpost_store::Space;

use crate::dice::Dice;
use crate::world::{Client, World, fleeting, publish, v4, v5};

const SEEDS: u64 = 60;
const STEPS: u32 = 250;
const RECEIVERS: usize = 4;
const SENDERS: [&str; 2] = ["a", "b"];

/// A publisher that does what the standard asks: keeps what is not acknowledged and sends it again.
#[derive(Default)]
struct Sender {
    client: Option<Client>,
    next: u32,
    unacked: BTreeMap<PacketId, (u8, String)>,
    released: BTreeSet<PacketId>,
    acked: BTreeSet<String>,
    /// What was sent more than once.
    resent: BTreeSet<String>,
}

impl Sender {
    fn connect(&mut self, world: &mut World, node: usize, name: &str) {
        let client = connect(world, node, &v5(name));
        let again = self.unacked.iter().map(|(id, (qos, text))| {
            let mut publish = publish("t", text, *qos, id.get());
            publish.dup = true;
            Packet::Publish(Box::new(publish))
        });
        self.resent.extend(self.unacked.values().map(|(_, text)| text.clone()));
        let release = |id: &PacketId| Packet::Pubrel(Ack::new(*id, ReasonCode::Success));
        let packets: Vec<_> = again.chain(self.released.iter().map(release)).collect();
        world.send_all(client, packets);
        self.client = Some(client);
    }

    fn is_done(&self) -> bool {
        self.unacked.is_empty() && self.released.is_empty()
    }

    fn publish(&mut self, world: &mut World, name: &str, qos: u8) {
        let Some(client) = self.client else { return };
        let free = |id: &PacketId| !self.unacked.contains_key(id) && !self.released.contains(id);
        let Some(id) = (1..=20).filter_map(PacketId::new).find(free) else { return };
        self.next += 1;
        let text = format!("{name}-{qos}-{}", self.next);
        self.unacked.insert(id, (qos, text.clone()));
        world.publish(client, publish("t", &text, qos, id.get()));
    }

    fn read(&mut self, world: &mut World) {
        let Some(client) = self.client else { return };
        let mut answers = Vec::new();
        for packet in world.take(client) {
            match packet {
                Packet::Puback(ack) | Packet::Pubrec(ack) => {
                    if let Some((qos, text)) = self.unacked.remove(&ack.packet_id)
                        && !ack.reason.is_error()
                    {
                        self.acked.insert(text);
                        if qos == 2 {
                            self.released.insert(ack.packet_id);
                        }
                    }
                    if self.released.contains(&ack.packet_id) {
                        answers.push(Packet::Pubrel(Ack::new(ack.packet_id, ReasonCode::Success)));
                    }
                }
                Packet::Pubcomp(ack) => drop(self.released.remove(&ack.packet_id)),
                _ => {}
            }
        }
        world.send_all(client, answers);
    }
}

/// Connects, also when the session's cell has to come to itself first.
fn connect(world: &mut World, node: usize, with: &Connect) -> Client {
    for _ in 0..100 {
        let (client, connack) = world.attempt(node, with.clone());
        if connack.is_some_and(|connack| connack.reason == ReasonCode::Success) {
            return client;
        }
        world.pass(10_000);
    }
    panic!("the session does not come back");
}

#[test]
fn nothing_acknowledged_is_lost_and_nothing_of_qos_2_comes_twice() {
    (1..=SEEDS).for_each(|seed| Run::new(seed, 1).go());
}

#[test]
fn nor_between_two_nodes_whose_link_breaks() {
    (1..=SEEDS).for_each(|seed| Run::new(seed, 2).go());
}

struct Run {
    seed: u64,
    dice: Dice,
    nodes: usize,
    linked: bool,
    world: World,
    senders: [Sender; 2],
    receivers: Vec<Option<Client>>,
    got: Vec<Vec<String>>,
    /// A cell panics when this many turns have been counted down to 0.
    fuse: Arc<AtomicU32>,
}

impl Run {
    fn new(seed: u64, nodes: usize) -> Self {
        let mut world = World::with(nodes, |config| config.queue_messages_max = 400);
        let fuse = Arc::new(AtomicU32::new(0));
        for node in 0..nodes {
            let fuse = Arc::clone(&fuse);
            let probe: Probe = Arc::new(move |_, _| {
                let burn = |turns: u32| turns.checked_sub(1);
                let before = fuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, burn);
                assert!(before != Ok(1), "planned fault");
            });
            world.set_probe(node, probe);
        }
        let mut run = Self {
            seed,
            dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            nodes,
            linked: nodes > 1,
            world,
            senders: [Sender::default(), Sender::default()],
            receivers: vec![None; RECEIVERS],
            got: vec![Vec::new(); RECEIVERS],
            fuse,
        };
        for n in 0..RECEIVERS {
            run.connect_receiver(n);
            let client = run.receivers[n].expect("just connected");
            run.world.subscribe(client, "t", 2);
        }
        if run.linked {
            run.world.join();
        }
        run
    }

    fn go(mut self) {
        for _ in 0..STEPS {
            self.step();
            self.notice();
        }
        self.fuse.store(0, Ordering::SeqCst);
        self.finish();
        self.check();
        self.bury();
    }

    fn step(&mut self) {
        let s = self.dice.below(2) as usize;
        let r = self.dice.below(RECEIVERS as u64) as usize;
        match self.dice.below(20) {
            0..7 => {
                let qos = 1 + self.dice.below(2) as u8;
                self.senders[s].publish(&mut self.world, SENDERS[s], qos);
            }
            7 => match self.senders[s].client.take() {
                Some(client) => self.world.cut(client),
                None => self.senders[s].connect(&mut self.world, s % self.nodes, SENDERS[s]),
            },
            8 => match self.receivers[r].take() {
                Some(client) => self.world.cut(client),
                None => self.connect_receiver(r),
            },
            9..12 => self.senders[s].read(&mut self.world),
            12 | 13 => self.read(r),
            14 | 15 => self.world.sync(),
            16 if self.dice.below(4) == 0 => self.crash(),
            17 if self.nodes > 1 => self.turn_link(!self.linked),
            18 => self.fuse.store(1 + self.dice.below(60) as u32, Ordering::SeqCst),
            _ => self.world.pass(500),
        }
    }

    fn crash(&mut self) {
        let node = self.dice.below(self.nodes as u64) as usize;
        self.world.crash(node);
        self.linked = false;
    }

    fn turn_link(&mut self, up: bool) {
        if up {
            self.world.heal()
        } else {
            self.world.cut_link()
        }
        self.linked = up;
    }

    /// Who was cut off notices.
    fn notice(&mut self) {
        let world = &self.world;
        let clients = self.senders.iter_mut().map(|s| &mut s.client).chain(&mut self.receivers);
        for client in clients {
            *client = client.filter(|c| world.is_open(*c));
        }
    }

    fn connect_receiver(&mut self, n: usize) {
        let name = format!("r{n}");
        let with = if n.is_multiple_of(2) { v4(&name) } else { v5(&name) };
        self.receivers[n] = Some(connect(&mut self.world, n / 2 % self.nodes, &with));
    }

    fn read(&mut self, n: usize) {
        if let Some(client) = self.receivers[n] {
            self.got[n].extend(self.world.drain(client));
        }
    }

    /// All come back, and everything goes its way to the end.
    fn finish(&mut self) {
        if self.nodes > 1 && !self.linked {
            self.turn_link(true);
        }
        for _ in 0..1_000 {
            self.notice();
            for (s, name) in SENDERS.into_iter().enumerate() {
                if self.senders[s].client.is_none() {
                    self.senders[s].connect(&mut self.world, s % self.nodes, name);
                }
                self.world.sync();
                self.senders[s].read(&mut self.world);
            }
            for n in 0..RECEIVERS {
                if self.receivers[n].is_none() {
                    self.connect_receiver(n);
                }
                self.read(n);
            }
            if self.senders.iter().all(Sender::is_done) {
                self.world.sync();
                return (0..RECEIVERS).for_each(|n| self.read(n));
            }
        }
        panic!("seed {}: a publisher waits for ever", self.seed);
    }

    fn check(&self) {
        let seed = self.seed;
        for (n, got) in self.got.iter().enumerate() {
            let seen: BTreeSet<&String> = got.iter().collect();
            for text in self.senders.iter().flat_map(|s| &s.acked) {
                assert!(
                    seen.contains(text),
                    "seed {seed}: {text} was acknowledged, r{n} has not got it"
                );
            }
            let copies = |text: &String| got.iter().filter(|g| *g == text).count();
            let twice = seen.iter().find(|text| text.contains("-2-") && copies(text) > 1);
            assert_eq!(twice, None, "seed {seed}: r{n} got it twice");
            self.check_order(n, got);
        }
        for node in 0..self.nodes {
            let stats = self.world.shard(node).stats();
            assert_eq!((stats.queued, stats.outbox), (0, 0), "seed {seed}");
        }
    }

    /// All sessions end: nothing is left of them, in memory, on disk or at the peer.
    fn bury(&mut self) {
        let senders = SENDERS.iter().enumerate().map(|(s, name)| ((*name).to_owned(), s));
        let receivers = (0..RECEIVERS).map(|n| (format!("r{n}"), n / 2));
        for (name, node) in senders.chain(receivers) {
            let client = connect(&mut self.world, node % self.nodes, &fleeting(&name));
            self.world.disconnect(client);
        }
        self.world.sync();
        for node in 0..self.nodes {
            let stats = self.world.shard(node).stats();
            let left = (stats.sessions, stats.subscriptions, stats.queued, stats.bodies);
            assert_eq!(left, (0, 0, 0, 0), "seed {}", self.seed);
            let actors = self.world.shard(node).actors("shard", usize::MAX);
            assert!(actors.iter().all(|a| a.role == "channel"), "{actors:?}");
            let rows = self.world.store(node).snapshot().into_keys();
            let of_peer = |(space, key): &(Space, Bytes)| *space == Space::Peers && key.len() == 9;
            let left: Vec<_> = rows.filter(|r| r.0 != Space::Meta && !of_peer(r)).collect();
            assert!(left.is_empty(), "seed {}: {left:?}", self.seed);
        }
    }

    /// The messages a sender never had to send again come in the order it sent them, those of one QoS (MQTT 5, §4.6).
    fn check_order(&self, n: usize, got: &[String]) {
        let resent: BTreeSet<&String> = self.senders.iter().flat_map(|s| &s.resent).collect();
        for sender in SENDERS {
            for qos in 1..=2 {
                let prefix = format!("{sender}-{qos}-");
                let mut seen = BTreeSet::new();
                let first = got.iter().filter(|t| !resent.contains(t) && seen.insert(*t));
                let numbers = first.filter_map(|t| t.strip_prefix(&prefix)?.parse::<u32>().ok());
                let numbers: Vec<u32> = numbers.collect();
                assert!(numbers.is_sorted(), "seed {}: r{n} {prefix} {numbers:?}", self.seed);
            }
        }
    }
}
