//! Clients that come back: 3.1.1 by hand, on threads, with the session state MQTT asks a client to keep over connections
//! and over crashes of the node. What they were promised and what they got is counted.

#![expect(
    clippy::disallowed_methods,
    reason = "threads that wait for a process to die, and at chosen moments"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::DEADLINE;
use super::outpost::{address, binary};
use super::tools::program;
use super::wire::{framed, kept_connect};

/// No answer for so long: the connection is given up and made anew.
const SILENCE: Duration = Duration::from_secs(5);

/// Set when this goes out of scope, by a panic too: threads that look at it end, and what went wrong is told.
pub struct AtEnd<'a>(pub &'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A node's process. Ends when dropped.
pub struct Process(Child);

impl Process {
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_some()
    }

    pub fn wait(&mut self) {
        self.0.wait().expect("our child");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that dies and is started again.
#[derive(Default)]
pub struct Mortal {
    port: AtomicU16,
    pid: AtomicU32,
    /// Nothing new is published, what is under way is brought to its end.
    pub enough: AtomicBool,
    /// The next start dies at this of its system calls, the `when`th in one thread: `strace` kills it there.
    pub dies_at: Mutex<Option<(&'static str, usize)>>,
    /// From the start of the process to its first CONNACK, the slowest.
    pub slowest_start: Mutex<Duration>,
}

impl Mortal {
    /// Starts the node on its data and waits for a first CONNACK.
    pub fn start(&self, data: &Path, settings: &[&str]) -> Process {
        let began = Instant::now();
        let dies_at = *self.dies_at.lock().expect("nobody panics with it");
        let mut command = dies_at.map_or_else(|| Command::new(binary()), |_| program("strace"));
        if let Some((call, when)) = dies_at {
            // As a grandchild: the process that is started here is the node itself.
            command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e"]);
            command.arg(format!("trace={call}")).arg("-e");
            command.arg(format!("inject={call}:signal=KILL:when={when}")).arg(binary());
        }
        command.args(["dev", "--mqtt-port", "0", "--http-port", "0", "--data-dir"]).arg(data);
        command.args(settings).env("RUST_LOG", "error");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the command runs");
        let mut child = Process(child);
        let mut lines = BufReader::new(child.0.stdout.take().expect("piped")).lines();
        let line =
            lines.find_map(|line| line.ok().filter(|line| line.contains("MQTT 3.1.1 and 5")));
        let Some(line) = line else {
            assert!(dies_at.is_some(), "it says where it listens");
            return child; // it was killed before
        };
        let mqtt = address(&line);
        self.pid.store(child.0.id(), Ordering::SeqCst);
        self.port.store(mqtt.port(), Ordering::SeqCst);
        while connect(mqtt, "first").is_none() {
            if child.has_ended() {
                return child; // somebody was faster and had it killed again
            }
            assert!(began.elapsed() < 2 * DEADLINE, "the node says where it listens and does not");
        }
        let mut slowest = self.slowest_start.lock().expect("nobody panics with it");
        *slowest = slowest.max(began.elapsed());
        // Somebody must read on, or the node could not write.
        std::thread::spawn(move || lines.for_each(drop));
        child
    }

    /// SIGKILL, now.
    pub fn kill_9(&self) {
        let pid = self.pid.swap(0, Ordering::SeqCst);
        if pid > 0 {
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
            assert!(killed.is_ok_and(|status| status.success()), "it ran");
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.load(Ordering::SeqCst)))
    }

    /// Until it answers.
    fn connect(&self, id: &str) -> (TcpStream, bool) {
        self.connect_until(id, &AtomicBool::new(false)).expect("nothing else ends it")
    }

    /// Until it answers, or nobody is interested any more: then it may not be started again.
    fn connect_until(&self, id: &str, done: &AtomicBool) -> Option<(TcpStream, bool)> {
        let began = Instant::now();
        while !done.load(Ordering::SeqCst) {
            if let Some(connected) = connect(self.address(), id) {
                return Some(connected);
            }
            assert!(began.elapsed() < 2 * DEADLINE, "{id}: no node answers");
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }
}

fn connect(server: SocketAddr, id: &str) -> Option<(TcpStream, bool)> {
    let mut stream = TcpStream::connect(server).ok()?;
    stream.set_read_timeout(Some(SILENCE)).ok()?;
    stream.set_nodelay(true).ok()?;
    stream.write_all(&kept_connect(id)).ok()?;
    let (first, body) = read(&mut stream)?;
    (first == 0x20 && body[1] == 0).then_some((stream, body[0] == 1))
}

fn read(stream: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    let first = byte[0];
    let (mut length, mut shift) = (0, 0);
    loop {
        stream.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((first, body))
}

fn answer(first: u8, id: u16) -> Vec<u8> {
    framed(first, &id.to_be_bytes())
}

fn id_at(body: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([body[at], body[at + 1]])
}

fn publish(topic: &str, payload: &str, qos: u8, dup: bool, id: u16) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    body.extend_from_slice(&id.to_be_bytes());
    body.extend_from_slice(payload.as_bytes());
    framed(0x30 | qos << 1 | u8::from(dup) << 3, &body)
}

/// Where a client stands when the node is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Sent,
    Answered,
    ReleaseSent,
    Completed,
}

/// When a client has the node killed: at each `every`th message, at a step, a little later.
#[derive(Clone, Copy)]
pub struct Plan {
    pub step: Step,
    pub every: usize,
    pub delay: Duration,
}

/// Publishes numbered messages with a window, and comes back until all are settled. What was acknowledged.
pub fn publisher(
    node: &Arc<Mortal>,
    id: &str,
    topic: &str,
    qos: u8,
    count: usize,
    window: usize,
    plan: Option<Plan>,
) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    // By packet id: the payload, and whether PUBREC came.
    let mut open = BTreeMap::<u16, (String, bool)>::new();
    let (mut next, mut killed) = (0, 0);
    let due = |step: Step, next: usize, killed: &mut usize| {
        let Some(plan) = plan.filter(|plan| plan.step == step) else { return };
        if next / plan.every > *killed {
            *killed = next / plan.every;
            std::thread::sleep(plan.delay);
            node.kill_9();
        }
    };
    while next < count || !open.is_empty() {
        if node.enough.load(Ordering::SeqCst) && open.is_empty() {
            break;
        }
        let (mut stream, _) = node.connect(id);
        let again = open.iter().map(|(id, (payload, released))| {
            if *released { answer(0x62, *id) } else { publish(topic, payload, qos, true, *id) }
        });
        let mut alive = stream.write_all(&again.flatten().collect::<Vec<u8>>()).is_ok();
        while alive {
            while alive
                && open.len() < window
                && next < count
                && !node.enough.load(Ordering::SeqCst)
            {
                let number = (next % 60_000) as u16 + 1;
                let payload = format!("{id}-{next}");
                next += 1;
                alive = stream.write_all(&publish(topic, &payload, qos, false, number)).is_ok();
                open.insert(number, (payload, false));
                due(Step::Sent, next, &mut killed);
            }
            if open.is_empty() {
                break;
            }
            let Some((first, body)) = read(&mut stream) else { break };
            let number = id_at(&body, 0);
            match first {
                0x40 => {
                    acknowledged.extend(open.remove(&number).map(|(payload, _)| payload));
                }
                0x50 => {
                    if let Some((payload, released)) = open.get_mut(&number) {
                        acknowledged.insert(payload.clone());
                        *released = true;
                    }
                    due(Step::Answered, next, &mut killed);
                    alive = stream.write_all(&answer(0x62, number)).is_ok();
                    due(Step::ReleaseSent, next, &mut killed);
                }
                0x70 => {
                    open.remove(&number);
                    due(Step::Completed, next, &mut killed);
                }
                other => panic!("{id} got {other:#x}"),
            }
        }
    }
    acknowledged
}

/// How often each payload was taken in.
pub type Taken = Arc<Mutex<BTreeMap<String, usize>>>;

/// Subscribes, and leaves.
pub fn subscribe(node: &Mortal, id: &str, topic: &str, qos: u8) {
    let (mut stream, _) = node.connect(id);
    let mut body = 1_u16.to_be_bytes().to_vec();
    body.extend_from_slice(&(topic.len() as u16).to_be_bytes());
    body.extend_from_slice(topic.as_bytes());
    body.push(qos);
    stream.write_all(&framed(0x82, &body)).expect("it runs");
    assert_eq!(read(&mut stream).map(|(first, body)| (first, body[2])), Some((0x90, qos)));
}

/// Takes in what it subscribed to before, and comes back, until `done`.
pub fn subscriber(
    node: &Arc<Mortal>,
    id: &str,
    taken: &Taken,
    done: &AtomicBool,
    plan: Option<Plan>,
) {
    // QoS 2 packet ids that are taken and not yet released: the client's half of exactly once.
    let mut half = BTreeSet::new();
    let (mut count, mut killed) = (0, 0);
    let due = |step: Step, count: usize, killed: &mut usize| {
        let Some(plan) = plan.filter(|plan| plan.step == step) else { return };
        if count / plan.every > *killed {
            *killed = count / plan.every;
            std::thread::sleep(plan.delay);
            node.kill_9();
        }
    };
    while !done.load(Ordering::SeqCst) {
        let Some((mut stream, present)) = node.connect_until(id, done) else { return };
        assert!(present, "{id}: the session was acknowledged, so it is there");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
        loop {
            if done.load(Ordering::SeqCst) {
                return;
            }
            let mut byte = [0];
            match stream.peek(&mut byte) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => break,
            }
            let Some((first, body)) = read(&mut stream) else { break };
            let alive = match first {
                0x62 => {
                    let number = id_at(&body, 0);
                    half.remove(&number);
                    due(Step::ReleaseSent, count, &mut killed);
                    let alive = stream.write_all(&answer(0x70, number)).is_ok();
                    due(Step::Completed, count, &mut killed);
                    alive
                }
                first if first >> 4 == 3 => {
                    let at = 2 + usize::from(id_at(&body, 0));
                    let (number, qos) = (id_at(&body, at), first >> 1 & 3);
                    let payload = String::from_utf8_lossy(&body[at + 2..]).into_owned();
                    if qos < 2 || half.insert(number) {
                        count += 1;
                        *taken
                            .lock()
                            .expect("nobody panics with it")
                            .entry(payload)
                            .or_default() += 1;
                    }
                    due(Step::Sent, count, &mut killed);
                    let first = if qos == 2 { 0x50 } else { 0x40 };
                    let alive = stream.write_all(&answer(first, number)).is_ok();
                    due(Step::Answered, count, &mut killed);
                    alive
                }
                other => panic!("{id} got {other:#x}"),
            };
            if !alive {
                break;
            }
        }
    }
}
