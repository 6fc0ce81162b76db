//! Events as subscribers read them: one JSON object each, of the same shape as the API's own.

use std::sync::Arc;

use actors::device::{CloseCause, Event, Status, TelemetryRecorded};
use actors::id::{DeviceKey, NodeId, ShardId};
use actors::time::Timestamp;
use actors::wire::receipt::Receipt;
use cluster::api::{LiveEntry, LiveItem, TelemetryRow};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::cursor::Place;
use crate::http::stamp;
use crate::http::TelemetryItem;

macro_rules! kinds {
    ($( $kind:ident $name:literal; )*) => {
        /// What an event is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $( $kind, )* }

        impl Kind {
            pub fn name(self) -> &'static str {
                match self { $( Kind::$kind => $name, )* }
            }

            pub fn named(name: &str) -> Option<Self> {
                match name { $( $name => Some(Kind::$kind), )* _ => None }
            }

            /// All of them, for people.
            pub fn names() -> String {
                [ $( $name, )* ].join(", ")
            }
        }
    };
}

kinds! {
    Telemetry "telemetry";
    Twin "twin";
    Session "session";
    Registration "registration";
    Message "message";
}

/// An event and where it stands.
#[derive(Clone, Copy)]
pub struct Happened<'e> {
    pub shard: ShardId,
    pub term: u64,
    pub place: Place,
    pub key: &'e DeviceKey,
    /// The device's, after it.
    pub version: u64,
    pub at: Timestamp,
    pub event: &'e Event,
}

/// The events of an item, in order.
pub fn of_item<'e>(
    shard: ShardId,
    entry: &'e LiveEntry,
    item: &'e LiveItem,
) -> impl Iterator<Item = Happened<'e>> + 'e {
    (0u32..).zip(&item.events).map(move |(number, event)| Happened {
        shard,
        term: entry.term,
        place: Place {
            index: entry.index,
            // One command causes a handful of events.
            position: item.position.saturating_mul(256) + number.min(255),
        },
        key: &item.key,
        version: item.prev_version + u64::from(number) + 1,
        at: item.at,
        event,
    })
}

impl Happened<'_> {
    /// `None` for what only concerns the node: turns taken, wills dropped, rows trimmed.
    pub fn kind(&self) -> Option<Kind> {
        Some(match self.event {
            Event::TelemetryRecorded(_) => Kind::Telemetry,
            Event::TwinSectionChanged(_) => Kind::Twin,
            Event::DeviceRegistered { .. } | Event::StatusChanged { .. } | Event::DeviceDeleted => Kind::Registration,
            Event::SessionOpened(_)
            | Event::SessionClosed { .. }
            | Event::SessionResumed { .. }
            | Event::SessionExpired { .. }
            | Event::Subscribed { .. }
            | Event::Unsubscribed { .. } => Kind::Session,
            Event::MessageQueued(_)
            | Event::MessageSent { .. }
            | Event::MessageEnded { .. }
            | Event::DeadLetterDropped { .. }
            | Event::DeadLetterReplayed { .. } => Kind::Message,
            _ => return None,
        })
    }

    /// Of telemetry; the default stream is empty.
    pub fn stream(&self) -> Option<&str> {
        match self.event {
            Event::TelemetryRecorded(recorded) => Some(&recorded.telemetry.stream),
            _ => None,
        }
    }

    /// The JSON object.
    pub fn text(&self, kind: Kind) -> Arc<str> {
        let Place { index, position } = self.place;
        let told = Told {
            id: format!("{}-{index}-{position}", self.shard.0),
            kind: kind.name(),
            device: self.key.device.as_str(),
            shard: self.shard.0,
            index,
            term: self.term,
            version: self.version,
            time: stamp::text(self.at),
            what: self.what(),
        };
        serde_json::to_string(&told)
            .expect("made of strings and numbers")
            .into()
    }

    fn what(&self) -> What<'_> {
        match self.event {
            Event::TelemetryRecorded(recorded) => What::Telemetry(Box::new(self.telemetry(recorded))),
            Event::TwinSectionChanged(change) => What::Twin {
                section: change.section.name(),
                section_version: change.section_version,
                body: serde_json::from_str(&change.json).unwrap_or_default(),
            },
            Event::DeviceRegistered { status, automatic } => What::Registration {
                change: "registered",
                status: Some(status_name(*status)),
                automatic: Some(*automatic),
            },
            Event::StatusChanged { status } => What::Registration {
                change: "status",
                status: Some(status_name(*status)),
                automatic: None,
            },
            Event::DeviceDeleted => What::Registration {
                change: "deleted",
                status: None,
                automatic: None,
            },
            Event::SessionOpened(opened) => What::Session(Session {
                generation: Some(opened.generation),
                node: Some(opened.gateway.node),
                protocol: Some(match opened.protocol {
                    5 => "mqtt-5.0",
                    _ => "mqtt-3.1.1",
                }),
                ..Session::new("connected")
            }),
            Event::SessionClosed { generation, cause } => What::Session(Session {
                generation: Some(*generation),
                cause: Some(match cause {
                    CloseCause::Graceful { .. } => "graceful",
                    CloseCause::Abrupt => "abrupt",
                    CloseCause::GatewayLost => "gateway-lost",
                }),
                ..Session::new("disconnected")
            }),
            Event::SessionResumed { generation, gateway } => What::Session(Session {
                generation: Some(*generation),
                node: Some(gateway.node),
                ..Session::new("resumed")
            }),
            Event::SessionExpired { generation } => What::Session(Session {
                generation: Some(*generation),
                ..Session::new("expired")
            }),
            Event::Subscribed { subscriptions, .. } => What::Session(Session {
                filters: Some(subscriptions.iter().map(|s| s.filter.as_str()).collect()),
                ..Session::new("subscribed")
            }),
            Event::Unsubscribed { filters, .. } => What::Session(Session {
                filters: Some(filters.iter().map(String::as_str).collect()),
                ..Session::new("unsubscribed")
            }),
            Event::MessageQueued(queued) => What::Message(Message {
                message_id: Some(&queued.message.id),
                expires_at: Some(stamp::text(queued.expires_at)),
                ..Message::new("queued", queued.number)
            }),
            Event::MessageSent { number, generation, .. } => What::Message(Message {
                generation: Some(*generation),
                ..Message::new("sent", *number)
            }),
            Event::MessageEnded {
                number, outcome, kept, ..
            } => What::Message(Message {
                dead_letter: Some(*kept),
                ..Message::new(outcome.name(), *number)
            }),
            Event::DeadLetterDropped { number } => What::Message(Message::new("dropped", *number)),
            Event::DeadLetterReplayed {
                number,
                new_number,
                expires_at,
            } => What::Message(Message {
                new_number: Some(*new_number),
                expires_at: Some(stamp::text(*expires_at)),
                ..Message::new("replayed", *number)
            }),
            _ => What::Nothing {},
        }
    }

    fn telemetry(&self, recorded: &TelemetryRecorded) -> TelemetryItem {
        TelemetryItem::new(TelemetryRow {
            seq: recorded.seq,
            enqueued_at: self.at,
            receipt: Receipt {
                shard: self.shard,
                term: self.term,
                index: self.place.index,
                seq: recorded.seq,
            },
            will: recorded.will,
            telemetry: recorded.telemetry.clone(),
        })
    }
}

fn status_name(status: Status) -> &'static str {
    match status {
        Status::Enabled => "enabled",
        Status::Disabled => "disabled",
    }
}

#[derive(Serialize)]
struct Told<'e> {
    id: String,
    kind: &'static str,
    device: &'e str,
    shard: u16,
    index: u64,
    term: u64,
    version: u64,
    time: String,
    #[serde(flatten)]
    what: What<'e>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What<'e> {
    Telemetry(Box<TelemetryItem>),
    Twin {
        section: &'static str,
        section_version: u64,
        /// The whole section.
        body: Box<RawValue>,
    },
    Registration {
        change: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        status: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        automatic: Option<bool>,
    },
    Session(Session<'e>),
    Message(Message<'e>),
    Nothing {},
}

#[derive(Serialize)]
struct Message<'e> {
    change: &'static str,
    /// Names the message among those of its device.
    number: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new_number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_letter: Option<bool>,
}

impl Message<'_> {
    fn new(change: &'static str, number: u64) -> Self {
        Self {
            change,
            number,
            message_id: None,
            generation: None,
            expires_at: None,
            new_number: None,
            dead_letter: None,
        }
    }
}

#[derive(Serialize)]
struct Session<'e> {
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filters: Option<Vec<&'e str>>,
}

impl Session<'_> {
    fn new(change: &'static str) -> Self {
        Self {
            change,
            generation: None,
            node: None,
            protocol: None,
            cause: None,
            filters: None,
        }
    }
}

/// A shard has another leader from here on; nothing is missing.
pub fn failover(shard: ShardId, entry: &LiveEntry, leader: Option<NodeId>) -> Arc<str> {
    let marker = json!({
        "kind": "failover", "shard": shard.0, "index": entry.index, "term": entry.term, "leader": leader,
    });
    marker.to_string().into()
}

/// Events of a shard before `index` may be missing, how many is not known.
pub fn gap(shard: ShardId, index: u64, reason: &str) -> Arc<str> {
    json!({ "kind": "gap", "shard": shard.0, "index": index, "reason": reason })
        .to_string()
        .into()
}

/// So many events were left out because the subscriber did not keep up.
pub fn missed(count: u64) -> Arc<str> {
    json!({ "kind": "missed", "count": count }).to_string().into()
}
