//! Events of files, decoded as `POST /v2/events/bulk` decodes them: the same splitting as `tidegate send`, the same mappings
//! and columns as the server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use arrow::array::{AsArray, RecordBatch};
use tidegate_events::Dataset;
use tidegate_ingest::decode::{Body, BodyFormat, Decoder};
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::keys::DEFAULT_ORG;
use tidegate_pipeline::{EventBatch, LogBatch};

use crate::cli::send::input;
use crate::cli::send::records::{Format, Records};
use crate::config::Config;
use crate::story::{Kind, Story, StoryOptions};

/// When an event without a time of its own happened, µs: 2026-01-01T00:00:00Z, so that the same files give the same alerts on
/// every day. Every other event is taken to be received when it happened.
const RECEIVED_US: i64 = 1_767_225_600_000_000;

/// The most events that are decoded into one batch, and the most bytes.
const BATCH_EVENTS_MAX: usize = 5_000;
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Ids that are made here are the same in every run.
const ID_SEED: u64 = 7;

/// How many letters of an event are kept to be shown.
const EXCERPT_CHARS: usize = 300;

/// What is to be read, and how.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The files, in order.
    pub files: Vec<PathBuf>,
    /// The `source` of all of them; found out by the shape of each event without it.
    pub source: Option<String>,
    /// The table of all of them; cost for CSV and security for JSON without it.
    pub dataset: Option<Dataset>,
    /// The most events.
    pub events_max: usize,
    /// Whether the text of events is kept.
    pub excerpts: bool,
}

/// Decoded events. They are counted from 0 over all files.
#[derive(Debug, Clone, Default)]
pub struct Events {
    /// How many there are, the refused ones included.
    pub count: usize,
    /// Their rows.
    pub batches: Vec<LogBatch>,
    /// For each batch and row, which event it is.
    pub rows: Vec<Vec<usize>>,
    /// Which event an event id is.
    pub of_id: BTreeMap<String, usize>,
    /// The start of the text of each, when that was wanted.
    pub excerpts: Vec<String>,
    /// Events that the server would refuse, and why.
    pub refused: Vec<(usize, String)>,
    /// Events that have the id of an earlier one: the server would store them once.
    pub duplicates: Vec<usize>,
    /// Bytes of their text.
    pub bytes: u64,
    /// Whether there are more events than were read.
    pub cut: bool,
}

/// Reads and decodes files of events.
///
/// # Errors
/// When a file cannot be read, or is none of events.
pub fn read(wanted: &Wanted, config: &Config) -> anyhow::Result<Events> {
    let mut reader = Reader::new(config)?;
    for file in &wanted.files {
        reader.file(file, wanted, config).with_context(|| format!("read the events in {}", file.display()))?;
    }
    Ok(reader.events)
}

/// The events of the demo's story, decoded: always the same.
///
/// # Errors
/// When a shipped mapping is broken.
pub fn of_story(events: usize, config: &Config) -> anyhow::Result<Events> {
    let mut reader = Reader::new(config)?;
    let mut lines: BTreeMap<&'static str, (Kind, Vec<u8>)> = BTreeMap::new();
    for item in Story::new(StoryOptions { seed: config.demo.seed, events, end_us: RECEIVED_US }) {
        let (_, text) = lines.entry(item.kind.source()).or_insert_with(|| (item.kind, Vec::new()));
        text.extend_from_slice(item.line.as_bytes());
        text.push(b'\n');
    }
    for (source, (kind, text)) in lines {
        let dataset = if kind == Kind::Focus { Dataset::CostEvents } else { Dataset::SecurityEvents };
        let wanted = Wanted {
            source: Some(source.to_owned()),
            dataset: Some(dataset),
            events_max: usize::MAX,
            ..Wanted::default()
        };
        reader.records(text.as_slice(), &wanted, config)?;
    }
    Ok(reader.events)
}

/// The table of events with this name.
///
/// # Errors
/// When no events can be sent there.
pub fn dataset(name: &str) -> anyhow::Result<Dataset> {
    Dataset::from_table_name(name)
        .filter(|dataset| matches!(dataset, Dataset::SecurityEvents | Dataset::CostEvents))
        .ok_or_else(|| anyhow!("events are in security_events or cost_events, not in {name}"))
}

struct Reader {
    decoder: Decoder,
    events: Events,
    /// The keys that the log would know.
    keys: BTreeSet<u128>,
}

impl Reader {
    fn new(config: &Config) -> anyhow::Result<Self> {
        let mappings = Arc::new(Mappings::builtin().context("the shipped mappings")?);
        let decoder = Decoder::new(mappings, config.decode.clone(), ID_SEED);
        Ok(Self { decoder, events: Events::default(), keys: BTreeSet::new() })
    }

    fn file(&mut self, path: &Path, wanted: &Wanted, config: &Config) -> anyhow::Result<()> {
        let input = input::open(path)?;
        self.records(input.reader, wanted, config)
    }

    fn records(&mut self, reader: impl Read, wanted: &Wanted, config: &Config) -> anyhow::Result<()> {
        let mut records = Records::new(reader, config.send.event_bytes_max)?;
        let csv = records.format() == Format::Csv;
        let dataset = wanted.dataset.unwrap_or(if csv { Dataset::CostEvents } else { Dataset::SecurityEvents });
        let header = records.header().to_vec();
        loop {
            let first = self.events.count;
            let mut body = header.clone();
            let mut more = true;
            while self.events.count - first < BATCH_EVENTS_MAX && body.len() < BATCH_BYTES_MAX {
                let start = body.len();
                more = records.next_into(&mut body)?;
                if !more {
                    break;
                }
                if self.events.count >= wanted.events_max {
                    self.events.cut = true;
                    more = false;
                    body.truncate(start);
                    break;
                }
                self.events.count += 1;
                if wanted.excerpts {
                    let text = String::from_utf8_lossy(body.get(start..).unwrap_or_default());
                    self.events.excerpts.push(text.trim().chars().take(EXCERPT_CHARS).collect());
                }
                body.push(b'\n');
            }
            if self.events.count > first {
                self.body(body, first, dataset, csv, wanted)?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    /// Decodes events that are one a line; the first of them is event `first`.
    fn body(
        &mut self,
        bytes: Vec<u8>,
        first: usize,
        dataset: Dataset,
        csv: bool,
        wanted: &Wanted,
    ) -> anyhow::Result<()> {
        self.events.bytes += bytes.len() as u64;
        let result = self.decoder.push(Body {
            org_id: DEFAULT_ORG.into(),
            dataset,
            source: wanted.source.as_deref().map(Into::into),
            format: if csv { BodyFormat::Csv } else { BodyFormat::Json },
            bytes,
            received_us: RECEIVED_US,
            idempotency_key: None,
            request_id: "rules".into(),
        });
        if let Some(error) = result.error {
            bail!("the server would refuse them: {} ({})", error.reason, error.code);
        }
        let refused = result.rejected.into_iter().map(|event| (first + event.index as usize, event.reason));
        self.events.refused.extend(refused);
        let decoded = self.decoder.flush()?;
        for (batch, rows) in decoded.batches.into_iter().zip(decoded.rows) {
            if batch.dataset == dataset {
                self.batch(batch, rows.into_iter().map(|row| first + row.item as usize).collect())?;
            }
        }
        Ok(())
    }

    /// Keeps the rows that the log would keep.
    fn batch(&mut self, batch: EventBatch, mut events: Vec<usize>) -> anyhow::Result<()> {
        let fresh: Vec<bool> = batch.keys.iter().map(|key| *key == 0 || self.keys.insert(*key)).collect();
        let mut batch = batch;
        if fresh.contains(&false) {
            let repeated = events.iter().zip(&fresh).filter(|(_, fresh)| !**fresh).map(|(event, _)| *event);
            self.events.duplicates.extend(repeated);
            batch = batch.without((0..fresh.len()).filter(|row| fresh.get(*row) == Some(&false)))?;
            let mut fresh = fresh.into_iter();
            events.retain(|_| fresh.next().unwrap_or(true));
        }
        let rows = received_in_time(&batch.rows)?;
        if let Some(ids) = rows.column_by_name(Dataset::EVENT_ID).and_then(|ids| ids.as_string_opt::<i32>()) {
            let ids = ids.iter().zip(&events).filter_map(|(id, event)| Some((id?.to_owned(), *event)));
            self.events.of_id.extend(ids);
        }
        let offset = self.events.batches.last().map_or(0, LogBatch::next_offset);
        if rows.num_rows() > 0 {
            self.events.batches.push(LogBatch { offset, dataset: batch.dataset, rows });
            self.events.rows.push(events);
        }
        Ok(())
    }
}

/// The rows, each received when it happened: what an agent sends at once. Files are read long after.
fn received_in_time(rows: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let schema = rows.schema();
    let (Ok(time), Ok(received)) = (schema.index_of(Dataset::TIME), schema.index_of("received_time")) else {
        return Ok(rows.clone());
    };
    let mut columns = rows.columns().to_vec();
    columns[received] = columns[time].clone();
    Ok(RecordBatch::try_new(schema, columns)?)
}
