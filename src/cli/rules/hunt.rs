//! `tidegate rules hunt`: runs a rule over the stored history of a server (`POST /v2/threat-detection/analyze`) and prints what
//! it would have raised, as it is found.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};
use hyper::Method;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Map, Value, json};
use tidegate_pipeline::clock::now_us;

use super::files;
use crate::cli::feed::Fired;
use crate::cli::http::Client;
use crate::cli::key::running_server;
use crate::cli::style::{Style, clean};
use crate::cli::{Ending, UsageError, tail};
use crate::config::{ClientConfig, Config};

/// How often progress is told where there is no terminal.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// When the rule cannot be read, the times are none, or the server refuses.
pub async fn run(config: &Config, rule: &str, style: Style, out: &mut (dyn Write + Send)) -> anyhow::Result<Ending> {
    let tools = &config.rule_tools;
    let from = tools.from.as_deref().ok_or_else(|| UsageError("--from is missing: a time or a date".into()))?;
    let from = time("--from", from)?;
    let to = match tools.to.as_deref() {
        Some(to) => time("--to", to)?,
        None => DateTime::from_timestamp_micros(now_us()).context("the clock is far off")?,
    };
    if from >= to {
        return Err(UsageError(format!("--from {from} is not before --to {to}")).into());
    }
    let shown = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::AutoSi, true);
    let mut body = asked(rule, config)?;
    body.insert("from".into(), json!(shown(from)));
    body.insert("to".into(), json!(shown(to)));
    if let Some(dataset) = &tools.dataset {
        body.insert("dataset".into(), json!(dataset));
    }
    if let Some(org) = &tools.org {
        body.insert("org".into(), json!(org));
    }
    let mut hunt = Hunt::new(config.rule_tools.json, style);
    let mut client = Client::new(&server(config)?)?;
    let headers = [(CONTENT_TYPE, "application/json"), (ACCEPT, "application/x-ndjson")];
    let body = Bytes::from(Value::Object(body).to_string());
    let path = "/v2/threat-detection/analyze";
    client.lines(Method::POST, path, &headers, body, &mut |line| hunt.line(line, out)).await?;
    hunt.end(out)
}

/// The server that is asked. Whoever may read its folder is its operator, and needs no key to look into another tenant.
fn server(config: &Config) -> anyhow::Result<ClientConfig> {
    let own = match (&config.rule_tools.org, &config.client.key) {
        (Some(_), None) => running_server(&config.data_dir)?,
        _ => None,
    };
    Ok(own.unwrap_or_else(|| config.client.clone()))
}

/// The rule: the text of a file or of a rule here; else the server is asked for one of this id.
fn asked(rule: &str, config: &Config) -> anyhow::Result<Map<String, Value>> {
    let asked = |name: &str, value: &str| Map::from_iter([(name.to_owned(), json!(value))]);
    let named = match files::find(rule, config) {
        Ok(named) => named,
        // What has the look of a path is no id: say what is wrong with it.
        Err(error) if rule.contains(['/', '.']) => return Err(error),
        Err(_) => return Ok(asked("rule_id", rule)),
    };
    let file = named.files.get(named.file).ok_or_else(|| anyhow!("{rule} is not there"))?;
    Ok(asked("rule", &file.text))
}

/// RFC 3339, or a date, which begins at midnight UTC.
fn time(flag: &str, text: &str) -> anyhow::Result<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.with_timezone(&Utc));
    }
    let midnight = text.parse::<NaiveDate>().ok().and_then(|date| date.and_hms_opt(0, 0, 0));
    midnight.map(|time| time.and_utc()).ok_or_else(|| {
        UsageError(format!("{flag} {text}: not a time such as 2026-11-01T06:00:00Z, nor a date such as 2026-11-01"))
            .into()
    })
}

/// What came so far.
struct Hunt {
    json: bool,
    style: Style,
    summary: Option<Value>,
    alerts: u64,
    told: Instant,
    terminal: bool,
}

impl Hunt {
    fn new(json: bool, style: Style) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { json, style, summary: None, alerts: 0, told: Instant::now(), terminal }
    }

    /// Takes one line of the answer.
    fn line(&mut self, line: &str, out: &mut (dyn Write + Send)) -> anyhow::Result<()> {
        let value: Value = serde_json::from_str(line).with_context(|| format!("the server sent {line:.100}"))?;
        if let Some(error) = value.get("error") {
            let text = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            bail!("the server stopped: {}", clean(&text));
        }
        if let Some(summary) = value.get("summary") {
            self.summary = Some(summary.clone());
        }
        if self.json {
            writeln!(out, "{line}")?;
            return Ok(());
        }
        if let Some(alert) = value.get("alert") {
            self.alerts += 1;
            self.wipe();
            let fired = Fired { seq: self.alerts, alert: alert.clone() };
            writeln!(out, "{}", tail::line(&fired, self.style))?;
            out.flush()?;
        }
        if let Some(progress) = value.get("progress") {
            self.progress(progress);
        }
        Ok(())
    }

    fn progress(&mut self, progress: &Value) {
        let rows = progress["rows"].as_u64().unwrap_or(0);
        let through = clean(progress["through"].as_str().unwrap_or_default());
        let of = progress["rows_all"].as_u64().map(|all| format!(" of {all}")).unwrap_or_default();
        let line = format!("{rows}{of} events looked at, through {through}; {} alerts", self.alerts);
        // Standard error may be closed; the hunt goes on all the same.
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\u{1b}[2K{line}");
        } else if self.told.elapsed() >= PROGRESS_PERIOD {
            self.told = Instant::now();
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// Takes the line of progress away.
    fn wipe(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\u{1b}[2K");
        }
    }

    fn end(self, out: &mut (dyn Write + Send)) -> anyhow::Result<Ending> {
        self.wipe();
        let Some(summary) = &self.summary else { bail!("the answer broke off: not all of the time was looked at") };
        let complete = summary["complete"].as_bool().unwrap_or(true);
        if !self.json {
            let number = |name: &str| summary[name].as_u64().unwrap_or(0);
            writeln!(
                out,
                "{} events looked at, {} matches, {} alerts; {:.1} s",
                number("rows"),
                number("matches"),
                number("alerts"),
                summary["seconds"].as_f64().unwrap_or(0.0),
            )?;
            for rule in summary["parked"].as_array().into_iter().flatten() {
                let reason = clean(rule["reason"].as_str().unwrap_or_default());
                writeln!(out, "{} the rule stopped in the middle: it {reason}", self.style.warning("not all:"))?;
            }
            if !complete {
                let reason = clean(summary["reason"].as_str().unwrap_or("the server stopped before the end"));
                let through = clean(summary["through"].as_str().unwrap_or_default());
                writeln!(out, "{} looked at up to {through}: {reason}", self.style.warning("not all:"))?;
            }
        }
        Ok(if complete { Ending::Good } else { Ending::Bad })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_or_dates() {
        let shown = |text: &str| time("--from", text).map(|time| time.to_rfc3339()).map_err(|error| error.to_string());
        assert_eq!(shown("2026-11-01").as_deref(), Ok("2026-11-01T00:00:00+00:00"));
        assert_eq!(shown("2026-11-01T06:00:00+02:00").as_deref(), Ok("2026-11-01T04:00:00+00:00"));
        for bad in ["yesterday", "2026-13-01", "2026-11-01 06:00", ""] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }
}
