//! The parts of the `tidegate` program, as a library so that its tests can reach them: the command line, the
//! configuration, the composition of the server, and the story of the demo.

pub mod cli;
pub mod config;
pub mod serve;
pub mod story;
