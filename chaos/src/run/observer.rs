//! Asks every node, a few times a second, who leads what, and notes whatever changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use simulator::run::directory::Lines;

use super::stage::Stage;
use crate::check::Sighting;
use crate::drill::View;
use crate::site::{Http, Site, SiteError};

/// How exact detection and election are measured.
pub const EVERY: Duration = Duration::from_millis(200);
/// A node that is paused takes a connection and answers nothing.
const PATIENCE: Duration = Duration::from_millis(1_000);
/// Sightings remembered; far above what a drill sees.
const SIGHTINGS_MAX: usize = 2_000_000;

type Seen = Arc<Mutex<Vec<Sighting>>>;

/// Observers at work, one per node; dropping it ends them.
pub struct Observer {
    stop: Arc<AtomicBool>,
    seen: Seen,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Observer {
    /// # Errors
    /// The file or a thread cannot be made.
    pub fn start(site: &Site, stage: &Stage, file: &Path) -> Result<Self, SiteError> {
        let lines = Lines::append(file).map_err(|error| SiteError::file(file, error))?;
        let lines = Arc::new(Mutex::new(lines));
        let (stop, seen): (Arc<AtomicBool>, Seen) = Default::default();
        let mut threads = Vec::new();
        for node in &site.nodes {
            let http = Http::new(&site.token)?;
            let (stop, seen, lines, stage, node) =
                (stop.clone(), seen.clone(), lines.clone(), stage.clone(), node.clone());
            threads.push(std::thread::spawn(move || {
                let mut last: BTreeMap<u16, (Option<u64>, u64)> = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    if let (Some(at_us), Some(view)) = (stage.now_us(), ask(&http, &node.http)) {
                        note(node.id, at_us, &view, &mut last, &seen, &lines);
                    }
                    std::thread::sleep(EVERY);
                }
            }));
        }
        Ok(Self { stop, seen, threads })
    }

    /// Ends, and tells what was seen.
    pub fn finish(mut self) -> Vec<Sighting> {
        self.end();
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.end();
    }
}

fn ask(http: &Http, node: &str) -> Option<View> {
    let value = http.call("GET", node, "/api/v1/cluster", None, PATIENCE).ok()?;
    serde_json::from_value(value).ok()
}

fn note(
    node: u64,
    at_us: u64,
    view: &View,
    last: &mut BTreeMap<u16, (Option<u64>, u64)>,
    seen: &Seen,
    lines: &Mutex<Lines>,
) {
    let mut changed = Vec::new();
    for shard in &view.shards {
        let now = (shard.leader, shard.term);
        if last.insert(shard.id, now) != Some(now) {
            changed.push(Sighting {
                at_us,
                node,
                shard: shard.id,
                leader: shard.leader,
                term: shard.term,
            });
        }
    }
    let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
    for sighting in &changed {
        let _ = lines.put(sighting);
    }
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.len() < SIGHTINGS_MAX {
        seen.extend(changed);
    }
}
