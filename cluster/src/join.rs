//! Joining: a machine without certificate gets one from the node that holds the CA.
//!
//! ```text
//!   newcomer ── connects ──────────────► node shows its certificate and the CA's
//!   person compares the CA's fingerprint, says yes
//!   newcomer ── connects again, same CA ► token, wanted name, signing request
//!            ◄─────────────────────────── certificate and CA, or why not
//! ```
//! The private key never leaves the newcomer, and the token never goes to a node of another CA.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outpost_security::identity::{self, Identity, IdentityKind};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use wincode::{SchemaRead, SchemaWrite};

use crate::ca::{self, CA_FILE, Ca, CaError, Issued};
use crate::cluster::{Context, transport};
use crate::config::LinkLimits;
use crate::frame;
use crate::sink::{CLOSED_BY_NODE, CLOSED_SHUTDOWN};
use crate::stats::bump;
use crate::tls::{self, ALPN_JOIN, SERVER_NAME};
use crate::tokens::Tokens;

/// Newcomers served at once. More are refused and may try again.
pub const JOINS_MAX: usize = 8;
/// A request or answer is at most this long; real ones have about 2 KB.
pub const JOIN_BYTES_MAX: usize = 64 * 1024;
/// This many refused requests in [`REFUSED_WINDOW`], then nobody joins until some are older than that. Lower: a typing
/// mistake too many makes everybody wait. Higher: tokens can be guessed faster, at 128 bits still in vain.
pub const REFUSED_MAX: usize = 10;
/// See [`REFUSED_MAX`].
pub const REFUSED_WINDOW: Duration = Duration::from_mins(1);
/// How long one exchange may take.
const EXCHANGE_MAX: Duration = Duration::from_secs(10);

/// Why joining failed. No file was written, except for the last two.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The wanted name.
    #[error("{0:?} cannot be the name of a node")]
    BadName(String),
    /// No answer.
    #[error("cannot reach {at}: {why}")]
    Unreachable {
        /// The address as given.
        at: String,
        /// What happened.
        why: String,
    },
    /// Whoever answers is not a node that lets others join.
    #[error("{at} is not a node one can join: {why}")]
    NotANode {
        /// The address as given.
        at: String,
        /// What it showed instead.
        why: String,
    },
    /// The person said no. The token was not sent.
    #[error("the fingerprint {0} was not confirmed; the token was not sent")]
    NotConfirmed(String),
    /// The node said no.
    #[error("the node refused: {0}")]
    Refused(String),
    /// The answer is not a certificate for us.
    #[error("the node's answer cannot be used: {0}")]
    BadAnswer(String),
    /// A key or a file.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// A newcomer's wish.
#[derive(Debug, Clone)]
pub struct JoinRequest {
    /// `host:port` of the node that holds the CA.
    pub at: String,
    /// The token made there.
    pub token: String,
    /// The name this node shall have.
    pub name: String,
    /// Where `ca.pem`, `node.pem` and `node.key` are written.
    pub folder: PathBuf,
}

/// What a newcomer has after joining.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The cluster it is a node of now.
    pub cluster: String,
    /// Its name there.
    pub name: String,
    /// The CA it trusts.
    pub ca_fingerprint: String,
}

/// The side that lets others in.
pub(crate) struct Door {
    ca: Ca,
    tokens: Tokens,
    places: Semaphore,
    refused: Mutex<VecDeque<Instant>>,
}

#[derive(SchemaWrite, SchemaRead)]
struct Request<'a> {
    version: u8,
    token: &'a str,
    name: &'a str,
    csr_der: &'a [u8],
}

#[derive(SchemaWrite, SchemaRead)]
struct Answer<'a> {
    version: u8,
    /// Empty when granted.
    refused: &'a str,
    cert_pem: &'a str,
    ca_pem: &'a str,
}

const VERSION: u8 = 1;

impl Door {
    pub(crate) fn open(ca_pem: &Path, ca_key: &Path) -> Result<Self, CaError> {
        let folder = ca_key.parent().unwrap_or(Path::new("."));
        Ok(Self {
            ca: Ca::load(ca_pem, ca_key)?,
            tokens: Tokens::in_folder(folder),
            places: Semaphore::new(JOINS_MAX),
            refused: Mutex::default(),
        })
    }

    fn too_many_refused(&self) -> bool {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        while refused.front().is_some_and(|at| at.elapsed() > REFUSED_WINDOW) {
            refused.pop_front();
        }
        refused.len() >= REFUSED_MAX
    }

    fn note_refused(&self) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).push_back(Instant::now());
    }

    /// Token, name and request to certificate, or the words of the refusal.
    fn decide(&self, request: &[u8]) -> Result<(String, String), String> {
        if self.too_many_refused() {
            return Err("too many requests were refused; wait a minute".to_owned());
        }
        let decided = self.decide_one(request);
        if decided.is_err() {
            self.note_refused();
        }
        decided
    }

    fn decide_one(&self, request: &[u8]) -> Result<(String, String), String> {
        let request: Request<'_> =
            frame::read_plain(request).map_err(|_| "the request cannot be read".to_owned())?;
        if request.version != VERSION {
            return Err(format!("this node speaks version {VERSION} of joining"));
        }
        // Signed first: a request that cannot be signed does not use up its token, and nobody sees the result before.
        let cert_pem = self
            .ca
            .sign_node_request(request.name, request.csr_der)
            .map_err(|error| error.to_string())?;
        self.tokens.redeem(request.token, request.name).map_err(|error| error.to_string())?;
        Ok((request.name.to_owned(), cert_pem))
    }
}

/// Serves one newcomer; whatever it sends, nothing but this one exchange happens on its connection.
pub(crate) async fn serve(context: &Arc<Context>, door: &Door, connection: Connection) {
    let Ok(_place) = door.places.try_acquire() else {
        connection.close(CLOSED_BY_NODE, b"too many newcomers, try again");
        return;
    };
    if timeout(EXCHANGE_MAX, exchange(context, door, &connection)).await.is_err() {
        connection.close(CLOSED_BY_NODE, b"that took too long");
    }
}

async fn exchange(context: &Arc<Context>, door: &Door, connection: &Connection) {
    let Ok((mut to, mut from)) = connection.accept_bi().await else { return };
    let Ok(request) = from.read_to_end(JOIN_BYTES_MAX).await else { return };
    // Files are read and written and a signature is made.
    let decider = Arc::clone(context);
    let decided = tokio::task::spawn_blocking(move || {
        decider
            .door
            .as_ref()
            .map_or_else(|| Err("nobody can join here".to_owned()), |door| door.decide(&request))
    });
    let decided =
        decided.await.unwrap_or_else(|_| Err("the request could not be handled".to_owned()));
    let addr = connection.remote_address();
    let answer = match &decided {
        Ok((name, cert_pem)) => {
            bump(&context.counters.joins_granted);
            tracing::info!(%addr, node = %name, ca = %door.ca.fingerprint(), "a node joined");
            Answer { version: VERSION, refused: "", cert_pem, ca_pem: door.ca.pem() }
        }
        Err(why) => {
            bump(&context.counters.joins_refused);
            tracing::warn!(%addr, %why, "refused a request to join");
            Answer { version: VERSION, refused: why, cert_pem: "", ca_pem: "" }
        }
    };
    if let Ok(bytes) = frame::write_plain(&answer)
        && to.write_all(&bytes).await.is_ok()
        && to.finish().is_ok()
    {
        // The newcomer closes when it has read the answer.
        connection.closed().await;
    }
}

/// Joins a cluster. `confirm` gets the fingerprint of its CA and says whether it is the right one; nothing secret was
/// sent before.
///
/// # Errors
/// [`JoinError`] says how far it came.
pub async fn join(
    request: JoinRequest,
    confirm: impl FnOnce(&str) -> bool,
) -> Result<Joined, JoinError> {
    if !identity::is_node_name(&request.name) {
        return Err(JoinError::BadName(request.name));
    }
    let (ca_der, cluster) = look(&request.at).await?;
    let ca_fingerprint = ca::fingerprint(&ca_der);
    if !confirm(&ca_fingerprint) {
        return Err(JoinError::NotConfirmed(ca_fingerprint));
    }
    let key = KeyPair::generate().map_err(CaError::from)?;
    let csr = CertificateParams::default().serialize_request(&key).map_err(CaError::from)?;
    let wish = Request {
        version: VERSION,
        token: request.token.trim(),
        name: &request.name,
        csr_der: csr.der(),
    };
    let bytes =
        frame::write_plain(&wish).map_err(|error| JoinError::BadAnswer(error.to_string()))?;
    let (endpoint, connection) = connect(&request.at, Some(ca_der.clone())).await?;
    let answer = ask(&request.at, &connection, &bytes).await;
    connection.close(CLOSED_SHUTDOWN, b"thank you");
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    let (cert_pem, ca_pem) = granted(&answer?)?;
    check_granted(&cert_pem, &ca_pem, &ca_der, &cluster, &request.name)?;
    let issued = Issued { cert_pem, key_pem: key.serialize_pem() };
    issued.write_as_node(&request.folder)?;
    ca::replace_file(&request.folder.join(CA_FILE), ca_pem.as_bytes(), 0o644)?;
    Ok(Joined { cluster, name: request.name, ca_fingerprint })
}

/// The CA of whoever answers there, and its cluster.
async fn look(at: &str) -> Result<(CertificateDer<'static>, String), JoinError> {
    let not = |why: &str| JoinError::NotANode { at: at.to_owned(), why: why.to_owned() };
    let (endpoint, connection) = connect(at, None).await?;
    let chain = connection
        .peer_identity()
        .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    connection.close(CLOSED_SHUTDOWN, b"just looking");
    let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    let ca_der =
        chain.and_then(|chain| chain.get(1).cloned()).ok_or_else(|| not("it shows no CA"))?;
    let cluster = ca::cluster_of(&ca_der).ok_or_else(|| not("its CA names no cluster"))?;
    Ok((ca_der, cluster))
}

async fn connect(
    at: &str,
    ca: Option<CertificateDer<'static>>,
) -> Result<(Endpoint, Connection), JoinError> {
    let unreachable = |why: String| JoinError::Unreachable { at: at.to_owned(), why };
    let found = timeout(EXCHANGE_MAX, tokio::net::lookup_host(at))
        .await
        .map_err(|e| unreachable(e.to_string()))?;
    let addr = found.map_err(|e| unreachable(e.to_string()))?.next();
    let addr = addr.ok_or_else(|| unreachable("no such host".to_owned()))?;
    let any: SocketAddr = if addr.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let endpoint = Endpoint::client(any).map_err(|e| unreachable(e.to_string()))?;
    let tls = newcomer_tls(ca)
        .map_err(|e| JoinError::NotANode { at: at.to_owned(), why: e.to_string() })?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport(&LinkLimits::default(), false)));
    let connecting =
        endpoint.connect_with(config, addr, SERVER_NAME).map_err(|e| unreachable(e.to_string()))?;
    let connection = match timeout(EXCHANGE_MAX, connecting).await {
        Err(_) => return Err(unreachable("no answer".to_owned())),
        Ok(Err(error)) if crate::dial::is_refusal(&error) => {
            return Err(JoinError::NotANode { at: at.to_owned(), why: error.to_string() });
        }
        Ok(connected) => connected.map_err(|e| unreachable(e.to_string()))?,
    };
    Ok((endpoint, connection))
}

async fn ask(at: &str, connection: &Connection, request: &[u8]) -> Result<Vec<u8>, JoinError> {
    let broken = |why: String| JoinError::Unreachable { at: at.to_owned(), why };
    let exchange = async {
        let (mut to, mut from) = connection.open_bi().await.map_err(|e| broken(e.to_string()))?;
        to.write_all(request).await.map_err(|e| broken(e.to_string()))?;
        to.finish().map_err(|e| broken(e.to_string()))?;
        from.read_to_end(JOIN_BYTES_MAX).await.map_err(|e| broken(e.to_string()))
    };
    timeout(EXCHANGE_MAX, exchange)
        .await
        .map_err(|_| broken("no answer to the request".to_owned()))?
}

fn granted(answer: &[u8]) -> Result<(String, String), JoinError> {
    let answer: Answer<'_> =
        frame::read_plain(answer).map_err(|error| JoinError::BadAnswer(error.to_string()))?;
    match answer.refused {
        "" => Ok((answer.cert_pem.to_owned(), answer.ca_pem.to_owned())),
        why => Err(JoinError::Refused(why.chars().filter(|c| !c.is_control()).take(500).collect())),
    }
}

fn check_granted(
    cert_pem: &str,
    ca_pem: &str,
    ca_der: &CertificateDer<'static>,
    cluster: &str,
    name: &str,
) -> Result<(), JoinError> {
    let bad = |why: String| JoinError::BadAnswer(why);
    if CertificateDer::from_pem_slice(ca_pem.as_bytes()).ok().as_ref() != Some(ca_der) {
        return Err(bad("it holds another CA than the one confirmed".to_owned()));
    }
    let der =
        CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|e| bad(e.to_string()))?;
    let identity = Identity::from_der(&der).map_err(|e| bad(e.to_string()))?;
    if identity.uri() != identity::uri(cluster, IdentityKind::Node, name) {
        return Err(bad(format!("the certificate is for {}", identity.uri())));
    }
    check_signed(&der, ca_der, UnixTime::now()).map_err(|e| bad(e.to_string()))
}

fn check_signed(
    leaf: &CertificateDer<'_>,
    ca_der: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca_der.clone().into_owned())?;
    let algorithms = tls::provider().signature_verification_algorithms;
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(leaf)?,
        &roots,
        &[],
        now,
        algorithms.all,
    )
}

fn newcomer_tls(ca: Option<CertificateDer<'static>>) -> Result<QuicClientConfig, Error> {
    let provider = tls::provider();
    let verifier = NewcomerVerifier { ca, algorithms: provider.signature_verification_algorithms };
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// Takes any node that shows its CA, because a person judges the CA; on the second connection only that CA.
#[derive(Debug)]
struct NewcomerVerifier {
    ca: Option<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for NewcomerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = rest.first().ok_or_else(unknown)?;
        if self.ca.as_ref().is_some_and(|confirmed| confirmed != ca) {
            return Err(unknown());
        }
        check_signed(leaf, ca, now)?;
        match Identity::from_der(leaf) {
            Ok(identity) if identity.kind == IdentityKind::Node => {
                Ok(ServerCertVerified::assertion())
            }
            _ => Err(unknown()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never spoken between nodes".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
