//! A UDP relay in front of a node: what other nodes send goes through it, and nothing does while it is cut.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// The largest UDP packet.
const PACKET_BYTES: usize = 65_536;

/// The relay's address before there is a node behind it.
pub struct Front(UdpSocket);

impl Front {
    pub async fn bind() -> Self {
        Self(UdpSocket::bind("127.0.0.1:0").await.expect("a port"))
    }

    pub fn addr(&self) -> SocketAddr {
        self.0.local_addr().expect("it is bound")
    }

    /// Begins to pass packets to `node` and back.
    pub fn relay_to(self, node: SocketAddr) -> Relay {
        let cut = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn(forth(Arc::new(self.0), node, Arc::clone(&cut)));
        Relay { cut, _task: task }
    }
}

/// A relay at work.
pub struct Relay {
    cut: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl Relay {
    pub fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

/// From the others to the node; each of them has a socket of its own, so that answers find their way.
async fn forth(front: Arc<UdpSocket>, node: SocketAddr, cut: Arc<AtomicBool>) {
    let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut returning = JoinSet::new();
    let mut packet = vec![0; PACKET_BYTES];
    loop {
        let Ok((length, from)) = front.recv_from(&mut packet).await else { continue };
        if cut.load(Ordering::SeqCst) {
            continue;
        }
        if let Entry::Vacant(place) = ways.entry(from) {
            let way = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
            way.connect(node).await.expect("loopback");
            returning.spawn(back(Arc::clone(&way), Arc::clone(&front), from, Arc::clone(&cut)));
            place.insert(way);
        }
        // A node that is not there loses packets, as everywhere.
        let _ = ways[&from].send(&packet[..length]).await;
    }
}

async fn back(way: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, cut: Arc<AtomicBool>) {
    let mut packet = vec![0; PACKET_BYTES];
    loop {
        let Ok(length) = way.recv(&mut packet).await else { continue };
        if !cut.load(Ordering::SeqCst) {
            let _ = front.send_to(&packet[..length], to).await;
        }
    }
}
