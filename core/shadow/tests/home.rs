//! Whose a shadow is: homes that follow their devices, are taken over, come back, and strict mode.

mod support;

use outpost_shadow::{Event, Limits, OldHome, Rules, ShadowKey, Verb};
use serde_json::{Value, json};
use support::Net;

fn lamp() -> ShadowKey {
    ShadowKey::classic("lamp")
}

/// Two nodes; the first is the home of a lamp with version 1.
fn pair(rules: &Rules) -> Net {
    let mut net = Net::meshed_with_rules(2, &Limits::default(), rules);
    net.update(0, &lamp(), &json!({"state": {"reported": {"on": false}}}));
    net.settle();
    net.now_ms += 60_000;
    net
}

fn home(net: &Net, node: usize) -> (usize, bool) {
    let home = net.nodes[node].hub.home(&lamp()).expect("somebody is at home");
    let at = net.nodes.iter().position(|n| n.id == home.node).expect("one of the nodes");
    (at, home.sure)
}

/// The status and body that a request at a node is answered with.
fn answer(net: &mut Net, node: usize, verb: Verb, body: &Value) -> (u16, Value) {
    net.ask(node, &lamp(), verb, body.to_string().as_bytes(), Some(99));
    net.settle();
    let (_, status, body) = net.nodes[node].replies.pop().expect("an answer");
    (status, body)
}

#[test]
fn r1_the_home_follows_its_device_while_both_nodes_are_up() {
    let mut net = pair(&Rules::default());
    net.device_here(1, &lamp());
    net.settle();
    assert_eq!((home(&net, 0), home(&net, 1)), ((1, true), (1, true)));
    net.cut(0, 1);
    net.update(1, &lamp(), &json!({"state": {"reported": {"on": true}}}));
    net.settle();
    assert_eq!(net.state(1, &lamp()).1, 2, "the owner's number, without the old home");
    net.connect(0, 1);
    net.device_here(0, &lamp());
    net.settle();
    assert_eq!(home(&net, 0), (1, true), "a home rests before it follows again");
}

#[test]
fn r8_a_takeover_jumps_and_counts_in_its_slot_until_the_old_home_is_heard() {
    let mut net = pair(&Rules::default());
    net.cut(0, 1);
    net.now_ms += 600_000;
    net.device_here(1, &lamp());
    assert_eq!(home(&net, 1), (1, false), "taken over, but the numbers are not its own");
    net.update(1, &lamp(), &json!({"state": {"reported": {"on": true}}}));
    net.update(0, &lamp(), &json!({"state": {"desired": {"on": true}}}));
    net.settle();
    let (there, here) = (net.state(0, &lamp()).1, net.state(1, &lamp()).1);
    assert_eq!(there, 2, "the old home knows of nothing");
    assert!(here > 6_000, "higher than ten a second for 600 s could have become, not {here}");
    assert!(here % 1024 >= 960, "of the slot's numbers, not {here}");
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");
    assert_eq!((home(&net, 0), home(&net, 1)), ((1, true), (1, true)), "given away when heard");
    let healed = net.state(1, &lamp()).1;
    net.update(1, &lamp(), &json!({"state": {"reported": {"n": 1}}}));
    net.update(1, &lamp(), &json!({"state": {"reported": {"n": 2}}}));
    net.settle();
    let after = net.state(0, &lamp()).1;
    assert!(after % 1024 < 960 && after - healed < 100, "the owner's numbers: {healed}, {after}");
}

#[test]
fn r8_a_third_node_carries_the_word_between_two_that_never_meet() {
    let mut net = Net::meshed(3, &Limits::default());
    net.update(0, &lamp(), &json!({"state": {"reported": {"on": false}}}));
    net.settle();
    net.cut(0, 1);
    net.cut(1, 2);
    net.now_ms += 60_000;
    net.device_here(1, &lamp());
    net.settle();
    net.connect(1, 2);
    net.settle();
    assert_eq!(home(&net, 1), (1, true), "0 gave the numbers away, 2 said so");
}

#[test]
fn a_home_that_is_gone_for_good_is_replaced_by_a_person() {
    let mut net = pair(&Rules::default());
    net.cut(0, 1);
    assert!(net.take_over(1, &lamp(), OldHome::IsGone));
    assert!(!net.take_over(1, &lamp(), OldHome::IsGone), "it is at home already");
    net.settle();
    assert!(net.nodes[1].events.iter().any(|e| matches!(e, Event::TakenOver { sure: true, .. })));
    let before = net.state(1, &lamp()).1;
    net.update(1, &lamp(), &json!({"state": {"desired": {"on": true}}}));
    net.settle();
    assert_eq!(net.state(1, &lamp()).1, before + 1, "counts one by one at once");
}

#[test]
fn r3_what_a_newer_home_heard_beats_an_older_one_whatever_the_clocks_say() {
    let mut net = pair(&Rules::default());
    net.nodes[0].skew_ms = 50_000;
    net.cut(0, 1);
    net.device_here(1, &lamp());
    net.update(1, &lamp(), &json!({"state": {"reported": {"on": "the device says"}}}));
    net.update(0, &lamp(), &json!({"state": {"reported": {"on": "the old home believes"}}}));
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");
    assert_eq!(net.state(0, &lamp()).0["reported"]["on"], "the device says");
}

#[test]
fn a_delete_at_the_old_home_takes_away_what_the_new_one_heard_before_it() {
    let mut net = pair(&Rules::default());
    net.cut(0, 1);
    net.device_here(1, &lamp());
    net.update(1, &lamp(), &json!({"state": {"reported": {"mode": "eco"}}}));
    net.now_ms += 1_000;
    net.ask(0, &lamp(), Verb::Delete, b"", None);
    net.connect(0, 1);
    net.settle();
    assert!(net.document(1, &lamp()).is_none());
    net.update(1, &lamp(), &json!({"state": {"reported": {"on": true}}}));
    net.settle();
    net.assert_equal("made again");
    assert_eq!(net.state(0, &lamp()).0, json!({"reported": {"on": true}}));
}

#[test]
fn r13_an_old_copy_of_the_disk_costs_the_owners_numbers() {
    let mut net = pair(&Rules::default());
    let old = net.nodes[0].disk.rows().clone();
    for round in 0..5 {
        net.update(0, &lamp(), &json!({"state": {"desired": {"n": round}}}));
    }
    net.settle();
    let lost = net.state(0, &lamp()).1;
    *net.nodes[0].disk.rows() = old;
    net.crash(0);
    net.connect(0, 1);
    net.settle();
    net.assert_equal("after the heal");
    assert_eq!(home(&net, 0), (0, false), "what it gave away since is not known");
    assert_eq!(net.state(0, &lamp()).0["desired"]["n"], 4, "the peer had it");
    net.update(0, &lamp(), &json!({"state": {"desired": {"n": 9}}}));
    net.settle();
    let (_, version) = net.state(0, &lamp());
    assert!(version > lost && version % 1024 >= 960, "of the slot's numbers, not {version}");
    assert!(net.take_over(0, &lamp(), OldHome::IsGone), "a person may give them back");
}

#[test]
fn r13_the_numbers_of_many_shadows_are_given_up_a_part_at_a_time_and_of_none_too_late() {
    let limits = Limits { sweep_shadows: 10, ..Limits::default() };
    let mut net = Net::meshed(2, &limits);
    let key = |n: usize| ShadowKey::classic(&format!("lamp-{n:02}"));
    let write = |net: &mut Net, n: usize, value: usize| {
        net.update(0, &key(n), &json!({"state": {"reported": {"n": value}}}));
        net.settle();
    };
    (0..35).for_each(|n| write(&mut net, n, 0));
    let old = net.nodes[0].disk.rows().clone();
    (0..36).for_each(|n| write(&mut net, n, 1)); // the last one is made here
    let lost: Vec<u64> = (0..36).map(|n| net.state(0, &key(n)).1).collect();
    net.cut(0, 1);
    *net.nodes[0].disk.rows() = old;
    net.now_ms += 60_000;
    net.crash(0);
    let unsure = |net: &Net, n: usize| {
        net.nodes[0]
            .hub
            .home(&key(n))
            .is_some_and(|home| home.node == net.nodes[0].id && !home.sure)
    };
    let given_up = |net: &Net| (0..36).filter(|n| unsure(net, *n)).count();
    // The peer's greeting says that it knows more of this feed than there is.
    net.connect(0, 1);
    while given_up(&net) == 0 {
        assert!(net.deliver_one(1, 0) | net.sync_one(0) | net.sync_one(1) | net.deliver_one(0, 1));
        let next = net.nodes[0].hub.next_tick_ms(net.now(0));
        if next.is_some_and(|at| at <= net.now_ms) {
            net.tick(0);
        }
    }
    assert!(given_up(&net) <= 10, "{} at once", given_up(&net));
    // Whoever comes before its turn finds it given up.
    write(&mut net, 34, 2);
    assert!(unsure(&net, 34));
    net.crash(0); // it goes on where it was
    net.connect(0, 1);
    net.settle();
    for _ in 0..4 {
        net.tick(0);
    }
    net.settle();
    assert_eq!(given_up(&net), 36, "also the one that only the peer knew");
    (0..36).for_each(|n| write(&mut net, n, 3));
    net.assert_equal("after all");
    for (n, lost) in lost.into_iter().enumerate() {
        let (_, version) = net.state(0, &key(n));
        assert!(version > lost && version % 1024 >= 960, "lamp {n}: {version} after {lost}");
    }
}

#[test]
fn strict_nodes_answer_500_apart_from_the_owner_and_never_409() {
    let rules = Rules { strict: true, ..Rules::default() };
    let mut net = pair(&rules);
    let desired = json!({"state": {"desired": {"on": true}}, "clientToken": "t"});
    assert_eq!(answer(&mut net, 1, Verb::Update, &desired).0, 200, "forwarded to the owner");
    net.cut(0, 1);
    let stale = json!({"state": {"desired": {"on": true}}, "version": 77});
    for (verb, body) in
        [(Verb::Update, &desired), (Verb::Update, &stale), (Verb::Delete, &json!({}))]
    {
        let (status, body) = answer(&mut net, 1, verb, body);
        assert_eq!((status, &body["code"]), (500, &json!(500)), "{verb:?}: {body}");
        assert_eq!(body["message"], "The shadow's owner is unreachable");
    }
    let reported = json!({"state": {"reported": {"on": true}}});
    assert_eq!(answer(&mut net, 1, Verb::Update, &reported).0, 200, "the device's own word");
    assert_eq!(answer(&mut net, 0, Verb::Update, &stale).0, 409, "the owner knows");
    net.now_ms += 60_000;
    net.device_here(1, &lamp());
    let (status, _) = answer(&mut net, 1, Verb::Update, &desired);
    assert_eq!(status, 500, "a takeover makes no owner before the old one is heard");
    net.connect(0, 1);
    net.settle();
    assert_eq!(answer(&mut net, 1, Verb::Update, &desired).0, 200);
    net.assert_equal("after the heal");
}

#[test]
fn a_peer_whose_frame_was_refused_is_not_listened_to_for_a_while() {
    let mut net = pair(&Rules::default());
    let (now, peer) = (net.now(1), net.nodes[0].id);
    let hub = &mut net.nodes[1].hub;
    let error = hub.handle_peer_frame(peer, b"\x02\xff", now).expect_err("no frame");
    hub.quarantine(peer, &error, now);
    net.drain(1);
    assert_eq!(net.nodes[1].hub.quarantined(now).count(), 1);
    net.cut(0, 1); // the driver closes the link; it comes again by itself
    net.connect(0, 1);
    net.update(0, &lamp(), &json!({"state": {"reported": {"on": true}}}));
    net.settle();
    assert_eq!(net.state(1, &lamp()).0["reported"]["on"], false, "nothing of it is used");
    net.now_ms += 60_000;
    net.tick(1);
    net.settle();
    let over = |e: &Event| matches!(e, Event::QuarantineOver { .. });
    assert_eq!(net.nodes[1].events.iter().filter(|e| over(e)).count(), 1);
    net.cut(0, 1);
    net.connect(0, 1);
    net.settle();
    net.assert_equal("heard again");
    assert_eq!(net.state(1, &lamp()).0["reported"]["on"], true);
}
