//! TLS for devices: certificates from files, replaced while connections go on, and the name in a client's certificate.
//!
//! TLS 1.2 and 1.3 with forward secrecy and AEAD only (rustls has nothing else). No resumption and no early data: each
//! connection shows its certificate again, so that a new CA, or a revocation, holds from the next connection on.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use outpost_security::subject;
use parking_lot::Mutex;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::arrival::Refused;
use super::connection::ByteStream;
use super::door::Refusal;
use crate::config::{ClientCertificate, Listener, Transport, UserFrom};

/// Encrypted bytes a connection may keep because its socket is full; the rest waits where it is counted, in the out
/// buffer. Less: more, smaller TLS records; more: each slow reader claims that much beside its own limit.
pub const RECORDS_BYTES_MAX: usize = 16 * 1024;

/// What clients may name in ALPN. Most name nothing; AWS IoT's SDKs name theirs.
const ALPN_MQTT: [&[u8]; 2] = [b"mqtt", b"x-amzn-mqtt-ca"];
/// Browsers name it before a WebSocket.
const ALPN_WEB: [&[u8]; 1] = [b"http/1.1"];
/// QUIC must name something (RFC 9001, §8.1).
const ALPN_QUIC: [&[u8]; 1] = [b"mqtt"];

/// The files of a listener and what they are for.
#[derive(Debug, Clone)]
pub struct Files {
    transport: Transport,
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
    client_crl: Option<PathBuf>,
    certificates: ClientCertificate,
}

/// Why the files of a listener cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One of them cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// Its key in the configuration.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// What the operating system says.
        cause: io::Error,
    },
    /// One does not hold what it should.
    #[error("{} holds no {what}: {why}", path.display())]
    Content {
        /// Its key in the configuration.
        key: &'static str,
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What the parser says.
        why: String,
    },
    /// The certificate and the key do not fit together.
    #[error("{} is not the certificate of {}: {why}", cert.display(), key.display())]
    Pair {
        /// The certificate.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
        /// What the library says.
        why: rustls::Error,
    },
}

impl FilesError {
    /// The key in the configuration that names the file.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Read { key, .. } | Self::Content { key, .. } => key,
            Self::Pair { .. } => "key",
        }
    }
}

/// What the files come to.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// For TLS over TCP.
    pub config: Arc<ServerConfig>,
    /// For QUIC.
    pub quic: Option<Arc<quinn::ServerConfig>>,
    /// The last second the node's own certificate is valid.
    pub expires_s: i64,
}

impl Files {
    /// The files of a listener of a checked configuration.
    pub fn of(listener: &Listener) -> Self {
        Self {
            transport: listener.transport,
            cert: listener.cert.clone().unwrap_or_default(),
            key: listener.key.clone().unwrap_or_default(),
            client_ca: listener.client_ca.clone(),
            client_crl: listener.client_crl.clone(),
            certificates: listener.certificates(),
        }
    }

    /// Reads and checks them all.
    ///
    /// # Errors
    /// [`FilesError`] names the first that cannot be used.
    pub fn load(&self) -> Result<Loaded, FilesError> {
        let chain: Vec<CertificateDer<'static>> = all("cert", &self.cert, "certificate")?;
        let expires_s = subject::expires_s(&chain[0]).unwrap_or_default();
        let text = read("key", &self.key)?;
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|why| content("key", &self.key, "private key", why))?;
        let versions: &[_] = match self.transport {
            Transport::Quic => &[&rustls::version::TLS13],
            _ => rustls::ALL_VERSIONS,
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .expect("the provider knows both versions");
        let builder = match (&self.client_ca, self.certificates) {
            (None, _) | (_, ClientCertificate::Off) => builder.with_no_client_auth(),
            (Some(ca), mode) => builder.with_client_cert_verifier(self.verifier(ca, mode)?),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|why| FilesError::Pair {
            cert: self.cert.clone(),
            key: self.key.clone(),
            why,
        })?;
        let names: &[&[u8]] = match self.transport {
            Transport::Wss => &ALPN_WEB,
            Transport::Quic => &ALPN_QUIC,
            _ => &ALPN_MQTT,
        };
        config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        let quic = match self.transport {
            Transport::Quic => Some(super::quic::server_config(config.clone())),
            _ => None,
        };
        Ok(Loaded { config: Arc::new(config), quic, expires_s })
    }

    fn verifier(
        &self,
        ca: &Path,
        mode: ClientCertificate,
    ) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, FilesError> {
        let mut roots = RootCertStore::empty();
        for certificate in all::<CertificateDer<'static>>("client_ca", ca, "CA certificate")? {
            roots
                .add(certificate)
                .map_err(|why| content("client_ca", ca, "CA certificate", why))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        if let Some(crl) = &self.client_crl {
            let lists: Vec<CertificateRevocationListDer<'static>> =
                all("client_crl", crl, "revocation list")?;
            builder = builder.with_crls(lists).only_check_end_entity_revocation();
        }
        if mode == ClientCertificate::Optional {
            builder = builder.allow_unauthenticated();
        }
        let path = self.client_crl.as_deref().unwrap_or(ca);
        builder.build().map_err(|why| content("client_ca", path, "usable trust", why))
    }

    /// What tells a changed file from the one before, for each file.
    fn stamp(&self) -> Stamp {
        let files = [Some(&self.cert), Some(&self.key), self.client_ca.as_ref()];
        let files = files.into_iter().chain([self.client_crl.as_ref()]).flatten();
        files.map(|path| stamp_of(path)).collect()
    }
}

/// Time and length and place of each file; `None` for one that is not there.
type Stamp = Vec<Option<(SystemTime, u64, u64)>>;

fn stamp_of(path: &Path) -> Option<(SystemTime, u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let file = std::fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len(), file.ino()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Certificates and keys are a few kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, FilesError> {
    use std::io::Read;
    let mut text = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
    read.map_err(|cause| FilesError::Read { key, path: path.to_owned(), cause })?;
    Ok(text)
}

fn all<T: PemObject>(
    key: &'static str,
    path: &Path,
    what: &'static str,
) -> Result<Vec<T>, FilesError> {
    let text = read(key, path)?;
    let items: Result<Vec<T>, _> = T::pem_slice_iter(&text).collect();
    let items = items.map_err(|why| content(key, path, what, why))?;
    if items.is_empty() {
        return Err(content(key, path, what, "there is no such PEM block in it"));
    }
    Ok(items)
}

fn content(
    key: &'static str,
    path: &Path,
    what: &'static str,
    why: impl std::fmt::Display,
) -> FilesError {
    FilesError::Content { key, path: path.to_owned(), what, why: why.to_string() }
}

/// A listener's certificates. New connections use what is current; those that are up keep what they began with.
#[derive(Debug)]
pub struct Tls {
    files: Files,
    user_from: UserFrom,
    current: Mutex<Loaded>,
    seen: Mutex<Stamp>,
}

impl Tls {
    /// Loads a listener's files.
    ///
    /// # Errors
    /// [`FilesError`].
    pub fn load(listener: &Listener) -> Result<Arc<Self>, FilesError> {
        let files = Files::of(listener);
        let seen = files.stamp();
        let current = files.load()?;
        let user_from = listener.user_from;
        Ok(Arc::new(Self {
            files,
            user_from,
            current: Mutex::new(current),
            seen: Mutex::new(seen),
        }))
    }

    /// What new connections use.
    pub fn current(&self) -> Loaded {
        self.current.lock().clone()
    }

    /// Loads the files again.
    ///
    /// # Errors
    /// [`FilesError`]; what was current stays.
    pub fn reload(&self) -> Result<(), FilesError> {
        // Looked at before the files are read: one that changes meanwhile is seen as changed the next time.
        *self.seen.lock() = self.files.stamp();
        let loaded = self.files.load()?;
        *self.current.lock() = loaded;
        Ok(())
    }

    /// Loads the files again if one of them has changed. `None`: none has.
    pub fn reload_if_changed(&self) -> Option<Result<(), FilesError>> {
        let changed = *self.seen.lock() != self.files.stamp();
        changed.then(|| self.reload())
    }

    /// The user name a client's certificate gives it.
    ///
    /// # Errors
    /// When it has a certificate without that name.
    pub fn user(&self, chain: Option<&[CertificateDer<'_>]>) -> Result<Option<Arc<str>>, Refused> {
        let Some(leaf) = chain.and_then(<[_]>::first) else { return Ok(None) };
        let (name, what) = match self.user_from {
            UserFrom::None => return Ok(None),
            UserFrom::Cn => (subject::common_name(leaf), "common name"),
            UserFrom::Uri => (subject::uri_name(leaf), "URI"),
        };
        let missing =
            || Refused::new(Refusal::Certificate, format!("its certificate has no usable {what}"));
        Ok(Some(Arc::from(name.ok_or_else(missing)?)))
    }
}

/// The TLS handshake, and the user name from the client's certificate.
///
/// # Errors
/// Why the client cannot come in.
pub async fn accept<S: ByteStream>(
    tls: &Tls,
    stream: S,
) -> Result<(TlsStream<S>, Option<Arc<str>>), Refused> {
    let acceptor = TlsAcceptor::from(tls.current().config);
    let accepting =
        acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(RECORDS_BYTES_MAX)));
    let stream = accepting.await.map_err(|why| Refused::new(Refusal::Tls, why))?;
    let user = tls.user(stream.get_ref().1.peer_certificates())?;
    Ok((stream, user))
}

impl<S: ByteStream> ByteStream for TlsStream<S> {
    fn opened(&mut self) {
        self.get_mut().0.opened();
    }
}
