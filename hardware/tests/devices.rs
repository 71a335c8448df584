//! Devices on a simulated board, from the bus's side: what is published, what commands do, and what a failure costs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use outpost_flow::restart::{Health, RestartPolicy};
use outpost_hardware::board::Edge;
use outpost_hardware::driver::OpenDevice;
use outpost_hardware::{
    Boards, Bus, BusFull, BusMessage, DeviceStatus, Driver, DriverError, Drivers, Hardware,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn a_lamp_does_what_it_is_told_and_says_so() {
    let mut site =
        Site::start("[[device]]\nname='porch'\ndriver='led'\nboard='simulated'\nline=17").await;
    site.expect("hw/porch/state", "off").await;
    site.command("hw/porch/set", "on");
    site.expect("hw/porch/state", "on").await;
    assert!(site.boards.simulated().is_active(17));
    site.command("hw/porch/set", "nonsense");
    site.command("hw/porch/set", &"x".repeat(5_000));
    site.command("hw/porch/set", "toggle");
    site.expect("hw/porch/state", "off").await;
    assert_eq!(site.status("porch").await.restarts, 0, "nonsense is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_blinking_lamp_keeps_the_beat_for_a_minute() {
    let mut site =
        Site::start("[[device]]\nname='porch'\ndriver='led'\nboard='simulated'\nline=17").await;
    site.expect("hw/porch/state", "off").await;
    site.command("hw/porch/set", "blink 1000");
    site.expect("hw/porch/state", "on").await;
    let begin = Instant::now();
    for second in 1..=60 {
        site.expect("hw/porch/state", if second % 2 == 0 { "on" } else { "off" }).await;
        let late = begin.elapsed().abs_diff(Duration::from_secs(second));
        assert!(late <= Duration::from_millis(5), "second {second} is {late:?} off");
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_press_is_told_and_a_burst_ends_with_the_truth() {
    let mut site =
        Site::start("[[device]]\nname='bell'\ndriver='button'\nboard='simulated'\nline=4").await;
    site.expect("hw/bell/state", "released").await;
    site.boards.simulated().inject(4, true);
    site.boards.simulated().inject(4, false);
    site.expect("hw/bell/state", "pressed").await;
    site.expect("hw/bell/state", "released").await;
    for n in 0..1_000 {
        site.boards.simulated().inject(4, n % 2 == 0);
    }
    site.boards.simulated().inject(4, true);
    site.settle().await;
    assert_eq!(site.bus.last("hw/bell/state"), Some("pressed".into()));
}

#[tokio::test(start_paused = true)]
async fn a_panicking_driver_is_restarted_then_quarantined_and_its_neighbour_never_notices() {
    let mut site = Site::start(
        "[[device]]\nname='bad'\ndriver='panicking'\nboard='simulated'\nline=1\n\
         [[device]]\nname='good'\ndriver='led'\nboard='simulated'\nline=2",
    )
    .await;
    site.settle().await;
    for failure in 1..=6 {
        site.command("hw/bad/set", if failure % 2 == 0 { "fail" } else { "panic" });
        site.settle().await;
        site.command("hw/good/set", "toggle");
        site.settle().await;
        assert_eq!(site.boards.simulated().is_active(2), failure % 2 == 1, "the neighbour works");
        if failure < 6 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(site.status("bad").await.health, Health::Running, "after failure {failure}");
        }
    }
    let bad = site.status("bad").await;
    assert!(matches!(bad.health, Health::Quarantined { failures: 6, .. }), "{bad:?}");
    assert!(
        bad.last_cause.as_deref().is_some_and(|cause| cause.contains("told to fail")),
        "{bad:?}"
    );
    assert_eq!(bad.restarts, 5);
    assert!(!site.boards.simulated().is_used(1), "one in quarantine holds no line");

    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(site.status("bad").await.health, Health::Running, "released by itself");
    assert!(site.boards.simulated().is_used(1));
    let good = site.status("good").await;
    assert_eq!((good.restarts, good.health), (0, Health::Running));
}

#[tokio::test(start_paused = true)]
async fn an_unplugged_line_is_waited_for_and_comes_back_by_itself() {
    let mut site =
        Site::broken("[[device]]\nname='valve'\ndriver='relay'\nboard='simulated'\nline=9", 9)
            .await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    let valve = site.status("valve").await;
    assert!(matches!(valve.health, Health::Quarantined { .. }), "{valve:?}");
    assert!(valve.restarts < 25, "ten minutes without the line cost {} restarts", valve.restarts);
    site.boards.simulated().set_broken(9, false);
    site.expect("hw/valve/state", "off").await;
    assert_eq!(site.status("valve").await.health, Health::Running);
}

#[tokio::test(start_paused = true)]
async fn an_operator_may_release_a_device_early() {
    let site =
        Site::broken("[[device]]\nname='valve'\ndriver='relay'\nboard='simulated'\nline=9", 9)
            .await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    site.boards.simulated().set_broken(9, false);
    assert!(site.hardware.release("valve").await);
    site.settle().await;
    assert!(site.boards.simulated().is_used(9));
    assert!(!site.hardware.release("valve").await, "it runs");
    assert!(!site.hardware.release("unknown").await);
}

#[tokio::test(start_paused = true)]
async fn a_state_the_bus_had_no_room_for_arrives_later() {
    let mut site =
        Site::start("[[device]]\nname='porch'\ndriver='led'\nboard='simulated'\nline=17").await;
    site.expect("hw/porch/state", "off").await;
    site.bus.set_full(true);
    site.command("hw/porch/set", "on");
    site.settle().await;
    assert_eq!(site.bus.last("hw/porch/state"), Some("off".into()));
    site.bus.set_full(false);
    site.expect("hw/porch/state", "on").await;
}

#[tokio::test(start_paused = true)]
async fn an_orderly_stop_leaves_outputs_in_their_initial_state_and_frees_the_lines() {
    let mut site = Site::start(
        "[[device]]\nname='heater'\ndriver='relay'\nboard='simulated'\nline=1\n\
         [[device]]\nname='fail-safe'\ndriver='relay'\nboard='simulated'\nline=2\ninitial=true",
    )
    .await;
    site.settle().await;
    site.command("hw/heater/set", "on");
    site.command("hw/fail-safe/set", "off");
    site.settle().await;
    let board = site.boards.simulated().clone();
    assert!(board.is_active(1) && !board.is_active(2));
    site.hardware.stop().await;
    assert!(!board.is_active(1) && board.is_active(2));
    assert!(!board.is_used(1) && !board.is_used(2));
}

/// A node's worth of hardware with everything around it in memory.
struct Site {
    hardware: Hardware,
    boards: Boards,
    bus: Arc<TestBus>,
    published: mpsc::Receiver<(String, String)>,
}

impl Site {
    async fn start(config: &str) -> Self {
        Self::start_on(config, Boards::default()).await
    }

    async fn broken(config: &str, line: u32) -> Self {
        let boards = Boards::default();
        boards.simulated().set_broken(line, true);
        Self::start_on(config, boards).await
    }

    async fn start_on(config: &str, boards: Boards) -> Self {
        let mut drivers = Drivers::built_in();
        drivers.register("panicking", |device| Ok(Box::new(Panicking::open(device)?)));
        let (bus, published) = TestBus::new();
        let config = toml::from_str(config).expect("valid");
        let hardware =
            Hardware::start(&config, &drivers, &boards, bus.clone(), RestartPolicy::default())
                .await
                .expect("the configuration is right");
        Self { hardware, boards, bus, published }
    }

    /// The next message published must be this one, and come within two minutes of (virtual) time.
    async fn expect(&mut self, topic: &str, payload: &str) {
        let next = tokio::time::timeout(Duration::from_mins(2), self.published.recv()).await;
        assert_eq!(next.expect("in time"), Some((topic.to_owned(), payload.to_owned())));
    }

    fn command(&mut self, topic: &str, payload: &str) {
        self.bus.command(topic, payload);
    }

    /// Virtual time only moves on when nobody has anything left to do.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    async fn status(&self, name: &str) -> DeviceStatus {
        let all = self.hardware.status().await;
        all.into_iter().find(|device| device.name == name).expect("it is configured")
    }
}

struct TestBus {
    published: mpsc::Sender<(String, String)>,
    log: Mutex<Vec<(String, String)>>,
    subscribers: Mutex<Vec<(String, mpsc::Sender<BusMessage>)>>,
    full: Mutex<bool>,
}

impl TestBus {
    fn new() -> (Arc<Self>, mpsc::Receiver<(String, String)>) {
        let (published, receiver) = mpsc::channel(10_000);
        let bus = Self {
            published,
            log: Mutex::default(),
            subscribers: Mutex::default(),
            full: Mutex::new(false),
        };
        (Arc::new(bus), receiver)
    }

    fn command(&self, topic: &str, payload: &str) {
        for (filter, subscriber) in self.subscribers.lock().iter() {
            if filter == topic {
                let message = BusMessage {
                    topic: topic.into(),
                    payload: Bytes::copy_from_slice(payload.as_bytes()),
                };
                let _ = subscriber.try_send(message); // one that has gone stays in the list
            }
        }
    }

    fn set_full(&self, full: bool) {
        *self.full.lock() = full;
    }

    fn last(&self, topic: &str) -> Option<String> {
        self.log.lock().iter().rev().find(|(t, _)| t == topic).map(|(_, payload)| payload.clone())
    }
}

impl Bus for TestBus {
    fn publish(&self, topic: &str, payload: Bytes, retain: bool) -> Result<(), BusFull> {
        assert!(retain, "a state is retained");
        if *self.full.lock() {
            return Err(BusFull);
        }
        let message = (topic.to_owned(), String::from_utf8_lossy(&payload).into_owned());
        self.log.lock().push(message.clone());
        self.published.try_send(message).map_err(|_| BusFull)
    }

    fn subscribe(&self, filter: &str) -> mpsc::Receiver<BusMessage> {
        let (sender, receiver) = mpsc::channel(16);
        self.subscribers.lock().push((filter.to_owned(), sender));
        receiver
    }
}

/// A driver that does the worst on command.
struct Panicking {
    _line: Box<dyn outpost_hardware::board::OutputLine>,
}

impl Panicking {
    fn open(device: &OpenDevice<'_>) -> Result<Self, DriverError> {
        Ok(Self { _line: device.board.open_output(&device.line(), false)? })
    }
}

impl Driver for Panicking {
    fn state(&mut self) -> Result<Bytes, DriverError> {
        Ok(Bytes::from_static(b"fine"))
    }

    fn handle_command(&mut self, command: &[u8], _: u64) -> Result<(), DriverError> {
        assert!(command != b"panic", "told to panic");
        Err(DriverError::Failed("told to fail".into()))
    }

    fn handle_edge(&mut self, _: Edge) -> Result<Option<Bytes>, DriverError> {
        Ok(None)
    }
}
