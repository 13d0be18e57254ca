//! What the tests of decoding share: bodies in, cells out as text.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tidegate_events::Dataset;
use tidegate_ingest::decode::{Body, BodyFormat, BodyResult, DecodeConfig, Decoded, Decoder};
use tidegate_ingest::mapping::Mappings;

/// A body to decode, for the tenant `acme` unless said otherwise.
pub struct Case {
    pub body: Body,
}

impl Case {
    pub fn new(format: BodyFormat, bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            body: Body {
                org_id: "acme".into(),
                dataset: Dataset::SecurityEvents,
                source: None,
                format,
                bytes: bytes.into(),
                received_us: 1_700_000_000_000_000,
                idempotency_key: None,
                request_id: "req".into(),
            },
        }
    }

    pub fn json(bytes: impl Into<Vec<u8>>) -> Self {
        Self::new(BodyFormat::Json, bytes)
    }

    pub fn cost(mut self) -> Self {
        self.body.dataset = Dataset::CostEvents;
        self
    }

    pub fn org(mut self, org_id: &str) -> Self {
        self.body.org_id = org_id.into();
        self
    }

    pub fn source(mut self, source: &str) -> Self {
        self.body.source = Some(source.into());
        self
    }

    pub fn key(mut self, key: &str) -> Self {
        self.body.idempotency_key = Some(key.into());
        self
    }
}

/// What came of some bodies that were flushed together.
pub struct Outcome {
    pub results: Vec<BodyResult>,
    pub decoded: Decoded,
}

pub fn decoder(config: DecodeConfig) -> Decoder {
    static MAPPINGS: LazyLock<Arc<Mappings>> =
        LazyLock::new(|| Arc::new(Mappings::builtin().expect("the shipped mappings")));
    Decoder::new(MAPPINGS.clone(), config, 42)
}

pub fn decode(cases: &[Case]) -> Outcome {
    decode_with(&mut decoder(DecodeConfig::default()), cases)
}

pub fn decode_with(decoder: &mut Decoder, cases: &[Case]) -> Outcome {
    let copy = |body: &Body| Body {
        org_id: body.org_id.clone(),
        dataset: body.dataset,
        source: body.source.clone(),
        format: body.format,
        bytes: body.bytes.clone(),
        received_us: body.received_us,
        idempotency_key: body.idempotency_key.clone(),
        request_id: body.request_id.clone(),
    };
    let results: Vec<BodyResult> = cases.iter().map(|case| decoder.push(copy(&case.body))).collect();
    let decoded = decoder.flush().expect("batches");
    assert_eq!(decoder.buffered_rows(), 0);
    let outcome = Outcome { results, decoded };
    outcome.check_shape();
    outcome
}

/// What this thread has computed so far: what a test took on a busy machine is no measure. Without `/proc` always zero.
pub fn computed() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(stat.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0))
}

/// The bytes of a file under `tests/fixtures`.
pub fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of a column as text.
fn shown(column: &ArrayRef, row: usize) -> String {
    // Arrow prints the zone `UTC` only with a time zone database; the offset is the same.
    let column = match column.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(times) => Arc::new(times.clone().with_timezone("+00:00")) as ArrayRef,
        None => column.clone(),
    };
    let options = FormatOptions::new();
    ArrayFormatter::try_new(&column, &options).expect("a formatter").value(row).to_string()
}

impl Outcome {
    /// What holds of every flush: every item is one row, in its own table or in `dead_letters`; columns are in core order.
    fn check_shape(&self) {
        let items: u32 = self.results.iter().map(|result| result.items).sum();
        let rows: usize = self.decoded.batches.iter().map(|batch| batch.rows.num_rows()).sum();
        assert_eq!(items as usize, rows, "every item is one row");
        assert_eq!(self.decoded.batches.len(), self.decoded.rows.len());
        for (batch, rows) in self.decoded.batches.iter().zip(&self.decoded.rows) {
            assert_eq!(batch.rows.num_rows(), rows.len());
            assert!(batch.keys.is_empty() || batch.keys.len() == rows.len());
            let core = batch.dataset.core_schema();
            let places: Vec<usize> =
                batch.rows.schema().fields().iter().filter_map(|field| core.index_of(field.name()).ok()).collect();
            assert!(places.is_sorted(), "core columns in core order, then own fields");
            assert!(places.starts_with(&[0, 1, 2, 3, 4]), "the columns of every dataset are there");
            for (field, column) in batch.rows.schema().fields().iter().zip(batch.rows.columns()) {
                assert!(column.null_count() < rows.len(), "{} has a value", field.name());
                match core.index_of(field.name()) {
                    Ok(at) => assert_eq!(field.data_type(), core.field(at).data_type()),
                    Err(_) => assert!(tidegate_events::FieldType::from_data_type(field.data_type()).is_some()),
                }
            }
        }
    }

    /// The values of a column over all batches of a table as text, in the order of body and item; nulls are left out.
    pub fn column(&self, table: &str, name: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (batch, rows) in self.decoded.batches.iter().zip(&self.decoded.rows) {
            if batch.dataset.table_name() != table {
                continue;
            }
            let Some(column) = batch.rows.column_by_name(name) else { continue };
            for (at, row) in rows.iter().enumerate().filter(|(at, _)| column.is_valid(*at)) {
                found.push(((row.body, row.item), shown(column, at)));
            }
        }
        found.sort();
        found.into_iter().map(|(_, text)| text).collect()
    }

    /// The value of a column of one row, as text; empty when null or missing.
    pub fn cell(&self, body: u32, item: u32, name: &str) -> String {
        for (batch, rows) in self.decoded.batches.iter().zip(&self.decoded.rows) {
            let at = rows.iter().position(|row| (row.body, row.item) == (body, item));
            if let (Some(at), Some(column)) = (at, batch.rows.column_by_name(name)) {
                return shown(column, at);
            }
        }
        String::new()
    }

    /// The codes of the rejected events of a body, by index.
    pub fn rejected(&self, body: usize) -> Vec<(u32, &'static str)> {
        self.results[body].rejected.iter().map(|rejected| (rejected.index, rejected.code)).collect()
    }

    /// The batches of a table.
    pub fn batches(&self, table: &str) -> Vec<&RecordBatch> {
        let of_table = |batch: &&tidegate_pipeline::EventBatch| batch.dataset.table_name() == table;
        self.decoded.batches.iter().filter(of_table).map(|batch| &batch.rows).collect()
    }
}
