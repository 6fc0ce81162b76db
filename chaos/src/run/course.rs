//! The course of a drill.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use simulator::drive::clock::unix_us;
use simulator::run::directory::{Lines, RunFile};
use simulator::run::Wish;
use simulator::scenario;

use super::observer::Observer;
use super::result::{DrillResult, FaultRecord, Phase, Times};
use super::stage::Stage;
use super::{after, DrillError, Ground, Options, Screen};
use crate::check::Presence;
use crate::deed::Outcome;
use crate::drill::{self, aim, predict, Drill, Planned, Reach, View};
use crate::site::Http;
use crate::warden::{Healer, Order};

const TICK: Duration = Duration::from_millis(50);
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long devices may take to connect, beyond the ramp.
const CONNECT: Duration = Duration::from_secs(60);
/// The lease of a fault outlasts its length by this: healing is asked for, not waited for.
const GRACE_MS: u64 = 15_000;
/// A cluster serves again at this share of the acknowledgements of its steady phase.
const SERVES: f64 = 0.7;
/// How long presence may take to come right after devices left.
const LEAVING: Duration = Duration::from_secs(45);

type Simulated = std::thread::JoinHandle<Result<RunFile, String>>;

/// Runs a drill on a cluster that is ready, and writes the verdict's directory.
///
/// # Errors
/// It could not begin. Whatever goes wrong later is in the result, as a harness failure.
pub fn run(
    drill: &Drill,
    options: &Options,
    ground: &mut Ground,
    screen: &dyn Screen,
) -> Result<DrillResult, DrillError> {
    let failed = |source| DrillError::Out {
        path: options.out.clone(),
        source,
    };
    fs::create_dir_all(&options.out).map_err(failed)?;
    let text = toml::to_string(drill).unwrap_or_default();
    fs::write(options.out.join("drill.toml"), text).map_err(failed)?;
    let mut course = Course::begin(drill, options, ground, screen)?;
    let ended = course.phases();
    // Whatever happened: nothing stays broken, and the load ends.
    let healed = course.heal_all();
    if let Err(why) = ended.and(healed) {
        course.failures.push(why);
        course.stage.wish(Wish::Stop);
    }
    course.conclude()
}

/// A drill under way.
pub(super) struct Course<'a> {
    pub drill: &'a Drill,
    pub options: &'a Options,
    pub ground: &'a mut Ground,
    pub screen: &'a dyn Screen,
    stage: Stage,
    load: Option<Simulated>,
    observer: Option<Observer>,
    plan: Vec<Planned>,
    log: Lines,
    pub http: Http,
    pub view: View,
    pub records: Vec<FaultRecord>,
    pub phases: Vec<Phase>,
    pub times: Times,
    pub presence: Option<Presence>,
    /// Why there is no verdict, if there is none.
    pub failures: Vec<String>,
    pub notes: Vec<String>,
    /// Rulings of the course itself: whether everything was healed and served again.
    pub unhealed: Vec<String>,
    pub unserved: Option<String>,
    pub aborted: Option<String>,
    steady_rate: f64,
    began_unix_us: u64,
    told: Instant,
}

impl<'a> Course<'a> {
    fn begin(
        drill: &'a Drill,
        options: &'a Options,
        ground: &'a mut Ground,
        screen: &'a dyn Screen,
    ) -> Result<Self, DrillError> {
        let plan = drill::plan(drill, options.seed);
        let http = Http::new(&ground.site.token)?;
        let view = look(&http, &ground.site.current()).ok_or_else(|| DrillError::Load("no node answers".into()))?;
        let reach = reach(&plan, ground, options)?;
        let text = drill::scenario(drill, options.seed, &plan, &reach);
        let loaded = scenario::parse(&options.out.join("scenario.toml"), text);
        let loaded = loaded.map_err(|error| DrillError::Load(error.to_string()))?;
        let stage = Stage::new();
        let failed = |source| DrillError::Out {
            path: options.out.clone(),
            source,
        };
        let log = Lines::append(&options.out.join("faults.jsonl")).map_err(failed)?;
        let observer = Observer::start(&ground.site, &stage, &options.out.join("sightings.jsonl"))?;
        let mut eye = stage.watcher();
        let spec = simulator::run::Options {
            out: options.out.join("run"),
            run: options.run,
            worker: Vec::new(),
            version: options.version.clone(),
            resume: false,
        };
        let load = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || simulator::run::run(loaded, &spec, &mut eye).map_err(|error| error.to_string()))
            .map_err(failed)?;
        Ok(Self {
            notes: ground.notes.clone(),
            drill,
            options,
            ground,
            screen,
            stage,
            load: Some(load),
            observer: Some(observer),
            plan,
            log,
            http,
            view,
            records: Vec::new(),
            phases: Vec::new(),
            times: Times::default(),
            presence: None,
            failures: Vec::new(),
            unhealed: Vec::new(),
            unserved: None,
            aborted: None,
            steady_rate: 0.0,
            began_unix_us: unix_us(),
            told: Instant::now(),
        })
    }

    fn now(&self) -> u64 {
        self.stage.now_us().unwrap_or(0)
    }

    fn phase(&mut self, name: &str) {
        let now = self.now();
        if let Some(last) = self.phases.last_mut() {
            last.to_us = now;
        }
        self.phases.push(Phase {
            name: name.to_owned(),
            from_us: now,
            to_us: now,
        });
        self.screen.say(&format!("{name}: {}", meaning(name)));
    }

    /// One tick: `false` is never returned; an error ends the phases.
    fn tick(&mut self) -> Result<(), String> {
        std::thread::sleep(TICK);
        if self.screen.is_interrupted() {
            return Err("interrupted".into());
        }
        if self.load.as_ref().is_some_and(std::thread::JoinHandle::is_finished) {
            return Err("the load ended before its time".into());
        }
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            let (acked, connected, devices) = self.stage.figures();
            let now = self.now();
            self.screen.progress(&format!(
                "{:>4} s  {acked} acknowledged, {:.0}/s, {connected} of {devices} devices connected",
                now / 1_000_000,
                self.stage.rate_since(now.saturating_sub(TELL_EVERY.as_micros() as u64))
            ));
        }
        Ok(())
    }

    fn phases(&mut self) -> Result<(), String> {
        self.phase("set-up");
        let phases = &self.drill.phases;
        let steady_from = phases.ramp.micros();
        self.connected(steady_from)?;
        self.phase("steady");
        // Devices that connect late shift everything but what the load itself has planned.
        let steady_from = steady_from.max(self.now());
        let faults_from = steady_from + phases.steady.micros();
        while self.now() < faults_from {
            self.tick()?;
        }
        self.steady_rate = self.stage.rate_since(steady_from);
        if self.steady_rate <= 0.0 {
            return Err("nothing was acknowledged before anything was broken".into());
        }
        self.phase("faults");
        self.faults(faults_from)?;
        self.phase("heal");
        self.heal_all()?;
        self.phase("liveness");
        self.liveness()
    }

    /// Until the ramp is over and most devices are there.
    fn connected(&mut self, until_us: u64) -> Result<(), String> {
        let end = Instant::now() + CONNECT + Duration::from_micros(until_us);
        loop {
            self.tick()?;
            let (_, connected, devices) = self.stage.figures();
            if self.now() >= until_us && u64::from(connected) * 10 >= u64::from(devices) * 8 {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(format!("only {connected} of {devices} devices could connect"));
            }
        }
    }

    /// Faults as planned, until the phase is over or the drill is aborted.
    fn faults(&mut self, from_us: u64) -> Result<(), String> {
        let end = from_us + self.drill.phases.faults.micros();
        let (mut next, mut low_since) = (0, None);
        while self.now() < end {
            self.tick()?;
            let now = self.now();
            while let Some(planned) = self
                .plan
                .get(next)
                .filter(|p| from_us + p.at.as_micros() as u64 <= now)
                .cloned()
            {
                next += 1;
                self.inject(&planned)?;
            }
            self.follow()?;
            if let Some(why) = self.abort(now, &mut low_since) {
                self.notes.push(why.clone());
                self.screen.say(&why);
                self.aborted = Some(why);
                return Ok(());
            }
        }
        Ok(())
    }

    fn inject(&mut self, planned: &Planned) -> Result<(), String> {
        if let Some(view) = look(&self.http, &self.ground.site.current()) {
            self.view = view;
        }
        let now = self.now();
        let mut record = FaultRecord {
            id: planned.id.clone(),
            kind: planned.kind.to_owned(),
            mechanism: planned.entry.mechanism.name().to_owned(),
            on: planned.on.clone(),
            with: serde_json::to_value(&planned.with).unwrap_or_default(),
            from_us: now,
            to_us: now,
            ..Default::default()
        };
        match aim(planned, &self.view) {
            Err(why) => (record.outcome, record.why) = ("skipped".into(), why),
            Ok(aimed) => {
                let per_node = self.stage.figures().1 / (self.view.nodes.len().max(1) as u32);
                let connections = |node: u64| connections(&self.http, &self.view, node).unwrap_or(per_node);
                record.predicted = predict(&aimed, &self.view, &connections);
                record.shards = self.led_by(&aimed.nodes);
                record.nodes = aimed.nodes;
                let order = Order {
                    fault: planned.id.clone(),
                    deeds: aimed.deeds,
                    ttl_ms: planned.length.as_millis() as u64 + GRACE_MS,
                    stays: false,
                };
                self.ground.warden.inject(&order).map_err(|error| error.to_string())?;
            }
        }
        self.write(&record);
        self.records.push(record);
        Ok(())
    }

    fn led_by(&self, nodes: &[u64]) -> Vec<u16> {
        let led = self
            .view
            .shards
            .iter()
            .filter(|shard| shard.leader.is_some_and(|leader| nodes.contains(&leader)));
        led.map(|shard| shard.id).collect()
    }

    fn write(&mut self, record: &FaultRecord) {
        let _ = self.log.put(record);
    }

    /// What came of injections and heals, and which faults have lasted long enough.
    fn follow(&mut self) -> Result<(), String> {
        let now = self.now();
        for at in 0..self.records.len() {
            let record = &self.records[at];
            if record.outcome.is_empty() {
                if let Some(outcome) = self.ground.warden.outcome(&record.id) {
                    self.begun(at, &outcome, now);
                }
            } else if record.outcome == "installed" && record.healed_by.is_none() {
                let planned = self.plan.iter().find(|planned| planned.id == record.id);
                let length = planned.map_or(0, |planned| planned.length.as_micros() as u64);
                // Asked once: `to_us` tells that it was.
                if record.to_us == record.from_us && now >= record.from_us + length {
                    let id = record.id.clone();
                    self.records[at].to_us = now;
                    self.ground.warden.heal(&id).map_err(|error| error.to_string())?;
                }
            }
        }
        self.healed(now);
        Ok(())
    }

    fn begun(&mut self, at: usize, outcome: &Outcome, now: u64) {
        let record = &mut self.records[at];
        record.outcome = outcome.word().to_owned();
        record.why = outcome.why().to_owned();
        let text = format!(
            "{} on {}: {} {}",
            record.id,
            names(&record.nodes),
            record.outcome,
            record.why
        );
        self.screen
            .say(&format!("{:>4.1} s  {}", now as f64 / 1e6, text.trim_end()));
        let record = record.clone();
        self.write(&record);
    }

    fn healed(&mut self, now: u64) {
        for (fault, by, problem) in self.ground.warden.healed() {
            let Some(at) = self.records.iter().position(|record| record.id == fault) else {
                continue;
            };
            if self.records[at].outcome.is_empty() {
                if let Some(outcome) = self.ground.warden.outcome(&fault) {
                    self.begun(at, &outcome, now);
                }
            }
            let record = &mut self.records[at];
            record.to_us = now;
            record.healed_by = Some(
                match by {
                    Healer::Asked => "asked",
                    Healer::Lease => "lease",
                    Healer::Warden => "warden",
                }
                .to_owned(),
            );
            record.problem.clone_from(&problem);
            if let Some(problem) = problem {
                self.unhealed.push(format!("{fault}: {problem}"));
            }
            let record = record.clone();
            if record.outcome == "installed" {
                self.screen
                    .say(&format!("{:>4.1} s  {} healed", now as f64 / 1e6, record.id));
            }
            self.write(&record);
        }
    }

    /// Why everything is to be healed at once, if the load has suffered for too long.
    fn abort(&self, now: u64, low_since: &mut Option<u64>) -> Option<String> {
        let abort = self.drill.abort.as_ref()?;
        let rate = self.stage.rate_since(now.saturating_sub(1_000_000));
        if rate >= self.steady_rate * abort.throughput_share_min {
            *low_since = None;
            return None;
        }
        let since = *low_since.get_or_insert(now);
        let long = now - since >= abort.within.micros();
        long.then(|| {
            format!(
                "aborted: {rate:.0} acknowledgements a second for longer than {}",
                abort.within
            )
        })
    }

    pub(super) fn heal_all(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let healed = self.ground.warden.heal_all().map_err(|error| error.to_string());
        let now = self.now();
        self.healed(now);
        self.times.heal_us = self.times.heal_us.max(began.elapsed().as_micros() as u64);
        for node in self.ground.site.current() {
            self.unhealed.extend(
                leases_left(&self.http, &node.http, &self.records)
                    .into_iter()
                    .map(|lease| format!("lease {lease} is still on node {}", node.id)),
            );
        }
        healed
    }

    /// Until everything serves again, or the bound is over.
    fn liveness(&mut self) -> Result<(), String> {
        let began = Instant::now();
        let bound = self.drill.phases.settle.0;
        loop {
            self.tick()?;
            let why = self.not_serving();
            let is_late = began.elapsed() >= bound;
            match why {
                None => {
                    self.times.liveness_us = Some(began.elapsed().as_micros() as u64);
                    self.screen.say(&format!(
                        "everything serves again, {:.1} s after the heal",
                        began.elapsed().as_secs_f64()
                    ));
                    break;
                }
                Some(why) if is_late => {
                    self.screen.say(&format!("not within {bound:?}: {why}"));
                    self.unserved = Some(why);
                    break;
                }
                Some(_) => {}
            }
        }
        // The last seconds are what the hypothesis "after" is held against.
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            self.tick()?;
        }
        self.presence = self.presence_now(began, bound)?;
        Ok(())
    }

    /// What does not serve as it should.
    fn not_serving(&self) -> Option<String> {
        for node in self.ground.site.current() {
            let Ok(view) = self.http.get::<View>(&node.http, "/api/v1/cluster") else {
                return Some(format!("node {} does not answer", node.id));
            };
            let own = view.nodes.iter().find(|seen| seen.id == node.id);
            if let Some(own) = own.filter(|own| own.state != "up") {
                return Some(format!("node {} is {}", own.id, own.state));
            }
            if let Some(shard) = view
                .shards
                .iter()
                .find(|shard| shard.leader.is_none() || shard.fault.is_some())
            {
                let why = shard.fault.clone().unwrap_or_else(|| "it has no leader".into());
                return Some(format!("shard {}, as node {} sees it: {why}", shard.id, node.id));
            }
        }
        let since = self.now().saturating_sub(2_000_000);
        let (rate, p99_us) = (self.stage.rate_since(since), self.stage.p99_since(since));
        if rate < self.steady_rate * SERVES {
            let before = self.steady_rate;
            return Some(format!(
                "{rate:.0} acknowledgements a second, before the faults there were {before:.0}"
            ));
        }
        // What devices have kept meanwhile has to be worked off, too.
        (p99_us > crate::check::SERVED_US).then(|| format!("messages are {:.1} s late", p99_us as f64 / 1e6))
    }

    /// Presence as devices and cluster see it, once they agree or the bound is over.
    fn presence_now(&mut self, began: Instant, bound: Duration) -> Result<Option<Presence>, String> {
        let misbehaves = |kind: &str| matches!(kind, "load.poison" | "load.duplicate_ids" | "load.firmware_wave");
        if self.plan.iter().any(|planned| misbehaves(planned.kind)) {
            self.notes
                .push("presence is not judged: devices that misbehave come and go".into());
            return Ok(None);
        }
        loop {
            self.tick()?;
            let connected = self.stage.figures().1;
            let listed = after::connected(&self.http, &self.ground.site.current(), &self.options.prefix);
            let still = self.stage.figures().1 == connected;
            if let (Some(listed), true) = (listed, still) {
                if listed == connected || began.elapsed() > bound + LEAVING {
                    return Ok(Some(Presence {
                        connected,
                        listed,
                        listed_after_leaving: None,
                    }));
                }
            }
            if began.elapsed() > bound + LEAVING * 2 {
                return Ok(None);
            }
        }
    }

    fn conclude(mut self) -> Result<DrillResult, DrillError> {
        self.phase("audit");
        self.stage.wish(Wish::Enough);
        let ran = match self.load.take().map(std::thread::JoinHandle::join) {
            Some(Ok(ran)) => ran,
            _ => Err("the load's thread panicked".into()),
        };
        let ended = self.now();
        if let Some(last) = self.phases.last_mut() {
            last.to_us = ended;
        }
        if let Some(presence) = &mut self.presence {
            presence.listed_after_leaving =
                after::left(&self.http, &self.ground.site.current(), &self.options.prefix, LEAVING);
        }
        let sightings = self.observer.take().map_or_else(Vec::new, Observer::finish);
        let began = self.began_unix_us;
        after::conclude(self, ran, sightings, began)
    }
}

fn meaning(phase: &str) -> &'static str {
    match phase {
        "set-up" => "devices connect",
        "steady" => "everything is as it should be before anything is broken",
        "faults" => "faults by plan",
        "heal" => "every fault is undone",
        "liveness" => "everything has to serve again",
        _ => "everything is read back and judged",
    }
}

fn names(nodes: &[u64]) -> String {
    match nodes {
        [] => "the cluster".into(),
        [one] => format!("node {one}"),
        many => format!(
            "nodes {}",
            many.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// The cluster as the first node that answers sees it.
pub fn look(http: &Http, nodes: &[crate::site::SiteNode]) -> Option<View> {
    nodes.iter().find_map(|node| {
        let value = http
            .call("GET", &node.http, "/api/v1/cluster", None, Duration::from_millis(1_500))
            .ok()?;
        serde_json::from_value(value).ok()
    })
}

/// MQTT connections of a node, by its own metrics.
fn connections(http: &Http, view: &View, node: u64) -> Option<u32> {
    let at = view.nodes.iter().find(|seen| seen.id == node)?;
    let page = http.text(&at.http, "/metrics").ok()?;
    let value = |line: &str| {
        let rest = line.strip_prefix("holdfast_mqtt_connections")?;
        // Another metric's name may begin alike.
        rest.starts_with([' ', '{'])
            .then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
    };
    // A node that nobody has connected to since it started does not name the figure yet.
    Some(page.lines().filter_map(value).sum::<f64>() as u32)
}

/// Leases of this drill that a node still has.
fn leases_left(http: &Http, node: &str, records: &[FaultRecord]) -> Vec<String> {
    let Ok(answer) = http.get::<serde_json::Value>(node, "/api/v1/chaos/leases") else {
        return Vec::new();
    };
    let leases = answer
        .get("leases")
        .and_then(serde_json::Value::as_array)
        .cloned()
        .unwrap_or_default();
    let ids = leases
        .iter()
        .filter_map(|lease| lease.get("id")?.as_str().map(str::to_owned));
    ids.filter(|id| records.iter().any(|record| id.starts_with(&record.id)))
        .collect()
}

/// Where the load goes: through proxies, where the drill has faults of clients.
fn reach(plan: &[Planned], ground: &mut Ground, options: &Options) -> Result<Reach, DrillError> {
    let nodes = ground.site.current();
    let mqtt = match plan.iter().any(|planned| planned.entry.family == "clients") {
        true => ground.warden.proxies()?.into_iter().map(|(_, listen)| listen).collect(),
        false => nodes.iter().map(|node| node.mqtt.clone()).collect(),
    };
    Ok(Reach {
        mqtt,
        ws: Vec::new(),
        http: nodes.iter().map(|node| node.http.clone()).collect(),
        token_env: options.token_env.clone(),
        prefix: options.prefix.clone(),
    })
}

/// Copies the ends of node logs into the verdict's directory.
pub(super) fn copy_logs(ground: &Ground, out: &Path) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    const BYTES_MAX: u64 = 8 << 20;
    let to = out.join("nodes");
    fs::create_dir_all(&to)?;
    for node in ground.site.current() {
        let Ok(entry) = ground.site.entry(node.id) else {
            continue;
        };
        let mut file = fs::File::open(&entry.log)?;
        let from = file.metadata()?.len().saturating_sub(BYTES_MAX);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(BYTES_MAX).read_to_end(&mut bytes)?;
        fs::write(to.join(format!("node-{}.log", node.id)), bytes)?;
    }
    Ok(())
}
