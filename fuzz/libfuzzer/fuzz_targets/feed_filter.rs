//! See `tidegate_fuzz::feed_filter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::feed_filter(bytes));
