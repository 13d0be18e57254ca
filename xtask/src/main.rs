//! What developers run: `cargo xtask test` runs every test and sets up what they need.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let task = std::env::args().nth(1).unwrap_or_default();
    match task.as_str() {
        "test" => run(&["test", "--workspace"]),
        _ => {
            eprintln!("usage: cargo xtask test    run every test");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &[&str]) -> ExitCode {
    let done = Command::new(env!("CARGO")).args(arguments).status();
    match done {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot run cargo: {error}");
            ExitCode::FAILURE
        }
    }
}
