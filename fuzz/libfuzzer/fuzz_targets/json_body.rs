//! See `tidegate_fuzz::json_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::json_body(bytes));
