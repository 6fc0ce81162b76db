//! What the machine itself can do: syncs of the disk, round trips over loopback.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::report::{Report, Who};
use super::BenchArgs;
use crate::cli::local::{HarnessError, Interrupt};

const EACH: Duration = Duration::from_secs(2);
/// Also ends a measurement, so that a very fast machine does not write for ever.
const SYNCS_MAX: u32 = 100_000;
const BLOCK_BYTES: usize = 4096;
/// The file is written over and over: growing it would measure the file system's metadata.
const FILE_BLOCKS: u64 = 1024;

pub fn measure(args: &BenchArgs, report: &mut Report, interrupt: &Interrupt) -> Result<(), HarnessError> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let failed = |e: std::io::Error| HarnessError::new("machine limits", e);
    if in_memory(&parent) {
        report.note(format!(
            "{} is kept in memory: syncs there cost nothing; use --dir",
            parent.display()
        ));
    }
    let syncs = sync_rate(&tempfile::tempfile_in(&parent).map_err(failed)?).map_err(failed)?;
    report.add(Who::Machine, "fdatasync of 4 KiB, one writer", "1/s", &[syncs]);
    interrupt.check()?;
    for (bytes, name) in [
        (1, "loopback round trip, 1 byte"),
        (300, "loopback round trip, 300 bytes and 4 back"),
    ] {
        let rate = round_trips(bytes).map_err(failed)?;
        report.add(Who::Machine, name, "1/s", &[rate]);
        interrupt.check()?;
    }
    Ok(())
}

fn in_memory(dir: &std::path::Path) -> bool {
    nix::sys::statfs::statfs(dir).is_ok_and(|fs| fs.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC)
}

fn sync_rate(file: &File) -> std::io::Result<f64> {
    let block = [0x5a; BLOCK_BYTES];
    for at in 0..FILE_BLOCKS {
        file.write_all_at(&block, at * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    let started = Instant::now();
    let mut syncs = 0;
    while started.elapsed() < EACH && syncs < SYNCS_MAX {
        file.write_all_at(&block, u64::from(syncs) % FILE_BLOCKS * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(f64::from(syncs) / started.elapsed().as_secs_f64())
}

/// A message of `bytes` there, up to four bytes back, one at a time.
fn round_trips(bytes: usize) -> std::io::Result<f64> {
    let answer_bytes = bytes.min(4);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let echo = std::thread::spawn(move || {
        let mut message = vec![0; bytes];
        // Ends when the other side closes.
        while far.read_exact(&mut message).is_ok() && far.write_all(&message[..answer_bytes]).is_ok() {}
    });
    let (message, mut answer) = (vec![0x5a; bytes], vec![0; answer_bytes]);
    let started = Instant::now();
    let mut trips = 0u32;
    while started.elapsed() < EACH {
        near.write_all(&message)?;
        near.read_exact(&mut answer)?;
        trips += 1;
    }
    let rate = f64::from(trips) / started.elapsed().as_secs_f64();
    drop(near);
    echo.join().map_err(|_| std::io::Error::other("the echo panicked"))?;
    Ok(rate)
}
