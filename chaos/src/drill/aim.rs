//! From a planned fault to its deeds: whom it hits, as the cluster is at that moment.

use std::collections::BTreeSet;

use serde_json::{json, Value};
use simulator::payloads::chance::Chance;

use super::plan::Planned;
use super::view::View;
use crate::damage::Damage;
use crate::deed::Deed;
use crate::proxy::Toxic;

/// Who is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Leads most shards.
    Busiest,
    Idlest,
    Random,
    All,
    /// As many as may be gone while a majority is left.
    Minority,
    /// Leads the catalog.
    Catalog,
    Node(u64),
    /// Leads this shard.
    Shard(u16),
    Zone(String),
}

/// # Errors
/// What is allowed.
pub fn parse(text: &str) -> Result<Who, String> {
    let number = |prefix: &str| text.strip_prefix(prefix)?.parse::<u64>().ok();
    Ok(match text {
        "busiest" => Who::Busiest,
        "idlest" => Who::Idlest,
        "random" => Who::Random,
        "all" => Who::All,
        "minority" => Who::Minority,
        "catalog" => Who::Catalog,
        _ => match (number("node:"), number("shard:"), text.strip_prefix("zone:")) {
            (Some(id @ 1..), ..) => Who::Node(id),
            (_, Some(id), _) if id <= 1_024 => Who::Shard(id as u16),
            (.., Some(zone)) if !zone.is_empty() => Who::Zone(zone.to_owned()),
            _ => {
                return Err(format!(
                    "{text:?} names nobody; use busiest, idlest, random, all, minority, catalog, node:N, shard:N or zone:NAME"
                ))
            }
        },
    })
}

/// A fault with its targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Aimed {
    pub deeds: Vec<Deed>,
    /// Nodes it concerns directly.
    pub nodes: Vec<u64>,
}

/// # Errors
/// Nobody is there to be hit.
pub fn aim(planned: &Planned, view: &View) -> Result<Aimed, String> {
    let mut chance = Chance::new(planned.seed);
    let nodes = targets(&planned.on, view, &mut chance)?;
    let mut aimed = match planned.kind.split_once('.') {
        Some(("partition", shape)) => partition(planned, shape, view, nodes),
        _ => Aimed {
            deeds: nodes.iter().map(|node| deed(planned, *node)).collect(),
            nodes,
        },
    };
    if is_whole_cluster(planned.kind) {
        aimed.deeds.truncate(1);
        aimed.nodes = match planned.kind {
            "power.cut" | "disk.fill" | "operator.leader_shuffle" => view.ids(),
            _ => Vec::new(),
        };
    }
    Ok(aimed)
}

/// One deed concerns everybody, whoever was named.
fn is_whole_cluster(kind: &str) -> bool {
    kind.starts_with("load.")
        || matches!(
            kind,
            "power.cut"
                | "disk.fill"
                | "operator.leader_shuffle"
                | "operator.add_node"
                | "operator.two_changes"
                | "operator.scrub"
        )
}

fn targets(on: &str, view: &View, chance: &mut Chance) -> Result<Vec<u64>, String> {
    let ids = view.ids();
    if ids.is_empty() {
        return Err("the cluster has no node".into());
    }
    let any = |chance: &mut Chance| ids[chance.below(ids.len() as u64) as usize];
    let by_load = || {
        let mut sorted = ids.clone();
        sorted.sort_by_key(|id| view.leads(*id));
        sorted
    };
    Ok(match parse(on)? {
        Who::Random => vec![any(chance)],
        Who::All => ids,
        Who::Busiest => by_load().last().copied().into_iter().collect(),
        Who::Idlest => by_load().first().copied().into_iter().collect(),
        Who::Minority => {
            let mut rest = ids.clone();
            let many = (ids.len() - 1) / 2;
            (0..many.max(1))
                .map(|_| rest.remove(chance.below(rest.len() as u64) as usize))
                .collect()
        }
        Who::Catalog => match view.catalog.as_ref().and_then(|catalog| catalog.leader) {
            Some(leader) => vec![leader],
            None => vec![any(chance)],
        },
        Who::Node(id) if ids.contains(&id) => vec![id],
        Who::Node(id) => return Err(format!("there is no node {id}")),
        Who::Shard(id) => {
            let shard = view.shards.iter().find(|shard| shard.id == id);
            let leader = shard.and_then(|shard| shard.leader);
            vec![leader.ok_or_else(|| format!("shard {id} has no leader"))?]
        }
        Who::Zone(zone) => {
            let inside = view.nodes.iter().filter(|node| node.zone == zone);
            let found: Vec<u64> = inside.map(|node| node.id).collect();
            match found.is_empty() {
                true => return Err(format!("there is no node in zone {zone}")),
                false => found,
            }
        }
    })
}

/// A number of the fault's parameters; the catalogue has checked it.
fn number(planned: &Planned, name: &str) -> u64 {
    let value = planned.with.get(name).and_then(toml::Value::as_integer);
    u64::try_from(value.unwrap_or(0)).unwrap_or(0)
}

fn word<'a>(planned: &'a Planned, name: &str) -> &'a str {
    planned.with.get(name).and_then(toml::Value::as_str).unwrap_or_default()
}

fn deed(planned: &Planned, node: u64) -> Deed {
    let percent = || number(planned, "percent") as u8;
    let toxic = |toxic| Deed::Toxic {
        node,
        name: format!("{}-{node}", planned.id),
        toxic,
    };
    let damage = |how| Deed::Damage {
        node,
        part: word(planned, "part").to_owned(),
        how,
    };
    match planned.kind {
        "process.kill" => Deed::Kill { node },
        "process.stop" => Deed::Stop { node },
        "process.pause" => Deed::Pause { node },
        "process.crash_loop" => Deed::CrashLoop {
            node,
            every_ms: number(planned, "every_ms"),
        },
        "process.slow_start" => Deed::SlowStart {
            node,
            pause_ms: number(planned, "pause_ms"),
        },
        "process.double_start" => Deed::DoubleStart { node },
        "process.empty_disk" => Deed::EmptyDisk { node },
        "client.latency" => toxic(Toxic::Latency {
            ms: number(planned, "ms"),
            jitter_ms: number(planned, "jitter_ms"),
        }),
        "client.loss" => toxic(Toxic::Loss {
            percent: percent(),
            ms: number(planned, "ms"),
        }),
        "client.reset" => toxic(Toxic::Reset { percent: percent() }),
        "client.half_open" => toxic(Toxic::HalfOpen),
        "client.black_hole" => toxic(Toxic::BlackHole),
        "client.bandwidth" => toxic(Toxic::Bandwidth {
            bytes_per_second: number(planned, "bytes_per_second"),
        }),
        "client.slow_reader" => toxic(Toxic::SlowReader {
            bytes_per_second: number(planned, "bytes_per_second"),
        }),
        "client.corrupt" => toxic(Toxic::Corrupt { percent: percent() }),
        "file.bit_flip" => damage(Damage::BitFlip),
        "file.truncate" => damage(Damage::Truncate),
        "file.missing" => damage(Damage::Missing),
        "file.old_copy" => Deed::OldCopy { node },
        "disk.fill" => Deed::Fill,
        "power.cut" => Deed::PowerCut {
            torn_seed: (word(planned, "unsynced") == "torn").then_some(planned.seed),
        },
        "operator.drain" => Deed::Drain { node },
        "operator.leader_shuffle" => Deed::Shuffle,
        "operator.add_node" => Deed::AddNode,
        "operator.remove_readd" => Deed::RemoveReadd { node },
        "operator.two_changes" => Deed::TwoChanges,
        "operator.scrub" => Deed::Scrub,
        "operator.snapshot_purge" => Deed::Impossible {
            why: "there is no API for it: nodes flush, snapshot and purge by themselves".into(),
        },
        "disk.sync_lies" => Deed::Impossible {
            why: "a node cannot lie to itself: the kernel keeps what was written and not synced; use power.cut".into(),
        },
        kind if kind.starts_with("load.") => Deed::Elsewhere,
        kind => Deed::Lease {
            node,
            lease: lease_id(planned, node, None),
            fault: lease(planned),
            restarts: kind.starts_with("disk."),
        },
    }
}

/// Names a lease: of this fault, on this node, about this peer.
fn lease_id(planned: &Planned, node: u64, peer: Option<u64>) -> String {
    let peer = peer.map_or(String::new(), |peer| format!("-{peer}"));
    format!("{}-n{node}{peer}", planned.id)
}

/// The body a node wants: the kind and its parameters.
fn lease(planned: &Planned) -> Value {
    let mut body = json!({ "kind": planned.kind });
    for (name, value) in &planned.with {
        body[name] = match value {
            toml::Value::Integer(number) => json!(number),
            toml::Value::Float(number) => json!(number),
            toml::Value::String(text) => json!(text),
            toml::Value::Boolean(is) => json!(is),
            _ => Value::Null,
        };
    }
    body
}

/// Leases that cut `node` off from `peers`.
fn cuts(planned: &Planned, node: u64, peers: impl IntoIterator<Item = u64>, direction: &str) -> Vec<Deed> {
    let cut = |peer| Deed::Lease {
        node,
        lease: lease_id(planned, node, Some(peer)),
        // A black hole, as networks make them; `link.cut` is a firewall that answers.
        fault: json!({ "kind": "link.drop", "peer": peer, "direction": direction, "percent": 100 }),
        restarts: false,
    };
    peers.into_iter().map(cut).collect()
}

fn partition(planned: &Planned, shape: &str, view: &View, nodes: Vec<u64>) -> Aimed {
    let ids = view.ids();
    let one = nodes.first().copied().unwrap_or(1);
    let others = |node: u64| ids.iter().copied().filter(move |id| *id != node);
    let start = ids.iter().position(|id| *id == one).unwrap_or(0);
    let turned: Vec<u64> = (0..ids.len()).map(|step| ids[(start + step) % ids.len()]).collect();
    match shape {
        "isolate" => Aimed {
            deeds: nodes
                .iter()
                .flat_map(|node| cuts(planned, *node, others(*node), "both"))
                .collect(),
            nodes,
        },
        "one_way" => Aimed {
            deeds: nodes
                .iter()
                .flat_map(|node| cuts(planned, *node, others(*node), word(planned, "direction")))
                .collect(),
            nodes,
        },
        "flapping" => Aimed {
            deeds: nodes
                .iter()
                .map(|node| Deed::Flap {
                    node: *node,
                    lease: lease_id(planned, *node, None),
                    fault: json!({ "kind": "link.drop", "peer": "*", "percent": 100 }),
                    every_ms: number(planned, "every_ms"),
                })
                .collect(),
            nodes,
        },
        "halves" => {
            let (small, large) = turned.split_at(ids.len() / 2);
            Aimed {
                deeds: small
                    .iter()
                    .flat_map(|node| cuts(planned, *node, large.iter().copied(), "both"))
                    .collect(),
                nodes: small.to_vec(),
            }
        }
        "bridge" => {
            // The first is the bridge; the rest fall into halves that do not hear each other.
            let (left, right) = turned[1..].split_at(ids.len().saturating_sub(1) / 2);
            Aimed {
                deeds: left
                    .iter()
                    .flat_map(|node| cuts(planned, *node, right.iter().copied(), "both"))
                    .collect(),
                nodes: left.iter().chain(right).copied().collect(),
            }
        }
        _ => ring(planned, &turned),
    }
}

/// Every node hears its neighbours on either side, which makes a majority, and nobody else.
fn ring(planned: &Planned, turned: &[u64]) -> Aimed {
    let many = turned.len();
    if many < 4 {
        let why = "a ring of majorities takes four nodes: with three everybody is everybody's neighbour".into();
        return Aimed {
            deeds: vec![Deed::Impossible { why }],
            nodes: Vec::new(),
        };
    }
    let reach = many / 2 / 2 + (many / 2) % 2;
    let mut done = BTreeSet::new();
    let mut deeds = Vec::new();
    for (at, node) in turned.iter().enumerate() {
        for (other_at, other) in turned.iter().enumerate() {
            let far = at.abs_diff(other_at).min(many - at.abs_diff(other_at));
            if far > reach && done.insert((at.min(other_at), at.max(other_at))) {
                deeds.extend(cuts(planned, *node, [*other], "both"));
            }
        }
    }
    Aimed {
        deeds,
        nodes: turned.to_vec(),
    }
}
