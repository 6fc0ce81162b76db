//! Faults of disks: leases in the storage seam, damage to files while a node is down, a full file
//! system, and the power cut.

use super::{
    Entry,
    Mechanism::{self, Files, Lease, Preload},
    Param,
    Scope::{Cluster, Node},
    Sort,
};

const LEASES: &str = "chaos.allow_drills in the node's configuration";
const EXPIRES: &str = "the lease is deleted, or expires inside the node";
const RESTARTS: &str = "the lease is deleted; a node that ended because its disk failed is started again";
const HERE: &str = "the node's directory on this host (a local cluster), two nodes that are whole";
const MENDED: &str = "the node is started; it rebuilds its state, or `cluster repair` replaces it";

const fn disk(id: &'static str, does: &'static str, heals: &'static str, params: &'static [Param]) -> Entry {
    entry(id, does, Lease, LEASES, heals, params, "tests/tests/chaos_leases.rs")
}

const fn file(id: &'static str, does: &'static str, params: &'static [Param]) -> Entry {
    entry(id, does, Files, HERE, MENDED, params, "chaos/src/damage.rs")
}

const fn entry(
    id: &'static str,
    does: &'static str,
    mechanism: Mechanism,
    needs: &'static str,
    heals: &'static str,
    params: &'static [Param],
    proof: &'static str,
) -> Entry {
    Entry {
        id,
        family: "disk",
        does,
        mechanism,
        scope: Node,
        needs,
        heals,
        params,
        proof,
    }
}

const PART: Param = Param {
    name: "part",
    sort: Sort::Word(&["state", "log"]),
    default: Some("\"state\""),
    about: "which of the node's two stores",
};
const ON_WRITE: Param = Param {
    name: "on",
    sort: Sort::Word(&["write", "sync"]),
    default: Some("\"sync\""),
    about: "which operation is slow",
};
const ON_ANY: Param = Param {
    name: "on",
    sort: Sort::Word(&["read", "write", "sync"]),
    default: Some("\"sync\""),
    about: "which operation fails",
};
const PERCENT: Param = Param {
    name: "percent",
    sort: Sort::Number(1, 100),
    default: Some("100"),
    about: "of the operations",
};

pub const FAULTS: &[Entry] = &[
    disk(
        "disk.latency",
        "writes or syncs take longer",
        EXPIRES,
        &[
            ON_WRITE,
            Param {
                name: "ms",
                sort: Sort::Number(1, 60_000),
                default: Some("50"),
                about: "how much longer",
            },
        ],
    ),
    disk("disk.stall", "no write or no sync ends", EXPIRES, &[ON_WRITE]),
    disk("disk.full", "writes fail as on a full disk", RESTARTS, &[]),
    disk(
        "disk.read_only",
        "writes fail as on a disk that was remounted read-only",
        RESTARTS,
        &[],
    ),
    disk(
        "disk.eio",
        "operations fail with an input/output error",
        RESTARTS,
        &[ON_ANY, PERCENT],
    ),
    disk(
        "disk.sync_fails_once",
        "one sync fails, the next succeeds",
        RESTARTS,
        &[],
    ),
    Entry {
        needs: "a power cut at the same moment: inside a node a lie is found out by nobody, because the kernel keeps \
                what was written; power.cut with the preloaded library is the way",
        ..disk(
            "disk.sync_lies",
            "syncs return at once and do nothing",
            "nothing to undo",
            &[],
        )
    },
    entry(
        "disk.fill",
        "a file takes all the room there is",
        Files,
        "a small file system of the drill's own (drill.cluster.disk, root to mount it)",
        "the file is removed",
        &[],
        "tests/tests/fault_disk_full.rs",
    ),
    Entry {
        id: "power.cut",
        family: "disk",
        does:
            "the power of all nodes at once: everything unsynced is gone, what was being appended is torn at any byte",
        mechanism: Preload,
        scope: Cluster,
        needs: "a cluster that the drill itself starts (drill.cluster.power), and cc to compile the library",
        heals: "all nodes are started",
        params: &[Param {
            name: "unsynced",
            sort: Sort::Word(&["lost", "torn"]),
            default: Some("\"torn\""),
            about: "what becomes of bytes that were appended and not synced",
        }],
        proof: "tests/tests/fault_power.rs",
    },
    file(
        "file.bit_flip",
        "bits of the largest file change while the node is down",
        &[PART],
    ),
    file(
        "file.truncate",
        "the largest file loses its second half while the node is down",
        &[PART],
    ),
    file(
        "file.missing",
        "the largest file disappears while the node is down",
        &[PART],
    ),
    file(
        "file.old_copy",
        "everything is as it was a while ago: an older copy put back",
        &[],
    ),
];
