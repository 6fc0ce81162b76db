//! Telemetry read back, and taken in, over HTTP.

use serde_json::{json, Value};

use super::{edge, send, Answer, Edge};

async fn post(edge: &Edge, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
    let request = edge.request("POST", "/devices/lamp/telemetry");
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    send(request.body(body)).await
}

#[actix_web::test]
async fn what_was_posted_is_read_back_in_order() {
    let edge = edge();
    edge.create("lamp").await;
    let stored = post(
        &edge,
        &[
            ("Content-Type", "application/json"),
            ("X-Holdfast-Stream", "climate"),
            ("X-Holdfast-Property-Unit", "celsius"),
            ("X-Holdfast-Device-Time", "2026-01-02T03:04:05.678Z"),
            ("Idempotency-Key", "m1"),
        ],
        r#"{"t":1.50}"#,
    )
    .await
    .expect(201);
    let receipt = stored.header("x-holdfast-receipt").unwrap().to_owned();
    assert_eq!(stored.json(), json!({"seq": 1, "receipt": receipt}));
    post(&edge, &[], "not json").await.expect(201);
    post(&edge, &[], "7").await.expect(201);
    post(&edge, &[("Content-Type", "text/plain")], "7").await.expect(201);
    post(&edge, &[], vec![0xff, 0x00]).await.expect(201);

    let read = edge.get("/devices/lamp/telemetry").await.expect(200);
    assert!(
        read.text.contains(r#""body":{"t":1.50}"#),
        "payloads come back as they were: {}",
        read.text
    );
    let page = read.json();
    let first = json!({
        "seq": 1, "enqueued_at": "2023-11-14T22:13:20.002Z", "stream": "climate", "properties": {"unit": "celsius"},
        "content_type": "application/json", "body": {"t": 1.5}, "receipt": receipt,
        "device_time": "2026-01-02T03:04:05.678Z", "message_id": "m1",
    });
    assert_eq!(page["items"][0], first);
    let bodies: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| (&i["body"], &i["body_base64"]))
        .collect();
    let none = &Value::Null;
    let base64 = |text: &str| json!(text);
    assert_eq!(bodies[1], (none, &base64("bm90IGpzb24=")));
    assert_eq!(bodies[2], (&json!(7), none));
    assert_eq!(bodies[3], (none, &base64("Nw==")));
    assert_eq!(bodies[4], (none, &base64("/wA=")));
    assert_eq!(page["next"], Value::Null);
    assert_eq!(edge.get("/devices/lamp").await.json()["telemetry"]["last_seq"], 5);
}

#[actix_web::test]
async fn a_repeated_message_id_is_acknowledged_again_and_stored_once() {
    let edge = edge();
    edge.create("lamp").await;
    post(&edge, &[("Idempotency-Key", "m1")], "1").await.expect(201);
    let again = post(&edge, &[("Idempotency-Key", "m1")], "1").await.expect(200).json();
    assert_eq!((&again["seq"], &again["repeated"]), (&json!(1), &json!(true)));
    let again = post(&edge, &[("Idempotency-Key", "m1")], "1").await.expect(200);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    post(&edge, &[("Idempotency-Key", "m1")], "2")
        .await
        .problem(422, "idempotency-key-reused");
    post(&edge, &[("Idempotency-Key", "m1"), ("X-Holdfast-Stream", "s")], "1")
        .await
        .problem(422, "idempotency-key-reused");
    post(&edge, &[("Idempotency-Key", "m2")], "1").await.expect(201);
    assert_eq!(
        edge.get("/devices/lamp/telemetry").await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[actix_web::test]
async fn telemetry_pages_by_seq_and_by_time() {
    let edge = edge();
    edge.create("lamp").await;
    for n in 0..7 {
        post(&edge, &[], n.to_string()).await.expect(201);
    }
    let mut seen = Vec::new();
    let mut after = json!(0);
    while !after.is_null() {
        let page = edge
            .get(&format!("/devices/lamp/telemetry?limit=3&after_seq={after}"))
            .await
            .expect(200)
            .json();
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["seq"].as_u64().unwrap()),
        );
        after = page["next"].clone();
    }
    assert_eq!(seen, (1..=7).collect::<Vec<_>>());
    let all = edge.get("/devices/lamp/telemetry").await.json();
    let (from, to) = (
        all["items"][2]["enqueued_at"].as_str().unwrap(),
        all["items"][4]["enqueued_at"].as_str().unwrap(),
    );
    let part = edge
        .get(&format!("/devices/lamp/telemetry?from={from}&to={to}"))
        .await
        .expect(200)
        .json();
    let seqs: Vec<_> = part["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["seq"].as_u64().unwrap())
        .collect();
    assert_eq!(seqs, [3, 4], "`from` counts, `to` does not");
    let millis = edge
        .get("/devices/lamp/telemetry?to=1700000000003")
        .await
        .expect(200)
        .json();
    assert_eq!(millis["items"].as_array().unwrap().len(), 1);
}

#[actix_web::test]
async fn unacceptable_telemetry_requests_are_refused_before_anything_is_stored() {
    let edge = edge();
    edge.create("lamp").await;
    let long = "x".repeat(129);
    for (name, value, problem) in [
        ("Idempotency-Key", long.as_str(), "telemetry-invalid"),
        ("Idempotency-Key", "", "telemetry-invalid"),
        ("X-Holdfast-Stream", "a/b", "telemetry-invalid"),
        ("X-Holdfast-Stream", long.as_str(), "telemetry-invalid"),
        ("X-Holdfast-Device-Time", "yesterday", "bad-header"),
        ("X-Holdfast-Property-", "x", "bad-header"),
    ] {
        post(&edge, &[(name, value)], "1").await.problem(400, problem);
    }
    post(&edge, &[("Idempotency-Key", "a"), ("Idempotency-Key", "b")], "1")
        .await
        .problem(400, "bad-header");
    post(&edge, &[("Content-Encoding", "gzip")], "1")
        .await
        .problem(415, "unsupported-media-type");
    let names: Vec<_> = (0..65).map(|n| format!("X-Holdfast-Property-P{n}")).collect();
    let many: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
    post(&edge, &many, "1").await.problem(400, "telemetry-invalid");
    for query in [
        "from=x",
        "to=x",
        "after_seq=-1",
        "limit=0",
        "limit=1001",
        "from=2&to=1",
        "after=1",
    ] {
        edge.get(&format!("/devices/lamp/telemetry?{query}"))
            .await
            .problem(400, "bad-parameter");
    }
    assert_eq!(edge.get("/devices/lamp/telemetry").await.json()["items"], json!([]));
    edge.get("/devices/nobody/telemetry")
        .await
        .problem(404, "device-not-found");
    edge.send_json("PATCH", "/devices/lamp", r#"{"status":"disabled"}"#)
        .await
        .expect(200);
    post(&edge, &[], "1").await.problem(409, "device-disabled");
    edge.get("/devices/lamp/telemetry").await.expect(200);
    send(edge.request("DELETE", "/devices/lamp")).await.expect(204);
    post(&edge, &[], "1").await.problem(404, "device-not-found");
}

async fn batch(edge: &Edge, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
    let request = edge.request("POST", "/devices/lamp/telemetry/batch");
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    send(request.body(body)).await
}

#[actix_web::test]
async fn a_batch_says_what_became_of_each_message() {
    let edge = edge();
    edge.create("lamp").await;
    let body = r#"[{"body":{"t":1.50},"stream":"climate","properties":{"unit":"c"},"message_id":"m"},
        {"body":1,"body_base64":"AA=="}, {"body_base64":"/wA="}, 7, {"body":2,"stream":"a/b"}, {"body":3,"colour":"red"},
        {"body":{"t":1.50},"stream":"climate","message_id":"m"}, {"body":"x","device_time":"yesterday"}]"#;
    let answer = batch(&edge, &[("Content-Type", "application/json")], body)
        .await
        .expect(207);
    let page = answer.json();
    let statuses: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["status"].clone())
        .collect();
    assert_eq!(statuses, [201, 400, 201, 400, 400, 400, 200, 400]);
    assert_eq!(
        (&page["stored"], &page["repeated"], &page["refused"]),
        (&json!(2), &json!(1), &json!(5))
    );
    assert_eq!(
        (&page["items"][2]["seq"], &page["items"][6]["seq"]),
        (&json!(2), &json!(1))
    );
    let rows = edge.get("/devices/lamp/telemetry").await.expect(200);
    assert!(rows.text.contains(r#""body":{"t":1.50}"#), "{}", rows.text);
    let rows = rows.json();
    assert_eq!(rows["items"][0]["properties"], json!({"unit": "c"}));
    assert_eq!(rows["items"][0]["content_type"], "application/json");
    assert_eq!(rows["items"][1]["body_base64"], "/wA=");
    assert_eq!(rows["items"].as_array().unwrap().len(), 2);
}

#[actix_web::test]
async fn a_batch_may_be_sent_again_under_its_key() {
    let edge = edge();
    edge.create("lamp").await;
    let lines = "{\"body\":1}\n\n{\"body\":2}\r\nnonsense\n";
    let headers = [("Content-Type", "application/x-ndjson"), ("Idempotency-Key", "k")];
    let first = batch(&edge, &headers, lines).await.expect(207).json();
    let again = batch(&edge, &headers, lines).await.expect(207).json();
    assert_eq!((&first["stored"], &first["refused"]), (&json!(2), &json!(1)));
    assert_eq!((&again["stored"], &again["repeated"]), (&json!(0), &json!(2)));
    assert_eq!(again["items"][1]["seq"], 2);
    let rows = edge.get("/devices/lamp/telemetry").await.json();
    let ids: Vec<_> = rows["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| i["message_id"].clone())
        .collect();
    assert_eq!(ids, ["k/0", "k/1"]);
}

#[actix_web::test]
async fn a_batch_is_bounded() {
    let edge = edge();
    edge.create("lamp").await;
    batch(&edge, &[], "[]").await.problem(400, "invalid-body");
    batch(&edge, &[], "{}").await.problem(400, "invalid-body");
    batch(&edge, &[], "[1").await.problem(400, "malformed-json");
    batch(&edge, &[("Content-Type", "text/plain")], "[1]")
        .await
        .problem(415, "unsupported-media-type");
    let many = format!("[{}]", vec![r#"{"body":1}"#; 1001].join(","));
    batch(&edge, &[], many).await.problem(413, "too-large");
    let all = format!("[{}]", vec![r#"{"body":1}"#; 1000].join(","));
    assert_eq!(batch(&edge, &[], all).await.expect(200).json()["stored"], 1000);
    batch(&edge, &[("Content-Type", "application/x-ndjson")], "\n")
        .await
        .problem(400, "invalid-body");
}
