//! What an operator does meanwhile: changes desired properties, reads twins, calls methods.
//!
//! Open loop and from the seed, as everything else: who is asked what, and when, is planned. What
//! came of it goes into a part of the history of its own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::api::{runtime, Api, Reply};
use crate::drive::ingest::escape;
use crate::drive::{Clock, Endpoints};
use crate::history::{Header, Kind, Op, Outcome, Record, Writer};
use crate::payloads::chance::{salt, Chance};
use crate::plan::Plan;
use crate::profiles::Profile;

/// Requests under way; what is due beyond waits, and its latency counts.
const AT_ONCE: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Desire,
    Firmware,
    Read,
    Call,
}

/// A running operator; dropping it ends it.
pub struct Operator {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<std::io::Result<u64>>>,
}

impl Operator {
    /// `None` when the scenario asks for nothing. `from_us`: where the run begins or goes on, real µs.
    ///
    /// # Errors
    /// The thread, its client or its part of the history could not be made.
    pub fn start(
        plan: &Plan,
        endpoints: &Endpoints,
        clock: Clock,
        run: u32,
        from_us: u64,
        dir: &Path,
        part: &str,
    ) -> std::io::Result<Option<Self>> {
        let agenda = Agenda::new(plan, clock.scenario_us(from_us));
        if agenda.is_empty() {
            return Ok(None);
        }
        let api = Api::new(endpoints).map_err(std::io::Error::other)?;
        let scenario = &plan.loaded.scenario;
        let header = Header::new(run, part, &scenario.name, scenario.seed);
        let writer = Writer::create(dir, header, None)?;
        let stop = Arc::new(AtomicBool::new(false));
        let office = Arc::new(Office {
            plan: plan.clone(),
            api,
            clock,
            run,
            writer: Mutex::new(writer),
        });
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("operator".into()).spawn(move || {
            let runtime = runtime()?;
            runtime.block_on(work(&office, agenda, &stopped));
            drop(runtime);
            let office = Arc::into_inner(office).ok_or_else(|| std::io::Error::other("a request still runs"))?;
            let writer = office
                .writer
                .into_inner()
                .map_err(|_| std::io::Error::other("a request panicked"))?;
            writer.close()
        })?;
        Ok(Some(Self {
            stop,
            thread: Some(thread),
        }))
    }

    /// Begins nothing new.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for what is under way. Returns the records written.
    ///
    /// # Errors
    /// Its part of the history could not be written.
    pub fn finish(mut self) -> std::io::Result<u64> {
        self.stop();
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| std::io::Error::other("the operator panicked"))?,
            None => Ok(0),
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Office {
    plan: Plan,
    api: Api,
    clock: Clock,
    run: u32,
    writer: Mutex<Writer>,
}

/// What is due when: each kind of deed at its rate, for a device drawn among those it concerns.
struct Agenda {
    deeds: Vec<(Deed, f64, f64, Vec<std::ops::Range<u32>>)>,
    firmware: Vec<(u64, u32)>,
    chance: Chance,
    end_us: u64,
}

impl Agenda {
    /// `from_us`: what was due before is over.
    fn new(plan: &Plan, from_us: u64) -> Self {
        let scenario = &plan.loaded.scenario;
        let concerned = |does: &dyn Fn(&Profile) -> bool| {
            let fleets = 0..scenario.fleet.len();
            let fleets = fleets.filter(|at| does(plan.loaded.profile(*at)));
            fleets.map(|at| plan.roster.subjects_of(at)).collect::<Vec<_>>()
        };
        let obeys = |profile: &Profile| profile.twin.as_ref().is_some_and(|twin| !twin.obey.is_empty());
        let operator = &scenario.operator;
        let mut chance = Chance::fork(scenario.seed, &[salt("operator")]);
        let mut deeds = Vec::new();
        for (deed, rate, who) in [
            (Deed::Desire, operator.desired_rate, concerned(&obeys)),
            (
                Deed::Read,
                operator.read_rate,
                concerned(&|profile| profile.twin.is_some()),
            ),
            (
                Deed::Call,
                operator.method_rate,
                concerned(&|profile| profile.methods.is_some()),
            ),
        ] {
            if rate > 0.0 && !who.is_empty() {
                let interval = 1e6 / rate;
                let first = interval * chance.unit();
                let passed = ((from_us as f64 - first) / interval).ceil().max(0.0);
                deeds.push((deed, interval, first + passed * interval, who));
            }
        }
        let end_us = plan.curve.end_us();
        let mut firmware: Vec<(u64, u32)> = Vec::new();
        for range in concerned(&|profile| profile.firmware.is_some()) {
            for subject in range {
                let (hit, place) = (chance.hit(operator.firmware_share), chance.unit());
                if hit {
                    // Early enough to be seen through.
                    firmware.push(((end_us as f64 * (0.15 + 0.4 * place)) as u64, subject));
                }
            }
        }
        firmware.retain(|(at, _)| *at >= from_us);
        firmware.sort_unstable();
        firmware.reverse();
        Self {
            deeds,
            firmware,
            chance,
            end_us,
        }
    }

    fn is_empty(&self) -> bool {
        self.deeds.is_empty() && self.firmware.is_empty()
    }

    /// The next deed, when (scenario µs), and to whom.
    fn next(&mut self) -> Option<(Deed, u64, u32)> {
        let first = self.deeds.iter_mut().min_by(|a, b| a.2.total_cmp(&b.2));
        let at = first.as_ref().map_or(u64::MAX, |deed| deed.2 as u64);
        if self.firmware.last().is_some_and(|(due, _)| *due <= at) {
            return self.firmware.pop().map(|(due, subject)| (Deed::Firmware, due, subject));
        }
        let deed = first.filter(|deed| (deed.2 as u64) < self.end_us)?;
        deed.2 += deed.1;
        let all: u32 = deed.3.iter().map(|range| range.end - range.start).sum();
        let mut place = self.chance.below(u64::from(all)) as u32;
        for range in &deed.3 {
            let size = range.end - range.start;
            if place < size {
                return Some((deed.0, at, range.start + place));
            }
            place -= size;
        }
        None
    }
}

async fn work(office: &Arc<Office>, mut agenda: Agenda, stop: &AtomicBool) {
    let mut under_way = tokio::task::JoinSet::new();
    let mut number = 0;
    while let Some((deed, at_us, subject)) = agenda.next() {
        let due_us = office.clock.real_us(at_us);
        loop {
            let now = office.clock.now_us();
            if stop.load(Ordering::Relaxed) {
                break;
            }
            if now >= due_us {
                break;
            }
            tokio::time::sleep(Duration::from_micros((due_us - now).min(100_000))).await;
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        while under_way.len() >= AT_ONCE {
            under_way.join_next().await;
        }
        number += 1;
        under_way.spawn(office.clone().perform(deed, number, due_us, subject));
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
}

#[derive(Deserialize)]
struct Written {
    versions: Versions,
}

#[derive(Deserialize)]
struct Versions {
    desired: u64,
    #[serde(default)]
    reported: u64,
}

impl Office {
    async fn perform(self: Arc<Self>, deed: Deed, number: u64, due_us: u64, subject: u32) {
        let (id, _) = self.plan.roster.subject_id(&self.plan.loaded, subject);
        let device = format!("/api/v1/devices/{}", escape(&id));
        let sent_us = self.clock.now_us();
        let mut chance = Chance::fork(self.plan.loaded.scenario.seed, &[salt("deed"), number]);
        let mut op = match deed {
            Deed::Desire | Deed::Firmware => self.desire(deed, &device, number, subject, &mut chance).await,
            Deed::Read => self.read(&device, number, subject).await,
            Deed::Call => self.call(&device, number, subject).await,
        };
        (op.intended_us, op.sent_us, op.done_us) = (due_us, sent_us, self.clock.now_us());
        if let Ok(mut writer) = self.writer.lock() {
            writer.record(&Record::Op(op));
            writer.flush();
        }
    }

    async fn desire(&self, deed: Deed, device: &str, number: u64, subject: u32, chance: &mut Chance) -> Op {
        let fleet = self.plan.roster.fleet_of_subject(subject);
        let mut patch = json!({ "sim": { "run": self.run, "k": number } });
        if deed == Deed::Firmware {
            patch["firmware"] = json!(format!("2.{}.0", number % 10));
        } else if let Some(twin) = &self.plan.loaded.profile(fleet).twin {
            // How often a device sends is the plan's; only what follows is changed.
            let followed = twin.obey.iter().filter(|name| *name != "interval_secs");
            for name in followed {
                patch[name] = json!((chance.between(15.0, 25.0) * 10.0).round() / 10.0);
            }
        }
        let mut op = Op::new(subject, Kind::DesiredWrite, number);
        match self
            .api
            .once(reqwest::Method::PATCH, &format!("{device}/twin/desired"), Some(&patch))
            .await
        {
            Reply::Ok(bytes) => match serde_json::from_slice::<Written>(&bytes) {
                Ok(written) => op.version = written.versions.desired,
                Err(_) => op.outcome = Outcome::Unknown,
            },
            Reply::Refused(status) => op.outcome = Outcome::Refused(status),
            Reply::Unknown(_) => op.outcome = Outcome::Unknown,
        }
        op
    }

    async fn read(&self, device: &str, number: u64, subject: u32) -> Op {
        let mut op = Op::new(subject, Kind::OperatorRead, number);
        match self
            .api
            .once(reqwest::Method::GET, &format!("{device}/twin"), None)
            .await
        {
            Reply::Ok(bytes) => match serde_json::from_slice::<Written>(&bytes) {
                Ok(read) => (op.version, op.other) = (read.versions.desired, read.versions.reported),
                Err(_) => op.outcome = Outcome::Unknown,
            },
            Reply::Refused(status) => op.outcome = Outcome::Refused(status),
            Reply::Unknown(_) => op.outcome = Outcome::Unknown,
        }
        op
    }

    async fn call(&self, device: &str, number: u64, subject: u32) -> Op {
        let mut op = Op::new(subject, Kind::Method, number);
        let body = json!({ "payload": { "k": number }, "timeout_ms": 5_000 });
        match self
            .api
            .once(reqwest::Method::POST, &format!("{device}/methods/sim"), Some(&body))
            .await
        {
            Reply::Ok(bytes) => {
                let answer: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
                op.version = answer["status"].as_u64().unwrap_or(0);
            }
            Reply::Refused(status) => op.outcome = Outcome::Refused(status),
            Reply::Unknown(_) => op.outcome = Outcome::Unknown,
        }
        op
    }
}
