//! Does a shadow that is written for long stay small? Expected: a plain automerge document grows with every write, a
//! hub's record does not.
//!
//! `cargo bench -p outpost-shadow --bench growth` writes one value again and again, into both.

use std::time::Instant;

use automerge::transaction::Transactable;
use automerge::{Automerge, ROOT};
use outpost_model::{Hlc, NodeId, Now};
use outpost_shadow::{Effect, Hub, HubConfig, Limits, ShadowKey, Verb};

const WRITES: u64 = 20_000;

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    println!("one value written {WRITES} times");
    let (saved, load_us, remote_us) = automerge();
    println!(
        "automerge, whole history   {saved:>9} B saved, {load_us:>9.0} µs to load, {remote_us:>9.1} µs a remote change"
    );
    for section in ["desired", "reported"] {
        let (bytes, write_us) = hub(section);
        println!(
            "hub, {section:<21} {bytes:>9} B kept,  {write_us:>9.1} µs a write, request and answer included"
        );
    }
}

fn automerge() -> (usize, f64, f64) {
    let mut here = Automerge::new();
    for n in 0..WRITES {
        put(&mut here, n);
    }
    let saved = here.save();
    let start = Instant::now();
    let mut there = Automerge::load(&saved).expect("own bytes");
    let load_us = start.elapsed().as_secs_f64() * 1e6;
    let heads = there.get_heads();
    put(&mut there, WRITES);
    let change = there.get_changes(&heads);
    let start = Instant::now();
    here.apply_changes(change).expect("own change");
    (saved.len(), load_us, start.elapsed().as_secs_f64() * 1e6)
}

fn put(document: &mut Automerge, n: u64) {
    let mut change = document.transaction();
    change.put(ROOT, "level", n as i64).expect("a root value");
    change.commit();
}

fn hub(section: &str) -> (usize, f64) {
    let config = HubConfig {
        node: NodeId(1),
        node_name: "bench".into(),
        limits: Limits::default(),
        hlc_ahead_ms_max: 60_000,
        rules: outpost_shadow::Rules::default(),
    };
    let mut hub = Hub::new(config, 1, Hlc::default());
    let key = ShadowKey::classic("lamp");
    let start = Instant::now();
    for n in 0..WRITES {
        let now = Now { mono_ms: n, wall_ms: 1_700_000_000_000 + n * 1000 };
        let request = format!("{{\"state\":{{\"{section}\":{{\"level\":{n}}}}}}}");
        hub.handle_request(key.clone(), Verb::Update, request.as_bytes(), now);
        while let Some(effect) = hub.poll_effect() {
            assert!(matches!(effect, Effect::Commit { .. }), "nothing leaves before it is durable");
        }
    }
    (hub.stats().bytes, start.elapsed().as_secs_f64() * 1e6 / WRITES as f64)
}
