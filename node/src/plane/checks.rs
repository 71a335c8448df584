//! Checks of credentials: they take long on purpose, so they are made elsewhere, a few at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use outpost_actors::ports::{Admission, Credentials, Method, Origin, Step};
use outpost_actors::shard::ConnId;

use super::{Command, Plane};

/// How long a password may wait for its check. Longer: clients that have given up are checked before those that still
/// wait; shorter: the last of a fleet have to come again.
const PASSWORD_WAIT_MAX: Duration = Duration::from_secs(5);

impl Plane {
    /// Has credentials checked elsewhere. The answer is for this thread only: the next one gives the same numbers to
    /// other connections.
    pub(super) fn authenticate(
        &self,
        conn: ConnId,
        origin: Origin,
        client_id: bytestring::ByteString,
        credentials: Credentials,
    ) {
        let Some(commands) = self.handle.commands() else { return };
        let (gate, checks) = (Arc::clone(&self.gate), Arc::clone(&self.checks));
        let handle = self.handle.clone();
        self.control.spawn(async move {
            let turn = tokio::time::timeout(PASSWORD_WAIT_MAX, checks.acquire_owned()).await;
            // Not checked in time: the connection ends with its time to connect.
            let Ok(Ok(turn)) = turn else {
                handle.drops().late_checks.fetch_add(1, Ordering::Relaxed);
                return;
            };
            let check = tokio::task::spawn_blocking(move || {
                let admission = gate.check_slowly(&origin, &client_id, &credentials);
                drop(turn);
                admission
            });
            let admission = check.await.unwrap_or(Admission::NotAuthorized);
            // When the data thread is down the connection is too.
            let _ = commands.send(Command::Admitted(conn, admission)).await;
        });
    }

    /// Has a step of an authentication method done elsewhere, as one of the checks.
    pub(super) fn step(&self, conn: ConnId, mut method: Box<dyn Method>, data: Option<Bytes>) {
        let Some(commands) = self.handle.commands() else { return };
        let (checks, handle) = (Arc::clone(&self.checks), self.handle.clone());
        self.control.spawn(async move {
            let turn = tokio::time::timeout(PASSWORD_WAIT_MAX, checks.acquire_owned()).await;
            let Ok(Ok(turn)) = turn else {
                handle.drops().late_checks.fetch_add(1, Ordering::Relaxed);
                let late = Step::Refused("the node had no time to check it");
                let _ = commands.send(Command::Stepped(conn, method, late)).await;
                return;
            };
            let done = tokio::task::spawn_blocking(move || {
                let step = method.step(data.as_deref());
                drop(turn);
                (method, step)
            });
            // A method that panicked leaves nothing to answer with: before CONNACK the connection ends with its time.
            if let Ok((method, step)) = done.await {
                let _ = commands.send(Command::Stepped(conn, method, step)).await;
            }
        });
    }
}
