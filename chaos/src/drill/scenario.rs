//! The drill's load as a scenario of the simulator: its workload, and the phases that the drill
//! needs. Reconnect storms are phases, the other faults of devices are fleets of their own.

use std::path::Path;
use std::time::Duration;

use simulator::scenario::{self, LoadError, Span};
use toml::{Table, Value};

use super::model::Drill;
use super::plan::Planned;

/// Where the load goes.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    pub mqtt: Vec<String>,
    pub ws: Vec<String>,
    pub http: Vec<String>,
    /// The variable that holds the token.
    pub token_env: String,
    /// Ids of the devices begin with this, so that drills on one cluster keep apart.
    pub prefix: String,
}

/// Load goes on while faults heal; a node that has to be replaced takes its time.
const HEALING: Duration = Duration::from_secs(300);

/// What is wrong with the workload; keys are those of the drill.
pub fn problems(drill: &Drill) -> Vec<(String, String)> {
    for key in ["name", "seed", "target", "phase", "compression", "thresholds"] {
        if drill.workload.contains_key(key) {
            return vec![(format!("workload.{key}"), "the drill itself says this".into())];
        }
    }
    let reach = Reach {
        mqtt: vec!["127.0.0.1:1".into()],
        ws: vec!["127.0.0.1:1".into()],
        http: vec!["127.0.0.1:1".into()],
        token_env: "TOKEN".into(),
        prefix: "x".into(),
    };
    let plan = super::plan::plan(drill, drill.seed);
    match scenario::parse(Path::new("workload"), scenario(drill, drill.seed, &plan, &reach)) {
        Ok(_) => Vec::new(),
        Err(LoadError::Refused { problems, .. }) => {
            let renamed = problems
                .into_iter()
                .map(|problem| (format!("workload.{}", problem.key), problem.reason));
            renamed.collect()
        }
        Err(error) => vec![("workload".into(), error.to_string())],
    }
}

/// The text of the scenario.
pub fn scenario(drill: &Drill, seed: u64, plan: &[Planned], reach: &Reach) -> String {
    let mut whole = drill.workload.clone();
    whole.insert("name".into(), drill.name.clone().into());
    whole.insert("description".into(), drill.title.clone().into());
    whole.insert(
        "seed".into(),
        Value::Integer(i64::try_from(seed & (i64::MAX as u64)).unwrap_or(1)),
    );
    let list = |list: &[String]| Value::Array(list.iter().cloned().map(Value::String).collect());
    let mut target = Table::new();
    target.insert("mqtt".into(), list(&reach.mqtt));
    target.insert("ws".into(), list(&reach.ws));
    target.insert("http".into(), list(&reach.http));
    target.insert("token_env".into(), reach.token_env.clone().into());
    whole.insert("target".into(), Value::Table(target));
    run(&mut whole);
    fleets(&mut whole, plan, &reach.prefix);
    whole.insert("phase".into(), Value::Array(phases(drill, plan)));
    // Faults make desired changes late; `desired_arrives` judges them after the heal.
    let mut audit = whole
        .remove("audit")
        .and_then(|audit| audit.try_into::<Table>().ok())
        .unwrap_or_default();
    audit.entry("desired_deadline").or_insert_with(|| "1h".into());
    whole.insert("audit".into(), Value::Table(audit));
    toml::to_string(&whole).unwrap_or_default()
}

/// Devices that come back soon, and are given up on soon, make faults and heals visible.
fn run(whole: &mut Table) {
    let mut run = whole
        .remove("run")
        .and_then(|run| run.try_into::<Table>().ok())
        .unwrap_or_default();
    for (key, value) in [
        ("ack_timeout", "5s"),
        ("backoff_max", "2s"),
        ("drain", "30s"),
        ("scrape_interval", "2s"),
    ] {
        run.entry(key).or_insert_with(|| value.into());
    }
    whole.insert("run".into(), Value::Table(run));
}

fn fleets(whole: &mut Table, plan: &[Planned], prefix: &str) {
    let mut all = match whole.remove("fleet") {
        Some(Value::Array(all)) => all,
        Some(other) => vec![other],
        None => Vec::new(),
    };
    for planned in plan {
        all.extend(cohort(planned));
    }
    for fleet in &mut all {
        let Value::Table(fleet) = fleet else { continue };
        let name = fleet.get("name").and_then(Value::as_str).unwrap_or("device").to_owned();
        fleet
            .entry("id")
            .or_insert_with(|| format!("{prefix}-{name}-${{n}}").into());
    }
    whole.insert("fleet".into(), Value::Array(all));
    if plan.iter().any(|planned| planned.kind == "load.firmware_wave") {
        let mut operator = whole
            .remove("operator")
            .and_then(|o| o.try_into::<Table>().ok())
            .unwrap_or_default();
        operator.entry("firmware_share").or_insert(Value::Float(1.0));
        whole.insert("operator".into(), Value::Table(operator));
    }
    let misbehaving: Vec<&str> = plan.iter().map(|planned| planned.kind).collect();
    let mut profiles = whole
        .remove("profile")
        .and_then(|p| p.try_into::<Table>().ok())
        .unwrap_or_default();
    for (kind, name, text) in PROFILES {
        if misbehaving.contains(kind) {
            if let Ok(profile) = toml::from_str::<Table>(text) {
                profiles.insert((*name).to_owned(), Value::Table(profile));
            }
        }
    }
    if !profiles.is_empty() {
        whole.insert("profile".into(), Value::Table(profiles));
    }
}

/// Profiles of cohorts that misbehave, by fault.
const PROFILES: &[(&str, &str, &str)] = &[
    (
        "load.poison",
        "chaos-poison",
        "title = \"Garbage, no acknowledgements, slow reading\"\n[misbehave]\nnever_acks = 0.3\nslow_reader = 0.3\nslow_for = \"5s\"\nmalformed = 0.6\nmalformed_every = \"5s\"\n[[stream]]\ninterval = \"2s\"\npayload = '{\"n\":${n}}'\n",
    ),
    (
        "load.duplicate_ids",
        "chaos-duplicates",
        "title = \"Steal each other's ids\"\n[misbehave]\nduplicate_id = 0.5\n[[stream]]\ninterval = \"2s\"\npayload = '{\"n\":${n}}'\n",
    ),
    (
        "load.firmware_wave",
        "chaos-firmware",
        "title = \"Update themselves at once; a fifth fails, one in ten is bricked\"\n[firmware]\nfactory = \"1.0.0\"\ndownload_secs = { uniform = [1, 5] }\ninstall_secs = { uniform = [1, 3] }\nreboot_secs = { uniform = [1, 3] }\nfail_download = 0.1\nfail_verify = 0.05\nfail_install = 0.05\nfail_rollback = 0.05\nfail_brick = 0.1\n[[stream]]\ninterval = \"5s\"\npayload = '{\"n\":${n}}'\n[twin]\nreport_interval = \"5m\"\n",
    ),
];

/// The fleet that a fault of devices adds.
fn cohort(planned: &Planned) -> Option<Value> {
    let (profile, more) = match planned.kind {
        "load.poison" => ("chaos-poison", None),
        "load.duplicate_ids" => ("chaos-duplicates", None),
        "load.firmware_wave" => ("chaos-firmware", None),
        "load.chatty" => ("constant", Some(("interval", Value::from("20ms")))),
        _ => return None,
    };
    let mut fleet = Table::new();
    let name = planned.id.replace(['.', '_'], "-");
    fleet.insert("name".into(), name.into());
    fleet.insert("profile".into(), profile.into());
    fleet.insert(
        "count".into(),
        planned.with.get("devices").cloned().unwrap_or(Value::Integer(20)),
    );
    if let Some((key, value)) = more {
        fleet.insert(key.to_owned(), value);
    }
    Some(Value::Table(fleet))
}

fn phase(kind: &str, name: &str, length: Duration, more: &[(&str, Value)]) -> Value {
    let mut phase = Table::new();
    phase.insert("kind".into(), kind.into());
    phase.insert("name".into(), name.into());
    phase.insert(
        "duration".into(),
        Span(length.max(Duration::from_millis(1))).to_string().into(),
    );
    phase.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    Value::Table(phase)
}

/// Set-up, steady, faults with the storms in them, and time enough to heal and settle.
fn phases(drill: &Drill, plan: &[Planned]) -> Vec<Value> {
    let phases = &drill.phases;
    let mut all = vec![
        phase("ramp", "set-up", phases.ramp.0, &[]),
        phase("steady", "steady", phases.steady.0, &[]),
    ];
    let mut at = Duration::ZERO;
    for storm in plan.iter().filter(|planned| planned.kind == "load.reconnect_storm") {
        if storm.at < at || storm.at >= phases.faults.0 {
            continue; // one storm at a time
        }
        if storm.at > at {
            all.push(phase("steady", "faults", storm.at - at, &[]));
        }
        let length = storm.length.min(phases.faults.0 - storm.at);
        let share = storm.with.get("share").cloned().unwrap_or(Value::Float(1.0));
        let share = Value::Float(share.as_float().or(share.as_integer().map(|n| n as f64)).unwrap_or(1.0));
        all.push(phase("reconnect-storm", "storm", length, &[("share", share)]));
        at = storm.at + length;
    }
    if phases.faults.0 > at {
        all.push(phase("steady", "faults", phases.faults.0 - at, &[]));
    }
    all.push(phase("steady", "heal and settle", phases.settle.0 + HEALING, &[]));
    all
}
