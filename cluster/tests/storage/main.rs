//! What the stores promise, asked of every implementation.

mod log_contract;
mod rocks_log;

use std::path::Path;

use cluster::storage::rocks::BlockCache;

fn cache() -> BlockCache {
    BlockCache::new(8 << 20)
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in from.read_dir().unwrap() {
        let file = file.unwrap();
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}
