//! How `outpost sub` prints a message: `-v`, `-F` with mosquitto's letters, `%j` and `%J`.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::link::Received;

/// A parsed `-F`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Field { letter: char, pad: Pad },
}

/// `%-10t`, `%05l`, `%.3p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Pad {
    left: bool,
    zero: bool,
    width: usize,
    cut: Option<usize>,
}

/// Wider fields are refused.
pub const WIDTH_MAX: usize = 10_000;
const LETTERS: &str = "AmtpqrlxXCDEFPRSIjJNU";

/// The time a message came: seconds since 1970 and nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Arrived {
    pub unix_s: u64,
    pub nanos: u32,
}

impl Arrived {
    /// Now.
    pub fn now() -> Self {
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { unix_s: since.as_secs(), nanos: since.subsec_nanos() }
    }

    /// ISO 8601 in UTC, to the second.
    pub fn iso(self) -> String {
        let (date, time) = self.parts();
        format!("{date}T{time}+0000")
    }

    fn iso_micros(self) -> String {
        let (date, time) = self.parts();
        format!("{date}T{time}.{:06}Z", self.nanos / 1_000)
    }

    fn parts(self) -> (String, String) {
        let (days, second) = (self.unix_s / 86_400, self.unix_s % 86_400);
        let (year, month, day) = civil(days);
        (
            format!("{year:04}-{month:02}-{day:02}"),
            format!("{:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60),
        )
    }
}

/// Year, month and day of a day since 1970 (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

impl Format {
    /// Reads a format.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = Vec::new();
        let mut rest = text.chars().peekable();
        while let Some(c) = rest.next() {
            match c {
                '\\' => plain.push(escape(rest.next())?),
                '%' if rest.peek() == Some(&'%') => {
                    rest.next();
                    plain.push(b'%');
                }
                '%' => {
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    let pad = pad(&mut rest)?;
                    let letter = rest.next().ok_or("it ends after %")?;
                    if !LETTERS.contains(letter) {
                        return Err(format!(
                            "%{letter} is not known; known are %% and %{}",
                            spaced(LETTERS)
                        ));
                    }
                    pieces.push(Piece::Field { letter, pad });
                }
                c => plain.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        Ok(Self(pieces))
    }

    /// The message in this format. `pretty` is for `%j` and `%J`.
    ///
    /// # Errors
    /// With `%J`, when the payload is not JSON.
    pub fn render(
        &self,
        message: &Received,
        arrived: Arrived,
        pretty: bool,
    ) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Field { letter, pad } => {
                    pad.put(&field(*letter, message, arrived, pretty)?, &mut out)
                }
            }
        }
        Ok(out)
    }
}

fn spaced(letters: &str) -> String {
    letters.chars().map(String::from).collect::<Vec<_>>().join(" %")
}

fn escape(c: Option<char>) -> Result<u8, String> {
    Ok(match c {
        Some('\\') => b'\\',
        Some('0') => 0,
        Some('a') => 7,
        Some('e') => 27,
        Some('n') => b'\n',
        Some('r') => b'\r',
        Some('t') => b'\t',
        Some('v') => 11,
        Some(other) => {
            return Err(format!(
                "\\{other} is not known; known are \\\\ \\0 \\a \\e \\n \\r \\t \\v"
            ));
        }
        None => return Err("it ends after \\".into()),
    })
}

fn pad(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Pad, String> {
    let mut pad = Pad::default();
    loop {
        match rest.peek() {
            Some('-') => pad.left = true,
            Some('0') => pad.zero = true,
            _ => break,
        }
        rest.next();
    }
    pad.width = digits(rest)?.unwrap_or(0);
    if rest.peek() == Some(&'.') {
        rest.next();
        pad.cut = Some(digits(rest)?.unwrap_or(0));
    }
    Ok(pad)
}

fn digits(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>, String> {
    let mut number = None;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        rest.next();
        let larger = number.unwrap_or(0) * 10 + digit as usize;
        if larger > WIDTH_MAX {
            return Err(format!("a field is at most {WIDTH_MAX} wide"));
        }
        number = Some(larger);
    }
    Ok(number)
}

impl Pad {
    fn put(self, text: &[u8], out: &mut Vec<u8>) {
        let text = &text[..self.cut.unwrap_or(text.len()).min(text.len())];
        let missing = self.width.saturating_sub(text.len());
        let fill = if self.zero && !self.left { b'0' } else { b' ' };
        if !self.left {
            out.resize(out.len() + missing, fill);
        }
        out.extend_from_slice(text);
        if self.left {
            out.resize(out.len() + missing, b' ');
        }
    }
}

fn field(
    letter: char,
    message: &Received,
    arrived: Arrived,
    pretty: bool,
) -> Result<Vec<u8>, String> {
    let properties = &message.properties;
    let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
    let text = match letter {
        't' => message.topic.clone(),
        'p' => return Ok(message.payload.to_vec()),
        'x' => hex(&message.payload, false),
        'X' => hex(&message.payload, true),
        'l' => message.payload.len().to_string(),
        'q' => message.qos.to_string(),
        'r' => u8::from(message.retain).to_string(),
        'm' => message.packet_id.to_string(),
        'A' => number(properties.topic_alias.map(u64::from)),
        'C' => properties.content_type.clone().unwrap_or_default(),
        'D' => {
            return Ok(properties
                .correlation_data
                .as_ref()
                .map(|data| data.to_vec())
                .unwrap_or_default());
        }
        'E' => number(properties.message_expiry_interval.map(u64::from)),
        'F' => number(properties.payload_format_indicator.map(u64::from)),
        'P' => properties
            .user
            .iter()
            .map(|(name, value)| format!("{name}:{value}"))
            .collect::<Vec<_>>()
            .join(" "),
        'R' => properties.response_topic.clone().unwrap_or_default(),
        'S' => properties
            .subscription_identifiers
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(","),
        'I' => arrived.iso(),
        'N' => format!("{:09}", arrived.nanos),
        'U' => format!("{}.{:09}", arrived.unix_s, arrived.nanos),
        'j' => as_json(
            message,
            arrived,
            Value::String(String::from_utf8_lossy(&message.payload).into_owned()),
            pretty,
        ),
        'J' => {
            let payload = serde_json::from_slice(&message.payload)
                .map_err(|why| format!("the payload is no JSON: {why}"))?;
            as_json(message, arrived, payload, pretty)
        }
        _ => return Err(format!("%{letter} is not known")),
    };
    Ok(text.into_bytes())
}

fn as_json(message: &Received, arrived: Arrived, payload: Value, pretty: bool) -> String {
    let mut object = json!({
        "tst": arrived.iso_micros(),
        "topic": message.topic,
        "qos": message.qos,
        "retain": u8::from(message.retain),
        "payloadlen": message.payload.len(),
    });
    if message.qos > 0 {
        object["mid"] = json!(message.packet_id);
    }
    let properties = properties(message);
    if !properties.is_empty() {
        object["properties"] = Value::Object(properties);
    }
    object["payload"] = payload;
    if pretty { format!("{object:#}") } else { object.to_string() }
}

fn properties(message: &Received) -> Map<String, Value> {
    let given = &message.properties;
    let mut found = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            found.insert(name.to_owned(), value);
        }
    };
    put("payload-format-indicator", given.payload_format_indicator.map(Value::from));
    put("message-expiry-interval", given.message_expiry_interval.map(Value::from));
    put("content-type", given.content_type.clone().map(Value::from));
    put("response-topic", given.response_topic.clone().map(Value::from));
    put(
        "correlation-data",
        given
            .correlation_data
            .as_ref()
            .map(|data| Value::from(String::from_utf8_lossy(data).into_owned())),
    );
    put("topic-alias", given.topic_alias.map(Value::from));
    let ids = &given.subscription_identifiers;
    put(
        "subscription-identifier",
        if let [id] = ids[..] { Some(json!(id)) } else { (!ids.is_empty()).then(|| json!(ids)) },
    );
    let user = || {
        given.user.iter().map(|(name, value)| json!({ name.as_str(): value })).collect::<Vec<_>>()
    };
    put("user-properties", (!given.user.is_empty()).then(|| Value::from(user())));
    found
}

fn hex(bytes: &[u8], upper: bool) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::mqtt::properties::PublishProperties;
    use bytes::Bytes;

    fn message() -> Received {
        Received {
            topic: "plant/7".into(),
            payload: Bytes::from_static(b"{\"t\":21}"),
            qos: 1,
            retain: true,
            dup: false,
            packet_id: 5,
            properties: PublishProperties {
                content_type: Some("application/json".into()),
                user: vec![("a".into(), "b".into()), ("c".into(), "d".into())],
                subscription_identifiers: vec![3],
                ..PublishProperties::default()
            },
        }
    }

    fn check(format: &str, expected: &str) {
        let arrived = Arrived { unix_s: 1_795_314_407, nanos: 12_345_678 };
        let rendered =
            Format::parse(format).expect(format).render(&message(), arrived, false).expect(format);
        assert_eq!(String::from_utf8_lossy(&rendered), expected, "{format}");
    }

    #[test]
    fn each_letter_of_mosquitto_sub() {
        check("%t %p", "plant/7 {\"t\":21}");
        check("%q%r%l%m", "1185");
        check("%x|%X", "7b2274223a32317d|7B2274223A32317D");
        check("%C|%P|%S|%R|%E|%F|%A|%D", "application/json|a:b c:d|3|||||");
        check("100%% \\t%t\\n", "100% \tplant/7\n");
        check("%U %N", "1795314407.012345678 012345678");
        check("%I", "2026-11-22T02:26:47+0000");
    }

    #[test]
    fn fields_are_padded_and_cut() {
        check("[%10t]", "[   plant/7]");
        check("[%-10t]", "[plant/7   ]");
        check("[%05l]", "[00008]");
        check("[%.3t]", "[pla]");
    }

    #[test]
    fn json_has_the_payload_as_text_or_as_json() {
        let payloads = [("%j", json!("{\"t\":21}")), ("%J", json!({ "t": 21 }))];
        for (format, payload) in payloads {
            let arrived = Arrived { unix_s: 1_795_314_407, nanos: 12_345_678 };
            let rendered = Format::parse(format)
                .expect("valid")
                .render(&message(), arrived, false)
                .expect("JSON");
            let found: Value = serde_json::from_slice(&rendered).expect("JSON");
            let expected = json!({
                "tst": "2026-11-22T02:26:47.012345Z", "topic": "plant/7", "qos": 1, "retain": 1, "payloadlen": 8, "mid": 5,
                "properties": {
                    "content-type": "application/json", "subscription-identifier": 3, "user-properties": [{ "a": "b" }, { "c": "d" }],
                },
                "payload": payload,
            });
            assert_eq!(found, expected);
        }
        let text = Received { payload: Bytes::from_static(b"hello"), ..message() };
        assert!(
            Format::parse("%J").expect("valid").render(&text, Arrived::default(), false).is_err()
        );
    }

    #[test]
    fn what_is_no_format_is_said_so() {
        for (bad, word) in [
            ("%", "ends"),
            ("%z", "not known"),
            ("\\q", "not known"),
            ("\\", "ends"),
            ("%99999t", "wide"),
        ] {
            assert!(Format::parse(bad).expect_err(bad).contains(word), "{bad}");
        }
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(59), (1970, 3, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_779), (2026, 11, 22));
    }
}
