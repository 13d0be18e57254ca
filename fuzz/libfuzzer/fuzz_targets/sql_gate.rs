//! See `tidegate_fuzz::sql_gate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::sql_gate(bytes));
