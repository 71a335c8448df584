//! Traces: what is asked for is written down, nothing else, and never without an end.

use outpost_actors::shard::{Event, TRACES_MAX, TraceRecord, TraceTarget};
use outpost_model::TopicFilter;
use outpost_mqtt::packet::Packet;

use crate::world::{World, fleeting, publish, v5};

/// What the traces wanted written down since this was asked last, and which of them ended. Replaces the world's pump.
fn written(world: &mut World) -> (Vec<TraceRecord>, Vec<u64>) {
    let now = world.now();
    world.shard_mut(0).end_turn(now);
    let (mut records, mut ended) = (Vec::new(), Vec::new());
    while let Some(event) = world.shard_mut(0).poll_event() {
        match event {
            Event::Traced(_, record) => records.push(*record),
            Event::TraceEnded(id) => ended.push(id),
            _ => {}
        }
    }
    (records, ended)
}

fn start(world: &mut World, id: u64, target: TraceTarget, payload: bool) {
    let now = world.now();
    assert!(world.shard_mut(0).trace_start(id, target, 60_000, payload, now));
}

/// Hands a packet to the shard and leaves its events to the test.
fn receive(world: &mut World, conn: outpost_actors::shard::ConnId, packet: &Packet) {
    let mut bytes = Vec::new();
    outpost_mqtt::codec::encode(packet, outpost_mqtt::packet::Version::V5, &mut bytes);
    let now = world.now();
    world.shard_mut(0).receive(conn, &bytes, now);
}

#[test]
fn a_client_is_traced_packet_by_packet_and_payloads_only_when_wanted() {
    let mut world = World::new();
    let device = world.connect(v5("dev"));
    let other = world.connect(v5("other"));
    world.subscribe(device, "a", 0);
    let conn = world.conn(device);
    for payload in [false, true] {
        start(&mut world, 1, TraceTarget::Client("dev".into()), payload);
        let packet = Packet::Publish(Box::new(publish("a", "secret", 0, 0)));
        receive(&mut world, conn, &packet);
        let elsewhere = world.conn(other);
        receive(&mut world, elsewhere, &Packet::Pingreq);
        let (records, _) = written(&mut world);
        let seen: Vec<_> = records.iter().map(|r| (r.what, r.packet, &*r.topic)).collect();
        assert_eq!(
            seen,
            [("received", "PUBLISH", "a"), ("accepted", "", "a"), ("sent", "PUBLISH", "a")]
        );
        assert!(records.iter().all(|r| r.client_id == "dev" && r.payload_bytes == Some(6)));
        let wanted = payload.then(|| "secret".to_owned());
        assert!(records.iter().all(|r| r.payload == wanted), "{records:?}");
        assert!(world.shard_mut(0).trace_stop(1));
        assert_eq!(written(&mut world).1, [1]);
    }
    receive(&mut world, conn, &Packet::Pingreq);
    assert!(written(&mut world).0.is_empty(), "none runs");
}

#[test]
fn a_topic_is_traced_from_its_publisher_to_its_receivers_and_to_what_was_dropped() {
    let mut world = World::new();
    let away = world.connect(v5("away"));
    world.subscribe(away, "plant/#", 0);
    world.disconnect(away);
    let boss = world.connect(fleeting("boss"));
    let filter = TopicFilter::new("plant/+/temp").expect("a filter");
    start(&mut world, 7, TraceTarget::Topic(filter), false);
    let conn = world.conn(boss);
    for topic in ["plant/1/temp", "plant/1/hum"] {
        receive(&mut world, conn, &Packet::Publish(Box::new(publish(topic, "1", 0, 0))));
    }
    let (records, _) = written(&mut world);
    let seen: Vec<_> = records.iter().map(|r| (r.what, &*r.client_id, &*r.reason)).collect();
    assert_eq!(
        seen,
        [("received", "boss", ""), ("accepted", "boss", ""), ("dropped", "away", "offline")]
    );
    assert!(records.iter().all(|r| r.topic == "plant/1/temp"));
}

#[test]
fn a_trace_ends_by_its_time_and_there_are_only_so_many() {
    let mut world = World::new();
    for id in 0..TRACES_MAX as u64 {
        start(&mut world, id, TraceTarget::Client(format!("c{id}")), false);
    }
    let now = world.now();
    let one_more = TraceTarget::Client("x".into());
    assert!(!world.shard_mut(0).trace_start(99, one_more, 1, false, now));
    assert_eq!(world.shard(0).next_tick_ms(), Some(now.mono_ms + 60_000));
    assert_eq!(world.shard(0).trace_list(now).len(), TRACES_MAX);
    world.pass(60_000);
    assert!(world.shard(0).trace_list(world.now()).is_empty());
}
