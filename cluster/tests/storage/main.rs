//! What the stores promise, asked of every implementation.
#![allow(clippy::unwrap_used)]

/// Makes a test of each promise of a contract, for one way to open a store in a new directory.
macro_rules! contract {
    ($contract:ident, $open:expr, [$($promise:ident),* $(,)?]) => {$(
        #[test]
        fn $promise() {
            let root = tempfile::tempdir().unwrap();
            let count = std::sync::atomic::AtomicU32::new(0);
            crate::$contract::$promise(&|| {
                let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Box::new($open(&root.path().join(n.to_string())))
            });
        }
    )*};
}

macro_rules! log_contract_tests {
    ($open:expr) => {
        contract!(
            log_contract,
            $open,
            [
                entries_follow_the_operations,
                records_keep_their_newest_value,
                reads_stay_within_the_range_and_the_bytes,
                an_append_out_of_place_is_refused_for_good,
                completions_run_in_order_of_submission,
                a_completion_may_read_and_submit,
                close_completes_what_is_queued_and_refuses_the_rest,
                forgetting_keeps_the_vote_and_says_where_the_log_ended,
            ]
        );
    };
}

macro_rules! state_contract_tests {
    ($open:expr) => {
        contract!(
            state_contract,
            $open,
            [
                a_write_is_visible_at_once,
                operations_of_a_batch_act_in_order,
                a_scan_holds_its_range_in_key_order,
                a_view_stays_as_it_was_taken,
                flushing_changes_nothing_that_is_read,
            ]
        );
    };
}

mod full_disk;
mod log_contract;
mod memory;
mod rocks_log;
mod rocks_state;
mod state_contract;

use std::path::Path;

use cluster::storage::rocks::BlockCache;

fn cache() -> BlockCache {
    BlockCache::new(8 << 20)
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in from.read_dir().unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Flips one bit.
fn damage_file(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// The files of `dir` with that extension, in the order of their numbers.
fn files(dir: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let all = dir.read_dir().unwrap().map(|file| file.unwrap().path());
    let mut found: Vec<_> = all
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}
