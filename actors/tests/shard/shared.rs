//! Shared subscriptions: each message to one member, also when members die.

use outpost_mqtt::packet::Packet;

use crate::world::{Client, World, fleeting, publish, v4, v5};

fn send(world: &mut World, from: u16, to: u16, qos: u8) {
    let sender = world.connect(v4("sender"));
    for number in from..=to {
        world.publish(sender, publish("jobs", &number.to_string(), qos, number));
    }
    world.drain(sender);
    world.disconnect(sender);
}

fn sorted(mut got: Vec<String>) -> Vec<u16> {
    got.sort_by_key(|text| text.parse::<u16>().expect("a number"));
    got.iter().map(|text| text.parse().expect("a number")).collect()
}

fn member(world: &mut World, connect: outpost_mqtt::packet::Connect, qos: u8) -> Client {
    let client = world.connect(connect);
    world.subscribe(client, "$share/g/jobs", qos);
    client
}

#[test]
fn members_take_turns_and_each_group_gets_its_own_copy() {
    let mut world = World::new();
    let (a, b) = (member(&mut world, v5("a"), 1), member(&mut world, v5("b"), 1));
    let other = world.connect(v5("c"));
    world.subscribe(other, "$share/other/jobs", 1);
    send(&mut world, 1, 10, 1);
    let (got_a, got_b) = (world.drain(a), world.drain(b));
    assert_eq!((got_a.len(), got_b.len()), (5, 5));
    assert_eq!(sorted([got_a, got_b].concat()), (1..=10).collect::<Vec<_>>());
    assert_eq!(world.drain(other).len(), 10);
}

#[test]
fn a_dead_member_s_messages_go_to_the_others_once() {
    for qos in [1, 2] {
        let mut world = World::new();
        let (a, b) = (member(&mut world, fleeting("a"), qos), member(&mut world, v5("b"), qos));
        world.cut(b);
        send(&mut world, 1, 10, qos); // all in flight to a, the only one connected
        let b = world.connect(v5("b"));
        let seen = world.take(a).into_iter().filter(|p| matches!(p, Packet::Publish(_))).count();
        assert_eq!(seen, 10);
        world.cut(a);
        let got = sorted(world.drain(b));
        // A QoS 2 message that may have been received is nobody else's (MQTT-4.8.2-5).
        let expected = if qos == 1 { (1..=10).collect() } else { Vec::new() };
        assert_eq!(got, expected, "QoS {qos}");
    }
}

#[test]
fn what_waited_on_disk_for_a_member_whose_session_expired_goes_to_the_others() {
    for crash in [false, true] {
        let mut world = World::new();
        let mut connect = v5("a");
        connect.session_expiry_s = Some(60);
        let a = member(&mut world, connect, 1);
        world.cut(a);
        send(&mut world, 1, 1_000, 1);
        let b = member(&mut world, v5("b"), 1);
        if crash {
            world.crash(0);
        }
        world.pass(62_000);
        world.sync();
        let b = if crash { world.connect(v5("b")) } else { b };
        assert_eq!(sorted(world.drain(b)), (1..=1_000).collect::<Vec<_>>(), "crash: {crash}");
        let stats = world.shard(0).stats();
        assert_eq!((stats.queued, stats.bodies), (0, 0));
    }
}

#[test]
fn a_crash_amid_the_move_neither_loses_nor_doubles() {
    let mut world = World::new();
    let mut connect = v5("a");
    connect.session_expiry_s = Some(60);
    let a = member(&mut world, connect, 1);
    world.cut(a);
    send(&mut world, 1, 1_000, 1);
    let b = member(&mut world, v5("b"), 1);
    world.cut(b);
    world.pass(62_000);
    for _ in 0..2 {
        let lsn = world.store(0).sync_all();
        let now = world.now();
        world.shard_mut(0).synced(lsn, now);
        world.pump();
    }
    world.crash(0);
    let b = world.connect(v5("b"));
    assert_eq!(sorted(world.drain(b)), (1..=1_000).collect::<Vec<_>>());
}

#[test]
fn with_no_member_left_it_is_dropped_and_counted() {
    let mut world = World::new();
    let a = member(&mut world, fleeting("a"), 1);
    send(&mut world, 1, 3, 1);
    world.cut(a);
    let ledger = world.shard(0).ledger();
    assert_eq!((ledger.owed, ledger.dropped_all()), (3, 3));
}
