//! Messages to devices while a test breaks the cluster, and the judgement afterwards: what was
//! queued reaches its device in order and is settled once; nothing acknowledged vanishes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{json, Value};

use crate::clients::http::Http;
use crate::clients::mailbox::{Login, Mailbox};
use crate::harness::{eventually, Cluster};

const DEVICES: usize = 4;
const DRAIN: Duration = Duration::from_secs(60);
/// Between attempts at a cluster that is down; paces the test, asserts nothing.
const PAUSE: Duration = Duration::from_millis(20);

/// Sends messages to a few devices, one after the other, until it is told to stop.
pub struct Courier {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    prefix: String,
    sender: JoinHandle<Vec<Vec<String>>>,
    devices: Vec<JoinHandle<Vec<String>>>,
    silence: Arc<AtomicBool>,
}

impl Courier {
    pub fn start(cluster: &Cluster, prefix: &str) -> Self {
        let (stop, silence) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let devices = (0..DEVICES)
            .map(|at| {
                let (nodes, id, silence) = (cluster.mqtt(), device(prefix, at), silence.clone());
                std::thread::spawn(move || receive(&nodes, at, &id, &silence))
            })
            .collect();
        let sender = {
            let (nodes, token, prefix) = (cluster.http(), cluster.file.token.clone(), prefix.to_owned());
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            std::thread::spawn(move || send(&nodes, &token, &prefix, &stop, &acknowledged))
        };
        Self {
            stop,
            acknowledged,
            prefix: prefix.to_owned(),
            sender,
            devices,
            silence,
        }
    }

    /// Waits until `more` messages were acknowledged from now on.
    #[track_caller]
    pub fn acknowledge(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually("messages are queued", DRAIN, || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            (now >= goal).then_some(()).ok_or_else(|| format!("{now} of {goal}"))
        });
    }

    /// Ends the load, lets the queues drain, and holds the product to its promises.
    ///
    /// # Panics
    /// When a message that was acknowledged is nowhere, was settled twice, or came out of order.
    pub fn finish_and_judge(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = self.sender.join().expect("the sender goes on until it is stopped");
        let http = Http::new(cluster.http()[0], &cluster.file.token);
        for at in 0..DEVICES {
            let path = format!("/api/v1/devices/{}/messages", device(&self.prefix, at));
            eventually("the queue drains", DRAIN, || {
                let queue = http.get(&path).json();
                let waiting = queue["items"].as_array().map_or(usize::MAX, Vec::len);
                (waiting == 0).then_some(()).ok_or_else(|| queue.to_string())
            });
        }
        self.silence.store(true, Ordering::Relaxed);
        let received: Vec<Vec<String>> = self
            .devices
            .into_iter()
            .map(|device| device.join().expect("a device goes on until it is stopped"))
            .collect();
        let mut total = 0;
        for at in 0..DEVICES {
            total += acknowledged[at].len();
            judge(&http, &device(&self.prefix, at), &acknowledged[at], &received[at]);
        }
        println!("judged: {total} messages acknowledged, all received in order and settled once");
    }
}

fn device(prefix: &str, at: usize) -> String {
    format!("{prefix}-inbox-{at}")
}

/// Sends each message until it is acknowledged, under the same id.
fn send(nodes: &[SocketAddr], token: &str, prefix: &str, stop: &AtomicBool, count: &AtomicU64) -> Vec<Vec<String>> {
    let edges: Vec<Http> = nodes.iter().map(|node| Http::new(*node, token)).collect();
    let mut acknowledged = vec![Vec::new(); DEVICES];
    let mut edge = 0;
    for number in 0.. {
        let at = number % DEVICES;
        let path = format!("/api/v1/devices/{}/messages", device(prefix, at));
        let id = format!("m-{number}");
        let body = json!({"payload": number, "message_id": id}).to_string();
        loop {
            let answer = edges[edge].try_send(reqwest::Method::POST, &path, &[], body.clone().into());
            if answer.is_some_and(|answer| matches!(answer.status, 200 | 201)) {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                return acknowledged;
            }
            edge = (edge + 1) % edges.len();
            std::thread::sleep(PAUSE);
        }
        acknowledged[at].push(id);
        count.fetch_add(1, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    acknowledged
}

/// A device that comes back to the next node whenever it is cut off, and acknowledges everything.
/// Returns the ids in the order in which they came.
fn receive(nodes: &[SocketAddr], first: usize, id: &str, silence: &AtomicBool) -> Vec<String> {
    let mut received = Vec::new();
    let filter = format!("devices/{id}/messages/#");
    for node in (0..nodes.len()).cycle().skip(first) {
        if silence.load(Ordering::Relaxed) {
            break;
        }
        let login = Login::RESUMED;
        let Some(mut mailbox) = Mailbox::try_open(nodes[node], id, login) else {
            std::thread::sleep(PAUSE);
            continue;
        };
        // The subscription outlives the node: only a new session has to make it.
        if !mailbox.session_present && !mailbox.try_subscribe(&filter, 1) {
            continue;
        }
        while let Some(delivery) = mailbox.next_until(silence) {
            mailbox.acknowledge(&delivery);
            received.push(delivery.message_id);
        }
    }
    received
}

fn judge(http: &Http, device: &str, acknowledged: &[String], received: &[String]) {
    let mut seen = BTreeSet::new();
    let first: Vec<&String> = received.iter().filter(|id| seen.insert(*id)).collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|id| !seen.contains(id)).collect();
    assert!(lost.is_empty(), "{device}: acknowledged and never delivered: {lost:?}");
    let number = |id: &&String| id[2..].parse::<u64>().expect("ids are numbered");
    let order: Vec<u64> = first.iter().map(number).collect();
    assert!(order.is_sorted(), "{device}: out of order: {order:?}");
    let path = format!("/api/v1/devices/{device}/messages");
    let feedback = http.get(&format!("{path}/feedback?limit=1000")).expect(200).json();
    let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for item in feedback["items"].as_array().expect("items") {
        let text = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
        ends.entry(text("message_id")).or_default().push(text("outcome"));
    }
    for (id, outcomes) in ends {
        assert_eq!(outcomes, ["completed"], "{device}: {id}");
    }
    let dead = http.get(&format!("{path}/dead")).expect(200).json();
    assert_eq!(dead["items"], Value::Array(Vec::new()), "{device}");
}
