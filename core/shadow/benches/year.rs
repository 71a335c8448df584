//! Does a shadow that is written once a second for a year stay small? Expected: both sections flat, at most 40 KB in
//! memory and 2 KB on disk, and a remote change in 0.3 ms on the last day as on the first.
//!
//! `cargo bench -p outpost-shadow --bench year` lets a year pass in virtual time: a device reports once a second, of which
//! one in 60 is carried out (the others would change the value and nothing else), and somebody writes `desired` every ten
//! minutes. Two hubs, so that each write is a remote change at the other. With `SVG=file` it also draws the curve, beside
//! a plain automerge document that takes every write of the first day.

use std::fmt::Write as _;
use std::time::Instant;

use automerge::transaction::Transactable;
use automerge::{Automerge, ROOT};
use outpost_model::{Hlc, NodeId, Now};
use outpost_shadow::{Effect, Hub, HubConfig, Limits, Output, Rules, ShadowKey, Verb};

const DAYS: u64 = 365;
/// Seconds between two writes of `reported` that are carried out.
const EVERY_S: u64 = 60;

/// What was seen at a moment.
struct Point {
    day: f64,
    memory: usize,
    row: usize,
    remote_us: f64,
}

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    let points = year();
    let automerge = plain_automerge();
    println!("{:>6} {:>12} {:>10} {:>18}", "day", "in memory B", "row B", "remote change µs");
    for point in points.iter().step_by(points.len() / 14) {
        let Point { day, memory, row, remote_us } = point;
        println!("{day:>6.0} {memory:>12} {row:>10} {remote_us:>18.1}");
    }
    let most = |of: fn(&Point) -> usize| points.iter().map(of).max().unwrap_or(0);
    println!("most: {} B in memory, {} B a row", most(|p| p.memory), most(|p| p.row));
    let last = automerge.last().expect("a day was measured");
    println!("plain automerge after {:.2} days: {} B saved", last.0, last.1);
    if let Ok(file) = std::env::var("SVG") {
        std::fs::write(&file, drawing(&points, &automerge)).expect("the file can be written");
        println!("drawn in {file}");
    }
}

fn year() -> Vec<Point> {
    let mut hubs = [hub(0), hub(1)];
    let ids = [0, 1].map(|n| NodeId::from_name(&format!("node-{n}")));
    for side in 0..2 {
        hubs[side].peer_up(ids[1 - side], at(0));
    }
    let mut row = 0;
    let mut carried = Carried::default();
    carry(&mut hubs, ids, 0, &mut row, &mut carried);
    let mut points = Vec::new();
    for second in (EVERY_S..DAYS * 86_400).step_by(EVERY_S as usize) {
        let wanted = second % 600 == 0;
        let (side, section) = if wanted { (1, "desired") } else { (0, "reported") };
        let request = format!(
            "{{\"state\":{{\"{section}\":{{\"temperature\":{},\"mode\":\"m{}\"}}}}}}",
            second % 1_000,
            second % 7
        );
        let key = ShadowKey::classic("lamp");
        hubs[side].handle_request(key, Verb::Update, request.as_bytes(), at(second));
        carry(&mut hubs, ids, second, &mut row, &mut carried);
        if second % 3_600 == 0 {
            hubs.iter_mut().for_each(|hub| hub.handle_tick(at(second)));
            carry(&mut hubs, ids, second, &mut row, &mut carried);
        }
        if second % 86_400 == 0 {
            let remote_us = carried.us / f64::from(carried.frames.max(1));
            carried = Carried::default();
            let memory = hubs[0].stats().bytes;
            points.push(Point { day: second as f64 / 86_400.0, memory, row, remote_us });
        }
    }
    points
}

/// Frames with shadows in them that were taken in, and how long that took.
#[derive(Default)]
struct Carried {
    frames: u32,
    us: f64,
}

/// Lets both disks and the link do their work at once. `row` is the last row of the first hub's shadow.
fn carry(
    hubs: &mut [Hub; 2],
    ids: [NodeId; 2],
    second: u64,
    row: &mut usize,
    carried: &mut Carried,
) {
    loop {
        let mut moved = false;
        for side in 0..2 {
            while let Some(effect) = hubs[side].poll_effect() {
                moved = true;
                let (rows, outputs) = match effect {
                    Effect::Commit { rows, then, .. } => (rows, then),
                    Effect::Now(output) => (Vec::new(), vec![output]),
                };
                let written = rows.iter().filter(|(key, _)| side == 0 && key.starts_with(b"s"));
                *row = written
                    .filter_map(|(_, value)| Some(value.as_ref()?.len()))
                    .next_back()
                    .unwrap_or(*row);
                for output in outputs {
                    let Output::ToPeer { frame, .. } = output else { continue };
                    let start = Instant::now();
                    let taken = hubs[1 - side].handle_peer_frame(ids[side], &frame, at(second));
                    taken.expect("an honest frame");
                    if frame.get(1) == Some(&1) {
                        carried.frames += 1;
                        carried.us += start.elapsed().as_secs_f64() * 1e6;
                    }
                }
            }
        }
        if !moved {
            return;
        }
    }
}

fn hub(n: u64) -> Hub {
    let node_name = format!("node-{n}");
    let node = NodeId::from_name(&node_name);
    let limits = Limits::default();
    let config =
        HubConfig { node, node_name, limits, hlc_ahead_ms_max: 60_000, rules: Rules::default() };
    Hub::new(config, n + 1, Hlc::default())
}

fn at(second: u64) -> Now {
    Now { mono_ms: second * 1_000, wall_ms: 1_700_000_000_000 + second * 1_000 }
}

/// Day and saved bytes of a document that takes each write of one day.
fn plain_automerge() -> Vec<(f64, usize)> {
    let mut document = Automerge::new();
    let mut points = Vec::new();
    for second in 1..=86_400u64 {
        let mut change = document.transaction();
        change.put(ROOT, "temperature", (second % 1_000) as i64).expect("a root value");
        change.commit();
        if second % 10_800 == 0 {
            points.push((second as f64 / 86_400.0, document.save().len()));
        }
    }
    points
}

/// Days to the right, bytes upwards, tenfold with each line.
fn drawing(points: &[Point], automerge: &[(f64, usize)]) -> String {
    let (left, top, width, height) = (70.0, 20.0, 700.0, 300.0);
    let x = |day: f64| left + width * day / DAYS as f64;
    let y = |bytes: usize| top + height * (1.0 - ((bytes.max(100) as f64).log10() - 2.0) / 4.0);
    let line = |points: &[(f64, usize)]| {
        let pairs = points.iter().map(|(day, bytes)| format!("{:.1},{:.1}", x(*day), y(*bytes)));
        pairs.collect::<Vec<_>>().join(" ")
    };
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 400\" font-family=\"sans-serif\" font-size=\"12\">\n",
    );
    out.push_str("<rect width=\"800\" height=\"400\" fill=\"white\"/>\n");
    for (bytes, name) in [
        (100, "100 B"),
        (1_000, "1 KB"),
        (10_000, "10 KB"),
        (100_000, "100 KB"),
        (1_000_000, "1 MB"),
    ] {
        let at = y(bytes);
        let _ = writeln!(
            out,
            "<path d=\"M{left} {at:.1}h{width}\" stroke=\"#ddd\"/><text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>",
            left - 6.0,
            at + 4.0
        );
    }
    for day in (0..=DAYS).step_by(73) {
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"middle\">day {day}</text>",
            x(day as f64),
            top + height + 18.0
        );
    }
    let memory: Vec<(f64, usize)> = points.iter().map(|p| (p.day, p.memory)).collect();
    let rows: Vec<(f64, usize)> = points.iter().map(|p| (p.day, p.row)).collect();
    let curves = [
        ("#1f77b4", line(&memory), "in memory while in use"),
        ("#2ca02c", line(&rows), "row on disk"),
        ("#d62728", line(automerge), "plain automerge document, saved: the first day"),
    ];
    for (at, (color, pairs, name)) in curves.iter().enumerate() {
        let _ = writeln!(
            out,
            "<polyline points=\"{pairs}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>\n<text x=\"{:.0}\" y=\"{:.0}\" fill=\"{color}\">{name}</text>",
            left + 230.0 * at as f64,
            top + height + 45.0
        );
    }
    out.push_str("<text x=\"70\" y=\"390\">One shadow, one reported write a second, one desired write in ten minutes; virtual time.</text>\n</svg>\n");
    out
}
