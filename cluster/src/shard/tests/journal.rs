//! Every item is answered once, in order, and never with a success that is not on the disks.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use actors::device::Answer;
use actors::id::Gateway;
use actors::ports::{CallError, CallResult, Downlink, DownlinkBody, Journal, ReplyTo, Submission, Ticket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::raft::group::Group;
use crate::shard::batch::Item;
use crate::shard::journal::ShardJournal;
use crate::testing::fleet::{device, register, telemetry, Fleet};
use crate::testing::replicas::Replicas;
use crate::testing::{run, stored};
use crate::transport::tests::harness::eventually;

/// Also called while a failed test unwinds: then nobody reads it any more.
fn write_down<T>(list: &Mutex<Vec<(usize, T)>>, number: usize, result: T) {
    if let Ok(mut list) = list.lock() {
        list.push((number, result));
    }
}

type Answers<T> = Arc<Mutex<Vec<(usize, T)>>>;

struct Bench {
    journal: Rc<ShardJournal>,
    running: JoinHandle<()>,
    stop: watch::Sender<bool>,
    /// (number of the submission, its answer), in the order of answering.
    answers: Answers<CallResult>,
    barriers: Answers<Result<(), CallError>>,
    downlinks: Rc<RefCell<Vec<Downlink>>>,
    submitted: usize,
    barriers_asked: usize,
}

impl Bench {
    fn new(group: &Group) -> Self {
        let downlinks = Rc::<RefCell<Vec<Downlink>>>::default();
        let sent = downlinks.clone();
        let journal = ShardJournal::new(
            group.clone(),
            Arc::default(),
            Rc::new(move |note| sent.borrow_mut().push(note)),
        );
        let (stop, stopped) = watch::channel(false);
        let running = tokio::task::spawn_local(crate::raft::group::seeded(1, journal.clone().run(stopped)));
        Self {
            journal,
            running,
            stop,
            answers: Arc::default(),
            barriers: Arc::default(),
            downlinks,
            submitted: 0,
            barriers_asked: 0,
        }
    }

    /// Submits what was decided; `None` is a read.
    fn submit(&mut self, item: Option<Item>) -> Ticket {
        let number = self.submitted;
        self.submitted += 1;
        let answers = self.answers.clone();
        let key = item.as_ref().map_or_else(|| device("lamp"), |item| item.key.clone());
        let gateway = Gateway { node: 1, boot: 1 };
        let downlinks = vec![Downlink {
            gateway,
            key: key.clone(),
            generation: number as u64,
            body: DownlinkBody::TakenOver,
        }];
        self.journal.submit(Submission {
            key,
            prev_version: item.as_ref().map_or(0, |item| item.prev_version),
            at: item.as_ref().map_or_else(Default::default, |item| item.at),
            events: item.map(|item| item.events).unwrap_or_default(),
            outcome: Ok(Answer::Done),
            reply: ReplyTo::new(move |result| write_down(&answers, number, result)),
            downlinks,
        })
    }

    fn barrier(&mut self) {
        let number = self.barriers_asked;
        self.barriers_asked += 1;
        let barriers = self.barriers.clone();
        self.journal
            .barrier(Box::new(move |result| write_down(&barriers, number, result)));
    }

    async fn all_answered(&self) {
        eventually("everything is answered", || {
            self.answers.lock().unwrap().len() >= self.submitted
                && self.barriers.lock().unwrap().len() >= self.barriers_asked
        })
        .await;
    }

    /// The answers in the order of submission; fails when one came twice or not at all.
    fn once_each(&self) -> Vec<CallResult> {
        let mut answers = self.answers.lock().unwrap().clone();
        answers.sort_by_key(|(number, _)| *number);
        let numbers: Vec<_> = answers.iter().map(|(number, _)| *number).collect();
        assert_eq!(
            numbers,
            (0..self.submitted).collect::<Vec<_>>(),
            "each is answered exactly once"
        );
        let mut barriers: Vec<_> = self
            .barriers
            .lock()
            .unwrap()
            .iter()
            .map(|(number, _)| *number)
            .collect();
        barriers.sort_unstable();
        assert_eq!(
            barriers,
            (0..self.barriers_asked).collect::<Vec<_>>(),
            "each barrier ends once"
        );
        answers.into_iter().map(|(_, result)| result).collect()
    }
}

fn not_leader(result: &CallResult) -> bool {
    matches!(result, Err(CallError::NotLeader { .. }))
}

#[test]
fn answers_come_in_the_order_of_submission_with_receipts_that_grow() {
    run(async {
        let replicas = Replicas::start(1).await;
        let mut bench = Bench::new(&replicas.all[0].group);
        let (mut fleet, lamp) = (Fleet::default(), device("lamp"));
        bench.submit(fleet.decide(&lamp, &register()));
        let mut last = Ticket(0);
        for i in 0..100u8 {
            let item = (i % 3 != 0).then(|| fleet.decide(&lamp, &telemetry(vec![i])).unwrap());
            last = bench.submit(item);
            if i % 10 == 0 {
                bench.barrier();
                tokio::task::yield_now().await;
            }
        }
        bench.all_answered().await;
        let order: Vec<_> = bench
            .answers
            .lock()
            .unwrap()
            .iter()
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(order, (0..bench.submitted).collect::<Vec<_>>());
        let answers = bench.once_each();
        let mut before = (0, 0);
        for (number, answer) in answers.into_iter().enumerate() {
            let receipt = answer.unwrap().receipt;
            assert_eq!(
                receipt.is_some(),
                number == 0 || (number - 1) % 3 != 0,
                "reads have no receipt"
            );
            if let Some(receipt) = receipt {
                assert!((receipt.term, receipt.index) >= before);
                before = (receipt.term, receipt.index);
            }
        }
        assert!(bench.barriers.lock().unwrap().iter().all(|(_, result)| result.is_ok()));
        assert_eq!(bench.journal.settled(), last);
        assert_eq!(bench.downlinks.borrow().len(), bench.submitted);
    });
}

#[test]
fn nothing_is_answered_before_it_is_durable() {
    run(async {
        let replicas = Replicas::start(1).await;
        let one = &replicas.all[0];
        let mut bench = Bench::new(&one.group);
        let (mut fleet, lamp) = (Fleet::default(), device("lamp"));
        one.log.inner.hold_completions();
        let marks = one.log.tape.len();
        bench.submit(fleet.decide(&lamp, &register()));
        bench.submit(None);
        bench.barrier();
        eventually("the entry is written", || one.log.tape.len() > marks).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert!(bench.answers.lock().unwrap().is_empty());
        assert!(bench.barriers.lock().unwrap().is_empty());
        assert!(bench.downlinks.borrow().is_empty());
        one.log.inner.release_completions();
        bench.all_answered().await;
        assert!(bench.once_each().iter().all(Result::is_ok));
    });
}

#[test]
fn after_a_misfit_what_was_only_read_is_not_a_success() {
    run(async {
        let replicas = Replicas::start(1).await;
        let one = &replicas.all[0];
        let mut bench = Bench::new(&one.group);
        let (mut fleet, lamp, clock) = (Fleet::default(), device("lamp"), device("clock"));
        bench.submit(fleet.decide(&lamp, &register()));
        bench.all_answered().await;
        // Held, so that all of it becomes one proposal.
        bench.journal.hold(true);
        let mut wrong = fleet.decide(&lamp, &telemetry(vec![1])).unwrap();
        wrong.prev_version += 10;
        bench.submit(Some(wrong));
        bench.submit(fleet.decide(&clock, &register()));
        bench.submit(None);
        bench.barrier();
        bench.journal.hold(false);
        bench.all_answered().await;
        let (running, answers) = (&bench.running, bench.once_each());
        assert!(answers[0].is_ok());
        assert!(not_leader(&answers[1]), "a no-op for good: {:?}", answers[1]);
        assert!(answers[2].is_ok(), "another device's events committed and fit");
        assert!(not_leader(&answers[3]), "it may have read what never happened");
        assert!(bench.barriers.lock().unwrap()[0].1.is_err());
        eventually("the journal ends", || running.is_finished()).await;
        bench.submit(None);
        bench.submit(fleet.decide(&clock, &telemetry(vec![1])));
        assert!(bench.once_each()[4..].iter().all(not_leader), "and takes nothing more");
    });
}

#[test]
fn what_a_follower_is_given_is_refused_with_the_leader_to_ask() {
    run(async {
        let replicas = Replicas::start(3).await;
        let leader = replicas.leader().await;
        let follower = replicas.followers(leader).next().unwrap();
        let mut bench = Bench::new(&follower.group);
        let (mut fleet, lamp) = (Fleet::default(), device("lamp"));
        bench.submit(None);
        bench.submit(fleet.decide(&lamp, &register()));
        bench.submit(None);
        bench.barrier();
        bench.all_answered().await;
        for answer in bench.once_each() {
            let Err(CallError::NotLeader { leader: named, .. }) = answer else {
                panic!("{answer:?}");
            };
            assert_eq!(named, Some(leader.id));
        }
        assert!(
            bench.downlinks.borrow().is_empty(),
            "nothing is sent for what did not commit"
        );
    });
}

#[test]
fn a_deposed_leaders_journal_answers_nothing_with_success() {
    run(async {
        let replicas = Replicas::start(3).await;
        let old = replicas.leader().await;
        let mut bench = Bench::new(&old.group);
        let (mut fleet, lamp) = (Fleet::default(), device("lamp"));
        bench.submit(fleet.decide(&lamp, &register()));
        bench.all_answered().await;
        replicas.net.cut(old.id);
        for i in 0..20u8 {
            bench.submit(fleet.decide(&lamp, &telemetry(vec![i])));
            bench.submit(None);
            bench.barrier();
            tokio::task::yield_now().await;
        }
        let new = replicas.leader().await;
        bench.journal.give_up();
        replicas.net.heal();
        bench.all_answered().await;
        let answers = bench.once_each();
        assert!(answers[0].is_ok());
        for answer in &answers[1..] {
            assert!(not_leader(answer) || *answer == Err(CallError::Unknown), "{answer:?}");
        }
        assert!(bench.barriers.lock().unwrap().iter().all(|(_, result)| result.is_err()));
        assert_eq!(stored(&new.group.shared, &lamp).telemetry.last_seq, 0);
    });
}

/// Random submissions, holds, slow disks, misfits, then a random end.
#[test]
fn every_item_is_answered_exactly_once_whatever_happens() {
    for seed in 0..60u64 {
        run(async {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
            let mut next = move |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let replicas = Replicas::start(1).await;
            let one = &replicas.all[0];
            let mut bench = Bench::new(&one.group);
            let mut fleet = Fleet::default();
            let names = ["a", "b", "c"];
            for name in names {
                bench.submit(fleet.decide(&device(name), &register()));
            }
            let mut wrong = 0;
            for _ in 0..60 {
                let key = device(names[next(3) as usize]);
                match next(14) {
                    0..=4 => drop(bench.submit(fleet.decide(&key, &telemetry(vec![1])))),
                    5..=6 => drop(bench.submit(None)),
                    7 => bench.barrier(),
                    8 => bench.journal.hold(true),
                    9 => bench.journal.hold(false),
                    10 => one.log.inner.hold_completions(),
                    11 => one.log.inner.release_completions(),
                    12 if seed % 3 == 0 && next(6) == 0 => {
                        wrong += 1;
                        let item = fleet.decide(&key, &telemetry(vec![2])).unwrap();
                        bench.submit(Some(Item {
                            prev_version: 999,
                            ..item
                        }));
                    }
                    _ => tokio::task::yield_now().await,
                }
            }
            match seed % 4 {
                0 => drop(bench.stop.send(true)),
                1 => bench.journal.give_up(),
                2 => one.group.shutdown().await,
                _ => {}
            }
            if seed % 4 != 0 {
                bench.journal.hold(false);
                one.log.inner.release_completions();
            }
            bench.all_answered().await;
            let answers = bench.once_each();
            let successes = answers.iter().filter(|answer| answer.is_ok()).count();
            assert_eq!(
                bench.downlinks.borrow().len(),
                successes,
                "downlinks are sent for what committed only"
            );
            if seed % 4 == 3 && wrong == 0 {
                assert_eq!(successes, bench.submitted, "seed {seed}: {answers:?}");
            }
            let _ = bench.stop.send(true);
        });
    }
}
