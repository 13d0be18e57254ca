//! See `tidegate_fuzz::arrow_body`. The decoder catches panics of arrow-rs and answers for them, so a panic may not abort here;
//! one that leaves the target still does.
#![no_main]

libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| tidegate_fuzz::arrow_body(bytes));
