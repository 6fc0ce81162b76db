//! How long a message takes from an operator's request to its device, while the device is
//! connected: over HTTP into one node, durable on a majority, over MQTT out of another.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytestring::ByteString;
use futures::{SinkExt as _, StreamExt as _};
use rmqtt_codec::types::QoS;
use rmqtt_codec::v3::{Codec, Connect, Packet};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::codec::Framed;

use super::report::{Report, Who};
use super::{note, BenchArgs};
use crate::cli::local::{HarnessError, Interrupt, LocalCluster};

/// Devices, each with at most one message on its way.
const DEVICES: usize = 16;
/// Messages of each measurement.
const MESSAGES: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(10);

type Link = Framed<TcpStream, Codec>;

/// What one message took, in milliseconds from the request.
struct Sample {
    answered: f64,
    delivered: f64,
}

pub fn measure(
    args: &BenchArgs,
    cluster: &LocalCluster,
    report: &mut Report,
    interrupt: &Interrupt,
) -> Result<(), HarnessError> {
    for at_once in [1, DEVICES] {
        note(&format!("messages to devices, {at_once} at a time"));
        interrupt.sleep(Duration::ZERO)?;
        let samples = cluster.runtime().block_on(run(args, cluster, at_once))?;
        let named = |what| format!("message, {at_once} at a time: request to {what}");
        for (what, of) in [("answer", answered as fn(&Sample) -> f64), ("device", delivered)] {
            let mut times: Vec<f64> = samples.iter().map(of).collect();
            times.sort_by(f64::total_cmp);
            report.add(
                Who::Holdfast,
                format!("{} (p50)", named(what)),
                "ms",
                &[at(&times, 0.5)],
            );
            report.add(
                Who::Holdfast,
                format!("{} (p99)", named(what)),
                "ms",
                &[at(&times, 0.99)],
            );
        }
    }
    Ok(())
}

fn answered(sample: &Sample) -> f64 {
    sample.answered
}

fn delivered(sample: &Sample) -> f64 {
    sample.delivered
}

fn at(sorted: &[f64], part: f64) -> f64 {
    let index = (sorted.len() as f64 * part) as usize;
    sorted[index.min(sorted.len() - 1)]
}

async fn run(args: &BenchArgs, cluster: &LocalCluster, at_once: usize) -> Result<Vec<Sample>, HarnessError> {
    let (mqtt, http) = (cluster.mqtt(), cluster.http());
    let lanes = (0..at_once).map(|lane| {
        let id = format!("messages-{at_once}-{lane}");
        // In by one node, out by the next.
        let (gateway, edge) = (mqtt[lane % mqtt.len()], http[(lane + 1) % http.len()]);
        let token = cluster.file.token.clone();
        let payload = "x".repeat(args.payload as usize);
        async move {
            let mut device = Device::connect(gateway, &id).await?;
            let url = format!("http://{edge}/api/v1/devices/{id}/messages");
            lane_of(&mut device, &url, (&token, &payload), MESSAGES / at_once).await
        }
    });
    let samples = futures::future::try_join_all(lanes).await?;
    Ok(samples.into_iter().flatten().collect())
}

async fn lane_of(
    device: &mut Device,
    url: &str,
    (token, payload): (&str, &str),
    count: usize,
) -> Result<Vec<Sample>, HarnessError> {
    let http = reqwest::Client::new();
    let failed = |what: String| HarnessError::new("a message", what);
    let mut samples = Vec::with_capacity(count);
    for number in 0..count {
        let id = format!("m{number}");
        let body = serde_json::json!({ "payload": payload, "message_id": id }).to_string();
        let request = http.post(url).bearer_auth(token).body(body);
        let started = Instant::now();
        let answer = request.send().await.map_err(|e| failed(e.to_string()))?;
        let answered = started.elapsed();
        if answer.status().as_u16() != 201 {
            return Err(failed(format!("answered with {}", answer.status())));
        }
        let arrived = device
            .arrival_of(&id)
            .await
            .ok_or_else(|| failed("never arrived".into()))?;
        samples.push(Sample {
            answered: answered.as_secs_f64() * 1e3,
            delivered: arrived.duration_since(started).as_secs_f64() * 1e3,
        });
    }
    Ok(samples)
}

/// A connected device that notes when messages arrive, and acknowledges them.
struct Device {
    arrivals: mpsc::UnboundedReceiver<(String, Instant)>,
    early: BTreeMap<String, Instant>,
}

impl Device {
    async fn connect(node: SocketAddr, id: &str) -> Result<Self, HarnessError> {
        let failed = |what: &str| HarnessError::new(format!("device {id}"), what);
        let stream = TcpStream::connect(node).await.map_err(|e| failed(&e.to_string()))?;
        let _ = stream.set_nodelay(true);
        let mut link = Framed::new(stream, Codec::new(1 << 20));
        let connect = Connect {
            clean_session: true,
            keep_alive: 60,
            client_id: ByteString::from(id),
            ..Connect::default()
        };
        let filter = ByteString::from(format!("devices/{id}/messages/+"));
        let subscribe = Packet::Subscribe {
            packet_id: NonZeroU16::MIN,
            topic_filters: vec![(filter, QoS::AtLeastOnce)],
        };
        for (packet, wanted) in [(Packet::Connect(Box::new(connect)), "CONNACK"), (subscribe, "SUBACK")] {
            link.send(packet).await.map_err(|e| failed(&e.to_string()))?;
            let answer = tokio::time::timeout(DEADLINE, link.next()).await;
            match answer {
                Ok(Some(Ok((Packet::ConnectAck(_) | Packet::SubscribeAck { .. }, _)))) => {}
                _ => return Err(failed(&format!("no {wanted}"))),
            }
        }
        let (tx, arrivals) = mpsc::unbounded_channel();
        tokio::spawn(receive(link, tx));
        Ok(Self {
            arrivals,
            early: BTreeMap::new(),
        })
    }

    async fn arrival_of(&mut self, id: &str) -> Option<Instant> {
        let wait = async {
            loop {
                if let Some(at) = self.early.remove(id) {
                    return Some(at);
                }
                let (id, at) = self.arrivals.recv().await?;
                self.early.insert(id, at);
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.ok().flatten()
    }
}

/// Ends with the connection, or when nobody listens any more.
async fn receive(mut link: Link, arrivals: mpsc::UnboundedSender<(String, Instant)>) {
    while let Some(Ok((packet, _))) = link.next().await {
        let Packet::Publish(publish) = packet else { continue };
        let id = publish.topic.rsplit('/').next().unwrap_or_default().to_owned();
        if arrivals.send((id, Instant::now())).is_err() {
            return;
        }
        let Some(packet_id) = publish.packet_id else { continue };
        if link.send(Packet::PublishAck { packet_id }).await.is_err() {
            return;
        }
    }
}
