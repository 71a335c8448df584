//! The bus as hardware sees it: publish into the data plane, receive from it.

use bytes::Bytes;
use outpost_actors::shard::LocalPublish;
use outpost_hardware::{Bus, BusFull, BusMessage};
use outpost_model::{QoS, TopicFilter};
use tokio::sync::mpsc;
use tracing::warn;

use crate::plane::{Command, PlaneHandle};

/// Messages that may wait for one device. Full: the newest is dropped; a command to a device is only worth its newest state.
pub const DEVICE_MESSAGES_MAX: usize = 64;

/// The data plane as a bus.
#[derive(Debug, Clone)]
pub struct PlaneBus(pub PlaneHandle);

impl Bus for PlaneBus {
    fn publish(&self, topic: &str, payload: Bytes, retain: bool) -> Result<(), BusFull> {
        let publish = LocalPublish {
            here_only: false,
            topic: topic.into(),
            payload,
            qos: QoS::AtLeastOnce,
            retain,
            expiry_s: None,
            properties: None,
        };
        self.0.try_send(Command::Publish(publish, None)).map_err(|_| BusFull)
    }

    fn subscribe(&self, filter: &str) -> mpsc::Receiver<BusMessage> {
        let (to_device, device) = mpsc::channel(DEVICE_MESSAGES_MAX);
        let Ok(filter) = TopicFilter::new(filter.to_owned()) else {
            warn!(
                "a device asked for {filter:?}, which is not a topic filter; it will receive nothing"
            );
            return device;
        };
        let (to_bus, mut messages) =
            mpsc::channel::<std::sync::Arc<outpost_model::Message>>(DEVICE_MESSAGES_MAX);
        let plane = self.0.clone();
        tokio::spawn(async move {
            if plane.send(Command::Subscribe(filter, to_bus)).await.is_err() {
                return;
            }
            while let Some(message) = messages.recv().await {
                let message = BusMessage {
                    topic: message.topic.to_string(),
                    payload: message.payload.clone(),
                };
                if to_device.send(message).await.is_err() {
                    return;
                }
            }
        });
        device
    }
}
