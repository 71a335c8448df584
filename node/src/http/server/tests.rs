//! The API over a real socket, in front of a small node in memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;

use bytes::Bytes;
use outpost_model::NodeId;
use outpost_shadow::{Entry, Reason};
use serde_json::{Value, json};

use super::*;
use crate::http::LedgerPage;
use crate::http::{
    ActorInfo, AdminError, AdminRequest, BoxFuture, Health, PublishError, PublishRequest,
    ShadowKey, ShadowReply, ShadowRequest, ShadowVerb, ShadowsDown,
};

/// Shadows are kept as their last document; publishes are written down.
#[derive(Default)]
struct SmallNode {
    shadows: Mutex<BTreeMap<ShadowKey, Bytes>>,
    published: Mutex<Vec<PublishRequest>>,
    ill: bool,
}

impl Backend for SmallNode {
    fn actors(&self) -> BoxFuture<'_, Vec<ActorInfo>> {
        let actor = |id: &str, parent: Option<&str>, role: &str, state: &str| ActorInfo {
            id: id.into(),
            parent: parent.map(Into::into),
            kind: if role == "shard" { "ractor" } else { "cell" }.into(),
            role: role.into(),
            name: id.into(),
            state: state.into(),
            mailbox: 0,
            mailbox_max: 256,
            restarts: 0,
            cause: None,
            detail: None,
        };
        let actors = vec![
            actor("shard-0", None, "shard", "running"),
            actor("dev-1", Some("shard-0"), "session", "quarantined"),
        ];
        Box::pin(async move { actors })
    }

    fn cluster(&self) -> BoxFuture<'_, Option<Value>> {
        Box::pin(async { None })
    }

    fn ledger(&self) -> BoxFuture<'_, Option<LedgerPage>> {
        Box::pin(async { None })
    }

    fn shadow(&self, request: ShadowRequest) -> BoxFuture<'_, ShadowReply> {
        Box::pin(async move {
            let key = (request.thing, request.name);
            let mut shadows = self.shadows.lock().expect("no test panics in here");
            let found = match request.verb {
                ShadowVerb::Get => shadows.get(&key).cloned(),
                ShadowVerb::Update => {
                    shadows.insert(key, request.payload.clone()).or(Some(request.payload))
                }
                ShadowVerb::Delete => shadows.remove(&key),
            };
            match found {
                Some(body) => ShadowReply { status: 200, body },
                None => ShadowReply {
                    status: 404,
                    body: Bytes::from_static(b"{\"code\":404,\"message\":\"No shadow exists\"}"),
                },
            }
        })
    }

    fn shadow_list(
        &self,
        prefix: String,
        after: Option<ShadowKey>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(ShadowKey, u64)>, ShadowsDown>> {
        Box::pin(async move {
            if self.ill {
                return Err(ShadowsDown);
            }
            let shadows = self.shadows.lock().expect("no test panics in here");
            let fits = |key: &&ShadowKey| {
                key.0.starts_with(&prefix) && after.as_ref().is_none_or(|after| *key > after)
            };
            Ok(shadows.keys().filter(fits).take(limit).map(|key| (key.clone(), 1)).collect())
        })
    }

    fn shadow_move(
        &self,
        shadow: ShadowKey,
        gone: bool,
    ) -> BoxFuture<'_, Result<Option<(NodeId, bool)>, ShadowsDown>> {
        let shadows = self.shadows.lock().expect("no test panics in here");
        let home = shadows.contains_key(&shadow).then_some((NodeId(1), gone));
        let answer = if self.ill { Err(ShadowsDown) } else { Ok(home) };
        Box::pin(async move { answer })
    }

    fn shadow_history(
        &self,
        _: ShadowKey,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<Entry>, ShadowsDown>> {
        let answer = if self.ill { Err(ShadowsDown) } else { Ok(Vec::new()) };
        Box::pin(async move { answer })
    }

    fn shadow_why(
        &self,
        _: ShadowKey,
        _: Vec<String>,
        _: usize,
    ) -> BoxFuture<'_, Result<Vec<Reason>, ShadowsDown>> {
        let answer = if self.ill { Err(ShadowsDown) } else { Ok(Vec::new()) };
        Box::pin(async move { answer })
    }

    fn bridges(&self) -> BoxFuture<'_, Vec<crate::bridge::Shown>> {
        Box::pin(async { Vec::new() })
    }

    fn publish(&self, message: PublishRequest) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            if message.topic == "busy" {
                return Err(PublishError::Busy("the queue is full".into()));
            }
            self.published.lock().expect("no test panics in here").push(message);
            Ok(())
        })
    }

    fn stats(&self) -> BoxFuture<'_, Value> {
        Box::pin(async { json!({ "connections": 3 }) })
    }

    fn admin(&self, request: AdminRequest) -> BoxFuture<'_, Result<Value, AdminError>> {
        Box::pin(async move {
            match request {
                AdminRequest::Client(id) => Err(AdminError::NotFound(format!("no {id:?}"))),
                request => Ok(json!({ "asked": format!("{request:?}") })),
            }
        })
    }

    fn reload(&self) -> BoxFuture<'_, Value> {
        Box::pin(async {
            json!({ "listeners": [{ "name": "tls", "reloaded": true, "why": null }] })
        })
    }

    fn health(&self) -> Health {
        Health {
            status: if self.ill { "store_failed" } else { "ok" }.into(),
            node: "edge-1".into(),
            version: "0.1.0".into(),
            config_sha256: "00".into(),
            uptime_s: 1,
            store: "ok".into(),
        }
    }
}

/// A listener on a free port, and what it asks.
struct Api {
    server: HttpServer,
    node: Arc<SmallNode>,
}

impl Api {
    fn new() -> Self {
        Self::with(SmallNode::default(), ListenHttp::default())
    }

    fn with(node: SmallNode, mut config: ListenHttp) -> Self {
        config.bind.set_port(0);
        let node = Arc::new(node);
        let server = HttpServer::start(&config, node.clone()).expect("a free port on loopback");
        Self { server, node }
    }

    /// Sends one request and returns status and body.
    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let answer = self.raw(method, path, headers, body);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    /// The answer with its head.
    fn raw(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
        let host = if headers.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}Content-Length: {}\r\n\r\n",
            body.len()
        );
        let mut socket = TcpStream::connect(self.server.address()).expect("it listens");
        socket.write_all(head.as_bytes()).expect("sent");
        // A server that refuses by the length alone may close before it has all of the body.
        let _ = socket.write_all(body);
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8(answer).expect("JSON or text")
    }

    fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.ask("GET", path, "", b"");
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }
}

#[test]
fn health_is_200_while_well_and_503_when_not() {
    let (status, body) = Api::new().get("/healthz");
    assert_eq!((status, &body["status"], &body["node"]), (200, &json!("ok"), &json!("edge-1")));
    let ill = Api::with(SmallNode { ill: true, ..SmallNode::default() }, ListenHttp::default());
    assert_eq!(ill.get("/healthz").0, 503);
}

#[test]
fn actors_can_be_filtered_and_come_as_a_list() {
    let api = Api::new();
    let (status, body) = api.get("/api/v1/actors");
    assert_eq!((status, body["actors"].as_array().map(Vec::len)), (200, Some(2)));
    let (_, body) = api.get("/api/v1/actors?state=quarantined");
    assert_eq!(body["actors"][0]["id"], "dev-1");
    let (status, body) = api.get("/api/v1/actors?stat=quarantined");
    assert_eq!(status, 400);
    assert!(
        body["message"].as_str().is_some_and(|text| text.contains("unknown field `stat`")),
        "{body}"
    );
}

#[test]
fn a_node_on_its_own_has_no_cluster() {
    let (status, body) = Api::new().get("/api/v1/cluster");
    assert_eq!((status, &body["code"]), (404, &json!(404)));
}

#[test]
fn stats_become_metrics() {
    let api = Api::new();
    assert_eq!(api.get("/api/v1/stats"), (200, json!({ "connections": 3 })));
    let (status, page) = api.ask("GET", "/metrics", "", b"");
    assert_eq!(status, 200);
    assert!(page.contains("\noutpost_connections 3\n"), "{page}");
}

#[test]
fn a_shadow_is_written_read_and_deleted() {
    let api = Api::new();
    let document = br#"{"state":{"desired":{"on":true}}}"#;
    assert_eq!(api.get("/things/lamp/shadow").0, 404);
    assert_eq!(api.ask("POST", "/things/lamp/shadow", "", document).0, 200);
    assert_eq!(
        api.get("/things/lamp/shadow"),
        (200, json!({ "state": { "desired": { "on": true } } }))
    );
    assert_eq!(api.get("/things/lamp/shadow?name=config").0, 404);
    assert_eq!(api.ask("DELETE", "/things/lamp/shadow", "", b"").0, 200);
    assert_eq!(api.get("/things/lamp/shadow").0, 404);
    assert_eq!(api.get("/things/a%2Fb/shadow").0, 400);
    assert_eq!(api.get("/things/lamp/shadow?name=").0, 400);
    assert_eq!(api.ask("PUT", "/things/lamp/shadow", "", b"").0, 405);
}

#[test]
fn named_shadows_come_in_pages_and_only_of_that_thing() {
    let api = Api::new();
    for (thing, name) in [
        ("lamp", None),
        ("lamp", Some("a")),
        ("lamp", Some("b")),
        ("lamp", Some("c")),
        ("lamp2", Some("d")),
    ] {
        let key = (thing.to_owned(), name.map(str::to_owned));
        api.node.shadows.lock().expect("free").insert(key, Bytes::new());
    }
    let path = "/api/things/shadow/ListNamedShadowsForThing/lamp?pageSize=2";
    let (status, body) = api.get(path);
    assert_eq!(
        (status, &body["results"], &body["nextToken"]),
        (200, &json!(["a", "b"]), &json!("b"))
    );
    let (_, body) = api.get(&format!("{path}&nextToken=b"));
    assert_eq!((&body["results"], body.get("nextToken")), (&json!(["c"]), None));
    assert_eq!(api.get("/api/things/shadow/ListNamedShadowsForThing/lamp?pageSize=101").0, 400);

    let (_, body) = api.get("/api/v1/shadows?limit=3");
    assert_eq!(body["next"], json!({ "thing": "lamp", "name": "b" }));
    let (_, body) = api.get("/api/v1/shadows?limit=3&after_thing=lamp&after_name=b");
    assert_eq!(
        body["shadows"],
        json!([{ "thing": "lamp", "name": "c", "version": 1 }, { "thing": "lamp2", "name": "d", "version": 1 }])
    );
    assert_eq!(body["next"], Value::Null);
}

#[test]
fn a_publish_carries_its_body_byte_for_byte() {
    let api = Api::new();
    let (status, _) =
        api.ask("POST", "/api/v1/publish?topic=a/b&qos=1&retain=true", "", b"\x00\xff");
    assert_eq!(status, 200);
    let expected = PublishRequest {
        topic: "a/b".into(),
        payload: Bytes::from_static(b"\x00\xff"),
        qos: outpost_model::QoS::AtLeastOnce,
        retain: true,
        expiry_s: None,
        properties: None,
    };
    assert_eq!(*api.node.published.lock().expect("free"), [expected]);
}

/// Base64 of `[{"unit":"C"},{"unit":"K"}]`, and of the same once more as a JSON string.
const USER: &str = "W3sidW5pdCI6IkMifSx7InVuaXQiOiJLIn1d";
const USER_TWICE: &str = "Ilt7XCJ1bml0XCI6XCJDXCJ9LHtcInVuaXRcIjpcIktcIn1dIg==";

#[test]
fn an_aws_sdk_publishes_with_the_properties_of_mqtt_5() {
    for user in [USER, USER_TWICE] {
        let api = Api::new();
        let path = "/topics/plant%2F7%2Ft%C3%BCr?qos=1&retain=true&contentType=text%2Fplain\
                    &responseTopic=re%2Fto&messageExpiry=60";
        let headers = format!(
            "x-amz-mqtt5-payload-format-indicator: UTF8_DATA\r\n\
             x-amz-mqtt5-correlation-data: Y29ycg==\r\nx-amz-mqtt5-user-properties: {user}\r\n"
        );
        let (status, body) = api.ask("POST", path, &headers, b"21.5");
        assert_eq!(status, 200, "{body}");
        let expected = PublishRequest {
            topic: "plant/7/tür".into(),
            payload: Bytes::from_static(b"21.5"),
            qos: outpost_model::QoS::AtLeastOnce,
            retain: true,
            expiry_s: Some(60),
            properties: Some(Box::new(outpost_model::MessageProperties {
                payload_is_utf8: Some(true),
                content_type: Some("text/plain".into()),
                response_topic: Some("re/to".into()),
                correlation_data: Some(Bytes::from_static(b"corr")),
                user: vec![("unit".into(), "C".into()), ("unit".into(), "K".into())],
            })),
        };
        assert_eq!(*api.node.published.lock().expect("free"), [expected]);
    }
}

#[test]
fn a_topic_may_stand_in_the_path_as_it_is() {
    let api = Api::new();
    assert_eq!(api.ask("POST", "/topics/plant/7/temp", "", b"21.5").0, 200);
    assert_eq!(api.ask("POST", "/topics/plant%2F100%25/temp?messageExpiry=0", "", b"").0, 200);
    let published = api.node.published.lock().expect("free");
    let topics: Vec<_> = published.iter().map(|message| &*message.topic).collect();
    assert_eq!(topics, ["plant/7/temp", "plant/100%/temp"]);
    assert!(published.iter().all(|message| message.properties.is_none()));
}

#[test]
fn what_an_aws_sdk_cannot_publish_it_is_told_as_an_exception() {
    let api = Api::new();
    let not_base64 = "x-amz-mqtt5-user-properties: %%%\r\n";
    let no_pairs = "x-amz-mqtt5-user-properties: WzFd\r\n"; // [1]
    let no_format = "x-amz-mqtt5-payload-format-indicator: TEXT\r\n";
    for (path, headers, code, exception) in [
        ("/topics/a%2F%23", "", 400, "InvalidRequestException"),
        ("/topics/a?responseTopic=a%2F%2B", "", 400, "InvalidRequestException"),
        ("/topics/a?contentType=%00", "", 400, "InvalidRequestException"),
        ("/topics/a?qos=3", "", 400, "InvalidRequestException"),
        ("/topics/%24SYS%2Fx", "", 400, "InvalidRequestException"),
        ("/topics/a", not_base64, 400, "InvalidRequestException"),
        ("/topics/a", no_pairs, 400, "InvalidRequestException"),
        ("/topics/a", no_format, 400, "InvalidRequestException"),
        ("/topics/busy", "", 429, "ThrottlingException"),
        ("/connections/x?preventWillMessage=true", "", 405, "MethodNotAllowedException"),
    ] {
        let answer = api.raw("POST", path, headers, b"x");
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{path}: {answer}");
        let header = format!("x-amzn-errortype: {exception}").to_lowercase();
        assert!(answer.to_lowercase().contains(&header), "{path}: {answer}");
    }
    assert!(api.node.published.lock().expect("free").is_empty());
    assert_eq!(api.ask("DELETE", "/connections/x?preventWillMessage=true", "", b"").0, 400);
}

#[test]
fn a_publish_that_cannot_be_is_said_why() {
    let api = Api::new();
    for (path, code, word) in [
        ("/api/v1/publish?topic=a/%23", 400, "wildcards"),
        ("/api/v1/publish?topic=a&qos=3", 400, "qos"),
        ("/api/v1/publish", 400, "topic"),
        ("/api/v1/publish?topic=busy", 429, "try again"),
    ] {
        let (status, body) = api.ask("POST", path, "", b"x");
        assert_eq!(status, code, "{path}: {body}");
        assert!(body.contains(word), "{path}: {body}");
    }
    assert!(api.node.published.lock().expect("free").is_empty());
}

#[test]
fn a_body_above_the_limit_is_refused_as_json() {
    let api = Api::with(
        SmallNode::default(),
        ListenHttp { body_max_bytes: 1_024, ..ListenHttp::default() },
    );
    let (status, body) = api.ask("POST", "/api/v1/publish?topic=a", "", &[b'x'; 1_025]);
    assert_eq!(status, 413, "{body}");
    assert!(body.contains("\"code\":413") && body.contains("1024"), "{body}");
}

#[test]
fn another_name_for_this_host_is_dns_rebinding_and_refused() {
    let api = Api::new();
    assert_eq!(api.ask("GET", "/healthz", "Host: evil.example:18080\r\n", b"").0, 403);
    assert_eq!(api.ask("GET", "/healthz", "Host: localhost:18080\r\n", b"").0, 200);
    let from_a_page = "Origin: https://evil.example\r\n";
    assert_eq!(api.ask("POST", "/api/v1/publish?topic=a", from_a_page, b"x").0, 403);
    assert!(api.node.published.lock().expect("free").is_empty());
}

#[test]
fn with_a_token_file_only_the_token_opens() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let token_file = directory.path().join("token");
    std::fs::write(&token_file, "0123456789abcdef\n").expect("written");
    let config = ListenHttp { token_file: Some(token_file.clone()), ..ListenHttp::default() };
    let api = Api::with(SmallNode::default(), config.clone());
    assert_eq!(api.ask("GET", "/healthz", "", b"").0, 401);
    assert_eq!(
        api.ask("GET", "/healthz", "Authorization: Bearer 0123456789abcdeF\r\n", b"").0,
        401
    );
    assert_eq!(
        api.ask("GET", "/healthz", "Authorization: Bearer 0123456789abcdef\r\n", b"").0,
        200
    );

    // The SDKs of AWS sign their requests, and carry the session token they were given.
    let signed = "Authorization: AWS4-HMAC-SHA256 Credential=A/x, Signature=0\r\n";
    let with = |token: &str| format!("{signed}X-Amz-Security-Token: {token}\r\n");
    assert_eq!(api.ask("GET", "/healthz", signed, b"").0, 401);
    assert_eq!(api.ask("GET", "/healthz", &with("0123456789abcdeF"), b"").0, 401);
    assert_eq!(api.ask("GET", "/healthz", &with("0123456789abcdef"), b"").0, 200);

    std::fs::write(&token_file, "").expect("written");
    let refused = HttpServer::start(&config, Arc::new(SmallNode::default()));
    assert!(
        matches!(refused, Err(HttpError::Token { .. })),
        "an empty token must not open anything"
    );
}

#[test]
fn an_open_address_without_a_token_is_not_served() {
    let config =
        ListenHttp { bind: "0.0.0.0:0".parse().expect("an address"), ..ListenHttp::default() };
    assert!(matches!(
        HttpServer::start(&config, Arc::new(SmallNode::default())),
        Err(HttpError::Open(_))
    ));
}

#[test]
fn a_port_in_use_is_an_error_at_start_and_free_again_after_stop() {
    let api = Api::new();
    let config = ListenHttp { bind: api.server.address(), ..ListenHttp::default() };
    let taken = HttpServer::start(&config, Arc::new(SmallNode::default()));
    assert!(matches!(taken, Err(HttpError::Bind { .. })));
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(api.server.stop());
    HttpServer::start(&config, Arc::new(SmallNode::default())).expect("the port is free again");
}

#[test]
fn a_path_that_leads_nowhere_says_so_in_json() {
    let (status, body) = Api::new().get("/api/v2/actors");
    assert_eq!((status, &body["code"]), (404, &json!(404)));
}

#[test]
fn what_administrators_ask_is_taken_apart_and_pages_are_bounded() {
    let api = Api::new();
    let (status, body) = api.get("/api/v1/clients?connected=false&prefix=a%2Fb&after=7&limit=5");
    let asked = body["asked"].as_str().expect("a text").to_owned();
    assert_eq!(status, 200);
    for part in ["prefix: \"a/b\"", "connected: Some(false)", "after: 7", "limit: 5"] {
        assert!(asked.contains(part), "{part} in {asked}");
    }
    for wrong in
        ["/api/v1/clients?limit=1001", "/api/v1/clients?x=1", "/api/v1/retained?filter=a%23"]
    {
        assert_eq!(api.get(wrong).0, 400, "{wrong}");
    }
    assert_eq!(api.get("/api/v1/client?id=x").0, 404);
    assert_eq!(api.get("/api/v1/client/kick?id=x").0, 405, "a link must not cut anybody off");
}

#[test]
fn every_path_stands_in_the_reference() {
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/http.md"))
            .expect("the page");
    let paths: Vec<_> = include_str!("../server.rs")
        .split("web::resource(")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1))
        .collect();
    assert!(paths.len() >= 9, "the paths are found in the source: {paths:?}");
    for path in paths {
        assert!(page.contains(path), "docs/reference/http.md does not say {path}");
    }
}

#[test]
fn that_nobody_knows_of_shadows_now_is_not_said_as_there_are_none() {
    let (well, ill) = (Api::new(), SmallNode { ill: true, ..SmallNode::default() });
    let ill = Api::with(ill, ListenHttp::default());
    for path in [
        "/api/v1/shadows",
        "/api/v1/shadow/history?thing=lamp",
        "/api/v1/shadow/why?thing=lamp",
        "/api/things/shadow/ListNamedShadowsForThing/lamp",
    ] {
        assert_eq!((well.get(path).0, ill.get(path).0), (200, 503), "{path}");
    }
    let ask = |api: &Api| api.ask("POST", "/api/v1/shadows/home?thing=lamp", "", b"").0;
    assert_eq!((ask(&well), ask(&ill)), (404, 503));
}
