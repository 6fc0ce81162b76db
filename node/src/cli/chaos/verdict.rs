//! `chaos report`, and how a verdict is printed. It is the last line, whatever was found.

use std::path::{Path, PathBuf};

use chaos::check::{Holds, Ruling};
use chaos::run::DrillResult;
use clap::Args;
use serde_json::json;
use simulator::report::numbers::{grouped, millis};

use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// Breaches printed of each invariant; the report has more.
const TOLD: usize = 5;

#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// The directory of a drill, or a file in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub fn report(args: &ReportArgs, output: Output) -> Result<u8, Failure> {
    let dir = match args.dir.is_file() {
        true => args.dir.parent().unwrap_or(Path::new(".")),
        false => &args.dir,
    };
    let result = chaos::report::again(dir).map_err(|error| {
        Failure::new(Exit::Disk, format!("{} holds no verdict", dir.display()))
            .because(error)
            .advise("name the directory that `holdfast chaos run` left")
    })?;
    print(&result, dir, output);
    Ok(result.verdict.exit_code())
}

/// What a recorded history says by itself, with whatever an audit and the observers left beside it.
pub fn history(dir: &Path, output: Output) -> Result<u8, Failure> {
    let evidence = chaos::report::evidence(dir).map_err(|error| {
        Failure::new(Exit::BadInput, format!("{} holds no history", dir.display()))
            .because(error)
            .advise("name the directory that `holdfast chaos run` or `holdfast sim run` left")
    })?;
    let rulings = chaos::check::judge(&evidence, &[]);
    let is_broken = rulings.iter().any(|ruling| ruling.holds == Holds::No);
    match output {
        Output::Json => output::json(&json!({ "rulings": rulings, "broken": is_broken })),
        Output::Table => {
            table(&rulings);
            rulings.iter().for_each(|ruling| breaches(ruling, dir));
        }
    }
    Ok(if is_broken { Exit::Violation } else { Exit::Success } as u8)
}

pub fn print(result: &DrillResult, dir: &Path, output: Output) {
    if output == Output::Json {
        output::json(&json!(result));
        return;
    }
    faults(result);
    table(&result.rulings);
    result.broken().for_each(|ruling| breaches(ruling, dir));
    result
        .notes
        .iter()
        .for_each(|note| output::line(&format!("note: {note}")));
    let impacts = &result.impacts;
    let score = impacts.score.map_or(String::new(), |score| {
        format!(", {:.0} % predicted rightly", score * 100.0)
    });
    output::line(&format!(
        "impact, predicted and measured: {} and {} shards without a leader, {} and {} devices reconnected{score}",
        impacts.predicted.shards_leaderless,
        impacts.measured.shards_leaderless,
        impacts.predicted.devices_reconnect,
        impacts.measured.devices_reconnect
    ));
    output::line(&format!(
        "{} acknowledged of {} sent; served again {} after the heal",
        grouped(result.acknowledged),
        grouped(result.sent),
        result
            .times
            .liveness_us
            .map_or("never".to_owned(), |us| millis(us as f64 / 1e3))
    ));
    output::line(&format!(
        "seed {}, {}; again: {}",
        result.seed, result.version, result.rerun
    ));
    output::line(&format!("report: {}", dir.join("report.html").display()));
    output::line(&format!("verdict: {}: {}", result.verdict, result.reasons.join("; ")));
}

fn table(rulings: &[Ruling]) {
    let rows = rulings.iter().map(|ruling| {
        let word = match ruling.holds {
            Holds::Yes => "holds",
            Holds::No => "BROKEN",
            Holds::NotJudged => "not judged",
        };
        vec![ruling.invariant.clone(), word.to_owned(), ruling.evidence.clone()]
    });
    output::table(&["invariant", "", "judged from"], rows.collect());
}

fn breaches(ruling: &Ruling, dir: &Path) {
    for breach in ruling.breaches.iter().take(TOLD) {
        let part =
            |name: &str, text: &Option<String>| text.as_ref().map_or(String::new(), |text| format!(", {name} {text}"));
        output::line(&format!(
            "BROKEN {}: {}{}{}; look at {}",
            ruling.invariant,
            breach.what,
            part("receipt", &breach.receipt),
            part("active:", &breach.during),
            dir.join(&breach.file).display()
        ));
    }
}

fn faults(result: &DrillResult) {
    let rows = result.faults.iter().map(|fault| {
        let measured = fault.measured.clone().unwrap_or_default();
        let span = |us: Option<u64>| us.map_or("–".to_owned(), |us| millis(us as f64 / 1e3));
        let nodes: Vec<String> = fault.nodes.iter().map(u64::to_string).collect();
        vec![
            format!("{:.1} s", fault.from_us as f64 / 1e6),
            fault.id.clone(),
            nodes.join(", "),
            match fault.outcome.as_str() {
                "installed" => "installed".to_owned(),
                other => format!("{other}: {}", fault.why),
            },
            span(measured.detect_us),
            span(measured.elect_us),
            span(measured.recover_us),
        ]
    });
    output::table(
        &["at", "fault", "nodes", "outcome", "detect", "elect", "recover"],
        rows.collect(),
    );
}
