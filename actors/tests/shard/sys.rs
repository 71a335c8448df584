//! The `$SYS` tree: Mosquitto's names, as they are now for a new subscriber, and when they change.

use std::collections::BTreeMap;

use outpost_mqtt::packet::{Packet, ReasonCode};

use crate::world::{Client, World, fleeting, publish, v5};

fn world(nodes: usize) -> World {
    World::with(nodes, |config| config.sys_interval_ms = 10_000)
}

fn values(world: &mut World, client: Client) -> BTreeMap<String, (String, bool)> {
    world.pump();
    let value = |packet| match packet {
        Packet::Publish(p) => {
            let text = String::from_utf8(p.payload.to_vec()).expect("a text");
            Some((p.topic.to_string(), (text, p.retain)))
        }
        _ => None,
    };
    world.take(client).into_iter().filter_map(value).collect()
}

#[test]
fn who_subscribes_gets_all_figures_at_once_and_then_what_changes() {
    let mut world = world(1);
    let device = world.connect(v5("device"));
    world.subscribe(device, "plant/#", 1);
    world.publish(device, publish("plant/1", "hello", 0, 0));
    let watcher = world.connect(fleeting("watcher"));
    world.subscribe(watcher, "$SYS/#", 1);
    let first = values(&mut world, watcher);
    let of = |name: &str| first[&format!("$SYS/broker/{name}")].0.clone();
    assert!(first.values().all(|(_, retain)| *retain), "like retained messages");
    assert!(first.len() > 50, "{first:?}");
    assert_eq!(of("clients/connected"), "2");
    assert_eq!(of("publish/messages/received"), "1");
    assert_eq!(of("publish/bytes/received"), "5");
    assert_eq!(of("publish/messages/sent"), "1");
    assert_eq!(of("subscriptions/count"), "2");
    assert_eq!(of("uptime"), "0 seconds");
    assert_eq!(of("load/publish/received/1min"), "0.00");

    world.disconnect(device);
    world.pass(10_000);
    let second = values(&mut world, watcher);
    let of = |name: &str| second.get(&format!("$SYS/broker/{name}")).cloned();
    assert_eq!(of("clients/disconnected"), Some(("1".into(), false)));
    assert_eq!(of("uptime"), Some(("10 seconds".into(), false)));
    assert_eq!(of("load/publish/received/1min"), Some(("0.92".into(), false)));
    assert_eq!(of("version"), None, "it has not changed");
    world.check_ledgers();
}

#[test]
fn wildcards_at_the_root_do_not_see_it_mqtt_4_7_2_1() {
    let mut world = world(1);
    let watcher = world.connect(fleeting("watcher"));
    world.subscribe(watcher, "#", 0);
    world.subscribe(watcher, "+/broker/uptime", 0);
    let other = world.connect(fleeting("other"));
    world.subscribe(other, "$SYS/broker/uptime", 0);
    world.pass(20_000);
    assert_eq!(values(&mut world, watcher), BTreeMap::new());
    assert_eq!(values(&mut world, other).len(), 1);
}

#[test]
fn nobody_is_owed_it_and_no_client_may_say_it() {
    let mut world = world(1);
    let away = world.connect(v5("away"));
    world.subscribe(away, "$SYS/broker/uptime", 2);
    world.take(away);
    world.disconnect(away);
    let dropped = world.shard(0).ledger().dropped_all();
    world.pass(60_000);
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.bodies, stats.ledger.dropped_all()), (0, 0, dropped));

    let liar = world.connect(fleeting("liar"));
    world.publish(liar, publish("$SYS/broker/uptime", "for ever", 1, 1));
    let answer = world.take(liar);
    let refused =
        |p: &Packet| matches!(p, Packet::Puback(a) if a.reason == ReasonCode::NotAuthorized);
    assert!(answer.iter().any(refused), "{answer:?}");
}

#[test]
fn each_node_tells_of_itself_only() {
    let mut world = world(2);
    world.join();
    let watcher = world.connect_to(1, fleeting("watcher"));
    world.subscribe(watcher, "$SYS/broker/clients/connected", 0);
    let _here = world.connect(fleeting("a"));
    let local = world.connect(fleeting("b"));
    world.subscribe(local, "$SYS/broker/clients/connected", 0);
    world.take(watcher);
    world.pass(30_000);
    assert_eq!(values(&mut world, watcher), BTreeMap::new(), "nothing has changed there");
}

#[test]
fn with_an_interval_of_0_there_is_none() {
    let mut world = World::new();
    let watcher = world.connect(fleeting("watcher"));
    world.subscribe(watcher, "$SYS/#", 0);
    world.pass(60_000);
    assert_eq!(values(&mut world, watcher), BTreeMap::new());
}

#[test]
fn who_subscribes_again_and_again_has_the_figures_counted_once_a_second() {
    let mut world = world(1);
    let watcher = world.connect(fleeting("watcher"));
    let mut connected = Vec::new();
    for (name, ms) in [("a", 100), ("b", 100), ("c", 1_000), ("d", 0)] {
        world.connect(fleeting(name));
        world.subscribe(watcher, "$SYS/broker/clients/connected", 0);
        connected.extend(values(&mut world, watcher).into_values().map(|(text, _)| text));
        world.pass(ms);
    }
    assert_eq!(connected, ["2", "2", "2", "5"]);
}
