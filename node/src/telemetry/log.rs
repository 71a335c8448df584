//! The log: one line a record on standard error, for people or as JSON.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Starts to log. Only the first call of a process counts, so that several nodes can live in one.
pub fn init(config: &Log) {
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter(config)).with_writer(std::io::stderr);
    let started = match config.format {
        LogFormat::Text => builder.with_ansi(colour()).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_ansi(false).try_init(),
    };
    if started.is_err() {
        return tracing::debug!("a log runs already; this one was not started");
    }
    std::panic::set_hook(Box::new(log_panic));
}

/// A panic of a supervised thread is told by its supervisor, with what happens next; here only the place is added.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let supervised = matches!(std::thread::current().name(), Some("shard-0" | "shadows"));
    if supervised { tracing::debug!("{panic}") } else { tracing::error!("{panic}") }
}

/// `RUST_LOG`, when it is set and makes sense, else the configuration.
fn filter(config: &Log) -> EnvFilter {
    match std::env::var("RUST_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(directives),
        _ => EnvFilter::try_new(directives(&config.level)),
    }
    .unwrap_or_else(|_| EnvFilter::new(directives("info")))
}

/// A single level is Outpost's own; libraries only warn. Directives are taken as they are.
fn directives(level: &str) -> String {
    match level {
        "info" | "debug" | "trace" => format!("warn,outpost={level}"),
        other => other.to_owned(),
    }
}

fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && std::io::stderr().is_terminal()
}
