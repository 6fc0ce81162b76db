//! The warden's own process: takes orders from standard input, tells on standard output, and
//! undoes everything when nobody is there any more.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::journal::Journal;
use super::keeper::keep;
use super::{Ask, Healer, Order, Tell, FAULTS_MAX};
use crate::deed::{Context, Outcome};
use crate::process::Process;
use crate::proxy::Proxies;
use crate::site::Site;

/// How often it is looked whether the injector lives, beside its end of the pipe.
const LOOK_EVERY: Duration = Duration::from_millis(200);

struct Fault {
    heal: Sender<Healer>,
    thread: JoinHandle<()>,
    stays: bool,
}

struct Warden {
    context: Arc<Context>,
    proxies: Vec<(u64, String)>,
    journal: Arc<Mutex<Journal>>,
    faults: BTreeMap<String, Fault>,
}

/// Serves one injector until it wants no more or is gone, or `ended` says that this process shall
/// end. Everything is undone when this returns, or told to be in the journal.
///
/// # Errors
/// It could not begin: nothing was done.
pub fn serve(input: impl BufRead + Send + 'static, ended: &AtomicBool) -> io::Result<()> {
    let asks = follow(input);
    let first = asks.recv().map_err(io::Error::other)?;
    let Ask::Begin { site, injector, state } = first else {
        return Err(io::Error::other("the first line does not begin"));
    };
    let injector = Process::known(injector.0, injector.1);
    let mut warden = match Warden::begin(*site, &state) {
        Ok(warden) => warden,
        Err(error) => {
            tell(Tell::Failed(error.to_string()));
            return Err(error);
        }
    };
    loop {
        match asks.recv_timeout(LOOK_EVERY) {
            Ok(Ask::End) => break warden.end(Healer::Asked),
            Ok(ask) => warden.take(ask),
            Err(RecvTimeoutError::Disconnected) => break warden.end(Healer::Warden),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // A pipe may have been inherited by somebody who lives on; the process itself cannot.
        if !injector.is_alive() || ended.load(Ordering::Relaxed) {
            break warden.end(Healer::Warden);
        }
    }
}

/// What nobody reads any more is lost, and nothing else happens.
fn tell(what: Tell) {
    if let Ok(mut line) = serde_json::to_vec(&what) {
        line.push(b'\n');
        let mut out = io::stdout().lock();
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}

/// Lines as they come; ends with the input.
fn follow(input: impl BufRead + Send + 'static) -> Receiver<Ask> {
    let (send, asks) = channel();
    std::thread::spawn(move || {
        for line in input.lines() {
            let Ok(line) = line else { return };
            match serde_json::from_str(&line) {
                Ok(ask) => {
                    if send.send(ask).is_err() {
                        return;
                    }
                }
                Err(error) => tell(Tell::Failed(format!("an order cannot be read: {error}"))),
            }
        }
    });
    asks
}

impl Warden {
    fn begin(site: Site, state: &Path) -> io::Result<Self> {
        let journal = Journal::begin(state, &site)?;
        let context = Arc::new(Context {
            site,
            proxies: Proxies::new()?,
        });
        tell(Tell::Ready {
            journal: journal.path().to_owned(),
        });
        Ok(Self {
            context,
            proxies: Vec::new(),
            journal: Arc::new(Mutex::new(journal)),
            faults: BTreeMap::new(),
        })
    }

    fn take(&mut self, ask: Ask) {
        self.faults.retain(|_, fault| !fault.thread.is_finished());
        match ask {
            Ask::Inject(order) => self.inject(order),
            Ask::Proxies => self.open_proxies(),
            Ask::Site(site) => self.site(*site),
            Ask::Heal { fault } => match self.faults.get(&fault) {
                Some(found) => drop(found.heal.send(Healer::Asked)),
                None => tell(Tell::Healed {
                    fault,
                    by: Healer::Asked,
                    problem: None,
                }),
            },
            Ask::HealAll => {
                self.heal(Healer::Asked, |fault| !fault.stays);
                tell(Tell::AllHealed);
            }
            Ask::Begin { .. } => tell(Tell::Failed("it has begun already".into())),
            Ask::End => {}
        }
    }

    /// The drill's own cluster is there only after its undoing is.
    fn site(&mut self, site: Site) {
        let written = self
            .journal
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .site(&site);
        match written.and_then(|()| Proxies::new()) {
            Ok(proxies) => self.context = Arc::new(Context { site, proxies }),
            Err(error) => tell(Tell::Failed(error.to_string())),
        }
    }

    fn inject(&mut self, order: Order) {
        let refuse = |why: &str| {
            tell(Tell::Outcome {
                fault: order.fault.clone(),
                outcome: Outcome::Skipped(why.to_owned()),
            });
        };
        if self.faults.len() >= FAULTS_MAX {
            return refuse("there are 64 faults already");
        }
        if self.faults.contains_key(&order.fault) {
            return refuse("there is a fault of this name already");
        }
        let (heal, healers) = channel();
        let (context, journal) = (self.context.clone(), self.journal.clone());
        let (name, stays) = (order.fault.clone(), order.stays);
        let thread = std::thread::spawn(move || keep(&order, &context, &journal, &healers, &tell));
        self.faults.insert(name, Fault { heal, thread, stays });
    }

    fn open_proxies(&mut self) {
        for node in self.context.site.current() {
            match self.context.proxies.open(node.id, &node.mqtt) {
                Ok(listen) => self.proxies.push((node.id, listen.to_string())),
                Err(error) => tell(Tell::Failed(format!("no proxy for node {}: {error}", node.id))),
            }
        }
        tell(Tell::Proxies(self.proxies.clone()));
    }

    /// Heals those that `which` names, all at once, and waits for them.
    fn heal(&mut self, by: Healer, which: impl Fn(&Fault) -> bool) {
        let names: Vec<String> = self
            .faults
            .iter()
            .filter(|(_, fault)| which(fault))
            .map(|(name, _)| name.clone())
            .collect();
        let faults: Vec<Fault> = names.iter().filter_map(|name| self.faults.remove(name)).collect();
        for fault in &faults {
            let _ = fault.heal.send(by);
        }
        for fault in faults {
            let _ = fault.thread.join();
        }
    }

    /// Faults first, then the ground they stand on.
    fn end(mut self, by: Healer) -> io::Result<()> {
        self.heal(by, |fault| !fault.stays);
        self.heal(by, |_| true);
        tell(Tell::AllHealed);
        let Ok(journal) = Arc::try_unwrap(self.journal) else {
            return Ok(());
        };
        let journal = journal.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let path = journal.path().to_owned();
        let left = super::leftovers(path.parent().unwrap_or(Path::new("."))).unwrap_or_default();
        match left.iter().any(|left| left.journal == path && !left.faults.is_empty()) {
            true => Ok(()),
            false => journal.remove(),
        }
    }
}
