//! Faults that use up what the process has: cores, memory, descriptors. Each has threads of its
//! own, which look by themselves whether their lease is over, so that they end even where nothing
//! else of the node gets on.

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use super::kind::Fault;
use super::lease::Lease;
use super::table::Faults;

/// What is taken before the lease is looked at again.
const STEP_BYTES: usize = 16 << 20;
/// Likewise, rounds of arithmetic: some milliseconds.
const STEP_ROUNDS: u64 = 5_000_000;
/// How often descriptors that others have given back are taken too.
const TAKE_AGAIN: Duration = Duration::from_millis(100);

pub fn start(faults: &Arc<Faults>, lease: &Arc<Lease>) {
    match lease.fault {
        Fault::CpuHog { threads } => (0..threads).for_each(|_| spawn(faults, lease, hog)),
        Fault::MemorySqueeze { bytes } => spawn(faults, lease, move |faults, lease| squeeze(faults, lease, bytes)),
        Fault::DescriptorsExhaust { leave } => {
            spawn(faults, lease, move |faults, lease| exhaust(faults, lease, leave));
        }
        _ => {}
    }
}

fn spawn(faults: &Arc<Faults>, lease: &Arc<Lease>, work: impl FnOnce(&Arc<Faults>, &Arc<Lease>) + Send + 'static) {
    let (faults, held) = (faults.clone(), lease.clone());
    let thread = std::thread::Builder::new().name("drill".into());
    if let Err(error) = thread.spawn(move || work(&faults, &held)) {
        tracing::warn!(target: "audit", lease = lease.id, %error, "the fault has no thread to act on");
    }
}

fn hog(faults: &Arc<Faults>, lease: &Arc<Lease>) {
    let mut x = lease.seed;
    while faults.still(lease) {
        for round in 0..STEP_ROUNDS {
            x = black_box(x.rotate_left(7) ^ round);
        }
        lease.hit();
    }
}

fn squeeze(faults: &Arc<Faults>, lease: &Arc<Lease>, bytes: u64) {
    let mut held = Vec::new();
    let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
    while left > 0 && faults.still(lease) {
        let step = left.min(STEP_BYTES);
        // Not zero: zeroes need no memory until somebody writes to them.
        held.push(vec![0xA5_u8; step]);
        left -= step;
        lease.hit();
    }
    faults.hold_up(lease, None);
    drop(black_box(held));
}

fn exhaust(faults: &Arc<Faults>, lease: &Arc<Lease>, leave: u64) {
    let mut held = Vec::new();
    // Kept for counting: where none is left, the list of them cannot be opened either.
    while faults.still(lease) {
        let left = || -> Option<u64> {
            let (most, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok()?;
            let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
            Some(most.saturating_sub(open))
        };
        let Some(left) = left() else {
            faults.hold_up(lease, Some(TAKE_AGAIN));
            continue;
        };
        for _ in 0..left.saturating_sub(leave) {
            let Ok(file) = File::open("/dev/null") else { break };
            held.push(file);
            lease.hit();
        }
        faults.hold_up(lease, Some(TAKE_AGAIN));
    }
}
