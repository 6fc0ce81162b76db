//! Operators who read and write twins while a test breaks the cluster, and what linearizability
//! says about the answers.
//!
//! Each twin is a register whose versions the server hands out, so that a history can be judged by
//! sorting: (A) a version is acknowledged by one write only, and names what that write wrote;
//! (B) nobody sees a version before its write began; (C) once a version was returned, no operation
//! that starts later returns an older one. A write without an answer may have happened or not.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Deserialize;

use crate::harness::{client, Cluster};

/// Operations one run records; far above what a test does.
const OPS_MAX: usize = 2_000_000;
/// Longer than any pause of a test, so that what a paused node answers on its return is seen.
const REQUEST_DEADLINE: Duration = Duration::from_secs(12);
/// Between two operations of one operator.
const PACE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `write` is what was written.
    Write,
    /// `write` is what was read.
    Read,
}

/// One operation on one device.
#[derive(Clone, Debug)]
pub struct Op {
    pub kind: Kind,
    pub node: usize,
    /// Since the history's start.
    pub began: Duration,
    /// `None`: unknown.
    pub ended: Option<Duration>,
    /// Of the twin; 0 when unknown.
    pub version: u64,
    /// The number of the write; 0 before the first.
    pub write: u64,
}

#[derive(Clone, Debug, Default)]
pub struct History {
    pub devices: BTreeMap<String, Vec<Op>>,
    /// Requests that were not answered with 2xx.
    pub failures: Vec<String>,
}

impl History {
    pub fn operations(&self) -> usize {
        self.devices.values().map(Vec::len).sum()
    }

    /// Fails the test unless every twin behaved like one register.
    #[track_caller]
    pub fn assert_linearizable(&self) {
        for (device, ops) in &self.devices {
            let broken = violations(ops);
            assert!(broken.is_empty(), "{device}: {broken:#?}");
        }
    }
}

/// What one device's history breaks, in words; empty if nothing.
pub fn violations(ops: &[Op]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut written: BTreeMap<u64, &Op> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.kind == Kind::Write && op.ended.is_some()) {
        if let Some(other) = written.insert(op.version, op) {
            broken.push(format!(
                "A: version {} was given to writes {} and {}",
                op.version, other.write, op.write
            ));
        }
    }
    for read in ops.iter().filter(|op| op.kind == Kind::Read && op.ended.is_some()) {
        match written.get(&read.version) {
            Some(write) if write.write != read.write => {
                let (v, w, r) = (read.version, write.write, read.write);
                broken.push(format!("A: version {v} is write {w}, a read of it returned {r}"));
            }
            Some(write) if read.ended < Some(write.began) => {
                broken.push(format!("B: version {} was read before its write began", read.version));
            }
            Some(_) => {}
            None => {
                // Then a write of unknown outcome made it, or nobody did.
                let maker = |op: &&Op| op.kind == Kind::Write && op.write == read.write;
                match ops.iter().find(maker) {
                    _ if read.write == 0 => {}
                    Some(write) if write.ended.is_none() && Some(write.began) <= read.ended => {}
                    Some(write) => broken.push(format!(
                        "A: write {} got version {}, a read returned it as {}",
                        write.write, write.version, read.version
                    )),
                    None => broken.push(format!("B: a read returned {}, which nobody wrote", read.write)),
                }
            }
        }
    }
    broken.extend(going_back(ops));
    broken
}

/// Rule C.
fn going_back(ops: &[Op]) -> Vec<String> {
    let mut ends: Vec<(Duration, u64)> = ops.iter().filter_map(|op| Some((op.ended?, op.version))).collect();
    ends.sort_unstable();
    let mut highest = 0;
    for (_, version) in &mut ends {
        highest = highest.max(*version);
        *version = highest;
    }
    let mut broken = Vec::new();
    for op in ops.iter().filter(|op| op.ended.is_some()) {
        let before = ends.partition_point(|(end, _)| *end < op.began);
        let seen = before.checked_sub(1).map_or(0, |last| ends[last].1);
        let stale = match op.kind {
            Kind::Read => op.version < seen,
            Kind::Write => op.version <= seen,
        };
        if stale {
            broken.push(format!("C: version {seen} had been returned before {op:?} began"));
        }
    }
    broken
}

/// Operators at work until they are stopped.
pub struct Operators {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<History>>,
}

impl Operators {
    /// Registers `devices` twins and lets `operators` of them loose on all nodes.
    pub fn start(cluster: &Cluster, prefix: &str, devices: usize, operators: u64) -> Self {
        let names: Arc<Vec<String>> = Arc::new((0..devices).map(|i| format!("{prefix}-{i}")).collect());
        let http = client(REQUEST_DEADLINE);
        for name in names.iter() {
            let url = format!("http://{}/api/v1/devices/{name}", cluster.http()[0]);
            let put = http.put(url).bearer_auth(&cluster.file.token);
            let answer = cluster
                .runtime()
                .block_on(async { put.send().await?.error_for_status() });
            answer.unwrap_or_else(|error| panic!("device {name} cannot be registered: {error}"));
        }
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let next_write = Arc::new(AtomicU64::new(1));
        let start = Instant::now();
        let threads = (0..operators)
            .map(|number| {
                let operator = Operator {
                    nodes: cluster.http(),
                    token: cluster.file.token.clone(),
                    names: names.clone(),
                    // Each at one node, so that a node which does not answer holds up only its own.
                    node: number as usize % cluster.file.nodes.len(),
                    random: SmallRng::seed_from_u64(number),
                    next_write: next_write.clone(),
                    start,
                    history: History::default(),
                };
                let (stop, done) = (stop.clone(), done.clone());
                std::thread::spawn(move || operator.run(&stop, &done))
            })
            .collect();
        Self { stop, done, threads }
    }

    /// Operations answered so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub fn finish(mut self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        let mut whole = History::default();
        for thread in self.threads.drain(..) {
            let part = thread.join().expect("operators do not panic");
            whole.failures.extend(part.failures);
            for (device, ops) in part.devices {
                whole.devices.entry(device).or_default().extend(ops);
            }
        }
        whole
    }
}

impl Drop for Operators {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

struct Operator {
    nodes: Vec<SocketAddr>,
    token: String,
    names: Arc<Vec<String>>,
    node: usize,
    random: SmallRng,
    next_write: Arc<AtomicU64>,
    start: Instant,
    history: History,
}

#[derive(Deserialize)]
struct Twin {
    version: u64,
    #[serde(default)]
    desired: serde_json::Value,
}

enum Answer {
    Yes(Twin),
    /// Nothing was done.
    No(String),
    Unknown(String),
}

impl Operator {
    fn run(mut self, stop: &AtomicBool, done: &AtomicU64) -> History {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let http = client(REQUEST_DEADLINE);
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) && count < OPS_MAX {
            runtime.block_on(async {
                self.operate(&http).await;
                tokio::time::sleep(PACE).await;
            });
            count += 1;
            done.fetch_add(1, Ordering::Relaxed);
        }
        self.history
    }

    async fn operate(&mut self, http: &reqwest::Client) {
        let node = self.node;
        let name = self.names[self.random.random_range(0..self.names.len())].clone();
        let kind = if self.random.random_bool(0.4) {
            Kind::Write
        } else {
            Kind::Read
        };
        let url = format!("http://{}/api/v1/devices/{name}/twin", self.nodes[node]);
        let write = match kind {
            Kind::Write => self.next_write.fetch_add(1, Ordering::Relaxed),
            Kind::Read => 0,
        };
        let request = match kind {
            Kind::Write => http
                .patch(url)
                .json(&serde_json::json!({ "desired": { "write": write } })),
            Kind::Read => http.get(url),
        };
        let began = self.start.elapsed();
        let answer = ask(request.bearer_auth(&self.token)).await;
        let ended = self.start.elapsed();
        let op = |ended, version, write| Op {
            kind,
            node,
            began,
            ended,
            version,
            write,
        };
        let (op, failure) = match answer {
            Answer::Yes(twin) => {
                let read = twin
                    .desired
                    .get("write")
                    .and_then(serde_json::Value::as_u64)
                    .unwrap_or(0);
                let of = if kind == Kind::Write { write } else { read };
                (Some(op(Some(ended), twin.version, of)), None)
            }
            Answer::Unknown(why) => ((kind == Kind::Write).then(|| op(None, 0, write)), Some(why)),
            Answer::No(why) => (None, Some(why)),
        };
        self.history.devices.entry(name.clone()).or_default().extend(op);
        if let Some(why) = failure {
            let at = ended.as_millis();
            self.history
                .failures
                .push(format!("{at} ms, {kind:?} of {name} at node {}: {why}", node + 1));
        }
    }
}

async fn ask(request: reqwest::RequestBuilder) -> Answer {
    let answer = match request.send().await {
        Ok(answer) => answer,
        // Nothing was sent if there was no connection.
        Err(error) if error.is_connect() => return Answer::No(error.to_string()),
        Err(error) => return Answer::Unknown(format!("{error:?}")),
    };
    let status = answer.status();
    match status.as_u16() {
        200..=299 => match answer.json().await {
            Ok(twin) => Answer::Yes(twin),
            Err(error) => Answer::Unknown(error.to_string()),
        },
        429 | 503 => Answer::No(status.to_string()),
        // 504 says so itself; anything else was not to be expected and is taken as the worst.
        _ => Answer::Unknown(format!("{status}: {}", answer.text().await.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `w2@10-20=3`: write 2 began at 10, ended at 20, got version 3; `r`: a read returned write 2
    /// as version 3; `w2@10-?`: unknown.
    fn op(text: &str) -> Op {
        let (what, rest) = text.split_once('@').unwrap();
        let (times, version) = rest.split_once('=').unwrap_or((rest, "0"));
        let (began, ended) = times.split_once('-').unwrap();
        let ms = |text: &str| Duration::from_millis(text.parse().unwrap());
        Op {
            kind: if what.starts_with('w') { Kind::Write } else { Kind::Read },
            node: 0,
            began: ms(began),
            ended: (ended != "?").then(|| ms(ended)),
            version: version.parse().unwrap(),
            write: what[1..].parse().unwrap(),
        }
    }

    #[track_caller]
    fn check(history: &str, rules: &str) {
        let ops: Vec<Op> = history.split_whitespace().map(op).collect();
        let found: String = violations(&ops)
            .iter()
            .map(|text| text.chars().next().unwrap())
            .collect();
        assert_eq!(found, rules, "{history}: {:?}", violations(&ops));
    }

    #[test]
    fn what_a_register_may_do_passes() {
        check("w1@0-10=1 r1@20-30=1 w2@40-50=2 r2@60-70=2", "");
        check("w1@0-10=1 w2@20-90=2 r2@30-40=2 r2@45-60=2", ""); // seen before it was answered
        check("w1@0-10=1 w2@20-?  r2@30-40=2", ""); // unknown and done
        check("w1@0-10=1 w2@20-?  r1@30-40=1", ""); // unknown and not (yet) done
        check("w1@0-10=1 w2@20-30=2 r1@15-40=1", ""); // an old version in an overlapping read
        check("r0@0-10=0 w1@20-30=1", "");
    }

    #[test]
    fn planted_faults_are_caught() {
        check("w1@0-10=1 w2@20-30=2 r1@40-50=1", "C"); // a stale read
        check("w1@0-10=1 w2@5-30=1", "A"); // one version for two writes
        check("w1@0-10=5 w2@20-30=4", "C"); // a write that goes back
        check("w1@0-10=1 w2@20-?  r2@30-40=2 r1@50-60=1", "C"); // seen, then lost
        check("w1@50-60=1 r1@0-10=1", "BC"); // read from the future
        check("w1@0-10=1 r7@20-30=2", "B"); // out of thin air
        check("w1@0-10=1 w2@12-15=2 r1@20-30=2", "A"); // the wrong content under a version
    }
}
