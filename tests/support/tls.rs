//! Certificates in a folder, and clients that speak TLS, WebSocket and QUIC.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use outpost_node::config::{Listener, Transport};
use outpost_node::listen::websocket::{self, Frames};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::wire::{Stream, Wire};
use super::within;

/// A CA in a folder: `ca.pem`, `server.pem`, `server.key` and clients.
pub struct Pki {
    pub folder: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = named("plant CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = params.self_signed(&key).expect("a CA");
        write(&folder.path().join("ca.pem"), &ca.pem());
        let pki = Self { folder, issuer: Issuer::new(params, key) };
        pki.issue_server();
        pki
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new certificate of the server over the one that is there, whole at any moment.
    pub fn issue_server(&self) {
        let mut params = named("server");
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into().expect("a name")),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&params, "server");
    }

    /// `NAME.pem` and `NAME.key` of a client whose common name is `name`.
    pub fn issue_client(&self, name: &str) {
        let mut params = named(name);
        let uri = format!("spiffe://plant/device/{name}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("a URI"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params, name);
    }

    fn issue(&self, params: &CertificateParams, file: &str) {
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        write(&self.path(&format!("{file}.pem")), &certificate.pem());
        write(&self.path(&format!("{file}.key")), &key.serialize_pem());
    }

    /// A listener with these certificates, on a port by the system.
    pub fn listener(&self, name: &str, transport: Transport) -> Listener {
        Listener {
            name: name.to_owned(),
            transport,
            bind: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            cert: transport.has_tls().then(|| self.path("server.pem")),
            key: transport.has_tls().then(|| self.path("server.key")),
            ..Listener::default()
        }
    }

    /// How a client connects: it trusts the CA and shows the certificate of `name`, if there is one.
    pub fn client(&self, name: Option<&str>) -> Arc<ClientConfig> {
        self.client_with(name.map(|name| (self, name)))
    }

    /// The same with a certificate of perhaps another CA.
    pub fn client_with(&self, of: Option<(&Self, &str)>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.pem"))).expect("a CA");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("both versions")
            .with_root_certificates(roots);
        Arc::new(match of {
            None => builder.with_no_client_auth(),
            Some((pki, name)) => {
                let key = PrivateKeyDer::from_pem_file(pki.path(&format!("{name}.key")));
                let chain = vec![certificate(&pki.path(&format!("{name}.pem")))];
                builder.with_client_auth_cert(chain, key.expect("a key")).expect("a pair")
            }
        })
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).expect("a certificate")
}

fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text).expect("written");
    std::fs::rename(fresh, path).expect("in place");
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// TLS as far as the client can see; in TLS 1.3 the server may still refuse it.
pub async fn tls(server: SocketAddr, config: Arc<ClientConfig>) -> std::io::Result<Tls> {
    let shake = async {
        let stream = TcpStream::connect(server).await?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(config).connect(name, stream).await
    };
    within("a TLS handshake", shake).await
}

/// A WebSocket on a stream, for MQTT.
pub async fn web(stream: impl Stream + 'static) -> Wire {
    let mut request = "ws://localhost/mqtt".into_client_request().expect("a URL");
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().expect("a value"));
    let config = Some(websocket::config(1 << 20));
    let asked = tokio_tungstenite::client_async_with_config(request, stream, config);
    let (frames, answer) = within("a WebSocket", asked).await.expect("it is accepted");
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "mqtt");
    Wire::over(Frames::new(frames))
}

/// A QUIC connection.
pub async fn quic(
    server: SocketAddr,
    config: &ClientConfig,
    alpn: &[u8],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let mut config = config.clone();
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).expect("TLS 1.3");
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let connecting = endpoint.connect_with(config, server, "localhost").expect("it can be tried");
    within("a QUIC handshake", connecting).await
}

/// The one stream of a QUIC connection.
pub async fn stream(connection: &quinn::Connection) -> Wire {
    let (send, receive) = connection.open_bi().await.expect("one stream is allowed");
    Wire::over(tokio::io::join(receive, send))
}
