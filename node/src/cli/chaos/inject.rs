//! `chaos inject`: one fault by hand, which heals when its time is up, on Ctrl-C, and when this
//! command dies.

use std::time::{Duration, Instant};

use chaos::deed::Outcome;
use chaos::drill::{aim, single};
use chaos::run::look;
use chaos::warden::Order;
use clap::Args;
use serde_json::json;

use super::{ground, Reach};
use crate::cli::demo::duration;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};
use crate::cli::sim::screen::Signals;

#[derive(Args, Clone, Debug)]
pub struct InjectArgs {
    /// The fault, as in `holdfast chaos list`
    #[arg(value_name = "FAULT")]
    fault: String,
    /// Whom: busiest, idlest, random, all, minority, catalog, node:N, shard:N, zone:NAME
    #[arg(long, default_value = "random", value_name = "WHO")]
    on: String,
    /// How long (1s..1h)
    #[arg(long = "for", default_value = "10s", value_name = "TIME", value_parser = duration)]
    length: Duration,
    /// A parameter of the fault, such as percent=20; may be given several times
    #[arg(long = "with", value_name = "KEY=VALUE")]
    with: Vec<String>,
    #[command(flatten)]
    reach: Reach,
}

pub fn inject(args: &InjectArgs, output: Output) -> Result<u8, Failure> {
    let with = parameters(&args.with)?;
    let planned = single(&args.fault, &args.on, args.length, &with).map_err(|problems| {
        let why: Vec<String> = problems.into_iter().map(|(key, why)| format!("{key}: {why}")).collect();
        Failure::new(Exit::BadInput, "the fault is refused")
            .because(why.join("\n"))
            .advise("see `holdfast chaos list`")
    })?;
    let site = ground::site(&args.reach)?.ok_or_else(|| {
        Failure::new(Exit::Usage, "no cluster is named").advise("give --dir of a local cluster, or --url and --token")
    })?;
    let view = look(&ground::http(&site)?, &site.nodes)
        .ok_or_else(|| Failure::new(Exit::Unavailable, "no node of the cluster answers"))?;
    let aimed = aim(&planned, &view).map_err(|why| Failure::new(Exit::BadInput, "nobody can be hit").because(why))?;
    if planned.entry.family == "load" {
        return Err(Failure::new(Exit::Unavailable, format!("{} is skipped", planned.kind))
            .because("devices do it, and only a drill has devices")
            .advise("run a drill that has it: holdfast chaos run reconnect-storm --dir …"));
    }
    let signals = Signals::follow()?;
    let log = std::env::temp_dir().join(format!("holdfast-warden-{}.log", std::process::id()));
    let mut warden = ground::warden(&site, &log)?;
    let gone = |error| {
        Failure::new(Exit::Harness, "the warden is gone")
            .because(error)
            .advise("holdfast chaos heal")
    };
    let order = Order {
        fault: planned.id.clone(),
        deeds: aimed.deeds,
        ttl_ms: args.length.as_millis() as u64,
        stays: false,
    };
    warden.inject(&order).map_err(gone)?;
    let outcome = warden.await_outcome(&planned.id).map_err(gone)?;
    if let Outcome::Installed(what) = &outcome {
        output::warn(&format!(
            "{}: {what}; for {:?}, Ctrl-C heals it at once",
            planned.kind, args.length
        ));
        let end = Instant::now() + args.length;
        while Instant::now() < end && signals.asked() == 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    warden.heal_all().map_err(gone)?;
    let problem = warden.healed().into_iter().find_map(|(_, _, problem)| problem);
    warden.end().map_err(gone)?;
    let _ = std::fs::remove_file(&log);
    told(&planned.id, &aimed.nodes, &outcome, problem.as_deref(), output);
    match (outcome, problem) {
        (_, Some(why)) => Err(Failure::new(Exit::Harness, "the fault could not be undone")
            .because(why)
            .advise("mend what it names, then: holdfast chaos heal")),
        (Outcome::Installed(_), None) => Ok(Exit::Success as u8),
        (Outcome::Skipped(why), None) => Err(Failure::new(Exit::Unavailable, "the fault was skipped").because(why)),
        (Outcome::Indeterminate(why), None) => {
            Err(Failure::new(Exit::Harness, "whether the fault was there is not known").because(why))
        }
    }
}

fn told(id: &str, nodes: &[u64], outcome: &Outcome, problem: Option<&str>, output: Output) {
    match output {
        Output::Json => output::json(&json!({
            "fault": id, "nodes": nodes, "outcome": outcome.word(), "why": outcome.why(), "healed": problem.is_none(), "problem": problem,
        })),
        Output::Table if matches!(outcome, Outcome::Installed(_)) && problem.is_none() => output::line("healed"),
        Output::Table => {}
    }
}

/// `key=value` as TOML; what is no TOML value is a word.
fn parameters(given: &[String]) -> Result<toml::Table, Failure> {
    let mut table = toml::Table::new();
    for pair in given {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(Failure::new(Exit::Usage, format!("{pair:?} is no KEY=VALUE")));
        };
        let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"))
            .ok()
            .and_then(|mut table| table.remove("v"));
        table.insert(
            key.to_owned(),
            parsed.unwrap_or_else(|| toml::Value::String(value.to_owned())),
        );
    }
    Ok(table)
}
