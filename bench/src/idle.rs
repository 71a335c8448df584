//! Many connections that do nothing: what one costs in memory, and what coming costs in CPU.

use std::io;
use std::time::{Duration, Instant};

use crate::Figures;
use crate::client::{Client, Server};
use crate::server::{Reading, resident};

/// The server's allocator and timers settle.
const SETTLE: Duration = Duration::from_secs(2);

/// A server that has just started still changes by itself: it is not measured before it has kept still for so long.
const FLAT: Duration = Duration::from_secs(1);

/// Less than this is keeping still.
const FLAT_BYTES: f64 = 16_384.0;

/// A server that never keeps still is measured after so many looks.
const LOOKS_MAX: usize = 15;

pub fn run(server: Server, pid: u32, connections: usize) -> io::Result<Figures> {
    // The first client has the server load the code for all of them: it is no part of what one of many costs.
    let first = Client::connect(server, connections, "first", true, Some(("first", 0)))?;
    let before = flat(pid);
    let (reading, started) = (Reading::new(pid), Instant::now());
    let mut clients = Vec::with_capacity(connections);
    for number in 0..connections {
        let filter = format!("idle/{number}/command");
        let id = format!("idle-{number}");
        clients.push(Client::connect(server, number, &id, true, Some((&filter, 0)))?);
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), reading.server_since(pid));
    wait(SETTLE);
    let after = resident(pid);
    let mut scratch = vec![0; 256 * 1024].try_into().expect("its length");
    let gone = clients.iter_mut().filter_map(|c| c.read(&mut scratch, |_, _| ()).err()).count();
    let each = connections as f64;
    let mut figures = vec![
        ("rss_bytes_per_connection", (after - before) / each),
        ("rss_mb", after / 1e6),
        ("server_ms_per_1000_connects", cpu.as_secs_f64() * 1e6 / each),
        ("connects_per_second", each / seconds),
        ("lost", gone as f64),
    ];
    figures.extend(reading.since(pid, connections as u64).into_iter().skip(1));
    drop(first);
    Ok(figures)
}

/// The server's memory, once it does not change any more.
fn flat(pid: u32) -> f64 {
    let mut last = resident(pid);
    for _ in 0..LOOKS_MAX {
        wait(FLAT);
        let now = resident(pid);
        if (now - last).abs() < FLAT_BYTES {
            return now;
        }
        last = now;
    }
    last
}

#[allow(clippy::disallowed_methods, reason = "a program of one thread that measures")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}
