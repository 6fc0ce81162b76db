#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)] // tests run in real time
//! `mosquitto_pub` and `mosquitto_sub`, as Debian packs them, against three nodes.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{channel, Receiver};

use holdfast_tests::clients::dev::{told, Cluster};
use holdfast_tests::clients::{eventually, tools, PATIENCE};
use serde_json::json;

const VERSIONS: [&str; 2] = ["mqttv311", "mqttv5"];

fn client(program: &str, node: SocketAddr, version: &str, id: &str) -> Command {
    // By the line, or a line that is waited for would stay in the program's buffer.
    let mut command = Command::new(tools::require("stdbuf", "coreutils"));
    command.arg("-oL").arg(tools::require(program, "mosquitto-clients"));
    let (host, port) = (node.ip().to_string(), node.port().to_string());
    command.args(["-h", &host, "-p", &port, "-V", version, "-i", id]);
    command
}

fn publish(node: SocketAddr, version: &str, id: &str, topic: &str, more: &[&str]) -> Output {
    let mut command = client("mosquitto_pub", node, version, id);
    command.args(["-t", topic]).args(more).output().unwrap()
}

/// A running `mosquitto_sub`, killed when dropped.
struct Subscriber {
    child: Child,
    lines: Receiver<String>,
}

impl Subscriber {
    /// Returns once the broker has granted what is asked for.
    fn start(mut command: Command) -> Self {
        let mut child = command
            .arg("-d")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| send.send(line))
        });
        let subscriber = Self { child, lines };
        subscriber.line_with("Subscribed");
        subscriber
    }

    /// The next line that holds `part`.
    fn line_with(&self, part: &str) -> String {
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no line with {part:?}"));
            if line.contains(part) {
                return line;
            }
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.kill();
    }
}

/// QoS 0 and 1 in both versions, through every node, read back in order over curl.
#[test]
fn published_telemetry_is_read_back_with_curl() {
    let cluster = Cluster::shared(3);
    let file = cluster.file();
    for version in VERSIONS {
        let id = format!("pump-{version}");
        let topic = format!("devices/{id}/telemetry/pressure");
        for (round, node) in file.nodes.iter().enumerate() {
            let body = json!({ "round": round }).to_string();
            let output = publish(node.mqtt, version, &id, &topic, &["-q", "1", "-m", &body]);
            assert_eq!(told(&output), (0, String::new()));
        }
        let output = publish(
            file.nodes[0].mqtt,
            version,
            &id,
            &topic,
            &["-q", "0", "-m", "{\"round\":3}"],
        );
        assert_eq!(told(&output), (0, String::new()));
        let items = eventually("four rows", || {
            let url = format!("http://{}/api/v1/devices/{id}/telemetry", file.nodes[1].http);
            let token = format!("Authorization: Bearer {}", file.token);
            let output = tools::curl().args(["--fail", "-H", &token, &url]).output().unwrap();
            let page: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            page["items"].as_array().filter(|items| items.len() == 4).cloned()
        });
        for (round, item) in items.iter().enumerate() {
            assert_eq!(item["seq"], round + 1);
            assert_eq!(item["stream"], "pressure");
            assert_eq!(item["body"], json!({ "round": round }));
        }
    }
}

/// MQTT 5 properties arrive where the API shows them; a message id is stored once.
#[test]
fn properties_of_mqtt_5_are_kept_and_a_message_id_is_stored_once() {
    let cluster = Cluster::shared(3);
    let id = "valve-5";
    let properties = [
        ["-D", "publish", "user-property", "message-id", "m-1"],
        ["-D", "publish", "user-property", "colour", "red"],
    ];
    let mut more: Vec<&str> = properties.iter().flatten().copied().collect();
    more.extend([
        "-D",
        "publish",
        "content-type",
        "application/json",
        "-q",
        "1",
        "-m",
        "[1]",
    ]);
    for node in [1, 2, 3] {
        let output = publish(
            cluster.node(node).mqtt,
            "mqttv5",
            id,
            "devices/valve-5/telemetry",
            &more,
        );
        assert_eq!(told(&output), (0, String::new()));
    }
    let items = cluster.http(3).telemetry(id);
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!(items[0]["properties"]["colour"], "red");
    assert_eq!(items[0]["content_type"], "application/json");
    assert_eq!(items[0]["message_id"], "m-1");
}

/// A foreign topic, a foreign tree and QoS 2 get the protocol's own answer.
#[test]
fn what_is_not_allowed_is_refused_in_the_protocols_words() {
    let cluster = Cluster::shared(3);
    let node = cluster.node(1).mqtt;
    // The program prints the reason, and ends with 0 all the same; what counts is that nothing is stored.
    let (_, said) = told(&publish(
        node,
        "mqttv5",
        "mole-5",
        "devices/other/telemetry",
        &["-q", "1", "-m", "x"],
    ));
    assert!(said.contains("Not authorized"), "{said}");
    cluster.http(1).get("/api/v1/devices/other").problem(404);
    let qos2 = publish(
        node,
        "mqttv5",
        "mole-5",
        "devices/mole-5/telemetry",
        &["-q", "2", "-m", "x"],
    );
    let (_, said) = told(&qos2);
    assert!(
        cluster.http(1).telemetry("mole-5").is_empty(),
        "QoS 2 is not offered: {said}"
    );
    for (version, denied) in [("mqttv311", "128"), ("mqttv5", "135")] {
        for filter in ["devices/other/#", "#", "+/mole/telemetry", "devices/+/twin/desired"] {
            let id = format!("mole-{version}");
            let mut command = client("mosquitto_sub", node, version, &id);
            let (_, said) = told(&command.args(["-d", "-t", filter, "-W", "10", "-E"]).output().unwrap());
            assert!(said.contains(denied), "{version} {filter}: {said}");
        }
        let id = format!("mole-{version}");
        let filter = format!("devices/{id}/#");
        let mut command = client("mosquitto_sub", node, version, &id);
        let (code, said) = told(&command.args(["-d", "-q", "1", "-t", &filter, "-E"]).output().unwrap());
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("Subscribed (mid: 1): 1"), "{said}");
    }
}

/// A change of the desired section through one node reaches a subscriber at another.
#[test]
fn desired_changes_reach_a_subscriber_at_another_node() {
    let cluster = Cluster::shared(3);
    let file = cluster.file();
    for version in VERSIONS {
        let id = format!("lamp-{version}");
        let topic = format!("devices/{id}/twin/desired");
        let mut command = client("mosquitto_sub", file.nodes[0].mqtt, version, &id);
        command.args(["-q", "1", "-t", &topic]);
        let subscriber = Subscriber::start(command);
        let url = format!("http://{}/api/v1/devices/{id}/twin", file.nodes[2].http);
        let token = format!("Authorization: Bearer {}", file.token);
        let patch = r#"{"desired":{"lit":true}}"#;
        let mut curl = tools::curl();
        curl.args([
            "--fail",
            "-X",
            "PATCH",
            "-H",
            &token,
            "-H",
            "Content-Type: application/json",
            "-d",
            patch,
            &url,
        ]);
        let (code, said) = told(&curl.output().unwrap());
        assert_eq!(code, 0, "{said}");
        let line = subscriber.line_with("\"lit\"");
        let down: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(down.to_string().contains("\"lit\":true"), "{line}");
        assert!(
            down.to_string().contains("version"),
            "a downlink carries its version: {line}"
        );
    }
}

/// A will is recorded when the connection breaks, and not when it ends properly.
#[test]
fn will_is_recorded_after_an_abrupt_end_only() {
    let cluster = Cluster::shared(3);
    let http = cluster.http(2);
    for version in VERSIONS {
        let id = format!("willing-{version}");
        let topic = format!("devices/{id}/telemetry/will");
        let will = [
            "--will-topic",
            &topic,
            "--will-payload",
            "{\"gone\":true}",
            "--will-qos",
            "1",
        ];
        let output = publish(
            cluster.node(1).mqtt,
            version,
            &id,
            &topic,
            &[&will[..], &["-q", "1", "-m", "1"]].concat(),
        );
        assert_eq!(told(&output), (0, String::new()));
        let mut command = client("mosquitto_sub", cluster.node(1).mqtt, version, &id);
        let filter = format!("devices/{id}/#");
        command.args(will).args(["-t", &filter]);
        let mut subscriber = Subscriber::start(command);
        assert_eq!(http.telemetry(&id).len(), 1, "no will after a proper end");
        subscriber.kill();
        let items = eventually("the will is recorded", || {
            let items = http.telemetry(&id);
            (items.len() > 1).then_some(items)
        });
        assert_eq!(items.len(), 2);
        assert_eq!(items[1]["will"], true);
        assert_eq!(items[1]["body"], json!({ "gone": true }));
        let device = http.get(&format!("/api/v1/devices/{id}")).json();
        assert_eq!(device["connection"]["state"], "disconnected");
    }
}

/// A session that is to persist keeps its subscriptions, also when the client comes to another
/// node and subscribes to nothing again.
#[test]
fn persistent_session_keeps_its_subscriptions_across_nodes() {
    let cluster = Cluster::shared(3);
    let file = cluster.file();
    for (version, keep) in [("mqttv311", vec!["-c"]), ("mqttv5", vec!["-c", "-x", "600"])] {
        let id = format!("keeper-{version}");
        let filter = format!("devices/{id}/#");
        let mut command = client("mosquitto_sub", file.nodes[0].mqtt, version, &id);
        let (code, said) = told(
            &command
                .args(&keep)
                .args(["-q", "1", "-t", &filter, "-E"])
                .output()
                .unwrap(),
        );
        assert_eq!(code, 0, "{said}");
        // The program insists on a subscription of its own; another one than the one that is to be kept.
        let other = format!("devices/{id}/nothing");
        let mut command = client("mosquitto_sub", file.nodes[1].mqtt, version, &id);
        command.args(&keep).args(["-q", "1", "-t", &other]);
        let subscriber = Subscriber::start(command);
        let path = format!("/api/v1/devices/{id}/twin/desired");
        cluster.http(3).send("PATCH", &path, &[], r#"{"kept":1}"#).expect(200);
        subscriber.line_with("\"kept\"");
    }
}

/// The newer connection takes over, whichever node it comes to, and the older one ends.
#[test]
fn newer_connection_takes_over() {
    let cluster = Cluster::shared(3);
    let file = cluster.file();
    for version in VERSIONS {
        let id = format!("twice-{version}");
        let filter = format!("devices/{id}/#");
        let subscribe = |node: usize| {
            let mut command = client("mosquitto_sub", file.nodes[node].mqtt, version, &id);
            command.args(["-q", "1", "-t", &filter]);
            Subscriber::start(command)
        };
        for (older, newer) in [(0, 0), (0, 1)] {
            let first = subscribe(older);
            let second = subscribe(newer);
            // In 3.1.1 the client sees the end of the connection only, and comes back: each takes over
            // from the other, as real clients do. What is told is that the first one did not stay.
            if version == "mqttv5" {
                first.line_with("DISCONNECT");
            } else {
                first.line_with("CONNECT");
            }
            drop(first);
            drop(second);
        }
        let third = subscribe(2);
        let path = format!("/api/v1/devices/{id}/twin/desired");
        cluster
            .http(1)
            .send("PATCH", &path, &[], r#"{"who":"third"}"#)
            .expect(200);
        third.line_with("third");
    }
}
