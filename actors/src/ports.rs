//! What the floor of actors needs from above: who may come in and do what.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

/// The listener of this node's own bridges, which connect through memory. No other is called so.
pub const BRIDGE_LISTENER: &str = "$bridge";

/// What the client ids of this node's own bridges begin with; nobody else may use such a one.
pub const BRIDGE_CLIENTS: &str = "$bridge/";

/// Where a connection came from; known before its first byte.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Name of the listener, for metrics and rules.
    pub listener: Arc<str>,
    /// The other end.
    pub remote: SocketAddr,
    /// Name from a verified client certificate.
    pub certificate: Option<Arc<str>>,
}

/// Who a client is, once admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// MQTT client id.
    pub client_id: ByteString,
    /// User name it proved (by password or certificate); absent for an anonymous client.
    pub user: Option<Arc<str>>,
}

/// What a client wants to do with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publish to a topic name; wills too.
    Publish,
    /// Subscribe to a topic filter.
    Subscribe,
}

/// What CONNECT said about who it is.
#[derive(Clone)]
pub struct Credentials {
    /// User name.
    pub username: Option<ByteString>,
    /// Password.
    pub password: Option<Bytes>,
}

impl fmt::Debug for Credentials {
    /// Never the password: this may end in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The answer to a CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Come in, as this user.
    Admit(Option<Arc<str>>),
    /// No: the user name or the password is wrong.
    BadCredentials,
    /// No: the client is known and not wanted.
    NotAuthorized,
    /// The check is slow (a password hash): ask [`Gate::check_slowly`] on another thread.
    Slow,
}

/// What a step of a [`Method`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask the client this.
    Continue(Bytes),
    /// It is who it says: this user. The rest is for the client.
    Done(Option<Arc<str>>, Option<Bytes>),
    /// It is not, and why, for the log.
    Refused(&'static str),
}

/// One exchange of an authentication method (MQTT 5, §4.12).
pub trait Method: Send + fmt::Debug {
    /// What the client sent next; `None` when it sent no data. Never called on a shard.
    fn step(&mut self, data: Option<&[u8]>) -> Step;
}

/// Decides who comes in and who may do what. The node plugs in its configuration.
pub trait Gate: Send + Sync + fmt::Debug {
    /// May this client connect? Quick.
    fn admit(&self, origin: &Origin, client_id: &str, credentials: &Credentials) -> Admission;

    /// The slow half of [`Gate::admit`]; never called on a shard. Never answers `Slow`.
    fn check_slowly(
        &self,
        origin: &Origin,
        client_id: &str,
        credentials: &Credentials,
    ) -> Admission;

    /// Begins an exchange of this method; `None` when it is not offered. Quick.
    fn begin(&self, _origin: &Origin, _client_id: &str, _method: &str) -> Option<Box<dyn Method>> {
        None
    }

    /// May this client do this? A yes is remembered while the client is connected and the [`Gate::epoch`] is the same.
    fn allows(&self, who: &Identity, action: Action, topic: &str) -> bool;

    /// Names the rules behind [`Gate::allows`]: where the number is another, what was allowed once is asked again. 0: there
    /// are none.
    fn epoch(&self) -> u64 {
        0
    }

    /// Whether [`Gate::allows`] says yes to everything, so that it need not be asked for each message.
    fn allows_all(&self) -> bool {
        false
    }

    /// Why [`Gate::allows`] answers so, in words.
    fn explain(&self, who: &Identity, action: Action, topic: &str) -> String {
        let yes = self.allows(who, action, topic);
        format!("{}: there are no access rules", if yes { "allowed" } else { "refused" })
    }

    /// The rules that are about a client, in words, at most `limit`.
    fn rules_about(&self, who: &Identity, limit: usize) -> Vec<String> {
        let _ = (who, limit);
        Vec::new()
    }
}

/// A gate that is open to all: for a node that listens on loopback only, and for tests.
#[derive(Debug, Default)]
pub struct OpenGate;

impl Gate for OpenGate {
    fn admit(&self, _: &Origin, _: &str, credentials: &Credentials) -> Admission {
        Admission::Admit(credentials.username.as_ref().map(|name| Arc::from(&**name)))
    }

    fn check_slowly(
        &self,
        origin: &Origin,
        client_id: &str,
        credentials: &Credentials,
    ) -> Admission {
        self.admit(origin, client_id, credentials)
    }

    fn allows(&self, _: &Identity, _: Action, _: &str) -> bool {
        true
    }

    fn allows_all(&self) -> bool {
        true
    }
}
