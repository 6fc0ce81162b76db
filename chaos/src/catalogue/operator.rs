//! What operators do, at bad moments. Through the same commands and the same API as people.

use super::{
    Entry,
    Mechanism::Operator,
    Scope::{self, Cluster, Node},
};

const fn deed(
    id: &'static str,
    does: &'static str,
    scope: Scope,
    needs: &'static str,
    heals: &'static str,
    proof: &'static str,
) -> Entry {
    Entry {
        id,
        family: "operator",
        does,
        mechanism: Operator,
        scope,
        needs,
        heals,
        params: &[],
        proof,
    }
}

const TOKEN: &str = "the operator's token";
const LOCAL: &str = "a local cluster (its directory)";
const PROOF: &str = "tests/tests/chaos_faults.rs";

pub const FAULTS: &[Entry] = &[
    deed(
        "operator.drain",
        "a node is drained",
        Node,
        TOKEN,
        "it is undrained",
        PROOF,
    ),
    deed(
        "operator.leader_shuffle",
        "leaderships are moved from node to node, again and again",
        Cluster,
        TOKEN,
        "no node is drained any more; leaders go back to where they are preferred",
        PROOF,
    ),
    deed(
        "operator.add_node",
        "a node is added, and replicas move to it",
        Cluster,
        LOCAL,
        "nothing to undo: the node stays; a move that was begun is finished by the cluster itself",
        PROOF,
    ),
    deed(
        "operator.remove_readd",
        "a node is removed and another is added in its place, under a new id",
        Node,
        "a local cluster of four nodes or more",
        "what is missing is added",
        PROOF,
    ),
    deed(
        "operator.two_changes",
        "two membership changes at once: a rebalance is begun while a node is added",
        Cluster,
        LOCAL,
        "nothing to undo: the cluster finishes or refuses each by itself",
        PROOF,
    ),
    deed(
        "operator.scrub",
        "every node reads everything it has stored, at a bad moment",
        Cluster,
        TOKEN,
        "it ends by itself",
        PROOF,
    ),
    deed(
        "operator.snapshot_purge",
        "snapshots and purges at a bad moment",
        Node,
        "an API for either: nodes flush and purge by themselves, every second where storage.flush_interval says so",
        "nothing to undo",
        "always skipped: there is nothing to call",
    ),
];
