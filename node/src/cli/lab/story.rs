//! The story: before, cut, healed; and the check at its end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use outpost_cluster::ca::Ca;
use serde_json::json;

use super::cable::{Cable, Doors};
use super::cast::{Cast, Crowd, DEVICES};
use super::progress::Progress;
use super::report::{Held, Kill, Lanes, Moment, Report, Seconds, Wire};
use super::shadow::{self, Document, Documents, Edit, Side, first_state, thing};
use super::site::{CLUSTER, Plan, Ports, Site};
use super::verdict::Evidence;
use crate::cli::failure::Failure;

/// So many shadows are written while the link is cut, the first ones.
const WRITTEN_APART: usize = 3;
/// Messages each side publishes while everything is well.
const MESSAGES_BEFORE: u64 = 30;
/// How long the nodes may take to find each other, to see that they lost each other, or to hear a subscription.
const NOTICE_MAX: Duration = Duration::from_secs(15);
/// How long the two sides may take to become equal.
const CONVERGE_MAX: Duration = Duration::from_secs(30);
/// Between two writes to one key. Both nodes read one clock, so the second is later for everybody.
const APART: Duration = Duration::from_millis(20);

/// What is to happen.
#[derive(Debug)]
pub struct Story {
    pub folder: PathBuf,
    pub messages: u64,
    pub things: usize,
    pub cut_at_least: Duration,
    pub kill: bool,
}

/// The stage: nodes, cable, devices.
struct Stage<'a> {
    story: &'a Story,
    progress: &'a Progress,
    edge: Site,
    cloud: Site,
    cable: Cable,
}

impl Story {
    /// Plays it.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be played to its end. What is missing at the end is in the report.
    pub async fn tell(&self, progress: &Progress) -> Result<Report, Failure> {
        let mut stage = self.set(progress).await?;
        let told = stage.tell().await;
        told.map_err(|why| stage.cloud.with_log(&stage.edge.with_log(&why)))
    }

    async fn set<'a>(&'a self, progress: &'a Progress) -> Result<Stage<'a>, Failure> {
        progress.chapter("STAGE", "an edge node, a cloud node, and a cable between them");
        let ca = Ca::create(&self.folder.join("ca"), CLUSTER)
            .map_err(|why| Failure::new(why.to_string()))?;
        let (doors, [edge, cloud]) = (Doors::open().await?, Ports::choose()?);
        let (edge_door, cloud_door) = (doors.edge(), doors.cloud());
        let cable = doors.connect(edge.cluster, cloud.cluster);
        let plan = |name, ports, advertise, seed| Plan { name, ports, advertise, seed };
        let start = |plan: Plan| Site::start(&self.folder, &ca, &plan);
        let edge = start(plan("edge", edge, edge_door, cloud_door))?;
        let cloud = start(plan("cloud", cloud, cloud_door, edge_door))?;
        progress.done(&format!("a CA of their own ({}), a certificate for each", short(&ca)));
        let mut stage = Stage { story: self, progress, edge, cloud, cable };
        for site in [&mut stage.edge, &mut stage.cloud] {
            site.up(progress).await.map_err(|why| site.with_log(&why))?;
            let (name, pid, ports) = (site.name, site.pid(), site.ports);
            progress.done(&format!(
                "{name:<5} is up: process {pid}, mqtt {}, http {}",
                ports.mqtt, ports.http
            ));
        }
        Ok(stage)
    }
}

fn short(ca: &Ca) -> String {
    ca.fingerprint().chars().take(18).chain(['…']).collect()
}

impl Stage<'_> {
    async fn tell(&mut self) -> Result<Report, Failure> {
        self.linked(true).await?;
        let rtt = self.edge.peer().await?["rtt_ms"].as_f64().unwrap_or_default();
        self.progress.done(&format!("linked: QUIC, both certificates checked, {rtt:.1} ms"));

        self.progress.chapter("BEFORE", "devices on both sides, everything is well");
        let mut cast = Cast::connect(&self.edge, &self.cloud).await?;
        self.progress
            .until("until each node knows the other's subscriptions", NOTICE_MAX, async || {
                cast.hear_each_other().await
            })
            .await?;
        self.progress
            .done(&format!("{DEVICES} devices over MQTT 5, a durable subscriber on each side"));
        self.things(&cast).await?;
        self.publish(&mut cast, 1, MESSAGES_BEFORE).await?;
        self.all_arrived(&cast, NOTICE_MAX).await?;
        self.progress.done(&format!(
            "{MESSAGES_BEFORE} messages from each side, all at the durable subscriber of the other"
        ));
        let (edge_documents, _) = self.documents(self.story.things).await?;
        let before = self.moment("before", &cast).await?;
        let lanes_before = self.lanes().await?;

        self.progress.chapter("CUT", "every packet is thrown away, in both directions");
        let tally_before = self.cable.cut();
        let cut_at = Instant::now();
        self.linked(false).await?;
        let noticed = cut_at.elapsed();
        self.progress.done(&format!("both nodes saw it after {:.1} s", noticed.as_secs_f64()));
        self.publish(&mut cast, MESSAGES_BEFORE + 1, self.story.messages).await?;
        self.progress.done(&format!(
            "{} messages PUBACKed on each side: they wait on disk (edge {}, cloud {})",
            self.story.messages,
            self.edge.outbox().await?,
            self.cloud.outbox().await?
        ));
        let edits = self.edit(&cast).await?;
        let kill = if self.story.kill { Some(self.kill_edge().await?) } else { None };
        self.wait_out(cut_at).await;
        let during = self.moment("cut", &cast).await?;

        self.progress.chapter("HEAL", "the cable carries again");
        let tally_cut = self.cable.heal();
        let healed_at = Instant::now();
        let cut_for = cut_at.elapsed();
        self.linked(true).await?;
        let linked = healed_at.elapsed();
        self.progress.done(&format!("linked again after {:.2} s", linked.as_secs_f64()));
        let converged = self.converge(&cast, healed_at).await?;
        let after = self.moment("healed", &cast).await?;
        let (edge_after, cloud_after) = self.documents(self.story.things).await?;
        let tally_end = self.cable.tally();
        let merged = shadow::merged(&edits, &edge_documents, &edge_after);
        let problems = Evidence {
            missing: cast.missing(),
            before: &edge_documents,
            edge: &edge_after,
            cloud: &cloud_after,
            edits: &edits,
            apart: [&during.edge.shadow, &during.cloud.shadow],
            kill: kill.as_ref(),
        }
        .problems();
        Ok(Report {
            ok: problems.is_empty(),
            problems,
            messages: self.story.messages,
            things: self.story.things,
            seconds: Seconds {
                cut: cut_for.as_secs_f64(),
                cut_noticed: noticed.as_secs_f64(),
                linked: linked.as_secs_f64(),
                converged: converged.map(|it| it.as_secs_f64()),
            },
            kill,
            moments: [before, during, after],
            merged,
            wire: Wire {
                before: tally_before,
                cut: tally_cut - tally_before,
                healed: tally_end - tally_cut,
            },
            lanes: self.lanes().await? - lanes_before,
            state_bytes: edge_after.values().map(Document::bytes).sum(),
            again: [cast.edge.collector.again(), cast.cloud.collector.again()],
        })
    }

    async fn linked(&self, wanted: bool) -> Result<(), Failure> {
        let what = if wanted { "waiting for the link" } else { "until both nodes miss each other" };
        self.progress
            .until(what, NOTICE_MAX, async || {
                let both =
                    [self.edge.is_linked().await?, self.cloud.is_linked().await?] == [wanted; 2];
                Ok(both.then_some(()))
            })
            .await
    }

    async fn things(&self, cast: &Cast) -> Result<(), Failure> {
        let write = async {
            cast.pump.report(&thing(1), &first_state(1)).await?;
            for number in 2..=self.story.things {
                shadow::write(&self.edge, &thing(number), &first_state(number)).await?;
            }
            Ok::<_, Failure>(())
        };
        self.progress.during("writing shadows at the edge", write).await?;
        self.progress
            .until("until the cloud has the shadows too", NOTICE_MAX, async || {
                let (edge, cloud) = self.documents(self.story.things).await?;
                Ok(shadow::differences(&edge, &cloud).is_empty().then_some(()))
            })
            .await?;
        self.progress.done(&format!("{} shadows, equal on both nodes", self.story.things));
        Ok(())
    }

    async fn publish(&self, cast: &mut Cast, first: u64, count: u64) -> Result<(), Failure> {
        self.progress.during("publishing with QoS 1", cast.publish(first, count)).await
    }

    async fn all_arrived(&self, cast: &Cast, limit: Duration) -> Result<(), Failure> {
        self.progress
            .until("until every message has arrived", limit, async || {
                Ok((cast.missing() == [0, 0]).then_some(()))
            })
            .await
    }

    /// Writes while apart: different keys on both sides, one key on both, one key taken away.
    async fn edit(&self, cast: &Cast) -> Result<Vec<Edit>, Failure> {
        let mut edits = Vec::new();
        let name = thing(1);
        let by_hand = json!({ "reported": { "mode": "manual", "temp": 71.3 }, "desired": { "mode": "manual" } });
        let answer = cast.pump.report(&name, &by_hand).await?;
        edits.extend(shadow::edits(Side::Edge, &name, &by_hand, &answer));
        tokio::time::sleep(APART).await;
        let operator = json!({ "desired": { "mode": "eco", "speed": 1200, "night_mode": null } });
        let answer = shadow::write(&self.cloud, &name, &operator).await?;
        edits.extend(shadow::edits(Side::Cloud, &name, &operator, &answer));
        tokio::time::sleep(APART).await;
        let later = json!({ "reported": { "temp": 74.9 } });
        let answer = cast.pump.report(&name, &later).await?;
        edits.extend(shadow::edits(Side::Edge, &name, &later, &answer));
        self.progress.done(&format!(
            "shadow {name} written on both sides: desired.mode is \"manual\" at the edge, then \"eco\" in the cloud"
        ));
        let more = [
            (Side::Edge, &self.edge, json!({ "reported": { "hours": 777 } })),
            (Side::Cloud, &self.cloud, json!({ "desired": { "speed": 600 } })),
        ];
        for (number, (side, site, state)) in (2..=self.story.things).zip(more) {
            let answer = shadow::write(site, &thing(number), &state).await?;
            edits.extend(shadow::edits(side, &thing(number), &state, &answer));
        }
        Ok(edits)
    }

    async fn kill_edge(&mut self) -> Result<Kill, Failure> {
        let held = (self.edge.outbox().await?, Document::of(&thing(1), &self.edge).await?);
        let old_pid = self.edge.pid();
        self.edge.kill()?;
        self.progress.done(&format!("kill -9 {old_pid}: the edge is gone"));
        let began = Instant::now();
        self.edge.again()?;
        self.edge.up(self.progress).await?;
        let restart_s = began.elapsed().as_secs_f64();
        // A shadow that is gone is for the verdict to say.
        let shadow = Document::of(&thing(1), &self.edge).await.unwrap_or_default();
        let after = (self.edge.outbox().await?, shadow);
        let kill = Kill {
            restart_s,
            outbox_before: held.0,
            outbox_after: after.0,
            shadow_kept: held.1 == after.1,
        };
        self.progress.done(&format!(
            "process {} serves again after {restart_s:.2} s with {} messages for the cloud on disk",
            self.edge.pid(),
            kill.outbox_after
        ));
        Ok(kill)
    }

    async fn wait_out(&self, cut_at: Instant) {
        let left = self.story.cut_at_least.saturating_sub(cut_at.elapsed());
        let what = format!("cut for {} s", self.story.cut_at_least.as_secs());
        self.progress.during(&what, tokio::time::sleep(left)).await;
    }

    /// How long after the cable was whole everything was equal; nothing when it did not become so in time.
    async fn converge(&self, cast: &Cast, healed_at: Instant) -> Result<Option<Duration>, Failure> {
        let equal = self.all_arrived(cast, CONVERGE_MAX).await;
        if equal.is_ok() {
            self.progress.done(&format!(
                "every message has arrived, {:.2} s after the cable was whole",
                healed_at.elapsed().as_secs_f64()
            ));
        }
        // Only what was written is looked at here, as asking for all would be what takes the time.
        let shadows = self
            .progress
            .until("until the shadows are equal", CONVERGE_MAX, async || {
                let (edge, cloud) = self.documents(WRITTEN_APART).await?;
                Ok(shadow::differences(&edge, &cloud).is_empty().then_some(()))
            })
            .await;
        let converged = healed_at.elapsed();
        if shadows.is_err() || equal.is_err() {
            return Ok(None);
        }
        self.progress.done(&format!(
            "shadows are equal on both nodes, version for version, after {:.2} s",
            converged.as_secs_f64()
        ));
        // What was delivered is taken off the disk a moment later.
        let _ = self
            .progress
            .until("until the outboxes are empty", NOTICE_MAX, async || {
                let waiting = self.edge.outbox().await? + self.cloud.outbox().await?;
                Ok((waiting == 0).then_some(()))
            })
            .await;
        Ok(Some(converged))
    }

    /// The first shadows of both nodes, at most so many.
    async fn documents(&self, count: usize) -> Result<(Documents, Documents), Failure> {
        let of = async |site: &Site| {
            let mut documents = Documents::new();
            for number in 1..=self.story.things.min(count) {
                // A shadow that is not there yet is a difference, not a failure.
                if let Ok(document) = Document::of(&thing(number), site).await {
                    documents.insert(thing(number), document);
                }
            }
            documents
        };
        Ok(tokio::join!(of(&self.edge), of(&self.cloud)))
    }

    async fn moment(&self, name: &'static str, cast: &Cast) -> Result<Moment, Failure> {
        let (edge, cloud) = self.documents(self.story.things).await?;
        let held = async |site: &Site, own: &Crowd, documents: &Documents| {
            Ok::<_, Failure>(Held {
                acknowledged: own.acknowledged.len() as u64,
                received: own.collector.numbers().iter().filter(|n| **n > 0).count() as u64,
                outbox: site.outbox().await?,
                shadow: documents.get(&thing(1)).cloned().unwrap_or_default(),
            })
        };
        Ok(Moment {
            name,
            edge: held(&self.edge, &cast.edge, &edge).await?,
            cloud: held(&self.cloud, &cast.cloud, &cloud).await?,
            shadows_different: shadow::differences(&edge, &cloud).len(),
        })
    }

    /// What the cloud has counted on its lanes; it lives through the whole story.
    async fn lanes(&self) -> Result<Lanes, Failure> {
        let peer = self.cloud.peer().await?;
        let count = |lane: &str| {
            let lanes = peer["lanes"].as_array();
            let found = lanes.and_then(|lanes| lanes.iter().find(|it| it["lane"] == lane));
            let read = |key: &str| found.and_then(|it| it[key].as_u64()).unwrap_or_default();
            read("bytes_out") + read("bytes_in")
        };
        Ok(Lanes { control: count("control"), events: count("events"), sync: count("sync") })
    }
}
