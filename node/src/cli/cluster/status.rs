//! `cluster status`: nodes, shards, and the worries of a person who is responsible for them, each
//! with what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::directory::{Directory, NodeEntry};
use super::process;
use super::view::{self, ShardView, View};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

/// Entries a replica may be behind before somebody is told.
const LAG_WORRY: u64 = 10_000;

/// Something to worry about. `serious`: a part of the cluster does not serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worry {
    pub serious: bool,
    pub what: String,
    pub advice: String,
}

/// One node as seen from outside.
pub struct NodeRow {
    pub node: NodeEntry,
    pub pid: Option<u32>,
    pub state: String,
    pub version: String,
    pub leads: usize,
    pub fault: Option<String>,
    pub repaired: Option<String>,
}

/// One shard, as its leader (or else whoever knows the highest term) sees it.
pub struct ShardRow {
    pub id: String,
    pub leader: Option<u64>,
    pub term: u64,
    pub applied: u64,
    pub lag_max: u64,
    pub lags: Vec<(u64, u64)>,
    pub faults: Vec<(u64, String)>,
}

pub async fn status(path: &Path, output: Output) -> Result<(), Failure> {
    let mut directory = Directory::open(path)?;
    let views = view::ask_all(&directory).await?;
    if let Some(known) = views
        .iter()
        .flatten()
        .map(|view| view.replication)
        .max()
        .filter(|known| *known > 0)
    {
        directory.file.replication = known;
    }
    let shards = shard_rows(&directory, &views);
    let nodes = node_rows(&directory, &views, &shards);
    let worries = worries(&directory, &nodes, &shards);
    match output {
        Output::Json => print_json(&directory, &nodes, &shards, &worries),
        Output::Table => print_table(&directory, &nodes, &shards, &worries, moving(&views)),
    }
    match worries.iter().filter(|worry| worry.serious).count() {
        0 => Ok(()),
        serious => Err(Failure::new(
            Exit::Unavailable,
            match serious {
                1 => "something must be mended".to_owned(),
                many => format!("{many} things must be mended"),
            },
        )
        .advise("see the worries above")),
    }
}

/// Replicas on their way, as whoever knows most of them says.
fn moving(views: &[Option<View>]) -> Option<String> {
    let view = views.iter().flatten().max_by_key(|view| view.moves.len())?;
    if view.moves.is_empty() {
        return None;
    }
    let (done, total, left) = view.rebalance.as_ref().map_or((0, 0, None), |moving| {
        (moving.replicas_done, moving.replicas_total, moving.seconds_left)
    });
    let left = left.map(|left| format!(", about {left} s left")).unwrap_or_default();
    let groups = view.moves.len();
    Some(format!(
        "moving: {done} of {total} replicas are there{left}; {groups} groups are not where they shall be"
    ))
}

/// Whether it is the catalog, the id, the name.
type ShardKey = (bool, u64, String);

fn shard_rows(directory: &Directory, views: &[Option<View>]) -> Vec<ShardRow> {
    // In the order of their ids, the catalog last; the name is what is shown.
    let mut seen: BTreeMap<ShardKey, Vec<(u64, &ShardView)>> = BTreeMap::new();
    for (node, view) in directory.file.nodes.iter().zip(views) {
        let Some(view) = view else { continue };
        for (shard, catalog) in view
            .shards
            .iter()
            .map(|s| (s, false))
            .chain(view.catalog.iter().map(|s| (s, true)))
        {
            let name = if catalog {
                "catalog".to_owned()
            } else {
                shard.id.to_string()
            };
            let key = (catalog, shard.id.as_u64().unwrap_or(0), name);
            seen.entry(key).or_default().push((node.id, shard));
        }
    }
    seen.into_iter()
        .map(|((_, _, id), said)| shard_row(id, &said))
        .collect()
}

fn shard_row(id: String, said: &[(u64, &ShardView)]) -> ShardRow {
    // A node that says of itself that it leads knows the lag; of two, the later term is right.
    let newest = said
        .iter()
        .max_by_key(|(node, shard)| (shard.term, shard.leader == Some(*node), shard.leader.is_some()));
    let lags = newest.map(|(_, shard)| shard.lags()).unwrap_or_default();
    ShardRow {
        id,
        leader: newest.and_then(|(_, shard)| shard.leader),
        term: newest.map_or(0, |(_, shard)| shard.term),
        applied: said.iter().map(|(_, shard)| shard.applied).max().unwrap_or(0),
        lag_max: lags.iter().map(|(_, lag)| *lag).max().unwrap_or(0),
        lags,
        faults: faults(said),
    }
}

/// Whose replica has which fault; every node repeats what it has heard: `node 2: rebuilding …`.
fn faults(said: &[(u64, &ShardView)]) -> Vec<(u64, String)> {
    let mut faults = BTreeMap::new();
    for (node, shard) in said {
        let Some(fault) = &shard.fault else { continue };
        let of = fault.strip_prefix("node ").and_then(|rest| rest.split_once(": "));
        let of = of.and_then(|(node, fault)| Some((node.parse().ok()?, fault)));
        let (node, fault) = of.unwrap_or((*node, fault));
        faults.insert(node, fault.to_owned());
    }
    faults.into_iter().collect()
}

fn node_rows(directory: &Directory, views: &[Option<View>], shards: &[ShardRow]) -> Vec<NodeRow> {
    let rows = directory.file.nodes.iter().zip(views).map(|(node, own)| {
        let pid = process::running(node).map(|running| running.pid);
        let said = |view: &View| view.nodes.iter().find(|said| said.id == node.id).cloned();
        // What it says of itself counts; else what the others say.
        let seen = own
            .as_ref()
            .and_then(said)
            .or_else(|| views.iter().flatten().find_map(said));
        let state = match (pid, own) {
            (None, _) => "stopped".to_owned(),
            (Some(_), None) => "silent".to_owned(),
            (Some(_), Some(_)) => seen.as_ref().map_or_else(|| "up".to_owned(), |seen| seen.state.clone()),
        };
        NodeRow {
            pid,
            state,
            version: seen.as_ref().map(|seen| seen.version.clone()).unwrap_or_default(),
            fault: seen.as_ref().and_then(|seen| seen.fault.clone()),
            repaired: seen.and_then(|seen| seen.repaired),
            leads: shards
                .iter()
                .filter(|shard| shard.id != "catalog" && shard.leader == Some(node.id))
                .count(),
            node: node.clone(),
        }
    });
    rows.collect()
}

/// What a responsible person should know, the serious first.
fn worries(directory: &Directory, nodes: &[NodeRow], shards: &[ShardRow]) -> Vec<Worry> {
    let mut worries = Vec::new();
    let dir = directory.path.display();
    for row in nodes {
        node_worries(row, &dir.to_string(), &mut worries);
    }
    leaderless(shards, &mut worries);
    for shard in shards {
        shard_worries(shard, nodes, &mut worries);
    }
    let known = shards.iter().filter(|shard| shard.id != "catalog").count();
    if known < usize::from(directory.file.shards) {
        worries.push(Worry {
            serious: true,
            what: format!(
                "{} of {} shards are unknown to whoever answers",
                usize::from(directory.file.shards) - known,
                directory.file.shards
            ),
            advice: format!("start the cluster with `holdfast cluster up --dir {dir}`"),
        });
    }
    uneven(nodes, &mut worries);
    single_replicas(directory, nodes, &mut worries);
    worries.sort_by_key(|worry| !worry.serious);
    worries
}

fn node_worries(row: &NodeRow, dir: &str, worries: &mut Vec<Worry>) {
    let (id, log) = (row.node.id, row.node.log.display());
    let mut worry = |serious, what: String, advice: String| worries.push(Worry { serious, what, advice });
    match row.state.as_str() {
        "stopped" => worry(
            true,
            format!("node {id} does not run"),
            format!("`holdfast cluster start {id} --dir {dir}`; why it ended may stand at the end of {log}"),
        ),
        "silent" => worry(
            true,
            format!("node {id} (pid {}) runs but does not answer", row.pid.unwrap_or(0)),
            format!(
                "look at the end of {log}; a paused process goes on with `kill -CONT {}`",
                row.pid.unwrap_or(0)
            ),
        ),
        "down" => worry(
            true,
            format!("node {id} does not answer its peers"),
            format!("look at the end of {log}, then `holdfast cluster stop {id} --dir {dir}` and start it again"),
        ),
        "damaged" => worry(
            true,
            format!(
                "node {id} is damaged and takes no part: {}",
                row.fault.as_deref().unwrap_or("see its log")
            ),
            format!("`holdfast cluster repair {id} --dir {dir}` replaces it; the other nodes serve meanwhile"),
        ),
        "rebuilding" => worry(
            true,
            format!("node {id} is being rebuilt: its applied state was damaged or lost"),
            "nothing: the other replicas send it theirs; look again whether it is done".to_owned(),
        ),
        "leaving" => worry(
            false,
            format!("node {id} is leaving, its replicas are being moved"),
            format!("`holdfast cluster rebalance --dir {dir}` shows how far it is"),
        ),
        "joining" => worry(
            true,
            format!("node {id} was let in and has not joined"),
            format!("`holdfast cluster start {id} --dir {dir}`, or `holdfast cluster remove {id} --dir {dir}`"),
        ),
        "draining" | "drained" => worry(
            false,
            format!("node {id} is {} and takes no new connections", row.state),
            format!("when the work on it is done: `holdfast cluster undrain {id} --dir {dir}`"),
        ),
        _ => {}
    }
    if let Some(repaired) = &row.repaired {
        worry(
            false,
            format!("node {id}: {repaired}"),
            "look at the disk; when you need the damaged copy no more, remove it".to_owned(),
        );
    }
    if row.pid.is_none() {
        if let Some(line) = process::log_tail(&row.node.log)
            .lines()
            .rev()
            .find(|line| is_fatal(line))
        {
            worry(
                true,
                format!("node {id} ended with: {line}"),
                "see docs/operations for this message".to_owned(),
            );
        }
    }
}

/// The last words of a node that ends itself; see `serve`.
fn is_fatal(line: &str) -> bool {
    line.contains(crate::serve::FATAL_MARK) || line.starts_with("error: ")
}

/// All shards without a leader have one cause, so they are one worry.
fn leaderless(shards: &[ShardRow], worries: &mut Vec<Worry>) {
    let without: Vec<&str> = shards
        .iter()
        .filter(|s| s.leader.is_none())
        .map(|s| s.id.as_str())
        .collect();
    let (catalog, devices): (Vec<&str>, Vec<&str>) = without.into_iter().partition(|id| *id == "catalog");
    let all = shards.iter().filter(|shard| shard.id != "catalog").count();
    let mut what = Vec::new();
    if !devices.is_empty() {
        what.push(format!(
            "{} of {} shards have no leader, their devices cannot write",
            devices.len(),
            all
        ));
    }
    if !catalog.is_empty() {
        what.push("the catalog has no leader, nothing can be drained or configured".to_owned());
    }
    if !what.is_empty() {
        worries.push(Worry {
            serious: true,
            what: what.join("; "),
            advice: "start enough nodes that a majority of the replicas runs; they then elect within seconds"
                .to_owned(),
        });
    }
}

fn shard_worries(shard: &ShardRow, nodes: &[NodeRow], worries: &mut Vec<Worry>) {
    let name = if shard.id == "catalog" {
        "the catalog".to_owned()
    } else {
        format!("shard {}", shard.id)
    };
    for (node, lag) in shard.lags.iter().filter(|(_, lag)| *lag > LAG_WORRY) {
        let runs = nodes.iter().any(|row| row.node.id == *node && row.pid.is_some());
        worries.push(Worry {
            serious: false,
            what: format!("{name} on node {node} is {lag} entries behind"),
            advice: if runs {
                "it catches up by itself; look again in a minute whether the number falls".to_owned()
            } else {
                format!("it cannot catch up while node {node} does not run")
            },
        });
    }
    for (node, fault) in &shard.faults {
        worries.push(Worry {
            serious: false,
            what: format!("{name} on node {node} takes no part: {fault}"),
            advice: "the other replicas serve; one that says it is rebuilding comes back by itself".to_owned(),
        });
    }
}

/// Two nodes look like safety and are none: each shard is on one of them.
fn single_replicas(directory: &Directory, nodes: &[NodeRow], worries: &mut Vec<Worry>) {
    if directory.file.replication != 1 || nodes.len() < 2 {
        return;
    }
    let dir = directory.path.display();
    worries.push(Worry {
        serious: false,
        what: format!(
            "each shard has one replica, on one of {} nodes: a node that stops takes its shards with it",
            nodes.len()
        ),
        advice: match nodes.len() {
            2 => format!("a third node makes it three replicas: `holdfast cluster add --dir {dir}`"),
            _ => format!("`holdfast cluster rebalance --replication 3 --dir {dir}`"),
        },
    });
}

/// Leaders should differ by little between the nodes that may lead.
fn uneven(nodes: &[NodeRow], worries: &mut Vec<Worry>) {
    let leads: BTreeSet<usize> = nodes
        .iter()
        .filter(|row| row.state == "up")
        .map(|row| row.leads)
        .collect();
    let (Some(least), Some(most)) = (leads.first(), leads.last()) else {
        return;
    };
    let total: usize = nodes.iter().map(|row| row.leads).sum();
    if most - least > 1 + total / nodes.len().max(1) / 2 {
        worries.push(Worry {
            serious: false,
            what: format!("leaders are uneven: between {least} and {most} per node"),
            advice: "they even out by themselves within a minute after a restart; if not, look into the logs"
                .to_owned(),
        });
    }
}

fn print_table(
    directory: &Directory,
    nodes: &[NodeRow],
    shards: &[ShardRow],
    worries: &[Worry],
    moving: Option<String>,
) {
    let rows = nodes.iter().map(|row| {
        vec![
            row.node.id.to_string(),
            row.state.clone(),
            row.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            row.node.zone.clone(),
            row.leads.to_string(),
            if row.version.is_empty() {
                "-".to_owned()
            } else {
                row.version.clone()
            },
            row.node.mqtt.to_string(),
            format!("http://{}", row.node.http),
        ]
    });
    output::table(
        &["node", "state", "pid", "zone", "leads", "version", "mqtt", "http"],
        rows.collect(),
    );
    let rows = shards.iter().map(|shard| {
        let leader = shard.leader.map_or_else(|| "none".to_owned(), |node| node.to_string());
        vec![
            shard.id.clone(),
            leader,
            shard.term.to_string(),
            shard.applied.to_string(),
            shard.lag_max.to_string(),
        ]
    });
    output::table(&["shard", "leader", "term", "applied", "lag"], rows.collect());
    let led = shards
        .iter()
        .filter(|shard| shard.id != "catalog" && shard.leader.is_some())
        .count();
    output::line(&format!(
        "{led} of {} shards have a leader · {} replicas each · cluster {}",
        directory.file.shards, directory.file.replication, directory.file.cluster_id
    ));
    if let Some(moving) = moving {
        output::line(&moving);
    }
    if worries.is_empty() {
        return output::line("nothing to worry about");
    }
    for worry in worries {
        output::line(&format!(
            "{} {}\n    → {}",
            if worry.serious { "✗" } else { "!" },
            worry.what,
            worry.advice
        ));
    }
}

fn print_json(directory: &Directory, nodes: &[NodeRow], shards: &[ShardRow], worries: &[Worry]) {
    let nodes = nodes.iter().map(|row| {
        json!({
            "id": row.node.id, "state": row.state, "pid": row.pid, "zone": row.node.zone, "leads": row.leads,
            "version": row.version, "fault": row.fault, "repaired": row.repaired, "mqtt": row.node.mqtt, "http": row.node.http, "peer": row.node.peer,
            "log": row.node.log,
        })
    });
    let shards = shards.iter().map(|shard| {
        let lag = shard
            .lags
            .iter()
            .map(|(node, entries)| json!({"node": node, "entries": entries}));
        let faults = shard
            .faults
            .iter()
            .map(|(node, fault)| json!({"node": node, "fault": fault}));
        json!({
            "id": shard.id, "leader": shard.leader, "term": shard.term, "applied": shard.applied,
            "lag": lag.collect::<Vec<_>>(), "faults": faults.collect::<Vec<_>>(),
        })
    });
    let listed = worries
        .iter()
        .map(|w| json!({"serious": w.serious, "what": w.what, "advice": w.advice}));
    output::json(&json!({
        "healthy": !worries.iter().any(|worry| worry.serious),
        "cluster_id": directory.file.cluster_id,
        "replication": directory.file.replication,
        "nodes": nodes.collect::<Vec<_>>(),
        "shards": shards.collect::<Vec<_>>(),
        "worries": listed.collect::<Vec<_>>(),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::cluster::Plan;

    fn three_nodes() -> (Directory, Vec<NodeRow>) {
        let plan = Plan {
            nodes: 3,
            base_port: 20_000,
            shards: 2,
        };
        let directory = Directory::design(Path::new("/x"), plan).expect("a design");
        let rows = directory.file.nodes.iter().map(|node| NodeRow {
            node: node.clone(),
            pid: Some(1),
            state: "up".to_owned(),
            version: "0.1.0".to_owned(),
            leads: 1,
            fault: None,
            repaired: None,
        });
        let rows = rows.collect();
        (directory, rows)
    }

    fn views(text: &str) -> Vec<Option<View>> {
        text.lines().map(|line| serde_json::from_str(line).ok()).collect()
    }

    const HEALTHY: &str = r#"{"shards":[{"id":0,"leader":1,"term":3,"applied":9,"lag":[[2,0],[3,1]]},{"id":1,"leader":2,"term":1,"applied":5}],"catalog":{"id":65535,"leader":1,"term":1}}
{"shards":[{"id":0,"leader":1,"term":3,"applied":8},{"id":1,"leader":2,"term":1,"applied":5,"lag":{"1":0,"3":2}}]}
{"shards":[{"id":0,"leader":null,"term":2,"applied":7},{"id":1,"leader":2,"term":1,"applied":3}]}"#;

    #[test]
    fn the_view_of_the_latest_term_counts_and_the_leader_knows_the_lag() {
        let (directory, nodes) = three_nodes();
        let shards = shard_rows(&directory, &views(HEALTHY));
        let ids: Vec<&str> = shards.iter().map(|shard| shard.id.as_str()).collect();
        assert_eq!(ids, ["0", "1", "catalog"]);
        assert_eq!((shards[0].leader, shards[0].term, shards[0].lag_max), (Some(1), 3, 1));
        assert_eq!((shards[1].leader, shards[1].lag_max), (Some(2), 2));
        assert_eq!(worries(&directory, &nodes, &shards), []);
    }

    #[test]
    fn each_worry_says_what_to_do() {
        let (directory, mut nodes) = three_nodes();
        nodes[0].state = "stopped".to_owned();
        nodes[0].pid = None;
        nodes[1].state = "draining".to_owned();
        let said = r#"{"shards":[{"id":0,"leader":null,"term":3},{"id":1,"leader":2,"term":1,"lag":[{"node":3,"entries":20000}]}]}"#;
        let mut said = views(said);
        said.insert(0, None);
        said.push(None);
        let found = worries(&directory, &nodes, &shard_rows(&directory, &said));
        for expected in [
            (true, "node 1 does not run", "holdfast cluster start 1 --dir /x"),
            (true, "1 of 2 shards have no leader", "majority"),
            (false, "node 2 is draining", "holdfast cluster undrain 2"),
            (
                false,
                "shard 1 on node 3 is 20000 entries behind",
                "catches up by itself",
            ),
        ] {
            let (serious, what, advice) = expected;
            let hit = found
                .iter()
                .any(|w| w.serious == serious && w.what.contains(what) && w.advice.contains(advice));
            assert!(hit, "{expected:?} in {found:?}");
        }
        assert!(found[0].serious, "serious ones first");
    }

    #[test]
    fn two_nodes_with_one_replica_each_are_told_to_be_no_safety() {
        let (mut directory, mut nodes) = three_nodes();
        nodes.pop();
        directory.file.replication = 1;
        let found = worries(&directory, &nodes, &shard_rows(&directory, &views(HEALTHY)));
        let told = found
            .iter()
            .find(|worry| worry.what.contains("one replica"))
            .expect("told");
        assert!(!told.serious && told.advice.contains("cluster add"), "{told:?}");
        nodes.pop();
        let alone = worries(&directory, &nodes, &shard_rows(&directory, &views(HEALTHY)));
        assert!(
            !alone.iter().any(|worry| worry.what.contains("one replica")),
            "{alone:?}"
        );
    }

    #[test]
    fn nobody_answering_is_serious() {
        let (directory, nodes) = three_nodes();
        let found = worries(&directory, &nodes, &shard_rows(&directory, &[None, None, None]));
        assert!(
            found
                .iter()
                .any(|w| w.serious && w.what.contains("2 of 2 shards are unknown")),
            "{found:?}"
        );
    }
}
