//! Stories of the ACL, and a comparison with a matcher that looks at every rule.

use outpost_model::topic::pattern_matches;
use proptest::prelude::*;

use super::config::glob_matches;
use super::*;

#[test]
fn no_rules_allow_nothing() {
    check(&[], &device("a"), Action::Read, "any", None, false);
    assert_eq!(Acl::default().decide(&device("a"), Action::Write, "any"), Decision::BY_DEFAULT);
}

#[test]
fn a_device_reaches_its_own_topics_and_no_others() {
    let rules = [allow(Who::Everyone, Access::ReadWrite, "dev/%c/#")];
    check(&rules, &device("7"), Action::Write, "dev/7/temp", Some(0), true);
    check(&rules, &device("7"), Action::Read, "dev/7/#", Some(0), true);
    check(&rules, &device("7"), Action::Write, "dev/8/temp", None, false);
    check(&rules, &device("7"), Action::Read, "dev/+/temp", None, false);
    check(&rules, &device("7"), Action::Read, "dev/#", None, false);
    check(&rules, &device("7"), Action::Read, "$share/g/dev/7/#", Some(0), true);
    check(&rules, &device("7"), Action::Read, "$share/g/dev/#", None, false);
}

#[test]
fn the_most_specific_rule_decides_and_between_equals_deny_wins() {
    let operator = Subject { roles: vec!["operator".into()], ..device("7") };
    let rules = [
        allow(Who::Everyone, Access::ReadWrite, "plant/#"),
        deny(Who::Everyone, Access::ReadWrite, "plant/door/#"),
        allow(Who::Role("operator".into()), Access::ReadWrite, "plant/door/+/state"),
        deny(Who::Everyone, Access::Write, "plant/door/+/state"),
    ];
    check(&rules, &device("7"), Action::Write, "plant/lamp", Some(0), true);
    check(&rules, &device("7"), Action::Read, "plant/door/1/state", Some(1), false);
    check(&rules, &operator, Action::Read, "plant/door/1/state", Some(2), true);
    check(&rules, &operator, Action::Write, "plant/door/1/state", Some(3), false);
    check(&rules, &operator, Action::Read, "plant/door", Some(1), false);
}

#[test]
fn a_subscription_that_would_reach_a_denied_topic_is_refused_whole() {
    let rules = [
        allow(Who::Everyone, Access::Read, "plant/#"),
        deny(Who::Everyone, Access::Read, "plant/+/secret"),
        allow(Who::Everyone, Access::Read, "plant/lobby/secret"),
    ];
    check(&rules, &device("7"), Action::Read, "plant/#", Some(1), false);
    check(&rules, &device("7"), Action::Read, "plant/+/+", Some(1), false);
    check(&rules, &device("7"), Action::Read, "plant/hall/#", Some(1), false);
    check(&rules, &device("7"), Action::Read, "plant/+/temp", Some(0), true);
    check(&rules, &device("7"), Action::Read, "plant/lobby/secret", Some(2), true);
}

#[test]
fn cve_2017_7650_ids_with_wildcards_widen_nothing() {
    let rules = [
        allow(Who::Everyone, Access::ReadWrite, "dev/%c/#"),
        allow(Who::Everyone, Access::ReadWrite, "user/%u"),
        allow(Who::Everyone, Access::ReadWrite, "%c/top"),
    ];
    for id in ["+", "#", "a/b", "", "+/+", "a\0", "7/../8"] {
        let who = Subject { client_id: id.into(), user: Some(id.into()), roles: vec![] };
        for topic in [
            "dev/7/x",
            "dev/+/x",
            "dev/#",
            "user/7",
            "user/+",
            "dev/a/b/x",
            "+/top",
            "a/b/top",
            "#",
            "dev//x",
        ] {
            check(&rules, &who, Action::Read, topic, None, false);
        }
    }
    let reserved = Subject { client_id: "$SYS".into(), ..device("x") };
    check(&rules, &reserved, Action::Read, "$SYS/top", None, false);
    let tricky = Subject { client_id: "%u".into(), user: Some("root".into()), roles: vec![] };
    check(&rules, &tricky, Action::Read, "dev/root/x", None, false);
    check(&rules, &tricky, Action::Read, "dev/%u/x", Some(0), true);
}

#[test]
fn an_unfit_id_does_not_slip_past_a_denying_rule() {
    let rules = [
        allow(Who::Everyone, Access::ReadWrite, "dev/#"),
        deny(Who::Everyone, Access::Write, "dev/%c/lock"),
    ];
    check(&rules, &device("7"), Action::Write, "dev/7/lock", Some(1), false);
    check(&rules, &device("7"), Action::Write, "dev/8/lock", Some(0), true);
    check(&rules, &device("a/b"), Action::Write, "dev/a/b/lock", Some(1), false);
    check(&rules, &device("a/b"), Action::Write, "dev/8/lock", Some(1), false);
    check(&rules, &device("a/b"), Action::Read, "dev/8/lock", Some(0), true);
}

#[test]
fn the_anonymous_get_in_only_when_configured_and_only_what_names_them() {
    let nobody = Subject { client_id: "sensor-1".into(), ..Subject::default() };
    let rules = vec![
        allow(Who::Everyone, Access::ReadWrite, "a"),
        allow(Who::Client("sensor-*".into()), Access::ReadWrite, "b"),
        allow(Who::Anonymous, Access::Read, "public/#"),
        deny(Who::Everyone, Access::Read, "public/not"),
    ];
    let closed = compile(false, rules.clone());
    assert!(!closed.decide(&nobody, Action::Read, "public/x").allow);
    let open = compile(true, rules);
    assert!(open.decide(&nobody, Action::Read, "public/x").allow);
    assert!(!open.decide(&nobody, Action::Write, "public/x").allow);
    assert!(!open.decide(&nobody, Action::Read, "public/not").allow);
    assert!(!open.decide(&nobody, Action::Read, "a").allow);
    assert!(!open.decide(&nobody, Action::Read, "b").allow);
    assert!(!open.decide(&device("x"), Action::Read, "public/x").allow);
}

#[test]
fn system_topics_need_a_rule_that_names_them_4_7_2() {
    let rules = [
        allow(Who::Everyone, Access::Read, "#"),
        allow(Who::User("root".into()), Access::Read, "$SYS/#"),
    ];
    check(&rules, &device("7"), Action::Read, "#", Some(0), true);
    check(&rules, &device("7"), Action::Read, "$SYS/broker/uptime", None, false);
    check(&rules, &device("7"), Action::Read, "$SYS/#", None, false);
    let root = Subject { user: Some("root".into()), ..device("7") };
    check(&rules, &root, Action::Read, "$SYS/#", Some(1), true);
}

#[test]
fn what_is_wrong_with_a_configuration_is_named_and_nothing_is_loaded() {
    let bad =
        |rule: Rule| Acl::compile(&AclConfig { anonymous: false, rules: vec![rule] }).unwrap_err();
    assert!(matches!(
        bad(allow(Who::Everyone, Access::Read, "a/#/b")),
        AclError::Filter { rule: 0, .. }
    ));
    assert_eq!(bad(allow(Who::Everyone, Access::Read, "$share/g/a")), AclError::Shared { rule: 0 });
    assert_eq!(
        bad(allow(Who::Role(String::new()), Access::Read, "a")),
        AclError::EmptyWho { rule: 0 }
    );
    let many = vec![allow(Who::Everyone, Access::Read, "a"); RULES_MAX + 1];
    assert_eq!(
        Acl::compile(&AclConfig { anonymous: false, rules: many }).unwrap_err(),
        AclError::TooMany(RULES_MAX + 1)
    );
}

#[test]
fn rules_read_from_toml_and_unknown_keys_are_refused() {
    let text = r##"
        anonymous = true
        rules = [
            { effect = "allow", who = "everyone", access = "readwrite", filter = "dev/%c/#" },
            { effect = "deny", who = { role = "guest" }, access = "write", filter = "#" },
        ]"##;
    let config: AclConfig = toml::from_str(text).expect("valid");
    assert_eq!(config.rules[1], deny(Who::Role("guest".into()), Access::Write, "#"));
    assert!(toml::from_str::<AclConfig>("anonymouse = true").is_err());
    assert!(
        toml::from_str::<AclConfig>(
            "rules = [{ effect = 'allow', who = 'everyone', acces = 'read' }]"
        )
        .is_err()
    );
}

#[test]
fn names_fit_patterns_with_stars() {
    for (pattern, text, expected) in [
        ("*", "", true),
        ("sensor-*", "sensor-7", true),
        ("sensor-*", "Sensor-7", false),
        ("*-7", "sensor-7", true),
        ("a*b*c", "a--b--b-c", true),
        ("a*b*c", "a--b--b-", false),
        ("", "x", false),
        ("a.*", "ab", false),
    ] {
        assert_eq!(glob_matches(pattern, text), expected, "{pattern} against {text}");
    }
    assert!(!glob_matches(&"*a".repeat(2_000), &"b".repeat(60_000)), "ends soon");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// For a topic name the tree says exactly what looking at every rule says.
    #[test]
    fn the_tree_agrees_with_looking_at_every_rule(rules in some_rules(), who in someone(), topic in some_topic()) {
        let acl = compile(true, rules.clone());
        for action in [Action::Read, Action::Write] {
            prop_assert_eq!(acl.decide(&who, action, &topic).allow, naive(&rules, &who, action, &topic));
        }
    }

    /// Every topic a granted filter can deliver may be read, also by ids made to confuse.
    #[test]
    fn a_granted_filter_delivers_nothing_that_is_denied(
        rules in some_rules(), who in anyone(), filter in some_filter(),
        topics in prop::collection::vec(some_topic(), 40),
    ) {
        let acl = compile(true, rules.clone());
        if acl.decide(&who, Action::Read, &filter).allow {
            for topic in topics.iter().filter(|topic| pattern_matches(&filter, topic)) {
                prop_assert!(naive(&rules, &who, Action::Read, topic), "{filter} delivers {topic}");
            }
        }
    }

    /// Without denying rules, a filter written in a rule that fits is granted.
    #[test]
    fn what_a_rule_allows_word_for_word_is_granted(filter in some_filter(), more in some_rules()) {
        let mut rules: Vec<Rule> = more.into_iter().filter(|rule| rule.effect == Effect::Allow).collect();
        rules.push(allow(Who::Everyone, Access::Read, &filter));
        prop_assert!(compile(false, rules).decide(&device("a"), Action::Read, &filter).allow);
    }
}

/// The rule of this module's first lines, word for word: slow and plain.
fn naive(rules: &[Rule], who: &Subject, action: Action, topic: &str) -> bool {
    let mut best: Option<(Vec<u8>, bool)> = None;
    for rule in rules {
        let user = who.user.as_ref().map_or("", |u| u);
        let filter = rule.filter.replace("%c", &who.client_id).replace("%u", user);
        let fits = rule.access.includes(action)
            && rule.who.fits(who, rule.effect)
            && pattern_matches(&filter, topic);
        let rank = filter.split('/').map(|level| match level {
            "#" => 0,
            "+" => 1,
            _ => 2,
        });
        let rank = rank.chain([3]).collect::<Vec<u8>>();
        let denies = rule.effect == Effect::Deny;
        if fits && best.as_ref().is_none_or(|best| (&rank, denies) > (&best.0, best.1)) {
            best = Some((rank, denies));
        }
    }
    best.is_some_and(|(_, denies)| !denies)
}

fn some_rules() -> impl Strategy<Value = Vec<Rule>> {
    let who = prop_oneof![
        Just(Who::Everyone),
        Just(Who::User("a*".into())),
        Just(Who::Client("b".into())),
        Just(Who::Role("r".into()))
    ];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::ReadWrite)];
    let effect = prop_oneof![2 => Just(Effect::Allow), 1 => Just(Effect::Deny)];
    let filter =
        prop_oneof![3 => some_filter(), 1 => some_filter().prop_map(|f| f.replace('c', "x%c"))];
    let rule = (effect, who, access, filter).prop_map(|(effect, who, access, filter)| Rule {
        effect,
        who,
        access,
        filter,
    });
    prop::collection::vec(rule, 0..12)
}

/// Ids that are plain levels: for these the two must agree exactly.
fn someone() -> impl Strategy<Value = Subject> {
    let roles = prop_oneof![Just(vec![]), Just(vec!["r".into()])];
    ("[abc]", "[ab]", roles).prop_map(
        |(client_id, user, roles): (String, String, Vec<ByteString>)| Subject {
            client_id: client_id.into(),
            user: Some(user.into()),
            roles,
        },
    )
}

/// Also ids made to confuse.
fn anyone() -> impl Strategy<Value = Subject> {
    let confusing = prop_oneof![Just("+"), Just("#"), Just("a/b"), Just("a/#"), Just("")];
    prop_oneof![3 => someone(), 1 => confusing.prop_map(|id| Subject { client_id: id.into(), ..device("a") })]
}

fn some_topic() -> impl Strategy<Value = String> {
    let level = prop_oneof![4 => "[abc]", 1 => "x[abc]", 1 => Just(String::new())];
    (prop_oneof![6 => Just(""), 1 => Just("$")], prop::collection::vec(level, 1..4))
        .prop_map(|(first, levels)| format!("{first}{}", levels.join("/")))
        .prop_filter("a topic has a character", |topic| !topic.is_empty())
}

fn some_filter() -> impl Strategy<Value = String> {
    let level = prop_oneof![4 => "[abc]", 2 => Just("+".to_owned())];
    let levels = prop::collection::vec(level, 1..4);
    (
        levels,
        prop_oneof![2 => Just(""), 1 => Just("/#")],
        prop_oneof![5 => Just(false), 1 => Just(true)],
    )
        .prop_map(
            |(levels, end, bare)| {
                if bare { "#".to_owned() } else { format!("{}{end}", levels.join("/")) }
            },
        )
}

fn check(
    rules: &[Rule],
    who: &Subject,
    action: Action,
    topic: &str,
    rule: Option<usize>,
    allow: bool,
) {
    let decision = compile(false, rules.to_vec()).decide(who, action, topic);
    assert_eq!(decision, Decision { allow, rule }, "{who:?} {action:?} {topic}");
}

fn compile(anonymous: bool, rules: Vec<Rule>) -> Acl {
    Acl::compile(&AclConfig { anonymous, rules }).expect("the rules are valid")
}

fn device(id: &str) -> Subject {
    Subject { client_id: id.into(), user: Some("device".into()), roles: vec![] }
}

fn allow(who: Who, access: Access, filter: &str) -> Rule {
    Rule { effect: Effect::Allow, who, access, filter: filter.into() }
}

fn deny(who: Who, access: Access, filter: &str) -> Rule {
    Rule { effect: Effect::Deny, who, access, filter: filter.into() }
}
