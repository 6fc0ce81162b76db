//! `chaos check`, `init`, and the dry run: everything that breaks nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use chaos::drill::{self, aim, plan, predict, shipped, Impact, Loaded, Planned, View};
use clap::Args;
use serde_json::json;
use simulator::report::numbers::stretch;

use super::verdict;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The drill: a file, or the name of one that ships. Or the directory of a verdict or a
    /// simulator's run, to judge its history anew without a cluster
    #[arg(value_name = "DRILL")]
    drill: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Where to write it; `-` is standard output
    #[arg(value_name = "FILE", default_value = "drill.toml")]
    file: PathBuf,
    /// The drill that ships to copy
    #[arg(long, value_name = "NAME", default_value = "leader-churn")]
    drill: String,
}

/// # Errors
/// It makes no sense (65).
pub fn load(path: &Path) -> Result<Loaded, Failure> {
    drill::load(path).map_err(|error| {
        let advice = match error {
            drill::LoadError::Unreadable { .. } => "name a file, or a drill of `holdfast chaos list`",
            drill::LoadError::Refused { .. } => {
                "mend these lines; `holdfast chaos list` tells every fault and its parameters"
            }
        };
        Failure::new(Exit::BadInput, "the drill is refused")
            .because(error)
            .advise(advice)
    })
}

pub fn check(args: &CheckArgs, output: Output) -> Result<u8, Failure> {
    if args.drill.is_dir() {
        return verdict::history(&args.drill, output);
    }
    let loaded = load(&args.drill)?;
    let drill = &loaded.drill;
    let planned = plan(drill, drill.seed);
    match output {
        Output::Json => output::json(&json!({
            "drill": drill.name, "title": drill.title, "seed": drill.seed, "faults": planned.len(),
        })),
        Output::Table => output::line(&format!(
            "{} is sound: {:?}, {} faults with seed {}",
            args.drill.display(),
            drill.title,
            planned.len(),
            drill.seed
        )),
    }
    Ok(Exit::Success as u8)
}

pub fn init(args: &InitArgs, output: Output) -> Result<u8, Failure> {
    let Some(text) = shipped::source(&args.drill) else {
        let known: Vec<&str> = shipped::ALL.iter().map(|(name, _)| *name).collect();
        return Err(
            Failure::new(Exit::BadInput, format!("there is no drill {:?}", args.drill))
                .advise(format!("there are {}", known.join(", "))),
        );
    };
    if args.file.as_os_str() == "-" {
        output::text(text);
        return Ok(Exit::Success as u8);
    }
    let shown = args.file.display();
    let made = File::options().write(true).create_new(true).open(&args.file);
    let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(Exit::BadInput, format!("{shown} exists already"))
            .advise("choose another name; nothing was overwritten"),
        _ => Failure::disk(format!("cannot write {shown}"), &error),
    })?;
    match output {
        Output::Json => output::json(&json!({ "file": args.file })),
        Output::Table => output::line(&format!(
            "{shown} is written; look at it, then: holdfast chaos run {shown} --dry-run"
        )),
    }
    Ok(Exit::Success as u8)
}

/// The plan and what it will do to a cluster like this one. Whoever leads by then may be another.
pub fn dry_run(loaded: &Loaded, seed: u64, view: &View, devices: u32, output: Output) {
    let drill = &loaded.drill;
    let planned = plan(drill, seed);
    let per_node = devices / (view.nodes.len().max(1) as u32);
    let aimed: Vec<(&Planned, String, Impact)> = planned
        .iter()
        .map(|planned| match aim(planned, view) {
            Ok(aimed) => {
                let nodes: Vec<String> = aimed.nodes.iter().map(u64::to_string).collect();
                (planned, nodes.join(", "), predict(&aimed, view, &|_| per_node))
            }
            Err(why) => (
                planned,
                why,
                Impact {
                    majority_survives: true,
                    ..Default::default()
                },
            ),
        })
        .collect();
    let none = Impact {
        majority_survives: true,
        ..Default::default()
    };
    let worst = aimed.iter().fold(none, |worst, (_, _, impact)| worst.worst(*impact));
    match output {
        Output::Json => output::json(&json!({
            "drill": drill.name, "seed": seed, "devices": devices, "predicted": worst, "expected": drill.expect.text,
            "phases": { "ramp": drill.phases.ramp, "steady": drill.phases.steady, "faults": drill.phases.faults, "settle": drill.phases.settle },
            "faults": aimed.iter().map(|(planned, nodes, impact)| json!({
                "id": planned.id, "kind": planned.kind, "on": planned.on, "nodes": nodes, "at_ms": planned.at.as_millis() as u64,
                "for_ms": planned.length.as_millis() as u64, "mechanism": planned.entry.mechanism.name(),
                "with": planned.with, "predicted": impact,
            })).collect::<Vec<_>>(),
        })),
        Output::Table => {
            output::line(&format!("{}: {} (seed {seed})", drill.name, drill.title));
            output::line(&format!(
                "set-up {}, steady {}, faults {}, then heal all, liveness within {}, audit, verdict",
                drill.phases.ramp, drill.phases.steady, drill.phases.faults, drill.phases.settle
            ));
            let yes = |is: bool| if is { "yes" } else { "no" };
            let rows = aimed.iter().map(|(planned, nodes, impact)| {
                vec![
                    stretch(planned.at.as_micros() as u64),
                    stretch(planned.length.as_micros() as u64),
                    planned.kind.to_owned(),
                    format!("{} → {nodes}", planned.on),
                    planned.entry.mechanism.name().to_owned(),
                    impact.shards_leaderless.to_string(),
                    impact.devices_reconnect.to_string(),
                    yes(impact.majority_survives).to_owned(),
                ]
            });
            let header = [
                "at",
                "for",
                "fault",
                "on",
                "by",
                "shards without leader",
                "devices reconnect",
                "majority survives",
            ];
            output::table(&header, rows.collect());
            output::line(&format!(
                "predicted at worst: {} of {} shards without a leader for a moment, {} of {devices} devices reconnect, a majority of every shard {}",
                worst.shards_leaderless,
                view.shards.len(),
                worst.devices_reconnect,
                if worst.majority_survives { "survives" } else { "does not survive" }
            ));
            if !drill.expect.text.is_empty() {
                output::line(&format!("expected: {}", drill.expect.text));
            }
            output::line("nothing was started, nothing was broken");
        }
    }
}
