//! `tidegate rules …`: the tools of the people who write rules. What they find out is the business of `tidegate_rules`; here
//! files are read, events decoded as the server would, and results printed.

pub mod args;
pub mod bench;
pub mod check;
pub mod coverage;
pub mod events;
pub mod explain;
pub mod files;
pub mod hunt;
pub mod test;

use std::io::Write;

use args::RulesCommand;

use super::style::Style;
use super::{Ending, block_on};
use crate::config::Config;

/// Runs one of the commands.
///
/// # Errors
/// When files cannot be read or the server cannot be asked. What is wrong with rules is a result, not an error.
pub fn run(
    config: &Config,
    command: &RulesCommand,
    style: Style,
    out: &mut (dyn Write + Send),
) -> anyhow::Result<Ending> {
    match command {
        RulesCommand::Check(args) => check::run(config, &args.paths, style, out),
        RulesCommand::Test(args) => test::run(config, &args.paths, style, out),
        RulesCommand::Explain(args) => explain::run(config, &args.rule, style, out),
        RulesCommand::Coverage(args) => coverage::run(config, &args.paths, style, out),
        RulesCommand::Bench(_) => bench::run(config, style, out),
        RulesCommand::Hunt(args) => block_on(hunt::run(config, &args.rule, style, out)),
    }
}
