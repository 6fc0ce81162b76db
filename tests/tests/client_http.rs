#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! The HTTP API over real sockets: good use through any node, and bad input with a clear answer.

use std::collections::BTreeSet;

use holdfast_tests::clients::dev::{told, Cluster};
use holdfast_tests::clients::tools;
use serde_json::{json, Value};

/// Every kind of bad request gets its own status, as a problem document, and changes nothing.
#[test]
fn bad_requests_are_answered_with_problems() {
    let cluster = Cluster::shared(3);
    let http = cluster.http(1);
    http.send("PUT", "/api/v1/devices/bad", &[], "{}");
    let deep = format!("{{\"desired\":{}1{}}}", "{\"a\":".repeat(12), "}".repeat(12));
    let abyss = format!("{{\"desired\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let large = format!("{{\"desired\":{{\"x\":\"{}\"}}}}", "y".repeat(300 * 1024));
    let section = format!("{{\"desired\":{{\"x\":\"{}\"}}}}", "y".repeat(33 * 1024));
    let twin = "/api/v1/devices/bad/twin";
    for (method, path, body, status) in [
        ("PATCH", twin, large.as_str(), 413),
        ("PATCH", twin, &section, 413),
        ("PATCH", twin, &deep, 400),
        ("PATCH", twin, &abyss, 400),
        ("PATCH", twin, "{\"desired\":", 400),
        ("PATCH", twin, "not json", 400),
        ("PATCH", twin, "[]", 400),
        ("PATCH", twin, "{\"desired\":null}", 400),
        ("PATCH", twin, "{\"colour\":{}}", 400),
        (
            "PATCH",
            "/api/v1/devices/bad",
            "{\"status\":\"enabled\",\"colour\":1}",
            400,
        ),
        ("PATCH", "/api/v1/devices/bad", "{\"status\":\"asleep\"}", 400),
        ("PUT", "/api/v1/devices/b%20ad", "{}", 400),
        ("PUT", "/api/v1/devices/b%2Fad", "{}", 400),
        ("GET", "/api/v1/devices/nobody", "", 404),
        ("GET", "/api/v1/devices/nobody/twin", "", 404),
        ("GET", "/api/v1/devices/nobody/telemetry", "", 404),
        ("POST", "/api/v1/devices/nobody/telemetry", "1", 404),
        ("DELETE", "/api/v1/devices/nobody", "", 404),
        ("GET", "/api/v1/nothing", "", 404),
        ("GET", "/nothing", "", 404),
        ("POST", "/api/v1/devices/bad", "", 405),
        ("DELETE", "/api/v1/cluster", "", 405),
        ("GET", "/api/v1/devices?limit=0", "", 400),
        ("GET", "/api/v1/devices?limit=many", "", 400),
        ("GET", "/api/v1/devices?colour=red", "", 400),
        ("GET", "/api/v1/devices?cursor=%00", "", 400),
        ("GET", "/api/v1/devices?filter=colour%3Dred", "", 400),
        ("GET", "/api/v1/devices/bad/telemetry?after_seq=-1", "", 400),
        ("GET", "/api/v1/devices/bad/telemetry?from=yesterday", "", 400),
        ("GET", "/api/v1/receipts/soon", "", 400),
        ("GET", "/api/v1/receipts/1-2-3", "", 400),
        ("GET", "/api/v1/cluster/shards/99/digest", "", 404),
        ("POST", "/api/v1/cluster/nodes/99/drain", "", 404),
    ] {
        println!("{method} {path} expecting {status}");
        http.send(method, path, &[], body).problem(status);
    }
    let twin = http.get(twin).expect(200).json();
    assert_eq!(twin["version"], 0, "nothing was written: {twin}");
    cluster.assert_no_panic();
}

/// Everything under `/api` wants the token; no spelling gets around it.
#[test]
fn token_is_required() {
    let cluster = Cluster::shared(3);
    let stranger = cluster.http(2).without_token();
    for path in [
        "/api/v1/devices",
        "/api/v1/cluster",
        "/api/v1/nothing",
        "/%61pi/v1/devices",
        "/api/v1/../v1/devices",
    ] {
        stranger.get(path).problem(401);
        stranger
            .send("GET", path, &[("Authorization", "Bearer wrong")], "")
            .problem(401);
        stranger
            .send("GET", path, &[("Authorization", "Basic eDp5")], "")
            .problem(401);
    }
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json"] {
        stranger.get(path).expect(200);
    }
}

/// Conditional writes: what was read can be changed once, by whoever comes first.
#[test]
fn etags_guard_writes() {
    let cluster = Cluster::shared(3);
    let (one, two) = (cluster.http(1), cluster.http(2));
    let path = "/api/v1/devices/tagged";
    one.send("PUT", path, &[("If-None-Match", "*")], "{}").expect(201);
    two.send("PUT", path, &[("If-None-Match", "*")], "{}").problem(412);
    let etag = two.get(path).expect(200).header("etag");
    one.send("PATCH", path, &[("If-Match", &etag)], r#"{"status":"disabled"}"#)
        .expect(200);
    two.send("PATCH", path, &[("If-Match", &etag)], r#"{"status":"enabled"}"#)
        .problem(412);
    two.send("DELETE", path, &[("If-Match", &etag)], "").problem(412);
    for (tag, status) in [("\"abc\"", 412), ("W/\"1\"", 412), ("1", 400), ("\"1\", \"2\"", 400)] {
        one.send("PATCH", path, &[("If-Match", tag)], r#"{"status":"enabled"}"#)
            .problem(status);
    }
    one.send("PATCH", path, &[("If-Match", "*")], r#"{"status":"enabled"}"#)
        .expect(200);
    let twin = "/api/v1/devices/tagged/twin";
    let etag = two.get(twin).expect(200).header("etag");
    two.send("GET", twin, &[("If-None-Match", &etag)], "").expect(304);
    let written = one
        .send("PATCH", twin, &[("If-Match", &etag)], r#"{"desired":{"a":1}}"#)
        .expect(200);
    assert!(!written.header("x-holdfast-receipt").is_empty());
    assert_eq!(
        written.header("etag"),
        two.get(twin).header("etag"),
        "the write's own ETag is the next condition"
    );
    two.send("PATCH", twin, &[("If-Match", &etag)], r#"{"desired":{"a":2}}"#)
        .problem(412);
    assert_eq!(two.get(twin).json()["desired"], json!({"a": 1}));
    one.send("DELETE", path, &[], "").expect(204);
    two.get(path).problem(404);
}

/// 2,500 devices in pages: each once, in the order of their ids, also with a filter.
#[test]
fn devices_are_listed_in_pages() {
    let cluster = Cluster::up(1);
    let http = cluster.http(1);
    let expected: BTreeSet<String> = (0..2500).map(|n| format!("page-{n:04}")).collect();
    for id in &expected {
        http.send("PUT", &format!("/api/v1/devices/{id}"), &[], "{}")
            .expect(201);
    }
    for limit in [1000, 999, 100] {
        let mut listed = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = http
                .get(&format!("/api/v1/devices?filter=id%3Dpage-*&limit={limit}{cursor}"))
                .expect(200)
                .json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= limit);
            listed.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(listed, expected.iter().cloned().collect::<Vec<_>>(), "limit {limit}");
    }
}

/// 2,500 rows of telemetry in pages and ranges; a repeated Idempotency-Key is stored once.
#[test]
fn telemetry_is_read_in_pages_and_stored_once() {
    let cluster = Cluster::shared(3);
    let nodes = [cluster.http(1), cluster.http(2), cluster.http(3)];
    let path = "/api/v1/devices/rows/telemetry";
    nodes[0].send("PUT", "/api/v1/devices/rows", &[], "{}").expect(201);
    let mut receipt = String::new();
    for n in 0..2500 {
        let key = format!("key-{n}");
        let answer = nodes[n % 3]
            .send("POST", path, &[("Idempotency-Key", &key)], n.to_string())
            .expect(201);
        assert_eq!(answer.json()["seq"], n + 1);
        receipt = answer.header("x-holdfast-receipt");
        if n % 100 == 0 {
            let again = nodes[(n + 1) % 3]
                .send("POST", path, &[("Idempotency-Key", &key)], n.to_string())
                .expect(200);
            assert_eq!(again.json()["repeated"], true);
        }
    }
    let rows = nodes[1].telemetry("rows");
    let bodies: Vec<_> = rows.iter().map(|row| row["body"].as_u64().unwrap()).collect();
    assert_eq!(bodies, (0..2500).collect::<Vec<_>>());
    let (from, to) = (
        rows[1000]["enqueued_at"].as_str().unwrap(),
        rows[1500]["enqueued_at"].as_str().unwrap(),
    );
    let range = nodes[2]
        .get(&format!("{path}?from={from}&to={to}&limit=1000"))
        .expect(200)
        .json();
    let range = range["items"].as_array().unwrap();
    let inside = |row: &&Value| (from..to).contains(&row["enqueued_at"].as_str().unwrap());
    assert_eq!(
        range.iter().collect::<Vec<_>>(),
        rows.iter().filter(inside).collect::<Vec<_>>()
    );
    for http in &nodes {
        let state =
            |receipt: &str| http.get(&format!("/api/v1/receipts/{receipt}")).expect(200).json()["state"].clone();
        assert_eq!(state(&receipt), "committed");
        let mut parts: Vec<u64> = receipt.split('-').map(|part| part.parse().unwrap()).collect();
        parts[1] += 5; // a term that never was at this index
        let made_up = parts.iter().map(u64::to_string).collect::<Vec<_>>().join("-");
        assert_eq!(state(&made_up), "absent", "{made_up}");
    }
    let shard = receipt.split('-').next().unwrap();
    let digest = nodes[0]
        .get(&format!("/api/v1/cluster/shards/{shard}/digest"))
        .expect(200)
        .json();
    let digests: BTreeSet<_> = digest["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["digest"].to_string())
        .collect();
    assert_eq!(
        (digest["replicas"].as_array().unwrap().len(), digests.len()),
        (3, 1),
        "{digest}"
    );
    assert!(!digests.contains("null"), "{digest}");
}

/// Every path and method of the OpenAPI document is there, and none of them fails inside.
#[test]
fn openapi_lists_what_is_served() {
    let cluster = Cluster::shared(3);
    let http = cluster.http(1);
    let api = http.get("/openapi.json").expect(200).json();
    assert!(api["openapi"].as_str().unwrap().starts_with("3.1"));
    http.send("PUT", "/api/v1/devices/lamp-openapi", &[], "{}");
    let paths = api["paths"].as_object().unwrap();
    assert!(paths.len() >= 10, "{:?}", paths.keys());
    // The feed of events does not end; client_events.rs reads it.
    for (path, item) in paths.iter().filter(|(path, _)| *path != "/api/v1/events") {
        for method in ["get", "put", "post", "patch", "delete"]
            .into_iter()
            .filter(|m| item.get(m).is_some())
        {
            let id = if path.contains("/devices/") {
                "lamp-openapi"
            } else {
                "1"
            };
            let mut real = path
                .replace("{section}", "desired")
                .replace("{receipt}", "0-1-1-1")
                .replace("{message_id}", "none")
                .replace("{name}", "none")
                .replace("{id}", id);
            if path.ends_with("drain") {
                real = path.replace("{id}", "0"); // nobody is to be drained here
            }
            let answer = http.send(&method.to_uppercase(), &real, &[], "");
            assert!(
                ![405, 500, 501].contains(&answer.status),
                "{method} {real}: {}",
                answer.status
            );
            // What is named may not exist; the path itself must.
            let nothing_there = answer.status == 404 && answer.json()["type"] == "urn:holdfast:problem:not-found";
            assert!(!nothing_there, "{method} {real} is not there");
            if method == "delete" {
                http.send("PUT", &real, &[], "{}");
            }
        }
    }
    cluster.assert_no_panic();
}

/// What curl, and no library, sees: a problem document for an error, headers, an upload cut short.
#[test]
fn curl_is_served() {
    let cluster = Cluster::shared(3);
    let file = cluster.file();
    let base = format!("http://{}", file.nodes[0].http);
    let token = format!("Authorization: Bearer {}", file.token);
    let run = |args: &[&str]| told(&tools::curl().args(["-i", "-H", &token]).args(args).output().unwrap()).1;
    let device = format!("{base}/api/v1/devices/curled");
    let said = run(&["-X", "PUT", &device]);
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    assert!(said.to_lowercase().contains("x-holdfast-receipt: "), "{said}");
    let said = run(&["-X", "PUT", "-H", "If-Match: \"999\"", &device]);
    assert!(
        said.starts_with("HTTP/1.1 412") && said.contains("application/problem+json"),
        "{said}"
    );
    let said = run(&[
        "-H",
        "Transfer-Encoding: chunked",
        "--data-binary",
        "{\"lit\":true}",
        &format!("{device}/telemetry"),
    ]);
    assert!(said.contains(" 201 "), "{said}");
    let said = run(&[
        "-H",
        "Content-Encoding: gzip",
        "--data-binary",
        "x",
        &format!("{device}/telemetry"),
    ]);
    assert!(said.contains("415") && said.contains("problem+json"), "{said}");
    // One byte of a hundred, then nothing: other requests are served meanwhile.
    let mut cut = tools::curl();
    let slow = cut
        .args(["-H", &token, "-H", "Content-Length: 100", "--max-time", "1", "-d", "x"])
        .arg(format!("{device}/telemetry"));
    assert!(!slow.output().unwrap().status.success());
    assert_eq!(cluster.http(1).telemetry("curled").len(), 1);
}
