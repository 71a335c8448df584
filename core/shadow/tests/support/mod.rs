//! A few hubs on virtual disks and links, under a virtual clock. Nothing happens unless a test says so.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod hostile;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use outpost_model::{Hlc, NodeId, Now};
use outpost_shadow::{
    Effect, Event, Hub, HubConfig, Limits, OldHome, Output, Rules, ShadowKey, Verb,
};
use serde_json::Value;

pub type Rows = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// What is durable. Its clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Contents>>);

/// All rows.
pub type Contents = BTreeMap<Vec<u8>, Vec<u8>>;

impl Disk {
    pub fn rows(&self) -> MutexGuard<'_, Contents> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl outpost_shadow::Rows for Disk {
    fn read(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.rows().get(key).cloned()
    }
}

/// One node: a hub, its disk, and what waits to reach that disk.
pub struct Node {
    pub id: NodeId,
    pub hub: Hub,
    pub disk: Disk,
    pub waiting: VecDeque<(u64, Rows, Vec<Output>)>,
    pub published: Vec<(String, Value)>,
    pub replies: Vec<(u64, u16, Value)>,
    pub events: Vec<Event>,
    pub skew_ms: i64,
    pub lie: Lie,
    limits: Limits,
    rules: Rules,
}

impl Node {
    /// A hub with what the disk has.
    fn fresh(index: usize, limits: &Limits, rules: &Rules, incarnation: u64, disk: &Disk) -> Hub {
        let config = HubConfig { rules: rules.clone(), ..config(index, limits) };
        let mut hub = Hub::new(config, incarnation * 1_000_003, Hlc::default());
        hub.read_rows_from(Box::new(disk.clone()));
        for (key, value) in disk.rows().iter() {
            hub.load_row(key, value).expect("own rows are readable");
        }
        hub
    }
}

/// What a wall clock says that is not so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    None,
    /// So far off.
    Off(i64),
    /// Ten times too fast since a moment.
    Fast(u64),
}

impl Lie {
    fn ms(self, now_ms: u64) -> i64 {
        match self {
            Self::None => 0,
            Self::Off(ms) => ms,
            Self::Fast(since_ms) => 9 * (now_ms - since_ms) as i64,
        }
    }
}

/// Nodes and the links between them. Index = node.
pub struct Net {
    pub nodes: Vec<Node>,
    pub wire: BTreeMap<(usize, usize), VecDeque<Vec<u8>>>,
    pub up: BTreeSet<(usize, usize)>,
    pub now_ms: u64,
    pub frames: Vec<Vec<u8>>,
    incarnations: u64,
}

/// With the limits given, but that few shadows stay in memory unless a test says how many.
pub fn config(index: usize, limits: &Limits) -> HubConfig {
    let node_name = format!("edge-{index}");
    let mut limits = limits.clone();
    if limits.hot_shadows_max == Limits::default().hot_shadows_max {
        limits.hot_shadows_max = 1;
    }
    HubConfig {
        node: NodeId::from_name(&node_name),
        node_name,
        limits,
        hlc_ahead_ms_max: 60_000,
        rules: Rules::default(),
    }
}

impl Net {
    pub fn new(count: usize, limits: &Limits) -> Self {
        Self::with_rules(count, limits, &Rules::default())
    }

    pub fn with_rules(count: usize, limits: &Limits, rules: &Rules) -> Self {
        let mut net = Self {
            nodes: vec![],
            wire: BTreeMap::new(),
            up: BTreeSet::new(),
            now_ms: 1_700_000_000_000,
            frames: vec![],
            incarnations: 0,
        };
        for index in 0..count {
            net.incarnations += 1;
            let disk = Disk::default();
            net.nodes.push(Node {
                id: config(index, limits).node,
                hub: Node::fresh(index, limits, rules, net.incarnations, &disk),
                disk,
                waiting: VecDeque::new(),
                published: vec![],
                replies: vec![],
                events: vec![],
                skew_ms: 0,
                lie: Lie::None,
                limits: limits.clone(),
                rules: rules.clone(),
            });
        }
        net
    }

    /// A net whose nodes have all met and have nothing left to say.
    pub fn meshed(count: usize, limits: &Limits) -> Self {
        Self::meshed_with_rules(count, limits, &Rules::default())
    }

    pub fn meshed_with_rules(count: usize, limits: &Limits, rules: &Rules) -> Self {
        let mut net = Self::with_rules(count, limits, rules);
        net.connect_all();
        net.settle();
        net
    }

    pub fn now(&self, node: usize) -> Now {
        let wall =
            self.now_ms as i64 + self.nodes[node].skew_ms + self.nodes[node].lie.ms(self.now_ms);
        Now { mono_ms: self.now_ms, wall_ms: wall as u64 }
    }

    pub fn connect(&mut self, a: usize, b: usize) {
        if self.up.insert((a.min(b), a.max(b))) {
            for (from, to) in [(a, b), (b, a)] {
                let (now, peer) = (self.now(from), self.nodes[to].id);
                self.nodes[from].hub.peer_up(peer, now);
                self.drain(from);
            }
        }
    }

    pub fn connect_all(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                self.connect(a, b);
            }
        }
    }

    /// The link breaks: what is on it is lost.
    pub fn cut(&mut self, a: usize, b: usize) {
        if self.up.remove(&(a.min(b), a.max(b))) {
            for (from, to) in [(a, b), (b, a)] {
                self.wire.remove(&(from, to));
                let (now, peer) = (self.now(from), self.nodes[to].id);
                self.nodes[from].hub.peer_down(peer, now);
                self.drain(from);
            }
        }
    }

    /// Limits of nodes that start from now on.
    pub fn set_limits(&mut self, limits: &Limits) {
        self.nodes.iter_mut().for_each(|node| node.limits = limits.clone());
    }

    /// The process dies: what was not synced is lost. It starts again from its disk.
    pub fn crash(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            if other != node && self.up.remove(&(node.min(other), node.max(other))) {
                self.wire.remove(&(node, other));
                self.wire.remove(&(other, node));
                let (now, peer) = (self.now(other), self.nodes[node].id);
                self.nodes[other].hub.peer_down(peer, now);
                self.drain(other);
            }
        }
        self.incarnations += 1;
        let this = &mut self.nodes[node];
        this.waiting.clear();
        if let Lie::Fast(since_ms) = &mut this.lie {
            // How far it ran away before cannot be told from how long the machine was off.
            *since_ms = self.now_ms;
        }
        this.hub = Node::fresh(node, &this.limits, &this.rules, self.incarnations, &this.disk);
        self.tick(node);
    }

    pub fn update(&mut self, node: usize, key: &ShadowKey, body: &Value) {
        self.ask(node, key, Verb::Update, body.to_string().as_bytes(), None);
    }

    pub fn ask(
        &mut self,
        node: usize,
        key: &ShadowKey,
        verb: Verb,
        payload: &[u8],
        reply: Option<u64>,
    ) {
        let now = self.now(node);
        let hub = &mut self.nodes[node].hub;
        match reply {
            Some(id) => hub.request(key.clone(), verb, payload, id, now),
            None => hub.handle_request(key.clone(), verb, payload, now),
        }
        self.drain(node);
    }

    /// The device of a shadow speaks at this node.
    pub fn device_here(&mut self, node: usize, key: &ShadowKey) {
        let now = self.now(node);
        self.nodes[node].hub.device_here(key, now);
        self.drain(node);
    }

    /// A person makes this node the home.
    pub fn take_over(&mut self, node: usize, key: &ShadowKey, old: OldHome) -> bool {
        let now = self.now(node);
        let done = self.nodes[node].hub.take_over(key, old, now);
        self.drain(node);
        done
    }

    pub fn tick(&mut self, node: usize) {
        let now = self.now(node);
        self.nodes[node].hub.handle_tick(now);
        self.drain(node);
    }

    /// Collects what the hub wants done.
    pub fn drain(&mut self, node: usize) {
        while let Some(effect) = self.nodes[node].hub.poll_effect() {
            match effect {
                Effect::Commit { number, rows, then } => {
                    self.nodes[node].waiting.push_back((number, rows, then));
                }
                Effect::Now(output) => self.release(node, output),
            }
        }
    }

    /// The oldest batch reaches the disk.
    pub fn sync_one(&mut self, node: usize) -> bool {
        let this = &mut self.nodes[node];
        let Some((number, rows, then)) = this.waiting.pop_front() else { return false };
        for (key, value) in rows {
            match value {
                Some(value) => this.disk.rows().insert(key, value),
                None => this.disk.rows().remove(&key),
            };
        }
        this.hub.synced(number);
        then.into_iter().for_each(|output| self.release(node, output));
        true
    }

    fn release(&mut self, node: usize, output: Output) {
        match output {
            Output::Publish { topic, payload } => {
                let payload = serde_json::from_slice(&payload).expect("hubs publish JSON");
                self.nodes[node].published.push((topic, payload));
            }
            Output::Reply { id, status, body } => {
                let body = serde_json::from_slice(&body).expect("hubs answer JSON");
                self.nodes[node].replies.push((id, status, body));
            }
            Output::Event(event) => self.nodes[node].events.push(event),
            Output::ToPeer { peer, frame } => {
                let to = self.nodes.iter().position(|n| n.id == peer).expect("a known peer");
                if self.up.contains(&(node.min(to), node.max(to))) {
                    self.wire.entry((node, to)).or_default().push_back(frame);
                }
            }
        }
    }

    /// The oldest frame between two nodes arrives.
    pub fn deliver_one(&mut self, from: usize, to: usize) -> bool {
        let Some(frame) = self.wire.get_mut(&(from, to)).and_then(VecDeque::pop_front) else {
            return false;
        };
        self.frames.push(frame.clone());
        let (now, peer) = (self.now(to), self.nodes[from].id);
        self.nodes[to].hub.handle_peer_frame(peer, &frame, now).expect("honest frames are taken");
        self.drain(to);
        true
    }

    /// Syncs and delivers until nothing moves. Panics when that does not end.
    pub fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut moved = false;
            for node in 0..self.nodes.len() {
                moved |= self.sync_one(node);
                for other in 0..self.nodes.len() {
                    moved |= self.deliver_one(node, other);
                }
            }
            if !moved {
                return;
            }
        }
        for frame in self.frames.iter().rev().take(8) {
            eprintln!("{} {:?}", frame.len(), &frame[..frame.len().min(60)]);
        }
        panic!("the hubs never stop talking");
    }

    pub fn document(&self, node: usize, key: &ShadowKey) -> Option<Value> {
        let bytes = self.nodes[node].hub.document(key, self.now(node))?;
        Some(serde_json::from_slice(&bytes).expect("a document is JSON"))
    }

    /// Visible state without delta, and the version.
    pub fn state(&self, node: usize, key: &ShadowKey) -> (Value, u64) {
        match self.document(node, key) {
            None => (Value::Null, 0),
            Some(mut document) => {
                let mut state = document["state"].take();
                if let Some(fields) = state.as_object_mut() {
                    fields.remove("delta");
                }
                (state, document["version"].as_u64().expect("a version"))
            }
        }
    }

    /// What was published on topics that end so, since the last call.
    pub fn take_published(&mut self, node: usize, tail: &str) -> Vec<Value> {
        let (hit, rest) = std::mem::take(&mut self.nodes[node].published)
            .into_iter()
            .partition(|(topic, _)| topic.ends_with(tail));
        self.nodes[node].published = rest;
        hit.into_iter().map(|(_, payload)| payload).collect()
    }

    pub fn forget_published(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.published.clear());
    }

    pub fn assert_equal(&self, context: &str) {
        for node in &self.nodes[1..] {
            assert_eq!(
                node.hub.fingerprint(),
                self.nodes[0].hub.fingerprint(),
                "{context}: hubs differ"
            );
        }
    }
}

/// Numbers below a limit, the same for the same seed: xorshift.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 20) % limit.max(1) as u64) as usize
    }
}
