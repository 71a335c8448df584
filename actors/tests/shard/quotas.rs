//! Quotas of a whole node and of the outbox to a peer: in messages and in bytes, with water marks, and never
//! acknowledged and then dropped.

use outpost_mqtt::packet::{Packet, ReasonCode};

use crate::world::{Client, World, fleeting, publish, v4, v5};

/// The reason of the one answer to a QoS 1 publish.
fn answer(world: &mut World, sender: Client) -> ReasonCode {
    world.sync();
    match &world.take(sender)[..] {
        [Packet::Puback(ack)] => ack.reason,
        other => panic!("one answer: {other:?}"),
    }
}

/// Publishes so many bytes at a time until that is refused. How many were taken.
fn fill(world: &mut World, sender: Client, topic: &str, bytes: usize) -> u16 {
    for taken in 0..100 {
        world.publish(sender, publish(topic, &"x".repeat(bytes), 1, taken + 1));
        let reason = answer(world, sender);
        if reason != ReasonCode::Success {
            assert_eq!(reason, ReasonCode::QuotaExceeded);
            return taken;
        }
    }
    panic!("it takes everything");
}

fn away(world: &mut World, name: &str, topic: &str) {
    let client = world.connect(v5(name));
    world.subscribe(client, topic, 1);
    world.cut(client);
}

fn logged(world: &World, what: &str) -> usize {
    world.logs.iter().filter(|line| line.contains(what)).count()
}

#[test]
fn the_queues_of_all_sessions_together_have_a_quota_and_who_keeps_up_is_served() {
    let mut world = World::with(1, |config| config.node_queue_messages_max = 20);
    away(&mut world, "one", "a");
    away(&mut world, "two", "b");
    let keen = world.connect(fleeting("keen"));
    world.subscribe(keen, "c", 1);
    let sender = world.connect(v5("s"));
    for number in 1..=20 {
        world.publish(
            sender,
            publish(["a", "b"][number % 2], &number.to_string(), 1, number as u16),
        );
        assert_eq!(answer(&mut world, sender), ReasonCode::Success, "{number}");
    }
    assert_eq!(
        (logged(&world, "node_queue.high: 70"), logged(&world, "node_queue.high: 90")),
        (1, 1)
    );
    assert_eq!(logged(&world, "node_queue.full"), 1);
    for topic in ["a", "b"] {
        world.publish(sender, publish(topic, "refused", 1, 30));
        assert_eq!(answer(&mut world, sender), ReasonCode::QuotaExceeded);
    }
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.node_queue_full, stats.node_queue_marks), (20, true, 3));
    for number in 1..=5 {
        world.publish(sender, publish("c", &number.to_string(), 1, number));
        assert_eq!(world.drain(keen), [number.to_string()], "who keeps up is not shut out");
        assert_eq!(answer(&mut world, sender), ReasonCode::Success);
    }

    // A 3.1.1 publisher waits; over a crash the quota is as full as it was.
    world.crash(0);
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.node_queue_full), (20, true));
    let old = world.connect(v4("old"));
    world.publish(old, publish("a", "waits", 1, 1));
    world.sync();
    assert_eq!(world.take(old), []);
    let one = world.connect(v5("one"));
    let got = world.drain(one);
    assert_eq!((got.len(), got.last().map(String::as_str)), (11, Some("waits")));
    assert_eq!(answer(&mut world, old), ReasonCode::Success);
    assert_eq!(logged(&world, "node_queue.low"), 1);
    let two = world.connect(v5("two"));
    assert_eq!(
        world.drain(two).len(),
        10,
        "all that was acknowledged, and nothing that was refused"
    );
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.queued_bytes, stats.missing()), (0, 0, 0));
}

#[test]
fn the_quota_of_a_node_counts_bytes_and_an_ended_session_gives_its_part_back() {
    let mut world = World::with(1, |config| config.node_queue_bytes_max = 20_000);
    away(&mut world, "one", "a");
    let sender = world.connect(v5("s"));
    let taken = fill(&mut world, sender, "a", 1_000);
    assert!((10..20).contains(&taken), "{taken} of a kilobyte and some overhead");
    let again = world.connect(fleeting("one")); // clean start: its session ends
    world.cut(again);
    world.sync();
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.queued_bytes, stats.node_queue_full), (0, 0, false));
}

#[test]
fn an_outbox_has_a_quota_of_messages_and_of_bytes_over_restarts_too() {
    for bytes in [false, true] {
        let mut world = World::with(2, |config| {
            let limits = if bytes { (1_000, 4_000) } else { (8, 1 << 30) };
            (config.outbox_messages_max, config.outbox_bytes_max) = limits;
        });
        let receiver = world.connect_to(1, v5("r"));
        world.subscribe(receiver, "t", 1);
        world.cut(receiver);
        world.join();
        world.cut_link();
        let sender = world.connect_to(0, v5("s"));
        let taken = fill(&mut world, sender, "t", 400);
        assert!((6..10).contains(&taken), "{taken} messages; bytes: {bytes}");
        assert_eq!((logged(&world, "outbox.high: 70"), logged(&world, "outbox.full")), (1, 1));
        world.crash(0);
        let stats = world.shard(0).stats();
        assert_eq!((stats.outbox, stats.outboxes_full), (usize::from(taken), 1));
        assert!(stats.outbox_bytes > 400 * u64::from(taken), "{}", stats.outbox_bytes);
        let sender = world.connect_to(0, v5("s"));
        world.publish(sender, publish("t", "still no room", 1, 200));
        assert_eq!(answer(&mut world, sender), ReasonCode::QuotaExceeded);
        world.join();
        world.sync();
        let stats = world.shard(0).stats();
        assert_eq!((stats.outbox, stats.outbox_bytes, stats.outboxes_full), (0, 0, 0));
        world.publish(sender, publish("t", "room", 1, 201));
        assert_eq!(answer(&mut world, sender), ReasonCode::Success);
        let receiver = world.connect_to(1, v5("r"));
        assert_eq!(world.drain(receiver).len(), usize::from(taken) + 1);
    }
}

#[test]
fn what_is_not_kept_finds_no_room_behind_a_full_outbox_either() {
    let mut world = World::with(2, |config| config.outbox_messages_max = 8);
    let (kept, brief) = (world.connect_to(1, v5("kept")), world.connect_to(1, fleeting("brief")));
    world.subscribe(kept, "t", 1);
    world.subscribe(brief, "now", 1);
    world.join();
    world.cut_link();
    let sender = world.connect_to(0, v5("s"));
    fill(&mut world, sender, "t", 40);
    world.publish(sender, publish("now", "nobody can be reached", 1, 200));
    assert_eq!(answer(&mut world, sender), ReasonCode::Success, "it does not wait");
    world.heal(); // the other node has the messages, and has not synced them
    world.publish(sender, publish("now", "no room", 1, 201));
    assert_eq!(answer(&mut world, sender), ReasonCode::QuotaExceeded);
    world.sync();
    world.publish(sender, publish("now", "room", 1, 202));
    assert_eq!(answer(&mut world, sender), ReasonCode::Success);
    assert_eq!(world.drain(brief), ["room"]);
}
