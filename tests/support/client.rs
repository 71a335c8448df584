//! An MQTT client of either version, by rumqttc: connects once, tells how it ended, never reconnects by itself.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use rumqttc_v4::mqttbytes::v4 as packets4;
use rumqttc_v5::mqttbytes::v5 as packets5;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{DEADLINE, within};

/// Until the library gives up a CONNECT or a write. Its own five seconds are no promise of a node, and little on a machine
/// that builds beside the stories; less than [`DEADLINE`], so that it is the library that says what it waited for.
const LIBRARY_WAITS: Duration = Duration::from_secs(25);

/// Requests that may wait for the client's event loop.
const REQUESTS: usize = 256;
/// Messages that may wait for the story.
const MESSAGES: usize = 65_536;

/// How long to look for a message that may not come at all.
const SOON: Duration = Duration::from_millis(100);

/// The version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V4,
    V5,
}

/// Both versions, for stories that hold for both.
pub const BOTH: [Version; 2] = [Version::V4, Version::V5];

/// A will.
#[derive(Debug, Clone)]
pub struct Will {
    pub topic: String,
    pub payload: String,
    pub retain: bool,
    pub delay_s: u32,
}

/// How to connect.
#[derive(Debug, Clone)]
pub struct Options {
    version: Version,
    id: String,
    kept_s: Option<u32>,
    will: Option<Will>,
    login: Option<(String, String)>,
}

impl Options {
    pub fn new(version: Version, id: &str) -> Self {
        Self { version, id: id.to_owned(), kept_s: None, will: None, login: None }
    }

    pub fn v4(id: &str) -> Self {
        Self::new(Version::V4, id)
    }

    pub fn v5(id: &str) -> Self {
        Self::new(Version::V5, id)
    }

    /// The server keeps the session; 3.1.1 cannot say for how long.
    pub fn kept(mut self, seconds: u32) -> Self {
        self.kept_s = Some(seconds);
        self
    }

    pub fn will(mut self, will: Will) -> Self {
        self.will = Some(will);
        self
    }

    /// With a user name and a password.
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some((user.to_owned(), password.to_owned()));
        self
    }
}

/// A message as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: String,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    pub expiry_s: Option<u32>,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub user: Vec<(String, String)>,
    pub subscription_ids: Vec<usize>,
}

/// What a message is published with.
#[derive(Debug, Clone, Default)]
pub struct Properties {
    pub expiry_s: Option<u32>,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub user: Vec<(String, String)>,
}

/// Resolves when the message is acknowledged as its QoS promises, or will never be.
pub type Outcome = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

enum Commands {
    V4(rumqttc_v4::AsyncClient),
    V5(rumqttc_v5::AsyncClient),
}

/// A connected client. Dropping it breaks the connection, as a cable does.
pub struct Client {
    commands: Commands,
    messages: mpsc::Receiver<Message>,
    ended: watch::Receiver<Option<String>>,
    pump: JoinHandle<()>,
    /// The server had kept a session.
    pub session_present: bool,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

impl Client {
    /// Connects, or says why not.
    pub async fn try_connect(server: SocketAddr, options: Options) -> Result<Self, String> {
        let (to_messages, messages) = mpsc::channel(MESSAGES);
        let (to_ended, ended) = watch::channel(None);
        let (to_greeting, mut greeting) = mpsc::channel(1);
        let ends = Ends { messages: to_messages, ended: to_ended, greeting: to_greeting };
        let (commands, pump) = match options.version {
            Version::V4 => {
                let (client, mut events) =
                    rumqttc_v4::AsyncClient::builder(options4(server, &options))
                        .capacity(REQUESTS)
                        .build();
                events.network_options.set_connection_timeout(LIBRARY_WAITS.as_secs());
                (Commands::V4(client), tokio::spawn(pump4(events, ends)))
            }
            Version::V5 => {
                let (client, events) = rumqttc_v5::AsyncClient::builder(options5(server, &options))
                    .capacity(REQUESTS)
                    .build();
                (Commands::V5(client), tokio::spawn(pump5(events, ends)))
            }
        };
        let mut client = Self { commands, messages, ended, pump, session_present: false };
        match within("CONNACK", greeting.recv()).await {
            Some(session_present) => client.session_present = session_present,
            None => return Err(client.ended().await),
        }
        Ok(client)
    }

    pub async fn connect(server: SocketAddr, options: Options) -> Self {
        let id = options.id.clone();
        let connected = Self::try_connect(server, options).await;
        connected.unwrap_or_else(|why| panic!("{id} could not connect to {server}: {why}"))
    }

    /// Subscribes and waits for SUBACK. The QoS granted, or why not.
    pub async fn try_subscribe(&self, filter: &str, qos: u8) -> Result<u8, String> {
        match &self.commands {
            Commands::V4(client) => {
                let notice = client.subscribe_tracked(filter, qos4(qos)).await.map_err(text)?;
                let suback = within("SUBACK", notice.wait_async()).await.map_err(text)?;
                match suback.return_codes[..] {
                    [packets4::SubscribeReasonCode::Success(qos)] => Ok(qos as u8),
                    ref other => Err(format!("{other:?}")),
                }
            }
            Commands::V5(client) => {
                let notice = client.subscribe_tracked(filter, qos5(qos)).await.map_err(text)?;
                let suback = within("SUBACK", notice.wait_async()).await.map_err(text)?;
                match suback.return_codes[..] {
                    [packets5::SubscribeReasonCode::Success(qos)] => Ok(qos as u8),
                    ref other => Err(format!("{other:?}")),
                }
            }
        }
    }

    pub async fn subscribe(&self, filter: &str, qos: u8) {
        let granted = self.try_subscribe(filter, qos).await;
        assert_eq!(granted, Ok(qos), "subscribing to {filter:?}");
    }

    /// Subscribes with the options MQTT 5 has.
    pub async fn subscribe_with(&self, filter: packets5::SubscribeFilter, id: Option<usize>) {
        let Commands::V5(client) = &self.commands else { panic!("3.1.1 has no such options") };
        let properties = packets5::SubscribeProperties { id, user_properties: Vec::new() };
        let notice = client
            .subscribe_many_with_properties_tracked([filter], properties)
            .await
            .expect("it runs");
        let suback = within("SUBACK", notice.wait_async()).await.expect("an answer");
        assert!(
            matches!(suback.return_codes[..], [packets5::SubscribeReasonCode::Success(_)]),
            "{suback:?}"
        );
    }

    pub async fn unsubscribe(&self, filter: &str) {
        let done = match &self.commands {
            Commands::V4(client) => {
                let notice = client.unsubscribe_tracked(filter).await.expect("the client runs");
                within("UNSUBACK", notice.wait_async()).await.map(drop).map_err(text)
            }
            Commands::V5(client) => {
                let notice = client.unsubscribe_tracked(filter).await.expect("the client runs");
                within("UNSUBACK", notice.wait_async()).await.map(drop).map_err(text)
            }
        };
        done.unwrap_or_else(|why| panic!("unsubscribing from {filter:?}: {why}"));
    }

    /// Hands a message to the client; the outcome is for later.
    pub async fn publish_with(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
        qos: u8,
        retain: bool,
        properties: Properties,
    ) -> Outcome {
        let (payload, topic) = (payload.into(), topic.to_owned());
        match &self.commands {
            Commands::V4(client) => {
                let options = rumqttc_v4::PublishOptions::new(qos4(qos)).retain(retain);
                let notice = client.publish_tracked(topic, payload, options).await;
                Box::pin(async move {
                    notice.map_err(text)?.wait_completion_async().await.map_err(text)
                })
            }
            Commands::V5(client) => {
                let options = rumqttc_v5::PublishOptions::new(qos5(qos)).retain(retain);
                let options = options.properties(packets5::PublishProperties {
                    message_expiry_interval: properties.expiry_s,
                    content_type: properties.content_type,
                    response_topic: properties.response_topic,
                    user_properties: properties.user,
                    ..packets5::PublishProperties::default()
                });
                let notice = client.publish_tracked(topic, payload, options).await;
                Box::pin(async move {
                    match notice.map_err(text)?.wait_completion_async().await {
                        // Nobody wanted it: accepted all the same (MQTT 5, §3.4.2.1).
                        Err(rumqttc_v5::PublishNoticeError::V5PubAck(
                            packets5::PubAckReason::NoMatchingSubscribers,
                        )) => Ok(()),
                        Err(rumqttc_v5::PublishNoticeError::V5PubRec(
                            packets5::PubRecReason::NoMatchingSubscribers,
                        )) => Ok(()),
                        other => other.map_err(text),
                    }
                })
            }
        }
    }

    /// Publishes and waits for the acknowledgement.
    pub async fn try_publish(&self, topic: &str, payload: &str, qos: u8) -> Result<(), String> {
        let outcome =
            self.publish_with(topic, payload.to_owned(), qos, false, Properties::default()).await;
        within("an acknowledgement", outcome).await
    }

    pub async fn publish(&self, topic: &str, payload: &str, qos: u8) {
        let done = self.try_publish(topic, payload, qos).await;
        done.unwrap_or_else(|why| panic!("publishing {payload:?} to {topic:?}: {why}"));
    }

    /// Publishes a retained message and waits for the acknowledgement.
    pub async fn retain(&self, topic: &str, payload: &str, qos: u8) {
        let outcome =
            self.publish_with(topic, payload.to_owned(), qos, true, Properties::default()).await;
        let done = within("an acknowledgement", outcome).await;
        done.unwrap_or_else(|why| panic!("retaining {payload:?} on {topic:?}: {why}"));
    }

    /// The next message.
    pub async fn next(&mut self) -> Message {
        match within("a message", self.messages.recv()).await {
            Some(message) => message,
            None => panic!("no message: the connection ended: {}", self.ended().await),
        }
    }

    /// The next message if it comes soon; its absence says nothing.
    pub async fn next_soon(&mut self) -> Option<Message> {
        tokio::time::timeout(SOON, self.messages.recv()).await.ok().flatten()
    }

    /// Topic and payload of the next message.
    pub async fn next_text(&mut self) -> (String, String) {
        let message = self.next().await;
        (message.topic, message.payload)
    }

    /// Asserts that nothing but `last` comes, which is published now on a topic this client is subscribed to: had
    /// anything else been owed to it, it would have come before.
    pub async fn expect_only(&mut self, publisher: &Client, topic: &str, last: &str) {
        publisher.publish(topic, last, 1).await;
        let next = self.next_text().await;
        assert_eq!(next, (topic.to_owned(), last.to_owned()), "something else came first");
    }

    /// The same with a message of its own.
    pub async fn expect_only_own(&mut self, topic: &str) {
        self.publish(topic, "the last", 1).await;
        let next = self.next_text().await;
        assert_eq!(next, (topic.to_owned(), "the last".to_owned()), "something else came first");
    }

    /// Payloads of messages until so many different ones have come, and how many came altogether.
    pub async fn collect(&mut self, different: usize) -> (BTreeSet<String>, usize) {
        let (mut found, mut count) = (BTreeSet::new(), 0);
        while found.len() < different {
            match tokio::time::timeout(DEADLINE, self.messages.recv()).await {
                Ok(Some(message)) => {
                    found.insert(message.payload);
                    count += 1;
                }
                Ok(None) => panic!("{} of {different} came: {}", found.len(), self.ended().await),
                Err(late) => panic!("{} of {different} came, then nothing: {late}", found.len()),
            }
        }
        (found, count)
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.ended.borrow().is_none()
    }

    /// Waits for the end of the connection: the server's reason when it gave one, else what broke.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        let why = within("the end of a connection", ended.wait_for(Option::is_some)).await;
        why.map_or_else(
            |_| "the client was dropped".to_owned(),
            |why| why.clone().unwrap_or_default(),
        )
    }

    /// Says good-bye: no will.
    pub async fn disconnect(self) {
        let done = match &self.commands {
            Commands::V4(client) => client.disconnect().await.map_err(text),
            Commands::V5(client) => client.disconnect().await.map_err(text),
        };
        done.expect("the client runs");
        self.ended().await;
    }
}

/// Where the event loop puts what it hears.
struct Ends {
    messages: mpsc::Sender<Message>,
    ended: watch::Sender<Option<String>>,
    greeting: mpsc::Sender<bool>,
}

impl Ends {
    fn end(self, why: String) {
        self.ended.send_replace(Some(why));
    }
}

async fn pump4(mut events: rumqttc_v4::EventLoop, ends: Ends) {
    loop {
        match events.poll().await {
            Ok(rumqttc_v4::Event::Incoming(packets4::Packet::ConnAck(connack))) => {
                let _ = ends.greeting.try_send(connack.session_present);
            }
            Ok(rumqttc_v4::Event::Incoming(packets4::Packet::Publish(publish))) => {
                let message = Message {
                    topic: lossy(&publish.topic),
                    payload: lossy(&publish.payload),
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    dup: publish.dup,
                    ..Message::default()
                };
                if ends.messages.send(message).await.is_err() {
                    return;
                }
            }
            Ok(rumqttc_v4::Event::Outgoing(rumqttc_v4::Outgoing::Disconnect)) => {
                return ends.end("said good-bye".to_owned());
            }
            Ok(_) => {}
            Err(error) => return ends.end(error.to_string()),
        }
    }
}

async fn pump5(mut events: rumqttc_v5::EventLoop, ends: Ends) {
    loop {
        match events.poll().await {
            Ok(rumqttc_v5::Event::Incoming(packets5::Packet::ConnAck(connack))) => {
                let _ = ends.greeting.try_send(connack.session_present);
            }
            Ok(rumqttc_v5::Event::Incoming(packets5::Packet::Publish(publish))) => {
                let properties = publish.properties.unwrap_or_default();
                let message = Message {
                    topic: lossy(&publish.topic),
                    payload: lossy(&publish.payload),
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    dup: publish.dup,
                    expiry_s: properties.message_expiry_interval,
                    content_type: properties.content_type,
                    response_topic: properties.response_topic,
                    user: properties.user_properties,
                    subscription_ids: properties.subscription_identifiers,
                };
                if ends.messages.send(message).await.is_err() {
                    return;
                }
            }
            Ok(rumqttc_v5::Event::Incoming(packets5::Packet::Disconnect(disconnect))) => {
                return ends.end(format!("{:?}", disconnect.reason_code));
            }
            Ok(rumqttc_v5::Event::Outgoing(rumqttc_v5::Outgoing::Disconnect)) => {
                return ends.end("said good-bye".to_owned());
            }
            Ok(_) => {}
            Err(error) => return ends.end(error.to_string()),
        }
    }
}

fn options4(server: SocketAddr, given: &Options) -> rumqttc_v4::MqttOptions {
    let address = (server.ip().to_string(), server.port());
    let mut options = rumqttc_v4::MqttOptions::new(given.id.clone(), address);
    options.set_clean_session(given.kept_s.is_none());
    options.set_max_packet_size(1 << 24, 1 << 24);
    if let Some((user, password)) = &given.login {
        options.set_credentials(user.clone(), password.clone());
    }
    if let Some(will) = &given.will {
        let payload = will.payload.clone().into_bytes();
        let qos = rumqttc_v4::mqttbytes::QoS::AtLeastOnce;
        options.set_last_will(packets4::LastWill::new(&*will.topic, payload, qos, will.retain));
    }
    options
}

fn options5(server: SocketAddr, given: &Options) -> rumqttc_v5::MqttOptions {
    let address = (server.ip().to_string(), server.port());
    let mut options = rumqttc_v5::MqttOptions::new(given.id.clone(), address);
    options.set_clean_start(given.kept_s.is_none());
    options
        .set_broker_session_resume_policy(rumqttc_v5::BrokerSessionResumePolicy::AllowBrokerOnly);
    options.set_connect_timeout(LIBRARY_WAITS);
    let mut connect = packets5::ConnectProperties::new();
    connect.session_expiry_interval = given.kept_s;
    connect.max_packet_size = Some(1 << 24);
    options.set_connect_properties(connect);
    if let Some((user, password)) = &given.login {
        options.set_credentials(user.clone(), password.clone());
    }
    if let Some(will) = &given.will {
        let properties = packets5::LastWillProperties {
            delay_interval: Some(will.delay_s),
            payload_format_indicator: None,
            message_expiry_interval: None,
            content_type: None,
            response_topic: None,
            correlation_data: None,
            user_properties: Vec::new(),
        };
        let payload = will.payload.clone().into_bytes();
        let qos = rumqttc_v5::mqttbytes::QoS::AtLeastOnce;
        options.set_last_will(packets5::LastWill::new(
            &*will.topic,
            payload,
            qos,
            will.retain,
            Some(properties),
        ));
    }
    options
}

fn qos4(level: u8) -> rumqttc_v4::mqttbytes::QoS {
    use rumqttc_v4::mqttbytes::QoS;
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(level)]
}

fn qos5(level: u8) -> rumqttc_v5::mqttbytes::QoS {
    use rumqttc_v5::mqttbytes::QoS;
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(level)]
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
