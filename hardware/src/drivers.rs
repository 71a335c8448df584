//! The drivers that come with the node, one file each; register a new one in [`crate::Drivers::built_in`].

pub mod button;
pub mod led;
pub mod relay;
