//! `tidegate timescale ddl`: what the sink does to a database, without one.

use std::io::Write;

use super::Ending;
use super::args::TimescaleCommand;
use crate::config::Config;

/// Runs the command.
///
/// # Errors
/// When the output cannot be written, or the configuration cannot be used.
pub fn run(config: &Config, command: &TimescaleCommand, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let TimescaleCommand::Ddl(_) = command;
    let timescale = config.sinks.timescale.clone().unwrap_or_default();
    timescale.check()?;
    out.write_all(tidegate_sinks::timescale::script(&timescale).as_bytes())?;
    Ok(Ending::Good)
}
