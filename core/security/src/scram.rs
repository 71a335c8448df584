//! SCRAM-SHA-256 (RFC 5802, RFC 7677), the server's half: a client proves a password that the node does not have.
//!
//! ```text
//!  client-first ──▶ Exchange::begin (verifier, server nonce) ──▶ server-first
//!  client-final ──▶ Exchange::finish                         ──▶ server-final, or a refusal
//! ```
//! Bytes in, bytes out: the nonce comes in as an argument. A step costs a few hashes; what is slow, the iterations over the
//! password, is done by the client, and here only when a verifier is made. Channel binding is not offered.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64ct::{Base64, Encoding};

/// The name of the method (RFC 7677, §3), also in MQTT (MQTT 5, §4.12).
pub const METHOD: &str = "SCRAM-SHA-256";

/// Iterations of a new verifier: a tenth of a second on the computers of RFC 7677, §4. Lower: a stolen verifier is cheaper to
/// guess from; higher: small devices take seconds to log in.
pub const ITERATIONS: u32 = 15_000;

/// "The hash iteration-count announced by a server SHOULD be at least 4096" (RFC 7677, §4).
const ITERATIONS_MIN: u32 = 4_096;

/// Longer messages of a client are refused unseen. Lower: long names and extensions do not fit; higher: strangers make the
/// node hash more.
pub const MESSAGE_BYTES_MAX: usize = 4_096;

const KEY_BYTES: usize = digest::SHA256_OUTPUT_LEN;

/// Why somebody is not let in, or a verifier cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    /// Not a message of RFC 5802, or not the one that comes now.
    #[error("the client's message is not SCRAM: {0}; nobody was let in")]
    Message(&'static str),
    /// It asks for what is not offered: channel binding, acting for somebody else, an extension it cannot do without.
    #[error("the client asks for {0}, which is not offered; nobody was let in")]
    NotOffered(&'static str),
    /// The proof is wrong.
    #[error("the client does not know the password; nobody was let in")]
    WrongProof,
    /// A stored verifier that is none.
    #[error("the stored verifier is not SCRAM-SHA-256$ITERATIONS:SALT$STORED_KEY:SERVER_KEY: {0}")]
    Stored(&'static str),
    /// A password that SASLprep (RFC 4013) does not permit.
    #[error("the password holds characters that SASLprep (RFC 4013) does not permit")]
    Password,
}

/// What is kept of a password (RFC 5803): enough to check a proof, not enough to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: [u8; KEY_BYTES],
    server_key: [u8; KEY_BYTES],
}

impl Verifier {
    /// From a password. `salt`: 16 random bytes, new for each password.
    ///
    /// # Errors
    /// [`ScramError::Password`].
    pub fn new(password: &str, salt: &[u8], iterations: u32) -> Result<Self, ScramError> {
        let password = stringprep::saslprep(password).map_err(|_| ScramError::Password)?;
        let iterations = iterations.max(ITERATIONS_MIN);
        let count = std::num::NonZeroU32::new(iterations).expect("at least the minimum");
        let mut salted = [0; KEY_BYTES];
        let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
        pbkdf2::derive(algorithm, count, salt, password.as_bytes(), &mut salted);
        Ok(Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: hash(&mac(&salted, b"Client Key")),
            server_key: mac(&salted, b"Server Key"),
        })
    }

    /// For a name nobody has: the same each time, so that an exchange does not tell which names are known (RFC 5802, §9).
    /// `secret` has to stay the same and inside; no password fits.
    pub fn decoy(secret: &[u8], name: &str, iterations: u32) -> Self {
        let part = |label: &str| mac(secret, format!("{label}:{name}").as_bytes());
        Self {
            iterations,
            salt: part("salt")[..16].to_vec(),
            stored_key: part("stored"),
            server_key: part("server"),
        }
    }

    /// Iterations a client has to do.
    pub fn iterations(&self) -> u32 {
        self.iterations
    }
}

impl fmt::Display for Verifier {
    /// The form it is stored in: `SCRAM-SHA-256$15000:SALT$STORED_KEY:SERVER_KEY`, the last three in base64.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Base64::encode_string;
        let (salt, iterations) = (text(&self.salt), self.iterations);
        let (stored, server) = (text(&self.stored_key), text(&self.server_key));
        write!(f, "{METHOD}${iterations}:{salt}${stored}:{server}")
    }
}

impl fmt::Debug for Verifier {
    /// Never the keys: this may end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl FromStr for Verifier {
    type Err = ScramError;

    fn from_str(text: &str) -> Result<Self, ScramError> {
        let refuse = ScramError::Stored;
        let mut parts = text.trim().split('$');
        if parts.next() != Some(METHOD) {
            return Err(refuse("another method"));
        }
        let (Some(cost), Some(keys), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(refuse("not three parts"));
        };
        let (iterations, salt) = cost.split_once(':').ok_or(refuse("no salt"))?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(refuse("no server key"))?;
        let iterations = iterations.parse().map_err(|_| refuse("no number of iterations"))?;
        if iterations < ITERATIONS_MIN {
            return Err(refuse("fewer than 4096 iterations"));
        }
        let bytes = |text| Base64::decode_vec(text).map_err(|_| refuse("not base64"));
        let key = |text| {
            <[u8; KEY_BYTES]>::try_from(bytes(text)?).map_err(|_| refuse("a key is not 32 bytes"))
        };
        let (stored_key, server_key) = (key(stored_key)?, key(server_key)?);
        Ok(Self { iterations, salt: bytes(salt)?, stored_key, server_key })
    }
}

/// An exchange of which the first message has come.
pub struct Exchange {
    name: String,
    /// What the client wrote before its name: it repeats it, protected by the proof.
    gs2_header: String,
    nonce: String,
    /// The messages so far, as the proof covers them.
    transcript: String,
    verifier: Verifier,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Exchange {
    /// The client's first message: who it says it is. `server_nonce` is printable, without commas, and new for each exchange;
    /// `find` gives the verifier of a name, a [`Verifier::decoy`] for one nobody has. Returns what to answer.
    ///
    /// # Errors
    /// [`ScramError::Message`] and [`ScramError::NotOffered`].
    pub fn begin(
        message: &[u8],
        server_nonce: &str,
        find: impl FnOnce(&str) -> Verifier,
    ) -> Result<(Self, Vec<u8>), ScramError> {
        let text = as_text(message)?;
        let (gs2_header, bare) = split_gs2_header(text)?;
        let mut fields = bare.split(',');
        let name = match fields.next() {
            Some(field) if field.starts_with("m=") => {
                return Err(ScramError::NotOffered("an extension"));
            }
            field => sasl_name(value_of(field, "n=", "there is no name")?)?,
        };
        if let Some(acts_for) = gs2_header.split(',').nth(1).filter(|part| !part.is_empty())
            && sasl_name(value_of(Some(acts_for), "a=", "the header is unknown")?)? != name
        {
            return Err(ScramError::NotOffered("to act for somebody else"));
        }
        let client_nonce = value_of(fields.next(), "r=", "there is no nonce")?;
        if client_nonce.is_empty() || !client_nonce.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ScramError::Message("the nonce is not printable"));
        }
        let verifier = find(&name);
        let nonce = format!("{client_nonce}{server_nonce}");
        let salt = Base64::encode_string(&verifier.salt);
        let first = format!("r={nonce},s={salt},i={}", verifier.iterations);
        let transcript = format!("{bare},{first}");
        let gs2_header = gs2_header.to_owned();
        Ok((Self { name, gs2_header, nonce, transcript, verifier }, first.into_bytes()))
    }

    /// Who the client says it is; true once [`Exchange::finish`] says so.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The client's last message: the proof. Returns what to send along with the good news; it proves to the client that the
    /// server knows the verifier.
    ///
    /// # Errors
    /// [`ScramError::Message`] and [`ScramError::WrongProof`].
    pub fn finish(&self, message: &[u8]) -> Result<Vec<u8>, ScramError> {
        let text = as_text(message)?;
        let (unproved, proof) =
            text.rsplit_once(",p=").ok_or(ScramError::Message("there is no proof"))?;
        let mut fields = unproved.split(',');
        let header = value_of(fields.next(), "c=", "there is no channel binding")?;
        if header != Base64::encode_string(self.gs2_header.as_bytes()) {
            return Err(ScramError::Message("the header is not that of the first message"));
        }
        if value_of(fields.next(), "r=", "there is no nonce")? != self.nonce {
            return Err(ScramError::Message("the nonce is not that of this exchange"));
        }
        let proof = Base64::decode_vec(proof).map_err(|_| ScramError::Message("not base64"))?;
        let proof = <[u8; KEY_BYTES]>::try_from(proof)
            .map_err(|_| ScramError::Message("the proof is not 32 bytes"))?;
        let signed = format!("{},{unproved}", self.transcript);
        let signature = mac(&self.verifier.stored_key, signed.as_bytes());
        let mut client_key = proof;
        client_key.iter_mut().zip(signature).for_each(|(byte, mask)| *byte ^= mask);
        constant_time::verify_slices_are_equal(&hash(&client_key), &self.verifier.stored_key)
            .map_err(|_| ScramError::WrongProof)?;
        let signature = mac(&self.verifier.server_key, signed.as_bytes());
        Ok(format!("v={}", Base64::encode_string(&signature)).into_bytes())
    }
}

fn as_text(message: &[u8]) -> Result<&str, ScramError> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(ScramError::Message("it is too long"));
    }
    std::str::from_utf8(message).map_err(|_| ScramError::Message("it is not UTF-8"))
}

/// `n,,` or `y,,` or `n,a=NAME,`; `p=…` would be channel binding.
fn split_gs2_header(text: &str) -> Result<(&str, &str), ScramError> {
    let short = ScramError::Message("it ends too early");
    let (flag, rest) = text.split_once(',').ok_or(short)?;
    match flag {
        "n" | "y" => {}
        _ if flag.starts_with("p=") => return Err(ScramError::NotOffered("channel binding")),
        _ => return Err(ScramError::Message("the header is unknown")),
    }
    let (acts_for, _) = rest.split_once(',').ok_or(short)?;
    Ok(text.split_at(flag.len() + acts_for.len() + 2))
}

fn value_of<'a>(
    field: Option<&'a str>,
    begins: &str,
    problem: &'static str,
) -> Result<&'a str, ScramError> {
    field.and_then(|field| field.strip_prefix(begins)).ok_or(ScramError::Message(problem))
}

/// `=2C` is a comma and `=3D` an equals sign; no other may come (RFC 5802, §5.1).
fn sasl_name(text: &str) -> Result<String, ScramError> {
    let name = text.replace("=2C", ",").replace("=3D", "=");
    let equals = text.matches('=').count();
    let escapes = text.matches("=2C").count() + text.matches("=3D").count();
    if name.is_empty() || equals != escapes {
        return Err(ScramError::Message("the name is not a saslname"));
    }
    Ok(name)
}

fn mac(key: &[u8], data: &[u8]) -> [u8; KEY_BYTES] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data);
    tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
}

fn hash(data: &[u8]) -> [u8; KEY_BYTES] {
    digest::digest(&digest::SHA256, data).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677, §3.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const SALT: &str = "W22ZaJ0SNY7soEsUEjb6gQ==";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn verifier() -> Verifier {
        let salt = Base64::decode_vec(SALT).expect("base64");
        Verifier::new("pencil", &salt, 4_096).expect("permitted")
    }

    fn begun(first: &str) -> Exchange {
        Exchange::begin(first.as_bytes(), SERVER_NONCE, |_| verifier()).expect("valid").0
    }

    fn refusal(first: &str) -> ScramError {
        Exchange::begin(first.as_bytes(), SERVER_NONCE, |_| verifier()).expect_err(first)
    }

    #[test]
    fn the_example_of_rfc_7677_3() {
        let (exchange, answer) = Exchange::begin(FIRST.as_bytes(), SERVER_NONCE, |name| {
            assert_eq!(name, "user");
            verifier()
        })
        .expect("valid");
        assert_eq!(answer, SERVER_FIRST.as_bytes());
        assert_eq!(exchange.finish(FINAL.as_bytes()), Ok(SERVER_FINAL.into()));
    }

    #[test]
    fn a_wrong_password_or_a_name_nobody_has_is_a_wrong_proof() {
        let salt = Base64::decode_vec(SALT).expect("base64");
        let other = Verifier::new("pencils", &salt, 4_096).expect("permitted");
        let decoy = Verifier::decoy(b"secret", "user", 4_096);
        assert_eq!(decoy, Verifier::decoy(b"secret", "user", 4_096), "asked twice, the same");
        assert_ne!(decoy.salt, Verifier::decoy(b"secret", "other", 4_096).salt);
        for verifier in [other, decoy] {
            let (exchange, _) =
                Exchange::begin(FIRST.as_bytes(), SERVER_NONCE, |_| verifier).expect("valid");
            assert_eq!(exchange.finish(FINAL.as_bytes()), Err(ScramError::WrongProof));
        }
    }

    #[test]
    fn a_last_message_of_another_exchange_is_of_no_use() {
        let exchange = begun(FIRST);
        for (from, to) in [("c=biws", "c=eSws"), ("r=rOpr", "r=sOpr"), ("hNlF$k0", "hNlF$k1")] {
            let told = exchange.finish(FINAL.replace(from, to).as_bytes());
            assert!(matches!(told, Err(ScramError::Message(_))), "{to}: {told:?}");
        }
        let replayed =
            Exchange::begin(FIRST.as_bytes(), "another", |_| verifier()).expect("valid").0;
        assert!(matches!(replayed.finish(FINAL.as_bytes()), Err(ScramError::Message(_))));
        let flipped = FINAL.replace("p=dHzb", "p=eHzb");
        assert_eq!(exchange.finish(flipped.as_bytes()), Err(ScramError::WrongProof));
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        assert_eq!(refusal("p=tls-unique,,n=user,r=x"), ScramError::NotOffered("channel binding"));
        assert_eq!(refusal("n,,m=x,n=user,r=x"), ScramError::NotOffered("an extension"));
        let acts = "to act for somebody else";
        assert_eq!(refusal("n,a=root,n=user,r=x"), ScramError::NotOffered(acts));
        assert_eq!(begun("n,a=user,n=user,r=x").name(), "user");
        assert_eq!(begun("y,,n=a=2Cb=3Dc,r=x,ext=1").name(), "a,b=c");
    }

    #[test]
    fn what_is_no_message_lets_nobody_in() {
        for bad in [
            "",
            "n",
            "n,",
            "n,,",
            "x,,n=user,r=x",
            "n,,n=,r=x",
            "n,,n=a=b,r=x",
            "n,,n=user",
            "n,,n=user,r=",
            "n,,r=x,n=user",
            "n,,n=user,r=a\u{e4}",
        ] {
            assert!(matches!(refusal(bad), ScramError::Message(_)), "{bad:?}");
        }
        let long = format!("n,,n={},r=x", "u".repeat(MESSAGE_BYTES_MAX));
        assert!(matches!(refusal(&long), ScramError::Message(_)));
        assert!(Exchange::begin(b"n,,n=\xff,r=x", "s", |_| verifier()).is_err());
        for bad in ["", "c=biws", "c=biws,r=x", "c=biws,p=", "p=", ",p=", "c=biws,r=x,p=!"] {
            let told = begun(FIRST).finish(bad.as_bytes());
            assert!(matches!(told, Err(ScramError::Message(_))), "{bad:?}");
        }
    }

    #[test]
    fn a_verifier_is_read_as_it_was_written() {
        let text = verifier().to_string();
        assert!(text.starts_with("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$"), "{text}");
        assert_eq!(text.parse(), Ok(verifier()));
        for bad in [
            "",
            "secret",
            "SCRAM-SHA-1$4096:YQ==$YQ==:YQ==",
            "SCRAM-SHA-256$4096:YQ==$YQ==:YQ==",
            &text.replace("4096", "4095"),
            &format!("{text}$"),
            &text.replace(':', ""),
        ] {
            assert!(matches!(bad.parse::<Verifier>(), Err(ScramError::Stored(_))), "{bad:?}");
        }
        assert!(!format!("{:?}", verifier()).contains("key"), "keys are not for logs");
    }

    #[test]
    fn the_same_password_in_another_writing_fits_rfc_4013() {
        let salt = b"sixteen bytes ..";
        let made = |password| Verifier::new(password, salt, 4_096);
        assert_eq!(made("I\u{ad}X"), made("IX"));
        assert_eq!(made("\u{aa}"), made("a"));
        assert_eq!(made("\u{7}"), Err(ScramError::Password));
    }
}
