//! Cells that panic: one is restarted or set aside, nobody else notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use outpost_actors::shard::{ActorInfo, Probe};
use outpost_mqtt::packet::{Packet, ReasonCode};

use crate::world::{World, publish, v4, v5};

/// Panics in the turns of one cell, so many times.
fn fault(role: &'static str, name: &'static str, times: u32) -> (Probe, Arc<AtomicU32>) {
    let left = Arc::new(AtomicU32::new(times));
    let count = Arc::clone(&left);
    let probe: Probe = Arc::new(move |its_role, its_name| {
        if (its_role, its_name) == (role, name)
            && count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
        {
            panic!("planned fault");
        }
    });
    (probe, left)
}

fn actor(world: &World, role: &str, name: &str) -> ActorInfo {
    let all = world.shard(0).actors("shard-0", usize::MAX);
    all.into_iter().find(|a| (a.role, &*a.name) == (role, name)).expect("it is listed")
}

#[test]
fn a_session_that_panics_comes_back_from_disk() {
    let mut world = World::new();
    let (sick, well) = (world.connect(v5("sick")), world.connect(v5("well")));
    world.subscribe(sick, "t", 2);
    world.subscribe(well, "t", 1);
    let sender = world.connect(v5("sender"));
    let (probe, _) = fault("session", "sick", 1);
    world.set_probe(0, probe);
    for number in 1..=200 {
        world.publish(sender, publish("t", &number.to_string(), 2, number));
        world.drain(sender);
    }
    assert!(!world.is_open(sick) && world.is_open(well) && world.is_open(sender));
    let info = actor(&world, "session", "sick");
    assert_eq!((info.restarts, info.cause.as_deref()), (1, Some("planned fault")));
    let sick = world.connect(v5("sick"));
    assert_eq!(world.drain(sick).len(), 200);
    assert_eq!(world.drain(well).len(), 200);
}

#[test]
fn a_qos_2_id_taken_just_before_a_panic_is_remembered() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "t", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 1));
    let (probe, _) = fault("session", "s", 1);
    world.set_probe(0, probe);
    world.send(sender, Packet::Pingreq);
    assert!(!world.is_open(sender));
    world.sync();
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("t", "once", 2, 1));
    world.drain(sender);
    assert_eq!(world.drain(receiver), ["once"]);
}

#[test]
fn a_load_under_way_when_a_session_panics_loses_nothing() {
    let mut world = World::new();
    let sick = world.connect(v5("sick"));
    world.subscribe(sick, "t", 1);
    world.cut(sick);
    let sender = world.connect(v4("s"));
    for number in 1..=500 {
        world.publish(sender, publish("t", &number.to_string(), 1, number));
    }
    world.sync();
    let sick = world.connect(v5("sick"));
    let acks = world.take(sick).into_iter().filter_map(|p| match p {
        Packet::Publish(p) => p
            .packet_id
            .map(|id| Packet::Puback(outpost_mqtt::packet::Ack::new(id, ReasonCode::Success))),
        _ => None,
    });
    let acks: Vec<_> = acks.collect();
    let seen = acks.len();
    world.send_all(sick, acks); // asks for more from disk
    let (probe, _) = fault("session", "sick", 1);
    world.set_probe(0, probe);
    world.send(sick, Packet::Pingreq);
    world.sync();
    let sick = world.connect(v5("sick"));
    assert_eq!(seen + world.drain(sick).len(), 500);
}

#[test]
fn a_session_that_panics_again_and_again_is_set_aside_and_returns() {
    let mut world = World::new();
    let well = world.connect(v5("well"));
    world.subscribe(well, "t", 1);
    world.connect(v5("sick"));
    let (probe, left) = fault("session", "sick", 1_000);
    world.set_probe(0, probe);
    let mut busy = false;
    for _ in 0..20 {
        let sick = world.start_connect(0, v5("sick"));
        world.sync();
        let heard = world.take(sick);
        busy |= heard
            .iter()
            .any(|p| matches!(p, Packet::Connack(c) if c.reason == ReasonCode::ServerBusy));
        world.pass(300);
    }
    let info = actor(&world, "session", "sick");
    assert_eq!((info.state, info.cause.as_deref()), ("quarantined", Some("planned fault")));
    assert!(busy && world.is_open(well));
    left.store(0, Ordering::SeqCst);
    world.pass(60_000);
    world.sync();
    let sick = world.connect(v5("sick"));
    world.publish(sick, publish("t", "well again", 1, 1));
    assert_eq!(world.drain(well), ["well again"]);
}

#[test]
fn a_channel_that_panics_costs_one_refusal_and_disconnects_nobody() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "#", 1);
    let sender = world.connect(v5("s"));
    let (probe, _) = fault("channel", "bad", 1);
    world.set_probe(0, probe);
    world.publish(sender, publish("bad", "poison", 1, 1));
    let refused = world.take(sender);
    assert!(matches!(&refused[..], [Packet::Puback(a)] if a.reason.is_error()), "{refused:?}");
    world.publish(sender, publish("bad", "again", 1, 1));
    world.publish(sender, publish("good", "good", 1, 2));
    assert_eq!(world.drain(receiver), ["again", "good"]);
    assert!(world.is_open(sender) && world.is_open(receiver));
}

#[test]
fn a_refused_qos_2_publish_of_version_3_1_1_can_be_sent_again() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "#", 2);
    let sender = world.connect(v4("s"));
    let (probe, _) = fault("channel", "bad", 1);
    world.set_probe(0, probe);
    world.publish(sender, publish("bad", "twice tried", 2, 1));
    world.sync();
    assert!(!world.is_open(sender), "there is no other way to say no");
    let sender = world.connect(v4("s"));
    world.publish(sender, publish("bad", "twice tried", 2, 1));
    world.sync();
    assert_eq!(world.take(sender).len(), 1);
    assert_eq!(world.drain(receiver), ["twice tried"]);
}

#[test]
fn a_refused_qos_2_publish_is_not_taken_for_accepted_after_a_crash() {
    let mut world = World::new();
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "#", 2);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("good", "before", 2, 1)); // the refusal has to wait behind its answer
    let (probe, _) = fault("channel", "bad", 1);
    world.set_probe(0, probe);
    world.publish(sender, publish("bad", "kept", 2, 2));
    let lsn = world.store(0).sync_all();
    assert!(lsn.0 > 0);
    world.crash(0);
    let sender = world.connect(v5("s"));
    world.publish(sender, publish("bad", "kept", 2, 2));
    world.drain(sender);
    let receiver = world.connect(v5("r"));
    assert_eq!(world.drain(receiver), ["before", "kept"]);
}

#[test]
fn a_subscriber_that_panics_loses_nothing() {
    let mut world = World::new();
    let (a, b) = (world.connect(v5("a")), world.connect(v5("b")));
    world.subscribe(a, "t", 2);
    world.subscribe(b, "t", 2);
    let sender = world.connect(v5("s"));
    let (probe, _) = fault("subscriber", "a t", 3);
    world.set_probe(0, probe);
    for number in 1..=5 {
        world.publish(sender, publish("t", &number.to_string(), 2, number));
        world.drain(sender);
    }
    assert_eq!((world.drain(a).len(), world.drain(b).len()), (5, 5));
    assert!(actor(&world, "subscriber", "a t").cause.is_some());
}
