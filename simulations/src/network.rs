//! The links between nodes: what QUIC with one stream a lane does, and how it fails.
//!
//! While a link lives, each lane keeps its order and loses nothing; lanes overtake each other. A direction that is
//! blocked holds its frames back. When a link breaks, what was on its way is lost, each side notices in its own time,
//! and what one side sends before it notices goes nowhere.

use std::collections::VecDeque;

use outpost_membership::{Lane, PeerFrame};

use crate::clock::Micros;

/// One lane in one direction.
#[derive(Debug, Default)]
pub struct LaneQueue {
    /// Frames and when they arrive, not earlier.
    pub frames: VecDeque<(Micros, PeerFrame)>,
    /// When the last one was to arrive: nothing overtakes it.
    pub last: Micros,
}

/// One end of a link: what a node knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// There is none.
    #[default]
    Down,
    /// It is up, and carries this number.
    Up(u64),
}

/// From one node to another.
#[derive(Debug, Default)]
pub struct Direction {
    /// The sender's end.
    pub sender: End,
    /// The three lanes.
    pub lanes: [LaneQueue; 3],
    /// Nothing passes until then.
    pub blocked_until: Micros,
}

/// All directions, by sender and receiver.
#[derive(Debug)]
pub struct Network {
    directions: Vec<Direction>,
    nodes: usize,
    links: u64,
}

impl Network {
    /// No links yet.
    pub fn new(nodes: usize) -> Self {
        let directions = (0..nodes * nodes).map(|_| Direction::default()).collect();
        Self { directions, nodes, links: 0 }
    }

    /// One direction.
    pub fn direction(&mut self, from: usize, to: usize) -> &mut Direction {
        &mut self.directions[from * self.nodes + to]
    }

    /// A number for a new link.
    pub fn new_link(&mut self) -> u64 {
        self.links += 1;
        self.links
    }

    /// The lane of a frame as an index.
    pub fn lane_of(frame: &PeerFrame) -> usize {
        match frame.lane() {
            Lane::Control => 0,
            Lane::Events => 1,
            Lane::Sync => 2,
        }
    }

    /// What is on its way between two nodes is lost.
    pub fn lose(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            self.direction(from, to).lanes = Default::default();
        }
    }

    /// Whether a direction is blocked now.
    pub fn is_blocked(&self, at: Micros) -> bool {
        self.directions.iter().any(|direction| direction.blocked_until > at)
    }

    /// Nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.directions.iter().all(|d| d.lanes.iter().all(|lane| lane.frames.is_empty()))
    }
}
