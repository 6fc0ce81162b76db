//! What only the RocksDB log can be asked: group commit, crashes, damage.

use std::path::Path;

use cluster::storage::rocks::{LogOptions, RocksLog};
use cluster::storage::LogStore;

use super::{cache, log_contract};

fn open(dir: &Path) -> RocksLog {
    RocksLog::open(dir, LogOptions::new(cache()), Box::new(|_| {})).unwrap()
}

/// Each call opens a log in a directory of its own.
fn fresh() -> (tempfile::TempDir, std::sync::atomic::AtomicU32) {
    (tempfile::tempdir().unwrap(), Default::default())
}

macro_rules! contract {
    ($($promise:ident),* $(,)?) => {$(
        #[test]
        fn $promise() {
            let (root, count) = fresh();
            log_contract::$promise(&|| {
                let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Box::new(open(&root.path().join(n.to_string()))) as Box<dyn LogStore>
            });
        }
    )*};
}

contract!(
    entries_follow_the_operations,
    records_keep_their_newest_value,
    reads_stay_within_the_range_and_the_bytes,
    an_append_out_of_place_is_refused_for_good,
    completions_run_in_order_of_submission,
    close_completes_what_is_queued_and_refuses_the_rest,
);
