//! See `tidegate_fuzz::fluvio_record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate_fuzz::fluvio_record(bytes));
