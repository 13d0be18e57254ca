//! Body bytes → columns, for each body form and kind of event; beside it, in the same run, what `arrow-json` makes of the same
//! bytes with its schema given, and what `serde_json` and `sonic-rs` do for a tree of values. CPU time, not wall time.

use std::hint::black_box;
use std::io::{Read, Write};

use anyhow::Context;
use criterion::{BatchSize, Criterion, Throughput};
use tidegate_benches::{
    CpuTime, Feed, array, arrow_json, arrow_stream, csv, decoder, decoder_with, inferred_schema, ndjson,
};
use tidegate_ingest::decode::{BodyFormat, DecodeConfig};
use tidegate_ingest::inflate::{Encoding, inflate};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 2_000;
/// Events in each of the small bodies that one flush takes together.
const SMALL: usize = 10;
/// Most bytes that a body may inflate to: more than any body here.
const BUDGET: usize = 64 << 20;
/// Without remembered shapes: what an event costs that is unlike all before it.
const IN_FULL: &str = "ndjson, parsed in full";

fn decode(criterion: &mut Criterion<CpuTime>) {
    for feed in Feed::ALL {
        feed_in(criterion, feed).expect("bodies that every parser takes");
    }
}

fn feed_in(criterion: &mut Criterion<CpuTime>, feed: Feed) -> anyhow::Result<()> {
    let lines = feed.lines(EVENTS);
    let (array, ndjson_body) = (array(&lines), ndjson(&lines));
    let small = lines.chunks(SMALL).map(ndjson).collect::<Vec<_>>();
    let mut group = criterion.benchmark_group(format!("decode/{}", feed.label(&lines)));
    group.throughput(Throughput::Elements(EVENTS as u64));

    let ours = [
        ("array", vec![array], BodyFormat::Json),
        ("ndjson", vec![ndjson_body.clone()], BodyFormat::Json),
        (IN_FULL, vec![ndjson_body.clone()], BodyFormat::Json),
        ("ndjson, 10 a body", small, BodyFormat::Json),
        ("one event a body", lines.clone(), BodyFormat::Single),
    ];
    // A field that changes its type has no column that arrow-json could be given.
    let schema = inferred_schema(&ndjson_body).ok();
    // Lists of objects, which the others have, are no columns that an Arrow body may have.
    let flat = feed == Feed::Reference;
    let arrow = flat.then(|| arrow_stream(&ndjson_body, EVENTS)).transpose().context("an Arrow stream")?;
    let arrow = arrow.map(|stream| ("arrow stream", vec![stream], BodyFormat::ArrowStream));
    let rows = (feed == Feed::Focus).then(|| csv(&lines)).transpose()?;
    let rows = rows.map(|body| ("csv", vec![body], BodyFormat::Csv));
    for (name, bodies, format) in ours.into_iter().chain(arrow).chain(rows) {
        let mut decoder = match name {
            IN_FULL => decoder_with(DecodeConfig { shape_steps_max: 0, ..DecodeConfig::default() })?,
            _ => decoder()?,
        };
        group.bench_function(name, |bencher| {
            let made = || bodies.iter().map(|bytes| feed.body(bytes.clone(), format)).collect::<Vec<_>>();
            let run = |bodies: Vec<_>| {
                for body in bodies {
                    let result = decoder.push(body);
                    assert!(result.error.is_none() && result.rejected.is_empty());
                }
                decoder.flush().expect("columns")
            };
            bencher.iter_batched(made, run, BatchSize::LargeInput);
        });
    }

    if let Some(schema) = schema {
        group.bench_function("peer arrow-json, schema given", |bencher| {
            bencher.iter_with_large_drop(|| arrow_json(&ndjson_body, schema.clone(), EVENTS).expect("a batch"));
        });
    }
    group.bench_function("peer serde_json values", |bencher| {
        bencher.iter(|| {
            for line in &lines {
                black_box(serde_json::from_slice::<serde_json::Value>(line).expect("JSON"));
            }
        });
    });
    group.bench_function("peer sonic-rs values", |bencher| {
        bencher.iter(|| {
            for line in &lines {
                black_box(sonic_rs::from_slice::<sonic_rs::Value>(line).expect("JSON"));
            }
        });
    });
    group.finish();
    Ok(())
}

/// What `Content-Encoding` costs before a body is decoded; beside it the library alone, without a budget.
fn inflating(criterion: &mut Criterion<CpuTime>) {
    let lines = Feed::Reference.lines(EVENTS);
    let body = ndjson(&lines);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&body).expect("memory");
    let gzip = gzip.finish().expect("memory");
    let zstd = zstd::stream::encode_all(body.as_slice(), 3).expect("memory");
    let mut group = criterion.benchmark_group(format!("inflate/{}", Feed::Reference.label(&lines)));
    group.throughput(Throughput::Elements(EVENTS as u64));
    for (name, encoding, sent) in [("gzip", Encoding::Gzip, &gzip), ("zstd", Encoding::Zstd, &zstd)] {
        group.bench_function(name, |bencher| {
            bencher.iter_with_large_drop(|| inflate(encoding, sent, BUDGET).expect("a good body"));
        });
    }
    group.bench_function("peer flate2", |bencher| {
        bencher.iter_with_large_drop(|| {
            let mut out = Vec::with_capacity(body.len());
            flate2::bufread::MultiGzDecoder::new(gzip.as_slice()).read_to_end(&mut out).expect("a good body");
            out
        });
    });
    group.bench_function("peer zstd", |bencher| {
        bencher.iter_with_large_drop(|| zstd::stream::decode_all(zstd.as_slice()).expect("a good body"));
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().with_measurement(CpuTime).configure_from_args();
    decode(&mut criterion);
    inflating(&mut criterion);
    criterion.final_summary();
}
