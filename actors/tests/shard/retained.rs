//! Retained messages: set, cleared, limits, and many at once.

use outpost_model::QoS;
use outpost_mqtt::packet::{Packet, Publish, RetainHandling, Subscribe, SubscribeOptions};
use outpost_store::Space;

use crate::world::{Client, World, fleeting, id, publish, v4, v5};

pub fn retained(topic: &str, payload: &str, qos: u8, id: u16) -> Publish {
    Publish { retain: true, ..publish(topic, payload, qos, id) }
}

#[test]
fn a_new_subscriber_gets_it_with_the_flag_and_a_live_one_as_asked() {
    let mut world = World::new();
    let live = world.connect(v5("live"));
    let keep = SubscribeOptions { retain_as_published: true, ..SubscribeOptions::default() };
    world.subscribe(live, "a/+", 0);
    world.subscribe_with(live, "b/+", keep);
    let sender = world.connect(fleeting("s"));
    for topic in ["a/1", "b/1"] {
        world.publish(sender, retained(topic, topic, 1, 1));
        world.sync();
    }
    let flags = |packets: Vec<Packet>| -> Vec<bool> {
        packets
            .into_iter()
            .filter_map(|p| if let Packet::Publish(p) = p { Some(p.retain) } else { None })
            .collect()
    };
    assert_eq!(flags(world.take(live)), [false, true]);
    world.crash(0);
    let late = world.connect(v5("late"));
    world.subscribe(late, "#", 1);
    assert_eq!(flags(world.take(late)), [true, true]);
    let never = SubscribeOptions { retain_handling: RetainHandling::Never, ..keep };
    world.subscribe_with(late, "#", never);
    assert_eq!(flags(world.take(late)), Vec::<bool>::new());
    let late = world.connect(v5("late"));
    world.drain(late);
}

#[test]
fn an_empty_one_clears_it_for_good() {
    let mut world = World::new();
    let sender = world.connect(fleeting("s"));
    world.publish(sender, retained("t", "here", 1, 1));
    world.publish(sender, retained("t", "", 1, 2));
    world.drain(sender);
    world.crash(0);
    let late = world.connect(fleeting("late"));
    world.subscribe(late, "t", 1);
    assert_eq!(world.drain(late), Vec::<String>::new());
    assert_eq!(world.shard(0).stats().retained, 0);
}

#[test]
fn all_of_very_many_arrive_at_any_qos() {
    const COUNT: u16 = 2_000;
    let mut world = World::new();
    let sender = world.connect(v4("s"));
    let one =
        |n: u16| Packet::Publish(Box::new(retained(&format!("t/{n:05}"), &n.to_string(), 1, n)));
    world.send_all(sender, (1..=COUNT).map(one));
    world.drain(sender);
    for (name, qos) in [("zero", 0), ("one", 1), ("two", 2)] {
        let volatile = world.connect(fleeting(name));
        world.subscribe(volatile, "t/#", qos);
        assert_eq!(world.drain(volatile).len(), usize::from(COUNT), "QoS {qos}");
        let durable = world.connect(v5(&format!("durable {name}")));
        world.subscribe(durable, "t/#", qos);
        assert_eq!(world.drain(durable).len(), usize::from(COUNT), "QoS {qos}");
    }
}

/// A SUBSCRIBE to two filters, of which one has a retained message.
fn subscribe_to_both(world: &mut World, client: Client) {
    let sender = world.connect(fleeting("s"));
    world.publish(sender, retained("a/1", "here", 1, 1));
    world.sync();
    let options = SubscribeOptions { qos: QoS::AtLeastOnce, ..SubscribeOptions::default() };
    let filters = vec![("a/+".into(), options), ("b".into(), options)];
    let subscribe =
        Subscribe { packet_id: id(7), subscription_id: None, filters, user: Vec::new() };
    world.send(client, Packet::Subscribe(subscribe));
}

#[test]
fn they_come_behind_the_suback_though_it_waits_for_the_disk() {
    for connect in [v4("kept"), v5("kept"), fleeting("fleeting")] {
        let mut world = World::new();
        let client = world.connect(connect);
        subscribe_to_both(&mut world, client);
        world.sync();
        let got = world.take(client);
        assert!(matches!(&got[..], [Packet::Suback(_), Packet::Publish(_)]), "{got:?}");
    }
}

#[test]
fn one_that_is_cut_off_before_its_suback_finds_them_in_its_queue() {
    let mut world = World::new();
    let client = world.connect(v5("kept"));
    subscribe_to_both(&mut world, client);
    assert_eq!(world.take(client), [], "the disk has not answered");
    world.cut(client);
    world.sync();
    let back = world.connect(v5("kept"));
    assert_eq!(world.drain(back), ["here"]);
}

#[test]
fn retained_messages_wait_for_room_in_the_queue() {
    let mut world = World::with(1, |config| config.queue_messages_max = 100);
    let sender = world.connect(v4("s"));
    for n in 1..=300 {
        world.publish(sender, retained(&format!("t/{n}"), "x", 1, n));
    }
    world.drain(sender);
    let receiver = world.connect(v5("r"));
    world.subscribe(receiver, "#", 1);
    world.subscribe(receiver, "#", 1);
    assert!(world.shard(0).stats().queued < 200, "its queue has a limit");
    assert_eq!(world.drain(receiver).len(), 300 + 128, "the second SUBSCRIBE began anew");
}

#[test]
fn what_does_not_fit_is_refused_and_tombstones_have_a_limit() {
    let mut world = World::with(1, |config| config.retained_max = 4);
    let sender = world.connect(v5("s"));
    for n in 1..=5 {
        world.publish(sender, retained(&format!("t/{n}"), "x", 1, n));
    }
    world.sync();
    let answers = world.take(sender);
    assert!(
        matches!(answers.last(), Some(Packet::Puback(a)) if a.reason.is_error()),
        "{answers:?}"
    );
    for n in 1..=50 {
        world.publish(sender, retained(&format!("t/{n}"), "", 1, n));
        world.publish(sender, retained(&format!("t/{}", n + 1), "x", 1, n + 100));
        world.drain(sender);
    }
    let rows = world.store(0).snapshot();
    let kept = rows.keys().filter(|(space, _)| *space == outpost_store::Space::Retained).count();
    assert!(kept <= 8, "{kept} slots on disk");
}

#[test]
fn retained_messages_whose_time_is_over_make_room_for_others_and_go_from_disk() {
    let mut world = World::with(1, |config| config.retained_max = 4);
    let sender = world.connect(v5("s"));
    for n in 0..4 {
        let short = Publish { expiry_s: Some(5), ..retained(&format!("t/{n}"), "x", 1, n + 1) };
        world.publish(sender, short);
    }
    world.drain(sender);
    world.pass(6_000);
    for n in 0..4 {
        world.publish(sender, retained(&format!("u/{n}"), "y", 1, n + 5));
        world.sync();
        let answers = world.take(sender);
        assert!(
            matches!(&answers[..], [Packet::Puback(ack)] if !ack.reason.is_error()),
            "{answers:?}"
        );
    }
    world.pass(60_000);
    world.sync();
    let rows = world.store(0).snapshot();
    let kept = rows.keys().filter(|(space, _)| *space == Space::Retained).count();
    assert_eq!(kept, 4, "only those that live");
}
