//! Replays the corpus of the fuzz target `shadow_json`: whatever a client sends, the hub answers and does not panic.

use std::path::Path;

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
        println!("{}", file.display()); // shown when the exercise panics
        outpost_shadow::exercise::exercise(&std::fs::read(&file).expect("readable"));
    }
}
