//! The devices of the story: who publishes, who collects, and what was acknowledged to whom.

use std::collections::BTreeSet;

use super::device::Device;
use super::shadow::thing;
use super::site::Site;
use crate::cli::failure::Failure;

/// Devices that publish, on each side.
const PUBLISHERS: usize = 3;
/// All devices: on each side the publishers and a collector, and the first thing's.
pub const DEVICES: usize = 2 * (PUBLISHERS + 1) + 1;

/// The devices of one side.
#[derive(Debug)]
pub struct Crowd {
    name: &'static str,
    publishers: Vec<Device>,
    /// Subscribes to what the devices of the other side publish.
    pub collector: Device,
    /// The numbers of the messages for which a PUBACK came.
    pub acknowledged: BTreeSet<u64>,
}

/// All devices.
#[derive(Debug)]
pub struct Cast {
    pub edge: Crowd,
    pub cloud: Crowd,
    /// The first thing's device, at the edge.
    pub pump: Device,
}

impl Cast {
    /// Connects them all.
    ///
    /// # Errors
    /// [`Failure`] when a node does not take one.
    pub async fn connect(edge: &Site, cloud: &Site) -> Result<Self, Failure> {
        let topic = |kind: &str| format!("$aws/things/{}/shadow/update/{kind}", thing(1));
        let answers = [topic("accepted"), topic("rejected")];
        Ok(Self {
            pump: Device::connect(&thing(1), edge, &answers.each_ref().map(String::as_str)).await?,
            edge: Crowd::connect(edge, "lab/cloud/#").await?,
            cloud: Crowd::connect(cloud, "lab/edge/#").await?,
        })
    }

    /// Publishes number 0 on both sides; something once it has arrived on both. Then each node knows what the other's
    /// devices want.
    ///
    /// # Errors
    /// [`Failure`] when a node does not acknowledge it.
    pub async fn hear_each_other(&self) -> Result<Option<()>, Failure> {
        let mut all = true;
        for (from, to) in [(&self.edge, &self.cloud), (&self.cloud, &self.edge)] {
            if !to.collector.numbers().contains(&0) {
                from.publishers[0].telemetry(&format!("lab/{}/probe", from.name), vec![0]).await?;
                all = false;
            }
        }
        Ok(all.then_some(()))
    }

    /// Both sides publish at the same time; returns when every message is acknowledged.
    ///
    /// # Errors
    /// [`Failure`] when an acknowledgement does not come.
    pub async fn publish(&mut self, first: u64, count: u64) -> Result<(), Failure> {
        let (edge, cloud) = tokio::join!(
            Box::pin(self.edge.publish(first, count)),
            Box::pin(self.cloud.publish(first, count))
        );
        edge.and(cloud)
    }

    /// Acknowledged and not at the other side's subscriber: of the edge's, of the cloud's.
    pub fn missing(&self) -> [usize; 2] {
        [
            self.edge.acknowledged.difference(&self.cloud.collector.numbers()).count(),
            self.cloud.acknowledged.difference(&self.edge.collector.numbers()).count(),
        ]
    }
}

impl Crowd {
    async fn connect(site: &Site, filter: &str) -> Result<Self, Failure> {
        let mut publishers = Vec::new();
        for number in 1..=PUBLISHERS {
            let name = format!("{}-device-{number}", site.name);
            publishers.push(Device::connect(&name, site, &[]).await?);
        }
        let name = format!("{}-collector", site.name);
        let collector = Device::connect(&name, site, &[filter]).await?;
        Ok(Self { name: site.name, publishers, collector, acknowledged: BTreeSet::new() })
    }

    async fn publish(&mut self, first: u64, count: u64) -> Result<(), Failure> {
        let topics: [String; PUBLISHERS] =
            std::array::from_fn(|it| format!("lab/{}/device-{}", self.name, it + 1));
        let share = |it: usize| {
            let numbers = (first..first + count).filter(|n| n % PUBLISHERS as u64 == it as u64);
            self.publishers[it].telemetry(&topics[it], numbers.collect())
        };
        let (a, b, c) = tokio::join!(share(0), share(1), share(2));
        self.acknowledged.extend(a?.into_iter().chain(b?).chain(c?));
        Ok(())
    }
}
