//! Rule filters as a tree of levels, asked in two ways: which rules cover a pattern, and which overlap it.

use std::collections::HashMap;

use super::Subject;
use super::template::{Filled, Template};

/// How a level ranks among rules that match the same topic; the greater decides. A rule's rank is the list of these.
const ANY_BELOW: u8 = 0;
const ANY_LEVEL: u8 = 1;
const PLAIN: u8 = 2;
const END: u8 = 3;

/// The tree. Node 0 is the root.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    exact: HashMap<Box<str>, usize>,
    /// Levels with a placeholder, in the order met.
    templates: Vec<(Template, usize)>,
    plus: Option<usize>,
    /// Rules whose filter ends here, with their rank.
    here: Vec<Leaf>,
    /// Rules whose filter ends here with `#`.
    below: Vec<Leaf>,
}

#[derive(Debug)]
struct Leaf {
    rank: Box<[u8]>,
    rule: usize,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

/// Called with the rank and the index of each rule found.
type Found<'f, 'a> = &'f mut dyn FnMut(&'a [u8], usize);

impl Tree {
    /// Adds a rule under its (checked) filter.
    pub(super) fn insert(&mut self, filter: &str, rule: usize) {
        let mut at = 0;
        let mut rank = Vec::new();
        for level in filter.split('/') {
            if level == "#" {
                rank.push(ANY_BELOW);
                self.nodes[at].below.push(Leaf { rank: rank.into(), rule });
                return;
            }
            rank.push(if level == "+" { ANY_LEVEL } else { PLAIN });
            at = self.child_or_new(at, level);
        }
        rank.push(END);
        self.nodes[at].here.push(Leaf { rank: rank.into(), rule });
    }

    fn child_or_new(&mut self, at: usize, level: &str) -> usize {
        let new = self.nodes.len();
        let node = &mut self.nodes[at];
        let child = if level == "+" {
            *node.plus.get_or_insert(new)
        } else if let Some(template) = Template::parse(level) {
            let known = node
                .templates
                .iter()
                .find(|(other, _)| *other == template)
                .map(|(_, child)| *child);
            known.unwrap_or_else(|| {
                node.templates.push((template, new));
                new
            })
        } else {
            *node.exact.entry(level.into()).or_insert(new)
        };
        if child == new {
            self.nodes.push(Node::default());
        }
        child
    }

    /// Finds the rules that match every topic `pattern` matches. A placeholder without a fit id matches nothing.
    pub(super) fn covering<'a>(&'a self, pattern: &str, who: &Subject, found: Found<'_, 'a>) {
        self.walk_covering(0, Some(pattern), who, found);
    }

    fn walk_covering<'a>(
        &'a self,
        at: usize,
        rest: Option<&str>,
        who: &Subject,
        found: Found<'_, 'a>,
    ) {
        let node = &self.nodes[at];
        let reserved = at == 0 && is_reserved(rest);
        if !reserved {
            report(&node.below, found);
        }
        let Some((level, rest)) = next_level(rest) else {
            report(&node.here, found);
            return;
        };
        if level == "#" {
            return; // only a rule that ends with # covers it, and those were reported on the way down
        }
        if let (Some(child), false) = (node.plus, reserved) {
            self.walk_covering(child, rest, who, found);
        }
        if level == "+" {
            return; // no plain level covers all levels
        }
        if let Some(child) = node.exact.get(level) {
            self.walk_covering(*child, rest, who, found);
        }
        for (template, child) in &node.templates {
            if template.fill(who, at == 0) == Filled::Plain && template.is(level, who) {
                self.walk_covering(*child, rest, who, found);
            }
        }
    }

    /// Finds the rules that match some topic `pattern` matches. A placeholder whose id is unfit matches everything
    /// from its level down: these are asked for to deny.
    pub(super) fn overlapping<'a>(&'a self, pattern: &str, who: &Subject, found: Found<'_, 'a>) {
        self.walk_overlapping(0, Some(pattern), who, found);
    }

    fn walk_overlapping<'a>(
        &'a self,
        at: usize,
        rest: Option<&str>,
        who: &Subject,
        found: Found<'_, 'a>,
    ) {
        let node = &self.nodes[at];
        let reserved = at == 0 && is_reserved(rest);
        if !reserved {
            report(&node.below, found);
        }
        let Some((level, rest)) = next_level(rest) else {
            report(&node.here, found);
            return;
        };
        if level == "#" {
            return self.report_all(at, who, found);
        }
        let any = level == "+";
        if let (Some(child), false) = (node.plus, reserved) {
            self.walk_overlapping(child, rest, who, found);
        }
        if any {
            for (text, child) in &node.exact {
                if at > 0 || !text.starts_with('$') {
                    self.walk_overlapping(*child, rest, who, found);
                }
            }
        } else if let Some(child) = node.exact.get(level) {
            self.walk_overlapping(*child, rest, who, found);
        }
        for (template, child) in &node.templates {
            match template.fill(who, at == 0) {
                Filled::Plain if any || template.is(level, who) => {
                    self.walk_overlapping(*child, rest, who, found);
                }
                Filled::Unfit => self.report_all(*child, who, found),
                _ => {}
            }
        }
    }

    /// All that `#` at this node overlaps, the node itself included.
    fn report_all<'a>(&'a self, at: usize, who: &Subject, found: Found<'_, 'a>) {
        let mut open = vec![at];
        while let Some(next) = open.pop() {
            let node = &self.nodes[next];
            report(&node.here, found);
            report(&node.below, found);
            let root = next == 0;
            open.extend(node.plus);
            open.extend(
                node.exact
                    .iter()
                    .filter(|(t, _)| !root || !t.starts_with('$'))
                    .map(|(_, child)| *child),
            );
            open.extend(
                node.templates
                    .iter()
                    .filter(|(t, _)| t.fill(who, root) != Filled::Nothing)
                    .map(|(_, child)| *child),
            );
        }
    }
}

fn report<'a>(leaves: &'a [Leaf], found: Found<'_, 'a>) {
    for leaf in leaves {
        found(&leaf.rank, leaf.rule);
    }
}

/// Wildcards in the first level do not match a leading `$` (MQTT-4.7.2-1).
fn is_reserved(rest: Option<&str>) -> bool {
    rest.is_some_and(|r| r.starts_with('$'))
}

fn next_level(rest: Option<&str>) -> Option<(&str, Option<&str>)> {
    let rest = rest?;
    Some(rest.split_once('/').map_or((rest, None), |(level, rest)| (level, Some(rest))))
}
