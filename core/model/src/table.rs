//! The table that finds who wants a topic, for up to millions of filters (MQTT 5, §4.7).
//!
//! ```text
//!  topic ─┬─ one look ──────▶ filters without wildcards, by their whole text
//!         └─ a look a level ─▶ tree of the filters with wildcards
//! ```
//! Most filters name one topic: they cost one entry, and no topic is slower for them. Neither part keeps memory for
//! what is gone: both shrink when most of them is empty.

use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

/// No node.
const NONE: u32 = u32::MAX;

/// Tables smaller than this are not made smaller: it is not worth the work.
const SHRINK_FROM: usize = 64;

/// Who wants what: filters with the wanting keys.
///
/// `K` is whatever the owner uses to name a subscriber. A key may stand under many filters and a filter under many keys.
#[derive(Debug)]
pub struct TopicTable<K> {
    exact: Exact<K>,
    tree: Tree<K>,
    filters: usize,
}

impl<K> Default for TopicTable<K> {
    fn default() -> Self {
        Self { exact: Exact::default(), tree: Tree::default(), filters: 0 }
    }
}

impl<K: PartialEq> TopicTable<K> {
    /// How many (filter, key) pairs stand in the table.
    pub fn len(&self) -> usize {
        self.filters
    }

    /// Whether nobody wants anything.
    pub fn is_empty(&self) -> bool {
        self.filters == 0
    }

    /// Adds a pair. `false`, and no change, when it was there already. The text is shared with its owner.
    pub fn insert(&mut self, pattern: &Arc<str>, key: K) -> bool {
        let is_new = if is_exact(pattern) {
            self.exact.insert(pattern, key)
        } else {
            self.tree.insert(pattern, key)
        };
        self.filters += usize::from(is_new);
        is_new
    }

    /// Takes a pair out. `false` when it was not there.
    pub fn remove(&mut self, pattern: &str, key: &K) -> bool {
        let was_there = if is_exact(pattern) {
            self.exact.remove(pattern, key)
        } else {
            self.tree.remove(pattern, key)
        };
        self.filters -= usize::from(was_there);
        was_there
    }

    /// Calls `found` for each pair whose filter matches `topic`; a key comes as often as its filters match.
    pub fn matches<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a K)) {
        self.exact.get(topic).iter().for_each(&mut found);
        if !self.tree.is_empty() {
            self.tree.walk(0, Some(topic), topic.starts_with('$'), &mut found);
        }
    }
}

fn is_exact(pattern: &str) -> bool {
    !pattern.contains(['+', '#'])
}

/// The keys of one filter: nearly always one.
#[derive(Debug)]
enum Keys<K> {
    One(K),
    /// Boxed: it must not make the others larger.
    #[allow(clippy::box_collection, reason = "one word instead of three in a million entries")]
    Many(Option<Box<Vec<K>>>),
}

impl<K> Default for Keys<K> {
    fn default() -> Self {
        Self::Many(None)
    }
}

impl<K> Keys<K> {
    fn as_slice(&self) -> &[K] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys.as_deref().map_or(&[], Vec::as_slice),
        }
    }

    fn iter(&self) -> std::slice::Iter<'_, K> {
        self.as_slice().iter()
    }

    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

impl<K: PartialEq> Keys<K> {
    fn insert(&mut self, key: K) -> bool {
        if self.as_slice().contains(&key) {
            return false;
        }
        *self = match std::mem::take(self) {
            Self::One(first) => Self::Many(Some(Box::new(vec![first, key]))),
            Self::Many(None) => Self::One(key),
            Self::Many(Some(mut keys)) => {
                keys.push(key);
                Self::Many(Some(keys))
            }
        };
        true
    }

    fn remove(&mut self, key: &K) -> bool {
        let Some(place) = self.iter().position(|k| k == key) else { return false };
        match self {
            Self::One(_) => *self = Self::default(),
            Self::Many(keys) => {
                let many = keys.as_mut().expect("a key was found in it");
                many.swap_remove(place);
                if many.len() == 1 {
                    *self = many.pop().map_or_else(Self::default, Self::One);
                } else if many.capacity() > SHRINK_FROM && many.len() < many.capacity() / 4 {
                    many.shrink_to_fit();
                }
            }
        }
        true
    }
}

/// Filters without wildcards. The entries lie dense, the hash table holds their places only.
#[derive(Debug)]
struct Exact<K> {
    hasher: DefaultHashBuilder,
    places: HashTable<u32>,
    entries: Vec<(Arc<str>, Keys<K>)>,
}

impl<K> Default for Exact<K> {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            places: HashTable::new(),
            entries: Vec::new(),
        }
    }
}

impl<K> Exact<K> {
    fn place(&self, text: &str) -> Option<usize> {
        let is_it = |place: &u32| &*self.entries[*place as usize].0 == text;
        let place = self.places.find(self.hasher.hash_one(text), is_it)?;
        Some(*place as usize)
    }

    fn get(&self, text: &str) -> &[K] {
        self.place(text).map_or(&[], |place| self.entries[place].1.as_slice())
    }
}

impl<K: PartialEq> Exact<K> {
    fn insert(&mut self, text: &Arc<str>, key: K) -> bool {
        if let Some(place) = self.place(text) {
            return self.entries[place].1.insert(key);
        }
        let place = u32::try_from(self.entries.len()).expect("memory ends before four billion");
        self.entries.push((Arc::clone(text), Keys::One(key)));
        let (hasher, entries) = (&self.hasher, &self.entries);
        let hash_of = |place: &u32| hasher.hash_one(&*entries[*place as usize].0);
        self.places.insert_unique(hasher.hash_one(&**text), place, hash_of);
        true
    }

    fn remove(&mut self, text: &str, key: &K) -> bool {
        let Some(place) = self.place(text) else { return false };
        if !self.entries[place].1.remove(key) {
            return false;
        }
        if self.entries[place].1.is_empty() {
            self.forget(place);
        }
        true
    }

    /// The last entry moves into the place that is free now.
    fn forget(&mut self, place: usize) {
        self.point(place, None);
        let last = self.entries.len() - 1;
        if place != last {
            self.point(last, Some(place));
        }
        self.entries.swap_remove(place);
        if self.entries.capacity() > SHRINK_FROM && last < self.entries.capacity() / 4 {
            self.entries.shrink_to(last * 2);
            let (hasher, entries) = (&self.hasher, &self.entries);
            self.places.shrink_to(last * 2, |place| hasher.hash_one(&*entries[*place as usize].0));
        }
    }

    /// Has the hash table point elsewhere for the entry at `from`, or nowhere.
    fn point(&mut self, from: usize, to: Option<usize>) {
        let hash = self.hasher.hash_one(&*self.entries[from].0);
        let found = self.places.find_entry(hash, |place| *place as usize == from);
        let mut found = found.expect("every entry has its place in the table");
        match to {
            Some(to) => *found.get_mut() = to as u32,
            None => _ = found.remove(),
        }
    }
}

/// Filters with wildcards, a node a level. The children of all nodes stand in one hash table.
#[derive(Debug)]
struct Tree<K> {
    hasher: DefaultHashBuilder,
    children: HashTable<u32>,
    /// The first is the root.
    nodes: Vec<Node<K>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Node<K> {
    parent: u32,
    /// The child for `+`.
    plus: u32,
    /// Children in the hash table.
    named: u32,
    level: Box<str>,
    /// Keys whose filter ends here.
    here: Keys<K>,
    /// Keys whose filter ends here with `#`.
    below: Keys<K>,
}

impl<K> Node<K> {
    fn new(parent: u32, level: &str) -> Self {
        let (here, below) = (Keys::default(), Keys::default());
        Self { parent, plus: NONE, named: 0, level: level.into(), here, below }
    }

    fn is_bare(&self) -> bool {
        self.named == 0 && self.plus == NONE && self.here.is_empty() && self.below.is_empty()
    }
}

impl<K> Default for Tree<K> {
    fn default() -> Self {
        Self {
            hasher: DefaultHashBuilder::default(),
            children: HashTable::new(),
            nodes: vec![Node::new(NONE, "")],
            free: Vec::new(),
        }
    }
}

impl<K> Tree<K> {
    fn is_empty(&self) -> bool {
        self.nodes.len() == self.free.len() + 1 && self.nodes[0].below.is_empty()
    }

    fn child(&self, at: u32, level: &str) -> Option<u32> {
        if level == "+" {
            let plus = self.nodes[at as usize].plus;
            return (plus != NONE).then_some(plus);
        }
        self.named(at, level)
    }

    fn named(&self, at: u32, level: &str) -> Option<u32> {
        if self.nodes[at as usize].named == 0 {
            return None;
        }
        let is_it = |child: &u32| {
            let child = &self.nodes[*child as usize];
            child.parent == at && &*child.level == level
        };
        self.children.find(hash_of(&self.hasher, at, level), is_it).copied()
    }

    fn walk<'a>(
        &'a self,
        at: u32,
        rest: Option<&str>,
        reserved: bool,
        found: &mut impl FnMut(&'a K),
    ) {
        let node = &self.nodes[at as usize];
        if !reserved {
            node.below.iter().for_each(&mut *found);
        }
        let Some(rest) = rest else {
            node.here.iter().for_each(&mut *found);
            return;
        };
        let (level, rest) = match rest.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (rest, None),
        };
        if let Some(next) = self.named(at, level) {
            self.walk(next, rest, false, found);
        }
        if node.plus != NONE && !reserved {
            self.walk(node.plus, rest, false, found);
        }
    }
}

impl<K: PartialEq> Tree<K> {
    fn insert(&mut self, pattern: &str, key: K) -> bool {
        let mut at = 0;
        for level in pattern.split('/') {
            if level == "#" {
                return self.nodes[at as usize].below.insert(key);
            }
            at = self.child(at, level).unwrap_or_else(|| self.new_child(at, level));
        }
        self.nodes[at as usize].here.insert(key)
    }

    fn new_child(&mut self, parent: u32, level: &str) -> u32 {
        let node = Node::new(parent, level);
        let new = if let Some(free) = self.free.pop() {
            self.nodes[free as usize] = node;
            free
        } else {
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).expect("memory ends before four billion")
        };
        if level == "+" {
            self.nodes[parent as usize].plus = new;
            return new;
        }
        self.nodes[parent as usize].named += 1;
        self.enter(new);
        new
    }

    /// Puts a node into the table of children.
    fn enter(&mut self, child: u32) {
        let (hasher, nodes) = (&self.hasher, &self.nodes);
        let hash = |child: &u32| {
            let node = &nodes[*child as usize];
            hash_of(hasher, node.parent, &node.level)
        };
        self.children.insert_unique(hash(&child), child, hash);
    }

    fn remove(&mut self, pattern: &str, key: &K) -> bool {
        let mut at = 0;
        let mut below = false;
        for level in pattern.split('/') {
            if level == "#" {
                below = true;
                break;
            }
            let Some(next) = self.child(at, level) else { return false };
            at = next;
        }
        let node = &mut self.nodes[at as usize];
        let was_there = (if below { &mut node.below } else { &mut node.here }).remove(key);
        if was_there {
            self.prune(at);
        }
        was_there
    }

    /// Gives back a node that holds nothing any more, and those above it.
    fn prune(&mut self, mut at: u32) {
        while at != 0 && self.nodes[at as usize].is_bare() {
            let node = std::mem::replace(&mut self.nodes[at as usize], Node::new(NONE, ""));
            self.free.push(at);
            if &*node.level == "+" {
                self.nodes[node.parent as usize].plus = NONE;
            } else {
                self.nodes[node.parent as usize].named -= 1;
                let hash = hash_of(&self.hasher, node.parent, &node.level);
                let found = self.children.find_entry(hash, |child| *child == at);
                found.expect("every named child is in the table").remove();
            }
            at = node.parent;
        }
        if self.nodes.len() > SHRINK_FROM && self.free.len() > self.nodes.len() / 4 * 3 {
            self.compact();
        }
    }

    /// Moves the nodes together and gives the rest of the memory back.
    fn compact(&mut self) {
        let mut moved = vec![NONE; self.nodes.len()];
        let mut next = 0;
        self.free.sort_unstable();
        for at in 0..self.nodes.len() as u32 {
            if self.free.binary_search(&at).is_err() {
                moved[at as usize] = next;
                next += 1;
            }
        }
        let place = |old: u32| if old == NONE { NONE } else { moved[old as usize] };
        let nodes = std::mem::take(&mut self.nodes).into_iter().zip(&moved);
        self.nodes = nodes
            .filter(|(_, to)| **to != NONE)
            .map(|(node, _)| Node { parent: place(node.parent), plus: place(node.plus), ..node })
            .collect();
        self.nodes.shrink_to_fit();
        self.free = Vec::new();
        self.children = HashTable::new();
        let named = |node: &Node<K>| node.parent != NONE && &*node.level != "+";
        for at in 0..self.nodes.len() {
            if named(&self.nodes[at]) {
                self.enter(at as u32);
            }
        }
    }
}

fn hash_of(hasher: &DefaultHashBuilder, parent: u32, level: &str) -> u64 {
    use std::hash::Hasher as _;
    let mut state = hasher.build_hasher();
    parent.hash(&mut state);
    level.hash(&mut state);
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TopicFilter;

    fn insert(table: &mut TopicTable<u32>, pattern: &str, key: u32) -> bool {
        table.insert(&pattern.into(), key)
    }

    fn found(table: &TopicTable<u32>, topic: &str) -> Vec<u32> {
        let mut found = Vec::new();
        table.matches(topic, |key| found.push(*key));
        found.sort_unstable();
        found
    }

    /// A number that looks random and is the same in every run.
    fn scatter(n: u32) -> u32 {
        n.wrapping_mul(2_654_435_761) >> 7
    }

    fn pattern(n: u32) -> String {
        let level = |n: u32| ["a", "b", "+", "cd", "", "+"][n as usize % 6];
        let (x, y, z) = (scatter(n), scatter(n + 1), scatter(n + 2));
        match n % 4 {
            0 => format!("{}/{}/#", level(x), level(y)),
            1 => format!("{}/{}", level(x), level(y)),
            _ => format!("{}/{}/{}", level(x), level(y), level(z)),
        }
    }

    #[test]
    fn the_table_finds_what_each_filter_alone_would_while_filters_come_and_go() {
        let topics = ["a/b", "a/b/cd", "/b/", "b", "cd/a", "a/b/cd/x", "$a/b", "//", "a"];
        let mut table = TopicTable::default();
        let mut there: Vec<(String, u32)> = Vec::new();
        for n in 0..3_000 {
            if !scatter(n).is_multiple_of(3) || there.is_empty() {
                let (text, key) = (pattern(n), scatter(n) % 40);
                let is_new = !there.contains(&(text.clone(), key));
                assert_eq!(insert(&mut table, &text, key), is_new, "{text} for {key}");
                if is_new {
                    there.push((text, key));
                }
            } else {
                let (text, key) = there.swap_remove(scatter(n) as usize % there.len());
                assert!(table.remove(&text, &key) && !table.remove(&text, &key));
            }
            assert_eq!(table.len(), there.len());
            let topic = topics[n as usize % topics.len()];
            let matching = |(text, _): &&(String, u32)| {
                TopicFilter::new(text.clone()).expect("valid").matches(topic)
            };
            let mut expected: Vec<u32> = there.iter().filter(matching).map(|(_, k)| *k).collect();
            expected.sort_unstable();
            assert_eq!(found(&table, topic), expected, "{topic} after {n} steps");
        }
    }

    #[test]
    fn the_table_gives_back_what_it_no_longer_needs() {
        let mut table = TopicTable::default();
        let all = |n: u32| [format!("plant/{n}/temp"), format!("plant/{n}/+"), format!("{n}/#")];
        for n in 0..5_000 {
            all(n).iter().for_each(|text| assert!(insert(&mut table, text, n)));
        }
        assert!(insert(&mut table, "plant/+/temp", 9));
        for n in (0..5_000).filter(|n| n % 1_000 != 7) {
            all(n).iter().for_each(|text| assert!(table.remove(text, &n)));
        }
        assert_eq!(table.len(), 16);
        assert!(table.exact.entries.capacity() <= SHRINK_FROM, "exact filters");
        assert!(table.tree.nodes.len() <= 2 * SHRINK_FROM, "nodes");
        assert_eq!(found(&table, "plant/1007/temp"), [9, 1_007, 1_007]);
        assert_eq!(found(&table, "1007/x"), [1_007]);
    }

    #[test]
    fn a_filter_of_one_key_costs_no_list() {
        assert_eq!(size_of::<Keys<u64>>(), 16);
        assert!(size_of::<Node<u64>>() <= 64, "{}", size_of::<Node<u64>>());
    }
}
