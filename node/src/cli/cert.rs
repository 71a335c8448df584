//! `outpost cert ca|server|device`: certificates for MQTT listeners, in a folder of files.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use outpost_cluster::ca::{CA_FILE, CA_KEY_FILE};
use outpost_cluster::listener_ca::ListenerCa;

use super::failure::Failure;
use super::output;

/// Make certificates for MQTT listeners: a CA of your own, servers, devices
#[derive(Debug, Args)]
pub struct Cert {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    #[command(name = "ca")]
    Authority(Authority),
    Server(Server),
    Device(Device),
}

/// Make a CA: ca.pem and ca.key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost cert ca plant --dir pki")]
struct Authority {
    /// What it is called: up to 64 of a-z A-Z 0-9 - _ . : @
    #[arg(default_value = "outpost-devices")]
    name: String,
    /// Folder to write to; files that are there are left as they are
    #[arg(long, value_name = "DIR", default_value = "pki")]
    dir: PathBuf,
}

/// Make a listener's certificate and key: server.pem and server.key
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost cert server localhost 127.0.0.1 gw.plant.example --dir pki"
)]
struct Server {
    /// The names and addresses at which clients find the node
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    #[command(flatten)]
    to: To,
}

/// Make a device's certificate and key: NAME.pem and NAME.key
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  outpost cert device lamp-1 --dir pki")]
struct Device {
    /// Its user name for access rules: up to 64 of a-z A-Z 0-9 - _ . : @
    name: String,
    #[command(flatten)]
    to: To,
}

#[derive(Debug, Args)]
struct To {
    /// Folder of the CA
    #[arg(long, value_name = "DIR", default_value = "pki")]
    dir: PathBuf,
    /// Folder to write to, over what is there; left out: the CA's
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Days it is valid
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
}

impl Cert {
    /// Runs the verb.
    ///
    /// # Errors
    /// [`Failure`] says what was not made.
    pub fn run(self) -> Result<(), Failure> {
        match self.verb {
            Verb::Authority(ca) => ca.run(),
            Verb::Server(server) => server.run(),
            Verb::Device(device) => device.run(),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(error.to_string())
}

impl Authority {
    fn run(self) -> Result<(), Failure> {
        let ca = ListenerCa::create(&self.dir, &self.name).map_err(failed)?;
        let dir = self.dir.display();
        output::print(&format!(
            "CA {} in {dir}: {CA_FILE}, {CA_KEY_FILE} (whoever reads the key can let devices in)\nfingerprint {}\n\n\
             Next: outpost cert server HOST --dir {dir}\n",
            self.name,
            ca.fingerprint(),
        ))
    }
}

impl Server {
    fn run(self) -> Result<(), Failure> {
        let ca = ListenerCa::load(&self.to.dir).map_err(failed)?;
        let issued = ca.issue_server(&self.hosts, self.to.valid()).map_err(failed)?;
        let out = self.to.out();
        issued.write_as(out, "server").map_err(failed)?;
        let path = |folder: &PathBuf, file: &str| {
            let path = folder.join(file);
            format!("{:?}", std::path::absolute(&path).unwrap_or(path).display().to_string())
        };
        output::print(&format!(
            "# for the configuration of the node:\n[[listener]]\nname = \"devices\"\ntransport = \"tls\"\n\
             # bind = \"0.0.0.0:8883\"   # to let other machines in; left out: 127.0.0.1:8883\n\
             cert = {}\nkey = {}\nclient_ca = {}\n",
            path(out, "server.pem"),
            path(out, "server.key"),
            path(&self.to.dir, CA_FILE),
        ))
    }
}

impl Device {
    fn run(self) -> Result<(), Failure> {
        let ca = ListenerCa::load(&self.to.dir).map_err(failed)?;
        let issued = ca.issue_device(&self.name, self.to.valid()).map_err(failed)?;
        let out = self.to.out();
        issued.write_as(out, &self.name).map_err(failed)?;
        let file = |end: &str| out.join(format!("{}.{end}", self.name)).display().to_string();
        output::print(&format!(
            "{} and {}; what the device trusts: {}\n",
            file("pem"),
            file("key"),
            self.to.dir.join(CA_FILE).display(),
        ))
    }
}

impl To {
    fn out(&self) -> &PathBuf {
        self.out.as_ref().unwrap_or(&self.dir)
    }

    fn valid(&self) -> Duration {
        Duration::from_hours(24 * self.days)
    }
}
