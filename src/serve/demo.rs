//! The server's side of the demo: a server in a temporary folder, which is told the story and then left up.

use std::time::Duration;

use anyhow::Context;

use super::{Runtimes, Server, telemetry};
use crate::cli::demo::tell;
use crate::config::Config;

/// Starts a server in a temporary folder, tells it the story, and leaves it up until SIGINT unless told otherwise: the command
/// `demo`.
///
/// # Errors
/// What keeps the server from starting, or the story from being told.
pub fn run(mut config: Config) -> anyhow::Result<()> {
    telemetry::start_logs(config.log.format, "warn")?;
    let metrics = telemetry::start_metrics()?;
    let folder = tempfile::Builder::new().prefix("tidegate-demo-").tempdir().context("make a temporary folder")?;
    config.data_dir = folder.path().join("data");
    let runtimes = Runtimes::start()?;
    let cpu = runtimes.cpu.handle().clone();
    let ended = runtimes.io.block_on(async {
        let server = match Server::start(&config, metrics.clone(), cpu.clone()).await {
            Ok(server) => server,
            Err(error) if config.listen.port() == Config::default().listen.port() => {
                // The usual port is taken, by another server perhaps: a demo does as well on any other.
                eprintln!("{error:#}; taking a free port");
                config.listen.set_port(0);
                Server::start(&config, metrics, cpu).await?
            }
            Err(error) => return Err(error),
        };
        let url = server.url();
        let told = tokio::select! {
            told = tell(&url, &config.demo) => told.map(|_| !config.demo.exit),
            signal = server.until_signal() => signal.map(|()| false),
        };
        let stay = told?;
        if stay {
            println!(
                "\nThe server stays up on {}; Ctrl-C ends it and removes {}.",
                server.url(),
                folder.path().display()
            );
            server.until_signal().await?;
        }
        server.drain(Duration::from_millis(config.shutdown.drain_ms_max)).await
    });
    runtimes.end();
    ended
}
