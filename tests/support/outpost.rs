//! The command `outpost` as a process, run until it ends or is told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use outpost_node::config::User;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::group::MemoryGroup;
use super::{DEADLINE, until, within};

/// Path of the command: `OUTPOST_BIN`, or what `cargo test` has built; where it was told to build less (`--test e2e`), the first call does.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(other) = std::env::var_os("OUTPOST_BIN") {
            return other.into();
        }
        // …/target/debug/deps/e2e-0123456789abcdef
        let this = std::env::current_exe().expect("a running test has a path");
        let profile = this.ancestors().nth(2).expect("it lies in a profile's folder");
        let binary = profile.join("examples/outpost");
        if !is_fresh(&binary) {
            build(profile.parent().expect("which lies in the target folder"));
        }
        binary
    })
}

/// Whether it is there and newer than every source cargo says it is made of (`outpost.d` beside it).
fn is_fresh(binary: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    let Some(built) = changed(binary) else { return false };
    let Ok(sources) = std::fs::read_to_string(binary.with_extension("d")) else { return false };
    let sources = sources.split_once(": ").map_or("", |(_, sources)| sources).trim_end();
    sources.split(' ').all(|path| changed(Path::new(path)).is_some_and(|source| source <= built))
}

fn build(target: &Path) {
    let mut build = std::process::Command::new(env!("CARGO"));
    build.args([
        "build",
        "-p",
        "outpost-tests",
        "--example",
        "outpost",
        "--offline",
        "--target-dir",
    ]);
    build.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let output = build.output().expect("cargo is there, it runs this test");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the command cannot be built:\n{errors}");
}

/// The command, ready for arguments: no settings of the person who runs the tests.
pub fn command() -> Command {
    with_defaults(Command::new(binary()))
}

fn with_defaults(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let names = std::env::vars_os().map(|(name, _)| name);
    for name in
        names.filter(|name| name == "RUST_LOG" || name.to_string_lossy().starts_with("OUTPOST_"))
    {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// How a command ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `outpost` with arguments to its end.
pub async fn outpost(args: &[&str]) -> Finished {
    let mut command = command();
    command.args(args);
    finish(command).await
}

/// Runs a command to its end.
pub async fn finish(command: Command) -> Finished {
    finish_in(DEADLINE, command).await
}

/// Runs a command that has limits of its own to its end: who kills it sooner does not learn why, and leaves behind what it
/// has started.
pub async fn finish_in(limit: Duration, mut command: Command) -> Finished {
    let what = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output
        .unwrap_or_else(|_| panic!("no answer in {limit:?}: {what}"))
        .unwrap_or_else(|why| panic!("{what}: {why}"));
    Finished {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A user as `outpost passwd` writes it down: with the hash of a password, and with its SCRAM verifier.
pub async fn user(name: &str, password: &str) -> User {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, password).expect("writable");
    let mut command = command();
    command
        .args(["passwd", name, "--hash-only"])
        .stdin(std::fs::File::open(&file).expect("it is there"));
    let done = finish(command).await;
    let mut lines = done.stdout.lines().map(str::to_owned);
    let (password, scram) = (lines.next(), lines.next());
    assert!(password.is_some() && scram.is_some(), "{}", done.stderr);
    User { name: name.into(), password, scram, ..User::default() }
}

/// What a process has said so far on one of its outputs.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// Reads to the end, which is where the task ends.
    fn read(from: impl AsyncRead + Unpin + Send + 'static) -> (Self, JoinHandle<()>) {
        let lines = Self::default();
        let into = lines.clone();
        let reader = tokio::spawn(async move {
            let mut from = BufReader::new(from).lines();
            while let Ok(Some(line)) = from.next_line().await {
                into.0.lock().expect("nobody panics with it").push(line);
            }
        });
        (lines, reader)
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics with it").clone()
    }

    /// Lines with these words.
    pub fn with(&self, words: &str) -> Vec<String> {
        self.all().into_iter().filter(|line| line.contains(words)).collect()
    }
}

/// A running process whose output is read as it comes.
pub struct Running {
    child: Child,
    pub out: Lines,
    pub err: Lines,
    readers: [JoinHandle<()>; 2],
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child =
            command.spawn().unwrap_or_else(|why| panic!("{:?}: {why}", command.as_std()));
        let (out, reads_out) = Lines::read(child.stdout.take().expect("piped"));
        let (err, reads_err) = Lines::read(child.stderr.take().expect("piped"));
        Self { child, out, err, readers: [reads_out, reads_err] }
    }

    /// Waits for a line on standard output.
    pub async fn says(&mut self, words: &str) -> String {
        let out = self.out.clone();
        self.says_on(&out, words).await
    }

    /// Waits for a line on standard error, where the log is.
    pub async fn logs(&mut self, words: &str) -> String {
        let err = self.err.clone();
        self.says_on(&err, words).await
    }

    async fn says_on(&mut self, lines: &Lines, words: &str) -> String {
        until(words, async || !lines.with(words).is_empty() || self.has_said_all()).await;
        match lines.with(words).into_iter().next() {
            Some(line) => line,
            None => panic!("it ended without saying {words:?}: {:?} {:?}", self.out, self.err),
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// It has ended, and its outputs are read to theirs.
    fn has_said_all(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
            && self.readers.iter().all(JoinHandle::is_finished)
    }

    /// Its end, and that of its outputs.
    pub async fn wait(mut self) -> ExitStatus {
        let ended = within("the end of a process", self.child.wait()).await;
        for reader in &mut self.readers {
            within("the end of its output", reader).await.expect("it does not panic");
        }
        ended.expect("it is our child")
    }

    /// SIGKILL: nothing in the process hears of it.
    pub async fn kill_9(mut self) {
        self.child.start_kill().expect("it runs");
        within("the end of a process", self.child.wait()).await.expect("it is our child");
    }

    /// SIGTERM, and its end.
    pub async fn terminate(mut self) -> ExitStatus {
        let id = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-TERM", &id]).status().await.expect("kill is there");
        assert!(sent.success(), "the process has ended before: {:?}", self.err);
        within("the end of a process", self.child.wait()).await.expect("it is our child")
    }
}

/// `outpost dev` as a process.
pub struct Dev {
    pub process: Running,
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
}

impl Dev {
    /// Starts it on ports the system chooses and reads them from what it prints.
    pub async fn start(data: &Path) -> Self {
        Self::start_with(data, &[]).await
    }

    pub async fn start_with(data: &Path, more: &[&str]) -> Self {
        Self::start_in(None, data, more).await
    }

    /// The same in a control group, when there is one.
    pub async fn start_in(group: Option<&MemoryGroup>, data: &Path, more: &[&str]) -> Self {
        let mut command = match group {
            None => command(),
            Some(group) => {
                let mut command = with_defaults(Command::new("sh"));
                let enter = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
                command.args(["-c", enter]).arg(group.folder()).arg(binary());
                command
            }
        };
        command.args(["dev", "--mqtt-port", "0", "--http-port", "0", "--data-dir"]).arg(data);
        command.args(more);
        let mut process = Running::start(command);
        process.says("Ctrl-C stops it.").await;
        let mqtt = address(&process.out.with("MQTT 3.1.1 and 5")[0]);
        let http = address(&process.out.with("HTTP  ")[0]);
        Self { process, mqtt, http }
    }
}

/// The address at the end of a line.
pub fn address(line: &str) -> SocketAddr {
    let last = line.split_whitespace().last().unwrap_or_default().trim_start_matches("http://");
    last.parse().unwrap_or_else(|why| panic!("{line:?} ends with no address: {why}"))
}
