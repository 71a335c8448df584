//! Whose word counts for a key: measured values, knobs that people turn, and what a device makes of swapped messages.

mod support;

use outpost_shadow::{Limits, Policies, Policy, PolicyRule, Rules, ShadowKey, Verb};
use serde_json::{Value, json};
use support::Net;

const HOUR_MS: u64 = 3_600_000;

fn pump() -> ShadowKey {
    ShadowKey::classic("pump-1")
}

fn rules() -> Rules {
    let rule = |path, policy| PolicyRule::new("pump-*", path, policy).expect("a rule");
    let policies = Policies::new(vec![
        rule("temp", Policy::ReportedOnly),
        rule("knob", Policy::LocalOverride { expiry_ms: Some(HOUR_MS) }),
        rule("scene.*", Policy::LocalOverride { expiry_ms: None }),
    ]);
    Rules { policies: policies.expect("three"), ..Rules::default() }
}

fn net(count: usize) -> Net {
    Net::meshed_with_rules(count, &Limits::default(), &rules())
}

/// Writes at a node, waits, and tells the delta of that node's document.
fn write(net: &mut Net, node: usize, state: &Value) -> Value {
    net.now_ms += 1_000;
    net.update(node, &pump(), &json!({ "state": state }));
    net.settle();
    delta(net, node)
}

fn delta(net: &Net, node: usize) -> Value {
    net.document(node, &pump()).expect("a document")["state"]["delta"].take()
}

#[test]
fn a_controlled_key_is_wanted_until_it_is_shown_and_again_when_it_changes() {
    let mut net = net(1);
    assert_eq!(write(&mut net, 0, &json!({"desired": {"on": true}})), json!({"on": true}));
    assert_eq!(write(&mut net, 0, &json!({"reported": {"on": true}})), Value::Null);
    assert_eq!(write(&mut net, 0, &json!({"reported": {"on": false}})), json!({"on": true}));
}

#[test]
fn a_reported_only_key_cannot_be_wanted() {
    let mut net = net(1);
    let body = br#"{"state":{"desired":{"temp":20}}}"#;
    net.ask(0, &pump(), Verb::Update, body, Some(1));
    net.settle();
    let (_, status, body) = net.nodes[0].replies.pop().expect("an answer");
    assert_eq!(status, 400);
    assert_eq!(body["message"], "State contains an invalid node: desired.temp is only reported");
    assert_eq!(write(&mut net, 0, &json!({"reported": {"temp": 21}})), Value::Null);
    assert_eq!(
        write(&mut net, 0, &json!({"desired": {"temp": null}})),
        Value::Null,
        "taking it away is no wish"
    );
}

#[test]
fn a_knob_turned_by_hand_is_not_turned_back() {
    let mut net = net(1);
    assert_eq!(write(&mut net, 0, &json!({"desired": {"knob": 5}})), json!({"knob": 5}));
    assert_eq!(
        write(&mut net, 0, &json!({"reported": {"knob": 2}})),
        json!({"knob": 5}),
        "not satisfied yet: it is still wanted"
    );
    assert_eq!(write(&mut net, 0, &json!({"reported": {"knob": 5}})), Value::Null, "satisfied");
    net.forget_published();
    assert_eq!(write(&mut net, 0, &json!({"reported": {"knob": 9}})), Value::Null, "by hand");
    assert!(net.take_published(0, "update/delta").is_empty(), "no fight");
    assert_eq!(
        write(&mut net, 0, &json!({"desired": {"knob": 5}})),
        json!({"knob": 5}),
        "the same value again is a new wish"
    );
}

#[test]
fn a_local_change_stands_for_its_time_and_then_the_delta_is_said_again() {
    let mut net = net(2);
    write(&mut net, 0, &json!({"desired": {"knob": 5, "scene": {"name": "day"}}}));
    write(&mut net, 0, &json!({"reported": {"knob": 5, "scene": {"name": "day"}}}));
    write(&mut net, 0, &json!({"reported": {"knob": 9, "scene": {"name": "party"}}}));
    net.forget_published();
    net.now_ms += HOUR_MS - 1;
    net.tick(0);
    net.crash(0);
    net.tick(0);
    net.settle();
    assert_eq!(delta(&net, 0), Value::Null, "the override survives a restart");
    net.now_ms += 1;
    (0..2).for_each(|node| net.tick(node));
    net.settle();
    for node in 0..2 {
        assert_eq!(delta(&net, node), json!({"knob": 5}), "over; the scene stays");
        let said = net.take_published(node, "update/delta");
        assert_eq!(said.len(), 1, "at node {node}: {said:?}");
        assert_eq!(said[0]["state"], json!({"knob": 5}));
        let document = net.document(node, &pump()).expect("a document");
        assert_eq!(said[0]["version"], document["version"]);
    }
    net.tick(0);
    net.settle();
    assert!(net.take_published(0, "update/delta").is_empty(), "once");
}

#[test]
fn what_one_side_of_a_cut_saw_satisfied_is_satisfied_everywhere() {
    let mut net = net(3);
    write(&mut net, 0, &json!({"desired": {"knob": 5}}));
    net.cut(0, 1);
    net.cut(0, 2);
    write(&mut net, 0, &json!({"reported": {"knob": 5}}));
    write(&mut net, 0, &json!({"reported": {"knob": 7}}));
    write(&mut net, 1, &json!({"desired": {"other": 1}}));
    net.connect(0, 1);
    net.settle();
    net.connect_all();
    net.settle();
    net.assert_equal("after the heal");
    for node in 0..3 {
        assert_eq!(delta(&net, node), json!({"other": 1}), "node {node} never saw 5 reported");
    }
}

#[test]
fn a_wish_made_apart_is_not_satisfied_by_an_older_mark() {
    let mut net = net(2);
    write(&mut net, 0, &json!({"desired": {"knob": 5}}));
    net.cut(0, 1);
    write(&mut net, 0, &json!({"reported": {"knob": 5}}));
    write(&mut net, 0, &json!({"reported": {"knob": 7}}));
    write(&mut net, 1, &json!({"desired": {"knob": 6}}));
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");
    assert_eq!((delta(&net, 0), delta(&net, 1)), (json!({"knob": 6}), json!({"knob": 6})));
}

/// A device that keeps to one rule: what has a lower version than the last is late. It shows what the delta asks for.
fn device(messages: &[&Value]) -> (u64, Value) {
    let (mut last, mut shows) = (0, json!({}));
    for message in messages {
        let version = message["version"].as_u64().expect("a version");
        if version < last {
            continue;
        }
        last = version;
        let fields = message["state"].as_object().expect("an object");
        for (key, value) in fields {
            shows[key] = value.clone();
        }
    }
    (last, shows)
}

#[test]
fn a_delta_is_whole_so_swapped_doubled_and_lost_ones_lead_to_one_end() {
    let mut net = net(1);
    for state in [
        json!({"desired": {"a": 1}}),
        json!({"desired": {"b": 2}}),
        json!({"desired": {"a": 3}}),
        json!({"desired": {"c": 4}}),
    ] {
        write(&mut net, 0, &state);
    }
    let deltas = net.take_published(0, "update/delta");
    let versions: Vec<u64> = deltas.iter().filter_map(|d| d["version"].as_u64()).collect();
    assert_eq!(versions, [1, 2, 3, 4], "in their order");
    let end = (4, json!({"a": 3, "b": 2, "c": 4}));
    // Every sequence of up to six of the four messages, doubled and left out as it comes, that has the last one in it.
    for code in 0..4usize.pow(6) {
        let pick = |digit: u32| &deltas[code / 4usize.pow(digit) % 4];
        let order: Vec<&Value> = (0..6).map(pick).collect();
        if order.iter().any(|message| message["version"] == 4) {
            assert_eq!(device(&order), end, "{code}");
        }
    }
}
