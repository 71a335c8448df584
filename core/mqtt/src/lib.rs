//! MQTT 3.1.1 and 5: packets, the codec, and the session both share. No sockets, no clock.

pub mod packet;
