//! `outpost pub`: mosquitto_pub's flags. Ends with 0 once every message is acknowledged as its QoS promises.

use std::collections::VecDeque;
use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgAction, Args};
use tokio::sync::mpsc;

use super::failure::Failure;
use super::mqtt::link::Outcome;
use super::mqtt::{Broken, Connection, Event, Link, Outgoing};
use super::output::{Say, runtime};

/// Lines of standard input read ahead. More: memory while the server is slow.
const LINES_AHEAD: usize = 64;
/// The longest payload MQTT can carry is below this.
const PAYLOAD_BYTES_MAX: u64 = 268_435_455;

/// Publish a message, as mosquitto_pub does
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:
  outpost pub -t plant/7/temp -m 21.5 -q 1
  echo hello | outpost pub -t greetings -l"
)]
#[command(group = clap::ArgGroup::new("payload").required(true).args(["message", "file", "stdin_line", "stdin_file", "null_message"]))]
pub struct Publish {
    /// Topic to publish to
    #[arg(short = 't', long, value_name = "TOPIC", required_unless_present = "url")]
    topic: Option<String>,
    /// The payload
    #[arg(short = 'm', long, value_name = "TEXT", allow_hyphen_values = true)]
    message: Option<String>,
    /// File whose content is the payload
    #[arg(short = 'f', long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A message for each line of standard input
    #[arg(short = 'l', long)]
    stdin_line: bool,
    /// All of standard input as one message
    #[arg(short = 's', long)]
    stdin_file: bool,
    /// An empty payload; with -r it clears the retained message
    #[arg(short = 'n', long)]
    null_message: bool,
    /// Quality of service
    #[arg(short = 'q', long, value_name = "QOS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Keep the message for later subscribers
    #[arg(short = 'r', long)]
    retain: bool,
    /// Send it this often
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "stdin_line")]
    repeat: u32,
    /// Seconds between repetitions, also a fraction
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    repeat_delay: f64,
    /// Taken for mosquitto's sake; TCP_NODELAY is always on
    #[arg(long, hide = true)]
    nodelay: bool,
    #[command(flatten)]
    connection: Connection,
    /// Print this help
    #[arg(long, action = ArgAction::Help, help_heading = "Help")]
    help: Option<bool>,
}

impl Publish {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] when anything was not acknowledged.
    pub fn run(self) -> Result<(), Failure> {
        let target = self.connection.target("pub")?;
        let topic = self
            .topic
            .clone()
            .or_else(|| target.topic.clone())
            .ok_or_else(|| Failure::usage("no topic: give -t"))?;
        outpost_model::topic::check_name(&topic)
            .map_err(|why| Failure::usage(format!("the topic {topic:?} {why}")))?;
        if !(0.0..=86_400.0).contains(&self.repeat_delay) {
            return Err(Failure::usage("--repeat-delay is 0 to 86400 seconds"));
        }
        let first = self.payload()?;
        let say = Say::new(self.connection.debug, self.connection.quiet);
        let message = Outgoing {
            topic,
            payload: Bytes::new(),
            qos: self.qos,
            retain: self.retain,
            properties: target.properties.publish.clone(),
        };
        runtime()?.block_on(async move {
            let mut session = Session {
                link: Link::open(&target),
                say,
                waiting: VecDeque::new(),
                window: usize::from(target.inflight_max),
            };
            session.connect().await?;
            if let Some(payload) = first {
                let delay = Duration::from_secs_f64(self.repeat_delay);
                for turn in 0..self.repeat {
                    if turn > 0 && !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    session
                        .publish(Outgoing { payload: payload.clone(), ..message.clone() })
                        .await?;
                }
                return session.finish().await;
            }
            let mut lines = stdin_lines();
            while let Some(line) = lines.recv().await {
                session.publish(Outgoing { payload: line?, ..message.clone() }).await?;
            }
            session.finish().await
        })
    }

    /// Nothing goes to standard error.
    pub fn is_quiet(&self) -> bool {
        self.connection.quiet
    }

    /// The one payload; `None` when standard input has one a line.
    fn payload(&self) -> Result<Option<Bytes>, Failure> {
        if self.stdin_line {
            return Ok(None);
        }
        if let Some(text) = &self.message {
            return Ok(Some(Bytes::copy_from_slice(text.as_bytes())));
        }
        if let Some(file) = &self.file {
            let cannot = |why: std::io::Error| {
                Failure::new(format!("cannot read {}: {why}", file.display()))
            };
            return read_all(std::fs::File::open(file).map_err(cannot)?).map(Some);
        }
        if self.stdin_file {
            return read_all(std::io::stdin().lock()).map(Some);
        }
        Ok(Some(Bytes::new()))
    }
}

fn read_all(from: impl Read) -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    from.take(PAYLOAD_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > PAYLOAD_BYTES_MAX {
        return Err(Failure::new(format!(
            "the payload is longer than {PAYLOAD_BYTES_MAX} bytes, the most MQTT can carry"
        )));
    }
    Ok(bytes.into())
}

/// Reads standard input on a thread of its own, because it can block for ever.
fn stdin_lines() -> mpsc::Receiver<Result<Bytes, Failure>> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let read = (&mut input).take(PAYLOAD_BYTES_MAX).read_until(b'\n', &mut line);
            let line = match read {
                Ok(0) => return,
                Ok(_) => {
                    let end = line
                        .strip_suffix(b"\n")
                        .map_or(line.len(), |rest| rest.strip_suffix(b"\r").unwrap_or(rest).len());
                    line.truncate(end);
                    Ok(line.into())
                }
                Err(error) => Err(error.into()),
            };
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    lines
}

struct Session {
    link: Link,
    say: Say,
    /// Messages handed over and not acknowledged, oldest first.
    waiting: VecDeque<Outcome>,
    window: usize,
}

impl Session {
    async fn connect(&mut self) -> Result<(), Failure> {
        loop {
            match self.link.next().await {
                Some(Event::Connected { .. }) => return Ok(()),
                Some(Event::Lost(broken)) => return Err(no_connection(&broken)),
                Some(event) => self.say.event(&event),
                None => return Err(Failure::new("the connection ended before it began")),
            }
        }
    }

    async fn publish(&mut self, message: Outgoing) -> Result<(), Failure> {
        while self.waiting.len() >= self.window {
            self.acknowledged().await?;
        }
        let topic = message.topic.clone();
        let outcome = self
            .link
            .publish(message)
            .await
            .map_err(|why| Failure::new(format!("publishing to {topic:?}: {why}")))?;
        self.waiting.push_back(outcome);
        Ok(())
    }

    /// Waits for the oldest message, while events go on being read.
    async fn acknowledged(&mut self) -> Result<(), Failure> {
        let Some(mut outcome) = self.waiting.pop_front() else { return Ok(()) };
        loop {
            tokio::select! {
                biased;
                done = &mut outcome => {
                    return done.map_err(|why| Failure::new(format!("a message was not acknowledged: {why}")));
                }
                event = self.link.next() => match event {
                    Some(Event::Lost(broken @ Broken::Refused(..))) => return Err(no_connection(&broken)),
                    Some(Event::Lost(broken)) => self.say.warn(&format!("{broken}; connecting again")),
                    Some(event) => self.say.event(&event),
                    None => return Err(Failure::new("the connection ended; what was not acknowledged may be lost")),
                },
            }
        }
    }

    async fn finish(mut self) -> Result<(), Failure> {
        while !self.waiting.is_empty() {
            self.acknowledged().await?;
        }
        self.link.close().await;
        Ok(())
    }
}

/// The line for a connection that never was, with what to do about it.
pub(super) fn no_connection(broken: &Broken) -> Failure {
    let help = match broken {
        Broken::Network(..) => {
            "; `outpost dev` starts a node on 127.0.0.1:1883, -h and -p name another"
        }
        Broken::Refused(..) => "",
    };
    Failure::new(format!("cannot connect: {broken}{help}"))
}
