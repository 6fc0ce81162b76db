//! Order, failure, overload.

use super::*;

/// Answers of one shard leave in the order in which its commands were decided.
#[tokio::test]
async fn replies_leave_in_commit_order() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.ledger.set_mode(Mode::Held);
        f.send("a1", "a", register());
        f.send("b1", "b", register());
        f.pending(2).await;
        f.send("b2", "b", telemetry());
        f.pending(3).await;
        f.send("a2", "a", telemetry());
        f.send("a3", "a", telemetry());
        f.pending(5).await;
        assert!(f.labels().is_empty(), "nothing is answered before it has committed");
        f.ledger.commit(3);
        assert_eq!(f.labels(), ["a1", "b1", "b2"]);
        f.ledger.commit_all();
        assert_eq!(f.labels(), ["a1", "b1", "b2", "a2", "a3"]);
        assert_eq!(seq(f.answer("a3")), 2);
    })
    .await;
}

/// A refusal that rests on uncommitted events is not heard before they have committed.
#[tokio::test]
async fn refusal_waits_for_earlier_events() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.ledger.set_mode(Mode::Held);
        f.send("first", "a", register_new());
        f.send("second", "a", register_new());
        f.pending(2).await;
        assert!(f.labels().is_empty());
        f.ledger.commit(1);
        assert_eq!(f.labels(), ["first"]);
        f.ledger.commit(1);
        assert!(matches!(f.outcome("second"), Some(Err(CallError::Refused(_)))));
    })
    .await;
}

/// A read waits for what was submitted before it, and then shows it.
#[tokio::test]
async fn read_shows_no_uncommitted_state() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.ledger.set_mode(Mode::Held);
        f.send("register", "a", register());
        f.send("read", "a", Command::ReadDevice);
        f.pending(2).await;
        quiet().await;
        assert!(f.labels().is_empty());
        f.ledger.commit_all();
        assert!(matches!(f.answer("read"), Answer::Device(view) if view.version == 1));
    })
    .await;
}

/// When proposals fail nobody hears a success, and after the reset the device is what is committed.
#[tokio::test]
async fn failed_journal_yields_no_success_and_state_is_reloaded() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        f.ledger.set_mode(Mode::Held);
        f.send("t1", "a", telemetry());
        f.send("t2", "a", telemetry());
        f.pending(2).await;
        f.ledger.fail_pending();
        f.host.reset();
        assert_eq!(f.outcome("t1"), Some(Err(CallError::Unknown)));
        assert_eq!(f.outcome("t2"), Some(Err(CallError::Unknown)));
        f.ledger.set_mode(Mode::Immediate);
        assert_eq!(seq(f.call("t3", "a", telemetry()).await.unwrap().answer), 1);
        assert_eq!(f.host.counts().outstanding, 0);
        assert_eq!(f.ledger.misfits(), 0);
    })
    .await;
}

/// What still lies in mailboxes at a reset is never submitted: its device's head is worth nothing.
#[tokio::test]
async fn reset_ends_queued_messages_as_unknown() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        let events = f.ledger.events().len();
        f.send("queued", "a", telemetry());
        f.host.reset();
        f.heard(2).await;
        assert_eq!(f.outcome("queued"), Some(Err(CallError::Unknown)));
        assert_eq!(f.ledger.events().len(), events);
        assert_eq!(f.host.counts().active, 0);
    })
    .await;
}

/// The same when the host itself goes away.
#[tokio::test]
async fn dropped_host_submits_nothing_more() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        f.send("queued", "a", telemetry());
        let Fixture {
            host, ledger, heard, ..
        } = f;
        drop(host);
        until(|| heard.lock().unwrap().len() == 2).await;
        assert_eq!(heard.lock().unwrap()[1].1, Err(CallError::Unknown));
        assert_eq!(ledger.events().len(), 1);
    })
    .await;
}

/// A device holds no more than its mailbox; what exceeds it hears so and changes nothing.
#[tokio::test]
async fn full_mailbox_is_refused_not_dropped() {
    on_one_thread(async {
        let limits = HostLimits {
            mailbox_max: 4,
            ..HostLimits::default()
        };
        let mut f = Fixture::new(limits);
        f.call("register", "a", register()).await.unwrap();
        for label in ["1", "2", "3", "4", "5", "6"] {
            f.send(label, "a", telemetry());
        }
        f.heard(7).await;
        for label in ["5", "6"] {
            assert!(
                matches!(f.outcome(label), Some(Err(CallError::Overloaded { .. }))),
                "{label}"
            );
        }
        assert_eq!(seq(f.answer("4")), 4);
        assert_eq!(seq(f.call("later", "a", telemetry()).await.unwrap().answer), 5);
        assert_eq!(f.host.counts().overloaded, 2);
    })
    .await;
}

/// The shard holds no more unanswered commands than its bound, over all devices; answered ones
/// make room.
#[tokio::test]
async fn full_shard_is_refused_until_answers_leave() {
    on_one_thread(async {
        let limits = HostLimits {
            queue_max: 2,
            ..HostLimits::default()
        };
        let mut f = Fixture::new(limits);
        f.ledger.set_mode(Mode::Held);
        f.send("a", "a", register());
        f.send("b", "b", register());
        f.pending(2).await;
        f.send("c", "c", register());
        assert!(matches!(f.outcome("c"), Some(Err(CallError::Overloaded { .. }))));
        f.ledger.commit(1);
        assert_eq!(f.host.counts().outstanding, 1);
        f.send("d", "d", register());
        f.pending(2).await;
        f.ledger.commit_all();
        assert!(f.outcome("d").unwrap().is_ok());
        assert_eq!(f.host.counts().outstanding, 0);
    })
    .await;
}

/// A state that cannot be read is the host's failure, and never an empty device.
#[tokio::test]
async fn unreadable_state_stops_the_host() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.ledger.break_disk();
        let heard = Arc::clone(&f.heard);
        let reply = ReplyTo::new(move |result| heard.lock().unwrap().push(("a", result)));
        assert!(f.host.deliver(key("a"), register(), reply).is_err());
        assert_eq!(f.outcome("a"), Some(Err(CallError::Unknown)));
    })
    .await;
}
