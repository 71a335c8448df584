//! Stories about the memory budget and the pace of publishers: what is given up in which order, and that it ends.

use outpost_actors::ledger::Drop;
use outpost_actors::shard::ShardConfig;
use outpost_flow::{Class, PaceLimits, Pressure};
use outpost_mqtt::packet::{Packet, ReasonCode};

use crate::world::{Client, World, fleeting, publish, v4, v5};

const KIB: u64 = 1_024;

fn small(bytes: u64) -> impl Fn(&mut ShardConfig) {
    move |config| config.memory_bytes_max = bytes
}

/// Publishes QoS 1 messages of a kilobyte until one is refused, and tells how many were not.
fn fill(world: &mut World, publisher: Client, topic: &str) -> u64 {
    let payload = "x".repeat(1_024);
    for number in 1..2_000 {
        world.publish(publisher, publish(topic, &payload, 1, number));
        world.sync();
        for _ in 0..3 {
            world.pass(100); // under pressure it is paced
        }
        let answers = world.take(publisher);
        let [Packet::Puback(ack)] = &answers[..] else { panic!("one answer each: {answers:?}") };
        match ack.reason {
            ReasonCode::Success => {}
            ReasonCode::QuotaExceeded => return u64::from(number) - 1,
            other => panic!("{other:?}"),
        }
    }
    panic!("it takes everything");
}

fn pressure(world: &World) -> Pressure {
    world.shard(0).stats().pressure
}

#[test]
fn a_flood_to_one_that_does_not_acknowledge_is_refused_and_others_are_served() {
    let mut world = World::with(1, small(256 * KIB));
    let stuck = world.connect(fleeting("stuck"));
    world.subscribe(stuck, "flood", 1);
    let well = world.connect(fleeting("well"));
    world.subscribe(well, "other", 1);
    let publisher = world.connect(v5("publisher"));
    let taken = fill(&mut world, publisher, "flood");
    assert!((120..240).contains(&taken), "{taken} KiB were taken of a budget of 256");
    assert_eq!(pressure(&world), Pressure::Refuse);

    // Another flow goes on, and so does QoS 0 to whoever keeps up.
    let other = world.connect(v5("other"));
    for number in 1..=20 {
        world.publish(other, publish("other", &number.to_string(), 1, number));
        assert_eq!(world.drain(well), [number.to_string()]);
        world.pass(100);
    }
    let acks = world.take(other);
    let fine = |p: &Packet| matches!(p, Packet::Puback(ack) if ack.reason == ReasonCode::Success);
    assert!(acks.len() == 20 && acks.iter().all(fine), "{acks:?}");

    // The receiver comes to its senses: everything accepted arrives, and the pressure ends.
    assert_eq!(world.drain(stuck).len() as u64, taken);
    assert_eq!(pressure(&world), Pressure::Calm);
    assert_eq!(world.shard(0).stats().memory[Class::Queues as usize], 0);
    assert!(world.logs.iter().any(|line| line.contains("limits.memory_bytes_max")));
}

#[test]
fn a_publisher_of_3_1_1_waits_where_one_of_5_is_refused() {
    let mut world = World::with(1, small(256 * KIB));
    let stuck = world.connect(fleeting("stuck"));
    world.subscribe(stuck, "flood", 1);
    let publisher = world.connect(v5("publisher"));
    let taken = fill(&mut world, publisher, "flood") as usize;
    let old = world.connect(v4("old"));
    world.publish(old, publish("flood", "late", 1, 1));
    world.pass(1_000);
    assert_eq!((world.take(old), world.is_open(old)), (vec![], true));
    let got = world.drain(stuck);
    assert_eq!((got.len(), got.last().map(String::as_str)), (taken + 1, Some("late")));
    assert!(matches!(world.take(old)[..], [Packet::Puback(_)]));
}

#[test]
fn who_waits_for_a_receiver_goes_on_when_it_has_caught_up_though_memory_stays_short() {
    let mut world = World::with(1, small(256 * KIB));
    let stuck = world.connect(fleeting("stuck"));
    world.subscribe(stuck, "flood", 1);
    world.shard_mut(0).charge_outside(Class::Shadows, 150 * KIB);
    let publisher = world.connect(v5("publisher"));
    let taken = fill(&mut world, publisher, "flood") as usize;
    let old = world.connect(v4("old"));
    world.publish(old, publish("flood", "late", 1, 1));
    world.shard_mut(0).charge_outside(Class::Shadows, 176 * KIB);
    world.pass(1_000);
    assert_eq!((world.take(old), world.is_open(old)), (vec![], true));
    let got = world.drain(stuck);
    assert_eq!((got.len(), got.last().map(String::as_str)), (taken + 1, Some("late")));
    assert_eq!(pressure(&world), Pressure::Refuse);
    assert!(matches!(world.take(old)[..], [Packet::Puback(_)]));
}

#[test]
fn a_retained_message_does_not_grow_while_memory_is_short() {
    let mut world = World::with(1, small(256 * KIB));
    let publisher = world.connect(v5("publisher"));
    let retained = |payload: &str, id| outpost_mqtt::packet::Publish {
        retain: true,
        ..publish("r", payload, 1, id)
    };
    world.publish(publisher, retained("small", 1));
    world.sync();
    world.take(publisher);
    world.shard_mut(0).charge_outside(Class::Shadows, 220 * KIB);
    world.pump();
    assert_eq!(pressure(&world), Pressure::Refuse);
    for (number, payload, taken) in [(2, "x".repeat(9_000), false), (3, "other".to_owned(), true)] {
        world.publish(publisher, retained(&payload, number));
        world.pass(1_000);
        world.sync();
        let answers = world.take(publisher);
        let [Packet::Puback(ack)] = &answers[..] else { panic!("one answer: {answers:?}") };
        assert_eq!(!ack.reason.is_error(), taken, "{payload:.9}: {ack:?}");
    }
}

#[test]
fn when_it_is_nearly_full_new_clients_are_refused_and_known_ones_may_return() {
    let mut world = World::with(1, small(128 * KIB));
    let kept = world.connect(v5("kept"));
    world.disconnect(kept);
    world.shard_mut(0).charge_outside(Class::Store, 127 * KIB);
    world.pump();
    assert_eq!(pressure(&world), Pressure::Closed);
    let (_, connack) = world.try_connect(0, v5("new"));
    assert_eq!(connack.reason, ReasonCode::QuotaExceeded);
    let (_, connack) = world.try_connect(0, v4("new-too"));
    assert_eq!(connack.reason, ReasonCode::ServerUnavailable, "0x03 in 3.1.1");
    let (_, connack) = world.try_connect(0, v5("kept"));
    assert_eq!(connack.reason, ReasonCode::Success);
    world.shard_mut(0).charge_outside(Class::Store, 0);
    world.pump();
    assert_eq!(pressure(&world), Pressure::Calm);
    world.connect(v5("new"));
}

#[test]
fn qos_0_to_a_slow_client_goes_first_when_memory_is_short_and_is_counted() {
    let mut world = World::with(1, |config| {
        config.memory_bytes_max = 1_024 * KIB;
        config.out_bytes_max = 64 * 1_024;
    });
    let slow = world.connect(fleeting("slow"));
    let quick = world.connect(fleeting("quick"));
    world.subscribe(slow, "a", 0);
    world.subscribe(quick, "a", 0);
    world.stop_reading(slow);
    world.shard_mut(0).charge_outside(Class::Shadows, 930 * KIB);
    world.pump();
    assert_eq!(pressure(&world), Pressure::Shed);
    let publisher = world.connect(v4("publisher"));
    let payload = "x".repeat(1_000);
    for _ in 0..20 {
        world.publish(publisher, publish("a", &payload, 0, 0));
        world.pass(100);
    }
    assert_eq!(world.drain(quick).len(), 20);
    let dropped = world.shard(0).ledger().dropped[Drop::Memory as usize];
    assert!((14..=16).contains(&dropped), "{dropped}: four kilobytes are left to it");
    world.read_on(slow);
    assert_eq!(world.drain(slow).len() as u64, 20 - dropped);
}

/// How many QoS 0 messages of one client are accepted in ten seconds when it sends without a pause.
fn accepted_in_10_s(world: &mut World, publisher: Client) -> u64 {
    let before = world.shard(0).ledger().accepted;
    for _ in 0..1_000 {
        if world.unsent(publisher) < 1_000 {
            let message = || Packet::Publish(Box::new(publish("a", "x", 0, 0)));
            world.send_all(publisher, (0..100).map(|_| message()));
        }
        world.pass(10);
    }
    world.shard(0).ledger().accepted - before
}

#[test]
fn a_client_is_read_at_its_rate_times_one_minus_the_backlog() {
    let mut world = World::with(1, |config| {
        config.memory_bytes_max = 1_000 * KIB;
        config.pace = PaceLimits { messages: 1_000, ..PaceLimits::default() };
    });
    let receiver = world.connect(fleeting("receiver"));
    world.subscribe(receiver, "a", 0);
    let publisher = world.connect(v4("publisher"));
    // 85 % in use is half of the way from 70 to 100.
    for (used_kib, rate) in [(0, 1_000), (850, 500), (962, 100)] {
        world.shard_mut(0).charge_outside(Class::Store, used_kib * KIB);
        let found = accepted_in_10_s(&mut world, publisher);
        let off = found.abs_diff(10 * rate);
        assert!(off <= rate, "{used_kib} KiB in use: {found} instead of {}", 10 * rate);
    }
    assert_eq!(world.shard(0).ledger().dropped_all(), 0, "waiting is all that happens");
}

#[test]
fn who_floods_where_nobody_can_take_it_is_read_slowly_and_nobody_else() {
    let mut world = World::with(1, |config| config.out_bytes_max = 4_096);
    let stopped = world.connect(fleeting("stopped"));
    world.subscribe(stopped, "a", 0);
    world.stop_reading(stopped);
    let flooder = world.connect(v4("flooder"));
    let found = accepted_in_10_s(&mut world, flooder);
    assert!((500..2_000).contains(&found), "{found}: full first, then 50 a second");
    let ledger = world.shard(0).ledger();
    assert!(ledger.in_vain > 400 && ledger.paced > 0, "{ledger:?}");

    let quick = world.connect(fleeting("quick"));
    world.subscribe(quick, "b", 0);
    let other = world.connect(v4("other"));
    for _ in 0..1_000 {
        world.publish(other, publish("b", "y", 0, 0));
    }
    assert_eq!(world.drain(quick).len(), 1_000, "in the same moment");
}

#[test]
fn one_slow_receiver_among_others_does_not_slow_the_publisher() {
    let mut world = World::with(1, |config| config.out_bytes_max = 4_096);
    let stopped = world.connect(fleeting("stopped"));
    let quick = world.connect(fleeting("quick"));
    world.subscribe(stopped, "a", 0);
    world.subscribe(quick, "a", 0);
    world.stop_reading(stopped);
    let publisher = world.connect(v4("publisher"));
    for _ in 0..2_000 {
        world.publish(publisher, publish("a", "x", 0, 0));
    }
    assert_eq!(world.drain(quick).len(), 2_000, "in the same moment");
    assert!(world.shard(0).ledger().dropped[Drop::SlowClient as usize] > 1_000);
}
