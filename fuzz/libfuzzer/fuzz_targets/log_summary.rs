//! See `tidegate_fuzz::log_summary`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::log_summary(bytes));
