//! The configuration in force as a person reads it: every key, its value, where that came from,
//! and whether a running node takes a change of it over. Secrets are shown as `"[secret]"`.

use std::path::{Path, PathBuf};

use serde_json::{json, Value};

use super::reader::{KnownKey, Place, Problem};
use super::NodeConfig;

/// Stands wherever a secret would.
pub const HIDDEN: &str = "\"[secret]\"";

/// Keys that a running node takes over on SIGHUP, in force at once for everything that comes
/// after it. All others wait for the next start.
pub const RELOADABLE: &[&str] = &[
    "devices.auto_register",
    "limits.connections_max",
    "limits.http_body_bytes_max",
    "limits.http_request_deadline",
    "limits.inflight_bytes_max",
    "limits.memory_bytes_max",
    "limits.message_ids_max",
    "limits.section_bytes_max",
    "limits.session_expiry_max",
    "limits.subscriptions_max",
    "limits.tags_bytes_max",
    "limits.twin_depth_max",
    "log.filter",
    "messages.dead_letters_max",
    "messages.deliveries_max",
    "messages.feedback_max",
    "messages.payload_bytes_max",
    "messages.queue_max",
    "messages.ttl",
    "messages.ttl_max",
    "retention.telemetry_count",
    "security.operator_token",
    "security.operator_token_file",
];

/// One key of a configuration in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `section.name`.
    pub key: String,
    /// TOML text; `None`: not set, and there is no default.
    pub value: Option<String>,
    pub place: Place,
    pub file: PathBuf,
}

/// What differs between two configurations, for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: String,
    pub from: String,
    pub to: String,
    /// Whether a running node takes it over.
    pub reloadable: bool,
}

/// Keys that nobody may read: they hold a secret themselves. Paths of secrets are no secret.
pub fn is_secret(name: &str) -> bool {
    let holds = ["secret", "token", "password", "private_key"];
    !name.ends_with("_file") && holds.iter().any(|word| name.contains(word))
}

pub fn is_reloadable(key: &str) -> bool {
    RELOADABLE.contains(&key)
}

pub fn of(known: &[KnownKey], file: &Path) -> Vec<Setting> {
    let setting = |key: &KnownKey| {
        let (value, place) = match &key.given {
            Some((text, place)) => (Some(text.clone()), place.clone()),
            None => (key.default.clone(), Place::Nowhere),
        };
        Setting {
            key: format!("{}.{}", key.section, key.name),
            value: value.map(|text| if is_secret(key.name) { HIDDEN.to_owned() } else { text }),
            place,
            file: file.to_owned(),
        }
    };
    known.iter().map(setting).collect()
}

impl Setting {
    /// `file:line`, the variable, `default`, or `not set`.
    pub fn source(&self) -> String {
        match (&self.place, &self.value) {
            (Place::Line(line), _) => format!("{}:{line}", self.file.display()),
            (Place::Variable(name), _) => format!("environment variable {name}"),
            (Place::Nowhere, Some(_)) => "default".to_owned(),
            (Place::Nowhere, None) => "not set".to_owned(),
        }
    }

    pub fn json(&self) -> Value {
        let (line, variable) = place_parts(&self.place);
        json!({
            "key": self.key, "value": self.value, "source": self.source(),
            "line": line, "variable": variable, "reloadable": is_reloadable(&self.key),
        })
    }
}

/// One problem as JSON; `line` and `variable` are null where they do not apply.
pub fn problem_json(problem: &Problem) -> Value {
    let (line, variable) = place_parts(&problem.place);
    json!({
        "file": problem.file, "line": line, "variable": variable, "key": problem.key,
        "reason": problem.reason, "message": problem.to_string(),
    })
}

fn place_parts(place: &Place) -> (Option<usize>, Option<&str>) {
    match place {
        Place::Line(line) => (Some(*line), None),
        Place::Variable(name) => (None, Some(name)),
        Place::Nowhere => (None, None),
    }
}

/// What `new` would change, in the order of the keys.
pub fn changes(old: &NodeConfig, new: &NodeConfig) -> Vec<Change> {
    let shown = |setting: Option<&Setting>| {
        let value = setting.and_then(|setting| setting.value.clone());
        value.unwrap_or_else(|| "not set".to_owned())
    };
    let mut changes: Vec<Change> = Vec::new();
    for setting in &new.settings {
        let before = old.settings.iter().find(|before| before.key == setting.key);
        let (from, to) = (shown(before), shown(Some(setting)));
        if from != to {
            changes.push(change(&setting.key, from, to));
        }
    }
    // A secret is compared by its bytes: it may have changed where its text is hidden, or in its file.
    let secrets = [
        ("cluster.secret", &old.cluster.secret, &new.cluster.secret),
        (
            "security.operator_token",
            &old.security.operator_token,
            &new.security.operator_token,
        ),
    ];
    for (key, before, after) in secrets {
        if before.0 != after.0 && !changes.iter().any(|change| change.key.starts_with(key)) {
            changes.push(change(key, HIDDEN.to_owned(), "\"[another secret]\"".to_owned()));
        }
    }
    changes
}

fn change(key: &str, from: String, to: String) -> Change {
    Change {
        key: key.to_owned(),
        from,
        to,
        reloadable: is_reloadable(key),
    }
}
