//! The leaves of one section: for each path the last write, and nothing that a later write has wiped out.
//!
//! A path is `d` (desired) or `r` (reported), then each key with a unit separator in front. An object is not stored,
//! an array is one leaf. The state is what all writes give when they are applied in the order of their stamps, and no
//! order of arrival changes it: [`Leaves::join`] is commutative, associative and idempotent.

use serde_json::{Map, Value, json};

use crate::planted::{Bug, is};
use crate::stamp::Stamp;
use crate::wire::{Reader, WireError, Writer};

/// Stands in front of every key in a path. Keys that contain it are refused.
pub const SEPARATOR: char = '\u{1f}';
/// The first character after [`SEPARATOR`]: ends the range of everything below a path.
const AFTER_SEPARATOR: char = '\u{20}';
/// The longest path in a frame or row. A state of 30 KB, the most AWS software allows, cannot have a longer one.
pub const PATH_BYTES_MAX: usize = 32 << 10;
/// The longest value of a leaf in a frame or row, as JSON text.
pub const VALUE_BYTES_MAX: usize = 32 << 10;
/// Leaves (tombstones included) of one section in a frame or row. Fewer and an honest shadow with long history is
/// refused; more and one shadow may occupy more memory.
pub const LEAVES_MAX: usize = 16 << 10;
/// What a leaf roughly occupies besides its text.
const LEAF_MEMORY: usize = size_of::<Leaf>() + 32;

/// The last write at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Where.
    pub path: Box<str>,
    /// When and by whom.
    pub stamp: Stamp,
    /// JSON text of a scalar or an array; `None` is a tombstone.
    pub value: Option<Box<str>>,
    /// The number in this node's feed under which it was last touched here.
    pub seq: u64,
}

/// Leaves in the order of their paths.
///
/// Invariant: a live leaf has no leaf below it, and no leaf has a later one above it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leaves {
    all: Vec<Leaf>,
}

impl Leaves {
    /// All of them, tombstones included.
    pub fn iter(&self) -> std::slice::Iter<'_, Leaf> {
        self.all.iter()
    }

    /// Those a client can see.
    pub fn live(&self) -> impl Iterator<Item = &Leaf> {
        self.all.iter().filter(|leaf| leaf.value.is_some())
    }

    /// How many tombstones there are.
    pub fn tombstones(&self) -> usize {
        self.all.iter().filter(|leaf| leaf.value.is_none()).count()
    }

    /// The last write at exactly this path.
    pub fn get(&self, path: &str) -> Option<&Leaf> {
        self.find(path).ok().map(|at| &self.all[at])
    }

    /// The nearest write above a path.
    pub fn above(&self, path: &str) -> Option<&Leaf> {
        ancestors(path).filter_map(|above| self.get(above)).last()
    }

    /// There is a scalar or an array at exactly this path.
    pub fn is_live(&self, path: &str) -> bool {
        self.find(path).is_ok_and(|at| self.all[at].value.is_some())
    }

    /// The last write at exactly this path has this stamp.
    pub fn shows(&self, path: &str, stamp: Stamp) -> bool {
        self.find(path).is_ok_and(|at| self.all[at].stamp == stamp)
    }

    /// Takes a write in. True when it changed something here.
    pub fn join(&mut self, path: &str, stamp: Stamp, value: Option<&str>, seq: u64) -> bool {
        if let Ok(at) = self.find(path) {
            let have = &mut self.all[at];
            if have.stamp > stamp && !is(Bug::ArrivalDecides) {
                return false;
            }
            if have.stamp == stamp {
                return have.settle_tie(value, seq);
            }
            if have.stamp < stamp && have.value.is_some() {
                // Nothing lies below what is live, and nothing above it is live or later.
                (have.stamp, have.value, have.seq) = (stamp, value.map(Into::into), seq);
                return true;
            }
        }
        let above: Vec<usize> = ancestors(path).filter_map(|a| self.find(a).ok()).collect();
        if !is(Bug::AncestorIgnored) && above.iter().any(|at| self.all[*at].stamp > stamp) {
            return false;
        }
        for at in above {
            self.all[at].bury(seq);
        }
        let newer_below = self.wipe_older_below(path, stamp);
        let value = if newer_below { None } else { value };
        let leaf = Leaf { path: path.into(), stamp, value: value.map(Into::into), seq };
        match self.find(path) {
            Ok(at) => self.all[at] = leaf,
            Err(at) => {
                self.all.reserve_exact(1);
                self.all.insert(at, leaf);
            }
        }
        true
    }

    /// Would [`Leaves::join`] change anything?
    pub fn would_change(&self, path: &str, stamp: Stamp, value: Option<&str>) -> bool {
        match self.find(path) {
            Ok(at) if self.all[at].stamp > stamp => return false,
            Ok(at) if self.all[at].stamp == stamp => {
                return self.all[at].clone().settle_tie(value, 0);
            }
            _ => {}
        }
        !ancestors(path).any(|a| self.find(a).is_ok_and(|at| self.all[at].stamp > stamp))
    }

    /// A delete at `mark` took away whatever was written before it, also under a later term that its author had not
    /// heard of. True when there was something.
    pub fn bury_until(&mut self, mark: Stamp, seq: u64) -> bool {
        let older = |leaf: &&mut Leaf| leaf.value.is_some() && leaf.stamp.with_term(0) <= mark;
        let mut any = false;
        for leaf in self.all.iter_mut().filter(older) {
            leaf.bury(seq);
            any = true;
        }
        any
    }

    /// Takes away the tombstones the predicate names; gives back how many.
    pub fn forget_tombstones(&mut self, mut may_go: impl FnMut(&Leaf) -> bool) -> usize {
        let before = self.all.len();
        self.all.retain(|leaf| leaf.value.is_some() || !may_go(leaf));
        before - self.all.len()
    }

    /// The section as JSON, or `None` when nothing is visible. Empty objects do not exist.
    pub fn state(&self) -> Option<Value> {
        self.state_without(|_| false)
    }

    /// The same without the leaves the predicate names.
    pub fn state_without(&self, left_out: impl Fn(&str) -> bool) -> Option<Value> {
        tree(self.live().filter(|leaf| !left_out(&leaf.path)), Leaf::json)
    }

    /// The same shape with an AWS timestamp for each leaf, and for each element of an array.
    pub fn metadata(&self) -> Option<Value> {
        tree(self.live(), |leaf| timestamps(&leaf.json(), leaf.stamp.seconds()))
    }

    fn find(&self, path: &str) -> Result<usize, usize> {
        self.all.binary_search_by(|leaf| (*leaf.path).cmp(path))
    }

    /// Removes what lies below and is older. True when something newer remains there.
    fn wipe_older_below(&mut self, path: &str, stamp: Stamp) -> bool {
        let bound = |last: char| {
            let edge = format!("{path}{last}");
            self.all.partition_point(|leaf| *leaf.path < *edge)
        };
        let (from, to) = (bound(SEPARATOR), bound(AFTER_SEPARATOR));
        if from == to {
            return false;
        }
        let newer: Vec<Leaf> =
            self.all.drain(from..to).filter(|leaf| leaf.stamp >= stamp).collect();
        let any = !newer.is_empty();
        self.all.splice(from..from, newer);
        any
    }

    /// Writes leaves for a frame (`with_seq` false) or a row (true). Writes of one request share their stamp's bytes.
    pub fn encode<'a>(
        out: &mut Writer,
        leaves: impl Iterator<Item = &'a Leaf> + Clone,
        with_seq: bool,
    ) {
        let mut stamps: Vec<Stamp> = leaves.clone().map(|leaf| leaf.stamp).collect();
        stamps.sort_unstable();
        stamps.dedup();
        out.varint(stamps.len() as u64);
        stamps.iter().for_each(|stamp| out.stamp(stamp));
        out.varint(leaves.clone().count() as u64);
        for leaf in leaves {
            let index = stamps.binary_search(&leaf.stamp).expect("every stamp was collected");
            out.varint(index as u64);
            out.bytes(leaf.path.as_bytes());
            out.optional(leaf.value.as_deref().map(str::as_bytes));
            if with_seq {
                out.varint(leaf.seq);
            }
        }
    }

    /// Reads what [`Leaves::encode`] wrote; `root` is the character every path must begin with.
    pub fn decode(
        from: &mut Reader<'_>,
        root: char,
        with_seq: bool,
    ) -> Result<Vec<Leaf>, WireError> {
        let count = from.count(LEAVES_MAX, size_of::<Stamp>())?;
        let stamps: Vec<Stamp> = (0..count).map(|_| from.stamp()).collect::<Result<_, _>>()?;
        let count = from.count(LEAVES_MAX, LEAF_MEMORY)?;
        let mut leaves = Vec::with_capacity(count);
        for _ in 0..count {
            let index = from.varint()? as usize;
            let stamp = *stamps.get(index).ok_or(WireError::Range("stamp"))?;
            let path = check_path(from.bytes(PATH_BYTES_MAX)?, root)?;
            let value = from.optional(VALUE_BYTES_MAX)?.map(check_value).transpose()?;
            from.charge(path.len() + value.map_or(0, str::len))?;
            let seq = if with_seq { from.varint()? } else { 0 };
            leaves.push(Leaf { path: path.into(), stamp, value: value.map(Into::into), seq });
        }
        Ok(leaves)
    }

    /// Leaves as they were, from a row.
    pub fn from_sorted(all: Vec<Leaf>) -> Result<Self, WireError> {
        if all.is_sorted_by(|a, b| a.path < b.path) {
            Ok(Self { all })
        } else {
            Err(WireError::Range("order of paths"))
        }
    }
}

impl Leaf {
    /// The value as JSON; a tombstone is null.
    pub fn json(&self) -> Value {
        self.value
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null)
    }

    /// Two copies of one write meet. One may have become a tombstone by a later write below it; that one wins. Two
    /// values under one stamp come only from a node that broke the rules: then the greater text wins everywhere.
    fn settle_tie(&mut self, value: Option<&str>, seq: u64) -> bool {
        let takes = match (self.value.as_deref(), value) {
            (Some(_), None) => true,
            (Some(mine), Some(theirs)) => theirs > mine,
            (None, _) => false,
        };
        if takes {
            self.value = value.map(Into::into);
            self.seq = seq;
        }
        takes
    }

    /// A later write below replaces this value by an object.
    fn bury(&mut self, seq: u64) {
        if self.value.take().is_some() {
            self.seq = seq;
        }
    }
}

/// One AWS timestamp for a scalar, one per element for an array, the same shape for an object.
pub fn timestamps(value: &Value, seconds: u64) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| timestamps(item, seconds)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(k, v)| (k.clone(), timestamps(v, seconds))).collect()
        }
        _ => json!({ "timestamp": seconds }),
    }
}

/// A path from outside: UTF-8, and in the section it was sent for.
pub fn check_path(bytes: &[u8], root: char) -> Result<&str, WireError> {
    let path = std::str::from_utf8(bytes).map_err(|_| WireError::Range("path"))?;
    let rest = path.strip_prefix(root).ok_or(WireError::Range("path"))?;
    if rest.is_empty() || rest.starts_with(SEPARATOR) {
        Ok(path)
    } else {
        Err(WireError::Range("path"))
    }
}

/// A value from outside: JSON text of a scalar or an array, not null and not an object.
pub fn check_value(bytes: &[u8]) -> Result<&str, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|_| WireError::Range("value"))?;
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Null | Value::Object(_)) | Err(_) => Err(WireError::Range("value")),
        Ok(_) => Ok(text),
    }
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices(SEPARATOR).map(move |(at, _)| &path[..at])
}

fn tree<'a>(
    leaves: impl Iterator<Item = &'a Leaf>,
    content: impl Fn(&Leaf) -> Value,
) -> Option<Value> {
    let mut root = Value::Object(Map::new());
    let mut any = false;
    for leaf in leaves {
        any = true;
        let mut place = &mut root;
        for key in leaf.path.split(SEPARATOR).skip(1) {
            let object = place.as_object_mut().expect("a live leaf never lies below another");
            place = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
        }
        *place = content(leaf);
    }
    any.then_some(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use outpost_model::{Hlc, NodeId};

    fn at(moment: u64) -> Stamp {
        Stamp::new(Hlc(moment), NodeId(1))
    }

    fn path(dotted: &str) -> String {
        dotted.replace('.', "\u{1f}")
    }

    /// Applies (path, moment, value) in every order and demands the same state each time.
    fn check(writes: &[(&str, u64, Option<&str>)], expected: &Value) {
        let mut order: Vec<usize> = (0..writes.len()).collect();
        let mut first = None;
        permute(&mut order, 0, &mut |order| {
            let mut leaves = Leaves::default();
            for i in order {
                let (p, moment, value) = writes[*i];
                leaves.join(&path(p), at(moment), value, 0);
                assert!(
                    !leaves.join(&path(p), at(moment), value, 0),
                    "joining twice changes nothing"
                );
            }
            assert_eq!(leaves.state().unwrap_or(Value::Null), *expected, "order {order:?}");
            let leaves = first.get_or_insert_with(|| leaves.clone()).clone();
            assert_eq!(Some(&leaves), first.as_ref());
        });
    }

    fn permute(order: &mut Vec<usize>, from: usize, visit: &mut impl FnMut(&[usize])) {
        if from == order.len() {
            visit(order);
        }
        for i in from..order.len() {
            order.swap(from, i);
            permute(order, from + 1, visit);
            order.swap(from, i);
        }
    }

    #[test]
    fn a_later_write_replaces_and_an_earlier_one_does_not() {
        check(&[("d.a", 1, Some("1")), ("d.a", 2, Some("2"))], &json!({"a": 2}));
        check(&[("d.a", 1, Some("1")), ("d.a", 2, None)], &Value::Null);
        check(&[("d.a", 1, None), ("d.a", 2, Some("[1,2]"))], &json!({"a": [1, 2]}));
    }

    #[test]
    fn a_write_wipes_what_is_older_below_it() {
        check(
            &[("d.a.x", 1, Some("1")), ("d.a", 2, Some("2")), ("d.b", 1, Some("3"))],
            &json!({"a": 2, "b": 3}),
        );
        check(
            &[("d.a.x", 1, Some("1")), ("d.a.y", 3, Some("2")), ("d.a", 2, None)],
            &json!({"a": {"y": 2}}),
        );
        check(&[("d.a", 1, Some("1")), ("d", 2, None), ("d.b", 3, Some("4"))], &json!({"b": 4}));
    }

    #[test]
    fn an_older_scalar_above_becomes_a_tombstone() {
        check(&[("d.a", 1, Some("1")), ("d.a.x", 2, Some("2"))], &json!({"a": {"x": 2}}));
        check(&[("d.a", 1, Some("1")), ("d.a.x", 2, Some("2")), ("d.a.x", 3, None)], &Value::Null);
    }

    #[test]
    fn keys_that_share_a_prefix_are_not_below_each_other() {
        check(
            &[("d.ab", 1, Some("1")), ("d.a", 2, Some("2")), ("d.a!", 1, Some("3"))],
            &json!({"ab": 1, "a": 2, "a!": 3}),
        );
    }

    #[test]
    fn at_equal_stamp_the_tombstone_wins_then_the_greater_value() {
        let mut leaves = Leaves::default();
        assert!(leaves.join("d", at(1), Some("1"), 0));
        assert!(leaves.join("d", at(1), Some("2"), 0));
        assert!(!leaves.join("d", at(1), Some("1"), 0));
        assert!(leaves.join("d", at(1), None, 0));
        assert!(!leaves.join("d", at(1), Some("9"), 0));
    }

    #[test]
    fn would_change_says_what_join_then_does() {
        let mut leaves = Leaves::default();
        let writes = [
            ("d.a", 3, Some("1")),
            ("d.a.x", 2, Some("1")),
            ("d.a.x", 4, None),
            ("d", 1, None),
            ("d.a", 3, None),
            ("d", 9, None),
        ];
        for (p, moment, value) in writes {
            let said = leaves.would_change(&path(p), at(moment), value);
            assert_eq!(leaves.join(&path(p), at(moment), value, 0), said, "{p}");
        }
    }

    #[test]
    fn leaves_survive_their_bytes() {
        let mut leaves = Leaves::default();
        leaves.join(&path("d.a"), at(1), Some("1"), 7);
        leaves.join(&path("d.b"), at(2), None, 300);
        let mut out = Writer::default();
        Leaves::encode(&mut out, leaves.iter(), true);
        let read = Leaves::decode(&mut Reader::new(&out.0), 'd', true).expect("own bytes");
        assert_eq!(Leaves::from_sorted(read), Ok(leaves));
        assert!(
            Leaves::decode(&mut Reader::new(&out.0), 'r', true).is_err(),
            "paths of the other section"
        );
    }
}
