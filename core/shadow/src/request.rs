//! What a client asks for, checked in the order and refused in the words AWS IoT uses.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::hub::Limits;
use crate::leaves::SEPARATOR;

/// The longest client token AWS IoT allows.
pub const CLIENT_TOKEN_BYTES_MAX: usize = 64;
/// What a request may be longer than the state it carries: version, token, white space.
pub const ENVELOPE_BYTES: usize = 1024;

/// A refusal as AWS IoT words it. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// An HTTP status.
    pub code: u16,
    /// The sentence that goes with it.
    pub message: String,
}

impl Reject {
    pub(crate) fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(crate) fn conflict() -> Self {
        Self::new(409, "Version conflict")
    }

    pub(crate) fn invalid_version() -> Self {
        Self::new(400, "Invalid version")
    }

    pub(crate) fn busy() -> Self {
        Self::new(429, "Too many requests of this connection are under way")
    }

    pub(crate) fn too_large() -> Self {
        Self::new(413, "The payload exceeds the maximum size allowed")
    }
}

/// A refusal, and the client token to be echoed with it.
pub type Refused = (Reject, Option<String>);

/// A sound update request.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// `desired` and `reported` as sent, nulls included; or null, which clears both.
    pub state: Value,
    /// The version the client believes is current.
    pub version: Option<u64>,
    /// To be echoed.
    pub token: Option<String>,
    /// Path and JSON text (none deletes), `desired` before `reported`.
    pub desired: Vec<(String, Option<String>)>,
    /// The same for `reported`.
    pub reported: Vec<(String, Option<String>)>,
    /// Paths of empty objects, of both sections. They take the place of a scalar or an array, and then are not there.
    pub emptied: Vec<String>,
}

/// Reads an update request.
///
/// # Errors
/// The refusal, with the client token when one could be read.
pub fn parse_update(payload: &[u8], limits: &Limits) -> Result<Update, Refused> {
    check_length(payload, limits)?;
    let (fields, token) = parse_object(payload)?;
    check_update(&fields, limits).map_err(|reject| (reject, token.clone())).map(|mut update| {
        update.token = token;
        update
    })
}

/// Reads a get or delete request: nothing, or an object that may carry a client token (and for delete a version).
///
/// # Errors
/// The refusal, with the client token when one could be read.
pub fn parse_bare(
    payload: &[u8],
    limits: &Limits,
) -> Result<(Option<String>, Option<u64>), Refused> {
    check_length(payload, limits)?;
    if payload.iter().all(u8::is_ascii_whitespace) {
        return Ok((None, None));
    }
    let (fields, token) = parse_object(payload)?;
    match parse_version(&fields) {
        Ok(version) => Ok((token, version)),
        Err(reject) => Err((reject, token)),
    }
}

/// The client token of a request that is refused whatever else it says.
pub fn token_of(payload: &[u8]) -> Option<String> {
    /// All else is passed over without being kept.
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "clientToken")]
        token: Option<String>,
    }
    let envelope: Envelope = serde_json::from_slice(payload).ok()?;
    envelope.token.filter(|token| token.len() <= CLIENT_TOKEN_BYTES_MAX)
}

type Object = Map<String, Value>;

fn check_length(payload: &[u8], limits: &Limits) -> Result<(), Refused> {
    if payload.len() > limits.state_bytes_max + ENVELOPE_BYTES {
        return Err((Reject::too_large(), token_of(payload)));
    }
    Ok(())
}

fn parse_object(payload: &[u8]) -> Result<(Object, Option<String>), Refused> {
    let text = std::str::from_utf8(payload).map_err(|_| {
        (Reject::new(415, "Unsupported documented encoding; supported encoding is UTF-8"), None)
    })?;
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
        return Err((Reject::new(400, "Invalid JSON"), None));
    };
    match fields.get("clientToken") {
        None | Some(Value::Null) => Ok((fields, None)),
        Some(Value::String(token)) if token.len() <= CLIENT_TOKEN_BYTES_MAX => {
            let token = token.clone();
            Ok((fields, Some(token)))
        }
        Some(_) => Err((Reject::new(400, "Invalid clientToken"), None)),
    }
}

fn parse_version(fields: &Object) -> Result<Option<u64>, Reject> {
    match fields.get("version") {
        None | Some(Value::Null) => Ok(None),
        Some(version) => version.as_u64().map(Some).ok_or_else(Reject::invalid_version),
    }
}

fn check_update(fields: &Object, limits: &Limits) -> Result<Update, Reject> {
    let state =
        fields.get("state").ok_or_else(|| Reject::new(400, "Missing required node: state"))?;
    let mut update = Update {
        state: Value::Null,
        version: parse_version(fields)?,
        token: None,
        desired: vec![],
        reported: vec![],
        emptied: vec![],
    };
    let sections = match state {
        Value::Null => {
            update.desired.push(("d".to_owned(), None));
            update.reported.push(("r".to_owned(), None));
            return Ok(update);
        }
        Value::Object(sections) => sections,
        _ => return Err(Reject::new(400, "State node must be an object")),
    };
    let mut kept = Object::new();
    for (name, section) in sections {
        let (root, word, writes) = match name.as_str() {
            "desired" => ("d", "Desired", &mut update.desired),
            "reported" => ("r", "Reported", &mut update.reported),
            "delta" => continue,
            _ => return Err(Reject::new(400, "State contains an invalid node")),
        };
        if !section.is_object() && !section.is_null() {
            return Err(Reject::new(400, format!("{word} node must be an object")));
        }
        if depth(section) > limits.depth_max {
            let message = format!(
                "JSON contains too many levels of nesting; maximum is {}",
                limits.depth_max
            );
            return Err(Reject::new(400, message));
        }
        collect_writes(root.to_owned(), section, writes, &mut update.emptied)?;
        kept.insert(name.clone(), section.clone());
    }
    update.state = Value::Object(kept);
    Ok(update)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The leaf writes of a section: null deletes what is there, objects merge, everything else replaces.
fn collect_writes(
    path: String,
    value: &Value,
    writes: &mut Vec<(String, Option<String>)>,
    emptied: &mut Vec<String>,
) -> Result<(), Reject> {
    match value {
        Value::Null => writes.push((path, None)),
        Value::Object(fields) if fields.is_empty() => emptied.push(path),
        Value::Object(fields) => {
            for (key, value) in fields {
                if key.contains(SEPARATOR) {
                    return Err(Reject::new(400, "State contains an invalid node"));
                }
                collect_writes(format!("{path}{SEPARATOR}{key}"), value, writes, emptied)?;
            }
        }
        Value::Array(items) if items.iter().any(holds_null) => {
            return Err(Reject::new(400, "Invalid JSON: arrays may not contain null values"));
        }
        _ => writes.push((path, Some(value.to_string()))),
    }
    Ok(())
}

fn holds_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(holds_null),
        Value::Object(fields) => fields.values().any(holds_null),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(request: &str, code: u16, message: &str) {
        let (reject, _) = parse_update(request.as_bytes(), &Limits::default()).expect_err(request);
        assert_eq!((reject.code, reject.message.as_str()), (code, message), "{request}");
    }

    #[test]
    fn aws_refusals_have_their_codes_and_words() {
        check("", 400, "Invalid JSON");
        check("[]", 400, "Invalid JSON");
        check("{}", 400, "Missing required node: state");
        check(r#"{"state":5}"#, 400, "State node must be an object");
        check(r#"{"state":{"desired":5}}"#, 400, "Desired node must be an object");
        check(r#"{"state":{"reported":[]}}"#, 400, "Reported node must be an object");
        check(r#"{"state":{"wanted":{}}}"#, 400, "State contains an invalid node");
        check(r#"{"state":{},"version":"1"}"#, 400, "Invalid version");
        check(r#"{"state":{},"version":-1}"#, 400, "Invalid version");
        check(
            &format!(r#"{{"state":{{}},"clientToken":"{}"}}"#, "t".repeat(65)),
            400,
            "Invalid clientToken",
        );
        check(
            r#"{"state":{"desired":{"a":[1,null]}}}"#,
            400,
            "Invalid JSON: arrays may not contain null values",
        );
        check(
            &format!(r#"{{"state":{{"desired":{{"a":"{}"}}}}}}"#, "x".repeat(10_000)),
            413,
            "The payload exceeds the maximum size allowed",
        );
        let (reject, _) =
            parse_update(b"{\"state\":\xff}", &Limits::default()).expect_err("not UTF-8");
        assert_eq!(reject.code, 415);
    }

    #[test]
    fn six_levels_pass_and_seven_do_not() {
        let nested = |levels: usize| {
            format!(
                r#"{{"state":{{"desired":{}1{}}}}}"#,
                r#"{"a":"#.repeat(levels),
                "}".repeat(levels)
            )
        };
        assert!(parse_update(nested(6).as_bytes(), &Limits::default()).is_ok());
        check(&nested(7), 400, "JSON contains too many levels of nesting; maximum is 6");
    }

    #[test]
    fn a_request_becomes_leaf_writes() {
        let payload = br#"{"state":{"desired":{"a":{"x":1,"y":null},"b":[1,2],"c":{}},"delta":{"z":1}},"version":3,"clientToken":"t"}"#;
        let update = parse_update(payload, &Limits::default()).expect("sound");
        let path = |p: &str| p.replace('.', "\u{1f}");
        let expected = vec![
            (path("d.a.x"), Some("1".to_owned())),
            (path("d.a.y"), None),
            (path("d.b"), Some("[1,2]".to_owned())),
        ];
        assert_eq!(update.emptied, [path("d.c")]);
        assert_eq!(
            (update.desired, update.reported.len(), update.version, update.token.as_deref()),
            (expected, 0, Some(3), Some("t"))
        );
    }

    #[test]
    fn a_rejection_echoes_the_token_it_could_read() {
        let (_, token) =
            parse_update(br#"{"clientToken":"t"}"#, &Limits::default()).expect_err("no state");
        assert_eq!(token.as_deref(), Some("t"));
        let long = format!(
            r#"{{"state":{{"desired":{{"a":"{}"}}}},"clientToken":"t"}}"#,
            "x".repeat(10_000)
        );
        let (reject, token) = parse_update(long.as_bytes(), &Limits::default()).expect_err("long");
        assert_eq!((reject.code, token.as_deref()), (413, Some("t")));
        assert_eq!(token_of(b"{"), None);
    }

    #[test]
    fn get_and_delete_take_nothing_or_a_token() {
        assert_eq!(parse_bare(b"", &Limits::default()), Ok((None, None)));
        assert_eq!(
            parse_bare(br#"{"clientToken":"t"}"#, &Limits::default()),
            Ok((Some("t".to_owned()), None))
        );
        assert!(parse_bare(b"x", &Limits::default()).is_err());
    }
}
