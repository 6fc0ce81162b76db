//! Many devices on few threads: starting, watching and ending them.
//!
//! The generator of the tests that break clusters, whose checker (`chaos`) reads its ledger. Runs
//! of scenarios, the demo and the benchmark are driven by `drive` instead. A fleet is bounded by
//! what its configuration says: devices, acknowledgements recorded, and the drain's deadline.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actors::id::{DeviceId, DeviceKey, TenantId};
use hdrhistogram::Histogram;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{watch, Semaphore};
use tokio::task::LocalSet;

use crate::client::{Device, Phase, Seed};
use crate::ledger::Ledger;
use crate::link::Lane;
use crate::progress::Progress;
use crate::protocol::Version;
use crate::session::{Profile, Session, WINDOW_MAX};

/// Devices one fleet may have; each costs a socket.
pub const DEVICES_MAX: usize = 100_000;
/// Latencies are recorded up to this; longer ones count as this. Unit: µs.
const LATENCY_MAX_US: u64 = 300_000_000;
const READ_BUFFER_BYTES: usize = 64 * 1024;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Connected, publishing nothing.
    Idle,
    /// Each device keeps `window` publishes outstanding.
    Closed { window: u16 },
    /// Each device publishes every `interval` from a phase of its own, whatever the answers do, up
    /// to `window` outstanding. A message that had to wait counts from when it was due.
    Open { interval: Duration, window: u16 },
    /// As [`Load::Open`], by devices that keep no queue: what is due while the window is full is
    /// not sent at all, and counted in [`Progress::held_back`]. For load beyond what a server takes.
    Shed { interval: Duration, window: u16 },
}

impl Load {
    /// An open load of `per_second` messages over `devices`.
    pub fn open(per_second: f64, devices: usize, window: u16) -> Self {
        let interval = Duration::from_secs_f64(devices as f64 / per_second.max(0.001));
        Self::Open { interval, window }
    }

    /// As [`Load::open`], shedding what finds no room.
    pub fn shed(per_second: f64, devices: usize, window: u16) -> Self {
        let interval = Duration::from_secs_f64(devices as f64 / per_second.max(0.001));
        Self::Shed { interval, window }
    }

    pub(crate) fn window(&self) -> u16 {
        match self {
            Load::Idle => 1,
            Load::Closed { window } | Load::Open { window, .. } | Load::Shed { window, .. } => *window,
        }
    }

    pub(crate) fn sheds(&self) -> bool {
        matches!(self, Load::Shed { .. })
    }

    pub(crate) fn interval(&self) -> Option<Duration> {
        match self {
            Load::Open { interval, .. } | Load::Shed { interval, .. } => Some(*interval),
            _ => None,
        }
    }
}

/// Deadlines and periods of every device.
#[derive(Clone, Debug)]
pub struct Timing {
    /// TCP connect, CONNECT and CONNACK together. Default 5 s.
    pub connect_timeout: Duration,
    /// Silence on something awaited, after which the connection is given up. Default 3 s.
    pub ack_timeout: Duration,
    /// First back-off after a failed connect; doubles. Default 20 ms.
    pub backoff: Duration,
    /// Default 1 s.
    pub backoff_max: Duration,
    /// Default 60 s; a ping leaves after half of it without a write.
    pub keep_alive_secs: u16,
    /// Default 1 h.
    pub session_expiry_secs: u32,
    /// Time between two twin reports of a device; `None`: telemetry only.
    pub twin_interval: Option<Duration>,
    /// Default: no limit.
    pub messages_per_device_max: u32,
}

impl Timing {
    pub(crate) fn ping_interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.keep_alive_secs.max(2))) / 2
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            ack_timeout: Duration::from_secs(3),
            backoff: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            keep_alive_secs: 60,
            session_expiry_secs: 3600,
            twin_interval: None,
            messages_per_device_max: u32::MAX,
        }
    }
}

#[derive(Clone, Debug)]
pub struct FleetConfig {
    /// MQTT listeners; device i starts at endpoint i mod their number and rotates on failure.
    pub endpoints: Vec<SocketAddr>,
    /// 1..=100,000.
    pub devices: usize,
    /// Device i is named `{prefix}-{i}`, from 1.
    pub device_prefix: String,
    /// Tells this run's messages from those of an earlier one on the same devices.
    pub run: u32,
    pub load: Load,
    pub timing: Timing,
    /// Padded to this where the fields leave room.
    pub payload_bytes: usize,
    /// Share of devices that speak MQTT 5; the others 3.1.1. 0..=1.
    pub v5_share: f64,
    /// Whether MQTT 5 publishes carry a message id.
    pub message_ids: bool,
    /// 1..=64. The generator shares the machine with what it measures.
    pub threads: usize,
    /// Shards of the cluster, for gaps per shard; 0: not measured.
    pub shards: u16,
    /// Whether each acknowledgement is recorded. Without it the ledger holds only counts and gaps,
    /// and no checker can judge it.
    pub record: bool,
    /// Acknowledgements recorded over all devices (16 bytes each); then devices stop publishing.
    pub acks_max: usize,
    pub seed: u64,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            devices: 100,
            device_prefix: "dev".into(),
            run: 1,
            load: Load::Closed { window: 1 },
            timing: Timing::default(),
            payload_bytes: 256,
            v5_share: 0.5,
            message_ids: false,
            threads: 1,
            shards: 0,
            record: true,
            acks_max: 16_000_000,
            seed: 1,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("the fleet's {what} is {value}, allowed is {allowed}")]
    OutOfRange {
        what: &'static str,
        value: String,
        allowed: &'static str,
    },
    #[error("device names cannot begin with {prefix:?}: {source}")]
    Name {
        prefix: String,
        source: actors::id::BadDeviceId,
    },
    #[error("a thread of the fleet could not start: {0}")]
    Thread(#[from] std::io::Error),
}

pub struct FleetReport {
    pub ledger: Ledger,
    /// Latency of acknowledged telemetry over the last measurement, from intended send. Unit: µs.
    pub latency: Histogram<u64>,
}

/// A running fleet. Dropping it aborts the devices.
pub struct Fleet {
    pub progress: Arc<Progress>,
    phase: watch::Sender<Phase>,
    threads: Vec<JoinHandle<std::io::Result<FleetReport>>>,
    devices: usize,
}

impl Fleet {
    /// Starts the threads; devices connect and hold until [`Fleet::publish`].
    ///
    /// # Errors
    /// A value is out of its range, or threads could not be started.
    pub fn start(config: FleetConfig) -> Result<Fleet, FleetError> {
        check(&config)?;
        let progress = Arc::new(Progress::new(config.shards));
        let (phase, follow) = watch::channel(Phase::Hold);
        let config = Arc::new(config);
        let mut threads = Vec::new();
        for lane in 0..config.threads {
            let (config, progress, follow) = (config.clone(), progress.clone(), follow.clone());
            let thread = std::thread::Builder::new().name(format!("fleet-{lane}"));
            threads.push(thread.spawn(move || run_lane(&config, lane, progress, follow))?);
        }
        Ok(Fleet {
            progress,
            phase,
            threads,
            devices: config.devices,
        })
    }

    pub fn devices(&self) -> usize {
        self.devices
    }

    /// Lets the devices publish.
    pub fn publish(&self) {
        self.phase.send_replace(Phase::Publish);
    }

    /// Blocks until `count` devices are connected. `false`: the deadline passed first.
    pub fn wait_connected(&self, count: usize, deadline: Duration) -> bool {
        let end = Instant::now() + deadline;
        while (Progress::read(&self.progress.connected) as usize) < count {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Starts an empty latency histogram.
    pub fn measure(&self) {
        self.progress.measurement.fetch_add(1, Ordering::Relaxed);
    }

    /// Stops recording latencies; the histogram is kept for the report.
    pub fn end_measurement(&self) {
        self.progress.measurement.store(0, Ordering::Relaxed);
    }

    /// Stops publishing, waits up to `drain` for what is outstanding, and returns the record.
    /// Blocks; call it from a thread that may.
    ///
    /// # Errors
    /// A thread of the fleet failed; the record would be incomplete, so there is none.
    pub fn finish(mut self, drain: Duration) -> Result<FleetReport, FleetError> {
        self.phase.send_replace(Phase::Drain);
        let end = Instant::now() + drain;
        while Instant::now() < end && !self.threads.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.phase.send_replace(Phase::Abort);
        let mut whole = FleetReport {
            ledger: Ledger::default(),
            latency: histogram(),
        };
        for thread in self.threads.drain(..) {
            let part = thread.join().map_err(|_| std::io::Error::other("panicked"))??;
            whole.ledger.devices.extend(part.ledger.devices);
            whole
                .latency
                .add(&part.latency)
                .expect("all histograms of a fleet have the same bounds");
        }
        Ok(whole)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Abort);
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are constants in range")
}

fn check(config: &FleetConfig) -> Result<(), FleetError> {
    let range = |what, ok: bool, value: String, allowed| match ok {
        true => Ok(()),
        false => Err(FleetError::OutOfRange { what, value, allowed }),
    };
    let devices = config.devices;
    range(
        "device count",
        (1..=DEVICES_MAX).contains(&devices),
        devices.to_string(),
        "1..=100,000",
    )?;
    range(
        "thread count",
        (1..=64).contains(&config.threads),
        config.threads.to_string(),
        "1..=64",
    )?;
    range("endpoint count", !config.endpoints.is_empty(), "0".into(), "1 or more")?;
    let window = config.load.window();
    range(
        "window",
        (1..=WINDOW_MAX).contains(&window),
        window.to_string(),
        "1..=1,024",
    )?;
    let payload = config.payload_bytes;
    range(
        "payload size",
        payload <= 256 * 1024,
        payload.to_string(),
        "0..=262,144 bytes",
    )?;
    range(
        "share of MQTT 5",
        (0.0..=1.0).contains(&config.v5_share),
        config.v5_share.to_string(),
        "0..=1",
    )?;
    DeviceId::parse(&name(config, devices)).map_err(|source| FleetError::Name {
        prefix: config.device_prefix.clone(),
        source,
    })?;
    Ok(())
}

fn name(config: &FleetConfig, number: usize) -> String {
    format!("{}-{number}", config.device_prefix)
}

/// One thread: every `threads`-th device, on a runtime of its own.
fn run_lane(
    config: &FleetConfig,
    lane: usize,
    progress: Arc<Progress>,
    phase: watch::Receiver<Phase>,
) -> std::io::Result<FleetReport> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shared = Rc::new(Lane {
        endpoints: config.endpoints.clone(),
        load: config.load,
        timing: config.timing.clone(),
        record: config.record,
        progress,
        connecting: Semaphore::new(64),
        scratch: RefCell::new(vec![0; READ_BUFFER_BYTES]),
        latency: RefCell::new(histogram()),
        measurement: Cell::new(0),
    });
    let ledger = LocalSet::new().block_on(&runtime, async {
        let mut tasks = Vec::new();
        for number in (1 + lane..=config.devices).step_by(config.threads) {
            tasks.push(tokio::task::spawn_local(
                device(config, number, shared.clone(), phase.clone()).run(),
            ));
        }
        let mut ledger = Ledger::default();
        for task in tasks {
            ledger.devices.push(task.await.map_err(std::io::Error::other)?);
        }
        Ok::<_, std::io::Error>(ledger)
    })?;
    let latency = shared.latency.borrow().clone();
    Ok(FleetReport { ledger, latency })
}

fn device(config: &FleetConfig, number: usize, lane: Rc<Lane>, phase: watch::Receiver<Phase>) -> Device {
    let id = name(config, number);
    let shard = match DeviceId::parse(&id) {
        Ok(parsed) if config.shards > 0 => DeviceKey::new(TenantId::DEFAULT, parsed).shard(config.shards).0,
        _ => u16::MAX,
    };
    // The golden ratio spreads the versions evenly over devices, endpoints and shards.
    let place = (number as f64 * 0.618_033_988_749_895).fract();
    let version = if place < config.v5_share {
        Version::V5
    } else {
        Version::V311
    };
    let mut rng = SmallRng::seed_from_u64(config.seed ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let twin_phase = rng.random_range(0.0..1.0);
    let session = Session::new(Profile::new(id, config.run, config.payload_bytes, config.message_ids));
    let mut device = Device::new(Seed {
        endpoint: number % lane.endpoints.len(),
        lane,
        session,
        version,
        shard,
        rng,
        phase,
        acks_max: (config.acks_max / config.devices).max(1),
    });
    let twin = config.timing.twin_interval;
    device.twin_due = twin.map(|interval| Instant::now() + interval.mul_f64(twin_phase));
    device
}
