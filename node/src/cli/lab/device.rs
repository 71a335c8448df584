//! Simulated devices: MQTT 5 clients with persistent sessions and QoS 1, over TCP like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rumqttc_v5::mqttbytes::QoS;
use rumqttc_v5::mqttbytes::v5::ConnectProperties;
use rumqttc_v5::{AsyncClient, Event, EventLoop, Incoming, MqttOptions, PublishOptions};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::site::Site;
use crate::cli::failure::Failure;

/// Requests that wait for the connection.
const COMMANDS_MAX: usize = 64;
/// Messages on their way at a time.
const IN_FLIGHT_MAX: u16 = 32;
/// How long the session outlives its connection.
const SESSION_S: u32 = 3_600;
/// Pause before connecting again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(150);
/// How long one acknowledgement may take.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);

/// What a device has heard.
#[derive(Debug, Default)]
struct Heard {
    numbers: BTreeSet<u64>,
    /// Messages that came again; QoS 1 allows it.
    again: u64,
    /// Answers of the shadow service, by client token.
    answers: BTreeMap<String, (bool, Value)>,
}

/// A connected device. Dropping it drops its connection.
#[derive(Debug)]
pub struct Device {
    client: AsyncClient,
    heard: Arc<Mutex<Heard>>,
    task: JoinHandle<()>,
    name: String,
    asked: AtomicU64,
}

impl Device {
    /// Connects and, when there is a filter, subscribes with QoS 1.
    ///
    /// # Errors
    /// [`Failure`] when the node does not take it.
    pub async fn connect(name: &str, site: &Site, filters: &[&str]) -> Result<Self, Failure> {
        let options = options(name, site.ports.mqtt);
        let (client, events) = AsyncClient::builder(options).capacity(COMMANDS_MAX).build();
        let heard = Arc::<Mutex<Heard>>::default();
        let task = tokio::spawn(run(events, Arc::clone(&heard)));
        let device = Self { client, heard, task, name: name.to_owned(), asked: AtomicU64::new(1) };
        for filter in filters {
            let acknowledged = async {
                let notice = device.client.subscribe_tracked(*filter, QoS::AtLeastOnce).await;
                let notice = notice.map_err(|why| why.to_string())?;
                notice.wait_completion_async().await.map_err(|why| why.to_string())
            };
            device.in_time(&format!("SUBSCRIBE {filter}"), acknowledged).await?;
        }
        Ok(device)
    }

    /// Publishes numbered telemetry with QoS 1; the numbers that were acknowledged.
    ///
    /// # Errors
    /// [`Failure`] when an acknowledgement is refused or does not come.
    pub async fn telemetry(&self, topic: &str, numbers: Vec<u64>) -> Result<Vec<u64>, Failure> {
        let acknowledged = async {
            let mut waiting = Vec::new();
            for number in &numbers {
                let payload = json!({ "n": number, "from": self.name }).to_string();
                let notice = self.client.publish_tracked(topic, payload, at_least_once()).await;
                waiting.push(notice.map_err(|why| why.to_string())?);
            }
            for notice in waiting {
                notice.wait_completion_async().await.map_err(|why| why.to_string())?;
            }
            Ok(())
        };
        self.in_time(&format!("PUBLISH {topic}"), acknowledged).await?;
        Ok(numbers)
    }

    /// Sends a shadow update as a device does, and waits for the document on `update/accepted`.
    ///
    /// # Errors
    /// [`Failure`] when it is rejected or no answer comes.
    pub async fn report(&self, thing: &str, state: &Value) -> Result<Value, Failure> {
        let topic = format!("$aws/things/{thing}/shadow/update");
        let token = self.asked.fetch_add(1, Ordering::Relaxed).to_string();
        let payload = json!({ "state": state, "clientToken": token }).to_string();
        let answered = async {
            let notice =
                self.client.publish_tracked(topic.as_str(), payload, at_least_once()).await;
            let notice = notice.map_err(|why| why.to_string())?;
            notice.wait_completion_async().await.map_err(|why| why.to_string())?;
            loop {
                if let Some((accepted, document)) = self.heard.lock().answers.remove(&token) {
                    return if accepted { Ok(document) } else { Err(document.to_string()) };
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        self.in_time(&topic, answered).await
    }

    /// The numbers it has received.
    pub fn numbers(&self) -> BTreeSet<u64> {
        self.heard.lock().numbers.clone()
    }

    /// How many came more than once.
    pub fn again(&self) -> u64 {
        self.heard.lock().again
    }

    async fn in_time<T>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, String>>,
    ) -> Result<T, Failure> {
        let name = &self.name;
        match tokio::time::timeout(ACKNOWLEDGED_MAX, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(why)) => Err(Failure::new(format!("device {name}: {what}: {why}"))),
            Err(_) => Err(Failure::new(format!(
                "device {name}: {what}: no acknowledgement in {} s",
                ACKNOWLEDGED_MAX.as_secs()
            ))),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn options(name: &str, node: SocketAddr) -> MqttOptions {
    let mut options = MqttOptions::new(name, (node.ip().to_string(), node.port()));
    options.set_keep_alive(30);
    options.set_clean_start(false);
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT_MAX);
    let mut connect = ConnectProperties::new();
    connect.session_expiry_interval = Some(SESSION_S);
    options.set_connect_properties(connect);
    options
}

fn at_least_once() -> PublishOptions {
    PublishOptions::new(QoS::AtLeastOnce)
}

async fn run(mut events: EventLoop, heard: Arc<Mutex<Heard>>) {
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Incoming::Publish(publish))) => {
                heard.lock().take(&String::from_utf8_lossy(&publish.topic), &publish.payload);
            }
            Ok(_) => {}
            // The node was killed, or is not there yet.
            Err(_) => tokio::time::sleep(RECONNECT_PAUSE).await,
        }
    }
}

impl Heard {
    fn take(&mut self, topic: &str, payload: &Bytes) {
        let Ok(mut payload) = serde_json::from_slice::<Value>(payload) else { return };
        let answer = topic.strip_prefix("$aws/").and_then(|rest| rest.rsplit('/').next());
        if let Some(answer) = answer {
            if let Some(token) = payload["clientToken"].as_str().map(str::to_owned) {
                self.answers.insert(token, (answer == "accepted", payload.take()));
            }
        } else if let Some(number) = payload["n"].as_u64()
            && !self.numbers.insert(number)
        {
            self.again += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_comes_again_counts_once() {
        let mut heard = Heard::default();
        for number in [1, 2, 2, 3] {
            heard.take("lab/edge/press", &json!({ "n": number }).to_string().into());
        }
        heard.take("lab/edge/press", &"no JSON".into());
        heard.take("$aws/things/t/shadow/update/rejected", &"{\"clientToken\":\"a\"}".into());
        assert_eq!(heard.numbers, BTreeSet::from([1, 2, 3]));
        assert_eq!(heard.again, 1);
        assert!(!heard.answers["a"].0);
    }
}
