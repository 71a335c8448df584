//! MQTT 5 through rumqttc-v5-next.

use std::time::Duration;

use rumqttc_v5::mqttbytes::QoS;
use rumqttc_v5::mqttbytes::v5 as packets;
use rumqttc_v5::{AsyncClient, ConnectionError, EventLoop, Incoming, MqttOptions, PublishOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::kept::Kept;
use super::link::{
    Broken, COMMANDS_MAX, Event, Outcome, Outgoing, PACKET_BYTES_MAX, RECONNECT_PAUSE, Received,
    Subscription, network, refused,
};
use super::options::Target;
use super::properties::{Properties, PublishProperties};

/// The side for commands.
#[derive(Debug)]
pub(super) struct Client {
    client: AsyncClient,
    properties: Properties,
}

pub(super) fn open(target: &Target, events: mpsc::Sender<Event>) -> (Client, JoinHandle<()>) {
    let (client, event_loop) = AsyncClient::builder(options(target)).capacity(COMMANDS_MAX).build();
    let address = format!("{}:{}", target.host, target.port);
    let pump = tokio::spawn(pump(event_loop, events, address));
    (Client { client, properties: target.properties.clone() }, pump)
}

fn options(target: &Target) -> MqttOptions {
    let mut options =
        MqttOptions::new(target.client_id.clone(), (target.host.clone(), target.port));
    options.set_keep_alive(target.keep_alive_s);
    if let Some(dialer) = target.dialer.clone() {
        options.set_socket_connector(move |_, _| dialer.clone().dial());
    }
    options.set_clean_start(target.clean);
    options.set_outgoing_inflight_upper_limit(target.inflight_max);
    let given = &target.properties.connect;
    let mut connect = packets::ConnectProperties::new();
    connect.session_expiry_interval = target.session_expiry_s;
    connect.receive_maximum = given.receive_maximum;
    connect.max_packet_size = Some(given.maximum_packet_size.unwrap_or(PACKET_BYTES_MAX));
    connect.topic_alias_max = given.topic_alias_maximum;
    connect.request_problem_info = given.request_problem_information;
    connect.request_response_info = given.request_response_information;
    connect.user_properties.clone_from(&given.user);
    options.set_connect_properties(connect);
    if !target.clean {
        options.set_session_store(Kept {
            inflight_max: target.inflight_max,
            session_expiry_s: target.session_expiry_s,
        });
    }
    match (&target.username, &target.password) {
        (Some(name), Some(password)) => options.set_credentials(name.clone(), password.clone()),
        (Some(name), None) => options.set_username(name.clone()),
        (None, Some(password)) => options.set_password(password.clone()),
        (None, None) => &mut options,
    };
    if let Some(will) = &target.will {
        let properties = will_properties(&target.properties.will);
        options.set_last_will(packets::LastWill::new(
            &*will.topic,
            will.payload.to_vec(),
            qos(will.qos),
            will.retain,
            properties,
        ));
    }
    options
}

fn will_properties(given: &PublishProperties) -> Option<packets::LastWillProperties> {
    (*given != PublishProperties::default()).then(|| packets::LastWillProperties {
        delay_interval: given.will_delay_interval,
        payload_format_indicator: given.payload_format_indicator,
        message_expiry_interval: given.message_expiry_interval,
        content_type: given.content_type.clone(),
        response_topic: given.response_topic.clone(),
        correlation_data: given.correlation_data.clone(),
        user_properties: given.user.clone(),
    })
}

impl Client {
    pub async fn publish(&self, message: Outgoing) -> Result<Outcome, String> {
        let mut options = PublishOptions::new(qos(message.qos)).retain(message.retain);
        if message.properties != PublishProperties::default() {
            options = options.properties(publish_properties(message.properties));
        }
        let notice = self
            .client
            .publish_tracked(message.topic, message.payload, options)
            .await
            .map_err(refused)?;
        Ok(Box::pin(async move { notice.wait_completion_async().await.map_err(refused) }))
    }

    pub async fn subscribe(&self, subscriptions: &[Subscription]) -> Result<(), String> {
        let filters = subscriptions.iter().map(|wanted| packets::SubscribeFilter {
            path: wanted.filter.clone(),
            qos: qos(wanted.qos),
            nolocal: wanted.no_local,
            preserve_retain: wanted.retain_as_published,
            retain_forward_rule: match wanted.retain_handling {
                0 => packets::RetainForwardRule::OnEverySubscribe,
                1 => packets::RetainForwardRule::OnNewSubscribe,
                _ => packets::RetainForwardRule::Never,
            },
        });
        let given = &self.properties;
        if given.subscription_identifier.is_none() && given.subscribe_user.is_empty() {
            return self.client.subscribe_many(filters).await.map_err(refused);
        }
        let properties = packets::SubscribeProperties {
            id: given.subscription_identifier,
            user_properties: given.subscribe_user.clone(),
        };
        self.client.subscribe_many_with_properties(filters, properties).await.map_err(refused)
    }

    pub async fn unsubscribe(&self, filters: &[String]) -> Result<(), String> {
        self.client.unsubscribe_many(filters.to_vec()).await.map_err(refused)
    }

    pub async fn disconnect(&self) -> bool {
        self.client.disconnect_with_timeout(Duration::from_secs(5)).await.is_ok()
    }
}

async fn pump(mut event_loop: EventLoop, events: mpsc::Sender<Event>, address: String) {
    loop {
        let event = match event_loop.poll().await {
            Ok(rumqttc_v5::Event::Incoming(packet)) => incoming(packet),
            Ok(rumqttc_v5::Event::Outgoing(packet)) => Event::Note(format!("sent {packet:?}")),
            Ok(rumqttc_v5::Event::Auth(event)) => Event::Note(format!("{event:?}")),
            Err(ConnectionError::RequestsDone) => return,
            Err(error) => {
                let event = Event::Lost(broken(&address, error));
                if events.send(event).await.is_err() {
                    return;
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
                continue;
            }
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn incoming(packet: Incoming) -> Event {
    match packet {
        Incoming::ConnAck(connack) => Event::Connected { session_present: connack.session_present },
        Incoming::Publish(publish) => Event::Message(Box::new(received(publish))),
        Incoming::SubAck(suback) => {
            let granted = suback.return_codes.iter().map(|code| match code {
                packets::SubscribeReasonCode::Success(qos) => Ok(*qos as u8),
                other => Err(format!("{other:?}")),
            });
            Event::Subscribed(granted.collect())
        }
        Incoming::UnsubAck(_) => Event::Unsubscribed,
        Incoming::Disconnect(disconnect) => {
            Event::Note(format!("the server disconnects: {:?}", disconnect.reason_code))
        }
        other => Event::Note(format!("received {other:?}")),
    }
}

fn received(publish: packets::Publish) -> Received {
    let properties = publish.properties.unwrap_or_default();
    Received {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        qos: publish.qos as u8,
        retain: publish.retain,
        dup: publish.dup,
        packet_id: publish.pkid,
        properties: PublishProperties {
            payload_format_indicator: properties.payload_format_indicator,
            message_expiry_interval: properties.message_expiry_interval,
            content_type: properties.content_type,
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
            topic_alias: properties.topic_alias,
            user: properties.user_properties,
            will_delay_interval: None,
            subscription_identifiers: properties.subscription_identifiers,
        },
    }
}

fn publish_properties(given: PublishProperties) -> packets::PublishProperties {
    packets::PublishProperties {
        payload_format_indicator: given.payload_format_indicator,
        message_expiry_interval: given.message_expiry_interval,
        topic_alias: given.topic_alias,
        response_topic: given.response_topic,
        correlation_data: given.correlation_data,
        user_properties: given.user,
        subscription_identifiers: Vec::new(),
        content_type: given.content_type,
    }
}

fn broken(address: &str, error: ConnectionError) -> Broken {
    match error {
        ConnectionError::ConnectionRefused(code) => {
            Broken::Refused(address.to_owned(), format!("{code:?}"))
        }
        ConnectionError::Io(error) => network(address, &error),
        ConnectionError::Timeout(_) => {
            Broken::Network(address.to_owned(), "no answer in time".into())
        }
        other => Broken::Network(address.to_owned(), other.to_string()),
    }
}

fn qos(level: u8) -> QoS {
    match level {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    }
}
