//! One schedule: what happens, and in the end what must be true.

use std::collections::{BTreeMap, BTreeSet};

use outpost_shadow::{Limits, OldHome, Rules, ShadowKey, Stamp, Verb};
use serde_json::{Value, json};

use super::model::{Dice, state_of};
use super::support::{Lie, Net};

const TEN_YEARS_MS: i64 = 3_653 * 24 * 3_600_000;
/// No stamp is further ahead of the true time, or its node would be refused by the others.
const AHEAD_MS: u64 = 60_000;

/// What happened, counted.
#[derive(Debug, Default, Clone, Copy)]
pub struct Totals {
    pub accepted: u64,
    pub apart: u64,
    pub refused: u64,
    pub conflicts: u64,
    pub forwarded: u64,
    pub crashes: u64,
    pub collected: u64,
    pub epochs: u64,
    pub moved: u64,
    pub taken_over: u64,
    pub lies: u64,
    pub version_highest: u64,
    pub reads: u64,
}

impl Totals {
    pub fn plus(self, o: Self) -> Self {
        Self {
            accepted: self.accepted + o.accepted,
            apart: self.apart + o.apart,
            refused: self.refused + o.refused,
            conflicts: self.conflicts + o.conflicts,
            forwarded: self.forwarded + o.forwarded,
            crashes: self.crashes + o.crashes,
            collected: self.collected + o.collected,
            epochs: self.epochs + o.epochs,
            moved: self.moved + o.moved,
            taken_over: self.taken_over + o.taken_over,
            lies: self.lies + o.lies,
            version_highest: self.version_highest.max(o.version_highest),
            reads: self.reads + o.reads,
        }
    }
}

/// What a client asked.
pub struct Asked {
    pub state: Option<Value>,
    pub expects: Option<(u64, Value)>,
    pub answers: u32,
    pub accepted: u32,
}

/// One schedule, and all that was seen in it from outside.
pub struct Run {
    pub seed: u64,
    pub net: Net,
    pub dice: Dice,
    pub strict: bool,
    /// The node whose wall clock may say anything.
    pub liar: Option<usize>,
    pub keys: Vec<ShadowKey>,
    pub asked: Vec<Asked>,
    /// (key, version) → the one state it may stand for.
    pub meaning: BTreeMap<(ShadowKey, u64), Value>,
    /// (node, key) → the last version and state it published.
    pub last: BTreeMap<(usize, ShadowKey), (u64, Value)>,
    /// (node, key, version) whose documents were published.
    pub shown: BTreeSet<(usize, ShadowKey, u64)>,
    /// (node, key) → version and state of a delta whose documents are still to come.
    pub delta: BTreeMap<(usize, ShadowKey), (u64, Value)>,
    /// (key, version) → index of the request that made it.
    pub made: BTreeMap<(ShadowKey, u64), usize>,
    pub stamps: BTreeMap<(ShadowKey, u64), Stamp>,
    pub read: Vec<(ShadowKey, u64, Value)>,
    pub totals: Totals,
}

/// Plays the schedule of a seed. Panics when something is not as it must be.
pub fn run(seed: u64) -> Totals {
    let mut dice = Dice::new(seed);
    let hot_shadows_max = dice.pick(3);
    let limits = Limits { rebase_changes: 3, hot_shadows_max, ..Limits::default() };
    let nodes = 2 + dice.pick(3);
    let strict = dice.below(3) == 0;
    let liar = (dice.below(2) == 0).then(|| dice.pick(nodes));
    let rules = Rules { strict, ..Rules::default() };
    let keys = vec![ShadowKey::classic("lamp"), ShadowKey::named("lamp", "cfg")];
    let mut run = Run {
        seed,
        net: Net::meshed_with_rules(nodes, &limits, &rules),
        dice,
        strict,
        liar,
        keys,
        asked: vec![],
        meaning: BTreeMap::new(),
        last: BTreeMap::new(),
        shown: BTreeSet::new(),
        delta: BTreeMap::new(),
        made: BTreeMap::new(),
        stamps: BTreeMap::new(),
        read: vec![],
        totals: Totals::default(),
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
        if !super::QUIET.get() {
            eprintln!("schedule with seed {seed} failed");
        }
        std::panic::resume_unwind(panic)
    })
}

impl Run {
    fn step(&mut self) {
        let nodes = self.net.nodes.len();
        let (node, other) = (self.dice.pick(nodes), self.dice.pick(nodes));
        self.net.now_ms += self.dice.below(1_000);
        match self.dice.below(45) {
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
                self.totals.collected += self.net.nodes[node].hub.stats().tombstones_collected;
                self.totals.crashes += 1;
                self.net.crash(node);
            }
            35 => self.net.nodes[node].skew_ms = self.dice.below(6_000) as i64 - 3_000,
            36 => {
                self.net.now_ms += 3_000;
                self.net.tick(node);
            }
            37 => {
                let (key, home, now) = (self.key(), self.net.nodes[other].id, self.net.now(node));
                self.totals.moved += 1;
                self.net.nodes[node].hub.set_home(key, home, now);
                self.net.drain(node);
            }
            38 => self.net.settle(),
            39 => {
                self.net.now_ms += 61_000;
                (0..nodes).for_each(|node| self.net.tick(node));
            }
            40 => {
                let key = self.key();
                self.net.device_here(node, &key);
            }
            41 => {
                let key = self.key();
                self.net.take_over(node, &key, OldHome::MayReturn);
            }
            42..=43 => self.lie(),
            44 => self.net.nodes[node].hub.rest(),
            _ => {}
        }
    }

    /// The clock of one node goes wrong, or right again.
    fn lie(&mut self) {
        let Some(liar) = self.liar else { return };
        self.totals.lies += 1;
        let now_ms = self.net.now_ms;
        self.net.nodes[liar].lie = match self.dice.below(6) {
            0 => Lie::None,
            1 => Lie::Fast(now_ms),
            2 => Lie::Off(-TEN_YEARS_MS),
            3 if self.seed.is_multiple_of(2) => {
                self.totals.crashes += 1;
                self.net.nodes[liar].lie = Lie::Off(-(now_ms as i64));
                self.net.crash(liar);
                return;
            }
            _ => Lie::Off(TEN_YEARS_MS),
        };
        self.net.tick(liar);
        if self.dice.below(2) == 0 {
            self.net.now_ms += 61_000;
            self.net.tick(liar);
        }
    }

    fn key(&mut self) -> ShadowKey {
        let index = self.dice.pick(self.keys.len());
        self.keys[index].clone()
    }

    fn update(&mut self, node: usize, read: Option<(ShadowKey, u64, Value)>) {
        let state = self.dice.state();
        let key = read.as_ref().map_or_else(|| self.key(), |(key, _, _)| key.clone());
        let mut body = json!({ "state": state });
        if let Some((_, version, _)) = &read {
            body["version"] = (*version).into();
        }
        let expects = read.map(|(_, version, state)| (version, state));
        self.ask(node, &key, Verb::Update, body, Some(state), expects);
    }

    fn conditional_update(&mut self, node: usize) {
        if !self.read.is_empty() {
            let index = self.dice.pick(self.read.len());
            let read = self.read[index].clone();
            self.update(node, Some(read));
        }
    }

    fn delete(&mut self, node: usize) {
        let key = self.key();
        self.ask(node, &key, Verb::Delete, json!({}), None, None);
    }

    fn ask(
        &mut self,
        node: usize,
        key: &ShadowKey,
        verb: Verb,
        mut body: Value,
        state: Option<Value>,
        expects: Option<(u64, Value)>,
    ) {
        let token = self.asked.len();
        body["clientToken"] = token.to_string().into();
        self.asked.push(Asked { state, expects, answers: 0, accepted: 0 });
        self.net.ask(node, key, verb, body.to_string().as_bytes(), Some(token as u64));
    }

    fn get(&mut self, node: usize) {
        let key = self.key();
        self.net.ask(node, &key, Verb::Get, b"", None);
    }

    /// Everything can talk again, and has time to.
    fn heal(&mut self) {
        for _ in 0..2 {
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
        for node in &self.net.nodes {
            let latest_ms = node.hub.hlc_floor().ms();
            assert!(latest_ms <= self.net.now_ms + AHEAD_MS, "a node was dragged along by a clock");
        }
        for key in &self.keys {
            let expected = state_of(&self.written(key));
            for node in 0..self.net.nodes.len() {
                let (state, _) = self.net.state(node, key);
                assert_eq!(
                    state, expected,
                    "node {node}, {key:?}: not what the accepted writes give in stamp order"
                );
                let shown = self.last.get(&(node, key.clone())).map(|(_, state)| state);
                assert!(
                    state.is_null() || shown == Some(&state),
                    "node {node}, {key:?}: the state was not published, but {shown:?}"
                );
            }
        }
        self.count();
        self.totals
    }

    /// The accepted writes of a shadow by stamp.
    fn written(&self, key: &ShadowKey) -> BTreeMap<Stamp, Option<Value>> {
        let mine = self.stamps.iter().filter(|((of, _), _)| of == key);
        mine.map(|(made, stamp)| {
            // A delete that was forwarded names its version only in its answer, which may have been lost.
            let state = self.made.get(made).and_then(|token| self.asked[*token].state.clone());
            (*stamp, state)
        })
        .collect()
    }

    fn count(&mut self) {
        let totals = &mut self.totals;
        for node in &self.net.nodes {
            let stats = node.hub.stats();
            totals.accepted += stats.accepted;
            totals.apart += stats.apart;
            totals.refused += stats.rejected;
            totals.conflicts += stats.conflicts;
            totals.forwarded += stats.forwarded;
            totals.collected += stats.tombstones_collected;
            totals.epochs += stats.epochs;
            totals.reads += stats.reads;
        }
        let highest = self.meaning.keys().map(|(_, version)| *version).max();
        totals.version_highest = highest.unwrap_or(0);
    }
}
