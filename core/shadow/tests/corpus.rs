//! Replays the corpus of the fuzz target `shadow_json`: whatever a client sends, the hub answers and does not panic.

mod support;

use std::path::Path;

use outpost_model::{Hlc, Now};
use outpost_shadow::{Effect, Hub, Limits, Output, ShadowKey, Verb};
use serde_json::Value;

#[test]
fn every_request_of_the_corpus_is_answered() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/shadow_json");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus is there")
        .map(|f| f.expect("readable").path())
        .collect();
    files.sort();
    assert!(files.len() >= 12, "the corpus has {} files", files.len());
    for file in files {
        let request = std::fs::read(&file).expect("readable");
        answer(&request, &file.display().to_string());
    }
}

/// An update, a get and a delete with these bytes: each has exactly one answer, in JSON, and the hub's rows can be read.
fn answer(request: &[u8], name: &str) {
    let config = support::config(0, &Limits::default());
    let mut hub = Hub::new(config.clone(), 1, Hlc::default());
    let now = Now { mono_ms: 0, wall_ms: 1_700_000_000_000 };
    let key = ShadowKey::classic("lamp");
    let mut rows = std::collections::BTreeMap::new();
    for (id, verb) in [Verb::Update, Verb::Update, Verb::Get, Verb::Delete].into_iter().enumerate()
    {
        hub.request(key.clone(), verb, request, id as u64, now);
        let mut answers = 0;
        while let Some(effect) = hub.poll_effect() {
            let Effect::Commit { rows: changed, then } = effect else {
                panic!("{name}: nothing goes out at once")
            };
            rows.extend(changed);
            for output in then {
                if let Output::Reply { body, .. } = output {
                    answers += 1;
                    serde_json::from_slice::<Value>(&body)
                        .unwrap_or_else(|e| panic!("{name}: {e}"));
                }
            }
        }
        assert_eq!(answers, 1, "{name}: {verb:?}");
    }
    let mut again = Hub::new(config, 2, Hlc::default());
    for (key, value) in rows {
        again
            .load_row(&key, &value.expect("nothing was forgotten"))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    assert_eq!(again.fingerprint(), hub.fingerprint(), "{name}");
}
