//! Reads what people wrote — files, environment, `--set` — into one tree, and checks each value against the schema
//! where it stands, so that every slip is reported with its place and not just the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::issue::{Issue, Origin, closest};
use super::schema::{Field, Kind};

/// Larger files are refused unread: a configuration is written by hand.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Environment variables of the configuration begin like this; sections are separated by two underscores.
pub const ENV_PREFIX: &str = "OUTPOST_";

/// The values read so far, where each came from, and what is wrong.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub values: Table,
    /// Dotted path → the place of the value.
    pub origins: BTreeMap<String, Origin>,
    pub issues: Vec<Issue>,
}

impl Tree {
    /// Reads one file on top of what is there: later values win, lists of tables grow.
    pub fn read_file(&mut self, path: &Path, fields: &[Field]) {
        match read_text(path) {
            Ok(text) => self.read_text(path, &text, fields),
            Err(cause) => self.issue(
                Origin::File { path: path.to_owned(), line: 1, column: 1 },
                "",
                format!("cannot read this file: {cause}"),
                None,
            ),
        }
    }

    fn read_text(&mut self, path: &Path, text: &str, fields: &[Field]) {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            self.issue(
                Origin::in_file(path, text, at),
                "",
                error.message().replace('\n', ", "),
                None,
            );
        }
        let mut values = std::mem::take(&mut self.values);
        Walk { tree: self, path, text }.section(table.get_ref(), fields, "", &mut values);
        self.values = values;
    }

    /// Takes `OUTPOST_LISTEN__MQTT__BIND=…`; variables without two underscores in a row are not the configuration's.
    pub fn read_env(
        &mut self,
        variables: impl Iterator<Item = (String, String)>,
        fields: &[Field],
    ) {
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX).filter(|rest| rest.contains("__"))
            else {
                continue;
            };
            let dotted = rest.to_ascii_lowercase().replace("__", ".");
            self.set(&dotted, &text, &Origin::Env(name.clone()), fields);
        }
    }

    /// Takes `listen.mqtt.bind=…`.
    pub fn read_set(&mut self, assignment: &str, fields: &[Field]) {
        let origin = Origin::Set(assignment.to_owned());
        match assignment.split_once('=') {
            Some((dotted, text)) => self.set(dotted.trim(), text.trim(), &origin, fields),
            None => self.issue(
                origin,
                "",
                "is not an assignment".into(),
                Some("write --set key=value".into()),
            ),
        }
    }

    fn set(&mut self, dotted: &str, text: &str, origin: &Origin, fields: &[Field]) {
        let field = match find(dotted, fields) {
            Ok(field) => field,
            Err(help) => return self.issue(origin.clone(), dotted, "unknown key".into(), help),
        };
        match from_text(&field.kind, text) {
            Ok(value) => {
                put(&mut self.values, dotted, value);
                self.origins.insert(dotted.to_owned(), origin.clone());
            }
            Err(message) => self.issue(origin.clone(), dotted, message, None),
        }
    }

    pub fn issue(&mut self, origin: Origin, key: &str, message: String, help: Option<String>) {
        self.issues.push(Issue { origin, key: key.to_owned(), message, help });
    }

    /// Where the value of a key, or of the nearest section around it, was set.
    pub fn origin(&self, dotted: &str) -> Origin {
        let mut path = dotted;
        loop {
            if let Some(origin) = self.origins.get(path) {
                return origin.clone();
            }
            match path.rsplit_once('.') {
                Some((outer, _)) => path = outer,
                None => return Origin::Default,
            }
        }
    }
}

/// `conf.d/*.toml` beside a file, in the order of their names.
///
/// # Errors
/// When the directory is there and cannot be read.
pub(super) fn drop_ins(file: &Path) -> std::io::Result<Vec<PathBuf>> {
    let directory = file.parent().unwrap_or_else(|| Path::new("")).join("conf.d");
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = std::fs::metadata(path).map_err(|cause| cause.to_string())?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("it has {bytes} bytes, more than {FILE_BYTES_MAX}"));
    }
    std::fs::read_to_string(path).map_err(|cause| cause.to_string())
}

/// Goes through one parsed file beside the schema.
struct Walk<'a> {
    tree: &'a mut Tree,
    path: &'a Path,
    text: &'a str,
}

impl Walk<'_> {
    fn section(&mut self, table: &DeTable<'_>, fields: &[Field], prefix: &str, into: &mut Table) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let dotted = join(prefix, name);
            let Some(field) = fields.iter().find(|field| field.key == name) else {
                let origin = Origin::in_file(self.path, self.text, key.span().start);
                let help = suggestion(name, fields);
                self.tree.issue(origin, &dotted, "unknown key".into(), Some(help));
                continue;
            };
            let origin = Origin::in_file(self.path, self.text, value.span().start);
            self.tree.origins.insert(dotted.clone(), origin);
            self.value(value, field, &dotted, into);
        }
    }

    fn value(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        field: &Field,
        dotted: &str,
        into: &mut Table,
    ) {
        match (&field.kind, value.get_ref()) {
            (Kind::Section(inner), DeValue::Table(table)) => {
                let place = into.entry(field.key).or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(place) = place {
                    self.section(table, &inner(), dotted, place);
                }
            }
            (Kind::Entries(inner), DeValue::Array(entries)) => {
                let place = into.entry(field.key).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(place) = place {
                    for entry in entries {
                        place.push(Value::Table(self.entry(
                            entry,
                            &inner(),
                            &format!("{dotted}[{}]", place.len()),
                        )));
                    }
                }
            }
            (kind, found) => match from_toml(kind, found) {
                Ok(value) => {
                    into.insert(field.key.to_owned(), value);
                }
                Err(message) => {
                    let origin = Origin::in_file(self.path, self.text, value.span().start);
                    self.tree.issue(origin, dotted, message, None);
                }
            },
        }
    }

    fn entry(&mut self, entry: &Spanned<DeValue<'_>>, fields: &[Field], dotted: &str) -> Table {
        let mut values = Table::new();
        let origin = Origin::in_file(self.path, self.text, entry.span().start);
        self.tree.origins.insert(dotted.to_owned(), origin.clone());
        let DeValue::Table(table) = entry.get_ref() else {
            let message = format!("expected a table, found {}", entry.get_ref().type_str());
            self.tree.issue(origin, dotted, message, None);
            return values;
        };
        self.section(table, fields, dotted, &mut values);
        for field in fields.iter().filter(|field| field.required) {
            if !table.contains_key(field.key) {
                self.tree.issue(
                    origin.clone(),
                    &join(dotted, field.key),
                    "is missing".into(),
                    None,
                );
            }
        }
        values
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}

fn suggestion(name: &str, fields: &[Field]) -> String {
    let known = || fields.iter().map(|field| field.key);
    match closest(name, known()) {
        Some(close) => format!("did you mean {close:?}?"),
        None => format!("known here: {}", known().collect::<Vec<_>>().join(", ")),
    }
}

/// Looks a dotted path up in the schema; the error is the help for it.
fn find(dotted: &str, fields: &[Field]) -> Result<Field, Option<String>> {
    let (key, rest) =
        dotted.split_once('.').map_or((dotted, None), |(key, rest)| (key, Some(rest)));
    let field = fields
        .iter()
        .find(|field| field.key == key)
        .ok_or_else(|| Some(suggestion(key, fields)))?;
    match (&field.kind, rest) {
        (Kind::Section(inner), Some(rest)) => find(rest, &inner()),
        (Kind::Section(_), None) => Err(Some("it is a section; name a key in it".into())),
        (Kind::Entries(_), _) => Err(Some("lists of tables can only stand in a file".into())),
        (_, Some(_)) => Err(Some(format!("{key:?} has no keys below it"))),
        (_, None) => Ok(field.clone()),
    }
}

fn put(table: &mut Table, dotted: &str, value: Value) {
    match dotted.split_once('.') {
        None => {
            table.insert(dotted.to_owned(), value);
        }
        Some((key, rest)) => {
            let place = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(place) = place {
                put(place, rest, value);
            }
        }
    }
}

/// A value outside of a file is plain text; lists are separated by commas.
fn from_text(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Bool => match text {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(format!("expected {}, found {text:?}", kind.words())),
        },
        Kind::Integer { .. } => match text.replace('_', "").parse() {
            Ok(number) => checked_integer(kind, number),
            Err(_) => Err(format!("expected {}, found {text:?}", kind.words())),
        },
        Kind::Texts => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(items.map(|item| Value::String(item.to_owned())).collect()))
        }
        _ => checked_text(kind, text),
    }
}

fn from_toml(kind: &Kind, value: &DeValue<'_>) -> Result<Value, String> {
    let wrong = || format!("expected {}, found {}", kind.words(), described(value));
    match (kind, value) {
        (Kind::Bool, DeValue::Boolean(is)) => Ok(Value::Boolean(*is)),
        (Kind::Integer { .. }, DeValue::Integer(digits)) => {
            let number =
                i64::from_str_radix(digits.as_str(), digits.radix()).map_err(|_| wrong())?;
            checked_integer(kind, number)
        }
        (Kind::Texts, DeValue::Array(items)) => items
            .iter()
            .map(|item| {
                item.get_ref().as_str().map(|text| Value::String(text.to_owned())).ok_or_else(wrong)
            })
            .collect::<Result<_, _>>()
            .map(Value::Array),
        (Kind::Text | Kind::Choice(_) | Kind::Address | Kind::Path, DeValue::String(text)) => {
            checked_text(kind, text)
        }
        _ => Err(wrong()),
    }
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(digits) => format!("the number {}", digits.as_str()),
        DeValue::Float(digits) => format!("the number {}", digits.as_str()),
        DeValue::Boolean(is) => is.to_string(),
        other => format!("a value of type {}", other.type_str()),
    }
}

fn checked_integer(kind: &Kind, number: i64) -> Result<Value, String> {
    match kind {
        Kind::Integer { min, max } if !(*min..=*max).contains(&number) => {
            Err(format!("{number} is out of range; allowed is {min} to {max}"))
        }
        _ => Ok(Value::Integer(number)),
    }
}

fn checked_text(kind: &Kind, text: &str) -> Result<Value, String> {
    let wrong = || format!("expected {}, found {text:?}", kind.words());
    match kind {
        Kind::Choice(words) if !words.contains(&text) => match closest(text, words.iter().copied())
        {
            Some(close) => Err(format!("{}; did you mean {close:?}?", wrong())),
            None => Err(wrong()),
        },
        Kind::Address if text.parse::<std::net::SocketAddr>().is_err() => Err(wrong()),
        Kind::Path if text.is_empty() => Err(wrong()),
        _ => Ok(Value::String(text.to_owned())),
    }
}
