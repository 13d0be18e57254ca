//! The rows of a query as the body of an answer, in one of four formats.
//!
//! The first [`HELD_BYTES`] are held back, so that most errors still get a status of their own. After that the status is
//! sent, and an error ends the body so that no client can take it for a whole one: the connection is reset (HTTP/1.1: no
//! last chunk; HTTP/2: a stream error) and, where the format can say it, the error comes first:
//!
//! | format | type | an error after the first bytes |
//! |---|---|---|
//! | JSON array | `application/json` | `{"error":…}` as a last element and no `]`: the text does not parse |
//! | NDJSON | `application/x-ndjson` | a last line `{"error":…}` |
//! | CSV | `text/csv` | nothing more |
//! | Arrow stream | `application/vnd.apache.arrow.stream` | no end-of-stream marker |

use std::io;

use arrow::array::RecordBatch;
use arrow::csv::WriterBuilder;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use tokio::runtime::Handle;

use super::{Body, refused, whole};
use crate::error::{QueryError, internal};
use crate::json::{Nulls, RowWriter};
use crate::stream::QueryStream;

/// How much of an answer is made before its status is sent.
const HELD_BYTES: usize = 256 << 10;

/// A batch of no more rows is rendered where it is received.
const SMALL_ROWS: usize = 256;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// One array of objects.
    Json,
    /// An object a line.
    Ndjson,
    /// A header line and a line a row.
    Csv,
    /// Arrow IPC stream.
    Arrow,
}

impl Format {
    /// The format that `accept` asks for; the first one known wins, and nothing asked means JSON.
    pub(crate) fn from_accept(accept: Option<&str>) -> Result<Self, QueryError> {
        let Some(accept) = accept else { return Ok(Self::Json) };
        let known = accept.split(',').find_map(|kind| {
            match kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
                "application/json" | "*/*" | "application/*" | "" => Some(Self::Json),
                "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Ndjson),
                "text/csv" | "text/*" => Some(Self::Csv),
                "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
                _ => None,
            }
        });
        known.ok_or_else(|| QueryError::BadRequest {
            status: 406,
            code: "not_acceptable",
            message:
                "Accept knows application/json, application/x-ndjson, text/csv and application/vnd.apache.arrow.stream"
                    .into(),
        })
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::Arrow => "application/vnd.apache.arrow.stream",
        }
    }
}

/// Writes batches in one format.
enum Writer {
    Json { rows: RowWriter, any: bool },
    Ndjson(RowWriter),
    Csv { schema: SchemaRef, header: bool },
    Arrow(Box<StreamWriter<Vec<u8>>>),
}

impl Writer {
    fn new(format: Format, schema: &SchemaRef) -> Result<Self, ArrowError> {
        Ok(match format {
            Format::Json => Self::Json { rows: RowWriter::new(schema, Nulls::Keep), any: false },
            Format::Ndjson => Self::Ndjson(RowWriter::new(schema, Nulls::Keep)),
            Format::Csv => Self::Csv { schema: flat(schema), header: true },
            Format::Arrow => Self::Arrow(Box::new(StreamWriter::try_new(Vec::new(), schema)?)),
        })
    }

    fn write(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        match self {
            Self::Json { rows, any } => {
                let mut part = Vec::with_capacity(batch.num_rows() * 128);
                rows.write(batch, &mut part, |part| part.extend_from_slice(b",\n"))?;
                if !part.is_empty() {
                    part.truncate(part.len() - 2);
                    out.extend_from_slice(if *any { b",\n" } else { b"[" });
                    *any = true;
                    out.append(&mut part);
                }
                Ok(())
            }
            Self::Ndjson(rows) => rows.write(batch, out, |out| out.push(b'\n')),
            Self::Csv { schema, header } => {
                let columns = batch.columns().iter().zip(batch.schema_ref().fields()).map(|(column, field)| {
                    if field.data_type().is_nested() { as_json(column) } else { Ok(column.clone()) }
                });
                let batch = RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)?;
                let mut writer = WriterBuilder::new()
                    .with_header(std::mem::take(header))
                    .with_timestamp_tz_format("%Y-%m-%dT%H:%M:%S%.fZ".into())
                    .build(out);
                writer.write(&batch)
            }
            Self::Arrow(writer) => {
                writer.write(batch)?;
                out.append(writer.get_mut());
                Ok(())
            }
        }
    }

    /// What comes after the last row.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), ArrowError> {
        match self {
            Self::Json { any, .. } => out.extend_from_slice(if *any { b"]\n" } else { b"[]\n" }),
            Self::Ndjson(_) => {}
            Self::Csv { schema, header } => {
                if *header {
                    let mut writer = WriterBuilder::new().with_header(true).build(out);
                    writer.write(&RecordBatch::new_empty(schema.clone()))?;
                }
            }
            Self::Arrow(writer) => {
                writer.finish()?;
                out.append(writer.get_mut());
            }
        }
        Ok(())
    }

    /// What says that the rows are not all there, in formats that can.
    fn fail(&self, error: &QueryError, request_id: &str) -> Vec<u8> {
        let problem = error.to_problem().to_json(request_id);
        match self {
            Self::Json { any, .. } => format!("{}{problem}\n", if *any { ",\n" } else { "[" }).into_bytes(),
            Self::Ndjson(_) => format!("{problem}\n").into_bytes(),
            Self::Csv { .. } | Self::Arrow(_) => Vec::new(),
        }
    }
}

/// The schema with lists and structs as text, for CSV.
fn flat(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &std::sync::Arc<Field>| match field.data_type().is_nested() {
        true => std::sync::Arc::new(Field::new(field.name(), DataType::Utf8, true)),
        false => field.clone(),
    };
    std::sync::Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

/// A nested column as JSON text.
fn as_json(column: &arrow::array::ArrayRef) -> Result<arrow::array::ArrayRef, ArrowError> {
    let texts = crate::json::column_texts(column)?;
    Ok(std::sync::Arc::new(arrow::array::StringArray::from(texts)))
}

/// A query being written, and what of it is not sent yet.
struct Sending {
    rows: QueryStream,
    /// Away while a batch is rendered on another thread.
    writer: Option<Writer>,
    cpu: Handle,
    request_id: String,
    ended: bool,
    failed: bool,
}

impl Sending {
    /// The next piece of the body; empty at the end.
    async fn next(&mut self) -> Result<Vec<u8>, QueryError> {
        let mut out = Vec::new();
        while out.is_empty() && !self.ended {
            let batch = self.rows.next().await.transpose()?;
            self.ended = batch.is_none();
            let Some(mut writer) = self.writer.take() else { return Err(QueryError::Cancelled) };
            let small = batch.as_ref().is_none_or(|batch| batch.num_rows() <= SMALL_ROWS);
            let render = move || {
                let mut out = Vec::new();
                let written = match &batch {
                    Some(batch) => writer.write(batch, &mut out),
                    None => writer.finish(&mut out),
                };
                written.map(|()| (writer, out))
            };
            let rendered = if small {
                render()
            } else {
                let task = self.cpu.spawn(async move { render() });
                task.await.map_err(|_| QueryError::Cancelled)?
            };
            let (writer, piece) = rendered.map_err(|error| internal(&error))?;
            self.writer = Some(writer);
            out = piece;
        }
        Ok(out)
    }

    /// What says, in formats that can, that the rows are not all there.
    fn fail(&self, error: &QueryError) -> Vec<u8> {
        self.writer.as_ref().map_or_else(Vec::new, |writer| writer.fail(error, &self.request_id))
    }

    fn closed(mut self) -> Self {
        self.failed = false;
        self.ended = true;
        self
    }
}

/// Answers with the rows of a query.
pub(crate) async fn respond(rows: QueryStream, format: Format, cpu: &Handle, request_id: &str) -> Response<Body> {
    let writer = match Writer::new(format, rows.schema()) {
        Ok(writer) => writer,
        Err(error) => return refused(&internal(&error), request_id),
    };
    let mut sending = Sending {
        rows,
        writer: Some(writer),
        cpu: cpu.clone(),
        request_id: request_id.to_owned(),
        ended: false,
        failed: false,
    };
    let mut held = Vec::new();
    while held.len() < HELD_BYTES && !sending.ended {
        match sending.next().await {
            Ok(piece) => held.extend_from_slice(&piece),
            Err(error) => return refused(&error, request_id),
        }
    }
    if sending.ended {
        return whole(200, format.content_type(), held);
    }
    let first = stream::iter([Ok(Frame::data(Bytes::from(held)))]);
    let rest = stream::unfold(sending, |mut sending| async move {
        if sending.failed {
            return Some((Err(io::Error::other("the query failed")), sending.closed()));
        }
        if sending.ended {
            return None;
        }
        let piece = match sending.next().await {
            Ok(piece) if piece.is_empty() => return None,
            Ok(piece) => piece,
            Err(error) => {
                tracing::warn!(
                    request_id = sending.request_id,
                    code = error.code(),
                    "a query failed after its first rows"
                );
                sending.failed = true;
                sending.fail(&error)
            }
        };
        Some((Ok(Frame::data(Bytes::from(piece))), sending))
    });
    let body = StreamBody::new(futures::StreamExt::chain(first, rest)).boxed_unsync();
    let mut response = whole(200, format.content_type(), Bytes::new());
    *response.body_mut() = body;
    response
}
