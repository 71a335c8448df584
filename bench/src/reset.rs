//! One pair with persistent sessions. After every so many deliveries the subscriber's or the publisher's connection is
//! reset, the subscriber's before it has acknowledged. Each side then does what MQTT asks of it: connects again, sends
//! again what is not acknowledged, and remembers the packet ids of QoS 2.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use crate::Figures;
use crate::client::{Client, Scratch, Server};
use crate::server::Reading;
use crate::wire;

/// Messages under way.
const WINDOW: usize = 10;

/// Without a delivery for so long the rest counts as lost.
const STILL_MAX: Duration = Duration::from_secs(5);

const TOPIC: &str = "bench/reset/data";

struct Publisher {
    client: Client,
    next: u32,
    /// Sent and not acknowledged: id, number, and whether PUBREC has come.
    open: BTreeMap<u16, (u32, bool)>,
}

struct Subscriber {
    client: Client,
    /// QoS 2 ids it has taken and not yet seen released.
    taken: BTreeSet<u16>,
    /// How often each number came as a message of its own.
    seen: BTreeMap<u32, u32>,
}

pub fn run(server: Server, pid: u32, count: u32, every: u32, qos: u8) -> io::Result<Figures> {
    let mut scratch: Scratch = vec![0; 256 * 1024].try_into().expect("its length");
    // Sessions of an earlier run are not wanted.
    for id in ["reset-subscriber", "reset-publisher"] {
        drop(Client::connect(server, 0, id, true, None)?);
    }
    let subscribe = |what| Client::connect(server, 1, "reset-subscriber", false, what);
    let publish = || Client::connect(server, 2, "reset-publisher", false, None);
    let mut to = Subscriber {
        client: subscribe(Some((TOPIC, qos)))?,
        taken: BTreeSet::new(),
        seen: BTreeMap::new(),
    };
    let mut from = Publisher { client: publish()?, next: 0, open: BTreeMap::new() };
    let (reading, mut resets, mut since) = (Reading::new(pid), 0, Instant::now());
    while to.seen.len() < count as usize && since.elapsed() < STILL_MAX {
        from.send(count, qos)?;
        from.receive(&mut scratch)?;
        if to.receive(&mut scratch)? > 0 {
            since = Instant::now();
        } else {
            #[allow(clippy::disallowed_methods, reason = "a program of one thread that measures")]
            std::thread::sleep(Duration::from_micros(50));
        }
        if to.seen.len() >= (resets as usize + 1) * every as usize {
            if resets % 2 == 0 {
                reset(&to.client)?;
                to.client = subscribe(None)?; // the session keeps its subscription
            } else {
                reset(&from.client)?;
                from.client = publish()?;
                from.send_again(qos);
            }
            resets += 1;
        }
        to.client.write()?; // only now: what was not acknowledged before a reset comes again
    }
    let duplicates: u32 = to.seen.values().map(|times| times - 1).sum();
    let mut figures = vec![
        ("resets", f64::from(resets)),
        ("lost", f64::from(count) - to.seen.len() as f64),
        ("duplicates", f64::from(duplicates)),
    ];
    figures.extend(reading.since(pid, to.seen.len() as u64));
    Ok(figures)
}

/// Closes with RST, as a device whose power is cut and whose address comes back.
fn reset(client: &Client) -> io::Result<()> {
    let socket = socket2::SockRef::from(&client.stream);
    socket.set_linger(Some(Duration::ZERO))
}

impl Publisher {
    fn send(&mut self, count: u32, qos: u8) -> io::Result<()> {
        while self.open.len() < WINDOW && self.next < count {
            let id = (self.next % 65_535) as u16 + 1;
            self.open.insert(id, (self.next, false));
            let out = &mut self.client.out;
            wire::publish(out, TOPIC, qos, false, id, &self.next.to_be_bytes());
            self.next += 1;
        }
        self.client.write()
    }

    fn send_again(&mut self, qos: u8) {
        // In the order they were sent first (MQTT-4.6.0-1).
        let mut open: Vec<_> = self.open.iter().map(|(id, open)| (*id, *open)).collect();
        open.sort_unstable_by_key(|(_, (number, _))| *number);
        for (id, (number, received)) in open {
            let out = &mut self.client.out;
            if received {
                wire::acknowledge(out, wire::PUBREL, id);
            } else {
                wire::publish(out, TOPIC, qos, true, id, &number.to_be_bytes());
            }
        }
    }

    fn receive(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        let open = &mut self.open;
        self.client.read(scratch, |frame, out| match frame.kind {
            wire::PUBACK | wire::PUBCOMP => drop(open.remove(&frame.id())),
            wire::PUBREC => {
                if let Some((_, received)) = open.get_mut(&frame.id()) {
                    *received = true;
                }
                wire::acknowledge(out, wire::PUBREL, frame.id());
            }
            _ => {}
        })
    }
}

impl Subscriber {
    fn receive(&mut self, scratch: &mut Scratch) -> io::Result<usize> {
        let (before, seen, taken) = (self.seen.len(), &mut self.seen, &mut self.taken);
        self.client.read(scratch, |frame, out| match frame.kind {
            wire::PUBLISH => {
                let (id, payload) = frame.message();
                let number = u32::from_be_bytes(payload.try_into().expect("four bytes"));
                if frame.qos == 1 || taken.insert(id) {
                    *seen.entry(number).or_insert(0) += 1;
                }
                let answer = if frame.qos == 1 { wire::PUBACK } else { wire::PUBREC };
                wire::acknowledge(out, answer, id);
            }
            wire::PUBREL => {
                taken.remove(&frame.id());
                wire::acknowledge(out, wire::PUBCOMP, frame.id());
            }
            _ => {}
        })?;
        Ok(self.seen.len() - before)
    }
}
