//! See `tidegate_fuzz::database_value`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::database_value(bytes));
