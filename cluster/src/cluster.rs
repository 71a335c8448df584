//! The cluster side of a node: one UDP port, its tasks, and who watches them.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outpost_membership::MemberState;
use outpost_model::NodeId;
use outpost_security::identity;
use quinn::congestion::BbrConfig;
use quinn::{ConnectionError, Endpoint, EndpointConfig, Incoming, TransportConfig, VarInt};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::ca;
use crate::config::{ClusterConfig, LinkLimits};
use crate::dial;
use crate::join;
use crate::link;
use crate::links::Links;
use crate::membership::{self, GOSSIP_QUEUE_MAX, Gossip, Roster};
use crate::sink::{CLOSED_NOT_A_NODE, CLOSED_SHUTDOWN, PeerSink};
use crate::stats::{ClusterCounters, ClusterStatus, LANES, MemberStatus, PeerCounters, bump};
use crate::tls::{self, NodeTls, TlsError};

/// Handshakes under way at once. More have to prove their address first, and beyond twice this are refused. Lower: many
/// nodes that start together wait for each other. Higher: a flood of first packets costs more memory.
pub const HANDSHAKES_MAX: usize = 64;
/// How long an incoming handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// How many refused parties are remembered so that each is logged once a minute, not at each of its attempts.
const REFUSALS_REMEMBERED_MAX: usize = 64;
/// What of the other side's words goes into the log.
const REASON_CHARS_MAX: usize = 300;
const REFUSAL_SILENCE: Duration = Duration::from_mins(1);
/// How long the goodbye may take to get on its way before the links close.
const GOODBYE: Duration = Duration::from_millis(50);
/// Pause before a task that panicked is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Why the cluster side did not start. Nothing runs then.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A name in the configuration.
    #[error("{0:?} cannot be the name of a {1}")]
    BadName(String, &'static str),
    /// The certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The UDP port.
    #[error("cannot listen at UDP {addr}: {cause}")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// What the operating system says.
        #[source]
        cause: std::io::Error,
    },
    /// The CA, on the node that lets others join.
    #[error(transparent)]
    Ca(#[from] ca::CaError),
}

/// A running cluster side. Dropping it ends its tasks; [`Cluster::shutdown`] also says goodbye.
pub struct Cluster {
    context: Arc<Context>,
    tasks: Vec<JoinHandle<()>>,
}

/// What all tasks share.
pub(crate) struct Context {
    pub(crate) config: ClusterConfig,
    pub(crate) id: NodeId,
    pub(crate) bound: SocketAddr,
    pub(crate) advertised: SocketAddr,
    pub(crate) endpoint: Endpoint,
    pub(crate) client: quinn::ClientConfig,
    pub(crate) sink: Arc<dyn PeerSink>,
    pub(crate) links: Links,
    pub(crate) roster: Roster,
    pub(crate) counters: ClusterCounters,
    pub(crate) door: Option<join::Door>,
    ca_fingerprint: String,
    certificate_expires_s: i64,
    gossip: mpsc::Sender<Gossip>,
    dialling: Mutex<BTreeMap<NodeId, JoinHandle<()>>>,
    refusals: Mutex<BTreeMap<(std::net::IpAddr, String), Instant>>,
}

impl Cluster {
    /// Opens the port and begins to look for the others. `incarnation` must be greater than at the last start; the time
    /// in milliseconds or a counter on disk will do, and a lost count is found again with the others' help.
    ///
    /// # Errors
    /// [`StartError`] when the files or the address cannot be used.
    pub async fn start(
        config: ClusterConfig,
        sink: Arc<dyn PeerSink>,
        incarnation: u64,
    ) -> Result<Self, StartError> {
        if !identity::is_cluster_name(&config.cluster) {
            return Err(StartError::BadName(config.cluster, "cluster"));
        }
        if !identity::is_node_name(&config.name) {
            return Err(StartError::BadName(config.name, "node"));
        }
        let tls = NodeTls::load(&config)?;
        let door =
            config.ca_key.as_ref().map(|key| join::Door::open(&config.ca_pem, key)).transpose()?;
        let endpoint = open_endpoint(&config, &tls)?;
        let bound =
            endpoint.local_addr().map_err(|cause| StartError::Bind { addr: config.bind, cause })?;
        let advertised = advertised(&config, bound).await;
        let mut client = quinn::ClientConfig::new(tls.client.clone());
        client.transport_config(Arc::new(transport(&config.limits, config.lossy_links)));
        let (gossip, inbox) = mpsc::channel(GOSSIP_QUEUE_MAX);
        let context = Arc::new(Context {
            id: NodeId::from_name(&config.name),
            bound,
            advertised,
            endpoint,
            client,
            sink,
            links: Links::new(config.limits.links_max),
            roster: Roster::default(),
            counters: ClusterCounters::default(),
            door,
            ca_fingerprint: ca::fingerprint(&tls.ca_der),
            certificate_expires_s: tls.identity.not_after_s,
            gossip,
            dialling: Mutex::default(),
            refusals: Mutex::default(),
            config,
        });
        tracing::info!(node = %context.config.name, %bound, advertised = %context.advertised, "cluster port is open");
        let tasks = spawn_tasks(&context, inbox, incarnation);
        Ok(Self { context, tasks })
    }

    /// Where the port is open.
    pub fn local_addr(&self) -> SocketAddr {
        self.context.bound
    }

    /// The cluster as this node sees it now.
    pub fn status(&self) -> ClusterStatus {
        status(&self.context)
    }

    /// Tells the others, closes all links and the port.
    pub async fn shutdown(self) {
        self.context.gossip(Gossip::Leave);
        tokio::time::sleep(GOODBYE).await;
        self.context.stop(&self.tasks);
        let _ = timeout(Duration::from_secs(1), self.context.endpoint.wait_idle()).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.context.stop(&self.tasks);
    }
}

impl Context {
    /// Hands news to membership; drops them when it is far behind.
    pub(crate) fn gossip(&self, news: Gossip) {
        if self.gossip.try_send(news).is_err() {
            bump(&self.counters.bad_gossip);
        }
    }

    /// Starts to keep a link to a node membership learnt of. Membership bounds their number.
    pub(crate) fn dial_member(self: &Arc<Self>, id: NodeId) {
        let mut dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        if dialling.get(&id).is_none_or(JoinHandle::is_finished) {
            let context = Arc::clone(self);
            let keep = keep_running("dial", move || dial::member(Arc::clone(&context), id));
            dialling.insert(id, tokio::spawn(keep));
        }
    }

    /// Counts a party that is not of this cluster, and says so once a minute.
    pub(crate) fn refuse(&self, addr: SocketAddr, why: &str) {
        bump(&self.counters.refused_handshakes);
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.retain(|_, at| at.elapsed() < REFUSAL_SILENCE);
        let key = (addr.ip(), why.to_owned());
        if refusals.contains_key(&key) || refusals.len() >= REFUSALS_REMEMBERED_MAX {
            return;
        }
        refusals.insert(key, Instant::now());
        tracing::warn!(%addr, cluster = %self.config.cluster, "refused a connection: {why}");
    }

    /// Looks whether a connection failed because one side does not trust the other.
    pub(crate) fn note_failure(&self, addr: SocketAddr, error: &ConnectionError) {
        match error {
            _ if !dial::is_refusal(error) => tracing::debug!(%addr, %error, "no connection"),
            ConnectionError::ConnectionClosed(close) => {
                let why = reason(close);
                self.refuse(
                    addr,
                    &format!("the other side does not accept this node's certificate: {why}"),
                );
            }
            _ => {
                let why = reason(error);
                self.refuse(
                    addr,
                    &format!("the certificate of the other side is not accepted: {why}"),
                );
            }
        }
    }

    pub(crate) fn link_panicked(&self) {
        bump(&self.counters.link_panics);
        tracing::error!("a link's task panicked; only that link restarts");
    }

    fn stop(&self, tasks: &[JoinHandle<()>]) {
        self.endpoint.close(CLOSED_SHUTDOWN, b"the node stops");
        tasks.iter().for_each(JoinHandle::abort);
        self.dialling
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .for_each(JoinHandle::abort);
    }
}

/// The words for people in a TLS error: our own when the refusal was ours, without the library's wrapping.
fn reason(error: &impl std::fmt::Display) -> String {
    // Part of it may be the other side's words.
    let error: String =
        error.to_string().chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    match error.split_once("OtherError(") {
        Some((_, ours)) => ours.trim_end_matches(')').to_owned(),
        None => error,
    }
}

/// Runs a task again when it panics; ends when it ends by itself.
async fn keep_running<F, T>(name: &'static str, begin: F)
where
    F: Fn() -> T + Send,
    T: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut task = AbortOnDrop(tokio::spawn(begin()));
        match (&mut task.0).await {
            Err(error) if error.is_panic() => {
                tracing::error!(task = name, "panicked, begins again");
                tokio::time::sleep(RESTART_PAUSE).await;
            }
            _ => return,
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spawn_tasks(
    context: &Arc<Context>,
    inbox: mpsc::Receiver<Gossip>,
    incarnation: u64,
) -> Vec<JoinHandle<()>> {
    let inbox = Arc::new(tokio::sync::Mutex::new(inbox));
    let for_membership = Arc::clone(context);
    let membership = keep_running("membership", move || {
        membership::run(Arc::clone(&for_membership), Arc::clone(&inbox), incarnation)
    });
    let for_accept = Arc::clone(context);
    let accept = keep_running("accept", move || accept(Arc::clone(&for_accept)));
    let mut tasks = vec![tokio::spawn(membership), tokio::spawn(accept)];
    for seed in &context.config.seeds {
        let (context, seed) = (Arc::clone(context), seed.clone());
        tasks.push(tokio::spawn(keep_running("seed", move || {
            dial::seed(Arc::clone(&context), seed.clone())
        })));
    }
    tasks
}

async fn accept(context: Arc<Context>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = context.endpoint.accept().await {
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let context = Arc::clone(&context);
                tokio::spawn(async move {
                    let shaken = handshake(&context, incoming).await;
                    drop(place);
                    if let Some(connection) = shaken {
                        serve(context, connection).await;
                    }
                });
            }
            Err(_) if incoming.may_retry() => {
                let _ = incoming.retry();
            }
            Err(_) => incoming.refuse(),
        }
    }
}

async fn handshake(context: &Context, incoming: Incoming) -> Option<quinn::Connection> {
    let addr = incoming.remote_address();
    let connecting = incoming.accept().ok()?;
    match timeout(HANDSHAKE_TIME_MAX, connecting).await.ok()? {
        Ok(connection) => Some(connection),
        Err(error) => {
            context.note_failure(addr, &error);
            None
        }
    }
}

async fn serve(context: Arc<Context>, connection: quinn::Connection) {
    let protocol = tls::protocol(&connection);
    match (protocol.as_deref(), &context.door) {
        (Some(tls::ALPN_LINK), _) => {
            let addr = connection.remote_address();
            let ran =
                tokio::spawn(link::run(Arc::clone(&context), connection.clone(), false)).await;
            if ran.is_err_and(|error| error.is_panic()) {
                context.link_panicked();
            }
            if let Some(reason) = connection.close_reason().filter(dial::is_refusal) {
                context.note_failure(addr, &reason);
            }
        }
        (Some(tls::ALPN_JOIN), Some(door)) => join::serve(&context, door, connection).await,
        _ => connection.close(CLOSED_NOT_A_NODE, b"no such protocol here"),
    }
}

fn open_endpoint(config: &ClusterConfig, tls: &NodeTls) -> Result<Endpoint, StartError> {
    let failed = |cause| StartError::Bind { addr: config.bind, cause };
    let socket = std::net::UdpSocket::bind(config.bind).map_err(failed)?;
    let mut server = quinn::ServerConfig::with_crypto(tls.server.clone());
    server.transport_config(Arc::new(transport(&config.limits, config.lossy_links)));
    server.max_incoming(HANDSHAKES_MAX * 2);
    let endpoint = EndpointConfig::new(Arc::new(tls.reset_key.clone()));
    Endpoint::new(endpoint, Some(server), socket, Arc::new(quinn::TokioRuntime)).map_err(failed)
}

/// The configured address; else where the port is; else, when that is "every address of this machine", the one from
/// which packets would leave towards the first seed. Nothing is sent to find out.
async fn advertised(config: &ClusterConfig, bound: SocketAddr) -> SocketAddr {
    if let Some(addr) = config.advertise {
        return addr;
    }
    if !bound.ip().is_unspecified() {
        return bound;
    }
    let mut towards: Vec<SocketAddr> = vec![ANYWHERE];
    if let Some(seed) = config.seeds.first()
        && let Ok(Ok(found)) = timeout(Duration::from_secs(2), tokio::net::lookup_host(seed)).await
    {
        towards.splice(0..0, found);
    }
    let local = |towards: &SocketAddr| {
        let any: std::net::IpAddr = if towards.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
        socket.connect(towards).ok()?;
        socket.local_addr().ok().filter(|addr| !addr.ip().is_unspecified())
    };
    let ip = towards.iter().find_map(local).map_or(Ipv4Addr::LOCALHOST.into(), |addr| addr.ip());
    SocketAddr::new(ip, bound.port())
}

/// An address of nobody (RFC 5737), used to ask the system for its default route.
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

pub(crate) fn transport(limits: &LinkLimits, lossy: bool) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle_ms = u32::try_from(limits.idle_timeout.as_millis()).unwrap_or(u32::MAX);
    transport
        .max_idle_timeout(Some(VarInt::from_u32(idle_ms).into()))
        .keep_alive_interval(Some(limits.keep_alive))
        .initial_rtt(Duration::from_millis(100))
        .max_concurrent_uni_streams(VarInt::from_u32(LANES.len() as u32))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .stream_receive_window(VarInt::from_u32(2 << 20))
        .receive_window(VarInt::from_u32(6 << 20))
        .send_window(6 << 20)
        .datagram_receive_buffer_size(Some(64 << 10))
        .datagram_send_buffer_size(64 << 10);
    if lossy {
        transport.congestion_controller_factory(Arc::new(BbrConfig::default()));
    }
    transport
}

fn status(context: &Context) -> ClusterStatus {
    let mut members: Vec<MemberStatus> = Vec::new();
    let roster = context.roster.all();
    let peers = context.links.lock();
    let ids: std::collections::BTreeSet<NodeId> =
        roster.keys().chain(peers.keys()).copied().collect();
    for id in ids {
        let (known, peer) = (roster.get(&id), peers.get(&id));
        let link = peer.and_then(|peer| peer.link.as_ref());
        let mut lanes =
            peer.map_or_else(|| PeerCounters::default().lanes(), |peer| peer.counters.lanes());
        for (place, lane) in lanes.iter_mut().zip(LANES) {
            place.queued_bytes = link.map_or(0, |link| link.queued_bytes(lane));
        }
        let since = [known.map(|k| k.since_wall_ms), peer.map(|p| p.since_wall_ms)];
        members.push(MemberStatus {
            name: known
                .map(|k| k.member.name.clone())
                .or_else(|| peer.map(|p| p.name.clone()))
                .unwrap_or_default(),
            id: id.to_string(),
            address: known.map(|k| k.member.addr),
            state: match known.map(|k| k.state) {
                Some(MemberState::Alive) => "alive",
                Some(MemberState::Suspect) => "suspect",
                Some(MemberState::Down) => "down",
                None if link.is_some() => "alive",
                None => "down",
            },
            incarnation: known.map_or(0, |k| k.member.incarnation),
            linked: link.is_some(),
            rtt_ms: link.map(|link| link.shared().connection.rtt().as_secs_f64() * 1_000.0),
            since_wall_ms: since.into_iter().flatten().max().unwrap_or(0),
            lanes,
            refused_full: peer
                .map_or(0, |p| p.counters.refused_full.load(std::sync::atomic::Ordering::Relaxed)),
        });
    }
    drop(peers);
    members.sort_by(|a, b| a.name.cmp(&b.name));
    ClusterStatus {
        cluster: context.config.cluster.clone(),
        name: context.config.name.clone(),
        id: context.id.to_string(),
        address: context.advertised,
        incarnation: context.roster.incarnation(),
        certificate_expires_s: context.certificate_expires_s,
        ca_fingerprint: context.ca_fingerprint.clone(),
        members,
        counters: context.counters.status(),
    }
}
