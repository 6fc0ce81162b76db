//! Fleet, ledger, read-back and checker together, against a small broker that can be told to cheat.
//!
//! The broker cuts every connection again and again, often after storing and before answering, so
//! an honest one is only told from a cheating one by resends and a correct record of them.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use chaos::{read_back, Fact, Findings, ReadBack, Verdict};
use rmqtt_codec::types::Publish;
use rmqtt_codec::{v3, v5};
use serde_json::{json, Value};
use simulator::fleet::Timing;
use simulator::{Fleet, FleetConfig, Load, Progress};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::codec::{Decoder, Encoder};

/// Publishes after which a connection is cut.
const CUT_AFTER: usize = 70;
/// A cheater cheats on each message whose place divides by this.
const CHEAT_EVERY: usize = 50;

#[derive(Clone, Copy, PartialEq)]
enum Cheat {
    Nothing,
    /// Acknowledges some messages and stores nothing.
    Loses,
    /// Stores a resent message again.
    StoresAgain,
    /// Now and then stores a message before the one that came earlier.
    Reorders,
    /// Acknowledges twin reports and forgets them.
    ForgetsTwin,
}

#[derive(Default)]
struct Device {
    stored: Vec<Value>,
    received: usize,
    /// By packet id: what was stored last under it, and its seq.
    recent: BTreeMap<u16, (Bytes, u64)>,
    reported: Value,
    version: u64,
}

struct Broker {
    cheat: Cheat,
    devices: Mutex<BTreeMap<String, Device>>,
}

enum Codec {
    V3(v3::Codec),
    V5(v5::Codec),
}

impl Broker {
    /// Returns the seq for the receipt.
    fn store(&self, name: &str, publish: &Publish) -> u64 {
        let mut devices = self.devices.lock().unwrap();
        let device = devices.entry(name.to_owned()).or_default();
        let id = publish.packet_id.unwrap().get();
        let known = device
            .recent
            .get(&id)
            .filter(|(payload, _)| publish.dup && *payload == publish.payload);
        if let (Some((_, seq)), true) = (known, self.cheat != Cheat::StoresAgain) {
            return *seq;
        }
        device.received += 1;
        let body: Value = serde_json::from_slice(&publish.payload).unwrap();
        let cheats = device.received.is_multiple_of(CHEAT_EVERY);
        match self.cheat {
            Cheat::Loses if cheats => return 0,
            Cheat::Reorders if cheats => {
                let before = device.stored.len() - 1;
                device.stored.insert(before, body);
                return 0;
            }
            _ => device.stored.push(body),
        }
        let seq = device.stored.len() as u64;
        device.recent.insert(id, (publish.payload.clone(), seq));
        seq
    }

    fn report(&self, name: &str, payload: &[u8]) -> u64 {
        let mut devices = self.devices.lock().unwrap();
        let device = devices.entry(name.to_owned()).or_default();
        if self.cheat != Cheat::ForgetsTwin || device.version == 0 {
            device.reported = serde_json::from_slice(payload).unwrap();
        }
        device.version += 1;
        device.version
    }

    /// One MQTT connection, until it is cut.
    async fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let (mut input, mut out, mut count) = (BytesMut::new(), BytesMut::new(), 0);
        while input.len() < 9 {
            read(&mut stream, &mut input).await?;
        }
        let mut codec = if input[8] == 5 {
            Codec::V5(v5::Codec::new(0, 0))
        } else {
            Codec::V3(v3::Codec::new(0))
        };
        let mut name = String::new();
        loop {
            while let Some(packet) = codec.next(&mut input) {
                match packet {
                    Packet::Connect(client) => {
                        name = client;
                        codec.accept(&mut out);
                    }
                    Packet::Publish(publish) => {
                        count += 1;
                        let seq = match publish.topic.contains("/twin/") {
                            false => self.store(&name, &publish),
                            true => {
                                let version = self.report(&name, &publish.payload);
                                let rid = publish.topic.rsplit('/').next().unwrap();
                                codec.answer(&name, rid, version, &mut out);
                                0
                            }
                        };
                        if count % CUT_AFTER == 0 {
                            return None; // stored, not answered
                        }
                        codec.acknowledge(publish.packet_id.unwrap(), seq, &mut out);
                    }
                    Packet::End => return None,
                    Packet::Other => {}
                }
            }
            stream.write_all(&out).await.ok()?;
            out.clear();
            read(&mut stream, &mut input).await?;
        }
    }

    /// One HTTP request of the read-back.
    async fn answer(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let (mut first, mut line) = (String::new(), String::new());
        reader.read_line(&mut first).await.ok()?;
        while reader.read_line(&mut line).await.ok()? > 2 {
            line.clear();
        }
        let path = first.split(' ').nth(1)?;
        let name = path.split('/').nth(4)?;
        let body = {
            let devices = self.devices.lock().unwrap();
            let device = devices.get(name)?;
            match path.split_once("after_seq=") {
                None => json!({"reported": device.reported, "versions": {"reported": device.version}}),
                Some((_, rest)) => {
                    let after: usize = rest.split('&').next()?.parse().ok()?;
                    let page = device.stored.iter().enumerate().skip(after).take(1_000);
                    let items: Vec<Value> = page.map(|(at, body)| json!({"seq": at + 1, "body": body})).collect();
                    let next = (after + items.len() < device.stored.len()).then_some(after + items.len());
                    json!({"items": items, "next": next})
                }
            }
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        reader
            .get_mut()
            .write_all(format!("{head}{body}").as_bytes())
            .await
            .ok()
    }
}

enum Packet {
    Connect(String),
    Publish(Box<Publish>),
    End,
    Other,
}

impl Codec {
    fn next(&mut self, input: &mut BytesMut) -> Option<Packet> {
        Some(match self {
            Codec::V3(codec) => match codec.decode(input).unwrap()?.0 {
                v3::Packet::Connect(connect) => Packet::Connect(connect.client_id.to_string()),
                v3::Packet::Publish(publish) => Packet::Publish(publish),
                v3::Packet::Disconnect => Packet::End,
                _ => Packet::Other,
            },
            Codec::V5(codec) => match codec.decode(input).unwrap()?.0 {
                v5::Packet::Connect(connect) => Packet::Connect(connect.client_id.to_string()),
                v5::Packet::Publish(publish) => Packet::Publish(publish),
                v5::Packet::Disconnect(_) => Packet::End,
                _ => Packet::Other,
            },
        })
    }

    fn accept(&mut self, out: &mut BytesMut) {
        match self {
            Codec::V3(codec) => {
                let ack = v3::ConnectAck {
                    return_code: v3::ConnectAckReason::ConnectionAccepted,
                    session_present: true,
                };
                codec.encode(v3::Packet::ConnectAck(ack), out).unwrap();
            }
            Codec::V5(codec) => {
                let ack = v5::ConnectAck {
                    session_present: true,
                    ..Default::default()
                };
                codec.encode(v5::Packet::ConnectAck(Box::new(ack)), out).unwrap();
            }
        }
    }

    fn acknowledge(&mut self, packet_id: std::num::NonZeroU16, seq: u64, out: &mut BytesMut) {
        match self {
            Codec::V3(codec) => codec.encode(v3::Packet::PublishAck { packet_id }, out).unwrap(),
            Codec::V5(codec) => {
                let receipt = ("holdfast-receipt".into(), format!("1-1-{seq}-{seq}").into());
                let ack = v5::PublishAck {
                    packet_id,
                    properties: vec![receipt],
                    ..Default::default()
                };
                codec.encode(v5::Packet::PublishAck(ack), out).unwrap();
            }
        }
    }

    fn answer(&mut self, name: &str, rid: &str, version: u64, out: &mut BytesMut) {
        let publish = Box::new(Publish {
            dup: false,
            retain: false,
            qos: v5::QoS::AtMostOnce,
            topic: format!("devices/{name}/twin/res/{rid}").into(),
            packet_id: None,
            payload: json!({"status": 204, "version": version}).to_string().into(),
            properties: matches!(self, Codec::V5(_)).then(Default::default),
        });
        match self {
            Codec::V3(codec) => codec.encode(v3::Packet::Publish(publish), out).unwrap(),
            Codec::V5(codec) => codec.encode(v5::Packet::Publish(publish), out).unwrap(),
        }
    }
}

async fn read(stream: &mut TcpStream, input: &mut BytesMut) -> Option<()> {
    (stream.read_buf(input).await.ok()? > 0).then_some(())
}

async fn listen(broker: Arc<Broker>, mqtt: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let broker = broker.clone();
            tokio::spawn(async move {
                match mqtt {
                    true => broker.serve(stream).await,
                    false => broker.answer(stream).await,
                }
            });
        }
    });
    address
}

/// Six devices of both versions send 300 messages each, and twin reports beside them.
async fn judge(cheat: Cheat) -> Findings {
    let broker = Arc::new(Broker {
        cheat,
        devices: Mutex::default(),
    });
    let (mqtt, http) = (listen(broker.clone(), true).await, listen(broker, false).await);
    let config = FleetConfig {
        endpoints: vec![mqtt],
        devices: 6,
        load: Load::Closed { window: 8 },
        timing: Timing {
            messages_per_device_max: 300,
            twin_interval: Some(Duration::from_millis(2)),
            ..Default::default()
        },
        message_ids: true,
        ..Default::default()
    };
    let report = tokio::task::spawn_blocking(move || {
        let fleet = Fleet::start(config).unwrap();
        fleet.publish();
        let end = Instant::now() + Duration::from_secs(30);
        while Progress::read(&fleet.progress.acknowledged) < 1_800
            || Progress::read(&fleet.progress.twin_acknowledged) < 12
        {
            assert!(Instant::now() < end, "not everything is acknowledged");
            std::thread::sleep(Duration::from_millis(5));
        }
        fleet.finish(Duration::from_secs(10)).unwrap()
    });
    let ledger = report.await.unwrap().ledger;
    assert!(ledger.reconnects() >= 6 * 3, "the broker cuts connections");
    let from = ReadBack {
        nodes: vec![http],
        token: "x".into(),
        request_deadline: Duration::from_secs(10),
    };
    read_back(from, Arc::new(ledger), Arc::default()).await.unwrap()
}

/// Cut connections, resends and both versions of the protocol leave a record that holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_broker_passes() {
    let findings = judge(Cheat::Nothing).await;
    assert_eq!(Verdict::of(&findings).exit_code(), 0, "{:?}", findings.breaches);
    assert_eq!(
        (findings.acknowledged, findings.stored, findings.devices),
        (1_800, 1_800, 6)
    );
    assert!(findings.twin_acknowledged >= 12);
}

/// Each way to cheat is seen for what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cheating_broker_is_caught() {
    let cases = [
        (Cheat::Loses, Fact::AckedSurvive),
        (Cheat::StoresAgain, Fact::StoredOnce),
        (Cheat::Reorders, Fact::InOrder),
        (Cheat::ForgetsTwin, Fact::AckedTwinVersionsSurvive),
    ];
    for (cheat, fact) in cases {
        let findings = judge(cheat).await;
        assert!(findings.count(fact) > 0, "{fact} holds: {:?}", findings.breaches);
        assert_eq!(Verdict::of(&findings).exit_code(), 1);
    }
}
