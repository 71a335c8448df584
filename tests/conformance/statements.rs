//! Every normative statement of both standards has a test or a reason why it can have none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The standards: how tests name them, and where their statements stand.
const STANDARDS: [(&str, &str); 2] = [("MQTT 5", "mqtt_5.txt"), ("MQTT 3.1.1", "mqtt_3_1_1.txt")];
/// Where tests that name statements are.
const TESTS: [&str; 3] = ["tests", "core/mqtt", "actors/tests"];
/// Where the others are listed.
const PAGE: &str = "docs/reference/mqtt_conformance.md";

#[test]
fn every_statement_has_a_test_or_a_reason() {
    for (standard, list) in STANDARDS {
        let statements = statements(list);
        let tested = tested(standard);
        let excused = excused(standard);
        let unknown: Vec<_> =
            tested.keys().chain(excused.keys()).filter(|id| !statements.contains(*id)).collect();
        assert!(unknown.is_empty(), "not statements of {standard}: {unknown:?}");
        let missing: Vec<_> = statements
            .iter()
            .filter(|id| !tested.contains_key(*id) && !excused.contains_key(*id))
            .collect();
        assert!(
            missing.is_empty(),
            "{standard}: neither a test nor a reason in {PAGE}: {missing:?}"
        );
        let both: Vec<_> = excused.keys().filter(|id| tested.contains_key(*id)).collect();
        assert!(both.is_empty(), "{standard}: a test, and a reason for having none: {both:?}");
        assert!(excused.values().all(|why| why.len() > 10), "{standard}: a reason is a sentence");
    }
}

/// The statements of a standard, a line each.
fn statements(list: &str) -> BTreeSet<String> {
    let path = root().join("tests/conformance").join(list);
    let text =
        std::fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Statements that tests name in their doc comments, `/// MQTT 5: 3.1.0-1, 3.1.0-2`, each above a `#[test]`.
fn tested(standard: &str) -> BTreeMap<String, PathBuf> {
    let mut tested = BTreeMap::new();
    let mut folders: Vec<_> = TESTS.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of ours").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source of ours");
                tested.extend(named(&text, standard).into_iter().map(|id| (id, path.clone())));
            }
        }
    }
    tested
}

fn named(text: &str, standard: &str) -> Vec<String> {
    let mut named = Vec::new();
    let mut waiting = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(ids) = line
            .strip_prefix("/// ")
            .and_then(|line| line.strip_prefix(standard)?.strip_prefix(": "))
        {
            waiting.extend(ids.split(", ").map(str::to_owned));
        } else if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
            named.append(&mut waiting);
        } else if !line.starts_with("///") && !line.starts_with("#[") {
            waiting.clear();
        }
    }
    named
}

/// Rows of the page: `| MQTT 5 | 3.1.2-20 | why |`.
fn excused(standard: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join(PAGE)).expect("the page");
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        (cells.len() == 3 && cells[0] == standard)
            .then(|| (cells[1].to_owned(), cells[2].to_owned()))
    });
    rows.flat_map(|(ids, why)| {
        ids.split(", ").map(|id| (id.to_owned(), why.clone())).collect::<Vec<_>>()
    })
    .collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}
