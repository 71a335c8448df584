//! Stories about shards: real bytes in, real bytes out, a store that forgets what was not synced, a clock set by hand.
//! Every story ends with the ledger: all that was owed was delivered, dropped for a reason, or is owed still.

mod acknowledgements;
mod authenticate;
mod bridges;
mod clients;
mod dice;
mod express;
mod failures;
mod groups;
mod memory;
mod overflow;
mod packets;
mod peers;
mod protocol;
mod queues;
mod quotas;
mod random;
mod reads;
mod redirect;
mod retained;
mod retained_peers;
mod rights;
mod sessions;
mod shared;
mod stall;
mod sys;
mod takeover;
mod takeover_chains;
mod takeover_moments;
mod takeover_random;
mod trace;
mod why;
mod wills;
mod world;
