//! 3.15 and 4.12: AUTH, with a method the node has and without any.

use super::packet::{AUTH, Connect, Properties, auth, prop};
use super::peer::{Peer, unique};

/// MQTT 5: 4.12.0-1, 4.12.0-4
#[test]
fn mqtt5_4_12_0_1_a_method_nobody_knows_is_refused() {
    let connect = Connect::new(5, &unique("c"))
        .with(|properties| properties.bytes(prop::AUTH_METHOD, "SECRET-HANDSHAKE"));
    let (mut peer, connack) = Peer::asked(&connect);
    assert_eq!((connack.reason, connack.session_present), (0x8c, 0));
    assert_eq!(peer.until_closed(), []);
}

/// MQTT 5: 4.12.0-6, 4.12.0-7
#[test]
fn mqtt5_4_12_0_6_without_a_method_there_is_no_auth() {
    let (mut peer, connack) = Peer::accepted(&Connect::new(5, &unique("c")));
    assert!(!connack.has(prop::AUTH_METHOD));
    assert!(peer.until_ping().iter().all(|packet| packet.kind != AUTH));
    for reason in [0x18, 0x19, 0x00] {
        let mut peer = Peer::new(5);
        peer.send(&auth(reason, &Properties::new().bytes(prop::AUTH_METHOD, "SCRAM-SHA-256")));
        peer.closed();
    }
}

/// AUTH is a packet of MQTT 5: in 3.1.1 its type is reserved.
///
/// MQTT 3.1.1: 4.8.0-1
#[test]
fn mqtt311_4_8_0_1_auth_is_a_protocol_violation() {
    let mut peer = Peer::new(4);
    peer.send(&[0xf0, 0]);
    peer.refused(0);
}

/// MQTT 5: 3.15.2-1
#[test]
fn mqtt5_3_15_2_1_auth_has_its_own_codes() {
    for reason in [0x01, 0x17, 0x80, 0xff] {
        let mut peer = Peer::new(5);
        peer.send(&auth(reason, &Properties::new()));
        peer.closed();
    }
}
