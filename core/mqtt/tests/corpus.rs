//! Replays the fuzz corpus in every run: what a fuzzer once found stays fixed.

use std::path::Path;

use outpost_mqtt::exercise::exercise;

/// The seeds that `examples/corpus.rs` writes; a corpus that is not found must not pass for a clean one.
const SEEDS_MIN: usize = 40;

#[test]
fn every_file_of_the_corpus_is_survived_and_is_what_its_name_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/codec");
    let mut replayed = 0;
    for entry in std::fs::read_dir(&folder).expect("fuzz/corpus/codec is part of the repository") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let found = exercise(&std::fs::read(&path).expect("readable"));
        if name.starts_with("good-") {
            assert!(found > 0, "{name} holds a packet");
        }
        if name.starts_with("bad-") {
            assert_eq!(found, 0, "{name} holds none");
        }
        replayed += 1;
    }
    assert!(replayed >= SEEDS_MIN, "{replayed} files in {}", folder.display());
}
