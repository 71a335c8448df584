//! `outpost dev`: a node on this machine in one command, with lines to paste.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::failure::Failure;
use super::{config, output, run};

/// Start a node on this machine to try things out: loopback only, no users, data in ./outpost-data
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  outpost dev\n  outpost dev --mqtt-port 1884 --http-port 18081 --data-dir /tmp/second"
)]
pub struct Dev {
    /// Port for MQTT
    #[arg(long, value_name = "PORT", default_value_t = 1883)]
    mqtt_port: u16,
    /// Port for HTTP
    #[arg(long, value_name = "PORT", default_value_t = 18080)]
    http_port: u16,
    /// Directory for what must outlive the process
    #[arg(long, value_name = "DIR", default_value = "outpost-data")]
    data_dir: PathBuf,
    /// Set a key of the configuration
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Default for Dev {
    fn default() -> Self {
        Self { mqtt_port: 1883, http_port: 18080, data_dir: "outpost-data".into(), set: Vec::new() }
    }
}

impl Dev {
    /// Runs until it is told to stop.
    ///
    /// # Errors
    /// [`Failure`] when the node does not start.
    pub fn run(self) -> Result<(), Failure> {
        let mut set = vec![
            format!("listen.mqtt.bind=127.0.0.1:{}", self.mqtt_port),
            format!("listen.http.bind=127.0.0.1:{}", self.http_port),
            format!("node.data_dir={}", self.data_dir.display()),
            "log.level=info".to_owned(),
        ];
        set.extend(self.set);
        let config = config::load(None, set)?;
        let data_dir = config.node.data_dir.clone();
        run::run(config, run::PortHelp::Flags, |mqtt, http| {
            let _ = output::print(&welcome(mqtt, http, &data_dir.display().to_string()));
        })
    }
}

/// What the screen says once the node listens. Every line below "Try it" works as it stands.
fn welcome(mqtt: SocketAddr, http: SocketAddr, data_dir: &str) -> String {
    let port = if mqtt.port() == 1883 { String::new() } else { format!(" -p {}", mqtt.port()) };
    let url = if http.port() == 18080 { String::new() } else { format!(" --url http://{http}") };
    format!(
        "\
Outpost {version} is up, for this machine only.
  MQTT 3.1.1 and 5   {mqtt}
  HTTP               http://{http}
  data               {data_dir} (acknowledged means on disk)

Try it in another terminal:
  outpost sub{port} -t 'plant/#' -v
  outpost pub{port} -t plant/7/temp -m 21.5 -q 1
  mosquitto_sub{port} -t 'plant/#' -v
  mosquitto_pub{port} -t plant/7/temp -m 21.5 -q 1
  outpost shadow set lamp desired.on=true{url}
  outpost shadow get lamp{url}
  outpost shadow watch lamp{port}
  outpost actors{url}
  curl http://{http}/healthz
  curl 'http://{http}/api/v1/publish?topic=plant/7/temp&qos=1' -d 21.5

Ctrl-C stops it.
",
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_name_ports_only_where_they_are_not_the_usual_ones() {
        let usual = welcome(
            "127.0.0.1:1883".parse().expect("valid"),
            "127.0.0.1:18080".parse().expect("valid"),
            "d",
        );
        assert!(
            usual.contains("\n  mosquitto_pub -t plant") && usual.contains("\n  outpost actors\n"),
            "{usual}"
        );
        let other = welcome(
            "127.0.0.1:1884".parse().expect("valid"),
            "127.0.0.1:18081".parse().expect("valid"),
            "d",
        );
        assert!(other.contains("\n  mosquitto_pub -p 1884 -t plant"), "{other}");
        assert!(other.contains("\n  outpost actors --url http://127.0.0.1:18081\n"), "{other}");
    }
}
