//! Round trips of method calls: HTTP to any node, the look at the shard's leader, the device's
//! connection, and back.
//!
//! The devices answer at once, so that what is measured is the way. One caller tells the latency,
//! several together the throughput; both share the machine with three nodes and the devices.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fleet::{Fleet, FleetSpec, Load};
use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

const DEVICES: usize = 100;
/// Calls that warm up connections and activate the devices.
const WARM_UP: usize = 200;
const CALLERS: usize = 16;
const PREFIX: &str = "method";
const DRAIN: Duration = Duration::from_secs(5);

/// Whom the callers ask.
#[derive(Clone)]
struct Target {
    client: reqwest::Client,
    bases: Arc<Vec<String>>,
    token: String,
    /// Counts calls, so that they go round devices and nodes.
    next: Arc<AtomicU64>,
}

pub fn measure(
    args: &BenchArgs,
    cluster: &LocalCluster,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    note("method round trips");
    let fleet = Fleet::start(&FleetSpec {
        methods: true,
        ..FleetSpec::new(cluster.mqtt(), PREFIX, DEVICES as u32, Load::Idle)
    })?;
    fleet.wait_connected(interrupt)?;
    let target = Target {
        client: cluster.client().clone(),
        bases: Arc::new(cluster.http().iter().map(|http| format!("http://{http}")).collect()),
        token: cluster.file.token.clone(),
        next: Arc::default(),
    };
    let runtime = cluster.runtime();
    for _ in 0..WARM_UP {
        interrupt.check()?;
        // A device's subscription may still be on its way.
        let _ = runtime.block_on(target.call());
    }
    for (callers, what) in [(1, "one caller"), (CALLERS, "16 callers")] {
        let round = runtime.block_on(round(&target, callers, args.time))?;
        interrupt.check()?;
        let name = |figure| format!("method round trip, {what}: {figure}");
        report.add(Who::Holdfast, name("p50"), "ms", &[percentile(&round, 0.50)]);
        report.add(Who::Holdfast, name("p99"), "ms", &[percentile(&round, 0.99)]);
        let rate = round.len() as f64 / args.time.as_secs_f64();
        report.add(Who::Holdfast, name("calls"), "1/s", &[rate]);
    }
    fleet.finish(DRAIN).map(drop)
}

/// Calls one after another from each of `callers`, and returns the sorted times in milliseconds.
async fn round(target: &Target, callers: usize, time: Duration) -> Result<Vec<f64>, HarnessError> {
    let end = Instant::now() + time;
    let caller = || async {
        let mut times = Vec::new();
        while Instant::now() < end {
            let started = Instant::now();
            target.call().await?;
            times.push(started.elapsed().as_secs_f64() * 1_000.0);
        }
        Ok::<_, HarnessError>(times)
    };
    let all = futures::future::try_join_all((0..callers).map(|_| caller())).await?;
    let mut times = all.concat();
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// Of sorted times; not a number when there are none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = ((sorted.len() as f64 * share).ceil() as usize).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

impl Target {
    async fn call(&self) -> Result<(), HarnessError> {
        let count = self.next.fetch_add(1, Ordering::Relaxed) as usize;
        let (base, device) = (&self.bases[count % self.bases.len()], count % DEVICES + 1);
        let url = format!("{base}/api/v1/devices/{PREFIX}-{device}/methods/echo");
        let call = self
            .client
            .post(url)
            .bearer_auth(&self.token)
            .json(&serde_json::json!({ "payload": { "n": count } }));
        let failed = |e: reqwest::Error| HarnessError::new("a method call", e);
        let answer: serde_json::Value = call
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
            .map_err(failed)?
            .json()
            .await
            .map_err(failed)?;
        match answer["payload"]["n"] == count {
            true => Ok(()),
            false => Err(HarnessError::Failed(format!("call {count} was answered with {answer}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&times, 0.50), percentile(&times, 0.99)), (50.0, 99.0));
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
