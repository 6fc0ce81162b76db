//! Faults between nodes: shapes of partitions, and bad links. All are leases inside the nodes.

use super::{
    Entry,
    Mechanism::Lease,
    Param,
    Scope::{Cluster, Link},
    Sort,
};

const LEASES: &str = "chaos.allow_drills in the configuration of every node concerned";
const EXPIRES: &str = "the leases are deleted, or expire inside the nodes";
const PROOF: &str = "tests/tests/chaos_leases.rs";

const PEER: Param = Param {
    name: "peer",
    sort: Sort::Peer,
    default: Some("\"*\""),
    about: "the other end: a node's id, or all others",
};
const DIRECTION: Param = Param {
    name: "direction",
    sort: Sort::Word(&["in", "out", "both"]),
    default: Some("\"both\""),
    about: "as the node named by `on` sees it",
};
const PERCENT: Param = Param {
    name: "percent",
    sort: Sort::Number(1, 100),
    default: Some("20"),
    about: "of the frames",
};

const fn link(id: &'static str, does: &'static str, params: &'static [Param]) -> Entry {
    Entry {
        id,
        family: "network",
        does,
        mechanism: Lease,
        scope: Link,
        needs: LEASES,
        heals: EXPIRES,
        params,
        proof: PROOF,
    }
}

const fn partition(id: &'static str, does: &'static str, params: &'static [Param]) -> Entry {
    Entry {
        id,
        family: "network",
        does,
        mechanism: Lease,
        scope: Cluster,
        needs: LEASES,
        heals: EXPIRES,
        params,
        proof: PROOF,
    }
}

pub const FAULTS: &[Entry] = &[
    partition("partition.isolate", "one node hears no other and is heard by none", &[]),
    partition(
        "partition.one_way",
        "the others hear the node, and it hears none of them (or the other way round)",
        &[Param {
            name: "direction",
            sort: Sort::Word(&["in", "out"]),
            default: Some("\"in\""),
            about: "which direction is cut, as the node sees it",
        }],
    ),
    partition(
        "partition.halves",
        "two halves that do not hear each other; with an odd number one has a majority",
        &[],
    ),
    partition(
        "partition.majority_ring",
        "every node hears a majority, and no two the same one (five nodes or more)",
        &[],
    ),
    partition(
        "partition.bridge",
        "two halves that only one node in between hears",
        &[],
    ),
    partition(
        "partition.flapping",
        "a node is cut off and let back again and again",
        &[Param {
            name: "every_ms",
            sort: Sort::Number(200, 60_000),
            default: Some("1000"),
            about: "how long each state lasts",
        }],
    ),
    link("link.cut", "nothing passes", &[PEER]),
    link(
        "link.drop",
        "a share of the frames is lost; with 100 percent in one direction, a one-way partition",
        &[PEER, DIRECTION, PERCENT],
    ),
    link(
        "link.latency",
        "frames take longer",
        &[
            PEER,
            Param {
                name: "ms",
                sort: Sort::Number(1, 60_000),
                default: Some("100"),
                about: "how much longer",
            },
            Param {
                name: "jitter_ms",
                sort: Sort::Number(0, 60_000),
                default: Some("20"),
                about: "give or take",
            },
        ],
    ),
    link(
        "link.duplicate",
        "a share of the frames arrives twice",
        &[PEER, PERCENT],
    ),
    link(
        "link.reorder",
        "a share of the frames is overtaken by later ones",
        &[
            PEER,
            PERCENT,
            Param {
                name: "ms",
                sort: Sort::Number(1, 60_000),
                default: Some("50"),
                about: "by how much they are held back",
            },
        ],
    ),
    link(
        "link.corrupt",
        "a share of the frames has a wrong bit",
        &[PEER, PERCENT],
    ),
    link(
        "link.bandwidth",
        "no more than so many bytes a second",
        &[
            PEER,
            Param {
                name: "bytes_per_second",
                sort: Sort::Number(1_000, 10_000_000_000),
                default: Some("200000"),
                about: "to each peer",
            },
        ],
    ),
    link(
        "link.reset",
        "connections break off in the middle of a frame",
        &[PEER, PERCENT],
    ),
    link(
        "link.half_open",
        "what is sent is taken and never arrives; the connection seems to live",
        &[PEER],
    ),
];
