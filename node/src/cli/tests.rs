//! The command line as a whole, and its everyday calls against the real HTTP edge in front of a
//! cluster in memory.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::CommandFactory;
use serde_json::json;

use super::api::{Client, Request};
use super::*;
use crate::http::tests::fake::{Fake, Trouble};
use crate::http::{serve, HttpConfig, Token};
use crate::observe::metrics::Metrics;

const TOKEN: &str = "operator-token-of-the-tests";

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// Every command that does something shows an example in its help.
#[test]
fn every_command_has_an_example() {
    fn visit(command: &clap::Command, path: &str) {
        let path = format!("{path} {}", command.get_name());
        if command.has_subcommands() {
            command.get_subcommands().for_each(|sub| visit(sub, &path));
        } else {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path} has no example");
        }
    }
    visit(&Cli::command(), "");
}

/// Starts the edge; the address is where the CLI finds it.
fn edge() -> (Arc<Fake>, SocketAddr) {
    let token = Token::new(TOKEN).expect("fits a header");
    let config = HttpConfig::new("127.0.0.1:0".parse().expect("an address"), token);
    let fake = Arc::new(Fake::default());
    let (metrics, _) = Metrics::detached().expect("constant buckets");
    let server = serve(config, fake.clone(), fake.clone(), metrics).expect("a free port");
    (fake, server.addr())
}

async fn device(addr: SocketAddr, arguments: &[&str]) -> Result<(), Failure> {
    let url = format!("http://{addr}");
    let line = ["holdfast", "device"].into_iter().chain(arguments.iter().copied());
    let cli = Cli::try_parse_from(line.chain(["--url", &url, "--token", TOKEN])).expect("a good command line");
    match cli.command {
        Command::Device(command) => device::run(command, cli.output).await,
        other => panic!("not a device command: {other:?}"),
    }
}

async fn get(addr: SocketAddr, path: &str) -> serde_json::Value {
    let client = Client::new(vec![format!("http://{addr}")], TOKEN).expect("a client");
    client.get(path).await.expect("an answer").body
}

#[actix_rt::test]
async fn a_device_is_created_changed_listed_and_deleted() {
    let (_, addr) = edge();
    device(addr, &["create", "lamp:1"]).await.expect("created");
    let again = device(addr, &["create", "lamp:1"])
        .await
        .expect_err("it is there already");
    assert_eq!(again.exit, Exit::BadInput, "{again}");
    device(addr, &["disable", "lamp:1"]).await.expect("disabled");
    let seen = get(addr, "/api/v1/devices/lamp%3A1").await;
    assert_eq!(seen["status"], "disabled");
    let etag = seen["etag"].as_str().expect("an etag").to_owned();
    let stale = device(addr, &["update", "lamp:1", "--status", "enabled", "--etag", "999"]).await;
    assert!(stale.expect_err("a stale etag").advice.contains("read it again"));
    device(addr, &["update", "lamp:1", "--status", "enabled", "--etag", &etag])
        .await
        .expect("updated");
    for output in ["table", "json"] {
        device(addr, &["get", "lamp:1", "--output", output])
            .await
            .expect("read");
        let list = [
            "list",
            "--filter",
            "status=enabled and id=lamp*",
            "--limit",
            "10",
            "--output",
            output,
        ];
        device(addr, &list).await.expect("listed");
    }
    device(addr, &["delete", "lamp:1"]).await.expect("deleted");
    let gone = device(addr, &["get", "lamp:1"]).await.expect_err("it is gone");
    assert_eq!(gone.exit, Exit::BadInput);
    assert!(gone.to_string().contains("404"), "{gone}");
}

#[actix_rt::test]
async fn a_twin_is_patched_and_telemetry_read() {
    let (_, addr) = edge();
    device(addr, &["create", "d"]).await.expect("created");
    let patch = ["twin", "d", "--desired", r#"{"lit":true}"#, "--tags", r#"{"floor":3}"#];
    device(addr, &patch).await.expect("patched");
    let twin = get(addr, "/api/v1/devices/d/twin").await;
    assert_eq!(
        (&twin["desired"], &twin["tags"]),
        (&json!({"lit": true}), &json!({"floor": 3}))
    );
    device(addr, &["twin", "d"]).await.expect("read");
    let client = Client::new(vec![format!("http://{addr}")], TOKEN).expect("a client");
    let path = "/api/v1/devices/d/telemetry";
    let body = Some(("application/json", json!({"t": 20})));
    let sent = Request {
        path,
        headers: vec![],
        body,
    };
    let answer = client.send(reqwest::Method::POST, sent).await.expect("stored");
    assert!(answer.receipt.is_some(), "an acknowledged write has a receipt");
    for output in ["table", "json"] {
        device(addr, &["telemetry", "d", "--limit", "1", "--output", output])
            .await
            .expect("read");
    }
}

#[actix_rt::test]
async fn unknown_is_not_failed() {
    let (fake, addr) = edge();
    fake.trouble(Trouble::Error(actors::ports::CallError::Unknown));
    let unknown = device(addr, &["create", "d"]).await.expect_err("no answer");
    assert_eq!(unknown.exit, Exit::Unavailable);
    assert!(
        unknown.what.contains("is unknown") && unknown.advice.contains("read it back"),
        "{unknown}"
    );
    let what = "queue".to_owned();
    fake.trouble(Trouble::Error(actors::ports::CallError::Overloaded { what }));
    let refused = device(addr, &["create", "d"]).await.expect_err("refused");
    assert_eq!(refused.exit, Exit::Unavailable);
    assert!(refused.advice.contains("nothing was done"), "{refused}");
}

#[actix_rt::test]
async fn a_node_that_does_not_answer_is_passed_over() {
    let (_, addr) = edge();
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .expect("a port");
    let bases = vec![format!("http://{closed}"), format!("http://{addr}/")];
    let client = Client::new(bases, TOKEN).expect("a client");
    client.get("/api/v1/cluster").await.expect("the second answers");
    let wrong = Client::new(vec![format!("http://{addr}")], "another-token").expect("a client");
    let refused = wrong.get("/api/v1/cluster").await.map(|_| ()).expect_err("refused");
    assert!(refused.advice.contains("--token"), "{refused}");
}

/// What `cluster up`, `status` and `drain` read of the HTTP API is what the HTTP API says.
#[actix_rt::test]
async fn the_view_of_a_node_reads_what_it_says() {
    let (_, addr) = edge();
    let view: cluster::View = serde_json::from_value(get(addr, "/api/v1/cluster").await).expect("a view");
    assert!(!view.nodes.is_empty() && view.nodes.iter().all(|node| !node.state.is_empty()));
    assert!(view.catalog.is_some());
    assert_eq!(
        cluster::led_shards(&view),
        usize::from(crate::http::tests::fake::SHARDS)
    );
}
