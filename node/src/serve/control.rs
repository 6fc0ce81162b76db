//! What an operator may change in a running node, and ask it about itself.
//!
//! A configuration is taken over as a whole or not at all: a file with one mistake changes
//! nothing. Parts register what they take over; keys nobody can take over wait for a restart and
//! are named until then.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Instant, SystemTime};

use cluster::Cluster;
use tracing::{info, warn};

use crate::config::settings::{self, is_reloadable};
use crate::config::{self, Change, ConfigError, NodeConfig, Setting};
use crate::observe::level::LogLevel;
use crate::observe::logs::LogHandle;
use crate::observe::metrics::names;

/// Takes the reloadable keys it cares for from a new configuration.
type Taker = Box<dyn Fn(&NodeConfig) + Send + Sync>;

pub struct Control {
    pub log: LogLevel,
    pub started: SystemTime,
    pub since: Instant,
    /// Set once the cluster part runs.
    pub cluster: OnceLock<Cluster>,
    file: PathBuf,
    /// What the process started with: in force for every key that cannot be reloaded.
    start: NodeConfig,
    reloadable: Mutex<InForce>,
}

struct InForce {
    config: NodeConfig,
    takers: Vec<Taker>,
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// In force now.
    pub changed: Vec<Change>,
    /// In the file, and in force after a restart only.
    pub restart: Vec<Change>,
}

impl Control {
    pub fn new(config: &NodeConfig, log: LogHandle) -> Arc<Self> {
        metrics::gauge!(names::CONFIG_RESTART_KEYS).set(0.0);
        metrics::counter!(names::CONFIG_RELOADS, "result" => "taken").increment(0);
        metrics::counter!(names::CONFIG_RELOADS, "result" => "refused").increment(0);
        Arc::new(Self {
            log: LogLevel::new(log, &config.log.filter),
            started: SystemTime::now(),
            since: Instant::now(),
            cluster: OnceLock::new(),
            file: config.file.clone(),
            start: config.clone(),
            reloadable: Mutex::new(InForce {
                config: config.clone(),
                takers: Vec::new(),
            }),
        })
    }

    /// The configuration that the process started with.
    pub fn start(&self) -> &NodeConfig {
        &self.start
    }

    /// Registers a part. It is called at once, so that a reload during the start is not lost on it.
    pub fn on_reload(&self, taker: impl Fn(&NodeConfig) + Send + Sync + 'static) {
        let mut in_force = self.in_force();
        taker(&in_force.config);
        in_force.takers.push(Box::new(taker));
    }

    /// Reads the file and the environment again and takes over what can change while the node
    /// runs. Logs and counts what came of it.
    ///
    /// # Errors
    /// Everything that is wrong with the file; nothing has changed then.
    pub fn reload(&self) -> Result<Reloaded, ConfigError> {
        let result = config::load(&self.file).and_then(|config| self.take(config));
        match &result {
            Ok(reloaded) => {
                metrics::counter!(names::CONFIG_RELOADS, "result" => "taken").increment(1);
                metrics::gauge!(names::CONFIG_RESTART_KEYS).set(reloaded.restart.len() as f64);
                tell(reloaded);
            }
            Err(error) => {
                metrics::counter!(names::CONFIG_RELOADS, "result" => "refused").increment(1);
                for line in error.to_string().lines() {
                    warn!(problem = line, "the configuration is refused");
                }
                warn!(file = %self.file.display(), "everything stays as it was; mend the file and reload again");
            }
        }
        result
    }

    fn take(&self, new: NodeConfig) -> Result<Reloaded, ConfigError> {
        let mut in_force = self.in_force();
        let changed = settings::changes(&in_force.config, &new);
        let restart = settings::changes(&self.start, &new);
        // A filter was checked when it was read.
        let _ = self.log.configure(&new.log.filter);
        in_force.takers.iter().for_each(|taker| taker(&new));
        in_force.config = new;
        Ok(Reloaded {
            changed: changed.into_iter().filter(|change| change.reloadable).collect(),
            restart: restart.into_iter().filter(|change| !change.reloadable).collect(),
        })
    }

    /// Every key with the value in force.
    pub fn settings(&self) -> Vec<Setting> {
        let in_force = self.in_force();
        let pick = |setting: &Setting| {
            let newer = in_force.config.settings.iter().find(|newer| newer.key == setting.key);
            newer.filter(|_| is_reloadable(&setting.key)).unwrap_or(setting).clone()
        };
        self.start.settings.iter().map(pick).collect()
    }

    fn in_force(&self) -> std::sync::MutexGuard<'_, InForce> {
        self.reloadable.lock().expect("no holder of this lock panics")
    }
}

fn tell(reloaded: &Reloaded) {
    for Change { key, from, to, .. } in &reloaded.changed {
        info!(key, from, to, "configuration changed");
    }
    for Change { key, from, to, .. } in &reloaded.restart {
        warn!(
            key,
            from, to, "this change needs a restart; the former value stays in force"
        );
    }
    info!(
        changed = reloaded.changed.len(),
        restart = reloaded.restart.len(),
        "configuration read again"
    );
}
