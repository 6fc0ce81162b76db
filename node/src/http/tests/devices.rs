//! Registration: creating, changing, listing and deleting devices.

use actors::device::{Command, OpenSession};
use actors::id::{DeviceId, DeviceKey, Gateway, TenantId};
use serde_json::json;

use super::{edge, json as as_json, send};

#[actix_web::test]
async fn a_device_lives_from_put_to_delete() {
    let edge = edge();
    let created = edge.create("lamp").await;
    assert!(created.header("x-holdfast-receipt").is_some());
    assert_eq!(created.header("location"), Some("/api/v1/devices/lamp"));
    let device = created.json();
    let expected = DeviceKey::new(TenantId::DEFAULT, DeviceId::parse("lamp").unwrap()).shard(super::fake::SHARDS);
    assert_eq!(device["id"], "lamp");
    assert_eq!(device["status"], "enabled");
    assert_eq!(device["shard"], expected.0);
    assert_eq!(device["connection"], json!({"state": "disconnected"}));
    assert_eq!(device["telemetry"]["last_seq"], 0);
    assert_eq!(device["created_at"], "2023-11-14T22:13:20.001Z");
    assert_eq!(
        created.header("etag").unwrap(),
        format!("\"{}\"", device["etag"].as_str().unwrap())
    );

    let read = edge.get("/devices/lamp").await.expect(200);
    assert_eq!(read.json(), device);
    assert_eq!(read.header("etag"), created.header("etag"));
    assert_eq!(read.header("x-holdfast-receipt"), None);

    let disabled = edge
        .send_json("PATCH", "/devices/lamp", r#"{"status":"disabled"}"#)
        .await
        .expect(200);
    assert_eq!(disabled.json()["status"], "disabled");
    let replaced = edge
        .send_json("PUT", "/devices/lamp", r#"{"status":"enabled"}"#)
        .await
        .expect(200);
    assert_eq!(replaced.json()["status"], "enabled");

    let deleted = send(edge.request("DELETE", "/devices/lamp")).await.expect(204);
    assert!(deleted.header("x-holdfast-receipt").is_some() && deleted.text.is_empty());
    edge.get("/devices/lamp").await.problem(404, "device-not-found");
    send(edge.request("DELETE", "/devices/lamp"))
        .await
        .problem(404, "device-not-found");
    edge.send_json("PATCH", "/devices/lamp", "{}")
        .await
        .problem(404, "device-not-found");
    send(edge.request("PUT", "/devices/lamp")).await.expect(201);
}

/// Two writers that read the same version: one wins, the other learns it.
#[actix_web::test]
async fn a_stale_etag_writes_nothing() {
    let edge = edge();
    let etag = edge.create("lamp").await.header("etag").unwrap().to_owned();
    let write = |method, tag: &str, body| {
        let request = edge.request(method, "/devices/lamp").header("If-Match", tag);
        send(as_json(request, body))
    };
    let first = write("PATCH", &etag, r#"{"status":"disabled"}"#).await.expect(200);
    assert_ne!(first.header("etag").unwrap(), etag);
    let problem = write("PATCH", &etag, r#"{"status":"enabled"}"#)
        .await
        .problem(412, "precondition-failed");
    assert!(problem["current"].is_u64() && problem["expected"].is_u64());
    write("PUT", &etag, r#"{"status":"enabled"}"#)
        .await
        .problem(412, "precondition-failed");
    write("DELETE", &etag, "").await.problem(412, "precondition-failed");
    write("PATCH", "\"not-ours\"", "{}")
        .await
        .problem(412, "precondition-failed");
    write("PATCH", "5", "{}").await.problem(400, "bad-header");
    assert_eq!(edge.get("/devices/lamp").await.json()["status"], "disabled");
    write("PUT", first.header("etag").unwrap(), r#"{"status":"enabled"}"#)
        .await
        .expect(200);
    write("DELETE", "*", "").await.expect(204);
}

#[actix_web::test]
async fn creation_can_be_conditional() {
    let edge = edge();
    let put = |name: &'static str, value: &'static str| {
        send(as_json(edge.request("PUT", "/devices/lamp").header(name, value), "{}"))
    };
    put("If-Match", "*").await.problem(412, "precondition-failed");
    put("If-Match", "\"1\"").await.problem(412, "precondition-failed");
    edge.get("/devices/lamp").await.problem(404, "device-not-found");
    put("If-None-Match", "*").await.expect(201);
    put("If-None-Match", "*").await.problem(412, "precondition-failed");
    put("If-None-Match", "\"1\"").await.problem(400, "bad-header");
    put("If-Match", "*").await.expect(200);
    let both = edge
        .request("PUT", "/devices/lamp")
        .header("If-None-Match", "*")
        .header("If-Match", "*");
    send(both).await.problem(400, "bad-header");
}

#[actix_web::test]
async fn device_bodies_are_checked_and_errors_name_the_place() {
    let edge = edge();
    let put = |body: &'static str| edge.send_json("PUT", "/devices/lamp", body);
    let problem = put(r#"{"status":"enabled","colour":"red"}"#)
        .await
        .problem(400, "unknown-field");
    assert_eq!(problem["field"], "colour");
    put(r#"{"status":"on"}"#).await.problem(400, "invalid-body");
    put("[]").await.problem(400, "invalid-body");
    let problem = put("{\"status\":").await.problem(400, "malformed-json");
    assert!(problem["detail"].as_str().unwrap().contains("line 1 column"));
    put("\u{0}").await.problem(400, "malformed-json");
    let form = edge
        .request("PUT", "/devices/lamp")
        .header("Content-Type", "application/x-www-form-urlencoded");
    send(form.body("status=enabled"))
        .await
        .problem(415, "unsupported-media-type");
    edge.get("/devices/lamp").await.problem(404, "device-not-found");
}

#[actix_web::test]
async fn device_ids_may_hold_every_allowed_character_and_no_other() {
    let edge = edge();
    // As written in a path, and as the device is then called.
    for (path, id) in [
        ("a-._:=@,;!()'$*", "a-._:=@,;!()'$*"),
        ("a%25b", "a%b"),
        ("a%2541", "a%41"),
        ("%41", "A"),
    ] {
        edge.create(path).await;
        assert_eq!(edge.get(&format!("/devices/{path}")).await.expect(200).json()["id"], id);
    }
    for path in ["a%20b", "a%2Fb", "%C3%A9", "%FF", "a%00", "a+b", &"x".repeat(129)] {
        edge.get(&format!("/devices/{path}"))
            .await
            .problem(400, "bad-device-id");
    }
}

#[actix_web::test]
async fn the_connection_of_a_device_shows() {
    let edge = edge();
    edge.create("lamp").await;
    let key = DeviceKey::new(TenantId::DEFAULT, DeviceId::parse("lamp").unwrap());
    let open = Command::OpenSession(Box::new(OpenSession {
        gateway: Gateway { node: 2, boot: 9 },
        clean_start: true,
        expiry_secs: 60,
        keep_alive_secs: 30,
        protocol: 4,
        will: None,
        via: None,
    }));
    edge.fake.run(&key, &open).unwrap();
    let connection = edge.get("/devices/lamp").await.json()["connection"].clone();
    assert_eq!(connection["state"], "connected");
    assert_eq!(connection["node"], 2);
    assert_eq!(connection["protocol"], "mqtt-3.1.1");
    assert_eq!(connection["since"], "2023-11-14T22:13:20.002Z");
    let listed = edge.get("/devices?filter=connected%3Dtrue").await.json();
    assert_eq!(listed["items"][0]["id"], "lamp");
    assert_eq!(
        edge.get("/devices?filter=connected%3Dfalse").await.json()["items"],
        json!([])
    );
}

#[actix_web::test]
async fn pages_follow_the_cursor_until_every_device_was_seen_once() {
    let edge = edge();
    for n in 0..25 {
        edge.create(&format!("pump-{n:02}")).await;
    }
    edge.create("lamp").await;
    edge.send_json("PATCH", "/devices/pump-03", r#"{"status":"disabled"}"#)
        .await
        .expect(200);
    let mut seen = Vec::new();
    let mut path = "/devices?filter=id=pump-*+and+status=enabled&limit=10".to_owned();
    let mut pages = 0;
    loop {
        let page = edge.get(&path).await.expect(200).json();
        pages += 1;
        seen.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|d| d["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/devices?filter=id=pump-*+and+status=enabled&limit=10&cursor={next}");
    }
    let expected: Vec<_> = (0..25).filter(|n| *n != 3).map(|n| format!("pump-{n:02}")).collect();
    assert_eq!((seen, pages), (expected, 3));
}

#[actix_web::test]
async fn list_parameters_are_checked() {
    let edge = edge();
    for n in 0..3 {
        edge.create(&format!("lamp-{n}")).await;
    }
    let problem = edge
        .get("/devices?filter=status%3Dbroken")
        .await
        .problem(400, "bad-filter");
    assert_eq!(problem["position"], 8);
    for limit in ["0", "1001", "x", "-1", ""] {
        edge.get(&format!("/devices?limit={limit}"))
            .await
            .problem(400, "bad-parameter");
    }
    edge.get("/devices?lmit=3").await.problem(400, "bad-parameter");
    edge.get("/devices?limit=1&limit=2").await.problem(400, "bad-parameter");
    edge.get("/devices?cursor=nonsense").await.problem(400, "bad-cursor");
    let next = edge.get("/devices?limit=1").await.json()["next"]
        .as_str()
        .unwrap()
        .to_owned();
    edge.get(&format!("/devices?filter=status%3Denabled&cursor={next}"))
        .await
        .problem(400, "bad-cursor");
    assert_eq!(
        edge.get(&format!("/devices?cursor={next}")).await.json()["items"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

/// A child names its gateway; null and a PUT without one take it away.
#[actix_web::test]
async fn a_device_names_its_gateway() {
    let edge = edge();
    let gateway = |answer: &super::Answer| answer.json()["gateway"].clone();
    let put = edge
        .send_json("PUT", "/devices/meter", r#"{"gateway":"hub"}"#)
        .await
        .expect(201);
    assert_eq!(gateway(&put), "hub");
    edge.create("lamp").await;
    let listed = edge.get("/devices?filter=gateway%3Dhub").await.expect(200).json();
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["items"][0]["id"], "meter");
    let kept = edge
        .send_json("PATCH", "/devices/meter", r#"{"status":"enabled"}"#)
        .await
        .expect(200);
    assert_eq!(gateway(&kept), "hub", "what a PATCH leaves out stays");
    let removed = edge
        .send_json("PATCH", "/devices/meter", r#"{"gateway":null}"#)
        .await
        .expect(200);
    assert_eq!(gateway(&removed), serde_json::Value::Null);
    edge.send_json("PATCH", "/devices/meter", r#"{"gateway":"hub-2"}"#)
        .await
        .expect(200);
    let replaced = edge.send_json("PUT", "/devices/meter", "{}").await.expect(200);
    assert_eq!(gateway(&replaced), serde_json::Value::Null);
    edge.send_json("PATCH", "/devices/meter", r#"{"gateway":"meter"}"#)
        .await
        .problem(400, "invalid-body");
    edge.send_json("PATCH", "/devices/meter", r#"{"gateway":"a b"}"#)
        .await
        .problem(400, "invalid-body");
}
