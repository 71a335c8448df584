//! Identifiers of nodes and messages.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A node of the cluster, for ever: the first eight bytes of SHA-256 of its name.
///
/// The name itself is what people read and what the node's certificate says; this is what travels in stamps and frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The id that belongs to a node name.
    pub fn from_name(name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(first))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// A message, for ever and everywhere: the node that accepted it and that node's count.
///
/// The count never repeats, also not after a crash: a node takes its numbers in blocks it has put on disk first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId {
    /// The node at which the publisher was connected.
    pub node: NodeId,
    /// Strictly growing per node.
    pub seq: u64,
}

impl MessageId {
    /// Sixteen bytes, big-endian, so that keys sort as the ids do.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.node.0.to_be_bytes());
        out[8..].copy_from_slice(&self.seq.to_be_bytes());
        out
    }

    /// Reads what [`MessageId::to_bytes`] wrote; `None` unless there are exactly 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (node, seq) = (bytes.get(..8)?, bytes.get(8..)?);
        Some(Self {
            node: NodeId(u64::from_be_bytes(node.try_into().ok()?)),
            seq: u64::from_be_bytes(seq.try_into().ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_survives_its_bytes_and_keeps_its_order() {
        let low = MessageId { node: NodeId(7), seq: 255 };
        let high = MessageId { node: NodeId(7), seq: 256 };
        assert_eq!(MessageId::from_bytes(&low.to_bytes()), Some(low));
        assert!(low.to_bytes() < high.to_bytes());
        assert_eq!(MessageId::from_bytes(&[0; 15]), None);
    }

    #[test]
    fn a_node_id_reads_back_as_it_is_written() {
        let id = NodeId::from_name("edge-1");
        assert_eq!(id.to_string().parse::<NodeId>(), Ok(id));
        assert_ne!(id, NodeId::from_name("edge-2"));
    }
}
