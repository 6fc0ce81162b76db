//! `sim check`, `init`, `profiles`, `schema`: everything that drives nothing.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;
use simulator::plan::Plan;
use simulator::profiles;
use simulator::report::numbers::{grouped, rate, stretch};
use simulator::scenario::{self, check, LoadError, Loaded};

use super::Changes;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// Devices and messages of each stream that a digest looks at.
const DIGEST: (u32, u64) = (2_000, 200);

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The scenario
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Also print a digest of the plan: devices, payloads, intended times. Equal digests mean
    /// equal plans
    #[arg(long)]
    digest: bool,
    #[command(flatten)]
    changes: Changes,
}

#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// Where to write it; `-` is standard output
    #[arg(value_name = "FILE", default_value = "scenario.toml")]
    file: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct ProfilesArgs {
    /// Show this one as TOML; without a name all are listed
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

/// Loads a scenario and lays what the command line says over it.
///
/// # Errors
/// 65 with file, line and key; 74 when the file cannot be read.
pub fn load(file: &Path, changes: &Changes) -> Result<Loaded, Failure> {
    // As it stands first, so that lines are those of the file.
    let loaded = scenario::load(file).map_err(refused)?;
    let changed = changes.overrides().apply(&loaded.text, file);
    let text = changed.map_err(|error| Failure::new(Exit::BadInput, "the scenario is refused").because(error))?;
    scenario::parse(file, text).map_err(refused)
}

fn refused(error: LoadError) -> Failure {
    match &error {
        LoadError::Unreadable { path, source } => Failure::new(Exit::Disk, format!("cannot read {}", path.display()))
            .because(source)
            .advise("name a scenario; `holdfast sim init FILE` writes one"),
        LoadError::Refused { .. } => Failure::new(Exit::BadInput, "the scenario is refused")
            .because(&error)
            .advise("mend the lines named; `holdfast sim init -` prints a scenario with comments"),
    }
}

pub fn check(args: &CheckArgs, output: Output) -> Result<u8, Failure> {
    let loaded = match (load(&args.file, &args.changes), output) {
        (Err(failure), Output::Json) => {
            let problems = scenario::load(&args.file).err().map(|error| match error {
                LoadError::Refused { problems, .. } => json!(problems),
                LoadError::Unreadable { .. } => json!([]),
            });
            output::json(&json!({ "accepted": false, "problems": problems }));
            return Err(failure);
        }
        (loaded, _) => loaded?,
    };
    let plan = Plan::new(Arc::new(loaded));
    let digest = args.digest.then(|| plan.digest(DIGEST.0, DIGEST.1));
    let fleets: Vec<_> = fleets(&plan);
    let real_us = plan.loaded.real_us(plan.curve.end_us());
    match output {
        Output::Json => output::json(&json!({
            "accepted": true,
            "name": plan.loaded.scenario.name,
            "devices": plan.roster.devices(),
            "subjects": plan.roster.subjects(),
            "real_seconds": real_us as f64 / 1e6,
            "fleets": fleets.iter().map(|fleet| json!({ "name": fleet.0, "profile": fleet.1, "count": fleet.2, "rate": fleet.3 })).collect::<Vec<_>>(),
            "digest": digest,
        })),
        Output::Table => {
            let shown = args.file.display();
            let name = &plan.loaded.scenario.name;
            let devices = grouped(u64::from(plan.roster.devices()));
            output::line(&format!(
                "{shown} is sound: {name:?}, {devices} devices, {} of real time",
                stretch(real_us)
            ));
            let rows = fleets.into_iter().map(|(name, profile, count, per_second)| {
                vec![
                    name,
                    profile,
                    grouped(u64::from(count)),
                    format!("{}/s", rate(per_second)),
                ]
            });
            output::table(&["fleet", "profile", "devices", "messages"], rows.collect());
            let spans = plan.curve.spans().iter().map(|span| {
                let middle = (span.start_us + span.end_us) / 2;
                vec![
                    span.title.clone(),
                    span.kind.clone(),
                    stretch(plan.loaded.real_us(span.start_us)),
                    stretch(plan.loaded.real_us(span.end_us - span.start_us)),
                    format!("{:.2}", plan.curve.factor(middle)),
                ]
            });
            output::table(
                &["phase", "kind", "from", "for", "factor in the middle"],
                spans.collect(),
            );
            if let Some(digest) = digest {
                output::line(&format!("digest {digest}"));
            }
        }
    }
    Ok(Exit::Success as u8)
}

/// Name, profile, devices, messages a second of real time at factor 1.
fn fleets(plan: &Plan) -> Vec<(String, String, u32, f64)> {
    let scenario = &plan.loaded.scenario;
    let fleets = scenario.fleet.iter().enumerate();
    let row = |(at, fleet): (usize, &scenario::Fleet)| {
        let per_second = check::fleet_rate(fleet, plan.loaded.profile(at)) * scenario.compression;
        (fleet.name.clone(), fleet.profile.clone(), fleet.count, per_second)
    };
    fleets.map(row).collect()
}

pub fn init(args: &InitArgs, output: Output) -> Result<u8, Failure> {
    if args.file.as_os_str() == "-" {
        output::text(scenario::STARTER);
        return Ok(Exit::Success as u8);
    }
    let shown = args.file.display();
    let made = File::options().write(true).create_new(true).open(&args.file);
    let written = made.and_then(|mut file| file.write_all(scenario::STARTER.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(Exit::BadInput, format!("{shown} exists already"))
            .advise("choose another name; nothing was overwritten"),
        _ => Failure::disk(format!("cannot write {shown}"), &error),
    })?;
    match output {
        Output::Json => output::json(&json!({ "file": args.file })),
        Output::Table => output::line(&format!(
            "{shown} is written; look at it, then: holdfast sim run {shown}"
        )),
    }
    Ok(Exit::Success as u8)
}

pub fn profiles(args: &ProfilesArgs, output: Output) -> Result<u8, Failure> {
    if let Some(name) = &args.name {
        let Some(source) = profiles::source(name) else {
            return Err(Failure::new(Exit::BadInput, format!("there is no profile {name:?}"))
                .advise(format!("there are {}", profiles::NAMES.join(", "))));
        };
        match output {
            Output::Json => output::json(&json!({ "name": name, "profile": profiles::shipped()[name] })),
            Output::Table => output::text(source),
        }
        return Ok(Exit::Success as u8);
    }
    let all = profiles::shipped();
    match output {
        Output::Json => {
            let row = |(name, profile): (&String, &profiles::Profile)| json!({ "name": name, "title": profile.title });
            output::json(&json!(all.iter().map(row).collect::<Vec<_>>()));
        }
        Output::Table => {
            let rows = all
                .iter()
                .map(|(name, profile)| vec![name.clone(), profile.title.clone()]);
            output::table(&["profile", "what it is"], rows.collect());
        }
    }
    Ok(Exit::Success as u8)
}

pub fn schema() -> Result<u8, Failure> {
    output::json(&scenario::schema());
    Ok(Exit::Success as u8)
}
