//! Moments of a move at which something else comes in: a message, a crash, another move, a client that begins anew.

use outpost_mqtt::packet::Connect;
use outpost_store::{Lsn, Store as _};

use crate::groups::sync_one;
use crate::takeover::{
    cluster_with_client, cluster_with_client_away, has_session, numbers, rest, resume, send,
};
use crate::world::{Client, World, fleeting, publish, v5};

/// A client has moved from the first node to the second, and the third has no link to either.
fn moved_without_the_third(filter: &str, qos: u8) -> (World, Client) {
    let (mut world, _) = cluster_with_client(3, filter, qos);
    world.sync();
    world.unlink(0, 2);
    world.unlink(1, 2);
    let (client, present) = resume(&mut world, 1, "c");
    assert!(present);
    (world, client)
}

#[test]
fn what_comes_in_while_a_session_is_being_read_goes_with_it() {
    let (mut world, _) = cluster_with_client(3, "t", 2);
    let sender = world.connect_to(0, v5("s"));
    world.sync();
    world.start_connect(1, v5("c"));
    sync_one(&mut world, 1);
    // The old node has heard of it and writes that down; messages come before that is on its disk.
    let begun = Lsn(world.store(0).synced().0 + world.store(0).waiting() as u64);
    for number in 1..=4 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    let (lsn, now) = (world.store(0).sync_to(begun), world.now());
    world.shard_mut(0).synced(lsn, now);
    rest(&mut world);
    let (client, _) = resume(&mut world, 1, "c");
    assert_eq!(world.drain(client), numbers(1, 4));
    rest(&mut world);
    assert!(!has_session(&world, 0, "c"));
}

#[test]
fn what_is_acknowledged_while_its_receiver_moves_survives_a_crash() {
    for moment in 0..12 {
        let (mut world, _) = cluster_with_client(2, "t", 1);
        let sender = world.connect_to(0, v5("s"));
        world.start_connect(1, v5("c"));
        for step in 0..moment {
            sync_one(&mut world, (step + 1) % 2);
        }
        world.publish(sender, publish("t", "9", 1, 9));
        world.pump();
        let accepted = world.accepted(sender);
        world.crash(0);
        world.join();
        rest(&mut world);
        let (client, _) = resume(&mut world, 1, "c");
        let got = world.drain(client);
        assert!(accepted.is_empty() || got == ["9"], "moment {moment}: lost");
    }
}

#[test]
fn what_was_passed_on_is_known_when_it_comes_from_its_publisher_at_last() {
    let mut passed_on = 0;
    for moment in 0..24 {
        let (mut world, _) = cluster_with_client(3, "t", 2);
        let sender = world.connect_to(2, v5("s"));
        world.sync();
        let client = world.start_connect(1, v5("c"));
        for step in 0..moment {
            sync_one(&mut world, (step + 1) % 3);
        }
        world.publish(sender, publish("t", "9", 2, 9));
        // One copy goes by the node the client was at; the other waits until the publisher's node has a link again.
        world.unlink(1, 2);
        rest(&mut world);
        let before = world.drain(client);
        passed_on += before.len();
        world.link(1, 2);
        rest(&mut world);
        assert_eq!([before, world.drain(client)].concat(), ["9"], "moment {moment}");
        assert_eq!([0, 1].map(|node| world.shard(node).stats().sessions_moving), [0, 0]);
    }
    assert!(passed_on > 0, "at some moments it goes the long way");
}

#[test]
fn a_share_group_has_somebody_for_a_node_that_has_not_heard_of_the_move() {
    let (mut world, client) = moved_without_the_third("$share/g/t", 1);
    rest(&mut world);
    world.link(0, 2);
    rest(&mut world);
    let away = world.connect_to(2, v5("away"));
    send(&mut world, away, "t", (1, 5), 1);
    world.link(1, 2);
    rest(&mut world);
    assert_eq!(world.drain(client), numbers(1, 5));
    assert!(!has_session(&world, 0, "c"));
}

#[test]
fn a_client_waits_for_the_node_it_was_at_last_not_for_one_before() {
    let (mut world, _) = moved_without_the_third("t", 2);
    let sender = world.connect_to(1, v5("s"));
    send(&mut world, sender, "t", (1, 3), 2);
    world.link(0, 2);
    world.link(1, 2);
    world.pump();
    // The first node still has something of it, as the third has only just come back.
    assert!(has_session(&world, 0, "c"));
    let client = world.start_connect(2, v5("c"));
    for _ in 0..8 {
        sync_one(&mut world, 2);
        sync_one(&mut world, 0);
    }
    assert!(world.connack(client).is_none(), "the second has not passed on what it has");
    rest(&mut world);
    assert!(world.connack(client).is_some_and(|connack| connack.session_present));
    assert_eq!(world.drain(client), numbers(1, 3));
}

#[test]
fn what_is_on_its_way_when_a_client_begins_anew_is_not_taken() {
    for again in [fleeting("c"), Connect { clean_start: true, ..v5("c") }] {
        let (mut world, sender) = cluster_with_client_away(2, "t", 1);
        send(&mut world, sender, "t", (1, 3), 1);
        let first = world.start_connect(1, v5("c"));
        sync_one(&mut world, 1);
        let anew = world.start_connect(1, again);
        // The old node passes on all it has before it hears of that.
        (0..4).for_each(|_| sync_one(&mut world, 0));
        rest(&mut world);
        assert!(!world.is_open(first) && world.is_open(anew));
        assert!(world.connack(anew).is_some_and(|connack| !connack.session_present));
        send(&mut world, sender, "t", (4, 6), 1);
        rest(&mut world);
        assert_eq!(world.drain(anew), Vec::<String>::new());
        assert_eq!([0, 1].map(|node| world.shard(node).stats().sessions_moving), [0, 0]);
        assert!(!has_session(&world, 0, "c"));
    }
}

#[test]
fn what_a_share_group_is_owed_by_way_of_a_client_that_begins_anew_goes_to_another_member() {
    let (mut world, sender) = cluster_with_client_away(2, "$share/g/t", 1);
    send(&mut world, sender, "t", (1, 3), 1);
    let other = world.connect_to(1, v5("other"));
    world.subscribe(other, "$share/g/t", 1);
    world.start_connect(1, v5("c"));
    sync_one(&mut world, 1);
    world.start_connect(1, Connect { clean_start: true, ..v5("c") });
    // The old node passes on all it has before it hears of that.
    (0..4).for_each(|_| sync_one(&mut world, 0));
    rest(&mut world);
    assert_eq!(world.drain(other), numbers(1, 3));
}

#[test]
fn what_a_client_was_given_where_it_was_does_not_come_again_where_it_is() {
    let (mut world, client) = cluster_with_client(3, "t", 2);
    let other = world.connect_to(1, v5("other"));
    world.subscribe(other, "t", 2);
    let sender = world.connect_to(2, v5("s"));
    world.sync();
    // What the third node has for the second waits until they have a link.
    world.unlink(1, 2);
    send(&mut world, sender, "t", (1, 3), 2);
    assert_eq!(world.drain(client), numbers(1, 3));
    let (client, present) = resume(&mut world, 1, "c");
    assert!(present);
    rest(&mut world);
    world.link(1, 2);
    rest(&mut world);
    assert_eq!(world.drain(other), numbers(1, 3));
    assert_eq!(world.drain(client), Vec::<String>::new());
    send(&mut world, sender, "t", (4, 5), 2);
    assert_eq!(world.drain(client), numbers(4, 5));
}
