//! What a node must be told to take part in a cluster, and every limit of the links.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The UDP port of the cluster unless configured otherwise.
pub const DEFAULT_PORT: u16 = 17447;

/// Everything [`crate::Cluster::start`] needs.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Name of the cluster; the trust domain of all its certificates.
    pub cluster: String,
    /// Name of this node, as in its certificate.
    pub name: String,
    /// UDP address to listen at.
    pub bind: SocketAddr,
    /// Address the others shall dial, when it is not `bind`: behind NAT or a relay. Where packets come from is never
    /// taken for a node's address. Without it and with `bind` 0.0.0.0, the local address towards the first seed.
    pub advertise: Option<SocketAddr>,
    /// `host:port` of nodes to ask first. Names are looked up again at each attempt.
    pub seeds: Vec<String>,
    /// The cluster's CA certificate.
    pub ca_pem: PathBuf,
    /// This node's certificate.
    pub cert_pem: PathBuf,
    /// This node's private key.
    pub key_pem: PathBuf,
    /// The CA's private key, on the node that lets newcomers join. Its folder also holds the join tokens.
    pub ca_key: Option<PathBuf>,
    /// The links lose packets though they are not full (radio, satellite): what has arrived lately sets the speed of sending,
    /// and a loss does not lower it (BBR instead of CUBIC). On a link that is full it takes more than its share.
    pub lossy_links: bool,
    /// Time and size limits.
    pub limits: LinkLimits,
}

/// Limits of one link. The defaults suit a LAN and a good WAN.
#[derive(Debug, Clone)]
pub struct LinkLimits {
    /// A link without any packet for this long is down. Shorter: a cut is noticed sooner, a bad road flaps.
    pub idle_timeout: Duration,
    /// A packet is sent at least this often; keep it under a third of `idle_timeout`.
    pub keep_alive: Duration,
    /// How long one attempt to connect may take. Longer: slow roads work. Shorter: a healed road is found sooner.
    pub dial_timeout: Duration,
    /// First pause between two attempts.
    pub redial_min: Duration,
    /// Longest pause. Longer: fewer packets towards nodes that are gone, later return of a link that healed.
    pub redial_max: Duration,
    /// Bytes that may wait on the control lane. Full means the peer has not read for long.
    pub control_queue_bytes_max: usize,
    /// Bytes that may wait on the events lane. Lower: bursts are refused sooner. Higher: more memory per peer.
    pub events_queue_bytes_max: usize,
    /// Bytes that may wait on the sync lane.
    pub sync_queue_bytes_max: usize,
    /// Links at once. More nodes than this in one cluster do not all reach each other.
    pub links_max: usize,
}

impl ClusterConfig {
    /// A node with default port and limits whose files lie in `folder` under their usual names: `ca.pem`, `node.pem`,
    /// `node.key`, and, only when it is there, `ca.key`.
    pub fn in_folder(cluster: &str, name: &str, folder: &std::path::Path) -> Self {
        let ca_key = folder.join(crate::ca::CA_KEY_FILE);
        Self {
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            bind: SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
            advertise: None,
            seeds: Vec::new(),
            ca_pem: folder.join(crate::ca::CA_FILE),
            cert_pem: folder.join(crate::ca::NODE_FILE),
            key_pem: folder.join(crate::ca::NODE_KEY_FILE),
            ca_key: ca_key.exists().then_some(ca_key),
            lossy_links: false,
            limits: LinkLimits::default(),
        }
    }
}

impl Default for LinkLimits {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_millis(2_400),
            keep_alive: Duration::from_millis(600),
            dial_timeout: Duration::from_millis(1_500),
            redial_min: Duration::from_millis(100),
            redial_max: Duration::from_secs(1),
            control_queue_bytes_max: 8 << 20,
            events_queue_bytes_max: 16 << 20,
            sync_queue_bytes_max: 8 << 20,
            links_max: 256,
        }
    }
}
