//! Who is in the cluster, who wants what, and what nodes say to each other.

mod codec;
pub mod frame;
pub mod interest;
pub mod swim;
pub mod takeover;

pub use frame::{
    EVENT_SHARES_MAX, Hello, Interest, Lane, PeerFrame, RetainedEntry, Shares, StateEntry,
};
pub use interest::{InterestError, LocalInterest, PeerInterest, ShareInterest};
pub use swim::{Member, MemberState, Output, Swim, SwimConfig, SwimError, Target};
pub use takeover::{Arrival, Residence, SeenMessages, TAKEOVER_SEEN_MAX, Verdict};
