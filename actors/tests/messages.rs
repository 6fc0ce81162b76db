//! Stories of messages to a device: what is queued, handed over, settled, and what becomes of the
//! rest.

#![allow(clippy::unwrap_used)]

mod common;

use actors::device::*;
use actors::id::Gateway;
use actors::time::Timestamp;
use common::lamp;

const FILTER: &str = "devices/lamp/messages/+";

struct Story {
    state: DeviceState,
    policy: Policy,
    now: Timestamp,
    ordinal: u64,
}

impl Story {
    /// A registered device.
    fn new() -> Self {
        let mut story = Self {
            state: DeviceState::default(),
            policy: Policy::default(),
            now: Timestamp(1_000),
            ordinal: 0,
        };
        let put = Command::PutDevice {
            status: Status::Enabled,
            condition: Precondition::None,
            gateway: None,
        };
        story.ask(put).unwrap();
        story
    }

    fn ask(&mut self, command: Command) -> Result<Answer, Refusal> {
        let before = self.state.clone();
        let events = decide(&lamp(), &before, &command, &self.policy, self.now)?;
        for event in &events {
            apply(&mut self.state, event, self.now).unwrap();
        }
        Ok(answer(&lamp().device, &before, &self.state, &command, &events))
    }

    /// Connects, and says the generation.
    fn connect(&mut self, clean_start: bool) -> u64 {
        let open = OpenSession {
            gateway: Gateway { node: 1, boot: 1 },
            clean_start,
            expiry_secs: 60,
            keep_alive_secs: 0,
            protocol: 5,
            will: None,
            via: None,
        };
        self.ask(Command::OpenSession(Box::new(open))).unwrap();
        self.ordinal = 0;
        self.state.last_generation
    }

    fn subscribe(&mut self, filter: &str) {
        self.ordinal += 1;
        let fence = Fence {
            generation: self.state.last_generation,
            ordinal: self.ordinal,
        };
        let subscriptions = vec![Subscription {
            filter: filter.to_owned(),
            qos: Qos::AtLeastOnce,
            identifier: 0,
        }];
        self.ask(Command::Subscribe { fence, subscriptions }).unwrap();
    }

    fn queue(&mut self, id: &str) -> Result<Answer, Refusal> {
        self.queue_for(id, None)
    }

    fn queue_for(&mut self, id: &str, ttl_secs: Option<u32>) -> Result<Answer, Refusal> {
        let message = Box::new(Message {
            id: id.to_owned(),
            body: id.as_bytes().to_vec(),
            ..Message::default()
        });
        self.ask(Command::EnqueueMessage { message, ttl_secs })
    }

    fn take(&mut self, held: &[u64], count_max: u16) -> Vec<TakenMessage> {
        let command = Command::TakeMessages {
            generation: self.state.last_generation,
            held: held.to_vec(),
            count_max,
        };
        match self.ask(command) {
            Ok(Answer::MessagesTaken { taken, .. }) => taken,
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, generation: u64, number: u64, accepted: bool) {
        let settled = vec![Settlement { number, accepted }];
        self.ask(Command::SettleMessages { generation, settled }).unwrap();
    }

    /// `id deliveries`, of each message in the queue.
    fn queued(&self) -> Vec<String> {
        let shown = |queued: &Queued| format!("{} {}", queued.id, queued.deliveries);
        self.state.messages().queue.iter().map(shown).collect()
    }

    /// `id reason`, of each dead letter.
    fn dead(&self) -> Vec<String> {
        let shown = |letter: &DeadLetter| format!("{} {}", letter.id, letter.reason.name());
        self.state.messages().dead.iter().map(shown).collect()
    }
}

#[test]
fn a_message_waits_for_a_connection_that_wants_it() {
    let mut story = Story::new();
    story.queue("a").unwrap();
    story.connect(true);
    assert!(story.take(&[], 9).is_empty(), "it has not subscribed");
    story.subscribe("devices/lamp/messages/b");
    assert!(story.take(&[], 9).is_empty(), "to another message");
    story.queue("b").unwrap();
    assert_eq!(story.queued(), ["a 0", "b 0"], "not before a");
    assert_eq!(story.take(&[], 9).len(), 1);
    story.subscribe(FILTER);
    assert_eq!(story.take(&[story.state.messages().queue[1].number], 9).len(), 1);
    assert_eq!(story.queued(), ["a 1", "b 1"]);
}

#[test]
fn a_connection_that_has_all_is_handed_the_next_at_once() {
    let mut story = Story::new();
    story.connect(true);
    story.subscribe(FILTER);
    for number in 0..PUSHED_MAX + 2 {
        story.queue(&format!("m{number}")).unwrap();
    }
    let handed = |story: &Story| {
        story
            .state
            .messages()
            .queue
            .iter()
            .filter(|q| q.deliveries == 1)
            .count()
    };
    assert_eq!(handed(&story), PUSHED_MAX, "no more than it can be expected to hold");
    // Nothing overtakes what waits.
    let first = story.state.messages().queue[0].number;
    story.settle(1, first, true);
    story.queue("late").unwrap();
    assert_eq!(handed(&story), PUSHED_MAX - 1);
}

#[test]
fn what_got_lost_on_the_way_is_given_again_and_not_counted() {
    let mut story = Story::new();
    story.connect(true);
    story.subscribe(FILTER);
    story.queue("a").unwrap();
    story.queue("b").unwrap();
    let both = story.take(&[], 9);
    assert_eq!(both.len(), 2);
    assert_eq!(story.take(&[], 9), both);
    assert_eq!(story.take(&[both[0].number], 9), both[1..]);
    assert_eq!(story.queued(), ["a 1", "b 1"]);
}

#[test]
fn a_session_that_goes_on_sees_the_same_packet_id_with_dup() {
    let mut story = Story::new();
    story.connect(false);
    story.subscribe(FILTER);
    story.queue("a").unwrap();
    let packet_id = story.state.messages().queue[0].packet_id;
    assert!(PACKET_IDS.contains(&packet_id));
    story.connect(false);
    let again = &story.take(&[], 9)[0];
    assert_eq!((again.packet_id, again.resent), (packet_id, true));
    story.connect(true);
    story.subscribe(FILTER);
    let anew = &story.take(&[], 9)[0];
    assert!(!anew.resent && anew.packet_id != packet_id);
    assert_eq!(story.queued(), ["a 3"]);
}

#[test]
fn a_settlement_counts_once_and_only_for_whom_it_was_handed_to() {
    let mut story = Story::new();
    let first = story.connect(false);
    story.subscribe(FILTER);
    story.queue("a").unwrap();
    story.queue("b").unwrap();
    let (a, b) = (
        story.state.messages().queue[0].number,
        story.state.messages().queue[1].number,
    );
    story.settle(first + 1, a, true);
    assert_eq!(story.queued().len(), 2, "it was not handed to a later session");
    let second = story.connect(false);
    story.take(&[], 9);
    // The device had it before its connection was lost; that it rejected one does not count then.
    story.settle(first, a, true);
    story.settle(first, b, false);
    assert_eq!(story.queued(), ["b 2"]);
    let settled = story.state.clone();
    story.settle(first, a, true);
    assert_eq!(story.state, settled);
    story.settle(second, b, false);
    assert_eq!((story.queued().len(), story.dead()), (0, vec!["b rejected".to_owned()]));
    assert_eq!(story.state.messages().last_feedback, 2);
}

#[test]
fn a_message_has_so_many_deliveries_and_then_makes_room() {
    let mut story = Story::new();
    story.policy.message_deliveries_max = 2;
    story.queue("poison").unwrap();
    story.queue("next").unwrap();
    for _ in 0..2 {
        story.connect(false);
        story.subscribe(FILTER);
        assert_eq!(story.take(&[], 1).len(), 1);
    }
    story.connect(false);
    let taken = story.take(&[], 1);
    assert_eq!(taken.len(), 1);
    assert_eq!(
        (story.queued(), story.dead()),
        (vec!["next 1".to_owned()], vec!["poison max-deliveries".to_owned()])
    );
}

#[test]
fn time_ends_messages_and_reminds_gateways() {
    let mut story = Story::new();
    story.queue_for("short", Some(1)).unwrap();
    story.queue_for("long", Some(100)).unwrap();
    assert_eq!(story.state.due().messages, Some(Timestamp(2_000)));
    story.now = Timestamp(2_000);
    story.ask(Command::TendMessages).unwrap();
    assert_eq!(
        (story.queued(), story.dead()),
        (vec!["long 0".to_owned()], vec!["short expired".to_owned()])
    );
    // Nobody is there to be reminded.
    assert_eq!(story.state.due().messages, Some(Timestamp(101_000)));
    story.connect(true);
    story.subscribe(FILTER);
    story.take(&[], 9);
    for after_secs in [10, 10, 20, 40] {
        let due = story.state.due().messages.unwrap();
        if due == Timestamp(101_000) {
            break;
        }
        assert_eq!(due, story.now.plus_millis(after_secs * 1_000));
        story.now = due;
        story.ask(Command::TendMessages).unwrap();
    }
    story.now = Timestamp(101_000);
    story.ask(Command::TendMessages).unwrap();
    assert_eq!(story.dead(), ["short expired", "long expired"]);
    assert_eq!(story.state.due().messages, None);
}

#[test]
fn expired_messages_take_no_room() {
    let mut story = Story::new();
    story.policy.message_queue_max = 1;
    story.queue_for("old", Some(1)).unwrap();
    assert_eq!(story.queue("new"), Err(Refusal::MessageQueueFull { max: 1 }));
    story.now = Timestamp(2_000);
    story.queue("new").unwrap();
    assert_eq!(
        (story.queued(), story.dead()),
        (vec!["new 0".to_owned()], vec!["old expired".to_owned()])
    );
}

#[test]
fn dead_letters_and_feedback_are_rings() {
    let mut story = Story::new();
    story.policy.dead_letters_max = 2;
    story.policy.feedback_max = 8;
    for number in 0..20 {
        story.queue(&format!("m{number}")).unwrap();
        story.ask(Command::PurgeMessages { id: None }).unwrap();
    }
    assert_eq!(story.dead(), ["m18 purged", "m19 purged"]);
    let messages = story.state.messages();
    assert_eq!(messages.last_feedback, 20);
    assert!((8..=9).contains(&messages.feedback_count()));
    story.policy.dead_letters_max = 0;
    story.queue("gone").unwrap();
    story.ask(Command::PurgeMessages { id: None }).unwrap();
    assert!(!story.dead().contains(&"gone purged".to_owned()));
}

#[test]
fn a_replayed_dead_letter_is_new_at_the_end() {
    let mut story = Story::new();
    story.policy.message_queue_max = 2;
    story.queue("a").unwrap();
    story
        .ask(Command::PurgeMessages {
            id: Some("a".to_owned()),
        })
        .unwrap();
    story.queue("b").unwrap();
    let replay = |id: &str| Command::ReplayMessage {
        id: id.to_owned(),
        ttl_secs: Some(5),
    };
    assert_eq!(story.ask(replay("b")).map(|_| ()), Ok(()), "it is queued already");
    assert_eq!(story.ask(replay("c")), Err(Refusal::MessageNotFound));
    let row = story.state.messages().dead[0].row;
    story.ask(replay("a")).unwrap();
    story.ask(replay("a")).unwrap();
    assert_eq!(
        (story.queued(), story.dead().len()),
        (vec!["b 0".to_owned(), "a 0".to_owned()], 0)
    );
    let replayed = &story.state.messages().queue[1];
    assert_eq!((replayed.row, replayed.expires_at), (row, story.now.plus_millis(5_000)));
    story
        .ask(Command::PurgeMessages {
            id: Some("a".to_owned()),
        })
        .unwrap();
    story.queue("d").unwrap();
    assert_eq!(story.ask(replay("a")), Err(Refusal::MessageQueueFull { max: 2 }));
}

#[test]
fn an_id_names_one_message() {
    let mut story = Story::new();
    assert!(matches!(
        story.queue("a"),
        Ok(Answer::MessageQueued {
            repeated: false,
            queued: Some(_)
        })
    ));
    assert!(matches!(
        story.queue("a"),
        Ok(Answer::MessageQueued {
            repeated: true,
            queued: Some(_)
        })
    ));
    let other = Box::new(Message {
        id: "a".to_owned(),
        body: b"something else".to_vec(),
        ..Message::default()
    });
    let command = Command::EnqueueMessage {
        message: other,
        ttl_secs: None,
    };
    assert_eq!(story.ask(command), Err(Refusal::MessageIdTaken));
    story.ask(Command::PurgeMessages { id: None }).unwrap();
    assert!(matches!(
        story.queue("a"),
        Ok(Answer::MessageQueued {
            repeated: true,
            queued: None
        })
    ));
    // Out of the window, but still here.
    story.policy.message_ids_max = 1;
    story.queue("b").unwrap();
    assert_eq!(story.queue("a"), Err(Refusal::MessageIdTaken));
    story.ask(Command::DropDeadLetters { id: None }).unwrap();
    assert!(matches!(
        story.queue("a"),
        Ok(Answer::MessageQueued { repeated: false, .. })
    ));
}

#[test]
fn a_deleted_device_takes_its_messages_along() {
    let mut story = Story::new();
    story.queue("a").unwrap();
    story
        .ask(Command::DeleteDevice {
            condition: Precondition::None,
        })
        .unwrap();
    assert_eq!(story.state.messages, None);
    assert_eq!(story.queue("a"), Err(Refusal::NotRegistered));
}

#[test]
fn only_the_live_session_may_take() {
    let mut story = Story::new();
    let old = story.connect(false);
    story.connect(false);
    let take = |generation| Command::TakeMessages {
        generation,
        held: Vec::new(),
        count_max: 1,
    };
    assert_eq!(
        story.ask(take(old)),
        Err(Refusal::StaleSession {
            given: old,
            live: Some(old + 1)
        })
    );
    story.ask(take(old + 1)).unwrap();
    let cause = CloseCause::Abrupt;
    story
        .ask(Command::CloseSession {
            generation: old + 1,
            cause,
        })
        .unwrap();
    assert!(matches!(story.ask(take(old + 1)), Err(Refusal::StaleSession { .. })));
}
