//! Roads between nodes: who may use them (mutual TLS by SPIFFE names), who is there (gossip), and frames in lanes over
//! QUIC. What the frames mean is the node's affair, see [`PeerSink`].

pub mod ca;
mod cluster;
pub mod config;
mod dial;
pub mod frame;
pub mod join;
mod link;
mod links;
pub mod listener_ca;
mod membership;
mod queue;
mod sink;
pub mod stats;
mod tls;
pub mod tokens;

pub use cluster::{Cluster, HANDSHAKES_MAX, StartError};
pub use config::{ClusterConfig, DEFAULT_PORT, LinkLimits};
pub use sink::{BoxFuture, LinkFull, LinkHandle, LinkPath, PeerInfo, PeerSink};
pub use stats::{ClusterStatus, CounterStatus, LaneStatus, MemberStatus};
pub use tls::TlsError;

/// Eight random bytes from the operating system's generator.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
    u64::from_le_bytes(bytes)
}
