//! See `tidegate_fuzz::parquet_manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::parquet_manifest(bytes));
