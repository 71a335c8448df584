//! Stories about plain messages that go their way as they came: nobody can tell it from the ordinary way, except that it is
//! shorter.

use std::sync::Arc;

use outpost_actors::ledger::Drop;
use outpost_actors::ports::Gate;
use outpost_actors::shard::ShardStats;
use outpost_model::QoS;
use outpost_mqtt::packet::{
    Ack, Connect, Packet, PacketId, Publish, ReasonCode, Subscribe, SubscribeOptions,
};

use crate::dice::Dice;
use crate::rights::Rules;
use crate::world::{Client, World, fleeting, id, publish, v4, v5};

const SEEDS: u64 = 20;
const STEPS: u32 = 120;
const TOPICS: [&str; 3] = ["a/b", "a/c", "d"];
const FILTERS: [&str; 5] = ["a/b", "a/+", "d", "#", "$share/group/d"];

/// A world whose messages go the express way where they can, or never: a probe wants to see each turn.
fn world(express: bool, rules: Option<&Arc<Rules>>) -> World {
    // Room for a run of some messages, until one has waited for long.
    let mut world = World::with(1, |config| {
        config.out_bytes_max = 16_384;
        // Windows and queues that some messages fill.
        config.session.in_flight_max = 12;
        config.queue_messages_max = 60;
    });
    if let Some(rules) = rules {
        world.guard(Arc::clone(rules) as Arc<dyn Gate>);
    }
    if !express {
        world.set_probe(0, Arc::new(|_, _| {}));
    }
    world
}

fn subscribe_numbered(world: &mut World, client: Client, filter: &str, number: u32) {
    let subscribe = Subscribe {
        packet_id: id(9),
        subscription_id: Some(number),
        filters: vec![(filter.to_owned().into(), SubscribeOptions::default())],
        user: Vec::new(),
    };
    world.send(client, Packet::Subscribe(subscribe));
    world.sync();
}

fn some_publish(dice: &mut Dice, number: u32) -> Publish {
    let size = dice.one(&[5, 60, 130, 2_100]);
    let mut publish = publish(dice.one(&TOPICS), &format!("{number:0size$}"), 0, 0);
    match dice.below(8) {
        0 => publish.retain = true,
        1 | 2 => {
            publish.qos = QoS::AtLeastOnce;
            publish.packet_id = Some(id(number as u16 + 1));
            publish.dup = dice.below(4) == 0;
        }
        3 => publish.expiry_s = Some(60), // which 3.1.1 cannot say
        _ => {}
    }
    publish
}

/// Answers to some of the messages that came: most of them yes, in order, of the right sort and for the first time.
fn some_answers(dice: &mut Dice, unanswered: &mut Vec<PacketId>) -> Vec<Packet> {
    let count = (dice.below(12) as usize).min(unanswered.len());
    let mut ids: Vec<PacketId> = unanswered.drain(..count).collect();
    if dice.below(4) == 0 {
        ids.reverse();
    }
    if dice.below(6) == 0 {
        ids.push(id(40_000));
    }
    let mut answer = |packet_id| {
        let no = dice.below(10) == 0;
        let reason = if no { ReasonCode::QuotaExceeded } else { ReasonCode::Success };
        let ack = Ack::new(packet_id, reason);
        if dice.below(60) == 0 { Packet::Pubrec(ack) } else { Packet::Puback(ack) }
    };
    ids.into_iter().map(&mut answer).collect()
}

/// What each client got, and what was counted; with rules that change meanwhile or without any.
fn played(seed: u64, express: bool, has_rules: bool) -> (Vec<Vec<Packet>>, ShardStats) {
    let rules = has_rules.then(|| Arc::new(Rules::default()));
    let (mut world, mut dice) = (world(express, rules.as_ref()), Dice(seed));
    let brief = |name| Connect { clean_start: true, ..v4(name) };
    let clients: Vec<Client> = [
        v4("four"),
        brief("quatre"),
        v5("five"),
        fleeting("cinq"),
        fleeting("cinco"),
        brief("vier"),
    ]
    .into_iter()
    .map(|connect| world.connect(connect))
    .collect();
    let mut got = vec![Vec::new(); clients.len()];
    let mut unanswered = vec![Vec::new(); clients.len()];
    for number in 0..STEPS {
        match (&rules, number) {
            (Some(rules), 1) => rules.deny("five", "d"),
            (Some(rules), 40) => rules.deny("four", "a"),
            (Some(rules), 80) => rules.allow_all(),
            _ => {}
        }
        let client = dice.one(&clients);
        let (filter, is_five) = (dice.one(&FILTERS), dice.below(2) == 0);
        match dice.below(18) {
            _ if !world.is_open(client) => {}
            0 => world.unsubscribe(client, filter),
            1 => world.stop_reading(client),
            2 => world.read_on(client),
            3 if is_five => subscribe_numbered(&mut world, clients[2], "a/b", 7),
            4 if number > STEPS / 2 && dice.below(4) == 0 => world.cut(client),
            5 | 6 => {
                let no_local = is_five && !filter.starts_with('$');
                let qos = dice.one(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce]);
                let options = SubscribeOptions { qos, no_local, ..Default::default() };
                world.send(client, subscribe(filter, options));
                world.sync();
            }
            7..=10 => {
                let place = clients.iter().position(|other| *other == client).expect("it is one");
                let answers = some_answers(&mut dice, &mut unanswered[place]);
                world.send_all(client, answers);
            }
            _ => {
                // Some of one topic, others of any.
                let (count, topic, qos) = (dice.below(8), dice.one(&TOPICS), dice.below(2) as u8);
                let one = |n| publish(topic, &format!("{number} {n}"), qos, n as u16 + 1);
                let first = (0..count).map(one);
                let others = (0..=dice.below(3)).map(|_| some_publish(&mut dice, number));
                let many: Vec<Packet> =
                    first.chain(others).map(|p| Packet::Publish(Box::new(p))).collect();
                world.send_all(client, many);
            }
        }
        world.sync();
        for ((client, got), unanswered) in clients.iter().zip(&mut got).zip(&mut unanswered) {
            let packets = world.take(*client);
            unanswered.extend(packets.iter().filter_map(|packet| match packet {
                Packet::Publish(publish) => publish.packet_id,
                _ => None,
            }));
            got.extend(packets);
        }
    }
    (got, world.shard(0).stats())
}

fn subscribe(filter: &str, options: SubscribeOptions) -> Packet {
    let filters = vec![(filter.to_owned().into(), options)];
    let (packet_id, subscription_id) = (id(8), None);
    Packet::Subscribe(Subscribe { packet_id, subscription_id, filters, user: Vec::new() })
}

#[test]
fn both_ways_end_in_the_same_packets_and_the_same_counts() {
    for has_rules in [false, true] {
        let (mut delivered, mut denied) = (0, 0);
        for seed in 1..=SEEDS {
            let (express, its_stats) = played(seed, true, has_rules);
            let (ordinary, stats) = played(seed, false, has_rules);
            assert_eq!(express, ordinary, "seed {seed}");
            assert_eq!(its_stats, stats, "seed {seed}");
            delivered += its_stats.ledger.delivered;
            denied += its_stats.ledger.dropped[Drop::Denied as usize];
        }
        assert!(delivered > 100 * SEEDS, "{delivered} deliveries say little");
        assert_eq!(denied > SEEDS, has_rules, "{denied} were refused");
    }
}

#[test]
fn who_is_forbidden_a_topic_is_heard_no_more_and_the_others_are() {
    let rules = Arc::new(Rules::default());
    let mut world = world(true, Some(&rules));
    let (sender, other) = (world.connect(v4("sender")), world.connect(v5("other")));
    let receiver = world.connect(v4("receiver"));
    world.subscribe(receiver, "a/b", 0);
    let say = |world: &mut World, text: &str| {
        for (client, name) in [(sender, "sender"), (other, "other")] {
            world.publish(client, publish("a/b", &format!("{name} {text}"), 0, 0));
        }
    };
    // The way of the first makes the channel, that of the second is remembered, the third goes express.
    for text in ["1", "2", "3"] {
        say(&mut world, text);
    }
    rules.deny("sender", "a");
    say(&mut world, "4");
    rules.allow_all();
    say(&mut world, "5");
    let mut expected: Vec<String> = Vec::new();
    for text in ["1", "2", "3", "4", "5"] {
        let allowed =
            ["sender", "other"].into_iter().filter(|name| (*name, text) != ("sender", "4"));
        expected.extend(allowed.map(|name| format!("{name} {text}")));
    }
    assert_eq!(world.drain(receiver), expected);
    assert_eq!(world.shard(0).ledger().dropped[Drop::Denied as usize], 1);
}

#[test]
fn who_comes_is_reached_by_the_next_message_and_who_goes_is_not() {
    let mut world = world(true, None);
    let (sender, first) = (world.connect(v4("sender")), world.connect(v4("first")));
    world.subscribe(first, "a/b", 0);
    world.publish(sender, publish("a/b", "1", 0, 0));
    let second = world.connect(v5("second"));
    world.subscribe(second, "a/+", 1);
    world.publish(sender, publish("a/b", "2", 0, 0));
    world.unsubscribe(first, "a/b");
    world.publish(sender, publish("a/b", "3", 0, 0));
    world.cut(second);
    world.publish(sender, publish("a/b", "4", 0, 0));
    assert_eq!(
        (world.peek(first), world.peek(second)),
        (vec!["1".into(), "2".into()], vec!["2".into(), "3".into()])
    );
    assert_eq!(world.shard(0).ledger().accepted, 4);
}
