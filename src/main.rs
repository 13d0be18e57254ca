//! The program: hands the command line its parts. See [`tidegate::serve`] for how the server is composed.

use std::process::ExitCode;

use tidegate::cli::{self, Parts};
use tidegate::serve;

// The one process-wide choice besides logs and metrics: decoding and encoding allocate and free large buffers on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main(std::env::args_os(), Parts { serve: serve::run, demo: serve::demo::run })
}
