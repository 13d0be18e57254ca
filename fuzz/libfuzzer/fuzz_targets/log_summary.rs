//! See `tidegate_fuzz::log_summary`. The reader of frames catches panics of arrow-rs, as `arrow_body` does.
#![no_main]

libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| tidegate_fuzz::log_summary(bytes));
