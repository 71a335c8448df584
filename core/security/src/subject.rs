//! The names a client certificate carries, for listeners that take one of them as the user name (RFC 5280, §4.1.2.6 and
//! §4.2.1.6). Whether the certificate is signed by the right CA and in date is for the TLS verifier.

use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::CERTIFICATE_BYTES_MAX;

/// Longer names are not taken: they stand in logs and rules, and a CA's common name has 64 characters at most.
pub const SUBJECT_NAME_BYTES_MAX: usize = 256;

/// The first common name of the subject.
pub fn common_name(der: &[u8]) -> Option<String> {
    let certificate = parsed(der)?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    usable(name)
}

/// The first URI among the alternative names, for example `spiffe://plant/device/lamp-1`.
pub fn uri_name(der: &[u8]) -> Option<String> {
    let certificate = parsed(der)?;
    let names = certificate.extensions().iter().find_map(|extension| {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        }
    })?;
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    })?;
    usable(uri)
}

/// The last second it is valid, since 1970.
pub fn expires_s(der: &[u8]) -> Option<i64> {
    Some(parsed(der)?.validity().not_after.timestamp())
}

fn parsed(der: &[u8]) -> Option<X509Certificate<'_>> {
    if der.len() > CERTIFICATE_BYTES_MAX {
        return None;
    }
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate)
}

/// What could not stand in a log line or a CONNECT as well is no name.
fn usable(name: &str) -> Option<String> {
    let good =
        (1..=SUBJECT_NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
    good.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_names_nobody() {
        for bytes in [&b""[..], b"\x30", &[0x30; 100], &vec![0xff; 20_000]] {
            assert_eq!((common_name(bytes), uri_name(bytes), expires_s(bytes)), (None, None, None));
        }
    }

    #[test]
    fn names_that_break_lines_are_none() {
        assert_eq!(usable("lamp-1"), Some("lamp-1".into()));
        for bad in ["", "a\nb", "a\0b", &"x".repeat(SUBJECT_NAME_BYTES_MAX + 1)] {
            assert_eq!(usable(bad), None);
        }
    }
}
