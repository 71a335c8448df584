//! What people ask of clients: lists, figures, the way out, and the queue in their hands.

use outpost_actors::ledger::Drop;
use outpost_actors::shard::{ClientFilter, DecisionKind, Event};
use outpost_mqtt::packet::{Packet, ReasonCode};

use crate::world::{World, fleeting, publish, v4, v5, will};

fn list(world: &World, filter: &ClientFilter) -> Vec<String> {
    let page = world.shard(0).clients(filter, world.now());
    let mut ids: Vec<_> = page.clients.into_iter().map(|client| client.client_id).collect();
    ids.sort();
    ids
}

#[test]
fn clients_are_listed_page_by_page_and_by_what_they_are() {
    let mut world = World::new();
    let away = world.connect(v5("plant-2"));
    world.subscribe(away, "job", 1);
    world.disconnect(away);
    let here = world.connect(v4("plant-1"));
    world.connect(fleeting("office"));
    world.publish(here, publish("job", "1", 1, 1));
    world.sync();

    let all = ClientFilter { limit: 2, ..ClientFilter::default() };
    let first = world.shard(0).clients(&all, world.now());
    let rest = ClientFilter { after: first.next.expect("a third"), ..all.clone() };
    assert_eq!((first.clients.len(), list(&world, &rest).len()), (2, 1));
    let all = ClientFilter { limit: 10, ..ClientFilter::default() };
    assert_eq!(list(&world, &all), ["office", "plant-1", "plant-2"]);
    let of = |change: fn(&mut ClientFilter)| {
        let mut filter = all.clone();
        change(&mut filter);
        list(&world, &filter)
    };
    assert_eq!(of(|f| f.prefix = "plant".into()), ["plant-1", "plant-2"]);
    assert_eq!(of(|f| f.connected = Some(false)), ["plant-2"]);
    assert_eq!(of(|f| f.queued = true), ["plant-2"]);
    assert_eq!(of(|f| f.listener = Some("tcp".into())), ["office", "plant-1"]);
    assert_eq!(of(|f| f.user = Some("ann".into())), Vec::<String>::new());
}

#[test]
fn one_client_is_shown_with_its_connection_and_its_figures() {
    let mut world = World::new();
    let mut connect = v5("dev");
    connect.will = Some(will("gone", 0));
    connect.keep_alive_s = 30;
    let device = world.connect(connect);
    world.subscribe(device, "a/#", 1);
    world.publish(device, publish("a/1", "12345", 0, 0));
    world.pass(5_000);
    let shown = world.shard(0).client("dev", world.now()).expect("it has a session");
    let link = shown.info.connection.expect("it is here");
    assert_eq!((link.version, link.keep_alive_s, &*link.listener), ("5", 30, "tcp"));
    assert_eq!((link.connected_s, link.idle_s), (5, 5));
    assert_eq!((link.publishes_received, link.publishes_sent), ([1, 0, 0], [1, 0, 0]));
    assert!(link.bytes_received > 0 && link.bytes_sent > 0, "{link:?}");
    assert_eq!(
        (shown.will_topic.as_deref(), shown.filters[0].filter.as_str()),
        (Some("gone"), "a/#")
    );
    let stats = world.shard(0).stats();
    assert_eq!(stats.listeners[0].bytes_sent, link.bytes_sent);
    assert_eq!(stats.totals.bytes_received, link.bytes_received);

    world.cut(device);
    let shown = world.shard(0).client("dev", world.now()).expect("the session is kept");
    assert!(shown.info.connection.is_none());
    assert_eq!(shown.info.session_ends_in_s, Some(3_600));
    assert_eq!(shown.recent[0].kind, DecisionKind::Disconnected);
    assert_eq!(shown.recent[0].reason, "ConnectionLost");
    assert_eq!(world.shard(0).listener_stats()[0].bytes_received, link.bytes_received);
}

#[test]
fn who_is_kicked_hears_0x98_and_its_will_goes_out() {
    let mut world = World::new();
    let mut connect = v5("dev");
    connect.will = Some(will("gone", 0));
    let device = world.connect(connect);
    let watcher = world.connect(fleeting("watcher"));
    world.subscribe(watcher, "gone", 0);
    let now = world.now();
    let kicked = world.shard_mut(0).kick("dev", false, now).expect("it has a session");
    world.pump();
    assert_eq!((kicked.disconnected, kicked.session_ended), (true, false));
    let said = world.take(device);
    let why = |p: &Packet| matches!(p, Packet::Disconnect(d) if d.reason == ReasonCode::AdministrativeAction);
    assert!(said.iter().any(why), "{said:?}");
    assert!(!world.is_open(device));
    assert_eq!(world.peek(watcher), ["gone"]);

    let kicked = world.shard_mut(0).kick("dev", true, now).expect("the session is kept");
    assert_eq!((kicked.disconnected, kicked.session_ended), (false, true));
    assert_eq!(world.shard_mut(0).kick("dev", true, now), None);
}

#[test]
fn a_queue_is_shown_whole_without_taking_anything_away() {
    let mut world = World::new();
    let away = world.connect(v5("away"));
    world.subscribe(away, "job", 2);
    world.disconnect(away);
    let boss = world.connect(fleeting("boss"));
    fill(&mut world, boss, 600);
    let (mut after, mut seen, mut pages) = (0, Vec::new(), 0);
    loop {
        let now = world.now();
        let page = world.shard_mut(0).queue_page("away", after, now).expect("a session");
        pages += 1;
        seen.extend(page.messages.into_iter().map(|m| m.payload.expect("a text")));
        let Some(next) = page.next else { break };
        after = next;
    }
    let wanted: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    assert_eq!((seen, pages), (wanted, 3));
    let queue = world.shard(0).queue("away").expect("a session");
    assert_eq!((queue.queued, queue.in_memory, queue.in_flight), (600, 128, 0));
}

#[test]
fn what_is_drained_is_in_the_ledger_stays_gone_after_a_crash_and_the_rest_arrives() {
    let mut world = World::new();
    let away = world.connect(v5("away"));
    world.subscribe(away, "job", 1);
    world.disconnect(away);
    let boss = world.connect(fleeting("boss"));
    fill(&mut world, boss, 1_000);
    let (mut upto, mut drained, mut rounds) = (0, 0, 0);
    loop {
        rounds += 1;
        let now = world.now();
        let done = world.shard_mut(0).queue_drain("away", upto, now).expect("a session");
        world.shard_mut(0).when_durable(7);
        world.shard_mut(0).end_turn(now);
        assert!(!published(&mut world), "not before it is off the disk");
        let store_has = world.store(0).waiting();
        let now = world.now();
        let lsn = world.store(0).sync_all();
        world.shard_mut(0).synced(lsn, now);
        assert!(published(&mut world), "{store_has} operations were written");
        drained += done.drained;
        let Some(again) = done.again_upto else { break };
        upto = again;
    }
    assert_eq!((drained, rounds), (1_000, 2), "128 in memory and 512 on disk at once");
    let ledger = world.shard(0).ledger();
    assert_eq!(ledger.dropped[Drop::Drained as usize], 1_000);
    world.publish(boss, publish("job", "late", 1, 1_001));
    world.sync();
    world.crash(0);
    let stats = world.shard(0).stats();
    assert_eq!((stats.queued, stats.bodies), (1, 1));
    let away = world.connect(v5("away"));
    assert_eq!(world.drain(away), ["late"]);
}

#[test]
fn what_a_client_has_begun_to_receive_with_qos_2_is_not_taken_back() {
    let mut world = World::new();
    let device = world.connect(v5("dev"));
    world.subscribe(device, "job", 2);
    let boss = world.connect(fleeting("boss"));
    world.publish(boss, publish("job", "begun", 2, 1));
    world.sync();
    world.publish(boss, publish("job", "acked never", 1, 2));
    world.sync();
    let now = world.now();
    let done = world.shard_mut(0).queue_drain("dev", 0, now).expect("a session");
    world.sync();
    assert_eq!((done.drained, done.again_upto), (1, None));
    assert_eq!(world.shard(0).client("dev", now).expect("it").info.dropped["drained"], 1);
    assert!(world.drain(device).contains(&"begun".to_owned()));
    assert_eq!(world.shard(0).stats().queued, 0);
}

#[test]
fn why_a_client_did_not_get_in_and_what_it_missed_is_remembered() {
    let mut world = World::with(1, |config| config.sessions_max = 2);
    let device = world.connect(v5("dev"));
    world.subscribe(device, "news", 0);
    let boss = world.connect(fleeting("boss"));
    let (_, connack) = world.try_connect(0, fleeting("third"));
    assert_eq!(connack.reason, ReasonCode::QuotaExceeded);
    let refused = &world.shard(0).decisions_about("third")[0];
    assert_eq!((refused.kind, &*refused.reason), (DecisionKind::ConnectRefused, "QuotaExceeded"));
    world.disconnect(device);
    for _ in 0..3 {
        world.publish(boss, publish("news", "missed", 0, 0));
    }
    world.pass(1_000);
    world.publish(boss, publish("news", "missed", 0, 0));
    let missed = world.shard(0).decisions_about("dev");
    let drops: Vec<_> = missed.iter().filter(|d| d.kind == DecisionKind::Dropped).collect();
    assert_eq!((&*drops[0].reason, &*drops[0].topic, drops[0].count), ("offline", "news", 3));
    assert_eq!(world.shard(0).client("dev", world.now()).expect("it").info.dropped["offline"], 4);
}

fn fill(world: &mut World, from: crate::world::Client, count: u16) {
    for number in 0..count {
        world.publish(from, publish("job", &number.to_string(), 1, number + 1));
        if number % 100 == 99 {
            world.sync();
        }
    }
    world.sync();
}

/// Whether the shard says that job 7 is done.
fn published(world: &mut World) -> bool {
    let now = world.now();
    world.shard_mut(0).end_turn(now);
    let mut done = false;
    while let Some(event) = world.shard_mut(0).poll_event() {
        done |= matches!(event, Event::Published(7, ReasonCode::Success));
    }
    done
}

#[test]
fn what_is_on_its_way_to_the_disk_is_not_passed_over_when_a_queue_is_drained() {
    let mut world = World::with(1, |config| config.durable = false);
    let away = world.connect(v5("away"));
    world.subscribe(away, "job", 1);
    world.disconnect(away);
    world.sync();
    let boss = world.connect(fleeting("boss"));
    for number in 1..=300 {
        world.publish(boss, publish("job", &number.to_string(), 1, number));
    }
    let now = world.now();
    let first = world.shard_mut(0).queue_drain("away", 0, now).expect("a session");
    assert!(first.again_upto.is_some(), "{first:?}: 172 cannot be read yet");
    world.sync();
    let upto = first.again_upto.unwrap_or_default();
    let rest = world.shard_mut(0).queue_drain("away", upto, now).expect("a session");
    world.sync();
    assert_eq!((first.drained + rest.drained, rest.again_upto), (300, None));
    assert_eq!(world.shard(0).stats().queued, 0);
}

#[test]
fn what_a_client_has_begun_to_receive_before_a_crash_is_not_taken_back() {
    let mut world = World::new();
    let device = world.connect(v5("dev"));
    world.subscribe(device, "job", 2);
    let boss = world.connect(fleeting("boss"));
    for (number, payload) in [(1, "begun"), (2, "released")] {
        world.publish(boss, publish("job", payload, 2, number));
        world.sync();
    }
    let id = |number| outpost_mqtt::packet::PacketId::new(number).expect("not 0");
    let pubrec = outpost_mqtt::packet::Ack::new(id(2), ReasonCode::Success);
    world.send(device, outpost_mqtt::packet::Packet::Pubrec(pubrec));
    world.sync();
    world.crash(0);
    let now = world.now();
    let done = world.shard_mut(0).queue_drain("dev", 0, now).expect("a session");
    world.sync();
    assert_eq!((done.drained, done.again_upto), (0, None));
    let queue = world.shard(0).queue("dev").expect("a session");
    assert_eq!(queue.queued, 2, "both sides know their packet ids");
}
