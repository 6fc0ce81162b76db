//! A fleet that loads a cluster while a test breaks it, and the judgement afterwards.
//!
//! Half of the devices speak MQTT 5 and give their messages ids, half speak 3.1.1 and have none;
//! both send telemetry (QoS 1) and twin reports. What is judged: nothing acknowledged is lost,
//! each message is stored once, in order, without a gap in seq, and receipts tell the truth.

use std::sync::atomic::AtomicU64;
use std::sync::Arc;
use std::time::Duration;

use chaos::{read_back, Findings, ReadBack, Verdict};
use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Ledger, Load, Progress};

use crate::harness::{eventually, Cluster};

const CONNECT_DEADLINE: Duration = Duration::from_secs(60);
const PROGRESS_DEADLINE: Duration = Duration::from_secs(90);
const DRAIN: Duration = Duration::from_secs(40);
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Below the packet ids a node remembers per device, so that 3.1.1 is stored once as well.
pub const WINDOW: u16 = 16;

/// Who sends how much.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each run on one cluster needs a prefix of its own.
    pub prefix: String,
    pub devices: usize,
    pub load: Load,
    pub payload_bytes: usize,
    pub twin_interval: Option<Duration>,
}

impl Plan {
    /// 48 devices (three per shard of a local cluster), as fast as answers come, four at a time.
    pub fn busy(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            devices: 48,
            load: Load::Closed { window: 4 },
            payload_bytes: 128,
            twin_interval: Some(Duration::from_millis(500)),
        }
    }
}

pub struct Workload {
    fleet: Fleet,
}

impl Workload {
    /// Connects the fleet and lets it publish.
    pub fn start(cluster: &Cluster, plan: Plan) -> Self {
        let devices = plan.devices;
        let fleet = Fleet::start(FleetConfig {
            endpoints: cluster.mqtt(),
            devices,
            device_prefix: plan.prefix,
            load: plan.load,
            timing: Timing {
                twin_interval: plan.twin_interval,
                ..Default::default()
            },
            payload_bytes: plan.payload_bytes,
            message_ids: true,
            shards: cluster.file.shards,
            ..Default::default()
        })
        .expect("the fleet starts");
        assert!(
            fleet.wait_connected(devices, CONNECT_DEADLINE),
            "only {} of {devices} devices connected",
            Progress::read(&fleet.progress.connected)
        );
        fleet.publish();
        Self { fleet }
    }

    pub fn acknowledged(&self) -> u64 {
        Progress::read(&self.fleet.progress.acknowledged)
    }

    /// Waits until the fleet has got `more` acknowledgements from now on.
    #[track_caller]
    pub fn acknowledge(&self, more: u64) {
        self.acknowledge_within(more, PROGRESS_DEADLINE);
    }

    /// As [`Self::acknowledge`], for many.
    #[track_caller]
    pub fn acknowledge_within(&self, more: u64, deadline: Duration) {
        let goal = self.acknowledged() + more;
        eventually("the fleet makes progress", deadline, || {
            let now = self.acknowledged();
            (now >= goal)
                .then_some(())
                .ok_or_else(|| format!("{now} of {goal} acknowledged"))
        });
    }

    /// Waits until each shard that has devices acknowledged something after this call.
    #[track_caller]
    pub fn every_shard_acknowledges(&self) {
        let called = self.fleet.progress.started.elapsed();
        eventually("every shard acknowledges", PROGRESS_DEADLINE, || {
            let now = self.fleet.progress.started.elapsed();
            self.fleet.progress.reset_gaps();
            // With the gaps reset, what is left is the present silence.
            let silent: Vec<usize> = self
                .fleet
                .progress
                .shard_gaps()
                .into_iter()
                .enumerate()
                .filter(|(_, gap)| gap.is_some_and(|gap| gap > now.saturating_sub(called)))
                .map(|(shard, _)| shard)
                .collect();
            silent
                .is_empty()
                .then_some(())
                .ok_or_else(|| format!("shards {silent:?} are silent"))
        });
    }

    /// Shards that have devices of this fleet which were acknowledged at least once.
    pub fn shards(&self) -> Vec<usize> {
        let gaps = self.fleet.progress.shard_gaps().into_iter().enumerate();
        gaps.filter(|(_, gap)| gap.is_some()).map(|(shard, _)| shard).collect()
    }

    /// Devices that were told never to come back.
    pub fn final_refusals(&self) -> u64 {
        Progress::read(&self.fleet.progress.final_refusals)
    }

    /// Ends the fleet after its outstanding messages were answered, and returns what it saw.
    pub fn finish(self) -> Arc<Ledger> {
        Arc::new(self.fleet.finish(DRAIN).expect("the fleet's record is complete").ledger)
    }

    /// Ends the fleet at once: what is outstanding stays unknown.
    pub fn abandon(self) -> Arc<Ledger> {
        Arc::new(
            self.fleet
                .finish(Duration::ZERO)
                .expect("the fleet's record is complete")
                .ledger,
        )
    }

    /// Ends the fleet and holds the product to its promises.
    #[track_caller]
    pub fn finish_and_judge(self, cluster: &Cluster) -> Findings {
        judge(cluster, self.finish())
    }
}

/// Reads everything back and fails the test unless every fact holds.
#[track_caller]
pub fn judge(cluster: &Cluster, ledger: Arc<Ledger>) -> Findings {
    let findings = findings(cluster, ledger);
    let verdict = Verdict::of(&findings);
    assert!(matches!(verdict, Verdict::Pass), "{verdict:#?}\n{findings:#?}");
    println!(
        "judged: {} messages and {} reports acknowledged, {} stored, {} unknown were stored",
        findings.acknowledged, findings.twin_acknowledged, findings.stored, findings.unknown_stored
    );
    findings
}

/// Reads everything back and says what holds, whatever it is.
pub fn findings(cluster: &Cluster, ledger: Arc<Ledger>) -> Findings {
    let from = ReadBack {
        nodes: cluster.http(),
        token: cluster.file.token.clone(),
        request_deadline: READ_DEADLINE,
    };
    let read = read_back(from, ledger, Arc::new(AtomicU64::new(0)));
    cluster.runtime().block_on(read).expect("everything can be read back")
}
