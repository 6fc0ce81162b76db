//! Twins: merge patches, sections, conditions and bounds.

use serde_json::json;

use super::{edge, json as as_json, send};

#[actix_web::test]
async fn twin_sections_are_patched_replaced_and_read_back() {
    let edge = edge();
    edge.create("lamp").await;
    let empty = edge.get("/devices/lamp/twin").await.expect(200);
    assert_eq!(empty.header("etag"), Some("\"0\""));
    let patch = r#"{"tags":{"site":"north"},"desired":{"a":{"b":1,"c":2}}}"#;
    let written = edge.send_json("PATCH", "/devices/lamp/twin", patch).await.expect(200);
    assert!(written.header("x-holdfast-receipt").is_some());
    assert_eq!(
        written.json()["versions"],
        json!({"tags": 1, "desired": 1, "reported": 0})
    );
    let merge = edge
        .request("PATCH", "/devices/lamp/twin")
        .header("Content-Type", "application/merge-patch+json");
    send(merge.body(r#"{"desired":{"a":{"b":null},"d":true}}"#))
        .await
        .expect(200);
    let twin = edge.get("/devices/lamp/twin").await.expect(200);
    let body = twin.json();
    assert_eq!(body["desired"], json!({"a": {"c": 2}, "d": true}));
    assert_eq!(body["tags"], json!({"site": "north"}));
    assert_eq!(body["reported"], json!({}));
    assert_eq!(twin.header("etag").unwrap(), format!("\"{}\"", body["version"]));
    assert!(body["updated_at"]["desired"].is_string() && body["updated_at"]["reported"].is_null());
    edge.send_json("PUT", "/devices/lamp/twin", r#"{"desired":{"only":1}}"#)
        .await
        .expect(200);
    let body = edge.get("/devices/lamp/twin").await.json();
    assert_eq!(
        (&body["desired"], &body["tags"]),
        (&json!({"only": 1}), &json!({"site": "north"}))
    );
}

#[actix_web::test]
async fn a_section_is_a_document_with_a_version_of_its_own() {
    let edge = edge();
    edge.create("lamp").await;
    edge.send_json("PUT", "/devices/lamp/twin/tags", r#"{"site":"north"}"#)
        .await
        .expect(200);
    let written = edge
        .send_json("PATCH", "/devices/lamp/twin/desired", r#"{"a":1}"#)
        .await
        .expect(200);
    assert_eq!(written.header("etag"), Some("\"1\""));
    assert_eq!(written.json()["version"], 2);
    let tags = edge.get("/devices/lamp/twin/tags").await.expect(200);
    assert_eq!(
        (tags.json(), tags.header("etag")),
        (json!({"site": "north"}), Some("\"1\""))
    );
    edge.get("/devices/lamp/twin/colours").await.problem(404, "not-found");
    edge.get("/devices/nobody/twin/tags")
        .await
        .problem(404, "device-not-found");
    edge.get("/devices/nobody/twin").await.problem(404, "device-not-found");
}

#[actix_web::test]
async fn twin_conditions_hold_per_twin_and_per_section() {
    let edge = edge();
    edge.create("lamp").await;
    edge.send_json("PATCH", "/devices/lamp/twin", r#"{"tags":{"a":1}}"#)
        .await
        .expect(200);
    edge.send_json("PATCH", "/devices/lamp/twin", r#"{"tags":{"a":2}}"#)
        .await
        .expect(200);
    let put = |path: &'static str, tag: &'static str, body: &'static str| {
        send(as_json(edge.request("PUT", path).header("If-Match", tag), body))
    };
    put("/devices/lamp/twin", "\"1\"", r#"{"desired":{}}"#)
        .await
        .problem(412, "precondition-failed");
    put("/devices/lamp/twin", "\"2\"", r#"{"desired":{"x":1}}"#)
        .await
        .expect(200);
    put("/devices/lamp/twin/desired", "\"3\"", "{}")
        .await
        .problem(412, "precondition-failed");
    put("/devices/lamp/twin/desired", "\"1\"", "{}").await.expect(200);
    put("/devices/lamp/twin/desired", "*", r#"{"y":1}"#).await.expect(200);
    let known = edge.get("/devices/lamp/twin").await;
    let again = edge
        .request("GET", "/devices/lamp/twin")
        .header("If-None-Match", known.header("etag").unwrap());
    assert!(send(again).await.expect(304).text.is_empty());
    let other = edge
        .request("GET", "/devices/lamp/twin/tags")
        .header("If-None-Match", "\"1\"");
    send(other).await.expect(200);
}

#[actix_web::test]
async fn unacceptable_twin_writes_change_nothing() {
    let edge = edge();
    edge.create("lamp").await;
    let deep = format!("{}1{}", r#"{"a":"#.repeat(11), "}".repeat(11));
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(40_000));
    let abyss = format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000));
    for (body, status, name) in [
        (r#"{"reported":{"a":1}}"#.to_owned(), 403, "section-forbidden"),
        (
            r#"{"tags":{"a":1},"reported":{"a":1}}"#.to_owned(),
            403,
            "section-forbidden",
        ),
        (r#"{"tags":{},"colours":{}}"#.to_owned(), 400, "unknown-field"),
        ("{}".to_owned(), 400, "invalid-body"),
        (r#"{"tags":null}"#.to_owned(), 400, "section-invalid"),
        (r#"{"tags":[1]}"#.to_owned(), 400, "section-invalid"),
        (r#"{"tags":{"$x":1}}"#.to_owned(), 400, "section-invalid"),
        (r#"{"tags":{"a":1},"tags":{}}"#.to_owned(), 400, "invalid-body"),
        (r#"{"tags":{"a":}"#.to_owned(), 400, "malformed-json"),
        (format!(r#"{{"desired":{deep}}}"#), 400, "too-deep"),
        (format!(r#"{{"desired":{abyss}}}"#), 400, "too-deep"),
        (format!(r#"{{"desired":{large}}}"#), 413, "too-large"),
    ] {
        for method in ["PATCH", "PUT"] {
            edge.send_json(method, "/devices/lamp/twin", &body)
                .await
                .problem(status, name);
        }
    }
    for (body, status, name) in [
        (deep, 400, "too-deep"),
        (abyss, 400, "too-deep"),
        (large, 413, "too-large"),
    ] {
        edge.send_json("PUT", "/devices/lamp/twin/tags", &body)
            .await
            .problem(status, name);
    }
    edge.send_json("PUT", "/devices/lamp/twin/reported", "{}")
        .await
        .problem(403, "section-forbidden");
    edge.send_json("PATCH", "/devices/lamp/twin/tags", "nonsense")
        .await
        .problem(400, "malformed-json");
    edge.send_json("PATCH", "/devices/nobody/twin", r#"{"tags":{}}"#)
        .await
        .problem(404, "device-not-found");
    assert_eq!(edge.get("/devices/lamp/twin").await.json()["version"], 0);
}
