//! What the story says while it runs: a line a step; on a terminal with something that moves while it waits.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::cli::failure::Failure;
use crate::cli::output::Paint;

const FRAMES: [char; 10] = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏'];
/// How often the moving part moves, and how often conditions are looked at.
const BEAT: Duration = Duration::from_millis(40);

/// Tells people how far it is.
#[derive(Debug)]
pub struct Progress {
    paint: Paint,
    to_stderr: bool,
    moves: bool,
    began: Instant,
    frame: Cell<usize>,
}

impl Progress {
    /// On standard output; with `--json`, which has that for itself, on standard error.
    pub fn new(json: bool) -> Self {
        let moves = if json { false } else { std::io::stdout().is_terminal() };
        Self {
            paint: Paint::for_stdout(),
            to_stderr: json,
            moves,
            began: Instant::now(),
            frame: Cell::new(0),
        }
    }

    /// A new chapter.
    pub fn chapter(&self, title: &str, text: &str) {
        let title = if self.to_stderr { title.to_owned() } else { self.paint.strong(title) };
        self.line(&format!("\n{title}  {text}"));
    }

    /// A step that is done.
    pub fn done(&self, text: &str) {
        let (mark, at) = ("✓", format!("{:>6.1} s", self.began.elapsed().as_secs_f64()));
        if self.to_stderr {
            self.line(&format!("{at}  {mark} {text}"));
        } else {
            self.line(&format!("{}  {} {text}", self.paint.faint(&at), self.paint.good(mark)));
        }
    }

    /// Waits for something, and shows for what.
    pub async fn during<T>(&self, what: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(BEAT, work.as_mut()).await {
                Ok(done) => {
                    self.wipe();
                    return done;
                }
                Err(_) => self.beat(what),
            }
        }
    }

    /// Asks again and again until the answer is there.
    ///
    /// # Errors
    /// When it is not there in time; `what` says what was waited for.
    pub async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut poll: impl AsyncFnMut() -> Result<Option<T>, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = poll().await? {
                self.wipe();
                return Ok(found);
            }
            if Instant::now() > deadline {
                self.wipe();
                return Err(Failure::new(format!("gave up after {} s: {what}", limit.as_secs())));
            }
            self.beat(what);
            tokio::time::sleep(BEAT).await;
        }
    }

    fn beat(&self, what: &str) {
        if self.moves {
            let frame = self.frame.get();
            self.frame.set((frame + 1) % FRAMES.len());
            let at = format!("{:>6.1} s", self.began.elapsed().as_secs_f64());
            self.write(&format!("\r\x1b[K{}  {} {what}", self.paint.faint(&at), FRAMES[frame]));
        }
    }

    fn wipe(&self) {
        if self.moves {
            self.write("\r\x1b[K");
        }
    }

    fn line(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// Whoever reads it may be gone; the story goes on for its exit code.
    fn write(&self, text: &str) {
        if self.to_stderr {
            let _ = std::io::stderr().write_all(text.as_bytes());
        } else {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        }
    }
}
