//! `holdfast config check`: would a node accept this file, and with which values would it run?

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{json, Value};

use super::failure::{Exit, Failure};
use super::output::{self, Output};
use crate::config::settings::{is_reloadable, problem_json};
use crate::config::{self, ConfigError, NodeConfig, Setting};

#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Say whether a node would accept a file, without starting anything
    ///
    /// Reads the file and the HOLDFAST_SECTION_KEY variables exactly as `holdfast node` does, and
    /// lists every problem at once: unknown keys, wrong types, values out of range, contradictions.
    /// Each one is named with file, line and key. Nothing is started, made or locked.
    #[command(
        after_help = "Example:\n  holdfast config check /etc/holdfast/node.toml",
        after_long_help = "Examples:\n  holdfast config check /etc/holdfast/node.toml\n  holdfast config check node.toml --show-effective     every value and where it comes from\n  holdfast config check node.toml --output json | jq '.problems[]'\n\nEnvironment:\n  HOLDFAST_SECTION_KEY   overrides a key, such as HOLDFAST_RAFT_HEARTBEAT_MS=200\n\nExit codes: 0 accepted; 65 refused, or the file cannot be read."
    )]
    Check {
        /// The node's configuration file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Also print every key with its value in force, where that comes from (file:line, an
        /// environment variable, the default), and whether SIGHUP takes a change of it over.
        /// Secrets are not shown
        #[arg(long)]
        show_effective: bool,
    },
}

/// # Errors
/// 65 when the file is refused.
pub fn run(command: ConfigCommand, output: Output) -> Result<(), Failure> {
    let ConfigCommand::Check { file, show_effective } = command;
    let checked = config::load(&file);
    match (output, checked) {
        (Output::Json, checked) => {
            output::json(&document(&file, &checked, show_effective));
            checked
                .map(|_| ())
                .map_err(|_| Failure::new(Exit::BadInput, "the configuration is refused").because("see `problems`"))
        }
        (Output::Table, Ok(config)) => {
            output::line(&format!(
                "{} is accepted: node {} of cluster {}",
                file.display(),
                config
                    .node
                    .id
                    .map_or_else(|| "that joins".to_owned(), |id| id.to_string()),
                config.cluster.id
            ));
            if show_effective {
                table(&config.settings);
            }
            Ok(())
        }
        (Output::Table, Err(error)) => Err(super::node::bad_config(error)),
    }
}

fn document(file: &std::path::Path, checked: &Result<NodeConfig, ConfigError>, show_effective: bool) -> Value {
    let problems: Vec<Value> = match checked {
        Err(ConfigError::Refused(problems)) => problems.iter().map(problem_json).collect(),
        Err(unreadable) => vec![json!({ "file": file, "reason": unreadable.to_string() })],
        Ok(_) => vec![],
    };
    let mut document = json!({ "file": file, "accepted": checked.is_ok(), "problems": problems });
    if let (true, Ok(config)) = (show_effective, checked) {
        document["effective"] = config.settings.iter().map(Setting::json).collect();
    }
    document
}

/// The longest value that a table shows whole; JSON has all of it.
const SHOWN_CHARS_MAX: usize = 60;

fn shortened(value: &str) -> String {
    if value.chars().count() <= SHOWN_CHARS_MAX {
        return value.to_owned();
    }
    let start: String = value.chars().take(SHOWN_CHARS_MAX).collect();
    format!("{start} …")
}

fn table(settings: &[Setting]) {
    let row = |setting: &Setting| {
        let changes = if is_reloadable(&setting.key) {
            "SIGHUP"
        } else {
            "restart"
        };
        vec![
            setting.key.clone(),
            shortened(setting.value.as_deref().unwrap_or_default()),
            setting.source(),
            changes.to_owned(),
        ]
    };
    output::table(
        &["key", "value", "from", "changes with"],
        settings.iter().map(row).collect(),
    );
}
