#![allow(clippy::unwrap_used)]
//! Fault leases on the shipped program: only where they are allowed, real while they last, and
//! over by themselves.

use std::time::Duration;

use holdfast_tests::harness::{client, eventually, Cluster, Plan};
use holdfast_tests::workload::{Plan as Load, Workload};
use reqwest::Method;
use serde_json::{json, Value};

const PATIENCE: Duration = Duration::from_secs(60);
const LEASES: &str = "/api/v1/chaos/leases";

/// One request to one node: status and body.
fn ask(cluster: &Cluster, id: u64, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
    let request = client(Duration::from_secs(20)).request(method, format!("http://{}{path}", cluster.node(id).http));
    let request = request.bearer_auth(&cluster.file.token);
    let request = match body {
        Some(body) => request.json(&body),
        None => request,
    };
    cluster.runtime().block_on(async {
        let answer = request.send().await.expect("the node answers");
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    })
}

fn install(cluster: &Cluster, id: u64, name: &str, body: Value) -> (u16, Value) {
    ask(cluster, id, Method::PUT, &format!("{LEASES}/{name}"), Some(body))
}

fn drop_all(ttl_ms: u64) -> Value {
    json!({ "fault": { "kind": "link.drop", "peer": "*", "direction": "both", "percent": 100 }, "ttl_ms": ttl_ms })
}

#[test]
fn a_node_that_does_not_allow_drills_takes_no_faults() {
    let cluster = Cluster::up(1);
    let (status, problem) = install(&cluster, 1, "x", drop_all(1_000));
    assert_eq!(
        (status, problem["type"].as_str()),
        (403, Some("urn:holdfast:problem:drills-not-allowed"))
    );
    assert!(
        problem["detail"].as_str().unwrap().contains("chaos.allow_drills"),
        "{problem}"
    );
    let (status, leases) = ask(&cluster, 1, Method::GET, LEASES, None);
    assert_eq!(
        (status, &leases["allowed"], &leases["leases"]),
        (200, &json!(false), &json!([]))
    );
    assert_eq!(
        ask(&cluster, 1, Method::DELETE, LEASES, None).0,
        204,
        "healing is always allowed"
    );
    let stranger = client(PATIENCE).put(format!("http://{}{LEASES}/x", cluster.node(1).http));
    let refused = cluster
        .runtime()
        .block_on(async { stranger.json(&drop_all(1_000)).send().await });
    let refused = refused.expect("the node answers");
    assert_eq!(refused.status(), 401);
}

fn drilled(nodes: u16) -> Cluster {
    let env = vec![("HOLDFAST_CHAOS_ALLOW_DRILLS".to_owned(), "true".to_owned())];
    Cluster::start_plan(Plan { nodes, env })
}

#[test]
fn a_bad_lease_is_refused_by_its_key_and_a_good_one_is_healed_on_demand() {
    let cluster = drilled(1);
    let bad = [
        (json!({ "fault": { "kind": "disk.full" }, "ttl_ms": 1 }), "ttl_ms"),
        (
            json!({ "fault": { "kind": "disk.fuller" }, "ttl_ms": 1_000 }),
            "fault.kind",
        ),
        (
            json!({ "fault": { "kind": "disk.sync_lies" }, "ttl_ms": 1_000 }),
            "fault.kind",
        ),
        (
            json!({ "fault": { "kind": "link.cut", "peer": 1 }, "ttl_ms": 1_000 }),
            "fault.peer",
        ),
    ];
    for (body, key) in bad {
        let (status, problem) = install(&cluster, 1, "x", body);
        assert_eq!((status, problem["key"].as_str()), (400, Some(key)), "{problem}");
    }
    assert_eq!(install(&cluster, 1, "no%20name", drop_all(1_000)).1["key"], "id");

    let full = json!({ "fault": { "kind": "disk.full" }, "ttl_ms": 600_000 });
    let (status, lease) = install(&cluster, 1, "full", full);
    assert_eq!(
        (status, &lease["kind"], &lease["node"]),
        (200, &json!("disk.full"), &json!(1))
    );
    eventually("a write is refused", PATIENCE, || {
        match ask(&cluster, 1, Method::PUT, "/api/v1/devices/lamp", Some(json!({}))).0 {
            429 => Ok(()),
            other => Err(format!("answered {other}")),
        }
    });
    assert_eq!(ask(&cluster, 1, Method::DELETE, &format!("{LEASES}/full"), None).0, 204);
    eventually("a write is taken", PATIENCE, || {
        match ask(&cluster, 1, Method::PUT, "/api/v1/devices/lamp", Some(json!({}))).0 {
            200 | 201 => Ok(()),
            other => Err(format!("answered {other}")),
        }
    });
    let (_, leases) = ask(&cluster, 1, Method::GET, LEASES, None);
    let past = &leases["past"][0];
    assert_eq!((&leases["leases"], &past["reason"]), (&json!([]), &json!("healed")));
    assert!(past["hits"].as_u64() > Some(0), "{leases}");
    assert!(cluster.log_contains(1, "fault lease installed") && cluster.log_contains(1, "fault lease ended"));
    assert!(cluster.counter(1, "holdfast_chaos_hits_total") > 0.0);
}

/// Black hole around a leader: the others lead, nothing acknowledged is lost, and the lease ends
/// without anybody's help.
#[test]
fn a_leader_whose_messages_vanish_is_replaced_and_comes_back_by_itself() {
    let cluster = drilled(3);
    let work = Workload::start(&cluster, Load::busy("leases"));
    work.acknowledge(500);
    let victim = cluster.busiest_leader();
    let other = cluster.ids().into_iter().find(|id| *id != victim).unwrap();
    let (status, lease) = install(&cluster, victim, "hole", drop_all(15_000));
    assert_eq!(status, 200, "{lease}");
    eventually("the others lead everything", PATIENCE, || {
        let status = cluster.status_of(other)?;
        let led: Vec<_> = status.shards.iter().map(|shard| shard.leader).collect();
        match led.iter().all(|leader| leader.is_some_and(|leader| leader != victim)) {
            true => Ok(()),
            false => Err(format!("{led:?}")),
        }
    });
    work.acknowledge(500);
    let past = eventually("the lease ends by itself", PATIENCE, || {
        let (_, leases) = ask(&cluster, victim, Method::GET, LEASES, None);
        match leases["leases"].as_array().is_some_and(Vec::is_empty) {
            true => Ok(leases["past"][0].clone()),
            false => Err(leases.to_string()),
        }
    });
    assert_eq!(past["reason"], "expired");
    assert!(past["hits"].as_u64() > Some(0), "{past}");
    work.every_shard_acknowledges();
    cluster.digests_agree(PATIENCE);
    work.finish_and_judge(&cluster);
}
