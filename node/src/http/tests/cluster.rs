//! The cluster as operators see it, and what became of a receipt.

use std::sync::atomic::Ordering;

use cluster::api::ClusterStatus;
use serde_json::json;

use super::{edge, send};

/// Tools may read the answer with the cluster's own types.
#[actix_web::test]
async fn the_cluster_shows_its_nodes_and_shards() {
    let edge = edge();
    let answer = edge.get("/cluster").await.expect(200);
    let body = answer.json();
    assert_eq!((&body["epoch"], &body["answered_by"]), (&json!(7), &json!(1)));
    let node = &body["nodes"][1];
    assert_eq!(
        (&node["id"], &node["zone"], &node["state"]),
        (&json!(2), &json!("zone-2"), &json!("up"))
    );
    let shard = &body["shards"][3];
    assert_eq!(
        (&shard["id"], &shard["leader"], &shard["term"]),
        (&json!(3), &json!(1), &json!(1))
    );
    assert_eq!((&shard["voters"], &shard["learners"]), (&json!([1, 2, 3]), &json!([])));
    let status: ClusterStatus = serde_json::from_str(&answer.text).unwrap();
    let status = serde_json::to_value(status).unwrap();
    for part in ["epoch", "nodes", "shards", "catalog", "replication", "next_node"] {
        assert_eq!(status[part], body[part], "{part}");
    }
    assert_eq!((&body["rebalance"], &body["moves"]), (&json!(null), &json!([])));
}

#[actix_web::test]
async fn a_receipt_tells_what_became_of_a_write() {
    let edge = edge();
    edge.create("lamp").await;
    let stored = send(edge.request("POST", "/devices/lamp/telemetry").body("1"))
        .await
        .expect(201);
    let receipt = stored.header("x-holdfast-receipt").unwrap();
    let body = edge.get(&format!("/receipts/{receipt}")).await.expect(200).json();
    let parts: Vec<u64> = receipt.split('-').map(|part| part.parse().unwrap()).collect();
    let expected =
        json!({"state": "committed", "shard": parts[0], "term": parts[1], "index": parts[2], "seq": parts[3]});
    assert_eq!((body, parts[3]), (expected, 1));
    let state =
        async |receipt: &str| edge.get(&format!("/receipts/{receipt}")).await.expect(200).json()["state"].clone();
    assert_eq!(state("0-1-999-1").await, "absent");
    assert_eq!(state("0-9-1-1").await, "unknown");
    assert_eq!(state("60000-1-1-1").await, "absent");
    for bad in ["1-2-3", "1-2-3-4-5", "x", "70000-1-1-1", "-1-1-1-1"] {
        edge.get(&format!("/receipts/{bad}"))
            .await
            .problem(400, "bad-parameter");
    }
}

#[actix_web::test]
async fn digests_come_per_replica() {
    let edge = edge();
    let body = edge.get("/cluster/shards/2/digest?index=5").await.expect(200).json();
    assert_eq!((&body["shard"], &body["index"]), (&json!(2), &json!(5)));
    assert_eq!(body["replicas"][0]["digest"], body["replicas"][1]["digest"]);
    assert_eq!(body["replicas"][2]["error"], "does not answer");
    assert_eq!(
        edge.get("/cluster/shards/0/digest").await.expect(200).json()["index"],
        0
    );
    for bad in ["4", "x", "65535"] {
        edge.get(&format!("/cluster/shards/{bad}/digest"))
            .await
            .problem(404, "shard-not-found");
    }
    edge.get("/cluster/shards/0/digest?index=x")
        .await
        .problem(400, "bad-parameter");
}

#[actix_web::test]
async fn a_scrub_is_asked_of_a_node_that_is_there() {
    let edge = edge();
    let answer = send(edge.request("POST", "/cluster/nodes/2/scrub")).await.expect(202);
    assert_eq!(answer.json(), json!({"running": true, "passes": 1, "bytes": 2}));
    send(edge.request("POST", "/cluster/nodes/9/scrub"))
        .await
        .problem(404, "node-not-found");
}

#[actix_web::test]
async fn draining_a_node_is_idempotent() {
    let edge = edge();
    for _ in 0..2 {
        let body = send(edge.request("POST", "/cluster/nodes/2/drain"))
            .await
            .expect(202)
            .json();
        assert_eq!(body, json!({"node": 2, "draining": true}));
        assert_eq!(edge.get("/cluster").await.json()["nodes"][1]["state"], "draining");
    }
    for _ in 0..2 {
        send(edge.request("POST", "/cluster/nodes/2/undrain")).await.expect(200);
        assert_eq!(edge.get("/cluster").await.json()["nodes"][1]["state"], "up");
    }
    for bad in ["4", "x", "-1"] {
        send(edge.request("POST", &format!("/cluster/nodes/{bad}/drain")))
            .await
            .problem(404, "node-not-found");
    }
    send(edge.request("POST", "/cluster/nodes/2/remove"))
        .await
        .problem(409, "cluster-conflict");
}

#[actix_web::test]
async fn readiness_follows_the_cluster_and_liveness_does_not() {
    let edge = edge();
    let probe = async |path| send(edge.bare("GET", path)).await;
    probe("/readyz").await.expect(200);
    edge.fake.draining.store(true, Ordering::Relaxed);
    edge.fake.leaderless.store(true, Ordering::Relaxed);
    let problem = probe("/readyz").await.problem(503, "not-ready");
    assert_eq!(problem["reasons"].as_array().unwrap().len(), 2);
    probe("/livez").await.expect(200);
    edge.fake.draining.store(false, Ordering::Relaxed);
    edge.fake.leaderless.store(false, Ordering::Relaxed);
    probe("/readyz").await.expect(200);
    edge.server.announce_stop();
    probe("/readyz").await.problem(503, "not-ready");
}

#[actix_web::test]
async fn nodes_come_and_go_by_request() {
    let edge = edge();
    let node =
        r#"{"uuid":"2a","zone":"a","version":"1","mqtt":"127.0.0.1:1","http":"127.0.0.1:2","peer":"127.0.0.1:3"}"#;
    let admitted = edge.send_json("POST", "/cluster/nodes", node).await.expect(201).json();
    assert_eq!((&admitted["id"], &admitted["peers"][0]["id"]), (&json!(4), &json!(1)));
    let moving = send(edge.request("POST", "/cluster/rebalance"))
        .await
        .expect(202)
        .json();
    assert_eq!(moving["replicas"], 19);
    let left = edge
        .send_json("POST", "/cluster/nodes/3/remove", r#"{"dead":true}"#)
        .await
        .expect(202);
    assert_eq!(left.json(), json!({"node": 3, "state": "leaving"}));
    edge.send_json("POST", "/cluster/nodes/2/remove", "")
        .await
        .problem(409, "cluster-conflict");
    edge.send_json("POST", "/cluster/nodes/x/remove", "")
        .await
        .problem(404, "node-not-found");
    edge.send_json("POST", "/cluster/nodes/3/remove", r#"{"deaf":true}"#)
        .await
        .problem(400, "unknown-field");
    edge.send_json("POST", "/cluster/nodes", "{}")
        .await
        .problem(400, "invalid-body");
}

/// A join token is good for joining, and for nothing else.
#[actix_web::test]
async fn a_join_token_opens_one_path_only() {
    let edge = edge();
    let node =
        r#"{"uuid":"2a","zone":"a","version":"1","mqtt":"127.0.0.1:1","http":"127.0.0.1:2","peer":"127.0.0.1:3"}"#;
    let with = |method: &str, path: &str| edge.bare(method, &format!("/api/v1{path}")).bearer_auth("hfj-a1-b2");
    let judged = send(super::json(with("POST", "/cluster/nodes"), node)).await;
    judged.problem(403, "join-refused");
    for (method, path) in [
        ("GET", "/cluster"),
        ("POST", "/cluster/rebalance"),
        ("POST", "/cluster/nodes/3/remove"),
    ] {
        send(with(method, path)).await.problem(401, "unauthenticated");
    }
}
