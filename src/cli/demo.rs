//! The client's side of `tidegate demo`: tells a server the story over HTTP, shows alerts as they fire, asks three questions
//! in SQL, and leaves with what to try next.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use tidegate_pipeline::clock::now_us;
use tokio::time::{Instant, sleep, sleep_until};

use super::feed::Follower;
use super::http::Client;
use super::send::batches::Batch;
use super::send::deliver::{Route, deliver};
use super::style::Style;
use super::{sql, tail};
use crate::config::{ClientConfig, DemoConfig, RowFormat};
use crate::story::{Item, Kind, Story, StoryOptions};

/// What the demo asks: the question, and the statement.
pub const QUESTIONS: [(&str, &str); 3] = [
    (
        "What fired, the gravest first?",
        "SELECT level, title, count(*) AS alerts, max(last_time) AS last FROM alerts \
         GROUP BY level, severity, title ORDER BY severity DESC, alerts DESC, title LIMIT 25",
    ),
    (
        "What did the stranger at 198.51.100.23 do?",
        "SELECT activity, outcome, count(*) AS calls, min(time) AS first, max(time) AS last FROM security_events \
         WHERE src_ip = '198.51.100.23' GROUP BY activity, outcome ORDER BY first, activity LIMIT 40",
    ),
    (
        "Which spend runs away?",
        "SELECT charge_period_start AS hour, CAST(sum(effective_cost) AS DECIMAL(18, 2)) AS usd, \
         CAST(sum(CASE WHEN resource_type = 'p5.48xlarge' THEN effective_cost END) AS DECIMAL(18, 2)) AS of_it_gpus \
         FROM cost_events GROUP BY charge_period_start ORDER BY hour DESC LIMIT 12",
    ),
];

/// How the demo went.
#[derive(Debug, Clone, Default)]
pub struct DemoReport {
    /// Events that the server stored.
    pub events: u64,
    /// Alerts that came over the feed.
    pub alerts: u64,
    /// Rows of the answer to each of [`QUESTIONS`].
    pub answers: Vec<usize>,
}

/// The screen: alerts and answers come from different tasks.
type Screen = Arc<Mutex<Box<dyn Write + Send>>>;

/// Tells the story to the server at `url`, on standard output.
///
/// # Errors
/// When the server cannot be reached or refuses something.
pub async fn tell(url: &str, options: &DemoConfig) -> anyhow::Result<DemoReport> {
    tell_on(url, options, Style::of_stdout(), Box::new(std::io::stdout())).await
}

/// [`tell`] on any screen.
///
/// # Errors
/// When the server cannot be reached or refuses something.
pub async fn tell_on(
    url: &str,
    options: &DemoConfig,
    style: Style,
    out: Box<dyn Write + Send>,
) -> anyhow::Result<DemoReport> {
    let screen: Screen = Arc::new(Mutex::new(out));
    let config = ClientConfig { url: url.to_owned(), ..ClientConfig::default() };
    let after = Follower::newest(&config).await?;
    let mut follower = Follower::new(&config, None, after)?;
    follower.connect().await?;
    let alerts = Arc::new(AtomicU64::new(0));
    let watch = tokio::spawn(show_alerts(follower, screen.clone(), style, alerts.clone()));
    say(&screen, &format!("Telling a story of {} events to {url} …", options.events))?;
    let events = stream(&config, options).await?;
    settle(&alerts, options.fast).await;
    watch.abort();
    let fired = alerts.load(Ordering::Relaxed);
    say(&screen, &format!("\n{} {events} events stored, {fired} alerts.", style.bold("Told:")))?;
    let answers = ask(&config, &screen, style).await?;
    if !options.exit {
        say(&screen, &farewell(url, style))?;
    }
    Ok(DemoReport { events, alerts: fired, answers })
}

fn say(screen: &Screen, text: &str) -> std::io::Result<()> {
    let mut screen = screen.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(screen, "{text}")?;
    screen.flush()
}

/// Shows so many alerts of one rule one by one; the others are only counted, the first question tells how many.
const SHOWN_OF_A_RULE_MAX: u32 = 3;

async fn show_alerts(
    mut follower: Follower,
    screen: Screen,
    style: Style,
    alerts: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut shown: std::collections::HashMap<String, u32> = std::collections::HashMap::new();
    loop {
        let fired = follower.next(&mut |_, _| ()).await?;
        alerts.fetch_add(1, Ordering::Relaxed);
        let times = shown.entry(fired.text("rule_id").to_owned()).or_default();
        *times += 1;
        match (*times).cmp(&SHOWN_OF_A_RULE_MAX) {
            std::cmp::Ordering::Less => say(&screen, &tail::line(&fired, style))?,
            std::cmp::Ordering::Equal => {
                say(&screen, &format!("{} {}", tail::line(&fired, style), style.faint("(and more)")))?
            }
            std::cmp::Ordering::Greater => {}
        }
    }
}

/// The story takes about so long, unless it is told fast.
const TELLING: Duration = Duration::from_secs(10);
/// In so many pieces.
const PIECES: usize = 100;

async fn stream(config: &ClientConfig, options: &DemoConfig) -> anyhow::Result<u64> {
    let mut client = Client::new(config)?;
    let mut story = Story::new(StoryOptions { seed: options.seed, events: options.events, end_us: now_us() });
    let piece_events = options.events.div_ceil(PIECES).min(PIECE_EVENTS_MAX);
    let (begun, mut piece, mut events) = (Instant::now(), 0, 0);
    loop {
        let items: Vec<Item> = story.by_ref().take(piece_events).collect();
        if items.is_empty() {
            return Ok(events);
        }
        for kind in [Kind::Focus, Kind::CloudTrail, Kind::Windows] {
            events += post(&mut client, kind, &items, piece).await?;
        }
        piece += 1;
        if !options.fast {
            let pieces = options.events.div_ceil(piece_events) as u32;
            sleep_until(begun + TELLING * piece / pieces).await;
        }
    }
}

/// A request stays small whatever the size of the story.
const PIECE_EVENTS_MAX: usize = 5_000;

async fn post(client: &mut Client, kind: Kind, items: &[Item], piece: u32) -> anyhow::Result<u64> {
    let mut body = String::new();
    let lines = items.iter().filter(|item| item.kind == kind);
    let records = lines.map(|item| writeln!(body, "{}", item.line)).filter(Result::is_ok).count();
    if records == 0 {
        return Ok(0);
    }
    let first = items.first().map_or(0, |item| item.at);
    let batch = Batch {
        number: u64::from(piece),
        end: 0,
        first_record: 0,
        records: records as u64,
        body: Bytes::from(body),
        key: format!("demo-{}-{first}-{piece}", kind.source()),
        raw_read: 0,
    };
    let route = Route {
        path: kind.path().to_owned(),
        content_type: "application/x-ndjson",
        zstd: false,
        retry_max: Duration::from_secs(30),
    };
    let outcome = deliver(client, &route, &batch, &|_, _| ()).await?;
    if let Some(reason) = outcome.reasons.first() {
        anyhow::bail!("the server refused a part of the story: {reason}");
    }
    Ok(outcome.accepted + outcome.duplicates)
}

/// Waits until no alert has come for a while: rules run behind the acknowledgements.
async fn settle(alerts: &AtomicU64, fast: bool) {
    let quiet = if fast { Duration::from_millis(800) } else { Duration::from_millis(1_500) };
    let (mut seen, mut since) = (alerts.load(Ordering::Relaxed), Instant::now());
    let begun = Instant::now();
    while since.elapsed() < quiet && begun.elapsed() < SETTLE_MAX {
        sleep(Duration::from_millis(50)).await;
        let now = alerts.load(Ordering::Relaxed);
        // The first alert may take a while on a slow machine.
        if now != seen || (now == 0 && begun.elapsed() < SETTLE_MAX / 3) {
            (seen, since) = (now, Instant::now());
        }
    }
}

const SETTLE_MAX: Duration = Duration::from_secs(30);

async fn ask(config: &ClientConfig, screen: &Screen, style: Style) -> anyhow::Result<Vec<usize>> {
    let mut client = Client::new(config)?;
    let mut answers = Vec::new();
    for (question, statement) in QUESTIONS {
        say(screen, &format!("\n{}\n{}", style.bold(question), style.faint(&format!("SQL: {statement}"))))?;
        let mut answer = Vec::new();
        let rows = sql::ask(&mut client, statement, RowFormat::Table, &mut answer)
            .await
            .with_context(|| question.to_owned())?;
        say(screen, String::from_utf8_lossy(&answer).trim_end())?;
        answers.push(rows);
    }
    Ok(answers)
}

fn farewell(url: &str, style: Style) -> String {
    let mut text = format!("\n{}\n", style.bold("Try next, in another terminal:"));
    for (what, line) in [
        (
            "post an event",
            format!(
                "curl -s {url}/v2/events -d '{{\"eventVersion\":\"1.09\",\"eventSource\":\"cloudtrail.amazonaws.com\",\"eventName\":\"DeleteTrail\",\"awsRegion\":\"eu-central-1\",\"userIdentity\":{{\"type\":\"IAMUser\",\"userName\":\"you\"}}}}' -H 'content-type: application/json'"
            ),
        ),
        (
            "ask in SQL",
            format!("curl -s {url}/v2/sql -d 'SELECT source, count(*) AS n FROM security_events GROUP BY source'"),
        ),
        ("ask interactively", format!("tidegate sql --url {url}")),
        ("follow alerts", format!("tidegate tail --url {url} --level high")),
        ("the same with curl", format!("curl -sN {url}/v2/alerts/stream -H 'accept: text/event-stream'")),
        ("send a file", format!("tidegate send events.ndjson.gz --url {url}")),
        ("look at the API", format!("curl -s {url}/openapi.json")),
        ("and at the metrics", format!("curl -s {url}/metrics")),
    ] {
        let _ = writeln!(text, "  {} {line}", style.faint(&format!("{what:18}")));
    }
    text.trim_end().to_owned()
}
