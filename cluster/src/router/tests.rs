//! A forwarded call ends as an outcome, a retryable refusal, or unknown; never as a wrong success.

use std::sync::Mutex;

use actors::device::Answer;
use actors::ports::Reply;

use super::*;
use crate::testing::fleet::device;
use crate::testing::run;
use crate::transport::tests::harness::{eventually, pair, Node, DROP, ECHO, HOLD};

fn first_lead(_: NodeId) -> protocol::Lead {
    protocol::Lead {
        shard: ShardId(0),
        term: 1,
    }
}

fn sees(router: &Router, shard: u16, term: u64, leader: Option<NodeId>) {
    let role = Role {
        leader,
        term,
        leading: false,
    };
    router.role_changed(ShardId(shard), &role);
}

type Answers = Arc<Mutex<Vec<CallResult>>>;

/// Also called while a failed test unwinds: then nobody reads it any more.
fn write_down(answers: &Answers, result: CallResult) {
    if let Ok(mut answers) = answers.lock() {
        answers.push(result);
    }
}

fn router(node: &Node, leader: NodeId) -> Router {
    let router = Router::new(node.id, 1);
    router.connect(node.transport.clone());
    router.told(leader, &[first_lead(leader)]);
    router
}

fn call(router: &Router) -> Answers {
    let answers = Answers::default();
    let seen = answers.clone();
    let reply = ReplyTo::new(move |result| write_down(&seen, result));
    router.submit(device("lamp"), Command::ReadDevice, reply);
    answers
}

async fn answered(answers: &Answers) -> CallResult {
    eventually("the call is answered", || !answers.lock().unwrap().is_empty()).await;
    let answers = answers.lock().unwrap();
    assert_eq!(answers.len(), 1, "answered twice");
    answers[0].clone()
}

#[test]
fn what_never_left_was_not_committed() {
    run(async {
        let (one, two) = pair().await;
        let router = router(&one, 9);
        let refused = answered(&call(&router)).await;
        assert_eq!(
            refused,
            Err(CallError::NotLeader {
                shard: ShardId(0),
                leader: None
            }),
            "an unknown node"
        );
        drop(two);
    });
}

#[test]
fn a_shard_that_is_nowhere_here_is_refused() {
    let router = Router::new(1, 1);
    let answers = call(&router);
    let expected = Err(CallError::NotLeader {
        shard: ShardId(0),
        leader: None,
    });
    assert_eq!(
        *answers.lock().unwrap(),
        vec![expected.clone()],
        "no leader, no replica"
    );
    router.told(2, &[first_lead(2)]);
    assert_eq!(*call(&router).lock().unwrap(), vec![expected], "no transport yet");
}

/// The other node's handler keeps calls until told (`KIND_CALL` is none of its kinds: it echoes),
/// so what it echoes is not an answer, and its silence is not one either.
#[test]
fn an_answer_that_cannot_be_read_leaves_the_outcome_unknown() {
    run(async {
        assert!(![ECHO, HOLD, DROP].contains(&KIND_CALL));
        let (one, two) = pair().await;
        let router = router(&one, two.id);
        assert_eq!(answered(&call(&router)).await, Err(CallError::Unknown));
        assert_eq!(router.lock().calls.len(), 0, "nothing stays outstanding");
    });
}

#[test]
fn a_lost_connection_leaves_the_outcome_unknown_or_certainly_undone() {
    run(async {
        let (one, two) = pair().await;
        let router = router(&one, two.id);
        let calls: Vec<_> = (0..20).map(|_| call(&router)).collect();
        two.transport.shutdown();
        for answers in &calls {
            let result = answered(answers).await;
            assert!(
                matches!(result, Err(CallError::Unknown | CallError::NotLeader { .. })),
                "{result:?}"
            );
        }
        assert_eq!(router.lock().calls.len(), 0);
    });
}

/// An outstanding call at a paused former leader ends when another leader is known, once.
#[test]
fn a_change_of_leadership_ends_what_the_former_leader_was_asked() {
    run(async {
        let (one, two) = pair().await;
        let router = router(&one, two.id);
        let answers = Answers::default();
        let seen = answers.clone();
        let reply = ReplyTo::new(move |result| write_down(&seen, result));
        router.lock().calls.insert((ShardId(0), 77), (two.id, reply));
        sees(&router, 0, 1, Some(two.id));
        sees(&router, 0, 1, None);
        assert!(
            answers.lock().unwrap().is_empty(),
            "the same leader, or none known: it may still answer"
        );
        sees(&router, 0, 2, Some(3));
        // A former leader that is alive gets a moment to answer what it was asked.
        let ended = answers.clone();
        eventually("the call ends", move || !ended.lock().unwrap().is_empty()).await;
        assert_eq!(*answers.lock().unwrap(), vec![Err(CallError::Unknown)]);
        assert_eq!(router.lock().calls.len(), 0);
    });
}

#[test]
fn followers_of_leadership_hear_of_changes_only() {
    let router = Router::new(1, 2);
    let changes = router.leadership_changes();
    router.told(2, &[first_lead(2)]);
    router.told(2, &[first_lead(2)]);
    sees(&router, 7, 1, Some(2));
    assert_eq!(*changes.borrow(), 1);
    assert!(!router.ready());
    sees(&router, 1, 1, Some(1));
    assert!(router.ready());
    sees(&router, 1, 2, None);
    assert!(!router.ready());
}

#[test]
fn a_map_never_goes_back_to_an_older_epoch() {
    let router = Router::new(1, 1);
    router.set_epoch(5);
    router.set_epoch(3);
    assert_eq!(router.epoch(), 5);
}

#[test]
fn outcomes_survive_the_way_over_the_wire() {
    let outcomes: [CallResult; 4] = [
        Ok(Reply {
            answer: Answer::Done,
            receipt: None,
        }),
        Err(CallError::Unknown),
        Err(CallError::Overloaded {
            what: "shard queue".into(),
        }),
        Err(CallError::NotLeader {
            shard: ShardId(3),
            leader: Some(2),
        }),
    ];
    for outcome in outcomes {
        assert_eq!(codec::decode::<CallResult>(&codec::encode(&outcome)).unwrap(), outcome);
    }
}
