//! What a client learns when the cluster cannot answer. Unknown is never told as failed.

use std::time::Duration;

use actors::id::ShardId;
use actors::ports::CallError;

use super::fake::Trouble;
use super::{edge, json as as_json, send, Edge};

fn no_leader() -> Trouble {
    Trouble::Error(CallError::NotLeader {
        shard: ShardId(3),
        leader: Some(2),
    })
}

fn overloaded() -> Trouble {
    Trouble::Error(CallError::Overloaded {
        what: "shard queue".into(),
    })
}

fn unknown() -> Trouble {
    Trouble::Error(CallError::Unknown)
}

#[actix_web::test]
async fn each_trouble_has_its_status_for_writes_and_for_reads() {
    let edge = edge();
    edge.create("lamp").await;
    type Make = fn() -> Trouble;
    let rows: [(Make, u16, &str, u16, &str); 3] = [
        (no_leader, 503, "no-leader", 503, "no-leader"),
        (overloaded, 429, "overloaded", 429, "overloaded"),
        (unknown, 504, "unknown", 503, "unavailable"),
    ];
    for (make, write_status, write_name, read_status, read_name) in rows {
        for (method, path, body) in [
            ("PUT", "/devices/lamp", "{}"),
            ("PATCH", "/devices/lamp", "{}"),
            ("DELETE", "/devices/lamp", ""),
            ("PATCH", "/devices/lamp/twin", r#"{"tags":{}}"#),
            ("PUT", "/devices/lamp/twin/tags", "{}"),
            ("POST", "/devices/lamp/telemetry", "1"),
            ("POST", "/cluster/nodes/1/drain", ""),
        ] {
            edge.fake.trouble(make());
            edge.send_json(method, path, body)
                .await
                .problem(write_status, write_name);
        }
        for path in [
            "/devices",
            "/devices/lamp",
            "/devices/lamp/twin",
            "/devices/lamp/telemetry",
            "/receipts/0-1-1-1",
            "/cluster/shards/0/digest",
        ] {
            edge.fake.trouble(make());
            edge.get(path).await.problem(read_status, read_name);
        }
    }
}

#[actix_web::test]
async fn a_deadline_ends_a_write_as_unknown_and_a_read_as_unavailable() {
    let edge = edge();
    edge.create("lamp").await;
    let quick = |method, path| edge.request(method, path).header("X-Holdfast-Timeout-Ms", "100");
    edge.fake.trouble(Trouble::Silence);
    send(quick("POST", "/devices/lamp/telemetry").body("1"))
        .await
        .problem(504, "unknown");
    edge.fake.trouble(Trouble::Silence);
    send(as_json(quick("PUT", "/devices/lamp"), "{}"))
        .await
        .problem(504, "unknown");
    edge.fake.trouble(Trouble::Silence);
    send(quick("GET", "/devices/lamp")).await.problem(503, "unavailable");
    edge.fake.trouble(Trouble::Silence);
    edge.get("/devices/lamp/telemetry?timeout_ms=100")
        .await
        .problem(503, "unavailable");
}

#[actix_web::test]
async fn timeouts_out_of_bounds_are_refused() {
    let edge = edge();
    for bad in ["99", "60001", "x", "", "-5"] {
        let request = edge
            .request("GET", "/devices/lamp")
            .header("X-Holdfast-Timeout-Ms", bad);
        send(request).await.problem(400, "bad-parameter");
        edge.get(&format!("/devices/lamp?timeout_ms={bad}"))
            .await
            .problem(400, "bad-parameter");
    }
}

#[actix_web::test]
async fn a_panic_in_a_handler_is_contained() {
    let edge = edge();
    edge.create("lamp").await;
    edge.fake.trouble(Trouble::Panic);
    edge.get("/devices/lamp").await.problem(500, "internal");
    edge.get("/devices/lamp").await.expect(200);
}

async fn in_flight(edge: &Edge) -> tokio::task::JoinHandle<u16> {
    edge.fake.trouble(Trouble::Silence);
    let request = edge
        .request("GET", "/devices/lamp")
        .header("X-Holdfast-Timeout-Ms", "500");
    let task = actix_web::rt::spawn(async move { send(request).await.status });
    while edge.fake.troubles() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    task
}

#[actix_web::test]
async fn a_stop_lets_requests_in_flight_finish() {
    let edge = edge();
    let task = in_flight(&edge).await;
    assert!(edge.server.stop(Duration::from_secs(10)).await);
    assert_eq!(task.await.unwrap(), 503, "answered, though the server was stopping");
    assert!(
        edge.bare("GET", "/livez").send().await.is_err(),
        "nobody listens any more"
    );
}

#[actix_web::test]
async fn a_stop_ends_at_its_deadline() {
    let edge = edge();
    let task = in_flight(&edge).await;
    assert!(!edge.server.stop(Duration::from_millis(1)).await);
    task.abort();
}
