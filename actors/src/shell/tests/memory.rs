//! Who is in memory, and who leaves it.

use super::*;
use crate::ports::Journal;

fn limits(active_max: usize, passivate_after_ms: u64) -> HostLimits {
    HostLimits {
        active_max,
        passivate_after_ms,
        ..HostLimits::default()
    }
}

/// An idle device leaves memory whole, and comes back as it was.
#[tokio::test]
async fn passivated_device_comes_back_with_the_same_state() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(100, 1_000));
        f.call("register", "a", register()).await.unwrap();
        f.call("t1", "a", telemetry()).await.unwrap();
        f.tick_after(1_000);
        assert_eq!(f.host.counts().active, 1, "not idle for longer than the limit");
        let crew = Rc::strong_count(&f.ledger);
        f.tick_after(1);
        let counts = f.host.counts();
        assert_eq!((counts.active, counts.passivations), (0, 1));
        quiet().await;
        assert!(Rc::strong_count(&f.ledger) <= crew);
        let loads = f.ledger.loads();
        assert_eq!(seq(f.call("t2", "a", telemetry()).await.unwrap().answer), 2);
        assert_eq!(f.ledger.loads(), loads + 1);
        assert_eq!(f.ledger.misfits(), 0);
    })
    .await;
}

/// A device in use stays, however old it is.
#[tokio::test]
async fn used_device_stays_in_memory() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(100, 1_000));
        f.send("a", "a", register());
        f.send("b", "b", register());
        f.heard(2).await;
        for _ in 0..5 {
            f.tick_after(600);
            f.send("t", "a", telemetry());
            quiet().await;
        }
        assert_eq!(f.host.counts().active, 1);
        let loads = f.ledger.loads();
        f.call("last", "a", telemetry()).await.unwrap();
        assert_eq!(f.ledger.loads(), loads, "it was `a` that stayed");
    })
    .await;
}

/// A device whose events are under way stays until they are settled: what is in the store does
/// not hold them yet.
#[tokio::test]
async fn device_with_unsettled_events_stays() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(100, 1_000));
        f.ledger.set_mode(Mode::Held);
        f.send("register", "a", register());
        f.pending(1).await;
        f.tick_after(5_000);
        assert_eq!(f.host.counts().active, 1);
        assert_eq!(f.ledger.settled(), Ticket(0));
        f.ledger.commit_all();
        f.tick_after(1);
        assert_eq!(f.host.counts().active, 0);
    })
    .await;
}

/// A message that waits in the mailbox keeps its device.
#[tokio::test]
async fn device_with_queued_messages_stays() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(100, 1_000));
        f.call("register", "a", register()).await.unwrap();
        f.send("t1", "a", telemetry());
        f.tick_after(5_000);
        assert_eq!(f.host.counts().active, 1);
        f.heard(2).await;
        assert_eq!(seq(f.answer("t1")), 1);
    })
    .await;
}

/// Beyond the bound the longest idle device makes room.
#[tokio::test]
async fn longest_idle_makes_room() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(2, 60_000));
        f.call("a", "a", register()).await.unwrap();
        f.tick_after(10);
        f.call("b", "b", register()).await.unwrap();
        f.tick_after(10);
        f.call("a again", "a", telemetry()).await.unwrap();
        f.call("c", "c", register()).await.unwrap();
        assert_eq!(f.host.counts().active, 2);
        let loads = f.ledger.loads();
        f.call("a stayed", "a", telemetry()).await.unwrap();
        assert_eq!(f.ledger.loads(), loads);
        f.call("b went", "b", telemetry()).await.unwrap();
        assert_eq!(f.ledger.loads(), loads + 1);
    })
    .await;
}

/// When no device can leave, one more is refused, so memory stays within its bound.
#[tokio::test]
async fn no_room_is_refused() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(1, 60_000));
        f.ledger.set_mode(Mode::Held);
        f.send("a", "a", register());
        f.pending(1).await;
        f.send("b", "b", register());
        assert!(matches!(f.outcome("b"), Some(Err(CallError::Overloaded { .. }))));
        f.ledger.set_mode(Mode::Immediate);
        f.ledger.commit_all();
        f.call("b later", "b", register()).await.unwrap();
        assert_eq!(f.host.counts().active, 1);
    })
    .await;
}

/// A lowered bound is reached with the next ticks.
#[tokio::test]
async fn lowered_bound_shrinks_the_host() {
    on_one_thread(async {
        let mut f = Fixture::new(limits(100, 60_000));
        for device in ["a", "b", "c", "d"] {
            f.send("put", device, register());
        }
        f.heard(4).await;
        f.host.limit_active(1);
        f.tick_after(1);
        assert_eq!(f.host.counts().active, 1);
    })
    .await;
}
