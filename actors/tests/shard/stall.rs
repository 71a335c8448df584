//! A disk that is full or fails is a mode: what needs it is refused or waits, the rest goes on.

use outpost_mqtt::packet::{Packet, ReasonCode};

use crate::world::{World, fleeting, publish, v4, v5};

#[test]
fn what_needs_the_disk_is_refused_with_a_reason_and_the_rest_goes_on() {
    let mut world = World::new();
    let durable = world.connect(v5("durable"));
    world.subscribe(durable, "kept/#", 1);
    let live = world.connect(fleeting("live"));
    world.subscribe(live, "#", 1);
    let sender = world.connect(fleeting("sender"));
    let now = world.now();
    world.shard_mut(0).store_stalled("the disk is full", now);

    world.publish(sender, publish("kept/1", "no", 1, 1));
    let [Packet::Puback(ack)] = &world.take(sender)[..] else { panic!("a PUBACK at once") };
    assert_eq!(ack.reason, ReasonCode::QuotaExceeded);
    assert!(ack.reason_string.as_ref().is_some_and(|text| text.contains("disk")), "{ack:?}");
    world.publish(sender, publish("kept/1", "zero", 0, 0));
    world.publish(sender, publish("else", "live", 1, 2));
    assert_eq!(world.drain(live), ["zero", "live"]);
    assert_eq!(world.drain(durable), ["zero"]);
    assert!(
        matches!(&world.take(sender)[..], [Packet::Puback(ack)] if !ack.reason.is_error()),
        "nobody keeps it, so nothing waits for the disk"
    );

    let now = world.now();
    world.shard_mut(0).store_resumed(now);
    world.publish(sender, publish("kept/1", "yes", 1, 3));
    world.sync();
    assert!(matches!(&world.take(sender)[..], [Packet::Puback(ack)] if !ack.reason.is_error()));
    assert_eq!(world.drain(durable), ["yes"]);
}

#[test]
fn a_publisher_of_3_1_1_waits_and_is_answered_when_the_disk_is_back() {
    let mut world = World::new();
    let durable = world.connect(v5("durable"));
    world.subscribe(durable, "kept", 2);
    let sender = world.connect(v4("sender"));
    let now = world.now();
    world.shard_mut(0).store_stalled("the disk is full", now);
    for (qos, id) in [(1, 1), (2, 2)] {
        world.publish(sender, publish("kept", &format!("qos {qos}"), qos, id));
    }
    world.sync();
    assert!(world.take(sender).is_empty() && world.is_open(sender), "it waits");
    let now = world.now();
    world.shard_mut(0).store_resumed(now);
    world.sync();
    assert!(matches!(world.take(sender)[..], [Packet::Puback(_), Packet::Pubrec(_)]));
    assert_eq!(world.drain(durable), ["qos 1", "qos 2"]);
}

#[test]
fn sessions_on_disk_come_back_and_new_ones_are_turned_away_while_it_is_full() {
    let mut world = World::new();
    let known = world.connect(v5("known"));
    world.subscribe(known, "kept", 1);
    world.cut(known);
    world.sync();
    let now = world.now();
    world.shard_mut(0).store_stalled("the disk is full", now);
    let (again, connack) = world.try_connect(0, v5("known"));
    assert!(connack.session_present && connack.reason == ReasonCode::Success);
    let (_, refused) = world.try_connect(0, v5("new"));
    assert_eq!(refused.reason, ReasonCode::ServerUnavailable);
    let (_, passing) = world.try_connect(0, fleeting("passing"));
    assert_eq!(passing.reason, ReasonCode::Success);
    assert!(world.is_open(again));
}
