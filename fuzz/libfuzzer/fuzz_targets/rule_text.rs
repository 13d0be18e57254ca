//! See `tidegate_fuzz::rule_text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::rule_text(bytes));
