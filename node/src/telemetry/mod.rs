//! What a node says about itself while it runs. Metrics are in [`crate::http::metrics`].

pub mod log;
pub mod memory;
