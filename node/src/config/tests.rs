//! The configuration as people get it wrong: each class of mistake with its exact place.

use std::path::PathBuf;

use super::*;

/// A directory of its own with these files; the first is the configuration.
fn files(content: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, text) in content {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("inside the directory")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    let first = directory.path().join(content[0].0);
    (directory, first)
}

/// Loads one text and returns the issues as people read them, without the directory.
fn issues(text: &str) -> Vec<String> {
    let (directory, file) = files(&[("bad.toml", text)]);
    let Err(error) = Config::load(&Sources::file(file)) else { return Vec::new() };
    let prefix = format!("{}/", directory.path().display());
    error.0.iter().map(|issue| issue.to_string().replace(&prefix, "")).collect()
}

fn check(text: &str, expected: &[&str]) {
    assert_eq!(issues(text), expected, "for:\n{text}");
}

#[test]
fn without_anything_the_defaults_hold() {
    let config = Config::load(&Sources::default()).expect("the defaults are valid");
    assert_eq!(config, Config::default());
    assert_eq!(config.listen.mqtt.bind.to_string(), "127.0.0.1:1883");
    assert_eq!(config.listen.mqtt.durability, Durability::Disk);
}

#[test]
fn later_sources_win() {
    let (_directory, file) = files(&[
        (
            "outpost.toml",
            "[node]\nname = \"file\"\n[limits]\ninflight_max = 1\nretained_max = 1\nsessions_max = 1\nqueue_messages_max = 1",
        ),
        ("conf.d/20.toml", "[limits]\nretained_max = 3\nsessions_max = 3"),
        ("conf.d/10.toml", "[limits]\nretained_max = 2\nsessions_max = 2\nqueue_messages_max = 2"),
        ("conf.d/note.txt", "not read"),
    ]);
    let mut sources = Sources::file(file).with_set(vec!["limits.topic_alias_max = 5".into()]);
    sources.env.push(("OUTPOST_LIMITS__SESSIONS_MAX".into(), "4".into()));
    sources.env.push(("OUTPOST_LIMITS__TOPIC_ALIAS_MAX".into(), "4".into()));
    sources.env.push(("OUTPOST_URL".into(), "not the configuration's".into()));
    let config = Config::load(&sources).expect("valid");
    let limits = &config.limits;
    assert_eq!(config.node.name, "file");
    assert_eq!((limits.inflight_max, limits.queue_messages_max, limits.retained_max), (1, 2, 3));
    assert_eq!((limits.sessions_max, limits.topic_alias_max), (4, 5));
}

#[test]
fn entries_of_several_files_add_up() {
    let user = |name: &str| {
        format!(
            "[[security.user]]\nname = \"{name}\"\npassword = \"$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaA\"\n"
        )
    };
    let (_directory, file) =
        files(&[("outpost.toml", &user("ann")), ("conf.d/bob.toml", &user("bob"))]);
    let config = Config::load(&Sources::file(file)).expect("valid");
    let names: Vec<_> = config.security.user.iter().map(|user| user.name.as_str()).collect();
    assert_eq!(names, ["ann", "bob"]);
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_closest_known_one() {
    check(
        "[listen.mqtt]\n  bnd = \"127.0.0.1:1\"\n",
        &["bad.toml:2:3: listen.mqtt.bnd: unknown key; did you mean \"bind\"?"],
    );
    check("[lisen]\n", &["bad.toml:1:2: lisen: unknown key; did you mean \"listen\"?"]);
    check(
        "[log]\ncolour = true\n",
        &["bad.toml:2:1: log.colour: unknown key; known here: level, format"],
    );
}

#[test]
fn several_mistakes_are_reported_at_once() {
    check(
        "[listen.mqtt]\nbind = 1883\ndurability = \"dsik\"\npacket_max_bytes = 12\n[log]\nlevle = \"info\"\n",
        &[
            "bad.toml:2:8: listen.mqtt.bind: expected an IP address with a port, like \"127.0.0.1:1883\", found the number 1883",
            "bad.toml:3:14: listen.mqtt.durability: expected \"disk\" or \"memory\", found \"dsik\"; did you mean \"disk\"?",
            "bad.toml:4:20: listen.mqtt.packet_max_bytes: 12 is out of range; allowed is 1024 to 268435455",
            "bad.toml:6:1: log.levle: unknown key; did you mean \"level\"?",
        ],
    );
}

#[test]
fn text_that_is_no_toml_is_named_with_its_place() {
    let found = issues("[node]\nname = \"edge\ndata_dir = 7\n");
    assert!(found[0].starts_with("bad.toml:2:"), "{found:?}");
    let found = issues("[node]\nname = \"a\"\nname = \"b\"\n");
    assert!(found.len() == 1 && found[0].starts_with("bad.toml:3:1: duplicate key"), "{found:?}");
}

#[test]
fn a_file_that_is_not_there_is_said_so() {
    let error = Config::load(&Sources::file("/nowhere/outpost.toml")).expect_err("no such file");
    assert_eq!(
        error.0[0].to_string(),
        "/nowhere/outpost.toml:1:1: cannot read this file: No such file or directory (os error 2)"
    );
}

#[test]
fn an_open_mqtt_port_needs_users_and_rules() {
    check(
        "[listen.mqtt]\nbind = \"0.0.0.0:1883\"\n",
        &[
            "bad.toml:2:8: listen.mqtt.bind: 0.0.0.0:1883 can be reached from other machines, and nobody can log in; \
             add [[security.user]] with name and password (or set listen.mqtt.anonymous = true)",
            "bad.toml:2:8: listen.mqtt.bind: 0.0.0.0:1883 can be reached from other machines, and no rule says what clients \
             may do; add [[security.acl]], for example effect = \"allow\", filter = \"devices/%c/#\"",
        ],
    );
    check(
        "[listen.mqtt]\nbind = \"0.0.0.0:1883\"\nanonymous = true\n[[security.acl]]\neffect = \"allow\"\nwho = \"anonymous\"\nfilter = \"devices/#\"\n",
        &[],
    );
}

#[test]
fn an_open_http_port_needs_a_token_of_some_length() {
    check(
        "[listen.http]\nbind = \"[::]:18080\"\n",
        &[
            "bad.toml:2:8: listen.http.bind: [::]:18080 can be reached from other machines, and requests need no token; \
           set listen.http.token_file",
        ],
    );
    let (directory, token) = files(&[("token", "short\n")]);
    let text = format!("[listen.http]\nbind = \"[::]:18080\"\ntoken_file = {token:?}\n");
    check(
        &text,
        &[&format!(
            "bad.toml:3:14: listen.http.token_file: the token in {} has fewer than 16 characters",
            token.display()
        )],
    );
    std::fs::write(directory.path().join("token"), "0123456789abcdef\n").expect("written");
    check(&text, &[]);
}

#[test]
fn two_listeners_on_one_port_are_refused() {
    check(
        "[listen.http]\nbind = \"127.0.0.1:1883\"\n",
        &[
            "bad.toml:2:8: listen.http.bind: 127.0.0.1:1883 collides with listen.mqtt.bind = 127.0.0.1:1883; choose another port",
        ],
    );
}

#[test]
fn a_listener_is_checked_key_by_key() {
    check(
        "[[listener]]\nname = \"a b\"\ntransport = \"tcp\"\nbind = \"127.0.0.1:1884\"\n\
         [[listener]]\nname = \"mqtt\"\ntransport = \"ws\"\npath = \"mqtt\"\ncert = \"c.pem\"\n\
         [[listener]]\nname = \"q\"\ntransport = \"quic\"\nproxy_protocol = true\n\
         [[listener]]\nname = \"t\"\ntransport = \"tsl\"\n\
         [[listener]]\ntransport = \"tcp\"\n",
        &[
            "bad.toml:2:8: listener[0].name: \"a b\" is no listener name; a name is 1 to 32 of a-z, 0-9, - and _",
            "bad.toml:6:8: listener[1].name: \"mqtt\" is there twice; each has a name of its own; \"mqtt\" is the one of [listen.mqtt]",
            "bad.toml:8:8: listener[1].path: \"mqtt\" is no path; a path is like \"/mqtt\"",
            "bad.toml:9:8: listener[1].cert: a ws listener has no certificates; use transport = \"tls\", \"wss\" or \"quic\"",
            "bad.toml:13:18: listener[2].proxy_protocol: the PROXY protocol is for TCP; QUIC has none; leave it out",
            "bad.toml:16:13: listener[3].transport: expected \"tcp\" or \"tls\" or \"ws\" or \"wss\" or \"quic\", found \"tsl\"; did you mean \"tls\"?",
            "bad.toml:17:1: listener[4].name: is missing",
        ],
    );
}

#[test]
fn an_open_listener_needs_a_lock_and_certificates_that_fit() {
    let found = issues(
        "[[listener]]\nname = \"out\"\ntransport = \"tls\"\nbind = \"0.0.0.0:8883\"\n\
         cert = \"/nowhere/c.pem\"\nkey = \"/nowhere/k.pem\"\n",
    );
    assert_eq!(
        found,
        [
            "bad.toml:4:8: listener[0].bind: 0.0.0.0:8883 can be reached from other machines, and nobody can log in; add [[security.user]] with name and password, or client_ca (or set anonymous = true)",
            "bad.toml:4:8: listener[0].bind: 0.0.0.0:8883 can be reached from other machines, and no rule says what clients may do; add [[security.acl]], for example effect = \"allow\", filter = \"devices/%c/#\"",
        ]
    );
    let found = issues(
        "[[listener]]\nname = \"in\"\ntransport = \"tls\"\ncert = \"/nowhere/c.pem\"\nkey = \"k\"\n",
    );
    assert_eq!(
        found,
        [
            "bad.toml:4:8: listener[0].cert: cannot read /nowhere/c.pem: No such file or directory (os error 2)"
        ]
    );
    let found = issues("[[listener]]\nname = \"in\"\ntransport = \"wss\"\n");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].contains("listener[0].cert: is missing: wss needs a certificate"),
        "{found:?}"
    );
}

#[test]
fn the_plain_listener_can_be_left_out_when_there_is_another() {
    check(
        "[listen.mqtt]\nenabled = false\n",
        &[
            "bad.toml:2:11: listen.mqtt.enabled: no listener is left for devices; set it to true or add a [[listener]]",
        ],
    );
    let text = "[listen.mqtt]\nenabled = false\n[[listener]]\nname = \"ws\"\ntransport = \"ws\"\n";
    check(text, &[]);
    let (_directory, file) = files(&[("a.toml", text)]);
    let config = Config::load(&Sources::file(file)).expect("valid");
    let all = config.listeners();
    assert_eq!((all.len(), all[0].address().to_string().as_str()), (1, "127.0.0.1:8083"));
}

#[test]
fn a_cluster_needs_certificates_that_can_be_read() {
    let found = issues("[cluster]\nca = \"/nowhere/ca.pem\"\nseeds = [\"gateway\"]\n");
    assert_eq!(
        found,
        [
            "bad.toml:1:1: cluster.cert: is missing: nodes only talk with certificates; `outpost ca init` and `outpost ca issue` make them, or `outpost node join`",
            "bad.toml:1:1: cluster.key: is missing: nodes only talk with certificates; `outpost ca init` and `outpost ca issue` make them, or `outpost node join`",
            "bad.toml:2:6: cluster.ca: cannot read /nowhere/ca.pem: No such file or directory (os error 2)",
            "bad.toml:3:9: cluster.seeds: \"gateway\" is no host:port; like \"gateway-1:17447\"",
        ]
    );
}

#[test]
fn users_and_rules_are_checked_one_by_one() {
    check(
        "[[security.user]]\nname = \"ann\"\npassword = \"hunter2\"\n\n[[security.user]]\npassword_file = \"/nowhere/bob\"\n\n\
         [[security.acl]]\nwho = \"user:anne\"\neffect = \"alow\"\nfilter = \"a/#/b\"\n",
        &[
            "bad.toml:3:12: security.user[0].password: is no Argon2 hash in PHC form ($argon2id$v=19$…); `outpost passwd` makes one",
            "bad.toml:5:1: security.user[1].name: is missing",
            "bad.toml:6:17: security.user[1].password_file: cannot read /nowhere/bob: No such file or directory (os error 2)",
            "bad.toml:9:7: security.acl[0].who: there is no user \"anne\"; did you mean \"user:ann\"?",
            "bad.toml:10:10: security.acl[0].effect: expected \"allow\" or \"deny\", found \"alow\"; did you mean \"allow\"?",
            "bad.toml:11:10: security.acl[0].filter: the filter \"a/#/b\" has a wildcard that does not fill its level, or a # before the end",
        ],
    );
}

#[test]
fn names_levels_and_devices_are_checked() {
    check(
        "[node]\nname = \"Edge 1\"\n[log]\nlevel = \"inof\"\n\n[[hardware.device]]\nname = \"lamp\"\ndriver = \"lde\"\nline = 17\n\
         [[hardware.device]]\nname = \"lamp\"\ndriver = \"led\"\nbias = \"pullup\"\n",
        &[
            "bad.toml:2:8: node.name: \"Edge 1\" is no node name; a name is 1 to 63 of a-z, 0-9 and -",
            "bad.toml:4:9: log.level: \"inof\" is no level; levels are off, error, warn, info, debug, trace; did you mean \"info\"?",
            "bad.toml:6:1: hardware.device[0]: hardware device lamp: there is no driver \"lde\"; there are: button, led, relay",
            "bad.toml:10:1: hardware.device[1].line: is missing",
            "bad.toml:13:8: hardware.device[1].bias: expected \"as_is\" or \"pull_up\" or \"pull_down\" or \"disabled\", found \"pullup\"; did you mean \"pull_up\"?",
        ],
    );
}

#[test]
fn environment_and_set_are_checked_like_files() {
    let mut sources = Sources::default().with_set(vec![
        "listen.mqtt.bnd=x".into(),
        "limits.inflight_max=0".into(),
        "x".into(),
    ]);
    sources.env.push(("OUTPOST_LISTEN__HTTP__BIND".into(), "nowhere".into()));
    sources.env.push(("OUTPOST_SECURITY__USER".into(), "ann".into()));
    let error = Config::load(&sources).expect_err("wrong in five places");
    let lines: Vec<_> = error.0.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "environment variable OUTPOST_LISTEN__HTTP__BIND: listen.http.bind: expected an IP address with a port, like \"127.0.0.1:1883\", found \"nowhere\"",
            "environment variable OUTPOST_SECURITY__USER: security.user: unknown key; lists of tables can only stand in a file",
            "--set limits.inflight_max=0: limits.inflight_max: 0 is out of range; allowed is 1 to 65535",
            "--set listen.mqtt.bnd=x: listen.mqtt.bnd: unknown key; did you mean \"bind\"?",
            "--set x: is not an assignment; write --set key=value",
        ]
    );
}

#[test]
fn the_snapshot_reads_back_and_keeps_its_name() {
    let config = Config { cluster: Some(Cluster::default()), ..Config::default() };
    let again: Config = toml::from_str(&config.to_toml()).expect("its own words");
    assert_eq!(again, config);
    assert_eq!(again.sha256(), config.sha256());
    assert_ne!(Config::default().sha256(), config.sha256());
}

#[test]
fn the_reference_says_every_key_of_the_struct() {
    crate::cli::golden("docs/reference/config.md", &reference());
}
