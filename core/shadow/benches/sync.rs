//! What does it cost two nodes to agree again? Expected: with a live place in each other's feed at most twice what a code
//! that knows everything would need; with a void one at most 2.5 % of all documents as JSON; and 100,000 shadows in 2 s of
//! CPU, both sides together.
//!
//! `cargo bench -p outpost-shadow --bench sync` prints it for 10,000 and 100,000 shadows (`SHADOWS=10000` for one size), of
//! which 1 % changed apart: 45 % on one side, 45 % on the other, 10 % on both, 1 to 3 leaves each. A shadow has 4 leaves in
//! `desired` and 6 in `reported`. automerge's own sync runs over the same documents; its figures are of 1,000 documents,
//! times what is left. Bytes are both directions, without QUIC's. CPU is this thread's, both sides together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use automerge::sync::{State, SyncDoc};
use automerge::transaction::Transactable;
use automerge::{ActorId, AutoCommit, ROOT};
use outpost_model::{Hlc, NodeId, Now};
use outpost_shadow::{Effect, Hub, HubConfig, Limits, Output, Rules, ShadowKey, Verb};
use serde_json::{Value, json};

/// Writes each shadow has seen before, besides the one that made it.
const WRITES_BEFORE: usize = 10;
/// Documents automerge is measured with.
const DOCUMENTS: usize = 1_000;

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    let sizes = match std::env::var("SHADOWS").ok().and_then(|text| text.parse().ok()) {
        Some(size) => vec![size],
        None => vec![10_000, 100_000],
    };
    for shadows in sizes {
        for desired_percent in [0, 20] {
            println!(
                "\n{shadows} shadows, 1 % changed apart, {desired_percent} % of the writes in desired"
            );
            measure(shadows, desired_percent);
        }
    }
}

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn measure(shadows: usize, desired_percent: u64) {
    let mut pair = Pair::new(shadows);
    pair.populate(shadows, if shadows > 20_000 { 2 } else { WRITES_BEFORE });
    let all = pair.take("a new node gets all of it");
    let json = pair.json_bytes(0);
    let row = |what: &str, bytes: usize, ms: f64, bound: usize| {
        let times = bytes as f64 / bound.max(1) as f64;
        let percent = 100.0 * bytes as f64 / json as f64;
        println!(
            "{what:<44} {bytes:>12} B {times:>9.2} x bound {percent:>8.3} % of JSON {ms:>9.1} ms CPU"
        );
    };
    let mut bound = 0;
    for (what, lost) in
        [("live places in the feeds", false), ("void places: sketch, then what differs", true)]
    {
        pair.cut();
        if lost {
            pair.forget();
        }
        bound = pair.change_apart(shadows, desired_percent);
        let start = cpu_ms();
        pair.connect();
        pair.settle();
        let ms = cpu_ms() - start;
        assert_eq!(pair.hubs[0].fingerprint(), pair.hubs[1].fingerprint(), "they agree");
        row(what, pair.take_bytes(), ms, bound);
    }
    pair.cut();
    pair.forget();
    let start = cpu_ms();
    pair.connect();
    pair.settle();
    let ms = cpu_ms() - start;
    row("void places, nothing differs", pair.take_bytes(), ms, bound);
    row("lower bound: ids, leaf numbers, values", bound, 0.0, bound);
    row("all documents as JSON", json, 0.0, bound);
    row(all.0, all.1, all.2, bound);
    let scale = shadows as f64 / DOCUMENTS as f64;
    let scaled = |(bytes, ms): (usize, f64)| ((bytes as f64 * scale) as usize, ms * scale);
    let (lost, kept) = automerge();
    let (bytes, ms) = scaled(lost);
    row("automerge's sync, states lost", bytes, ms, bound);
    let (bytes, ms) = scaled(kept);
    row("automerge's sync, states kept, changed known", bytes, ms, bound);
}

/// Two hubs and what is on its way between them.
struct Pair {
    hubs: Vec<Hub>,
    wire: [VecDeque<Vec<u8>>; 2],
    bytes: usize,
    now_ms: u64,
    dice: u64,
    up: bool,
    populated_ms: f64,
}

impl Pair {
    fn new(shadows: usize) -> Self {
        let limits = Limits { shadows_max: shadows + 1, ..Limits::default() };
        let hub = |n: u64| {
            let node_name = format!("node-{n}");
            let node = NodeId::from_name(&node_name);
            let config = HubConfig {
                node,
                node_name,
                limits: limits.clone(),
                hlc_ahead_ms_max: 60_000,
                rules: Rules::default(),
            };
            Hub::new(config, n + 1, Hlc::default())
        };
        let (hubs, wire) = (vec![hub(0), hub(1)], Default::default());
        Self {
            hubs,
            wire,
            bytes: 0,
            now_ms: 1_700_000_000_000,
            dice: 7,
            up: false,
            populated_ms: 0.0,
        }
    }

    fn populate(&mut self, shadows: usize, before: usize) {
        for n in 0..shadows {
            let whole = json!({
                "desired": leaves(0..4, self.below(100_000)),
                "reported": leaves(0..6, self.below(100_000)),
            });
            self.write(0, n, &whole);
            for _ in 0..before {
                let patch = self.patch("reported").0;
                self.write(0, n, &patch);
            }
        }
        let start = cpu_ms();
        self.connect();
        self.settle();
        self.populated_ms = cpu_ms() - start;
    }

    /// Changes one in a hundred; gives back the bytes nobody can do without.
    fn change_apart(&mut self, shadows: usize, desired_percent: u64) -> usize {
        let mut chosen = BTreeSet::new();
        while chosen.len() < shadows / 100 {
            chosen.insert(self.below(shadows as u64) as usize);
        }
        let mut bound = 0;
        for (at, n) in chosen.into_iter().enumerate() {
            let sides = match at % 20 {
                0..=8 => vec![0],
                9..=17 => vec![1],
                _ => vec![0, 1],
            };
            bound += 12;
            for side in sides {
                let section =
                    if self.below(100) < desired_percent { "desired" } else { "reported" };
                let (patch, bytes) = self.patch(section);
                bound += bytes;
                self.write(side, n, &patch);
            }
        }
        bound
    }

    /// 1 to 3 leaves, and their values' bytes and one for the number of each.
    fn patch(&mut self, section: &str) -> (Value, usize) {
        let first = self.below(3);
        let value = self.below(100_000);
        let fields = leaves(first..first + 1 + self.below(3), value);
        let bytes =
            fields.as_object().expect("fields").values().map(|v| v.to_string().len() + 1).sum();
        (json!({ section: fields }), bytes)
    }

    fn write(&mut self, side: usize, n: usize, state: &Value) {
        self.now_ms += 3;
        let request = json!({ "state": state }).to_string();
        let now = self.now();
        self.hubs[side].handle_request(key(n), Verb::Update, request.as_bytes(), now);
        self.drain(side);
    }

    fn connect(&mut self) {
        self.up = true;
        for side in 0..2 {
            let (peer, now) = (Self::node(1 - side), self.now());
            self.hubs[side].peer_up(peer, now);
            self.drain(side);
        }
    }

    fn cut(&mut self) {
        self.up = false;
        self.now_ms += 60_000;
        for side in 0..2 {
            let (peer, now) = (Self::node(1 - side), self.now());
            self.hubs[side].peer_down(peer, now);
            self.drain(side);
        }
        self.wire = Default::default();
        self.bytes = 0;
    }

    fn forget(&mut self) {
        for side in 0..2 {
            let (peer, now) = (Self::node(1 - side), self.now());
            self.hubs[side].forget_peer(peer, now);
            self.drain(side);
        }
    }

    /// A disk that is never slow: what depends on it leaves at once.
    fn drain(&mut self, side: usize) {
        while let Some(effect) = self.hubs[side].poll_effect() {
            let outputs = match effect {
                Effect::Commit { then, .. } => then,
                Effect::Now(output) => vec![output],
            };
            for output in outputs {
                if let Output::ToPeer { frame, .. } = output
                    && self.up
                {
                    self.bytes += frame.len();
                    self.wire[side].push_back(frame);
                }
            }
        }
    }

    fn settle(&mut self) {
        while let Some(side) = (0..2).find(|side| !self.wire[*side].is_empty()) {
            let frame = self.wire[side].pop_front().expect("just seen");
            let (peer, now) = (Self::node(side), self.now());
            self.hubs[1 - side].handle_peer_frame(peer, &frame, now).expect("an honest frame");
            self.drain(1 - side);
        }
    }

    fn take(&mut self, what: &'static str) -> (&'static str, usize, f64) {
        (what, self.take_bytes(), self.populated_ms)
    }

    fn take_bytes(&mut self) -> usize {
        std::mem::take(&mut self.bytes)
    }

    /// The state of each shadow as compact JSON, without metadata.
    fn json_bytes(&self, side: usize) -> usize {
        let keys = self.hubs[side].list("", None, usize::MAX);
        let state = |key: &ShadowKey| {
            let bytes = self.hubs[side].document(key, self.now()).expect("it exists");
            let mut document: Value = serde_json::from_slice(&bytes).expect("a document is JSON");
            if let Some(fields) = document["state"].as_object_mut() {
                fields.remove("delta");
            }
            document["state"].to_string().len()
        };
        keys.iter().map(state).sum()
    }

    fn node(side: usize) -> NodeId {
        NodeId::from_name(&format!("node-{side}"))
    }

    fn now(&self) -> Now {
        Now { mono_ms: self.now_ms, wall_ms: self.now_ms }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % limit
    }
}

fn key(n: usize) -> ShadowKey {
    ShadowKey::classic(&format!("dev-{n:08}"))
}

/// Names as devices have them, and values of 3 to 5 bytes.
fn leaves(which: std::ops::Range<u64>, value: u64) -> Value {
    let names = ["temperature", "humidity", "battery", "mode", "firmware", "uptime"];
    which.map(|n| (names[n as usize % 6].to_owned(), json!(value / (n + 1)))).collect()
}

/// Bytes and milliseconds: with the sync states lost, and with them kept and only what changed asked.
fn automerge() -> ((usize, f64), (usize, f64)) {
    let mut pairs: Vec<(AutoCommit, AutoCommit)> = (0..DOCUMENTS).map(|_| documents()).collect();
    let mut states: BTreeMap<usize, (State, State)> = BTreeMap::new();
    for (n, pair) in pairs.iter_mut().enumerate() {
        sync(pair, states.entry(n).or_default());
    }
    let changed = |round: usize| (round..DOCUMENTS).step_by(100);
    let change = |pairs: &mut Vec<(AutoCommit, AutoCommit)>, n: usize, value: i64| {
        for name in ["temperature", "humidity"] {
            if value % 2 == 0 {
                pairs[n].0.put(ROOT, name, value).expect("a root value");
            } else {
                pairs[n].1.put(ROOT, name, value).expect("a root value");
            }
        }
    };
    changed(1).for_each(|n| change(&mut pairs, n, 1_000 + n as i64));
    let start = cpu_ms();
    let kept: usize =
        changed(1).map(|n| sync(&mut pairs[n], states.get_mut(&n).expect("made above"))).sum();
    let kept = (kept, cpu_ms() - start);
    changed(2).for_each(|n| change(&mut pairs, n, 2_000 + n as i64));
    let start = cpu_ms();
    let lost = pairs.iter_mut().map(|pair| sync(pair, &mut Default::default())).sum();
    ((lost, cpu_ms() - start), kept)
}

/// One document as two nodes have it, before they have met.
fn documents() -> (AutoCommit, AutoCommit) {
    let mut here = AutoCommit::new().with_actor(ActorId::from([1; 16]));
    let names = ["temperature", "humidity", "battery", "mode", "firmware", "uptime"];
    for (at, name) in names.iter().enumerate() {
        here.put(ROOT, *name, at as i64 * 997).expect("a root value");
        here.put(ROOT, format!("wanted/{name}"), at as i64 * 991).expect("a root value");
    }
    here.commit();
    for n in 0..WRITES_BEFORE {
        here.put(ROOT, names[n % 6], n as i64 * 1_009).expect("a root value");
        here.commit();
    }
    (here, AutoCommit::new().with_actor(ActorId::from([2; 16])))
}

/// Until both have nothing to say; the bytes that were said.
fn sync(pair: &mut (AutoCommit, AutoCommit), states: &mut (State, State)) -> usize {
    let mut bytes = 0;
    loop {
        let there = pair.0.sync().generate_sync_message(&mut states.0);
        let back = pair.1.sync().generate_sync_message(&mut states.1);
        if there.is_none() && back.is_none() {
            return bytes;
        }
        if let Some(message) = there {
            bytes += message.clone().encode().len();
            pair.1.sync().receive_sync_message(&mut states.1, message).expect("own message");
        }
        if let Some(message) = back {
            bytes += message.clone().encode().len();
            pair.0.sync().receive_sync_message(&mut states.0, message).expect("own message");
        }
    }
}

/// What this thread has used so far.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns: f64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
    ns / 1e6
}
