//! The words every floor shares: who, when, where to, and what is said.
//!
//! No IO, no clock, no dice: time is an argument, see [`time::Now`].

pub mod ids;
pub mod lww;
pub mod message;
pub mod reckoning;
pub mod table;
pub mod time;
pub mod topic;

pub use ids::{MessageId, NodeId};
pub use lww::{LwwEntry, LwwLink, LwwMap, LwwStamp};
pub use message::{Message, MessageProperties, QoS};
pub use table::TopicTable;
pub use time::{Hlc, HlcClock, Now};
pub use topic::TopicFilter;
