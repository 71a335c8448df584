//! Stories about QoS 0 for clients that do not read: buffers that grow with the lag and shrink without, and each policy
//! for what does not fit, counted to the message.

use outpost_actors::ledger::Drop;
use outpost_flow::Overload;
use outpost_flow::overload::RING_MAX;
use outpost_model::TopicFilter;
use outpost_mqtt::packet::{Connect, Packet, ReasonCode};

use crate::world::{Client, World, fleeting, publish, v4};

const PAYLOAD: usize = 1_000;

/// A node with buffers of 30,000 bytes at most, a client that stopped reading, and one that publishes.
fn world(policy: Overload) -> (World, Client, Client) {
    let mut world = World::with(1, |config| {
        config.out_bytes_max = 30_000;
        let filter = TopicFilter::new("a/#").expect("a filter");
        config.overload = vec![(filter, policy)];
    });
    let stopped = world.connect(fleeting("stopped"));
    world.subscribe(stopped, "#", 0);
    world.pass(5_000); // it has kept up for long: its share is the least
    world.stop_reading(stopped);
    let publisher = world.connect(v4("publisher"));
    (world, stopped, publisher)
}

/// Publishes so many, numbered, slowly enough not to be paced.
fn send(world: &mut World, publisher: Client, topic: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let payload = format!("{number:0PAYLOAD$}");
        world.publish(publisher, publish(topic, &payload, 0, 0));
        world.pass(25);
    }
}

fn slow(world: &World) -> usize {
    world.shard(0).ledger().dropped[Drop::SlowClient as usize] as usize
}

fn numbers(texts: &[String]) -> Vec<usize> {
    texts.iter().map(|text| text.parse().expect("a number")).collect()
}

#[test]
fn a_buffer_grows_with_the_lag_and_shrinks_without() {
    let (mut world, stopped, publisher) = world(Overload::DropNew);
    send(&mut world, publisher, "a/b", 0..1);
    world.pass(3_000);
    send(&mut world, publisher, "a/b", 1..100);
    let got = numbers(&world_read(&mut world, stopped));
    assert!((29..=31).contains(&got.len()), "behind for long it may have it all: {}", got.len());
    assert_eq!(got.len() + slow(&world), 100);

    world.pass(5_000);
    world.stop_reading(stopped);
    // All in one moment: its share is the least again.
    let message =
        |n: usize| Packet::Publish(Box::new(publish("a/b", &format!("{n:0PAYLOAD$}"), 0, 0)));
    world.send_all(publisher, (0..15).map(message));
    let got = world_read(&mut world, stopped).len();
    assert!((9..=13).contains(&got), "a third of it: {got}");
}

fn world_read(world: &mut World, client: Client) -> Vec<String> {
    world.read_on(client);
    world.drain(client)
}

#[test]
fn drop_new_keeps_what_came_first() {
    let (mut world, stopped, publisher) = world(Overload::DropNew);
    send(&mut world, publisher, "a/b", 0..400);
    let got = numbers(&world_read(&mut world, stopped));
    assert!(got.is_sorted() && got[..20] == (0..20).collect::<Vec<_>>(), "{got:?}");
    assert_eq!(got.len() + slow(&world), 400);
}

#[test]
fn drop_old_keeps_what_came_last() {
    let (mut world, stopped, publisher) = world(Overload::DropOld);
    send(&mut world, publisher, "a/b", 0..400);
    assert_eq!(world.shard(0).stats().queued as usize, RING_MAX, "they wait, and are counted so");
    let got = numbers(&world_read(&mut world, stopped));
    let in_buffer = got.len() - RING_MAX;
    assert_eq!(got[..in_buffer], (0..in_buffer).collect::<Vec<_>>());
    assert_eq!(got[in_buffer..], (400 - RING_MAX..400).collect::<Vec<_>>());
    assert_eq!(got.len() + slow(&world), 400);
    send(&mut world, publisher, "a/b", 400..410);
    assert_eq!(world.drain(stopped).len(), 10, "it is as if nothing had been");
}

#[test]
fn block_makes_the_publisher_wait_and_drops_nothing() {
    let (mut world, stopped, publisher) = world(Overload::Block);
    let message =
        |n: usize| Packet::Publish(Box::new(publish("a/b", &format!("{n:0PAYLOAD$}"), 0, 0)));
    world.send_all(publisher, (0..200).map(message));
    for _ in 0..50 {
        world.pass(100);
    }
    assert!(world.unsent(publisher) > 100 * PAYLOAD, "{}", world.unsent(publisher));
    let mut got = numbers(&world_read(&mut world, stopped));
    for _ in 0..10 {
        world.pass(100);
        got.extend(numbers(&world.drain(stopped)));
    }
    assert_eq!((got, slow(&world)), ((0..200).collect(), 0));
}

#[test]
fn disconnect_tells_the_client_to_start_afresh() {
    let (mut world, stopped, publisher) = world(Overload::Disconnect);
    send(&mut world, publisher, "a/b", 0..40);
    assert!(!world.is_open(stopped));
    let ledger = world.shard(0).ledger();
    assert_eq!((ledger.dropped[Drop::SlowClient as usize], ledger.unwanted > 0), (1, true));
    let again = world.connect(fleeting("stopped"));
    world.subscribe(again, "#", 0);
    send(&mut world, publisher, "a/b", 40..41);
    assert_eq!(world.drain(again).len(), 1);
}

#[test]
fn a_topic_without_a_policy_is_dropped_as_ever_and_a_lost_client_takes_its_ring_along() {
    let (mut world, stopped, publisher) = world(Overload::DropOld);
    send(&mut world, publisher, "a/b", 0..100);
    let before = slow(&world);
    send(&mut world, publisher, "other", 0..30);
    assert!(slow(&world) - before > 10, "they do not wait");
    let waiting = world.shard(0).stats().queued;
    world.cut(stopped);
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.ledger.dropped[Drop::Offline as usize]), (0, waiting));
    assert!(waiting > 50 && stats.missing() == 0);
    let reason = ReasonCode::Success;
    assert_eq!(world.try_connect(0, fleeting("stopped")).1.reason, reason);
}

#[test]
fn clients_cut_off_by_each_others_wills_go_one_after_the_other() {
    let mut world = World::with(1, |config| {
        config.out_bytes_max = 4_096;
        let filter = outpost_model::TopicFilter::new("a/#".to_owned()).expect("a filter");
        config.overload = vec![(filter, outpost_flow::Overload::Disconnect)];
    });
    let slow: Vec<Client> = (0..1_000)
        .map(|number| {
            let will = crate::world::will("a/gone", 0);
            let will = outpost_mqtt::packet::Will { qos: outpost_model::QoS::AtMostOnce, ..*will };
            let connect = fleeting(&format!("slow-{number}"));
            let client = world.connect(Connect { will: Some(Box::new(will)), ..connect });
            world.subscribe(client, "a/+", 0);
            client
        })
        .collect();
    slow.iter().for_each(|client| world.stop_reading(*client));
    let publisher = world.connect(fleeting("publisher"));
    let payload = "x".repeat(1_000);
    for _ in 0..10 {
        world.publish(publisher, publish("a/b", &payload, 0, 0));
    }
    world.pass(10_000);
    assert!(slow.iter().all(|client| !world.is_open(*client)));
    assert!(world.is_open(publisher));
    world.check_ledgers();
}
