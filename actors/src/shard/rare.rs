//! What few connections have anything of, in one box: thousands of others wait with none.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use outpost_flow::Pace;
use outpost_mqtt::alias::SentAliases;
use outpost_mqtt::packet::{Connect, Publish};

use super::authenticate::Authentication;
use super::blocked::Blocked;

/// The other end, in half the space of a `SocketAddr`.
#[derive(Debug)]
pub(super) enum Remote {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
}

impl Remote {
    pub(super) fn get(&self) -> SocketAddr {
        match self {
            Self::V4(address) => SocketAddr::V4(*address),
            Self::V6(address) => SocketAddr::V6(**address),
        }
    }
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(address),
            SocketAddr::V6(address) => Self::V6(Box::new(address)),
        }
    }
}

/// One word while there is nothing.
#[derive(Debug, Default)]
pub(super) struct Rare(Option<Box<Parts>>);

#[derive(Debug, Default)]
struct Parts {
    /// Name from a verified client certificate.
    certificate: Option<Arc<str>>,
    /// While its credentials are being checked.
    connect: Option<Box<Connect>>,
    blocked: Blocked,
    /// Made when it is paced for the first time.
    pace: Option<Box<Pace>>,
    /// Topics this client knows by number; absent when it keeps none.
    aliases: Option<Box<SentAliases>>,
    /// The authentication method its CONNECT named.
    auth: Option<Box<Authentication>>,
}

impl Rare {
    pub(super) fn new(certificate: Option<Arc<str>>) -> Self {
        let with_name = |name| Box::new(Parts { certificate: Some(name), ..Parts::default() });
        Self(certificate.map(with_name))
    }

    pub(super) fn certificate(&self) -> Option<&Arc<str>> {
        self.0.as_ref()?.certificate.as_ref()
    }

    pub(super) fn connect(&self) -> Option<&Connect> {
        self.0.as_ref()?.connect.as_deref()
    }

    pub(super) fn set_connect(&mut self, connect: Box<Connect>) {
        self.0.get_or_insert_default().connect = Some(connect);
    }

    /// Its credentials are checked.
    pub(super) fn take_connect(&mut self) -> Option<Box<Connect>> {
        let connect = self.0.as_mut()?.connect.take();
        self.0.take_if(|parts| parts.is_empty());
        connect
    }

    /// Publishes it waits with.
    pub(super) fn blocked(&self) -> Option<&Blocked> {
        self.0.as_ref().map(|parts| &parts.blocked)
    }

    pub(super) fn blocked_mut(&mut self) -> &mut Blocked {
        &mut self.0.get_or_insert_default().blocked
    }

    pub(super) fn take_blocked(&mut self) -> Blocked {
        self.0.as_mut().map(|parts| std::mem::take(&mut parts.blocked)).unwrap_or_default()
    }

    /// How many publishes it waits with.
    pub(super) fn blocked_len(&self) -> usize {
        self.blocked().map_or(0, Blocked::len)
    }

    /// What they occupy.
    pub(super) fn blocked_bytes(&self) -> usize {
        let bytes = |all: &Blocked| all.payload_bytes() + all.len() * size_of::<Publish>();
        self.blocked().map_or(0, bytes)
    }

    pub(super) fn pace(&self) -> Option<&Pace> {
        self.0.as_ref()?.pace.as_deref()
    }

    pub(super) fn pace_mut(&mut self) -> &mut Pace {
        self.0.get_or_insert_default().pace.get_or_insert_default()
    }

    pub(super) fn has_aliases(&self) -> bool {
        self.0.as_ref().is_some_and(|parts| parts.aliases.is_some())
    }

    pub(super) fn aliases_mut(&mut self) -> Option<&mut SentAliases> {
        self.0.as_mut()?.aliases.as_deref_mut()
    }

    pub(super) fn set_aliases(&mut self, aliases: SentAliases) {
        self.0.get_or_insert_default().aliases = Some(Box::new(aliases));
    }

    pub(super) fn auth(&self) -> Option<&Authentication> {
        self.0.as_ref()?.auth.as_deref()
    }

    pub(super) fn auth_mut(&mut self) -> Option<&mut Authentication> {
        self.0.as_mut()?.auth.as_deref_mut()
    }

    pub(super) fn set_auth(&mut self, auth: Authentication) {
        self.0.get_or_insert_default().auth = Some(Box::new(auth));
    }
}

impl Parts {
    fn is_empty(&self) -> bool {
        self.certificate.is_none()
            && self.connect.is_none()
            && self.blocked.is_empty()
            && self.pace.is_none()
            && self.aliases.is_none()
            && self.auth.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_out_as_it_went_in() {
        for text in ["192.0.2.1:1883", "[2001:db8::1]:1883", "[fe80::1%7]:1"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(Remote::from(address).get(), address);
        }
        assert_eq!(size_of::<Remote>(), 16);
    }

    #[test]
    fn what_is_over_costs_nothing_any_more() {
        let mut rare = Rare::default();
        assert!(rare.take_connect().is_none() && rare.take_blocked().is_empty());
        rare.set_aliases(SentAliases::new(1).expect("one may be used"));
        assert!(rare.has_aliases() && rare.take_connect().is_none() && rare.has_aliases());
        rare.0.as_mut().expect("it has aliases").aliases = None;
        assert!(rare.take_connect().is_none());
        assert!(rare.0.is_none(), "nothing is kept for it");
        let mut named = Rare::new(Some("meter".into()));
        assert!(named.take_connect().is_none());
        assert_eq!(named.certificate().map(|name| &**name), Some("meter"));
    }
}
