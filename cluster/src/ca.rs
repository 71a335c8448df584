//! The cluster's own certificate authority: made once in a folder, it signs certificates that name nodes and devices.
//!
//! Keys are P-256 (FIPS 186-5), which every TLS stack understands. The CA can sign nothing but SPIFFE names: its name
//! constraints (RFC 5280, §4.2.1.10) exclude every DNS name, IP address and e-mail address.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use outpost_security::identity::{self, IdentityKind};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CidrSubnet,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

/// File name of the CA's certificate in a folder.
pub const CA_FILE: &str = "ca.pem";
/// File name of the CA's private key.
pub const CA_KEY_FILE: &str = "ca.key";
/// File name of a node's certificate.
pub const NODE_FILE: &str = "node.pem";
/// File name of a node's private key.
pub const NODE_KEY_FILE: &str = "node.key";

/// How long a CA is valid. Shorter: every node must get a new CA more often.
pub const CA_VALID: Duration = Duration::from_hours(24 * 365 * 10);
/// How long a certificate of a node or device is valid. Longer: a stolen one is useful for longer.
pub const LEAF_VALID: Duration = Duration::from_hours(24 * 365);
/// Certificates begin this much in the past, because clocks of small machines are wrong.
const BACKDATED: Duration = Duration::from_hours(24);

/// Why something about certificates failed.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("cannot {what} {}: {cause}", path.display())]
    File {
        /// Read, create, …
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        cause: io::Error,
    },
    /// There is a CA already, and it stays.
    #[error("{} exists already; it was left as it is", .0.display())]
    Exists(PathBuf),
    /// A name that may not be.
    #[error("{0:?} cannot be the name of a {1}")]
    BadName(String, &'static str),
    /// A file does not hold what its name says.
    #[error("{} does not hold a {what}: {why}", path.display())]
    NotPem {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What the parser says.
        why: String,
    },
    /// The library refused to build or sign it.
    #[error("the certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// A CA with its private key in memory.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    cluster: String,
}

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

impl Ca {
    /// Makes a CA for `cluster` and writes `ca.pem` and `ca.key` (mode 0600) into `folder`.
    ///
    /// # Errors
    /// [`CaError::Exists`] when either file is there already.
    pub fn create(folder: &Path, cluster: &str) -> Result<Self, CaError> {
        if !identity::is_cluster_name(cluster) {
            return Err(CaError::BadName(cluster.to_owned(), "cluster"));
        }
        fs::create_dir_all(folder).map_err(|cause| file_error("create", folder, cause))?;
        let key = KeyPair::generate()?;
        let pem = ca_params(cluster).self_signed(&key)?.pem();
        write_new(&folder.join(CA_KEY_FILE), key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&folder.join(CA_FILE), pem.as_bytes(), 0o644)?;
        Self::load(&folder.join(CA_FILE), &folder.join(CA_KEY_FILE))
    }

    /// Reads a CA and its key.
    ///
    /// # Errors
    /// [`CaError`] when a file is missing or holds something else.
    pub fn load(ca_pem: &Path, ca_key: &Path) -> Result<Self, CaError> {
        let pem = read_text(ca_pem)?;
        let not =
            |path: &Path, what, why: String| CaError::NotPem { path: path.to_owned(), what, why };
        let key = KeyPair::from_pem(&read_text(ca_key)?)
            .map_err(|e| not(ca_key, "private key", e.to_string()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|e| not(ca_pem, "certificate", e.to_string()))?
            .into_owned();
        let cluster = cluster_of(&der)
            .ok_or_else(|| not(ca_pem, "cluster CA", "it names no cluster".to_owned()))?;
        if public_key_of(&der).as_deref() != Some(key.der_bytes()) {
            return Err(not(ca_key, "private key of this CA", "the public keys differ".to_owned()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { issuer, pem, der, cluster })
    }

    /// The cluster it signs for.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the certificate, for people to compare.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Makes a key and a certificate for a node of this name.
    ///
    /// # Errors
    /// [`CaError::BadName`], or the library failed.
    pub fn issue_node(&self, name: &str) -> Result<Issued, CaError> {
        self.issue(IdentityKind::Node, name)
    }

    /// Makes a key and a certificate for a device.
    ///
    /// # Errors
    /// [`CaError::BadName`], or the library failed.
    pub fn issue_device(&self, id: &str) -> Result<Issued, CaError> {
        self.issue(IdentityKind::Device, id)
    }

    /// Signs a node's certificate for the key of a signing request. Nothing else of the request is looked at: what the
    /// certificate says is decided here.
    ///
    /// # Errors
    /// [`CaError::BadName`], or the request is malformed or not signed by its own key.
    pub fn sign_node_request(&self, name: &str, csr_der: &[u8]) -> Result<String, CaError> {
        let mut request = CertificateSigningRequestParams::from_der(
            &CertificateSigningRequestDer::from(csr_der),
        )?;
        request.params = leaf_params(&self.cluster, IdentityKind::Node, name)?;
        Ok(request.signed_by(&self.issuer)?.pem())
    }

    fn issue(&self, kind: IdentityKind, name: &str) -> Result<Issued, CaError> {
        let params = leaf_params(&self.cluster, kind, name)?;
        let key = KeyPair::generate()?;
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
    }
}

impl Issued {
    /// Writes `node.pem` and `node.key` (mode 0600) into a folder, over what is there.
    ///
    /// # Errors
    /// [`CaError::File`]; the key is written first, each file as a whole or not at all.
    pub fn write_as_node(&self, folder: &Path) -> Result<(), CaError> {
        fs::create_dir_all(folder).map_err(|cause| file_error("create", folder, cause))?;
        replace_file(&folder.join(NODE_KEY_FILE), self.key_pem.as_bytes(), 0o600)?;
        replace_file(&folder.join(NODE_FILE), self.cert_pem.as_bytes(), 0o644)
    }
}

/// SHA-256 of a certificate's DER, as `SHA256:AA:BB:…`.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, der);
    let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    format!("SHA256:{}", pairs.join(":"))
}

/// The fingerprint of the certificate in a PEM file.
///
/// # Errors
/// [`CaError`] when there is none in it.
pub fn fingerprint_of_file(path: &Path) -> Result<String, CaError> {
    Ok(fingerprint(&read_certificate(path)?))
}

pub(crate) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    let not = |why: String| CaError::NotPem { path: path.to_owned(), what: "certificate", why };
    CertificateDer::from_pem_slice(read_text(path)?.as_bytes()).map_err(|e| not(e.to_string()))
}

/// A file of PEM text; certificates and keys are a few kilobytes.
pub(crate) fn read_text(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|cause| file_error("read", path, cause))
}

/// Writes a file as a whole: a reader sees the old one or the new one.
pub(crate) fn replace_file(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let fresh = path.with_extension("new");
    let _ = fs::remove_file(&fresh);
    write_new(&fresh, content, mode)?;
    fs::rename(&fresh, path).map_err(|cause| file_error("replace", path, cause))
}

pub(crate) fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let mut file = match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(CaError::Exists(path.to_owned()));
        }
        opened => opened.map_err(|cause| file_error("create", path, cause))?,
    };
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(|cause| file_error("write", path, cause))
}

pub(crate) fn file_error(what: &'static str, path: &Path, cause: io::Error) -> CaError {
    CaError::File { what, path: path.to_owned(), cause }
}

fn ca_params(cluster: &str) -> CertificateParams {
    let mut params = dated(CA_VALID);
    params.distinguished_name = common_name(&format!("{CA_NAME_PREFIX}{cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![
            GeneralSubtree::DnsName(String::new()),
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ],
    });
    params
}

/// The CA's common name is this and the cluster.
const CA_NAME_PREFIX: &str = "outpost cluster ";

fn leaf_params(
    cluster: &str,
    kind: IdentityKind,
    name: &str,
) -> Result<CertificateParams, CaError> {
    let (good, what) = match kind {
        IdentityKind::Node => (identity::is_node_name(name), "node"),
        IdentityKind::Device => (identity::is_device_id(name), "device"),
    };
    if !good {
        return Err(CaError::BadName(name.chars().take(200).collect(), what));
    }
    let mut params = dated(LEAF_VALID);
    // X.520 allows 64 characters; the name that counts is the URI.
    params.distinguished_name = common_name(&name.chars().take(64).collect::<String>());
    params.subject_alt_names = vec![SanType::URI(identity::uri(cluster, kind, name).try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if kind == IdentityKind::Node {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(crate) fn dated(valid: Duration) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + valid;
    params
}

pub(crate) fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// Which cluster a CA certificate is for.
pub(crate) fn cluster_of(ca_der: &[u8]) -> Option<String> {
    let (_, certificate) = x509(ca_der)?;
    let name = certificate
        .subject()
        .iter_common_name()
        .next()?
        .as_str()
        .ok()?
        .strip_prefix(CA_NAME_PREFIX)?;
    (certificate.is_ca() && identity::is_cluster_name(name)).then(|| name.to_owned())
}

pub(crate) fn public_key_of(der: &[u8]) -> Option<Vec<u8>> {
    x509(der).map(|(_, certificate)| certificate.public_key().subject_public_key.data.to_vec())
}

fn x509(der: &[u8]) -> Option<(&[u8], x509_parser::certificate::X509Certificate<'_>)> {
    use x509_parser::prelude::FromDer;
    x509_parser::certificate::X509Certificate::from_der(der).ok()
}
