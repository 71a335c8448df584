//! What a node remembers of its shadows: who wrote a value, where, what it replaced, and whether there was a conflict.

mod support;

use outpost_shadow::{Change, Limits, ShadowKey, Verb, What};
use serde_json::json;
use support::Net;

fn limits(all: usize, each: usize) -> Limits {
    Limits { history_max: all, history_each_max: each, ..Limits::default() }
}

fn write(net: &mut Net, node: usize, client: &str, key: &ShadowKey, body: &serde_json::Value) {
    let (now, body) = (net.now(node), body.to_string());
    let client = Some(client.to_owned());
    let hub = &mut net.nodes[node].hub;
    hub.request_of(key.clone(), Verb::Update, body.as_bytes(), 1, client, now);
    net.drain(node);
    net.settle();
    net.now_ms += 1_000;
}

/// What was replaced by what, where.
fn told(change: &Change) -> (String, Option<&str>, Option<&str>) {
    (change.path.join("."), change.replaced.as_deref(), change.value.as_deref())
}

#[test]
fn a_write_says_who_when_and_what_it_replaced_and_survives_a_crash() {
    let (mut net, key) = (Net::new(1, &limits(100, 10)), ShadowKey::classic("lamp"));
    write(&mut net, 0, "app", &key, &json!({"state": {"desired": {"a": {"x": 1, "y": 2}}}}));
    write(
        &mut net,
        0,
        "lamp-1",
        &key,
        &json!({"state": {"desired": {"a": 5}, "reported": {"b": 1}}}),
    );
    // The same once more changes no value.
    write(&mut net, 0, "lamp-1", &key, &json!({"state": {"reported": {"b": 1}}}));
    net.ask(0, &key, Verb::Delete, b"", None);
    net.settle();
    for crashed in [false, true] {
        if crashed {
            net.crash(0);
        }
        let history = net.nodes[0].hub.history(&key, 10);
        let whats: Vec<What> = history.iter().map(|entry| entry.what).collect();
        assert_eq!(whats, [What::Deleted, What::Written, What::Written]);
        let second = &history[1];
        assert_eq!((second.version, second.client.as_deref()), (2, Some("lamp-1")));
        assert_eq!(second.at_ms, 1_700_000_001_000);
        let mut changes: Vec<_> = second.changes.iter().map(told).collect();
        changes.sort();
        assert_eq!(
            changes,
            [
                ("desired.a".to_owned(), None, Some("5")),
                ("desired.a.x".to_owned(), Some("1"), None),
                ("desired.a.y".to_owned(), Some("2"), None),
                ("reported.b".to_owned(), None, Some("1")),
            ]
        );
        assert!(second.changes.iter().all(|change| !change.conflict));
    }
}

#[test]
fn a_client_of_another_node_is_known_where_it_asked() {
    let (mut net, key) = (Net::meshed(2, &limits(100, 10)), ShadowKey::classic("lamp"));
    write(&mut net, 0, "app", &key, &json!({"state": {"desired": {"a": 1}}}));
    write(&mut net, 1, "phone", &key, &json!({"state": {"desired": {"a": 2}}}));
    let home = &net.nodes[0].hub.history(&key, 1)[0];
    assert_eq!((home.what, home.client.as_deref()), (What::Written, None));
    assert_eq!(home.from, Some(net.nodes[1].id.to_string()), "a client of that node");
    let there = &net.nodes[1].hub.history(&key, 1)[0];
    assert_eq!((there.what, there.client.as_deref()), (What::Merged, Some("phone")));
    assert_eq!(there.changes[0].node, net.nodes[0].id.to_string(), "decided at home");
}

#[test]
fn both_sides_of_a_partition_know_of_the_conflict() {
    let (mut net, key) = (Net::meshed(2, &limits(100, 10)), ShadowKey::classic("lamp"));
    write(&mut net, 0, "app", &key, &json!({"state": {"desired": {"a": 1, "b": 1}}}));
    net.cut(0, 1);
    write(&mut net, 0, "app", &key, &json!({"state": {"desired": {"a": 2}, "reported": {"r": 1}}}));
    write(&mut net, 1, "phone", &key, &json!({"state": {"desired": {"a": 3, "b": 2}}}));
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");

    let loser = net.nodes[0].hub.why(&key, &["desired".into(), "a".into()], 10).remove(0);
    assert_eq!((loser.value.as_deref(), loser.node), (Some("3"), net.nodes[1].id.to_string()));
    let merged = &loser.history[0];
    assert_eq!(merged.what, What::Merged);
    let change = merged.changes.iter().find(|c| c.path == ["desired", "a"]).expect("it changed");
    assert_eq!((change.replaced.as_deref(), change.conflict), (Some("2"), true));
    let other = merged.changes.iter().find(|c| c.path == ["desired", "b"]).expect("it changed");
    assert!(!other.conflict, "only one side wrote it: {other:?}");

    let winner = net.nodes[1].hub.why(&key, &["desired".into(), "a".into()], 10).remove(0);
    let kept = winner.history.iter().find(|e| e.what == What::Kept).expect("it is told there too");
    let change = &kept.changes[0];
    assert_eq!((change.replaced.as_deref(), change.value.as_deref()), (Some("2"), Some("3")));
    assert!(change.conflict);
    let apart = winner.history.iter().find(|e| e.what == What::WrittenApart).expect("the write");
    assert_eq!(apart.client.as_deref(), Some("phone"));
}

#[test]
fn the_history_is_bounded_for_each_shadow_and_for_all_also_on_disk() {
    let mut net = Net::new(1, &limits(20, 5));
    for round in 0..40 {
        for thing in ["a", "b", "c", "d", "e", "f"] {
            let body = json!({"state": {"reported": {"n": round}}});
            write(&mut net, 0, "app", &ShadowKey::classic(thing), &body);
        }
    }
    let rows = |net: &Net| net.nodes[0].disk.rows().keys().filter(|key| key[0] == b'h').count();
    let count = |net: &Net, thing| net.nodes[0].hub.history(&ShadowKey::classic(thing), 100).len();
    let all: usize = ["a", "b", "c", "d", "e", "f"].iter().map(|thing| count(&net, thing)).sum();
    assert_eq!((all, rows(&net)), (20, 20));
    for round in 100..140 {
        let body = json!({"state": {"reported": {"n": round}}});
        write(&mut net, 0, "app", &ShadowKey::classic("a"), &body);
    }
    assert_eq!(count(&net, "a"), 5);
    assert!(count(&net, "f") > 0, "a busy shadow does not crowd the others out");
    net.crash(0);
    assert_eq!((count(&net, "a"), rows(&net) <= 20), (5, true));
    let newest = &net.nodes[0].hub.history(&ShadowKey::classic("a"), 1)[0];
    assert_eq!(newest.changes[0].value.as_deref(), Some("139"));
}

#[test]
fn a_limit_that_was_lowered_holds_for_what_is_on_disk() {
    for left in [3, 0] {
        let mut net = Net::new(1, &limits(100, 50));
        let key = ShadowKey::classic("lamp");
        for round in 0..20 {
            write(&mut net, 0, "app", &key, &json!({"state": {"desired": {"a": round}}}));
        }
        net.set_limits(&limits(left, 50));
        net.crash(0);
        net.tick(0);
        net.settle();
        let rows = net.nodes[0].disk.rows().keys().filter(|key| key[0] == b'h').count();
        assert_eq!((net.nodes[0].hub.history(&key, 100).len(), rows), (left, left));
    }
}

#[test]
fn without_room_nothing_is_remembered_and_nothing_written() {
    let (mut net, key) = (Net::new(1, &limits(0, 5)), ShadowKey::classic("lamp"));
    write(&mut net, 0, "app", &key, &json!({"state": {"desired": {"a": 1}}}));
    assert!(net.nodes[0].hub.history(&key, 10).is_empty());
    assert!(!net.nodes[0].disk.rows().keys().any(|key| key[0] == b'h'));
    let why = net.nodes[0].hub.why(&key, &[], 10);
    assert_eq!((why.len(), why[0].value.as_deref()), (1, Some("1")), "the stamp still tells");
}
