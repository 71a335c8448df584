//! Lines of this machine's GPIO chips, through the character device (uAPI v2, Linux 5.10 or later).
//!
//! No root, no /dev/mem, no sysfs: the user needs to be in the group that owns `/dev/gpiochip*`.

use std::sync::Arc;
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{EdgeDetection, EdgeKind, Value};
use gpiocdev::request::Builder;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::{Board, BoardError, Edge, InputLine, LineRequest, OutputLine, hint};
use crate::config::Bias;

/// The GPIO chips of this machine.
pub struct LinuxBoard;

impl Board for LinuxBoard {
    fn open_output(
        &self,
        line: &LineRequest,
        initial: bool,
    ) -> Result<Box<dyn OutputLine>, BoardError> {
        let mut builder = builder(line);
        builder.as_output(Value::from(initial));
        let request = builder.request().map_err(|e| open_error(line, &e))?;
        Ok(Box::new(LinuxOutput { request, line: line.line }))
    }

    fn open_input(
        &self,
        line: &LineRequest,
        edges: mpsc::Sender<Edge>,
    ) -> Result<Box<dyn InputLine>, BoardError> {
        let mut builder = builder(line);
        builder.as_input().with_edge_detection(EdgeDetection::BothEdges);
        if line.debounce_ms > 0 {
            builder.with_debounce_period(Duration::from_millis(line.debounce_ms.into()));
        }
        builder.with_bias(match line.bias {
            Bias::AsIs => None,
            Bias::PullUp => Some(gpiocdev::line::Bias::PullUp),
            Bias::PullDown => Some(gpiocdev::line::Bias::PullDown),
            Bias::Disabled => Some(gpiocdev::line::Bias::Disabled),
        });
        let request = Arc::new(builder.request().map_err(|e| open_error(line, &e))?);
        #[expect(
            deprecated,
            reason = "the unsafe successor asks what holds here: the request owns one descriptor for life"
        )]
        let readable = AsyncFd::new(Arc::clone(&request))
            .map_err(|e| BoardError::open(line, e.to_string()))?;
        let watcher = tokio::spawn(watch(readable, edges, line.line));
        Ok(Box::new(LinuxInput { request, line: line.line, watcher }))
    }
}

fn builder(line: &LineRequest) -> Builder {
    let mut builder = Request::builder();
    builder.on_chip(&line.chip).with_consumer("outpost").with_line(line.line);
    if line.active_low {
        builder.as_active_low();
    }
    builder
}

fn open_error(line: &LineRequest, cause: &gpiocdev::Error) -> BoardError {
    BoardError::open(line, format!("{cause}{}", hint(&line.chip)))
}

struct LinuxOutput {
    request: Request,
    line: u32,
}

impl OutputLine for LinuxOutput {
    fn set(&mut self, active: bool) -> Result<(), BoardError> {
        self.request
            .set_value(self.line, Value::from(active))
            .map_err(|e| BoardError::Set { line: self.line, cause: e.to_string() })
    }
}

struct LinuxInput {
    request: Arc<Request>,
    line: u32,
    watcher: JoinHandle<()>,
}

impl InputLine for LinuxInput {
    fn read(&self) -> Result<bool, BoardError> {
        let value = self.request.value(self.line);
        value
            .map(bool::from)
            .map_err(|e| BoardError::Read { line: self.line, cause: e.to_string() })
    }
}

impl Drop for LinuxInput {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

/// Hands on edges until reading fails; the closed channel then tells the device.
async fn watch(readable: AsyncFd<Arc<Request>>, edges: mpsc::Sender<Edge>, line: u32) {
    loop {
        if let Err(error) = forward_ready(&readable, &edges).await {
            debug!(line, %error, "watching the line ended");
            return;
        }
    }
}

async fn forward_ready(
    readable: &AsyncFd<Arc<Request>>,
    edges: &mpsc::Sender<Edge>,
) -> gpiocdev::Result<()> {
    let mut ready = readable.readable().await?;
    let request = ready.get_inner();
    if request.has_edge_event()? {
        let edge = Edge { active: request.read_edge_event()?.kind == EdgeKind::Rising };
        // Full: the device will read the level when it comes to the edges before this one.
        let _ = edges.try_send(edge);
    } else {
        ready.clear_ready();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_chip_is_named_with_a_hint() {
        let line = LineRequest {
            chip: "/dev/gpiochip-none".into(),
            line: 3,
            active_low: false,
            bias: Bias::AsIs,
            debounce_ms: 0,
        };
        let error =
            LinuxBoard.open_output(&line, false).err().expect("there is no such chip").to_string();
        assert!(error.contains("line 3 of /dev/gpiochip-none"), "{error}");
        assert!(error.contains("gpiodetect"), "{error}");
        let (edges, _kept) = mpsc::channel(1);
        assert!(LinuxBoard.open_input(&line, edges).is_err());
    }
}
