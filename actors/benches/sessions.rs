//! What does a session cost that waits for its client, and how soon is it awake? A million, with a subscription each.
//!
//! Expected: well under 1 KB of memory each, nothing read at start that routing has no use for, and a client that comes
//! back has its message within a millisecond, apart from what the disk needs to sync.
//!
//! `cargo bench -p outpost-actors --bench sessions [-- <count> [<folder>]]`; the folder decides which disk is used.
//! Each part runs in a process of its own: memory given back by one would hide that of the next.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outpost_actors::ports::{OpenGate, Origin};
use outpost_actors::shard::{ConnId, Shard, ShardConfig};
use outpost_model::{NodeId, Now};
use outpost_store::{DiskStore, Lsn, MemoryStore, Options, Store};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Clients that come in one turn.
const CROWD: usize = 1_000;

/// Sessions that are woken.
const WOKEN: usize = 2_000;

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let count: usize = arguments.first().map_or(1_000_000, |n| n.parse().expect("a count"));
    if let [_, folder, part] = &arguments[..] {
        return run(part, count, Path::new(folder));
    }
    println!("{count} sessions, each with one QoS 1 subscription of its own");
    let folder = std::env::temp_dir().join(format!("outpost-sessions-{}", std::process::id()));
    let folder = arguments.get(1).map_or(folder, |f| Path::new(f).join("sessions"));
    std::fs::create_dir_all(&folder).expect("a folder to write in");
    for part in ["memory", "make", "start", "start-lazy"] {
        let own = std::env::current_exe().expect("a bench knows where it is");
        let status = Command::new(own).arg(count.to_string()).arg(&folder).arg(part).status();
        assert!(status.expect("it can be run again").success(), "{part}");
    }
    let bytes: u64 = walk(&folder);
    println!("on disk{:>45} B a session", bytes / count as u64);
    std::fs::remove_dir_all(&folder).expect("its own folder");
}

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn run(part: &str, count: usize, folder: &Path) {
    let before = resident_bytes();
    let begun = Instant::now();
    let store = if part == "memory" {
        Place::Memory(Arc::new(MemoryStore::new(7)))
    } else {
        Place::Disk(Arc::new(DiskStore::open(folder, Options::default()).expect("its own folder")))
    };
    let opened = (resident_bytes().saturating_sub(before), begun.elapsed());
    let mut bench = Bench::open(store, count, part != "start-lazy");
    if part == "memory" || part == "make" {
        bench.fill(count);
    }
    let (took, grown) = (begun.elapsed(), resident_bytes().saturating_sub(before));
    println!(
        "{part:<11} {:>6.1} s, {:>5} B a session (store opened: {:>4.1} s, {:>3} MB)",
        took.as_secs_f64(),
        grown / count as u64,
        opened.1.as_secs_f64(),
        opened.0 >> 20
    );
    if part == "make" {
        return;
    }
    let wakes: Vec<Wake> = (0..WOKEN).map(|n| bench.wake(n * (count / WOKEN))).collect();
    let quantiles = |of: fn(&Wake) -> Duration| {
        let mut times: Vec<Duration> = wakes.iter().map(of).collect();
        times.sort_unstable();
        [500, 990].map(|permille| times[times.len() * permille / 1_000].as_secs_f64() * 1e3)
    };
    let ([median, p99], [own_median, own_p99]) =
        (quantiles(|wake| wake.took), quantiles(|wake| wake.took.saturating_sub(wake.no_core)));
    println!(
        "{part:<11} wake, first message: median {median:.3} ms, p99 {p99:.3} ms, of {WOKEN}; without what it waited for \
         a core: median {own_median:.3} ms, p99 {own_p99:.3} ms"
    );
}

/// From CONNECT to the message.
struct Wake {
    took: Duration,
    /// Of it: ready to run, but others had the cores.
    no_core: Duration,
}

/// For how long this thread was ready and not run (`proc(5)`, schedstat); zero where that is not counted.
fn waited_for_core() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().nth(1).and_then(|field| field.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or_default())
}

/// Where the sessions are kept.
enum Place {
    Memory(Arc<MemoryStore>),
    Disk(Arc<DiskStore>),
}

impl Place {
    fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Memory(store) => Arc::clone(store) as Arc<dyn Store>,
            Self::Disk(store) => Arc::clone(store) as Arc<dyn Store>,
        }
    }

    /// What is durable; memory is as soon as it is asked.
    fn synced(&self) -> Lsn {
        match self {
            Self::Memory(store) => store.sync_all(),
            Self::Disk(store) => store.synced(),
        }
    }
}

struct Bench {
    shard: Shard,
    store: Place,
    now: Now,
}

impl Bench {
    fn open(store: Place, count: usize, durable: bool) -> Self {
        let mut config = ShardConfig::new(NodeId(1), 7);
        (config.sessions_max, config.durable) = (count + CROWD, durable);
        let now = Now { mono_ms: 1_000, wall_ms: 1_800_000_000_000 };
        let shard = Shard::open(config, Arc::new(OpenGate), store.store(), now);
        Self { shard: shard.expect("it can be read"), store, now }
    }

    /// Clients come, subscribe and go.
    fn fill(&mut self, count: usize) {
        for crowd in 0..count.div_ceil(CROWD) {
            let members = crowd * CROWD..count.min((crowd + 1) * CROWD);
            let came: Vec<ConnId> = members.clone().map(|n| self.come(n)).collect();
            self.settle();
            for (conn, n) in came.iter().zip(members) {
                self.receive(*conn, &subscribe(n));
            }
            self.settle();
            for conn in came {
                let heard = self.heard(conn);
                assert!(heard.contains(&0x90), "a SUBACK came: {heard:02x?}");
                self.shard.connection_lost(conn, self.now);
            }
            self.settle();
        }
        self.shard.shrink();
    }

    /// A message comes while the client is away; how long until it has it, from its CONNECT on.
    fn wake(&mut self, n: usize) -> Wake {
        let publisher = self.come(usize::MAX);
        self.settle();
        self.receive(publisher, &publish(n));
        self.settle();
        self.shard.connection_lost(publisher, self.now);
        self.settle();
        let (waited, begun) = (waited_for_core(), Instant::now());
        let conn = self.come(n);
        let mut heard = Vec::new();
        while !heard.windows(5).any(|part| part == b"hello") {
            self.turn();
            heard.extend(self.heard(conn));
        }
        let took = begun.elapsed();
        let no_core = waited_for_core().saturating_sub(waited);
        self.shard.connection_lost(conn, self.now);
        self.settle();
        Wake { took, no_core }
    }

    fn come(&mut self, n: usize) -> ConnId {
        let remote = ([127, 0, 0, 1], 1883).into();
        let origin = Origin { listener: "bench".into(), remote, certificate: None };
        let conn = self.shard.accept(origin, self.now).expect("there is room");
        self.receive(conn, &connect(n));
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        assert_eq!(self.shard.receive(conn, bytes, self.now).used, bytes.len());
    }

    fn heard(&mut self, conn: ConnId) -> Vec<u8> {
        let out = self.shard.out_buffer(conn).expect("it is connected");
        let heard = out.take();
        self.shard.written(conn);
        heard
    }

    fn turn(&mut self) {
        self.shard.end_turn(self.now);
        self.shard.synced(self.store.synced(), self.now);
        while self.shard.poll_event().is_some() {}
    }

    /// Turns until the store has synced all there is.
    fn settle(&mut self) {
        self.turn();
        if let Ok(last) = self.store.store().submit(Vec::new()) {
            while self.store.synced() < last {
                std::thread::yield_now();
            }
        }
        self.turn();
        self.turn();
    }
}

fn name(n: usize) -> String {
    if n == usize::MAX { "publisher".to_owned() } else { format!("device-{n:07}") }
}

/// CONNECT of 3.1.1 that keeps its session; the publisher's does not.
fn connect(n: usize) -> Vec<u8> {
    let (name, flags) = (name(n), if n == usize::MAX { 2 } else { 0 });
    let mut bytes = vec![0x10, 12 + name.len() as u8, 0, 4];
    bytes.extend_from_slice(b"MQTT");
    bytes.extend_from_slice(&[4, flags, 0, 0, 0, name.len() as u8]);
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

fn topic(n: usize) -> String {
    format!("plant/{n:07}/orders")
}

fn subscribe(n: usize) -> Vec<u8> {
    let topic = topic(n);
    let mut bytes = vec![0x82, 5 + topic.len() as u8, 0, 1, 0, topic.len() as u8];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.push(1);
    bytes
}

fn publish(n: usize) -> Vec<u8> {
    let topic = topic(n);
    let mut bytes = vec![0x32, 2 + topic.len() as u8 + 2 + 5, 0, topic.len() as u8];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend_from_slice(&[0, 1]);
    bytes.extend_from_slice(b"hello");
    bytes
}

fn walk(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("its own folder").flatten();
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    entries.map(|e| e.path()).map(|p| if p.is_dir() { walk(&p) } else { size(&p) }).sum()
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 =
        statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("resident pages");
    pages * 4096
}
