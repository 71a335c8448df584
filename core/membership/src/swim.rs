//! Membership: who is alive, by SWIM (Das, Gupta, Motivala 2002) as the crate foca implements it.
//!
//! ```text
//!   packets from a peer ──handle_data──►        ──poll_output──► Send: a packet for a node
//!   the clock ───────handle_timeout──►   Swim                    Change: a node is alive, suspect or down
//!   a link came up ─────announce_to──►        ◄──poll_timeout─── when to call again
//! ```
//! A node that was down, for however long, is asked again and again, and comes back by itself with a greater
//! incarnation. Nobody needs to be told.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::{Buf, Bytes};
use foca::{
    AccumulatingRuntime, Codec, Config, Foca, Identity, NoCustomBroadcast, PeriodicParams, State,
    Timer,
};
use outpost_model::NodeId;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

pub use crate::codec::CodecError;
use crate::codec::MemberCodec;

/// A packet is at most this long: one datagram on any path.
pub const PACKET_BYTES_MAX: usize = 1100;
/// How many different nodes are remembered, alive or not. Lower: new nodes of a big cluster are refused. Higher: a
/// misbehaving node can make the others keep and ask that many that do not exist.
pub const MEMBERS_MAX: usize = 512;

/// A node as gossip knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Follows from the name.
    pub id: NodeId,
    /// As in its certificate.
    pub name: String,
    /// Where it wants to be reached.
    pub addr: SocketAddr,
    /// Grows with every start and every return from being declared down; the greatest wins.
    pub incarnation: u64,
}

/// What is believed of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberState {
    /// It answers, or somebody says it does.
    Alive,
    /// It did not answer; it has a little time to object.
    Suspect,
    /// It did not answer for long, or said it leaves.
    Down,
}

/// How patient to be.
#[derive(Debug, Clone)]
pub struct SwimConfig {
    /// One node is asked each period. Shorter: failures are noticed sooner, more packets.
    pub probe_period_ms: u64,
    /// How long an answer may take before others are asked to try. Must be below the period; too short and slow roads
    /// look like failures.
    pub probe_rtt_ms: u64,
    /// How long a suspect may object. Too short: a busy node is declared down and has to come back.
    pub suspect_ms: u64,
    /// First pause between two announcements to a seed or a node that is down.
    pub announce_ms_min: u64,
    /// Longest pause. Longer: fewer packets to nodes that are gone for good, later return after a partition.
    pub announce_ms_max: u64,
    /// Limit on remembered nodes, see [`MEMBERS_MAX`].
    pub members_max: usize,
}

impl Default for SwimConfig {
    fn default() -> Self {
        Self {
            probe_period_ms: 1_000,
            probe_rtt_ms: 500,
            suspect_ms: 3_000,
            announce_ms_min: 500,
            announce_ms_max: 5_000,
            members_max: MEMBERS_MAX,
        }
    }
}

/// Where a packet should go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Which node; nothing for a seed of which only the address is known.
    pub id: Option<NodeId>,
    /// Where it was last.
    pub addr: SocketAddr,
}

/// What the driver has to do or to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send these bytes if there is a road; losing them is fine.
    Send {
        /// For whom.
        to: Target,
        /// One packet.
        bytes: Bytes,
    },
    /// What is believed of a node changed, or where it is.
    Change {
        /// The node as it is known now.
        member: Member,
        /// And its state.
        state: MemberState,
    },
}

/// Why a packet was dropped. Membership is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SwimError {
    /// Not a packet.
    #[error("a gossip packet cannot be read: {0}")]
    Malformed(#[from] CodecError),
    /// Larger than [`PACKET_BYTES_MAX`].
    #[error("a gossip packet has {0} bytes, more than {PACKET_BYTES_MAX}")]
    TooLarge(usize),
    /// The packet says it is from someone else than the link it came by.
    #[error("a gossip packet from {link} says it is from {claimed}")]
    Impostor {
        /// Who is at the other end of the link.
        link: NodeId,
        /// Who the packet says it is from.
        claimed: NodeId,
    },
    /// It tells of more nodes than may be remembered.
    #[error("a gossip packet tells of more than {0} nodes")]
    TooManyMembers(usize),
    /// The protocol refused it.
    #[error("a gossip packet was refused: {0}")]
    Refused(String),
}

const TAG_SWIM: u8 = 1;
/// "You call yourself N, but I know a greater incarnation of you": eight bytes follow. A node that lost its count, for
/// example with its disk, catches up with this at once.
const TAG_OUTDATED: u8 = 2;

/// One node's view of the cluster.
pub struct Swim {
    foca: Foca<Member, MemberCodec, ChaCha8Rng, NoCustomBroadcast>,
    codec: MemberCodec,
    runtime: AccumulatingRuntime<Member>,
    config: SwimConfig,
    now_ms: u64,
    /// By (due, order of arrival).
    timers: BTreeMap<(u64, u64), Timer<Member>>,
    timer_count: u64,
    known: BTreeMap<NodeId, (Member, MemberState)>,
    /// Who has to be asked again, and when.
    calls: BTreeMap<SocketAddr, Call>,
    outputs: VecDeque<Output>,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    /// Nothing for a seed.
    id: Option<NodeId>,
    due_ms: u64,
    pause_ms: u64,
}

impl Member {
    /// A member of this name; its id follows.
    pub fn new(name: &str, addr: SocketAddr, incarnation: u64) -> Self {
        Self { id: NodeId::from_name(name), name: name.to_owned(), addr, incarnation }
    }

    /// Stands for a node of which only the id is known.
    pub(crate) fn unknown(id: NodeId) -> Self {
        Self {
            id,
            name: String::new(),
            addr: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            incarnation: 0,
        }
    }

    fn target(&self) -> Target {
        Target { id: Some(self.id), addr: self.addr }
    }
}

impl Identity for Member {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { incarnation: self.incarnation.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.id
    }

    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.incarnation, self.addr, &self.name) > (other.incarnation, other.addr, &other.name)
    }
}

impl Swim {
    /// A node that knows only itself. `seed` decides all its dice.
    pub fn new(me: Member, config: SwimConfig, seed: u64) -> Self {
        let codec = MemberCodec { me: me.id };
        let foca =
            Foca::new(me, foca_config(&config), ChaCha8Rng::seed_from_u64(seed), codec.clone());
        Self {
            foca,
            codec,
            runtime: AccumulatingRuntime::new(),
            config,
            now_ms: 0,
            timers: BTreeMap::new(),
            timer_count: 0,
            known: BTreeMap::new(),
            calls: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Addresses to announce this node to, for ever, as long as no living member is there.
    pub fn set_seeds(&mut self, seeds: &[SocketAddr], now_ms: u64) {
        self.calls.retain(|_, call| call.id.is_some());
        let own = self.me().addr;
        for addr in seeds.iter().filter(|addr| **addr != own) {
            let call = Call { id: None, due_ms: now_ms, pause_ms: self.config.announce_ms_min };
            self.calls.entry(*addr).or_insert(call);
        }
    }

    /// This node, with the incarnation it has now.
    pub fn me(&self) -> &Member {
        self.foca.identity()
    }

    /// Every other node ever heard of since the start, in order of their ids.
    pub fn members(&self) -> impl Iterator<Item = (&Member, MemberState)> {
        self.known.values().map(|(member, state)| (member, *state))
    }

    /// Says hello to a node at the other end of a road that just opened.
    pub fn announce_to(&mut self, id: NodeId, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        let whom =
            self.known.get(&id).map_or_else(|| Member::unknown(id), |(member, _)| member.clone());
        self.announce(whom);
        self.settle();
    }

    /// A packet came by the link to `from`.
    ///
    /// # Errors
    /// [`SwimError`] says why it was dropped.
    pub fn handle_data(
        &mut self,
        from: NodeId,
        packet: &[u8],
        now_ms: u64,
    ) -> Result<(), SwimError> {
        self.now_ms = self.now_ms.max(now_ms);
        if packet.len() > PACKET_BYTES_MAX {
            return Err(SwimError::TooLarge(packet.len()));
        }
        let result = match packet.split_first() {
            Some((&TAG_SWIM, body)) => self.handle_swim(from, body),
            Some((&TAG_OUTDATED, body)) => self.handle_outdated(body),
            Some((&tag, _)) => Err(CodecError::Tag { what: "kind", tag }.into()),
            None => Err(CodecError::Short.into()),
        };
        self.settle();
        result
    }

    /// Does what is due by now.
    pub fn handle_timeout(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > self.now_ms {
                break;
            }
            // Late timers are the driver's affair, and foca recovers from them.
            let _ = self.foca.handle_timer(entry.remove(), &mut self.runtime);
            self.collect_timers();
        }
        self.call_again();
        self.settle();
    }

    /// When to call [`Swim::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Option<u64> {
        let timer = self.timers.keys().next().map(|(due, _)| *due);
        let call = self.calls.values().map(|call| call.due_ms).min();
        timer.into_iter().chain(call).min()
    }

    /// Drain this after every call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tells the others that this node stops, so that they need not find out.
    pub fn leave(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
        let _ = self.foca.leave_cluster(&mut self.runtime);
        self.settle();
    }

    fn handle_swim(&mut self, from: NodeId, body: &[u8]) -> Result<(), SwimError> {
        let src = self.inspect(from, body)?;
        if let Some((known, _)) = self.known.get(&from)
            && known.incarnation > src.incarnation
        {
            let mut bytes = vec![TAG_OUTDATED];
            bytes.extend(known.incarnation.to_be_bytes());
            self.outputs.push_back(Output::Send { to: src.target(), bytes: bytes.into() });
        }
        self.foca
            .handle_data(body, &mut self.runtime)
            .map_err(|error| SwimError::Refused(error.to_string()))
    }

    /// Reads the packet once before foca does: the sender must be who the link says, the nodes few enough.
    fn inspect(&mut self, from: NodeId, body: &[u8]) -> Result<Member, SwimError> {
        let mut rest = body;
        let src = self.codec.decode_header(&mut rest)?.src;
        if src.id != from {
            return Err(SwimError::Impostor { link: from, claimed: src.id });
        }
        let mut new = usize::from(!self.known.contains_key(&src.id));
        let updates = rest.try_get_u16().unwrap_or(0);
        for _ in 0..updates {
            let member = self.codec.decode_member(&mut rest)?;
            let id = member.id().id;
            new += usize::from(id != self.me().id && !self.known.contains_key(&id));
        }
        if new > 0 && self.known.len() + new > self.config.members_max {
            return Err(SwimError::TooManyMembers(self.config.members_max));
        }
        Ok(src)
    }

    fn handle_outdated(&mut self, mut body: &[u8]) -> Result<(), SwimError> {
        let known = body.try_get_u64().map_err(|_| CodecError::Short)?;
        let me = self.me();
        if known >= me.incarnation
            && let Some(incarnation) = known.checked_add(1)
        {
            let renewed = Member { incarnation, ..me.clone() };
            let _ = self.foca.change_identity(renewed, &mut self.runtime);
            let peers: Vec<_> = self.known.values().map(|(member, _)| member.clone()).collect();
            peers.into_iter().for_each(|member| self.announce(member));
        }
        Ok(())
    }

    fn announce(&mut self, whom: Member) {
        // Fails only when a packet cannot hold two members, and `PACKET_BYTES_MAX` holds seven.
        let _ = self.foca.announce(whom, &mut self.runtime);
    }

    /// Announces to whoever is due, with a pause that doubles up to the limit.
    fn call_again(&mut self) {
        let due: Vec<_> = self
            .calls
            .iter()
            .filter(|(_, call)| call.due_ms <= self.now_ms)
            .map(|(a, c)| (*a, *c))
            .collect();
        for (addr, call) in due {
            let mut whom = Member::unknown(call.id.unwrap_or(NodeId(0)));
            if let Some((member, _)) = call.id.and_then(|id| self.known.get(&id)) {
                whom = member.clone();
            }
            whom.addr = addr;
            self.announce(whom);
            let pause_ms = (call.pause_ms * 2).min(self.config.announce_ms_max);
            self.calls
                .insert(addr, Call { id: call.id, due_ms: self.now_ms + call.pause_ms, pause_ms });
        }
    }

    /// Carries what foca wants done over to timers, outputs and the list of who must be called.
    fn settle(&mut self) {
        self.collect_timers();
        while let Some((to, packet)) = self.runtime.to_send() {
            if to.id == self.me().id {
                continue;
            }
            let mut bytes = Vec::with_capacity(packet.len() + 1);
            bytes.push(TAG_SWIM);
            bytes.extend_from_slice(&packet);
            let id = (to.id != NodeId(0)).then_some(to.id);
            self.outputs
                .push_back(Output::Send { to: Target { id, addr: to.addr }, bytes: bytes.into() });
        }
        while self.runtime.to_notify().is_some() {}
        self.note_changes();
        self.plan_calls();
    }

    fn collect_timers(&mut self) {
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timer_count += 1;
            self.timers.insert((self.now_ms + after.as_millis() as u64, self.timer_count), timer);
        }
    }

    fn note_changes(&mut self) {
        let me = self.foca.identity().id;
        for seen in self.foca.iter_membership_state().filter(|seen| seen.id().id != me) {
            let state = match seen.state() {
                State::Alive => MemberState::Alive,
                State::Suspect => MemberState::Suspect,
                State::Down => MemberState::Down,
            };
            let now = (seen.id().clone(), state);
            if self.known.get(&now.0.id) != Some(&now) {
                self.known.insert(now.0.id, now.clone());
                self.outputs.push_back(Output::Change { member: now.0, state });
            }
        }
    }

    /// Who is down is called; who is up is not, nor is a seed with a living member at its address.
    fn plan_calls(&mut self) {
        let (now_ms, pause_ms) = (self.now_ms, self.config.announce_ms_min);
        for (member, state) in self.known.values() {
            match state {
                MemberState::Down => {
                    let call = Call { id: Some(member.id), due_ms: now_ms + pause_ms, pause_ms };
                    self.calls.entry(member.addr).or_insert(call);
                }
                MemberState::Alive | MemberState::Suspect => {
                    self.calls.retain(|addr, call| match call.id {
                        Some(id) => id != member.id,
                        None => *addr != member.addr || *state != MemberState::Alive,
                    });
                }
            }
        }
    }
}

fn foca_config(config: &SwimConfig) -> Config {
    let one = NonZeroUsize::MIN;
    Config {
        probe_period: Duration::from_millis(config.probe_period_ms),
        probe_rtt: Duration::from_millis(config.probe_rtt_ms),
        num_indirect_probes: NonZeroUsize::new(3).expect("three"),
        max_transmissions: NonZeroU8::new(10).expect("ten"),
        suspect_to_down_after: Duration::from_millis(config.suspect_ms),
        remove_down_after: Some(Duration::from_hours(24)),
        max_packet_size: NonZeroUsize::new(PACKET_BYTES_MAX - 1).expect("more than one"),
        notify_down_members: true,
        periodic_announce: Some(PeriodicParams {
            frequency: Duration::from_secs(30),
            num_members: one,
        }),
        // Announcing to those that are down is done here, because foca forgets them in the end.
        periodic_announce_to_down_members: None,
        periodic_gossip: Some(PeriodicParams {
            frequency: Duration::from_millis(300),
            num_members: one.saturating_add(2),
        }),
    }
}

#[cfg(test)]
mod tests;
