//! What this node does the moment it meets damage: writes it down, then begins anew.
//!
//! A process that has met damaged bytes is not repaired while it runs. The note beside the data
//! says what the next start must do; the start is the only place that does it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use actors::time::Clock;
use tokio::sync::watch;

use crate::storage::damage::{Damage, Found};
use crate::storage::watched::OnDamage;

pub struct Alarm {
    pub dir: PathBuf,
    pub clock: Arc<dyn Clock>,
    /// Whether other nodes may hold what this one loses. Alone in the world, a node just ends; one
    /// that was alone when it started may have peers by now.
    pub has_peers: Box<dyn Fn() -> bool + Send + Sync>,
    /// Set once: why the process must begin anew.
    pub again: watch::Sender<Option<String>>,
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
}

impl Alarm {
    /// Applied state is damaged: it can be had again from the others.
    pub fn on_state_damage(self: &Arc<Self>) -> OnDamage {
        let alarm = self.clone();
        Arc::new(move |error: &io::Error| {
            let found = Found::new(error, alarm.clock.now());
            alarm.raise("state", error.to_string(), |damage| damage.state = Some(found));
        })
    }

    /// Votes or entries are damaged: what this replica promised is in doubt.
    pub fn on_log_damage(self: &Arc<Self>) -> OnDamage {
        let alarm = self.clone();
        Arc::new(move |error: &io::Error| alarm.quarantine("log", error.to_string()))
    }

    /// Nothing in this directory may vote again.
    pub fn quarantine(&self, what: &'static str, reason: String) {
        let found = Found::new(&reason, self.clock.now());
        self.raise(what, reason, |damage| damage.quarantined = Some(found));
    }

    fn raise(&self, what: &'static str, reason: String, note: impl FnOnce(&mut Damage)) {
        if !(self.has_peers)() {
            return (self.fatal)(format!("{what} is damaged: {reason}"));
        }
        self.again.send_if_modified(|again| {
            if again.is_some() {
                return false;
            }
            tracing::error!(what, %reason, "damage found");
            match self.write(note) {
                Ok(()) => *again = Some(format!("{what} is damaged: {reason}")),
                Err(error) => {
                    (self.fatal)(format!(
                        "{what} is damaged ({reason}), and that cannot be written down: {error}"
                    ));
                    return false;
                }
            }
            true
        });
    }

    fn write(&self, note: impl FnOnce(&mut Damage)) -> io::Result<()> {
        let mut damage = Damage::read(&self.dir, self.clock.now())?;
        note(&mut damage);
        damage.write(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use actors::time::Timestamp;

    use super::*;

    struct Still;
    impl Clock for Still {
        fn now(&self) -> Timestamp {
            Timestamp(5)
        }
        fn monotonic_ms(&self) -> u64 {
            5
        }
    }

    fn alarm(dir: &std::path::Path, has_peers: bool) -> (Arc<Alarm>, Arc<std::sync::Mutex<Vec<String>>>) {
        let ended = Arc::<std::sync::Mutex<Vec<String>>>::default();
        let heard = ended.clone();
        let alarm = Alarm {
            dir: dir.to_owned(),
            clock: Arc::new(Still),
            has_peers: Box::new(move || has_peers),
            again: watch::channel(None).0,
            fatal: Arc::new(move |reason| heard.lock().unwrap().push(reason)),
        };
        (Arc::new(alarm), ended)
    }

    fn broken() -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, "a block")
    }

    #[test]
    fn damage_is_written_down_before_the_process_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (alarm, ended) = alarm(dir.path(), true);
        let mut again = alarm.again.subscribe();
        (alarm.on_state_damage())(&broken());
        (alarm.on_state_damage())(&broken());
        assert!(again.borrow_and_update().is_some());
        let noted = Damage::read(dir.path(), Timestamp(5)).unwrap();
        assert!(noted.state.is_some() && noted.quarantined.is_none());
        assert!(ended.lock().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_log_means_quarantine() {
        let dir = tempfile::tempdir().unwrap();
        let (alarm, _) = alarm(dir.path(), true);
        (alarm.on_log_damage())(&broken());
        assert!(Damage::read(dir.path(), Timestamp(5)).unwrap().quarantined.is_some());
    }

    #[test]
    fn a_node_without_peers_ends_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (alarm, ended) = alarm(dir.path(), false);
        (alarm.on_state_damage())(&broken());
        assert_eq!(ended.lock().unwrap().len(), 1);
        assert_eq!(Damage::read(dir.path(), Timestamp(5)).unwrap(), Damage::default());
    }
}
