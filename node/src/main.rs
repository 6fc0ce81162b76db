//! The `holdfast` program; everything is in the library.

/// Batches allocate and free megabytes many times a second; see docs/load-testing.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    node::cli::run(std::env::args_os())
}
