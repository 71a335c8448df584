//! A session kept by the server only: what lets a new process go on with `-c`, as mosquitto's clients do.
//!
//! rumqttc refuses a session it holds no record of. This record says there is one and that nothing of it was under way
//! here, which is what a process that has just started knows.

use std::pin::Pin;

use rumqttc_v5 as v5;

type StoreFuture<'a, T> =
    Pin<Box<dyn Future<Output = Result<T, v5::SessionStoreError>> + Send + 'a>>;

/// The version of records that rumqttc 0.34 writes; it refuses others.
const FORMAT_VERSION: u16 = 1;

/// The empty record.
#[derive(Debug)]
pub(super) struct Kept {
    /// Messages of QoS 1 and 2 under way to the verb at most. Fewer: a slow link waits for each answer; more: memory, and
    /// more that comes again after a cut.
    pub inflight_max: u16,
    pub session_expiry_s: Option<u32>,
}

impl v5::SessionStore for Kept {
    fn load<'a>(
        &'a self,
        key: &'a v5::SessionStoreKey,
    ) -> StoreFuture<'a, Option<v5::PersistedSession>> {
        let session = v5::PersistedSession {
            format_version: FORMAT_VERSION,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: self.session_expiry_s,
            outgoing_inflight_upper_limit: Some(self.inflight_max),
            ack_mode: v5::PersistedAckMode::Automatic,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(async move { Ok(Some(session)) })
    }

    fn save<'a>(
        &'a self,
        _: &'a v5::SessionStoreKey,
        _: &'a v5::PersistedSession,
    ) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _: &'a v5::SessionStoreKey) -> StoreFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}
