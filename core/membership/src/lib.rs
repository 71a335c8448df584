//! Who is in the cluster, who wants what, and what nodes say to each other.

mod codec;
pub mod frame;
pub mod interest;
pub mod swim;

pub use frame::{Hello, Interest, Lane, PeerFrame, RetainedEntry};
pub use interest::{InterestError, LocalInterest, PeerInterest};
pub use swim::{Member, MemberState, Output, Swim, SwimConfig, SwimError, Target};
