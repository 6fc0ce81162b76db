//! What operators do, through the commands and the API that people use.

use super::{http, outcome, refused, Outcome};
use crate::site::{HttpError, Site, SiteError};

/// Asks the nodes in turn; one that does not listen did nothing.
fn post(site: &Site, path: &str) -> Result<serde_json::Value, HttpError> {
    let client = http(site).map_err(|error| HttpError::Unknown(error.to_string()))?;
    let mut last = HttpError::Unknown("there is no node to ask".into());
    for node in site.current() {
        match client.post(&node.http, path) {
            Err(error @ HttpError::Closed(_)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

pub fn drain(site: &Site, node: u64) -> Outcome {
    match post(site, &format!("/api/v1/cluster/nodes/{node}/drain")) {
        Ok(_) => Outcome::Installed(format!("node {node} is drained")),
        Err(error) => refused(&error),
    }
}

/// Drains the next node and takes the mark of the one before away, so that leaderships wander.
pub fn shuffle(site: &Site, turn: &mut usize) -> Outcome {
    let nodes = site.current();
    if nodes.is_empty() {
        return Outcome::Skipped("there is no node".into());
    }
    let before = nodes[(*turn + nodes.len() - 1) % nodes.len()].id;
    let next = nodes[*turn % nodes.len()].id;
    *turn += 1;
    let _ = post(site, &format!("/api/v1/cluster/nodes/{before}/undrain"));
    drain(site, next)
}

pub fn add(site: &Site) -> Outcome {
    outcome(site.command(&["cluster", "add"]).map(|said| first(&said)))
}

pub fn remove_readd(site: &Site, node: u64) -> Outcome {
    if site.current().len() < 4 {
        return Outcome::Skipped("removing one of three nodes leaves too few for three replicas".into());
    }
    let deed = || -> Result<String, SiteError> {
        let removed = site.command(&["cluster", "remove", &node.to_string()])?;
        let added = site.command(&["cluster", "add"])?;
        Ok(format!("{}; {}", first(&removed), first(&added)))
    };
    outcome(deed())
}

pub fn two_changes(site: &Site) -> Outcome {
    let beside = site.clone();
    let second = std::thread::spawn(move || beside.command_beside(&["cluster", "rebalance", "--no-wait"]));
    let added = site.command(&["cluster", "add"]);
    let other = match second.join() {
        Ok(Ok(_)) => "the other was taken".to_owned(),
        Ok(Err(error)) => format!("the other was refused: {}", first(&error.to_string())),
        Err(_) => "the other panicked".to_owned(),
    };
    outcome(added.map(|said| format!("{}; {other}", first(&said))))
}

pub fn scrub(site: &Site) -> Outcome {
    let mut said = Vec::new();
    for node in site.current() {
        match post(site, &format!("/api/v1/cluster/nodes/{}/scrub", node.id)) {
            Ok(_) => said.push(node.id.to_string()),
            Err(error) => return refused(&error),
        }
    }
    Outcome::Installed(format!("nodes {} read everything they have", said.join(", ")))
}

fn first(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}
