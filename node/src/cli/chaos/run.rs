//! `chaos run`: from a drill to a verdict.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use chaos::drill::{Loaded, View};
use chaos::run::{look, scale, Ground, Options, Screen};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use simulator::drive::clock::unix_us;

use super::{ground, plan, verdict, Reach};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};
use crate::cli::sim::screen::Signals;

/// Holds the operator's token for the load, so that it stands in no file.
const TOKEN_ENV: &str = "HOLDFAST_DRILL_TOKEN";

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// The drill: a file, or the name of one that ships
    #[arg(value_name = "DRILL")]
    drill: PathBuf,
    #[command(flatten)]
    reach: Reach,
    /// Print the plan and the predicted impact; start and break nothing
    #[arg(long)]
    dry_run: bool,
    /// Seed of load and faults; instead of the drill's
    #[arg(long)]
    seed: Option<u64>,
    /// Devices in all, shared by the fleets as the drill has them (1..100000)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: Option<u32>,
    /// Everything in little time: the phase of faults shrinks to 12 s
    #[arg(long)]
    brief: bool,
    /// Directory for the verdict; made, and must hold none yet. Default: chaos-NAME-N here
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// First port of the drill's own cluster; default: the first that are free from 18830
    #[arg(long, value_name = "P", conflicts_with_all = ["dir", "url"])]
    base_port: Option<u16>,
}

pub fn run(args: &RunArgs, output: Output) -> Result<u8, Failure> {
    let mut loaded = plan::load(&args.drill)?;
    if args.brief {
        loaded.drill.brief();
    }
    if let Some(devices) = args.devices {
        scale(&mut loaded.drill, devices);
    }
    let seed = args.seed.unwrap_or(loaded.drill.seed);
    let site = ground::site(&args.reach)?;
    if args.dry_run {
        let view = match &site {
            Some(site) => look(&ground::http(site)?, &site.nodes).unwrap_or_default(),
            None => View::imagined(loaded.drill.cluster.nodes, loaded.drill.cluster.shards),
        };
        plan::dry_run(&loaded, seed, &view, devices(&loaded), output);
        return Ok(Exit::Success as u8);
    }
    let out = out(args, &loaded)?;
    let screen = Bench::new(Signals::follow()?, output);
    let log = out.join("warden.log");
    let mut ground = match site {
        Some(site) => ground::existing(site, &log)?,
        None => {
            let wish = &loaded.drill.cluster;
            screen.say(&format!("starting {} nodes with {} shards", wish.nodes, wish.shards));
            ground::own(wish, args.base_port, &log)?
        }
    };
    let ended = drill(args, &loaded, seed, &out, &mut ground, &screen);
    screen.clear();
    ground::leave(ground);
    let result = ended?;
    verdict::print(&result, &out, output);
    Ok(result.verdict.exit_code())
}

fn drill(
    args: &RunArgs,
    loaded: &Loaded,
    seed: u64,
    out: &Path,
    ground: &mut Ground,
    screen: &Bench,
) -> Result<chaos::run::DrillResult, Failure> {
    std::env::set_var(TOKEN_ENV, &ground.site.token);
    let run = u32::try_from(unix_us() / 1_000_000 - 1_704_067_200).unwrap_or(u32::MAX);
    let options = Options {
        out: out.to_owned(),
        seed,
        version: format!("holdfast {}", env!("CARGO_PKG_VERSION")),
        rerun: rerun(args, seed),
        run,
        prefix: format!("drill{run}"),
        token_env: TOKEN_ENV.into(),
    };
    chaos::run::run(&loaded.drill, &options, ground, screen)
        .map_err(|error| Failure::new(Exit::Harness, "the drill could not begin").because(error))
}

/// The command that does the same again.
fn rerun(args: &RunArgs, seed: u64) -> String {
    let mut words = vec![
        "holdfast chaos run".to_owned(),
        args.drill.display().to_string(),
        format!("--seed {seed}"),
    ];
    words.extend(args.devices.map(|devices| format!("--devices {devices}")));
    words.extend(args.brief.then(|| "--brief".to_owned()));
    words.extend(args.reach.dir.as_ref().map(|dir| format!("--dir {}", dir.display())));
    words.extend(args.reach.url.as_ref().map(|url| format!("--url {url}")));
    words.join(" ")
}

fn devices(loaded: &Loaded) -> u32 {
    let fleets = loaded.drill.workload.get("fleet").and_then(toml::Value::as_array);
    let count = |fleet: &toml::Value| fleet.get("count").and_then(toml::Value::as_integer).unwrap_or(0);
    fleets.map_or(0, |fleets| fleets.iter().map(count).sum::<i64>() as u32)
}

/// Makes the verdict's directory.
fn out(args: &RunArgs, loaded: &Loaded) -> Result<PathBuf, Failure> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None => {
            let taken = |number: &u32| Path::new(&format!("chaos-{}-{number}", loaded.drill.name)).exists();
            let number = (1..100_000).find(|number| !taken(number)).unwrap_or(100_000);
            PathBuf::from(format!("chaos-{}-{number}", loaded.drill.name))
        }
    };
    if out.join("result.json").exists() || out.join("run").exists() {
        return Err(
            Failure::new(Exit::BadInput, format!("{} holds a verdict already", out.display()))
                .advise("name another directory with --out; nothing was overwritten"),
        );
    }
    std::fs::create_dir_all(&out).map_err(|error| Failure::disk(format!("cannot make {}", out.display()), &error))?;
    Ok(out)
}

/// A spinner on a terminal, a line now and then elsewhere.
pub struct Bench {
    signals: Signals,
    bar: Option<ProgressBar>,
}

impl Bench {
    pub fn new(signals: Signals, output: Output) -> Self {
        let terminal = std::io::stderr().is_terminal() && output == Output::Table;
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_style(
                ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            bar.enable_steady_tick(std::time::Duration::from_millis(120));
            bar
        });
        Self { signals, bar }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Screen for Bench {
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => output::warn(text),
        }
    }

    fn progress(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => output::warn(text),
        }
    }

    fn is_interrupted(&self) -> bool {
        self.signals.asked() > 0
    }
}
