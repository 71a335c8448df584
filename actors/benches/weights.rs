//! What do the two weights of actor cost? Expected: a cell a tenth of a ractor actor, in memory and in time.
//!
//! `cargo bench -p outpost-actors --bench weights` prints memory of an idle actor, time of a message, and the ratios.
//! Memory is the growth of the process's resident set, time is the processor's, both in one run.

use std::time::Duration;

use outpost_actors::cell::Cells;
use outpost_flow::RestartPolicy;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

const ACTORS: usize = 50_000;
const MESSAGES: u64 = 2_000_000;

struct Counter;

impl Actor for Counter {
    type Msg = u64;
    type State = u64;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<u64>, (): ()) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(
        &self,
        _: ActorRef<u64>,
        n: u64,
        sum: &mut u64,
    ) -> Result<(), ActorProcessingErr> {
        *sum += n;
        Ok(())
    }
}

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    // Each kind in a process of its own: memory given back by one would hide that of the next.
    if let Ok(kind) = std::env::var("OUTPOST_BENCH_KIND") {
        let (bytes, nanos) = match kind.as_str() {
            "cell" => cells(),
            "task" => runtime().block_on(tasks()),
            _ => runtime().block_on(ractors()),
        };
        return println!("{bytes} {nanos}");
    }
    println!("{ACTORS} idle actors; {MESSAGES} messages to one of them");
    let [cell, task, ractor] = ["cell", "task", "ractor"].map(measure);
    for (name, (bytes, nanos)) in
        [("cell", cell), ("tokio task, bounded channel", task), ("ractor", ractor)]
    {
        println!("{name:<28} {bytes:>8.0} B/actor {nanos:>8.1} ns CPU/message");
    }
    println!(
        "ractor / cell                {:>8.1} x        {:>8.1} x",
        ractor.0 / cell.0,
        ractor.1 / cell.1
    );
}

fn measure(kind: &str) -> (f64, f64) {
    let own = std::env::current_exe().expect("a bench knows where it is");
    let output = std::process::Command::new(own)
        .env("OUTPOST_BENCH_KIND", kind)
        .output()
        .expect("it can be run again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().expect("two numbers"));
    (numbers.next().expect("bytes"), numbers.next().expect("nanoseconds"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn per_actor(before: u64) -> f64 {
    (resident_bytes() - before) as f64 / ACTORS as f64
}

fn per_message(before: Duration) -> f64 {
    cpu().saturating_sub(before).as_nanos() as f64 / MESSAGES as f64
}

fn cells() -> (f64, f64) {
    let before = resident_bytes();
    let mut cells: Cells<u64, u64, ()> = Cells::new(RestartPolicy::default());
    let ids: Vec<_> = (0..ACTORS).map(|_| cells.spawn((), 0)).collect();
    let bytes = per_actor(before);
    let before = cpu();
    for n in 0..MESSAGES {
        cells.send(ids[7], n).expect("it is handled at once");
        let (to, n) = cells.next_message().expect("just sent");
        cells.turn(to, 0, |sum| *sum += n);
    }
    (bytes, per_message(before))
}

async fn tasks() -> (f64, f64) {
    let before = resident_bytes();
    let mut senders = Vec::with_capacity(ACTORS);
    for _ in 0..ACTORS {
        let (sender, mut messages) = mpsc::channel::<u64>(256);
        tokio::spawn(async move {
            let mut sum = 0;
            while let Some(n) = messages.recv().await {
                sum += n;
            }
            sum
        });
        senders.push(sender);
    }
    tokio::task::yield_now().await;
    let bytes = per_actor(before);
    let before = cpu();
    for n in 0..MESSAGES {
        senders[7].send(n).await.expect("the task runs");
    }
    (bytes, per_message(before))
}

async fn ractors() -> (f64, f64) {
    let before = resident_bytes();
    let mut actors = Vec::with_capacity(ACTORS);
    for _ in 0..ACTORS {
        actors.push(Actor::spawn(None, Counter, ()).await.expect("it starts").0);
    }
    let bytes = per_actor(before);
    let before = cpu();
    for n in 0..MESSAGES {
        actors[7].cast(n).expect("it runs");
        if n % 256 == 0 {
            tokio::task::yield_now().await; // its mailbox has no bound of its own
        }
    }
    (bytes, per_message(before))
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("resident pages");
    pages * 4096
}

/// CPU time of this process, user and system.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}
