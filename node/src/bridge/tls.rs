//! TLS to a foreign broker.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};

use super::settings::unreadable;
use crate::config;

/// Who is trusted when no `cafile` is given: what the system trusts, where Debian, Ubuntu and Alpine keep it.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Makes TLS out of a connection.
#[derive(Clone)]
pub struct Connector {
    config: Arc<ClientConfig>,
}

impl Connector {
    /// From the files a bridge names.
    ///
    /// # Errors
    /// The key of what cannot be used, and why.
    pub(super) fn new(bridge: &config::Bridge) -> Result<Self, (&'static str, String)> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|why| ("address", why.to_string()))?;
        let builder = if bridge.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else {
            let file = bridge.cafile.as_deref().unwrap_or(Path::new(SYSTEM_CAS));
            builder.with_root_certificates(roots(file).map_err(|why| ("cafile", why))?)
        };
        let config = match (&bridge.certfile, &bridge.keyfile) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates(cert).map_err(|why| ("certfile", why))?;
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|why| ("keyfile", format!("{}: {why}", key.display())))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|why| ("keyfile", format!("does not fit certfile: {why}")))?
            }
            (Some(_), None) => return Err(("keyfile", "is missing beside certfile".into())),
            (None, Some(_)) => return Err(("certfile", "is missing beside keyfile".into())),
        };
        Ok(Self { config: Arc::new(config) })
    }

    /// The handshake.
    ///
    /// # Errors
    /// Whatever is wrong with the other side or its certificate.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: S,
    ) -> std::io::Result<tokio_rustls::client::TlsStream<S>> {
        let name = ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        tokio_rustls::TlsConnector::from(Arc::clone(&self.config)).connect(name, stream).await
    }
}

fn roots(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates(file)?);
    if added == 0 {
        return Err(format!("{} has no certificate that can be used", file.display()));
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(file).map_err(|why| unreadable(file, &why))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(format!("{} has no certificate (PEM)", file.display())),
        Err(why) => Err(format!("{}: {why}", file.display())),
    }
}

/// Takes any certificate: `insecure = true`.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
