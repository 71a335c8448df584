//! One connection to the node all clauses share, blocking, packet by packet.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outpost_node::Node;
use outpost_node::config::{Listener, Transport};

use super::packet::{
    CONNACK, Connect, DISCONNECT, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL,
    Properties, Publish, SUBACK, ack, subscribe,
};
use super::reader::Packet;
use crate::support::node::config;

/// Both versions the clauses are about.
pub const BOTH: [u8; 2] = [4, 5];
/// How long the server may take for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// The node of all clauses that need no settings of their own: it lives as long as the test process.
static NODE: LazyLock<Shared> = LazyLock::new(|| {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let web = Listener {
                name: "web".into(),
                transport: Transport::Ws,
                bind: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
                ..Listener::default()
            };
            let mut config = config(&folder());
            config.listener.push(web);
            let node = Node::start(config).await.unwrap_or_else(|why| panic!("{why}"));
            let web = node.listeners().named("web").expect("it is configured").address;
            let shared = Shared { tcp: node.mqtt_addr(), web };
            tell.send(shared).expect("somebody waits");
            std::future::pending::<()>().await;
        });
    });
    told.recv().expect("the node starts")
});

/// Nobody stops it, so nobody removes its data: the next run does.
fn folder() -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clauses");
    for old in std::fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(old.file_name()).exists() {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    let own = all.join(std::process::id().to_string());
    let _ = std::fs::remove_dir_all(&own); // of another process that had this number
    std::fs::create_dir_all(&own).expect("a folder");
    own
}

/// Where it listens.
struct Shared {
    tcp: SocketAddr,
    web: SocketAddr,
}

/// Where it listens for WebSockets.
pub fn web() -> SocketAddr {
    NODE.web
}

/// A word nobody else uses: for client ids and topics.
pub fn unique(word: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{word}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A connection.
pub struct Peer {
    stream: TcpStream,
    pub version: u8,
}

impl Peer {
    /// TCP and nothing more.
    pub fn open(version: u8) -> Self {
        Self::open_at(NODE.tcp, version)
    }

    pub fn open_at(server: SocketAddr, version: u8) -> Self {
        let stream = TcpStream::connect_timeout(&server, DEADLINE).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
        Self { stream, version }
    }

    /// With a clean session under a name of its own.
    pub fn new(version: u8) -> Self {
        Self::accepted(&Connect::new(version, &unique("c"))).0
    }

    /// Accepted, with the CONNACK.
    pub fn accepted(connect: &Connect) -> (Self, Packet) {
        let (peer, connack) = Self::asked(connect);
        assert_eq!(connack.reason, 0, "accepted");
        (peer, connack)
    }

    /// Whatever the CONNACK says.
    pub fn asked(connect: &Connect) -> (Self, Packet) {
        let mut peer = Self::open(connect.version);
        peer.send(&connect.encode());
        let connack = peer.expect(CONNACK);
        (peer, connack)
    }

    /// Sends; a server that has closed already is found out on reading.
    pub fn send(&mut self, bytes: &[u8]) {
        let _closed = self.stream.write_all(bytes);
    }

    pub fn publish(&mut self, publish: &Publish) {
        self.send(&publish.encode(self.version));
    }

    /// Publishes with QoS 0 and waits until the server has taken it.
    pub fn published(&mut self, publish: &Publish) {
        self.publish(publish);
        assert_eq!(self.until_ping(), [], "nothing but PINGRESP");
    }

    /// Subscribes; the codes of the SUBACK.
    pub fn subscribe(&mut self, filter: &str, options: u8) -> Vec<u8> {
        self.subscribe_with(&Properties::new(), &[(filter, options)])
    }

    pub fn subscribe_with(&mut self, properties: &Properties, filters: &[(&str, u8)]) -> Vec<u8> {
        self.send(&subscribe(self.version, 0x5b5b, properties, filters));
        let suback = self.expect(SUBACK);
        assert_eq!(suback.id, 0x5b5b, "[MQTT-3.8.4-2]");
        suback.reasons
    }

    /// The next packet, which is of this type.
    pub fn expect(&mut self, kind: u8) -> Packet {
        let packet = self.next().unwrap_or_else(|| panic!("closed instead of a packet {kind:#x}"));
        assert_eq!(packet.kind, kind, "{packet:?}");
        packet
    }

    /// The next message; QoS 1 and 2 are acknowledged to the end.
    pub fn message(&mut self) -> Packet {
        let message = self.expect(PUBLISH);
        match message.qos() {
            1 => self.send(&ack(PUBACK, message.id)),
            2 => {
                self.send(&ack(PUBREC, message.id));
                assert_eq!(self.expect(PUBREL).id, message.id);
                self.send(&ack(PUBCOMP, message.id));
            }
            _ => {}
        }
        message
    }

    /// All that comes before the answer to a ping: everything the server already had for this client.
    pub fn until_ping(&mut self) -> Vec<Packet> {
        self.send(&PINGREQ);
        let mut before = Vec::new();
        loop {
            match self.next().expect("open") {
                packet if packet.kind == PINGRESP => return before,
                packet => before.push(packet),
            }
        }
    }

    /// Everything up to the end of the connection, which the server makes.
    pub fn until_closed(&mut self) -> Vec<Packet> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The server refuses what was sent: MQTT 5 says why in a DISCONNECT, 3.1.1 says nothing; both close.
    pub fn refused(&mut self, reason: u8) {
        let last = self.until_closed();
        if self.version == 5 {
            let told: Vec<_> = last.iter().map(|packet| (packet.kind, packet.reason)).collect();
            assert_eq!(told, [(DISCONNECT, reason)], "{reason:#x} and the end");
        } else {
            assert_eq!(last, [], "closed without a word");
        }
    }

    /// The server closes; DISCONNECT is allowed to come before, and nothing else.
    pub fn closed(&mut self) {
        let last = self.until_closed();
        assert!(
            last.iter().all(|packet| packet.kind == DISCONNECT && packet.reason >= 0x80),
            "{last:?}"
        );
    }

    /// Goes away without DISCONNECT.
    pub fn drop_connection(self) {
        drop(self);
    }

    /// DISCONNECT with reason 0.
    pub fn disconnect(mut self) {
        self.send(&[DISCONNECT, 0]);
        assert_eq!(self.until_closed(), []);
    }

    /// The next packet; nothing when the server has closed.
    pub fn next(&mut self) -> Option<Packet> {
        let mut first = [0; 1];
        match self.stream.read(&mut first) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(why) if why.kind() == ErrorKind::ConnectionReset => return None,
            Err(why) => panic!("neither a packet nor the end: {why}"),
        }
        let (mut length, mut shift, mut head) = (0, 0, 1);
        loop {
            let mut byte = [0; 1];
            self.stream.read_exact(&mut byte).expect("a whole packet");
            length |= usize::from(byte[0] & 0x7f) << shift;
            shift += 7;
            head += 1;
            if byte[0] < 0x80 {
                assert!(head == 2 || byte[0] > 0, "[MQTT-1.5.5-1] the shortest form");
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a whole packet");
        Some(Packet::read(first[0], &body, head + length, self.version))
    }
}
