//! What came of it: for programs as JSON, for people as tables.

use std::fmt::Write;
use std::ops::Sub;

use serde::Serialize;
use serde_json::Value;

use super::cable::{Flow, Tally};
use super::shadow::{Document, Merged, Side};
use crate::cli::failure::Failure;
use crate::cli::output::Paint;

/// Problems named in the last line; all are in the report.
const PROBLEMS_SHOWN: usize = 3;

/// The whole result.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Nothing acknowledged is missing, and both sides are equal.
    pub ok: bool,
    /// What is not as promised, in words.
    pub problems: Vec<String>,
    /// Published on each side while cut.
    pub messages: u64,
    /// How many shadows there are.
    pub things: usize,
    /// How long things took.
    pub seconds: Seconds,
    /// The edge's death and return, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kill: Option<Kill>,
    /// What each side held before the cut, at its end, and after healing.
    pub moments: [Moment; 3],
    /// Every leaf that was written while cut.
    pub merged: Vec<Merged>,
    /// What passed the cable: UDP payload.
    pub wire: Wire,
    /// What the nodes sent each other from the cut on, before QUIC and TLS.
    pub lanes: Lanes,
    /// All shadows' states as compact JSON.
    pub state_bytes: usize,
    /// Messages that a subscriber got again: the edge's, the cloud's.
    pub again: [u64; 2],
}

/// Durations in seconds.
#[derive(Debug, Serialize)]
pub struct Seconds {
    /// The cable was cut.
    pub cut: f64,
    /// From the cut until both nodes saw it.
    pub cut_noticed: f64,
    /// From healing until both nodes had a link.
    pub linked: f64,
    /// From healing until everything was equal; `null` when it never was.
    pub converged: Option<f64>,
}

/// The edge before and after `kill -9`.
#[derive(Debug, Serialize)]
pub struct Kill {
    /// Seconds from its start until it served again.
    pub restart_s: f64,
    /// Messages it kept for the cloud before.
    pub outbox_before: u64,
    /// And after.
    pub outbox_after: u64,
    /// The shadow that was written while cut is as it was.
    pub shadow_kept: bool,
}

/// Both sides at one moment.
#[derive(Debug, Serialize)]
pub struct Moment {
    /// `before`, `cut`, `healed`.
    pub name: &'static str,
    pub edge: Held,
    pub cloud: Held,
    /// Shadows that are not equal on both.
    pub shadows_different: usize,
}

/// One side at one moment.
#[derive(Debug, Serialize)]
pub struct Held {
    /// Messages of its devices that it acknowledged, so far.
    pub acknowledged: u64,
    /// Messages of the other side's devices that its durable subscriber has, so far.
    pub received: u64,
    /// Messages it keeps on disk for the other node.
    pub outbox: u64,
    /// The shadow that both sides write.
    pub shadow: Document,
}

/// The cable in each part of the story.
#[derive(Debug, Serialize)]
pub struct Wire {
    pub before: Tally,
    pub cut: Tally,
    pub healed: Tally,
}

/// Bytes of frames, both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lanes {
    /// Interest and acknowledgements.
    pub control: u64,
    /// Messages.
    pub events: u64,
    /// Shadows.
    pub sync: u64,
}

impl Sub for Lanes {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            control: self.control - earlier.control,
            events: self.events - earlier.events,
            sync: self.sync - earlier.sync,
        }
    }
}

impl Report {
    /// How the verb ends.
    ///
    /// # Errors
    /// When something is not as promised.
    pub fn verdict(&self) -> Result<(), Failure> {
        if self.ok {
            return Ok(());
        }
        let shown = self.problems.iter().take(PROBLEMS_SHOWN).cloned().collect::<Vec<_>>();
        Err(Failure::new(format!("{} not as promised: {}", self.problems.len(), shown.join("; "))))
    }

    /// Tables for people.
    pub fn text(&self, paint: Paint) -> String {
        let mut out = String::new();
        self.held(&mut out, paint);
        self.leaves(&mut out, paint);
        self.cable(&mut out, paint);
        self.conclusion(&mut out, paint);
        out
    }

    fn held(&self, out: &mut String, paint: Paint) {
        let title =
            format!("{:<32}{:^17}{:^17}{:^17}", "WHAT EACH SIDE HELD", "before", "cut", "healed");
        let sides = format!("{:<32}{}", "", format!("{:>8}{:>8} ", "edge", "cloud").repeat(3));
        let _ = writeln!(
            out,
            "\n{}\n{}",
            paint.strong(title.trim_end()),
            paint.faint(sides.trim_end())
        );
        let mut row = |what: &str, of: &dyn Fn(&Held) -> u64| {
            let mut line = format!("{what:<32}");
            for moment in &self.moments {
                let _ = write!(line, "{:>8}{:>8} ", of(&moment.edge), of(&moment.cloud));
            }
            let _ = writeln!(out, "{}", line.trim_end());
        };
        row("messages acknowledged", &|held| held.acknowledged);
        row("messages its subscriber has", &|held| held.received);
        row("owed to the other, on disk", &|held| held.outbox);
        row("version of shadow pump-001", &|held| held.shadow.version);
        let differ = self.moments.each_ref().map(|moment| moment.shadows_different);
        let cells = differ.map(|count| {
            let cell = format!("{count:>16}");
            if count == 0 { paint.good(&cell) } else { paint.fair(&cell) }
        });
        let _ = writeln!(out, "{:<32}{}", "shadows that differ", cells.join(" "));
        if self.moments[1].cloud.outbox > self.messages {
            let why = "The cloud owes one more: the answer to the operator, which pump-001 subscribes to.";
            let _ = writeln!(out, "{}", paint.faint(why));
        }
    }

    fn leaves(&self, out: &mut String, paint: Paint) {
        let heads = ["WRITTEN WHILE CUT", "before", "edge wrote", "cloud wrote", "both have"];
        let rows: Vec<[String; 5]> = self
            .merged
            .iter()
            .map(|leaf| {
                let wrote = |value: &Option<Value>| value.as_ref().map_or("·".into(), value_text);
                let place = format!("{} {}", leaf.thing, leaf.path);
                let after = value_text(&leaf.after);
                [place, value_text(&leaf.before), wrote(&leaf.edge), wrote(&leaf.cloud), after]
            })
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.chain([heads[column].len()]).max().unwrap_or_default() + 2
        };
        let widths: [usize; 5] = std::array::from_fn(width);
        let line = |cells: &[&str; 5]| {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(widths) {
                let _ = write!(line, "{cell:<width$}");
            }
            line
        };
        let _ = writeln!(out, "\n{}{}", paint.strong(&line(&heads)), paint.strong("decided by"));
        for (leaf, row) in self.merged.iter().zip(&rows) {
            let by = match leaf.winner {
                Side::Edge => "the edge",
                Side::Cloud => "the cloud",
            };
            let how = match (leaf.lost, leaf.conflict) {
                (true, _) => paint.bad("LOST"),
                (_, true) => paint.fair(&format!("{by}: both wrote, the later write stands")),
                (_, false) => by.to_owned(),
            };
            let _ = writeln!(out, "{}{how}", line(&row.each_ref().map(String::as_str)));
        }
    }

    fn cable(&self, out: &mut String, paint: Paint) {
        let title = format!(
            "{:<18}{:>16}{:>16}{:>11}{:>11}",
            "ON THE CABLE", "edge → cloud", "cloud → edge", "packets", "dropped"
        );
        let _ = writeln!(out, "\n{}", paint.strong(&title));
        for (name, tally) in
            [("before", self.wire.before), ("cut", self.wire.cut), ("healed", self.wire.healed)]
        {
            let (up, down) = (tally.edge_to_cloud, tally.cloud_to_edge);
            let sum = |of: fn(&Flow) -> u64| of(&up) + of(&down);
            let _ = writeln!(
                out,
                "{name:<18}{:>16}{:>16}{:>11}{:>11}",
                bytes(up.bytes),
                bytes(down.bytes),
                sum(|flow| flow.packets),
                sum(|flow| flow.dropped)
            );
        }
        let share = self.lanes.sync as f64 * 100.0 / (self.state_bytes.max(1)) as f64;
        let _ = writeln!(
            out,
            "since the cut, without QUIC and TLS: messages {}, shadows {} ({share:.0} % of the {} all {} shadows are), rest {}",
            bytes(self.lanes.events),
            bytes(self.lanes.sync),
            bytes(self.state_bytes as u64),
            self.things,
            bytes(self.lanes.control),
        );
    }

    fn conclusion(&self, out: &mut String, paint: Paint) {
        let cut = self.seconds.cut;
        out.push('\n');
        if let (true, Some(converged)) = (self.ok, self.seconds.converged) {
            let [.., last] = &self.moments;
            let messages = last.edge.acknowledged + last.cloud.acknowledged;
            let kill = if self.kill.is_some() { ", with the edge killed meanwhile" } else { "" };
            let text = format!(
                "Cut for {cut:.1} s{kill}; {converged:.2} s after healing both sides were equal.\n\
                 {messages} messages acknowledged, {messages} delivered ({} of them twice). {} shadow values written apart, each shows its latest write.",
                self.again.iter().sum::<u64>(),
                self.merged.len(),
            );
            let _ = writeln!(out, "{}", paint.good(&text));
        } else {
            let _ = writeln!(
                out,
                "{}",
                paint.bad(&format!("Cut for {cut:.1} s; not everything is as promised:"))
            );
            for problem in &self.problems {
                let _ = writeln!(out, "  {problem}");
            }
        }
    }
}

fn value_text(value: &Value) -> String {
    if value.is_null() { "(none)".to_owned() } else { value.to_string() }
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn moment(name: &'static str, sent: u64, received: u64, version: u64, differ: usize) -> Moment {
        let held = || Held {
            acknowledged: sent,
            received,
            outbox: sent - received,
            shadow: Document { version, ..Document::default() },
        };
        Moment { name, edge: held(), cloud: held(), shadows_different: differ }
    }

    fn tally(bytes: u64, dropped: u64) -> Tally {
        let flow = Flow { packets: bytes / 100, bytes, dropped };
        Tally { edge_to_cloud: flow, cloud_to_edge: flow }
    }

    fn report(lost: bool) -> Report {
        let leaf = |path: &str, edge: Option<Value>, cloud: Option<Value>, lost| Merged {
            thing: "pump-001".into(),
            path: path.into(),
            before: json!("auto"),
            after: cloud.clone().or(edge.clone()).unwrap_or_default(),
            winner: if cloud.is_some() { Side::Cloud } else { Side::Edge },
            conflict: edge.is_some() && cloud.is_some(),
            edge,
            cloud,
            lost,
        };
        Report {
            ok: !lost,
            problems: if lost { vec!["3 messages are missing".into()] } else { Vec::new() },
            messages: 200,
            things: 2,
            seconds: Seconds { cut: 5.0, cut_noticed: 2.4, linked: 0.3, converged: Some(0.44) },
            kill: None,
            moments: [
                moment("before", 30, 30, 1, 0),
                moment("cut", 230, 30, 3, 2),
                moment("healed", 230, 230, 2027, 0),
            ],
            merged: vec![
                leaf("desired.mode", Some(json!("manual")), Some(json!("eco")), false),
                leaf("desired.night", None, Some(Value::Null), false),
                leaf("reported.temp", Some(json!(74.9)), None, lost),
            ],
            wire: Wire { before: tally(35_600, 0), cut: tally(0, 41), healed: tally(9_500, 0) },
            lanes: Lanes { control: 4_600, events: 35_400, sync: 250 },
            state_bytes: 1_000,
            again: [0, 1],
        }
    }

    #[test]
    fn everything_stands_in_plain_tables() {
        let expected = "
WHAT EACH SIDE HELD                  before             cut            healed
                                    edge   cloud     edge   cloud     edge   cloud
messages acknowledged                 30      30      230     230      230     230
messages its subscriber has           30      30       30      30      230     230
owed to the other, on disk             0       0      200     200        0       0
version of shadow pump-001             1       1        3       3     2027    2027
shadows that differ                            0                2                0

WRITTEN WHILE CUT       before  edge wrote  cloud wrote  both have  decided by
pump-001 desired.mode   \"auto\"  \"manual\"    \"eco\"        \"eco\"      the cloud: both wrote, the later write stands
pump-001 desired.night  \"auto\"  ·           (none)       (none)     the cloud
pump-001 reported.temp  \"auto\"  74.9        ·            74.9       the edge

ON THE CABLE          edge → cloud    cloud → edge    packets    dropped
before                     35.6 kB         35.6 kB        712          0
cut                            0 B             0 B          0         82
healed                      9500 B          9500 B        190          0
since the cut, without QUIC and TLS: messages 35.4 kB, shadows 250 B (25 % of the 1000 B all 2 shadows are), rest 4600 B

Cut for 5.0 s; 0.44 s after healing both sides were equal.
460 messages acknowledged, 460 delivered (1 of them twice). 3 shadow values written apart, each shows its latest write.
";
        assert_eq!(report(false).text(Paint::off()), expected);
        assert_eq!(report(false).verdict(), Ok(()));
    }

    #[test]
    fn what_is_missing_is_named_and_is_exit_code_1() {
        let text = report(true).text(Paint::off());
        assert!(text.contains("74.9       LOST\n"), "{text}");
        assert!(
            text.ends_with("not everything is as promised:\n  3 messages are missing\n"),
            "{text}"
        );
        let failure = report(true).verdict().expect_err("something is missing");
        assert_eq!(failure.code(), 1);
        assert_eq!(failure.to_string(), "1 not as promised: 3 messages are missing");
    }
}
