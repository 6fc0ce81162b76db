//! Where the fleet connects to: the scenario's lists, a `cluster.json`, names resolved once.

use std::fs;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::scenario::{Loaded, Protocol, Target, TargetKind};

/// Everything resolved; what a worker is told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Endpoints {
    pub mqtt: Vec<SocketAddr>,
    pub ws: Vec<SocketAddr>,
    pub http: Vec<SocketAddr>,
    pub token: Option<String>,
    /// Node ids in the order of `http`, where a cluster.json told.
    pub nodes: Vec<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum BadEndpoints {
    #[error("{path}: {why}")]
    Cluster { path: PathBuf, why: String },
    #[error("{endpoint} cannot be resolved: {why}")]
    Resolve { endpoint: String, why: String },
    #[error("the fleet {fleet:?} speaks {protocol}, and the target names no {list} endpoint")]
    Missing {
        fleet: String,
        protocol: &'static str,
        list: &'static str,
    },
    #[error("the environment variable {0}, which should hold the token, is not set")]
    Token(String),
    #[error("none of the endpoints answers: {0}")]
    Unreachable(String),
}

#[derive(Deserialize)]
struct ClusterFile {
    nodes: Vec<ClusterNode>,
    token: String,
}

#[derive(Deserialize)]
struct ClusterNode {
    id: u64,
    mqtt: String,
    http: String,
    #[serde(default)]
    ws: Option<String>,
}

impl Endpoints {
    pub fn of(&self, protocol: Protocol) -> &[SocketAddr] {
        match protocol {
            Protocol::Http => &self.http,
            protocol if protocol.is_ws() => &self.ws,
            _ => &self.mqtt,
        }
    }

    /// # Errors
    /// A file, a name or a token is not there, or a fleet has nowhere to go.
    pub fn resolve(loaded: &Loaded) -> Result<Self, BadEndpoints> {
        let spec = &loaded.scenario.target;
        let mut endpoints = filled(spec, &loaded.path)?;
        endpoints.token = match (&spec.token, &spec.token_env) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(name)) => Some(std::env::var(name).map_err(|_| BadEndpoints::Token(name.clone()))?),
            (None, None) => endpoints.token,
        };
        for (list, into) in [
            (&spec.mqtt, &mut endpoints.mqtt),
            (&spec.ws, &mut endpoints.ws),
            (&spec.http, &mut endpoints.http),
        ] {
            if !list.is_empty() {
                *into = list.iter().map(|text| resolve(text)).collect::<Result<_, _>>()?;
            }
        }
        for fleet in &loaded.scenario.fleet {
            for (protocol, weight) in &fleet.protocols {
                if *weight > 0 && endpoints.of(*protocol).is_empty() {
                    let list = match protocol {
                        Protocol::Http => "http",
                        protocol if protocol.is_ws() => "ws",
                        _ => "mqtt",
                    };
                    return Err(BadEndpoints::Missing {
                        fleet: fleet.name.clone(),
                        protocol: protocol.name(),
                        list,
                    });
                }
            }
        }
        Ok(endpoints)
    }

    /// Which endpoints that the scenario uses do not take a connection now, with why.
    ///
    /// # Errors
    /// None of them does.
    pub fn unreachable(&self, loaded: &Loaded) -> Result<Vec<String>, BadEndpoints> {
        let used = |protocol: &Protocol| loaded.scenario.fleet.iter().any(|f| f.protocols.contains_key(protocol));
        let mut all: Vec<SocketAddr> = Protocol::ALL
            .iter()
            .filter(|p| used(p))
            .flat_map(|p| self.of(*p))
            .copied()
            .collect();
        all.sort_unstable();
        all.dedup();
        let try_one = |address: &SocketAddr| {
            let failed = TcpStream::connect_timeout(address, Duration::from_secs(3)).err();
            failed.map(|error| format!("{address} ({error})"))
        };
        let failed: Vec<String> = all.iter().filter_map(try_one).collect();
        match failed.len() == all.len() {
            true => Err(BadEndpoints::Unreachable(failed.join(", "))),
            false => Ok(failed),
        }
    }
}

/// What a cluster.json tells.
fn filled(target: &Target, scenario: &Path) -> Result<Endpoints, BadEndpoints> {
    let Some(cluster) = &target.cluster else {
        return Ok(Endpoints::default());
    };
    let mut path = scenario.parent().unwrap_or(Path::new(".")).join(cluster);
    if path.is_dir() {
        path = path.join("cluster.json");
    }
    let bad = |why: String| BadEndpoints::Cluster {
        path: path.clone(),
        why,
    };
    let text = fs::read_to_string(&path).map_err(|error| bad(error.to_string()))?;
    let file: ClusterFile = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
    let list = |of: &dyn Fn(&ClusterNode) -> Option<String>| {
        let texts: Vec<String> = file.nodes.iter().filter_map(of).collect();
        texts.iter().map(|text| resolve(text)).collect::<Result<Vec<_>, _>>()
    };
    Ok(Endpoints {
        mqtt: if target.kind == TargetKind::Holdfast || target.mqtt.is_empty() {
            list(&|node| Some(node.mqtt.clone()))?
        } else {
            Vec::new()
        },
        ws: list(&|node| node.ws.clone())?,
        http: list(&|node| Some(node.http.clone()))?,
        token: Some(file.token.clone()),
        nodes: file.nodes.iter().map(|node| node.id).collect(),
    })
}

fn resolve(endpoint: &str) -> Result<SocketAddr, BadEndpoints> {
    let failed = |why: String| BadEndpoints::Resolve {
        endpoint: endpoint.to_owned(),
        why,
    };
    let mut found = endpoint.to_socket_addrs().map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("no address".into()))
}
