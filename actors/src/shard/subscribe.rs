//! SUBSCRIBE and UNSUBSCRIBE: subscriber cells, share groups, and the retained messages a new subscription is owed.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytestring::ByteString;
use outpost_flow::Pressure;
use outpost_membership::PeerFrame;
use outpost_model::{Message, QoS, TopicFilter};
use outpost_mqtt::packet::{ReasonCode, RetainHandling, Subscribe, SubscribeOptions, Unsubscribe};
use outpost_store::Space;

use super::channel::{Owner, Subscriber};
use super::pass::Parcel;
use super::retained_due::RetainedDue;
use super::sys::is_sys;
use super::{Cell, CellMsg, Route, Shard};
use crate::cell::CellId;
use crate::ledger::Drop;
use crate::ports::Action;
use crate::record::{self, SubscriptionRecord};

/// A share group: its members take turns (MQTT 5, §4.8.2).
#[derive(Debug)]
pub(super) struct Group {
    name: (String, String),
    members: Vec<Member>,
    next: usize,
}

#[derive(Debug, Clone)]
struct Member {
    session: u32,
    qos: QoS,
    retain_as_published: bool,
    id: Option<u32>,
}

impl Shard {
    pub(super) fn subscribe(&mut self, session: u32, request: Subscribe) {
        let mut retained = Vec::new();
        let mut reasons = Vec::with_capacity(request.filters.len());
        for (filter, options) in request.filters {
            let options = self.options_of_bridge(session, options);
            reasons.push(
                match self.add_subscription(session, &filter, options, request.subscription_id) {
                    Ok((filter, is_new)) => {
                        if filter.share_group().is_none()
                            && wants_retained(options.retain_handling, is_new)
                            && self.may_be_retained(&filter)
                        {
                            retained.push((filter, options));
                        }
                        granted(options.qos)
                    }
                    Err(reason) => {
                        self.note_subscribe_refused(session, &filter, reason);
                        reason
                    }
                },
            );
        }
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let (cell, unanswered) = (slot.cell, slot.conn.map(|_| request.packet_id));
        self.send(cell, CellMsg::Subscribed(request.packet_id, reasons, false));
        if retained.iter().any(|(filter, _)| is_sys(filter.pattern())) {
            self.refresh_sys_for_subscriber();
        }
        for (filter, options) in retained {
            let (qos, id) = (options.qos, request.subscription_id);
            let due = RetainedDue::new(filter, qos, id, unanswered);
            self.retained_due.push(session, due);
        }
    }

    /// Nearly always nothing is: who subscribes needs not be kept in mind for it.
    fn may_be_retained(&self, filter: &TopicFilter) -> bool {
        let is_found = || !filter.is_exact() || self.retained.get(filter.pattern()).is_some();
        is_sys(filter.pattern()) || (self.retained.len() > 0 && is_found())
    }

    fn add_subscription(
        &mut self,
        session: u32,
        text: &ByteString,
        options: SubscribeOptions,
        id: Option<u32>,
    ) -> Result<(TopicFilter, bool), ReasonCode> {
        let filter = TopicFilter::new(&**text).map_err(|_| ReasonCode::TopicFilterInvalid)?;
        if text.len() > super::NAME_BYTES_MAX {
            return Err(ReasonCode::TopicFilterInvalid);
        }
        let Some(slot) = self.sessions.get(session as usize) else {
            return Err(ReasonCode::UnspecifiedError);
        };
        if !self.gate.allows(&slot.identity(), Action::Subscribe, filter.pattern()) {
            return Err(ReasonCode::NotAuthorized);
        }
        let is_new = slot.subscriptions.get(filter.as_str()).is_none();
        let closed = self.budget.pressure() >= Pressure::Closed;
        if is_new && (closed || slot.subscriptions.len() >= self.config.subscriptions_max) {
            return Err(ReasonCode::QuotaExceeded);
        }
        if slot.durable && self.journal.stalled().is_some() {
            return Err(ReasonCode::QuotaExceeded); // it would have to be written down
        }
        if is_new {
            self.insert_subscription(session, &filter, options, id);
        } else {
            self.change_subscription(session, &filter, options, id);
        }
        self.write_subscription(session, filter.as_str(), options, id);
        Ok((filter, is_new))
    }

    /// Puts a subscription into the tables; the disk is the caller's.
    pub(super) fn insert_subscription(
        &mut self,
        session: u32,
        filter: &TopicFilter,
        options: SubscribeOptions,
        id: Option<u32>,
    ) {
        let name: Arc<str> = filter.as_str().into();
        let owner = Owner::Subscriber { session, options, id: id.and_then(NonZeroU32::new) };
        let cell = self.cells.spawn(owner, Cell::Subscriber(Subscriber::default()));
        let slot = &mut self.sessions[session as usize];
        let durable = slot.durable;
        slot.subscriptions.insert(Arc::clone(&name), cell);
        if let Some(group) = filter.share_group() {
            let member = Member {
                session,
                qos: options.qos,
                retain_as_published: options.retain_as_published,
                id,
            };
            self.join_group(group, filter.pattern(), member);
        } else {
            self.table.insert(&name, Route::Subscriber(cell));
        }
        self.sys_wanted(filter.pattern(), true);
        self.table_epoch += 1;
        self.retry_blocked |= self.full_sessions > 0; // a new member of a group may have room
        self.tell_interest(&name, options.qos, durable, true);
        if self.sessions[session as usize].conn.is_some() {
            self.tell_live_filter(&name, true);
        }
    }

    /// A filter subscribed to again: nothing in between may be missed (MQTT-3.8.4-3), here or at a peer.
    fn change_subscription(
        &mut self,
        session: u32,
        filter: &TopicFilter,
        options: SubscribeOptions,
        id: Option<u32>,
    ) {
        let name = filter.as_str();
        let slot = &self.sessions[session as usize];
        let durable = slot.durable;
        let Some(cell) = slot.subscriptions.get(name) else { return };
        let Some(Owner::Subscriber { options: old, id: old_id, .. }) = self.cells.owner_mut(cell)
        else {
            return;
        };
        let old_qos = std::mem::replace(old, options).qos;
        *old_id = id.and_then(NonZeroU32::new);
        if let Some(share) = filter.share_group()
            && let Some(group) = self.group_id(share, filter.pattern())
            && let Some(group) = self.groups.get_mut(&group)
        {
            for member in group.members.iter_mut().filter(|m| m.session == session) {
                member.qos = options.qos;
                member.retain_as_published = options.retain_as_published;
                member.id = id;
            }
        }
        self.table_epoch += 1;
        self.tell_interest(name, options.qos, durable, true);
        self.tell_interest(name, old_qos, durable, false);
    }

    pub(super) fn unsubscribe(&mut self, session: u32, request: Unsubscribe) {
        let mut reasons = Vec::with_capacity(request.filters.len());
        for filter in request.filters {
            if !self.moves.is_empty() {
                self.tell_unsubscribed(session, &filter);
            }
            reasons.push(if self.remove_subscription(session, &filter) {
                ReasonCode::Success
            } else {
                ReasonCode::NoSubscriptionExisted
            });
        }
        let Some(slot) = self.sessions.get(session as usize) else { return };
        let cell = slot.cell;
        self.send(cell, CellMsg::Subscribed(request.packet_id, reasons, true));
    }

    pub(super) fn remove_subscription(&mut self, session: u32, filter: &str) -> bool {
        let Some(slot) = self.sessions.get_mut(session as usize) else { return false };
        let Some((_, cell)) = slot.subscriptions.remove(filter) else { return false };
        let durable = slot.durable;
        let qos = self.subscription_of(cell).map_or(QoS::AtMostOnce, |(options, _)| options.qos);
        self.retained_due.forget(session, filter);
        if let Ok(parsed) = TopicFilter::new(filter) {
            self.sys_wanted(parsed.pattern(), false);
            if let Some(group) = parsed.share_group() {
                self.leave_group(group, parsed.pattern(), session);
            } else {
                self.table.remove(parsed.pattern(), &Route::Subscriber(cell));
            }
        }
        self.cells.stop(cell);
        self.table_epoch += 1;
        self.retry_blocked |= self.full_sessions > 0; // it may be its full queue that others waited for
        self.tell_interest(filter, qos, durable, false);
        if self.sessions[session as usize].conn.is_some() {
            self.tell_live_filter(filter, false);
        }
        if durable {
            let key = subscription_key(self.sessions[session as usize].number, filter);
            self.journal.delete(Space::Subscriptions, key);
        }
        true
    }

    /// What a subscription was asked for with.
    pub(super) fn subscription_of(&self, cell: CellId) -> Option<(SubscribeOptions, Option<u32>)> {
        match self.cells.owner(cell)? {
            Owner::Subscriber { options, id, .. } => Some((*options, id.map(NonZeroU32::get))),
            Owner::Session(_) | Owner::Channel(_) => None,
        }
    }

    pub(super) fn write_subscription(
        &mut self,
        session: u32,
        filter: &str,
        options: SubscribeOptions,
        id: Option<u32>,
    ) {
        let slot = &self.sessions[session as usize];
        if slot.durable {
            let key = subscription_key(slot.number, filter);
            let record = SubscriptionRecord { options: options_byte(options), id };
            self.journal.put(Space::Subscriptions, key, record::encode(&record));
        }
    }

    /// Tells peers what this node now wants more or less.
    pub(super) fn tell_interest(
        &mut self,
        filter: &str,
        qos: QoS,
        durable_session: bool,
        more: bool,
    ) {
        let Some(interest) = &mut self.interest else { return };
        let durable = durable_session && qos > QoS::AtMostOnce;
        let change =
            if more { interest.add(filter, durable) } else { interest.remove(filter, durable) };
        self.tell_peers(change);
    }

    /// Tells peers that a session's share groups have one member more, or less, that is connected.
    pub(super) fn tell_live(&mut self, session: u32, more: bool) {
        if self.interest.is_none() {
            return;
        }
        let filters = self.sessions[session as usize].subscriptions.iter();
        let shared: Vec<_> =
            filters.filter(|(f, _)| f.starts_with("$share/")).map(|(f, _)| Arc::clone(f)).collect();
        shared.iter().for_each(|filter| self.tell_live_filter(filter, more));
    }

    fn tell_live_filter(&mut self, filter: &str, more: bool) {
        if let Some(interest) = &mut self.interest
            && filter.starts_with("$share/")
        {
            let change = interest.set_live(filter, more);
            self.tell_peers(change);
        }
    }

    fn tell_peers(&mut self, change: Option<PeerFrame>) {
        let Some(frame) = change else { return };
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for peer in peers {
            self.tell_peer(peer, frame.clone());
        }
    }

    /// A subscription of the node itself: matching messages come as [`super::Event::Local`] with this number.
    pub fn subscribe_local(&mut self, filter: &TopicFilter, number: u32) {
        let pattern: Arc<str> = filter.pattern().into();
        self.table.insert(&pattern, Route::Local(number));
        self.table_epoch += 1;
        self.tell_interest(&pattern, QoS::AtMostOnce, false, true);
        self.local_filters.push(pattern);
    }

    fn join_group(&mut self, group: &str, pattern: &str, member: Member) {
        let name = (group.to_owned(), pattern.to_owned());
        let id = *self.group_ids.entry(name.clone()).or_insert_with(|| {
            self.group_next += 1;
            self.group_next
        });
        let group =
            self.groups.entry(id).or_insert_with(|| Group { name, members: Vec::new(), next: 0 });
        group.members.push(member);
        if group.members.len() == 1 {
            self.table.insert(&pattern.into(), Route::Group(id));
        }
    }

    fn leave_group(&mut self, group: &str, pattern: &str, session: u32) {
        let Some(id) = self.group_id(group, pattern) else { return };
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.members.retain(|m| m.session != session);
        if group.members.is_empty() {
            self.table.remove(pattern, &Route::Group(id));
            let name = group.name.clone();
            self.groups.remove(&id);
            self.group_ids.remove(&name);
        }
    }

    fn group_id(&self, group: &str, pattern: &str) -> Option<u32> {
        self.group_ids.get(&(group.to_owned(), pattern.to_owned())).copied()
    }

    /// The group of a shared filter, when it has members.
    pub(super) fn group_of(&self, share: &str) -> Option<u32> {
        let filter = TopicFilter::new(share.to_owned()).ok()?;
        self.group_id(filter.share_group()?, filter.pattern())
    }

    /// Which member is next: one that is connected and has room, else a durable one with room. With `must` one that has
    /// no room is better than none.
    fn next_member(&self, group: &Group, qos: QoS, must: bool) -> Option<usize> {
        let count = group.members.len();
        let find = |connected: bool, room: bool| {
            let mut turns = (0..count).map(|i| (group.next + i) % count);
            turns.find(|index| self.fits_member(group, *index, qos, connected, room))
        };
        let found = find(true, true).or_else(|| find(false, true));
        if must { found.or_else(|| find(false, false)) } else { found }
    }

    fn fits_member(
        &self,
        group: &Group,
        index: usize,
        qos: QoS,
        connected: bool,
        room: bool,
    ) -> bool {
        let member = &group.members[index];
        let waits = qos.min(member.qos) > QoS::AtMostOnce;
        self.sessions.get(member.session as usize).is_some_and(|s| {
            let here = s.conn.is_some() || (!connected && s.durable && waits);
            here && (!room || !self.lacks_room(s))
        })
    }

    /// A group as its members wrote it.
    pub(super) fn group_name(&self, id: u32) -> String {
        self.groups
            .get(&id)
            .map(|g| format!("$share/{}/{}", g.name.0, g.name.1))
            .unwrap_or_default()
    }

    /// Subscriptions that share with others.
    pub(super) fn shared_subscriptions(&self) -> u64 {
        self.groups.values().map(|group| group.members.len() as u64).sum()
    }

    /// Whether all who could take a QoS 1 or 2 message are full.
    pub(super) fn is_group_full(&self, id: u32) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        self.next_member(group, QoS::AtLeastOnce, false).is_none()
            && self.next_member(group, QoS::AtLeastOnce, true).is_some()
    }

    /// Whether a group has somebody here for a message: a member that is connected, or one that is away and waits for
    /// it; with `room` only those that have some.
    pub(super) fn has_member(&self, id: u32, qos: QoS, connected: bool, room: bool) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        (0..group.members.len()).any(|index| self.fits_member(group, index, qos, connected, room))
    }

    /// Whether what comes for the group would wait in memory, whoever gets it.
    pub(super) fn is_group_behind(&self, id: u32) -> bool {
        let Some(group) = self.groups.get(&id) else { return false };
        !group.members.is_empty() && group.members.iter().all(|m| self.is_behind(m.session))
    }

    /// A message for one member of a group. `again` when the session it had been given to ended; `waits` as in [`Parcel`].
    pub(super) fn enqueue_group(
        &mut self,
        id: u32,
        message: &Arc<Message>,
        again: bool,
        waits: bool,
    ) {
        let group = self.groups.get(&id);
        let chosen = group.and_then(|group| self.next_member(group, message.qos, again));
        let (Some(index), Some(group)) = (chosen, self.groups.get_mut(&id)) else {
            return self.ledger.drop_unqueued(Drop::Offline, 1);
        };
        group.next = (index + 1) % group.members.len();
        let member = group.members[index].clone();
        let (qos, retain) =
            (member.qos.min(message.qos), member.retain_as_published && message.retain);
        let share = format!("$share/{}/{}", group.name.0, group.name.1);
        let parcel = Parcel { message, qos, retain, ids: member.id.as_slice(), waits };
        self.enqueue(member.session, parcel, Some(share.into()));
    }
}

fn wants_retained(handling: RetainHandling, is_new: bool) -> bool {
    match handling {
        RetainHandling::Send => true,
        RetainHandling::SendIfNew => is_new,
        RetainHandling::Never => false,
    }
}

fn granted(qos: QoS) -> ReasonCode {
    match qos {
        QoS::AtMostOnce => ReasonCode::Success,
        QoS::AtLeastOnce => ReasonCode::GrantedQoS1,
        QoS::ExactlyOnce => ReasonCode::GrantedQoS2,
    }
}

/// Key of a subscription's row.
fn subscription_key(number: u64, filter: &str) -> Vec<u8> {
    [&number.to_be_bytes()[..], filter.as_bytes()].concat()
}

/// The options byte of MQTT 5, §3.8.3.1.
pub(super) fn options_byte(options: SubscribeOptions) -> u8 {
    let flags = u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3;
    options.qos as u8 | flags | (options.retain_handling as u8) << 4
}

/// Reads [`options_byte`] back.
pub(super) fn options_of(byte: u8) -> SubscribeOptions {
    SubscribeOptions {
        qos: QoS::from_bits(byte & 3).unwrap_or(QoS::AtLeastOnce),
        no_local: byte & 4 != 0,
        retain_as_published: byte & 8 != 0,
        retain_handling: match byte >> 4 & 3 {
            0 => RetainHandling::Send,
            1 => RetainHandling::SendIfNew,
            _ => RetainHandling::Never,
        },
    }
}
