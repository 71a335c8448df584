//! A disk that does not answer: what cannot be read now is read later, and nothing goes on as if it were not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outpost_mqtt::packet::Packet;
use outpost_store::{FaultPlan, Op, Space, Store};

use crate::world::{World, publish, v4, v5};

/// A durable session with so many messages, away.
fn away(world: &mut World, messages: u16) {
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v4("s"));
    for number in 1..=messages {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    world.sync();
}

fn unreadable(world: &World, spaces: impl IntoIterator<Item = Space>) {
    let faults = FaultPlan { unreadable: spaces.into_iter().collect(), ..FaultPlan::default() };
    world.store(0).set_faults(faults);
}

#[test]
fn messages_whose_bodies_cannot_be_read_come_when_they_can() {
    let mut world = World::new();
    away(&mut world, 300);
    world.crash(0);
    unreadable(&world, [Space::Messages]);
    let receiver = world.connect(v5("r"));
    world.pass(5_000);
    assert!(world.drain(receiver).is_empty(), "the shard goes on without them");
    unreadable(&world, []);
    world.pass(5_000);
    let all: Vec<String> = (1..=300).map(|number| number.to_string()).collect();
    assert_eq!(world.drain(receiver), all);
}

#[test]
fn a_queue_that_cannot_be_read_is_not_taken_for_drained() {
    let mut world = World::new();
    away(&mut world, 300);
    unreadable(&world, [Space::Queues]);
    let now = world.now();
    let some = world.shard_mut(0).queue_drain("r", 0, now).expect("there is a session");
    assert!(some.drained < 300 && some.again_upto.is_some(), "{some:?}");
    unreadable(&world, []);
    world.sync();
    let rest = world.shard_mut(0).queue_drain("r", 0, now).expect("there is a session");
    assert_eq!((some.drained + rest.drained, rest.again_upto), (300, None));
    world.sync();
    assert_eq!(world.shard(0).queue("r").map(|queue| queue.queued), Some(0));
}

#[test]
fn qos_2_ids_that_cannot_be_read_after_a_panic_are_not_taken_for_free() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 1));
    world.sync();
    let panics = Arc::new(AtomicBool::new(true));
    world.set_probe(
        0,
        Arc::new(move |role, name| {
            assert!((role, name) != ("session", "s") || !panics.swap(false, Ordering::SeqCst));
        }),
    );
    unreadable(&world, [Space::Queues]);
    world.send(sender, Packet::Pingreq);
    world.sync();
    assert!(!world.is_open(sender));
    let (_, refused) = world.try_connect(0, v5("s"));
    assert!(refused.reason.is_error(), "what it has sent is not known yet");
    unreadable(&world, []);
    world.pass(5_000);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 1));
    world.drain(sender);
    assert_eq!(world.drain(receiver), ["once"]);
}

#[test]
fn a_message_that_is_lost_on_disk_counts_in_the_queue_no_more() {
    let mut world = World::new();
    away(&mut world, 300);
    let bodies = world.store(0).scan_keys(Space::Messages, &[], &[], usize::MAX);
    let lost = bodies.expect("it can be read").into_iter().take(100);
    let lost = lost.map(|key| Op::Delete(Space::Messages, key)).collect();
    world.store(0).submit(lost).expect("there is room");
    world.sync();
    world.crash(0);
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver).len(), 200);
    let queue = world.shard(0).queue("r").expect("there is a session");
    assert_eq!((queue.queued, queue.queued_bytes), (0, 0));
}
