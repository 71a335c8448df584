//! Who is in the cluster, who wants what, and what nodes say to each other.

pub mod frame;

pub use frame::{Hello, Interest, Lane, PeerFrame, RetainedEntry};
