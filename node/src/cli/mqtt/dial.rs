//! How `outpost pub` and `outpost sub` reach the server when it is not plain TCP: TLS, WebSocket, or both.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::cli::failure::Failure;
use crate::listen::websocket::{self, Frames};

/// Where Debian and many others keep the CA certificates that everybody trusts.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Longest WebSocket message taken: the server decides how it cuts packets into frames.
const MESSAGE_BYTES: usize = 268_435_455 + 5;

/// Flags for TLS and WebSocket.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "TLS and WebSocket")]
pub struct Secure {
    /// CA certificates (PEM) to trust; turns TLS on
    #[arg(long, value_name = "FILE")]
    pub cafile: Option<PathBuf>,
    /// Directory of CA certificates (*.pem, *.crt); turns TLS on
    #[arg(long, value_name = "DIR", conflicts_with = "cafile")]
    pub capath: Option<PathBuf>,
    /// Client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Do not check that the certificate is for the host asked for; who signed it is still checked
    #[arg(long)]
    pub insecure: bool,
    /// Only this version: tlsv1.2 or tlsv1.3
    #[arg(long, value_name = "VERSION")]
    pub tls_version: Option<String>,
    /// ALPN protocol to ask for
    #[arg(long, value_name = "NAME")]
    pub tls_alpn: Option<String>,
    /// MQTT over WebSocket
    #[arg(long)]
    pub ws: bool,
    /// Path of the WebSocket
    #[arg(long, value_name = "PATH", default_value = "/mqtt")]
    pub ws_path: String,
}

/// What is spoken below MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Layers {
    pub tls: bool,
    pub ws: bool,
}

impl Layers {
    /// Of a URL's scheme.
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "mqtt" => Some(Self { tls: false, ws: false }),
            "mqtts" => Some(Self { tls: true, ws: false }),
            "ws" => Some(Self { tls: false, ws: true }),
            "wss" => Some(Self { tls: true, ws: true }),
            _ => None,
        }
    }

    /// The port servers usually have.
    pub fn port(self) -> u16 {
        match (self.tls, self.ws) {
            (false, false) => 1883,
            (true, false) => 8883,
            (false, true) => 8083,
            (true, true) => 8084,
        }
    }
}

impl Secure {
    /// What the flags ask for.
    pub fn layers(&self) -> Layers {
        let tls = self.cafile.is_some() || self.capath.is_some() || self.cert.is_some();
        Layers { tls, ws: self.ws }
    }

    /// Reads the files. `None`: plain TCP.
    ///
    /// # Errors
    /// A file that cannot be used, or flags that do nothing.
    pub fn dialer(&self, layers: Layers, host: &str, port: u16) -> Result<Option<Dialer>, Failure> {
        if !layers.tls {
            let useless = [
                (self.insecure, "--insecure"),
                (self.tls_version.is_some(), "--tls-version"),
                (self.tls_alpn.is_some(), "--tls-alpn"),
            ];
            if let Some((_, flag)) = useless.iter().find(|(given, _)| *given) {
                let why = "needs TLS: add --cafile FILE, or -L mqtts://…";
                return Err(Failure::usage(format!("{flag} {why}")));
            }
        }
        if layers == Layers::default() {
            return Ok(None);
        }
        let tls = layers.tls.then(|| self.config()).transpose()?.map(Arc::new);
        let (host, path) = (host.to_owned(), self.ws_path.clone());
        Ok(Some(Dialer { host, port, tls, ws: layers.ws.then_some(path) }))
    }

    fn config(&self) -> Result<ClientConfig, Failure> {
        let versions: &[&'static SupportedProtocolVersion] = match self.tls_version.as_deref() {
            None => rustls::ALL_VERSIONS,
            Some("tlsv1.2") => &[&rustls::version::TLS12],
            Some("tlsv1.3") => &[&rustls::version::TLS13],
            Some(other) => {
                let why = format!("--tls-version {other}: known are tlsv1.2 and tlsv1.3");
                return Err(Failure::usage(why));
            }
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = Arc::new(self.roots()?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        let verifier =
            verifier.map_err(|why| Failure::new(format!("cannot trust these CAs: {why}")))?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|why| Failure::new(why.to_string()))?;
        let builder = if self.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyName(verifier)))
        } else {
            builder.with_webpki_verifier(verifier)
        };
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let key_text = read("--key", key)?;
                let pair = PrivateKeyDer::from_pem_slice(&key_text)
                    .map_err(|why| wrong("--key", key, why))
                    .and_then(|key| Ok((certificates("--cert", cert)?, key)))?;
                let config = builder.with_client_auth_cert(pair.0, pair.1);
                config.map_err(|why| wrong("--cert", cert, why))?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols =
            self.tls_alpn.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore, Failure> {
        let files = match (&self.cafile, &self.capath) {
            (Some(file), _) => vec![("--cafile", file.clone())],
            (None, Some(folder)) => in_folder(folder)?,
            (None, None) => vec![("no --cafile given, and of the system", SYSTEM_CA.into())],
        };
        let mut roots = RootCertStore::empty();
        for (flag, file) in files {
            // The system's bundle may hold one that is not understood; the others are good all the same.
            let (added, _) = roots.add_parsable_certificates(certificates(flag, &file)?);
            if added == 0 {
                return Err(wrong(flag, &file, "it holds no CA certificate"));
            }
        }
        Ok(roots)
    }
}

fn in_folder(folder: &Path) -> Result<Vec<(&'static str, PathBuf)>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(|why| wrong("--capath", folder, why))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_pem = |path: &PathBuf| path.extension().is_some_and(|end| end == "pem" || end == "crt");
    let files: Vec<_> = files.filter(is_pem).map(|file| ("--capath", file)).collect();
    if files.is_empty() {
        return Err(wrong("--capath", folder, "there is no *.pem or *.crt in it"));
    }
    Ok(files)
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(flag, path)?).collect();
    let found = found.map_err(|why| wrong(flag, path, why))?;
    if found.is_empty() {
        return Err(wrong(flag, path, "it holds no certificate"));
    }
    Ok(found)
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|why| wrong(flag, path, why))
}

fn wrong(flag: &str, path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{flag} {}: {why}", path.display()))
}

/// Opens connections.
#[derive(Debug, Clone)]
pub struct Dialer {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    /// Path of the WebSocket.
    ws: Option<String>,
}

/// An open connection.
pub type Stream = Box<dyn Both>;

/// Both directions.
pub trait Both: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Both for T {}

impl Dialer {
    /// Connects, as far as MQTT's CONNECT.
    ///
    /// # Errors
    /// What failed, in words.
    pub async fn dial(self) -> io::Result<Stream> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        let mut stream: Stream = Box::new(stream);
        if let Some(config) = self.tls {
            let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(config);
            let failed =
                |why: io::Error| io::Error::other(format!("the TLS handshake failed: {why}"));
            stream = Box::new(connector.connect(name, stream).await.map_err(failed)?);
        }
        let Some(path) = self.ws else { return Ok(stream) };
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host };
        let url = format!("ws://{host}:{}{path}", self.port);
        let mut request = url.into_client_request().map_err(io::Error::other)?;
        let protocol = "mqtt".parse().expect("a header value");
        request.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        let config = Some(websocket::config(MESSAGE_BYTES));
        let asked = tokio_tungstenite::client_async_with_config(request, stream, config);
        let failed = |why| io::Error::other(format!("no WebSocket at {path}: {why}"));
        let (frames, _) = asked.await.map_err(failed)?;
        Ok(Box::new(Frames::new(frames)))
    }
}

/// Checks who signed a certificate and when it is valid, and not for whom it is.
#[derive(Debug)]
struct AnyName(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyName {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.0.verify_server_cert(leaf, rest, name, ocsp, now) {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
