//! Faults that come from the devices. They are part of the drill's scenario, so that the simulator
//! plans them from the seed and its history knows them.

use super::{Entry, Mechanism::Fleet, Param, Scope::Cohort, Sort};

const fn load(id: &'static str, does: &'static str, heals: &'static str, params: &'static [Param]) -> Entry {
    Entry {
        id,
        family: "load",
        does,
        mechanism: Fleet,
        scope: Cohort,
        needs: "a fleet that the drill itself drives",
        heals,
        params,
        proof: "simulator/tests",
    }
}

const THROUGHOUT: &str = "the cohort ends with the load; it misbehaves throughout the drill";
const COUNT: Param = Param {
    name: "devices",
    sort: Sort::Number(1, 100_000),
    default: Some("20"),
    about: "how many such devices join the fleet",
};

pub const FAULTS: &[Entry] = &[
    load(
        "load.reconnect_storm",
        "a share of the fleet loses its connections at once and comes back",
        "devices connect again by themselves",
        &[Param {
            name: "share",
            sort: Sort::Share,
            default: Some("1.0"),
            about: "of the fleet",
        }],
    ),
    load(
        "load.poison",
        "devices that send what is no MQTT, acknowledge nothing, read slowly",
        THROUGHOUT,
        &[COUNT],
    ),
    load(
        "load.duplicate_ids",
        "devices that steal each other's id again and again",
        THROUGHOUT,
        &[COUNT],
    ),
    load(
        "load.firmware_wave",
        "devices that are told to update themselves; a share of them fails, one in ten is bricked",
        THROUGHOUT,
        &[COUNT],
    ),
    load(
        "load.chatty",
        "devices that send fifty times as much as others",
        THROUGHOUT,
        &[COUNT],
    ),
];
