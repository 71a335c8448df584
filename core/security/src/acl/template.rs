//! A filter level with placeholders: `%c` is the client id, `%u` the user name of whoever asks.

use super::Subject;

/// Such a level, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    ClientId,
    User,
}

/// What a template becomes for one identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// A plain level.
    Plain,
    /// The id holds `+`, `#` or `/`, is empty, or would begin a topic with `$`: filled in as text it would reach
    /// further than one level of the client's own. It must allow nothing, and deny rather too much.
    Unfit,
    /// The identity has no such id, so the rule is not about it.
    Nothing,
}

impl Template {
    /// `None` when there is no placeholder in `level`.
    pub(super) fn parse(level: &str) -> Option<Self> {
        let mut parts = Vec::new();
        let mut text = level;
        while let Some((at, part)) = first_placeholder(text) {
            if at > 0 {
                parts.push(Part::Text(text[..at].into()));
            }
            parts.push(part);
            text = &text[at + 2..];
        }
        if parts.is_empty() {
            return None;
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Some(Self(parts))
    }

    pub(super) fn fill(&self, who: &Subject, first_level: bool) -> Filled {
        for (place, part) in self.0.iter().enumerate() {
            let id = match part {
                Part::Text(_) => continue,
                Part::ClientId => &who.client_id,
                Part::User => match &who.user {
                    Some(user) => user,
                    None => return Filled::Nothing,
                },
            };
            let begins_topic = first_level && place == 0;
            if id.is_empty()
                || id.contains(['+', '#', '/', '\0'])
                || (begins_topic && id.starts_with('$'))
            {
                return Filled::Unfit;
            }
        }
        Filled::Plain
    }

    /// Whether the filled template is exactly `level`.
    pub(super) fn is(&self, level: &str, who: &Subject) -> bool {
        let mut rest = level;
        for part in &self.0 {
            let text: &str = match part {
                Part::Text(text) => text,
                Part::ClientId => &who.client_id,
                Part::User => who.user.as_deref().map_or("", |user| user),
            };
            let Some(after) = rest.strip_prefix(text) else { return false };
            rest = after;
        }
        rest.is_empty()
    }
}

fn first_placeholder(text: &str) -> Option<(usize, Part)> {
    let client = text.find("%c").map(|at| (at, Part::ClientId));
    let user = text.find("%u").map(|at| (at, Part::User));
    match (client, user) {
        (Some(client), Some(user)) => Some(if client.0 < user.0 { client } else { user }),
        (client, user) => client.or(user),
    }
}
