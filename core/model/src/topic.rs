//! Topic names, topic filters, and the table that finds who wants a topic (MQTT 5, §4.7).

use std::fmt;
use std::sync::Arc;

use bytestring::ByteString;
use hashbrown::HashMap;

/// More levels than this are refused: a name of 65,535 slashes costs its sender nothing and a tree walk a lot.
pub const TOPIC_LEVELS_MAX: usize = 128;

/// Why a topic name or filter was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Zero characters (MQTT-4.7.3-1).
    #[error("is empty")]
    Empty,
    /// Holds U+0000 (MQTT-4.7.3-2).
    #[error("holds a NUL character")]
    Nul,
    /// More than [`TOPIC_LEVELS_MAX`] levels.
    #[error("has more than {TOPIC_LEVELS_MAX} levels")]
    TooDeep,
    /// `+` or `#` in a name (MQTT-3.3.2-2).
    #[error("is a topic name and must not hold the wildcards + or #")]
    WildcardInName,
    /// `#` not alone in the last level, or `+` not alone in its level (MQTT-4.7.1-1, -2).
    #[error("has a wildcard that does not fill its level, or a # before the end")]
    MisplacedWildcard,
    /// `$share/…` without a group name or a filter (MQTT-4.8.2-1, -2).
    #[error("is a shared subscription without a valid group name and filter")]
    BadShare,
}

/// Checks a topic name, what a PUBLISH carries.
///
/// # Errors
/// [`TopicError`] says which rule it breaks.
pub fn check_name(name: &str) -> Result<(), TopicError> {
    check_common(name)?;
    if name.bytes().any(|b| b == b'+' || b == b'#') {
        Err(TopicError::WildcardInName)
    } else {
        Ok(())
    }
}

fn check_common(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    let mut levels = 1;
    for byte in text.bytes() {
        match byte {
            0 => return Err(TopicError::Nul),
            b'/' => levels += 1,
            _ => {}
        }
    }
    if levels > TOPIC_LEVELS_MAX { Err(TopicError::TooDeep) } else { Ok(()) }
}

/// A checked topic filter, with its share group when it is a shared subscription.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter {
    whole: ByteString,
    /// Where the filter proper begins in `whole`; 0 unless shared.
    start: usize,
}

impl TopicFilter {
    /// Checks a filter as a SUBSCRIBE carries it, `$share/<group>/<filter>` included.
    ///
    /// # Errors
    /// [`TopicError`] says which rule it breaks.
    pub fn new(text: impl Into<ByteString>) -> Result<Self, TopicError> {
        let whole = text.into();
        check_common(&whole)?;
        let mut start = 0;
        if let Some(rest) = whole.strip_prefix("$share/") {
            let (group, filter) = rest.split_once('/').ok_or(TopicError::BadShare)?;
            if group.is_empty() || filter.is_empty() || group.contains(['+', '#']) {
                return Err(TopicError::BadShare);
            }
            start = whole.len() - filter.len();
        } else if whole == "$share" {
            return Err(TopicError::BadShare);
        }
        let filter = &whole[start..];
        let mut levels = filter.split('/').peekable();
        while let Some(level) = levels.next() {
            let wild = level.contains(['+', '#']);
            if wild && (level.len() > 1 || (level == "#" && levels.peek().is_some())) {
                return Err(TopicError::MisplacedWildcard);
            }
        }
        Ok(Self { whole, start })
    }

    /// The filter as the client wrote it, with `$share/<group>/`.
    pub fn as_str(&self) -> &str {
        &self.whole
    }

    /// The filter as the client wrote it, sharing its bytes.
    pub fn as_byte_string(&self) -> &ByteString {
        &self.whole
    }

    /// The part that topics are matched against.
    pub fn pattern(&self) -> &str {
        &self.whole[self.start..]
    }

    /// The share group, when there is one.
    pub fn share_group(&self) -> Option<&str> {
        (self.start > 0).then(|| &self.whole["$share/".len()..self.start - 1])
    }

    /// Whether it is a plain name, without wildcards.
    pub fn is_exact(&self) -> bool {
        !self.pattern().contains(['+', '#'])
    }

    /// Whether `topic` matches, by the rules of §4.7.
    pub fn matches(&self, topic: &str) -> bool {
        pattern_matches(self.pattern(), topic)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether `topic` matches `pattern` (§4.7.1), wildcards not matching a leading `$` (MQTT-4.7.2-1).
pub fn pattern_matches(pattern: &str, topic: &str) -> bool {
    if topic.starts_with('$') && pattern.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in pattern.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Who wants what: a tree of filter levels with the wanting keys at its leaves.
///
/// `K` is whatever the owner uses to name a subscriber. A key may stand under many filters and a filter under many keys.
#[derive(Debug)]
pub struct TopicTable<K> {
    nodes: Vec<TreeNode<K>>,
    free: Vec<usize>,
    filters: usize,
}

#[derive(Debug)]
struct TreeNode<K> {
    exact: HashMap<Arc<str>, usize>,
    plus: Option<usize>,
    /// Keys whose filter ends here.
    here: Vec<K>,
    /// Keys whose filter ends here with `#`.
    below: Vec<K>,
}

impl<K> Default for TreeNode<K> {
    fn default() -> Self {
        Self { exact: HashMap::new(), plus: None, here: Vec::new(), below: Vec::new() }
    }
}

impl<K> TreeNode<K> {
    fn is_bare(&self) -> bool {
        self.exact.is_empty()
            && self.plus.is_none()
            && self.here.is_empty()
            && self.below.is_empty()
    }
}

impl<K: PartialEq> Default for TopicTable<K> {
    fn default() -> Self {
        Self { nodes: vec![TreeNode::default()], free: Vec::new(), filters: 0 }
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

    /// Adds a pair. `false`, and no change, when it was there already.
    pub fn insert(&mut self, pattern: &str, key: K) -> bool {
        let mut at = 0;
        for level in pattern.split('/') {
            if level == "#" {
                return self.add(at, key, true);
            }
            at = self.child_or_new(at, level);
        }
        self.add(at, key, false)
    }

    fn add(&mut self, at: usize, key: K, below: bool) -> bool {
        let node = &mut self.nodes[at];
        let keys = if below { &mut node.below } else { &mut node.here };
        if keys.contains(&key) {
            return false;
        }
        keys.push(key);
        self.filters += 1;
        true
    }

    fn child(&self, at: usize, level: &str) -> Option<usize> {
        let node = &self.nodes[at];
        if level == "+" { node.plus } else { node.exact.get(level).copied() }
    }

    fn child_or_new(&mut self, at: usize, level: &str) -> usize {
        if let Some(found) = self.child(at, level) {
            return found;
        }
        let new = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(TreeNode::default());
            self.nodes.len() - 1
        });
        let node = &mut self.nodes[at];
        if level == "+" {
            node.plus = Some(new);
        } else {
            node.exact.insert(level.into(), new);
        }
        new
    }

    /// Takes a pair out. `false` when it was not there.
    pub fn remove(&mut self, pattern: &str, key: &K) -> bool {
        let mut path = vec![0];
        let mut levels = Vec::new();
        let mut below = false;
        for level in pattern.split('/') {
            if level == "#" {
                below = true;
                break;
            }
            let Some(next) = self.child(*path.last().expect("the root is in it"), level) else {
                return false;
            };
            path.push(next);
            levels.push(level);
        }
        let node = &mut self.nodes[*path.last().expect("the root is in it")];
        let keys = if below { &mut node.below } else { &mut node.here };
        let Some(place) = keys.iter().position(|k| k == key) else { return false };
        keys.swap_remove(place);
        if keys.is_empty() {
            keys.shrink_to_fit();
        }
        self.filters -= 1;
        self.prune(&path, &levels);
        true
    }

    /// Gives back the nodes at the end of `path` that hold nothing any more.
    fn prune(&mut self, path: &[usize], levels: &[&str]) {
        for depth in (1..path.len()).rev() {
            if !self.nodes[path[depth]].is_bare() {
                return;
            }
            self.nodes[path[depth]] = TreeNode::default();
            self.free.push(path[depth]);
            let parent = &mut self.nodes[path[depth - 1]];
            let level = levels[depth - 1];
            if level == "+" {
                parent.plus = None;
            } else {
                parent.exact.remove(level);
                if parent.exact.is_empty() {
                    parent.exact = HashMap::new();
                }
            }
        }
    }

    /// Calls `found` for each pair whose filter matches `topic`; a key comes as often as its filters match.
    pub fn matches<'a>(&'a self, topic: &str, mut found: impl FnMut(&'a K)) {
        self.walk(0, Some(topic), topic.starts_with('$'), &mut found);
    }

    fn walk<'a>(
        &'a self,
        at: usize,
        rest: Option<&str>,
        reserved: bool,
        found: &mut impl FnMut(&'a K),
    ) {
        let node = &self.nodes[at];
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
        if let Some(next) = node.exact.get(level) {
            self.walk(*next, rest, false, found);
        }
        if let (Some(next), false) = (node.plus, reserved) {
            self.walk(next, rest, false, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The single matcher, the table, and the expectation must say the same.
    fn check(pattern: &str, topic: &str, expected: bool) {
        let filter = TopicFilter::new(pattern).expect("a valid filter");
        assert_eq!(filter.matches(topic), expected, "{pattern} against {topic}");
        let mut table = TopicTable::default();
        table.insert("other/+/#", 0);
        table.insert(filter.pattern(), 1);
        let mut found = Vec::new();
        table.matches(topic, |k| found.push(*k));
        assert_eq!(found.contains(&1), expected, "table: {pattern} against {topic}");
    }

    #[test]
    fn wildcards_of_mqtt5_4_7_1() {
        check("plant/+/temp", "plant/7/temp", true);
        check("plant/+/temp", "plant/7/8/temp", false);
        check("plant/#", "plant", true); // "#" includes the parent level, §4.7.1.2
        check("plant/#", "plant/7/temp", true);
        check("+", "plant", true);
        check("+", "/plant", false);
        check("+/+", "/plant", true);
        check("/+", "/plant", true);
        check("#", "a/b/c", true);
        check("a//b", "a//b", true);
        check("a/+/b", "a//b", true);
        check("a/b/", "a/b", false);
    }

    #[test]
    fn wildcards_do_not_match_a_leading_dollar_4_7_2_1() {
        check("#", "$SYS/broker", false);
        check("+/broker", "$SYS/broker", false);
        check("$SYS/#", "$SYS/broker", true);
        check("$SYS/+", "$SYS/broker", true);
        check("$share/g/#", "a/b", true);
    }

    #[test]
    fn malformed_filters_are_refused() {
        for bad in [
            "",
            "a#",
            "#/a",
            "a/#/b",
            "+a",
            "a/b+",
            "a\0",
            "$share",
            "$share/g",
            "$share/g/",
            "$share//t",
            "$share/+/t",
        ] {
            assert!(TopicFilter::new(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(TopicFilter::new("/".repeat(200)).is_err());
        assert_eq!(check_name("a/+"), Err(TopicError::WildcardInName));
    }

    #[test]
    fn a_shared_filter_knows_its_group_and_pattern() {
        let filter = TopicFilter::new("$share/workers/jobs/#").expect("valid");
        assert_eq!((filter.share_group(), filter.pattern()), (Some("workers"), "jobs/#"));
    }

    #[test]
    fn the_table_gives_back_what_it_no_longer_needs() {
        let mut table = TopicTable::default();
        assert!(table.insert("a/b/c", 1));
        assert!(!table.insert("a/b/c", 1));
        assert!(table.insert("a/+/#", 2));
        assert!(table.remove("a/b/c", &1));
        assert!(!table.remove("a/b/c", &1));
        assert!(table.remove("a/+/#", &2));
        assert!(table.is_empty());
        assert!(table.nodes[0].is_bare());
        assert_eq!(table.free.len() + 1, table.nodes.len());
    }
}
