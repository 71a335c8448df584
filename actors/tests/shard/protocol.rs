//! Corners of MQTT 5 that need a whole shard to be seen. Section numbers are those of MQTT 5.

use outpost_mqtt::packet::{Connect, Packet, Publish};

use crate::world::{World, fleeting, publish};

fn publishes(packets: Vec<Packet>) -> Vec<Publish> {
    let is_publish =
        |packet| if let Packet::Publish(publish) = packet { Some(*publish) } else { None };
    packets.into_iter().filter_map(is_publish).collect()
}

#[test]
fn a_client_that_keeps_aliases_gets_a_topic_once_and_then_its_number_3_3_2_3_4() {
    let mut world = World::new();
    let connect = || Connect { topic_alias_max: Some(1), ..fleeting("sub") };
    let sub = world.connect(connect());
    let plain = world.connect(fleeting("plain"));
    for client in [sub, plain] {
        world.subscribe(client, "#", 0);
    }
    let publisher = world.connect(fleeting("pub"));
    for topic in ["plant/7/temp", "plant/7/temp", "plant/8/temp", "plant/7/temp"] {
        world.publish(publisher, publish(topic, "x", 0, 0));
    }
    let got = publishes(world.take(sub));
    let seen: Vec<_> = got.iter().map(|p| (&*p.topic, p.topic_alias)).collect();
    let expected =
        [("plant/7/temp", Some(1)), ("", Some(1)), ("plant/8/temp", None), ("", Some(1))];
    assert_eq!(seen, expected);
    assert!(publishes(world.take(plain)).iter().all(|p| p.topic_alias.is_none()), "MQTT-3.1.2-27");
    // MQTT-3.3.2-7: the next connection knows none of them.
    let again = world.connect(connect());
    world.subscribe(again, "#", 0);
    world.publish(publisher, publish("plant/7/temp", "x", 0, 0));
    let got = publishes(world.take(again));
    assert_eq!((&*got[0].topic, got[0].topic_alias), ("plant/7/temp", Some(1)));
}

#[test]
fn a_packet_too_large_for_its_receiver_sets_no_alias_3_1_2_24() {
    let mut world = World::new();
    let connect = Connect { topic_alias_max: Some(4), packet_max: Some(40), ..fleeting("sub") };
    let sub = world.connect(connect);
    world.subscribe(sub, "#", 0);
    let publisher = world.connect(fleeting("pub"));
    world.publish(publisher, publish("plant/7/temp", &"x".repeat(40), 0, 0));
    world.publish(publisher, publish("plant/7/temp", "x", 0, 0));
    let got = publishes(world.take(sub));
    let seen: Vec<_> = got.iter().map(|p| (&*p.topic, p.topic_alias)).collect();
    assert_eq!(seen, [("plant/7/temp", Some(1))]);
}
