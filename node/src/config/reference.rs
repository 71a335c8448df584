//! Writes `docs/reference/config.md` from the declarations. A test keeps the file equal to this.

use std::fmt::Write;

use toml::Value;

use super::keys::Config;
use super::schema::{Field, Kind};

const HEAD: &str = "# Configuration

One TOML file. `outpost config check FILE` names every mistake with line and column; `outpost node -c FILE` runs it.

Later sources win: default < FILE < `conf.d/*.toml` beside it (in the order of their names) < environment variables
(`OUTPOST_LISTEN__MQTT__BIND`: two underscores between sections) < `--set listen.mqtt.bind=…`. Tables are merged key by
key, lists are replaced, and `[[lists.of.tables]]` grow. Unknown keys are errors.

This page is written from the declarations in `node/src/config/keys.rs`; a test keeps the two equal.
";

/// The page.
pub fn reference() -> String {
    let mut page = HEAD.to_owned();
    let defaults = Value::try_from(Config::default()).expect("the default is plain TOML");
    sections(&mut page, "", &Config::fields(), Some(&defaults));
    page
}

fn sections(page: &mut String, prefix: &str, fields: &[Field], defaults: Option<&Value>) {
    for field in fields {
        let dotted = if prefix.is_empty() {
            field.key.to_owned()
        } else {
            format!("{prefix}.{}", field.key)
        };
        let (inner, title) = match field.kind {
            Kind::Section(inner) => (inner(), format!("[{dotted}]")),
            Kind::Entries(inner) => (inner(), format!("[[{dotted}]]")),
            _ => continue,
        };
        let own = defaults.and_then(|table| table.get(field.key));
        let keys: Vec<_> = inner
            .iter()
            .filter(|f| !matches!(f.kind, Kind::Section(_) | Kind::Entries(_)))
            .collect();
        if !keys.is_empty() {
            line(page, &format!("\n## `{title}`\n\n{}\n", prose(field)));
            line(page, "| Key | Takes | Default | Meaning |\n|---|---|---|---|");
            for key in keys {
                let row = format!(
                    "| `{}` | {} | {} | {} |",
                    key.key,
                    key.kind.words(),
                    default(key, own),
                    prose(key)
                );
                line(page, &row);
            }
        }
        sections(page, &dotted, &inner, own);
    }
}

fn prose(field: &Field) -> String {
    let lines: Vec<_> = field.doc.iter().map(|line| line.trim()).collect();
    lines.join(" ").replace('|', "\\|")
}

fn default(field: &Field, section: Option<&Value>) -> String {
    match section.and_then(|table| table.get(field.key)) {
        _ if field.required => "must be given".into(),
        Some(value) => format!("`{value}`"),
        None => "–".into(),
    }
}

fn line(page: &mut String, text: &str) {
    writeln!(page, "{text}").expect("writing to a String does not fail");
}
