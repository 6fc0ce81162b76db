//! Asking each node for itself: of a local cluster all or one, by URL the one at that address.

use clap::Args;
use reqwest::Method;
use serde_json::{json, Value};

use super::api::{Client, Request};
use super::cluster::Directory;
use super::device::Target;
use super::failure::Failure;
use super::output::{self, Output};

/// Which nodes are asked.
#[derive(Args, Clone, Debug)]
pub struct Reach {
    /// Only this node of the local cluster
    #[arg(long, value_name = "ID", conflicts_with = "url")]
    pub node: Option<u64>,
    #[command(flatten)]
    pub target: Target,
}

/// Each node's name with what it answered.
pub type Told = Vec<(String, Result<Value, Failure>)>;

/// # Errors
/// The target is wrong; a node that does not answer is told of in its place.
pub async fn ask_each<'a>(reach: &Reach, method: &Method, request: impl Fn() -> Request<'a>) -> Result<Told, Failure> {
    let clients = clients(reach)?;
    let asked = clients.into_iter().map(|(name, client)| {
        let request = request();
        async move {
            let answer = client.send(method.clone(), request).await;
            (name, answer.map(|answer| answer.body))
        }
    });
    Ok(futures::future::join_all(asked).await)
}

fn clients(reach: &Reach) -> Result<Vec<(String, Client)>, Failure> {
    let target = &reach.target;
    if let Some(url) = &target.url {
        return Ok(vec![(url.clone(), super::device::client(target)?)]);
    }
    let directory = Directory::open(&target.dir)?;
    let chosen = match reach.node {
        Some(id) => vec![directory.node(id)?.clone()],
        None => directory.file.nodes.clone(),
    };
    let token = target.token.as_deref().unwrap_or(&directory.file.token);
    let client = |node: super::cluster::NodeEntry| {
        let client = Client::new(vec![format!("http://{}", node.http)], token)?;
        Ok((node.id.to_string(), client))
    };
    chosen.into_iter().map(client).collect()
}

/// Shows one row per node; fails when one did not answer, after everything was shown.
///
/// # Errors
/// The first failure, with its exit code.
pub fn report(
    told: Told,
    output: Output,
    columns: &[&str],
    cells: impl Fn(&Value) -> Vec<String>,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut items = Vec::new();
    let mut failures: Vec<(String, Failure)> = Vec::new();
    for (node, answer) in told {
        match answer {
            Ok(view) => {
                rows.push(std::iter::once(node.clone()).chain(cells(&view)).collect());
                let mut item = view;
                if let Value::Object(members) = &mut item {
                    members.insert("node".to_owned(), name(&node));
                }
                items.push(item);
            }
            Err(failure) => {
                items.push(json!({ "node": name(&node), "error": failure.what, "why": failure.why }));
                failures.push((node, failure));
            }
        }
    }
    match output {
        Output::Json => output::json(&json!({ "nodes": items })),
        Output::Table if rows.is_empty() => {}
        Output::Table => output::table(columns, rows),
    }
    let Some((node, first)) = failures.first().cloned() else {
        return Ok(());
    };
    if failures.len() == 1 {
        let what = format!("node {node}: {}", first.what);
        return Err(Failure { what, ..first });
    }
    let reasons: Vec<String> = failures
        .iter()
        .map(|(node, failure)| format!("node {node}: {} ({})", failure.what, failure.why.replace('\n', "; ")))
        .collect();
    Err(
        Failure::new(first.exit, format!("{} nodes did not do it", failures.len()))
            .because(reasons.join("\n"))
            .advise(first.advice),
    )
}

fn name(node: &str) -> Value {
    node.parse::<u64>().map_or_else(|_| node.into(), Value::from)
}
