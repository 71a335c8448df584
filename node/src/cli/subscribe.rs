//! `outpost sub`: mosquitto_sub's flags.

use std::io::Write;
use std::time::Duration;

use clap::{ArgAction, Args};
use outpost_model::TopicFilter;

use super::failure::Failure;
use super::mqtt::format::{Arrived, Format};
use super::mqtt::{Broken, Connection, Event, Link, Outgoing, Received, Subscription};
use super::output::{Say, runtime};
use super::publish::no_connection;

/// Print messages as they come, as mosquitto_sub does
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:
  outpost sub -t 'plant/#' -v
  outpost sub -t 'plant/+/temp' -F '%I %t %p' -C 10

Formats (-F): %t topic, %p payload, %x %X payload in hex, %l its length, %q QoS, %r retained, %m packet id,
%I time in ISO 8601, %U Unix time, %N its nanoseconds, %j all as JSON, %J the same with the payload as JSON,
%C content type, %D correlation data, %E expiry, %F payload format, %P user properties, %R response topic,
%S subscription identifiers, %A topic alias, %% a percent sign. %10t, %-10t, %010l and %.10p pad and cut.

Exit code 27: -W seconds have passed."
)]
pub struct Subscribe {
    /// Topic filter; may be given several times
    #[arg(short = 't', long, value_name = "FILTER", required_unless_present_any = ["url", "unsubscribe"])]
    topic: Vec<String>,
    /// Leave out topics that match this filter
    #[arg(short = 'T', long, value_name = "FILTER")]
    filter_out: Vec<String>,
    /// Unsubscribe from this filter (of a session kept with -c)
    #[arg(short = 'U', long, value_name = "FILTER")]
    unsubscribe: Vec<String>,
    /// Quality of service
    #[arg(short = 'q', long, value_name = "QOS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Print the topic before the payload
    #[arg(short = 'v', long, conflicts_with = "format")]
    verbose: bool,
    /// Print in this format, see below
    #[arg(short = 'F', long, value_name = "FORMAT", allow_hyphen_values = true)]
    format: Option<String>,
    /// Indent JSON of %j and %J
    #[arg(long)]
    pretty: bool,
    /// No line end after a message
    #[arg(short = 'N')]
    no_newline: bool,
    /// End after this many messages
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this many seconds, with exit code 27
    #[arg(short = 'W', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// End as soon as the subscriptions are acknowledged
    #[arg(short = 'E')]
    exit_once_subscribed: bool,
    /// Leave out messages that were retained before
    #[arg(short = 'R')]
    no_stale: bool,
    /// Only messages that were retained before; end at the first other one
    #[arg(long, conflicts_with = "no_stale")]
    retained_only: bool,
    /// Clear each retained message that comes
    #[arg(long)]
    remove_retained: bool,
    /// Keep the retain flag as published (MQTT 5)
    #[arg(long)]
    retain_as_published: bool,
    /// When to send retained messages (MQTT 5)
    #[arg(long, value_name = "WHEN", default_value = "always", value_parser = ["always", "new", "never"])]
    retain_handling: String,
    /// Not what this client itself publishes (MQTT 5)
    #[arg(long)]
    no_local: bool,
    #[command(flatten)]
    connection: Connection,
    /// Print this help
    #[arg(long, action = ArgAction::Help, help_heading = "Help")]
    help: Option<bool>,
}

impl Subscribe {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`], also when time was up.
    pub fn run(self) -> Result<(), Failure> {
        let target = self.connection.target("sub")?;
        let mut filters = self.topic.clone();
        filters.extend(target.topic.clone());
        let filter_out = self
            .filter_out
            .iter()
            .map(|text| checked("-T", text))
            .collect::<Result<Vec<_>, _>>()?;
        for text in filters.iter().chain(&self.unsubscribe) {
            checked("-t", text)?;
        }
        let format = self.format.as_deref().map(Format::parse).transpose();
        let format = format.map_err(|why| Failure::usage(format!("-F: {why}")))?;
        let limit = self.timeout.map(Duration::from_secs);
        let say = Say::new(self.connection.debug, self.connection.quiet);
        let subscriptions = filters.into_iter().map(|filter| self.subscription(filter)).collect();
        let mut session =
            Session { left: self.count, options: self, subscriptions, filter_out, format, say };
        runtime()?.block_on(async move {
            let mut link = Link::open(&target);
            let ended = match limit {
                None => session.work(&mut link).await,
                Some(limit) => tokio::time::timeout(limit, session.work(&mut link))
                    .await
                    .unwrap_or(Err(Failure::timeout())),
            };
            link.close().await;
            ended
        })
    }

    /// Nothing goes to standard error.
    pub fn is_quiet(&self) -> bool {
        self.connection.quiet
    }

    fn subscription(&self, filter: String) -> Subscription {
        let retain_handling = match self.retain_handling.as_str() {
            "new" => 1,
            "never" => 2,
            _ => 0,
        };
        let shared = filter.starts_with("$share/");
        Subscription {
            filter,
            qos: self.qos,
            no_local: self.no_local && !shared,
            retain_as_published: self.retain_as_published,
            retain_handling,
        }
    }
}

fn checked(flag: &str, text: &str) -> Result<TopicFilter, Failure> {
    TopicFilter::new(text).map_err(|why| Failure::usage(format!("{flag} {text:?} {why}")))
}

struct Session {
    options: Subscribe,
    subscriptions: Vec<Subscription>,
    filter_out: Vec<TopicFilter>,
    format: Option<Format>,
    say: Say,
    left: Option<u64>,
}

impl Session {
    async fn work(&mut self, link: &mut Link) -> Result<(), Failure> {
        let mut was_connected = false;
        loop {
            match link.next().await {
                Some(Event::Connected { session_present }) => {
                    self.say.event(&Event::Connected { session_present });
                    was_connected = true;
                    self.ask(link).await?;
                }
                Some(Event::Subscribed(granted)) => {
                    self.granted(&granted)?;
                    if self.options.exit_once_subscribed {
                        return Ok(());
                    }
                }
                Some(Event::Message(message)) => {
                    if self.message(&message, link).await? {
                        return Ok(());
                    }
                }
                Some(Event::Unsubscribed) if self.subscriptions.is_empty() => return Ok(()),
                Some(Event::Lost(broken))
                    if !was_connected || matches!(broken, Broken::Refused(..)) =>
                {
                    return Err(no_connection(&broken));
                }
                Some(Event::Lost(broken)) => self.say.warn(&format!("{broken}; connecting again")),
                Some(event) => self.say.event(&event),
                None => return Err(Failure::new("the connection ended")),
            }
        }
    }

    async fn ask(&self, link: &Link) -> Result<(), Failure> {
        if !self.options.unsubscribe.is_empty() {
            link.unsubscribe(&self.options.unsubscribe).await.map_err(Failure::new)?;
        }
        if !self.subscriptions.is_empty() {
            link.subscribe(&self.subscriptions).await.map_err(Failure::new)?;
        }
        Ok(())
    }

    fn granted(&self, granted: &[Result<u8, String>]) -> Result<(), Failure> {
        for (subscription, answer) in self.subscriptions.iter().zip(granted) {
            let filter = &subscription.filter;
            match answer {
                Ok(qos) => self.say.debug(&format!("subscribed to {filter:?} with QoS {qos}")),
                Err(why) => self.say.warn(&format!("the server refused {filter:?}: {why}")),
            }
        }
        if granted.iter().all(Result::is_err) && !granted.is_empty() {
            return Err(Failure::new("the server refused every subscription"));
        }
        Ok(())
    }

    /// Prints a message; `true` when it was the last one wanted.
    async fn message(&mut self, message: &Received, link: &Link) -> Result<bool, Failure> {
        if self.options.retained_only && !message.retain {
            return Ok(true);
        }
        if message.retain && self.options.remove_retained {
            let empty = Outgoing {
                topic: message.topic.clone(),
                qos: 1,
                retain: true,
                ..Outgoing::default()
            };
            let outcome = link.publish(empty).await.map_err(Failure::new)?;
            tokio::spawn(outcome);
        }
        let left_out = self.filter_out.iter().any(|filter| filter.matches(&message.topic));
        if left_out || (message.retain && self.options.no_stale) {
            return Ok(false);
        }
        self.print(message)?;
        if let Some(left) = &mut self.left {
            *left -= 1;
            return Ok(*left == 0);
        }
        Ok(false)
    }

    fn print(&self, message: &Received) -> Result<(), Failure> {
        let mut line = Vec::new();
        if let Some(format) = &self.format {
            match format.render(message, Arrived::now(), self.options.pretty) {
                Ok(text) => line = text,
                Err(why) => {
                    self.say.warn(&format!("a message of {:?} is left out: {why}", message.topic));
                    return Ok(());
                }
            }
        } else if self.options.verbose {
            line.extend_from_slice(message.topic.as_bytes());
            line.push(b' ');
            line.extend_from_slice(if message.payload.is_empty() {
                b"(null)"
            } else {
                &message.payload
            });
        } else {
            line.extend_from_slice(&message.payload);
        }
        if !self.options.no_newline {
            line.push(b'\n');
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        out.flush()?;
        Ok(())
    }
}
