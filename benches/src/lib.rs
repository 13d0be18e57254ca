//! What the benches feed to the stages: bodies with a fixed seed, and the columns that they become.
//!
//! Events are those of the demo's story and of the load tests, so that a figure here can be set beside one from there. Sizes are
//! in the names of the benches (`reference-516B`): events a second times that is bytes a second.

mod cpu_time;
pub mod samples;

pub use cpu_time::CpuTime;

use std::sync::Arc;

use anyhow::Context;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::StreamWriter;
use tidegate::story::{Kind, Random, Story, StoryOptions, reference_event};
use tidegate_events::Dataset;
use tidegate_ingest::decode::{Body, BodyFormat, DecodeConfig, Decoder};
use tidegate_ingest::mapping::Mappings;
use tidegate_pipeline::EventBatch;

/// 2026-11-20T00:00:00Z, the time of event 0, µs since the epoch.
pub const BASE_US: i64 = 1_795_132_800_000_000;

/// The seed of the story.
const SEED: u64 = 7;

/// What kind of event a bench feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feed {
    /// The reference event: a cloud-audit record of 516 bytes, 19 fields and a nested object.
    Reference,
    /// CloudTrail records of the story.
    CloudTrail,
    /// Windows events of the story.
    Windows,
    /// FOCUS 1.2 rows of the story: cost.
    Focus,
}

impl Feed {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reference, Self::CloudTrail, Self::Windows, Self::Focus];

    /// Where its events belong.
    pub fn dataset(self) -> Dataset {
        if self == Self::Focus { Dataset::CostEvents } else { Dataset::SecurityEvents }
    }

    /// The mapping that is named in the request, as an agent would.
    pub fn source(self) -> Option<&'static str> {
        match self {
            Self::Reference => None,
            Self::CloudTrail => Some("cloudtrail"),
            Self::Windows => Some("windows"),
            Self::Focus => Some("focus"),
        }
    }

    /// A body of one tenant with such events.
    pub fn body(self, bytes: Vec<u8>, format: BodyFormat) -> Body {
        Body { dataset: self.dataset(), ..body(bytes, format, self.source()) }
    }

    /// So many events, one JSON object each, always the same.
    pub fn lines(self, events: usize) -> Vec<Vec<u8>> {
        match self {
            Self::Reference => (0..events as u64).map(reference).collect(),
            Self::CloudTrail => story(Kind::CloudTrail, events),
            Self::Windows => story(Kind::Windows, events),
            Self::Focus => story(Kind::Focus, events),
        }
    }

    /// `reference-516B`: the name and the mean bytes of an event, for the names of benches.
    pub fn label(self, lines: &[Vec<u8>]) -> String {
        let name = match self {
            Self::Reference => "reference",
            Self::CloudTrail => "cloudtrail",
            Self::Windows => "windows",
            Self::Focus => "focus",
        };
        let bytes: usize = lines.iter().map(Vec::len).sum();
        format!("{name}-{}B", bytes / lines.len().max(1))
    }
}

fn reference(i: u64) -> Vec<u8> {
    let mut line = Vec::with_capacity(640);
    reference_event(i, BASE_US, &mut line);
    line
}

fn story(kind: Kind, events: usize) -> Vec<Vec<u8>> {
    // A little more than a third of the story is of each kind but cost, which is one in nine; twice as many as are asked for.
    let told = if kind == Kind::Focus { events * 20 } else { events * 4 };
    let options = StoryOptions { seed: SEED, events: told + 4_000, end_us: BASE_US };
    let mut lines: Vec<_> = Story::new(options)
        .filter(|item| item.kind == kind)
        .map(|item| item.line.into_bytes())
        .take(events * 2)
        .collect();
    // Not only the quiet hours before an attack: a fixed choice from all that was told.
    let mut random = Random::new(SEED);
    for at in (1..lines.len()).rev() {
        lines.swap(at, random.below(at as u64 + 1) as usize);
    }
    lines.truncate(events);
    lines
}

/// The events as lines.
pub fn ndjson(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut body = lines.join(&b'\n');
    body.push(b'\n');
    body
}

/// The events as a JSON array.
pub fn array(lines: &[Vec<u8>]) -> Vec<u8> {
    [b"[".as_slice(), &lines.join(&b','), b"]"].concat()
}

/// The events as CSV (RFC 4180): a column for each member of the first, in its order; what is no text as JSON.
///
/// # Errors
/// When an event is no JSON object.
pub fn csv(lines: &[Vec<u8>]) -> anyhow::Result<Vec<u8>> {
    type Row = serde_json::Map<String, serde_json::Value>;
    let rows = lines.iter().map(|line| serde_json::from_slice::<Row>(line));
    let rows = rows.collect::<Result<Vec<_>, _>>().context("a row")?;
    let header: Vec<&String> = rows.first().context("no row")?.keys().collect();
    let mut body = Vec::new();
    let mut record = |fields: &mut dyn Iterator<Item = String>| {
        let quoted = fields.map(|field| {
            let plain = !field.contains([',', '"', '\r', '\n']);
            if plain { field } else { format!("\"{}\"", field.replace('"', "\"\"")) }
        });
        body.extend_from_slice(quoted.collect::<Vec<_>>().join(",").as_bytes());
        body.extend_from_slice(b"\r\n");
    };
    record(&mut header.iter().map(|name| (*name).clone()));
    for row in &rows {
        record(&mut header.iter().map(|name| match row.get(*name) {
            None | Some(serde_json::Value::Null) => String::new(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }));
    }
    Ok(body)
}

/// The schema that `arrow-json` finds in all of the events.
///
/// # Errors
/// When a field changes its type in a way that `arrow-json` cannot join.
pub fn inferred_schema(ndjson: &[u8]) -> anyhow::Result<SchemaRef> {
    let (schema, _) = arrow::json::reader::infer_json_schema(ndjson, None).context("infer a schema")?;
    Ok(Arc::new(schema))
}

/// What `arrow-json` makes of the events with the schema given, as one batch.
///
/// # Errors
/// When an event does not fit the schema.
pub fn arrow_json(ndjson: &[u8], schema: SchemaRef, rows_max: usize) -> anyhow::Result<RecordBatch> {
    let mut decoder = arrow::json::ReaderBuilder::new(schema).with_batch_size(rows_max).build_decoder()?;
    let mut rest = ndjson;
    while !rest.is_empty() {
        let taken = decoder.decode(rest)?;
        anyhow::ensure!(taken > 0, "more than {rows_max} events in the body");
        rest = rest.get(taken..).unwrap_or_default();
    }
    decoder.flush()?.context("no event in the body")
}

/// The events as an Arrow IPC stream, with the columns that `arrow-json` makes of them.
///
/// # Errors
/// When `arrow-json` cannot read them.
pub fn arrow_stream(ndjson: &[u8], rows_max: usize) -> anyhow::Result<Vec<u8>> {
    let batch = arrow_json(ndjson, inferred_schema(ndjson)?, rows_max)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
    writer.write(&batch)?;
    Ok(writer.into_inner()?)
}

/// A decoder as the server's decode threads have them.
///
/// # Errors
/// When a shipped mapping is broken.
pub fn decoder() -> anyhow::Result<Decoder> {
    decoder_with(DecodeConfig::default())
}

/// A decoder with other bounds.
///
/// # Errors
/// When a shipped mapping is broken.
pub fn decoder_with(config: DecodeConfig) -> anyhow::Result<Decoder> {
    Ok(Decoder::new(Arc::new(Mappings::builtin()?), config, SEED))
}

/// A body of one tenant.
pub fn body(bytes: Vec<u8>, format: BodyFormat, source: Option<&str>) -> Body {
    Body {
        org_id: "default".into(),
        dataset: Dataset::SecurityEvents,
        source: source.map(Into::into),
        format,
        bytes,
        received_us: BASE_US,
        idempotency_key: None,
        request_id: "bench".into(),
    }
}

/// The columns of the events, decoded by our decoder in one go.
///
/// # Errors
/// When an event was rejected: a bench must not measure rejections.
pub fn batches(feed: Feed, lines: &[Vec<u8>]) -> anyhow::Result<Vec<EventBatch>> {
    let mut decoder = decoder()?;
    let result = decoder.push(feed.body(ndjson(lines), BodyFormat::Json));
    anyhow::ensure!(result.error.is_none() && result.rejected.is_empty(), "rejected: {:?}", result.rejected.first());
    Ok(decoder.flush()?.batches)
}
