//! What does a device's word cost? Expected: a small write of `reported` takes the core 2 µs at most.
//!
//! `cargo bench -p outpost-shadow --bench report` prints microseconds of this thread's CPU for a write to a shadow in memory, with
//! 4 leaves in `desired` and 6 in `reported`, the best of nine runs:
//!
//! - *the core*: the stamp, the registers, the version, and the print of the visible state that merges compare. Its JSON was
//!   read before; answer, messages, history and row are not made.
//! - *the whole request in the hub*: all of these too, from the payload to the rows and messages, without MQTT and the disk.

use std::hint::black_box;

use outpost_model::{Hlc, NodeId, Now};
use outpost_shadow::exercise::Written;
use outpost_shadow::{Effect, Hub, HubConfig, Limits, Rules, ShadowKey, Verb};

/// As in a node.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WHOLE: &[u8] = br#"{"state":{"desired":{"temperature":21,"humidity":50,"battery":3,"mode":4},
    "reported":{"temperature":20,"humidity":49,"battery":5,"mode":6,"firmware":7,"uptime":8}}}"#;
const RUNS: usize = 9;

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    for (what, leaves) in [
        ("one leaf", r#""temperature":22"#),
        ("three leaves", r#""temperature":22,"humidity":48,"uptime":9"#),
    ] {
        let update = format!(r#"{{"state":{{"reported":{{{leaves}}}}}}}"#);
        let mut written = Written::new(WHOLE, update.as_bytes());
        let core = best(200_000, |n| _ = black_box(written.write(now(n))));
        let mut hub = hub();
        let whole = best(10_000, |n| request(&mut hub, update.as_bytes(), now(n)));
        println!(
            "{what:<12} the core {core:>6.2} µs, the whole request in the hub {whole:>6.1} µs"
        );
    }
}

/// Microseconds each, in the best run.
fn best(times: u64, mut work: impl FnMut(u64)) -> f64 {
    let mut run = || {
        let start = cpu_us();
        (0..times).for_each(&mut work);
        (cpu_us() - start) / times as f64
    };
    (0..RUNS).map(|_| run()).fold(f64::INFINITY, f64::min)
}

fn hub() -> Hub {
    let limits = Limits { history_max: 4_096, ..Limits::default() };
    let (node_name, rules) = ("bench".into(), Rules::default());
    let config = HubConfig { node: NodeId(1), node_name, limits, hlc_ahead_ms_max: 60_000, rules };
    let mut hub = Hub::new(config, 1, Hlc::default());
    request(&mut hub, WHOLE, now(0));
    hub
}

fn request(hub: &mut Hub, payload: &[u8], now: Now) {
    hub.request(ShadowKey::classic("dev-00000001"), Verb::Update, payload, 1, now);
    while let Some(effect) = hub.poll_effect() {
        if let Effect::Commit { number, .. } = black_box(effect) {
            hub.synced(number);
        }
    }
}

fn now(n: u64) -> Now {
    Now { mono_ms: n / 10, wall_ms: 1_700_000_000_000 + n / 10 }
}

/// What this thread has used so far.
fn cpu_us() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns: f64 = text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0.0);
    ns / 1e3
}
