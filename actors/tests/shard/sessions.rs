//! Takeover, wills, expiry, and what is left when a session ended.

use outpost_mqtt::packet::{Connect, Disconnect, Packet, ReasonCode, SubscribeOptions, Version};

use crate::world::{World, fleeting, publish, v4, v5, will};

#[test]
fn a_second_connection_takes_over_and_the_first_hears_0x8e() {
    let mut world = World::new();
    let first = world.connect(v5("a"));
    let second = world.connect(v5("a"));
    let heard = world.take(first);
    let is_takeover =
        |p: &Packet| matches!(p, Packet::Disconnect(d) if d.reason == ReasonCode::SessionTakenOver);
    assert!(heard.iter().any(is_takeover), "{heard:?}");
    assert!(!world.is_open(first) && world.is_open(second));
}

#[test]
fn who_may_leave_its_client_id_to_the_server_3_1_3_1() {
    let mut world = World::new();
    for (version, clean_start, welcome) in [
        (Version::V3, true, false),
        (Version::V4, true, true),
        (Version::V4, false, false),
        (Version::V5, false, true),
    ] {
        let connect = Connect { version, clean_start, ..v4("") };
        let (_, connack) = world.attempt(0, connect);
        let reason = connack.map(|connack| connack.reason);
        let expected =
            if welcome { ReasonCode::Success } else { ReasonCode::ClientIdentifierNotValid };
        assert_eq!(reason, Some(expected), "{version:?}, clean start {clean_start}");
    }
}

#[test]
fn a_will_goes_out_at_once_after_its_delay_or_never() {
    let mut world = World::new();
    let watcher = world.connect(v5("watcher"));
    world.subscribe(watcher, "will/#", 1);
    let with_will = |name: &str, delay_s| {
        let mut connect = v5(name);
        connect.will = Some(will(&format!("will/{name}"), delay_s));
        connect
    };
    let now = world.connect(with_will("now", 0));
    world.cut(now);
    assert_eq!(world.drain(watcher).len(), 1);
    let later = world.connect(with_will("later", 10));
    world.cut(later);
    world.pass(9_000);
    assert_eq!(world.drain(watcher).len(), 0);
    world.pass(2_000);
    assert_eq!(world.drain(watcher).len(), 1);
    let back = world.connect(with_will("back", 10));
    world.cut(back);
    world.pass(5_000);
    let back = world.connect(with_will("back", 10));
    world.pass(20_000);
    assert_eq!(world.drain(watcher).len(), 0, "it came back in time");
    world.disconnect(back);
    world.pass(20_000);
    assert_eq!(world.drain(watcher).len(), 0, "it said good-bye");
}

#[test]
fn a_will_goes_out_when_its_session_ends_before_its_delay() {
    let mut world = World::new();
    let watcher = world.connect(v5("watcher"));
    world.subscribe(watcher, "will", 1);
    let mut connect = v5("a");
    connect.will = Some(will("will", 1_000));
    let client = world.connect(connect.clone());
    world.cut(client);
    let mut clean = fleeting("a");
    clean.will = Some(will("will", 0));
    let client = world.connect(clean);
    assert_eq!(world.drain(watcher).len(), 1, "a clean start ends the session");
    world.connect(fleeting("a"));
    assert!(!world.is_open(client));
    assert_eq!(world.drain(watcher).len(), 1, "taken over without a good-bye, and ended");
}

#[test]
fn an_expiry_in_disconnect_where_connect_had_none_is_an_error_and_the_will_goes_out() {
    let mut world = World::new();
    let watcher = world.connect(v5("watcher"));
    world.subscribe(watcher, "will", 0);
    let mut connect = fleeting("a");
    connect.will = Some(will("will", 0));
    let client = world.connect(connect);
    let bye = Disconnect { session_expiry_s: Some(60), ..Disconnect::default() };
    world.send(client, Packet::Disconnect(Box::new(bye)));
    assert_eq!(world.drain(watcher), ["gone"]);
}

#[test]
fn a_session_ends_when_its_time_is_over_and_leaves_nothing() {
    let mut world = World::new();
    let client = world.connect(v5("a"));
    world.subscribe(client, "t", 2);
    world.subscribe(client, "$share/g/t", 1);
    world.cut(client);
    let sender = world.connect(fleeting("s"));
    for number in 1..=1_000 {
        world.publish(sender, publish("t", "x", 1, number));
        world.drain(sender);
    }
    world.disconnect(sender);
    assert_eq!(world.shard(0).stats().queued, 2_000);
    world.pass(3_601_000);
    world.sync();
    let stats = world.shard(0).stats();
    assert_eq!((stats.sessions, stats.subscriptions, stats.queued, stats.bodies), (0, 0, 0, 0));
    let left = world.store(0).snapshot().into_keys();
    let left: Vec<_> = left.filter(|(space, _)| *space != outpost_store::Space::Meta).collect();
    assert!(left.is_empty(), "{left:?}");
    let (_, connack) = world.try_connect(0, v5("a"));
    assert!(!connack.session_present);
}

#[test]
fn a_session_expiry_lowered_at_disconnect_counts() {
    let mut world = World::new();
    let client = world.connect(v5("a"));
    let bye = Disconnect { session_expiry_s: Some(0), ..Disconnect::default() };
    world.send(client, Packet::Disconnect(Box::new(bye)));
    world.sync();
    assert!(!world.try_connect(0, v5("a")).1.session_present);
}

#[test]
fn sessions_and_subscriptions_survive_a_crash() {
    let mut world = World::new();
    let client = world.connect(v4("a"));
    world.subscribe(client, "t/+", 1);
    world.crash(0);
    let sender = world.connect(fleeting("s"));
    world.publish(sender, publish("t/1", "kept", 1, 1));
    let (client, connack) = world.try_connect(0, v4("a"));
    assert!(connack.session_present);
    assert_eq!(world.drain(client), ["kept"]);
}

#[test]
fn the_number_of_an_ended_session_is_not_used_while_its_rows_are_there() {
    let mut world = World::new();
    let old = world.connect(v5("old"));
    world.subscribe(old, "t", 1);
    world.cut(old);
    let sender = world.connect(fleeting("s"));
    for number in 1..=600 {
        world.publish(sender, publish("t", "for the old one", 1, number));
        world.drain(sender);
    }
    let fresh = world.start_connect(0, fleeting("old"));
    let lsn = world.store(0).sync_all(); // the session's end is durable, the clearing away is not
    let now = world.now();
    world.shard_mut(0).synced(lsn, now);
    assert!(world.is_open(fresh));
    world.crash(0);
    let client = world.connect(v5("new"));
    world.subscribe(client, "t", 1);
    let sender = world.connect(fleeting("s"));
    world.publish(sender, publish("t", "for the new one", 1, 1));
    world.sync();
    assert_eq!(world.drain(client), ["for the new one"]);
}

#[test]
fn no_local_and_one_copy_for_overlapping_filters() {
    let mut world = World::new();
    let client = world.connect(v5("a"));
    let no_local = SubscribeOptions { no_local: true, ..SubscribeOptions::default() };
    world.subscribe_with(client, "mine", no_local);
    world.subscribe(client, "both/+", 0);
    world.subscribe(client, "both/#", 2);
    world.publish(client, publish("mine", "own", 0, 0));
    world.publish(client, publish("both/1", "one", 2, 1));
    assert_eq!(world.drain(client), ["one"]);
}

#[test]
fn a_subscription_asked_for_again_misses_nothing() {
    let mut world = World::new();
    let client = world.connect(v5("a"));
    world.subscribe(client, "t", 1);
    world.subscribe(client, "t", 0);
    let sender = world.connect(fleeting("s"));
    world.publish(sender, publish("t", "as QoS 0", 1, 1));
    assert_eq!(world.drain(client), ["as QoS 0"]);
    assert_eq!(world.shard(0).stats().subscriptions, 1);
    world.unsubscribe(client, "t");
    assert_eq!(world.shard(0).stats().subscriptions, 0);
    world.publish(sender, publish("t", "nobody", 1, 2));
    assert_eq!(world.drain(client), Vec::<String>::new());
}

#[test]
fn a_message_s_life_ends_in_the_queue() {
    let mut world = World::new();
    let client = world.connect(v5("a"));
    world.subscribe(client, "t", 1);
    world.cut(client);
    let sender = world.connect(v5("s"));
    let mut short = publish("t", "short", 1, 1);
    short.expiry_s = Some(5);
    world.publish(sender, short);
    world.publish(sender, publish("t", "long", 1, 2));
    world.pass(6_000);
    let client = world.connect(v5("a"));
    assert_eq!(world.drain(client), ["long"]);
}
