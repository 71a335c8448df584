//! Where devices come in: listeners, and the one loop for every byte stream.

pub mod connection;
pub mod tcp;
