//! The data thread without a network: streams in memory, a store in memory, the shard as it is.

use std::future::poll_fn;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Poll, Wake};
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::task::AtomicWaker;
use outpost_actors::ports::{OpenGate, Origin};
use outpost_actors::shard::{Shard, ShardConfig};
use outpost_flow::Class;
use outpost_membership::PeerFrame;
use outpost_model::NodeId;
use outpost_store::MemoryStore;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::reactor::{Reactor, Rouser};
use super::serving::{Next, Serving};
use super::together::Together;
use super::{Command, Plane, PlaneHandle, PlanePorts};
use crate::clock::now;
use crate::listen::connection::Stream;
use crate::listen::door::{Door, Refusal, StrangerLimits};
use crate::listen::socket::Socket;

/// CONNECT of MQTT 3.1.1: clean session, no keep alive, client id "c".
pub(crate) const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x00\x00\x01c";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";
pub(crate) const SUBSCRIBE_ALL: &[u8] = b"\x82\x06\x00\x01\x00\x01#\x00";
pub(crate) const PINGREQ: &[u8] = b"\xc0\x00";
pub(crate) const PINGRESP: &[u8] = b"\xd0\x00";

/// Longer than anything here takes; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_mins(1);

/// Of memory.
const BUDGET_BYTES: u64 = 1 << 30;

pub(crate) struct Bench {
    plane: Rc<Plane>,
    pub(crate) handle: PlaneHandle,
    running: JoinHandle<()>,
    shadows: Arc<parking_lot::Mutex<Vec<u64>>>,
    memory: Arc<Memory>,
    door: Arc<Door>,
}

#[derive(Default)]
struct Ports(Arc<parking_lot::Mutex<Vec<u64>>>, Arc<Memory>);

/// What shadows occupy, and what they were told of the budget.
#[derive(Default)]
struct Memory {
    bytes: AtomicU64,
    is_short: AtomicBool,
}

impl PlanePorts for Ports {
    fn peer(&self, _: NodeId, _: PeerFrame) -> bool {
        true
    }

    fn peer_up(&self, _: NodeId, _: u64) {}

    fn shadow(&self, _: ByteString, _: Bytes, _: ByteString, job: u64) -> bool {
        self.0.lock().push(job);
        true
    }

    fn charges(&self) -> [(Class, u64); 2] {
        [(Class::Store, 0), (Class::Shadows, self.1.bytes.load(Ordering::Relaxed))]
    }

    fn memory_is_short(&self, is: bool) {
        self.1.is_short.store(is, Ordering::Relaxed);
    }

    fn started(&self) {}

    fn peer_failed(&self, _: NodeId, _: &str) {}
}

impl Bench {
    pub(crate) fn start(handle: PlaneHandle, pending_connect_max: usize) -> Self {
        Self::within(0, handle, pending_connect_max)
    }

    /// With so many bytes of memory; 0: no limit.
    fn within(memory_bytes_max: u64, handle: PlaneHandle, pending_connect_max: usize) -> Self {
        // Nobody syncs this store.
        let new = ShardConfig::new(NodeId(1), 7);
        let config = ShardConfig { durable: false, out_bytes_max: 4_096, memory_bytes_max, ..new };
        let gate = Arc::new(OpenGate);
        let store = Arc::new(MemoryStore::new(7));
        let shard = Shard::open(config, gate.clone(), store, now()).expect("an empty store");
        let ports = Ports::default();
        let (shadows, memory) = (Arc::clone(&ports.0), Arc::clone(&ports.1));
        let (sender, commands) = mpsc::channel(64);
        handle.connect(sender);
        let gather = outpost_flow::Gather::new(50);
        let reactor = Reactor::new().expect("the system has one");
        let alarm = Arc::new(Alarm::default());
        let rouser = Rouser::new(Arc::clone(&alarm).into());
        let plane = Plane::new(
            shard,
            (Rc::clone(&reactor), Arc::clone(&rouser)),
            gather,
            Together::new(64),
            handle.clone(),
            Arc::new(ports),
            gate,
        );
        let serving = Serving::new(Rc::clone(&plane), commands, Arc::clone(&rouser));
        let running = spawn_local(serve(serving, reactor, rouser, alarm));
        let limits = StrangerLimits {
            pending_max: pending_connect_max,
            bytes_max: 8_192,
            time_max: PATIENCE,
        };
        let door = Door::new("test", limits, usize::MAX, None);
        Self { plane, handle, running, shadows, memory, door }
    }

    fn connect(&self) -> DuplexStream {
        self.connect_with(1_024)
    }

    /// A client with pipes of so many bytes.
    fn connect_with(&self, bytes: usize) -> DuplexStream {
        let (client, server) = duplex(bytes);
        let remote = ([127, 0, 0, 1], 1).into();
        let origin = Origin { listener: Arc::from("test"), remote, certificate: None };
        if let Ok(ticket) = self.door.arrive() {
            self.plane.accept(origin, Box::new(server).into(), ticket);
        } else {
            self.door.refused(Refusal::Pending);
        }
        client
    }

    /// A client over TCP, whose socket `set` is shown first.
    pub(crate) async fn connect_tcp(&self, set: impl FnOnce(&TcpStream)) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let (server, remote) = listener.accept().await.expect("a client");
        set(&server);
        let origin = Origin { listener: Arc::from("test"), remote, certificate: None };
        let ticket = self.door.arrive().expect("room");
        let server = server.into_std().expect("a socket");
        let stream = Socket::new(server, 8_192, self.plane.reactor());
        self.plane.accept(origin, Stream::Tcp(stream), ticket);
        client.expect("it listens")
    }

    async fn first_request(&self) -> u64 {
        let asked = async {
            loop {
                if let Some(job) = self.shadows.lock().first() {
                    return *job;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, asked).await.expect("a request arrives")
    }

    pub(crate) async fn stop(self) {
        self.handle.ask(Command::Stop).await.expect("it runs");
        self.running.await.expect("it ends in order");
    }
}

/// Wakes the task below.
#[derive(Default)]
struct Alarm(AtomicWaker);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }
}

/// What the data thread does, as a task of the test's runtime: both go on by turns.
async fn serve(mut serving: Serving, reactor: Rc<Reactor>, rouser: Arc<Rouser>, alarm: Arc<Alarm>) {
    #[allow(deprecated, reason = "its successor is unsafe; the reactor outlives this")]
    let sockets = AsyncFd::new(reactor.as_raw_fd()).expect("it can be watched");
    let mut due = Box::pin(sleep(Duration::ZERO));
    let rounds = poll_fn(|cx| {
        alarm.0.register(cx.waker());
        while let Poll::Ready(ready) = sockets.poll_read_ready(cx) {
            ready.expect("it can be watched").clear_ready();
        }
        reactor.wait(Some(Duration::ZERO), &rouser).expect("it tells of sockets");
        match serving.turn() {
            Next::Stop => return Poll::Ready(()),
            // After the others, and a look at sockets.
            Next::Look => return pin!(tokio::task::yield_now()).poll(cx),
            Next::Wait(None) => {}
            Next::Wait(Some(at_most)) => {
                due.as_mut().reset(Instant::now() + at_most);
                if due.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        Poll::Pending
    });
    // As in a thread of its own.
    tokio::task::unconstrained(rounds).await;
}

async fn expect(client: &mut DuplexStream, wanted: &[u8]) {
    let mut got = vec![0; wanted.len()];
    let read = timeout(PATIENCE, client.read_exact(&mut got)).await.expect("an answer in time");
    read.expect("an answer");
    assert_eq!(got, wanted);
}

pub(crate) fn publish(topic: &str, qos: u8, payload: &[u8]) -> Vec<u8> {
    let id: &[u8] = if qos == 0 { &[] } else { &[0, 9] };
    let length = 2 + topic.len() + id.len() + payload.len();
    let mut packet = vec![0x30 | qos << 1];
    match length {
        0..128 => packet.push(length as u8),
        _ => packet.extend([(length % 128) as u8 | 0x80, (length / 128) as u8]),
    }
    packet.extend_from_slice(&(topic.len() as u16).to_be_bytes());
    packet.extend_from_slice(topic.as_bytes());
    packet.extend_from_slice(id);
    packet.extend_from_slice(payload);
    packet
}

#[tokio::test]
async fn a_client_that_reads_late_is_read_from_again_without_anybody_else_stirring() {
    let story = async {
        let bench = Bench::start(PlaneHandle::default(), 8);
        let client = bench.connect();
        let (mut reads, mut writes) = tokio::io::split(client);
        let writing = spawn_local(async move {
            writes.write_all(CONNECT).await.expect("open");
            writes.write_all(SUBSCRIBE_ALL).await.expect("open");
            for _ in 0..64 {
                writes.write_all(&publish("t", 0, &[b'x'; 1_000])).await.expect("open");
            }
            writes.write_all(PINGREQ).await.expect("open");
            writes
        });
        // Everybody goes as far as they can: the client does not read, so the node does not either.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert!(!writing.is_finished(), "the node has stopped reading");
        let mut last = Vec::new();
        while !last.ends_with(PINGRESP) {
            let mut buffer = [0; 4_096];
            let read = timeout(PATIENCE, reads.read(&mut buffer)).await.expect("it goes on");
            let count = read.expect("open");
            assert_ne!(count, 0, "the node does not close");
            last = [&last[last.len().saturating_sub(1)..], &buffer[..count]].concat();
        }
        drop(writing.await.expect("all is written"));
        bench.stop().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn who_sends_little_waits_for_a_turn_while_others_flood_and_none_of_them_starves() {
    const FLOODERS: u8 = 20;
    const EACH: usize = 4_000;
    let story = async {
        let bench = Bench::start(PlaneHandle::default(), 64);
        let mut clients = Vec::new();
        for number in 0..=FLOODERS {
            let mut client = bench.connect_with(64 * 1_024);
            let connect = [&CONNECT[..CONNECT.len() - 1], &[b'A' + number]].concat();
            client.write_all(&connect).await.expect("open");
            expect(&mut client, CONNACK).await;
            clients.push(client);
        }
        let flood = publish("t", 0, b"").repeat(EACH);
        let mut light = clients.pop().expect("the last one");
        for client in &mut clients {
            client.write_all(&flood).await.expect("open, and all of it fits");
        }
        light.write_all(PINGREQ).await.expect("open");
        expect(&mut light, PINGRESP).await;
        let received = async || {
            let stats = bench.handle.ask(Command::Stats).await.expect("it runs");
            stats.totals.messages.received[0] as usize
        };
        let (before, all) = (received().await, usize::from(FLOODERS) * EACH);
        assert!(before < all / 4, "{before} of {all} messages were taken before one PINGREQ");
        let end = async { while received().await < all {} };
        timeout(PATIENCE, end).await.expect("all of it is taken");
        bench.stop().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn connections_without_connect_are_limited_and_make_room_when_it_comes() {
    let story = async {
        let bench = Bench::start(PlaneHandle::default(), 1);
        let mut first = bench.connect();
        let mut refused = bench.connect();
        assert_eq!(refused.read(&mut [0; 1]).await.expect("readable"), 0, "it is closed");
        first.write_all(CONNECT).await.expect("open");
        expect(&mut first, CONNACK).await;
        let second = bench.connect();
        drop(second);
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let mut third = bench.connect();
        third.write_all(CONNECT).await.expect("open");
        expect(&mut third, CONNACK).await;
        assert_eq!(bench.door.refusals(Refusal::Pending), 1, "the one too many is counted");
        assert_eq!(
            (bench.door.open(), bench.door.pending()),
            (2, 0),
            "the second gave its place back"
        );
        bench.stop().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn a_panic_of_any_task_ends_the_thread() {
    let story = async {
        let bench = Bench::start(PlaneHandle::default(), 8);
        bench.plane.spawn(async { panic!("a defect in the shard") });
        let ended = timeout(PATIENCE, bench.running).await.expect("it ends");
        assert!(ended.expect_err("not in order").is_panic());
        let asked = bench.handle.ask(Command::Stats).await;
        assert!(asked.is_err(), "whoever asks is told so");
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn shadows_are_told_when_memory_is_short_and_when_it_is_not() {
    let story = async {
        let bench = Bench::within(BUDGET_BYTES, PlaneHandle::default(), 8);
        let mut client = bench.connect();
        client.write_all(CONNECT).await.expect("open");
        expect(&mut client, CONNACK).await;
        for (bytes, short) in [(BUDGET_BYTES, true), (0, false)] {
            bench.memory.bytes.store(bytes, Ordering::Relaxed);
            let told = async {
                while bench.memory.is_short.load(Ordering::Relaxed) != short {
                    client.write_all(PINGREQ).await.expect("open");
                    expect(&mut client, PINGRESP).await;
                }
            };
            timeout(PATIENCE, told).await.expect("told");
        }
        bench.stop().await;
    };
    LocalSet::new().run_until(story).await;
}

#[tokio::test]
async fn requests_a_hub_left_open_are_refused_and_never_taken_for_others() {
    let story = async {
        let handle = PlaneHandle::default();
        let first = Bench::start(handle.clone(), 8);
        let request = [CONNECT, &publish("$aws/things/a/shadow/get", 1, b"")].concat();
        let mut client = first.connect();
        client.write_all(&request).await.expect("open");
        expect(&mut client, CONNACK).await;
        let old = first.first_request().await;
        first.stop().await;

        let second = Bench::start(handle.clone(), 8);
        let mut client = second.connect();
        client.write_all(&request).await.expect("open");
        expect(&mut client, CONNACK).await;
        assert_ne!(second.first_request().await, old, "an answer to the old one must not fit");
        let late = Command::Complete(old, outpost_mqtt::packet::ReasonCode::Success);
        handle.try_send(late).expect("room");
        let (told, is_told) = oneshot::channel();
        handle.try_send(Command::HubStarted(told)).expect("room");
        is_told.await.expect("it runs");
        // No acknowledgement came; a client of 3.1.1 is told of a failure by the end of its connection.
        let read = timeout(PATIENCE, client.read(&mut [0; 4])).await.expect("in time");
        assert_eq!(read.expect("readable"), 0);
        second.stop().await;
    };
    LocalSet::new().run_until(story).await;
}
