#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a pause lasts as long as it says
//! A leader that stops for five seconds and comes back (SIGSTOP, SIGCONT): another owner takes
//! over, and the old one, which knows nothing of it, serves nothing stale.

use std::time::{Duration, Instant};

use holdfast_tests::harness::{count, eventually_true, Cluster};
use holdfast_tests::register::Operators;
use holdfast_tests::workload::{Plan, Workload};

const PAUSE: Duration = Duration::from_secs(5);
const STRETCH: u64 = 1_000;

#[test]
fn a_leader_that_was_paused_neither_loses_nor_serves_stale() {
    let cluster = Cluster::up(3);
    let work = Workload::start(&cluster, Plan::busy("pause"));
    let operators = Operators::start(&cluster, "twin", 32, 9);
    for round in 0..count("PAUSE_ROUNDS", 1, 10) {
        work.acknowledge(STRETCH);
        let victim = cluster.busiest_leader();
        println!("round {round}: node {victim}");
        let paused = Instant::now();
        cluster.pause(victim);
        // Its shards go on without it.
        work.every_shard_acknowledges();
        // The stop lasts as long as promised, however fast the others were.
        std::thread::sleep(PAUSE.saturating_sub(paused.elapsed()));
        cluster.resume(victim);
        work.every_shard_acknowledges();
        let done = operators.done();
        eventually_true("operators are served", Duration::from_secs(60), || {
            operators.done() > done + 200
        });
    }
    let history = operators.finish();
    println!(
        "{} twin operations, {} failed",
        history.operations(),
        history.failures.len()
    );
    assert!(
        history.operations() > 500,
        "too few to say anything: {:#?}",
        history.failures
    );
    history.assert_linearizable();
    work.finish_and_judge(&cluster);
    cluster.digests_agree(Duration::from_secs(60));
}
