//! The cable between the two nodes: a UDP relay on loopback that can be cut, and counts what passes.
//!
//! ```text
//!  edge ◀──▶ door of the cloud │ lab │ door of the edge ◀──▶ cloud
//! ```
//! Each node advertises its door, so every packet between them passes here. What comes in at one door leaves by the
//! other: each node sees its peer under the address the peer advertises.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Sub;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::cli::failure::Failure;

/// No UDP packet is longer.
const PACKET_BYTES_MAX: usize = 65_536;

/// What went one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Flow {
    /// Packets that passed.
    pub packets: u64,
    /// Bytes of UDP payload in them.
    pub bytes: u64,
    /// Packets that came while the cable was cut, and were thrown away.
    pub dropped: u64,
}

/// What went both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// From the edge to the cloud.
    pub edge_to_cloud: Flow,
    /// From the cloud to the edge.
    pub cloud_to_edge: Flow,
}

impl Sub for Flow {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            bytes: self.bytes - earlier.bytes,
            dropped: self.dropped - earlier.dropped,
        }
    }
}

impl Sub for Tally {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            edge_to_cloud: self.edge_to_cloud - earlier.edge_to_cloud,
            cloud_to_edge: self.cloud_to_edge - earlier.cloud_to_edge,
        }
    }
}

/// Under one lock, so that each packet is counted on the side of a cut on which it was let through or thrown away.
#[derive(Debug, Default)]
struct State {
    is_cut: bool,
    tally: Tally,
}

impl State {
    /// Counts a packet; whether it passes.
    fn lets_through(&mut self, to_cloud: bool, length: usize) -> bool {
        let tally = &mut self.tally;
        let flow = if to_cloud { &mut tally.edge_to_cloud } else { &mut tally.cloud_to_edge };
        if self.is_cut {
            flow.dropped += 1;
        } else {
            flow.packets += 1;
            flow.bytes += length as u64;
        }
        !self.is_cut
    }
}

/// The two doors, before the nodes are known.
#[derive(Debug)]
pub struct Doors {
    edge: UdpSocket,
    cloud: UdpSocket,
}

impl Doors {
    /// Opens both on ports the system chooses.
    ///
    /// # Errors
    /// [`Failure`] when there are none.
    pub async fn open() -> Result<Self, Failure> {
        let door = || async {
            UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .map_err(|why| Failure::new(format!("cannot open a UDP port on loopback: {why}")))
        };
        Ok(Self { edge: door().await?, cloud: door().await? })
    }

    /// Where the cloud reaches the edge.
    pub fn edge(&self) -> SocketAddr {
        self.edge.local_addr().expect("a bound socket has an address")
    }

    /// Where the edge reaches the cloud.
    pub fn cloud(&self) -> SocketAddr {
        self.cloud.local_addr().expect("a bound socket has an address")
    }

    /// Lays the cable between two nodes. Packets of anybody else are ignored.
    pub fn connect(self, edge: SocketAddr, cloud: SocketAddr) -> Cable {
        let state = Arc::<Mutex<State>>::default();
        let (edge_door, cloud_door) = (Arc::new(self.edge), Arc::new(self.cloud));
        let up = relay(Arc::clone(&cloud_door), edge, Arc::clone(&edge_door), cloud, {
            Way { state: Arc::clone(&state), to_cloud: true }
        });
        let down = relay(edge_door, cloud, cloud_door, edge, {
            Way { state: Arc::clone(&state), to_cloud: false }
        });
        Cable { state, tasks: [tokio::spawn(up), tokio::spawn(down)] }
    }
}

/// A cable that carries. Dropping it takes it away.
#[derive(Debug)]
pub struct Cable {
    state: Arc<Mutex<State>>,
    tasks: [JoinHandle<()>; 2],
}

impl Cable {
    /// From now on nothing passes, in either direction. What has passed until then.
    pub fn cut(&self) -> Tally {
        let mut state = self.state.lock();
        state.is_cut = true;
        state.tally
    }

    /// From now on everything passes again. What has passed until then.
    pub fn heal(&self) -> Tally {
        let mut state = self.state.lock();
        state.is_cut = false;
        state.tally
    }

    /// What has passed since the beginning.
    pub fn tally(&self) -> Tally {
        self.state.lock().tally
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Way {
    state: Arc<Mutex<State>>,
    to_cloud: bool,
}

async fn relay(
    inside: Arc<UdpSocket>,
    from: SocketAddr,
    outside: Arc<UdpSocket>,
    to: SocketAddr,
    way: Way,
) {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    loop {
        // An error is a node's port being closed for now (ICMP); the next packet may come through.
        let Ok((length, sender)) = inside.recv_from(&mut packet).await else { continue };
        if sender != from {
            continue;
        }
        if way.state.lock().lets_through(way.to_cloud, length) {
            // A cable does not know whether what it carries is taken in.
            let _ = outside.send_to(&packet[..length], to).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn node() -> UdpSocket {
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port")
    }

    async fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut packet = [0; 64];
        let receive = socket.recv_from(&mut packet);
        let (length, from) = tokio::time::timeout(Duration::from_secs(5), receive)
            .await
            .expect("it arrives in time")
            .expect("it can be received");
        (packet[..length].to_vec(), from)
    }

    #[tokio::test]
    async fn a_cut_cable_carries_nothing_and_a_healed_one_everything() {
        let (edge, cloud, stranger) = (node().await, node().await, node().await);
        let doors = Doors::open().await.expect("free ports");
        let (edge_door, cloud_door) = (doors.edge(), doors.cloud());
        let cable =
            doors.connect(edge.local_addr().expect("bound"), cloud.local_addr().expect("bound"));

        edge.send_to(b"hello", cloud_door).await.expect("sent");
        assert_eq!(received(&cloud).await, (b"hello".to_vec(), edge_door), "under the edge's door");
        cloud.send_to(b"welcome", edge_door).await.expect("sent");
        assert_eq!(received(&edge).await, (b"welcome".to_vec(), cloud_door));

        let until_cut = Tally {
            edge_to_cloud: Flow { packets: 1, bytes: 5, dropped: 0 },
            cloud_to_edge: Flow { packets: 1, bytes: 7, dropped: 0 },
        };
        assert_eq!(cable.cut(), until_cut);
        edge.send_to(b"lost", cloud_door).await.expect("sent");
        cloud.send_to(b"lost too", edge_door).await.expect("sent");
        while cable.tally().edge_to_cloud.dropped + cable.tally().cloud_to_edge.dropped < 2 {
            tokio::task::yield_now().await;
        }
        let until_healed = cable.heal();
        let lost = Flow { packets: 0, bytes: 0, dropped: 1 };
        let nothing = Tally { edge_to_cloud: lost, cloud_to_edge: lost };
        assert_eq!(until_healed - until_cut, nothing, "nothing passes a cut cable");
        stranger.send_to(b"let me in", cloud_door).await.expect("sent");
        edge.send_to(b"again", cloud_door).await.expect("sent");
        assert_eq!(received(&cloud).await.0, b"again", "neither what was lost nor the stranger's");

        let after = Tally {
            edge_to_cloud: Flow { packets: 2, bytes: 10, dropped: 1 },
            cloud_to_edge: Flow { packets: 1, bytes: 7, dropped: 1 },
        };
        assert_eq!(cable.tally(), after);
        assert_eq!(after - after, Tally::default());
    }
}
