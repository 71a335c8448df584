//! Clients that move on before their sessions have come: who has something of theirs answers, and nobody waits for who has not.

use crate::dice::Dice;
use crate::groups::sync_one;
use crate::takeover::{
    cluster_with_client, cluster_with_client_away, has_session, numbers, rest, resume, send,
};
use crate::world::{World, v5};

/// Everything goes on as far as it goes without a clock.
fn sync_all(world: &mut World) {
    (0..8).for_each(|_| world.sync());
}

fn is_quiet(world: &World, nodes: usize) -> bool {
    (0..nodes).all(|node| world.shard(node).stats().sessions_moving == 0)
}

#[test]
fn a_client_waits_for_all_the_nodes_that_have_something_of_it() {
    let (mut world, sender) = cluster_with_client_away(3, "t", 2);
    send(&mut world, sender, "t", (1, 5), 2);
    world.unlink(0, 1);
    let first = world.start_connect(1, v5("c"));
    sync_one(&mut world, 1);
    let client = world.start_connect(2, v5("c"));
    sync_all(&mut world);
    assert!(!world.is_open(first));
    assert!(world.connack(client).is_some_and(|connack| connack.session_present));
    assert_eq!(world.drain(client), numbers(1, 5));
    world.link(0, 1);
    rest(&mut world);
    assert!(is_quiet(&world, 3) && !has_session(&world, 0, "c"));
}

#[test]
fn who_comes_back_before_the_other_node_had_anything_is_let_in_at_once() {
    let (mut world, sender) = cluster_with_client_away(2, "t", 2);
    send(&mut world, sender, "t", (1, 5), 2);
    world.start_connect(1, v5("c"));
    sync_one(&mut world, 1);
    let client = world.start_connect(0, v5("c"));
    sync_all(&mut world);
    assert!(world.connack(client).is_some_and(|connack| connack.session_present));
    assert_eq!(world.drain(client), numbers(1, 5));
    rest(&mut world);
    assert!(is_quiet(&world, 2) && !has_session(&world, 1, "c"));
}

#[test]
fn who_was_let_in_before_it_was_known_to_have_gone_elsewhere_waits_for_nothing_afterwards() {
    let (mut world, _) = cluster_with_client(2, "t", 1);
    world.cut_link();
    let elsewhere = world.start_connect(1, v5("c"));
    sync_all(&mut world);
    world.crash(1);
    assert!(!world.is_open(elsewhere));
    resume(&mut world, 0, "c");
    world.join();
    rest(&mut world);
    let (_, present) = resume(&mut world, 0, "c");
    assert!(present);
    rest(&mut world);
    assert!(is_quiet(&world, 2));
}

#[test]
fn of_many_connects_at_linked_nodes_none_waits_for_its_time_to_be_up() {
    for seed in 0..200 {
        let mut dice = Dice(seed + 1);
        let (mut world, sender) = cluster_with_client_away(3, "t", 2);
        send(&mut world, sender, "t", (1, 5), 2);
        let mut clients = Vec::new();
        for _ in 0..2 + dice.below(12) {
            clients.push(world.start_connect(dice.below(3) as usize, v5("c")));
            for _ in 0..dice.below(4) {
                sync_one(&mut world, dice.below(3) as usize);
            }
        }
        sync_all(&mut world);
        let open: Vec<_> = clients.into_iter().filter(|client| world.is_open(*client)).collect();
        let [client] = open[..] else { panic!("seed {seed}: {} of them are there", open.len()) };
        let connack = world.connack(client);
        assert!(connack.is_some_and(|connack| connack.session_present), "seed {seed}: it waits");
        rest(&mut world);
        world.drain(client);
        assert!(is_quiet(&world, 3), "seed {seed}: something still moves");
    }
}
