//! CONNECT: who is it, may it come in, is there a session already (MQTT 5, §3.1.4, §4.9 of 3.1.1 alike).

use std::sync::Arc;

use bytestring::ByteString;
use outpost_flow::Pressure;
use outpost_mqtt::alias::SentAliases;
use outpost_mqtt::error::DecodeError;
use outpost_mqtt::packet::{Connack, Connect, Packet, ReasonCode, Version};
use outpost_mqtt::session::keep_alive_override;

use super::bridges::Kind;
use super::connection::{Connection, Phase};
use super::slot::Moment;
use super::{CellMsg, ConnId, Event, Hold, LogLevel, Shard};
use crate::ports::{Action, Admission, BRIDGE_CLIENTS, Credentials, Identity};

impl Shard {
    pub(super) fn connect(&mut self, conn: ConnId, mut connect: Box<Connect>) {
        self.totals.connects += 1;
        let alias_max = self.config.session.topic_alias_out_max;
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.version = connect.version;
        connection.packet_max = connect.packet_max.unwrap_or(u32::MAX);
        let aliases = SentAliases::new(connect.topic_alias_max.unwrap_or(0).min(alias_max));
        if let Some(aliases) = aliases {
            connection.rare.set_aliases(aliases);
        }
        connection.wants_reasons = connect.request_problem_info != Some(false);
        if connect.client_id.is_empty() {
            // MQTT-3.1.3-8 of 3.1.1; in 3.1 an id has at least one character (§3.1).
            let may_choose = connect.version == Version::V5
                || (connect.version == Version::V4 && connect.clean_start);
            if !may_choose {
                return self.refuse_client(
                    conn,
                    connect.client_id,
                    ReasonCode::ClientIdentifierNotValid,
                );
            }
            connect.client_id = self.new_client_id();
            if let Some(connection) = self.connection_mut(conn) {
                connection.assigned = true;
            }
        } else if connect.client_id.len() > super::NAME_BYTES_MAX {
            return self.refuse_client(
                conn,
                connect.client_id,
                ReasonCode::ClientIdentifierNotValid,
            );
        } else {
            // Copied: the id must not keep the packet it came in alive.
            connect.client_id = ByteString::from(&*connect.client_id);
        }
        if connect.client_id.starts_with(BRIDGE_CLIENTS) && !self.is_own(conn) {
            return self.refuse_client(conn, connect.client_id, ReasonCode::NotAuthorized);
        }
        if let Some(method) = connect.auth_method.clone() {
            return self.begin_authentication(conn, &method, connect);
        }
        let Some(origin) = self.origin(conn) else { return };
        let credentials =
            Credentials { username: connect.username.clone(), password: connect.password.clone() };
        let client_id = connect.client_id.clone();
        let admission = self.gate.admit(&origin, &client_id, &credentials);
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.phase = Phase::Authenticating;
        if admission == Admission::Slow {
            connection.rare.set_connect(connect);
            self.events.push_back(Event::Authenticate { conn, origin, client_id, credentials });
        } else {
            self.admit_client(conn, connect, admission);
        }
    }

    /// The answer to an [`Event::Authenticate`].
    pub fn admitted(&mut self, conn: ConnId, admission: Admission, now: outpost_model::Now) {
        self.now = now;
        self.admit(conn, admission);
        self.settle();
        self.resume(conn);
    }

    pub(super) fn admit(&mut self, conn: ConnId, admission: Admission) {
        let Some(connection) = self.connection_mut(conn) else { return };
        if connection.phase != Phase::Authenticating {
            return;
        }
        let Some(connect) = connection.rare.take_connect() else { return };
        self.admit_client(conn, connect, admission);
    }

    fn admit_client(&mut self, conn: ConnId, connect: Box<Connect>, admission: Admission) {
        let client_id = connect.client_id.clone();
        match admission {
            Admission::Admit(user) => self.enter(conn, connect, user),
            Admission::BadCredentials => {
                self.refuse_client(conn, client_id, ReasonCode::BadUserNameOrPassword)
            }
            Admission::NotAuthorized | Admission::Slow => {
                self.refuse_client(conn, client_id, ReasonCode::NotAuthorized)
            }
        }
    }

    /// The client is admitted: takes over, resumes or makes its session.
    pub(super) fn enter(
        &mut self,
        conn: ConnId,
        mut connect: Box<Connect>,
        user: Option<Arc<str>>,
    ) {
        let who = Identity { client_id: connect.client_id.clone(), user };
        let is_own = self.is_own(conn);
        if let Some(connack) = self.refusal_elsewhere().filter(|_| !is_own) {
            self.note_connect_refused(conn, who.client_id, connack.reason);
            return self.refuse_with(conn, connack);
        }
        self.take_bridge_will(conn, &mut connect);
        if let Some(will) = &connect.will
            && !self.may_publish(&who, &will.topic)
        {
            return self.refuse_client(conn, who.client_id, ReasonCode::NotAuthorized);
        }
        if let Some(will) = &connect.will
            && !self.fits_format(Some(&will.properties), &will.payload)
        {
            return self.refuse_client(conn, who.client_id, ReasonCode::PayloadFormatInvalid);
        }
        let mut existing = self.session_of(&who.client_id);
        let is_new = existing.is_none();
        if self.journal.failed().is_some() {
            // Before anything is taken from who is there: what would have to be written never will be.
            let slot = existing.and_then(|session| self.sessions.get(session as usize));
            let is_kept = slot.is_some_and(|slot| slot.durable);
            if is_kept || asks_s(&connect) > 0 || connect.will.is_some() {
                return self.refuse_client(conn, who.client_id, ReasonCode::ServerUnavailable);
            }
        }
        if self.journal.stalled().is_some() {
            let slot = existing.and_then(|session| self.sessions.get(session as usize));
            if Self::cannot_keep(slot, connect.clean_start, asks_s(&connect)) {
                return self.refuse(conn, ReasonCode::ServerUnavailable);
            }
        }
        if let Some(session) = existing {
            let slot = &self.sessions[session as usize];
            if slot.user != who.user {
                let remote = self.connection(conn).map(Connection::remote);
                let client_id = &who.client_id;
                self.log(LogLevel::Warn, format!("{remote:?} asked for the session of client {client_id:?}, which belongs to another user; refused"));
                return self.refuse_client(conn, who.client_id, ReasonCode::NotAuthorized);
            }
        }
        if !is_own && self.is_foreign(&who) {
            let text = format!(
                "client {:?} has a session of another user at another node; refused",
                who.client_id
            );
            self.log(LogLevel::Warn, text);
            return self.refuse_client(conn, who.client_id, ReasonCode::NotAuthorized);
        }
        if let Some(session) = existing {
            // It comes in: a CONNECT that is refused leaves alone who is there.
            let slot = &self.sessions[session as usize];
            if let Some(old) = slot.conn {
                self.close(
                    old,
                    ReasonCode::SessionTakenOver,
                    "another connection uses this client id",
                );
                self.settle();
                existing = self.session_of(&who.client_id);
            }
        }
        let stays = asks_s(&connect) > 0;
        if is_new && self.has_no_place() {
            // Before it is taken from where it is.
            return self.refuse_client(conn, who.client_id, ReasonCode::QuotaExceeded);
        }
        if !connect.clean_start {
            let elsewhere = self.claim(&who, false, stays);
            let moving = existing.filter(|session| self.is_moving(*session));
            if let Some(session) = moving {
                self.stay(session, !elsewhere.is_empty());
            }
            if !elsewhere.is_empty() || moving.is_some() {
                return self.wait_for_session(conn, connect, who.user, elsewhere);
            }
        }
        let mut wait = false;
        if let (Some(session), true) = (existing, connect.clean_start) {
            wait = self.journal.failed().is_none(); // or a crash could bring it back
            self.end_session(session);
            existing = None;
        }
        if connect.clean_start {
            self.claim(&who, true, stays);
        }
        let session = match existing {
            Some(session) if self.is_session_down(session) => {
                return self.refuse_client(conn, who.client_id, ReasonCode::ServerBusy);
            }
            Some(session) => session,
            None => self.new_session(&who),
        };
        self.welcome(conn, session, connect, existing.is_some(), wait);
    }

    /// No session more. Who has one here may return: it takes messages away.
    fn has_no_place(&self) -> bool {
        self.budget.pressure() >= Pressure::Closed
            || self.sessions.len() >= self.config.sessions_max
    }

    fn welcome(
        &mut self,
        conn: ConnId,
        session: u32,
        connect: Box<Connect>,
        session_present: bool,
        wait: bool,
    ) {
        let kind = self.kind_of(conn, &connect);
        // A bridge of this node lives as long as the configuration says.
        let is_own = kind == Kind::Own;
        let expiry_max = if is_own { u32::MAX } else { self.config.session.session_expiry_s_max };
        let asked_s = asks_s(&connect);
        let expiry_s = asked_s.min(expiry_max);
        let keep_alive_s = keep_alive_override(connect.keep_alive_s, &self.config.session)
            .unwrap_or(connect.keep_alive_s);
        let now_ms = self.now.mono_ms;
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.phase = Phase::Open(session);
        connection.keep_alive_s = if is_own { 0 } else { keep_alive_s };
        let assigned = std::mem::take(&mut connection.assigned);
        self.connection_wheel.set(conn.index, now_ms + self.config.connect_timeout_ms);
        self.count_connected();
        let slot = &mut self.sessions[session as usize];
        // QoS 2 ids may be used again only when their last use is durably over: an answer to an id that is not known any
        // more says just that.
        let is_kept = slot.is_kept(expiry_s, now_ms) && self.journal.is_synced(slot.ids_mark);
        slot.expiry_kept &= is_kept;
        (slot.conn, slot.kind) = (Some(conn), kind);
        self.retry_blocked |= self.water.all.is_full(); // who is here has room though the node's quota is used up
        slot.expires_ms = Moment::NEVER;
        self.twin_up(session);
        self.tell_live(session, true);
        self.expect_after_connect(session);
        self.session_wheel.cancel(session);
        self.set_expiry(session, expiry_s);
        self.write_session(session, None);
        let keeps_will = self.set_will(session, connect.will.as_deref());
        let slot = &self.sessions[session as usize];
        let mut connack = Connack {
            session_present,
            session_expiry_s: (connect.version == Version::V5 && expiry_s != asked_s)
                .then_some(expiry_s),
            assigned_client_id: (assigned && connect.version == Version::V5)
                .then(|| slot.client_id()),
            response_info: (connect.request_response_info == Some(true))
                .then(|| self.response_information(&slot.identity()))
                .flatten(),
            ..Connack::default()
        };
        let number = slot.number;
        self.authenticated(conn, &mut connack);
        let (slot, connack) = (&self.sessions[session as usize], Box::new(connack));
        // What stands on disk of a session that comes back says enough when the disk takes no more.
        let may_pass = self.journal.stalled().is_some() && (slot.on_disk || !slot.durable);
        if (((slot.durable && !is_kept) || keeps_will) && !may_pass) || wait {
            self.sessions[session as usize].held += 1;
            self.journal.hold(Hold::Welcome { session, number, conn, connect, connack });
        } else {
            self.welcome_now(session, conn, connect, connack);
        }
    }

    /// What CONNACK says is durable: it leaves, and everything else may follow.
    pub(super) fn welcome_now(
        &mut self,
        session: u32,
        conn: ConnId,
        connect: Box<Connect>,
        connack: Box<Connack>,
    ) {
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let cell = slot.cell;
        if slot.conn != Some(conn) {
            return;
        }
        self.sessions[session as usize].on_disk |= self.sessions[session as usize].durable;
        self.connection_wheel.cancel(conn.index);
        self.touch(conn);
        self.send(cell, CellMsg::Connect(connect, connack));
    }

    /// The same for a client that has said its id: people may ask why.
    pub(super) fn refuse_client(
        &mut self,
        conn: ConnId,
        client_id: ByteString,
        reason: ReasonCode,
    ) {
        self.note_connect_refused(conn, client_id, reason);
        self.refuse(conn, reason);
    }

    /// CONNACK with a refusal, then the end.
    pub(super) fn refuse(&mut self, conn: ConnId, reason: ReasonCode) {
        self.refuse_with(conn, Connack { reason, ..Connack::default() });
    }

    fn refuse_with(&mut self, conn: ConnId, connack: Connack) {
        self.ledger.refused_connects += 1;
        self.send_packet(conn, &Packet::Connack(Box::new(connack)));
        self.end(conn);
    }

    /// The first bytes were no CONNECT, or a bad one: answered where the standard has an answer (MQTT-3.1.4-1).
    pub(super) fn refuse_connect_bytes(&mut self, conn: ConnId, error: &DecodeError, hint: &str) {
        let Some(connection) = self.connection(conn) else { return };
        let remote = connection.remote();
        if matches!(error, DecodeError::UnsupportedVersion { .. }) {
            self.refuse(conn, ReasonCode::UnsupportedProtocolVersion);
        } else {
            self.end(conn);
        }
        self.log(LogLevel::Info, format!("refused the connection from {remote}: {error}{hint}"));
    }

    /// What a client's response topics are to begin with, if it may read there (MQTT 5, §3.2.2.3.15, §4.10.1).
    fn response_information(&self, who: &Identity) -> Option<ByteString> {
        let template = self.config.response_information.as_deref()?;
        let user = who.user.as_deref();
        let used = [("%c", Some(&*who.client_id)), ("%u", user)];
        let mut prefix = template.to_owned();
        for (place, name) in used.into_iter().filter(|(place, _)| template.contains(place)) {
            // Put in as text, such a name would reach further than one level of the client's own.
            let name =
                name.filter(|name| !name.is_empty() && !name.contains(['+', '#', '/', '%', '$']))?;
            prefix = prefix.replace(place, name);
        }
        let reads = self.gate.allows(who, Action::Subscribe, &format!("{prefix}/#"));
        reads.then(|| prefix.into())
    }

    fn new_client_id(&mut self) -> ByteString {
        let id = self.next_message_id();
        format!("auto-{:08x}-{:x}", id.node.0 >> 32, id.seq).into()
    }
}

/// How long a client wants its session to outlive the connection, in seconds.
fn asks_s(connect: &Connect) -> u32 {
    match connect.version {
        Version::V5 => connect.session_expiry_s.unwrap_or(0),
        _ if connect.clean_start => 0,
        _ => u32::MAX,
    }
}

/// What a stranger's first bytes are, when they are a well-known something else.
pub(super) fn looks_like(bytes: &[u8]) -> &'static str {
    let begins = |with: &[u8]| bytes.starts_with(with);
    if begins(&[0x16, 0x03]) {
        "; it looks like TLS, and this listener is plain TCP"
    } else if [&b"GET "[..], b"POST ", b"HEAD ", b"PUT "].into_iter().any(begins) {
        "; it looks like HTTP, which has a port of its own (listen.http.bind)"
    } else {
        ""
    }
}
