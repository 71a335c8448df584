//! Sending clients to another server (MQTT 5, §4.11): all of them, while this is said, or one.

use bytestring::ByteString;
use outpost_model::Now;
use outpost_mqtt::packet::{Connack, Disconnect, Packet, ReasonCode, Version};
use serde::Serialize;

use super::bridges::Kind;
use super::connection::Phase;
use super::{ConnId, Kicked, LogLevel, Shard};

/// Connected clients that are sent elsewhere in one step of a tenth of a second. Fewer: a full node takes long to empty;
/// more: the other server has all of them at once.
pub const MOVED_AT_ONCE_MAX: usize = 100;

const STEP_MS: u64 = 100;

/// Bytes of a server reference. Fewer: a list of servers does not fit; more: each refusal is that long.
pub const REFERENCE_BYTES_MAX: usize = 1_024;

/// Where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// The server reference: `host` or `host:port`, several separated by spaces.
    pub to: String,
    /// They are told to go there from now on (0x9D), not only this time (0x9C).
    pub moved: bool,
}

impl Redirect {
    /// Checked.
    ///
    /// # Errors
    /// What is wrong with the reference.
    pub fn new(to: &str, moved: bool) -> Result<Self, &'static str> {
        let is_server = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic());
        if to.len() > REFERENCE_BYTES_MAX {
            return Err("is longer than 1,024 bytes");
        }
        if !to.split(' ').all(is_server) {
            return Err("is no host:port, nor several separated by one space each");
        }
        Ok(Self { to: to.to_owned(), moved })
    }

    fn reason(&self) -> ReasonCode {
        if self.moved { ReasonCode::ServerMoved } else { ReasonCode::UseAnotherServer }
    }

    fn reference(&self) -> ByteString {
        self.to.as_str().into()
    }
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Redirecting {
    to: Redirect,
    /// Place of the next connection to look at; absent when all that were there have been.
    next: Option<(usize, u64)>,
    moved: u64,
}

/// As people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RedirectInfo {
    /// Where to; absent: clients are served here.
    pub redirect: Option<Redirect>,
    /// Clients that were connected and were sent there.
    pub moved: u64,
    /// Clients that are connected.
    pub connected: u64,
}

impl Shard {
    /// From now on all clients are sent there: those that connect when they have proved who they are, those that are
    /// connected some at a time. Their sessions and queues stay here. `None`: clients are served again.
    pub fn redirect(&mut self, to: Option<Redirect>, now: Now) -> RedirectInfo {
        self.now = now;
        let text = match &to {
            Some(to) => format!("clients are sent to {:?} from now on ({:?})", to.to, to.reason()),
            None => "clients are served here again".to_owned(),
        };
        self.log(LogLevel::Info, text);
        self.redirecting = to.map(|to| Redirecting { to, next: Some((0, now.mono_ms)), moved: 0 });
        self.redirect_timeout();
        self.settle();
        self.redirection()
    }

    /// Whether clients are sent elsewhere, and how far that is.
    pub fn redirection(&self) -> RedirectInfo {
        let state = self.redirecting.as_ref();
        RedirectInfo {
            redirect: state.map(|state| state.to.clone()),
            moved: state.map_or(0, |state| state.moved),
            connected: self.totals.connected as u64,
        }
    }

    /// Sends one client elsewhere, this time; its session stays. Nothing when it has none.
    pub fn move_client(&mut self, client_id: &str, to: &Redirect, now: Now) -> Option<Kicked> {
        self.now = now;
        let session = self.session_of(client_id)?;
        let conn = self.sessions.get(session as usize)?.conn;
        if let Some(conn) = conn {
            self.send_elsewhere(conn, to);
            self.settle();
        }
        let session_ended = self.session_of(client_id).is_none();
        Some(Kicked { disconnected: conn.is_some(), session_ended })
    }

    /// A CONNECT that would come in, while clients are sent elsewhere: what it is told. 3.1.1 only hears 0x03.
    pub(super) fn refusal_elsewhere(&self) -> Option<Connack> {
        let to = &self.redirecting.as_ref()?.to;
        let server_reference = Some(to.reference());
        Some(Connack { reason: to.reason(), server_reference, ..Connack::default() })
    }

    pub(super) fn redirect_due_ms(&self) -> Option<u64> {
        self.redirecting.as_ref()?.next.map(|(_, due_ms)| due_ms)
    }

    pub(super) fn redirect_timeout(&mut self) {
        let now_ms = self.now.mono_ms;
        let Some(state) = &self.redirecting else { return };
        let Some((mut place, due_ms)) = state.next else { return };
        if due_ms > now_ms {
            return;
        }
        let (to, mut moved) = (state.to.clone(), 0);
        while moved < MOVED_AT_ONCE_MAX && place < self.connections.capacity() {
            let conn = self.client_at(place);
            place += 1;
            if let Some(conn) = conn {
                self.send_elsewhere(conn, &to);
                moved += 1;
            }
        }
        let is_over = place >= self.connections.capacity();
        if let Some(state) = &mut self.redirecting {
            state.moved += moved as u64;
            state.next = (!is_over).then_some((place, now_ms + STEP_MS));
        }
    }

    /// A client with a session, at this place of the table. Bridges of this node are none: they have nowhere else to go.
    fn client_at(&self, place: usize) -> Option<ConnId> {
        let connection = self.connections.get(place)?;
        let Phase::Open(session) = connection.phase else { return None };
        let slot = self.sessions.get(session as usize)?;
        let conn = ConnId { index: place as u32, generation: connection.generation() };
        (slot.kind != Kind::Own).then_some(conn)
    }

    fn send_elsewhere(&mut self, conn: ConnId, to: &Redirect) {
        let Some(connection) = self.connection(conn) else { return };
        let Phase::Open(session) = connection.phase else { return };
        if connection.version == Version::V5 && connection.welcomed {
            let disconnect = Disconnect {
                reason: to.reason(),
                server_reference: Some(to.reference()),
                ..Disconnect::default()
            };
            self.send_packet(conn, &Packet::Disconnect(Box::new(disconnect)));
        }
        let reason = super::decisions::name(to.reason());
        self.note_disconnected(session, reason, "sent to another server");
        self.end(conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_reference_is_one_host_or_several() {
        for good in ["gw-2", "gw-2:1883", "10.0.0.2:1883 [2001:db8::2]:1883"] {
            assert!(Redirect::new(good, false).is_ok(), "{good}");
        }
        for bad in ["", " ", "a  b", "a\tb", "gw\u{0}", "höst", &"x".repeat(2_000)] {
            assert!(Redirect::new(bad, true).is_err(), "{bad}");
        }
    }
}
