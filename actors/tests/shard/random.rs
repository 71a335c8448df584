//! Whatever happens in whatever order: nothing acknowledged is lost, nothing of QoS 2 comes twice, all is in order.

use std::collections::{BTreeMap, BTreeSet};

use outpost_mqtt::packet::{Ack, Packet, PacketId, ReasonCode};

use crate::world::{Client, World, publish, v4, v5};

const SEEDS: u64 = 60;
const STEPS: u32 = 250;
const RECEIVERS: usize = 3;

/// Xorshift: enough chance for a test.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// A publisher that does what the standard asks: keeps what is not acknowledged and sends it again.
struct Sender {
    client: Option<Client>,
    next: u32,
    unacked: BTreeMap<PacketId, (u8, String)>,
    released: BTreeSet<PacketId>,
    acked: BTreeSet<String>,
}

impl Sender {
    fn connect(&mut self, world: &mut World, name: &str) {
        let client = world.connect(v5(name));
        let again = self.unacked.iter().map(|(id, (qos, text))| {
            let mut publish = publish("t", text, *qos, id.get());
            publish.dup = true;
            Packet::Publish(Box::new(publish))
        });
        let release = |id: &PacketId| Packet::Pubrel(Ack::new(*id, ReasonCode::Success));
        let packets: Vec<_> = again.chain(self.released.iter().map(release)).collect();
        world.send_all(client, packets);
        self.client = Some(client);
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

#[test]
fn nothing_acknowledged_is_lost_and_nothing_of_qos_2_comes_twice() {
    for seed in 1..=SEEDS {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut world = World::with(1, |config| config.queue_messages_max = 400);
    let names: Vec<String> = (0..RECEIVERS).map(|n| format!("r{n}")).collect();
    let connect = |n: usize| if n == 0 { v4(&names[n]) } else { v5(&names[n]) };
    let mut receivers: Vec<Option<Client>> = Vec::new();
    for n in 0..RECEIVERS {
        let client = world.connect(connect(n));
        world.subscribe(client, "t", 2);
        receivers.push(Some(client));
    }
    let mut got: Vec<Vec<String>> = vec![Vec::new(); RECEIVERS];
    let senders = ["a", "b"];
    let mut state: Vec<Sender> = senders
        .iter()
        .map(|_| Sender {
            client: None,
            next: 0,
            unacked: BTreeMap::new(),
            released: BTreeSet::new(),
            acked: BTreeSet::new(),
        })
        .collect();
    for _ in 0..STEPS {
        let (s, r) = (dice.below(2) as usize, dice.below(RECEIVERS as u64) as usize);
        match dice.below(16) {
            0..6 => state[s].publish(&mut world, senders[s], 1 + dice.below(2) as u8),
            6 => match state[s].client.take() {
                Some(client) => world.cut(client),
                None => state[s].connect(&mut world, senders[s]),
            },
            7 => match receivers[r].take() {
                Some(client) => world.cut(client),
                None => receivers[r] = Some(world.connect(connect(r))),
            },
            8 | 9 => state[s].read(&mut world),
            10 | 11 => {
                if let Some(client) = receivers[r] {
                    got[r].extend(world.drain(client));
                }
            }
            12 | 13 => world.sync(),
            14 if dice.below(4) == 0 => {
                world.crash(0);
                state.iter_mut().for_each(|s| s.client = None);
                receivers.iter_mut().for_each(|r| *r = None);
            }
            _ => world.pass(500),
        }
    }
    for (sender, name) in state.iter_mut().zip(senders) {
        if sender.client.is_none() {
            sender.connect(&mut world, name);
        }
        while !sender.unacked.is_empty() || !sender.released.is_empty() {
            world.sync();
            sender.read(&mut world);
        }
    }
    for n in 0..RECEIVERS {
        let client = receivers[n].unwrap_or_else(|| world.connect(connect(n)));
        got[n].extend(world.drain(client));
        check(seed, &got[n], &state);
    }
    assert_eq!(world.shard(0).stats().queued, 0, "seed {seed}");
}

fn check(seed: u64, got: &[String], senders: &[Sender]) {
    let seen: BTreeSet<&String> = got.iter().collect();
    for text in senders.iter().flat_map(|s| &s.acked) {
        assert!(seen.contains(text), "seed {seed}: {text} was acknowledged and is lost");
    }
    let twice: Vec<_> = seen
        .iter()
        .filter(|t| t.contains("-2-") && got.iter().filter(|g| g == *t).count() > 1)
        .collect();
    assert!(twice.is_empty(), "seed {seed}: {twice:?} came twice");
}
