//! What holds for every story a device can live through.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, VecDeque};

use actors::device::*;
use actors::id::Gateway;
use actors::time::Timestamp;
use actors::wire::codec;
use common::*;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// What happens to a led device.
#[derive(Clone, Debug)]
enum Step {
    Ask(Command),
    Wait(u64),
    /// So many of the pending batches commit.
    Commit(usize),
    /// So many commit, the rest is lost, and the state is loaded again.
    Fail(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        16 => command().prop_map(Step::Ask),
        3 => (0..6_000u64).prop_map(Step::Wait),
        3 => (0..4usize).prop_map(Step::Commit),
        1 => (0..3usize).prop_map(Step::Fail),
    ]
}

/// Of a device that is mostly sent messages, for long enough that it is reminded of them.
fn courier_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => messages().prop_map(Step::Ask),
        2 => command().prop_map(Step::Ask),
        2 => (0..14_000u64).prop_map(Step::Wait),
        3 => (0..4usize).prop_map(Step::Commit),
        1 => (0..3usize).prop_map(Step::Fail),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let story = prop_oneof![
        3 => prop::collection::vec(step(), 1..80),
        1 => prop::collection::vec(courier_step(), 1..80),
    ];
    (0..4u32, story).prop_map(|(delay_secs, mut steps)| {
        // Most begin with a device that is there and connected.
        if delay_secs > 0 {
            steps.insert(0, Step::Ask(connect(delay_secs)));
        }
        steps
    })
}

fn connect(will_delay_secs: u32) -> Command {
    let telemetry = Telemetry {
        message_id: Some("a".to_owned()),
        ..Telemetry::default()
    };
    Command::OpenSession(Box::new(OpenSession {
        gateway: Gateway { node: 1, boot: 1 },
        clean_start: true,
        expiry_secs: 10,
        keep_alive_secs: 0,
        protocol: 5,
        will: Some(Will {
            delay_secs: will_delay_secs,
            telemetry,
        }),
        via: None,
    }))
}

struct Batch {
    prev_version: u64,
    at: Timestamp,
    events: Vec<Event>,
}

/// A leader with its speculative head, and a replica that sees what commits.
#[derive(Default)]
struct Cluster {
    head: DeviceState,
    pending: VecDeque<Batch>,
    committed: DeviceState,
    log: Vec<(Event, Timestamp)>,
    /// Seqs of the rows since the device was registered.
    rows: Vec<u64>,
    now: Timestamp,
}

impl Cluster {
    fn take(&mut self, step: Step, policy: &Policy) {
        match step {
            Step::Wait(millis) => self.now = self.now.plus_millis(millis),
            Step::Commit(count) => self.commit(count),
            Step::Fail(count) => {
                self.commit(count);
                self.pending.clear();
                self.head = codec::open(&codec::seal(&self.committed)).expect("a state survives its encoding");
            }
            Step::Ask(mut command) => {
                aim(&mut command, &self.head);
                self.ask(&command, policy);
            }
        }
    }

    fn ask(&mut self, command: &Command, policy: &Policy) {
        let before = self.head.clone();
        let Ok(events) = decide(&lamp(), &before, command, policy, self.now) else {
            return;
        };
        for event in &events {
            apply(&mut self.head, event, self.now).expect("a decided event fits");
        }
        let _ = answer(&lamp().device, &before, &self.head, command, &events);
        check_step(&before, &self.head, &events, policy);
        check_due_is_settled(command, &self.head, policy, self.now);
        self.pending.push_back(Batch {
            prev_version: before.version,
            at: self.now,
            events,
        });
    }

    fn commit(&mut self, count: usize) {
        for _ in 0..count {
            let Some(batch) = self.pending.pop_front() else {
                return;
            };
            assert_eq!(batch.prev_version, self.committed.version, "batches chain by version");
            for event in batch.events {
                apply(&mut self.committed, &event, batch.at).expect("what the leader applied fits the replica");
                match &event {
                    Event::DeviceRegistered { .. } | Event::DeviceDeleted => self.rows.clear(),
                    Event::TelemetryRecorded(recorded) => self.rows.push(recorded.seq),
                    _ => {}
                }
                self.log.push((event, batch.at));
            }
        }
    }
}

fn check_step(before: &DeviceState, after: &DeviceState, events: &[Event], policy: &Policy) {
    assert_eq!(
        after.version,
        before.version + events.len() as u64,
        "each event counts one"
    );
    assert!(after.last_generation >= before.last_generation);
    let head = &after.telemetry;
    assert!(head.first_seq >= 1 && head.first_seq <= head.last_seq + 1);
    assert_eq!(head.has_rows(), head.oldest_at.is_some());
    let max = policy.telemetry_count_max;
    assert!(head.last_seq + 1 - head.first_seq <= max + max / 16, "rows are bounded");
    assert!(after
        .registration
        .as_ref()
        .is_none_or(|kept| kept.etag <= after.version));
    assert!(after.registration.is_some() || (after.session.is_none() && *head == TelemetryHead::default()));
    assert!(after.windows.heap_bytes() <= 2 * (policy.message_ids_max * 24 + policy.packet_ids_max * 12));
    for section in Section::ALL {
        let json = after.twin.section(section).json.as_deref().unwrap_or("{}");
        assert!(json.len() <= policy.section_bytes_max);
        let value: serde_json::Value = serde_json::from_str(json).expect("a section is JSON");
        assert!(value.is_object());
        assert_eq!(value.to_string(), json, "a section is canonical");
    }
    check_messages(before, after, events, policy);
    if let Some(session) = after.session.as_deref() {
        assert_eq!(session.generation, after.last_generation);
        assert!(session.first_generation <= session.generation);
        assert!(session.subscriptions.len() <= policy.subscriptions_max);
        assert_eq!(session.connected, session.expires_at.is_none());
        assert!(!session.connected || (session.will_due.is_none() && !session.lost));
        assert!(session.will_due.is_none() || session.will.is_some());
    }
}

/// A message is in the queue, or a dead letter, or its end is told; and all of it is bounded.
fn check_messages(before: &DeviceState, after: &DeviceState, events: &[Event], policy: &Policy) {
    let messages = after.messages();
    assert!(messages.queue.len() <= policy.message_queue_max);
    assert!(messages.queue.is_sorted_by_key(|queued| queued.number), "numbers grow");
    assert!(messages.dead.len() <= policy.dead_letters_max);
    assert!(messages.feedback_count() <= policy.feedback_max + policy.feedback_max / 8);
    assert!(messages.queue.is_empty() == messages.due().is_none());
    for (at, queued) in messages.queue.iter().enumerate() {
        assert!(queued.deliveries <= policy.message_deliveries_max);
        assert!(queued.generation <= after.last_generation);
        assert_eq!(queued.deliveries == 0, queued.generation == 0);
        let rest = &messages.queue[at + 1..];
        assert!(queued.packet_id == 0 || rest.iter().all(|other| other.packet_id != queued.packet_id));
        assert!(rest.iter().all(|other| other.id != queued.id));
    }
    if events.iter().any(|event| matches!(event, Event::DeviceDeleted)) {
        return;
    }
    let told = |number: u64| {
        events.iter().any(|event| match event {
            Event::MessageEnded { number: ended, .. } | Event::DeadLetterDropped { number: ended } => *ended == number,
            Event::DeadLetterReplayed { number: replayed, .. } => *replayed == number,
            _ => false,
        })
    };
    for queued in &before.messages().queue {
        assert!(
            messages.queued(queued.number).is_some() || told(queued.number),
            "{queued:?} vanished"
        );
    }
    for letter in &before.messages().dead {
        assert!(
            messages.dead_letter(letter.number).is_some() || told(letter.number),
            "{letter:?} vanished"
        );
    }
}

/// After a due command nothing of its kind is still due: the due index cannot spin on a device.
fn check_due_is_settled(command: &Command, after: &DeviceState, policy: &Policy, now: Timestamp) {
    if matches!(
        command,
        Command::ExpireSession | Command::PublishWill | Command::TendMessages
    ) {
        assert_eq!(decide(&lamp(), after, command, policy, now), Ok(Vec::new()));
        let due = after.due();
        match command {
            Command::ExpireSession => assert!(due.session_expiry.is_none_or(|at| at > now)),
            Command::TendMessages => assert!(due.messages.is_none_or(|at| at > now)),
            _ => assert!(due.will.is_none_or(|at| at > now)),
        }
    }
}

/// A gateway that sends in order and goes back when it must.
fn publish(ordinal: u64, generation: u64) -> Command {
    let with_id = ordinal.is_multiple_of(2);
    Command::RecordTelemetry {
        origin: Origin::Session {
            fence: Fence { generation, ordinal },
            delivery: Some(Delivery {
                packet_id: ordinal as u16,
                dup: false,
                digest: ordinal,
            }),
        },
        telemetry: Telemetry {
            body: ordinal.to_be_bytes().to_vec(),
            message_id: with_id.then(|| ordinal.to_string()),
            ..Telemetry::default()
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Speculative and replayed state agree after any mix of commits and failures.
    #[test]
    fn replicas_agree_with_the_leader(steps in steps()) {
        let policy = tight_policy();
        let mut cluster = Cluster::default();
        for step in steps {
            cluster.take(step, &policy);
        }
        cluster.commit(usize::MAX);
        prop_assert_eq!(&cluster.head, &cluster.committed);
        let expected: Vec<u64> = (1..=cluster.committed.telemetry.last_seq).collect();
        prop_assert_eq!(&cluster.rows, &expected, "seq is gap-free");
        let mut replayed = DeviceState::default();
        for (event, at) in &cluster.log {
            let event: Event = codec::decode(&codec::encode(event)).expect("an event survives its encoding");
            apply(&mut replayed, &event, *at).expect("the log fits from the start");
        }
        prop_assert_eq!(&replayed, &cluster.committed);
    }

    /// A command sent again over its session is never carried out again, and learns the same.
    #[test]
    fn repetitions_change_nothing(steps in steps()) {
        let policy = tight_policy();
        let mut state = DeviceState::default();
        let mut now = Timestamp(0);
        for step in steps {
            let Step::Ask(mut command) = step else {
                now = now.plus_millis(500);
                continue;
            };
            aim(&mut command, &state);
            let before = state.clone();
            let Ok(events) = decide(&lamp(), &before, &command, &policy, now) else { continue };
            for event in &events {
                apply(&mut state, event, now).expect("a decided event fits");
            }
            let first = answer(&lamp().device, &before, &state, &command, &events);
            let fenced = match &command {
                Command::Subscribe { .. } | Command::Unsubscribe { .. } => true,
                Command::RecordTelemetry { origin, .. } | Command::UpdateTwin { origin, .. } => {
                    *origin != Origin::Operator
                }
                _ => false,
            };
            if !fenced {
                continue;
            }
            prop_assert_eq!(decide(&lamp(), &state, &command, &policy, now), Ok(Vec::new()));
            let again = answer(&lamp().device, &state, &state, &command, &[]);
            match (&first, &again) {
                (Answer::Telemetry { seq, .. }, Answer::Telemetry { seq: known, repeated }) => {
                    prop_assert!(*repeated && (*known == 0 || known == seq), "{:?} {:?}", first, again);
                }
                _ => prop_assert_eq!(&first, &again),
            }
        }
    }

    /// G2 and G3: whatever part of the pipeline is lost, a gateway that goes back to the first
    /// unacknowledged ordinal gets each publish stored once and in order.
    #[test]
    fn each_publish_is_stored_once_and_in_order(losses in prop::collection::vec((1..9usize, 0..9usize), 1..20)) {
        let policy = Policy { auto_register: true, ..Policy::default() };
        let now = Timestamp(1);
        let open = connect(0);
        let mut cluster = Cluster { now, ..Cluster::default() };
        cluster.ask(&open, &policy);
        cluster.commit(1);
        let mut acknowledged = 0;
        for (sent, kept) in losses {
            for ordinal in acknowledged + 1..=acknowledged + sent as u64 {
                cluster.ask(&publish(ordinal, 1), &policy);
            }
            // The leader is gone; some of it committed, and not all of that was acknowledged.
            cluster.take(Step::Fail(kept), &policy);
            acknowledged += (sent.min(kept) / 2) as u64;
        }
        let stored: Vec<u64> = cluster.log.iter().filter_map(|(event, _)| match event {
            Event::TelemetryRecorded(recorded) => {
                Some(u64::from_be_bytes(recorded.telemetry.body.as_slice().try_into().unwrap()))
            }
            _ => None,
        }).collect();
        let expected: Vec<u64> = (1..=stored.len() as u64).collect();
        prop_assert_eq!(stored, expected);
    }

    /// Each message that was committed ends at most once, and is somewhere until then.
    #[test]
    fn each_message_ends_once(steps in steps()) {
        let policy = tight_policy();
        let mut cluster = Cluster::default();
        for step in steps {
            cluster.take(step, &policy);
        }
        cluster.commit(usize::MAX);
        let mut open = std::collections::BTreeSet::new();
        for (event, _) in &cluster.log {
            match event {
                Event::DeviceDeleted => open.clear(),
                Event::MessageQueued(queued) => prop_assert!(open.insert(queued.number)),
                Event::DeadLetterReplayed { new_number, .. } => prop_assert!(open.insert(*new_number)),
                Event::MessageEnded { number, .. } => prop_assert!(open.remove(number), "{} ended twice", number),
                _ => {}
            }
        }
        let queue = &cluster.committed.messages().queue;
        let left: Vec<u64> = queue.iter().map(|queued| queued.number).collect();
        prop_assert_eq!(open.into_iter().collect::<Vec<_>>(), left);
    }

    /// No input makes the rules panic, and an event that does not fit changes nothing.
    #[test]
    fn nothing_panics_on_any_state(
        state in wild_state(),
        inputs in prop::collection::vec((command(), event(), timestamp()), 1..20),
    ) {
        let policy = tight_policy();
        let mut state = state;
        for (mut command, event, now) in inputs {
            if now.0.is_multiple_of(2) {
                aim(&mut command, &state);
            }
            let before = state.clone();
            if let Ok(events) = decide(&lamp(), &state, &command, &policy, now) {
                let mut after = state.clone();
                for event in &events {
                    let _ = apply(&mut after, event, now);
                }
                let _ = answer(&lamp().device, &state, &after, &command, &events);
            }
            let _ = answer(&lamp().device, &state, &before, &command, std::slice::from_ref(&event));
            let _ = (state.due(), state.connected_via());
            match apply(&mut state, &event, now) {
                Ok(()) => prop_assert_eq!(state.version, before.version + 1),
                Err(_) => prop_assert_eq!(&state, &before),
            }
        }
    }

    /// The gateway's own check agrees with the device's, and neither panics on garbage.
    #[test]
    fn section_writes_are_checked_alike(json in json(), merge in any::<bool>()) {
        let policy = tight_policy();
        let mode = if merge { WriteMode::Merge } else { WriteMode::Replace };
        let write = SectionWrite { section: Section::Desired, mode, json };
        let checked = check_section_write(&write, &policy);
        let patch = desired_patch_json(&write, 7);
        prop_assert!(patch.contains("\"$version\":7"), "{}", patch);
        let mut state = DeviceState::default();
        apply(&mut state, &Event::DeviceRegistered { status: Status::Enabled, automatic: false }, Timestamp(0)).unwrap();
        let command = Command::UpdateTwin { origin: Origin::Operator, writes: vec![write], condition: None };
        let decided = decide(&lamp(), &state, &command, &policy, Timestamp(0));
        prop_assert_eq!(checked.err(), decided.err());
    }
}

/// All kinds of events, and which one an event is; it does not compile with one missing.
macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        const KINDS: &[&str] = &[$(stringify!($kind)),*];

        fn kind(event: &Event) -> &'static str {
            match event {
                $(Event::$kind { .. } => stringify!($kind),)*
            }
        }
    };
}

kinds! {
    DeviceRegistered, StatusChanged, DeviceDeleted, GatewayAssigned,
    SessionOpened, SessionClosed, SessionResumed, SessionExpired, Subscribed, Unsubscribed,
    TelemetryRecorded, TelemetryTrimmed, TwinSectionChanged,
    OrdinalAdvanced, SessionCommandRefused, WillDropped,
    MessageQueued, MessageSent, MessageEnded, DeadLetterDropped, DeadLetterReplayed,
    FeedbackTrimmed, MessagesNudged,
}

/// The properties above are worth as much as what the stories reach.
#[test]
fn stories_reach_every_event() {
    let mut runner = TestRunner::deterministic();
    let policy = tight_policy();
    let mut seen: BTreeMap<&str, usize> = KINDS.iter().map(|kind| (*kind, 0)).collect();
    for _ in 0..2000 {
        let mut cluster = Cluster::default();
        for step in steps()
            .new_tree(&mut runner)
            .expect("stories are never rejected")
            .current()
        {
            cluster.take(step, &policy);
        }
        cluster.commit(usize::MAX);
        for (event, _) in cluster.log {
            *seen.entry(kind(&event)).or_default() += 1;
        }
    }
    println!("{seen:?}");
    assert!(seen.values().all(|count| *count >= 3), "{seen:?}");
}
