//! Logging in by SCRAM-SHA-256 (MQTT 5, §4.12), by a client that shares nothing with the node: Python's standard library.

use outpost_node::Hooks;
use outpost_node::config::User;

use crate::support::node::TestNode;
use crate::support::outpost::{Finished, finish, user};
use crate::support::tools::tool;

/// Arguments: port, user, password. Prints what the exchange came to.
const PROGRAM: &str = r#"
import base64, hashlib, hmac, os, socket, struct, sys

port, user, password = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
link = socket.create_connection(("127.0.0.1", port), 20)

def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(value)) + value

def varint(number):
    out = b""
    while True:
        number, low = divmod(number, 128)
        out += bytes([low | (128 if number else 0)])
        if not number:
            return out

def frame(first, body):
    link.sendall(bytes([first]) + varint(len(body)) + body)

def exactly(count):
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise SystemExit("closed")
        data += part
    return data

def packet():
    first, length, shift = exactly(1)[0], 0, 0
    while True:
        byte = exactly(1)[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return first, exactly(length)

def auth_data(properties):
    # 0x15 method, 0x16 data; numbers of the other properties of CONNACK have known sizes.
    sizes = {0x11: 4, 0x13: 2, 0x21: 2, 0x22: 2, 0x24: 1, 0x25: 1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2a: 1}
    found = {}
    while properties:
        name, properties = properties[0], properties[1:]
        if name in sizes:
            properties = properties[sizes[name]:]
        else:
            length = struct.unpack(">H", properties[:2])[0]
            found[name], properties = properties[2:2 + length], properties[2 + length:]
    assert found[0x15] == b"SCRAM-SHA-256", found
    return found.get(0x16, b"")

def properties(data):
    body = b"\x15" + text("SCRAM-SHA-256") + b"\x16" + text(data)
    return varint(len(body)) + body

def first_message():
    global bare
    bare = "n=%s,r=%s" % (user, base64.b64encode(os.urandom(18)).decode())
    return "n,," + bare

def proof(server_first):
    fields = dict(part.split("=", 1) for part in server_first.decode().split(","))
    salted = hashlib.pbkdf2_hmac("sha256", password, base64.b64decode(fields["s"]), int(fields["i"]))
    mac = lambda key, data: hmac.new(key, data.encode(), "sha256").digest()
    key = mac(salted, "Client Key")
    final = "c=biws,r=" + fields["r"]
    signed = ",".join([bare, server_first.decode(), final])
    signature = mac(hashlib.sha256(key).digest(), signed)
    global expected
    expected = b"v=" + base64.b64encode(mac(mac(salted, "Server Key"), signed))
    return final + ",p=" + base64.b64encode(bytes(a ^ b for a, b in zip(key, signature))).decode()

def exchange(what):
    kind, body = packet()
    assert (kind, body[0]) == (0xf0, 0x18), (kind, body)
    data = proof(auth_data(body[2:]))
    frame(0xf0, b"\x18" + properties(data))
    return packet()

connect = text("MQTT") + b"\x05\x02" + struct.pack(">H", 60) + properties(first_message()) + text("scram-client")
frame(0x10, connect)
kind, body = exchange("CONNACK")
assert kind == 0x20, kind
if body[1]:
    raise SystemExit("refused 0x%02x" % body[1])
assert auth_data(body[3:]) == expected, "the server does not know the password"
frame(0xf0, b"\x19" + properties(first_message()))
kind, body = exchange("AUTH")
assert (kind, body[0]) == (0xf0, 0), (kind, body)
assert auth_data(body[2:]) == expected, "the server does not know the password"
frame(0xc0, b"")
assert packet() == (0xd0, b"")
print("in, and in again")
"#;

async fn log_in(node: &TestNode, name: &str, password: &str) -> Finished {
    let mut python = tool("python3");
    python.args(["-c", PROGRAM, &node.mqtt().port().to_string(), name, password]);
    finish(python).await
}

/// MQTT 5: 4.12.0-2, 4.12.0-4, 4.12.0-5, 4.12.1-2
#[tokio::test(flavor = "multi_thread")]
async fn a_client_and_the_node_prove_to_each_other_that_they_know_the_password() {
    let ann = user("ann", "correct horse").await;
    let hashed_only = User { scram: None, name: "bob".into(), ..ann.clone() };
    let with_users = |config: &mut outpost_node::config::Config| {
        config.listen.mqtt.anonymous = Some(false);
        config.security.user = vec![ann, hashed_only];
    };
    let node = TestNode::start_with(with_users, Hooks::default()).await;
    let done = log_in(&node, "ann", "correct horse").await;
    assert_eq!((done.code, &*done.stdout), (Some(0), "in, and in again\n"), "{}", done.stderr);
    // A wrong password, somebody nobody knows, and somebody without a verifier look the same.
    for (name, password) in [("ann", "guess"), ("eve", "correct horse"), ("bob", "correct horse")] {
        let done = log_in(&node, name, password).await;
        assert_eq!((done.code, &*done.stderr), (Some(1), "refused 0x87\n"), "{name}");
    }
    node.stop().await;
}
