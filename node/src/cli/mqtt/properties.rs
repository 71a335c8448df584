//! MQTT 5 properties by `-D COMMAND NAME VALUE`, in mosquitto's words.

use bytes::Bytes;

use crate::cli::failure::Failure;

/// Of CONNECT.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectProperties {
    pub session_expiry_interval: Option<u32>,
    pub receive_maximum: Option<u16>,
    pub maximum_packet_size: Option<u32>,
    pub topic_alias_maximum: Option<u16>,
    pub request_problem_information: Option<u8>,
    pub request_response_information: Option<u8>,
    pub user: Vec<(String, String)>,
}

/// Of PUBLISH, and of a will.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {
    pub payload_format_indicator: Option<u8>,
    pub message_expiry_interval: Option<u32>,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub correlation_data: Option<Bytes>,
    pub topic_alias: Option<u16>,
    pub user: Vec<(String, String)>,
    /// Only of a will.
    pub will_delay_interval: Option<u32>,
    /// Only of a received message.
    pub subscription_identifiers: Vec<usize>,
}

/// All that were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    pub connect: ConnectProperties,
    pub publish: PublishProperties,
    pub will: PublishProperties,
    pub subscription_identifier: Option<usize>,
    pub subscribe_user: Vec<(String, String)>,
}

const KNOWN: &str = "connect: session-expiry-interval receive-maximum maximum-packet-size topic-alias-maximum \
    request-problem-information request-response-information user-property; publish and will: payload-format-indicator \
    message-expiry-interval content-type response-topic correlation-data user-property; publish: topic-alias; will: \
    will-delay-interval; subscribe: subscription-identifier user-property";

impl Properties {
    /// Reads the words of all `-D` in a row.
    ///
    /// # Errors
    /// A usage error that names the word.
    pub fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut properties = Self::default();
        let mut rest = words.iter().map(String::as_str);
        while let Some(command) = rest.next() {
            let wrong = |what: &str| Failure::usage(format!("-D {command} {what}"));
            let name = rest.next().ok_or_else(|| wrong("needs a name and a value"))?;
            let value = rest.next().ok_or_else(|| wrong(&format!("{name} needs a value")))?;
            if name == "user-property" {
                let second =
                    rest.next().ok_or_else(|| wrong("user-property needs a name and a value"))?;
                let list = match command {
                    "connect" => &mut properties.connect.user,
                    "publish" => &mut properties.publish.user,
                    "will" => &mut properties.will.user,
                    "subscribe" => &mut properties.subscribe_user,
                    _ => {
                        return Err(wrong(&format!(
                            "is not a command with properties here; known are {KNOWN}"
                        )));
                    }
                };
                list.push((value.to_owned(), second.to_owned()));
                continue;
            }
            let known = properties
                .set(command, name, value)
                .map_err(|why| wrong(&format!("{name} {value}: {why}")))?;
            if !known {
                return Err(wrong(&format!("{name} is not known; known are {KNOWN}")));
            }
        }
        Ok(properties)
    }

    fn set(&mut self, command: &str, name: &str, value: &str) -> Result<bool, String> {
        match command {
            "connect" => self.connect.set(name, value),
            "publish" if name == "topic-alias" => {
                number(value, 1).map(|alias| self.publish.topic_alias = Some(alias)).map(|()| true)
            }
            "publish" => self.publish.set(name, value),
            "will" if name == "will-delay-interval" => number(value, 0)
                .map(|delay| self.will.will_delay_interval = Some(delay))
                .map(|()| true),
            "will" => self.will.set(name, value),
            "subscribe" if name == "subscription-identifier" => {
                let id: u32 = number(value, 1)?;
                if id > 268_435_455 {
                    return Err("it is at most 268435455".into());
                }
                self.subscription_identifier = Some(id as usize);
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl ConnectProperties {
    fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "session-expiry-interval" => self.session_expiry_interval = Some(number(value, 0)?),
            "receive-maximum" => self.receive_maximum = Some(number(value, 1)?),
            "maximum-packet-size" => self.maximum_packet_size = Some(number(value, 1)?),
            "topic-alias-maximum" => self.topic_alias_maximum = Some(number(value, 0)?),
            "request-problem-information" => self.request_problem_information = Some(flag(value)?),
            "request-response-information" => {
                self.request_response_information = Some(flag(value)?)
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl PublishProperties {
    fn set(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "payload-format-indicator" => self.payload_format_indicator = Some(flag(value)?),
            "message-expiry-interval" => self.message_expiry_interval = Some(number(value, 0)?),
            "content-type" => self.content_type = Some(value.to_owned()),
            "response-topic" => {
                outpost_model::topic::check_name(value).map_err(|why| why.to_string())?;
                self.response_topic = Some(value.to_owned());
            }
            "correlation-data" => {
                self.correlation_data = Some(Bytes::copy_from_slice(value.as_bytes()))
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn number<T: TryFrom<u64>>(text: &str, min: u64) -> Result<T, String> {
    let number: u64 = text.parse().map_err(|_| "it is no whole number".to_owned())?;
    if number < min {
        return Err(format!("it is at least {min}"));
    }
    T::try_from(number).map_err(|_| "it is too large".into())
}

fn flag(text: &str) -> Result<u8, String> {
    match text {
        "0" => Ok(0),
        "1" => Ok(1),
        _ => Err("it is 0 or 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Properties, Failure> {
        Properties::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn several_properties_in_a_row_find_their_commands() {
        let found = parse(
            "publish user-property a b publish user-property c d connect receive-maximum 7 will will-delay-interval 5",
        );
        let found = found.expect("valid");
        assert_eq!(found.publish.user, [("a".into(), "b".into()), ("c".into(), "d".into())]);
        assert_eq!(found.connect.receive_maximum, Some(7));
        assert_eq!(found.will.will_delay_interval, Some(5));
    }

    #[test]
    fn what_the_standard_forbids_is_a_usage_error() {
        for (bad, word) in [
            ("publish topic-alias 0", "at least 1"),
            ("publish topic-alias 65536", "too large"),
            ("publish payload-format-indicator 2", "0 or 1"),
            ("publish response-topic a/#", "wildcards"),
            ("publish receive-maximum 1", "not known"),
            ("subscribe subscription-identifier 268435456", "at most"),
            ("publish user-property a", "needs a name and a value"),
            ("puback reason 1", "not known"),
        ] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(error.contains(word), "{bad}: {error}");
        }
    }
}
