//! A panic in one device stays there.

use super::*;

/// The other devices go on; the panic is counted; the device serves again with everything that
/// was acknowledged.
#[tokio::test]
async fn panic_is_contained_and_device_comes_back_complete() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register a", "a", register()).await.unwrap();
        f.call("register b", "b", register()).await.unwrap();
        f.call("a1", "a", telemetry()).await.unwrap();
        assert_eq!(f.call("boom", "a", telemetry_of("boom")).await, Err(CallError::Unknown));
        assert_eq!(f.host.counts().panics, 1);
        assert_eq!(seq(f.call("b1", "b", telemetry()).await.unwrap().answer), 1);
        assert_eq!(seq(f.call("a2", "a", telemetry()).await.unwrap().answer), 2);
        assert_eq!(f.host.counts().panics, 1);
        assert_eq!(f.host.counts().outstanding, 0);
        assert_eq!(f.ledger.misfits(), 0);
    })
    .await;
}

/// The device starts again only when all it had submitted is settled; until then its messages
/// wait, and then are decided in order.
#[tokio::test]
async fn fallen_device_waits_for_its_submissions() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        f.ledger.set_mode(Mode::Held);
        f.send("t1", "a", telemetry());
        f.pending(1).await;
        f.send("boom", "a", telemetry_of("boom"));
        f.heard(2).await;
        f.send("t2", "a", telemetry());
        f.send("t3", "a", telemetry());
        quiet().await;
        f.host.tick(0).unwrap();
        quiet().await;
        assert_eq!(f.ledger.pending(), 1, "the waiting messages are not decided yet");
        assert_eq!(f.host.counts().recovering, 1);
        assert_eq!(f.host.counts().active, 0);
        f.ledger.commit_all();
        f.host.on_settled().unwrap();
        f.pending(2).await;
        f.ledger.commit_all();
        assert_eq!(
            [seq(f.answer("t1")), seq(f.answer("t2")), seq(f.answer("t3"))],
            [1, 2, 3]
        );
        assert_eq!(f.host.counts().recovering, 0);
        assert_eq!(f.ledger.misfits(), 0);
    })
    .await;
}

/// A message that finds the submissions settled does not wait for the next tick, and does not
/// overtake those that waited.
#[tokio::test]
async fn first_message_after_settling_starts_the_device() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        f.ledger.set_mode(Mode::Held);
        f.send("t1", "a", telemetry());
        f.pending(1).await;
        f.send("boom", "a", telemetry_of("boom"));
        f.heard(2).await;
        f.send("t2", "a", telemetry());
        f.ledger.commit_all();
        f.send("t3", "a", telemetry());
        f.pending(2).await;
        f.ledger.commit_all();
        assert_eq!([seq(f.answer("t2")), seq(f.answer("t3"))], [2, 3]);
    })
    .await;
}

/// What lay in the mailbox behind the panic is answered: it may be sent again.
#[tokio::test]
async fn messages_behind_the_panic_end_as_unknown() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        f.send("boom", "a", telemetry_of("boom"));
        f.send("behind", "a", telemetry());
        f.heard(3).await;
        assert_eq!(f.outcome("behind"), Some(Err(CallError::Unknown)));
        assert_eq!(f.ledger.state(&key("a")).telemetry.last_seq, 0);
        assert_eq!(seq(f.call("again", "a", telemetry()).await.unwrap().answer), 1);
    })
    .await;
}

/// The queue of a fallen device has a bound, and what exceeds it is refused.
#[tokio::test]
async fn fallen_device_holds_a_bounded_queue() {
    on_one_thread(async {
        let limits = HostLimits {
            mailbox_max: 2,
            ..HostLimits::default()
        };
        let mut f = Fixture::new(limits);
        f.call("register", "a", register()).await.unwrap();
        f.ledger.set_mode(Mode::Held);
        f.send("t1", "a", telemetry());
        f.pending(1).await;
        f.send("boom", "a", telemetry_of("boom"));
        f.heard(2).await;
        for label in ["w1", "w2", "w3"] {
            f.send(label, "a", telemetry());
        }
        assert!(matches!(f.outcome("w3"), Some(Err(CallError::Overloaded { .. }))));
        f.ledger.set_mode(Mode::Immediate);
        f.ledger.commit_all();
        f.host.tick(0).unwrap();
        f.heard(6).await;
        assert_eq!(seq(f.answer("w2")), 3);
    })
    .await;
}

/// A reset while a fallen device waits leaves nobody without an answer.
#[tokio::test]
async fn reset_answers_those_who_wait_for_a_fallen_device() {
    on_one_thread(async {
        let mut f = Fixture::new(HostLimits::default());
        f.call("register", "a", register()).await.unwrap();
        f.ledger.set_mode(Mode::Held);
        f.send("t1", "a", telemetry());
        f.pending(1).await;
        f.send("boom", "a", telemetry_of("boom"));
        f.heard(2).await;
        f.send("waits", "a", telemetry());
        f.ledger.fail_pending();
        f.host.reset();
        assert_eq!(f.outcome("waits"), Some(Err(CallError::Unknown)));
        assert_eq!(f.host.counts().recovering, 0);
        assert_eq!(f.host.counts().outstanding, 0);
        assert_eq!(f.host.counts().panics, 1);
    })
    .await;
}
