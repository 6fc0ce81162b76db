//! A fleet of the simulator for a measurement: devices connect first, then publish until they are
//! stopped, and what happened is counted from what they `recorded`.
//!
//! The live counts are a fifth of a second behind; they only tell when something is over.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use simulator::drive::clock::unix_us;
use simulator::drive::tally::{Counts, Tally};
use simulator::drive::{preflight, Clock, Endpoints, Mode, Worker, WorkerSpec};
use simulator::plan::Plan;
use simulator::scenario;
use tempfile::TempDir;

use super::note;
use super::recorded::{first_acknowledged_us, Recorded};
use crate::cli::local::{HarnessError, Interrupt};

/// Connections opened a second, unless the fleet says otherwise.
const CONNECT_RATE: u32 = 1_000;
/// Room for the connects of a busy machine before the devices publish.
const CONNECT_MARGIN: Duration = Duration::from_secs(2);
const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
/// The scenario's end is never reached: the fleet is stopped by hand.
const LONGEST: &str = "12h";

/// How the devices publish.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Connected, publishing nothing.
    Idle,
    /// Each device keeps `window` publishes outstanding: capacity, not latency.
    Closed { window: u16 },
    /// So many messages a second over the fleet, from intended times, whatever the answers do.
    Open { per_second: f64, window: u16 },
    /// As `Open`, by devices without a queue: what is due while the window is full is dropped and
    /// counted. For load beyond what a server takes.
    Shed { per_second: f64, window: u16 },
}

#[derive(Clone, Debug)]
pub struct FleetSpec {
    pub endpoints: Vec<SocketAddr>,
    /// Whether they belong to a Holdfast; any other broker gets telemetry only.
    pub is_holdfast: bool,
    pub devices: u32,
    /// Device i is named `{prefix}-{i}`, from 1.
    pub prefix: String,
    pub run: u32,
    pub load: Load,
    pub payload_bytes: u32,
    pub threads: u32,
    pub message_ids: bool,
    /// Each device reports to its twin again as soon as the last report was answered.
    pub reports: bool,
    /// Devices answer method calls at once with what they brought.
    pub methods: bool,
    pub ack_timeout: Duration,
    pub connect_timeout: Duration,
    /// Connections opened a second.
    pub connect_rate: u32,
    /// When the devices begin to publish; `None`: as soon as all had time to connect.
    pub publish_at: Option<Instant>,
}

impl FleetSpec {
    pub fn new(endpoints: Vec<SocketAddr>, prefix: &str, devices: u32, load: Load) -> Self {
        Self {
            endpoints,
            is_holdfast: true,
            devices,
            prefix: prefix.to_owned(),
            run: 1,
            load,
            payload_bytes: 256,
            threads: 1,
            message_ids: false,
            reports: false,
            methods: false,
            ack_timeout: Duration::from_secs(20),
            connect_timeout: Duration::from_secs(5),
            connect_rate: CONNECT_RATE,
            publish_at: None,
        }
    }

    /// How long connecting takes, with room.
    pub fn connect_time(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.devices) / f64::from(self.connect_rate)) + CONNECT_MARGIN
    }

    fn scenario(&self, hold: Duration) -> String {
        let kind = if self.is_holdfast { "holdfast" } else { "mqtt" };
        let endpoints: Vec<String> = self.endpoints.iter().map(|e| format!("\"{e}\"")).collect();
        let (mode, window, more) = match self.load {
            Load::Idle => ("open", 1, String::new()),
            Load::Closed { window } => ("closed", window, String::new()),
            Load::Open { per_second, window } => ("open", window, format!("rate = {per_second:.3}\n")),
            Load::Shed { per_second, window } => (
                "open",
                window,
                format!("rate = {per_second:.3}\noverflow = \"drop\"\noffline_queue = 0\n"),
            ),
        };
        let mut text = format!(
            "name = \"bench\"\nseed = {}\n[target]\nkind = \"{kind}\"\nmqtt = [{}]\n[run]\nloop = \"{mode}\"\nthreads = {}\n\
             connect_rate = {}\nconnect_timeout = \"{}ms\"\nack_timeout = \"{}ms\"\nbackoff = \"20ms\"\nbackoff_max = \"1s\"\n\
             [[fleet]]\nname = \"{}\"\nprofile = \"bench\"\ncount = {}\nprotocols = {{ mqtt5 = 1, mqtt311 = 1 }}\nwindow = {window}\npayload_bytes = {}\nsession_expiry = \"1h\"\n{more}\
             [[phase]]\nkind = \"drain\"\nname = \"connect\"\nduration = \"{}ms\"\n[[phase]]\nkind = \"steady\"\nduration = \"{LONGEST}\"\n\
             [profile.bench]\ntitle = \"bench\"\nmessage_ids = {}\n",
            self.run,
            endpoints.join(", "),
            self.threads,
            self.connect_rate,
            self.connect_timeout.as_millis(),
            self.ack_timeout.as_millis(),
            self.prefix,
            self.devices,
            self.payload_bytes,
            hold.as_millis().max(1),
            self.message_ids,
        );
        if self.load != Load::Idle {
            text += "[[profile.bench.stream]]\ninterval = \"1s\"\npayload = '{\"d\":\"${device}\",\"n\":${n},\"v\":${v:3},\"p\":\"${pad}\"}'\n\
                     [profile.bench.var.v]\nkind = \"walk\"\nstart = 50\nspread = 25\nstep = 1\n";
        }
        if self.reports {
            text += "[profile.bench.twin]\nreport_interval = \"1ms\"\n";
        }
        if self.methods {
            text += "[profile.bench.methods]\ndelay_secs = 0\n";
        }
        text
    }
}

/// A running fleet. Dropping it ends the devices.
pub struct Fleet {
    worker: Worker,
    clock: Clock,
    devices: u32,
    publish_us: u64,
    total: RefCell<Tally>,
    plan: Plan,
    dir: TempDir,
}

impl Fleet {
    /// Starts the threads; devices connect.
    ///
    /// # Errors
    /// This machine cannot hold it, or a thread or directory cannot be made.
    pub fn start(spec: &FleetSpec) -> Result<Self, HarnessError> {
        let failed = |e: &dyn std::fmt::Display| HarnessError::new("the fleet", e);
        let hold = match spec.publish_at {
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => spec.connect_time(),
        };
        let text = spec.scenario(hold);
        let loaded = scenario::parse(&PathBuf::from("bench.toml"), text).map_err(|e| failed(&e))?;
        let endpoints = Endpoints::resolve(&loaded).map_err(|e| failed(&e))?;
        let plan = Plan::new(Arc::new(loaded));
        preflight::check(&plan, endpoints.mqtt.len(), 0).map_err(|e| failed(&e))?;
        let dir = tempfile::tempdir().map_err(|e| failed(&e))?;
        let begin_unix_us = unix_us();
        let worker = WorkerSpec {
            index: 0,
            of: 1,
            run: spec.run,
            begin_unix_us,
            resume_us: 0,
            endpoints,
            history_dir: dir.path().to_owned(),
            part: "bench".into(),
        };
        Ok(Self {
            worker: Worker::start(&plan, &worker).map_err(|e| failed(&e))?,
            clock: Clock::new(begin_unix_us, 1.0),
            devices: spec.devices,
            publish_us: u64::try_from(hold.as_micros()).unwrap_or(u64::MAX),
            total: RefCell::new(Tally::default()),
            plan,
            dir,
        })
    }

    /// Real µs since the fleet began, as in its history.
    pub fn now_us(&self) -> u64 {
        self.clock.now_us()
    }

    /// What was counted so far, a fifth of a second late.
    pub fn counts(&self) -> Counts {
        let mut total = self.total.borrow_mut();
        self.worker.take(&mut total);
        total.counts
    }

    /// Waits until every device is connected.
    ///
    /// # Errors
    /// Not every one could in time, or the user interrupted.
    pub fn wait_connected(&self, interrupt: &Interrupt) -> Result<(), HarnessError> {
        let end = Instant::now() + self.hold_left() + CONNECT_DEADLINE;
        loop {
            interrupt.sleep(Duration::from_millis(20))?;
            let connected = self.worker.take(&mut self.total.borrow_mut()).states.connected;
            if connected >= self.devices {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(HarnessError::Failed(format!(
                    "only {connected} of {} devices connected",
                    self.devices
                )));
            }
        }
    }

    /// Waits until every device is connected and publishes.
    ///
    /// # Errors
    /// As [`Self::wait_connected`].
    pub fn wait_publishing(&self, interrupt: &Interrupt) -> Result<(), HarnessError> {
        self.wait_connected(interrupt)?;
        if self.hold_left().is_zero() {
            note("connecting took longer than planned; what was due meanwhile is sent first");
        }
        interrupt.sleep(self.hold_left())
    }

    fn hold_left(&self) -> Duration {
        Duration::from_micros(self.publish_us.saturating_sub(self.now_us()))
    }

    /// Stops publishing, waits up to `drain` for what is outstanding, and returns the record.
    ///
    /// # Errors
    /// A thread of the fleet failed; the record would be incomplete, so there is none.
    pub fn finish(self, drain: Duration) -> Result<Recorded, HarnessError> {
        let ended_us = self.now_us();
        self.worker.set_mode(Mode::Stop);
        let end = Instant::now() + drain;
        while Instant::now() < end && !self.worker.take(&mut self.total.borrow_mut()).is_over {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.worker.set_mode(Mode::Abort);
        let Self { worker, plan, dir, .. } = self;
        worker.join().map_err(|e| HarnessError::new("the fleet", e))?;
        Ok(Recorded::new(ended_us, plan, dir))
    }

    /// When the last of `shards` shards first acknowledged something, if all have. Real µs since the
    /// fleet began.
    ///
    /// # Errors
    /// The history cannot be read.
    pub fn every_shard_acknowledged_us(&self, shards: u16) -> Result<Option<u64>, HarnessError> {
        let times = first_acknowledged_us(self.dir.path(), &self.plan, shards)?;
        Ok(times
            .into_iter()
            .collect::<Option<Vec<u64>>>()
            .and_then(|times| times.into_iter().max()))
    }
}
