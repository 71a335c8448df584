//! The laws of the map, and whole clusters of maps whose links break, deliver late and collect all the time.

use std::collections::{BTreeMap, VecDeque};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

type Map = LwwMap<u8, u8>;
type Entry = LwwEntry<u8>;

fn entry(hlc: u64, node: u64, value: Option<u8>) -> Entry {
    LwwEntry { stamp: LwwStamp { hlc: Hlc(hlc), node: NodeId(node) }, value }
}

/// Few keys and moments, so that writes meet; sometimes two values under one stamp.
fn some_write() -> impl Strategy<Value = (u8, Entry)> {
    let entry = (0..6_u64, 0..3_u64, option::of(0..3_u8)).prop_map(|(h, n, v)| entry(h, n, v));
    (0..4_u8, entry)
}

fn some_map() -> impl Strategy<Value = Map> {
    vec(some_write(), 0..12).prop_map(|writes| {
        let mut map = Map::default();
        for (key, entry) in writes {
            map.join(key, entry);
        }
        map
    })
}

fn merged(a: &Map, b: &Map) -> Map {
    let mut out = a.clone();
    out.merge(b);
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merging_is_commutative_associative_and_idempotent(a in some_map(), b in some_map(), c in some_map()) {
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&a, &a), a.clone());
        let ab = merged(&a, &b);
        prop_assert_eq!(merged(&ab, &b), ab);
    }

    /// The feed names each key once, by its last change, and the counts are what the entries say.
    #[test]
    fn what_changed_after_a_place_makes_an_older_copy_equal(writes in vec(some_write(), 0..40), cut in 0..40_usize) {
        let (mut map, mut older) = (Map::default(), Map::default());
        let mut place = 0;
        for (n, (key, entry)) in writes.into_iter().enumerate() {
            map.join(key, entry.clone());
            if n < cut {
                older.join(key, entry);
                place = map.last_place();
            }
        }
        let mut told = 0;
        while let Some((next, key, entry)) = map.next_change(place) {
            older.join(*key, entry.clone());
            (place, told) = (next, told + 1);
        }
        prop_assert!(told <= 4, "a key is told once");
        prop_assert_eq!(&older, &map);
        let gone = map.range::<u8, _>(..).filter(|(_, entry)| entry.value.is_none()).count();
        prop_assert_eq!((map.tombstones(), map.len() + gone), (gone, map.range::<u8, _>(..).count()));
    }

    #[test]
    fn all_agree_and_nothing_collected_comes_back(steps in vec(some_step(), 0..120)) {
        let mut cluster = Cluster::new();
        steps.into_iter().for_each(|step| cluster.step(step));
        cluster.settle();
        if cluster.forgot {
            // What was forgotten too early is found out with the next links.
            (0..NODES).for_each(|n| cluster.step(Step::Restart(n)));
            cluster.settle();
        }
        // A removal that was forgotten before anybody heard of it is lost; they agree all the same.
        let expected = if cluster.forgot { &cluster.nodes[0].map } else { &cluster.all };
        let shown = |map: &Map| -> BTreeMap<u8, u8> {
            map.range::<u8, _>(..).filter_map(|(k, e)| Some((*k, e.value?))).collect()
        };
        for node in &cluster.nodes {
            prop_assert_eq!(shown(&node.map), shown(expected));
            prop_assert_eq!(node.map.tombstones(), 0, "all have seen all");
        }
    }
}

#[test]
fn a_removal_waits_for_the_peer_that_is_away_and_no_longer() {
    let mut cluster = Cluster::new();
    cluster.step(Step::Write(0, 7, Some(1)));
    cluster.settle();
    cluster.step(Step::Cut(0, 2));
    cluster.step(Step::Write(0, 7, None));
    cluster.settle_linked();
    assert_eq!(cluster.nodes[0].map.tombstones(), 1, "node 2 may still tell of it");
    assert_eq!(cluster.nodes[1].map.tombstones(), 0, "nodes 0 and 2 have it from node 0 or 1");
    cluster.settle();
    assert!(cluster.nodes.iter().all(|node| node.map.tombstones() == 0 && node.map.is_empty()));
}

const NODES: usize = 4;

#[derive(Debug, Clone, Copy)]
enum Step {
    Write(usize, u8, Option<u8>),
    Deliver(usize, usize),
    Cut(usize, usize),
    Heal(usize, usize),
    /// All but what is on disk is forgotten.
    Restart(usize),
    /// The oldest removal is forgotten, whoever may need it.
    Forget(usize),
}

fn some_step() -> impl Strategy<Value = Step> {
    let pair = || (0..NODES, 1..NODES).prop_map(|(a, d)| (a, (a + d) % NODES));
    prop_oneof![
        4 => (0..NODES, 0..4_u8, option::of(0..9_u8)).prop_map(|(n, k, v)| Step::Write(n, k, v)),
        12 => pair().prop_map(|(a, b)| Step::Deliver(a, b)),
        1 => pair().prop_map(|(a, b)| Step::Cut(a, b)),
        2 => pair().prop_map(|(a, b)| Step::Heal(a, b)),
        1 => (0..NODES).prop_map(Step::Restart),
        1 => (0..NODES).prop_map(Step::Forget),
    ]
}

enum Frame {
    Change(u64, u8, Entry),
    Confirm(u64),
}

struct Node {
    map: Map,
    own: OwnWrites,
    links: BTreeMap<usize, LwwLink>,
    clock: u64,
    /// The latest removal of each key that was collected here.
    collected: BTreeMap<u8, LwwStamp>,
}

/// Nodes that are driven as the shard drives its retained messages.
struct Cluster {
    nodes: Vec<Node>,
    /// Frames under way, while there is a link.
    ways: BTreeMap<(usize, usize), VecDeque<Frame>>,
    /// Forgets nothing.
    all: Map,
    /// Somebody forgot a removal too early.
    forgot: bool,
}

impl Cluster {
    fn new() -> Self {
        // Clocks lie: one is far ahead of the others.
        let node = |n: usize| Node {
            map: Map::default(),
            own: OwnWrites::default(),
            links: (0..NODES).filter(|peer| *peer != n).map(|p| (p, LwwLink::default())).collect(),
            clock: [0, 1_000_000, 3, 50][n],
            collected: BTreeMap::new(),
        };
        let nodes = (0..NODES).map(node).collect();
        let (ways, all) = (BTreeMap::new(), Map::default());
        let mut cluster = Self { nodes, ways, all, forgot: false };
        cluster.heal_all();
        cluster
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(n, key, value) => {
                self.nodes[n].clock += 1;
                let written = entry(self.nodes[n].clock, n as u64, value);
                self.nodes[n].own.note(written.stamp.hlc);
                self.all.join(key, written.clone());
                self.join(n, key, written);
                self.collect(n);
            }
            Step::Deliver(from, to) => {
                if let Some(frame) = self.ways.get_mut(&(from, to)).and_then(VecDeque::pop_front) {
                    self.receive(from, to, frame);
                }
            }
            Step::Cut(a, b) => {
                self.ways.remove(&(a, b));
                self.ways.remove(&(b, a));
            }
            Step::Heal(a, b) if self.ways.contains_key(&(a, b)) => {}
            Step::Heal(a, b) => {
                for (a, b) in [(a, b), (b, a)] {
                    self.ways.insert((a, b), VecDeque::new());
                    let reader = self.nodes[b].links.get_mut(&a).expect("all know all");
                    reader.begin();
                    let seen = reader.seen;
                    let link = self.nodes[a].links.get_mut(&b).expect("all know all");
                    link.greet(Some(seen));
                    self.pump(a);
                    self.collect(a);
                }
            }
            Step::Restart(n) => {
                (0..NODES).filter(|peer| *peer != n).for_each(|p| self.step(Step::Cut(n, p)));
                for link in self.nodes[n].links.values_mut() {
                    *link = LwwLink::from_disk(link.seen_safely(), link.seen_own);
                }
                let old = std::mem::take(&mut self.nodes[n].map);
                let mut place = 0;
                while let Some((next, key, entry)) = old.next_change(place) {
                    self.nodes[n].map.restore(*key, entry.clone(), next);
                    place = next;
                }
                self.nodes[n].map.raise_place(old.last_place());
            }
            Step::Forget(n) => {
                let node = &mut self.nodes[n];
                if let Some((place, _)) = node.map.forget_tombstone() {
                    node.links.values_mut().for_each(|link| _ = link.forget(place));
                    self.forgot = true;
                }
            }
        }
    }

    fn join(&mut self, n: usize, key: u8, entry: Entry) {
        let back = self.nodes[n].collected.get(&key).is_some_and(|gone| *gone >= entry.stamp);
        let is_value = entry.value.is_some();
        let joined = self.nodes[n].map.join(key, entry).is_some();
        let came_back = joined && back && is_value;
        assert!(!came_back || self.forgot, "a removed value of {key} came back to node {n}");
        self.pump(n);
    }

    fn receive(&mut self, from: usize, to: usize, frame: Frame) {
        let peer = NodeId(from as u64);
        match frame {
            Frame::Confirm(place) => {
                self.nodes[to].links.get_mut(&from).expect("known").confirm(place);
            }
            Frame::Change(place, key, entry) => {
                let node = &mut self.nodes[to];
                node.clock = node.clock.max(entry.stamp.hlc.0);
                let writer = node.links.get(&(entry.stamp.node.0 as usize));
                let is_late = match writer {
                    Some(writer) => is_gone(&node.map, &key, &entry, writer.seen_own),
                    None => node.own.handle_told(entry.stamp.hlc) && node.map.entry(&key).is_none(),
                };
                node.links.get_mut(&from).expect("known").see(peer, place, &entry);
                if !is_late {
                    self.join(to, key, entry);
                } else if entry.value.is_some() {
                    self.join(to, key, LwwEntry { value: None, ..entry });
                }
                if let Some(way) = self.ways.get_mut(&(to, from)) {
                    way.push_back(Frame::Confirm(place));
                }
            }
        }
        self.collect(to);
    }

    fn pump(&mut self, n: usize) {
        let Node { map, links, .. } = &mut self.nodes[n];
        for (peer, link) in links {
            let Some(way) = self.ways.get_mut(&(n, *peer)) else { continue };
            while let Some((place, key, entry)) = link.next(NodeId(*peer as u64), map, u64::MAX) {
                way.push_back(Frame::Change(place, *key, entry.clone()));
            }
        }
    }

    fn collect(&mut self, n: usize) {
        let Node { map, links, collected, .. } = &mut self.nodes[n];
        let confirmed = links.values().map(LwwLink::confirmed).min().unwrap_or(u64::MAX);
        let before = map.clone();
        while let Some(key) = map.collect(confirmed) {
            collected.insert(key, before.entry(&key).expect("it was there").stamp);
        }
    }

    fn heal_all(&mut self) {
        for a in 0..NODES {
            (0..a).for_each(|b| self.step(Step::Heal(a, b)));
        }
    }

    fn settle(&mut self) {
        self.heal_all();
        self.settle_linked();
    }

    /// All links have the same delay: what goes round in a circle goes round for ever.
    fn settle_linked(&mut self) {
        for _ in 0..500 {
            let under_way: Vec<_> = self.ways.iter().map(|(way, q)| (*way, q.len())).collect();
            if under_way.iter().all(|(_, frames)| *frames == 0) {
                return;
            }
            for ((from, to), frames) in under_way {
                (0..frames).for_each(|_| self.step(Step::Deliver(from, to)));
            }
        }
        panic!("they go on telling each other for ever");
    }
}

#[test]
fn what_a_lost_copy_wrote_under_the_same_name_is_not_taken_for_its_own() {
    let mut own = OwnWrites::default();
    assert!(!own.handle_told(Hlc(5)), "nothing was written: it is of an earlier copy");
    assert!(own.note(Hlc(10)) && !own.note(Hlc(12)));
    assert_eq!([9, 10, 11, 12].map(|stamp| own.handle_told(Hlc(stamp))), [false, true, true, true]);
    // Its clock was ahead of this one: nothing is known before the next write.
    assert!(!own.handle_told(Hlc(20)));
    assert!(!own.handle_told(Hlc(11)) && own.note(Hlc(21)));
}
