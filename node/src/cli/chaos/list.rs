//! `chaos list`: the catalogue of faults, and the drills that ship.

use chaos::catalogue::{self, Entry, Sort};
use chaos::drill::{parse, shipped};
use clap::Args;
use serde_json::json;

use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// `faults`, `drills`, or the name of a fault or a drill to see all of it [default: both lists]
    #[arg(value_name = "WHAT")]
    what: Option<String>,
}

pub fn list(args: &ListArgs, output: Output) -> Result<u8, Failure> {
    match args.what.as_deref() {
        None => both(true, true, output),
        Some("faults") => both(true, false, output),
        Some("drills") => both(false, true, output),
        Some(name) => return one(name, output),
    }
    Ok(Exit::Success as u8)
}

fn both(with_faults: bool, with_drills: bool, output: Output) {
    if output == Output::Json {
        let faults: Vec<_> = catalogue::all().filter(|_| with_faults).map(fault).collect();
        let drills: Vec<_> = drills().into_iter().filter(|_| with_drills).collect();
        let drills = drills
            .into_iter()
            .map(|(name, title, teaches)| json!({ "name": name, "title": title, "teaches": teaches }));
        output::json(&json!({ "faults": faults, "drills": drills.collect::<Vec<_>>() }));
        return;
    }
    if with_faults {
        let rows = catalogue::all().map(|entry| {
            vec![
                entry.id.to_owned(),
                entry.mechanism.name().to_owned(),
                entry.scope.name().to_owned(),
                entry.does.to_owned(),
            ]
        });
        output::table(&["fault", "by", "scope", "does"], rows.collect());
    }
    if with_drills {
        let rows = drills().into_iter().map(|(name, title, _)| vec![name, title]);
        output::table(&["drill", "what happens"], rows.collect());
    }
}

fn drills() -> Vec<(String, String, String)> {
    let told = |(name, text): &(&str, &str)| {
        let loaded = parse(std::path::Path::new(name), (*text).to_owned()).ok()?;
        Some(((*name).to_owned(), loaded.drill.title, loaded.drill.teaches))
    };
    shipped::ALL.iter().filter_map(told).collect()
}

fn fault(entry: &'static Entry) -> serde_json::Value {
    json!({
        "id": entry.id, "family": entry.family, "does": entry.does, "mechanism": entry.mechanism, "scope": entry.scope,
        "needs": entry.needs, "heals": entry.heals, "proof": entry.proof,
        "params": entry.params.iter().map(|param| json!({
            "name": param.name, "takes": takes(param.sort), "default": param.fallback(), "about": param.about,
        })).collect::<Vec<_>>(),
    })
}

fn takes(sort: Sort) -> String {
    match sort {
        Sort::Number(low, high) => format!("{low}..={high}"),
        Sort::Share => "0..=1".into(),
        Sort::Word(words) => words.join(" | "),
        Sort::Peer => "a node's id, or \"*\"".into(),
    }
}

fn one(name: &str, output: Output) -> Result<u8, Failure> {
    if let Some(text) = shipped::source(name) {
        output::text(text);
        return Ok(Exit::Success as u8);
    }
    let Some(entry) = catalogue::find(name) else {
        let near = catalogue::nearest(name).unwrap_or("process.kill");
        return Err(
            Failure::new(Exit::BadInput, format!("there is no fault and no drill {name:?}"))
                .advise(format!("did you mean {near}? `holdfast chaos list` has all of them")),
        );
    };
    if output == Output::Json {
        output::json(&fault(entry));
        return Ok(Exit::Success as u8);
    }
    output::line(&format!("{}: {}", entry.id, entry.does));
    for (label, text) in [
        ("by", entry.mechanism.name()),
        ("scope", entry.scope.name()),
        ("needs", entry.needs),
        ("heals", entry.heals),
    ] {
        output::line(&format!("  {label}: {text}"));
    }
    let rows = entry.params.iter().map(|param| {
        let default = param.default.unwrap_or("must be given");
        vec![
            param.name.to_owned(),
            takes(param.sort),
            default.to_owned(),
            param.about.to_owned(),
        ]
    });
    if !entry.params.is_empty() {
        output::table(&["parameter", "takes", "default", "what it is"], rows.collect());
    }
    Ok(Exit::Success as u8)
}
