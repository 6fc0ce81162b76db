//! What faults do to the disk: slow, stuck, full, read-only, failing.

use std::io;
use std::time::Duration;

use super::kind::{Area, DiskOp, Fault};
use super::table::Faults;
use crate::storage::fault::DiskFaults;

impl DiskFaults for Faults {
    fn acts(&self) -> bool {
        self.asked(Area::Disk)
    }

    fn before_read(&self) -> io::Result<()> {
        self.before(DiskOp::Read)
    }

    fn before_write(&self) -> io::Result<()> {
        self.before(DiskOp::Write)
    }

    fn before_sync(&self) -> io::Result<()> {
        self.before(DiskOp::Sync)
    }

    fn takes_the_room(&self) -> bool {
        let full = |fault: &Fault| matches!(fault, Fault::DiskFull { .. }).then_some(());
        let full = if self.asked(Area::Disk) {
            self.acting(full)
        } else {
            Vec::new()
        };
        full.iter().for_each(|(lease, ())| lease.hit());
        !full.is_empty()
    }
}

impl Faults {
    fn before(&self, op: DiskOp) -> io::Result<()> {
        if !self.asked(Area::Disk) {
            return Ok(());
        }
        for (lease, fault) in self.acting(|fault| Some(fault.clone())) {
            match fault {
                Fault::DiskLatency { on, ms, jitter_ms } if on == op => {
                    lease.hit();
                    let time = Duration::from_millis(ms + lease.below(jitter_ms + 1));
                    self.hold_up(&lease, Some(time));
                }
                Fault::DiskStall { on } if on == op => {
                    lease.hit();
                    self.hold_up(&lease, None);
                }
                Fault::DiskFull { hard: true } if op != DiskOp::Read => {
                    lease.hit();
                    return Err(error(libc::ENOSPC));
                }
                Fault::DiskReadOnly if op == DiskOp::Write => {
                    lease.hit();
                    return Err(error(libc::EROFS));
                }
                Fault::DiskEio { on, percent } if on == op && lease.strikes(percent) => {
                    return Err(error(libc::EIO));
                }
                Fault::DiskSyncFailsOnce if op == DiskOp::Sync && lease.hit_once() => {
                    return Err(error(libc::EIO));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
