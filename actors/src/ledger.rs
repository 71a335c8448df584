//! The ledger of messages: what came in, and what became of it, by reason.

/// Why a message did not reach somebody it was meant for. Each drop is counted under exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Drop {
    /// Its message expiry came first.
    Expired,
    /// The receiver refused it with a reason code.
    Refused,
    /// QoS 0 and the client does not read fast enough.
    SlowClient,
    /// QoS 0 and the peer's link is full.
    SlowPeer,
    /// It is larger than the receiver takes.
    TooLarge,
    /// The session ended with it still queued.
    SessionEnded,
    /// The actor it had to pass is quarantined.
    Quarantined,
    /// The actor it had to pass failed while handling it.
    Crashed,
    /// The persistent session's QoS 0 subscriber or the peer is away.
    Offline,
    /// The publisher may not publish there.
    Denied,
    /// Its row cannot be read from the store any more.
    Damaged,
    /// QoS 0, and the program in the node that it was for does not take it fast enough.
    SlowDevice,
    /// It was here before: it came back over a bridge, or by a second one.
    Looped,
    /// QoS 0, the client is behind, and the node is short of memory.
    Memory,
    /// An administrator took it out of its receiver's queue.
    Drained,
    /// A will a full queue had no room for, of a client whose session was over: nobody could say it again later.
    WillRefused,
    /// Its receiver may not read the topic any more: the access rules have changed.
    Revoked,
}

impl Drop {
    /// All reasons, in the order of the counters.
    pub const ALL: [Self; 17] = [
        Self::Expired,
        Self::Refused,
        Self::SlowClient,
        Self::SlowPeer,
        Self::TooLarge,
        Self::SessionEnded,
        Self::Quarantined,
        Self::Crashed,
        Self::Offline,
        Self::Denied,
        Self::Damaged,
        Self::SlowDevice,
        Self::Looped,
        Self::Memory,
        Self::Drained,
        Self::WillRefused,
        Self::Revoked,
    ];

    /// The value of the metric's `reason` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::SlowClient => "slow_client",
            Self::SlowPeer => "slow_peer",
            Self::TooLarge => "too_large",
            Self::SessionEnded => "session_ended",
            Self::Quarantined => "quarantined",
            Self::Crashed => "crashed",
            Self::Offline => "offline",
            Self::Denied => "denied",
            Self::Damaged => "damaged",
            Self::SlowDevice => "slow_device",
            Self::Looped => "looped",
            Self::Memory => "memory",
            Self::Drained => "drained",
            Self::WillRefused => "will_refused",
            Self::Revoked => "revoked",
        }
    }
}

/// Counters of one shard since it started. Three sums hold between turns, to the message:
///
/// * `accepted` is `wanted`, `unwanted`, `kept` and `requests`, together;
/// * every PUBLISH that was read is `accepted`, `refused`, dropped as denied or looped, held back, or a copy of one of
///   QoS 2 that is under way;
/// * `owed` is `delivered`, all of `dropped`, and what sessions and peers are still owed ([`Ledger::missing`] is 0).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Messages accepted from clients, peers and the node itself.
    pub accepted: u64,
    /// Messages refused to their publisher, for want of room or by the store, and those it gave up waiting with.
    pub refused: u64,
    /// Accepted messages with a receiver.
    pub wanted: u64,
    /// Accepted messages nobody wanted.
    pub unwanted: u64,
    /// Accepted messages nobody wanted that were retained.
    pub kept: u64,
    /// Accepted messages for the shadow service that nobody else wanted.
    pub requests: u64,
    /// Deliveries owed: one for each message and receiver, found at the start, or refused before there was a receiver.
    pub owed: u64,
    /// Deliveries completed: QoS 0 handed to the connection, QoS 1 and 2 acknowledged.
    pub delivered: u64,
    /// Deliveries given up, by [`Drop`].
    pub dropped: [u64; Drop::ALL.len()],
    /// Packets that broke the protocol.
    pub protocol_errors: u64,
    /// Filters refused in SUBACK.
    pub refused_subscriptions: u64,
    /// Connections refused at CONNECT.
    pub refused_connects: u64,
    /// Connections accepted.
    pub connections: u64,
    /// Cells that panicked.
    pub panics: u64,
    /// How often a publisher was made to wait by its pace.
    pub paced: u64,
    /// Publishes nobody could take: every receiver was slow or full.
    pub in_vain: u64,
    /// QoS 0 deliveries whose publisher was made to wait for the receiver, by the topic's policy.
    pub blocked: u64,
    /// Publishers that were given low priority.
    pub demoted: u64,
    /// How often the level of memory pressure changed.
    pub pressure_changes: u64,
}

impl Ledger {
    /// Counts deliveries given up.
    pub fn drop(&mut self, why: Drop, count: u64) {
        self.dropped[why as usize] += count;
    }

    /// Counts deliveries that were given up before they had been counted as owed.
    pub fn drop_unqueued(&mut self, why: Drop, count: u64) {
        self.owed += count;
        self.drop(why, count);
    }

    /// A delivery counted as dropped with its session goes to somebody else after all.
    pub fn take_back(&mut self, why: Drop) {
        let counted = &mut self.dropped[why as usize];
        if *counted > 0 {
            *counted -= 1;
            self.owed -= 1;
        }
    }

    /// A QoS 0 delivery that was handed on was not taken there.
    pub fn not_taken(&mut self, why: Drop) {
        self.delivered = self.delivered.saturating_sub(1);
        self.drop(why, 1);
    }

    /// Counts an accepted message by what becomes of it.
    pub fn accept(&mut self, has_receivers: bool, retained: bool, request: bool) {
        self.accepted += 1;
        let what = match (has_receivers, request, retained) {
            (true, ..) => &mut self.wanted,
            (false, true, _) => &mut self.requests,
            (false, false, true) => &mut self.kept,
            (false, false, false) => &mut self.unwanted,
        };
        *what += 1;
    }

    /// Counts so many accepted messages that have receivers.
    pub fn accept_wanted(&mut self, count: u64) {
        self.accepted += count;
        self.wanted += count;
    }

    /// Deliveries that are neither done, nor dropped, nor among the `open` ones. Not 0 between turns: a mistake here.
    pub fn missing(&self, open: u64) -> i64 {
        let found = self.delivered + self.dropped_all() + open;
        self.owed.wrapping_sub(found).cast_signed()
    }

    /// All deliveries given up.
    pub fn dropped_all(&self) -> u64 {
        self.dropped.iter().sum()
    }
}
