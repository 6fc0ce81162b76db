//! A gateway over [`Fake`] devices, and clients that speak MQTT byte by byte.
#![allow(dead_code, clippy::unwrap_used, clippy::disallowed_methods, clippy::disallowed_types)]

pub mod fake;

use std::future::Future;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use actors::shell::LivePolicy;
use bytes::BytesMut;
use node::gateway::{Gates, Gateway, GatewayConfig, Limits, OpenOnLoopback, Registry};
use rmqtt_codec::types::{Publish, QoS};
use rmqtt_codec::{v3, v5};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::codec::{Decoder, Encoder};

#[allow(unused_imports)]
pub use fake::{key, Fake, Fault};

/// Longest wait for a condition: generous, for the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Bench {
    pub gateway: Gateway,
    pub fake: Arc<Fake>,
}

/// Runs a test against a gateway on two arbiters.
pub fn with_gateway<F: Future<Output = ()>>(limits: Limits, test: impl FnOnce(Bench) -> F) {
    actix_rt::System::new().block_on(async {
        let registry = Registry::new();
        let fake = Fake::new(registry.clone());
        let arbiters: Vec<_> = (0..2).map(|_| actix_rt::Arbiter::new()).collect();
        let config = GatewayConfig {
            listen_ws: Some("127.0.0.1:0".parse().expect("an address")),
            ws_origins: Vec::new(),
            listen: ([127, 0, 0, 1], 0).into(),
            limits,
            policy: LivePolicy::default(),
            authenticator: Arc::new(OpenOnLoopback),
            registry,
            gates: Gates::new(16),
        };
        let handles = arbiters.iter().map(actix_rt::Arbiter::handle).collect();
        let gateway = Gateway::start(config, fake.clone(), handles).unwrap();
        test(Bench { gateway, fake }).await;
        for arbiter in &arbiters {
            arbiter.stop();
        }
    });
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A connection on which anything may be sent.
pub struct Raw {
    pub stream: TcpStream,
    pub received: BytesMut,
}

impl Raw {
    pub async fn connect(bench: &Bench) -> Self {
        Self {
            stream: TcpStream::connect(bench.gateway.address()).await.unwrap(),
            received: BytesMut::new(),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        // The server may have closed already; what it said tells.
        let _ = self.stream.write_all(bytes).await;
    }

    /// All that comes until the server closes; fails on a reset.
    pub async fn until_closed(&mut self) -> Vec<u8> {
        let mut all = self.received.split().to_vec();
        let read = self.stream.read_to_end(&mut all);
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the server closes")
            .expect("gently");
        all
    }

    /// As above, where a reset cannot be told from the test's own haste.
    pub async fn until_gone(&mut self) -> Vec<u8> {
        let mut all = self.received.split().to_vec();
        let _ = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut all))
            .await
            .expect("the server closes");
        all
    }

    async fn more(&mut self) -> bool {
        let read = self.stream.read_buf(&mut self.received);
        tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the server answers")
            .is_ok_and(|n| n > 0)
    }
}

/// An MQTT 5 client.
pub struct Client5 {
    pub raw: Raw,
    codec: v5::Codec,
}

impl Client5 {
    /// Connects with clean start unless `adjust` says otherwise; returns the CONNACK too.
    pub async fn open(bench: &Bench, id: &str, adjust: impl FnOnce(&mut v5::Connect)) -> (Self, v5::ConnectAck) {
        let mut client = Self {
            raw: Raw::connect(bench).await,
            codec: v5::Codec::default(),
        };
        let mut connect = v5::Connect {
            clean_start: true,
            keep_alive: 60,
            ..v5::Connect::default()
        }
        .client_id(id.to_owned());
        adjust(&mut connect);
        client.send(v5::Packet::Connect(Box::new(connect))).await;
        match client.next().await {
            Some(v5::Packet::ConnectAck(ack)) => (client, *ack),
            other => panic!("CONNACK expected, got {other:?}"),
        }
    }

    pub async fn connected(bench: &Bench, id: &str) -> Self {
        let (client, ack) = Self::open(bench, id, |_| {}).await;
        assert_eq!(ack.reason_code, v5::ConnectAckReason::Success);
        client
    }

    pub async fn send(&mut self, packet: v5::Packet) {
        let bytes = self.encode(packet);
        self.raw.send(&bytes).await;
    }

    pub fn encode(&mut self, packet: v5::Packet) -> BytesMut {
        let mut bytes = BytesMut::new();
        self.codec.encode(packet, &mut bytes).unwrap();
        bytes
    }

    /// The next packet; `None` when the server closed.
    pub async fn next(&mut self) -> Option<v5::Packet> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.raw.received).unwrap() {
                return Some(packet);
            }
            if !self.raw.more().await {
                return None;
            }
        }
    }

    pub async fn publish(&mut self, packet_id: u16, topic: &str, body: &str) {
        let packet = publish5(packet_id, topic, body);
        self.send(packet).await;
    }

    pub async fn puback(&mut self) -> v5::PublishAck {
        match self.next().await {
            Some(v5::Packet::PublishAck(ack)) => ack,
            other => panic!("PUBACK expected, got {other:?}"),
        }
    }

    /// The reason of the server's DISCONNECT, which must be all that still comes.
    pub async fn goodbye(&mut self) -> v5::DisconnectReasonCode {
        match self.next().await {
            Some(v5::Packet::Disconnect(bye)) => {
                assert!(self.next().await.is_none(), "nothing follows a DISCONNECT");
                bye.reason_code
            }
            other => panic!("DISCONNECT expected, got {other:?}"),
        }
    }

    pub async fn subscribe(&mut self, filters: &[(&str, QoS)]) -> Vec<v5::SubscribeAckReason> {
        let topic_filters = filters.iter().map(|(filter, qos)| {
            let options = v5::SubscriptionOptions {
                qos: *qos,
                ..v5::SubscriptionOptions::default()
            };
            ((*filter).into(), options)
        });
        let subscribe = v5::Subscribe {
            packet_id: NonZeroU16::new(9).unwrap(),
            id: None,
            user_properties: Vec::new(),
            topic_filters: topic_filters.collect(),
        };
        self.send(v5::Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(v5::Packet::SubscribeAck(ack)) => ack.status,
            other => panic!("SUBACK expected, got {other:?}"),
        }
    }

    pub async fn published(&mut self) -> Box<Publish> {
        match self.next().await {
            Some(v5::Packet::Publish(publish)) => publish,
            other => panic!("PUBLISH expected, got {other:?}"),
        }
    }
}

/// `packet_id` 0: QoS 0.
pub fn publish(packet_id: u16, topic: &str, body: &str) -> Box<Publish> {
    let packet_id = NonZeroU16::new(packet_id);
    Box::new(Publish {
        dup: false,
        retain: false,
        qos: if packet_id.is_some() {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        },
        topic: topic.to_owned().into(),
        packet_id,
        payload: body.to_owned().into(),
        properties: None,
    })
}

pub fn publish5(packet_id: u16, topic: &str, body: &str) -> v5::Packet {
    let mut publish = publish(packet_id, topic, body);
    publish.properties = Some(v5::PublishProperties::default());
    v5::Packet::Publish(publish)
}

/// An MQTT 3.1.1 client.
pub struct Client3 {
    pub raw: Raw,
    codec: v3::Codec,
}

impl Client3 {
    pub async fn open(bench: &Bench, id: &str, adjust: impl FnOnce(&mut v3::Connect)) -> (Self, v3::ConnectAck) {
        let mut client = Self {
            raw: Raw::connect(bench).await,
            codec: v3::Codec::default(),
        };
        let mut connect = v3::Connect {
            clean_session: true,
            keep_alive: 60,
            ..v3::Connect::default()
        }
        .client_id(id.to_owned());
        adjust(&mut connect);
        client.send(v3::Packet::Connect(Box::new(connect))).await;
        match client.next().await {
            Some(v3::Packet::ConnectAck(ack)) => (client, ack),
            other => panic!("CONNACK expected, got {other:?}"),
        }
    }

    pub async fn connected(bench: &Bench, id: &str) -> Self {
        let (client, ack) = Self::open(bench, id, |_| {}).await;
        assert_eq!(ack.return_code, v3::ConnectAckReason::ConnectionAccepted);
        client
    }

    pub async fn send(&mut self, packet: v3::Packet) {
        let mut bytes = BytesMut::new();
        self.codec.encode(packet, &mut bytes).unwrap();
        self.raw.send(&bytes).await;
    }

    pub async fn next(&mut self) -> Option<v3::Packet> {
        loop {
            if let Some((packet, _)) = self.codec.decode(&mut self.raw.received).unwrap() {
                return Some(packet);
            }
            if !self.raw.more().await {
                return None;
            }
        }
    }

    pub async fn publish(&mut self, packet_id: u16, topic: &str, body: &str) {
        self.send(v3::Packet::Publish(publish(packet_id, topic, body))).await;
    }

    pub async fn puback(&mut self) -> u16 {
        match self.next().await {
            Some(v3::Packet::PublishAck { packet_id }) => packet_id.get(),
            other => panic!("PUBACK expected, got {other:?}"),
        }
    }
}
