//! Rows that earlier builds wrote are read: an update of the program loses no shadow.

mod support;

use outpost_shadow::{Limits, ShadowKey};
use serde_json::json;
use support::Net;

/// The disk of a node that wrote `lamp`, heard of `pump` from its peer, was cut off, and wrote both. Row format 1.
const FIRST: &[(&str, &str)] = &[
    ("6f776e", "00000000000f42430038"),
    ("70df594d71a145abdc", "00000000001e8486021c"),
    (
        "736c616d7000",
        "01030200018bcfe568000002bfb01fc86aa35a780000000000000000000000000000000000808080c0d6fcf3c501bfb01fc86aa35a7801808080c0d6fcf3c501018bcfe568000000bfb01fc86aa35a78020006721f6c697374065b312c325d010004721f6f6e0666616c73650100070d06a06ae22b0ec402efc92b9daa095068483524ee94ef11a9956f7a33e7a39402856f4a83ee70586b00890202107be06f99928f81448e51a0c67d69ab4f10bfb01fc86aa35a7800000000000f4243017d3532e6d2096cef7a5fcee2a44a17595b3c84a966a0ee58b24a28026285bc0c0701040304130423084004430356020a151d21022302340142025608574b8001058101028301027f0002017d0100017d0003017d0080e2cfaa06007f0002017e000103077e0a641f636f6c6f75721f670a641f636f6c6f75721f720204641f6f6e040104010404010297027ec702d702018bcfe568000000bfb01fc86aa35a7832018bcfe568000000bfb01fc86aa35a7831018bcfe568000000bfb01fc86aa35a7874727565018bcfe568000002bfb01fc86aa35a7866616c736502007e01007f017f0402017d3532e6d2096cef7a5fcee2a44a17595b3c84a966a0ee58b24a28026285bc0c000286323a14a2bd628d017d3532e6d2096cef030200018bcfe568000000bfb01fc86aa35a7800018bcfe568000002bfb01fc86aa35a7803000a641f636f6c6f75721f67023201000a641f636f6c6f75721f720231010104641f6f6e0666616c736503",
    ),
    (
        "7370756d7000",
        "0104f80700018bcfe568000003bfb01fc86aa35a780000000000000000000000000000000000818080c0d6fcf3c501df594d71a145abdc01818080c0d6fcf3c501018bcfe568000003bfb01fc86aa35a78010007721f737065656402330400070d06a06ae22b0ec402efc92b9daa095068483524ee94ef11a9956f7a33e7a3ae01856f4a83d8d183be00a30102107be06f99928f81448e51a0c67d69ab4f10df594d71a145abdc00000000001e848601cb3f038b25add20f439606a8e0659224896c3b03d1641ab9e916c6df659e891a0701030303130323074003430256020815092102230234014202560357118001027e00017e01007e00017e0080e2cfaa067e00017f0002077f07641f73706565647f017f01017f017f9702018bcfe568000001df594d71a145abdc337f000101cb3f038b25add20f439606a8e0659224896c3b03d1641ab9e916c6df659e891a0001cb3f038b25add20f020100018bcfe568000001df594d71a145abdc010007641f7370656564023302",
    ),
];

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal"))
        .collect()
}

#[test]
fn the_disk_of_the_first_row_format_is_read_and_goes_on() {
    let mut net = Net::new(2, &Limits::default());
    *net.nodes[0].disk.rows() =
        FIRST.iter().map(|(key, value)| (bytes(key), bytes(value))).collect();
    net.crash(0);
    let (lamp, pump) = (ShadowKey::classic("lamp"), ShadowKey::classic("pump"));
    let desired = json!({"on": false, "colour": {"r": 1, "g": 2}});
    let reported = json!({"on": false, "list": [1, 2]});
    assert_eq!(net.state(0, &lamp), (json!({"desired": desired, "reported": reported}), 2));
    let pumped = json!({"desired": {"speed": 3}, "reported": {"speed": 3}});
    assert_eq!(net.state(0, &pump), (pumped, 1016));

    net.update(0, &lamp, &json!({"state": {"desired": {"on": true}}}));
    net.settle();
    assert_eq!(net.state(0, &lamp).1, 3, "its home still counts one by one");
    net.connect(0, 1);
    net.settle();
    net.assert_equal("a node that was empty has it all");
}
