//! See `tidegate_fuzz::csv_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::csv_body(bytes));
