//! Rows of `dead_letters`: what could not be stored or delivered, and why.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use tidegate_events::Dataset;

use crate::error::PipelineError;

/// One thing that could not be stored or delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The tenant.
    pub org_id: String,
    /// The kind of record that it was said to be.
    pub source: String,
    /// The table for which it was meant.
    pub dataset: Dataset,
    /// Who gave up: `ingest`, `delivery:<sink>`.
    pub stage: String,
    /// A stable word for programs.
    pub code: String,
    /// Why, for people.
    pub reason: String,
    /// The request that brought it, when there was one.
    pub request_id: Option<String>,
    /// Its place in that request.
    pub item_index: Option<i64>,
    /// The thing itself, as it came, or as JSON text.
    pub payload: Vec<u8>,
    /// Its own time (µs).
    pub time_us: i64,
    /// When it was given up (µs), or received when a replay must give the same row.
    pub received_us: i64,
    /// An id of its own: the same for the same failure, so that a retry does not double it.
    pub event_id: String,
}

/// The letters as a batch of [`Dataset::DeadLetters`]. Payloads are kept as [`LetterText`] says; the reason says by how
/// much one was cut.
///
/// # Errors
/// Arrow's own, when the batch does not fit Arrow's offsets (2 GiB of payloads).
pub fn dead_letter_batch(rows: &[DeadLetter], payload_bytes_max: usize) -> Result<RecordBatch, PipelineError> {
    let payloads: Vec<LetterText> = rows.iter().map(|row| LetterText::of(&row.payload, payload_bytes_max)).collect();
    let reasons = rows.iter().zip(&payloads).map(|(row, payload)| match payload.kept {
        kept if kept < row.payload.len() => {
            Some(format!("{} (payload cut to {kept} of {} bytes)", row.reason, row.payload.len()))
        }
        _ => Some(row.reason.clone()),
    });
    let text =
        |of: fn(&DeadLetter) -> Option<&str>| -> ArrayRef { Arc::new(rows.iter().map(of).collect::<StringArray>()) };
    let times = |of: fn(&DeadLetter) -> i64| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(of)).with_timezone("UTC"))
    };
    let columns: Vec<ArrayRef> = vec![
        times(|row| row.time_us),
        times(|row| row.received_us),
        text(|row| Some(&row.event_id)),
        text(|row| Some(&row.org_id)),
        text(|row| Some(&row.source)),
        text(|row| Some(row.dataset.table_name())),
        text(|row| Some(&row.stage)),
        text(|row| Some(&row.code)),
        Arc::new(reasons.collect::<StringArray>()),
        text(|row| row.request_id.as_deref()),
        Arc::new(rows.iter().map(|row| row.item_index).collect::<Int64Array>()),
        Arc::new(payloads.iter().map(|payload| Some(payload.text.as_str())).collect::<StringArray>()),
        Arc::new(payloads.iter().map(|payload| Some(payload.encoding)).collect::<StringArray>()),
    ];
    Ok(RecordBatch::try_new(Dataset::DeadLetters.core_schema(), columns)?)
}

/// A payload as `dead_letters` keeps it, whoever gave up on it: as text when it is UTF-8, else in base64 (RFC 4648
/// section 4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterText {
    /// The column `payload`.
    pub text: String,
    /// The column `payload_encoding`: `utf8` or `base64`, and `;cut` after it when only the start is kept.
    pub encoding: &'static str,
    /// Bytes of the payload that the text stands for.
    pub kept: usize,
}

impl LetterText {
    /// Keeps a payload in a text of at most `bytes_max`.
    pub fn of(payload: &[u8], bytes_max: usize) -> Self {
        let head = &payload[..payload.len().min(bytes_max)];
        let cut_in_a_letter = |error: &std::str::Utf8Error| error.error_len().is_none() && head.len() < payload.len();
        match std::str::from_utf8(head) {
            Ok(text) => Self::new(text.to_owned(), ["utf8", "utf8;cut"], text.len(), payload),
            Err(error) if cut_in_a_letter(&error) => {
                let kept = error.valid_up_to();
                Self::new(String::from_utf8_lossy(&head[..kept]).into_owned(), ["utf8", "utf8;cut"], kept, payload)
            }
            Err(_) => {
                let kept = payload.len().min(bytes_max / 4 * 3);
                Self::new(base64(&payload[..kept]), ["base64", "base64;cut"], kept, payload)
            }
        }
    }
}

impl LetterText {
    fn new(text: String, [whole, cut]: [&'static str; 2], kept: usize, payload: &[u8]) -> Self {
        Self { text, encoding: if kept < payload.len() { cut } else { whole }, kept }
    }
}

/// RFC 4648, section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};

    fn letter(payload: &[u8]) -> DeadLetter {
        DeadLetter {
            org_id: "acme".into(),
            source: "cloudtrail".into(),
            dataset: Dataset::SecurityEvents,
            stage: "ingest".into(),
            code: "bad_json".into(),
            reason: "not JSON".into(),
            request_id: None,
            item_index: Some(3),
            payload: payload.to_vec(),
            time_us: 1,
            received_us: 2,
            event_id: "id".into(),
        }
    }

    fn check(payload: &[u8], bytes_max: usize, text: &str, encoding: &str, reason: &str) {
        let batch = dead_letter_batch(&[letter(payload)], bytes_max).expect("a batch");
        let cell = |name: &str| batch.column_by_name(name).expect(name).as_string::<i32>().value(0).to_owned();
        assert_eq!((cell("payload").as_str(), cell("payload_encoding").as_str()), (text, encoding), "{payload:?}");
        assert_eq!(cell("reason"), reason, "{payload:?}");
        assert!(cell("payload").len() <= bytes_max, "{payload:?}");
        assert_eq!(batch.schema(), Dataset::DeadLetters.core_schema());
        assert!(batch.column_by_name("request_id").expect("request_id").is_null(0));
    }

    #[test]
    fn payloads_are_text_when_they_can_be_and_cut_where_a_letter_ends() {
        check(b"{}", 100, "{}", "utf8", "not JSON");
        check(b"", 100, "", "utf8", "not JSON");
        check("aé".as_bytes(), 2, "a", "utf8;cut", "not JSON (payload cut to 1 of 3 bytes)");
        check("é".as_bytes(), 2, "é", "utf8", "not JSON");
        check(b"\xff\xfe", 100, "//4=", "base64", "not JSON");
        check(b"\xff", 100, "/w==", "base64", "not JSON");
        check(b"\xff\x00\x01", 100, "/wAB", "base64", "not JSON");
        check(b"\xff\x00\x01\x02", 4, "/wAB", "base64;cut", "not JSON (payload cut to 3 of 4 bytes)");
        check("é".as_bytes().split_at(1).0, 100, "ww==", "base64", "not JSON");
    }
}
