//! See `tidegate_fuzz::mapping_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::mapping_file(bytes));
