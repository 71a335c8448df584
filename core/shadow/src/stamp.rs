//! The stamp of a write: what decides which of two writes to the same place is the later one.

use outpost_model::{Hlc, NodeId};

/// When and by whom something was written. Greater is later; two different writes never have equal stamps.
///
/// `term` is 0 in `desired`, where everybody may write and time decides. In `reported` it is the term of the home node
/// under which the device spoke, so that what a newer home heard beats what an older one heard, whatever the clocks say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp {
    /// Term of the home node, 0 outside `reported`.
    pub term: u64,
    /// Hybrid logical time at the node that accepted the write.
    pub hlc: Hlc,
    /// The number of that node's [`NodeId`]; 0 in the default stamp, which stands for "never".
    pub node: u64,
}

impl Stamp {
    /// A stamp without a term.
    pub fn new(hlc: Hlc, node: NodeId) -> Self {
        Self { term: 0, hlc, node: node.0 }
    }

    /// The same moment under a home's term.
    pub fn with_term(self, term: u64) -> Self {
        Self { term, ..self }
    }

    /// Seconds since 1970, as AWS metadata shows them.
    pub fn seconds(&self) -> u64 {
        self.hlc.ms() / 1000
    }
}
