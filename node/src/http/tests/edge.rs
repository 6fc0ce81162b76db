//! What holds for every request: the token, the form of errors, limits, ids.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use actix_web::{web, App as WebApp};
use serde_json::Value;

use super::{edge, edge_with, send, TOKEN};
use crate::http::context::App;
use crate::http::routes::{self, API, OPEN};
use crate::http::{HttpConfig, Token};
use crate::observe::metrics::Metrics;

#[actix_web::test]
async fn nothing_below_api_answers_without_the_token() {
    let edge = edge();
    edge.create("lamp").await;
    let near_miss = format!("Bearer {}X", &TOKEN[..TOKEN.len() - 1]);
    for authorization in [
        None,
        Some("Bearer wrong"),
        Some(&near_miss),
        Some("Bearer "),
        Some("Basic x"),
        Some(TOKEN),
    ] {
        for (method, path) in API {
            let path = path
                .replace("{id}", "1")
                .replace("{section}", "tags")
                .replace("{receipt}", "0-1-1-1");
            let mut request = edge.bare(method.as_str(), &path);
            if let Some(value) = authorization {
                request = request.header("Authorization", value);
            }
            let answer = send(request).await;
            answer.problem(401, "unauthenticated");
            assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
        }
    }
    for path in [
        "/api",
        "/api/v1/nothing",
        "/%61pi/v1/devices/lamp",
        "/api/v1/%64evices/lamp",
    ] {
        let status = send(edge.bare("GET", path)).await.status;
        assert!(matches!(status, 401 | 404), "{path}: {status}");
    }
    let twice = edge
        .request("GET", "/devices/lamp")
        .header("Authorization", "Bearer other");
    send(twice).await.problem(401, "unauthenticated");
    let lower = edge
        .bare("GET", "/api/v1/devices/lamp")
        .header("Authorization", format!("bearer {TOKEN}"));
    send(lower).await.expect(200);
}

#[actix_web::test]
async fn probes_metrics_and_description_are_open_on_loopback() {
    let edge = edge();
    for path in ["/livez", "/readyz", "/metrics", "/openapi.json"] {
        send(edge.bare("GET", path)).await.expect(200);
    }
    let metrics = send(edge.bare("GET", "/metrics")).await;
    assert!(metrics.text.contains("process_resident_memory_bytes "));
    let description: Value = send(edge.bare("GET", "/openapi.json")).await.json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1"));
}

/// From elsewhere they need the token, like everything else.
#[actix_web::test]
async fn probes_metrics_and_description_need_the_token_from_other_machines() {
    use actix_web::test::{call_service, init_service, TestRequest};
    let (metrics, _) = Metrics::detached().unwrap();
    let config = HttpConfig::new("127.0.0.1:0".parse().unwrap(), Token::new(TOKEN).unwrap());
    let app = App {
        live: crate::http::live::Live::new(&config),
        control: std::sync::OnceLock::new(),
        config,
        backend: std::sync::Arc::new(super::fake::Fake::default()),
        metrics,
        answers: crate::http::room::Answers::new(1 << 24),
        events: crate::http::events::LiveEdge::start(std::sync::Arc::new(super::fake::Fake::default()), 1),
        stopping: false.into(),
        shard_count: tokio::sync::OnceCell::new(),
    };
    let service = init_service(WebApp::new().app_data(web::Data::new(app)).configure(routes::register)).await;
    for (method, path) in OPEN {
        for (peer, token, status) in [
            ("10.0.0.1:5", None, 401),
            ("10.0.0.1:5", Some(TOKEN), 200),
            ("[::1]:5", None, 200),
            ("[::ffff:127.0.0.1]:5", None, 200),
        ] {
            let mut request = TestRequest::with_uri(path)
                .method(method.clone())
                .peer_addr(peer.parse().unwrap());
            if let Some(token) = token {
                request = request.insert_header(("Authorization", format!("Bearer {token}")));
            }
            let answer = call_service(&service, request.to_request()).await;
            assert_eq!(answer.status().as_u16(), status, "{path} from {peer}");
        }
    }
}

#[actix_web::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let edge = edge();
    send(edge.bare("GET", "/")).await.problem(404, "not-found");
    edge.get("/nothing").await.problem(404, "not-found");
    edge.get("/devices/").await.problem(404, "not-found");
    let answer = send(edge.request("POST", "/devices/lamp")).await;
    answer.problem(405, "method-not-allowed");
    assert_eq!(answer.header("allow"), Some("PUT, GET, PATCH, DELETE"));
    let answer = send(edge.bare("DELETE", "/metrics")).await;
    answer.problem(405, "method-not-allowed");
    assert_eq!(answer.header("allow"), Some("GET"));
}

#[actix_web::test]
async fn bodies_have_a_bound_however_they_come() {
    let edge = edge_with(|config| config.body_bytes_max = 1024);
    edge.create("lamp").await;
    let path = "/devices/lamp/telemetry";
    send(edge.request("POST", path).body(vec![b'1'; 1024]))
        .await
        .expect(201);
    let problem = send(edge.request("POST", path).body(vec![b'1'; 1025]))
        .await
        .problem(413, "too-large");
    assert_eq!(problem["max_bytes"], 1024);
    let chunk = format!("200\r\n{}\r\n", "1".repeat(512));
    let chunked = format!(
        "POST /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"
    );
    let answer = raw(edge.server.addr(), chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    edge.send_json("PUT", "/devices/lamp", &" ".repeat(2000))
        .await
        .problem(413, "too-large");
    assert_eq!(edge.get(path).await.json()["items"].as_array().unwrap().len(), 1);
}

/// Sends bytes as they are and returns all that comes back.
async fn raw(addr: std::net::SocketAddr, text: String) -> String {
    let talk = move || {
        let mut socket = TcpStream::connect(addr).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket.write_all(text.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::task::spawn_blocking(talk).await.unwrap()
}

#[actix_web::test]
async fn a_body_that_never_comes_ends_in_time() {
    let edge = edge_with(|config| config.request_timeout = Duration::from_secs(1));
    let head = format!(
        "POST /api/v1/devices/lamp/telemetry HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\
         Content-Length: 100\r\nConnection: close\r\n\r\nhalf"
    );
    let answer = raw(edge.server.addr(), head).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("urn:holdfast:problem:request-timeout"), "{answer}");
}

#[actix_web::test]
async fn half_a_request_and_nonsense_do_not_hold_the_server() {
    let edge = edge_with(|config| config.request_timeout = Duration::from_secs(1));
    let addr = edge.server.addr();
    let half = raw(addr, "GET /livez HTTP/1.1\r\nHos".into()).await;
    assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
    let nonsense = raw(addr, "\u{10}\u{4}MQTT\r\n\r\n".into()).await;
    assert!(nonsense.is_empty() || nonsense.starts_with("HTTP/1.1 40"), "{nonsense}");
    let smuggled =
        "POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let smuggled = raw(addr, smuggled.into()).await;
    assert!(smuggled.starts_with("HTTP/1.1 4"), "{smuggled}");
    send(edge.bare("GET", "/livez")).await.expect(200);
}

#[actix_web::test]
async fn every_answer_carries_its_request_id_and_trace() {
    let edge = edge();
    let plain = send(edge.bare("GET", "/livez")).await;
    let trace = plain.header("traceparent").unwrap();
    assert_eq!(
        trace.split('-').nth(1),
        plain.header("x-request-id"),
        "the trace id serves as request id"
    );
    let callers = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = edge
        .request("GET", "/devices/nobody")
        .header("traceparent", callers)
        .header("X-Request-Id", "mine");
    let answer = send(request).await;
    assert_eq!(answer.header("x-request-id"), Some("mine"));
    let ours = answer.header("traceparent").unwrap();
    assert!(ours.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && ours != callers);
    let long = send(edge.bare("GET", "/livez").header("X-Request-Id", "x".repeat(129))).await;
    assert_eq!(long.header("x-request-id").unwrap().len(), 32);
}

#[actix_web::test]
async fn settings_out_of_range_and_taken_ports_are_refused() {
    let first = edge();
    let (metrics, _) = crate::observe::metrics::Metrics::detached().unwrap();
    let start = |change: &dyn Fn(&mut super::HttpConfig)| {
        let token = super::Token::new(TOKEN).unwrap();
        let mut config = super::HttpConfig::new(first.server.addr(), token);
        change(&mut config);
        super::serve(config, first.fake.clone(), first.fake.clone(), metrics.clone())
            .map(drop)
            .unwrap_err()
    };
    let taken = start(&|_| ());
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    let range = start(&|config| config.body_bytes_max = 3 * 1024 * 1024);
    assert_eq!(range.kind(), std::io::ErrorKind::InvalidInput);
    assert!(range.to_string().contains("body_bytes_max"));
    assert!(super::Token::new("").is_none() && super::Token::new("two words").is_none());
}
