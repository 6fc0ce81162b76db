//! `sim run`: from a scenario to a verdict.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use clap::Args;
use simulator::drive::clock::unix_us;
use simulator::report::conclude::{conclude, Auditing};
use simulator::run::{self, Options, RunError};
use simulator::scenario::{self, Loaded};

use super::screen::{Screen, Signals};
use super::{plan, verdict, Changes};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The scenario; with --resume the directory of a run that was broken off
    #[arg(value_name = "SCENARIO")]
    scenario: PathBuf,
    /// Directory for the history and the reports; made, and must hold no run yet. Default:
    /// sim-NAME-N here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with a run that was broken off: what is left of its time, in the same directory
    #[arg(long)]
    resume: bool,
    /// Number that names this run in message ids; default: from the clock
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    run_id: Option<u32>,
    #[command(flatten)]
    changes: Changes,
}

pub fn run(args: &RunArgs, output: Output) -> Result<u8, Failure> {
    let (loaded, out) = prepare(args)?;
    let signals = Signals::follow()?;
    let mut screen = Screen::new(signals.clone(), output);
    if let Some(address) = &loaded.scenario.run.metrics {
        screen.expose(address)?;
    }
    let program = std::env::current_exe().map_err(|error| Failure::new(Exit::Internal, "no program").because(error))?;
    let options = Options {
        out: out.clone(),
        run: args.run_id.unwrap_or_else(run_id),
        worker: vec![program.into(), "sim".into(), "worker".into()],
        version: format!("holdfast {}", env!("CARGO_PKG_VERSION")),
        resume: args.resume,
    };
    let ran = run::run(loaded, &options, &mut screen);
    screen.clear();
    let file = ran.map_err(|error| failed(error, &out))?;
    if file.incomplete.is_some() {
        output::warn("the run is incomplete; judging what there is");
    }
    let read = AtomicU64::new(0);
    let concluded = screen.audit(&read, || conclude(&out, Auditing::Now, &read));
    let (report, problem) = concluded.map_err(|error| verdict::unreadable(&error))?;
    if let Some(problem) = problem {
        output::warn(&format!("the audit could not be finished: {problem}"));
    }
    verdict::print(&report, &out, output);
    let disk = file
        .incomplete
        .is_some_and(|why| why.contains("cannot be written") || why.contains("No space left"));
    Ok(match report.verdict.exit_code() {
        75 if disk => Exit::Disk as u8,
        code => code,
    })
}

fn prepare(args: &RunArgs) -> Result<(Loaded, PathBuf), Failure> {
    if args.resume {
        let out = args.scenario.clone();
        let loaded = scenario::load(&out.join("scenario.toml"));
        let loaded = loaded.map_err(|error| Failure::new(Exit::BadInput, "no run to resume").because(error))?;
        return Ok((loaded, out));
    }
    let loaded = plan::load(&args.scenario, &args.changes)?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| free_directory(&loaded.scenario.name));
    Ok((loaded, out))
}

/// `sim-a-mixed-fleet-3`: the first number that is free here.
fn free_directory(name: &str) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(plain).take(40).collect();
    let taken = |number: &u32| Path::new(&format!("sim-{name}-{number}")).exists();
    let number = (1..100_000).find(|number| !taken(number)).unwrap_or(100_000);
    PathBuf::from(format!("sim-{name}-{number}"))
}

/// Different from run to run, and growing: seconds since 2024.
fn run_id() -> u32 {
    u32::try_from(unix_us() / 1_000_000 - 1_704_067_200).unwrap_or(u32::MAX)
}

fn failed(error: RunError, out: &Path) -> Failure {
    match &error {
        RunError::Endpoints(_) => Failure::new(Exit::Unavailable, "the run could not begin")
            .because(&error)
            .advise("start the cluster or broker, and look at [target], --dir or --mqtt"),
        RunError::Provision(_) => Failure::new(Exit::Unavailable, "the run could not begin")
            .because(&error)
            .advise("look at the HTTP endpoints and the token of [target]"),
        RunError::Short(_) => Failure::new(Exit::Harness, "this machine cannot hold the fleet").because(&error),
        RunError::Disk(source) if source.kind() == std::io::ErrorKind::AlreadyExists => {
            Failure::new(Exit::BadInput, source.to_string())
                .advise("name another --out, or go on with it: holdfast sim run DIR --resume")
        }
        RunError::Disk(source) => Failure::disk(format!("the run's directory {} fails", out.display()), source),
        RunError::Start(_) => Failure::new(Exit::Harness, "the fleet could not be started").because(&error),
        RunError::Over(_) => Failure::new(Exit::BadInput, error.to_string()).advise("begin a new one without --resume"),
    }
}

/// A part of a fleet; speaks with `sim run` over standard input and output.
pub fn worker() -> Result<u8, Failure> {
    // Signals of the terminal are for the coordinator, which tells its workers what to do.
    Signals::ignore()?;
    let input = std::io::BufReader::new(std::io::stdin());
    let served = run::process::serve(input, std::io::stdout());
    served.map_err(|error| Failure::new(Exit::Harness, "this part of the fleet failed").because(error))?;
    Ok(Exit::Success as u8)
}
