//! What does reading and writing a PUBLISH cost: 64 bytes of payload, QoS 1, MQTT 5, beside rmqtt-codec 0.3?
//!
//! Expected before running: reading at half its cost (one copy, no property struct), writing for fan-out, where the
//! payload is not copied, at a tenth. CPU time of this thread, so that a busy machine does not count.
//! Found (x86-64 virtual machine, two cores, shared): decode 121 ns to 131 (0.92), encode 17 ns to 70 (0.24), with or
//! without the payload at this size. Reading did not get its factor of two: it makes three allocations (packet, body,
//! the count that topic and payload share) and makes checks that the other leaves to its caller.
//! `cargo bench -p outpost-mqtt --bench codec`

use std::hint::black_box;

use bytes::BytesMut;
use outpost_mqtt::packet::{Packet, Version};
use outpost_mqtt::{Decoder, PACKET_BYTES_MAX, encode};
use tokio_util::codec::{Decoder as _, Encoder as _};

/// Enough for a stable figure, little enough for a second each.
const ROUNDS: u32 = 1_000_000;

fn main() {
    let bytes = frame();
    let ours = decode_ours(&bytes);
    let theirs = decode_theirs(&bytes);
    report("decode", ours, theirs);
    let ours = encode_ours(&bytes);
    let theirs = encode_theirs(&bytes);
    report("encode whole", ours, theirs);
    report("encode head, payload shared", encode_head(&bytes), theirs);
}

/// A PUBLISH of QoS 1, packet identifier 7, topic of 20 bytes, no properties, 64 bytes of payload.
fn frame() -> Vec<u8> {
    let mut bytes = b"\x32\x59\x00\x14plant/7/line/3/tempC\x00\x07\x00".to_vec();
    bytes.extend_from_slice(&[0x55; 64]);
    bytes
}

fn decoder() -> Decoder {
    Decoder::for_client(Version::V5, PACKET_BYTES_MAX)
}

fn decode_ours(bytes: &[u8]) -> f64 {
    let mut decoder = decoder();
    measure(|| {
        let mut input = black_box(bytes);
        black_box(decoder.decode(&mut input).expect("valid"));
    })
}

fn decode_theirs(bytes: &[u8]) -> f64 {
    let mut codec = rmqtt_codec::v5::Codec::new(0, 0);
    let mut buffer = BytesMut::with_capacity(1 << 16);
    measure(|| {
        buffer.extend_from_slice(black_box(bytes));
        black_box(codec.decode(&mut buffer).expect("valid"));
    })
}

fn encode_ours(bytes: &[u8]) -> f64 {
    let packet = decoder().decode(&mut &bytes[..]).expect("valid").expect("whole");
    let mut out = Vec::with_capacity(256);
    measure(|| {
        out.clear();
        encode(black_box(&packet), Version::V5, &mut out);
        black_box(&out);
    })
}

fn encode_head(bytes: &[u8]) -> f64 {
    let Ok(Some(Packet::Publish(publish))) = decoder().decode(&mut &bytes[..]) else {
        unreachable!("it is a PUBLISH")
    };
    let mut out = Vec::with_capacity(256);
    measure(|| {
        out.clear();
        black_box(&publish)
            .head()
            .encode(Version::V5, PACKET_BYTES_MAX, &mut out)
            .expect("it fits");
        black_box((&out, publish.payload.clone()));
    })
}

fn encode_theirs(bytes: &[u8]) -> f64 {
    let mut codec = rmqtt_codec::v5::Codec::new(0, 0);
    let (packet, _) = codec.decode(&mut BytesMut::from(bytes)).expect("valid").expect("whole");
    let mut out = BytesMut::with_capacity(256);
    measure(|| {
        out.clear();
        codec.encode(black_box(packet.clone()), &mut out).expect("valid");
        black_box(&out);
    })
}

/// Nanoseconds of CPU a round, the best of five.
fn measure(mut round: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let before = cpu_ns();
        for _ in 0..ROUNDS {
            round();
        }
        best = best.min((cpu_ns() - before) / f64::from(ROUNDS));
    }
    best
}

/// CPU time of this thread so far, from the scheduler's account of it.
fn cpu_ns() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux keeps it");
    stat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("its first figure is the CPU time")
}

fn report(what: &str, ours: f64, theirs: f64) {
    println!("{what}: {ours:.0} ns, rmqtt-codec {theirs:.0} ns, ratio {:.2}", ours / theirs);
}
