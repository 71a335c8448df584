//! Who somebody is, and what they may do.

pub mod acl;
pub mod identity;
pub mod password;
pub mod scram;
pub mod subject;

pub use acl::{Acl, AclConfig, Action, Decision, Subject};
