//! `outpost-load`: puts MQTT 3.1.1 load on any server and prints one line of JSON. One thread, so that on a small machine
//! the server has the other cores. `bench/run` drives it.

mod client;
mod flow;
mod idle;
mod reset;
mod secured;
mod server;
mod websocket;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(about = "Puts MQTT load on a server and prints what it cost the server")]
struct Arguments {
    /// The server.
    #[arg(long, default_value = "127.0.0.1:1883")]
    address: SocketAddr,
    /// Its process: CPU time and memory are read from /proc.
    #[arg(long)]
    pid: u32,
    /// Over WebSocket.
    #[arg(long)]
    websocket: bool,
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Debug, Subcommand)]
enum Mode {
    /// Messages from publishers to subscribers.
    Flow(Flow),
    /// Connections that do nothing, each with one subscription.
    Idle {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        connections: usize,
    },
    /// Clients over TLS or QUIC that do nothing.
    Secured(secured::Secured),
    /// One pair with persistent sessions whose connections are reset again and again.
    Reset {
        /// Messages in all.
        #[arg(long, default_value_t = 10_000)]
        count: u32,
        /// A reset after so many deliveries, of the subscriber and the publisher in turn.
        #[arg(long, default_value_t = 500)]
        every: u32,
        /// 1 or 2.
        #[arg(long, default_value_t = 2)]
        qos: u8,
    },
}

/// Who sends to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// Each publisher has its own subscriber.
    Pairs,
    /// All publish to one subscriber with a wildcard.
    FanIn,
    /// One publishes to all.
    FanOut,
}

#[derive(Debug, Clone, Args)]
struct Flow {
    #[arg(long, value_enum)]
    shape: Shape,
    /// Pairs, publishers or subscribers.
    #[arg(long)]
    clients: usize,
    #[arg(long, default_value_t = 0)]
    qos: u8,
    /// The subscribers' sessions outlive their connections: what they are owed is on disk before it is acknowledged.
    #[arg(long)]
    durable: bool,
    /// Bytes of payload, at least 16.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Messages published a second, all publishers together; without it each keeps `window` under way.
    #[arg(long)]
    rate: Option<f64>,
    /// Messages each publisher has under way.
    #[arg(long, default_value_t = 10)]
    window: u32,
    /// Measured, after half a second to warm up.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Stop after so many deliveries, whatever the time.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// Say "ready" when warm, and go on when a line comes: for whoever counts from then on.
    #[arg(long)]
    mark: bool,
}

fn main() -> io::Result<()> {
    let Arguments { address, pid, websocket, mode } = Arguments::parse();
    let server = client::Server { address, websocket };
    let figures = match mode {
        Mode::Flow(flow) => flow::run(server, pid, &flow)?,
        Mode::Idle { connections } => idle::run(server, pid, connections)?,
        Mode::Secured(secured) => secured::run(address, pid, &secured)?,
        Mode::Reset { count, every, qos } => reset::run(server, pid, count, every, qos)?,
    };
    let fields: Vec<_> = figures.iter().map(|(name, n)| format!("\"{name}\":{n:.4}")).collect();
    println!("{{{}}}", fields.join(","));
    Ok(())
}

/// Names and values, in the order they are printed.
type Figures = Vec<(&'static str, f64)>;

/// Longer than any server takes for a CONNACK or SUBACK; then it counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);
