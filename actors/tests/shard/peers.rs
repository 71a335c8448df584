//! Two nodes and a link between them that breaks.

use outpost_actors::ledger::Drop;
use outpost_actors::shard::{Event, Forgotten, PEER_EARLY_MAX, STALLED_BYTES_MAX};
use outpost_membership::interest::LocalInterest;
use outpost_membership::{Hello, Interest, PeerFrame, RetainedEntry, StateEntry};
use outpost_model::{Hlc, Message, MessageId, NodeId, QoS};
use outpost_mqtt::packet::Publish;
use outpost_store::{Op, Space, Store};

use crate::retained::retained;
use crate::takeover::numbers;
use crate::world::{Client, World, fleeting, publish, v5};

#[test]
fn a_durable_event_survives_a_cut_and_a_crash_of_either_side_and_arrives_once() {
    for crashed in [0, 1] {
        let mut world = World::with(2, |_| {});
        let receiver = world.connect_to(1, v5("r"));
        world.subscribe(receiver, "t/#", 2);
        world.cut(receiver);
        world.join();
        world.cut_link();
        let sender = world.connect_to(0, v5("s"));
        for number in 1..=20 {
            world.publish(sender, publish("t/1", &number.to_string(), 2, number));
        }
        world.drain(sender);
        assert_eq!(world.shard(0).stats().outbox, 20);
        world.crash(crashed);
        world.heal();
        world.cut_link(); // again and again, at awkward moments
        world.heal();
        world.sync();
        world.crash(crashed);
        world.join();
        assert_eq!(world.shard(0).stats().outbox, 0, "crashed: {crashed}");
        let receiver = world.connect_to(1, v5("r"));
        let numbers: Vec<String> = (1..=20).map(|n: u16| n.to_string()).collect();
        assert_eq!(world.drain(receiver), numbers, "crashed: {crashed}");
    }
}

#[test]
fn a_peer_is_not_told_that_something_is_durable_before_it_is() {
    let mut world = World::with(2, |_| {});
    let receiver = world.connect_to(1, v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    world.join();
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("t", "kept", 1, 1));
    let lsn = world.store(0).sync_all();
    let now = world.now();
    world.shard_mut(0).synced(lsn, now);
    world.pump(); // it has arrived, and is not synced there
    world.cut_link();
    world.heal();
    world.crash(1);
    assert_eq!(world.shard(0).stats().outbox, 1);
    world.join();
    let receiver = world.connect_to(1, v5("r"));
    assert_eq!(world.drain(receiver), ["kept"]);
}

#[test]
fn a_qos_2_message_taken_again_after_a_crash_comes_once_to_a_fleeting_session_of_a_peer() {
    let mut world = World::with(2, |_| {});
    world.join();
    let receiver = world.connect_to(1, fleeting("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("t", "once", 2, 7)); // its packet id is not on disk yet
    world.crash(0);
    world.join();
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, Publish { dup: true, ..publish("t", "once", 2, 7) });
    world.drain(sender);
    assert_eq!(world.drain(receiver), ["once"]);
}

#[test]
fn fleeting_interest_is_told_and_withdrawn_and_costs_nothing_while_cut() {
    let mut world = World::with(2, |_| {});
    world.join();
    let receiver = world.connect_to(1, fleeting("r"));
    world.subscribe(receiver, "t", 1);
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("t", "now", 1, 1));
    assert_eq!(world.drain(receiver), ["now"]);
    world.cut_link();
    world.publish(sender, publish("t", "missed", 1, 2));
    world.drain(sender);
    assert_eq!(world.shard(0).stats().outbox, 0);
    world.join();
    world.publish(sender, publish("t", "again", 0, 0));
    assert_eq!(world.drain(receiver), ["again"]);
    world.subscribe(receiver, "t", 0);
    world.unsubscribe(receiver, "t");
    let before = world.frames;
    world.publish(sender, publish("t", "nobody", 1, 3));
    world.drain(sender);
    assert_eq!(world.frames, before, "nothing goes over the link");
}

#[test]
fn an_event_goes_one_hop() {
    let mut world = World::with(2, |_| {});
    for node in [0, 1] {
        let client = world.connect_to(node, v5(&format!("r{node}")));
        world.subscribe(client, "t", 1);
        world.cut(client);
    }
    world.join();
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("t", "once each", 1, 1));
    world.drain(sender);
    for node in [0, 1] {
        let client = world.connect_to(node, v5(&format!("r{node}")));
        assert_eq!(world.drain(client), ["once each"]);
    }
    assert_eq!((world.shard(0).stats().outbox, world.shard(1).stats().outbox), (0, 0));
}

#[test]
fn a_full_queue_at_the_peer_holds_events_there_and_then_lets_them_in() {
    let mut world = World::with(2, |config| config.queue_messages_max = 4);
    let receiver = world.connect_to(1, v5("r"));
    world.subscribe(receiver, "t", 1);
    world.cut(receiver);
    world.join();
    let sender = world.connect_to(0, v5("s"));
    for number in 1..=20 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    world.drain(sender);
    assert!(world.shard(1).stats().queued <= 4);
    let receiver = world.connect_to(1, v5("r"));
    let numbers: Vec<String> = (1..=20).map(|n: u16| n.to_string()).collect();
    assert_eq!(world.drain(receiver), numbers);
    assert_eq!(world.shard(0).stats().outbox, 0);
}

#[test]
fn the_last_writer_wins_when_both_sides_wrote_during_a_cut() {
    let mut world = World::with(2, |_| {});
    world.join();
    let clients = [world.connect_to(0, fleeting("a")), world.connect_to(1, fleeting("b"))];
    world.publish(clients[0], retained("cleared", "old", 1, 1));
    world.drain(clients[0]);
    world.cut_link();
    world.publish(clients[0], retained("t", "first", 1, 2));
    world.publish(clients[1], retained("cleared", "", 1, 2));
    world.pass(1_000);
    world.publish(clients[1], retained("t", "second", 1, 3));
    world.drain(clients[0]);
    world.drain(clients[1]);
    world.crash(0);
    world.join();
    world.sync();
    for node in [0, 1] {
        let late = world.connect_to(node, fleeting("late"));
        world.subscribe(late, "#", 1);
        assert_eq!(world.drain(late), ["second"], "node {node}");
    }
}

#[test]
fn a_peer_cannot_stop_the_store_with_a_key_it_does_not_take() {
    let mut world = World::with(2, |_| {});
    world.join();
    let now = world.now();
    let peer = NodeId(2);
    let entry = |topic: &str| RetainedEntry {
        topic: topic.to_owned(),
        stamp: Hlc::from_ms(now.wall_ms),
        node: peer,
        message: None,
    };
    let long = "x".repeat(65_535);
    let frames = [
        PeerFrame::Retained { feed_seq: 1, entry: entry("") },
        PeerFrame::Retained { feed_seq: 1, entry: entry(&long) },
        PeerFrame::InterestAdd(vec![Interest { pattern: long, durable: true, live: false }]),
    ];
    for frame in frames {
        assert!(world.shard_mut(0).peer_frame(peer, frame, now).is_err());
    }
    world.sync();
    assert_eq!(world.shard(0).stats().store_failed, None);
}

/// The first node owes the second what was published while the link was cut, and the receiver there.
fn owing_over_a_cut(payloads: &[String]) -> (World, Client) {
    let mut world = World::with(2, |_| {});
    let receiver = world.connect_to(1, v5("r"));
    world.subscribe(receiver, "t", 1);
    world.join();
    world.cut_link();
    let sender = world.connect_to(0, v5("s"));
    for (number, payload) in (1..).zip(payloads) {
        world.publish(sender, publish("t", payload, 1, number));
    }
    world.drain(sender);
    (world, receiver)
}

#[test]
fn an_event_whose_body_is_gone_from_disk_is_counted_and_does_not_stop_the_others() {
    let (mut world, receiver) = owing_over_a_cut(&numbers(1, 3));
    world.crash(0); // now they are on disk only
    let bodies = world.store(0).snapshot().into_keys();
    let body = bodies.filter(|(space, _)| *space == Space::Messages).nth(1).expect("three bodies");
    world.store(0).submit(vec![Op::Delete(Space::Messages, body.1)]).expect("taken");
    world.sync();
    world.join();
    assert_eq!(world.drain(receiver), ["1", "3"]);
    let stats = world.shard(0).stats();
    assert_eq!((stats.outbox, stats.ledger.dropped[Drop::Damaged as usize]), (0, 1));
}

#[test]
fn the_window_of_a_link_moves_with_each_acknowledgement_also_for_what_was_read_from_disk() {
    let (mut world, _) = owing_over_a_cut(&vec!["x".repeat(100_000); 40]);
    world.crash(0); // now they are on disk only
    assert_eq!(world.shard(0).stats().outbox, 40);
    let (peer, now) = (NodeId(2), world.now());
    let sent = |world: &mut World| {
        let mut sent = Vec::new();
        while let Some(event) = world.shard_mut(0).poll_event() {
            if let Event::Peer(_, PeerFrame::Event { seq, .. }) = event {
                sent.push(seq);
            }
        }
        sent
    };
    world.shard_mut(0).peer_up(peer, now);
    let hello = Hello { store_id: 2, your_store_id: 0, events_seen: 0, retained_seen: 0 };
    world.shard_mut(0).peer_frame(peer, PeerFrame::Hello(hello), now).expect("a peer");
    let first = sent(&mut world);
    assert!((10..40).contains(&first.len()), "{} of 4 MB are a window", first.len());
    let mut all = first.len();
    for seq in first {
        world.shard_mut(0).peer_frame(peer, PeerFrame::EventAck { seq }, now).expect("sent");
        let more = sent(&mut world).len();
        assert!(more == 1 || all == 40, "one has arrived, {more} leave, {all} have left");
        all += more;
    }
    assert_eq!(all, 40);
}

#[test]
fn what_was_said_on_a_link_does_not_come_on_the_next_in_front_of_what_was_lost() {
    let (mut world, _) = owing_over_a_cut(&numbers(1, 20));
    let (peer, now) = (NodeId(2), world.now());
    let hello = || Hello { store_id: 2, your_store_id: 0, events_seen: 0, retained_seen: 0 };
    let shard = world.shard_mut(0);
    let take = |shard: &mut outpost_actors::shard::Shard, count: usize| {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(event) = shard.poll_event()
        {
            if let Event::Peer(_, PeerFrame::Event { seq, .. }) = event {
                taken.push(seq);
            }
        }
        taken
    };
    shard.peer_up(peer, now);
    shard.peer_frame(peer, PeerFrame::Hello(hello()), now).expect("a peer");
    // The driver sends some of them, and hears that the link has been replaced.
    let first = take(shard, 5);
    assert_eq!(first.len(), 5);
    shard.peer_down(peer, now);
    shard.peer_up(peer, now);
    assert_eq!(take(shard, 1), [], "the peer has not said how far it has read");
    shard.peer_frame(peer, PeerFrame::Hello(hello()), now).expect("a peer");
    let again = take(shard, 100);
    assert_eq!((again.len(), &again[..5]), (20, &first[..]), "from where the peer is");
}

#[test]
fn a_peer_that_is_forgotten_holds_nothing_back_and_may_come_back_as_a_new_one() {
    let mut world = World::with(2, |config| config.outbox_messages_max = 3);
    let receiver = world.connect_to(1, v5("r"));
    world.subscribe(receiver, "t", 1);
    world.join();
    let peer = NodeId(2);
    let now = world.now();
    assert_eq!(world.shard_mut(0).forget_peer(peer, now), Forgotten::Linked, "it is there");
    world.cut_link();
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, retained("t", "kept", 1, 1));
    world.publish(sender, retained("t", "", 1, 2));
    world.publish(sender, publish("t", "full", 1, 3));
    world.sync();
    let stats = world.shard(0).stats();
    assert_eq!((stats.outbox, stats.outboxes_full, stats.retained_tombstones), (3, 1, 1));
    assert_eq!(world.shard_mut(0).forget_peer(peer, now), Forgotten::Gone { dropped: 3 });
    assert_eq!(world.shard_mut(0).forget_peer(peer, now), Forgotten::Unknown);
    for crashed in [false, true] {
        if crashed {
            world.crash(0);
        }
        world.sync();
        let stats = world.shard(0).stats();
        assert_eq!((stats.outbox, stats.outboxes_full, stats.retained_tombstones), (0, 0, 0));
        let left = [Space::Outbox, Space::Messages, Space::Retained];
        let rows = world.store(0).snapshot();
        assert!(!rows.keys().any(|(space, _)| left.contains(space)), "{rows:?}");
        let of_peers = rows.keys().filter(|(space, _)| *space == Space::Peers).count();
        assert_eq!(of_peers, 1, "how far it was known");
        assert_eq!(stats.ledger.dropped[Drop::Drained as usize], if crashed { 0 } else { 3 });
    }
    world.join();
    let sender = world.connect_to(0, v5("s"));
    world.publish(sender, publish("t", "again", 1, 4));
    assert_eq!(world.drain(receiver), ["again"]);
}

#[test]
fn a_list_of_interest_that_breaks_off_takes_nothing_away() {
    let mut world = World::with(2, |_| {});
    world.join();
    let receiver = world.connect_to(1, v5("r"));
    world.subscribe(receiver, "wanted", 1);
    world.cut(receiver);
    world.cut_link();
    // The next link breaks when the first part of what node 2 wants has come.
    let mut all = LocalInterest::default();
    all.add("wanted", true);
    (0..300).for_each(|n| drop(all.add(&format!("{n:0>1000}"), true)));
    let first = all.all_frames().swap_remove(0);
    assert!(matches!(&first, PeerFrame::InterestAll(part) if part.len() < all.len()));
    let hello = Hello {
        store_id: world.store(1).store_id(),
        your_store_id: world.store(0).store_id(),
        events_seen: 0,
        retained_seen: 0,
    };
    let now = world.now();
    let shard = world.shard_mut(0);
    shard.peer_up(NodeId(2), now);
    for frame in [PeerFrame::Hello(hello), first] {
        shard.peer_frame(NodeId(2), frame, now).expect("as a peer says it");
    }
    shard.peer_down(NodeId(2), now);
    world.sync();
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("wanted", "kept", 1, 1));
    world.sync();
    world.crash(0);
    world.join();
    let receiver = world.connect_to(1, v5("r"));
    assert_eq!(world.drain(receiver), ["kept"]);
}

#[test]
fn a_peer_that_does_not_wait_for_acknowledgements_occupies_little_here() {
    let payloads =
        [("x".repeat(1_000_000), STALLED_BYTES_MAX / 1_000_000 + 1), ("x".into(), 1_024)];
    for (payload, most) in payloads {
        let mut world = World::with(1, |config| config.queue_messages_max = 2);
        let receiver = world.connect(v5("r"));
        world.subscribe(receiver, "t", 1);
        world.cut(receiver);
        let sender = world.connect(v5("s"));
        (1..=2).for_each(|number| world.publish(sender, publish("t", "full", 1, number)));
        world.sync();
        let (peer, now) = (NodeId(2), world.now());
        world.shard_mut(0).peer_up(peer, now);
        let hello = Hello { store_id: 2, your_store_id: 0, events_seen: 0, retained_seen: 0 };
        world.shard_mut(0).peer_frame(peer, PeerFrame::Hello(hello), now).expect("a hello");
        let event = |seq| {
            let id = MessageId { node: peer, seq };
            let message = Message {
                id,
                topic: "t".into(),
                payload: payload.clone().into(),
                qos: QoS::AtLeastOnce,
                retain: false,
                properties: None,
                accepted_wall_ms: now.wall_ms,
                expiry_s: None,
            };
            PeerFrame::Event { seq, message: message.into(), shares: None }
        };
        let taken = (1..10_000)
            .take_while(|seq| world.shard_mut(0).peer_frame(peer, event(*seq), now).is_ok());
        assert_eq!(taken.count(), most);
    }
}

#[test]
fn what_comes_before_a_hello_waits_for_it_and_has_a_limit() {
    let peer = NodeId(9);
    let entry = |key: String, value: usize| {
        let value = Some(vec![0; value].into());
        PeerFrame::State {
            feed_seq: 1,
            entry: StateEntry { key, stamp: Hlc(5), node: peer, value },
        }
    };
    let before = |world: &World| world.shard(0).stats().directory;
    // By number, and by bytes.
    for (value, most) in [(8, PEER_EARLY_MAX), (4_000, STALLED_BYTES_MAX / 4_000 + 1)] {
        let mut world = World::new();
        let now = world.now();
        world.shard_mut(0).peer_up(peer, now);
        let tell = |world: &mut World, number: usize| {
            let frame = entry(format!("k/{number}"), value);
            world.shard_mut(0).peer_frame(peer, frame, now)
        };
        let taken =
            (0..=most + 1).find(|number| tell(&mut world, *number).is_err()).expect("an end");
        assert!(taken <= most, "{taken} frames of {value} bytes");
        assert_eq!(before(&world), 0, "none counts yet");
        let hello = Hello { store_id: 7, your_store_id: 0, events_seen: 0, retained_seen: 0 };
        world.shard_mut(0).peer_frame(peer, PeerFrame::Hello(hello), now).expect("a hello");
        world.sync();
        assert!(before(&world) >= taken, "{} of {taken}", before(&world));
    }
}
