//! Bodies with columns: CSV, row by row through the same cells as JSON; Arrow streams, column by column.

use simd_json::Node as TapeNode;
use tidegate_events::{Dataset, focus};

use super::arrow_stream::{self, Frames};
use super::csv::{CsvReader, Record};
use super::json::Malformed;
use super::{BodyError, Decoder, Reading, RowRef, empty_body, scan};

/// A CSV file may have this many columns: FOCUS has 57, and no provider adds a thousand of its own.
const CSV_COLUMNS_MAX: usize = 1_024;

impl Decoder {
    /// A CSV body of cost rows.
    pub(super) fn csv(&mut self, reading: &mut Reading<'_>) -> Result<(), BodyError> {
        let bytes = reading.bytes;
        let mut reader = CsvReader::new(bytes, scan::skip_bom(bytes));
        let header = csv_header(reading.origin.dataset, &mut reader)?;
        let start = reader.at();
        if scan::skip_space(bytes, start) == bytes.len() {
            return Err(empty_body());
        }
        loop {
            if scan::skip_space(bytes, reader.at()) == bytes.len() || self.is_full(reading, reader.at()) {
                return Ok(());
            }
            match reader.next_record() {
                None => return Ok(()),
                Some(Record::Row(range)) => {
                    if let Err(malformed) = self.csv_row(reading, &header, &reader, range.len()) {
                        self.reject(reading, range, malformed);
                    }
                }
                Some(Record::Broken(start, what)) => {
                    let end = reader.skip_line(start);
                    let reason = format!("{what} (row at byte {start} of the body)");
                    self.reject(reading, start..end, Malformed { code: "malformed_csv", reason });
                }
            }
        }
    }

    fn csv_row(
        &mut self,
        reading: &mut Reading<'_>,
        header: &[String],
        reader: &CsvReader<'_>,
        row_bytes: usize,
    ) -> Result<(), Malformed> {
        if row_bytes > self.config.event_bytes_max {
            let reason = format!("the row has {row_bytes} bytes, more than {}", self.config.event_bytes_max);
            return Err(Malformed { code: "event_too_large", reason });
        }
        if reader.len() != header.len() {
            let reason = format!("the row has {} fields, the header {}", reader.len(), header.len());
            return Err(Malformed { code: "malformed_csv", reason });
        }
        let mut nodes = Vec::with_capacity(header.len() * 2 + 1);
        nodes.push(TapeNode::Object { len: 0, count: 0 });
        for (name, (field, quoted)) in header.iter().zip(reader.fields()) {
            let text = std::str::from_utf8(field).map_err(|error| {
                let reason = format!("not UTF-8 at byte {} of {name:?}", error.valid_up_to());
                Malformed { code: "invalid_utf8", reason }
            })?;
            if !text.is_empty() && (quoted || text != "NULL") {
                nodes.push(TapeNode::String(name));
                nodes.push(TapeNode::String(text));
            }
        }
        let (len, count) = (nodes.len() / 2, nodes.len() - 1);
        if let Some(root) = nodes.first_mut() {
            *root = TapeNode::Object { len, count };
        }
        let item = reading.result.items;
        self.cost.text_row(&nodes, |tape, texts| self.rows.event(&reading.origin, item, (tape, None), texts));
        reading.result.items += 1;
        Ok(())
    }

    /// An Arrow IPC stream.
    pub(super) fn arrow(&mut self, reading: &mut Reading<'_>) -> Result<(), BodyError> {
        let bytes = reading.bytes;
        let frames = Frames::check(bytes, self.config.body_events_max);
        let malformed = |reason: String| BodyError { code: "malformed_arrow", reason };
        let whole = bytes.get(..frames.whole_bytes).unwrap_or_default();
        let mut reader =
            arrow_stream::open(whole).map_err(|reason| malformed(frames.broken.clone().unwrap_or(reason)))?;
        let plan = arrow_stream::plan(&reader.schema(), &reading.origin, &self.mappings, &self.config)?;
        self.rows.admit(reading.origin.scope, plan.own_names())?;
        let mut broken = frames.broken;
        loop {
            let batch = match arrow_stream::next(&mut reader) {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(reason) => {
                    broken = Some(reason);
                    break;
                }
            };
            if batch.num_rows() == 0 {
                continue;
            }
            let first = reading.result.items;
            let origin = &reading.origin;
            match plan.batch(&batch, origin, first, &mut self.rows.ids) {
                Ok(events) => {
                    let rows = (first..first + batch.num_rows() as u32).map(|item| RowRef { body: origin.body, item });
                    self.arrow_rows += batch.num_rows();
                    self.arrow.push((events, rows.collect()));
                    reading.result.items += batch.num_rows() as u32;
                }
                Err(reason) => {
                    broken = Some(reason);
                    break;
                }
            }
        }
        match broken {
            None if reading.result.items == 0 => Err(empty_body()),
            None => Ok(()),
            Some(reason) if reading.result.items == 0 => Err(malformed(reason)),
            Some(reason) => {
                let reason = format!("the stream cannot be read after row {}: {reason}", reading.result.items);
                self.reject(reading, 0..0, Malformed { code: "malformed_arrow", reason });
                Ok(())
            }
        }
    }
}

/// The names in the header, of which at least one must be FOCUS's.
fn csv_header(dataset: Dataset, reader: &mut CsvReader<'_>) -> Result<Vec<String>, BodyError> {
    if dataset != Dataset::CostEvents {
        let reason = "CSV is for cost rows: send it to cost_events (POST /v2/costs/bulk)".to_owned();
        return Err(BodyError { code: "wrong_dataset", reason });
    }
    let unknown = |reason: String| BodyError { code: "unknown_csv_header", reason };
    match reader.next_record() {
        None => return Err(empty_body()),
        Some(Record::Broken(_, what)) => return Err(unknown(format!("the header cannot be read: {what}"))),
        Some(Record::Row(_)) if reader.len() > CSV_COLUMNS_MAX => {
            return Err(unknown(format!("the header has {} columns, more than {CSV_COLUMNS_MAX}", reader.len())));
        }
        Some(Record::Row(_)) => {}
    }
    let names = reader.fields().map(|(name, _)| std::str::from_utf8(name).map(|name| name.trim().to_owned()));
    let names: Vec<String> =
        names.collect::<Result<_, _>>().map_err(|_| unknown("the header is not UTF-8".to_owned()))?;
    let is_focus = |name: &String| {
        focus::columns().iter().any(|column| column.name == name || column.focus_names.contains(&name.as_str()))
    };
    if !names.iter().any(is_focus) {
        let reason = "no column of the header has a FOCUS name (BilledCost, ChargePeriodStart, …)".to_owned();
        return Err(unknown(reason));
    }
    for (at, name) in names.iter().enumerate() {
        if name.is_empty() || names.iter().skip(at + 1).any(|other| other == name) {
            return Err(unknown(format!("column {} of the header, {name:?}, has no name or that of another", at + 1)));
        }
    }
    Ok(names)
}
