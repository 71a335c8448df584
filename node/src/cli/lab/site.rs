//! One of the two nodes: a process of this very program, with a folder, a configuration and a log of its own.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outpost_cluster::ca::{CA_FILE, Ca, NODE_FILE, NODE_KEY_FILE};
use serde_json::Value;

use super::progress::Progress;
use crate::cli::api::{Answer, Api, Method};
use crate::cli::failure::Failure;

/// How long a node may take to serve.
const START_MAX: Duration = Duration::from_secs(20);
/// Lines of a node's log that are shown when it does not do its part.
const LOG_LINES_SHOWN: usize = 8;
/// The cluster's name.
pub const CLUSTER: &str = "lab";

/// Where a node listens: ports that were free a moment ago.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub cluster: SocketAddr,
}

impl Ports {
    /// Ports for two nodes, chosen by the system. They are held together while choosing, so all differ.
    ///
    /// # Errors
    /// [`Failure`] when there are none.
    pub fn choose() -> Result<[Self; 2], Failure> {
        let failed = |why: std::io::Error| Failure::new(format!("no free port on loopback: {why}"));
        let mut held = Vec::new();
        let mut tcp = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            held.push(listener);
            Ok::<_, Failure>(address)
        };
        let (a, b, c, d) = (tcp()?, tcp()?, tcp()?, tcp()?);
        let first = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let second = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed)?;
        let udp = |socket: &UdpSocket| socket.local_addr().map_err(failed);
        Ok([
            Self { mqtt: a, http: b, cluster: udp(&first)? },
            Self { mqtt: c, http: d, cluster: udp(&second)? },
        ])
    }
}

/// How a node takes part.
#[derive(Debug)]
pub struct Plan {
    pub name: &'static str,
    pub ports: Ports,
    /// Its door in the cable.
    pub advertise: SocketAddr,
    /// The peer's.
    pub seed: SocketAddr,
}

impl Plan {
    fn toml(&self, folder: &Path) -> String {
        let path = |file: &str| toml::Value::from(folder.join(file).display().to_string());
        format!(
            "[node]\nname = \"{name}\"\ndata_dir = {data}\n\n[listen.mqtt]\nbind = \"{mqtt}\"\n\n[listen.http]\nbind = \
             \"{http}\"\n\n[cluster]\nname = \"{CLUSTER}\"\nbind = \"{cluster}\"\nadvertise = \"{advertise}\"  # the \
             cable's end\nseeds = [\"{seed}\"]\nca = {ca}\ncert = {cert}\nkey = {key}\n",
            name = self.name,
            data = path("data"),
            mqtt = self.ports.mqtt,
            http = self.ports.http,
            cluster = self.ports.cluster,
            advertise = self.advertise,
            seed = self.seed,
            ca = path(CA_FILE),
            cert = path(NODE_FILE),
            key = path(NODE_KEY_FILE),
        )
    }
}

/// A node that runs. Dropping it kills the process.
#[derive(Debug)]
pub struct Site {
    pub name: &'static str,
    pub ports: Ports,
    folder: PathBuf,
    child: Child,
}

impl Site {
    /// Writes certificate and configuration below `lab` and starts the process.
    ///
    /// # Errors
    /// [`Failure`] when a file cannot be written or the process not be started.
    pub fn start(lab: &Path, ca: &Ca, plan: &Plan) -> Result<Self, Failure> {
        let folder = lab.join(plan.name);
        let written = |file: &str, text: &str| {
            std::fs::write(folder.join(file), text).map_err(|why| {
                Failure::new(format!("cannot write {}: {why}", folder.join(file).display()))
            })
        };
        let failed = |why: outpost_cluster::ca::CaError| Failure::new(why.to_string());
        ca.issue_node(plan.name)
            .and_then(|issued| issued.write_as_node(&folder))
            .map_err(failed)?;
        written(CA_FILE, ca.pem())?;
        written("outpost.toml", &plan.toml(&folder))?;
        let child = spawn(&folder)?;
        Ok(Self { name: plan.name, ports: plan.ports, folder, child })
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// [`Failure`] when it ends or takes too long.
    pub async fn up(&mut self, progress: &Progress) -> Result<(), Failure> {
        let what = format!("waiting for {} to serve", self.name);
        progress
            .until(&what, START_MAX, async || {
                if let Ok(Some(status)) = self.child.try_wait() {
                    let how = status.code().map_or_else(
                        || format!("signal {}", status.signal().unwrap_or_default()),
                        |code| format!("exit code {code}"),
                    );
                    return Err(Failure::new(format!("{} did not start ({how})", self.name)));
                }
                Ok(self.get("/healthz").await.is_ok().then_some(()))
            })
            .await
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be killed.
    pub fn kill(&mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again as it was.
    ///
    /// # Errors
    /// [`Failure`] when the process cannot be started.
    pub fn again(&mut self) -> Result<(), Failure> {
        self.child = spawn(&self.folder)?;
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The failure with the last lines of the node's log behind it.
    pub fn with_log(&self, why: &Failure) -> Failure {
        let log = File::open(self.folder.join("log"));
        let lines: Vec<String> = log
            .map(|file| BufReader::new(file).lines().map_while(Result::ok).collect())
            .unwrap_or_default();
        let last = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        if last.is_empty() {
            return Failure::new(format!("{why}; the log of {} is empty", self.name));
        }
        let last: Vec<String> =
            last.iter().map(|line| format!("  {}: {line}", self.name)).collect();
        Failure::new(format!("{why}\nthe log of {} ends with\n{}", self.name, last.join("\n")))
    }

    /// Asks its HTTP API.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, path: &str, body: Option<String>) -> Result<Answer, Failure> {
        let api = Api { url: format!("http://{}", self.ports.http), token_file: None };
        let path = path.to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let method = body.as_ref().map_or(Method::Get, |body| Method::Post(body.as_bytes()));
            api.ask(method, &path)
        });
        asked.await.map_err(|why| Failure::new(format!("asking {} failed: {why}", self.name)))?
    }

    /// Asks, and takes only a 200.
    ///
    /// # Errors
    /// The node's words when it is another.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        crate::cli::api::accepted(self.ask(path, None).await?)
    }

    /// What it knows of the other node, `null` before it ever heard of it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn peer(&self) -> Result<Value, Failure> {
        let status = self.get("/api/v1/cluster").await?;
        Ok(status.pointer("/members/0").cloned().unwrap_or_default())
    }

    /// Whether it has a link to the other.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn is_linked(&self) -> Result<bool, Failure> {
        Ok(self.peer().await?["linked"] == true)
    }

    /// Messages it keeps on disk for the other.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn outbox(&self) -> Result<u64, Failure> {
        Ok(self.get("/api/v1/stats").await?["peers"]["outbox"].as_u64().unwrap_or_default())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.kill();
    }
}

/// The process itself, in a group of its own so that Ctrl-C reaches the lab, which then cleans up.
fn spawn(folder: &Path) -> Result<Child, Failure> {
    let program = std::env::current_exe()
        .map_err(|why| Failure::new(format!("cannot find this program's file: {why}")))?;
    let log = File::options().create(true).append(true).open(folder.join("log"));
    let log =
        log.map_err(|why| Failure::new(format!("cannot write to {}: {why}", folder.display())))?;
    let mut command = Command::new(&program);
    command.args(["node", "-c"]).arg(folder.join("outpost.toml")).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    // The configuration is the file, not what this shell happens to have set.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OUTPOST_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
        .spawn()
        .map_err(|why| Failure::new(format!("cannot start {}: {why}", program.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_written_is_one_the_node_takes() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = Ca::create(&folder.path().join("ca"), CLUSTER).expect("a CA");
        let [ports, _] = Ports::choose().expect("free ports");
        let plan = Plan {
            name: "edge",
            ports,
            advertise: "127.0.0.1:4001".parse().expect("an address"),
            seed: "127.0.0.1:4002".parse().expect("an address"),
        };
        ca.issue_node("edge").and_then(|it| it.write_as_node(folder.path())).expect("written");
        std::fs::write(folder.path().join(CA_FILE), ca.pem()).expect("written");
        let file = folder.path().join("outpost.toml");
        std::fs::write(&file, plan.toml(folder.path())).expect("written");
        let config = crate::cli::config::load(Some(file), Vec::new()).expect("a configuration");
        assert_eq!(config.listen.mqtt.bind, ports.mqtt);
        let cluster = config.cluster.expect("a cluster");
        assert_eq!(cluster.advertise, Some(plan.advertise));
        assert_eq!(cluster.seeds, ["127.0.0.1:4002"]);
    }
}
