//! Removed retained messages: what several nodes remember of them, and for how long.

use outpost_actors::record::decode_retained;
use outpost_actors::shard::{Event, FEED_WAY_MAX};
use outpost_membership::{Hello, PeerFrame};
use outpost_model::{NodeId, Now};
use outpost_mqtt::packet::Publish;
use outpost_store::{Op, Space, Store};

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
    world.mesh();
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t", "old");
    world.unlink(0, 2);
    world.unlink(1, 2);
    put(&mut world, sender, "t", "");
    assert_eq!([0, 1, 2].map(|node| tombstones(&world, node)), [1, 1, 0]);
    world.crash(0);
    assert_eq!(tombstones(&world, 0), 1);
    assert_eq!(shown(&mut world, 2), ["old"], "it has not heard of it");
    world.mesh();
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

#[test]
fn a_node_met_late_does_not_bring_back_what_its_writer_has_removed() {
    let mut world = World::with(3, |_| {});
    let sender = world.connect_to(0, fleeting("s"));
    // Node 2 has heard of it from node 1 and not of its removal; node 0 has never met it, so nothing waits for it there.
    world.link(0, 1);
    world.link(1, 2);
    put(&mut world, sender, "t", "old");
    world.unlink(1, 2);
    put(&mut world, sender, "t", "");
    assert_eq!((tombstones(&world, 0), shown(&mut world, 2)), (0, vec!["old".to_owned()]));
    world.link(0, 2);
    world.sync();
    for node in 0..3 {
        assert_eq!(shown(&mut world, node), Vec::<String>::new(), "node {node}");
    }
    world.link(1, 2);
    world.sync();
    assert_eq!([0, 1, 2].map(|node| rows(&world, node)), [0, 0, 0]);
}

/// What node 0 and its peer wrote before they lost each other, and then apart.
fn written_apart(world: &mut World) {
    world.join();
    let (here, there) = (world.connect_to(0, fleeting("s")), world.connect_to(1, fleeting("s")));
    for n in 0..10 {
        put(world, here, &format!("here/{n}"), "x");
        put(world, there, &format!("there/{n}"), "y");
    }
    world.cut_link();
    for n in 0..10 {
        put(world, here, &format!("here/{n}"), "");
        put(world, here, &format!("there/{n}"), "");
    }
    put(world, there, "here/3", "later");
    put(world, there, "there/3", "again");
    put(world, there, "new", "apart");
}

#[test]
fn removals_that_were_forgotten_too_early_reach_a_peer_that_comes_back() {
    let mut world = World::with(2, |config| config.retained_max = 4);
    world.join();
    let there = world.connect_to(1, fleeting("s"));
    let here = world.connect_to(0, fleeting("s"));
    put(&mut world, here, "here", "x");
    put(&mut world, there, "there", "y");
    world.cut_link();
    put(&mut world, here, "here", "");
    put(&mut world, here, "there", "");
    for n in 0..10 {
        put(&mut world, here, &format!("t/{n}"), "x");
        put(&mut world, here, &format!("t/{n}"), "");
    }
    put(&mut world, there, "new", "apart");
    assert_eq!(shown(&mut world, 1), ["x", "apart", "y"]);
    world.crash(0);
    world.join();
    for node in [0, 1] {
        assert_eq!(shown(&mut world, node), ["apart"], "node {node}");
        assert_eq!((tombstones(&world, node), rows(&world, node)), (0, 1), "node {node}");
    }
}

#[test]
fn a_forgotten_peer_that_comes_back_brings_what_it_wrote_since_and_nothing_removed() {
    for crashed in [None, Some(0), Some(1)] {
        let mut world = World::with(2, |_| {});
        written_apart(&mut world);
        let now = world.now();
        world.shard_mut(0).forget_peer(NodeId(2), now);
        world.sync();
        assert_eq!((tombstones(&world, 0), rows(&world, 0)), (0, 0));
        crashed.into_iter().for_each(|node| world.crash(node));
        world.join();
        for node in [0, 1] {
            assert_eq!(shown(&mut world, node), ["later", "apart", "again"], "{crashed:?} {node}");
            assert_eq!(
                (tombstones(&world, node), rows(&world, node)),
                (0, 3),
                "{crashed:?} {node}"
            );
        }
    }
}

#[test]
fn what_is_found_to_be_gone_is_told_to_its_writer_also_after_a_crash() {
    let mut world = World::with(2, |_| {});
    written_apart(&mut world);
    let now = world.now();
    world.shard_mut(0).forget_peer(NodeId(2), now);
    world.sync();
    world.heal();
    // Node 0 dies when what it has found is on disk, and nobody has heard of it.
    for _ in 0..3 {
        let lsn = world.store(1).sync_all();
        world.shard_mut(1).synced(lsn, now);
        world.store(0).sync_all();
        world.pump();
    }
    world.crash(0);
    world.join();
    for node in [0, 1] {
        assert_eq!(shown(&mut world, node), ["later", "apart", "again"], "node {node}");
    }
}

#[test]
fn a_node_that_lost_its_disk_and_its_clock_gets_all_it_retained_itself() {
    let mut world = World::with(3, |_| {});
    world.mesh();
    let sender = world.connect_to(0, fleeting("s"));
    for n in 0..3 {
        put(&mut world, sender, &format!("t/{n}"), &n.to_string());
    }
    world.unlink(0, 2);
    world.unlink(1, 2);
    let real = world.now().wall_ms;
    world.lose_clock();
    world.wipe(0);
    let sender = world.connect_to(0, fleeting("s"));
    put(&mut world, sender, "t/3", "in 1970");
    put(&mut world, sender, "t/4", "and gone");
    put(&mut world, sender, "t/4", "");
    world.set_clock(real);
    world.link(0, 1);
    world.sync();
    put(&mut world, sender, "t/5", "now");
    world.link(0, 2);
    world.link(1, 2);
    world.sync();
    for node in 0..3 {
        assert_eq!(shown(&mut world, node), ["0", "1", "2", "in 1970", "now"], "node {node}");
    }
}

#[test]
fn a_retained_row_that_cannot_be_read_comes_again_from_the_peers() {
    let mut world = World::with(2, |_| {});
    world.join();
    let (here, there) = (world.connect_to(0, fleeting("s")), world.connect_to(1, fleeting("s")));
    put(&mut world, here, "here", "x");
    put(&mut world, there, "there", "y");
    let broken = |topic: &'static str| Op::Put(Space::Retained, topic.into(), "?".into());
    world.store(0).submit(vec![broken("here"), broken("there")]).expect("taken");
    world.store(0).sync_all();
    world.crash(0);
    assert_eq!(shown(&mut world, 0), Vec::<String>::new());
    world.join();
    for node in [0, 1] {
        assert_eq!(shown(&mut world, node), ["x", "y"], "node {node}");
    }
}

#[test]
fn a_new_peer_is_told_everything_in_steps_that_a_link_can_take() {
    let mut world = World::with(1, |_| {});
    let sender = world.connect_to(0, fleeting("s"));
    let count = 3 * FEED_WAY_MAX;
    for n in 0..count {
        world.publish(sender, retained(&format!("t/{n}"), "x", 0, 0));
    }
    world.sync();
    let peer = NodeId(2);
    let now = world.now();
    world.shard_mut(0).peer_up(peer, now);
    world.sync();
    let told = |world: &mut World| {
        let now = world.now();
        world.shard_mut(0).end_turn(now);
        let place = |event| match event {
            Event::Peer(_, PeerFrame::Retained { feed_seq, .. }) => Some(feed_seq),
            _ => None,
        };
        let events = std::iter::from_fn(|| world.shard_mut(0).poll_event());
        events.filter_map(place).collect::<Vec<_>>()
    };
    let hear = |world: &mut World, frame| {
        let now = world.now();
        world.shard_mut(0).peer_frame(peer, frame, now).expect("a peer");
    };
    let (events_seen, retained_seen) = (0, 0);
    let hello = Hello { store_id: 2, your_store_id: 0, events_seen, retained_seen };
    hear(&mut world, PeerFrame::Hello(hello.clone()));
    let first = told(&mut world);
    assert_eq!(first.len(), FEED_WAY_MAX);
    let again = world.shard_mut(0).peer_frame(peer, PeerFrame::Hello(hello), now);
    assert!(again.is_err() && told(&mut world).is_empty(), "nothing is told twice on one link");
    hear(&mut world, PeerFrame::RetainedSeen { feed_seq: first[99] });
    assert_eq!(told(&mut world).len(), 100, "as many as have arrived");
    // From here on it confirms nothing: it has no room for one of them, or does not know how.
    assert_eq!(told(&mut world).len(), 0);
    let mut all = first.len() + 100;
    while all < count {
        let mono_ms = world.shard(0).next_tick_ms().expect("somebody is waited for");
        let now = Now { mono_ms, ..world.now() };
        world.shard_mut(0).tick(now);
        let more = told(&mut world).len();
        assert!(more <= FEED_WAY_MAX);
        all += more;
    }
    assert_eq!(all, count);
}

#[test]
fn a_retained_message_whose_time_is_over_goes_everywhere_when_its_writer_says_so() {
    let mut world = World::with(2, |_| {});
    world.join();
    let sender = world.connect_to(0, fleeting("s"));
    for (n, seconds) in [(1, 5), (2, 5), (3, 500)] {
        let short =
            Publish { expiry_s: Some(seconds), ..retained(&format!("t/{n}"), "for a time", 1, n) };
        world.publish(sender, short);
        world.sync();
    }
    put(&mut world, sender, "t/1", "for ever");
    world.crash(0);
    world.join();
    world.pass(10_000);
    world.sync();
    for node in [0, 1] {
        assert_eq!(shown(&mut world, node), ["for ever", "for a time"], "node {node}");
        assert_eq!((tombstones(&world, node), rows(&world, node)), (0, 2), "node {node}");
    }
}
