//! Audits of a few devices while the run goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::api::runtime;
use crate::audit::{sample, Claims, Findings, HttpSource};
use crate::drive::Endpoints;
use crate::payloads::chance::{salt, Chance};
use crate::plan::Plan;

/// A running sampler; dropping it ends it.
pub struct Sampler {
    stop: Arc<AtomicBool>,
    found: Arc<Mutex<Vec<Findings>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sampler {
    /// `None`: the scenario wants no samples.
    ///
    /// # Errors
    /// The thread or its client cannot be made.
    pub fn start(
        plan: &Plan,
        endpoints: &Endpoints,
        history: PathBuf,
        runs: Vec<u32>,
    ) -> std::io::Result<Option<Self>> {
        let audit = plan.loaded.scenario.audit.clone();
        if !audit.enabled || audit.sample_interval.0.is_zero() || endpoints.http.is_empty() {
            return Ok(None);
        }
        let source = HttpSource::new(endpoints, audit.read_deadline.0).map_err(std::io::Error::other)?;
        let stop = Arc::new(AtomicBool::new(false));
        let found = Arc::new(Mutex::new(Vec::new()));
        let (stopped, shared, plan) = (stop.clone(), found.clone(), plan.clone());
        let thread = std::thread::Builder::new().name("sampler".into()).spawn(move || {
            let Ok(runtime) = runtime() else { return };
            let mut chance = Chance::fork(plan.loaded.scenario.seed, &[salt("sampler")]);
            while !wait(audit.sample_interval.0, &stopped) {
                let subjects: Vec<u32> = (0..audit.sample_devices)
                    .map(|_| chance.below(u64::from(plan.roster.subjects())) as u32)
                    .collect();
                let claims = Claims {
                    plan: &plan,
                    history: &history,
                    runs: &runs,
                    sending_ended_us: 0,
                    scratch: history.join("scratch"),
                    read: &AtomicU64::new(0),
                };
                // A cluster that cannot be read just now is asked again next time.
                if let Ok(findings) = runtime.block_on(sample(&claims, &source, &subjects)) {
                    if let Ok(mut shared) = shared.lock() {
                        shared.push(findings);
                    }
                }
            }
        })?;
        Ok(Some(Self {
            stop,
            found,
            thread: Some(thread),
        }))
    }

    /// What was found since the last time.
    pub fn take(&self) -> Vec<Findings> {
        self.found
            .lock()
            .map(|mut found| std::mem::take(&mut *found))
            .unwrap_or_default()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `true`: it shall end.
fn wait(long: Duration, stop: &AtomicBool) -> bool {
    let mut left = long;
    while !left.is_zero() && !stop.load(Ordering::Relaxed) {
        let step = left.min(Duration::from_millis(100));
        std::thread::sleep(step);
        left -= step;
    }
    stop.load(Ordering::Relaxed)
}
