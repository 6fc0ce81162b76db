//! One simulated device: a task that connects, publishes, reconnects and writes its ledger.
//!
//! It owns the socket and the clock; what to resend is `session`'s, what packets look like is
//! `protocol`'s. A device costs a task, a socket and two small buffers: the read buffer is the
//! thread's, and a message is rebuilt from its number when it has to be sent again.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use bytestring::ByteString;
use rand::rngs::SmallRng;
use rand::Rng;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout};

use crate::fleet::Load;
use crate::ledger::{DeviceLedger, Refusal};
use crate::link::{exchange, flush, Broken, Lane, Link};
use crate::progress::Progress;
use crate::protocol::{Incoming, Opening, Outcome, ProtocolError, Version};
use crate::session::{Sent, Session, WINDOW_MAX};

/// How long an acknowledged twin report waits for its answer before it is recorded without one.
const TWIN_ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Pause after a refused publish: the server asked for less.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// Buffers that grew beyond this are given back when empty. Unit: bytes.
const BUFFER_KEPT_MAX: usize = 16 * 1024;

/// What a fleet is doing; each device follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Connect, publish nothing.
    Hold,
    Publish,
    /// Publish nothing new, wait for what is outstanding, leave.
    Drain,
    /// Leave at once.
    Abort,
}

#[derive(Deserialize)]
struct TwinAnswer {
    status: u16,
    #[serde(default)]
    version: u64,
}

/// The twin report under way; a device has one at a time.
struct TwinFlight {
    k: u32,
    acknowledged: Option<Instant>,
    version: Option<u64>,
}

pub(crate) struct Device {
    pub lane: Rc<Lane>,
    pub session: Session,
    pub version: Version,
    pub shard: u16,
    pub rng: SmallRng,
    pub endpoint: usize,
    pub phase: watch::Receiver<Phase>,
    pub ledger: DeviceLedger,
    pub acks_max: usize,
    /// Open loop: when the next message should leave.
    pub next_due: Option<Instant>,
    pub twin_due: Option<Instant>,
    link: Link,
    twin: Option<TwinFlight>,
    pause_until: Option<Instant>,
}

/// What a [`Device`] is made from.
pub(crate) struct Seed {
    pub lane: Rc<Lane>,
    pub session: Session,
    pub version: Version,
    pub shard: u16,
    pub rng: SmallRng,
    pub endpoint: usize,
    pub phase: watch::Receiver<Phase>,
    pub acks_max: usize,
}

impl Device {
    pub fn new(seed: Seed) -> Self {
        let Seed {
            lane,
            session,
            version,
            shard,
            rng,
            endpoint,
            phase,
            acks_max,
        } = seed;
        let profile = &session.profile;
        let ledger = DeviceLedger {
            device: profile.device.clone(),
            run: profile.run,
            payload_bytes: profile.payload_bytes,
            ..Default::default()
        };
        Self {
            lane,
            session,
            version,
            shard,
            rng,
            endpoint,
            phase,
            ledger,
            acks_max,
            next_due: None,
            twin_due: None,
            link: Link::new(version),
            twin: None,
            pause_until: None,
        }
    }

    /// Runs until the fleet drains or aborts, and returns what the device saw.
    pub async fn run(mut self) -> DeviceLedger {
        let mut abort = self.phase.clone();
        tokio::select! {
            () = self.live() => {}
            // An error means the fleet is gone, which ends the device as well.
            _ = abort.wait_for(|phase| *phase == Phase::Abort) => {}
        }
        self.finish()
    }

    async fn live(&mut self) {
        let mut failures = 0u32;
        let mut first = true;
        loop {
            if self.done(*self.phase.borrow()) {
                return;
            }
            match self.connect(first).await {
                Ok(mut stream) => {
                    if !first {
                        self.ledger.reconnects += 1;
                        Progress::add(&self.lane.progress.reconnects, 1);
                    }
                    first = false;
                    Progress::add(&self.lane.progress.connected, 1);
                    let ended = self.serve(&mut stream).await;
                    self.lane
                        .progress
                        .connected
                        .fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    match ended {
                        Ok(()) => return,
                        Err(error) => tracing::debug!(device = %self.ledger.device, %error, "connection lost"),
                    }
                    // A server that accepts and closes at once is as busy as one that refuses.
                    failures = if self.link.useful { 0 } else { failures + 1 };
                }
                Err(error) => {
                    tracing::debug!(device = %self.ledger.device, %error, "connect failed");
                    failures += 1;
                }
            }
            self.endpoint = (self.endpoint + 1) % self.lane.endpoints.len();
            sleep(self.backoff(failures)).await;
        }
    }

    /// Exponential with a cap, and half of it random, so that a fleet does not return as one.
    fn backoff(&mut self, failures: u32) -> Duration {
        let timing = &self.lane.timing;
        let full = timing
            .backoff
            .saturating_mul(1 << failures.min(10))
            .min(timing.backoff_max);
        full.mul_f64(self.rng.random_range(0.5..1.0))
    }

    async fn connect(&mut self, first: bool) -> Result<TcpStream, Broken> {
        let lane = self.lane.clone();
        let _turn = if first {
            lane.connecting.acquire().await.ok()
        } else {
            None
        };
        let address = lane.endpoints[self.endpoint];
        let deadline = lane.timing.connect_timeout;
        self.link = Link::new(self.version);
        let attempt = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            self.open(&mut stream, first).await?;
            Ok(stream)
        };
        timeout(deadline, attempt).await.unwrap_or(Err(Broken::Silent))
    }

    /// CONNECT, CONNACK; then queues the subscription and everything outstanding.
    async fn open(&mut self, stream: &mut TcpStream, first: bool) -> Result<(), Broken> {
        let lane = self.lane.clone();
        let opening = Opening {
            client_id: &self.session.profile.device,
            clean_start: false,
            keep_alive_secs: lane.timing.keep_alive_secs,
            session_expiry_secs: lane.timing.session_expiry_secs,
            username: None,
            password: None,
        };
        self.link.codec.connect(&opening, &mut self.link.out)?;
        let (present, receive_maximum) = loop {
            match self.link.codec.read(&mut self.link.input)? {
                Some(Incoming::Connected {
                    session_present,
                    receive_maximum,
                }) => break (session_present, receive_maximum),
                Some(Incoming::ConnectRefused { code, is_final }) => {
                    if is_final {
                        Progress::add(&lane.progress.final_refusals, 1);
                    }
                    return Err(Broken::Refused(code));
                }
                Some(other) => return Err(ProtocolError::Unreadable(format!("{other:?} before CONNACK")).into()),
                None => exchange(stream, &lane, &mut self.link.input, &mut self.link.out).await?,
            }
        };
        // A twin report needs room beside a full window of telemetry.
        let reserved = u16::from(self.twin_due.is_some());
        let window = lane
            .load
            .window()
            .min(WINDOW_MAX)
            .min(receive_maximum.saturating_sub(reserved))
            .max(1);
        self.link.window = usize::from(window);
        self.link.receive_maximum = usize::from(receive_maximum);
        if self.twin_due.is_some() && (first || !present) {
            let id = self.session.packet_id();
            self.link
                .codec
                .subscribe(id, &self.session.profile.twin_answers(), &mut self.link.out)?;
        }
        self.shed(Instant::now());
        self.session.resend(&mut self.link.codec, &mut self.link.out)?;
        let now = Instant::now();
        self.link.last_write = now;
        self.link.waiting_since = (!self.session.outstanding().is_empty()).then_some(now);
        Ok(())
    }

    async fn serve(&mut self, stream: &mut TcpStream) -> Result<(), Broken> {
        let lane = self.lane.clone();
        let mut timer = std::pin::pin!(sleep_until(Instant::now().into()));
        // What came together with the CONNACK is here already and wakes nobody.
        self.take_packets()?;
        loop {
            let now = Instant::now();
            let phase = *self.phase.borrow_and_update();
            self.housekeeping(now)?;
            self.fill(phase, now)?;
            if self.done(phase) {
                self.link.codec.disconnect(&mut self.link.out)?;
                flush(stream, &mut self.link.out).await;
                return Ok(());
            }
            let wake = self.wake(phase, now);
            // Moving a timer costs more than waking once too often: it only moves forward.
            if timer.is_elapsed() || wake < timer.deadline().into_std() {
                timer.as_mut().reset(wake.into());
            }
            let link = &mut self.link;
            tokio::select! {
                biased;
                read = exchange(stream, &lane, &mut link.input, &mut link.out) => {
                    read?;
                    self.link.ping_sent = None;
                    self.take_packets()?;
                }
                () = &mut timer => {}
                changed = self.phase.changed() => if changed.is_err() { return Ok(()) },
            }
        }
    }

    fn done(&self, phase: Phase) -> bool {
        phase == Phase::Abort
            || phase == Phase::Drain
                && self.session.outstanding().is_empty()
                && self.twin.as_ref().is_none_or(|flight| flight.acknowledged.is_none())
    }

    /// Writes what is due and fits the window.
    fn fill(&mut self, phase: Phase, now: Instant) -> Result<(), Broken> {
        let before = self.link.out.len();
        if phase == Phase::Publish && self.pause_until.is_none_or(|until| until <= now) {
            if self.window_is_full() {
                self.shed(now);
            }
            while let Some(intended) = self.next_telemetry(now) {
                self.session
                    .publish_telemetry(intended, now, &mut self.link.codec, &mut self.link.out)?;
                Progress::add(&self.lane.progress.published, 1);
                if let (Some(due), Some(interval)) = (&mut self.next_due, self.lane.load.interval()) {
                    *due += interval;
                }
            }
            self.fill_twin(now)?;
        }
        if self.link.out.len() > before {
            self.link.last_write = now;
            self.link.waiting_since.get_or_insert(now);
        }
        Ok(())
    }

    /// When the next message should have left, if one may leave now.
    fn next_telemetry(&mut self, now: Instant) -> Option<Instant> {
        if !self.may_publish() {
            return None;
        }
        match self.lane.load {
            Load::Idle => None,
            Load::Closed { .. } => Some(now),
            Load::Open { .. } | Load::Shed { .. } => {
                // The phase within the interval is the device's own, so that a fleet does not beat.
                let interval = self.lane.load.interval()?;
                let due = *self
                    .next_due
                    .get_or_insert_with(|| now + interval.mul_f64(self.rng.random_range(0.0..1.0)));
                (due <= now).then_some(due)
            }
        }
    }

    /// Lets go of what was due while nothing could be sent.
    fn shed(&mut self, now: Instant) {
        let (true, Some(due), Some(interval)) = (self.lane.load.sheds(), self.next_due, self.lane.load.interval())
        else {
            return;
        };
        if due > now {
            return;
        }
        let missed = now.duration_since(due).as_nanos() / interval.as_nanos().max(1) + 1;
        let missed = u32::try_from(missed).unwrap_or(u32::MAX);
        self.next_due = Some(due + interval * missed);
        Progress::add(&self.lane.progress.held_back, u64::from(missed));
    }

    fn window_is_full(&self) -> bool {
        self.session.outstanding().len() >= self.link.window
    }

    fn may_publish(&self) -> bool {
        let room = self.ledger.acks.len() + self.session.telemetry_outstanding() < self.acks_max;
        room && !self.window_is_full() && self.session.telemetry_sent() < self.lane.timing.messages_per_device_max
    }

    fn fill_twin(&mut self, now: Instant) -> Result<(), Broken> {
        let Some(due) = self.twin_due else { return Ok(()) };
        let pending = self
            .session
            .outstanding()
            .iter()
            .any(|o| matches!(o.what, Sent::Twin { .. }));
        let room = self.session.outstanding().len() < self.link.receive_maximum;
        if due > now || self.twin.is_some() || pending || !room {
            return Ok(());
        }
        let k = self
            .session
            .publish_twin(now, &mut self.link.codec, &mut self.link.out)?;
        self.twin = Some(TwinFlight {
            k,
            acknowledged: None,
            version: None,
        });
        self.twin_due = self.lane.timing.twin_interval.map(|interval| now + interval);
        Ok(())
    }

    /// Deadlines and keep-alive.
    fn housekeeping(&mut self, now: Instant) -> Result<(), Broken> {
        let timing = &self.lane.timing;
        let late = |since: Option<Instant>| since.is_some_and(|since| now >= since + timing.ack_timeout);
        if late(self.link.waiting_since) || late(self.link.ping_sent) {
            return Err(Broken::Silent);
        }
        if now >= self.link.last_write + timing.ping_interval() && self.link.ping_sent.is_none() {
            self.link.codec.ping(&mut self.link.out)?;
            (self.link.last_write, self.link.ping_sent) = (now, Some(now));
        }
        let acknowledged = self.twin.as_ref().and_then(|flight| flight.acknowledged);
        if acknowledged.is_some_and(|at| now >= at + TWIN_ANSWER_WAIT) {
            self.land_twin(now);
        }
        Ok(())
    }

    fn wake(&self, phase: Phase, now: Instant) -> Instant {
        let timing = &self.lane.timing;
        let mut wake = self.link.last_write + timing.ping_interval();
        let mut earliest = |at: Option<Instant>| wake = wake.min(at.unwrap_or(wake));
        earliest(self.link.waiting_since.map(|since| since + timing.ack_timeout));
        earliest(self.link.ping_sent.map(|since| since + timing.ack_timeout));
        earliest(
            self.twin
                .as_ref()
                .and_then(|f| f.acknowledged)
                .map(|at| at + TWIN_ANSWER_WAIT),
        );
        if phase == Phase::Publish {
            earliest(self.pause_until.filter(|until| *until > now));
            // A full window is woken by its acknowledgements.
            earliest(self.next_due.filter(|_| !self.window_is_full()));
            earliest(self.twin_due.filter(|due| *due > now));
        }
        wake.max(now + Duration::from_micros(500))
    }

    fn take_packets(&mut self) -> Result<(), Broken> {
        let now = Instant::now();
        if self.window_is_full() {
            // Before the answers make room for it.
            self.shed(now);
        }
        while let Some(incoming) = self.link.codec.read(&mut self.link.input)? {
            match incoming {
                Incoming::Acknowledged { packet_id, outcome } => {
                    match self.session.settle(packet_id) {
                        None => self.ledger.acks_foreign += 1,
                        Some((settled, oldest)) => {
                            self.link.useful = true;
                            self.ledger.acks_out_of_order += u32::from(!oldest);
                            self.settled(settled, outcome, now);
                        }
                    }
                    self.link.waiting_since = (!self.session.outstanding().is_empty()).then_some(now);
                }
                Incoming::Message {
                    topic,
                    payload,
                    packet_id,
                } => {
                    if let Some(id) = packet_id {
                        self.link.codec.acknowledge(id, &mut self.link.out)?;
                    }
                    self.twin_answered(&topic, &payload, now);
                }
                Incoming::Disconnected { code } => return Err(Broken::Disconnected(code)),
                Incoming::Subscribed { refused: true } => {
                    tracing::warn!(device = %self.ledger.device, "subscription refused")
                }
                _ => {}
            }
        }
        for buffer in [&mut self.link.input, &mut self.link.out] {
            if buffer.is_empty() && buffer.capacity() > BUFFER_KEPT_MAX {
                *buffer = BytesMut::new();
            }
        }
        Ok(())
    }

    fn settled(&mut self, settled: crate::session::Outstanding, outcome: Outcome, now: Instant) {
        let lane = self.lane.clone();
        let since_start = |at: Instant| at.saturating_duration_since(lane.progress.started);
        match (settled.what, outcome) {
            (Sent::Telemetry { n }, Outcome::Stored(receipt)) => {
                if lane.record {
                    self.ledger.record(n, since_start(now), receipt);
                }
                lane.record_latency(now.saturating_duration_since(settled.intended));
                lane.progress.shard_acknowledged(self.shard, since_start(now));
                Progress::add(&lane.progress.acknowledged, 1);
            }
            (Sent::Telemetry { n }, Outcome::Refused(code)) => {
                if lane.record {
                    self.ledger.refused.push(Refusal {
                        n,
                        code,
                        resent: settled.sends > 1,
                    });
                }
                // Whoever tests a server's limits does not spare it.
                if !lane.load.sheds() {
                    self.pause_until = Some(now + REFUSED_PAUSE);
                }
                Progress::add(&lane.progress.refused, 1);
            }
            (Sent::Twin { k }, Outcome::Stored(_)) => {
                if let Some(flight) = self.twin.as_mut().filter(|flight| flight.k == k) {
                    flight.acknowledged = Some(now);
                    if flight.version.is_some() {
                        self.land_twin(now);
                    }
                }
            }
            (Sent::Twin { .. }, Outcome::Refused(_)) => {
                self.twin = None;
            }
        }
    }

    fn twin_answered(&mut self, topic: &ByteString, payload: &[u8], now: Instant) {
        let Some(flight) = self.twin.as_mut() else { return };
        let rid = format!("{}-{}", self.session.profile.run, flight.k);
        if topic.rsplit('/').next() != Some(rid.as_str()) {
            return;
        }
        match serde_json::from_slice::<TwinAnswer>(payload) {
            Ok(answer) if answer.status < 300 => {
                flight.version = Some(answer.version);
                if flight.acknowledged.is_some() {
                    self.land_twin(now);
                }
            }
            _ => {
                self.twin = None;
            }
        }
    }

    /// Records the twin report under way as acknowledged.
    fn land_twin(&mut self, now: Instant) {
        if let Some(flight) = self.twin.take() {
            let at = now.saturating_duration_since(self.lane.progress.started);
            self.ledger.record_twin(flight.k, at, flight.version.unwrap_or(0));
            Progress::add(&self.lane.progress.twin_acknowledged, 1);
        }
    }

    fn finish(mut self) -> DeviceLedger {
        let now = Instant::now();
        match &self.twin {
            // An answer says as much as a PUBACK: the report is durable.
            Some(flight) if flight.acknowledged.is_some() || flight.version.is_some() => self.land_twin(now),
            Some(flight) => self.ledger.twin_unknown.push(flight.k),
            None => {}
        }
        for outstanding in self.session.outstanding() {
            if let Sent::Telemetry { n } = outstanding.what {
                self.ledger.unknown.push(n);
            }
        }
        self.ledger.sent = self.session.telemetry_sent();
        self.ledger
    }
}
