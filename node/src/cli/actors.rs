//! `outpost actors`: both weights of actor as one tree.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use serde::Deserialize;

use super::api::{Api, encoded};
use super::failure::Failure;
use super::output::{self, Paint};
use crate::http::ActorInfo;

/// Show the node's actors as a tree: who supervises whom, and how they are
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost actors\n  outpost actors --state quarantined\n  outpost actors --json | jq '.actors[] | select(.restarts > 0)'"
)]
pub struct Actors {
    /// Only actors in this state (running, restarting, quarantined, hibernated)
    #[arg(long, value_name = "STATE")]
    state: Option<String>,
    /// Only actors of this role (shard, session, channel, …)
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
    /// Children shown below one actor; those that are not well are always shown
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

#[derive(Deserialize)]
struct Answer {
    actors: Vec<ActorInfo>,
}

impl Actors {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] with the node's words.
    pub fn run(self) -> Result<(), Failure> {
        let filters = [("state", &self.state), ("role", &self.role)];
        let query = filters.iter().filter_map(|(key, value)| {
            value.as_ref().map(|value| format!("{key}={}", encoded(value)))
        });
        let body =
            self.api.get(&format!("/api/v1/actors?{}", query.collect::<Vec<_>>().join("&")))?;
        if self.json {
            return output::print(&format!("{body:#}\n"));
        }
        let answer: Answer = serde_json::from_value(body)
            .map_err(|why| Failure::new(format!("the node's answer is not known here: {why}")))?;
        output::print(&tree(&answer.actors, self.limit, Paint::for_stdout()))
    }
}

/// Draws the tree. An actor whose parent is not in the list stands at the left.
fn tree(actors: &[ActorInfo], limit: usize, paint: Paint) -> String {
    let known: BTreeMap<&str, &ActorInfo> =
        actors.iter().map(|actor| (actor.id.as_str(), actor)).collect();
    let mut children: BTreeMap<Option<&str>, Vec<&ActorInfo>> = BTreeMap::new();
    for actor in actors {
        let parent = actor
            .parent
            .as_deref()
            .filter(|parent| known.contains_key(parent) && *parent != actor.id);
        children.entry(parent).or_default().push(actor);
    }
    let mut drawing = Drawing { children, limit, paint, out: String::new() };
    drawing.below(None, "", 0);
    let unwell = actors.iter().filter(|actor| !is_well(actor)).count();
    let _ = writeln!(drawing.out, "{} actors, {unwell} not well", actors.len());
    drawing.out
}

/// Deeper trees are cut: a circle in a node's answer must not hang its reader.
const DEPTH_MAX: usize = 32;

struct Drawing<'a> {
    children: BTreeMap<Option<&'a str>, Vec<&'a ActorInfo>>,
    limit: usize,
    paint: Paint,
    out: String,
}

impl Drawing<'_> {
    fn below(&mut self, parent: Option<&str>, indent: &str, depth: usize) {
        let Some(all) = self.children.get(&parent).cloned() else { return };
        if depth > DEPTH_MAX {
            return;
        }
        let mut well = 0;
        let mut shown = Vec::new();
        for actor in &all {
            well += usize::from(is_well(actor));
            if !is_well(actor) || well <= self.limit {
                shown.push(*actor);
            }
        }
        let hidden = all.len() - shown.len();
        for (place, actor) in shown.iter().enumerate() {
            let last = place + 1 == shown.len() && hidden == 0;
            let (branch, next) = match (depth, last) {
                (0, _) => ("", ""),
                (_, true) => ("└─ ", "   "),
                (_, false) => ("├─ ", "│  "),
            };
            let _ = writeln!(self.out, "{indent}{branch}{}", self.line(actor));
            self.below(Some(&actor.id), &format!("{indent}{next}"), depth + 1);
        }
        if hidden > 0 {
            let branch = if depth == 0 { "" } else { "└─ " };
            let _ = writeln!(
                self.out,
                "{indent}{branch}{}",
                self.paint.faint(&format!("… and {hidden} more that are well (--limit)"))
            );
        }
    }

    fn line(&self, actor: &ActorInfo) -> String {
        let state = match actor.state.as_str() {
            "running" => self.paint.good("running"),
            "hibernated" => self.paint.faint("hibernated"),
            "quarantined" => self.paint.bad("quarantined"),
            other => self.paint.fair(other),
        };
        let kind = self.paint.faint(&format!("({})", actor.kind));
        let mut line = format!("{} {} {kind}  {state}", actor.role, actor.name);
        if actor.mailbox_max > 0 {
            let _ = write!(line, "  mailbox {}/{}", actor.mailbox, actor.mailbox_max);
        }
        if actor.restarts > 0 {
            let _ = write!(line, "  restarts {}", actor.restarts);
        }
        if let Some(cause) = &actor.cause {
            let _ = write!(line, "  {}", self.paint.bad(&format!("cause: {cause}")));
        }
        if let Some(detail) = &actor.detail {
            let _ = write!(line, "  {}", self.paint.faint(detail));
        }
        line
    }
}

fn is_well(actor: &ActorInfo) -> bool {
    matches!(actor.state.as_str(), "running" | "hibernated")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(id: &str, parent: Option<&str>, role: &str, state: &str) -> ActorInfo {
        ActorInfo {
            id: id.into(),
            parent: parent.map(Into::into),
            kind: if parent == Some("s0") { "cell" } else { "ractor" }.into(),
            role: role.into(),
            name: id.into(),
            state: state.into(),
            mailbox: 1,
            mailbox_max: 256,
            restarts: u64::from(state == "quarantined") * 5,
            cause: (state == "quarantined").then(|| "panicked: index out of bounds".into()),
            detail: None,
        }
    }

    #[test]
    fn both_weights_stand_in_one_tree_and_the_unwell_are_never_hidden() {
        let actors = [
            actor("node", None, "node", "running"),
            actor("s0", Some("node"), "shard", "running"),
            actor("dev-1", Some("s0"), "session", "running"),
            actor("dev-2", Some("s0"), "session", "running"),
            actor("dev-3", Some("s0"), "session", "quarantined"),
            actor("store", Some("node"), "store", "running"),
        ];
        let expected = "\
node node (ractor)  running  mailbox 1/256
├─ shard s0 (ractor)  running  mailbox 1/256
│  ├─ session dev-1 (cell)  running  mailbox 1/256
│  ├─ session dev-3 (cell)  quarantined  mailbox 1/256  restarts 5  cause: panicked: index out of bounds
│  └─ … and 1 more that are well (--limit)
└─ … and 1 more that are well (--limit)
6 actors, 1 not well
";
        assert_eq!(tree(&actors, 1, Paint::off()), expected);
    }

    #[test]
    fn a_circle_in_the_answer_ends() {
        let actors = [
            actor("a", Some("b"), "x", "running"),
            actor("b", Some("a"), "x", "running"),
            actor("c", Some("c"), "x", "running"),
        ];
        assert_eq!(
            tree(&actors, 5, Paint::off()),
            "x c (ractor)  running  mailbox 1/256\n3 actors, 0 not well\n"
        );
    }
}
