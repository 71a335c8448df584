//! Messages from publishers to subscribers: paced, or as fast as the answers come.
//!
//! A payload begins with its publisher, its number and the time it was sent, so each delivery tells what it is, how late
//! it is, and whether one before it is missing.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::client::{Client, Scratch, Server};
use crate::server::{Reading, resident};
use crate::wire::{self, Frame};
use crate::{Figures, Flow, Shape};

const WARM_UP: Duration = Duration::from_millis(500);

/// Without a delivery for so long what is missing counts as lost.
const STILL_MAX: Duration = Duration::from_secs(2);

/// Bytes a publisher may have waiting: a server that does not read holds it back.
const WAITING_MAX: usize = 1 << 20;

struct Publisher {
    client: Client,
    topic: String,
    sent: u32,
    unacked: u32,
    /// Paced: messages whose time has come.
    due: u32,
}

struct Subscriber {
    client: Client,
    /// Number of its first publisher, and the next message expected of each.
    first: usize,
    next: Vec<u32>,
}

/// What is counted.
#[derive(Default)]
struct Tally {
    /// Deliveries of each publisher's messages.
    credits: Vec<u64>,
    delivered: u64,
    lost: u64,
    duplicates: u64,
    latencies_ns: Vec<u64>,
    /// Publishers whose message has reached everybody.
    ready: Vec<usize>,
}

struct Load<'a> {
    flow: &'a Flow,
    /// Deliveries of one message.
    fan: u64,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    tally: Tally,
    start: Instant,
    /// Nothing more is sent.
    over: bool,
    scratch: Scratch,
    payload: Vec<u8>,
}

pub fn run(server: Server, pid: u32, flow: &Flow) -> io::Result<Figures> {
    let mut load = Load::connect(server, flow)?;
    let mut poll = Poll::new()?;
    let interest = Interest::READABLE | Interest::WRITABLE;
    let subscribers = load.subscribers.iter_mut().map(|s| &mut s.client);
    let clients = subscribers.chain(load.publishers.iter_mut().map(|p| &mut p.client));
    for (number, client) in clients.enumerate() {
        poll.registry().register(&mut client.stream, Token(number), interest)?;
    }
    load.start = Instant::now();
    (0..load.publishers.len()).try_for_each(|number| load.pump(number))?;
    load.drive(&mut poll, WARM_UP)?;
    load.tally.latencies_ns.clear();
    let paused = Instant::now();
    if flow.mark {
        eprintln!("ready");
        io::stdin().read_line(&mut String::new())?;
        load.start += paused.elapsed();
    }
    let (reading, before, rss) = (Reading::new(pid), load.tally.delivered, resident(pid));
    let began = Instant::now();
    load.drive(&mut poll, WARM_UP + Duration::from_secs_f64(flow.seconds))?;
    let (seconds, delivered) = (began.elapsed().as_secs_f64(), load.tally.delivered - before);
    let mut figures = reading.since(pid, delivered);
    let rss_end = resident(pid);
    load.drain(&mut poll)?;
    let latencies = &mut load.tally.latencies_ns;
    latencies.sort_unstable();
    let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize);
    let millis = |share| at(share).map_or(0.0, |ns| *ns as f64 / 1e6);
    let sent: u64 = load.publishers.iter().map(|p| u64::from(p.sent)).sum();
    figures.extend([
        ("delivered", (load.tally.delivered - before) as f64),
        ("delivered_per_second", delivered as f64 / seconds),
        ("mib_per_second", delivered as f64 * flow.size as f64 / seconds / f64::from(1 << 20)),
        ("p50_ms", millis(0.5)),
        ("p99_ms", millis(0.99)),
        ("rss_mb", rss_end / 1e6),
        ("rss_growth_mb", (rss_end - rss) / 1e6),
        ("lost", (sent * load.fan).saturating_sub(load.tally.delivered) as f64),
        ("gaps", load.tally.lost as f64),
        ("duplicates", load.tally.duplicates as f64),
    ]);
    Ok(figures)
}

impl<'a> Load<'a> {
    fn connect(server: Server, flow: &'a Flow) -> io::Result<Self> {
        let (publishers, subscribers) = match flow.shape {
            Shape::Pairs => (flow.clients, flow.clients),
            Shape::FanIn => (flow.clients, 1),
            Shape::FanOut => (1, flow.clients),
        };
        let subscriber = |number: usize| {
            let (filter, first, count) = match flow.shape {
                Shape::Pairs => (format!("bench/{number}/data"), number, 1),
                Shape::FanIn => ("bench/#".to_owned(), 0, publishers),
                Shape::FanOut => ("bench/0/data".to_owned(), 0, 1),
            };
            let id = format!("subscriber-{number}");
            let subscribe = Some((&*filter, flow.qos));
            let client = Client::connect(server, number, &id, !flow.durable, subscribe)?;
            Ok(Subscriber { client, first, next: vec![0; count] })
        };
        let publisher = |number: usize| {
            let id = format!("publisher-{number}");
            let client = Client::connect(server, subscribers + number, &id, true, None)?;
            let topic = format!("bench/{number}/data");
            Ok(Publisher { client, topic, sent: 0, unacked: 0, due: 0 })
        };
        Ok(Self {
            flow,
            fan: if flow.shape == Shape::FanOut { subscribers as u64 } else { 1 },
            subscribers: (0..subscribers).map(subscriber).collect::<io::Result<_>>()?,
            publishers: (0..publishers).map(publisher).collect::<io::Result<_>>()?,
            tally: Tally { credits: vec![0; publishers], ..Tally::default() },
            start: Instant::now(),
            over: false,
            scratch: vec![0; 256 * 1024].try_into().expect("its length"),
            payload: vec![0x55; flow.size.max(16)],
        })
    }

    /// Sends and receives until so long after the start.
    fn drive(&mut self, poll: &mut Poll, until: Duration) -> io::Result<()> {
        let mut events = Events::with_capacity(1_024);
        let mut made = self.publishers.iter().map(|p| u64::from(p.sent + p.due)).sum::<u64>();
        loop {
            let elapsed = self.start.elapsed();
            if elapsed >= until || self.tally.delivered >= self.flow.count {
                return Ok(());
            }
            if let Some(rate) = self.flow.rate {
                let wanted = (elapsed.as_secs_f64() * rate) as u64;
                while made < wanted {
                    let number = (made % self.publishers.len() as u64) as usize;
                    self.publishers[number].due += 1;
                    self.pump(number)?;
                    made += 1;
                }
            }
            poll.poll(&mut events, Some(Duration::from_millis(1)))?;
            self.handle(&events)?;
        }
    }

    /// Receives what is under way.
    fn drain(&mut self, poll: &mut Poll) -> io::Result<()> {
        let mut events = Events::with_capacity(1_024);
        self.over = true;
        let (mut seen, mut since) = (self.tally.delivered, Instant::now());
        let sent: u64 = self.publishers.iter().map(|p| u64::from(p.sent)).sum();
        while self.tally.delivered < sent * self.fan && since.elapsed() < STILL_MAX {
            poll.poll(&mut events, Some(Duration::from_millis(10)))?;
            for event in &events {
                self.receive(event.token().0)?;
            }
            self.tally.ready.clear();
            if self.tally.delivered > seen {
                (seen, since) = (self.tally.delivered, Instant::now());
            }
        }
        Ok(())
    }

    fn handle(&mut self, events: &Events) -> io::Result<()> {
        for event in events {
            self.receive(event.token().0)?;
        }
        for number in std::mem::take(&mut self.tally.ready) {
            self.pump(number)?;
        }
        Ok(())
    }

    fn receive(&mut self, token: usize) -> io::Result<()> {
        let subscribers = self.subscribers.len();
        if token >= subscribers {
            return self.receive_acks(token - subscribers);
        }
        let Self { tally, subscribers, scratch, start, fan, .. } = self;
        let now_ns = start.elapsed().as_nanos() as u64;
        let Subscriber { client, first, next } = &mut subscribers[token];
        client.read(scratch, |frame, out| match frame.kind {
            wire::PUBLISH => {
                let (id, payload) = frame.message();
                match frame.qos {
                    1 => wire::acknowledge(out, wire::PUBACK, id),
                    2 => wire::acknowledge(out, wire::PUBREC, id),
                    _ => {}
                }
                tally.take(payload, *first, next, *fan, now_ns);
            }
            wire::PUBREL => wire::acknowledge(out, wire::PUBCOMP, frame.id()),
            _ => {}
        })?;
        client.write()
    }

    fn receive_acks(&mut self, number: usize) -> io::Result<()> {
        let Publisher { client, unacked, .. } = &mut self.publishers[number];
        let each = |frame: Frame<'_>, out: &mut Vec<u8>| match frame.kind {
            wire::PUBACK | wire::PUBCOMP => *unacked -= 1,
            wire::PUBREC => wire::acknowledge(out, wire::PUBREL, frame.id()),
            _ => {}
        };
        client.read(&mut self.scratch, each)?;
        self.pump(number)
    }

    /// Sends what this publisher may send.
    fn pump(&mut self, number: usize) -> io::Result<()> {
        let (flow, complete) = (self.flow, self.tally.credits[number] / self.fan);
        let publisher = &mut self.publishers[number];
        while publisher.client.out.len() < WAITING_MAX {
            let may = if flow.rate.is_some() {
                publisher.due > 0 && publisher.unacked < 60_000
            } else {
                u64::from(publisher.sent) < complete + u64::from(flow.window)
                    && publisher.unacked < flow.window
            };
            if !may || self.over {
                break;
            }
            let now_ns = self.start.elapsed().as_nanos() as u64;
            self.payload[..4].copy_from_slice(&(number as u32).to_be_bytes());
            self.payload[4..8].copy_from_slice(&publisher.sent.to_be_bytes());
            self.payload[8..16].copy_from_slice(&now_ns.to_be_bytes());
            // No id is 0, and none is used again before 65,535 others.
            let id = (publisher.sent % 65_535) as u16 + 1;
            let out = &mut publisher.client.out;
            wire::publish(out, &publisher.topic, flow.qos, false, id, &self.payload);
            publisher.sent += 1;
            publisher.due = publisher.due.saturating_sub(1);
            publisher.unacked += u32::from(flow.qos > 0);
        }
        publisher.client.write()
    }
}

impl Tally {
    fn take(&mut self, payload: &[u8], first: usize, next: &mut [u32], fan: u64, now_ns: u64) {
        let four = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four"));
        let (publisher, number) = (four(0) as usize, four(4));
        let sent_ns = u64::from(four(8)) << 32 | u64::from(four(12));
        let expected = &mut next[publisher - first];
        if number < *expected {
            self.duplicates += 1;
            return;
        }
        self.lost += u64::from(number - *expected);
        *expected = number + 1;
        self.delivered += 1;
        self.latencies_ns.push(now_ns.saturating_sub(sent_ns));
        self.credits[publisher] += 1;
        if self.credits[publisher].is_multiple_of(fan) {
            self.ready.push(publisher);
        }
    }
}
