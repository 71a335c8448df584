//! A client that wanders between three nodes whose links break and that crash, while every node publishes: what was
//! acknowledged comes, and in the end one node has the session.

use std::collections::BTreeMap;

use outpost_mqtt::packet::ReasonCode;

use crate::dice::Dice;
use crate::world::{Client, World, fleeting, publish, v5};

const NODES: usize = 3;
const PAIRS: [(usize, usize); 3] = [(0, 1), (0, 2), (1, 2)];

struct Story {
    world: World,
    dice: Dice,
    linked: [bool; 3],
    faults: bool,
    client: Option<Client>,
    number: u16,
    accepted: Vec<u16>,
    got: BTreeMap<u16, u32>,
}

impl Story {
    fn new(seed: u64, faults: bool) -> Self {
        let mut world = World::with(NODES, |_| {});
        PAIRS.iter().for_each(|(a, b)| world.link(*a, *b));
        world.sync();
        let client = world.connect_to(0, v5("c"));
        world.subscribe(client, "t", 2);
        world.sync();
        let dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        Self {
            world,
            dice,
            linked: [true; 3],
            faults,
            client: Some(client),
            number: 0,
            accepted: Vec::new(),
            got: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        let what = self.dice.below(12);
        match what {
            0..4 => self.publish(),
            4..7 => self.wander(),
            7 if self.faults => self.turn_a_link(),
            8 if self.faults => self.crash(),
            7 | 8 => self.wander(),
            9 => self.world.pass(1_500),
            10 => self.part_way(),
            _ => self.read(),
        }
    }

    /// A node takes some messages, and says so.
    fn publish(&mut self) {
        let node = self.dice.below(NODES as u64) as usize;
        let sender = self.world.connect_to(node, fleeting(&format!("s{node}")));
        for _ in 0..=self.dice.below(5) {
            self.number += 1;
            let qos = if self.faults { 1 } else { 2 };
            let message = publish("t", &self.number.to_string(), qos, self.number);
            self.world.publish(sender, message);
        }
        self.world.sync();
        let accepted = self.world.accepted(sender);
        self.accepted.extend(accepted);
        self.world.disconnect(sender);
    }

    /// The client turns up somewhere, in the middle of what is under way.
    fn wander(&mut self) {
        let node = self.dice.below(NODES as u64) as usize;
        let client = self.world.start_connect(node, v5("c"));
        if self.faults && self.dice.below(2) == 0 {
            return; // it gives up before it is answered
        }
        for _ in 0..20 {
            self.world.sync();
            if let Some(connack) = self.world.connack(client) {
                if connack.reason != ReasonCode::Success {
                    return;
                }
                if !connack.session_present {
                    self.world.forget_taken("c");
                    self.world.subscribe(client, "t", 2);
                }
                self.client = Some(client).filter(|client| self.world.is_open(*client));
                return;
            }
            if !self.world.is_open(client) {
                return; // an earlier attempt got through after it
            }
            self.world.pass(1_000);
        }
        panic!("the client is never answered");
    }

    fn read(&mut self) {
        let Some(client) = self.client.filter(|client| self.world.is_open(*client)) else { return };
        for text in self.world.drain(client) {
            *self.got.entry(text.parse().expect("a number")).or_default() += 1;
        }
    }

    fn turn_a_link(&mut self) {
        let which = self.dice.below(3) as usize;
        let (a, b) = PAIRS[which];
        self.linked[which] = !self.linked[which];
        if self.linked[which] {
            self.world.link(a, b);
        } else {
            self.world.unlink(a, b);
        }
    }

    fn crash(&mut self) {
        let node = self.dice.below(NODES as u64) as usize;
        for (which, (a, b)) in PAIRS.into_iter().enumerate() {
            if std::mem::take(&mut self.linked[which]) {
                self.world.unlink(a, b);
            }
        }
        self.world.lose_frames();
        self.world.crash(node);
    }

    /// One node's disk is faster than the others'.
    fn part_way(&mut self) {
        let node = self.dice.below(NODES as u64) as usize;
        self.world.sync_one(node);
    }

    /// How many messages were accepted, and how many of them came more than once.
    fn end(mut self, seed: u64) -> (usize, usize) {
        for (which, (a, b)) in PAIRS.into_iter().enumerate() {
            if !self.linked[which] {
                self.world.link(a, b);
            }
        }
        for _ in 0..8 {
            self.world.sync();
            self.world.pass(1_000);
        }
        self.client = None;
        // Of two attempts at the same moment either may be the one that counts.
        while !self.client.is_some_and(|client| self.world.is_open(client)) {
            self.wander();
            self.world.pass(1_000);
            self.world.sync();
        }
        for _ in 0..8 {
            self.read();
            self.world.pass(1_000);
        }
        let lost: Vec<&u16> = self.accepted.iter().filter(|n| !self.got.contains_key(n)).collect();
        assert!(lost.is_empty(), "seed {seed}: acknowledged and never delivered: {lost:?}");
        let here = (0..NODES).filter(|node| self.world.shard(*node).queue("c").is_some()).count();
        assert_eq!(here, 1, "seed {seed}: nodes that have the session");
        let owed: usize = (0..NODES).map(|node| self.world.shard(node).stats().outbox).sum();
        assert_eq!(owed, 0, "seed {seed}: something is still under way");
        let twice = self.got.values().filter(|count| **count > 1).count();
        (self.accepted.len(), twice)
    }
}

#[test]
fn wherever_a_client_turns_up_it_gets_what_was_acknowledged() {
    let mut sent = 0;
    for seed in 0..200 {
        let mut story = Story::new(seed, true);
        (0..60).for_each(|_| story.step());
        sent += story.end(seed).0;
    }
    assert!(sent > 5_000, "only {sent} messages were accepted");
}

#[test]
fn while_all_goes_well_each_message_comes_once() {
    for seed in 0..100 {
        let mut story = Story::new(seed, false);
        (0..60).for_each(|_| story.step());
        let (all, twice) = story.end(seed);
        assert_eq!(twice, 0, "seed {seed}: of {all} messages");
    }
}
