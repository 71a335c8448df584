//! Logging in by SCRAM-SHA-256: what `outpost_security` decides, as a method of the data plane.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use outpost_actors::ports::{Method, Step};
use outpost_security::scram::{Exchange, Verifier};

/// Those who can log in by it.
pub struct ScramUsers {
    verifiers: BTreeMap<String, Verifier>,
    /// Decides how names look that nobody has: the same at every start, and known to nobody outside.
    secret: Vec<u8>,
    iterations: u32,
}

impl fmt::Debug for ScramUsers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.verifiers.keys()).finish()
    }
}

impl ScramUsers {
    /// `None` when there are none: the method is not offered then.
    pub fn new(verifiers: BTreeMap<String, Verifier>) -> Option<Arc<Self>> {
        let iterations = verifiers.values().next()?.iterations();
        let secret = verifiers.values().map(ToString::to_string).collect::<String>().into_bytes();
        Some(Arc::new(Self { verifiers, secret, iterations }))
    }

    fn find(&self, name: &str) -> Verifier {
        let known = self.verifiers.get(name).cloned();
        known.unwrap_or_else(|| Verifier::decoy(&self.secret, name, self.iterations))
    }
}

/// One exchange.
#[derive(Debug)]
pub struct Scram {
    users: Arc<ScramUsers>,
    nonce: String,
    begun: Option<Exchange>,
}

impl Scram {
    /// `nonce` has to be new for each exchange, printable and without commas.
    pub fn new(users: Arc<ScramUsers>, nonce: String) -> Self {
        Self { users, nonce, begun: None }
    }
}

impl Method for Scram {
    fn step(&mut self, data: Option<&[u8]>) -> Step {
        let Some(data) = data else {
            // A CONNECT may come without data (MQTT 5, §4.12): then the client is asked for its first message.
            return match self.begun {
                None => Step::Continue(bytes::Bytes::new()),
                Some(_) => Step::Refused("SCRAM: the client sent no data"),
            };
        };
        match &self.begun {
            None => match Exchange::begin(data, &self.nonce, |name| self.users.find(name)) {
                Ok((exchange, question)) => {
                    self.begun = Some(exchange);
                    Step::Continue(question.into())
                }
                Err(_) => Step::Refused("SCRAM: the client's first message is not one of ours"),
            },
            Some(exchange) => match exchange.finish(data) {
                Ok(proof) => Step::Done(Some(Arc::from(exchange.name())), Some(proof.into())),
                Err(_) => Step::Refused("SCRAM: the proof is wrong"),
            },
        }
    }
}
