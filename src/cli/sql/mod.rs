//! `tidegate sql`: one statement, statements from standard input, or an interactive session.

mod interactive;
pub mod rows;
pub mod statements;

use std::io::{IsTerminal, Read, Write};
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use serde_json::json;

use super::http::Client;
use crate::config::{Config, RowFormat};

/// Runs the command.
///
/// # Errors
/// When the server cannot be asked, or refuses a statement.
pub async fn run(config: &Config, query: Option<&str>, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut client = Client::new(&config.client)?;
    if let Some(query) = query {
        return ask(&mut client, query, config.sql.format, out).await.map(drop);
    }
    if std::io::stdin().is_terminal() {
        return interactive::run(config, client, out).await;
    }
    let mut text = String::new();
    std::io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut text).context("read statements from standard input")?;
    if text.len() as u64 == STDIN_BYTES_MAX {
        bail!("more than {STDIN_BYTES_MAX} bytes of statements: send them in parts");
    }
    for statement in statements::split(&text) {
        ask(&mut client, statement, config.sql.format, out).await?;
    }
    Ok(())
}

/// The most bytes of statements that are read from standard input.
const STDIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Asks one statement and prints its rows. Says how many there were when it prints a table, 0 otherwise.
///
/// # Errors
/// When the server cannot be asked or refuses, or the rows cannot be written.
pub async fn ask(client: &mut Client, query: &str, format: RowFormat, out: &mut dyn Write) -> anyhow::Result<usize> {
    let begun = Instant::now();
    let accept = match format {
        RowFormat::Table => "application/vnd.apache.arrow.stream",
        RowFormat::Json => "application/json",
        RowFormat::Csv => "text/csv",
    };
    let body = Bytes::from(json!({"sql": query}).to_string());
    let headers = [(CONTENT_TYPE, "application/json"), (ACCEPT, accept)];
    let reply = client.fetch(Method::POST, "/v2/sql", &headers, body).await?.ok()?;
    match format {
        RowFormat::Table => {
            let rows = rows::print_table(&reply.body, out)?;
            let s = if rows == 1 { "" } else { "s" };
            writeln!(out, "{rows} row{s} in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3)?;
            out.flush()?;
            Ok(rows)
        }
        RowFormat::Json | RowFormat::Csv => {
            out.write_all(&reply.body)?;
            if !reply.body.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
            out.flush()?;
            Ok(0)
        }
    }
}
