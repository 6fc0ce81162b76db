//! Faults of a node's wall clock. Leases themselves run on a clock that none of these touches.

use super::{Entry, Mechanism::Lease, Param, Scope::Node, Sort};

const fn clock(id: &'static str, does: &'static str, params: &'static [Param]) -> Entry {
    Entry {
        id,
        family: "clock",
        does,
        mechanism: Lease,
        scope: Node,
        needs: "chaos.allow_drills in the node's configuration",
        heals: "the lease is deleted, or expires inside the node",
        params,
        proof: "tests/tests/chaos_leases.rs",
    }
}

const MS: Param = Param {
    name: "ms",
    sort: Sort::Number(-86_400_000, 86_400_000),
    default: Some("60000"),
    about: "forwards, or backwards below 0",
};

pub const FAULTS: &[Entry] = &[
    clock("clock.step", "the clock jumps", &[MS]),
    clock(
        "clock.drift",
        "the clock runs fast or slow",
        &[Param {
            name: "ppm",
            sort: Sort::Number(-500_000, 500_000),
            default: Some("50000"),
            about: "millionths; below 0 it is slow",
        }],
    ),
    clock(
        "clock.strobe",
        "the clock jumps to and fro",
        &[
            MS,
            Param {
                name: "period_ms",
                sort: Sort::Number(10, 60_000),
                default: Some("200"),
                about: "from one jump to the next",
            },
        ],
    ),
    clock("clock.freeze", "the clock stands still", &[]),
];
