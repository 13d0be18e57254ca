//! `tidegate log verify|ls|dump`: looks into the segments of a data folder. Nothing is written and no lock is taken, so a server
//! may be running on it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use arrow::json::LineDelimitedWriter;
use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};
use tidegate_pipeline::LogBatch;
use tidegate_pipeline::fs::RealFs;
use tidegate_pipeline::log::{SegmentReport, dump, verify};

use super::Ending;
use super::args::LogCommand;
use crate::config::{Config, WhichLog};

/// Runs the command.
///
/// # Errors
/// When there is no log, or it cannot be read.
pub fn run(config: &Config, command: &LogCommand, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let dir = folder(config)?;
    match command {
        LogCommand::Verify(_) => verify_all(&dir, out),
        LogCommand::Ls(_) => list(&dir, out),
        LogCommand::Dump(_) => dump_rows(config, &dir, out),
    }
}

fn folder(config: &Config) -> anyhow::Result<PathBuf> {
    let dir = config.data_dir.join(match config.log_files.which {
        WhichLog::Ingest => "log",
        WhichLog::Output => "output",
    });
    if !dir.is_dir() {
        bail!("there is no log in {}: choose the server's folder with --data-dir", dir.display());
    }
    Ok(dir)
}

fn verify_all(dir: &std::path::Path, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let reports = verify(&RealFs, dir).with_context(|| format!("verify {}", dir.display()))?;
    let (mut rows, mut lost, mut damaged) = (0, 0, 0);
    for report in &reports {
        rows += report.rows;
        for damage in &report.damage {
            damaged += 1;
            lost += damage.rows_lost();
            let gone = if damage.rows_lost() > 0 {
                format!("rows {}..{} are lost", damage.rows.start, damage.rows.end)
            } else {
                "no row is lost".to_owned()
            };
            writeln!(
                out,
                "{} at byte {}: {} ({} bytes, {gone})",
                report.path.display(),
                damage.at,
                damage.reason,
                damage.bytes
            )?;
        }
        if report.residue_bytes > 0 {
            writeln!(
                out,
                "{}: {} bytes after the last frame were never acknowledged",
                report.path.display(),
                report.residue_bytes
            )?;
        }
    }
    writeln!(out, "{} segments, {rows} rows are whole; {damaged} damaged places, {lost} rows lost", reports.len())?;
    Ok(if damaged == 0 { Ending::Good } else { Ending::Bad })
}

fn list(dir: &std::path::Path, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let reports = verify(&RealFs, dir).with_context(|| format!("read {}", dir.display()))?;
    writeln!(
        out,
        "{:24} {:>12} {:>20} {:>10} {:>8}  {:24} {:24} state",
        "segment", "bytes", "first offset", "rows", "frames", "earliest", "latest"
    )?;
    for report in &reports {
        let name = report.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let time = |time: Option<i64>| {
            time.and_then(DateTime::from_timestamp_micros)
                .map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true))
                .unwrap_or_default()
        };
        writeln!(
            out,
            "{name:24} {:>12} {:>20} {:>10} {:>8}  {:24} {:24} {}",
            report.bytes,
            report.first,
            report.rows,
            report.frames,
            time(report.time_min),
            time(report.time_max),
            state(report),
        )?;
    }
    Ok(Ending::Good)
}

fn state(report: &SegmentReport) -> String {
    match (report.damage.len(), report.summarised) {
        (0, true) => "closed".to_owned(),
        (0, false) => "open".to_owned(),
        (damaged, _) => format!("{damaged} damaged places"),
    }
}

/// The log is gone through in steps of so many rows, so that a reader that stops is not read for.
const STEP_ROWS: u64 = 10_000;

fn dump_rows(config: &Config, dir: &std::path::Path, out: &mut dyn Write) -> anyhow::Result<Ending> {
    let end = verify_end(dir)?;
    let from = config.log_files.from;
    let to = if config.log_files.rows_max == 0 { end } else { end.min(from.saturating_add(config.log_files.rows_max)) };
    let mut at = from;
    while at < to {
        let step = to.min(at + STEP_ROWS);
        let mut result = Ok(());
        dump(&RealFs, dir, at, step, &mut |batch| {
            if result.is_ok() {
                result = print_rows(batch, at, step, out);
            }
        })
        .with_context(|| format!("read {}", dir.display()))?;
        result?;
        at = step;
    }
    Ok(Ending::Good)
}

fn verify_end(dir: &std::path::Path) -> anyhow::Result<u64> {
    let reports = verify(&RealFs, dir).with_context(|| format!("read {}", dir.display()))?;
    Ok(reports.iter().map(|report| report.end).max().unwrap_or(0))
}

/// Prints those rows of a batch that lie in the range: `{"offset", "dataset", "row"}`, one a line.
fn print_rows(batch: &LogBatch, from: u64, to: u64, out: &mut dyn Write) -> anyhow::Result<()> {
    let first = from.max(batch.offset);
    let last = to.min(batch.next_offset());
    if first >= last {
        return Ok(());
    }
    let rows = batch.rows.slice((first - batch.offset) as usize, (last - first) as usize);
    let mut lines = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut lines);
    writer.write(&rows).and_then(|()| writer.finish()).context("rows that cannot be shown as JSON")?;
    for (line, offset) in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).zip(first..) {
        let row: Value = serde_json::from_slice(line).context("a row that cannot be shown as JSON")?;
        writeln!(out, "{}", json!({"offset": offset, "dataset": batch.dataset.table_name(), "row": row}))?;
    }
    Ok(())
}
