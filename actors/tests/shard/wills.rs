//! Wills outlive the node: said after a restart, once, when their client does not come back in time.

use crate::world::{World, fleeting, publish, v5, will};
use outpost_actors::ledger::Drop;
use outpost_mqtt::packet::Connect;

fn watcher(world: &mut World) {
    let watcher = world.connect(v5("watcher"));
    world.subscribe(watcher, "status", 1);
    world.cut(watcher);
    world.sync();
}

/// What the watcher got since it was last asked.
fn said(world: &mut World) -> Vec<String> {
    let watcher = world.connect(v5("watcher"));
    let said = world.drain(watcher);
    world.cut(watcher);
    world.sync();
    said
}

#[test]
fn the_will_of_a_client_that_was_connected_when_the_node_died_is_said_once() {
    for connect in [v5("device"), fleeting("device")] {
        let mut world = World::new();
        watcher(&mut world);
        world.connect(Connect { will: Some(will("status", 0)), ..connect });
        world.crash(0);
        assert_eq!(said(&mut world), ["gone"]);
        world.crash(0);
        assert!(said(&mut world).is_empty(), "once");
    }
}

#[test]
fn a_delayed_will_waits_out_its_delay_over_a_restart_and_is_taken_back_by_its_client() {
    let mut world = World::new();
    watcher(&mut world);
    let device = || Connect { will: Some(will("status", 60)), ..v5("device") };
    world.connect(device());
    world.crash(0);
    world.pass(59_000);
    world.sync();
    assert!(said(&mut world).is_empty(), "not before its time");
    world.pass(2_000);
    world.sync();
    assert_eq!(said(&mut world), ["gone"]);

    let connected = world.connect(device());
    world.cut(connected);
    world.pass(30_000);
    world.sync();
    world.crash(0);
    world.pass(29_000);
    world.sync();
    assert!(said(&mut world).is_empty(), "the time while it was away counts on");
    let back = world.connect(v5("device"));
    world.pass(60_000);
    world.sync();
    world.crash(0);
    assert!(said(&mut world).is_empty(), "it came back, this time without a will");
    assert!(!world.is_open(back));
}

#[test]
fn a_good_bye_takes_it_off_the_disk() {
    let mut world = World::new();
    watcher(&mut world);
    let device = world.connect(Connect { will: Some(will("status", 0)), ..v5("device") });
    world.disconnect(device);
    world.sync();
    world.crash(0);
    assert!(said(&mut world).is_empty());
    let sender = world.connect(v5("sender"));
    world.publish(sender, publish("status", "hello", 1, 1));
    world.sync();
    assert_eq!(said(&mut world), ["hello"]);
}

#[test]
fn a_will_a_full_queue_has_no_room_for_is_said_later_or_counted() {
    for (connect, lost) in [(v5("device"), 0), (fleeting("device"), 1)] {
        let mut world = World::with(1, |config| config.queue_messages_max = 1);
        watcher(&mut world);
        let device = world.connect(Connect { will: Some(will("status", 0)), ..connect });
        world.publish(device, publish("status", "fills it", 1, 1));
        world.sync();
        world.cut(device);
        world.sync();
        let dropped = world.shard(0).stats().ledger.dropped[Drop::WillRefused as usize];
        assert_eq!(dropped, lost);
        assert_eq!(said(&mut world), ["fills it"]);
        world.pass(2_000);
        world.sync();
        assert_eq!(said(&mut world).len() as u64, 1 - lost);
        world.check_ledgers();
    }
}
