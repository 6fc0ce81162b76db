//! A run on the screen: a dashboard on a terminal, a line now and then elsewhere. And the signals
//! that end it.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use simulator::report::live;
use simulator::report::metrics::Exposed;
use simulator::report::numbers::grouped;
use simulator::run::{View, Watcher, Wish};

use crate::cli::failure::{Exit, Failure};
use crate::cli::output::Output;

const LINE_EVERY: Duration = Duration::from_secs(5);

/// How often the user has asked for the end: once to stop, twice to abort.
#[derive(Clone)]
pub struct Signals(Arc<AtomicU8>);

impl Signals {
    /// Follows SIGINT and SIGTERM from now on, in a thread of its own.
    ///
    /// # Errors
    /// The signals cannot be followed.
    pub fn follow() -> Result<Self, Failure> {
        let asked = Arc::new(AtomicU8::new(0));
        let count = asked.clone();
        follow(move || {
            count.fetch_add(1, Ordering::Relaxed);
        })?;
        Ok(Self(asked))
    }

    /// How often the user has asked for the end.
    pub fn asked(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }

    /// # Errors
    /// The signals cannot be followed.
    pub fn ignore() -> Result<(), Failure> {
        follow(|| {})
    }
}

fn follow(mut each: impl FnMut() + Send + 'static) -> Result<(), Failure> {
    use tokio::signal::unix::{signal, SignalKind};
    let failed = |error| Failure::new(Exit::Internal, "signals cannot be followed").because(error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let entered = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    drop(entered);
    let named = std::thread::Builder::new().name("signals".into());
    let spawned = named.spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                each();
            }
        });
    });
    spawned.map(drop).map_err(failed)
}

pub struct Screen {
    signals: Signals,
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    exposed: Option<Exposed>,
}

impl Screen {
    pub fn new(signals: Signals, output: Output) -> Self {
        let terminal = std::io::stderr().is_terminal() && output == Output::Table;
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar
        });
        Self {
            signals,
            bar,
            last_line: None,
            exposed: None,
        }
    }

    /// Serves the figures of the run for Prometheus.
    ///
    /// # Errors
    /// The address is taken.
    pub fn expose(&mut self, address: &str) -> Result<(), Failure> {
        let parsed: SocketAddr = address
            .parse()
            .map_err(|error| Failure::new(Exit::BadInput, format!("{address:?} is no ip:port")).because(error))?;
        let exposed = Exposed::default();
        let bound = exposed.serve(parsed).map_err(|error| {
            Failure::new(Exit::Unavailable, format!("cannot serve metrics at {address}"))
                .because(error)
                .advise("choose another address for --metrics")
        })?;
        self.say(&format!("metrics at http://{bound}/metrics"));
        self.exposed = Some(exposed);
        Ok(())
    }

    /// Tells now and then how much was read back, while `work` reads.
    pub fn audit<T>(&self, read: &AtomicU64, work: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut told = Instant::now();
                while !done.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                    if told.elapsed() >= LINE_EVERY {
                        told = Instant::now();
                        self.say(&format!("{} messages read back", grouped(read.load(Ordering::Relaxed))));
                    }
                }
            });
            let result = work();
            done.store(true, Ordering::Relaxed);
            result
        })
    }

    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
}

impl Watcher for Screen {
    fn prepared(&mut self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => self.say(what),
        }
    }

    fn update(&mut self, view: &View<'_>) {
        if let Some(exposed) = &self.exposed {
            exposed.set(view);
        }
        if let Some(bar) = &self.bar {
            let width = console_width();
            bar.set_message(live::screen(view, width).join("\n"));
        } else if self.last_line.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            self.last_line = Some(Instant::now());
            self.say(&live::line(view));
        }
    }

    fn note(&mut self, text: &str) {
        self.say(text);
    }

    fn wish(&self) -> Wish {
        match self.signals.0.load(Ordering::Relaxed) {
            0 => Wish::GoOn,
            1 => Wish::Stop,
            _ => Wish::Abort,
        }
    }
}

fn console_width() -> usize {
    let (_, columns) = console::Term::stderr().size();
    usize::from(columns).clamp(40, 200)
}
