//! Whether this machine can hold the fleet, before anything is opened, and what to do if not.

use std::fs;

use nix::sys::resource::{getrlimit, setrlimit, Resource};

use crate::plan::Plan;
use crate::scenario::Loaded;

/// Descriptors a process needs besides its connections.
const SPARE_DESCRIPTORS: u64 = 128;
/// Connections that one source address can have to one endpoint, where the system does not tell.
const PORTS_DEFAULT: u64 = 28_232;

#[derive(Debug, thiserror::Error)]
pub enum Short {
    #[error(
        "{needed} descriptors are needed in each process, and {allowed} are allowed: raise `ulimit -n`, use more workers (run.workers), or fewer devices"
    )]
    Descriptors { needed: u64, allowed: u64 },
    #[error(
        "{needed} connections need {needed} ports, and {sources} source address(es) to {endpoints} endpoint(s) give {available}: set run.source_addresses, such as [\"127.0.1.0/24\"] on this machine, or name more endpoints"
    )]
    Ports {
        needed: u64,
        available: u64,
        sources: u64,
        endpoints: u64,
    },
}

/// Raises the limit of descriptors as far as it goes and looks whether everything fits.
///
/// # Errors
/// What does not fit, with advice.
pub fn check(plan: &Plan, endpoints: usize, sources: u32) -> Result<(), Short> {
    let loaded: &Loaded = &plan.loaded;
    let devices = u64::from(plan.roster.devices());
    let needed = devices.div_ceil(u64::from(loaded.scenario.run.workers)) + SPARE_DESCRIPTORS;
    let allowed = raise_descriptors(needed);
    if needed > allowed {
        return Err(Short::Descriptors { needed, allowed });
    }
    let (sources, endpoints) = (u64::from(sources.max(1)), endpoints.max(1) as u64);
    let available = ports() * sources * endpoints;
    if devices > available {
        return Err(Short::Ports {
            needed: devices,
            available,
            sources,
            endpoints,
        });
    }
    Ok(())
}

/// Returns how many descriptors this process may have now.
fn raise_descriptors(needed: u64) -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return u64::MAX; // no way to know; opening will tell
    };
    if soft >= needed {
        return soft;
    }
    let wanted = needed.min(hard);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}

fn ports() -> u64 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|part| part.parse().ok()).collect();
    match numbers[..] {
        [low, high] if high > low => high - low + 1,
        _ => PORTS_DEFAULT,
    }
}
