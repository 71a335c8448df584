//! A certificate authority for MQTT listeners: servers under the names at which clients find them, and devices.
//!
//! It is apart from the cluster's CA, whose certificates never name hosts: who holds this one's key can let devices in,
//! not nodes.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::ca::{
    CA_FILE, CA_KEY_FILE, CA_VALID, CaError, Issued, common_name, dated, file_error, fingerprint,
    public_key_of, read_text, replace_file, write_new,
};

/// The longest common name X.520 allows. It is the user name of a device.
pub const COMMON_NAME_CHARS_MAX: usize = 64;

/// A CA for listeners, with its private key in memory.
pub struct ListenerCa {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl ListenerCa {
    /// Makes a CA of this name and writes `ca.pem` and `ca.key` (mode 0600) into `folder`.
    ///
    /// # Errors
    /// [`CaError::Exists`] when either file is there already.
    pub fn create(folder: &Path, name: &str) -> Result<Self, CaError> {
        let mut params = dated(CA_VALID);
        params.distinguished_name = common_name(checked(name, "CA")?);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        fs::create_dir_all(folder).map_err(|cause| file_error("create", folder, cause))?;
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        write_new(&folder.join(CA_KEY_FILE), key.serialize_pem().as_bytes(), 0o600)?;
        write_new(&folder.join(CA_FILE), pem.as_bytes(), 0o644)?;
        Self::load(folder)
    }

    /// Reads `ca.pem` and `ca.key` of a folder.
    ///
    /// # Errors
    /// [`CaError`] when a file is missing, holds something else, or the two do not belong together.
    pub fn load(folder: &Path) -> Result<Self, CaError> {
        let (ca, ca_key) = (folder.join(CA_FILE), folder.join(CA_KEY_FILE));
        let not = |path: &Path, what, why| CaError::NotPem { path: path.to_owned(), what, why };
        let pem = read_text(&ca)?;
        let key = KeyPair::from_pem(&read_text(&ca_key)?)
            .map_err(|why| not(&ca_key, "private key", why.to_string()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|why| not(&ca, "certificate", why.to_string()))?
            .into_owned();
        if public_key_of(&der).as_deref() != Some(key.der_bytes()) {
            let why = "the public keys differ".to_owned();
            return Err(not(&ca_key, "private key of this CA", why));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|why| not(&ca, "CA certificate", why.to_string()))?;
        Ok(Self { issuer, pem, der })
    }

    /// The certificate, as PEM: what clients trust, and what a listener takes as `client_ca`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the certificate, for people to compare.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// A certificate and key for a server that clients find under these host names and addresses.
    ///
    /// # Errors
    /// [`CaError::BadName`]: there is none, or one is neither.
    pub fn issue_server(&self, hosts: &[String], valid: Duration) -> Result<Issued, CaError> {
        let bad = |name: &str| CaError::BadName(name.chars().take(200).collect(), "host");
        let first = hosts.first().ok_or_else(|| bad(""))?;
        let mut params = leaf(ExtendedKeyUsagePurpose::ServerAuth, valid);
        // What counts are the names below; a longer one does not fit here.
        params.distinguished_name =
            common_name(&first.chars().take(COMMON_NAME_CHARS_MAX).collect::<String>());
        for host in hosts {
            params.subject_alt_names.push(match host.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) if is_host_name(host) => {
                    SanType::DnsName(host.as_str().try_into().map_err(|_| bad(host))?)
                }
                Err(_) => return Err(bad(host)),
            });
        }
        self.issue(&params)
    }

    /// A certificate and key for a device. Its common name is the user name a listener takes from it.
    ///
    /// # Errors
    /// [`CaError::BadName`].
    pub fn issue_device(&self, name: &str, valid: Duration) -> Result<Issued, CaError> {
        let mut params = leaf(ExtendedKeyUsagePurpose::ClientAuth, valid);
        params.distinguished_name = common_name(checked(name, "device")?);
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Issued, CaError> {
        let key = KeyPair::generate()?;
        let cert_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued { cert_pem, key_pem: key.serialize_pem() })
    }
}

impl Issued {
    /// Writes `NAME.pem` and `NAME.key` (mode 0600) into a folder, over what is there.
    ///
    /// # Errors
    /// [`CaError::File`]; the key is written first, each file as a whole or not at all.
    pub fn write_as(&self, folder: &Path, name: &str) -> Result<(), CaError> {
        fs::create_dir_all(folder).map_err(|cause| file_error("create", folder, cause))?;
        replace_file(&folder.join(format!("{name}.key")), self.key_pem.as_bytes(), 0o600)?;
        replace_file(&folder.join(format!("{name}.pem")), self.cert_pem.as_bytes(), 0o644)
    }
}

fn leaf(purpose: ExtendedKeyUsagePurpose, valid: Duration) -> CertificateParams {
    let mut params = dated(valid);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Names of CAs and devices: they stand in file names, access rules and logs.
fn checked<'a>(name: &'a str, what: &'static str) -> Result<&'a str, CaError> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    let fits = (1..=COMMON_NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(good);
    if fits && !name.starts_with('.') {
        return Ok(name);
    }
    Err(CaError::BadName(name.chars().take(200).collect(), what))
}

/// A DNS name, perhaps with `*` as its first label (RFC 9525, §6.3).
fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    host.len() <= 253 && host.strip_prefix("*.").unwrap_or(host).split('.').all(label)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use x509_parser::prelude::*;

    use super::*;

    const YEAR: Duration = Duration::from_hours(24 * 365);

    fn names(pem: &str) -> (Vec<String>, bool, bool) {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let (_, certificate) = X509Certificate::from_der(&der).expect("DER");
        let names = certificate.subject_alternative_name().expect("sound");
        let names = names.map_or(vec![], |names| {
            names.value.general_names.iter().map(ToString::to_string).collect()
        });
        let usage = certificate.extended_key_usage().expect("sound").expect("there").value.clone();
        (names, usage.server_auth, usage.client_auth)
    }

    #[test]
    fn keys_are_for_their_owner_and_a_ca_is_not_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = ListenerCa::create(folder.path(), "plant").expect("made");
        let device = ca.issue_device("lamp-1", YEAR).expect("issued");
        device.write_as(folder.path(), "lamp-1").expect("written");
        for key in ["ca.key", "lamp-1.key"] {
            let file = fs::metadata(folder.path().join(key)).expect("there");
            assert_eq!(file.permissions().mode() & 0o777, 0o600, "{key}");
        }
        let again = ListenerCa::create(folder.path(), "plant");
        assert!(matches!(again, Err(CaError::Exists(_))));
        let loaded = ListenerCa::load(folder.path()).expect("its own files");
        assert_eq!(loaded.fingerprint(), ca.fingerprint());
    }

    #[test]
    fn a_server_has_host_names_and_addresses_and_a_device_has_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = ListenerCa::create(folder.path(), "plant").expect("made");
        let hosts = ["gw.plant.example", "*.edge.example", "10.0.0.7", "::1"].map(str::to_owned);
        let (names_of, server, client) =
            names(&ca.issue_server(&hosts, YEAR).expect("issued").cert_pem);
        assert_eq!((names_of.len(), server, client), (4, true, false), "{names_of:?}");
        assert!(names_of[0].contains("gw.plant.example"), "{names_of:?}");
        let (names_of, server, client) =
            names(&ca.issue_device("lamp:1", YEAR).expect("issued").cert_pem);
        assert_eq!((names_of.len(), server, client), (0, false, true));
    }

    #[test]
    fn names_that_cannot_stand_in_a_file_or_a_certificate_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = ListenerCa::create(folder.path(), "plant").expect("made");
        for name in ["", "../lamp", "a b", ".hidden", &"x".repeat(65)] {
            assert!(matches!(ca.issue_device(name, YEAR), Err(CaError::BadName(..))), "{name}");
        }
        for host in ["", "a b", "http://x", "x:8883", "a..b"] {
            let hosts = [host.to_owned()];
            let issued = ca.issue_server(&hosts, YEAR);
            assert!(matches!(issued, Err(CaError::BadName(..))), "{host}");
        }
        assert!(ca.issue_server(&[], YEAR).is_err());
    }
}
