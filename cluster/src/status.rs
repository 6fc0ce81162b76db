//! The cluster as one node sees it: the catalog, and what every node that answers says of its own
//! replicas.

use std::collections::BTreeMap;
use std::time::Duration;

use actors::id::{NodeId, ShardId};
use actors::time::Timestamp;

use crate::api::{ClusterStatus, MovingStatus, NodeState, NodeStatus, ShardStatus, TokenStatus};
use crate::catalog::{Catalog, NodeRecord, Stage};
use crate::node::founding::founder;
use crate::node::start::Running;
use crate::router::protocol::{Ask, Condition, NodeReport, Told};
use crate::service::status_of;

/// How long the status waits for one peer.
const REPORT_DEADLINE: Duration = Duration::from_millis(800);

pub async fn of(running: &Running) -> ClusterStatus {
    let catalog = running.catalog.borrow().clone();
    let known = known_nodes(running, &catalog);
    let mut nodes: Vec<NodeId> = known.keys().copied().collect();
    if catalog.nodes.is_empty() {
        nodes.extend(running.transport.peers());
        nodes.sort_unstable();
        nodes.dedup();
    }
    let asks = nodes
        .into_iter()
        .map(|id| running.asking.node(id, Ask::Report, REPORT_DEADLINE));
    let reports: BTreeMap<NodeId, NodeReport> = futures::future::join_all(asks)
        .await
        .into_iter()
        .filter_map(|told| match told {
            Ok(Told::Report(report)) => Some((report.node, report)),
            _ => None,
        })
        .collect();
    let shards: Vec<ShardStatus> = (0..running.config.shards)
        .map(|id| merge_shard(running.me.node, ShardId(id), &catalog, &reports))
        .collect();
    let nodes = known
        .iter()
        .map(|(id, record)| node_status((*id, record), &catalog, &shards, reports.get(id)))
        .collect();
    let own = running.service.catalog.get().map(status_of);
    // A node without a catalog of its own repeats what the catalog's leader says.
    let leading = |report: &&NodeReport| report.catalog.as_ref().is_some_and(|c| c.leader == Some(report.node));
    let own = own.or_else(|| reports.values().find(leading)?.catalog.clone());
    let catalog_status = own.map(|own| {
        let led = own.leader.and_then(|leader| reports.get(&leader)?.catalog.clone());
        let faults = reports
            .values()
            .filter_map(|r| Some((r.node, r.catalog.as_ref()?.fault.as_ref()?)));
        ShardStatus {
            lag: led.map(|l| l.lag).unwrap_or_default(),
            fault: first_fault(faults),
            target: catalog.group.target.clone(),
            ..own
        }
    });
    ClusterStatus {
        epoch: catalog.epoch,
        cluster_id: running.config.cluster_id.clone(),
        answered_by: running.me.node,
        nodes,
        shards,
        catalog: catalog_status.unwrap_or_else(|| ShardStatus::unknown(ShardId::CATALOG)),
        // A quarantined node has no catalog of its own.
        replication: match catalog.replication {
            0 => running.config.replication,
            replication => replication,
        },
        moving: moving(&catalog, running.peers.clock.now()),
        next_node: catalog.next_node,
        tokens: catalog
            .tokens
            .iter()
            .map(|(id, token)| TokenStatus {
                id: id.clone(),
                created: token.created,
                expires: token.expires,
            })
            .collect(),
    }
}

/// As the catalog has them; a node without one (at the very start, and in quarantine) knows itself
/// and those it was configured with.
fn known_nodes(running: &Running, catalog: &Catalog) -> BTreeMap<NodeId, NodeRecord> {
    if !catalog.nodes.is_empty() {
        return catalog.present().map(|(id, record)| (id, record.clone())).collect();
    }
    let config = &running.config;
    let mut known: BTreeMap<NodeId, NodeRecord> = config.members.iter().map(|each| (each.id, founder(each))).collect();
    let me = NodeRecord {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..founder(&config.me)
    };
    known.insert(config.node_id, me);
    known
}

fn node_status(
    (id, record): (NodeId, &NodeRecord),
    catalog: &Catalog,
    shards: &[ShardStatus],
    report: Option<&NodeReport>,
) -> NodeStatus {
    let holds = catalog
        .shards
        .iter()
        .filter(|placement| placement.holders.contains(&id));
    let condition = report.map(|report| &report.condition);
    NodeStatus {
        id,
        zone: record.zone.clone(),
        state: state_of(condition, record),
        fault: fault_of(condition),
        scrub: report.map(|report| report.scrub),
        repaired: report.and_then(|report| report.aftermath.clone()),
        version: record.version.clone(),
        mqtt: record.mqtt.clone(),
        http: record.http.clone(),
        peer: record.peer.clone(),
        leads: u32::try_from(shards.iter().filter(|s| s.leader == Some(id)).count()).unwrap_or(0),
        replicas: u32::try_from(holds.count()).unwrap_or(0),
    }
}

/// How far the moving is, and how long it will take if it goes on like that.
fn moving(catalog: &Catalog, now: Timestamp) -> Option<MovingStatus> {
    let moving = catalog.moving?;
    let missing = catalog.replicas_missing();
    let done = moving.replicas.saturating_sub(missing);
    let passed = now.0.saturating_sub(moving.since.0);
    Some(MovingStatus {
        since: moving.since,
        total: moving.replicas,
        done,
        left_ms: (done > 0 || missing == 0).then(|| passed * u64::from(missing) / u64::from(done.max(1))),
    })
}

/// `None`: the node did not answer.
fn state_of(condition: Option<&Condition>, record: &NodeRecord) -> NodeState {
    match condition {
        _ if record.stage == Stage::Joining => NodeState::Joining,
        None => NodeState::Down,
        Some(Condition::Damaged(_)) => NodeState::Damaged,
        Some(Condition::Rebuilding) => NodeState::Rebuilding,
        Some(Condition::Whole) if record.stage != Stage::Member => NodeState::Leaving,
        Some(Condition::Whole) if record.draining => NodeState::Draining,
        Some(Condition::Whole) => NodeState::Up,
    }
}

fn fault_of(condition: Option<&Condition>) -> Option<String> {
    match condition? {
        Condition::Damaged(reason) => Some(reason.clone()),
        Condition::Rebuilding => Some("replicas that lost their state are being rebuilt from others".into()),
        Condition::Whole => None,
    }
}

fn first_fault<'a>(faults: impl Iterator<Item = (NodeId, &'a String)>) -> Option<String> {
    let mut faults = faults;
    faults.next().map(|(node, fault)| format!("node {node}: {fault}"))
}

/// The view of whoever leads in the highest term, with this node's own applied index and fault.
fn merge_shard(me: NodeId, id: ShardId, catalog: &Catalog, reports: &BTreeMap<NodeId, NodeReport>) -> ShardStatus {
    let views = || {
        reports
            .values()
            .filter_map(|r| r.shards.iter().find(|s| s.id == id).map(|s| (r.node, s)))
    };
    let leader = views()
        .filter(|(node, s)| s.leader == Some(*node))
        .max_by_key(|(_, s)| s.term);
    let own = views().find(|(node, _)| *node == me);
    let best = leader.or(own).or_else(|| views().max_by_key(|(_, s)| s.term));
    let mut status = best.map_or_else(|| ShardStatus::unknown(id), |(_, s)| s.clone());
    if leader.is_none() {
        // Nobody who answers claims to lead; a leader that cannot be asked does not count.
        status.leader = status.leader.filter(|node| reports.contains_key(node));
    }
    if let Some((_, own)) = own {
        status.applied = own.applied;
    }
    status.fault = first_fault(views().filter_map(|(node, s)| Some((node, s.fault.as_ref()?))));
    if status.voters.is_empty() {
        status.voters = catalog.placement(id).map(|p| p.voters.clone()).unwrap_or_default();
    }
    status.target = catalog.placement(id).map(|p| p.target.clone()).unwrap_or_default();
    status
}
