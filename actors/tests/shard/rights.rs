//! Access rules that have changed while the node was down: what was granted under the old ones.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use outpost_actors::ledger::Drop;
use outpost_actors::ports::{Action, Admission, Credentials, Gate, Identity, OpenGate, Origin};
use outpost_actors::shard::DecisionKind;
use outpost_mqtt::packet::{Connect, Packet, ReasonCode};

use crate::world::{World, fleeting, publish, v5, will};

/// Nobody may do anything below the topics that are named.
#[derive(Debug, Default)]
pub struct Rules {
    denied: Mutex<Vec<(&'static str, &'static str)>>,
    epoch: AtomicU64,
}

impl Rules {
    /// `client` may not publish below `level` from now on, nor receive from the next start on.
    pub fn deny(&self, client: &'static str, level: &'static str) {
        self.denied.lock().expect("nobody panics with it").push((client, level));
        self.epoch.fetch_add(1, Relaxed);
    }

    pub fn allow_all(&self) {
        self.denied.lock().expect("nobody panics with it").clear();
        self.epoch.fetch_add(1, Relaxed);
    }
}

impl Gate for Rules {
    fn admit(&self, origin: &Origin, client_id: &str, credentials: &Credentials) -> Admission {
        OpenGate.admit(origin, client_id, credentials)
    }

    fn check_slowly(&self, _: &Origin, _: &str, _: &Credentials) -> Admission {
        Admission::NotAuthorized
    }

    fn allows(&self, who: &Identity, _: Action, topic: &str) -> bool {
        let denied = self.denied.lock().expect("nobody panics with it");
        !denied.iter().any(|(client, level)| *who.client_id == **client && topic.starts_with(level))
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Relaxed)
    }
}

fn guarded() -> (World, Arc<Rules>) {
    let rules = Arc::new(Rules::default());
    (World::guarded(Arc::clone(&rules) as Arc<dyn Gate>), rules)
}

fn revoked(world: &World) -> u64 {
    world.shard(0).ledger().dropped[Drop::Revoked as usize]
}

#[test]
fn what_is_not_allowed_any_more_is_taken_away_with_what_is_queued_of_it() {
    let (mut world, rules) = guarded();
    let reader = world.connect(v5("reader"));
    for filter in ["open/#", "secret/+", "$share/g/secret/b"] {
        world.subscribe(reader, filter, 2);
    }
    world.disconnect(reader);
    let boss = world.connect(v5("boss"));
    for (number, topic) in ["secret/a", "open/a", "secret/b", "open/b"].into_iter().enumerate() {
        world.publish(boss, publish(topic, topic, 1 + (number as u8 & 1), number as u16 + 1));
        world.sync();
    }
    rules.deny("reader", "secret");
    world.crash(0);

    let (view, decided) =
        (&world.shard(0).sessions("reader")[0], world.shard(0).decisions_about("reader"));
    assert_eq!(view.filters, ["open/#"]);
    let kinds: Vec<_> = decided.iter().map(|d| (d.kind, &*d.topic, &*d.reason)).collect();
    let gone = |filter| (DecisionKind::SubscriptionRevoked, filter, "NotAuthorized");
    assert_eq!(kinds, [gone("secret/+"), gone("$share/g/secret/b")]);
    assert!(
        world.logs.iter().any(|line| line.contains("\"reader\" may not subscribe to \"secret/+\""))
    );
    let boss = world.connect(v5("boss"));
    world.publish(boss, publish("secret/c", "later", 1, 9));
    world.publish(boss, publish("open/c", "open/c", 1, 10));
    let reader = world.connect(v5("reader"));
    assert_eq!(world.drain(reader), ["open/a", "open/b", "open/c"]);
    assert_eq!(revoked(&world), 3, "secret/a, and secret/b by the filter and by the group");
    world.check_ledgers();

    rules.allow_all();
    world.crash(0);
    let reader = world.connect(v5("reader"));
    assert_eq!(world.drain(reader), Vec::<String>::new(), "nothing comes back by itself");
    assert_eq!(world.shard(0).sessions("reader")[0].filters, ["open/#"]);
}

#[test]
fn a_qos_2_exchange_that_has_begun_ends_without_the_message() {
    let (mut world, rules) = guarded();
    let reader = world.connect(v5("reader"));
    world.subscribe(reader, "secret", 2);
    let boss = world.connect(fleeting("boss"));
    world.publish(boss, publish("secret", "x", 2, 1));
    world.sync();
    assert_eq!(world.peek(reader), ["x"], "it is here, and not answered");
    rules.deny("reader", "secret");
    world.crash(0);
    let reader = world.connect(v5("reader"));
    world.sync();
    let packets = world.take(reader);
    let [Packet::Pubrel(release)] = &packets[..] else { panic!("PUBREL, not {packets:?}") };
    let done = outpost_mqtt::packet::Ack::new(release.packet_id, ReasonCode::Success);
    world.send(reader, Packet::Pubcomp(done));
    world.sync();
    assert_eq!(world.shard(0).sessions("reader")[0].queued, 0);
    world.check_ledgers();
}

#[test]
fn the_group_of_a_member_that_may_not_read_any_more_gets_what_waited_for_it() {
    let (mut world, rules) = guarded();
    let one = world.connect(v5("one"));
    world.subscribe(one, "$share/g/job", 1);
    world.disconnect(one);
    let boss = world.connect(fleeting("boss"));
    world.publish(boss, publish("job", "x", 1, 1));
    world.sync();
    rules.deny("one", "job");
    world.crash(0);
    let two = world.connect(v5("two"));
    world.subscribe(two, "$share/g/job", 1);
    let one = world.connect(v5("one"));
    assert_eq!(world.drain(one), Vec::<String>::new());
    assert_eq!(world.drain(two), ["x"]);
    world.check_ledgers();
}

#[test]
fn a_will_is_asked_about_when_it_is_due() {
    let (mut world, rules) = guarded();
    let mut connect = v5("device");
    connect.will = Some(will("secret", 5));
    let watcher = world.connect(v5("watcher"));
    world.subscribe(watcher, "secret", 1);
    world.connect(connect);
    rules.deny("device", "secret");
    world.crash(0);
    let watcher = world.connect(v5("watcher"));
    world.pass(10_000);
    assert_eq!(world.drain(watcher), Vec::<String>::new());
    let ledger = world.shard(0).ledger();
    assert_eq!(ledger.dropped[Drop::Denied as usize], 1);
}

#[test]
fn a_connect_that_is_refused_leaves_alone_who_is_there() {
    let (mut world, rules) = guarded();
    rules.deny("device", "secret");
    let there = world.connect(v5("device"));
    let mut connect = v5("device");
    connect.will = Some(will("secret", 0));
    let (refused, connack) = world.try_connect(0, connect);
    assert_eq!(connack.reason, ReasonCode::NotAuthorized);
    let user = Some("somebody else".into());
    let (other, connack) = world.try_connect(0, Connect { username: user, ..v5("device") });
    assert_eq!(connack.reason, ReasonCode::NotAuthorized);
    assert!(!world.is_open(refused) && !world.is_open(other));
    world.subscribe(there, "a", 1);
    world.publish(there, publish("a", "x", 1, 1));
    assert_eq!(world.drain(there), ["x"], "it was not even disturbed");
}
