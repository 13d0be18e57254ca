//! Batches of alerts as entries of a node's stream, which the feeds of the other nodes read.
//!
//! The id of an entry is `<n>-0`, where `n` is the offset after its last row in the output log of its node: ids grow with the
//! log, and one that is written twice is refused by Redis. Its fields: `o`, the offset of its first row; `p`, the offset up to
//! which the entries before it went, so that a reader sees what was trimmed between; `b`, its rows as one Arrow IPC stream.

use std::io::Cursor;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use redis::Value;
use tidegate_events::Dataset;
use tidegate_pipeline::{LogBatch, Offset};

use super::link::as_text;

/// An entry that was read.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    /// The offset up to which the entries before it went.
    pub(super) previous: Offset,
    pub(super) batch: Arc<LogBatch>,
}

/// The request that adds a batch.
///
/// # Errors
/// Arrow's own, when the batch cannot be encoded.
pub(super) fn add(key: &str, batch: &LogBatch, previous: Offset, batches_max: u64) -> Result<redis::Cmd, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.rows.schema())?;
    writer.write(&batch.rows)?;
    writer.finish()?;
    let rows = writer.into_inner()?;
    let mut request = redis::cmd("XADD");
    request.arg(key).arg("MAXLEN").arg("~").arg(batches_max).arg(format!("{}-0", batch.next_offset()));
    request.arg("o").arg(batch.offset).arg("p").arg(previous).arg("b").arg(rows);
    Ok(request)
}

/// The entries of an answer to XRANGE, or of one stream in one to XREAD. What is not such an entry is left out.
pub(super) fn frames(answer: &Value) -> Vec<Frame> {
    let Value::Array(entries) = answer else { return Vec::new() };
    entries.iter().filter_map(frame).collect()
}

fn frame(entry: &Value) -> Option<Frame> {
    let Value::Array(parts) = entry else { return None };
    let [id, Value::Array(fields)] = parts.as_slice() else { return None };
    let next = position(&as_text(id)?)?;
    let field = |name: &str| {
        let mut pairs = fields.chunks_exact(2);
        pairs.find_map(|pair| (as_text(pair.first()?)? == name).then(|| pair.get(1)).flatten())
    };
    let (Value::BulkString(bytes), offset, previous) = (field("b")?, number(field("o")?)?, number(field("p")?)?) else {
        return None;
    };
    let rows = StreamReader::try_new(Cursor::new(bytes), None).ok()?.next()?.ok()?;
    let batch = LogBatch { offset, dataset: Dataset::Alerts, rows };
    // Whoever may write to Redis may write anything: what does not fit the feed is no alert.
    let orgs = batch.rows.column_by_name(Dataset::ORG_ID)?;
    let fits = orgs.data_type() == &DataType::Utf8 && orgs.as_string_opt::<i32>().is_some();
    (fits && batch.rows.num_rows() > 0 && batch.next_offset() == next)
        .then(|| Frame { previous, batch: Arc::new(batch) })
}

/// The offset that an entry's id stands for.
pub(super) fn position(id: &str) -> Option<Offset> {
    id.split_once('-').map_or(id, |(position, _)| position).parse().ok()
}

fn number(value: &Value) -> Option<u64> {
    as_text(value)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tidegate_events::{Alert, alerts_to_batch};

    use super::*;

    fn alerts(orgs: &[&str], offset: Offset) -> LogBatch {
        let alert = |org: &&str| Alert { tags: vec!["x".into()], ..Alert::new(format!("a-{org}"), *org) };
        let alerts: Vec<Alert> = orgs.iter().map(alert).collect();
        LogBatch { offset, dataset: Dataset::Alerts, rows: alerts_to_batch(&alerts, offset, 3).expect("a batch") }
    }

    fn entry(id: &str, fields: &[(&str, &[u8])]) -> Value {
        let text = |text: &[u8]| Value::BulkString(text.to_vec());
        let fields = fields.iter().flat_map(|(name, value)| [text(name.as_bytes()), text(value)]).collect();
        Value::Array(vec![text(id.as_bytes()), Value::Array(fields)])
    }

    #[test]
    fn what_was_added_is_read_and_what_is_no_batch_of_alerts_is_not() {
        let batch = alerts(&["acme", "umbrella"], 40);
        let request = add("k", &batch, 38, 10).expect("a request");
        let words: Vec<Vec<u8>> = request
            .args_iter()
            .filter_map(|word| match word {
                redis::Arg::Simple(bytes) => Some(bytes.to_vec()),
                _ => None,
            })
            .collect();
        assert_eq!(words[5], b"42-0", "the offset after the last row");
        let bytes = words.last().expect("rows").clone();
        let good = entry("42-0", &[("o", b"40"), ("p", b"38"), ("b", &bytes)]);
        let broken = [
            entry("42-0", &[("o", b"40"), ("p", b"38")]),
            entry("43-0", &[("o", b"40"), ("p", b"38"), ("b", &bytes)]),
            entry("42-0", &[("o", b"x"), ("p", b"38"), ("b", &bytes)]),
            entry("42-0", &[("o", b"40"), ("p", b"38"), ("b", b"no rows")]),
            entry("42-0", &[("o", b"40"), ("p", b"38"), ("b", &bytes[..bytes.len() / 2])]),
            entry("x", &[("o", b"40"), ("p", b"38"), ("b", &bytes)]),
            Value::Nil,
        ];
        assert!(frames(&Value::Array(broken.to_vec())).is_empty());
        let read = frames(&Value::Array([&broken[..], &[good]].concat()));
        assert_eq!((read.len(), read[0].previous, read[0].batch.offset), (1, 38, 40));
        assert_eq!(read[0].batch.rows, batch.rows);
    }
}
