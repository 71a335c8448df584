//! Share groups with members on two nodes: each message to one member, wherever it is.

use outpost_actors::ledger::Drop;
use outpost_mqtt::packet::Publish;

use crate::world::{Client, World, fleeting, publish, v5};

const SHARED: &str = "$share/g/jobs";

fn member(world: &mut World, node: usize, name: &str) -> Client {
    let client = world.connect_to(node, v5(name));
    world.subscribe(client, SHARED, 1);
    client
}

fn send(world: &mut World, node: usize, from: u16, to: u16) {
    let sender = world.connect_to(node, fleeting("sender"));
    for number in from..=to {
        world.publish(sender, publish("jobs", &number.to_string(), 1, number));
    }
    world.drain(sender);
    world.disconnect(sender);
}

/// Node 1 has the only member of the group; the link is cut, and then twenty messages come at node 0.
fn twenty_for_a_member_behind_a_cut() -> (World, Client) {
    let mut world = World::with(2, |_| {});
    world.join();
    let b = member(&mut world, 1, "b");
    world.sync();
    world.cut_link();
    send(&mut world, 0, 1, 20);
    (world, b)
}

fn sorted(got: impl IntoIterator<Item = String>) -> Vec<u16> {
    let mut got: Vec<u16> = got.into_iter().map(|text| text.parse().expect("a number")).collect();
    got.sort_unstable();
    got
}

fn offline(world: &World) -> u64 {
    (0..2).map(|node| world.shard(node).ledger().dropped[Drop::Offline as usize]).sum()
}

#[test]
fn each_message_goes_to_one_member_in_the_cluster_and_every_node_gets_its_part() {
    let mut world = World::with(2, |_| {});
    world.join();
    let (a, b) = (member(&mut world, 0, "a"), member(&mut world, 1, "b"));
    let (ordinary, other) = (world.connect_to(1, v5("o")), world.connect_to(1, v5("x")));
    world.subscribe(ordinary, "jobs", 1);
    world.subscribe(other, "$share/h/jobs", 1);
    send(&mut world, 0, 1, 100);
    let (got_a, got_b) = (world.drain(a), world.drain(b));
    assert!(got_a.len() > 20 && got_b.len() > 20, "{} and {}", got_a.len(), got_b.len());
    let all: Vec<u16> = (1..=100).collect();
    assert_eq!(sorted([got_a, got_b].concat()), all);
    assert_eq!(sorted(world.drain(ordinary)), all, "a subscriber of its own gets all");
    assert_eq!(sorted(world.drain(other)), all, "another group gets its own copy");
    assert_eq!((world.shard(0).stats().outbox, world.shard(1).stats().outbox), (0, 0));
}

#[test]
fn a_member_that_is_there_comes_before_one_that_is_away() {
    let mut world = World::with(2, |_| {});
    world.join();
    let (a, b) = (member(&mut world, 0, "a"), member(&mut world, 1, "b"));
    world.cut(b);
    send(&mut world, 0, 1, 20);
    assert_eq!(world.drain(a).len(), 20);
    let b = world.connect_to(1, v5("b"));
    world.cut(a);
    send(&mut world, 0, 21, 40);
    assert_eq!(world.drain(b).len(), 20);
    world.cut(b);
    world.cut_link();
    send(&mut world, 0, 41, 60); // nobody is there: those at hand before those behind the cut
    let a = world.connect_to(0, v5("a"));
    assert_eq!(sorted(world.drain(a)), (41..=60).collect::<Vec<_>>());
}

#[test]
fn what_is_for_members_behind_a_cut_waits_on_disk_and_comes_once() {
    let (mut world, b) = twenty_for_a_member_behind_a_cut();
    assert_eq!(world.shard(0).stats().outbox, 20);
    world.crash(0);
    world.join();
    assert_eq!(sorted(world.drain(b)), (1..=20).collect::<Vec<_>>());
    assert_eq!(world.shard(0).stats().outbox, 0);
}

#[test]
fn a_group_that_has_emptied_meanwhile_gets_its_messages_elsewhere_or_they_are_counted() {
    for elsewhere in [true, false] {
        let (mut world, b) = twenty_for_a_member_behind_a_cut();
        world.unsubscribe(b, SHARED);
        let a = world.connect_to(0, v5("a"));
        if elsewhere {
            world.subscribe(a, SHARED, 1);
        }
        world.join();
        world.sync();
        let expected: Vec<u16> = if elsewhere { (1..=20).collect() } else { Vec::new() };
        assert_eq!(sorted(world.drain(a)), expected);
        assert_eq!(world.drain(b), [""; 0]);
        assert_eq!(offline(&world), if elsewhere { 0 } else { 20 });
        for node in [0, 1] {
            let stats = world.shard(node).stats();
            assert_eq!((stats.outbox, stats.bodies), (0, 0), "node {node}");
        }
    }
}

#[test]
fn a_node_whose_group_has_emptied_and_knows_nobody_gives_the_messages_back() {
    let mut world = World::with(3, |_| {});
    let (b, c) = (member(&mut world, 1, "b"), member(&mut world, 2, "c"));
    for peer in [1, 2] {
        world.link(0, peer); // and these two never meet
        world.sync();
        world.unlink(0, peer);
    }
    send(&mut world, 0, 1, 20); // kept for the one or the other
    world.unsubscribe(b, SHARED);
    world.link(0, 1);
    world.sync();
    world.link(0, 2);
    world.sync();
    assert_eq!(sorted(world.drain(c)), (1..=20).collect::<Vec<_>>());
    assert_eq!(world.drain(b), [""; 0]);
    for node in 0..3 {
        let stats = world.shard(node).stats();
        assert_eq!((stats.outbox, stats.bodies), (0, 0), "node {node}");
        assert_eq!(world.shard(node).ledger().dropped[Drop::Offline as usize], 0, "node {node}");
    }
}

#[test]
fn what_waited_for_a_member_whose_session_ended_goes_to_another_node() {
    let mut world = World::with(2, |_| {});
    let mut connect = v5("a");
    connect.session_expiry_s = Some(60);
    let a = world.connect_to(0, connect);
    world.subscribe(a, SHARED, 1);
    world.cut(a);
    world.join();
    send(&mut world, 0, 1, 200);
    let b = member(&mut world, 1, "b");
    world.pass(62_000);
    world.sync();
    assert_eq!(sorted(world.drain(b)), (1..=200).collect::<Vec<_>>());
    for node in [0, 1] {
        let stats = world.shard(node).stats();
        assert_eq!((stats.queued, stats.outbox, stats.bodies), (0, 0, 0), "node {node}");
    }
}

/// A node syncs, what it may send then arrives, and nobody else syncs.
pub fn sync_one(world: &mut World, node: usize) {
    let lsn = world.store(node).sync_all();
    let now = world.now();
    world.shard_mut(node).synced(lsn, now);
    world.pump();
}

#[test]
fn a_qos_2_message_taken_again_after_a_crash_does_not_come_to_the_group_twice() {
    let mut world = World::with(2, |_| {});
    world.join();
    let fleeting_one = world.connect_to(0, fleeting("f"));
    world.subscribe(fleeting_one, SHARED, 2);
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("jobs", "once", 2, 7));
    let mut got = world.peek(fleeting_one); // the sender's packet id is not on disk yet
    world.crash(0);
    let kept = world.connect_to(1, v5("k"));
    world.subscribe(kept, SHARED, 2);
    world.join();
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, Publish { dup: true, ..publish("jobs", "once", 2, 7) });
    world.drain(sender);
    got.extend(world.drain(kept));
    assert_eq!(got, ["once"]);
}

#[test]
fn a_qos_2_event_that_comes_again_after_a_crash_does_not_come_to_the_group_twice() {
    let mut world = World::with(2, |_| {});
    world.join();
    let fleeting_one = world.connect_to(1, fleeting("f"));
    world.subscribe(fleeting_one, SHARED, 2);
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("jobs", "once", 2, 7));
    sync_one(&mut world, 0);
    let mut got = world.peek(fleeting_one); // that it has come is not on disk there yet
    world.crash(1);
    let kept = world.connect_to(0, v5("k"));
    world.subscribe(kept, SHARED, 2);
    world.join();
    got.extend(world.drain(kept));
    assert_eq!(got, ["once"]);
}

#[test]
fn what_moves_to_a_member_that_is_not_kept_moves_once() {
    let mut world = World::with(1, |_| {});
    let mut connect = v5("a");
    connect.session_expiry_s = Some(60);
    let away = world.connect(connect);
    world.subscribe(away, SHARED, 2);
    world.cut(away);
    let sender = world.connect(v5("s"));
    (1..=200).for_each(|n| world.publish(sender, publish("jobs", &n.to_string(), 2, n)));
    world.drain(sender);
    let kept = world.connect(v5("k"));
    world.subscribe(kept, SHARED, 2);
    world.cut(kept);
    let fleeting_one = world.connect(fleeting("f"));
    world.subscribe(fleeting_one, SHARED, 2);
    world.pass(62_000);
    sync_one(&mut world, 0); // the session has ended; that its rows move is not on disk yet
    let mut got = world.peek(fleeting_one);
    world.crash(0);
    let kept = world.connect(v5("k"));
    got.extend(world.drain(kept));
    // What the first member may have been sent is nobody else's (MQTT-4.8.2-5); which it was died with the process.
    assert_eq!(sorted(got), (129..=200).collect::<Vec<_>>());
}

#[test]
fn two_full_outboxes_of_what_has_to_go_back_do_not_wait_for_each_other() {
    let mut world = World::with(2, |config| config.outbox_messages_max = 5);
    world.join();
    let filters = ["$share/g/g", "$share/h/h"];
    // Each node has the only member of one group; then the members change places behind a cut.
    let mut members = [world.connect_to(1, v5("m1")), world.connect_to(0, v5("m0"))];
    for (member, filter) in members.into_iter().zip(filters) {
        world.subscribe(member, filter, 1);
    }
    world.sync();
    world.cut_link();
    for (node, topic) in [(0, "g"), (1, "h")] {
        let sender = world.connect_to(node, fleeting("sender"));
        (1..=5).for_each(|n| world.publish(sender, publish(topic, &n.to_string(), 1, n)));
        world.drain(sender);
    }
    members.swap(0, 1);
    for (n, filter) in filters.into_iter().enumerate() {
        world.unsubscribe(members[1 - n], filter);
        world.subscribe(members[n], filter, 1);
    }
    assert_eq!([0, 1].map(|node| world.shard(node).stats().outboxes_full), [1, 1]);
    world.join();
    for member in members {
        assert_eq!(sorted(world.drain(member)), (1..=5).collect::<Vec<_>>());
    }
    assert_eq!([0, 1].map(|node| world.shard(node).stats().outbox), [0, 0]);
}
