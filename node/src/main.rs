//! The command.

use std::process::ExitCode;

/// Gives memory back after a storm of connections, which the system's allocator does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    outpost_node::cli::main()
}
