//! Supervision of the long-lived parts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;

use super::*;
use crate::shell::house::{Escalated, House, HouseHandle, Part, PartError, Restart, StopSignal};
use crate::shell::run_on;

const GRACE: Duration = Duration::from_secs(60);

/// Counts its starts; fails the first `failures` times, then runs until it shall stop.
fn part(name: &'static str, restart: Restart, failures: u64, starts: &Arc<AtomicU64>) -> Part {
    let starts = Arc::clone(starts);
    let body = move |mut stop: StopSignal| -> BoxFuture<'static, Result<(), PartError>> {
        let start = starts.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if start < failures {
                if start.is_multiple_of(2) {
                    panic!("on purpose");
                }
                return Err("failed on purpose".into());
            }
            stop.stopped().await;
            Ok(())
        })
    };
    Part {
        name,
        restart,
        start: Box::new(body),
    }
}

async fn house(parts: Vec<Part>) -> (HouseHandle, Arc<StillClock>, Arc<Mutex<Vec<Escalated>>>) {
    let clock = Arc::new(StillClock::default());
    let escalated = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&escalated);
    let house = House::start(parts, Arc::clone(&clock) as _, move |e| sink.lock().unwrap().push(e));
    (house.await.unwrap(), clock, escalated)
}

/// A part that panics or ends with an error is started again and counted; the others do not
/// notice.
#[tokio::test]
async fn failed_part_is_started_again() {
    let (bad, good) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let always = Restart::Always {
        max: 3,
        within_ms: 1_000,
    };
    let (house, _, escalated) = house(vec![part("bad", always, 2, &bad), part("good", always, 0, &good)]).await;
    until(|| bad.load(Ordering::SeqCst) == 3 && good.load(Ordering::SeqCst) == 1).await;
    assert_eq!(house.restarts("bad"), Some(2));
    assert_eq!(house.restarts("good"), Some(0));
    assert_eq!(house.restarts("nobody"), None);
    assert!(house.stop(GRACE).await);
    assert_eq!((bad.load(Ordering::SeqCst), good.load(Ordering::SeqCst)), (3, 1));
    assert!(escalated.lock().unwrap().is_empty());
}

/// A part that fails too often is left down and its owner is told; time forgives old failures.
#[tokio::test]
async fn part_that_fails_too_often_escalates() {
    let starts = Arc::new(AtomicU64::new(0));
    let always = Restart::Always {
        max: 2,
        within_ms: 1_000,
    };
    let (house, _, escalated) = house(vec![part("bad", always, 100, &starts)]).await;
    until(|| !escalated.lock().unwrap().is_empty()).await;
    assert_eq!(starts.load(Ordering::SeqCst), 3);
    let told = escalated.lock().unwrap()[0].clone();
    assert_eq!((told.part, told.restarts), ("bad", 2));
    assert!(told.reason.contains("on purpose"), "{}", told.reason);
    assert!(house.stop(GRACE).await);
}

/// The bound counts failures within the window only.
#[tokio::test]
async fn old_failures_do_not_count() {
    let starts = Arc::new(AtomicU64::new(0));
    let (starts_in, clock) = (Arc::clone(&starts), Arc::new(StillClock::default()));
    let clock_in = Arc::clone(&clock);
    let body = move |mut stop: StopSignal| -> BoxFuture<'static, Result<(), PartError>> {
        clock_in.advance(1_000);
        let fails = starts_in.fetch_add(1, Ordering::SeqCst) < 5;
        Box::pin(async move {
            if fails {
                return Err("failed on purpose".into());
            }
            stop.stopped().await;
            Ok(())
        })
    };
    let restart = Restart::Always {
        max: 1,
        within_ms: 1_000,
    };
    let parts = vec![Part {
        name: "slow",
        restart,
        start: Box::new(body),
    }];
    let house = House::start(parts, clock, |e| panic!("{e:?}")).await.unwrap();
    until(|| starts.load(Ordering::SeqCst) == 6).await;
    assert_eq!(house.restarts("slow"), Some(5));
    assert!(house.stop(GRACE).await);
}

/// `Never` stays down in silence, `Escalate` tells at once; neither is started again.
#[tokio::test]
async fn never_and_escalate_do_not_restart() {
    let (never, escalate) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let parts = vec![
        part("never", Restart::Never, 100, &never),
        part("vital", Restart::Escalate, 100, &escalate),
    ];
    let (house, _, escalated) = house(parts).await;
    until(|| !escalated.lock().unwrap().is_empty()).await;
    assert!(house.stop(GRACE).await);
    assert_eq!((never.load(Ordering::SeqCst), escalate.load(Ordering::SeqCst)), (1, 1));
    assert_eq!(escalated.lock().unwrap().len(), 1);
    assert_eq!(escalated.lock().unwrap()[0].part, "vital");
}

/// A part that ignores the signal is dropped after the grace period, and that is said.
#[tokio::test]
async fn deaf_part_is_dropped_after_the_grace_period() {
    let held = Arc::new(());
    let guard = Arc::clone(&held);
    let body = move |_: StopSignal| -> BoxFuture<'static, Result<(), PartError>> {
        let guard = Arc::clone(&guard);
        Box::pin(async move {
            std::future::pending::<()>().await;
            drop(guard);
            Ok(())
        })
    };
    let parts = vec![Part {
        name: "deaf",
        restart: Restart::Escalate,
        start: Box::new(body),
    }];
    let (house, _, _) = house(parts).await;
    assert!(!house.stop(Duration::from_millis(20)).await);
    until(|| Arc::strong_count(&held) == 1).await;
}

/// What must stay on one thread is supervised like the rest: a panic on the arbiter is a failure
/// of its part, and the arbiter goes on.
#[test]
fn part_on_an_arbiter_is_started_again() {
    let test = async {
        let arbiter = actix_rt::Arbiter::new();
        let handle = arbiter.handle();
        let starts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&starts);
        let body = move |stop: StopSignal| -> BoxFuture<'static, Result<(), PartError>> {
            let (arbiter, starts) = (handle.clone(), Arc::clone(&counted));
            Box::pin(run_on(arbiter, stop, move |mut stop| async move {
                let not_send = Rc::new(starts);
                if not_send.fetch_add(1, Ordering::SeqCst) == 0 {
                    panic!("on purpose");
                }
                stop.stopped().await;
                Ok(())
            }))
        };
        let parts = vec![Part {
            name: "shard",
            restart: Restart::Always {
                max: 1,
                within_ms: 1_000,
            },
            start: Box::new(body),
        }];
        let (house, _, escalated) = house(parts).await;
        until_elsewhere(|| starts.load(Ordering::SeqCst) == 2).await;
        assert_eq!(house.restarts("shard"), Some(1));
        assert!(house.stop(GRACE).await);
        assert!(escalated.lock().unwrap().is_empty());
        arbiter.stop();
    };
    actix_rt::System::new().block_on(test);
}

/// Waits for something another thread does.
async fn until_elsewhere(done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(GRACE, wait)
        .await
        .expect("the condition never came true");
}
