//! Which gateways are told what, and when.

use super::*;
use crate::device::{Fence, OpenSession, Qos, Section, SectionWrite, Subscription, WriteMode};
use crate::id::Gateway;
use crate::ports::DownlinkBody;

const OLD: Gateway = Gateway { node: 1, boot: 10 };
const NEW: Gateway = Gateway { node: 2, boot: 20 };

fn open(gateway: Gateway) -> Command {
    Command::OpenSession(Box::new(OpenSession {
        gateway,
        clean_start: false,
        expiry_secs: 3_600,
        keep_alive_secs: 60,
        protocol: 5,
        will: None,
        via: None,
    }))
}

fn subscribe(filter: &str, qos: Qos) -> Command {
    Command::Subscribe {
        fence: Fence {
            generation: 1,
            ordinal: 1,
        },
        subscriptions: vec![Subscription {
            filter: filter.to_owned(),
            qos,
            identifier: 0,
        }],
    }
}

fn write(section: Section, json: &str) -> Command {
    write_as(WriteMode::Merge, section, json)
}

fn write_as(mode: WriteMode, section: Section, json: &str) -> Command {
    Command::UpdateTwin {
        origin: Origin::Operator,
        writes: vec![SectionWrite {
            section,
            mode,
            json: json.to_owned(),
        }],
        condition: None,
    }
}

async fn connected() -> Fixture {
    let mut f = Fixture::new(HostLimits::default());
    f.call("register", "lamp", register()).await.unwrap();
    f.call("open", "lamp", open(OLD)).await.unwrap();
    assert!(f.ledger.downlinks().is_empty());
    f
}

/// The gateway that held the older connection learns that it is over, once the newer one has
/// committed.
#[tokio::test]
async fn taken_over_connection_is_told_after_commit() {
    on_one_thread(async {
        let mut f = connected().await;
        f.ledger.set_mode(Mode::Held);
        f.send("again", "lamp", open(NEW));
        f.pending(1).await;
        assert!(f.ledger.downlinks().is_empty());
        f.ledger.commit_all();
        let notes = f.ledger.downlinks();
        assert_eq!(notes.len(), 1);
        assert_eq!((notes[0].gateway, notes[0].generation), (OLD, 1));
        assert_eq!(notes[0].body, DownlinkBody::TakenOver);
    })
    .await;
}

/// A device that is disabled or deleted loses its connection.
#[tokio::test]
async fn disabled_or_deleted_device_is_disconnected() {
    let disable = Command::PatchDevice {
        gateway: None,
        status: Some(Status::Disabled),
        condition: Precondition::None,
    };
    let delete = Command::DeleteDevice {
        condition: Precondition::None,
    };
    for command in [disable, delete] {
        on_one_thread(async {
            let mut f = connected().await;
            f.call("gone", "lamp", command).await.unwrap();
            let notes = f.ledger.downlinks();
            assert_eq!(notes.len(), 1);
            assert_eq!((notes[0].gateway, notes[0].generation), (OLD, 1));
            assert_eq!(notes[0].body, DownlinkBody::NotAuthorised);
        })
        .await;
    }
}

/// A connected device hears of a desired change, at the QoS it subscribed with; of tags never.
#[tokio::test]
async fn desired_change_reaches_the_subscribed_connection() {
    on_one_thread(async {
        let mut f = connected().await;
        f.call("deaf", "lamp", write(Section::Desired, r#"{"a":1}"#))
            .await
            .unwrap();
        assert!(f.ledger.downlinks().is_empty(), "no subscription yet");
        f.call("sub", "lamp", subscribe("devices/lamp/twin/#", Qos::AtLeastOnce))
            .await
            .unwrap();
        f.call("tags", "lamp", write(Section::Tags, r#"{"a":1}"#))
            .await
            .unwrap();
        assert!(f.ledger.downlinks().is_empty());
        f.call("desired", "lamp", write(Section::Desired, r#"{"on":true,"a":null}"#))
            .await
            .unwrap();
        let notes = f.ledger.downlinks();
        assert_eq!(notes.len(), 1);
        assert_eq!((notes[0].gateway, notes[0].generation), (OLD, 1));
        let DownlinkBody::DesiredChanged { json, qos } = &notes[0].body else {
            panic!("{:?}", notes[0].body);
        };
        assert_eq!(*qos, Qos::AtLeastOnce);
        let patch: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(patch, serde_json::json!({"on": true, "a": null, "$version": 2}));
    })
    .await;
}

/// After a replacement the device is told what went, too: merged into its copy, the patch yields
/// the new section.
#[tokio::test]
async fn replaced_desired_reaches_the_device_as_a_merge_patch() {
    on_one_thread(async {
        let mut f = connected().await;
        f.call("sub", "lamp", subscribe("devices/lamp/twin/desired", Qos::AtMostOnce))
            .await
            .unwrap();
        let old = r#"{"a":1,"b":{"c":1,"d":2},"e":[1]}"#;
        f.call("old", "lamp", write(Section::Desired, old)).await.unwrap();
        let new = r#"{"b":{"d":3},"e":[1],"f":true}"#;
        f.call("new", "lamp", write_as(WriteMode::Replace, Section::Desired, new))
            .await
            .unwrap();
        let notes = f.ledger.downlinks();
        let DownlinkBody::DesiredChanged { json, .. } = &notes[1].body else {
            panic!("{:?}", notes[1].body);
        };
        let patch: serde_json::Value = serde_json::from_str(json).unwrap();
        let expected = serde_json::json!({"a": null, "b": {"c": null, "d": 3}, "f": true, "$version": 2});
        assert_eq!(patch, expected);
    })
    .await;
}
