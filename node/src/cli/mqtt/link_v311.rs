//! MQTT 3.1.1 through rumqttc-v4-next.

use std::time::Duration;

use rumqttc_v4::mqttbytes::QoS;
use rumqttc_v4::mqttbytes::v4 as packets;
use rumqttc_v4::{AsyncClient, ConnectionError, EventLoop, Incoming, MqttOptions, PublishOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::link::{
    Broken, COMMANDS_MAX, Event, Outcome, Outgoing, PACKET_BYTES_MAX, RECONNECT_PAUSE, Received,
    Subscription, network, refused,
};
use super::options::Target;

/// The side for commands.
#[derive(Debug)]
pub(super) struct Client {
    client: AsyncClient,
}

pub(super) fn open(target: &Target, events: mpsc::Sender<Event>) -> (Client, JoinHandle<()>) {
    let (client, event_loop) = AsyncClient::builder(options(target)).capacity(COMMANDS_MAX).build();
    let address = format!("{}:{}", target.host, target.port);
    let pump = tokio::spawn(pump(event_loop, events, address));
    (Client { client }, pump)
}

fn options(target: &Target) -> MqttOptions {
    let mut options =
        MqttOptions::new(target.client_id.clone(), (target.host.clone(), target.port));
    options.set_keep_alive(target.keep_alive_s);
    if let Some(dialer) = target.dialer.clone() {
        options.set_socket_connector(move |_, _| dialer.clone().dial());
    }
    options.set_clean_session(target.clean);
    options.set_inflight(target.inflight_max);
    options.set_max_packet_size(PACKET_BYTES_MAX as usize, PACKET_BYTES_MAX as usize);
    match (&target.username, &target.password) {
        (Some(name), password) => {
            options.set_credentials(name.clone(), password.clone().unwrap_or_default())
        }
        // MQTT 3.1.1, §3.1.2.9 has no password without a user name; the verb has said so.
        (None, _) => &mut options,
    };
    if let Some(will) = &target.will {
        options.set_last_will(packets::LastWill::new(
            &*will.topic,
            will.payload.to_vec(),
            qos(will.qos),
            will.retain,
        ));
    }
    options
}

impl Client {
    pub async fn publish(&self, message: Outgoing) -> Result<Outcome, String> {
        let options = PublishOptions::new(qos(message.qos)).retain(message.retain);
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
        });
        self.client.subscribe_many(filters).await.map_err(refused)
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
            Ok(rumqttc_v4::Event::Incoming(packet)) => incoming(packet),
            Ok(rumqttc_v4::Event::Outgoing(packet)) => Event::Note(format!("sent {packet:?}")),
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
                refused @ packets::SubscribeReasonCode::Failure => Err(format!("{refused:?}")),
            });
            Event::Subscribed(granted.collect())
        }
        Incoming::UnsubAck(_) => Event::Unsubscribed,
        other => Event::Note(format!("received {other:?}")),
    }
}

fn received(publish: packets::Publish) -> Received {
    Received {
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        qos: publish.qos as u8,
        retain: publish.retain,
        dup: publish.dup,
        packet_id: publish.pkid,
        ..Received::default()
    }
}

fn broken(address: &str, error: ConnectionError) -> Broken {
    match error {
        ConnectionError::ConnectionRefused(code) => {
            Broken::Refused(address.to_owned(), format!("{code:?}"))
        }
        ConnectionError::Io(error) => network(address, &error),
        ConnectionError::NetworkTimeout => {
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
