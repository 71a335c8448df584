//! Who does it, and who restarts whom. Cells in shards for what is many, ractor actors for what is few.

pub mod cell;
pub mod ledger;
pub mod out_buffer;
pub mod ports;
pub mod record;
pub mod shard;
pub mod tree;

pub use outpost_model::TopicFilter;
