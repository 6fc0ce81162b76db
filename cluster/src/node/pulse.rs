//! Whether this process gets its processor time. One that does not hears its leaders late, and
//! that is no evidence against them: it stands for no election as long as it is still connected to
//! the leader in question.
//!
//! Heartbeats share the arbiters with everything else. Under more load than the machine carries,
//! each of their hops waits for a round of other work; elections would come on top of it, and make
//! the load of one moment the outage of the next. A leader whose process has died closes its
//! connections, and one that is silent has them closed after three seconds, so patience ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use actors::time::Clock;

use super::peers::Peers;

const BEAT: Duration = Duration::from_millis(50);
/// How much later than meant a beat may come.
const LATE_MS: u64 = 100;
/// How long one late beat is remembered.
const PATIENCE_MS: u64 = 1_000;

/// Shared by the beats of all arbiters.
#[derive(Default)]
pub struct Pulse {
    patient_until_ms: AtomicU64,
}

impl Pulse {
    /// A beat came this much late.
    fn felt(&self, late_ms: u64, now_ms: u64) {
        if late_ms > LATE_MS {
            self.patient_until_ms.fetch_max(now_ms + PATIENCE_MS, Ordering::Relaxed);
        }
    }

    fn is_patient(&self, now_ms: u64) -> bool {
        now_ms < self.patient_until_ms.load(Ordering::Relaxed)
    }

    /// Beats for as long as the arbiter lives.
    pub async fn beat(self: Arc<Self>, peers: Arc<Peers>, clock: Arc<dyn Clock>) {
        let beat_ms = u64::try_from(BEAT.as_millis()).expect("a short time");
        let late = metrics::histogram!("holdfast_arbiter_late_seconds");
        loop {
            let before = clock.monotonic_ms();
            tokio::time::sleep(BEAT).await;
            let now = clock.monotonic_ms();
            let late_ms = now.saturating_sub(before + beat_ms);
            late.record(late_ms as f64 / 1_000.0);
            self.felt(late_ms, now);
            let patient = self.is_patient(now);
            for group in peers.groups() {
                let leader = group.role().leader.filter(|leader| *leader != peers.me.node);
                group.stand_for_election(!(patient && leader.is_some_and(|leader| peers.is_connected(leader))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One late beat makes patient for a while, not for ever; punctual ones do not.
    #[test]
    fn patience_follows_lateness() {
        let pulse = Pulse::default();
        pulse.felt(LATE_MS, 1_000);
        assert!(!pulse.is_patient(1_000));
        pulse.felt(LATE_MS + 1, 2_000);
        assert!(pulse.is_patient(2_000) && pulse.is_patient(2_999));
        assert!(!pulse.is_patient(2_000 + PATIENCE_MS));
    }
}
