//! Packets that stories send, and how they read what comes.

use bytes::Bytes;
use outpost_model::QoS;
use outpost_mqtt::packet::{Connect, PacketId, Publish, Version, Will};

/// A CONNECT of version 5 whose session survives for an hour.
pub fn v5(name: &str) -> Connect {
    Connect { session_expiry_s: Some(3_600), ..Connect::new(Version::V5, name) }
}

/// A CONNECT of version 3.1.1 with a persistent session.
pub fn v4(name: &str) -> Connect {
    Connect::new(Version::V4, name)
}

/// A CONNECT of version 5 whose session ends with the connection.
pub fn fleeting(name: &str) -> Connect {
    Connect { clean_start: true, ..Connect::new(Version::V5, name) }
}

pub fn will(topic: &str, delay_s: u32) -> Box<Will> {
    Box::new(Will {
        topic: topic.to_owned().into(),
        payload: Bytes::from_static(b"gone"),
        qos: QoS::AtLeastOnce,
        retain: false,
        delay_s: (delay_s > 0).then_some(delay_s),
        expiry_s: None,
        properties: outpost_model::MessageProperties::default(),
    })
}

pub fn publish(topic: &str, payload: &str, qos: u8, id: u16) -> Publish {
    Publish {
        dup: false,
        qos: QoS::from_bits(qos).expect("0 to 2"),
        retain: false,
        topic: topic.to_owned().into(),
        packet_id: PacketId::new(id).filter(|_| qos > 0),
        payload: Bytes::from(payload.to_owned()),
        topic_alias: None,
        expiry_s: None,
        subscription_ids: Vec::new(),
        properties: None,
    }
}

pub fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not 0")
}

pub fn text(publish: &Publish) -> String {
    String::from_utf8_lossy(&publish.payload).into_owned()
}
