//! Prints an Arrow stream as a table for people.

use std::io::Write;

use anyhow::Context;
use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::util::display::{ArrayFormatter, DurationFormat, FormatOptions};

use crate::cli::style::cut;

/// Cells are cut to so many characters: a table is for looking, JSON and CSV are for the whole value.
pub const CELL_CHARS_MAX: usize = 60;
/// Widths are found from so many rows at a time, so that a large answer prints at once.
const PAGE_ROWS: usize = 1_000;

/// Prints the rows of an Arrow IPC stream; says how many there were.
///
/// # Errors
/// When the bytes are no Arrow stream or cannot be written.
pub fn print_table(stream: &[u8], out: &mut dyn Write) -> anyhow::Result<usize> {
    let reader = StreamReader::try_new(stream, None).context("the answer is not an Arrow stream")?;
    let names: Vec<String> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
    let mut page = Page::new(names);
    let mut rows = 0;
    for batch in reader {
        let batch = batch.context("the answer broke off")?;
        let columns = texts(&batch).context("a value that cannot be shown")?;
        for row in 0..batch.num_rows() {
            page.add(columns.iter().map(|column| column.value(row)));
            if page.rows == PAGE_ROWS {
                page.print(out)?;
            }
        }
        rows += batch.num_rows();
    }
    if page.rows > 0 || rows == 0 {
        page.print(out)?;
    }
    Ok(rows)
}

/// Each column as text, nulls as nothing, right-aligned ones marked by their type.
fn texts(batch: &RecordBatch) -> Result<Vec<StringArray>, ArrowError> {
    batch.columns().iter().map(column_texts).collect()
}

fn column_texts(column: &ArrayRef) -> Result<StringArray, ArrowError> {
    let options = FormatOptions::new()
        .with_null("")
        .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.fZ"))
        .with_duration_format(DurationFormat::Pretty);
    let formatter = ArrayFormatter::try_new(column, &options)?;
    (0..column.len())
        .map(|row| Ok(Some(cut(&formatter.value(row).try_to_string()?, CELL_CHARS_MAX))))
        .collect::<Result<_, ArrowError>>()
}

/// Rows that are printed with the same column widths.
struct Page {
    names: Vec<String>,
    cells: Vec<String>,
    widths: Vec<usize>,
    rows: usize,
}

impl Page {
    fn new(names: Vec<String>) -> Self {
        let widths = names.iter().map(|name| name.chars().count()).collect();
        Self { names, cells: Vec::new(), widths, rows: 0 }
    }

    fn add<'a>(&mut self, cells: impl Iterator<Item = &'a str>) {
        for (width, cell) in self.widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
            self.cells.push(cell.to_owned());
        }
        self.rows += 1;
    }

    fn print(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        let line = |out: &mut dyn Write, cells: &[String]| {
            let padded = cells.iter().zip(&self.widths).map(|(cell, width)| format!("{cell:width$}"));
            writeln!(out, "{}", padded.collect::<Vec<_>>().join(" │ ").trim_end())
        };
        line(out, &self.names)?;
        let rules: Vec<String> = self.widths.iter().map(|width| "─".repeat(*width)).collect();
        writeln!(out, "{}", rules.join("─┼─"))?;
        for row in self.cells.chunks(self.names.len().max(1)) {
            line(out, row)?;
        }
        *self = Self::new(std::mem::take(&mut self.names));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Decimal128Array, Float64Array, ListBuilder, StringBuilder, TimestampMicrosecondArray};
    use arrow::ipc::writer::StreamWriter;

    use super::*;

    fn stream(batches: &[RecordBatch]) -> Vec<u8> {
        let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).expect("a writer");
        batches.iter().for_each(|batch| writer.write(batch).expect("a batch"));
        writer.into_inner().expect("bytes")
    }

    fn table(batches: &[RecordBatch]) -> String {
        let mut out = Vec::new();
        print_table(&stream(batches), &mut out).expect("a table");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn rows_line_up_and_nulls_are_empty() {
        let mut tags = ListBuilder::new(StringBuilder::new());
        tags.append_value([Some("a"), Some("b")]);
        tags.append_null();
        let money = Decimal128Array::from(vec![Some(1_500_000_000_000_000), None])
            .with_precision_and_scale(30, 15)
            .expect("a decimal");
        let batch = RecordBatch::try_from_iter_with_nullable([
            (
                "time",
                Arc::new(TimestampMicrosecondArray::from(vec![0, 1_500_000]).with_timezone("UTC")) as ArrayRef,
                true,
            ),
            ("actor", Arc::new(StringArray::from(vec![Some("maria"), None])), true),
            ("cost", Arc::new(money), true),
            ("score", Arc::new(Float64Array::from(vec![Some(0.5), Some(2.0)])), true),
            ("tags", Arc::new(tags.finish()), true),
        ])
        .expect("a batch");
        assert_eq!(
            table(&[batch]),
            "\
time                     │ actor │ cost              │ score │ tags
─────────────────────────┼───────┼───────────────────┼───────┼───────
1970-01-01 00:00:00Z     │ maria │ 1.500000000000000 │ 0.5   │ [a, b]
1970-01-01 00:00:01.500Z │       │                   │ 2.0   │
"
        );
    }

    #[test]
    fn long_and_hostile_text_stays_in_its_cell() {
        let text = format!("\u{1b}[31mred\nline {}", "x".repeat(100));
        let batch =
            RecordBatch::try_from_iter([("m", Arc::new(StringArray::from(vec![text])) as ArrayRef)]).expect("a batch");
        let table = table(&[batch]);
        assert_eq!(table.lines().count(), 3);
        assert!(!table.contains('\u{1b}') && table.contains("xx…"), "{table}");
    }

    #[test]
    fn an_answer_without_rows_shows_its_columns() {
        let batch = RecordBatch::try_from_iter([("n", Arc::new(Float64Array::from(Vec::<f64>::new())) as ArrayRef)])
            .expect("a batch");
        assert_eq!(table(&[batch]), "n\n─\n");
    }
}
