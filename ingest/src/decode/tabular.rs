//! Bodies with columns: CSV, row by row through the same cells as JSON; Arrow streams, column by column.

use arrow::array::RecordBatch;
use simd_json::Node as TapeNode;
use tidegate_events::{Dataset, focus};

use super::arrow_columns::ArrowPlan;
use super::arrow_rows::{BadRow, RowBounds, Sorted};
use super::arrow_stream::{Next, Stream};
use super::csv::{CsvReader, Record};
use super::json::Malformed;
use super::rejected::too_many_events;
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
        self.cost.text_row(&nodes, |tape, numbers| self.rows.event(&reading.origin, item, (tape, None), numbers));
        reading.result.items += 1;
        Ok(())
    }

    /// An Arrow IPC stream.
    pub(super) fn arrow(&mut self, reading: &mut Reading<'_>) -> Result<(), BodyError> {
        let malformed = |reason: String| BodyError { code: "malformed_arrow", reason };
        let mut stream = Stream::open(reading.bytes).map_err(malformed)?;
        let unsupported = |reason| BodyError { code: "unsupported_column", reason };
        let plan = ArrowPlan::new(stream.schema(), &reading.origin, &self.mappings, &self.config);
        let plan = plan.map_err(unsupported)?;
        self.rows.admit(reading.origin.scope, plan.own_names())?;
        let values_max = self.config.values_bytes_max;
        while !reading.budget.is_refused() {
            let left = reading.budget.items_max().saturating_sub(reading.result.items as usize);
            let budget = &mut reading.budget;
            let next = stream.next(left, &mut |bytes| budget.charge_columns(0, bytes as u64, values_max));
            match next {
                Next::Batch(batch) => self.arrow_batch(reading, &plan, &batch),
                Next::Bad(rows, reason) => {
                    let malformed = Malformed { code: "malformed_arrow", reason };
                    self.reject_rows(reading, rows.min(left.max(1)), &malformed);
                }
                Next::TooMany => {
                    self.reject(reading, 0..0, too_many_events(reading.budget.items_max()));
                    break;
                }
                Next::Broken(reason) if reading.result.items == 0 => return Err(malformed(reason)),
                Next::Broken(reason) => {
                    let reason = format!("the stream cannot be read after row {}: {reason}", reading.result.items);
                    self.reject(reading, 0..0, Malformed { code: "malformed_arrow", reason });
                    break;
                }
                Next::End => break,
            }
        }
        if reading.result.items == 0 { Err(empty_body()) } else { Ok(()) }
    }

    /// The rows of a batch: those that can be are stored, each of the others is rejected.
    fn arrow_batch(&mut self, reading: &mut Reading<'_>, plan: &ArrowPlan, batch: &RecordBatch) {
        let (rows, first) = (batch.num_rows(), reading.result.items);
        if rows == 0 {
            return;
        }
        let bounds = RowBounds {
            event_bytes_max: self.config.event_bytes_max,
            payload_bytes_max: self.config.dead_letter_bytes_max,
            bad_max: self.config.rejected_items_max.saturating_sub(reading.result.rejected.len()),
        };
        let (budget, values_max) = (&mut reading.budget, self.config.values_bytes_max);
        let mut room = |rows: usize, bytes: u64| budget.charge_columns(rows, bytes, values_max);
        let sorted = plan.sort(batch, (&reading.origin, first), bounds, &mut room, &mut self.rows.ids);
        let Sorted { events, bad } = match sorted {
            Ok(sorted) => sorted,
            Err(reason) => {
                return self.reject_rows(reading, rows, &Malformed { code: "malformed_arrow", reason });
            }
        };
        for BadRow { item, why, payload } in bad {
            // Its text is made here, beside the body's own bytes.
            if !reading.budget.charge_columns(0, payload.len() as u64, values_max) {
                return;
            }
            self.reject_item(reading, item, why, &payload);
        }
        reading.result.items = first + rows as u32;
        if let Some((events, items)) = events {
            let body = reading.origin.body;
            self.arrow_rows += items.len();
            self.arrow.push((events, items.into_iter().map(|item| RowRef { body, item }).collect()));
        }
    }

    /// Rejects so many rows that cannot be read.
    fn reject_rows(&mut self, reading: &mut Reading<'_>, rows: usize, malformed: &Malformed) {
        for _ in 0..rows {
            if reading.budget.is_refused() {
                return;
            }
            self.reject(reading, 0..0, malformed.clone());
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
