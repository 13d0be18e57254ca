//! See `tidegate_fuzz::inflate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::inflate(bytes));
