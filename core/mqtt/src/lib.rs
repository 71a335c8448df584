//! MQTT 3.1.1 and 5: packets, the codec, and the session both share. No sockets, no clock.

pub mod alias;
pub mod codec;
pub mod error;
pub mod exercise;
mod outbound;
pub mod packet;
pub mod plain;
mod properties;
pub mod session;
pub mod window;
mod wire;

pub use codec::{Decoder, PACKET_BYTES_MAX, encode, encode_within};
pub use error::{DecodeError, PacketKind, TooLarge};
pub use properties::USER_PROPERTIES_MAX;
