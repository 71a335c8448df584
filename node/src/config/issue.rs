//! What is wrong with a configuration, and where: one line each, in the form editors jump to.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A place in a file; line and column count from 1, columns in characters.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// Line.
        line: usize,
        /// Column.
        column: usize,
    },
    /// An environment variable.
    Env(String),
    /// The text after `--set`.
    Set(String),
    /// Nobody set it.
    Default,
}

impl Origin {
    /// The place of byte `at` in `text`, the content of the file `path`.
    pub fn in_file(path: &std::path::Path, text: &str, at: usize) -> Self {
        let mut at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &text[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self::File {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Set(text) => write!(f, "--set {text}"),
            Self::Default => write!(f, "default"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Where it stands.
    pub origin: Origin,
    /// The key with its sections, `listen.mqtt.bind`; empty when the text itself cannot be read.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// A configuration that was not taken. Whatever ran before keeps running.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration was not taken: {}", lines(.0))]
pub struct ConfigError(pub Vec<Issue>);

fn lines(issues: &[Issue]) -> String {
    use fmt::Write;
    issues.iter().fold(String::new(), |mut text, issue| {
        let _ = write!(
            text,
            "
  {issue}"
        );
        text
    })
}

/// The known word closest to `word`, if it is close enough to be a slip of the finger.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// Damerau-Levenshtein distance with adjacent transpositions (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_key_and_nonsense_finds_none() {
        let known = ["bind", "packet_max_bytes", "durability", "anonymous"];
        assert_eq!(closest("bnid", known), Some("bind"));
        assert_eq!(closest("alow_anonymous", known), Some("anonymous"));
        assert_eq!(closest("anonymus", known), Some("anonymous"));
        assert_eq!(closest("packet_bytes_max", known), None);
        assert_eq!(closest("zzz", known), None);
    }

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        let text = "a = 1\n# über\nb = \"é\" x";
        let Origin::File { line, column, .. } = Origin::in_file("f".as_ref(), text, text.len() - 1)
        else {
            panic!()
        };
        assert_eq!((line, column), (3, 9));
    }
}
