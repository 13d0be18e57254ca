//! The integration tests of the pipeline, in one binary.

mod run_exactly_once;
mod scripted;
