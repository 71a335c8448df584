//! Who may talk to whom: mutual TLS 1.3 between nodes of one cluster, by SPIFFE name, in both directions.
//!
//! No early data, no tickets, no resumption: each connection shows its certificate again, so that a change of trust
//! holds from the next connection on.

use std::sync::Arc;

use ::aws_lc_rs::hmac;
use outpost_model::NodeId;
use outpost_security::identity::{Identity, IdentityKind};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use crate::ca::{self, CaError};
use crate::config::ClusterConfig;

/// Two nodes of one cluster.
pub(crate) const ALPN_LINK: &[u8] = b"outpost/1";
/// A newcomer without certificate and the node that holds the CA.
pub(crate) const ALPN_JOIN: &[u8] = b"outpost-join/1";
/// The name dialled; verification goes by the SPIFFE name of whoever answers, not by this.
pub(crate) const SERVER_NAME: &str = "node.outpost";

/// Why this node cannot speak TLS with its files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or unreadable.
    #[error(transparent)]
    File(#[from] CaError),
    /// The files do not fit together or to the configuration.
    #[error("{0}")]
    Mismatch(String),
    /// The library refused them.
    #[error("certificate, key and CA cannot be used together: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Everything a node needs to prove who it is and to check others.
pub(crate) struct NodeTls {
    pub(crate) identity: Identity,
    pub(crate) ca_der: CertificateDer<'static>,
    pub(crate) server: Arc<QuicServerConfig>,
    pub(crate) client: Arc<QuicClientConfig>,
    /// For stateless resets: a restarted node can tell its peers at once that it forgot their connections.
    pub(crate) reset_key: hmac::Key,
}

impl NodeTls {
    pub(crate) fn load(config: &ClusterConfig) -> Result<Self, TlsError> {
        let ca_der = ca::read_certificate(&config.ca_pem)?;
        let cert = ca::read_certificate(&config.cert_pem)?;
        let key_text = ca::read_text(&config.key_pem)?;
        let key = PrivateKeyDer::from_pem_slice(key_text.as_bytes()).map_err(|e| {
            TlsError::Mismatch(format!("{} holds no private key: {e}", config.key_pem.display()))
        })?;
        let identity = own_identity(config, &cert)?;
        let verifier =
            Arc::new(NodeVerifier::new(&ca_der, &config.cluster, config.ca_key.is_some())?);
        let chain = vec![cert, ca_der.clone()];
        verifier.check_chain(&chain[0], &[], UnixTime::now()).map_err(|error| {
            TlsError::Mismatch(format!(
                "{} is not valid under {}: {error}",
                config.cert_pem.display(),
                config.ca_pem.display()
            ))
        })?;
        let reset_key = reset_key(&key);
        Ok(Self {
            identity,
            ca_der,
            server: server_config(
                Arc::clone(&verifier),
                chain.clone(),
                key.clone_key(),
                config.ca_key.is_some(),
            )?,
            client: client_config(verifier, chain, key)?,
            reset_key,
        })
    }
}

/// The node at the other end of an established link connection.
pub(crate) fn peer_identity(connection: &quinn::Connection) -> Option<Identity> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    Identity::from_der(chain.first()?).ok().filter(|identity| identity.kind == IdentityKind::Node)
}

/// Which protocol was agreed on.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn own_identity(config: &ClusterConfig, cert: &CertificateDer<'_>) -> Result<Identity, TlsError> {
    let path = config.cert_pem.display();
    let identity =
        Identity::from_der(cert).map_err(|e| TlsError::Mismatch(format!("{path}: {e}")))?;
    let wanted = outpost_security::identity::uri(&config.cluster, IdentityKind::Node, &config.name);
    if identity.uri() != wanted {
        return Err(TlsError::Mismatch(format!(
            "{path} is for {}, the configuration says {wanted}",
            identity.uri()
        )));
    }
    Ok(identity)
}

fn reset_key(key: &PrivateKeyDer<'_>) -> hmac::Key {
    let private = hmac::Key::new(hmac::HMAC_SHA256, key.secret_der());
    hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&private, b"outpost stateless reset").as_ref())
}

fn server_config(
    verifier: Arc<NodeVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    join: bool,
) -> Result<Arc<QuicServerConfig>, TlsError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_LINK.to_vec()];
    if join {
        config.alpn_protocols.push(ALPN_JOIN.to_vec());
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(QuicServerConfig::try_from(config).map_err(|e| TlsError::Mismatch(e.to_string()))?))
}

fn client_config(
    verifier: Arc<NodeVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<QuicClientConfig>, TlsError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_LINK.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(QuicClientConfig::try_from(config).map_err(|e| TlsError::Mismatch(e.to_string()))?))
}

/// Accepts leaf certificates of this CA that name a node of this cluster, from either side.
#[derive(Debug)]
struct NodeVerifier {
    roots: RootCertStore,
    clients: Arc<dyn ClientCertVerifier>,
    cluster: String,
    ca_fingerprint: String,
    algorithms: WebPkiSupportedAlgorithms,
    /// This node lets newcomers join. They have no certificate; a link without one is refused after the handshake.
    join: bool,
}

impl NodeVerifier {
    fn new(ca_der: &CertificateDer<'static>, cluster: &str, join: bool) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca_der.clone())?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider())
                .build()
                .map_err(|e| TlsError::Mismatch(e.to_string()))?;
        let algorithms = provider().signature_verification_algorithms;
        Ok(Self {
            roots,
            clients,
            cluster: cluster.to_owned(),
            ca_fingerprint: ca::fingerprint(ca_der),
            algorithms,
            join,
        })
    }

    fn check_chain(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            rest,
            now,
            self.algorithms.all,
        )
        .map_err(|error| self.explained(error))?;
        self.check_name(leaf)
    }

    /// Says it in the words of this cluster when another CA signed; two CAs may have the same name.
    fn explained(&self, error: Error) -> Error {
        match error {
            Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            ) => refused(format!("it is not signed by this cluster's CA, {}", self.ca_fingerprint)),
            other => other,
        }
    }

    fn check_name(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        let identity = Identity::from_der(leaf).map_err(|error| refused(error.to_string()))?;
        if identity.kind != IdentityKind::Node || identity.cluster != self.cluster {
            return Err(refused(format!(
                "{} is not a node of the cluster {:?}",
                identity.uri(),
                self.cluster
            )));
        }
        Ok(())
    }
}

fn refused(why: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(NotANode(why)))))
}

/// Its Debug is its text, because that is what rustls shows.
#[derive(thiserror::Error)]
#[error("{0}")]
struct NotANode(String);

impl std::fmt::Debug for NotANode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// NodeId of a verified identity.
pub(crate) fn node_id(identity: &Identity) -> NodeId {
    NodeId::from_name(&identity.name)
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check_chain(leaf, rest, now)?;
        Ok(ServerCertVerified::assertion())
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

impl ClientCertVerifier for NodeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.join
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.clients.verify_client_cert(leaf, rest, now).map_err(|error| self.explained(error))?;
        self.check_name(leaf)?;
        Ok(ClientCertVerified::assertion())
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
