//! Access rules that are others than before. They change with a start only; what a session was granted under the old ones
//! is on disk, so it is asked for again then: subscriptions at once, all of them, and what is queued when it is read.

use outpost_model::QoS;
use outpost_mqtt::window::Delivery;
use outpost_store::{ReadError, Space};

use super::{LogLevel, Shard};
use crate::ledger::Drop;
use crate::ports::Action;

/// Key in `Space::Meta` of the rules under which all subscriptions on disk are granted.
const RULES_KEY: &[u8] = b"rules_epoch";

/// Subscriptions taken away that are in the log one by one. Fewer: `outpost why` has to be asked; more: a mistake in the
/// rules floods the log.
const LOGGED: usize = 20;

impl Shard {
    /// Takes away the subscriptions that the rules do not allow any more; nothing to do when they are the same as before.
    pub(super) fn check_rights(&mut self) -> Result<(), ReadError> {
        let before = self.journal.store().get(Space::Meta, RULES_KEY)?;
        let before = before.and_then(|value| value.as_ref().try_into().ok());
        let epoch = self.gate.epoch();
        if before.map_or(0, u64::from_be_bytes) == epoch {
            return Ok(());
        }
        let revoked = self.not_allowed();
        let count = revoked.len();
        for (index, (session, filter)) in revoked.into_iter().enumerate() {
            self.remove_subscription(session, &filter);
            self.note_revoked(session, &filter);
            if index < LOGGED {
                let client_id = &self.sessions[session as usize].client_id;
                let text = format!(
                    "the access rules have changed: client {client_id:?} may not subscribe to {filter:?} any more; its \
                     subscription is gone, and what was queued of topics it may not read will be dropped"
                );
                self.log(LogLevel::Warn, text);
            }
        }
        if count > LOGGED {
            let more = count - LOGGED;
            self.log(LogLevel::Warn, format!("and {more} more subscriptions were taken away so"));
        }
        // In one batch with what goes: after a crash it is done anew, or it is done.
        let epoch = epoch.to_be_bytes().to_vec();
        self.journal.put(Space::Meta, RULES_KEY.to_vec(), epoch.into());
        Ok(())
    }

    fn not_allowed(&self) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        for (session, slot) in &self.sessions {
            let who = slot.identity();
            let filters = slot.subscriptions.iter().map(|(filter, _)| &**filter);
            let refused = filters
                .filter(|filter| !self.gate.allows(&who, Action::Subscribe, pattern_of(filter)));
            all.extend(refused.map(|filter| (session as u32, filter.to_owned())));
        }
        all
    }

    /// A delivery that was read from disk, or nothing when its receiver may not have it any more. A granted filter has no
    /// topic that is refused, so nothing that came by a subscription which is still there is dropped.
    pub(super) fn still_allowed(
        &mut self,
        session: u32,
        (delivery, released): (Delivery, bool),
        dup: bool,
    ) -> Option<(Delivery, bool)> {
        let who = self.sessions.get(session as usize)?.identity();
        if released || self.gate.allows(&who, Action::Subscribe, &delivery.message.topic) {
            return Some((delivery, released));
        }
        if dup && delivery.qos == QoS::ExactlyOnce {
            // It may be half over, and both sides know its packet id: it goes on, without the message.
            self.write_released(session, &delivery);
            return Some((delivery, true));
        }
        self.drop_for(session, Drop::Revoked, 1, &delivery.message.topic);
        self.reroute(&delivery, false);
        let cost_bytes = delivery.message.cost_bytes() as u64;
        self.forget_delivery(session, delivery.place, delivery.message.id, cost_bytes);
        None
    }
}

/// What a filter matches, without its share group.
fn pattern_of(filter: &str) -> &str {
    let shared = filter.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
    shared.map_or(filter, |(_, pattern)| pattern)
}
