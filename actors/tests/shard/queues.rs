//! Full queues, deep queues.

use bytes::Bytes;
use outpost_mqtt::packet::{Ack, Packet, ReasonCode};
use outpost_mqtt::window::HOT_MAX;
use outpost_store::{Op, Space, Store};

use crate::world::{World, fleeting, id, publish, v4, v5};

#[test]
fn a_full_queue_refuses_version_5_and_holds_back_version_3_1_1() {
    let mut world = World::with(1, |config| config.queue_messages_max = 8);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    world.cut(receiver);
    let (five, four) = (world.connect(v5("five")), world.connect(v4("four")));
    for number in 1..=8 {
        world.publish(five, publish("t", &number.to_string(), 1, number));
    }
    world.sync();
    world.take(five);
    world.publish(five, publish("t", "refused", 1, 9));
    let refused = |number| Ack {
        reason_string: Some(
            "no room: a receiver's queue or the memory of this node is full; try again later"
                .into(),
        ),
        ..Ack::new(id(number), ReasonCode::QuotaExceeded)
    };
    assert_eq!(world.take(five), [Packet::Puback(refused(9))]);
    world.publish(five, publish("t", "refused", 2, 10));
    assert_eq!(world.take(five), [Packet::Pubrec(refused(10))]);
    world.publish(four, publish("t", "waits", 2, 1));
    world.sync();
    assert_eq!(world.take(four), []);
    world.publish(four, publish("else", "behind it", 1, 2));
    let receiver = world.connect(v5("r"));
    let got = world.drain(receiver);
    assert_eq!(got, ["1", "2", "3", "4", "5", "6", "7", "8", "waits"]);
    let answers = world.take(four);
    assert!(
        matches!(
            &answers[..],
            [Packet::Puback(_), Packet::Pubrec(_)] | [Packet::Pubrec(_), Packet::Puback(_)]
        ),
        "{answers:?}"
    );
}

#[test]
fn a_publish_held_back_is_not_taken_for_accepted_after_a_cut_or_a_crash() {
    for crash in [false, true] {
        let mut world = World::with(1, |config| config.queue_messages_max = 1);
        let receiver = world.connect(v5("r"));
        world.subscribe(receiver, "t", 2);
        world.cut(receiver);
        let sender = world.connect(v4("s"));
        world.publish(sender, publish("t", "fills it", 1, 1));
        world.publish(sender, publish("t", "waits", 2, 2));
        world.sync();
        if crash {
            world.crash(0)
        } else {
            world.cut(sender)
        }
        let receiver = world.connect(v5("r"));
        assert_eq!(world.drain(receiver), ["fills it"]);
        let sender = world.connect(v4("s"));
        world.publish(sender, publish("t", "waits", 2, 2));
        world.sync();
        assert_eq!(world.take(sender).len(), 1, "it is answered");
        assert_eq!(world.drain(receiver), ["waits"]);
    }
}

#[test]
fn who_is_held_back_is_not_blamed_for_its_silence() {
    let mut world = World::with(1, |config| config.queue_messages_max = 1);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let mut connect = v4("s");
    connect.keep_alive_s = 10;
    let sender = world.connect(connect);
    world.publish(sender, publish("t", "1", 1, 1));
    world.publish(sender, publish("t", "2", 1, 2));
    world.pass(60_000);
    assert!(world.is_open(sender));
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver), ["1", "2"]);
    world.pass(60_000);
    assert!(!world.is_open(sender), "now its silence is its own");
}

#[test]
fn a_client_that_fills_its_own_queue_gets_out_of_it() {
    let mut world = World::with(1, |config| config.queue_messages_max = 4);
    let mut connect = v4("self");
    connect.keep_alive_s = 10;
    let client = world.connect(connect.clone());
    world.subscribe(client, "t", 1);
    for number in 1..=5 {
        world.publish(client, publish("t", &number.to_string(), 1, number));
    }
    // The fifth has to wait; acknowledgements behind it are read all the same.
    assert_eq!(world.drain(client), ["1", "2", "3", "4", "5"]);
    // Further publishes wait behind it, in order, and what follows them is read.
    for number in 1..=20 {
        world.publish(client, publish("t", &number.to_string(), 1, number));
    }
    let all: Vec<String> = (1..=20).map(|number| number.to_string()).collect();
    assert_eq!(world.drain(client), all);
    for number in 1..=200 {
        world.publish(client, publish("t", &number.to_string(), 1, number));
    }
    // Too many wait: its acknowledgements stay unread behind one more. It is not cut off for that, and misses answers to its
    // own pings: it starts over by itself.
    assert_eq!(world.drain(client), ["1", "2", "3", "4"]);
    world.pass(60 * 60_000);
    assert!(world.is_open(client));
    let client = world.connect(connect);
    assert_eq!(world.drain(client), ["1", "2", "3", "4"]);
}

#[test]
fn who_was_held_back_goes_on_when_the_full_one_unsubscribes() {
    let mut world = World::with(1, |config| config.queue_messages_max = 1);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    let sender = world.connect(v4("s"));
    world.publish(sender, publish("t", "1", 1, 1));
    world.publish(sender, publish("t", "2", 1, 2));
    world.sync();
    assert_eq!(world.take(sender).len(), 1);
    world.unsubscribe(receiver, "t");
    assert_eq!(world.take(sender).len(), 1);
    assert_eq!(world.drain(receiver), ["1"]);
}

#[test]
fn a_queue_of_100_000_drains_in_order_from_disk() {
    const COUNT: u32 = 100_000;
    let mut world = World::with(1, |config| config.queue_messages_max = COUNT);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v4("s"));
    for part in 0..COUNT / 1_000 {
        let one = |n: u32| publish("t", &(part * 1_000 + n).to_string(), 1, n as u16 + 1);
        world.send_all(sender, (0..1_000).map(|n| Packet::Publish(Box::new(one(n)))));
        world.sync();
        assert_eq!(world.take(sender).len(), 1_000);
    }
    assert_eq!(world.shard(0).stats().queued, u64::from(COUNT));
    assert!(world.shard(0).stats().queues_full == 1);
    let receiver = world.connect(v5("r"));
    let first = world.peek(receiver).len();
    assert!(first <= HOT_MAX, "{first} in memory at once");
    world.cut(receiver);
    let receiver = world.connect(v5("r"));
    let got = world.drain(receiver);
    assert_eq!(got.len(), COUNT as usize);
    assert!(got.iter().zip(0..).all(|(text, n): (_, u32)| *text == n.to_string()));
    assert_eq!(world.shard(0).stats().queues_full, 0);
}

#[test]
fn a_long_queue_on_disk_goes_out_while_the_disk_is_busy_with_what_is_written_now() {
    const COUNT: u16 = 600;
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v4("s"));
    let all = (1..=COUNT).map(|n| Packet::Publish(Box::new(publish("t", &n.to_string(), 1, n))));
    world.send_all(sender, all);
    world.sync();
    let receiver = world.connect(v5("r"));
    // From here on nothing is synced, and each acknowledgement is something to write.
    let mut got = 0;
    loop {
        world.pump();
        let packets = world.take(receiver);
        let ids = packets.iter().filter_map(|packet| match packet {
            Packet::Publish(publish) => publish.packet_id,
            _ => None,
        });
        let acks = ids.map(|id| Packet::Puback(Ack::new(id, ReasonCode::Success)));
        let acks: Vec<Packet> = acks.collect();
        if acks.is_empty() {
            break;
        }
        got += acks.len();
        world.send_all(receiver, acks);
    }
    assert_eq!(got, usize::from(COUNT));
    world.sync();
    assert_eq!(world.shard(0).stats().queued, 0);
}

#[test]
fn a_client_that_does_not_read_loses_qos_0_only() {
    let mut world = World::with(1, |config| config.queue_messages_max = 10);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    let sender = world.connect(fleeting("s"));
    for number in 1..=20 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    world.sync();
    world.pass(2_000); // who is refused is read more slowly
    let refused = |p: &Packet| matches!(p, Packet::Puback(a) if a.reason.is_error());
    assert_eq!(world.take(sender).iter().filter(|p| refused(p)).count(), 10);
    assert_eq!(world.drain(receiver).len(), 10);
}

#[test]
fn bytes_of_a_queue_count_after_a_restart_and_the_water_marks_are_told() {
    let mut world = World::with(1, |config| config.queue_bytes_max = 40_000);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v5("s"));
    let large = "x".repeat(7_500);
    for number in 1..=5 {
        world.publish(sender, publish("t", &large, 1, number));
    }
    world.sync();
    let told = |world: &World, words: &str| world.logs.iter().any(|line| line.contains(words));
    assert!(told(&world, "queue.high: 70 %") && told(&world, "queue.high: 90 %"));
    world.crash(0);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", &large, 1, 6));
    world.sync();
    world.take(sender);
    world.publish(sender, publish("t", "over", 1, 7));
    let answer = world.take(sender);
    assert!(
        matches!(&answer[..], [Packet::Puback(ack)] if ack.reason == ReasonCode::QuotaExceeded),
        "{answer:?}"
    );
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver).len(), 6);
    assert!(told(&world, "queue.low"));
}

#[test]
fn what_has_expired_makes_room_in_a_full_queue() {
    let mut world = World::with(1, |config| config.queue_messages_max = 300);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v5("s"));
    for number in 1..=300 {
        let message = publish("t", &number.to_string(), 1, number);
        world.publish(sender, outpost_mqtt::packet::Publish { expiry_s: Some(10), ..message });
        if number % 50 == 0 {
            world.sync();
        }
    }
    world.sync();
    world.take(sender);
    world.pass(20_000);
    world.sync();
    world.publish(sender, publish("t", "fresh", 1, 400));
    world.sync();
    let answer = world.take(sender);
    assert!(matches!(&answer[..], [Packet::Puback(ack)] if !ack.reason.is_error()), "{answer:?}");
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver), ["fresh"]);
}

#[test]
fn a_search_for_what_has_expired_that_takes_long_gives_nothing_up_twice() {
    let mut world = World::with(1, |config| config.queue_messages_max = 20_000);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v5("s"));
    for number in 1..=20_000 {
        let message = publish("t", &number.to_string(), 1, number);
        world.publish(sender, outpost_mqtt::packet::Publish { expiry_s: Some(10), ..message });
        if number % 50 == 0 {
            world.sync();
        }
    }
    world.sync();
    world.take(sender);
    // The disk takes longer for each step than there is between two searches.
    for _ in 0..60 {
        world.pass(5_000);
        let store = world.store(0);
        let next = outpost_store::Lsn(outpost_store::Store::synced(store).0 + 1);
        let lsn = store.sync_to(next);
        let now = world.now();
        world.shard_mut(0).synced(lsn, now);
        world.pump();
    }
    world.sync();
    let (stats, queue) = (world.shard(0).stats(), world.shard(0).queue("r").expect("a session"));
    let expired = stats.ledger.dropped[outpost_actors::ledger::Drop::Expired as usize];
    assert!(expired > 2_500, "there is room again: {expired}");
    assert_eq!(u64::from(queue.queued), 20_000 - expired, "each is given up once");
    assert_eq!(stats.bodies, queue.queued as usize);
}

#[test]
fn bodies_that_nobody_needs_are_cleared_away_after_a_start_and_no_others() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "owed", 1, 1));
    world.sync();
    let left = |n: u64| Bytes::copy_from_slice(&[[9; 8], n.to_be_bytes()].concat());
    let rows = (0..3_000).map(|n| Op::Put(Space::Messages, left(n), Bytes::from_static(b"left")));
    world.store(0).submit(rows.collect()).expect("taken");
    world.sync();
    world.crash(0);
    let count = |world: &World| {
        let rows = world.store(0).snapshot().into_keys();
        rows.filter(|(space, _)| *space == Space::Messages).count()
    };
    assert_eq!(count(&world), 3_001, "clients do not wait for it");
    world.pass(4_000);
    world.sync();
    assert_eq!(count(&world), 1);
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver), ["owed"]);
}
