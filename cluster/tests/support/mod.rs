//! Real nodes on loopback with real certificates, a sink that writes down what it hears, and a relay that can be cut.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outpost_cluster::ca::Ca;
use outpost_cluster::{BoxFuture, Cluster, ClusterConfig, LinkHandle, PeerInfo, PeerSink};
use outpost_membership::{Hello, Lane, PeerFrame};
use outpost_model::NodeId;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for something to become true; the figure is how long it took.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}

#[derive(Default)]
pub struct Notes {
    links: Mutex<BTreeMap<NodeId, LinkHandle>>,
    frames: Mutex<Vec<(NodeId, PeerFrame)>>,
    ups: Mutex<Vec<(NodeId, &'static str)>>,
    writable: Mutex<Vec<(NodeId, Lane)>>,
    /// While set, frames of the events lane are not taken.
    pub stuck: AtomicBool,
    pub panic_on_shadow: AtomicBool,
}

impl Notes {
    pub fn link(&self, peer: &str) -> Option<LinkHandle> {
        self.links.lock().unwrap().get(&NodeId::from_name(peer)).cloned()
    }

    pub fn linked(&self, peer: &str) -> bool {
        self.link(peer).is_some()
    }

    pub fn frames_of(&self, peer: &str) -> Vec<PeerFrame> {
        let id = NodeId::from_name(peer);
        self.frames
            .lock()
            .unwrap()
            .iter()
            .filter(|(from, _)| *from == id)
            .map(|(_, frame)| frame.clone())
            .collect()
    }

    /// "up" and "down" of a peer, in the order heard.
    pub fn history(&self, peer: &str) -> Vec<&'static str> {
        let id = NodeId::from_name(peer);
        self.ups.lock().unwrap().iter().filter(|(of, _)| *of == id).map(|(_, what)| *what).collect()
    }

    pub fn writables(&self) -> Vec<(NodeId, Lane)> {
        self.writable.lock().unwrap().clone()
    }
}

impl PeerSink for Notes {
    fn peer_up(&self, peer: PeerInfo, link: LinkHandle) {
        link.try_send(PeerFrame::Hello(Hello {
            store_id: 1,
            your_store_id: 0,
            events_seen: 0,
            retained_seen: 0,
        }))
        .expect("a fresh link takes a frame");
        self.ups.lock().unwrap().push((peer.id, "up"));
        self.links.lock().unwrap().insert(peer.id, link);
    }

    fn peer_down(&self, peer: NodeId) {
        self.ups.lock().unwrap().push((peer, "down"));
        self.links.lock().unwrap().remove(&peer);
    }

    fn frame(&self, peer: NodeId, frame: PeerFrame) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            while frame.lane() == Lane::Events && self.stuck.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(
                !(matches!(frame, PeerFrame::Shadow(_))
                    && self.panic_on_shadow.swap(false, Ordering::SeqCst)),
                "a panic made by the test"
            );
            self.frames.lock().unwrap().push((peer, frame));
        })
    }

    fn writable(&self, peer: NodeId, lane: Lane) {
        self.writable.lock().unwrap().push((peer, lane));
    }
}

/// A cluster's CA and its nodes' folders.
pub struct Plant {
    pub root: tempfile::TempDir,
    pub ca: Ca,
}

impl Plant {
    pub fn new(cluster: &str) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let ca = Ca::create(&root.path().join("ca"), cluster).expect("a CA");
        Self { root, ca }
    }

    pub fn ca_folder(&self) -> PathBuf {
        self.root.path().join("ca")
    }

    /// Configuration of a node with a fresh certificate, at a port the system chooses.
    pub fn config(&self, name: &str, seeds: &[SocketAddr]) -> ClusterConfig {
        let folder = self.root.path().join(name);
        if !folder.exists() {
            self.ca
                .issue_node(name)
                .expect("a certificate")
                .write_as_node(&folder)
                .expect("written");
            std::fs::write(folder.join("ca.pem"), self.ca.pem()).expect("written");
        }
        let mut config = ClusterConfig::in_folder(self.ca.cluster(), name, &folder);
        config.bind = "127.0.0.1:0".parse().expect("an address");
        config.seeds = seeds.iter().map(ToString::to_string).collect();
        config
    }
}

pub async fn start(config: ClusterConfig) -> (Cluster, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let cluster = Cluster::start(config, notes.clone(), wall_ms()).await.expect("the node starts");
    (cluster, notes)
}

pub fn wall_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_millis() as u64
}

/// A UDP relay in front of one node: each client gets its own socket towards the node. While cut it drops everything.
pub struct Relay {
    pub addr: SocketAddr,
    cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn bind() -> (UdpSocket, SocketAddr) {
        let front = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let addr = front.local_addr().expect("bound");
        (front, addr)
    }

    pub fn start(front: UdpSocket, target: SocketAddr) -> Self {
        let addr = front.local_addr().expect("bound");
        let cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(relay(Arc::new(front), target, Arc::clone(&cut)));
        Self { addr, cut, task }
    }

    pub fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(front: Arc<UdpSocket>, target: SocketAddr, cut: Arc<AtomicBool>) {
    let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut packet = vec![0; 65_536];
    loop {
        let Ok((length, client)) = front.recv_from(&mut packet).await else { continue };
        if cut.load(Ordering::SeqCst) {
            continue;
        }
        if let std::collections::btree_map::Entry::Vacant(place) = backs.entry(client) {
            let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
            place.insert(Arc::clone(&back));
            let (front, cut) = (Arc::clone(&front), Arc::clone(&cut));
            tokio::spawn(async move {
                let mut packet = vec![0; 65_536];
                while let Ok((length, _)) = back.recv_from(&mut packet).await {
                    if !cut.load(Ordering::SeqCst) {
                        let _ = front.send_to(&packet[..length], client).await;
                    }
                }
            });
        }
        let _ = backs[&client].send_to(&packet[..length], target).await;
    }
}
