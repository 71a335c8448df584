//! Bridges of other brokers as clients, and messages that come back or come twice.

use outpost_bridge::path::{BRIDGE_PROPERTY, PATH_PROPERTY};
use outpost_model::MessageProperties;
use outpost_mqtt::packet::{Connect, Packet, Publish, ReasonCode};

use crate::world::{Client, World, publish, v4, v5, will};

/// A bridge as another Outpost connects it.
fn bridge(name: &str) -> Connect {
    Connect { user: vec![(BRIDGE_PROPERTY.into(), "1".into())], ..v5(name) }
}

fn publishes(world: &mut World, client: Client) -> Vec<Publish> {
    let packets = world.take(client).into_iter();
    packets
        .filter_map(|packet| match packet {
            Packet::Publish(publish) => Some(*publish),
            _ => None,
        })
        .collect()
}

/// PUBACKs and PUBRECs that came.
fn answers(world: &mut World, client: Client) -> usize {
    let packets = world.take(client).into_iter();
    packets.filter(|p| matches!(p, Packet::Puback(_) | Packet::Pubrec(_))).count()
}

fn path_of(publish: &Publish) -> String {
    let user = publish.properties.as_ref().map(|p| p.user.clone()).unwrap_or_default();
    user.into_iter()
        .find(|(key, _)| key == PATH_PROPERTY)
        .map(|(_, value)| value.to_string())
        .unwrap_or_default()
}

fn with_path(path: &str, qos: u8, id: u16) -> Publish {
    let user = vec![(PATH_PROPERTY.into(), path.to_owned().into())];
    let properties = MessageProperties { user, ..MessageProperties::default() };
    Publish { properties: Some(Box::new(properties)), ..publish("t", "x", qos, id) }
}

#[test]
fn a_mosquitto_bridge_does_not_get_back_what_it_sent_and_sees_what_is_retained() {
    let mut world = World::new();
    let mosquitto = world.connect(Connect { bridge: true, ..v4("host.bridge") });
    world.subscribe(mosquitto, "#", 1);
    world.publish(mosquitto, publish("t", "its own", 1, 7));
    let device = world.connect(v5("device"));
    world.publish(device, Publish { retain: true, ..publish("t", "kept", 1, 8) });
    world.sync();
    let got = publishes(&mut world, mosquitto);
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got[0].retain && got[0].payload == "kept");
    world.check_ledgers();
}

#[test]
fn a_message_that_left_over_a_bridge_is_known_when_it_comes_back() {
    let mut world = World::new();
    let (out, back) = (world.connect(bridge("out")), world.connect(bridge("back")));
    let plain = world.connect(v5("plain"));
    world.subscribe(out, "t", 1);
    world.subscribe(plain, "t", 1);
    let device = world.connect(v5("device"));
    world.publish(device, publish("t", "x", 1, 1));
    world.sync();
    let got = publishes(&mut world, out);
    let path = path_of(&got[0]);
    assert_eq!(path.split(' ').count(), 2, "an event and this broker: {path:?}");
    assert_eq!(path_of(&publishes(&mut world, plain)[0]), "", "devices see nothing of it");
    for (qos, id) in [(0, 0), (1, 5), (2, 6)] {
        world.publish(back, with_path(&format!("{path} elsewhere"), qos, id));
    }
    world.sync();
    assert!(publishes(&mut world, plain).is_empty());
    assert_eq!(answers(&mut world, back), 2, "acknowledged all the same");
    world.check_ledgers();
}

#[test]
fn a_message_that_comes_over_two_bridges_is_taken_once_and_answered_when_it_is_safe() {
    let mut world = World::new();
    let (one, two) = (world.connect(bridge("one")), world.connect(bridge("two")));
    let device = world.connect(v5("device"));
    world.subscribe(device, "t", 1);
    world.sync();
    world.take(device);
    world.publish(one, with_path("event-1 far", 1, 3));
    world.publish(two, with_path("event-1 far other", 1, 4));
    assert_eq!(answers(&mut world, two), 0, "the first copy is not on disk yet");
    world.sync();
    assert_eq!((answers(&mut world, one), answers(&mut world, two)), (1, 1));
    assert_eq!(publishes(&mut world, device).len(), 1);
    world.publish(two, with_path("event-2 far other", 1, 5));
    world.sync();
    assert_eq!(publishes(&mut world, device).len(), 1, "another event");
    world.check_ledgers();
}

#[test]
fn a_refused_message_may_come_again() {
    let mut world = World::with(1, |config| config.queue_messages_max = 1);
    let far = world.connect(bridge("far"));
    let device = world.connect(v5("device"));
    world.subscribe(device, "t", 1);
    world.cut(device);
    world.publish(far, with_path("event-1 far", 1, 3));
    world.publish(far, with_path("event-2 far", 1, 4));
    world.sync();
    let device = world.connect(v5("device"));
    world.drain(device);
    world.publish(far, with_path("event-2 far", 1, 5));
    world.sync();
    assert_eq!(world.drain(device), ["x"], "it was not taken the first time");
    world.check_ledgers();
}

#[test]
fn a_mosquitto_bridge_may_say_that_it_is_up_and_the_node_says_when_it_is_not() {
    let mut world = World::with(1, |config| config.sys_interval_ms = 10_000);
    let watcher = world.connect(v5("watcher"));
    world.subscribe(watcher, "$SYS/broker/connection/#", 0);
    let state = "$SYS/broker/connection/host.bridge/state";
    for connect in [Connect { bridge: true, ..v4("host.bridge") }, v5("host.bridge")] {
        let mosquitto = world.connect(Connect { will: Some(will(state, 0)), ..connect });
        world.publish(mosquitto, publish(state, "1", 1, 7));
        world.sync();
        assert!(world.is_open(mosquitto));
        assert_eq!(world.drain(watcher), ["1"]);
        world.cut(mosquitto);
        world.sync();
        assert_eq!(world.drain(watcher), ["0"]);
    }
    world.check_ledgers();
}

#[test]
fn the_client_ids_of_this_nodes_bridges_are_for_nobody_else() {
    let mut world = World::new();
    for connect in [v4("$bridge/cloud"), v5("$bridge/cloud"), bridge("$bridge/cloud")] {
        let (_, connack) = world.try_connect(0, connect);
        assert_eq!(connack.reason, ReasonCode::NotAuthorized);
    }
}

#[test]
fn a_client_that_is_no_bridge_names_no_events_of_others() {
    let mut world = World::new();
    let device = world.connect(v5("device"));
    world.subscribe(device, "t", 1);
    let mut connect = v5("forger");
    let mut gone = will("t", 0);
    gone.properties.user = vec![(PATH_PROPERTY.into(), "event-2 far".into())];
    connect.will = Some(gone);
    let forger = world.connect(connect);
    world.publish(forger, with_path("event-1 far", 1, 1));
    world.cut(forger);
    world.sync();
    let got = publishes(&mut world, device);
    assert_eq!(got.iter().map(path_of).collect::<Vec<_>>(), ["", ""], "they are taken, without it");
    let far = world.connect(bridge("far"));
    world.publish(far, with_path("event-1 far", 1, 2));
    world.publish(far, with_path("event-2 far", 1, 3));
    world.sync();
    assert_eq!(publishes(&mut world, device).len(), 2, "the true ones");
    world.check_ledgers();
}
