//! Which shadow is meant, and the AWS topics that say so.

/// The longest thing name AWS IoT allows.
pub const THING_BYTES_MAX: usize = 128;
/// The longest shadow name AWS IoT allows.
pub const NAME_BYTES_MAX: usize = 64;

/// One shadow: a thing's classic shadow, or one of its named ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShadowKey {
    /// The thing, 1 to 128 of `[a-zA-Z0-9:_-]`.
    pub thing: String,
    /// `None` is the classic shadow; else 1 to 64 of `[$a-zA-Z0-9:_-]`.
    pub name: Option<String>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Show the document.
    Get,
    /// Change parts of it.
    Update,
    /// Take it away.
    Delete,
}

impl Verb {
    /// The word as it stands in topics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// Reads a request topic: `$aws/things/T/shadow[/name/N]/{get|update|delete}` and nothing else. The names may be none
/// that are allowed; then the request is refused in the words of the service.
pub fn parse_topic(topic: &str) -> Option<(ShadowKey, Verb)> {
    let rest = topic.strip_prefix("$aws/things/")?;
    let (thing, rest) = rest.split_once("/shadow/")?;
    let (name, verb) = match rest.strip_prefix("name/") {
        Some(named) => {
            let (name, verb) = named.split_once('/')?;
            (Some(name.to_owned()), verb)
        }
        None => (None, rest),
    };
    let verb = [Verb::Get, Verb::Update, Verb::Delete].into_iter().find(|v| v.word() == verb)?;
    Some((ShadowKey { thing: thing.to_owned(), name }, verb))
}

impl ShadowKey {
    /// The thing's classic shadow.
    pub fn classic(thing: &str) -> Self {
        Self { thing: thing.to_owned(), name: None }
    }

    /// One of the thing's named shadows.
    pub fn named(thing: &str, name: &str) -> Self {
        Self { thing: thing.to_owned(), name: Some(name.to_owned()) }
    }

    /// Both names have allowed lengths and characters.
    pub fn is_valid(&self) -> bool {
        self.wrong_name().is_none()
    }

    /// Which of the two names is not allowed, in a sentence.
    pub fn wrong_name(&self) -> Option<&'static str> {
        if !is_name(&self.thing, THING_BYTES_MAX, "") {
            Some("Invalid thing name: it has 1 to 128 of a-z A-Z 0-9 : _ -")
        } else if self.name.as_deref().is_some_and(|name| !is_name(name, NAME_BYTES_MAX, "$")) {
            Some("Invalid shadow name: it has 1 to 64 of $ a-z A-Z 0-9 : _ -")
        } else {
            None
        }
    }

    /// A topic of this shadow, for example `topic("update/accepted")`.
    pub fn topic(&self, tail: &str) -> String {
        match &self.name {
            None => format!("$aws/things/{}/shadow/{tail}", self.thing),
            Some(name) => format!("$aws/things/{}/shadow/name/{name}/{tail}", self.thing),
        }
    }

    /// As AWS names it in its error messages.
    pub(crate) fn spoken(&self) -> String {
        match &self.name {
            None => self.thing.clone(),
            Some(name) => format!("{}~{name}", self.thing),
        }
    }
}

fn is_name(text: &str, max: usize, more: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":_-".contains(c) || more.contains(c);
    (1..=max).contains(&text.len()) && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_topics_are_read_and_others_are_not() {
        assert_eq!(
            parse_topic("$aws/things/lamp/shadow/get"),
            Some((ShadowKey::classic("lamp"), Verb::Get))
        );
        let named = parse_topic("$aws/things/lamp/shadow/name/cfg-1/update");
        assert_eq!(named, Some((ShadowKey::named("lamp", "cfg-1"), Verb::Update)));
        for other in [
            "$aws/things/lamp/shadow/update/accepted",
            "$aws/things/lamp/shadow/name/cfg/update/delta",
            "$aws/things/lamp/shadow/name/update",
            "aws/things/lamp/shadow/get",
            "$aws/things/lamp/shadow/put",
        ] {
            assert_eq!(parse_topic(other), None, "{other}");
        }
    }

    #[test]
    fn names_that_are_not_allowed_are_named() {
        for (topic, wrong) in [
            ("$aws/things//shadow/get", "thing"),
            ("$aws/things/a b/shadow/get", "thing"),
            ("$aws/things/a/b/shadow/get", "thing"),
            ("$aws/things/$a/shadow/get", "thing"),
            ("$aws/things/a/shadow/name/b.c/get", "shadow"),
        ] {
            let (key, _) = parse_topic(topic).expect("the shape of a request");
            let why = key.wrong_name().expect("a wrong name");
            assert!(why.starts_with(&format!("Invalid {wrong} name")), "{topic}: {why}");
        }
        assert!(!ShadowKey::classic(&"t".repeat(129)).is_valid());
        assert!(!ShadowKey::named("t", &"n".repeat(65)).is_valid());
        assert!(ShadowKey::named(&"t".repeat(128), &"n".repeat(64)).is_valid());
    }

    #[test]
    fn a_topic_of_a_key_is_read_back() {
        for key in [ShadowKey::classic("t"), ShadowKey::named("t", "$n")] {
            assert_eq!(parse_topic(&key.topic("delete")), Some((key, Verb::Delete)));
        }
    }
}
