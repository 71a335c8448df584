//! Whatever packet is written is read as the same, in every version and direction, and no part of it passes for a whole.

mod support;

use outpost_mqtt::packet::{Packet, Version};
use outpost_mqtt::{Decoder, encode, encode_within};
use proptest::prelude::*;
use support::arbitrary::packet;
use support::{client, server};

const VERSIONS: [Version; 3] = [Version::V3, Version::V4, Version::V5];

fn decoder_for(packet: &Packet, version: Version, from_client: bool) -> Decoder {
    match (packet, from_client) {
        (Packet::Connect(_), _) => Decoder::new(1 << 20),
        (_, true) => server(version),
        (_, false) => client(version),
    }
}

fn any_packet() -> impl Strategy<Value = (Version, bool, Packet)> {
    (prop::sample::select(VERSIONS.to_vec()), any::<bool>()).prop_flat_map(
        |(version, from_client)| {
            packet(version, from_client).prop_map(move |packet| (version, from_client, packet))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn written_and_read_is_the_same((version, from_client, packet) in any_packet()) {
        let mut bytes = Vec::new();
        encode(&packet, version, &mut bytes);
        let mut decoder = decoder_for(&packet, version, from_client);
        prop_assert_eq!(decoder.need(&bytes), Some(bytes.len()));
        bytes.extend_from_slice(b"\xC0\x00");
        let mut input = &bytes[..];
        prop_assert_eq!(decoder.decode(&mut input), Ok(Some(packet)));
        prop_assert_eq!(input, b"\xC0\x00");
    }

    /// The class of NanoMQ #2270, #2268 and mosquitto CVE-2024-10525: a packet that ends inside a field.
    #[test]
    fn cut_anywhere_it_is_no_whole_packet((version, from_client, packet) in any_packet()) {
        let mut bytes = Vec::new();
        encode(&packet, version, &mut bytes);
        let decoder = decoder_for(&packet, version, from_client);
        for cut in 0..bytes.len() {
            let mut input = &bytes[..cut];
            prop_assert_eq!(decoder.clone().decode(&mut input), Ok(None), "with {} of {} bytes", cut, bytes.len());
            prop_assert_eq!(input.len(), cut);
        }
        for cut in 0..bytes.len().min(120) {
            // The same with a remaining length that says so: a packet of its own, or an error, never a panic.
            let mut shorter = vec![bytes[0], cut as u8];
            shorter.extend(bytes.iter().skip(2).take(cut));
            let mut input = &shorter[..];
            let _ = decoder.clone().decode(&mut input);
        }
    }

    #[test]
    fn what_is_sent_fits_its_receiver((version, from_client, packet) in any_packet(), limit in 2u32..120) {
        let mut whole = Vec::new();
        encode(&packet, version, &mut whole);
        let mut out = b"before".to_vec();
        let outcome = encode_within(&packet, version, limit, &mut out);
        prop_assert_eq!(&out[..6], b"before");
        match outcome {
            Ok(()) if whole.len() <= limit as usize => prop_assert_eq!(&out[6..], &whole[..]),
            Ok(()) => {
                prop_assert!(out.len() - 6 <= limit as usize);
                let decoded = decoder_for(&packet, version, from_client).decode(&mut &out[6..]).expect("valid").expect("whole");
                prop_assert_eq!(decoded.kind(), packet.kind());
            }
            Err(error) => {
                prop_assert_eq!(out.len(), 6, "nothing was written");
                prop_assert!(whole.len() > limit as usize);
                prop_assert_eq!((error.size, error.limit), (whole.len(), limit));
            }
        }
    }

    #[test]
    fn any_bytes_at_all_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        outpost_mqtt::exercise::exercise(&bytes);
    }

    #[test]
    fn valid_packets_with_flipped_bytes_are_survived(
        (version, _, packet) in any_packet(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = Vec::new();
        encode(&packet, version, &mut bytes);
        for (place, value) in flips {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        outpost_mqtt::exercise::exercise(&bytes);
    }
}

#[test]
fn a_small_publish_does_not_keep_a_big_buffer_alive() {
    let mut big = b"\x30\x06\x00\x01p\x00hi".to_vec();
    big.resize(1 << 16, 0);
    let mut input = &big[..];
    let Ok(Some(Packet::Publish(publish))) = server(Version::V5).decode(&mut input) else {
        panic!("a PUBLISH")
    };
    let (buffer, payload) = (big.as_ptr_range(), publish.payload.as_ptr());
    assert!(!buffer.contains(&payload), "the payload was copied out of the read buffer");
    assert_eq!(
        publish.payload.as_ptr(),
        publish.topic.as_bytes().as_ptr_range().end.wrapping_add(1),
        "once, with the topic"
    );
}

#[test]
fn a_decoder_is_small() {
    assert!(size_of::<Decoder>() <= 48, "{} bytes for each connection", size_of::<Decoder>());
}
