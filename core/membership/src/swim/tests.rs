//! Several nodes under a virtual clock, with roads that can be cut.

use super::*;

/// Several nodes, a virtual clock, and roads that can be cut; a packet takes 20 ms.
struct World {
    config: SwimConfig,
    nodes: Vec<Option<Swim>>,
    now_ms: u64,
    packets: BTreeMap<(u64, u64), (usize, usize, Bytes)>,
    count: u64,
    /// Which side of the partition a node is on.
    side: Vec<u8>,
    changes: Vec<(usize, Member, MemberState)>,
}

fn addr(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], 17_000 + n as u16))
}

fn member(n: usize, incarnation: u64) -> Member {
    Member::new(&format!("edge-{n}"), addr(n), incarnation)
}

impl World {
    fn new(size: usize, seed: u64) -> Self {
        Self::with(size, seed, SwimConfig::default())
    }

    fn with(size: usize, seed: u64, config: SwimConfig) -> Self {
        let mut world = Self {
            config,
            nodes: Vec::new(),
            now_ms: 0,
            packets: BTreeMap::new(),
            count: 0,
            side: vec![0; size],
            changes: Vec::new(),
        };
        for n in 0..size {
            world.nodes.push(None);
            world.start(n, 1, seed + n as u64);
        }
        world
    }

    fn start(&mut self, n: usize, incarnation: u64, seed: u64) {
        let mut swim = Swim::new(member(n, incarnation), self.config.clone(), seed);
        swim.set_seeds(&[addr(0), addr(1)], self.now_ms);
        self.nodes[n] = Some(swim);
    }

    fn run_for(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            let timers = self.nodes.iter().flatten().filter_map(Swim::poll_timeout);
            let next = timers.chain(self.packets.keys().map(|(due, _)| *due)).min().unwrap_or(end);
            self.now_ms = next.max(self.now_ms + 1).min(end);
            for n in 0..self.nodes.len() {
                let now_ms = self.now_ms;
                if let Some(swim) = self.nodes[n]
                    .as_mut()
                    .filter(|s| s.poll_timeout().is_some_and(|due| due <= now_ms))
                {
                    swim.handle_timeout(now_ms);
                }
                self.drain(n);
            }
            while let Some(entry) =
                self.packets.first_entry().filter(|entry| entry.key().0 <= self.now_ms)
            {
                let (from, to, bytes) = entry.remove();
                let id = member(from, 0).id;
                if self.side[from] == self.side[to]
                    && let Some(swim) = self.nodes[to].as_mut()
                {
                    swim.handle_data(id, &bytes, self.now_ms).expect("nodes understand each other");
                    self.drain(to);
                }
            }
        }
    }

    fn drain(&mut self, n: usize) {
        let Some(swim) = self.nodes[n].as_mut() else { return };
        while let Some(output) = swim.poll_output() {
            match output {
                Output::Send { to, bytes } => {
                    assert!(bytes.len() <= PACKET_BYTES_MAX);
                    self.count += 1;
                    let target = usize::from(to.addr.port()) - 17_000;
                    self.packets.insert((self.now_ms + 20, self.count), (n, target, bytes));
                }
                Output::Change { member, state } => self.changes.push((n, member, state)),
            }
        }
    }

    fn state(&self, of: usize, at: usize) -> Option<MemberState> {
        let id = member(of, 0).id;
        self.nodes[at].as_ref()?.members().find(|(m, _)| m.id == id).map(|(_, state)| state)
    }

    fn all_see_all(&self) -> bool {
        let size = self.nodes.len();
        (0..size).all(|at| {
            (0..size).all(|of| of == at || self.state(of, at) == Some(MemberState::Alive))
        })
    }

    /// Virtual milliseconds until all see all.
    fn until_all_see_all(&mut self, limit_ms: u64) -> u64 {
        let began = self.now_ms;
        while !self.all_see_all() {
            assert!(self.now_ms - began < limit_ms, "not after {limit_ms} ms");
            self.run_for(10);
        }
        self.now_ms - began
    }
}

#[test]
fn nodes_with_two_seeds_find_all_others() {
    for seed in 0..20 {
        World::new(7, seed * 100).until_all_see_all(40_000);
    }
}

#[test]
fn a_silent_node_is_suspect_then_down_then_back_with_a_greater_incarnation() {
    let mut world = World::new(3, 5);
    world.until_all_see_all(40_000);
    world.changes.clear();
    world.side[2] = 9;
    world.run_for(12_000);
    let of_2: Vec<_> = world
        .changes
        .iter()
        .filter(|(at, m, _)| *at == 0 && m.name == "edge-2")
        .map(|c| c.2)
        .collect();
    assert_eq!(of_2, [MemberState::Suspect, MemberState::Down]);
    let before = world.nodes[2].as_ref().expect("runs").me().incarnation;
    world.side[2] = 0;
    world.until_all_see_all(15_000);
    assert!(world.nodes[2].as_ref().expect("runs").me().incarnation > before);
}

#[test]
fn a_partition_heals_by_itself() {
    for seed in 0..10 {
        heals(World::new(4, seed * 10), (seed + 1) * 30_000, 20_000);
    }
}

/// Past the day after which foca forgets who is down. Slower than the default, to spend less on it.
#[test]
fn a_partition_of_days_heals_by_itself() {
    let config = SwimConfig {
        probe_period_ms: 60_000,
        probe_rtt_ms: 1_000,
        announce_ms_max: 300_000,
        ..SwimConfig::default()
    };
    heals(World::with(4, 1, config), 50 * 3_600_000, 1_200_000);
}

fn heals(mut world: World, split_ms: u64, limit_ms: u64) {
    world.until_all_see_all(40_000);
    world.side = vec![0, 0, 1, 1];
    world.run_for(split_ms.max(limit_ms));
    let (down, alive) = (Some(MemberState::Down), Some(MemberState::Alive));
    assert_eq!([world.state(2, 0), world.state(0, 2), world.state(0, 3)], [down; 3]);
    assert_eq!([world.state(1, 0), world.state(3, 2)], [alive; 2]);
    world.side = vec![0; 4];
    world.until_all_see_all(limit_ms);
    world.run_for(60_000);
    assert!(world.all_see_all(), "and it stays so");
}

#[test]
fn a_node_that_lost_its_incarnation_catches_up() {
    let mut world = World::new(3, 3);
    world.until_all_see_all(40_000);
    world.start(2, 1_000_000, 77);
    world.run_for(10_000);
    assert!(world.all_see_all());
    // Its disk is gone, it begins at 1 again.
    world.start(2, 1, 78);
    world.until_all_see_all(20_000);
    world.run_for(20_000);
    assert!(world.all_see_all());
    assert!(world.nodes[2].as_ref().expect("runs").me().incarnation > 1_000_000);
}

#[test]
fn a_node_that_leaves_is_down_at_once() {
    let mut world = World::new(3, 8);
    world.until_all_see_all(40_000);
    let now_ms = world.now_ms;
    world.nodes[1].as_mut().expect("runs").leave(now_ms);
    world.drain(1);
    world.nodes[1] = None;
    world.run_for(1_000);
    assert_eq!(
        (world.state(1, 0), world.state(1, 2)),
        (Some(MemberState::Down), Some(MemberState::Down))
    );
}

#[test]
fn packets_that_lie_or_flood_are_dropped() {
    let mut config = SwimConfig { members_max: 3, ..SwimConfig::default() };
    let mut victim = Swim::new(member(0, 1), config.clone(), 1);
    config.members_max = 100;
    let mut liar = Swim::new(member(1, 1), config, 2);
    liar.announce_to(member(0, 1).id, 0);
    let Some(Output::Send { bytes, .. }) = liar.poll_output() else { panic!("an announcement") };
    let other = member(2, 1).id;
    assert!(matches!(victim.handle_data(other, &bytes, 0), Err(SwimError::Impostor { .. })));
    victim.handle_data(member(1, 1).id, &bytes, 0).expect("from itself");

    let mut codec = MemberCodec { me: member(1, 1).id };
    let mut flood = vec![TAG_SWIM];
    let message = foca::Message::Gossip;
    let header = foca::Header { src: member(1, 1), src_incarnation: 0, dst: member(0, 1), message };
    codec.encode_header(&header, &mut flood).expect("a Vec has room");
    flood.extend(9_u16.to_be_bytes());
    (10..19).for_each(|n| {
        codec.encode_member(&foca::Member::alive(member(n, 1)), &mut flood).expect("room")
    });
    let before = victim.members().count();
    assert!(matches!(
        victim.handle_data(member(1, 1).id, &flood, 0),
        Err(SwimError::TooManyMembers(3))
    ));
    assert_eq!(victim.members().count(), before);
    assert!(matches!(victim.handle_data(other, &[0; 2_000], 0), Err(SwimError::TooLarge(2_000))));
    assert!(
        victim.handle_data(other, &[], 0).is_err() && victim.handle_data(other, &[7], 0).is_err()
    );
}

#[test]
fn no_byte_string_makes_it_panic() {
    let mut world = World::new(3, 4);
    world.until_all_see_all(40_000);
    let mut real: Vec<Bytes> = world.packets.values().map(|(_, _, bytes)| bytes.clone()).collect();
    while real.len() < 50 {
        world.run_for(10);
        real.extend(world.packets.values().map(|(_, _, bytes)| bytes.clone()));
    }
    let ids = [member(0, 0).id, member(1, 0).id, member(2, 0).id];
    let mut dice = 12_345_u64;
    for round in 0..20_000 {
        let mut packet = real[round % real.len()].to_vec();
        for _ in 0..3 {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let place = (dice >> 33) as usize % packet.len();
            packet[place] = (dice >> 20) as u8;
        }
        packet.truncate(1 + (dice >> 40) as usize % packet.len());
        for n in 0..3 {
            let swim = world.nodes[n].as_mut().expect("runs");
            let _ = swim.handle_data(ids[round % 3], &packet, world.now_ms);
            while swim.poll_output().is_some() {}
        }
    }
}
