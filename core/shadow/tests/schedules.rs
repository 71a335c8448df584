//! Random schedules: 2 to 4 hubs, partitions, links that lose what was on them, crashes that lose what was not synced,
//! clocks three seconds apart, epochs of three changes, homes that move, tombstones that are collected.
//!
//! Checked in each: after the heal all hubs have one fingerprint (state, version, automerge heads), the state is what
//! the accepted writes give on a plain JSON tree in stamp order, no version number was ever seen for two states, the
//! versions a node publishes grow, a conditional update was only accepted on the state its client had read, and
//! nothing was accepted twice.
//!
//! Mutations tried by hand, each against the default 2,000 schedules. Five make the test fail: slots that take the
//! owner's version numbers (seed 1); a merge that only takes the higher number (seed 1); late writes not replayed across
//! epochs (seed 85); a later ancestor that does not win over a leaf (seed 4); answers that leave before the disk
//! (seed 4). Two survive it and have unit tests of their own instead: gaps in a feed that are not noticed (`peer.rs`),
//! and wiped-out writes that are not marked as such (`desired.rs`).
//!
//! `SHADOW_SCHEDULES=100000 SHADOW_SEED=1 cargo test -p outpost-shadow --test schedules` runs more, from a seed.

mod support;

use std::collections::BTreeMap;

use outpost_shadow::{Event, Limits, ShadowKey, Stamp, Verb};
use serde_json::{Map, Value, json};
use support::Net;

/// How many schedules run by default.
const SCHEDULES: u64 = 2_000;

#[test]
fn every_schedule_converges_and_loses_nothing_that_was_accepted() {
    let count = number("SHADOW_SCHEDULES", SCHEDULES);
    let first = number("SHADOW_SEED", 1);
    let workers = 2;
    let totals: Vec<Totals> = std::thread::scope(|scope| {
        let run = |worker| {
            move || {
                (first..first + count)
                    .filter(|seed| seed % workers == worker)
                    .fold(Totals::default(), |t, seed| t.plus(run(seed)))
            }
        };
        let handles: Vec<_> = (0..workers).map(|worker| scope.spawn(run(worker))).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().expect("a schedule failed, see its seed above"))
            .collect()
    });
    let all = totals.into_iter().fold(Totals::default(), Totals::plus);
    println!("{count} schedules: {all:?}");
    if count >= SCHEDULES {
        assert!(
            all.accepted > count
                && all.conflicts > count / 2
                && all.refused > count / 20
                && all.crashes > count / 2
        );
        assert!(all.epochs > count / 2 && all.collected > count / 20 && all.forwarded > count);
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    accepted: u64,
    apart: u64,
    refused: u64,
    conflicts: u64,
    forwarded: u64,
    crashes: u64,
    collected: u64,
    epochs: u64,
    version_highest: u64,
}

impl Totals {
    fn plus(self, o: Self) -> Self {
        Self {
            accepted: self.accepted + o.accepted,
            apart: self.apart + o.apart,
            refused: self.refused + o.refused,
            conflicts: self.conflicts + o.conflicts,
            forwarded: self.forwarded + o.forwarded,
            crashes: self.crashes + o.crashes,
            collected: self.collected + o.collected,
            epochs: self.epochs + o.epochs,
            version_highest: self.version_highest.max(o.version_highest),
        }
    }
}

/// xorshift64*: a schedule is its seed.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
    fn pick(&mut self, limit: usize) -> usize {
        self.below(limit as u64) as usize
    }
    fn value(&mut self, depth: u32) -> Value {
        match self.below(8) {
            0 | 1 => Value::Null,
            2 => json!([self.below(3), self.below(3)]),
            3 | 4 if depth < 3 => self.patch(depth + 1),
            _ => json!(self.below(50)),
        }
    }
    fn patch(&mut self, depth: u32) -> Value {
        let mut fields = Map::new();
        for _ in 0..=self.below(2) {
            let key = ["color", "mode", "temp"][self.pick(3)];
            fields.insert(key.to_owned(), self.value(depth));
        }
        Value::Object(fields)
    }
    fn state(&mut self) -> Value {
        match self.below(30) {
            0 => Value::Null,
            1 => json!({ "desired": null }),
            2..=18 => json!({ "desired": self.patch(0) }),
            19..=26 => json!({ "reported": self.patch(0) }),
            _ => json!({ "desired": self.patch(0), "reported": self.patch(0) }),
        }
    }
}

/// What a client asked.
struct Asked {
    state: Option<Value>,
    expects: Option<(u64, Value)>,
    answers: u32,
}

/// One schedule, and all that was seen in it from outside.
struct Run {
    seed: u64,
    net: Net,
    dice: Dice,
    keys: Vec<ShadowKey>,
    asked: Vec<Asked>,
    /// (key, version) → the one state it may stand for.
    meaning: BTreeMap<(ShadowKey, u64), Value>,
    /// (node, key) → the last version it published.
    last: BTreeMap<(usize, ShadowKey), u64>,
    /// key → stamp → what was written (`None`: deleted).
    written: BTreeMap<ShadowKey, BTreeMap<Stamp, Option<Value>>>,
    /// (key, version) → index of the request that made it.
    made: BTreeMap<(ShadowKey, u64), usize>,
    stamps: BTreeMap<(ShadowKey, u64), Stamp>,
    read: Vec<(ShadowKey, u64, Value)>,
    crashes: u64,
    collected: u64,
}

fn run(seed: u64) -> Totals {
    let mut dice = Dice::new(seed);
    let limits = Limits { rebase_changes: 3, ..Limits::default() };
    let nodes = 2 + dice.pick(3);
    let keys = vec![ShadowKey::classic("lamp"), ShadowKey::named("lamp", "cfg")];
    let mut run = Run {
        seed,
        net: Net::meshed(nodes, &limits),
        dice,
        keys,
        asked: vec![],
        meaning: BTreeMap::new(),
        last: BTreeMap::new(),
        written: BTreeMap::new(),
        made: BTreeMap::new(),
        stamps: BTreeMap::new(),
        read: vec![],
        crashes: 0,
        collected: 0,
    };
    let hook = std::panic::AssertUnwindSafe(|| {
        for _ in 0..20 + run.dice.below(50) {
            run.step();
            run.observe();
        }
        run.heal();
        run.check()
    });
    std::panic::catch_unwind(hook).unwrap_or_else(|panic| {
        eprintln!("schedule with seed {seed} failed");
        std::panic::resume_unwind(panic)
    })
}

impl Run {
    fn step(&mut self) {
        let nodes = self.net.nodes.len();
        let (node, other) = (self.dice.pick(nodes), self.dice.pick(nodes));
        self.net.now_ms += self.dice.below(1_000);
        match self.dice.below(40) {
            0..=9 => self.update(node, None),
            10..=11 => self.conditional_update(node),
            12 => self.delete(node),
            13..=14 => self.get(node),
            15..=22 => {
                for _ in 0..=self.dice.below(4) {
                    self.net.deliver_one(other, node);
                }
            }
            23..=29 => {
                for _ in 0..=self.dice.below(4) {
                    self.net.sync_one(node);
                }
            }
            30 if node != other => self.net.cut(node, other),
            31 if node != other => self.net.connect(node, other),
            32 => self.net.connect_all(),
            33 => {
                for other in (0..nodes).filter(|other| *other != node) {
                    self.net.cut(node, other);
                }
            }
            34 if self.seed.is_multiple_of(2) => {
                self.collected += self.net.nodes[node].hub.stats().tombstones_collected;
                self.crashes += 1;
                self.net.crash(node);
            }
            35 => self.net.nodes[node].skew_ms = self.dice.below(6_000) as i64 - 3_000,
            36 => {
                self.net.now_ms += 3_000;
                self.net.tick(node);
            }
            37 => {
                let (key, home, now) = (self.key(), self.net.nodes[other].id, self.net.now(node));
                self.net.nodes[node].hub.set_home(key, home, now);
                self.net.drain(node);
            }
            38 => self.net.settle(),
            39 => {
                self.net.now_ms += 61_000;
                (0..nodes).for_each(|node| self.net.tick(node));
            }
            _ => {}
        }
    }

    fn key(&mut self) -> ShadowKey {
        let index = self.dice.pick(self.keys.len());
        self.keys[index].clone()
    }

    fn update(&mut self, node: usize, read: Option<(ShadowKey, u64, Value)>) {
        let state = self.dice.state();
        let key = read.as_ref().map_or_else(|| self.key(), |(key, _, _)| key.clone());
        let token = self.asked.len();
        let mut body = json!({ "state": state, "clientToken": token.to_string() });
        if let Some((_, version, _)) = &read {
            body["version"] = (*version).into();
        }
        self.asked.push(Asked {
            state: Some(state),
            expects: read.map(|(_, version, state)| (version, state)),
            answers: 0,
        });
        self.net.ask(node, &key, Verb::Update, body.to_string().as_bytes(), Some(token as u64));
    }

    fn conditional_update(&mut self, node: usize) {
        if !self.read.is_empty() {
            let index = self.dice.pick(self.read.len());
            let read = self.read[index].clone();
            self.update(node, Some(read));
        }
    }

    fn delete(&mut self, node: usize) {
        let (key, token) = (self.key(), self.asked.len());
        self.asked.push(Asked { state: None, expects: None, answers: 0 });
        let body = json!({ "clientToken": token.to_string() }).to_string();
        self.net.ask(node, &key, Verb::Delete, body.as_bytes(), Some(token as u64));
    }

    fn get(&mut self, node: usize) {
        let key = self.key();
        self.net.ask(node, &key, Verb::Get, b"", None);
    }

    /// Looks at everything that left the hubs since the last look.
    fn observe(&mut self) {
        for node in 0..self.net.nodes.len() {
            for event in std::mem::take(&mut self.net.nodes[node].events) {
                if let Event::Written { key, version, stamp, .. } = event {
                    let before = self.stamps.insert((key, version), stamp);
                    assert!(before.is_none(), "one version for two writes");
                }
            }
            for (topic, message) in std::mem::take(&mut self.net.nodes[node].published) {
                let key = self.keys[usize::from(topic.contains("/name/"))].clone();
                let tail = topic.trim_start_matches(&key.topic(""));
                self.observe_message(node, &key, tail, &message);
            }
            for (id, _, _) in std::mem::take(&mut self.net.nodes[node].replies) {
                let asked = &mut self.asked[id as usize];
                asked.answers += 1;
                assert_eq!(asked.answers, 1, "a request was answered twice");
            }
        }
    }

    fn observe_message(&mut self, node: usize, key: &ShadowKey, kind: &str, message: &Value) {
        match kind {
            "update/documents" => self.observe_documents(node, key, message),
            "get/accepted" => {
                let mut state = message["state"].clone();
                state.as_object_mut().expect("an object").remove("delta");
                let version = message["version"].as_u64().expect("a version");
                self.mean(key, version, &state);
                self.read.push((key.clone(), version, state));
            }
            "delete/accepted" => {
                let version = message["version"].as_u64().expect("a version");
                self.mean(key, version, &Value::Null);
                let token: usize = message["clientToken"]
                    .as_str()
                    .and_then(|t| t.parse().ok())
                    .expect("our token");
                self.made.insert((key.clone(), version), token);
            }
            _ => {}
        }
    }

    fn observe_documents(&mut self, node: usize, key: &ShadowKey, message: &Value) {
        let current = &message["current"];
        let version = current["version"].as_u64().expect("a version");
        let last = self.last.insert((node, key.clone()), version).unwrap_or(0);
        assert!(version > last, "node {node} published version {version} after {last}");
        // A merge that leaves the shadow deleted publishes an empty document, as get answers 404.
        self.mean(key, version, &current["state"]);
        let Some(token) = message["clientToken"].as_str() else { return };
        let token: usize = token.parse().expect("our token");
        self.made.insert((key.clone(), version), token);
        if let Some((expected_version, expected_state)) = &self.asked[token].expects {
            assert_eq!(
                message["previous"]["version"].as_u64(),
                Some(*expected_version),
                "another version than was read"
            );
            assert_eq!(
                message["previous"]["state"], *expected_state,
                "another state than was read"
            );
        }
    }

    fn mean(&mut self, key: &ShadowKey, version: u64, state: &Value) {
        let state =
            if state.as_object().is_some_and(Map::is_empty) { Value::Null } else { state.clone() };
        let known = self.meaning.entry((key.clone(), version)).or_insert_with(|| state.clone());
        assert_eq!(*known, state, "version {version} of {key:?} stands for two states");
    }

    /// Everything can talk again, and has time to.
    fn heal(&mut self) {
        for _ in 0..4 {
            self.net.connect_all();
            self.net.settle();
            self.observe();
            self.net.now_ms += 61_000;
            (0..self.net.nodes.len()).for_each(|node| self.net.tick(node));
            self.net.settle();
            self.observe();
        }
    }

    fn check(mut self) -> Totals {
        self.net.assert_equal("after the heal");
        for ((key, version), stamp) in &self.stamps {
            // A delete that was forwarded names its version only in its answer, which may have been lost.
            let state = self
                .made
                .get(&(key.clone(), *version))
                .and_then(|token| self.asked[*token].state.clone());
            self.written.entry(key.clone()).or_default().insert(*stamp, state);
        }
        for key in &self.keys {
            let none = BTreeMap::new();
            let expected = model(self.written.get(key).unwrap_or(&none));
            for node in 0..self.net.nodes.len() {
                let (state, _) = self.net.state(node, key);
                assert_eq!(
                    state, expected,
                    "node {node}, {key:?}: not what the accepted writes give in stamp order"
                );
            }
        }
        self.totals()
    }

    fn totals(&self) -> Totals {
        let mut totals =
            Totals { crashes: self.crashes, collected: self.collected, ..Totals::default() };
        for node in &self.net.nodes {
            let stats = node.hub.stats();
            totals.accepted += stats.accepted;
            totals.apart += stats.apart;
            totals.refused += stats.rejected;
            totals.conflicts += stats.conflicts;
            totals.forwarded += stats.forwarded;
            totals.collected += stats.tombstones_collected;
            totals.epochs += stats.epochs;
        }
        totals.version_highest =
            self.meaning.keys().map(|(_, version)| *version).max().unwrap_or(0);
        totals
    }
}

/// The specification: writes in stamp order on a plain JSON tree. `desired` is ordered without the home's term.
fn model(written: &BTreeMap<Stamp, Option<Value>>) -> Value {
    let plain = |stamp: &Stamp| stamp.with_term(0);
    let touched =
        written.iter().filter(|(_, state)| state.is_some()).map(|(stamp, _)| plain(stamp)).max();
    let deleted =
        written.iter().filter(|(_, state)| state.is_none()).map(|(stamp, _)| plain(stamp)).max();
    if touched <= deleted {
        return Value::Null;
    }
    let mut root = json!({ "desired": {}, "reported": {} });
    for (section, keep_term) in [("desired", false), ("reported", true)] {
        let mut order: Vec<(Stamp, &Option<Value>)> =
            written.iter().map(|(s, w)| (if keep_term { *s } else { plain(s) }, w)).collect();
        order.sort_by_key(|(stamp, _)| *stamp);
        for (_, state) in order {
            match state {
                None | Some(Value::Null) => root[section] = json!({}),
                Some(state) => {
                    if let Some(patch) = state.get(section) {
                        apply(&mut root[section], patch);
                    }
                }
            }
        }
    }
    prune(&mut root);
    root
}

fn apply(place: &mut Value, patch: &Value) {
    match patch {
        Value::Null => *place = json!({}),
        Value::Object(fields) => {
            for (key, value) in fields {
                if !place.is_object() {
                    *place = json!({});
                }
                let object = place.as_object_mut().expect("made one");
                if value.is_null() {
                    object.remove(key);
                } else {
                    apply(object.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        value => *place = value.clone(),
    }
}

/// Empty objects do not exist.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|_, value| value.as_object().is_none_or(|fields| !fields.is_empty()));
    }
}
