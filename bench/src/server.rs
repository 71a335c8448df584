//! What /proc says of the server, of this process and of the machine.

use std::fs;
use std::time::{Duration, Instant};

use crate::Figures;

/// A reading of the clocks.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    at: Instant,
    server: Duration,
    own: Duration,
    /// Of all cores together.
    machine: Duration,
    /// Time this process was ready to run and had no core.
    own_wait: Duration,
}

impl Reading {
    pub fn new(pid: u32) -> Self {
        let (server, _) = process(&pid.to_string());
        let (own, own_wait) = process("self");
        Self { at: Instant::now(), server, own, machine: machine_busy(), own_wait }
    }

    /// What `messages` cost the server since then, and how disturbed the time was.
    pub fn since(&self, pid: u32, messages: u64) -> Figures {
        let now = Self::new(pid);
        let seconds = (now.at - self.at).as_secs_f64();
        let (server, own) =
            (now.server.checked_sub(self.server).unwrap(), now.own.checked_sub(self.own).unwrap());
        let others = now.machine.saturating_sub(self.machine).saturating_sub(server + own);
        vec![
            ("server_us_per_message", server.as_secs_f64() * 1e6 / messages.max(1) as f64),
            ("server_cores", server.as_secs_f64() / seconds),
            ("other_cores", others.as_secs_f64() / seconds),
            (
                "load_waited",
                now.own_wait.checked_sub(self.own_wait).unwrap().as_secs_f64() / seconds,
            ),
        ]
    }

    /// CPU time of the server since then.
    pub fn server_since(&self, pid: u32) -> Duration {
        process(&pid.to_string()).0.checked_sub(self.server).unwrap()
    }
}

/// CPU time of all threads of a process, and the time they waited for a core.
fn process(pid: &str) -> (Duration, Duration) {
    let (mut ran, mut waited) = (0, 0);
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        ran += numbers.next().unwrap_or(0);
        waited += numbers.next().unwrap_or(0);
    }
    (Duration::from_nanos(ran), Duration::from_nanos(waited))
}

fn machine_busy() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0)).collect();
    let idle = ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0);
    // A hundred a second on every Linux that Debian builds.
    Duration::from_millis((ticks.iter().take(8).sum::<u64>() - idle) * 10)
}

/// Resident memory, bytes.
pub fn resident(pid: u32) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}
