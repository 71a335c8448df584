//! Words a node's stats as Prometheus metrics (text format 0.0.4).
//!
//! `{"messages": {"received_total": 7}}` becomes `outpost_messages_received_total 7`: the path is the name. Names that
//! end in `_total` are counters, all others gauges; `true` is 1. An object under a key `by_<label>` becomes one line an
//! entry with that label: `{"dropped_total": {"by_reason": {"queue_full": 2}}}` is
//! `outpost_dropped_total{reason="queue_full"} 2`, and within it again for a second label. Texts and lists are left out. Labels come from the program, never
//! from devices: a client id as label would grow without bound.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

use super::backend::Health;

/// Values of one label beyond this many are left out, so that a mistake cannot fill the scraper.
pub const LABEL_VALUES_MAX: usize = 64;

/// The page for the scraper.
pub fn render(health: &Health, stats: &Value) -> String {
    let mut samples: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    collect("outpost", "", stats, &mut samples);
    let up = if health.is_ok() { "1" } else { "0" };
    samples.insert("outpost_healthy".into(), vec![(String::new(), up.into())]);
    samples.insert(
        "outpost_uptime_seconds".into(),
        vec![(String::new(), health.uptime_s.to_string())],
    );
    let build = format!("{{version={}}}", quoted(&health.version));
    samples.insert("outpost_build_info".into(), vec![(build, "1".into())]);
    let mut page = String::new();
    for (name, lines) in samples {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        let _ = writeln!(page, "# HELP {name} {}", help(&name));
        let _ = writeln!(page, "# TYPE {name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(page, "{name}{labels} {value}");
        }
    }
    page
}

/// What is counted or measured, in the words of its path.
fn help(name: &str) -> String {
    let words = |name: &str| name.trim_start_matches("outpost_").replace('_', " ");
    match name.strip_suffix("_total") {
        Some(name) => format!("{}, counted since the start.", words(name)),
        None => format!("{}, at this moment.", words(name)),
    }
}

/// `labels` are those of the objects around, as they are written.
fn collect(
    name: &str,
    labels: &str,
    value: &Value,
    samples: &mut BTreeMap<String, Vec<(String, String)>>,
) {
    if let Some(number) = number(value) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        samples.entry(name.to_owned()).or_default().push((labels, number));
        return;
    }
    let Value::Object(entries) = value else { return };
    for (key, value) in entries {
        match (key.strip_prefix("by_"), value) {
            (Some(label), Value::Object(entries)) => {
                let comma = if labels.is_empty() { "" } else { "," };
                for (at, value) in entries.iter().take(LABEL_VALUES_MAX) {
                    let labels = format!("{labels}{comma}{}={}", word(label), quoted(at));
                    collect(name, &labels, value, samples);
                }
            }
            _ => collect(&format!("{name}_{}", word(key)), labels, value, samples),
        }
    }
}

fn number(value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(is) => Some(u8::from(*is).to_string()),
        _ => None,
    }
}

/// Metric and label names know letters, digits and underscores only.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_path_is_the_name_and_by_is_a_label() {
        let health = Health {
            status: "ok".into(),
            node: "edge-1".into(),
            version: "0.1.0".into(),
            config_sha256: String::new(),
            uptime_s: 9,
            store: "ok".into(),
        };
        let stats = json!({
            "connections": 2,
            "messages": { "received_total": 7, "dropped_total": { "by_reason": { "queue_full": 2, "a\"b": 1 } } },
            "shard-0": { "busy": true },
            "refused_total": { "by_listener": { "tls": { "by_reason": { "tls": 4 } } } },
            "text": "left out", "list": [1],
        });
        let expected = "\
# HELP outpost_build_info build info, at this moment.
# TYPE outpost_build_info gauge
outpost_build_info{version=\"0.1.0\"} 1
# HELP outpost_connections connections, at this moment.
# TYPE outpost_connections gauge
outpost_connections 2
# HELP outpost_healthy healthy, at this moment.
# TYPE outpost_healthy gauge
outpost_healthy 1
# HELP outpost_messages_dropped_total messages dropped, counted since the start.
# TYPE outpost_messages_dropped_total counter
outpost_messages_dropped_total{reason=\"a\\\"b\"} 1
outpost_messages_dropped_total{reason=\"queue_full\"} 2
# HELP outpost_messages_received_total messages received, counted since the start.
# TYPE outpost_messages_received_total counter
outpost_messages_received_total 7
# HELP outpost_refused_total refused, counted since the start.
# TYPE outpost_refused_total counter
outpost_refused_total{listener=\"tls\",reason=\"tls\"} 4
# HELP outpost_shard_0_busy shard 0 busy, at this moment.
# TYPE outpost_shard_0_busy gauge
outpost_shard_0_busy 1
# HELP outpost_uptime_seconds uptime seconds, at this moment.
# TYPE outpost_uptime_seconds gauge
outpost_uptime_seconds 9
";
        assert_eq!(render(&health, &stats), expected);
    }
}
