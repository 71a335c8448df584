//! Stories of shadows that leave memory when nobody uses them, and are read again when somebody does.

mod support;

use outpost_shadow::{Event, Limits, ShadowKey, Verb};
use serde_json::json;
use support::Net;

/// Bytes of the facts in front of a row.
const FACTS_BYTES: usize = 26;

fn device(n: usize) -> ShadowKey {
    ShadowKey::classic(&format!("device-{n:03}"))
}

fn limits(hot_shadows_max: usize) -> Limits {
    Limits { hot_shadows_max, ..Limits::default() }
}

/// One hub that has written so many shadows, all of them durable.
fn hub_of(count: usize, limits: &Limits) -> Net {
    let mut net = Net::new(1, limits);
    for n in 0..count {
        let state = json!({"desired": {"level": n}, "reported": {"level": n, "on": true}});
        net.update(0, &device(n), &json!({ "state": state }));
    }
    net.settle();
    net
}

fn hot(net: &Net) -> usize {
    net.nodes[0].hub.stats().hot
}

fn reads(net: &Net) -> u64 {
    net.nodes[0].hub.stats().reads
}

#[test]
fn only_what_is_durable_leaves_memory() {
    let mut net = hub_of(1, &limits(8));
    net.update(0, &device(0), &json!({"state": {"desired": {"level": 7}}}));
    net.nodes[0].hub.rest();
    assert_eq!((hot(&net), reads(&net)), (1, 0), "its last write is not on disk");
    assert_eq!(net.state(0, &device(0)).0["desired"]["level"], 7);
    while net.sync_one(0) {}
    net.nodes[0].hub.rest();
    assert_eq!(hot(&net), 0);
    assert_eq!(net.state(0, &device(0)).0["desired"]["level"], 7, "read again");
    assert!(reads(&net) > 0);
}

#[test]
fn those_used_last_stay_and_the_others_are_served_all_the_same() {
    let mut net = hub_of(100, &limits(16));
    assert!(hot(&net) <= 16, "{} are in memory", hot(&net));
    for _ in 0..50 {
        net.ask(0, &device(5), Verb::Get, b"", None);
        let before = reads(&net);
        net.ask(0, &device(5), Verb::Update, br#"{"state":{"reported":{"on":false}}}"#, None);
        assert_eq!(reads(&net), before, "the one in use is not read again");
        net.settle();
    }
    for n in 0..100 {
        net.ask(0, &device(n), Verb::Get, b"", None);
        net.settle();
        let got = net.take_published(0, "get/accepted").pop().expect("an answer");
        assert_eq!(got["state"]["reported"]["level"], n);
        net.update(0, &device(n), &json!({"state": {"desired": {"level": n + 1}}}));
        net.settle();
        let accepted = net.take_published(0, "update/accepted").pop().expect("an answer");
        let expected = if n == 5 { 52 } else { 2 };
        assert_eq!(accepted["version"], expected, "the version goes on");
        net.forget_published();
        assert!(hot(&net) <= 16);
    }
}

#[test]
fn a_start_reads_no_shadow_and_lists_them_all() {
    let mut net = hub_of(100, &limits(16));
    let before = net.nodes[0].hub.fingerprint();
    net.crash(0);
    let hub = &net.nodes[0].hub;
    assert_eq!(hub.fingerprint(), before);
    let first = hub.list("device-", None, 60);
    let rest = hub.list("device-", first.last(), 60);
    assert_eq!((first.len(), rest.len()), (60, 40), "all, in pages");
    assert_eq!(hub.version_and_home(&device(3)).map(|known| known.0), Some(1));
    assert_eq!(hub.home(&device(3)).map(|home| home.node), Some(net.nodes[0].id));
    let stats = hub.stats();
    assert_eq!((stats.hot, stats.reads, stats.shadows, stats.records), (0, 0, 100, 100));
}

#[test]
fn strangers_find_out_what_differs_without_reading_what_does_not() {
    let mut net = Net::meshed(2, &limits(16));
    for n in 0..200 {
        net.update(0, &device(n), &json!({"state": {"desired": {"level": n}}}));
    }
    net.settle();
    net.cut(0, 1);
    net.update(0, &device(3), &json!({"state": {"desired": {"level": 1000}}}));
    net.settle();
    let own = b"own".to_vec();
    for node in 0..2 {
        // The feeds have new names, so nobody's place in them is worth anything.
        net.nodes[node].disk.rows().remove(&own);
        net.crash(node);
    }
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the sketch");
    assert_eq!(net.state(1, &device(3)).0["desired"]["level"], 1000);
    for node in 0..2 {
        let reads = net.nodes[node].hub.stats().reads;
        assert!(reads < 20, "node {node} read {reads} of 200 shadows, one differed");
    }
}

#[test]
fn a_new_node_is_sent_all_that_wait_on_disk_and_few_are_in_memory_meanwhile() {
    let mut net = Net::new(2, &limits(16));
    for n in 0..300 {
        net.update(0, &device(n), &json!({"state": {"desired": {"level": n}}}));
    }
    net.settle();
    net.crash(0);
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the exchange");
    assert_eq!(net.state(1, &device(299)).0["desired"]["level"], 299);
    assert!(hot(&net) <= 16 && net.nodes[1].hub.stats().hot <= 16);
}

#[test]
fn tombstones_and_deleted_shadows_on_disk_go_when_their_time_is_over() {
    let mut net = hub_of(3, &limits(0));
    net.update(0, &device(0), &json!({"state": {"desired": {"level": null}}}));
    net.ask(0, &device(1), Verb::Delete, b"", None);
    net.settle();
    net.crash(0);
    net.tick(0);
    net.settle();
    assert_eq!(net.nodes[0].hub.stats().tombstones_collected, 1 + 2, "nobody else needs them");
    assert_eq!(net.nodes[0].hub.stats().records, 3, "its version is remembered");
    assert_eq!(reads(&net), 3, "the one without tombstones is not read, the deleted one twice");
    net.now_ms += Limits::default().deleted_keep_ms + 1;
    net.tick(0);
    net.settle();
    assert_eq!(net.nodes[0].hub.stats().records, 2);
}

#[test]
fn rows_of_older_nodes_are_read() {
    let mut net = hub_of(5, &limits(2));
    let before = net.nodes[0].hub.fingerprint();
    for (key, row) in net.nodes[0].disk.rows().iter_mut() {
        if key[0] == b's' {
            row.drain(..FACTS_BYTES);
        }
    }
    net.crash(0);
    assert_eq!(net.nodes[0].hub.fingerprint(), before);
    net.update(0, &device(4), &json!({"state": {"desired": {"level": 1}}}));
    net.settle();
    assert_eq!(net.state(0, &device(4)).1, 2);
}

#[test]
fn a_row_that_turns_out_to_be_damaged_is_told_of_and_can_be_written_over() {
    let mut net = hub_of(2, &limits(2));
    for (key, row) in net.nodes[0].disk.rows().iter_mut() {
        if key.starts_with(b"sdevice-001") {
            row.truncate(row.len() - 3);
        }
    }
    net.crash(0);
    net.ask(0, &device(1), Verb::Get, b"", Some(1));
    net.settle();
    assert_eq!(net.nodes[0].replies.pop().map(|reply| reply.1), Some(404));
    assert!(net.nodes[0].events.contains(&Event::Damaged { key: device(1) }));
    net.update(0, &device(1), &json!({"state": {"desired": {"level": 5}}}));
    net.settle();
    assert_eq!(net.state(0, &device(1)).0, json!({"desired": {"level": 5}}));
    assert_eq!(net.state(0, &device(0)).0["desired"]["level"], 0, "the other is not touched");
}
