//! The bytes of frames: what they are, and what is refused.

use super::*;

fn message(payload: &'static [u8]) -> Message {
    Message {
        id: MessageId { node: NodeId(0x0102_0304_0506_0708), seq: 300 },
        topic: "plant/7/temp".into(),
        payload: Bytes::from_static(payload),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: None,
        accepted_wall_ms: 1_700_000_000_000,
        expiry_s: Some(60),
    }
}

fn with_properties() -> Message {
    let properties = MessageProperties {
        payload_is_utf8: Some(true),
        content_type: Some("text/plain".into()),
        response_topic: Some("answers/1".into()),
        correlation_data: Some(Bytes::from_static(&[0, 255])),
        user: vec![("k".into(), "v".into()), ("k".into(), "".into())],
    };
    Message { properties: Some(Box::new(properties)), ..message(b"21.5") }
}

fn every_frame() -> Vec<PeerFrame> {
    let entry = RetainedEntry {
        topic: "plant/7/temp".into(),
        stamp: Hlc(77),
        node: NodeId(9),
        message: Some(Arc::new(message(b"x"))),
    };
    let tombstone = RetainedEntry { message: None, ..entry.clone() };
    let interest = vec![Interest { pattern: "plant/+/temp".into(), durable: true, live: false }];
    let group = Interest { pattern: "$share/g/plant/+/temp".into(), durable: false, live: true };
    let shares = Shares { groups: vec!["$share/g/plant/+/temp".into()], hops: 1, session: None };
    let state = StateEntry {
        key: "session/lamp".into(),
        stamp: Hlc(78),
        node: NodeId(9),
        value: Some(Bytes::from_static(b"here")),
    };
    vec![
        PeerFrame::Hello(Hello {
            store_id: u64::MAX,
            your_store_id: 0,
            events_seen: 251,
            retained_seen: 70_000,
        }),
        PeerFrame::InterestAll(interest.clone()),
        PeerFrame::InterestAll(Vec::new()),
        PeerFrame::InterestAdd(interest.clone()),
        PeerFrame::InterestAdd(vec![interest[0].clone(), group]),
        PeerFrame::Event {
            seq: 5,
            message: Arc::new(message(b"21.5")),
            shares: Some(Arc::new(shares)),
        },
        PeerFrame::InterestRemove(vec!["a".into(), "b/#".into()]),
        PeerFrame::Event { seq: 5, message: Arc::new(message(b"21.5")), shares: None },
        PeerFrame::Event { seq: 0, message: Arc::new(with_properties()), shares: None },
        PeerFrame::EventAck { seq: 1 << 40 },
        PeerFrame::Retained { feed_seq: 3, entry },
        PeerFrame::Retained { feed_seq: 4, entry: tombstone },
        PeerFrame::RetainedSeen { feed_seq: 1 << 33 },
        PeerFrame::Event {
            seq: 6,
            message: Arc::new(message(b"21.5")),
            shares: Some(Arc::new(Shares {
                session: Some(Bytes::from_static(b"part")),
                ..Shares::default()
            })),
        },
        PeerFrame::StateGreet { feed_seq: 9 },
        PeerFrame::State { feed_seq: 10, entry: state.clone() },
        PeerFrame::State { feed_seq: 11, entry: StateEntry { value: None, ..state } },
        PeerFrame::StateSeen { feed_seq: 11 },
        PeerFrame::Barrier { number: 3 },
        PeerFrame::BarrierPassed { number: 3 },
        PeerFrame::Shadow(Bytes::from_static(b"opaque")),
    ]
}

fn decode(bytes: &[u8]) -> Result<Option<PeerFrame>, FrameError> {
    let header = decode_header(bytes[..HEADER_BYTES].try_into().expect("eight"))?;
    decode_body(header, &Bytes::copy_from_slice(&bytes[HEADER_BYTES..]))
}

#[test]
fn every_frame_survives_its_bytes() {
    for frame in every_frame() {
        let bytes = encode(&frame).expect("small");
        assert_eq!(decode(&bytes), Ok(Some(frame)));
    }
}

/// The format on the wire is fixed by these; a change of any of them needs a new version of its type.
#[test]
fn the_bytes_are_these_and_stay_these() {
    let hello = PeerFrame::Hello(Hello {
        store_id: 1,
        your_store_id: 250,
        events_seen: 251,
        retained_seen: 65_536,
    });
    let hello_bytes = [1, 1, 1, 0, 10, 0, 0, 0, 1, 250, 251, 251, 0, 252, 0, 0, 1, 0];
    assert_eq!(&encode(&hello).expect("small")[..], hello_bytes);
    let ack = PeerFrame::EventAck { seq: 300 };
    assert_eq!(&encode(&ack).expect("small")[..], [1, 6, 1, 0, 3, 0, 0, 0, 251, 44, 1]);
    let add = PeerFrame::InterestAdd(vec![Interest {
        pattern: "a/#".into(),
        durable: true,
        live: false,
    }]);
    assert_eq!(
        &encode(&add).expect("small")[..],
        [1, 3, 1, 0, 6, 0, 0, 0, 1, 3, b'a', b'/', b'#', 1]
    );
    let event = PeerFrame::Event {
        seq: 5,
        message: Arc::new(Message { topic: "t".into(), ..message(b"21") }),
        shares: None,
    };
    let mut expected = vec![
        1, 5, 1, 0, 33, 0, 0, 0, 5, 253, 8, 7, 6, 5, 4, 3, 2, 1, 251, 44, 1, 1, b't', 2, b'2',
        b'1', 1, 1,
    ];
    expected.extend([253, 0, 104, 229, 207, 139, 1, 0, 0, 1, 60, 0]);
    expected[4] = (expected.len() - HEADER_BYTES) as u8;
    assert_eq!(&encode(&event).expect("small")[..], expected);
}

#[test]
fn the_payload_shares_the_bytes_of_the_frame() {
    let message = Arc::new(message(b"payload"));
    let bytes = encode(&PeerFrame::Event { seq: 1, message, shares: None }).expect("small");
    let header = decode_header(bytes[..HEADER_BYTES].try_into().expect("eight")).expect("ours");
    let body = bytes.slice(HEADER_BYTES..);
    let Ok(Some(PeerFrame::Event { message, .. })) = decode_body(header, &body) else {
        panic!("an event")
    };
    assert!(body.as_ptr_range().contains(&message.payload.as_ptr()));
}

#[test]
fn what_a_newer_node_says_is_skipped_and_another_protocol_is_not_read() {
    let newer = Header { kind: EVENT_ACK, version: 2, length: 1 };
    assert_eq!(decode_body(newer, &Bytes::from_static(&[1])), Ok(None));
    let unknown = Header { kind: 99, version: 1, length: 0 };
    assert_eq!(decode_body(unknown, &Bytes::new()), Ok(None));
    assert_eq!(decode_header([2, 1, 1, 0, 0, 0, 0, 0]), Err(FrameError::Major(2)));
    assert_eq!(
        decode_header([1, 1, 1, 0, 255, 255, 255, 255]),
        Err(FrameError::TooLarge(0xffff_ffff))
    );
}

#[test]
fn frames_that_say_what_cannot_be_are_refused() {
    let bad = |change: &dyn Fn(&mut Message)| {
        let mut changed = message(b"x");
        change(&mut changed);
        let message = Arc::new(changed);
        decode(&encode(&PeerFrame::Event { seq: 1, message, shares: None }).expect("small"))
    };
    let invalid = |field| Err(FrameError::Invalid { kind: EVENT, field });
    assert_eq!(bad(&|m| m.topic = "a/+".into()), invalid("topic"));
    assert_eq!(bad(&|m| m.topic = "".into()), invalid("topic"));
    let properties =
        MessageProperties { response_topic: Some("a/#".into()), ..MessageProperties::default() };
    assert_eq!(
        bad(&|m| m.properties = Some(Box::new(properties.clone()))),
        invalid("response topic")
    );
    let share = vec![InterestBody { pattern: "$share/g/a", durable: false }];
    assert!(decode(&written(INTEREST_ALL, &share).expect("small")).is_err(), "another version");
    let groups = |groups: &[&str]| {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        let shares = Some(Arc::new(Shares { groups, ..Shares::default() }));
        let event = PeerFrame::Event { seq: 1, message: Arc::new(message(b"x")), shares };
        decode(&encode(&event).expect("small"))
    };
    assert_eq!(groups(&["plant/#"]), invalid("share group"));
    assert_eq!(groups(&["$share/g/#"; EVENT_SHARES_MAX + 1]), invalid("share group"));
    let huge = PeerFrame::Shadow(vec![0; BODY_BYTES_MAX + 1].into());
    assert_eq!(encode(&huge), Err(FrameError::TooLarge(BODY_BYTES_MAX + 1)));
}

#[test]
fn no_byte_string_makes_it_panic_or_allocate_what_it_claims() {
    let mut dice = 99_u64;
    let mut next = || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize
    };
    let frames: Vec<Bytes> =
        every_frame().iter().map(|frame| encode(frame).expect("small")).collect();
    for round in 0..100_000 {
        let mut bytes = frames[round % frames.len()].to_vec();
        for _ in 0..=next() % 3 {
            let place = next() % bytes.len();
            bytes[place] = next() as u8;
        }
        bytes.truncate(HEADER_BYTES.max(next() % (bytes.len() + 1)));
        let _ = decode(&bytes);
    }
    // A list that claims 2^60 entries.
    let mut claim = vec![253];
    claim.extend((1_u64 << 60).to_le_bytes());
    let header = Header { kind: INTEREST_ALL, version: 1, length: claim.len() };
    assert!(decode_body(header, &claim.into()).is_err());
}
