//! Any bytes as a header.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::header::check(bytes));
