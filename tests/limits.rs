//! The reference of limits, the guides and a node agree: each metric they name is there to be scraped.

use std::collections::BTreeSet;
use std::path::Path;

use outpost_node::Hooks;

use crate::support::http;
use crate::support::node::TestNode;

/// Keys of the configuration with no effect that can be counted: they shorten or lengthen what goes on for everybody and
/// always, or say how much of what is past is remembered.
const UNSEEN: [&str; 6] = [
    "inflight_max",
    "keep_alive_s_max",
    "rate_bytes_max",
    "shadow_history_each_max",
    "shadow_history_max",
    "topic_alias_out_max",
];

fn page(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of metrics in code spans; what follows the name, such as labels, is left out.
fn metrics(text: &str) -> BTreeSet<&str> {
    let code = text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("outpost_"));
    code.map(|code| {
        code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or(code)
    })
    .filter(|name| !name.ends_with('_'))
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_metric_that_is_named_is_there() {
    let node = TestNode::start_with(|_| {}, Hooks::default()).await;
    let (status, scraped) = http::get(node.http(), "/metrics").await;
    let scraped = scraped.as_str().expect("a text");
    assert_eq!(status, 200);
    let there: BTreeSet<&str> = scraped
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let mut missing = Vec::new();
    let files = ["reference/limits.md", "guides/overload.md", "guides/durability.md"];
    for file in files {
        let text = page(file);
        let named = metrics(&text);
        assert!(named.len() > 3, "{file} names some");
        let not_there = named.iter().filter(|name| !there.contains(**name));
        missing.extend(not_there.map(|name| format!("{file}: {name}")));
    }
    assert!(missing.is_empty(), "no such metric: {missing:#?}");
}

#[test]
fn each_limit_of_the_configuration_that_can_bite_names_its_metric() {
    let text = page("reference/limits.md");
    let section = text.split("## Configuration").nth(1).expect("it is there");
    let section = section.split("\n## ").next().expect("there is something before the next");
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    let is_unseen = |row: &&&str| UNSEEN.iter().any(|name| row.starts_with(&format!("| `{name}`")));
    let silent: Vec<&&str> = rows
        .iter()
        .filter(|row| !row.contains("`outpost_"))
        .filter(|row| !is_unseen(row))
        .collect();
    assert!(silent.is_empty(), "no metric named: {silent:#?}");
}
