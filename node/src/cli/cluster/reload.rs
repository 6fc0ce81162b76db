//! `cluster reload`: every running node reads its configuration again, as on SIGHUP, and says what
//! came of it.

use reqwest::Method;
use serde_json::Value;

use crate::cli::api::Request;
use crate::cli::failure::Failure;
use crate::cli::nodes::{self, Reach};
use crate::cli::output::Output;

/// # Errors
/// A node refused its file (65) or did not answer (69).
pub async fn reload(reach: Reach, output: Output) -> Result<(), Failure> {
    let told = nodes::ask_each(&reach, &Method::POST, || Request {
        path: "/api/v1/node/reload",
        ..Request::default()
    })
    .await?;
    nodes::report(told, output, &["node", "changed", "needs a restart"], |view| {
        ["changed", "needs_restart"].map(|list| shown(&view[list])).to_vec()
    })
}

fn shown(changes: &Value) -> String {
    let text = |change: &Value, key: &str| change[key].as_str().unwrap_or_default().to_owned();
    let changes = changes.as_array().map(Vec::as_slice).unwrap_or_default();
    let lines = changes.iter().map(|change| {
        format!(
            "{}: {} → {}",
            text(change, "key"),
            text(change, "from"),
            text(change, "to")
        )
    });
    let lines: Vec<String> = lines.collect();
    match lines.is_empty() {
        true => "nothing".to_owned(),
        false => lines.join("\n"),
    }
}
