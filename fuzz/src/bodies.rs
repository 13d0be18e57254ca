//! Bodies of requests, in every form and encoding.

use std::sync::{Arc, LazyLock};

use arrow::array::Array;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use tidegate_events::{Dataset, FieldType};
use tidegate_ingest::decode::{Body, BodyFormat, BodyResult, DecodeConfig, Decoded, Decoder};
use tidegate_ingest::inflate::{Encoding, InflateError, inflate as inflated, inflate_to_len, inflated_len};
use tidegate_ingest::mapping::Mappings;

/// What may come out of a compressed body here.
const INFLATED_BYTES_MAX: usize = 64 << 10;

static MAPPINGS: LazyLock<Arc<Mappings>> =
    LazyLock::new(|| Arc::new(Mappings::builtin().expect("the shipped mappings are right")));

/// Bounds that small inputs pass.
fn narrow() -> DecodeConfig {
    DecodeConfig {
        event_bytes_max: 200,
        event_fields_max: 6,
        depth_max: 4,
        fields_max: 10,
        field_name_bytes_max: 12,
        body_events_max: 5,
        rejected_items_max: 3,
        values_bytes_max: 2_000,
        dead_letter_bytes_max: 40,
        layout_families_max: 2,
        layouts_max: 3,
        shape_steps_max: 40,
    }
}

fn body(dataset: Dataset, format: BodyFormat, bytes: Vec<u8>) -> Body {
    Body {
        org_id: "hostile".into(),
        dataset,
        source: None,
        format,
        bytes,
        received_us: 1_700_000_000_000_000,
        idempotency_key: None,
        request_id: "request".into(),
    }
}

/// Decodes a body between two of another tenant: what holds of every flush holds, and these two are stored.
pub(crate) fn decode(mappings: &Arc<Mappings>, config: DecodeConfig, hostile: Body) -> (BodyResult, Decoded) {
    let mut decoder = Decoder::new(mappings.clone(), config, 42);
    let neighbour = |text: &str| {
        let body = body(Dataset::SecurityEvents, BodyFormat::Single, format!(r#"{{"n":"{text}"}}"#).into_bytes());
        Body { org_id: "neighbour".into(), ..body }
    };
    let before = decoder.push(neighbour("before"));
    let result = decoder.push(hostile);
    let after = decoder.push(neighbour("after"));
    let decoded = decoder.flush().expect("small bodies fill no column");
    assert_eq!((decoder.buffered_rows(), decoder.buffered_bytes()), (0, 0), "a flush leaves nothing");
    assert!(before.rejected.is_empty() && after.rejected.is_empty(), "neighbours are taken: {before:?} {after:?}");
    assert!(cell(&decoded, 0, 0, "n").contains("before"), "the body before is stored");
    assert!(cell(&decoded, 2, 0, "n").contains("after"), "the body after is stored");
    assert!(result.error.is_none() || result.items == 0, "an error of the body stores nothing: {result:?}");
    assert!(result.rejected.is_sorted_by(|one, two| one.index < two.index), "rejected ascend: {:?}", result.rejected);
    assert!(result.rejected.iter().all(|rejected| rejected.index < result.items), "rejected are items: {result:?}");
    check_rows(&result, &decoded);
    (result, decoded)
}

/// Each item is one row, in its table or in `dead_letters`, and batches have the columns that the log takes.
fn check_rows(result: &BodyResult, decoded: &Decoded) {
    assert_eq!(decoded.batches.len(), decoded.rows.len());
    let mut items = Vec::new();
    for (batch, rows) in decoded.batches.iter().zip(&decoded.rows) {
        assert_eq!(batch.rows.num_rows(), rows.len());
        assert!(batch.keys.is_empty() || batch.keys.len() == rows.len());
        let of_body = rows.iter().filter(|row| row.body == 1);
        items.extend(of_body.map(|row| (row.item, batch.dataset == Dataset::DeadLetters)));
        let core = batch.dataset.core_schema();
        let mut places = Vec::new();
        for (field, column) in batch.rows.schema().fields().iter().zip(batch.rows.columns()) {
            assert!(column.null_count() < rows.len(), "{} has no value", field.name());
            match core.index_of(field.name()) {
                Ok(at) => {
                    places.push(at);
                    assert_eq!(field.data_type(), core.field(at).data_type());
                }
                Err(_) => assert!(FieldType::from_data_type(field.data_type()).is_some(), "{field:?}"),
            }
        }
        assert!(places.is_sorted() && places.starts_with(&[0, 1, 2, 3, 4]), "core columns in order: {places:?}");
        if let Some(column) = batch.rows.columns().iter().find(|column| column.to_data().validate_full().is_err()) {
            panic!("a column is not valid: {:?}", column.to_data().validate_full());
        }
    }
    items.sort_unstable();
    let expected: Vec<(u32, bool)> = (0..result.items)
        .map(|item| (item, result.rejected.binary_search_by_key(&item, |rejected| rejected.index).is_ok()))
        .collect();
    assert_eq!(items, expected, "every item is one row, a rejected one of dead_letters");
}

/// The text of a field of a row; empty without one.
fn cell(decoded: &Decoded, body: u32, item: u32, name: &str) -> String {
    for (batch, rows) in decoded.batches.iter().zip(&decoded.rows) {
        let at = rows.iter().position(|row| (row.body, row.item) == (body, item));
        if let (Some(at), Some(column)) = (at, batch.rows.column_by_name(name)) {
            let options = FormatOptions::new();
            return ArrayFormatter::try_new(column, &options)
                .map_or_else(|_| String::new(), |cells| cells.value(at).to_string());
        }
    }
    String::new()
}

/// Whether a body is refused because so many of its events cannot be read. Each of them takes a byte at least.
fn has_too_many_rejected(result: &BodyResult, bytes: &[u8]) -> bool {
    let refused = result.error.as_ref().is_some_and(|error| error.code == "too_many_rejected");
    let most = DecodeConfig::default().rejected_items_max;
    assert!(!refused || bytes.len() > most, "{} bytes: {:?}", bytes.len(), result.error);
    refused
}

/// JSON, as one event and as many. Between two good lines, whatever the bytes are, both are stored, unless more
/// events cannot be read than one body may have of these.
pub fn json_body(bytes: &[u8]) {
    for dataset in [Dataset::SecurityEvents, Dataset::CostEvents] {
        decode(&MAPPINGS, DecodeConfig::default(), body(dataset, BodyFormat::Json, bytes.to_vec()));
        decode(&MAPPINGS, narrow(), body(dataset, BodyFormat::Json, bytes.to_vec()));
        for config in [DecodeConfig::default(), narrow()] {
            let (result, _) = decode(&MAPPINGS, config, body(dataset, BodyFormat::Single, bytes.to_vec()));
            assert!(result.items == u32::from(result.error.is_none()), "one event is one item: {result:?}");
        }
        let lines = [b"{\"neighbour\":\"before\"}\n", bytes, b"\n{\"neighbour\":\"after\"}\n"].concat();
        let (result, decoded) = decode(&MAPPINGS, DecodeConfig::default(), body(dataset, BodyFormat::Json, lines));
        if has_too_many_rejected(&result, bytes) {
            continue;
        }
        let last = result.items.saturating_sub(1);
        assert!(cell(&decoded, 1, 0, "neighbour").contains("before"), "the line before is stored: {result:?}");
        assert!(cell(&decoded, 1, last, "neighbour").contains("after"), "the line after is stored: {result:?}");
    }
}

/// CSV. A good record before the bytes is stored whatever they are, with the same exception.
pub fn csv_body(bytes: &[u8]) {
    for dataset in [Dataset::CostEvents, Dataset::SecurityEvents] {
        for config in [DecodeConfig::default(), narrow()] {
            decode(&MAPPINGS, config, body(dataset, BodyFormat::Csv, bytes.to_vec()));
        }
    }
    let record = b"BilledCost,ChargePeriodStart,ResourceId,neighbour\n1.25,2024-01-01T00:00:00Z,r,before\n";
    let records = [&record[..], bytes].concat();
    let cost = body(Dataset::CostEvents, BodyFormat::Csv, records);
    let (result, decoded) = decode(&MAPPINGS, DecodeConfig::default(), cost);
    if has_too_many_rejected(&result, bytes) {
        return;
    }
    assert!(result.error.is_none(), "{result:?}");
    assert!(cell(&decoded, 1, 0, "neighbour").contains("before"), "the record before is stored: {result:?}");
}

/// An Arrow IPC stream.
pub fn arrow_body(bytes: &[u8]) {
    for dataset in [Dataset::SecurityEvents, Dataset::CostEvents] {
        for config in [DecodeConfig::default(), narrow()] {
            decode(&MAPPINGS, config, body(dataset, BodyFormat::ArrowStream, bytes.to_vec()));
        }
    }
}

/// Compressed bodies: the budget holds, and the three ways to read agree.
pub fn inflate(bytes: &[u8]) {
    for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Deflate] {
        let out = inflated(encoding, bytes, INFLATED_BYTES_MAX);
        // They may stop at another place of a body that is both too large and damaged, and so for another reason.
        let len = inflated_len(encoding, bytes, INFLATED_BYTES_MAX);
        assert_eq!(len.ok(), out.as_ref().map(Vec::len).ok());
        let Ok(out) = out else { continue };
        assert!(out.len() <= INFLATED_BYTES_MAX);
        assert_eq!(inflate_to_len(encoding, bytes, out.len()).as_ref(), Ok(&out));
        if let Some(less) = out.len().checked_sub(1) {
            assert_eq!(inflated(encoding, bytes, less), Err(InflateError::TooLarge));
        }
    }
}

/// The texts of a mapping file and of an event, with a line `---` between them: the mapping is refused with a reason, or its
/// records are events.
pub(crate) fn with_mapping(mappings: &Arc<Mappings>, event: &str) {
    for mapping in mappings.iter().take(1) {
        let hostile = body(mapping.dataset, BodyFormat::Single, event.as_bytes().to_vec());
        decode(mappings, DecodeConfig::default(), Body { source: Some(mapping.name.clone()), ..hostile });
        decode(mappings, narrow(), body(mapping.dataset, BodyFormat::Single, event.as_bytes().to_vec()));
    }
}
