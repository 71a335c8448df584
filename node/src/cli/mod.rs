//! The command `outpost`: one file a verb.

#[cfg(test)]
mod golden;
#[cfg(test)]
pub(crate) use golden::golden;
