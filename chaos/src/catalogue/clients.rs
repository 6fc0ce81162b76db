//! Faults between clients and nodes: a TCP proxy that the warden runs in front of each node's MQTT
//! port, through which the drill's own fleet connects. Other clients are not touched.

use super::{Entry, Mechanism::Proxy, Param, Scope::Clients, Sort};

const PROOF: &str = "chaos/src/proxy/tests.rs";

const fn client(id: &'static str, does: &'static str, params: &'static [Param]) -> Entry {
    Entry {
        id,
        family: "clients",
        does,
        mechanism: Proxy,
        scope: Clients,
        needs: "a fleet of MQTT over TCP that the drill itself drives",
        heals: "the proxy passes everything on again; it ends with the warden",
        params,
        proof: PROOF,
    }
}

const PERCENT: Param = Param {
    name: "percent",
    sort: Sort::Number(1, 100),
    default: Some("10"),
    about: "of the pieces that pass",
};
const MS: Param = Param {
    name: "ms",
    sort: Sort::Number(1, 60_000),
    default: Some("200"),
    about: "how long",
};
const RATE: Param = Param {
    name: "bytes_per_second",
    sort: Sort::Number(10, 1_000_000_000),
    default: Some("2000"),
    about: "of each connection",
};

pub const FAULTS: &[Entry] = &[
    client(
        "client.latency",
        "both directions take longer",
        &[
            MS,
            Param {
                name: "jitter_ms",
                sort: Sort::Number(0, 60_000),
                default: Some("50"),
                about: "give or take",
            },
        ],
    ),
    client(
        "client.loss",
        "a share of what passes stalls as if TCP had to send it again",
        &[PERCENT, MS],
    ),
    client(
        "client.reset",
        "connections are reset in the middle of a packet",
        &[PERCENT],
    ),
    client(
        "client.half_open",
        "what clients send vanishes, and nothing tells them",
        &[],
    ),
    client(
        "client.black_hole",
        "nothing passes in either direction; new connections are taken and never answered",
        &[],
    ),
    client(
        "client.bandwidth",
        "no more than so many bytes a second, both ways",
        &[RATE],
    ),
    client(
        "client.slow_reader",
        "clients read no more than so many bytes a second of what they are sent",
        &[RATE],
    ),
    client(
        "client.corrupt",
        "a share of the packets from clients begins with a byte that no MQTT packet begins with",
        &[PERCENT],
    ),
];
