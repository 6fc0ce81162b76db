//! The injector's side: starts a warden, gives orders, hears what came of them.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::{Ask, Healer, Order, Tell};
use crate::deed::Outcome;
use crate::process::Process;
use crate::site::Site;

/// How long a warden may take to say that it is there.
const READY: Duration = Duration::from_secs(20);
/// How long a fault may take to be injected; damage to files takes two starts of a node.
const INJECT: Duration = Duration::from_secs(240);
/// How long undoing may take; a node that has to be replaced is given its state by others.
const HEAL: Duration = Duration::from_secs(600);

#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    #[error("the warden cannot be started: {0}")]
    Start(io::Error),
    #[error("the warden is gone: {0}")]
    Gone(String),
    #[error("the warden did not {what} within {waited:?}")]
    Late { what: &'static str, waited: Duration },
}

#[derive(Default)]
struct Heard {
    journal: Option<PathBuf>,
    proxies: Option<Vec<(u64, String)>>,
    outcomes: BTreeMap<String, Outcome>,
    healed: VecDeque<(String, Healer, Option<String>)>,
    all_healed: u32,
    failed: Option<String>,
    gone: bool,
}

/// A warden at work. Dropping it closes the pipe, and the warden undoes everything.
pub struct Handle {
    child: Child,
    input: Option<ChildStdin>,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

impl Handle {
    /// Starts `program` with `arguments`, which has to call [`super::serve`]. Its log goes to `log`.
    ///
    /// # Errors
    /// It cannot be started, or does not answer.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        site: &Site,
        state: &Path,
        log: &Path,
    ) -> Result<Self, HandleError> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(HandleError::Start)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(HandleError::Start)?;
        let heard: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        if let Some(output) = child.stdout.take() {
            let heard = heard.clone();
            std::thread::spawn(move || listen(BufReader::new(output), &heard));
        }
        let input = child.stdin.take();
        let mut handle = Self { child, input, heard };
        let me = Process::of(std::process::id()).map_err(|error| HandleError::Start(io::Error::other(error)))?;
        handle.ask(&Ask::Begin {
            site: Box::new(site.clone()),
            injector: (me.pid, me.started_ticks()),
            state: state.to_owned(),
        })?;
        handle.wait("begin", READY, |heard| heard.journal.clone())?;
        Ok(handle)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// # Errors
    /// The warden is gone.
    pub fn site(&mut self, site: &Site) -> Result<(), HandleError> {
        self.ask(&Ask::Site(Box::new(site.clone())))
    }

    /// A proxy in front of each node; node and address.
    ///
    /// # Errors
    /// The warden is gone or late.
    pub fn proxies(&mut self) -> Result<Vec<(u64, String)>, HandleError> {
        self.ask(&Ask::Proxies)?;
        self.wait("open its proxies", READY, |heard| heard.proxies.clone())
    }

    /// Gives the order; [`Handle::outcome`] tells what came of it.
    ///
    /// # Errors
    /// The warden is gone.
    pub fn inject(&mut self, order: &Order) -> Result<(), HandleError> {
        self.ask(&Ask::Inject(order.clone()))
    }

    /// What came of an injection, if that is known yet.
    pub fn outcome(&self, fault: &str) -> Option<Outcome> {
        self.lock().outcomes.get(fault).cloned()
    }

    /// Waits for it.
    ///
    /// # Errors
    /// The warden is gone or late.
    pub fn await_outcome(&self, fault: &str) -> Result<Outcome, HandleError> {
        self.wait("inject", INJECT, |heard| heard.outcomes.get(fault).cloned())
    }

    /// # Errors
    /// The warden is gone.
    pub fn heal(&mut self, fault: &str) -> Result<(), HandleError> {
        self.ask(&Ask::Heal {
            fault: fault.to_owned(),
        })
    }

    /// Faults that were healed since the last call, by whom, and what could not be undone.
    pub fn healed(&self) -> Vec<(String, Healer, Option<String>)> {
        self.lock().healed.drain(..).collect()
    }

    /// Heals everything that does not stay, and waits for it.
    ///
    /// # Errors
    /// The warden is gone or late: then its journal says what is left.
    pub fn heal_all(&mut self) -> Result<(), HandleError> {
        let before = self.lock().all_healed;
        self.ask(&Ask::HealAll)?;
        self.wait("heal everything", HEAL, |heard| {
            (heard.all_healed > before).then_some(())
        })
    }

    /// Heals everything, and waits for the warden's end.
    ///
    /// # Errors
    /// It is late.
    pub fn end(mut self) -> Result<(), HandleError> {
        let _ = self.ask(&Ask::End);
        self.input = None;
        let end = Instant::now() + HEAL;
        while Instant::now() < end {
            if let Ok(Some(_)) = self.child.try_wait() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(HandleError::Late {
            what: "end",
            waited: HEAL,
        })
    }

    fn ask(&mut self, ask: &Ask) -> Result<(), HandleError> {
        let gone = |why: String| HandleError::Gone(why);
        let mut line = serde_json::to_vec(ask).map_err(|error| gone(error.to_string()))?;
        line.push(b'\n');
        let input = self.input.as_mut().ok_or_else(|| gone("it was ended".into()))?;
        input
            .write_all(&line)
            .and_then(|()| input.flush())
            .map_err(|error| gone(error.to_string()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait<T>(
        &self,
        what: &'static str,
        waited: Duration,
        found: impl Fn(&Heard) -> Option<T>,
    ) -> Result<T, HandleError> {
        let end = Instant::now() + waited;
        let mut heard = self.lock();
        loop {
            if let Some(value) = found(&heard) {
                return Ok(value);
            }
            if heard.gone {
                return Err(HandleError::Gone(
                    heard.failed.clone().unwrap_or_else(|| "its log says why".into()),
                ));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(HandleError::Late { what, waited });
            }
            heard = match self.heard.1.wait_timeout(heard, left) {
                Ok((heard, _)) => heard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

fn listen(lines: impl BufRead, shared: &(Mutex<Heard>, Condvar)) {
    let change = |change: &dyn Fn(&mut Heard)| {
        change(&mut shared.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        shared.1.notify_all();
    };
    for line in lines.lines().map_while(Result::ok) {
        let Ok(told) = serde_json::from_str::<Tell>(&line) else {
            continue;
        };
        change(&|heard| match told.clone() {
            Tell::Ready { journal } => heard.journal = Some(journal),
            Tell::Proxies(all) => heard.proxies = Some(all),
            Tell::Outcome { fault, outcome } => drop(heard.outcomes.insert(fault, outcome)),
            Tell::Healed { fault, by, problem } => heard.healed.push_back((fault, by, problem)),
            Tell::AllHealed => heard.all_healed += 1,
            Tell::Failed(why) => heard.failed = Some(why),
        });
    }
    change(&|heard| heard.gone = true);
}
