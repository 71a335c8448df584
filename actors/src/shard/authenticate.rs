//! Extended authentication (MQTT 5, §4.12): AUTH packets to and fro until a method is satisfied, and again later.
//!
//! ```text
//!  CONNECT with a method ─▶ Gate::begin ─▶ Event::Step … Shard::stepped ─▶ AUTH 0x18 ─▶ client's AUTH ─▶ Event::Step … ─▶ CONNACK
//!  AUTH 0x19 (connected) ─▶ the same, other packets going on meanwhile                                            ─▶ AUTH 0x00
//! ```
//! The method's steps run on another thread, one at a time. Before the CONNACK its time to connect bounds the whole exchange.

use bytes::Bytes;
use bytestring::ByteString;
use outpost_mqtt::packet::{Auth, Connack, Connect, Packet, ReasonCode};

use super::connection::Phase;
use super::{ConnId, Event, Shard};
use crate::ports::{Admission, Method, Step};

/// Until its CONNACK a client's packets have at most this. Lower: long proofs and tickets do not fit; higher: strangers
/// make the node keep that much for each of their connections.
const AUTH_PACKET_BYTES: u32 = 16 * 1024;

/// What a connection that authenticates by a method keeps of it.
#[derive(Debug)]
pub(super) struct Authentication {
    /// As the CONNECT has it: it never changes (MQTT-4.12.0-5).
    method: ByteString,
    turn: Turn,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    /// Nobody's: nothing is under way.
    Nobody,
    /// A step is being done.
    Ours,
    /// The client was asked.
    Client(Box<dyn Method>),
    /// It is over, with this for the CONNACK.
    Over(Option<Bytes>),
}

impl Shard {
    /// A CONNECT that names a method. Its connection reads nothing more until the method has answered.
    pub(super) fn begin_authentication(
        &mut self,
        conn: ConnId,
        method: &ByteString,
        connect: Box<Connect>,
    ) {
        let Some(origin) = self.origin(conn) else { return };
        let begun = self.gate.begin(&origin, &connect.client_id, method);
        let packet_max = self.config.session.packet_bytes_max;
        let Some(begun) = begun else {
            let reason = ReasonCode::BadAuthenticationMethod; // MQTT-4.12.0-1
            return self.refuse_client(conn, connect.client_id, reason);
        };
        let Some(connection) = self.connection_mut(conn) else { return };
        // Copied: it must not keep the packet it came in alive.
        let method = ByteString::from(method.to_string());
        let data = connect.auth_data.clone();
        connection.decoder.set_packet_max(AUTH_PACKET_BYTES.min(packet_max));
        connection.rare.set_auth(Authentication { method, turn: Turn::Ours });
        connection.rare.set_connect(connect);
        connection.phase = Phase::Authenticating;
        self.events.push_back(Event::Step { conn, method: begun, data });
    }

    /// AUTH from a client; the codec lets it through only when its CONNECT named a method.
    pub(super) fn handle_auth(&mut self, conn: ConnId, auth: Auth) {
        let Some(connection) = self.connection_mut(conn) else { return };
        let phase = connection.phase;
        let Some(authentication) = connection.rare.auth_mut() else { return };
        if auth.method.as_ref() != Some(&authentication.method) {
            let text = "AUTH with another method than the CONNECT (MQTT-4.12.0-5, MQTT-4.12.1-1)";
            return self.fail_authentication(conn, ReasonCode::ProtocolError, text);
        }
        let turn = std::mem::replace(&mut authentication.turn, Turn::Ours);
        match (auth.reason, turn, phase) {
            (ReasonCode::ContinueAuthentication, Turn::Client(method), _) => {
                if phase == Phase::Challenged {
                    connection.phase = Phase::Authenticating;
                }
                self.events.push_back(Event::Step { conn, method, data: auth.data });
            }
            (ReasonCode::ReAuthenticate, Turn::Nobody | Turn::Over(_), Phase::Open(session)) => {
                self.authenticate_again(conn, session, auth.data);
            }
            _ => self.fail_authentication(
                conn,
                ReasonCode::ProtocolError,
                "an AUTH that is not due (MQTT-4.12.0-2, MQTT-4.12.0-3)",
            ),
        }
    }

    /// Anything but AUTH from a client that was asked: it is to send AUTH or DISCONNECT (MQTT-3.1.2-30).
    pub(super) fn unasked(&mut self, conn: ConnId, packet: &Packet) {
        if matches!(packet, Packet::Disconnect(_)) {
            self.end(conn);
        } else {
            self.fail_authentication(conn, ReasonCode::ProtocolError, "a packet before CONNACK");
        }
    }

    /// The answer to an [`Event::Step`], with the method it is about.
    pub fn stepped(
        &mut self,
        conn: ConnId,
        method: Box<dyn Method>,
        step: Step,
        now: outpost_model::Now,
    ) {
        self.now = now;
        match step {
            Step::Continue(data) => self.ask_client(conn, method, data),
            Step::Done(user, data) => match self.connection(conn).map(|c| c.phase) {
                Some(Phase::Authenticating) => {
                    self.turn(conn, Turn::Over(data));
                    self.admit(conn, Admission::Admit(user));
                }
                Some(Phase::Open(session)) => {
                    let same = self.sessions.get(session as usize).is_some_and(|s| s.user == user);
                    if same {
                        self.turn(conn, Turn::Nobody);
                        self.send_auth(conn, ReasonCode::Success, data);
                    } else {
                        let text = "authenticated again as somebody else";
                        self.fail_authentication(conn, ReasonCode::NotAuthorized, text);
                    }
                }
                _ => {}
            },
            Step::Refused(text) => {
                self.fail_authentication(conn, ReasonCode::NotAuthorized, text);
            }
        }
        self.settle();
        self.resume(conn);
    }

    /// Puts into a CONNACK what belongs there: the method, and the last word of its exchange (MQTT-4.12.0-5).
    pub(super) fn authenticated(&mut self, conn: ConnId, connack: &mut Connack) {
        let packet_max = self.config.session.packet_bytes_max;
        let Some(connection) = self.connection_mut(conn) else { return };
        let Some(auth) = connection.rare.auth_mut() else { return };
        connection.decoder.set_packet_max(packet_max);
        connack.auth_method = Some(auth.method.clone());
        if let Turn::Over(data) = std::mem::replace(&mut auth.turn, Turn::Nobody) {
            connack.auth_data = data;
        }
    }

    fn ask_client(&mut self, conn: ConnId, method: Box<dyn Method>, data: Bytes) {
        let Some(connection) = self.connection_mut(conn) else { return };
        match connection.phase {
            Phase::Authenticating => connection.phase = Phase::Challenged,
            Phase::Open(_) => {}
            Phase::Opening | Phase::Challenged | Phase::Fetching | Phase::Closing => return,
        }
        self.turn(conn, Turn::Client(method));
        self.send_auth(conn, ReasonCode::ContinueAuthentication, Some(data));
    }

    fn authenticate_again(&mut self, conn: ConnId, session: u32, data: Option<Bytes>) {
        let Some(connection) = self.connection(conn) else { return };
        let Some(auth) = connection.rare.auth() else { return };
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let Some(origin) = self.origin(conn) else { return };
        match self.gate.begin(&origin, &slot.client_id, &auth.method) {
            Some(method) => self.events.push_back(Event::Step { conn, method, data }),
            None => self.fail_authentication(
                conn,
                ReasonCode::NotAuthorized,
                "the method is not offered any more",
            ),
        }
    }

    fn turn(&mut self, conn: ConnId, turn: Turn) {
        if let Some(auth) = self.connection_mut(conn).and_then(|c| c.rare.auth_mut()) {
            auth.turn = turn;
        }
    }

    fn send_auth(&mut self, conn: ConnId, reason: ReasonCode, data: Option<Bytes>) {
        let method = self.connection(conn).and_then(|c| c.rare.auth()).map(|a| a.method.clone());
        let auth = Auth { reason, method, data, ..Auth::default() };
        self.send_packet(conn, &Packet::Auth(Box::new(auth)));
    }

    /// Before the CONNACK it is the refusal (MQTT-4.12.0-4), afterwards a DISCONNECT; closed in any case (MQTT-4.12.1-2).
    fn fail_authentication(&mut self, conn: ConnId, reason: ReasonCode, text: &'static str) {
        let Some(connection) = self.connection(conn) else { return };
        match connection.phase {
            Phase::Open(session) => {
                self.log_closing(conn, session, format_args!("{text}"));
                self.close(conn, reason, text);
            }
            Phase::Authenticating | Phase::Challenged => {
                let remote = connection.remote();
                let text = format!("refused the connection from {remote}: {text}");
                self.log(super::LogLevel::Info, text);
                let client_id = self.connection(conn).and_then(|c| c.rare.connect());
                let client_id = client_id.map(|c| c.client_id.clone()).unwrap_or_default();
                self.refuse_client(conn, client_id, reason);
            }
            Phase::Opening | Phase::Fetching | Phase::Closing => {}
        }
    }
}
