//! Why: who would get what is published on a topic, and what was decided there.

use outpost_mqtt::packet::Packet;

use crate::world::{World, fleeting, publish, v4, v5};

#[test]
fn each_receiver_has_its_fate() {
    let mut world = World::with(2, |config| config.queue_messages_max = 2);
    world.join();
    let here = world.connect(v5("here"));
    world.subscribe(here, "a/+", 1);
    let away = world.connect(v5("away"));
    world.subscribe(away, "a/b", 1);
    world.disconnect(away);
    let group = world.connect(v4("member"));
    world.subscribe(group, "$share/g/a/#", 1);
    let there = world.connect_to(1, v5("there"));
    world.subscribe(there, "a/b", 1);
    world.pump();
    let fates = |world: &World| {
        let why = world.shard(0).why_topic("a/b", world.now());
        let mut all: Vec<_> = why.receivers.into_iter().map(|r| (r.kind, r.name, r.fate)).collect();
        all.sort();
        assert_eq!(why.receivers_count, all.len());
        all
    };
    let first = fates(&world);
    let kinds: Vec<_> = first.iter().map(|(kind, name, _)| (*kind, &**name)).collect();
    assert_eq!(
        kinds,
        [
            ("client", "away"),
            ("client", "here"),
            ("group", "$share/g/a/#"),
            ("peer", "0000000000000002")
        ]
    );
    assert!(first[0].2.starts_with("away: QoS 1 and 2 are queued"), "{first:?}");
    assert_eq!(first[1].2, "delivered");

    let boss = world.connect(fleeting("boss"));
    for number in 1..=3 {
        world.publish(boss, publish("a/b", "x", 1, number));
        world.sync();
    }
    assert!(fates(&world)[0].2.starts_with("its queue is full"), "{:?}", fates(&world));
    let recent = world.shard(0).why_topic("a/b", world.now()).recent;
    assert_eq!((&*recent[0].reason, &*recent[0].client_id), ("QuotaExceeded", "boss"));
    let refused = |p: &Packet| matches!(p, Packet::Puback(a) if a.reason.is_error());
    assert_eq!(world.take(boss).iter().filter(|p| refused(p)).count(), 1);
}
