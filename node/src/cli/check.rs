//! `holdfast config check`: would a node accept this file?

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::output::{self, Output};
use crate::config::{self, ConfigError, Place};

#[derive(Subcommand, Debug)]
pub enum ConfigCommand {
    /// Say whether a node would accept a file, without starting anything
    #[command(
        after_help = "Example:\n  holdfast config check /etc/holdfast/node.toml\n\nEnds with 0 when it is accepted, else with 65 and file, line and key of every problem."
    )]
    Check {
        /// The node's configuration file
        file: PathBuf,
    },
}

pub fn run(command: ConfigCommand, output: Output) -> Result<(), Failure> {
    let ConfigCommand::Check { file } = command;
    let checked = config::load(&file);
    if output == Output::Json {
        let problems = match &checked {
            Err(ConfigError::Refused(problems)) => problems.iter().map(problem).collect(),
            Err(unreadable) => vec![json!({ "reason": unreadable.to_string() })],
            Ok(_) => vec![],
        };
        output::json(&json!({ "accepted": checked.is_ok(), "problems": problems }));
    }
    match checked {
        Ok(config) if output == Output::Table => {
            output::line(&format!(
                "{} is accepted: node {} of cluster {}",
                file.display(),
                config.node.id,
                config.cluster.id
            ));
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(_) if output == Output::Json => Err(Failure::new(Exit::BadInput, "the configuration is refused")),
        Err(error) => Err(super::node::bad_config(error)),
    }
}

fn problem(problem: &config::Problem) -> serde_json::Value {
    let (line, variable) = match &problem.place {
        Place::Line(line) => (Some(*line), None),
        Place::Variable(name) => (None, Some(name)),
        Place::Nowhere => (None, None),
    };
    json!({ "line": line, "variable": variable, "key": problem.key, "reason": problem.reason })
}
