//! `tidegate send`: a file of events to a server, in batches over several connections, resumable.
//!
//! A reader cuts batches ([`batches`]), connections deliver them in any order ([`deliver`]), and the journal notes the position
//! up to which every batch is acknowledged ([`journal`]). At most [`WINDOW_PER_CONNECTION`] batches a connection exist at any
//! time, so that a file of any size takes the same memory.

pub mod batches;
pub mod deliver;
pub mod input;
pub mod journal;
pub mod progress;
pub mod records;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use batches::{Batch, BatchBounds, Batches};
use deliver::{Outcome, REASONS_MAX, Route};
use input::Input;
use journal::{Journal, Noted};
use progress::Progress;
use records::{Format, Records};

use super::http::{Client, ServerUrl, query_escape};
use crate::config::{Config, env};

/// What became of a file.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// All that is acknowledged of the file, by this run and those before it.
    pub outcome: Outcome,
    /// The position this run started at; 0 for the start.
    pub resumed_at: u64,
    /// Events that this run sent.
    pub events: u64,
    /// Bytes of the bodies that this run sent, before compression.
    pub bytes: u64,
    /// How long this run took.
    pub elapsed: Duration,
}

/// Sends a file, or standard input for `-`, and says what became of it. Ok also when events were refused: look at the outcome.
///
/// # Errors
/// When the input cannot be read or the server cannot be given all of it. What was acknowledged is noted.
pub async fn send(config: &Config, file: &Path, show: impl FnOnce(Option<u64>) -> Progress) -> anyhow::Result<Summary> {
    send_input(config, input::open(file)?, show).await
}

/// [`send`] for an input that is open.
///
/// # Errors
/// As [`send`].
pub async fn send_input(
    config: &Config,
    input: Input,
    show: impl FnOnce(Option<u64>) -> Progress,
) -> anyhow::Result<Summary> {
    let url: ServerUrl = config.client.url.parse()?;
    let progress = Arc::new(show(input.identity.as_ref().map(|identity| identity.bytes)));
    let plan = Plan::new(config, &url, &input)?;
    let (batches, route) = plan.open(config, input)?;
    let result = run(config, batches, route, &plan, &progress).await;
    progress.finish();
    result
}

/// Batches of any input.
type InputBatches = Batches<Box<dyn Read + Send>>;

/// What is known before the first batch.
struct Plan {
    journal: Journal,
    noted: Noted,
    identity: String,
}

impl Plan {
    fn new(config: &Config, url: &ServerUrl, input: &Input) -> anyhow::Result<Self> {
        let send = &config.send;
        let state_dir = send.state_dir.clone().unwrap_or_else(env::state_dir);
        let target = format!("{}{}\0{:?}\0{:?}", url.authority(), url.prefix, send.dataset, send.source);
        let journal = Journal::new(&state_dir, input.identity.as_ref(), &target);
        if send.restart {
            journal.forget();
        }
        let bounds = BatchBounds { events_max: send.batch_events_max, bytes_max: send.batch_bytes_max };
        let (path, identity) = match &input.identity {
            // The same path may be another file on another machine.
            Some(file) => (file.path.clone(), format!("{}\0{}", host_name(), file.path)),
            None => ("-".to_owned(), random_identity()?),
        };
        let noted = journal.read().unwrap_or_else(|| Noted::start(&path, bounds));
        Ok(Self { journal, noted, identity })
    }

    fn open(&self, config: &Config, input: Input) -> anyhow::Result<(InputBatches, Route)> {
        let records = Records::new(input.reader, config.send.event_bytes_max)?;
        let route = route(config, records.format());
        let mut batches = Batches::new(records, self.noted.bounds(), self.identity.clone(), input.raw_read);
        if self.noted.position > 0 {
            batches.resume(self.noted.position, self.noted.records)?;
        }
        Ok((batches, route))
    }
}

fn route(config: &Config, format: Format) -> Route {
    let dataset =
        config.send.dataset.as_deref().unwrap_or(if format == Format::Csv { "cost_events" } else { "security_events" });
    let path = if dataset == "cost_events" { "/v2/costs/bulk" } else { "/v2/events/bulk" };
    let query =
        config.send.source.as_ref().map(|source| format!("?source={}", query_escape(source))).unwrap_or_default();
    Route {
        path: format!("{path}{query}"),
        content_type: format.content_type(),
        zstd: config.send.zstd,
        retry_max: Duration::from_secs(config.send.retry_s_max),
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn random_identity() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("the operating system gives no random bytes")?;
    Ok(format!("stdin {:032x}", u128::from_le_bytes(bytes)))
}

/// Batches that may exist for each connection: one under way, one ready, and some acknowledged before an older one.
pub const WINDOW_PER_CONNECTION: usize = 4;

struct Delivered {
    batch: Batch,
    outcome: Outcome,
    _permit: OwnedSemaphorePermit,
}

type Cut = anyhow::Result<(Batch, OwnedSemaphorePermit)>;

async fn run(
    config: &Config,
    batches: InputBatches,
    route: Route,
    plan: &Plan,
    progress: &Arc<Progress>,
) -> anyhow::Result<Summary> {
    let connections = config.send.connections;
    let mut tasks = JoinSet::new();
    let (cut_in, cut_out) = mpsc::channel(connections);
    let (done_in, done_out) = mpsc::channel(connections);
    let window = Arc::new(Semaphore::new(connections * WINDOW_PER_CONNECTION));
    tasks.spawn_blocking(move || cut(batches, &window, &cut_in));
    let cut_out = Arc::new(Mutex::new(cut_out));
    for _ in 0..connections {
        let client = Client::new(&config.client)?;
        tasks.spawn(connection(client, route.clone(), cut_out.clone(), done_in.clone(), progress.clone()));
    }
    drop((done_in, cut_out));
    let mut books = Books::new(plan);
    let result = tokio::select! {
        result = books.keep(done_out, progress) => result,
        signal = tokio::signal::ctrl_c() => signal.context("wait for Ctrl-C").and_then(|()| Err(anyhow::anyhow!("interrupted"))),
    };
    match result {
        Ok(()) => {
            plan.journal.forget();
            Ok(books.summary)
        }
        Err(error) => {
            if let Err(unnoted) = books.note() {
                return Err(error.context(unnoted));
            }
            let left = format!(
                "{} events are acknowledged; run the same command again to go on from there",
                books.noted.records
            );
            Err(if plan.journal_is_kept() { error.context(left) } else { error })
        }
    }
}

impl Plan {
    fn journal_is_kept(&self) -> bool {
        self.noted.path != "-"
    }
}

/// Cuts batches on a thread of its own: reading and decompressing block.
fn cut(mut batches: InputBatches, window: &Arc<Semaphore>, out: &mpsc::Sender<Cut>) {
    let runtime = tokio::runtime::Handle::current();
    loop {
        // An error here means that nobody is left to take a batch.
        let Ok(permit) = runtime.block_on(window.clone().acquire_owned()) else { return };
        let batch = match batches.next_batch() {
            Ok(Some(batch)) => Ok((batch, permit)),
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let failed = batch.is_err();
        if out.blocking_send(batch).is_err() || failed {
            return;
        }
    }
}

/// Delivers batch after batch over one connection.
async fn connection(
    mut client: Client,
    route: Route,
    cut: Arc<Mutex<mpsc::Receiver<Cut>>>,
    done: mpsc::Sender<anyhow::Result<Delivered>>,
    progress: Arc<Progress>,
) {
    loop {
        let next = cut.lock().await.recv().await;
        let delivered = match next {
            None => return,
            Some(Err(error)) => Err(error),
            Some(Ok((batch, permit))) => {
                let waiting = |why: &str, wait: Duration| progress.waiting(why, wait);
                let outcome = deliver::deliver(&mut client, &route, &batch, &waiting).await;
                outcome.map(|outcome| Delivered { batch, outcome, _permit: permit })
            }
        };
        let failed = delivered.is_err();
        if done.send(delivered).await.is_err() || failed {
            return;
        }
    }
}

/// Adds up what is acknowledged, in the order of the file.
struct Books<'a> {
    journal: &'a Journal,
    noted: Noted,
    next: u64,
    ahead: BTreeMap<u64, Delivered>,
    summary: Summary,
    begun: Instant,
    written: Instant,
}

/// How often the journal is written at most.
const NOTE_PERIOD: Duration = Duration::from_millis(200);

impl<'a> Books<'a> {
    fn new(plan: &'a Plan) -> Self {
        let noted = plan.noted.clone();
        let outcome = Outcome {
            accepted: noted.accepted,
            duplicates: noted.duplicates,
            rejected: noted.rejected,
            reasons: Vec::new(),
        };
        let summary = Summary { outcome, resumed_at: plan.noted.position, ..Summary::default() };
        let now = Instant::now();
        Self { journal: &plan.journal, noted, next: 0, ahead: BTreeMap::new(), summary, begun: now, written: now }
    }

    async fn keep(
        &mut self,
        mut done: mpsc::Receiver<anyhow::Result<Delivered>>,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        while let Some(delivered) = done.recv().await {
            let delivered = delivered?;
            self.ahead.insert(delivered.batch.number, delivered);
            while let Some(delivered) = self.ahead.remove(&self.next) {
                self.next += 1;
                self.add(&delivered);
                progress.update(delivered.batch.raw_read, self.summary.events, self.begun.elapsed());
            }
            if self.written.elapsed() >= NOTE_PERIOD {
                self.note()?;
            }
        }
        self.summary.elapsed = self.begun.elapsed();
        Ok(())
    }

    fn add(&mut self, delivered: &Delivered) {
        let (batch, outcome) = (&delivered.batch, &delivered.outcome);
        self.noted.position = batch.end;
        self.noted.records = batch.first_record + batch.records;
        self.noted.accepted += outcome.accepted;
        self.noted.duplicates += outcome.duplicates;
        self.noted.rejected += outcome.rejected;
        let total = &mut self.summary.outcome;
        (total.accepted, total.duplicates, total.rejected) =
            (self.noted.accepted, self.noted.duplicates, self.noted.rejected);
        let room = REASONS_MAX.saturating_sub(total.reasons.len());
        total.reasons.extend(outcome.reasons.iter().take(room).cloned());
        self.summary.events += batch.records;
        self.summary.bytes += batch.body.len() as u64;
    }

    fn note(&mut self) -> anyhow::Result<()> {
        self.written = Instant::now();
        self.journal.write(&self.noted)
    }
}

/// Prints a summary for people.
///
/// # Errors
/// When it cannot be written.
pub fn print(summary: &Summary, out: &mut dyn Write) -> std::io::Result<()> {
    let outcome = &summary.outcome;
    if summary.resumed_at > 0 {
        writeln!(out, "resumed at byte {}", summary.resumed_at)?;
    }
    let seconds = summary.elapsed.as_secs_f64().max(1e-3);
    writeln!(
        out,
        "{} events stored, {} duplicates, {} rejected; this run: {} events, {:.1} MB in {seconds:.1} s ({:.0} events/s, {:.1} MB/s)",
        outcome.accepted,
        outcome.duplicates,
        outcome.rejected,
        summary.events,
        summary.bytes as f64 / 1e6,
        summary.events as f64 / seconds,
        summary.bytes as f64 / 1e6 / seconds,
    )?;
    outcome.reasons.iter().try_for_each(|reason| writeln!(out, "  rejected {reason}"))?;
    let untold = outcome.rejected.saturating_sub(outcome.reasons.len() as u64);
    if untold > 0 && outcome.rejected > 0 {
        writeln!(out, "  and {untold} more; all of them are in the table dead_letters")?;
    }
    Ok(())
}
