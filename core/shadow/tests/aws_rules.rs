//! The rules of AWS IoT's shadow service, a test for each: what is asked, and every message it is answered with, in their
//! order. Each runs for a classic and for a named shadow. The same table, for people, is docs/reference/shadows.md.

mod support;

use outpost_shadow::{Event, Limits, ShadowKey, Verb};
use serde_json::{Value, json};
use support::Net;

/// What is asked, and the messages it brings: the end of the topic, and the document. The top of a document lists what is
/// there (null: what is not), everything below is compared as a whole. Timestamps are seconds since the first request;
/// each request comes a second after the one before.
type Step = (Verb, Vec<u8>, Vec<(&'static str, Value)>);

/// When the virtual clock begins.
const START_S: u64 = 1_700_000_000;

macro_rules! rules {
    ($($name:ident: [$($verb:ident $payload:expr => [$($tail:literal $body:tt),* $(,)?]),* $(,)?])*) => {
        $(#[test]
        fn $name() {
            check(&[$((Verb::$verb, Vec::from($payload), vec![$(($tail, json!($body))),*])),*]);
        })*
    };
}

fn check(steps: &[Step]) {
    for key in [ShadowKey::classic("lamp"), ShadowKey::named("lamp", "config")] {
        let mut net = Net::new(1, &Limits::default());
        for (number, (verb, payload, expected)) in steps.iter().enumerate() {
            let what = format!("step {number} of {key:?}");
            net.ask(0, &key, *verb, payload, None);
            net.settle();
            let heard = std::mem::take(&mut net.nodes[0].published);
            let topics: Vec<&str> = heard.iter().map(|(topic, _)| topic.as_str()).collect();
            let wanted: Vec<String> = expected.iter().map(|(tail, _)| key.topic(tail)).collect();
            assert_eq!(topics, wanted, "{what}: {heard:?}");
            for ((_, document), (tail, wanted)) in heard.iter().zip(expected) {
                fits(document, &since_start(wanted), &format!("{what}, {tail}"));
            }
            net.now_ms += 1_000;
        }
    }
}

fn fits(document: &Value, wanted: &Value, what: &str) {
    for (field, value) in wanted.as_object().expect("an object") {
        let found = document.get(field).unwrap_or(&Value::Null);
        assert_eq!(found, &spoken(value, document), "{what}: {field} of {document}");
    }
}

/// In the table a thing is called by the classic shadow's name.
fn spoken(value: &Value, document: &Value) -> Value {
    match (value.as_str(), document["message"].as_str()) {
        (Some(text), Some(message)) if message.contains('~') => {
            text.replace("'lamp'", "'lamp~config'").into()
        }
        _ => value.clone(),
    }
}

fn since_start(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match value.as_u64() {
                Some(seconds) if key == "timestamp" => (key.clone(), json!(START_S + seconds)),
                _ => (key.clone(), since_start(value)),
            })
            .collect(),
        Value::Array(items) => items.iter().map(since_start).collect(),
        other => other.clone(),
    }
}

fn nested(levels: usize) -> String {
    let (open, close) = (r#"{"a":"#.repeat(levels), "}".repeat(levels));
    format!(r#"{{"state":{{"reported":{open}1{close}}},"clientToken":"t"}}"#)
}

fn of_bytes(length: usize) -> String {
    // {"a":"xx…"} has 8 bytes more than the text.
    let text = "x".repeat(length - 8);
    format!(r#"{{"state":{{"reported":{{"a":"{text}"}}}},"clientToken":"t"}}"#)
}

const TOKEN_64: &str = "tttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttttt";

rules! {
    // ---- updates ------------------------------------------------------------------------------------------------
    accepted_says_what_was_asked_with_its_metadata_version_time_and_token: [
        Update br#"{"state":{"reported":{"a":1,"b":{"c":"x"}}},"clientToken":"t"}"# => [
            "update/documents" {"clientToken": "t"},
            "update/accepted" {
                "state": {"reported": {"a": 1, "b": {"c": "x"}}},
                "metadata": {"reported": {"a": {"timestamp": 0}, "b": {"c": {"timestamp": 0}}}},
                "version": 1, "timestamp": 0, "clientToken": "t"
            },
        ],
        Update br#"{"state":{"reported":{"b":{"d":2}}}}"# => [
            "update/documents" {"clientToken": null},
            "update/accepted" {
                "state": {"reported": {"b": {"d": 2}}},
                "metadata": {"reported": {"b": {"d": {"timestamp": 1}}}},
                "version": 2, "timestamp": 1, "clientToken": null
            },
        ],
    ]
    objects_merge: [
        Update br#"{"state":{"reported":{"a":{"x":1,"y":{"z":2}}}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"reported":{"a":{"y":{"w":3}}}}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b"" => ["get/accepted" {"state": {"reported": {"a": {"x": 1, "y": {"z": 2, "w": 3}}}}}],
    ]
    arrays_are_replaced_whole: [
        Update br#"{"state":{"reported":{"a":[1,[2,{"b":3}],4]}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"reported":{"a":[9]}}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b"" => ["get/accepted" {"state": {"reported": {"a": [9]}}}],
    ]
    an_array_holds_no_null: [
        Update br#"{"state":{"desired":{"a":[1,null]}},"clientToken":"t"}"# => [
            "update/rejected" {"code": 400, "message": "Invalid JSON: arrays may not contain null values", "clientToken": "t"},
        ],
    ]
    null_takes_a_key_away_and_its_metadata: [
        Update br#"{"state":{"reported":{"a":1,"b":{"c":2,"d":3}}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"reported":{"a":null,"b":{"c":null}}}}"# => [
            "update/documents" {},
            "update/accepted" {"state": {"reported": {"a": null, "b": {"c": null}}}},
        ],
        Get b"" => ["get/accepted" {
            "state": {"reported": {"b": {"d": 3}}}, "metadata": {"reported": {"b": {"d": {"timestamp": 0}}}},
        }],
        Update br#"{"state":{"reported":{"b":null}}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b"" => ["get/accepted" {"state": {}, "metadata": {}, "version": 3}],
    ]
    null_takes_a_section_away: [
        Update br#"{"state":{"desired":{"a":1},"reported":{"a":1}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"desired":null}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b"" => ["get/accepted" {"state": {"reported": {"a": 1}}}],
    ]
    a_null_state_clears_both_and_is_no_delete: [
        Update br#"{"state":{"desired":{"a":1},"reported":{"a":1}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":null,"clientToken":"t"}"# => [
            "update/documents" {}, "update/accepted" {"version": 2, "clientToken": "t"},
        ],
        Get b"" => ["get/accepted" {"state": {}, "version": 2}],
    ]
    an_empty_object_takes_the_place_of_a_scalar_and_is_not_kept: [
        Update br#"{"state":{"reported":{"a":1,"b":{"c":2}}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"reported":{"a":{},"b":{},"d":{}}}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b"" => ["get/accepted" {"state": {"reported": {"b": {"c": 2}}}}],
    ]
    a_delta_a_client_sends_is_left_out: [
        Update br#"{"state":{"reported":{"a":1},"delta":{"z":1}}}"# => [
            "update/documents" {}, "update/accepted" {"state": {"reported": {"a": 1}}},
        ],
    ]
    fields_beside_the_state_are_left_out: [
        Update br#"{"state":{"reported":{"a":1}},"metadata":{"z":1},"more":[null]}"# => [
            "update/documents" {}, "update/accepted" {"state": {"reported": {"a": 1}}, "more": null},
        ],
    ]

    // ---- metadata -----------------------------------------------------------------------------------------------
    metadata_has_a_time_for_each_leaf_and_each_element_of_an_array: [
        Update br#"{"state":{"desired":{"a":[1,{"b":2},[3]]},"reported":{"a":[1,{"b":2},[3]],"c":1}}}"# => [
            "update/documents" {}, "update/accepted" {},
        ],
        Update br#"{"state":{"reported":{"c":1}}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b"" => ["get/accepted" {"metadata": {
            "desired": {"a": [{"timestamp": 0}, {"b": {"timestamp": 0}}, [{"timestamp": 0}]]},
            "reported": {"a": [{"timestamp": 0}, {"b": {"timestamp": 0}}, [{"timestamp": 0}]], "c": {"timestamp": 1}},
        }}],
    ]

    // ---- get ----------------------------------------------------------------------------------------------------
    get_shows_state_delta_metadata_version_time_and_token: [
        Update br#"{"state":{"desired":{"a":2,"b":1},"reported":{"b":1}}}"# => [
            "update/delta" {}, "update/documents" {}, "update/accepted" {},
        ],
        Get br#"{"clientToken":"t"}"# => ["get/accepted" {
            "state": {"desired": {"a": 2, "b": 1}, "reported": {"b": 1}, "delta": {"a": 2}},
            "metadata": {"desired": {"a": {"timestamp": 0}, "b": {"timestamp": 0}}, "reported": {"b": {"timestamp": 0}}},
            "version": 1, "timestamp": 1, "clientToken": "t",
        }],
    ]
    get_of_none_is_404: [
        Get br#"{"clientToken":"t"}"# => ["get/rejected" {
            "code": 404, "message": "No shadow exists with name: 'lamp'", "timestamp": 0, "clientToken": "t",
        }],
    ]
    get_takes_any_object_and_no_other_json: [
        Update br#"{"state":{}}"# => ["update/documents" {}, "update/accepted" {}],
        Get b" " => ["get/accepted" {}],
        Get b"{}" => ["get/accepted" {}],
        Get b"[1]" => ["get/rejected" {"code": 400, "message": "Invalid JSON"}],
    ]

    // ---- delta --------------------------------------------------------------------------------------------------
    delta_comes_after_every_update_that_leaves_a_difference_and_shows_all_of_it: [
        Update br#"{"state":{"reported":{"a":1,"b":{"x":1,"y":1},"only":1}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"desired":{"a":2,"b":{"x":1,"y":2}}},"clientToken":"t"}"# => [
            "update/delta" {
                "state": {"a": 2, "b": {"y": 2}},
                "metadata": {"a": {"timestamp": 1}, "b": {"y": {"timestamp": 1}}},
                "version": 2, "timestamp": 1, "clientToken": "t",
            },
            "update/documents" {}, "update/accepted" {},
        ],
        Update br#"{"state":{"reported":{"a":2}}}"# => [
            "update/delta" {"state": {"b": {"y": 2}}, "metadata": {"b": {"y": {"timestamp": 1}}}, "version": 3, "clientToken": null},
            "update/documents" {}, "update/accepted" {},
        ],
        Update br#"{"state":{"reported":{"b":{"y":2}}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"reported":{"b":{"y":3}}}}"# => [
            "update/delta" {"state": {"b": {"y": 2}}}, "update/documents" {}, "update/accepted" {},
        ],
        Update br#"{"state":{"desired":null}}"# => ["update/documents" {}, "update/accepted" {}],
    ]
    delta_compares_numbers_by_value_and_arrays_whole: [
        Update br#"{"state":{"desired":{"n":1,"l":[1,2]},"reported":{"n":1.0,"l":[1,2]}}}"# => ["update/documents" {}, "update/accepted" {}],
        Update br#"{"state":{"desired":{"l":[1,3]}}}"# => [
            "update/delta" {"state": {"l": [1, 3]}, "metadata": {"l": [{"timestamp": 1}, {"timestamp": 1}]}},
            "update/documents" {}, "update/accepted" {},
        ],
    ]

    // ---- documents ----------------------------------------------------------------------------------------------
    documents_show_the_shadow_before_and_after: [
        Update br#"{"state":{"reported":{"a":1}}}"# => [
            "update/documents" {"previous": null, "timestamp": 0, "current": {
                "state": {"reported": {"a": 1}}, "metadata": {"reported": {"a": {"timestamp": 0}}}, "version": 1,
            }},
            "update/accepted" {},
        ],
        Update br#"{"state":{"reported":{"a":2}},"clientToken":"t"}"# => [
            "update/documents" {
                "previous": {"state": {"reported": {"a": 1}}, "metadata": {"reported": {"a": {"timestamp": 0}}}, "version": 1},
                "current": {"state": {"reported": {"a": 2}}, "metadata": {"reported": {"a": {"timestamp": 1}}}, "version": 2},
                "timestamp": 1, "clientToken": "t",
            },
            "update/accepted" {},
        ],
        Update br#"{"state":{"reported":"x"}}"# => ["update/rejected" {}],
    ]

    // ---- versions -----------------------------------------------------------------------------------------------
    a_version_must_be_the_current_one: [
        Update br#"{"state":{"reported":{"a":1}},"version":1}"# => ["update/documents" {}, "update/accepted" {"version": 1}],
        Update br#"{"state":{"reported":{"a":2}},"version":1}"# => ["update/documents" {}, "update/accepted" {"version": 2}],
        Update br#"{"state":{"reported":{"a":3}},"version":1,"clientToken":"t"}"# => [
            "update/rejected" {"code": 409, "message": "Version conflict", "clientToken": "t"},
        ],
        Update br#"{"state":{"reported":{"a":3}},"version":3}"# => ["update/rejected" {"code": 409}],
        Update br#"{"state":{"reported":{"a":3}},"version":null}"# => ["update/documents" {}, "update/accepted" {"version": 3}],
        Delete br#"{"version":2}"# => ["delete/rejected" {"code": 409}],
        Delete br#"{"version":3}"# => ["delete/accepted" {}],
    ]
    the_first_version_is_1: [
        Update br#"{"state":{"reported":{"a":1}},"version":2,"clientToken":"t"}"# => [
            "update/rejected" {"code": 400, "message": "Invalid version", "clientToken": "t"},
        ],
        Update br#"{"state":{"reported":{"a":1}},"version":1}"# => ["update/documents" {}, "update/accepted" {"version": 1}],
    ]
    a_version_is_a_whole_number: [
        Update br#"{"state":{},"version":"1"}"# => ["update/rejected" {"code": 400, "message": "Invalid version"}],
        Update br#"{"state":{},"version":-1}"# => ["update/rejected" {"code": 400, "message": "Invalid version"}],
        Update br#"{"state":{},"version":1.5}"# => ["update/rejected" {"code": 400, "message": "Invalid version"}],
        Delete br#"{"version":[1]}"# => ["delete/rejected" {"code": 400, "message": "Invalid version"}],
    ]

    // ---- delete -------------------------------------------------------------------------------------------------
    delete_says_version_time_and_token_and_nothing_is_left: [
        Update br#"{"state":{"desired":{"a":1},"reported":{"a":1}}}"# => ["update/documents" {}, "update/accepted" {}],
        Delete br#"{"clientToken":"t"}"# => ["delete/accepted" {"version": 2, "timestamp": 1, "clientToken": "t", "state": null}],
        Get b"" => ["get/rejected" {"code": 404}],
        Delete br#"{"clientToken":"t"}"# => [
            "delete/rejected" {"code": 404, "message": "No shadow exists with name: 'lamp'", "clientToken": "t"},
        ],
    ]
    a_shadow_made_again_counts_on: [
        Update br#"{"state":{"reported":{"a":1}}}"# => ["update/documents" {}, "update/accepted" {"version": 1}],
        Delete b"" => ["delete/accepted" {"version": 2}],
        Update br#"{"state":{"reported":{"b":1}}}"# => [
            "update/documents" {"previous": null}, "update/accepted" {"version": 3},
        ],
        Get b"" => ["get/accepted" {"state": {"reported": {"b": 1}}}],
    ]

    // ---- what is refused ----------------------------------------------------------------------------------------
    what_is_no_json_object_is_400: [
        Update b"" => ["update/rejected" {"code": 400, "message": "Invalid JSON", "clientToken": null}],
        Update b"{" => ["update/rejected" {"code": 400, "message": "Invalid JSON"}],
        Update b"[]" => ["update/rejected" {"code": 400, "message": "Invalid JSON"}],
    ]
    the_state_must_be_there_and_an_object_of_objects: [
        Update br#"{"clientToken":"t"}"# => [
            "update/rejected" {"code": 400, "message": "Missing required node: state", "timestamp": 0, "clientToken": "t"},
        ],
        Update br#"{"state":5}"# => ["update/rejected" {"code": 400, "message": "State node must be an object"}],
        Update br#"{"state":{"desired":5}}"# => ["update/rejected" {"code": 400, "message": "Desired node must be an object"}],
        Update br#"{"state":{"reported":[]}}"# => ["update/rejected" {"code": 400, "message": "Reported node must be an object"}],
        Update br#"{"state":{"wanted":{}}}"# => ["update/rejected" {"code": 400, "message": "State contains an invalid node"}],
        Get b"" => ["get/rejected" {"code": 404}],
    ]
    a_token_has_64_bytes_at_most: [
        Update format!(r#"{{"state":{{}},"clientToken":"{TOKEN_64}"}}"#) => [
            "update/documents" {"clientToken": TOKEN_64}, "update/accepted" {"clientToken": TOKEN_64},
        ],
        Update format!(r#"{{"state":{{}},"clientToken":"{TOKEN_64}t"}}"#) => [
            "update/rejected" {"code": 400, "message": "Invalid clientToken", "clientToken": null},
        ],
        Get br#"{"clientToken":7}"# => ["get/rejected" {"code": 400, "message": "Invalid clientToken"}],
    ]
    six_levels_are_taken_and_seven_are_not: [
        Update nested(6) => ["update/documents" {}, "update/accepted" {}],
        Update nested(7) => ["update/rejected" {
            "code": 400, "message": "JSON contains too many levels of nesting; maximum is 6", "clientToken": "t",
        }],
    ]
    eight_kilobytes_of_state_are_taken_and_a_byte_more_is_413: [
        Update of_bytes(8192) => ["update/documents" {}, "update/accepted" {}],
        Update of_bytes(8193) => ["update/rejected" {
            "code": 413, "message": "The payload exceeds the maximum size allowed", "clientToken": "t",
        }],
        Update of_bytes(100_000) => ["update/rejected" {"code": 413, "clientToken": "t"}],
        Update br#"{"state":{"desired":{"a":1}}}"# => ["update/rejected" {"code": 413}],
        Update br#"{"state":{"reported":{"a":1}}}"# => ["update/documents" {}, "update/accepted" {}],
    ]
    what_is_no_utf_8_is_415: [
        Update b"{\"state\":{\"reported\":{\"a\":\"\xff\"}}}" => [
            "update/rejected" {"code": 415, "message": "Unsupported documented encoding; supported encoding is UTF-8"},
        ],
    ]
    get_and_delete_are_refused_alike: [
        Get b"x" => ["get/rejected" {"code": 400, "message": "Invalid JSON"}],
        Get b"\xff" => ["get/rejected" {"code": 415}],
        Delete of_bytes(100_000) => ["delete/rejected" {"code": 413, "clientToken": "t"}],
    ]
}

#[test]
fn names_that_are_not_allowed_are_400_on_their_own_topic() {
    for (key, message) in [
        (ShadowKey::classic("a b"), "Invalid thing name: it has 1 to 128 of a-z A-Z 0-9 : _ -"),
        (
            ShadowKey::named("a", "b.c"),
            "Invalid shadow name: it has 1 to 64 of $ a-z A-Z 0-9 : _ -",
        ),
        (
            ShadowKey::named("a", &"n".repeat(65)),
            "Invalid shadow name: it has 1 to 64 of $ a-z A-Z 0-9 : _ -",
        ),
    ] {
        let mut net = Net::new(1, &Limits::default());
        net.ask(0, &key, Verb::Update, br#"{"state":{},"clientToken":"t"}"#, None);
        net.settle();
        let (topic, body) = net.nodes[0].published.remove(0);
        assert_eq!(topic, key.topic("update/rejected"));
        fits(&body, &json!({"code": 400, "message": message, "clientToken": "t"}), &topic);
    }
}

#[test]
fn a_request_beyond_those_allowed_under_way_is_429() {
    let mut net = Net::new(1, &Limits::default());
    let (key, now) = (ShadowKey::classic("lamp"), net.now(0));
    let payload = br#"{"state":{"reported":{"a":1}},"clientToken":"t"}"#;
    net.nodes[0].hub.refuse_busy(&key, Verb::Update, payload, 7, now);
    net.drain(0);
    net.settle();
    let (id, status, body) = net.nodes[0].replies.remove(0);
    assert_eq!((id, status), (7, 429));
    fits(&body, &json!({"code": 429, "clientToken": "t"}), "the reply");
    assert_eq!(net.take_published(0, "update/rejected"), [body]);
    assert!(net.document(0, &key).is_none(), "nothing was written");
}

#[test]
fn a_deleted_shadow_is_remembered_for_48_hours_and_then_begins_anew() {
    let hours = |hours: u64| hours * 3_600_000;
    for (later_ms, version) in [(hours(48) - 1, 5), (hours(48), 1)] {
        // Whether the sweep came by in between makes no difference.
        for sweeps in [false, true] {
            let (mut net, key) = (Net::new(1, &Limits::default()), ShadowKey::classic("lamp"));
            for _ in 0..3 {
                net.update(0, &key, &json!({"state": {"reported": {"a": 1}}}));
            }
            net.ask(0, &key, Verb::Delete, b"", None);
            net.settle();
            net.now_ms += later_ms;
            if sweeps {
                net.tick(0);
            }
            net.settle();
            net.crash(0);
            net.forget_published();
            net.update(0, &key, &json!({"state": {"reported": {"b": 1}}}));
            net.settle();
            let accepted = net.take_published(0, "update/accepted").remove(0);
            assert_eq!(accepted["version"], version, "after {later_ms} ms, sweep: {sweeps}");
        }
    }
}

#[test]
fn what_was_deleted_48_hours_ago_is_still_known_while_a_peer_has_not_heard_of_it() {
    let (mut net, key) = (Net::meshed(2, &Limits::default()), ShadowKey::classic("lamp"));
    net.update(0, &key, &json!({"state": {"reported": {"a": 1}}}));
    net.settle();
    net.cut(0, 1);
    net.ask(0, &key, Verb::Delete, b"", None);
    net.settle();
    net.now_ms += 72 * 3_600_000;
    net.tick(0);
    net.settle();
    net.connect(0, 1);
    net.settle();
    assert!(net.document(1, &key).is_none(), "the old copy does not come back");
    net.assert_equal("after the heal");
    let merged = net.nodes[1].events.iter().any(|e| matches!(e, Event::Merged { .. }));
    assert!(merged, "it heard of the delete");
}

#[test]
fn a_version_of_a_shadow_a_node_does_not_know_is_409_where_a_peer_may_have_it() {
    let (mut net, key) = (Net::meshed(2, &Limits::default()), ShadowKey::classic("lamp"));
    net.cut(0, 1);
    net.update(0, &key, &json!({"state": {"reported": {"a": 1}}, "clientToken": "made here"}));
    net.ask(1, &key, Verb::Update, br#"{"state":{"reported":{"a":2}},"version":1}"#, Some(1));
    net.settle();
    assert_eq!(net.nodes[1].replies.remove(0).1, 409, "version 1 may have been read at node 0");
}

#[test]
fn size_and_depth_are_settings() {
    let limits = Limits { state_bytes_max: 20, depth_max: 2, ..Limits::default() };
    let (mut net, key) = (Net::new(1, &limits), ShadowKey::classic("lamp"));
    for (payload, status) in [
        (r#"{"state":{"reported":{"a":{"b":1}}}}"#, 200),
        (r#"{"state":{"reported":{"a":{"b":{"c":1}}}}}"#, 400),
        (r#"{"state":{"desired":{"d":12345}}}"#, 413),
        (r#"{"state":{"desired":{"d":1}}}"#, 200),
    ] {
        net.ask(0, &key, Verb::Update, payload.as_bytes(), Some(1));
        net.settle();
        assert_eq!(net.nodes[0].replies.remove(0).1, status, "{payload}");
    }
}
