//! The rules of shadows as stories, on one to three hubs.

mod support;

use outpost_shadow::{Event, Limits, ShadowKey, Verb};
use serde_json::{Value, json};
use support::Net;

fn lamp() -> ShadowKey {
    ShadowKey::classic("lamp")
}

#[test]
fn aws_example_desired_color_then_reported_color() {
    let mut net = Net::new(1, &Limits::default());
    net.update(
        0,
        &lamp(),
        &json!({"state": {"desired": {"color": {"r": 10}, "engine": "ON"}}, "clientToken": "t-1"}),
    );
    net.settle();
    let accepted = net.take_published(0, "update/accepted").remove(0);
    assert_eq!(accepted["state"], json!({"desired": {"color": {"r": 10}, "engine": "ON"}}));
    assert_eq!((&accepted["version"], &accepted["clientToken"]), (&json!(1), &json!("t-1")));
    assert_eq!(
        accepted["metadata"],
        json!({"desired": {"color": {"r": {"timestamp": 1_700_000_000}}, "engine": {"timestamp": 1_700_000_000}}})
    );
    let delta = net.take_published(0, "update/delta").remove(0);
    assert_eq!(delta["state"], json!({"color": {"r": 10}, "engine": "ON"}));
    let documents = net.take_published(0, "update/documents").remove(0);
    assert!(documents.get("previous").is_none(), "there was none");

    net.update(0, &lamp(), &json!({"state": {"reported": {"color": {"r": 10}, "engine": "OFF"}}}));
    net.settle();
    let delta = net.take_published(0, "update/delta").remove(0);
    assert_eq!(delta["state"], json!({"engine": "ON"}));
    assert_eq!(delta["metadata"], json!({"engine": {"timestamp": 1_700_000_000}}));
    let documents = net.take_published(0, "update/documents").remove(0);
    assert_eq!(
        (&documents["previous"]["version"], &documents["current"]["version"]),
        (&json!(1), &json!(2))
    );

    net.update(0, &lamp(), &json!({"state": {"desired": {"engine": null}}}));
    net.settle();
    assert!(net.take_published(0, "update/delta").is_empty(), "no difference, no message");
    let document = net.document(0, &lamp()).expect("it exists");
    assert_eq!(
        document["state"],
        json!({"desired": {"color": {"r": 10}}, "reported": {"color": {"r": 10}, "engine": "OFF"}})
    );
}

#[test]
fn r13_nothing_is_answered_before_it_is_on_disk() {
    let mut net = Net::new(1, &Limits::default());
    net.ask(0, &lamp(), Verb::Update, br#"{"state":{"reported":{"on":true}}}"#, Some(7));
    net.ask(0, &lamp(), Verb::Get, b"", Some(8));
    assert!(net.nodes[0].published.is_empty() && net.nodes[0].replies.is_empty());
    net.settle();
    let statuses: Vec<(u64, u16)> =
        net.nodes[0].replies.iter().map(|(id, status, _)| (*id, *status)).collect();
    assert_eq!(statuses, [(7, 200), (8, 200)]);
    net.crash(0);
    assert_eq!(net.state(0, &lamp()), (json!({"reported": {"on": true}}), 1));
}

#[test]
fn a_stale_version_is_refused_with_409_and_a_missing_shadow_with_404() {
    let mut net = Net::new(1, &Limits::default());
    net.ask(0, &lamp(), Verb::Get, br#"{"clientToken":"g"}"#, Some(1));
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": 1}}}));
    net.ask(
        0,
        &lamp(),
        Verb::Update,
        br#"{"state":{"desired":{"a":2}},"version":7,"clientToken":"c"}"#,
        Some(2),
    );
    net.ask(0, &lamp(), Verb::Update, br#"{"state":{"desired":{"a":2}},"version":1}"#, Some(3));
    net.settle();
    let body = |i: usize| &net.nodes[0].replies[i];
    assert_eq!(
        body(0).2,
        json!({"code": 404, "message": "No shadow exists with name: 'lamp'", "timestamp": 1_700_000_000, "clientToken": "g"})
    );
    assert_eq!(
        (body(1).1, &body(1).2["message"], &body(1).2["clientToken"]),
        (409, &json!("Version conflict"), &json!("c"))
    );
    assert_eq!((body(2).1, &body(2).2["version"]), (200, &json!(2)));
}

#[test]
fn named_shadows_are_apart_from_the_classic_one_and_are_listed() {
    let mut net = Net::new(1, &Limits::default());
    let named = ShadowKey::named("lamp", "cfg");
    net.update(0, &named, &json!({"state": {"desired": {"a": 1}}}));
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": 2}}}));
    net.update(0, &ShadowKey::classic("pump"), &json!({"state": {}}));
    net.settle();
    assert_eq!(net.state(0, &named).0, json!({"desired": {"a": 1}}));
    let hub = &net.nodes[0].hub;
    assert_eq!(hub.list("lamp", None, 10), [lamp(), named.clone()]);
    assert_eq!(hub.list("", Some(&named), 10), [ShadowKey::classic("pump")]);
    assert_eq!(hub.list("", None, 1), [lamp()]);
    assert!(
        net.nodes[0]
            .published
            .iter()
            .any(|(topic, _)| topic == "$aws/things/lamp/shadow/name/cfg/update/accepted")
    );
}

#[test]
fn r10_a_deleted_shadow_continues_its_version_when_it_comes_back() {
    let mut net = Net::new(1, &Limits::default());
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": 1}, "reported": {"b": 1}}}));
    net.ask(0, &lamp(), Verb::Delete, b"", Some(1));
    net.ask(0, &lamp(), Verb::Get, b"", Some(2));
    net.ask(0, &lamp(), Verb::Delete, b"", Some(3));
    net.update(0, &lamp(), &json!({"state": {"reported": {"c": 1}}}));
    net.settle();
    let replies: Vec<(u16, Value)> =
        net.nodes[0].replies.iter().map(|(_, s, b)| (*s, b["version"].clone())).collect();
    assert_eq!(replies, [(200, json!(2)), (404, Value::Null), (404, Value::Null)]);
    assert_eq!(net.state(0, &lamp()), (json!({"reported": {"c": 1}}), 3));
}

#[test]
fn r1_while_the_home_can_be_reached_it_decides_and_numbers_go_one_by_one() {
    let mut net = Net::meshed(3, &Limits::default());
    for round in 0..9 {
        net.update(round % 3, &lamp(), &json!({"state": {"desired": {"n": round}}}));
        net.settle();
        let accepted = net.take_published(round % 3, "update/accepted");
        assert_eq!(accepted.iter().map(|a| &a["version"]).collect::<Vec<_>>(), [&json!(round + 1)]);
    }
    net.assert_equal("after nine writes at three nodes");
    assert_eq!(
        net.nodes[0].hub.version_and_home(&lamp()),
        Some((9, Some(net.nodes[0].id))),
        "the creator's node is at home"
    );
}

#[test]
fn r2_r9_both_sides_of_a_partition_write_and_heal_to_one_state_and_number() {
    let mut net = Net::meshed(2, &Limits::default());
    net.update(0, &lamp(), &json!({"state": {"reported": {"on": false}}}));
    net.settle();
    net.cut(0, 1);
    net.update(0, &lamp(), &json!({"state": {"desired": {"color": {"r": 1}}}}));
    net.update(1, &lamp(), &json!({"state": {"desired": {"color": {"g": 2}}}}));
    net.settle();
    let (own, apart) = (net.state(0, &lamp()).1, net.state(1, &lamp()).1);
    assert_eq!(own, 2);
    assert!((960..1024).contains(&apart), "a number of the slot, not {apart}");
    assert_eq!(net.take_published(1, "update/accepted").len(), 1);
    net.forget_published();

    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");
    assert_eq!(
        net.state(0, &lamp()).0["desired"],
        json!({"color": {"r": 1, "g": 2}}),
        "neither side lost its field"
    );
    assert!(net.state(0, &lamp()).1 > apart);
    for node in 0..2 {
        assert!(
            net.take_published(node, "update/accepted").is_empty(),
            "accepted is never said twice"
        );
        let delta = net.take_published(node, "update/delta").pop().expect("the difference grew");
        assert_eq!(delta["state"], json!({"color": {"r": 1, "g": 2}}));
        assert!(delta.get("clientToken").is_none());
        assert!(!net.take_published(node, "update/documents").is_empty());
    }
}

#[test]
fn r1_a_home_that_hangs_costs_a_timeout_and_then_the_write_is_local() {
    let mut net = Net::meshed(2, &Limits::default());
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": 0}}}));
    net.settle();
    net.ask(1, &lamp(), Verb::Update, br#"{"state":{"desired":{"a":1}}}"#, Some(5));
    net.wire.clear(); // nothing arrives, the link looks up
    net.tick(1);
    assert!(net.nodes[1].replies.is_empty());
    net.now_ms += Limits::default().forward_timeout_ms;
    net.tick(1);
    while net.sync_one(1) {}
    assert_eq!(net.nodes[1].replies[0].1, 200);
    assert_eq!(net.state(1, &lamp()).0["desired"]["a"], 1);
    assert_eq!(net.nodes[1].hub.stats().forwards_timed_out, 1);
}

#[test]
fn a_home_is_handed_over_and_the_new_one_counts_on() {
    let mut net = Net::meshed(2, &Limits::default());
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": 0}}}));
    net.settle();
    let (now, new_home) = (net.now(1), net.nodes[1].id);
    net.nodes[1].hub.set_home(lamp(), new_home, now);
    net.drain(1);
    net.settle();
    net.cut(0, 1);
    net.update(1, &lamp(), &json!({"state": {"reported": {"a": 0}}}));
    net.settle();
    assert_eq!(net.state(1, &lamp()).1, 2, "the owner's number, without the old home");
    let (now, old_home) = (net.now(0), net.nodes[0].id);
    net.nodes[0].hub.set_home(lamp(), old_home, now);
    net.drain(0);
    net.settle();
    assert!(
        net.nodes[0].events.iter().any(|e| matches!(e, Event::HomeNotMoved { .. })),
        "not without the home"
    );
}

#[test]
fn r11_a_merge_may_be_too_large_and_then_only_shrinking_is_accepted() {
    let limits = Limits { state_bytes_max: 100, ..Limits::default() };
    let mut net = Net::meshed(2, &limits);
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": "x".repeat(60)}}}));
    net.settle();
    net.cut(0, 1);
    net.update(0, &lamp(), &json!({"state": {"desired": {"b": "y".repeat(20)}}}));
    net.update(1, &lamp(), &json!({"state": {"desired": {"c": "z".repeat(20)}}}));
    net.connect(0, 1);
    net.settle();
    net.assert_equal("merged");
    assert!(net.nodes[0].events.iter().any(|e| matches!(e, Event::Oversize { .. })));
    net.ask(0, &lamp(), Verb::Update, br#"{"state":{"desired":{"d":1}}}"#, Some(1));
    net.ask(0, &lamp(), Verb::Update, br#"{"state":{"desired":{"b":null}}}"#, Some(2));
    net.settle();
    let statuses: Vec<u16> = net.nodes[0].replies.iter().map(|r| r.1).collect();
    assert_eq!(statuses, [413, 200]);
}

#[test]
fn only_what_changed_travels_after_a_partition() {
    let mut net = Net::meshed(2, &Limits::default());
    for i in 0..200 {
        let key = ShadowKey::classic(&format!("device-{i}"));
        net.update(0, &key, &json!({"state": {"reported": {"a": i, "b": "text that takes its place"}, "desired": {"c": 1}}}));
    }
    net.settle();
    net.cut(0, 1);
    net.update(0, &ShadowKey::classic("device-7"), &json!({"state": {"reported": {"a": 1000}}}));
    net.settle();
    let before = net.nodes[0].hub.stats().bytes_sent;
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");
    let sent = net.nodes[0].hub.stats().bytes_sent - before;
    assert!(sent < 400, "one leaf costs {sent} bytes");
}

#[test]
fn a_node_that_lost_its_disk_gets_everything_back() {
    let mut net = Net::meshed(2, &Limits::default());
    for i in 0..50 {
        net.update(
            0,
            &ShadowKey::classic(&format!("device-{i}")),
            &json!({"state": {"desired": {"a": i}}}),
        );
    }
    net.settle();
    net.nodes[1].disk.rows().clear();
    net.crash(1);
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the exchange of prints");
    assert_eq!(net.state(1, &ShadowKey::classic("device-49")).0, json!({"desired": {"a": 49}}));
}

#[test]
fn tombstones_go_when_everybody_has_them_and_deleted_keys_stay_deleted() {
    let mut net = Net::meshed(3, &Limits::default());
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": 1, "b": 2}, "reported": {"a": 1}}}));
    net.update(0, &lamp(), &json!({"state": {"desired": {"a": null}, "reported": {"a": null}}}));
    net.settle();
    for _ in 0..3 {
        net.now_ms += Limits::default().sweep_every_ms;
        (0..3).for_each(|node| net.tick(node));
        net.settle();
    }
    for node in 0..3 {
        assert_eq!(net.nodes[node].hub.stats().tombstones_collected, 2, "at node {node}");
        assert_eq!(net.state(node, &lamp()).0, json!({"desired": {"b": 2}}));
    }
    net.assert_equal("after collection");
}
