//! Fuzz targets: one function of bytes for each thing that input from outside reaches. A target panics when an invariant
//! does not hold; that it does not panic by itself is only the least of them.
//!
//! They are driven in two ways, which `fuzz/README.md` tells: by the tests of this crate, on any toolchain, and by libFuzzer.

mod answers;
mod bodies;
mod disk;
mod rows;
mod texts;

pub use answers::{database_value, fluvio_record, seed_of_record, seeds_of_values, values_taken};
pub use bodies::{arrow_body, csv_body, inflate, json_body};
pub use disk::{log_segment, log_summary, parquet_manifest, seeds_of_disk};
pub use texts::{configuration, feed_filter, mapping_file, query_string, rule_text, sql_gate, values};

/// What a target is.
pub type Target = fn(&[u8]);

/// Every target by name. The folders of `fuzz/corpus` and `fuzz/crashes`, and the programs of `fuzz/libfuzzer`, are called so.
pub const TARGETS: &[(&str, Target)] = &[
    ("arrow_body", arrow_body),
    ("configuration", configuration),
    ("csv_body", csv_body),
    ("database_value", database_value),
    ("feed_filter", feed_filter),
    ("fluvio_record", fluvio_record),
    ("inflate", inflate),
    ("json_body", json_body),
    ("log_segment", log_segment),
    ("log_summary", log_summary),
    ("mapping_file", mapping_file),
    ("parquet_manifest", parquet_manifest),
    ("query_string", query_string),
    ("rule_text", rule_text),
    ("sql_gate", sql_gate),
    ("values", values),
];
