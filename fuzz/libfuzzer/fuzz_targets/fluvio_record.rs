//! See `tidegate_fuzz::fluvio_record`. The reader of frames catches panics of arrow-rs, as `arrow_body` does.
#![no_main]

libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| tidegate_fuzz::fluvio_record(bytes));
