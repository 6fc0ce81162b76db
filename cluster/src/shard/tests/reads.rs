//! What a receipt says of a write, for every place its index and term may have.

use std::sync::Arc;

use actors::wire::receipt::Receipt;
use openraft::storage::RaftStateMachine;

use crate::api::ReceiptState::{Absent, Committed, Unknown};
use crate::background::Background;
use crate::raft::machine::{GroupMachine, GroupShared};
use crate::shard::apply::ShardApply;
use crate::shard::reads::receipt_state;
use crate::storage::memory::MemoryState;
use crate::testing::fleet::Fleet;
use crate::testing::{normal, run, SHARD};

#[test]
fn a_receipt_is_committed_absent_or_unknown_but_never_the_wrong_one() {
    run(async {
        let background = Arc::new(Background::start("test background").unwrap());
        let shared =
            Arc::new(GroupShared::open(SHARD, Arc::new(MemoryState::new()), background.clone(), background).unwrap());
        let mut machine = GroupMachine::new(shared.clone(), Box::new(ShardApply::new(&shared)));
        let ask = |term, index| {
            let receipt = Receipt {
                shard: SHARD,
                term,
                index,
                seq: 1,
            };
            receipt_state(&shared, &receipt)
        };
        assert_eq!(ask(1, 1), Unknown, "nothing is applied yet");
        // Terms 2 (index 1..=3) and 5 (index 4..=6).
        let mut fleet = Fleet::default();
        let entries = [(2, 1), (2, 2), (2, 3), (5, 4), (5, 5), (5, 6)];
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(term, index)| Ok((normal(term, index, fleet.report("a", vec![1])), None)))
            .collect();
        machine.apply(futures::stream::iter(entries)).await.unwrap();
        let table = [
            ((2, 1), Committed),
            ((2, 3), Committed),
            ((2, 4), Absent),
            ((3, 3), Absent),
            ((3, 4), Absent),
            ((5, 3), Absent),
            ((5, 4), Committed),
            ((5, 6), Committed),
            // Beyond what is applied only the present term, or a later one, may still commit.
            ((2, 7), Absent),
            ((4, 7), Absent),
            ((5, 7), Unknown),
            ((6, 7), Unknown),
            // No entry ever had these.
            ((0, 3), Absent),
            ((2, 0), Absent),
        ];
        for ((term, index), expected) in table {
            assert_eq!(ask(term, index), expected, "term {term}, index {index}");
        }
    });
}
