//! What does a delivery cost inside the shard, without sockets? Expected: some 1,000 instructions a message from one
//! client to one other, under 200 for each of a thousand receivers.
//!
//! `cargo bench -p outpost-actors --bench hot_path` prints nanoseconds of CPU; instructions, which a busy machine does not
//! change, are counted by `valgrind --tool=callgrind --toggle-collect='*::measured' BENCH SCENARIO ROUNDS`.

use std::sync::Arc;
use std::time::Duration;

use outpost_actors::ports::{OpenGate, Origin};
use outpost_actors::shard::{ConnId, Event, Shard, ShardConfig};
use outpost_model::{NodeId, Now};
use outpost_store::MemoryStore;

const NOW: Now = Now { mono_ms: 1_000, wall_ms: 1_000 };

/// Name, publishers, receivers of each, QoS, messages each publisher sends in a turn.
const SCENARIOS: [(&str, usize, usize, u8, usize); 6] = [
    ("p2p_q0_single", 1, 1, 0, 1),
    ("p2p_q0", 100, 1, 0, 10),
    ("p2p_q1", 100, 1, 1, 10),
    ("p2p_q2", 100, 1, 2, 10),
    ("fanin_q0", 1_000, 1, 0, 4),
    ("fanout_q0", 1, 1_000, 0, 4),
];

#[allow(clippy::print_stdout, reason = "it is what a bench is for")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    for (name, publishers, receivers, qos, burst) in SCENARIOS {
        if arguments.first().is_some_and(|only| only != name) {
            continue;
        }
        let each_turn = publishers * receivers * burst;
        let wanted = arguments.get(1).map_or(2_000_000, |n| n.parse().expect("a count"));
        let mut bench = Bench::new(publishers, receivers, qos, burst);
        bench.measured(3);
        let (before, rounds) = (cpu(), (wanted / each_turn).max(1));
        let delivered = bench.measured(rounds);
        let nanos = cpu().checked_sub(before).unwrap().as_nanos() as f64 / delivered as f64;
        println!("{name:<16} {nanos:>8.0} ns CPU a delivery, {delivered} deliveries");
    }
}

struct Bench {
    shard: Shard,
    publishers: Vec<ConnId>,
    /// What each of them sends in a turn.
    bursts: Vec<Vec<u8>>,
    answers: Vec<(ConnId, Vec<u8>)>,
}

impl Bench {
    fn new(publishers: usize, receivers: usize, qos: u8, burst: usize) -> Self {
        let mut config = ShardConfig::new(NodeId(1), 7);
        config.durable = false;
        let store = Arc::new(MemoryStore::new(7));
        let shard = Shard::open(config, Arc::new(OpenGate), store, NOW).expect("an empty store");
        let mut bench =
            Self { shard, publishers: Vec::new(), bursts: Vec::new(), answers: Vec::new() };
        for n in 0..publishers {
            // A thousand publishers share one receiver, each of a hundred has its own.
            let topic = format!("plant/pair/{n:03}/data");
            for r in 0..if publishers == 1_000 { usize::from(n == 0) } else { receivers } {
                let receiver = bench.connect(&format!("r{n}-{r}"));
                let filter = if publishers == 1_000 { "plant/pair/#" } else { &topic };
                let mut subscribe = vec![0x82, filter.len() as u8 + 5, 0, 1, 0, filter.len() as u8];
                subscribe.extend_from_slice(filter.as_bytes());
                subscribe.push(qos);
                bench.receive(receiver, &subscribe);
            }
            let publisher = bench.connect(&format!("p{n}"));
            bench.publishers.push(publisher);
            let mut bytes = Vec::new();
            for id in 1..=burst as u16 {
                let id_len = if qos > 0 { 2 } else { 0 };
                bytes.extend_from_slice(&[0x30 | qos << 1, (topic.len() + 2 + id_len + 64) as u8]);
                bytes.extend_from_slice(&[0, topic.len() as u8]);
                bytes.extend_from_slice(topic.as_bytes());
                if qos > 0 {
                    bytes.extend_from_slice(&id.to_be_bytes());
                }
                bytes.extend_from_slice(&[0x55; 64]);
            }
            bench.bursts.push(bytes);
        }
        bench.turn();
        bench
    }

    /// Turns of the shard: each publisher sends its burst, everybody acknowledges. The number of deliveries.
    #[inline(never)]
    fn measured(&mut self, rounds: usize) -> u64 {
        let before = self.shard.stats().ledger.delivered;
        for _ in 0..rounds {
            for n in 0..self.publishers.len() {
                let (conn, bytes) = (self.publishers[n], std::mem::take(&mut self.bursts[n]));
                self.receive(conn, &bytes);
                self.bursts[n] = bytes;
            }
            while self.turn() {}
        }
        self.shard.stats().ledger.delivered - before
    }

    fn connect(&mut self, name: &str) -> ConnId {
        let remote = ([127, 0, 0, 1], 1).into();
        let origin = Origin { listener: Arc::from("mqtt"), remote, certificate: None };
        let conn = self.shard.accept(origin, NOW).expect("there is room");
        let mut connect = vec![0x10, name.len() as u8 + 12, 0, 4];
        connect.extend_from_slice(b"MQTT\x04\x02\x00\x3c\x00");
        connect.push(name.len() as u8);
        connect.extend_from_slice(name.as_bytes());
        self.receive(conn, &connect);
        self.turn();
        conn
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8]) {
        let received = self.shard.receive(conn, bytes, NOW);
        assert_eq!(received.used, bytes.len(), "whole packets are taken whole");
    }

    /// Ends a turn and plays the clients' part. `false` when nobody had anything to answer.
    fn turn(&mut self) -> bool {
        self.shard.end_turn(NOW);
        while let Some(event) = self.shard.poll_event() {
            let Event::Flush(conn) = event else { continue };
            let Some(out) = self.shard.out_buffer(conn) else { continue };
            let mut answer = Vec::new();
            let mut slices = Vec::new();
            out.slices(&mut slices);
            slices.iter().for_each(|slice| acknowledge(slice, &mut answer));
            let len = out.len();
            out.advance(len);
            self.shard.written(conn);
            if !answer.is_empty() {
                self.answers.push((conn, answer));
            }
        }
        let answers = std::mem::take(&mut self.answers);
        answers.iter().for_each(|(conn, bytes)| self.receive(*conn, bytes));
        !answers.is_empty()
    }
}

/// What a client says to these whole packets, all shorter than 128 bytes.
fn acknowledge(mut bytes: &[u8], answer: &mut Vec<u8>) {
    while let [first, len, rest @ ..] = bytes {
        let (body, next) = rest.split_at(usize::from(*len));
        bytes = next;
        let mut say = |kind: u8, id: &[u8]| answer.extend_from_slice(&[kind, 2, id[0], id[1]]);
        match first {
            0x32 | 0x34 => {
                let id = &body[2 + usize::from(body[1])..];
                say(if *first == 0x32 { 0x40 } else { 0x50 }, id);
            }
            0x50 => say(0x62, body), // PUBREC: PUBREL
            0x62 => say(0x70, body), // PUBREL: PUBCOMP
            _ => {}
        }
    }
}

/// CPU time of this process, user and system.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").expect("Linux");
    let nanos = text.split_whitespace().next().and_then(|n| n.parse().ok());
    Duration::from_nanos(nanos.expect("nanoseconds first"))
}
