//! Whatever happens on the way, every command is carried out once, and answered in order.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use actors::device::{Answer, Command, Fence, Refusal};
use actors::id::ShardId;
use actors::ports::{CallError, CallResult, Reply};
use proptest::prelude::*;

use super::*;

const PAUSE: Pause = Pause {
    min: Duration::from_millis(20),
    max: Duration::from_millis(200),
};

fn done() -> CallResult {
    Ok(Reply {
        answer: Answer::Done,
        receipt: None,
    })
}

/// What a read saw: so many writes.
fn seen(writes: u64) -> CallResult {
    Ok(Reply {
        answer: Answer::Telemetry {
            seq: writes,
            repeated: false,
        },
        receipt: None,
    })
}

fn not_leader() -> CallResult {
    Err(CallError::NotLeader {
        shard: ShardId(1),
        leader: None,
    })
}

fn write(inflight: &mut InFlight, now: Instant) {
    inflight.push(After::Nothing, 0, 0, now, |fence| Command::Unsubscribe {
        fence,
        filters: Vec::new(),
    });
}

fn ordinal(command: &Command) -> u64 {
    match command {
        Command::Unsubscribe {
            fence: Fence { ordinal, .. },
            ..
        } => *ordinal,
        _ => 0,
    }
}

/// Carries how many writes the read must have seen.
fn read_after(writes: u64) -> After {
    let to = ResponseTo {
        topic: writes.to_string(),
        correlation: None,
    };
    After::TwinRead {
        to,
        promised: 0,
        packet_id: None,
    }
}

/// A device that follows the rule of ordinals, and a network that does not.
#[derive(Default)]
struct World {
    last: u64,
    stored: Vec<u64>,
    /// Sent and not arrived.
    out: VecDeque<Due>,
    /// Answered and not arrived.
    back: Vec<(u64, u32, CallResult)>,
}

impl World {
    fn arrive(&mut self, due: &Due) -> CallResult {
        let given = ordinal(&due.command);
        if given == 0 {
            return seen(self.last);
        }
        if given > self.last + 1 {
            let expected = self.last + 1;
            return Err(CallError::Refused(Refusal::OrdinalGap { given, expected }));
        }
        if given == self.last + 1 {
            self.last = given;
            self.stored.push(given);
        }
        done()
    }

    fn step(&mut self, choice: u8) {
        let Some(due) = self.out.pop_front() else {
            return;
        };
        let result = match choice % 8 {
            0 => not_leader(),
            1 => Err(CallError::Unknown),
            2 => Err(CallError::Overloaded { what: "test".into() }),
            3 => {
                let _ = self.arrive(&due);
                Err(CallError::Unknown)
            }
            _ => self.arrive(&due),
        };
        self.back.push((due.number, due.attempt, result));
    }
}

proptest! {
    #[test]
    fn each_command_is_carried_out_once_and_answered_in_order(
        choices in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..400),
        commands in 1..40u64,
        reads in any::<u64>(),
    ) {
        let mut now = Instant::now();
        let mut inflight = InFlight::new(1, PAUSE);
        let mut world = World::default();
        let (mut pushed, mut writes) = (0, 0);
        let mut answered = Vec::new();
        let calm = std::iter::repeat((7u8, 7u8, 0u8));
        for (network, answer, push) in choices.into_iter().chain(calm).take(5_000) {
            if pushed < commands && push % 2 == 0 {
                pushed += 1;
                if reads >> (pushed % 64) & 1 == 1 {
                    inflight.push_read(read_after(writes), Command::ReadTwin, now);
                } else {
                    writes += 1;
                    write(&mut inflight, now);
                }
            }
            now += Duration::from_millis(10);
            while let Some(due) = inflight.due(now) {
                world.out.push_back(due);
            }
            world.step(network);
            // In bursts, so that answers overtake one another.
            let burst = if answer % 4 == 3 { world.back.len() } else { 0 };
            for _ in 0..burst {
                let at = usize::from(answer) % world.back.len();
                let (number, attempt, result) = world.back.swap_remove(at);
                inflight.answered(number, attempt, result, now).unwrap();
            }
            if answer % 16 == 5 {
                inflight.leader_changed(now);
            }
            while let Some(finished) = inflight.pop_finished() {
                let Outcome::Device(Ok(reply)) = finished.outcome else {
                    return Err(TestCaseError::fail("a retryable failure came out"));
                };
                if let (After::TwinRead { to, .. }, Answer::Telemetry { seq, .. }) = (&finished.after, &reply.answer) {
                    prop_assert!(*seq >= to.topic.parse::<u64>().unwrap(), "a read did not see the writes before it");
                }
                answered.push(finished.after);
            }
        }
        prop_assert!(inflight.is_empty(), "{} of {commands} left", inflight.len());
        prop_assert_eq!(answered.len() as u64, commands);
        let writes: Vec<u64> = (1..=world.last).collect();
        prop_assert_eq!(&world.stored, &writes);
        let reads = answered.iter().filter(|after| matches!(after, After::TwinRead { .. })).count();
        prop_assert_eq!(world.stored.len() + reads, answered.len());
    }
}

/// A stale session ends the connection, whichever command learned of it.
#[test]
fn stale_session_ends() {
    let now = Instant::now();
    let mut inflight = InFlight::new(1, PAUSE);
    write(&mut inflight, now);
    let due = inflight.due(now).unwrap();
    let stale = Refusal::StaleSession {
        given: 1,
        live: Some(2),
    };
    let end = inflight.answered(due.number, due.attempt, Err(CallError::Refused(stale)), now);
    assert_eq!(end, Err(End::TakenOver));
}

/// The device lacks what it acknowledged: nothing here can mend that, and nothing hides it.
#[test]
fn gap_before_the_window_ends() {
    let now = Instant::now();
    let mut inflight = InFlight::new(1, PAUSE);
    write(&mut inflight, now);
    let due = inflight.due(now).unwrap();
    inflight.answered(due.number, due.attempt, done(), now).unwrap();
    assert!(inflight.pop_finished().is_some());
    write(&mut inflight, now);
    let due = inflight.due(now).unwrap();
    let gap = Refusal::OrdinalGap { given: 2, expected: 1 };
    let end = inflight.answered(due.number, due.attempt, Err(CallError::Refused(gap)), now);
    assert_eq!(end, Err(End::Broken("ordinal_lost")));
}

/// Answers to an attempt that was given up change nothing.
#[test]
fn late_answers_are_ignored() {
    let now = Instant::now();
    let mut inflight = InFlight::new(1, PAUSE);
    write(&mut inflight, now);
    write(&mut inflight, now);
    let (first, second) = (inflight.due(now).unwrap(), inflight.due(now).unwrap());
    inflight
        .answered(first.number, first.attempt, not_leader(), now)
        .unwrap();
    inflight.answered(second.number, second.attempt, done(), now).unwrap();
    assert!(!inflight.has_finished());
    assert!(inflight.due(now).is_none(), "not before the pause is over");
    let later = now + PAUSE.min;
    let again = inflight.due(later).unwrap();
    assert_eq!(again.number, first.number);
    assert!(inflight.due(later).is_none(), "one goes ahead");
    inflight.answered(again.number, again.attempt, done(), later).unwrap();
    assert_eq!(inflight.due(later).unwrap().number, second.number);
}

/// A leader that was stopped answers nobody; its successor gets the command.
#[test]
fn silence_of_a_former_leader_is_not_waited_out() {
    let now = Instant::now();
    let mut inflight = InFlight::new(1, PAUSE);
    write(&mut inflight, now);
    let first = inflight.due(now).unwrap();
    inflight.leader_changed(now);
    assert!(inflight.due(now).is_none());
    let later = inflight.resend_at().unwrap();
    let again = inflight.due(later).unwrap();
    assert_eq!(again.number, first.number);
    assert_ne!(again.attempt, first.attempt);
    // What was sent after the change is not suspected.
    assert!(inflight.due(later + FORMER_LEADER_GRACE).is_none());
}

/// Generation, ordinal and DUP of a publish.
fn told(due: &Due) -> (u64, u64, bool) {
    match &due.command {
        Command::RecordTelemetry {
            origin: actors::device::Origin::Session { fence, delivery },
            ..
        } => (fence.generation, fence.ordinal, delivery.is_some_and(|d| d.dup)),
        other => panic!("no publish: {other:?}"),
    }
}

/// What is not answered is sent in the new session, and only what had been sent is a repetition.
#[test]
fn a_new_session_takes_over_what_waits() {
    let now = Instant::now();
    let mut inflight = InFlight::new(1, PAUSE);
    for packet_id in 1..=4 {
        let delivery = Some(actors::device::Delivery {
            packet_id,
            dup: false,
            digest: 0,
        });
        inflight.push(After::Nothing, 0, 0, now, |fence| Command::RecordTelemetry {
            origin: actors::device::Origin::Session { fence, delivery },
            telemetry: actors::device::Telemetry::default(),
        });
    }
    let first = inflight.due(now).unwrap();
    let second = inflight.due(now).unwrap();
    let third = inflight.due(now).unwrap();
    assert_eq!((told(&first), told(&third)), ((1, 1, false), (1, 3, false)));
    // Answered out of turn: done, but its own turn has not come.
    inflight.answered(second.number, second.attempt, done(), now).unwrap();
    inflight.renew(7);
    inflight.answered(third.number, third.attempt, done(), now).unwrap();
    let again: Vec<_> = std::iter::from_fn(|| inflight.due(now)).collect();
    let expected = [(7, 1, true), (7, 2, true), (7, 3, false)];
    assert_eq!(again.iter().map(told).collect::<Vec<_>>(), expected);
    for due in &again {
        inflight.answered(due.number, due.attempt, done(), now).unwrap();
    }
    let finished = std::iter::from_fn(|| inflight.pop_finished()).count();
    assert_eq!((finished, inflight.len()), (4, 0));
}

/// What is carried out elsewhere is answered in the turn of the connection.
#[test]
fn entries_carried_out_elsewhere_keep_their_turn() {
    let now = Instant::now();
    let mut inflight = InFlight::new(1, PAUSE);
    let first = inflight.push_elsewhere(After::Nothing, 0, 0, now);
    write(&mut inflight, now);
    let third = inflight.push_elsewhere(After::Nothing, 0, 0, now);
    let due = inflight.due(now).unwrap();
    assert!(inflight.due(now).is_none());
    inflight.answered(due.number, due.attempt, not_leader(), now).unwrap();
    let later = now + PAUSE.max;
    let due = inflight
        .due(later)
        .expect("going back touches only what was sent from here");
    inflight.answered(due.number, due.attempt, done(), later).unwrap();
    inflight.settle(third, Outcome::Device(done()));
    assert!(!inflight.has_finished());
    inflight.settle(first, Outcome::Device(done()));
    assert_eq!(std::iter::from_fn(|| inflight.pop_finished()).count(), 3);
}
