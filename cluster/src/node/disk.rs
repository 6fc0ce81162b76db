//! Opens a node's directory, and decides what may be done with what is found there.
//!
//! Damaged applied state is set aside: it can be had again from peers. Damage of anything that this
//! node has promised by (its log, its identity) means quarantine: the directory stays as it is, and
//! the process runs without stores, only to say so.

use std::path::Path;
use std::sync::Arc;

use actors::id::ShardId;
use actors::time::Clock;
use rand::rngs::StdRng;
use rand::Rng;

use super::alarm::Alarm;
use crate::api::StartError;
use crate::config::ClusterConfig;
use crate::raft;
use crate::storage::damage::{self, Damage, Found};
use crate::storage::fault::DiskFaults;
use crate::storage::identity::{DirLock, Fresh, Identity, IdentityError, Wanted};
use crate::storage::ledger::FileLedger;
use crate::storage::memory::{MemoryLog, MemoryState};
use crate::storage::rocks::{BlockCache, LogOptions, RocksLog, RocksState, StateOptions};
use crate::storage::watched::{WatchedLog, WatchedState};
use crate::storage::{reached, written, LogStore, StateStore, StorageOpenError};

pub struct Disk {
    pub lock: DirLock,
    pub stores: Stores,
    /// Why nothing in the directory may be used, if so; the stores are then empty ones in memory.
    pub quarantine: Option<String>,
}

pub struct Stores {
    /// 0 when it cannot be known.
    pub node_uuid: u128,
    pub starts: u64,
    /// The directory was empty.
    pub fresh: bool,
    pub log: Arc<dyn LogStore>,
    pub state: Arc<dyn StateStore>,
    pub ledger: Arc<FileLedger>,
    pub alarm: Arc<Alarm>,
    /// Of damage that is repaired.
    pub aftermath: Option<String>,
}

/// What the pieces are opened with.
pub struct Opening<'a> {
    pub config: &'a ClusterConfig,
    pub clock: Arc<dyn Clock>,
    pub rng: &'a mut StdRng,
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub faults: Option<Arc<dyn DiskFaults>>,
}

/// Why the directory cannot be used.
enum Refused {
    /// The process must not run on it: a mistake of configuration, a failed disk.
    Ends(StartError),
    /// It was ours, and something of it is lost.
    Lost(String),
}

impl From<StartError> for Refused {
    fn from(error: StartError) -> Self {
        Self::Ends(error)
    }
}

fn disk_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Disk { what, source }
}

fn identity_error(error: IdentityError) -> Refused {
    match error {
        IdentityError::Disk { what, path, source } => Refused::Ends(StartError::Disk {
            what: format!("cannot {what} {}", path.display()),
            source,
        }),
        IdentityError::Corrupt { .. } => Refused::Lost(error.to_string()),
        // Stores without an identity were somebody's, most likely ours.
        IdentityError::Unowned { ref entry, .. } if is_ours(entry) => Refused::Lost(error.to_string()),
        other => Refused::Ends(StartError::Identity(other.to_string())),
    }
}

fn is_ours(entry: &str) -> bool {
    matches!(
        entry,
        "log" | "state" | "peers" | "reserve" | reached::FILE | written::FILE | damage::FILE
    ) || entry.contains(".damaged-")
        || entry.ends_with(".scrub")
}

fn open_error(dir: &Path, error: StorageOpenError) -> StartError {
    match error {
        StorageOpenError::Corrupt { reason, .. } => StartError::Corrupt {
            dir: dir.display().to_string(),
            reason,
        },
        StorageOpenError::Disk { source, .. } => StartError::Disk {
            what: format!("opening {}", dir.display()),
            source,
        },
    }
}

/// # Errors
/// The process must end; nothing was lost by trying.
pub fn open(mut opening: Opening<'_>) -> Result<Disk, StartError> {
    let dir = &opening.config.data_dir.clone();
    let lock = DirLock::acquire(dir).map_err(|error| match identity_error(error) {
        Refused::Ends(error) => error,
        Refused::Lost(reason) => StartError::Identity(reason),
    })?;
    let now = opening.clock.now();
    let mut damage = Damage::read(dir, now).map_err(disk_error(format!("cannot read {}", dir.display())))?;
    let opened = match &damage.quarantined {
        Some(found) => Err(Refused::Lost(found.reason.clone())),
        None => open_stores(&mut opening, &mut damage),
    };
    let reason = match opened {
        Ok(stores) => {
            let quarantine = None;
            return Ok(Disk {
                lock,
                stores,
                quarantine,
            });
        }
        Err(Refused::Ends(error)) => return Err(error),
        Err(Refused::Lost(reason)) => reason,
    };
    if !has_peers(&opening) {
        // Nobody else could serve meanwhile, or send what is lost.
        let dir = dir.display().to_string();
        return Err(StartError::Corrupt { dir, reason });
    }
    if damage.quarantined.is_none() {
        damage.quarantined = Some(Found::new(&reason, now));
        let written = damage.write(dir);
        written.map_err(disk_error("cannot write down that data is damaged"))?;
    }
    metrics::counter!("holdfast_damage_found_total", "store" => "promises").increment(1);
    tracing::error!(%reason, "this node is quarantined: it takes no part until it is repaired");
    Ok(Disk {
        lock,
        stores: no_stores(&opening),
        quarantine: Some(reason),
    })
}

fn open_stores(opening: &mut Opening<'_>, damage: &mut Damage) -> Result<Stores, Refused> {
    let config = opening.config;
    let dir = &config.data_dir;
    let wanted = Wanted {
        cluster_id: config.cluster_id.clone(),
        node_id: config.node_id,
        shards: config.shards,
        fresh_uuid: config.fresh_uuid.unwrap_or_else(|| opening.rng.random()),
        now: opening.clock.now(),
    };
    let (mut identity, Fresh(fresh)) = Identity::open_or_create(dir, &wanted).map_err(identity_error)?;
    identity.count_start(dir).map_err(identity_error)?;
    let ledger = open_ledger(dir)?;
    let ledger = Arc::new(ledger);
    let (alone, met) = (config.members.len() == 1, ledger.clone());
    let alarm = alarm(opening, move || !alone || !met.is_empty());
    let cache = BlockCache::new(config.block_cache_bytes);
    let log = open_log(opening, &cache, fresh)?;
    let state = open_state(opening, &cache, fresh, damage, (alarm.has_peers)())?;
    identity.mark_initialised(dir).map_err(identity_error)?;
    Ok(Stores {
        node_uuid: identity.node_uuid,
        starts: identity.starts,
        fresh,
        log: Arc::new(WatchedLog {
            store: Arc::new(log),
            on_damage: alarm.on_log_damage(),
        }),
        state: Arc::new(WatchedState {
            store: Arc::new(state),
            on_damage: alarm.on_state_damage(),
        }),
        ledger,
        alarm,
        aftermath: damage.aftermath(),
    })
}

/// A ledger that cannot be read only ever kept others out: a new one is begun, and learns from the
/// catalog.
fn open_ledger(dir: &Path) -> Result<FileLedger, Refused> {
    match FileLedger::open(dir) {
        Ok(ledger) => Ok(ledger),
        Err(StorageOpenError::Corrupt { reason, .. }) => {
            let aside = damage::move_aside(dir, "peers").map_err(disk_error("cannot set the ledger of peers aside"))?;
            tracing::error!(%reason, ?aside, "the ledger of peers is damaged, beginning a new one");
            metrics::counter!("holdfast_damage_found_total", "store" => "peers").increment(1);
            FileLedger::open(dir).map_err(|e| open_error(dir, e).into())
        }
        Err(error) => Err(open_error(dir, error).into()),
    }
}

fn open_log(opening: &Opening<'_>, cache: &BlockCache, fresh: bool) -> Result<RocksLog, Refused> {
    let config = opening.config;
    let dir = config.data_dir.join("log");
    let options = LogOptions {
        must_exist: !fresh,
        skip_fsync: config.unsafe_skip_log_fsync,
        skip_vote_fsync: config.unsafe_skip_vote_fsync,
        faults: opening.faults.clone(),
        ..LogOptions::new(cache.clone())
    };
    let ends = opening.fatal.clone();
    let log = RocksLog::open(&dir, options, Box::new(move |reason| ends(reason))).map_err(|e| lost(&dir, e))?;
    match missing(&config.data_dir, config.shards, &log)
        .map_err(disk_error("cannot compare the log with what it had"))?
    {
        Some(reason) => Err(Refused::Lost(reason)),
        None => Ok(log),
    }
}

/// What of the log is known to have been there and is not.
///
/// # Errors
/// Something cannot be read.
pub fn missing(data_dir: &Path, shards: u16, log: &dyn LogStore) -> std::io::Result<Option<String>> {
    if let Some(reason) = written::lost(data_dir, log.durable_changes())? {
        return Ok(Some(reason));
    }
    if let Some(reason) = reached::lost(data_dir, |shard| raft::log::reached(log, shard))? {
        return Ok(Some(reason));
    }
    for shard in (0..shards).map(ShardId).chain([ShardId::CATALOG]) {
        if let Some(reason) = raft::log::lost_beginning(log, shard)? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

fn open_state(
    opening: &Opening<'_>,
    cache: &BlockCache,
    fresh: bool,
    damage: &mut Damage,
    has_peers: bool,
) -> Result<RocksState, Refused> {
    let data_dir = &opening.config.data_dir;
    let dir = data_dir.join("state");
    let options = |must_exist| StateOptions {
        must_exist,
        faults: opening.faults.clone(),
        ..StateOptions::new(cache.clone())
    };
    let found = match damage.state.clone() {
        Some(found) => found,
        None => match RocksState::open(&dir, options(!fresh)) {
            Ok(state) => return Ok(state),
            Err(StorageOpenError::Corrupt { reason, .. }) if has_peers => Found::new(reason, opening.clock.now()),
            Err(error) => return Err(open_error(&dir, error).into()),
        },
    };
    metrics::counter!("holdfast_damage_found_total", "store" => "state").increment(1);
    let aside = damage.set_state_aside(data_dir, &found, opening.clock.now());
    let aside = aside.map_err(disk_error("cannot set the damaged state aside"))?;
    if let Some(hopeless) = &damage.quarantined {
        return Err(Refused::Lost(hopeless.reason.clone()));
    }
    tracing::error!(reason = %found.reason, ?aside, "state is damaged and set aside; it is rebuilt from other replicas");
    RocksState::open(&dir, options(false)).map_err(|e| open_error(&dir, e).into())
}

fn lost(dir: &Path, error: StorageOpenError) -> Refused {
    match error {
        StorageOpenError::Corrupt { .. } => Refused::Lost(error.to_string()),
        error => Refused::Ends(open_error(dir, error)),
    }
}

fn has_peers(opening: &Opening<'_>) -> bool {
    let ledger = FileLedger::open(&opening.config.data_dir);
    opening.config.members.len() != 1 || !matches!(ledger, Ok(ledger) if ledger.is_empty())
}

fn alarm(opening: &Opening<'_>, has_peers: impl Fn() -> bool + Send + Sync + 'static) -> Arc<Alarm> {
    Arc::new(Alarm {
        dir: opening.config.data_dir.clone(),
        clock: opening.clock.clone(),
        has_peers: Box::new(has_peers),
        again: tokio::sync::watch::channel(None).0,
        fatal: opening.fatal.clone(),
    })
}

/// What a quarantined process runs on, so that it can tell of itself.
fn no_stores(opening: &Opening<'_>) -> Stores {
    Stores {
        node_uuid: 0,
        starts: 0,
        fresh: false,
        log: Arc::new(MemoryLog::new()),
        state: Arc::new(MemoryState::new()),
        ledger: Arc::new(FileLedger::forgetful()),
        alarm: alarm(opening, || true),
        aftermath: None,
    }
}
