//! Retained messages that new subscriptions are still owed: they go out as the client and its queue have room.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use outpost_model::{QoS, TopicFilter};
use outpost_mqtt::packet::PacketId;

use super::Shard;
use super::pass::Parcel;
use super::sys::is_sys;

/// Retained messages handed to a session before it gets to run. More would not fit its mailbox.
const RETAINED_AT_ONCE: usize = 64;

/// What one subscription is still owed.
#[derive(Debug)]
pub(super) struct RetainedDue {
    filter: TopicFilter,
    qos: QoS,
    id: Option<u32>,
    /// The last topic looked at.
    after: String,
    /// The SUBSCRIBE that asked for it, until its SUBACK has left: permitted before it (MQTT 5, §3.8.4), but clients
    /// are surprised.
    unanswered: Option<PacketId>,
}

impl RetainedDue {
    /// Everything that matches.
    pub(super) fn new(
        filter: TopicFilter,
        qos: QoS,
        id: Option<u32>,
        unanswered: Option<PacketId>,
    ) -> Self {
        Self { filter, qos, id, after: String::new(), unanswered }
    }
}

/// What all sessions are owed. One without room is not looked at until something has changed for it: there may be
/// thousands of them.
#[derive(Debug, Default)]
pub(super) struct RetainedDues {
    of_session: BTreeMap<u32, VecDeque<RetainedDue>>,
    /// Sessions that may have room.
    ready: BTreeSet<u32>,
}

impl RetainedDues {
    /// A subscription is owed something, from the beginning if it was before.
    pub(super) fn push(&mut self, session: u32, due: RetainedDue) {
        let dues = self.of_session.entry(session).or_default();
        dues.retain(|other| other.filter != due.filter);
        dues.push_back(due);
        self.ready.insert(session);
    }

    /// A subscription is owed nothing more.
    pub(super) fn forget(&mut self, session: u32, filter: &str) {
        if let Some(dues) = self.of_session.get_mut(&session) {
            dues.retain(|due| due.filter.as_str() != filter);
            if dues.is_empty() {
                self.forget_all(session);
            }
        }
    }

    /// A session is owed nothing more.
    pub(super) fn forget_all(&mut self, session: u32) {
        self.of_session.remove(&session);
        self.ready.remove(&session);
    }

    /// Nobody is owed anything.
    pub(super) fn is_empty(&self) -> bool {
        self.of_session.is_empty()
    }

    /// Somebody may have room for what is owed.
    pub(super) fn is_anyone_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A session may have room now. True when that is news to one that is owed something.
    pub(super) fn wake(&mut self, session: u32) -> bool {
        self.of_session.contains_key(&session) && self.ready.insert(session)
    }

    /// The SUBACK of this SUBSCRIBE, or with `None` of none, stands in the way any more.
    pub(super) fn answered(&mut self, session: u32, packet_id: Option<PacketId>) {
        let Some(dues) = self.of_session.get_mut(&session) else { return };
        for due in dues.iter_mut() {
            if packet_id.is_none() || due.unanswered == packet_id {
                due.unanswered = None;
            }
        }
        self.ready.insert(session);
    }

    /// What is to go out next, for the first session that `has_room`; the others wait until they are woken.
    fn take(&mut self, has_room: impl Fn(u32) -> bool) -> Option<(u32, RetainedDue)> {
        while let Some(session) = self.ready.first().copied() {
            let dues = self.of_session.get_mut(&session).filter(|_| has_room(session));
            let is_answered = |due: &RetainedDue| due.unanswered.is_none();
            let next = dues.and_then(|dues| dues.remove(dues.iter().position(is_answered)?));
            match next {
                Some(due) => return Some((session, due)),
                None => self.ready.remove(&session),
            };
        }
        None
    }

    fn put_back(&mut self, session: u32, due: RetainedDue) {
        self.of_session.entry(session).or_default().push_front(due);
    }
}

impl Shard {
    /// Sends some retained messages to a session that is owed them and has room. `false`: there is none.
    pub(super) fn send_retained_due(&mut self) -> bool {
        if !self.retained_due.is_anyone_ready() {
            return false;
        }
        let mut dues = std::mem::take(&mut self.retained_due);
        let taken = dues.take(|session| self.has_retained_turn(session));
        self.retained_due = dues;
        let Some((session, mut due)) = taken else { return false };
        let (messages, last) = if is_sys(due.filter.pattern()) {
            self.sys.matching(&due.filter, &due.after, RETAINED_AT_ONCE)
        } else {
            self.retained.matching(&due.filter, &due.after, RETAINED_AT_ONCE)
        };
        let wall_ms = self.now.wall_ms;
        for message in messages {
            if message.expiry_left_s(wall_ms) != Some(0) {
                let qos = due.qos.min(message.qos);
                let ids = due.id.as_slice();
                let parcel = Parcel { message: &message, qos, retain: true, ids, waits: false };
                self.enqueue(session, parcel, None);
            }
        }
        // A policy may have cut the client off meanwhile, and its session may have ended with that.
        match last.filter(|_| self.sessions.contains(session as usize)) {
            Some(last) => {
                due.after = last;
                self.retained_due.put_back(session, due);
            }
            None => self.retained_due.forget(session, due.filter.as_str()),
        }
        true
    }

    fn has_retained_turn(&self, session: u32) -> bool {
        self.sessions.get(session as usize).is_none_or(|slot| {
            !slot.full && slot.conn.is_none_or(|c| self.out_len(c) <= self.config.out_bytes_max / 4)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(filter: &str) -> RetainedDue {
        let filter = TopicFilter::new(filter.to_owned()).expect("a filter");
        RetainedDue::new(filter, QoS::AtMostOnce, None, None)
    }

    #[test]
    fn who_has_no_room_is_looked_at_again_when_something_has_changed() {
        let mut dues = RetainedDues::default();
        (0..1_000).for_each(|session| dues.push(session, due("a")));
        let looked = std::cell::Cell::new(0);
        let no_room = |_| {
            looked.set(looked.get() + 1);
            false
        };
        assert!(dues.take(no_room).is_none() && dues.take(no_room).is_none());
        assert_eq!(looked.get(), 1_000, "each of them once");
        dues.wake(7);
        dues.wake(5_000);
        assert_eq!(dues.take(|_| true).map(|(session, _)| session), Some(7));
        assert!(dues.take(|_| true).is_none());
    }

    #[test]
    fn what_a_suback_has_not_announced_waits_for_it() {
        let packet_id = PacketId::new(7);
        let mut dues = RetainedDues::default();
        dues.push(1, RetainedDue { unanswered: packet_id, ..due("a") });
        dues.push(1, due("b"));
        let took =
            |dues: &mut RetainedDues| dues.take(|_| true).map(|(_, due)| due.filter.to_string());
        assert_eq!((took(&mut dues).as_deref(), took(&mut dues)), (Some("b"), None));
        dues.answered(1, PacketId::new(8));
        assert_eq!(took(&mut dues), None);
        dues.answered(1, packet_id);
        assert_eq!(took(&mut dues).as_deref(), Some("a"));
    }

    #[test]
    fn a_subscription_is_owed_everything_once() {
        let mut dues = RetainedDues::default();
        for filter in ["a", "b", "a"] {
            dues.push(1, due(filter));
        }
        dues.forget(1, "b");
        let (session, due) = dues.take(|_| true).expect("one is left");
        assert_eq!((session, due.filter.as_str()), (1, "a"));
        dues.forget(1, "a");
        assert!(dues.of_session.is_empty() && dues.ready.is_empty());
    }
}
