//! Extended authentication (MQTT 5, §4.12), clause by clause, with a method made for it: it asks for a name and then for the
//! name again, backwards.

use std::sync::Arc;

use bytes::Bytes;
use outpost_actors::ports::{
    Action, Admission, Credentials, Gate, Identity, Method, OpenGate, Origin, Step,
};
use outpost_mqtt::packet::{Auth, Connect, Packet, ReasonCode};

use crate::world::{Client, World, fleeting, publish, v5};

const METHOD: &str = "BACKWARDS";

#[derive(Debug)]
struct MethodGate;

#[derive(Debug, Default)]
struct Backwards {
    name: Option<String>,
}

impl Method for Backwards {
    fn step(&mut self, data: Option<&[u8]>) -> Step {
        let Some(data) = data else { return Step::Continue("who?".into()) };
        let text = String::from_utf8_lossy(data).into_owned();
        match &self.name {
            None => {
                self.name = Some(text);
                Step::Continue("backwards?".into())
            }
            Some(name) if name.chars().rev().eq(text.chars()) => {
                Step::Done(Some(Arc::from(&**name)), Some("welcome".into()))
            }
            Some(_) => Step::Refused("not backwards"),
        }
    }
}

impl Gate for MethodGate {
    fn admit(&self, origin: &Origin, client_id: &str, credentials: &Credentials) -> Admission {
        OpenGate.admit(origin, client_id, credentials)
    }

    fn check_slowly(&self, _: &Origin, _: &str, _: &Credentials) -> Admission {
        Admission::NotAuthorized
    }

    fn begin(&self, _: &Origin, _: &str, method: &str) -> Option<Box<dyn Method>> {
        (method == METHOD).then(|| Box::<Backwards>::default() as Box<dyn Method>)
    }

    fn allows(&self, who: &Identity, _: Action, topic: &str) -> bool {
        who.user.as_deref().is_none_or(|user| topic.starts_with(user))
    }
}

fn world() -> World {
    World::guarded(Arc::new(MethodGate))
}

fn with_method(connect: Connect, method: &str, data: Option<&'static str>) -> Connect {
    let auth_data = data.map(|data| Bytes::from_static(data.as_bytes()));
    Connect { auth_method: Some(method.to_owned().into()), auth_data, ..connect }
}

fn auth(reason: ReasonCode, data: &'static str) -> Packet {
    let (method, data) = (Some(METHOD.into()), Some(Bytes::from_static(data.as_bytes())));
    Packet::Auth(Box::new(Auth { reason, method, data, ..Auth::default() }))
}

fn answer(data: &'static str) -> Packet {
    auth(ReasonCode::ContinueAuthentication, data)
}

/// What the node asks: the data of its only packet, AUTH 0x18 with the method.
fn asked(world: &mut World, client: Client) -> String {
    match &world.take(client)[..] {
        [Packet::Auth(auth)] if auth.reason == ReasonCode::ContinueAuthentication => {
            assert_eq!(auth.method.as_deref(), Some(METHOD), "MQTT-4.12.0-5");
            String::from_utf8_lossy(auth.data.as_deref().unwrap_or_default()).into_owned()
        }
        other => panic!("AUTH 0x18 is expected, not {other:?}"),
    }
}

/// The code of the CONNACK it gets, and that the connection is closed then.
fn refusal(world: &mut World, client: Client) -> ReasonCode {
    world.sync();
    let packets = world.take(client);
    let [Packet::Connack(connack)] = &packets[..] else { panic!("CONNACK, not {packets:?}") };
    assert!(!world.is_open(client), "MQTT-4.12.0-4: MUST close");
    connack.reason
}

fn log_in(world: &mut World, connect: Connect, name: &'static str, back: &'static str) -> Client {
    let client = world.start_connect(0, with_method(connect, METHOD, Some(name)));
    assert_eq!(asked(world, client), "backwards?");
    world.send(client, answer(back));
    world.sync();
    match &world.take(client)[..] {
        [Packet::Connack(connack)] if connack.reason == ReasonCode::Success => {
            assert_eq!(connack.auth_method.as_deref(), Some(METHOD), "MQTT-4.12.0-5");
            assert_eq!(connack.auth_data.as_deref(), Some(&b"welcome"[..]));
        }
        other => panic!("CONNACK is expected, not {other:?}"),
    }
    client
}

/// MQTT 5: 4.12.0-2, 4.12.0-5
#[test]
fn the_exchange_ends_in_connack_and_the_user_is_who_was_proved_4_12_0_2() {
    for connect in [v5("c"), fleeting("c")] {
        let mut world = world();
        let client = log_in(&mut world, connect, "ann", "nna");
        world.publish(client, publish("ann/x", "hi", 1, 1));
        world.publish(client, publish("bob/x", "hi", 1, 2));
        world.sync();
        let codes: Vec<_> = world
            .take(client)
            .into_iter()
            .map(|p| if let Packet::Puback(a) = p { a.reason } else { panic!("{p:?}") })
            .collect();
        assert_eq!(codes, [ReasonCode::NoMatchingSubscribers, ReasonCode::NotAuthorized]);
    }
}

#[test]
fn a_client_without_first_data_is_asked_for_it_4_12() {
    let mut world = world();
    let client = world.start_connect(0, with_method(v5("c"), METHOD, None));
    assert_eq!(asked(&mut world, client), "who?");
    world.send(client, answer("ann"));
    assert_eq!(asked(&mut world, client), "backwards?");
}

#[test]
fn a_method_that_is_not_offered_is_0x8c_4_12_0_1() {
    let mut world = world();
    let client = world.start_connect(0, with_method(v5("c"), "SCRAM-SHA-1", Some("x")));
    assert_eq!(refusal(&mut world, client), ReasonCode::BadAuthenticationMethod);
}

#[test]
fn a_wrong_answer_is_a_refusal_and_the_end_4_12_0_4() {
    let mut world = world();
    let client = world.start_connect(0, with_method(v5("c"), METHOD, Some("ann")));
    assert_eq!(asked(&mut world, client), "backwards?");
    world.send(client, answer("bob"));
    assert_eq!(refusal(&mut world, client), ReasonCode::NotAuthorized);
}

#[test]
fn who_was_asked_sends_auth_or_disconnect_and_nothing_else_3_1_2_30() {
    let other = Auth { method: Some("OTHER".into()), ..Auth::default() };
    let continued = Auth { reason: ReasonCode::ContinueAuthentication, ..other };
    for wrong in [
        Packet::Pingreq,
        Packet::Publish(Box::new(publish("ann/x", "hi", 0, 0))),
        Packet::Auth(Box::new(continued)),       // MQTT-4.12.0-5
        auth(ReasonCode::ReAuthenticate, "ann"), // MQTT-4.12.0-3: 0x18 until the CONNACK
    ] {
        let mut world = world();
        let client = world.start_connect(0, with_method(v5("c"), METHOD, Some("ann")));
        asked(&mut world, client);
        world.send(client, wrong);
        assert_eq!(refusal(&mut world, client), ReasonCode::ProtocolError);
    }
    let mut world = world();
    let client = world.start_connect(0, with_method(v5("c"), METHOD, Some("ann")));
    asked(&mut world, client);
    world.send(client, Packet::Disconnect(Box::default()));
    assert!(world.take(client).is_empty() && !world.is_open(client));
}

#[test]
fn who_does_not_answer_is_cut_off_with_its_time_to_connect() {
    let mut world = world();
    let client = world.start_connect(0, with_method(v5("c"), METHOD, Some("ann")));
    asked(&mut world, client);
    world.pass(6_000);
    assert!(!world.is_open(client));
}

#[test]
fn without_a_method_nobody_sends_auth_4_12_0_6_and_7() {
    let mut world = world();
    let client = world.connect(v5("c"));
    world.send(client, answer("ann"));
    let packets = world.take(client);
    let [Packet::Disconnect(disconnect)] = &packets[..] else { panic!("{packets:?}") };
    assert_eq!(disconnect.reason, ReasonCode::ProtocolError);
}

#[test]
fn authenticated_again_while_everything_goes_on_4_12_1() {
    let mut world = world();
    let client = log_in(&mut world, v5("c"), "ann", "nna");
    for _ in 0..2 {
        world.send(client, auth(ReasonCode::ReAuthenticate, "ann"));
        assert_eq!(asked(&mut world, client), "backwards?");
        world.send(client, Packet::Pingreq);
        assert_eq!(world.take(client), [Packet::Pingresp], "other packets go on");
        world.send(client, answer("nna"));
        let packets = world.take(client);
        let [Packet::Auth(done)] = &packets[..] else { panic!("{packets:?}") };
        assert_eq!(done.reason, ReasonCode::Success);
        assert_eq!(done.method.as_deref(), Some(METHOD));
        assert_eq!(done.data.as_deref(), Some(&b"welcome"[..]));
    }
}

/// MQTT 5: 4.12.1-2
#[test]
fn what_may_go_wrong_the_second_time_ends_the_connection_4_12_1_2() {
    let foreign = |reason| {
        let method = Some("OTHER".into());
        Packet::Auth(Box::new(Auth { reason, method, ..Auth::default() }))
    };
    let again = || auth(ReasonCode::ReAuthenticate, "ann");
    let cases: Vec<(Vec<Packet>, ReasonCode)> = vec![
        // MQTT-4.12.1-1: the method of the CONNECT.
        (vec![foreign(ReasonCode::ReAuthenticate)], ReasonCode::ProtocolError),
        (vec![again(), answer("bob")], ReasonCode::NotAuthorized),
        // Somebody else now: the session is not theirs.
        (vec![auth(ReasonCode::ReAuthenticate, "bob"), answer("bob")], ReasonCode::NotAuthorized),
        (vec![again(), again()], ReasonCode::ProtocolError),
        // Nobody asked.
        (vec![answer("nna")], ReasonCode::ProtocolError),
    ];
    for (packets, reason) in cases {
        let mut world = world();
        let client = log_in(&mut world, v5("c"), "ann", "nna");
        for packet in packets.clone() {
            world.send(client, packet);
        }
        let got = world.take(client);
        let Some(Packet::Disconnect(disconnect)) = got.last() else {
            panic!("{packets:?}: {got:?}")
        };
        assert_eq!(disconnect.reason, reason, "{packets:?}");
        assert!(!world.is_open(client));
    }
}

#[test]
fn a_stranger_says_little_and_a_client_as_much_as_it_may() {
    let mut world = world();
    let long = "x".repeat(100_000);
    let client = world.start_connect(0, with_method(v5("c"), METHOD, Some("anna")));
    assert_eq!(asked(&mut world, client), "backwards?");
    let auth = Auth {
        reason: ReasonCode::ContinueAuthentication,
        method: Some(METHOD.into()),
        data: None,
        ..Auth::default()
    };
    // Binary data has 64 KiB at most: the user properties make it longer.
    let auth =
        Auth { data: None, user: vec![("k".into(), long[..60_000].to_owned().into())], ..auth };
    world.send(client, Packet::Auth(Box::new(auth)));
    assert_eq!((world.take(client), world.is_open(client)), (vec![], false));
    let client = log_in(&mut world, v5("c"), "anna", "anna");
    world.publish(client, publish("anna/t", &long, 1, 1));
    world.sync();
    assert!(matches!(world.take(client)[..], [Packet::Puback(_)]));
}
