//! Runs a node until a signal: what `dev` and `node` have in common.

use std::net::{SocketAddr, TcpListener};

use super::failure::Failure;
use crate::config::Config;
use crate::systemd;
use crate::telemetry::log;

/// What `systemctl status` shows.
const SERVING: &str = "serving clients";

/// How to choose another port, in the verb's own words.
#[derive(Debug, Clone, Copy)]
pub(super) enum PortHelp {
    /// By `--mqtt-port` and `--http-port`.
    Flags,
    /// By the configuration.
    Config,
}

/// Starts a node, says so, and waits for Ctrl-C or SIGTERM.
///
/// # Errors
/// [`Failure`] when it does not start. A node that stops when told to is no failure.
pub(super) fn run(
    config: Config,
    help: PortHelp,
    up: impl FnOnce(SocketAddr, SocketAddr),
) -> Result<(), Failure> {
    log::init(&config.log);
    crate::listen::descriptors::raise_limit();
    ports_are_free(&config, help)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime =
        runtime.map_err(|why| Failure::new(format!("cannot start the runtime: {why}")))?;
    runtime.block_on(async {
        let node = crate::Node::start(config).await.map_err(|why| Failure::new(chain(&why)))?;
        up(node.mqtt_addr(), node.http_addr());
        systemd::ready(SERVING);
        let alive = tokio::spawn(systemd::alive(node.plane().clone()));
        told_to_stop(&node).await?;
        tracing::info!("stopping");
        alive.abort();
        systemd::stopping();
        node.shutdown().await;
        Ok(())
    })
}

/// Says which port is taken and how to choose another, before anything is opened.
fn ports_are_free(config: &Config, help: PortHelp) -> Result<(), Failure> {
    let mqtt = ("MQTT", config.listen.mqtt.bind, "--mqtt-port", "listen.mqtt.bind");
    let http = ("HTTP", config.listen.http.bind, "--http-port", "listen.http.bind");
    let mqtt = config.listen.mqtt.enabled.then_some(mqtt);
    for (what, bind, flag, key) in mqtt.into_iter().chain([http]) {
        let Err(why) = TcpListener::bind(bind) else { continue };
        if why.kind() != std::io::ErrorKind::AddrInUse {
            return Err(Failure::new(format!("cannot listen for {what} on {bind}: {why}")));
        }
        let other = match help {
            PortHelp::Flags => format!("{flag} {}", bind.port().wrapping_add(1).max(1024)),
            PortHelp::Config => {
                format!("--set {key}={}:{}", bind.ip(), bind.port().wrapping_add(1).max(1024))
            }
        };
        return Err(Failure::new(format!(
            "port {} ({what}) is in use; choose another, for example {other}",
            bind.port()
        )));
    }
    Ok(())
}

/// Waits for SIGINT or SIGTERM. SIGHUP has the node look at the files of its certificates.
async fn told_to_stop(node: &crate::Node) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            _ = terminate.recv() => return Ok(()),
            _ = hang_up.recv() => {
                systemd::reloading();
                let listeners = node.listeners().clone();
                // What became of it is in the log.
                let _ = tokio::task::spawn_blocking(move || listeners.reload()).await;
                systemd::ready(SERVING);
            }
        }
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(why) = cause {
        let why_text = why.to_string();
        if !text.contains(&why_text) {
            text = format!("{text}: {why_text}");
        }
        cause = why.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_a_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut config = Config::default();
        config.listen.mqtt.bind = "127.0.0.1:0".parse().expect("an address");
        config.listen.http.bind = taken.local_addr().expect("it has one");
        let port = config.listen.http.bind.port();
        let failure = ports_are_free(&config, PortHelp::Flags).expect_err("it is taken");
        assert_eq!(
            failure.to_string(),
            format!(
                "port {port} (HTTP) is in use; choose another, for example --http-port {}",
                port.wrapping_add(1).max(1024)
            )
        );
        assert_eq!(failure.code(), 1);
        drop(taken);
        assert_eq!(ports_are_free(&config, PortHelp::Config), Ok(()));
    }
}
