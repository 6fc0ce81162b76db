//! Method calls: what is asked of the device, and how each end is told.

use std::time::Duration;

use ::cluster::api::{MethodAnswer, MethodError, MethodResult};
use actors::device::Refusal;
use serde_json::json;

use super::*;

impl Edge {
    async fn invoke(&self, path: &str, body: &str, answer: MethodResult) -> Answer {
        self.fake.calls.lock().unwrap().answers.push_back(answer);
        self.send_json("POST", path, body).await
    }
}

fn answered(status: i32, payload: &str) -> MethodResult {
    Ok(MethodAnswer {
        status,
        payload: payload.to_owned(),
    })
}

#[actix_web::test]
async fn a_call_is_put_as_it_came_and_its_answer_given_back() {
    let edge = edge();
    let path = "/devices/lamp/methods/blink";
    let rows = [
        (r#"{"payload":{"n":1.50},"timeout_ms":5}"#, r#"{"n":1.50}"#, 5),
        ("{}", "null", 30_000),
        ("", "null", 30_000),
        (r#"{"timeout_ms":300000,"payload":[1, 2]}"#, "[1, 2]", 300_000),
    ];
    for (body, payload, timeout_ms) in rows {
        let answer = edge
            .invoke(path, body, answered(299, r#"{"done":2.50}"#))
            .await
            .expect(200);
        assert_eq!(answer.text, r#"{"status":299,"payload":{"done":2.50}}"#);
        let (device, name, given, timeout) = edge.fake.calls.lock().unwrap().asked.pop().unwrap();
        assert_eq!(
            (device.device.as_str(), name.as_str(), given.as_str()),
            ("lamp", "blink", payload)
        );
        assert_eq!(timeout, Duration::from_millis(timeout_ms), "{body}");
    }
    edge.invoke(&format!("{path}?timeout_ms=700"), "", answered(200, "null"))
        .await
        .expect(200);
    assert_eq!(
        edge.fake.calls.lock().unwrap().asked.pop().unwrap().3,
        Duration::from_millis(700)
    );
}

/// 404 and `not-delivered` say that nothing was sent; `unknown` that it was.
#[actix_web::test]
async fn each_end_of_a_call_has_its_problem() {
    let edge = edge();
    let rows = [
        (MethodError::Refused(Refusal::NotRegistered), 404, "device-not-found"),
        (MethodError::Refused(Refusal::Disabled), 409, "device-disabled"),
        (MethodError::NotConnected, 404, "not-connected"),
        (MethodError::NotSubscribed, 404, "not-subscribed"),
        (MethodError::Overloaded { what: "calls".into() }, 429, "overloaded"),
        (
            MethodError::NotDelivered {
                reason: "node 2 did not take it".into(),
            },
            504,
            "not-delivered",
        ),
        (MethodError::Unknown, 504, "unknown"),
        (
            MethodError::BadAnswer {
                reason: "no JSON object".into(),
            },
            502,
            "bad-answer",
        ),
    ];
    for (error, status, name) in rows {
        let answer = edge.invoke("/devices/lamp/methods/blink", "{}", Err(error)).await;
        answer.problem(status, name);
    }
}

#[actix_web::test]
async fn bad_calls_are_refused_before_anything_is_sent() {
    let edge = edge();
    let large = json!({ "payload": "x".repeat(128 * 1024) }).to_string();
    let rows = [
        ("/devices/lamp/methods/res", "{}", 400, "bad-method-name"),
        ("/devices/lamp/methods/a%2Fb", "{}", 400, "bad-method-name"),
        ("/devices/lamp/methods/a%2B", "{}", 400, "bad-method-name"),
        ("/devices/la%20mp/methods/a", "{}", 400, "bad-device-id"),
        ("/devices/lamp/methods/a", "[]", 400, "invalid-body"),
        ("/devices/lamp/methods/a", "{", 400, "malformed-json"),
        ("/devices/lamp/methods/a", r#"{"paylod":1}"#, 400, "unknown-field"),
        ("/devices/lamp/methods/a", r#"{"timeout_ms":0}"#, 400, "invalid-body"),
        (
            "/devices/lamp/methods/a",
            r#"{"timeout_ms":300001}"#,
            400,
            "invalid-body",
        ),
        ("/devices/lamp/methods/a", r#"{"timeout_ms":-1}"#, 400, "invalid-body"),
        ("/devices/lamp/methods/a", &large, 413, "too-large"),
    ];
    for (path, body, status, name) in rows {
        edge.send_json("POST", path, body).await.problem(status, name);
    }
    assert!(edge.fake.calls.lock().unwrap().asked.is_empty());
    edge.get("/devices/lamp/methods/a")
        .await
        .problem(405, "method-not-allowed");
}
