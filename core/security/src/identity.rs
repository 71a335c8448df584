//! Who a certificate speaks for: a node or a device of one cluster, by its SPIFFE name.
//!
//! The rules are those of the SPIFFE X509-SVID standard for a leaf (§2 to §4): exactly one URI name, not a CA, no right
//! to sign certificates. Whether the certificate is signed by the right CA and in date is for the TLS verifier.

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A node's name is at most this long, so that it fits a host name label.
pub const NODE_NAME_MAX: usize = 63;
/// A cluster's name is at most this long; it stands in every certificate.
pub const CLUSTER_NAME_MAX: usize = 63;
/// A device's id is at most this long, as an AWS thing name is.
pub const DEVICE_ID_MAX: usize = 128;
/// A larger certificate is not parsed: real ones of this cluster have about 500 bytes.
pub const CERTIFICATE_BYTES_MAX: usize = 16 * 1024;

/// What kind of party a certificate names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdentityKind {
    /// `spiffe://<cluster>/node/<name>`.
    Node,
    /// `spiffe://<cluster>/device/<id>`.
    Device,
}

impl IdentityKind {
    fn word(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Device => "device",
        }
    }
}

/// What a certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The trust domain.
    pub cluster: String,
    /// Node or device.
    pub kind: IdentityKind,
    /// Node name or device id.
    pub name: String,
    /// First second it is valid, since 1970.
    pub not_before_s: i64,
    /// Last second it is valid, since 1970.
    pub not_after_s: i64,
}

/// Why a certificate names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Larger than [`CERTIFICATE_BYTES_MAX`].
    #[error("the certificate has {0} bytes, more than {CERTIFICATE_BYTES_MAX}")]
    TooLarge(usize),
    /// Not DER of an X.509 certificate, or something stands behind it.
    #[error("the certificate is not valid DER")]
    NotDer,
    /// Critical extensions nobody here understands, or one that cannot be read.
    #[error("the certificate has an extension that cannot be read")]
    BadExtension,
    /// `CA:true` (X509-SVID §4.1).
    #[error("the certificate is a CA, not a leaf")]
    IsCa,
    /// May sign certificates or revocation lists (X509-SVID §4.3).
    #[error("the certificate may sign other certificates or lists")]
    MaySign,
    /// No URI name, or more than one (X509-SVID §2).
    #[error("the certificate has {0} URI names, not exactly one")]
    UriCount(usize),
    /// Not of one of the two forms.
    #[error("{0:?} is not spiffe://<cluster>/node/<name> or spiffe://<cluster>/device/<id>")]
    BadUri(String),
}

impl Identity {
    /// Reads a leaf certificate.
    ///
    /// # Errors
    /// [`IdentityError`] says which rule it breaks.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        if der.len() > CERTIFICATE_BYTES_MAX {
            return Err(IdentityError::TooLarge(der.len()));
        }
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_| IdentityError::NotDer)?;
        if !rest.is_empty() {
            return Err(IdentityError::NotDer);
        }
        let uri = leaf_uri(&certificate)?;
        let (cluster, kind, name) =
            split_uri(uri).ok_or_else(|| IdentityError::BadUri(shortened(uri)))?;
        let validity = certificate.validity();
        Ok(Self {
            cluster: cluster.to_owned(),
            kind,
            name: name.to_owned(),
            not_before_s: validity.not_before.timestamp(),
            not_after_s: validity.not_after.timestamp(),
        })
    }

    /// The name as it stands in the certificate.
    pub fn uri(&self) -> String {
        uri(&self.cluster, self.kind, &self.name)
    }
}

/// The SPIFFE name of a party. Check the parts before, this does not.
pub fn uri(cluster: &str, kind: IdentityKind, name: &str) -> String {
    format!("spiffe://{cluster}/{}/{name}", kind.word())
}

/// Whether this may be a node's name: 1 to 63 of `a`–`z`, `0`–`9` and `-`.
pub fn is_node_name(name: &str) -> bool {
    (1..=NODE_NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Whether this may be a cluster's name: 1 to 63 of `a`–`z`, `0`–`9`, `-` and `.` (SPIFFE-ID §2.1, without `_`).
pub fn is_cluster_name(name: &str) -> bool {
    (1..=CLUSTER_NAME_MAX).contains(&name.len())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.'))
}

/// Whether this may be a device's id: 1 to 128 letters, digits, `-`, `_` and `.`, but not `.` or `..` (SPIFFE-ID §2.2).
pub fn is_device_id(id: &str) -> bool {
    (1..=DEVICE_ID_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && id != "."
        && id != ".."
}

/// The only URI name of a certificate that keeps the rules for a leaf.
fn leaf_uri<'a>(certificate: &'a X509Certificate<'_>) -> Result<&'a str, IdentityError> {
    let mut uris = Vec::new();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(basic) if basic.ca => {
                return Err(IdentityError::IsCa);
            }
            ParsedExtension::KeyUsage(usage) if usage.key_cert_sign() || usage.crl_sign() => {
                return Err(IdentityError::MaySign);
            }
            ParsedExtension::SubjectAlternativeName(names) => {
                uris.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) => Some(*uri),
                    _ => None,
                }));
            }
            ParsedExtension::ParseError { .. } => return Err(IdentityError::BadExtension),
            _ => {}
        }
    }
    match uris[..] {
        [uri] => Ok(uri),
        _ => Err(IdentityError::UriCount(uris.len())),
    }
}

fn split_uri(uri: &str) -> Option<(&str, IdentityKind, &str)> {
    let mut parts = uri.strip_prefix("spiffe://")?.split('/');
    let (cluster, kind, name) = (parts.next()?, parts.next()?, parts.next()?);
    let (kind, name_is_good) = match kind {
        "node" => (IdentityKind::Node, is_node_name(name)),
        "device" => (IdentityKind::Device, is_device_id(name)),
        _ => return None,
    };
    (parts.next().is_none() && is_cluster_name(cluster) && name_is_good)
        .then_some((cluster, kind, name))
}

/// What of a foreign text may go into an error.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_name_is_a_node_or_a_device_and_nothing_else() {
        assert_eq!(
            split_uri("spiffe://plant/node/edge-1"),
            Some(("plant", IdentityKind::Node, "edge-1"))
        );
        assert_eq!(
            split_uri("spiffe://plant/device/Pump_7.a"),
            Some(("plant", IdentityKind::Device, "Pump_7.a"))
        );
        for bad in [
            "",
            "http://plant/node/a",
            "SPIFFE://plant/node/a",
            "spiffe://plant/node/",
            "spiffe://plant/node/A",
            "spiffe://plant/node/a/b",
            "spiffe://plant/node",
            "spiffe:///node/a",
            "spiffe://plant/user/a",
            "spiffe://plant/device/..",
            "spiffe://plant/device/a%2fb",
            "spiffe://plant:1/node/a",
            "spiffe://plant/node/a?x",
            "spiffe://plant/node/a#x",
        ] {
            assert_eq!(split_uri(bad), None, "{bad:?} must name nobody");
        }
    }

    #[test]
    fn names_have_limits() {
        assert!(
            is_node_name(&"a".repeat(63)) && !is_node_name(&"a".repeat(64)) && !is_node_name("a_b")
        );
        assert!(is_device_id(&"d".repeat(128)) && !is_device_id(&"d".repeat(129)));
        assert!(is_cluster_name("eu.plant-1") && !is_cluster_name("Plant"));
    }

    #[test]
    fn bytes_that_are_no_certificate_name_nobody() {
        assert_eq!(Identity::from_der(&[]), Err(IdentityError::NotDer));
        assert_eq!(
            Identity::from_der(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
            Err(IdentityError::NotDer)
        );
        assert_eq!(Identity::from_der(&vec![0; 20_000]), Err(IdentityError::TooLarge(20_000)));
    }
}
