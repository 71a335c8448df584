//! Removed retained messages: what several nodes remember of them, and for how long.

use outpost_actors::record::decode_retained;
use outpost_membership::{Hello, PeerFrame};
use outpost_model::NodeId;
use outpost_store::Space;

use crate::retained::retained;
use crate::world::{Client, World, fleeting};

fn put(world: &mut World, client: Client, topic: &str, payload: &str) {
    world.publish(client, retained(topic, payload, 1, 1));
    world.drain(client);
    world.sync();
}

fn shown(world: &mut World, node: usize) -> Vec<String> {
    let late = world.connect_to(node, fleeting("late"));
    world.subscribe(late, "#", 1);
    let found = world.drain(late);
    world.disconnect(late);
    found
}

fn tombstones(world: &World, node: usize) -> usize {
    world.shard(node).stats().retained_tombstones
}

fn rows(world: &World, node: usize) -> usize {
    let rows = world.store(node).snapshot();
    rows.keys().filter(|(space, _)| *space == Space::Retained).count()
}

#[test]
fn a_removal_that_all_have_is_forgotten_and_later_messages_still_travel() {
    let mut world = World::with(2, |_| {});
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "old");
    put(&mut world, sender, "t", "");
    for node in [0, 1] {
        assert_eq!((tombstones(&world, node), rows(&world, node)), (0, 0), "node {node}");
    }
    // Its place in the feed was the last one: the next change must not get it again, also after a crash.
    world.crash(0);
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "new");
    world.sync();
    assert_eq!(shown(&mut world, 1), ["new"]);
}

#[test]
fn a_peer_that_is_away_is_waited_for_also_by_a_node_that_starts_again() {
    let mut world = World::with(3, |_| {});
    for (a, b) in [(0, 1), (1, 2), (0, 2)] {
        world.link(a, b);
    }
    world.sync();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "old");
    world.unlink(0, 2);
    world.unlink(1, 2);
    put(&mut world, sender, "t", "");
    assert_eq!([0, 1, 2].map(|node| tombstones(&world, node)), [1, 1, 0]);
    world.crash(0);
    assert_eq!(tombstones(&world, 0), 1);
    assert_eq!(shown(&mut world, 2), ["old"], "it has not heard of it");
    world.link(0, 1);
    world.link(0, 2);
    world.link(1, 2);
    world.sync();
    for node in 0..3 {
        assert_eq!(shown(&mut world, node), Vec::<String>::new(), "node {node}");
        assert_eq!((tombstones(&world, node), rows(&world, node)), (0, 0), "node {node}");
    }
}

#[test]
fn a_clock_that_starts_in_1970_does_not_write_below_what_is_forgotten() {
    let mut world = World::with(2, |_| {});
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "old");
    put(&mut world, sender, "t", "");
    assert_eq!(rows(&world, 0), 0);
    world.lose_clock();
    world.crash(0);
    world.crash(1);
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "new");
    assert_eq!(shown(&mut world, 1), ["new"]);
    let rows = world.store(1).snapshot();
    let row = rows.into_iter().find(|((space, _), _)| *space == Space::Retained).expect("kept");
    let (entry, _) = decode_retained(b"t", &row.1).expect("own row");
    assert!(entry.stamp.ms() >= 1_700_000_000_000, "{}", entry.stamp);
}

#[test]
fn a_node_that_lost_its_disk_gets_back_what_it_retained_itself() {
    let mut world = World::with(2, |_| {});
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "mine");
    world.wipe(0);
    assert_eq!(shown(&mut world, 0), Vec::<String>::new());
    world.join();
    assert_eq!(shown(&mut world, 0), ["mine"]);
}

#[test]
fn a_peer_of_an_earlier_release_confirms_with_its_next_hello() {
    let mut world = World::with(1, |_| {});
    let (now, peer, store_id) = (world.now(), NodeId(2), world.store(0).store_id());
    let hello = |seen| {
        let (events_seen, retained_seen) = (0, seen);
        let your_store_id = if seen == 0 { 0 } else { store_id };
        PeerFrame::Hello(Hello { store_id: 77, your_store_id, events_seen, retained_seen })
    };
    world.shard_mut(0).peer_up(peer, now);
    world.shard_mut(0).peer_frame(peer, hello(0), now).expect("a hello");
    world.sync();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "old");
    put(&mut world, sender, "t", "");
    assert_eq!(tombstones(&world, 0), 1, "nothing was confirmed");
    world.shard_mut(0).peer_down(peer, now);
    world.shard_mut(0).peer_up(peer, now);
    world.shard_mut(0).peer_frame(peer, hello(2), now).expect("a hello");
    world.sync();
    assert_eq!((tombstones(&world, 0), rows(&world, 0)), (0, 0));
}

#[test]
fn what_a_peer_may_still_need_is_forgotten_only_when_it_is_too_much() {
    let mut world = World::with(2, |config| config.retained_max = 4);
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    world.cut_link();
    for n in 0..10 {
        put(&mut world, sender, &format!("t/{n}"), "x");
        put(&mut world, sender, &format!("t/{n}"), "");
    }
    let stats = world.shard(0).stats();
    assert_eq!((stats.retained_tombstones, stats.retained_forgotten), (4, 6));
    assert!(rows(&world, 0) <= 4);
}
