#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // tests run in real time
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test that cannot go on ends
//! Scrape configuration, alerts and dashboard, read by a real Prometheus that scrapes a real cluster.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use holdfast_tests::clients::{deploy, tools};
use holdfast_tests::harness::{eventually, Cluster};
use nix::sys::signal::Signal;
use serde_json::Value;

const TOOLS: &str = "prometheus/usr/bin";
const PATIENCE: Duration = Duration::from_secs(90);

/// Panels that show what goes wrong: nothing to see while all is well.
const QUIET_PANELS: [&str; 2] = ["Answers other than success", "Contained faults"];

#[test]
fn promtool_accepts_configuration_and_rules() {
    let promtool = deploy::tool(TOOLS, "promtool");
    let (accepted, said) = deploy::run(
        Command::new(&promtool)
            .args(["check", "rules"])
            .arg(deploy::file("deploy/prometheus/alerts.yml")),
    );
    assert!(accepted && said.contains("SUCCESS"), "{said}");
    let dir = copied(&["127.0.0.1:1".to_owned()], "a-token");
    let (accepted, said) = deploy::run(
        Command::new(&promtool)
            .args(["check", "config"])
            .arg(dir.path().join("prometheus.yml")),
    );
    assert!(accepted, "{said}");
}

/// When alerts fire, and that they do not fire too soon.
#[test]
fn promtool_finds_that_alerts_fire_when_they_should() {
    let promtool = deploy::tool(TOOLS, "promtool");
    let rules = deploy::file("tests/prometheus/alerts_test.yml");
    let (passed, said) = deploy::run(Command::new(promtool).args(["test", "rules"]).arg(rules));
    assert!(passed, "{said}");
}

/// Each alert says how bad it is, for how long it lasts, and where it is explained.
#[test]
fn every_alert_leads_to_its_section_of_the_runbook() {
    let rules = deploy::text("deploy/prometheus/alerts.yml");
    let operations = deploy::text("docs/operations.md");
    let alerts: Vec<&str> = rules.split("\n      - alert: ").skip(1).collect();
    assert!(alerts.len() >= 20, "{} alerts", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        assert!(
            operations.contains(&format!("\n### {name}\n")),
            "{name} has no section in docs/operations.md"
        );
        let anchor = format!("runbook: docs/operations.md#{}", name.to_lowercase());
        for part in ["for: ", "severity: ", "summary: ", anchor.as_str()] {
            assert!(alert.contains(part), "{name} has no {part:?}");
        }
    }
}

/// What rules and panels name is what the program counts.
#[test]
fn rules_and_panels_name_documented_figures_only() {
    let documented: BTreeSet<String> = deploy::text("docs/reference/metrics.md")
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned()))
        .collect();
    let mut named: Vec<(String, String)> = expressions_of_rules(&deploy::text("deploy/prometheus/alerts.yml"));
    named.extend(panels().into_iter().map(|panel| (panel.title, panel.query)));
    for (place, expression) in named {
        for figure in figures(&expression) {
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| figure.strip_suffix(end));
            let known = documented.contains(&figure) || base.is_some_and(|base| documented.contains(base));
            assert!(
                known,
                "{place} names {figure}, which is not in docs/reference/metrics.md"
            );
        }
    }
}

#[test]
fn prometheus_sees_the_cluster_and_tells_of_a_node_that_is_down() {
    let mut cluster = Cluster::up(3);
    let targets: Vec<String> = cluster.http().iter().map(ToString::to_string).collect();
    let _load = Load::start(&cluster);
    let prometheus = Prometheus::start(copied(&targets, &cluster.file.token));

    eventually("all targets are scraped", PATIENCE, || {
        let up = prometheus.query("up{job=\"holdfast\"} == 1")?;
        (up.len() == 3).then_some(()).ok_or_else(|| format!("{up:?}"))
    });
    eventually("all rules are evaluated", PATIENCE, || prometheus.rules_are_fine());
    for (name, expression) in expressions_of_rules(&deploy::text("deploy/prometheus/alerts.yml")) {
        prometheus
            .query(&expression)
            .unwrap_or_else(|why| panic!("{name}: {why}"));
    }
    for panel in panels() {
        eventually(
            &format!("the panel {:?} shows something", panel.title),
            PATIENCE,
            || {
                let found = prometheus.query(&panel.query)?;
                let quiet = QUIET_PANELS.contains(&panel.title.as_str());
                (quiet || !found.is_empty())
                    .then_some(())
                    .ok_or_else(|| panel.query.clone())
            },
        );
    }

    // A refused configuration and a node that is down, told of by name.
    assert_eq!(prometheus.firing("HoldfastNodeDown"), Ok(vec![]));
    assert_eq!(prometheus.firing("HoldfastConfigRefused"), Ok(vec![]));
    let file = cluster.node(1).dir.join("node.toml");
    let text = fs::read_to_string(&file).expect("a configuration");
    fs::write(&file, format!("{text}no_such_key = 1\n")).expect("written");
    cluster.process(1).signal(Signal::SIGHUP).expect("it runs");
    cluster.stop(3);
    for (alert, target) in [
        ("HoldfastNodeDown", &targets[2]),
        ("HoldfastConfigRefused", &targets[0]),
    ] {
        eventually(alert, PATIENCE, || {
            let firing = prometheus.firing(alert)?;
            (firing == [target.clone()])
                .then_some(())
                .ok_or_else(|| format!("{firing:?}"))
        });
    }
    assert_eq!(
        prometheus.firing("HoldfastShardWithoutLeader"),
        Ok(vec![]),
        "two of three serve"
    );
}

/// A few devices that publish until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let program = tools::require("mosquitto_pub", "mosquitto-clients");
        let stop = Arc::new(AtomicBool::new(false));
        let (nodes, stopped) = (cluster.mqtt(), stop.clone());
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let (at, id) = (nodes[number % nodes.len()], format!("lamp-{}", number % 9));
                // A node that is down refuses it; the others take theirs.
                let _ = Command::new(&program)
                    .args([
                        "-h",
                        &at.ip().to_string(),
                        "-p",
                        &at.port().to_string(),
                        "-V",
                        "5",
                        "-q",
                        "1",
                    ])
                    .args([
                        "-i",
                        &id,
                        "-t",
                        &format!("devices/{id}/telemetry"),
                        "-m",
                        "{\"lit\":true}",
                    ])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The files of `deploy/prometheus` with these targets and a clock that suits a test.
fn copied(targets: &[String], token: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = deploy::text("deploy/prometheus/prometheus.yml");
    for (from, to) in [
        ("scrape_interval: 5s", "scrape_interval: 1s"),
        ("scrape_timeout: 4s", "scrape_timeout: 1s"),
        ("evaluation_interval: 5s", "evaluation_interval: 1s"),
    ] {
        assert!(config.contains(from), "{from}");
        config = config.replace(from, to);
    }
    let (before, _) = config.split_once("      - targets:\n").expect("targets");
    let list: String = targets.iter().map(|target| format!("          - {target}\n")).collect();
    let config = format!("{before}      - targets:\n{list}");
    // 15 s are right for people; how long an alert waits is asserted by promtool.
    let alerts = deploy::text("deploy/prometheus/alerts.yml").replace("for: 15s", "for: 1s");
    fs::write(dir.path().join("prometheus.yml"), config).expect("written");
    fs::write(dir.path().join("alerts.yml"), alerts).expect("written");
    fs::write(dir.path().join("token"), token).expect("written");
    dir
}

/// Name and expression of each alert.
fn expressions_of_rules(rules: &str) -> Vec<(String, String)> {
    let expression = |alert: &str| {
        let (_, after) = alert.split_once("        expr: ").expect("an expression");
        let (text, _) = after.split_once("\n        for: ").expect("followed by `for`");
        text.trim_start_matches("|\n").to_owned()
    };
    rules
        .split("\n      - alert: ")
        .skip(1)
        .map(|alert| (alert.lines().next().expect("a name").to_owned(), expression(alert)))
        .collect()
}

struct Panel {
    title: String,
    query: String,
}

/// Every query of the dashboard, with its variables filled in as Grafana does.
fn panels() -> Vec<Panel> {
    let dashboard: Value = serde_json::from_str(&deploy::text("deploy/grafana/holdfast.json")).expect("JSON");
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title").to_owned();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("an expression");
            let query = query
                .replace("$__rate_interval", "1m")
                .replace("$job", "holdfast")
                .replace("$instance", ".*");
            assert!(!query.contains('$'), "{title}: an unknown variable in {query}");
            found.push(Panel {
                title: title.clone(),
                query,
            });
        }
    }
    assert!(found.len() >= 30, "{} queries", found.len());
    found
}

/// The names of figures in an expression.
fn figures(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("holdfast_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

struct Prometheus {
    child: Child,
    url: String,
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(dir: tempfile::TempDir) -> Self {
        // Free now; nobody else asks the kernel for this very port in the next moment.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port")
            .port();
        let log = dir.path().join("log");
        let output = fs::File::create(&log).expect("written");
        let child = Command::new(deploy::tool(TOOLS, "prometheus"))
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--log.level=warn", "--storage.tsdb.retention.time=1h"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor is left"))
            .stderr(output)
            .spawn()
            .expect("prometheus can be started");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let started = Self {
            child,
            url: format!("http://127.0.0.1:{port}"),
            http: holdfast_tests::harness::client(Duration::from_secs(10)),
            runtime,
            log,
            _dir: dir,
        };
        eventually("prometheus answers", PATIENCE, || {
            started.get("/api/v1/status/buildinfo", &[]).map(drop)
        });
        started
    }

    fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, String> {
        let request = self.http.get(format!("{}{path}", self.url)).query(query);
        let answer = self
            .runtime
            .block_on(async { request.send().await?.json::<Value>().await });
        let answer = answer.map_err(|error| format!("{error}; {}", log_of(&self.log)))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => Err(answer.to_string()),
        }
    }

    /// The labels of what an expression finds now.
    fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let data = self.get("/api/v1/query", &[("query", expression)])?;
        let found = data["result"].as_array().cloned().unwrap_or_default();
        Ok(found.into_iter().map(|series| series["metric"].clone()).collect())
    }

    fn rules_are_fine(&self) -> Result<(), String> {
        let data = self.get("/api/v1/rules", &[])?;
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        let rules: Vec<&Value> = groups
            .iter()
            .flat_map(|group| group["rules"].as_array())
            .flatten()
            .collect();
        let wrong: Vec<&&Value> = rules.iter().filter(|rule| rule["health"] != "ok").collect();
        match (rules.len(), wrong.is_empty()) {
            (20.., true) => Ok(()),
            (count, _) => Err(format!("{count} rules, not evaluated: {wrong:?}")),
        }
    }

    /// The nodes for which an alert fires.
    fn firing(&self, alert: &str) -> Result<Vec<String>, String> {
        let found = self.query(&format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}"))?;
        let instance = |labels: Value| labels["instance"].as_str().unwrap_or_default().to_owned();
        Ok(found.into_iter().map(instance).collect())
    }
}

fn log_of(log: &Path) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It is our child and not reaped, so its pid is still its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
